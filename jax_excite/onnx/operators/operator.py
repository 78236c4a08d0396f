"""What an operator of ONNX is to the interpreter."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Operator:
    """How the nodes of an operator are evaluated.

    Attributes:
        evaluate: computes the output, or a tuple of outputs, from the node and its inputs. Absent
            inputs are None.
        known: the positions of inputs that have to be known when a network is traced, such as
            shapes. Constants in these positions are no weights.
        any_order: whether inputs may be `ChannelsLast`; otherwise they are in logical order.
    """

    evaluate: Callable[..., Any]
    known: tuple[int, ...] = ()
    any_order: bool = False


ALL = tuple(range(64))  # all positions of inputs
