"""Recognition of ReLUs in a graph by the values that they compute, however they are written."""

import collections
import dataclasses
from typing import Any, Literal

import numpy as np

from jax_excite.gates.gate import Found
from jax_excite.gates.guards import guards_variance
from jax_excite.gates.reading import Reading
from jax_excite.graphs.facts import Facts
from jax_excite.graphs.graph import Constant, Node, Operand
from jax_excite.graphs.profiles import (
    SAMPLES,
    Fixed,
    Profile,
    Symbol,
    all_switches,
    around,
    is_same,
    parts_of,
)

# Primitives that tell the sign of a value, if one operand is 0.
_SIGNS = ("max", "min", "clamp", "gt", "ge", "lt", "le")
Shape = Literal["relu", "negative_relu", "clipped_relu", "leaky_relu", "other"]


@dataclasses.dataclass(frozen=True)
class Recognised:
    """The function that a profile computes.

    Attributes:
        shape: its name; `other` if it has none.
        bound: the upper bound of a clipped ReLU.
        slope: the derivative of a leaky ReLU below 0: a number, or the key of a `Symbol`.
    """

    shape: Shape
    bound: float | None = None
    slope: Any = None


OTHER = Recognised("other")


def recognise(profile: Profile) -> Recognised:
    """Recognise the function that a profile computes, by its values."""
    if not profile.kinked:
        return OTHER
    found = _recognise_at(profile, SAMPLES, profile.samples)
    if found.shape == "other":
        return found
    switches = all_switches(profile)
    if switches is None:
        return OTHER
    points = around(switches)
    again = _recognise_at(profile, points, profile.at(points))
    return found if again.shape == found.shape else OTHER


def _recognise_at(profile: Profile, z: np.ndarray, found: np.ndarray) -> Recognised:
    if found.dtype.kind != "f" or np.isnan(found).any():
        return OTHER
    above, below = z > 0, z < 0
    if is_same(found[:, below], 0) and is_same(found[:, above], z[above]):
        return Recognised("relu")
    if is_same(found[:, above], 0) and is_same(found[:, below], z[below]):
        return Recognised("negative_relu")
    bound = float(found[0, -1])
    if 0 < bound < 1e29 and is_same(found, np.clip(z, 0, bound)):
        return Recognised("clipped_relu", bound=bound)
    if is_same(found[:, above], z[above]):
        slopes = found[:, below][:, :1] / z[below][:1]
        if is_same(found[:, below], slopes * z[below]) and not _has_scaled_relu(profile):
            return _leaky(profile, slopes)
    return OTHER


def _has_scaled_relu(profile: Profile) -> bool:
    """Whether a ReLU of a multiple of the base is a part, as in `z / 2 + relu(z / 2)`.

    That is a sum of two branches, whose ReLU is a gate of its own.
    """
    parts = (part for part in parts_of(profile) if isinstance(part, Profile))
    for inputs in (part.inputs for part in parts if part.name in _SIGNS):
        z = next((part for part in inputs if isinstance(part, Profile)), None)
        with_zero = any(isinstance(part, Fixed) and np.all(part.value == 0) for part in inputs)
        if z is not None and with_zero and not is_same(np.abs(z.samples), np.abs(SAMPLES)):
            return True
    return False


def _leaky(profile: Profile, slopes: np.ndarray) -> Recognised:
    if is_same(slopes, slopes[0, 0]):
        slope = float(slopes[0, 0])
        return Recognised("leaky_relu", slope=slope) if 0 < slope < 1 else OTHER
    for part in parts_of(profile):
        if isinstance(part, Symbol) and is_same(part.trials, slopes):
            return Recognised("leaky_relu", slope=part.key)
    return OTHER


@dataclasses.dataclass(frozen=True)
class ReluForm:
    """A ReLU in a graph.

    Attributes:
        shape: the kind of ReLU; `hard_sigmoid` if it is part of one, `max` if it is not a ReLU.
        z: its pre-activation.
        bound: the upper bound of a clipped ReLU.
        slope: the derivative of a leaky ReLU below 0.
        obstacle: why it is left hard; empty if it can be softened.
    """

    shape: Literal[Shape, "hard_sigmoid", "max"]
    z: int
    bound: float | None = None
    slope: Operand | None = None
    obstacle: str = ""


def find_relu(reading: Reading, value: int, node: Node) -> ReluForm | None:
    """The ReLU whose output is `value`, or None.

    Args:
        reading: the reading of the graph.
        value: the value.
        node: the node that computes it.
    """
    facts = reading.facts
    own = facts.views.get(value, {})
    views = facts.inner_views.get(value) or own
    if any(base != value and view.is_identity() for base, view in own.items()):
        return None  # it only passes on a value, which may be the output of a gate
    nearest: ReluForm | None = None
    between: list[Found] = []  # gates between base and value: only a clip may contain a ReLU
    for base in sorted(views, reverse=True):
        found = recognise(views[base])
        clips = found.shape == "clipped_relu" and all(
            gate.kind == "relu" and _clips_above(facts, gate.z, base, found.bound)
            for gate in between
        )
        if found.shape == "other" or (between and not clips):
            gate = None if views[base].is_identity() else reading.gate(base)
            between += [gate] if gate is not None and gate.is_gate else []
            continue
        if base not in own:
            return nearest  # a gate inside the called function
        z = facts.local(base, facts.homes[value])
        if z is None:
            continue
        form = _form(reading, node, z, found)
        if form is None:
            return nearest  # its slope is known only inside the called function
        if guards_variance(facts, node, z):
            continue
        if nearest is None and reading.below(base) is None:
            return form
        # The ReLU of a minimum: together they are a clipped ReLU.
        if nearest is not None and _clips_above(facts, nearest.z, base, form.bound):
            return form
        nearest = nearest or form
    return nearest


def _clips_above(facts: Facts, z: Operand, base: int, bound: float | None) -> bool:
    """Whether a pre-activation is its base, or the minimum of that and a bound, or minus that."""
    view = None if isinstance(z, Constant) else facts.views[z].get(base)
    if view is None or bound is None:
        return False
    signed = view.samples * np.sign(view.samples[:, -1:])
    return is_same(signed, SAMPLES) or is_same(signed, np.minimum(SAMPLES, bound))


def is_guard(reading: Reading, value: int) -> bool:
    """Whether a value is a variance that is kept from falling below 0 by rounding."""
    views = reading.facts.views.get(value, {})
    base = next((base for base in sorted(views, reverse=True) if views[base].kinked), None)
    if base is None or recognise(views[base]).shape != "relu":
        return False
    return guards_variance(reading.facts, reading.facts.producers[value], base)


def _form(reading: Reading, node: Node, z: int, found: Recognised) -> ReluForm | None:
    if found.shape == "clipped_relu" and _is_centred(reading, z, found.bound or 0):
        reason = "a hard sigmoid, as a whole: left with its own derivative"
        return ReluForm("hard_sigmoid", z, obstacle=reason)
    if found.shape in ("relu", "negative_relu") and _guards_square_root(reading, node):
        return ReluForm("max", z, obstacle="it keeps a square root from negative numbers")
    slope = None
    if found.shape == "leaky_relu":
        slope = _slope(reading, node, z, found)
        if slope is None:
            return None
    return ReluForm(found.shape, z, found.bound, slope)


def _slope(reading: Reading, node: Node, z: int, found: Recognised) -> Operand | None:
    if isinstance(found.slope, float):
        return Constant(np.float64(found.slope))
    home = reading.facts.homes[node.outputs[0]]
    number = reading.facts.spelled(found.slope, home, reading.graph.types[z].shape)
    if number is not None:
        return number
    operands = (operand for inner in home.nodes for operand in inner.inputs)
    constants = (operand for operand in operands if isinstance(operand, Constant))
    return next((one for one in constants if id(one.value) == found.slope), None)


def _is_centred(reading: Reading, z: int, bound: float) -> bool:
    """Whether a clipped ReLU is a hard sigmoid: half of its bound was added to its input."""
    node = reading.facts.producers.get(z)
    if node is None or node.name not in ("add", "sub"):
        return False
    numbers = [reading.facts.constant(operand) for operand in node.inputs]
    offset = next((number for number in numbers if number is not None), 0)
    return bool(bound) and bool(np.isclose(abs(offset), bound / 2, rtol=1e-5))


def _guards_square_root(reading: Reading, node: Node) -> bool:
    """Whether a maximum is used only in square roots, directly or after shifts and scalings."""
    if node.name not in ("max", "clamp"):
        return False
    consumers = reading.consumers(node)
    left = collections.deque(node.outputs)
    roots = 0
    while left:
        for consumer in consumers.of(left.popleft()):
            if consumer is None or consumer.bodies:
                return False
            if consumer.name in ("sqrt", "rsqrt"):
                roots += 1
            elif consumer.name in ("add", "broadcast_in_dim", "convert_element_type", "mul"):
                if sum(o in reading.facts.depends for o in consumer.inputs) > 1:
                    return False
                left += consumer.outputs
            else:
                return False
    return roots > 0
