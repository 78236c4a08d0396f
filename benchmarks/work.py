"""The work of a network, counted in its jaxpr, and the rate of such work on a device."""

import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.workers import answers
from jax_excite.models import model_spec


def forward_gflop(model: str, size: int) -> float:
    """GFLOP of one image's forward pass: two FLOP per multiply-add, including padding."""
    network = model_spec(model).abstract()
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    closed = jax.make_jaxpr(lambda network, x: network(x))(network, x)
    return 2e-9 * multiply_adds(closed.jaxpr)


def multiply_adds(jaxpr: Any) -> int:
    """The number of multiply-adds in convolutions and matrix products of a loop-free jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        total += _of_equation(equation)
        total += sum(multiply_adds(inner) for inner in _jaxprs(equation.params))
    return total


def _of_equation(equation: Any) -> int:
    outputs = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return outputs * math.prod(kernel) // kernel[features]
    return 0


def _jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def matmul_rates(device: str) -> Iterator[dict[str, float]]:
    """An endless iterator over the best rate of matrix products in GFLOP/s, by dtype.

    Each rate is the best over sizes and two runs. The first rates do not include compilation.
    """
    sizes = (2048, 4096) if device == "cpu" else (4096, 8192, 16384)
    dtypes = ("float32",) if device == "cpu" else ("float32", "bfloat16")
    operands = [jnp.ones((n, n), dtype) for dtype in dtypes for n in sizes]
    product = jax.jit(jnp.matmul)
    for operand in operands:
        jax.block_until_ready(product(operand, operand))
    while True:
        best: dict[str, float] = {}
        for operand in operands * 2:
            start = time.perf_counter()
            jax.block_until_ready(product(operand, operand))
            rate = 2e-9 * len(operand) ** 3 / (time.perf_counter() - start)
            best[operand.dtype.name] = max(rate, best.get(operand.dtype.name, 0.0))
        yield best


def main() -> None:
    """Run a worker that reports the rates when it is ready, and per line of standard input."""
    from benchmarks import ours

    ours.prepare("gpu" if sys.argv[1] == "gpu" else "cpu")
    rates = matmul_rates(sys.argv[1])
    stream = answers()
    print(json.dumps({"ready": True}), file=stream)
    for _ in sys.stdin:
        print(json.dumps(next(rates)), file=stream)


if __name__ == "__main__":
    main()
