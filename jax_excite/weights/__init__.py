"""Weights: load, save, and files that are downloaded or converted."""
