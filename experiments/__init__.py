"""Experiments on the paper's claims: one command each, see `README.md`."""
