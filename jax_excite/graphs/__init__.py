"""Functions as graphs: tracing, and the facts about each value."""
