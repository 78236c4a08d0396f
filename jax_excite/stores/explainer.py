"""The computation for each group of images: logits, targets, attributions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.attributions.registry import METHODS
from jax_excite.errors import TargetError
from jax_excite.gating import Gating
from jax_excite.pullbacks.pullback import pullback_grid, value_and_pullback
from jax_excite.pullbacks.request import number_of_logits, shapes_of_outputs
from jax_excite.pullbacks.targets import columns
from jax_excite.transform.sites import Selection
from jax_excite.typing import Params

_Method = Callable[..., jax.Array]


def methods_by_name(gating: Gating, seed: int) -> dict[str, Gating | _Method]:
    """The attributions that a store can hold.

    A method that is a single pullback is represented by its gating, so that several targets can
    share a forward pass.
    """
    key = jax.random.key(seed)
    found: dict[str, Gating | _Method] = {}
    for name, each in METHODS.items():
        if name == "excitation_pullback":
            found[name] = gating
        elif not each.is_control:
            found[name] = each.gating or each.bind(gating, key)
    return found


@dataclasses.dataclass(frozen=True)
class Targets:
    """Which classes are explained: given classes, the label, or those with the greatest logits.

    With `at`, the given classes are channels of that site.
    """

    classes: tuple[int, ...]
    top: int
    label: bool
    at: str | None = None

    @staticmethod
    def parse(text: str, at: str | None = None) -> "Targets":
        """Parse `label`, `top-K` or comma-separated class indices; else raise `TargetError`.

        With a site, parse comma-separated channels.
        """
        kind, _, rest = text.partition("-")
        if text == "label" and at is None:
            return Targets((), 0, True)
        if kind == "top" and rest.isdecimal() and int(rest) > 0 and at is None:
            return Targets((), int(rest), False)
        try:
            classes = tuple(int(each) for each in text.split(","))
        except ValueError:
            wanted = "channels" if at else "class indices"
            other = "" if at else "label, top-K, or "
            raise TargetError(
                f"targets are {text!r}: give {other}comma-separated {wanted}"
            ) from None
        return Targets(classes, 0, False, at)

    @property
    def count(self) -> int:
        """The number of targets per image."""
        return len(self.classes) or self.top or 1


class Explained(NamedTuple):
    """Results for images: logits `[n, K]`, classes `[n, T]`, maps `[n, M, T, H, W, 3]`."""

    logits: Any
    classes: np.ndarray
    maps: Any


class Explainer:
    """Computes what a store holds.

    Each device gets the same number of images at a time and runs the same program, independently of
    the other devices. Therefore, results do not depend on the number of devices.

    Args:
        network: the network.
        methods: methods by name, from `methods_by_name`.
        targets: the classes to explain.
        devices: the JAX devices that share a group of images.
        chunk: the number of images per device.
        size: the side of an image in pixels.

    Raises:
        TargetError: a class, site or channel does not exist, more classes are requested than there
            are, or a method is not a single pullback and `targets` has a site.
    """

    def __init__(
        self,
        network: Params,
        methods: Mapping[str, Gating | _Method],
        targets: Targets,
        devices: Sequence[Any],
        chunk: int,
        size: int,
    ):
        self.methods, self.targets, self.chunk = methods, targets, chunk
        self.images = len(devices) * chunk
        self._networks = [(device, jax.device_put(network, device)) for device in devices]
        like = np.zeros((1, size, size, 3), np.float32)
        self.shape = like.shape[1:]
        self.classes = number_of_logits(network, like)
        outputs = shapes_of_outputs(network, like, Selection(at=targets.at))
        if targets.classes:
            columns(np.asarray(targets.classes), outputs, 1)
        others = [name for name, method in methods.items() if not isinstance(method, Gating)]
        if targets.at is not None and others:
            raise TargetError(
                f"{others[0]} is no single pullback: a site's channels are explained by those only"
            )
        if targets.top > self.classes:
            raise TargetError(f"targets are top-{targets.top}: there are {self.classes} classes")

    def __call__(self, x: np.ndarray, labels: np.ndarray) -> list[Explained]:
        """Explain `self.images` images `[n, H, W, 3]` with labels `[n]`; one result per device."""
        parts = zip(self._networks, np.split(x, len(self._networks)), strict=True)
        placed = [(own, jax.device_put(part, device)) for (device, own), part in parts]
        known = np.split(labels, len(placed))
        begun = [
            self._begin(network, part, own)
            for (network, part), own in zip(placed, known, strict=True)
        ]
        return [
            self._finish(network, part, own, *first)
            for (network, part), own, first in zip(placed, known, begun, strict=True)
        ]

    def _begin(
        self, network: Params, x: jax.Array, labels: np.ndarray
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits, and the first method's attributions `[n, T, H, W, 3]` if one call gives both."""
        first = next(iter(self.methods.values()))
        if self.targets.count > 1 or self.targets.at or not isinstance(first, Gating):
            return _logits(network, x), None
        target = _greatest if self.targets.top else self._known(labels)[:, 0]
        logits, field = value_and_pullback(network, x, target, gating=first)
        return logits, field[:, None]

    def _finish(
        self,
        network: Params,
        x: jax.Array,
        labels: np.ndarray,
        logits: jax.Array,
        first: jax.Array | None,
    ) -> Explained:
        if self.targets.top:
            order = np.argsort(-np.asarray(logits), axis=1, kind="stable")
            classes = order[:, : self.targets.top]
        else:
            classes = self._known(labels)
        maps = [] if first is None else [first]
        for method in list(self.methods.values())[len(maps) :]:
            if isinstance(method, Gating):
                at = self.targets.at
                maps.append(pullback_grid(network, x, classes, at=at, gating=method))
            else:
                maps.append(jnp.stack([method(network, x, own) for own in classes.T], axis=1))
        return Explained(logits, classes, jnp.stack(maps, axis=1))

    def _known(self, labels: np.ndarray) -> np.ndarray:
        """Classes `[n, T]` that do not depend on logits."""
        if self.targets.label:
            return labels[:, None]
        return np.tile(np.asarray(self.targets.classes), (len(labels), 1))


def _greatest(logits: jax.Array) -> jax.Array:
    """The greatest logit; the first if several are equal."""
    return logits[jnp.argmax(logits)]


@jax.jit
def _logits(params: Any, x: jax.Array) -> jax.Array:
    return params(x)
