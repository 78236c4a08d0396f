"""What is computed of each group of images: logits, targets, attributions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_excite import attributions, recipes
from jax_excite.devices import on_each, spread
from jax_excite.errors import ExciteError, TargetError
from jax_excite.gating import Gating
from jax_excite.models import Classifier
from jax_excite.pullback import pullback_grid, value_and_pullback
from jax_excite.targets import class_rows

Method = Callable[..., jax.Array]

# Those that are pullbacks at some gating: several targets share a forward pass.
_PULLBACKS = {
    "excitation_pullback": None,
    "gradient": recipes.VANILLA,
    "guided_backprop": recipes.GUIDED_BACKPROP,
    "deconvolution": recipes.DECONVOLUTION,
}


def methods_by_name(gating: Gating, seed: int) -> dict[str, Gating | Method]:
    """The attributions that a store can hold, with their settings."""
    key = jax.random.key(seed)
    bound: dict[str, tuple[Method, dict[str, Any]]] = {
        "pga_difference": (attributions.pga_difference, {"gating": gating}),
        "input_x_gradient": (attributions.input_x_gradient, {}),
        "integrated_gradients": (attributions.integrated_gradients, {}),
        "smooth_grad": (attributions.smooth_grad, {"key": key}),
        "smoothed_pullback": (attributions.smoothed_pullback, {"key": key, "gating": gating}),
        "grad_cam": (attributions.grad_cam, {}),
        "guided_grad_cam": (attributions.guided_grad_cam, {}),
    }
    found: dict[str, Gating | Method] = {n: own or gating for n, own in _PULLBACKS.items()}
    return {**found, **{n: functools.partial(f, **settings) for n, (f, settings) in bound.items()}}


class Targets(NamedTuple):
    """Which classes are explained: given ones, the label, or those of greatest logits."""

    classes: tuple[int, ...]
    top: int
    label: bool

    @staticmethod
    def parse(text: str) -> "Targets":
        """`label`, `top-K`, or class indices by commas; else `TargetError`."""
        kind, _, rest = text.partition("-")
        if text == "label":
            return Targets((), 0, True)
        if kind == "top" and rest.isdecimal() and int(rest) > 0:
            return Targets((), int(rest), False)
        try:
            classes = tuple(int(each) for each in text.split(","))
        except ValueError:
            raise TargetError(
                f"targets are {text!r}: give label, top-K, or class indices by commas"
            ) from None
        return Targets(classes, 0, False)

    @property
    def count(self) -> int:
        """Targets of each image."""
        return len(self.classes) or self.top or 1


class Explained(NamedTuple):
    """Of images: logits `[n, K]`, classes `[n, T]`, attributions `[n, M, T, H, W, 3]`."""

    logits: Any
    classes: np.ndarray
    maps: Any


class Explainer:
    """Computes what a store holds, each device the same number of images with the same program.

    Args:
        network: the network.
        methods: by name, of `methods_by_name`.
        targets: which classes.
        devices: those that share a group of images.
        chunk: images of each device.

    Raises:
        TargetError: a class does not exist, or more are wanted than there are.
    """

    def __init__(
        self,
        network: Classifier,
        methods: Mapping[str, Gating | Method],
        targets: Targets,
        devices: Sequence[jax.Device],
        chunk: int,
    ):
        self.network, self.methods, self.targets = network, methods, targets
        self.images = len(devices) * chunk
        self._sharding = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))
        size = network.preprocessing.size
        like = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        self.shape = like.shape[1:]
        self.classes = _logits.eval_shape(network, like, sharding=None).shape[1]
        if targets.classes:
            class_rows(np.asarray(targets.classes), 1, self.classes)
        if targets.top > self.classes:
            raise TargetError(f"targets are top-{targets.top}: there are {self.classes} classes")

    def __call__(self, x: np.ndarray, labels: np.ndarray) -> Explained:
        """Explain exactly `images` images `[n, H, W, 3]` with labels `[n]`, -1 for none."""
        single = self.targets.count == 1
        names = list(self.methods)
        first = self.methods[names[0]]
        maps: dict[str, Any] = {}
        if single and isinstance(first, Gating):
            wanted = self._chosen(None, labels)
            target = _greatest if wanted is None else wanted[:, 0]
            logits, field = value_and_pullback(
                self.network, x, target, gating=first, sharding=self._sharding
            )
            maps[names[0]] = field[:, None]
        else:
            (rows,) = spread(self._sharding, x)
            logits = _logits(self.network, rows, sharding=self._sharding)
        classes = self._chosen(np.asarray(logits), labels)
        if classes is None:
            raise ExciteError("there are no logits to choose targets by")
        for name in names[len(maps) :]:
            maps[name] = self._maps(self.methods[name], x, classes)
        return Explained(logits, classes, jnp.stack([maps[name] for name in names], axis=1))

    def _maps(self, method: Gating | Method, x: np.ndarray, classes: np.ndarray) -> jax.Array:
        """`[n, T, H, W, 3]`."""
        if isinstance(method, Gating):
            return pullback_grid(self.network, x, classes, gating=method, sharding=self._sharding)
        each = [method(self.network, x, own, sharding=self._sharding) for own in classes.T]
        return jnp.stack(each, axis=1)

    def _chosen(self, logits: np.ndarray | None, labels: np.ndarray) -> np.ndarray | None:
        """Classes `[n, T]`; None where they depend on logits that are not known."""
        if self.targets.label:
            return labels[:, None]
        if self.targets.classes:
            return np.tile(np.asarray(self.targets.classes), (len(labels), 1))
        if logits is None:
            return None
        return np.argsort(-logits, axis=1, kind="stable")[:, : self.targets.top]


def _greatest(logits: jax.Array) -> jax.Array:
    """The greatest logit, of equal ones the first."""
    return logits[jnp.argmax(logits)]


@functools.partial(jax.jit, static_argnames="sharding")
def _logits(params: Any, x: jax.Array, *, sharding: NamedSharding | None) -> jax.Array:
    return on_each(lambda params, x: params(x), sharding, (params,), (x,))
