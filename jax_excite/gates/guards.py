"""Guards: maxima that keep a variance from falling below 0 by rounding, and are not gates."""

import numpy as np

from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import Node, Operand

# The maximum depth of the search for the values from which a variance is computed.
_FARTHEST = 12
# The primitives through which a variance may be computed.
_KEEPS_SIGN = (
    "add",
    "all_gather",
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "div",
    "expand_dims",
    "mul",
    "pad",
    "psum",
    "psum_invariant",
    "reduce_sum",
    "reshape",
    "select_n",
    "slice",
    "squeeze",
    "transpose",
)


def guards_variance(facts: Facts, node: Node, value: int) -> bool:
    """Whether a maximum keeps a variance from falling below 0.

    A call with a derivative rule of its own, such as `jax.nn.relu`, is never a guard.

    Args:
        facts: the facts about the graph.
        node: the node that computes the maximum.
        value: the value whose maximum with 0 is computed.
    """
    return not node.has_derivative_rule and _Origins(facts).is_variance(value)


class _Origins:
    """The origins of values: how they are computed."""

    def __init__(self, facts: Facts):
        self._facts = facts

    def is_variance(self, value: Operand) -> bool:
        """Whether a value is a mean of squares, or that minus the square of a mean."""
        node = self._facts.producer(value)
        if node is not None and node.name == "sub":
            a, b = node.inputs
            is_mean = self._is_sum_of_squares(a) and self._reduces(a)
            return is_mean and self._is_square(b) and self._reduces(b)
        return self._is_sum_of_squares(value) and self._reduces(value)

    def _reduces(self, operand: Operand, depth: int = 0) -> bool:
        """Whether a value is computed from a sum over axes through `_KEEPS_SIGN` and powers."""
        node = self._facts.producer(operand)
        if node is None or depth > _FARTHEST:
            return False
        if node.name in ("reduce_sum", "psum", "psum_invariant"):
            return True
        further = node.name in (*_KEEPS_SIGN, "square", "integer_pow")
        return further and any(self._reduces(o, depth + 1) for o in node.inputs)

    def _is_square(self, operand: Operand) -> bool:
        node = self._facts.producer(operand)
        if node is None:
            return False
        if node.name == "square":
            return True
        if node.name == "integer_pow":
            return node.params["y"] == 2
        if node.name in ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze"):
            return self._is_square(node.inputs[0])
        return node.name == "mul" and node.inputs[0] == node.inputs[1]

    def _is_sum_of_squares(self, operand: Operand, depth: int = 0) -> bool:
        node = self._facts.producer(operand)
        if node is None or depth > _FARTHEST:
            return False
        if self._is_square(operand):
            return True
        on_input = [o for o in node.inputs if o in self._facts.depends]
        others = [o for o in node.inputs if o not in self._facts.depends]
        if node.name not in _KEEPS_SIGN or not on_input:
            return False
        if node.name == "select_n":
            others = [o for o in others if o != node.inputs[0]]
        kept = all(self._is_positive(o, depth + 1) for o in others)
        return kept and all(self._is_sum_of_squares(o, depth + 1) for o in on_input)

    def _is_positive(self, operand: Operand, depth: int) -> bool:
        """Whether a value that does not depend on the input is a number >= 0 or a count."""
        number = self._facts.constant(operand)
        if number is not None:
            return bool(np.isnan(number) or number >= 0)
        node = self._facts.producer(operand)
        if node is None or depth > _FARTHEST:
            return False
        if node.name == "convert_element_type" and not self._facts.is_float(node.inputs[0]):
            return True
        if node.name == "sub" and self._facts.constant(node.inputs[1]) == 0:
            return self._is_positive(node.inputs[0], depth + 1)
        return node.name in (*_KEEPS_SIGN, "max") and all(
            self._is_positive(o, depth + 1) for o in node.inputs
        )
