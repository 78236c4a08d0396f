"""Excitation pullbacks in JAX: see why a ReLU network decides as it does."""
