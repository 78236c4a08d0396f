"""Operators that compute each entry of the output from the corresponding entries of the inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.onnx.operators.operator import Operator, of_arrays, of_node
from jax_excite.onnx.program import Node
from jax_excite.onnx.values import Value, elementwise, numpy_or_jax


def _named(name: str) -> Operator:
    """An operator that NumPy and JAX have under the same name."""

    def evaluate(node: Node, *values: Value) -> Value:
        return elementwise(getattr(numpy_or_jax(*values), name), *values)

    return Operator(evaluate, any_order=True)


def _folded(name: str) -> Operator:
    """An operator of any number of inputs that a function of two is applied to in turn."""

    def evaluate(node: Node, *values: Value) -> Value:
        function = getattr(numpy_or_jax(*values), name)
        return functools.reduce(lambda a, b: elementwise(function, a, b), values)

    return Operator(evaluate, any_order=True)


def _div(node: Node, a: Value, b: Value) -> Value:
    xp = numpy_or_jax(a, b)
    if not xp.issubdtype(a.dtype, xp.integer):
        return a / b
    quotient = xp.abs(a) // xp.abs(b)  # rounds towards zero, unlike floor division
    return (quotient * xp.sign(a) * xp.sign(b)).astype(a.dtype)


def _mod(node: Node, a: Value, b: Value) -> Value:
    xp = numpy_or_jax(a, b)
    return xp.fmod(a, b) if node.get("fmod", 0) else xp.mod(a, b)


def _pow(node: Node, a: Value, b: Value) -> Value:
    xp = numpy_or_jax(a, b)
    if isinstance(b, np.ndarray) and b.ndim == 0 and float(b).is_integer() and abs(b) <= 8:
        return (a ** int(b)).astype(a.dtype)
    return xp.power(a, b).astype(a.dtype)


def _shift(node: Node, a: Value, b: Value) -> Value:
    xp = numpy_or_jax(a, b)
    shift = xp.left_shift if node.get("direction") == "LEFT" else xp.right_shift
    return shift(a, b)


def _is_inf(node: Node, x: Value) -> Value:
    up, down = node.get("detect_positive", 1), node.get("detect_negative", 1)
    return (jnp.isposinf(x) & bool(up)) | (jnp.isneginf(x) & bool(down))


def _mean(node: Node, *values: Value) -> Value:
    total = functools.reduce(lambda a, b: elementwise(jnp.add, a, b), values)
    return elementwise(lambda x: x / len(values), total)


def _where(node: Node, condition: Value, a: Value, b: Value) -> Value:
    xp = numpy_or_jax(condition, a, b)
    return elementwise(xp.where, condition, a, b)


OPERATORS = {
    **{
        onnx: _named(name)
        for onnx, name in {
            "Abs": "abs",
            "Acos": "arccos",
            "Acosh": "arccosh",
            "Add": "add",
            "And": "logical_and",
            "Asin": "arcsin",
            "Asinh": "arcsinh",
            "Atan": "arctan",
            "Atanh": "arctanh",
            "BitwiseAnd": "bitwise_and",
            "BitwiseNot": "invert",
            "BitwiseOr": "bitwise_or",
            "BitwiseXor": "bitwise_xor",
            "Ceil": "ceil",
            "Cos": "cos",
            "Cosh": "cosh",
            "Equal": "equal",
            "Exp": "exp",
            "Floor": "floor",
            "Greater": "greater",
            "GreaterOrEqual": "greater_equal",
            "IsNaN": "isnan",
            "Less": "less",
            "LessOrEqual": "less_equal",
            "Log": "log",
            "Mul": "multiply",
            "Neg": "negative",
            "Not": "logical_not",
            "Or": "logical_or",
            "Reciprocal": "reciprocal",
            "Round": "round",
            "Sign": "sign",
            "Sin": "sin",
            "Sinh": "sinh",
            "Sqrt": "sqrt",
            "Sub": "subtract",
            "Tan": "tan",
            "Tanh": "tanh",
            "Xor": "logical_xor",
        }.items()
    },
    "BitShift": of_node(_shift),
    "Div": of_node(_div),
    "Erf": of_arrays(jax.scipy.special.erf),
    "Identity": of_arrays(lambda x: x),
    "IsInf": of_node(_is_inf),
    "Max": _folded("maximum"),
    "Mean": Operator(_mean, any_order=True),
    "Min": _folded("minimum"),
    "Mod": of_node(_mod),
    "Pow": of_node(_pow),
    "Sum": _folded("add"),
    "Where": Operator(_where, any_order=True),
}
