"""Callables as pytrees: weights are arguments, never constants, and are read at each call."""
