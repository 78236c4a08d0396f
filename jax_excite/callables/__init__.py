"""Callables as pytrees: weights travel as arguments, never as constants, and are read per call."""
