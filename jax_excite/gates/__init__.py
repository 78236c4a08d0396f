"""The gates that can be softened: how each is recognised, and its surrogate derivative."""
