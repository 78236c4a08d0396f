"""Networks from ONNX files: reading them as data, and evaluating them in JAX."""
