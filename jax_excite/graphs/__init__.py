"""Functions as graphs: what is traced, and what is known of each value."""
