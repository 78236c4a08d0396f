"""Images, class names and data sets."""
