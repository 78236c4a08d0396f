"""What an elementwise function computes, found by evaluating it in NumPy on sample points.

There are many ways to write a ReLU. All of them compute the same values, so they are recognised by
these values. A `Profile` is a value of a graph as a function of one earlier value, its base.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal

import numpy as np

# Sample points, symmetric around 0 and away from the numbers that people choose as bounds.
_MAGNITUDES = np.sort(
    np.concatenate([np.arange(1, 60) * 0.1371317, 1.0371 * 10.0 ** np.arange(-7, 30, 0.125)])
)
SAMPLES = np.concatenate([-_MAGNITUDES[::-1], _MAGNITUDES])
# Numbers that are not known when tracing, such as learned slopes, are tried with this many values.
_TRIALS = 3
# A derivative jumps where its one-sided differences differ by more than this.
_JUMP = 1e-3
_STEP = 1e-5

Evaluate = Callable[..., Any]


def special(name: str) -> Evaluate:
    """A function of `scipy.special`, which takes 0.1 s to import and is imported when called."""
    return lambda *args: getattr(importlib.import_module("scipy.special"), name)(*args)


def _rsqrt(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _select(which: Any, *cases: Any) -> Any:
    return np.select([np.asarray(which, int) == k for k in range(len(cases))], list(cases))


# Primitives whose derivative is smooth, where they are defined.
_SMOOTH: dict[str, Evaluate] = {
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add": np.add,
    "add_any": np.add,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "copy": np.array,
    "copy_p": np.array,
    "cos": np.cos,
    "cosh": np.cosh,
    "digamma": special("digamma"),
    "div": np.true_divide,
    "erf": special("erf"),
    "erf_inv": special("erfinv"),
    "erfc": special("erfc"),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "lgamma": special("gammaln"),
    "log": np.log,
    "log1p": np.log1p,
    "logistic": special("expit"),
    "mul": np.multiply,
    "name": np.array,
    "neg": np.negative,
    "optimization_barrier": np.array,
    "pcast": np.array,
    "pow": np.power,
    "pvary": np.array,
    "reduce_precision": np.array,
    "reshard": np.array,
    "rsqrt": _rsqrt,
    "sharding_constraint": np.array,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
}
# Primitives whose derivative, or whose value, jumps.
_KINKED: dict[str, Evaluate] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "rem": np.fmod,
    "round": np.rint,
    "sign": np.sign,
}
# Primitives that pass on the jumps of their operands, or jump at single points only.
_LOGICAL: dict[str, Evaluate] = {
    "and": np.bitwise_and,
    "eq": np.equal,
    "is_finite": np.isfinite,
    "ne": np.not_equal,
    "not": np.logical_not,
    "or": np.bitwise_or,
    "select_n": _select,
    "xor": np.bitwise_xor,
}
# Sums and differences, and products with values that do not depend on the base.
SUMS = ("add", "add_any", "sub")
PRODUCTS = ("mul", "div")
# Primitives that pass a value on as it is, or with its sign changed.
PLAIN = (
    "copy",
    "copy_p",
    "convert_element_type",
    "name",
    "neg",
    "optimization_barrier",
    "pcast",
    "pvary",
    "reduce_precision",
    "reshard",
    "sharding_constraint",
)


def elementwise(name: str, params: dict[str, Any]) -> Evaluate | None:
    """The NumPy function of an elementwise primitive; None for all others."""
    if name == "integer_pow":
        return lambda x: np.power(x, float(params["y"]))
    if name == "convert_element_type":
        return functools.partial(_converted, np.dtype(params["new_dtype"]))
    return _SMOOTH.get(name) or _KINKED.get(name) or _LOGICAL.get(name)


def _converted(dtype: Any, x: Any) -> Any:
    if dtype.kind == "b":
        return np.asarray(x, bool)
    if dtype.kind in "iu" and np.asarray(x).dtype.kind == "f":
        return np.trunc(x)
    return np.asarray(x, int if dtype.kind in "iu" else np.float64)


def has_kink(name: str, params: dict[str, Any]) -> bool:
    """Whether an elementwise primitive has a jump of its own."""
    return name in _KINKED or name == "select_n" or _truncates(name, params)


def primitive_name(name: str, params: dict[str, Any]) -> str:
    """The name of a primitive, or `truncate` for conversions that truncate."""
    return "truncate" if _truncates(name, params) else name


def _truncates(name: str, params: dict[str, Any]) -> bool:
    return name == "convert_element_type" and np.dtype(params["new_dtype"]).kind in "iu"


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A known number that is the same in every entry."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A float of unknown value that does not depend on the base."""

    key: Hashable

    @functools.cached_property
    def trials(self) -> np.ndarray:
        """Values to try, `[trials, 1]`, the same for the same key."""
        number = hash(self.key) % 100_003
        return np.array([[3 * math.sin(number * 12.9898 + k * 78.233)] for k in range(_TRIALS)])


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """A value as an elementwise function of its base.

    Attributes:
        name: the primitive that computes it; empty for the base itself.
        evaluate: that primitive in NumPy.
        inputs: the operands of that primitive.
        kinked: whether a derivative or a value jumps on the way from the base.
        names: the primitives on the way from the base.
        depth: the number of primitives on the way from the base.
    """

    name: str = ""
    evaluate: Evaluate | None = None
    inputs: tuple["Profile | Fixed | Symbol", ...] = ()
    kinked: bool = False
    names: frozenset[str] = frozenset()
    depth: int = 0

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """Its values at `SAMPLES`, `[trials, samples]`."""
        return self.at(SAMPLES)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Its values where the base is `points`, `[trials, points]`."""
        with np.errstate(all="ignore"):
            values = _value(self, points, {})
        return np.broadcast_to(values, (_TRIALS, len(points)))

    def is_identity(self) -> bool:
        """Whether this is the base itself, or equal to it, such as `x - 0`."""
        if self.evaluate is None:
            return True
        return not self.kinked and np.array_equal(
            self.samples, np.broadcast_to(SAMPLES, self.samples.shape)
        )


def _value(part: Profile | Fixed | Symbol, points: np.ndarray, known: dict[int, Any]) -> Any:
    if isinstance(part, Fixed):
        return part.value
    if isinstance(part, Symbol):
        return part.trials
    if part.evaluate is None:
        return points
    if id(part) not in known:
        known[id(part)] = part.evaluate(*(_value(i, points, known) for i in part.inputs))
    return known[id(part)]


def name_of_whole(profile: Profile) -> Literal["hard_sigmoid"] | None:
    """The name of the activation that a profile computes, if it is one that is not softened."""
    z, found = SAMPLES[np.abs(SAMPLES) < 50], profile.samples[:, np.abs(SAMPLES) < 50]
    if found.dtype.kind != "f":
        return None
    for low, high in ((-3.0, 3.0), (-2.5, 2.5), (-1.0, 1.0)):
        if is_same(found, np.clip((z - low) / (high - low), 0, 1)):
            return "hard_sigmoid"
    return None


def is_same(a: Any, b: Any) -> bool:
    """Whether values are equal up to rounding."""
    return bool(np.allclose(a, b, rtol=1e-6, atol=1e-9))


def parts_of(profile: Profile) -> Iterator[Profile | Fixed | Symbol]:
    """A profile and all parts that it is computed from, each once."""
    seen: set[int] = set()
    left: list[Profile | Fixed | Symbol] = [profile]
    while left:
        part = left.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            left += part.inputs if isinstance(part, Profile) else ()


def unknowns(profile: Profile) -> Iterator[Any]:
    """The keys of the symbols from which a profile is computed."""
    yield from (part.key for part in parts_of(profile) if isinstance(part, Symbol))


def jumps(profile: Profile) -> bool:
    """Whether the derivative of a profile, or its value, jumps anywhere.

    The derivative of the whole may be continuous although its parts have kinks, as in ELU.
    """
    switches = all_switches(profile)
    return switches is None or any(_jumps_at(profile, point) for point in switches)


def all_switches(profile: Profile) -> list[float] | None:
    """The points at which any part of a profile passes from one branch to another.

    None if there are too many.
    """
    parts = [part for part in parts_of(profile) if isinstance(part, Profile)]
    if any(part.name in _STEPS or _tells_apart(part) for part in parts):
        return None
    kinked = [part for part in parts if part.name in _KINKED]
    found: list[float] = []
    for part in sorted(kinked, key=lambda part: part.depth):
        points = around(found)
        for trial in range(_TRIALS):
            found += _switches(part, points, trial)
    return found


def _tells_apart(part: Profile) -> bool:
    """Whether an equality selects by the base, and is not just a test for one fixed number."""
    if part.name not in ("eq", "ne") or part.inputs[0] is part.inputs[1]:
        return False
    return not any(isinstance(operand, Fixed) for operand in part.inputs)


_STEPS = ("ceil", "floor", "rem", "round", "truncate")


def around(switches: list[float]) -> np.ndarray:
    """The sample points, with points on both sides of each switch and between switches."""
    at = np.unique(np.array(switches, np.float64))
    middles = (at[1:] + at[:-1]) / 2
    step = 1e-4 * np.maximum(1e-3, np.abs(at))
    more = [at - step, at + step, at - 9 * step, at + 9 * step, middles]
    return np.unique(np.concatenate([SAMPLES, *more, *(-part for part in more)]))


def _switches(part: Profile, points: np.ndarray, trial: int) -> list[float]:
    """The points at which one primitive passes from one branch to another, in one trial."""

    def difference(points: np.ndarray) -> np.ndarray:
        values = [np.asarray(_value(i, points, {}), np.float64) for i in part.inputs]
        values = [np.broadcast_to(v, (_TRIALS, len(points)))[trial] for v in values]
        if part.name == "clamp":
            low, x, high = values
            return np.where(np.abs(x - low) < np.abs(x - high), x - low, x - high)
        return values[0] - (values[1] if len(values) > 1 else 0)

    with np.errstate(all="ignore"):
        points = points[np.abs(points) < 1e15]
        values = difference(points)
        changes = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
        return [_root(difference, points[i], points[i + 1]) for i in changes]


def _root(f: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    rising = f(np.array([low]))[0] < 0
    for _ in range(60):
        middle = (low + high) / 2
        if (f(np.array([middle]))[0] < 0) == rising:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _jumps_at(profile: Profile, point: float) -> bool:
    wide = max(1.0, abs(point))
    step = _STEP * wide
    values = profile.at(point + step * np.array([-3, -2, -1, 1, 2, 3])).astype(np.float64)
    left, middle, right = ((values[:, i + 1] - values[:, i]) / step for i in (0, 2, 4))
    far = profile.at(point + wide * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])).astype(np.float64)
    size = np.nanmax(np.abs(np.diff(far)), axis=1, initial=0) / wide + np.abs(left) + np.abs(right)
    kink = np.abs(left - right) > _JUMP * size + 1e-12
    return bool(kink.any() or (np.abs(middle) > 20 * size + 1e-12).any())
