"""Weights: loading, saving, and files that are downloaded or converted."""
