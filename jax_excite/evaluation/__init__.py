"""Methods compared by metrics over photographs, and sanity checks."""
