"""Forms of convolutions that are fast on a CPU, for any function."""
