"""Comparison of methods by metrics over photographs, and sanity checks."""
