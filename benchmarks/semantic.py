"""Class grids and ascents by `recipes.SEMANTIC` against the same rules in PyTorch.

    python -m benchmarks.semantic convnext_tiny vit_b_16

Both compute with torchvision's network and the same random weights. The rules on PyTorch's side are
those of tests/published_rules.py, with layer normalisation in one fused operation. Both compute the
same jobs in turns, in one process. A grid's forward pass is shared by its classes on both sides.
Images are channels-last on PyTorch's side if that is faster. The ratios are those of medians: above
1, ours is faster. The peak memory is that of the whole process.
"""

import functools
import resource
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
import torch
import typer
from torch import nn

import jax_excite as je
from jax_excite import recipes
from tests import published_rules as rules
from tests import torch_reference as reference

CLASSES = [0, 217, 491, 497, 569, 574]
STEPS = 5


class LayerNorm(torch.autograd.Function):
    """Layer normalisation over the last axis, whose statistics are constants backwards."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
        """The normalised value."""
        y, _, inverse = torch.native_layer_norm(x, x.shape[-1:], weight, bias, epsilon)
        ctx.save_for_backward(weight * inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The cotangent times the scale over the deviation."""
        (factor,) = ctx.saved_tensors
        return cotangents[0] * factor, None, None, None


def put_rules(module: nn.Module) -> None:
    """Put the published rules into a network."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    rules.soften(module)
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            is_2d = type(layer).__name__ == "LayerNorm2d"
            layer.forward = functools.partial(_normalise, layer, is_2d)  # type: ignore[method-assign]


def _normalise(layer: Any, is_2d: bool, x: Any) -> Any:
    if not is_2d:
        return LayerNorm.apply(x, layer.weight, layer.bias, layer.eps)
    last = x.permute(0, 2, 3, 1)
    return LayerNorm.apply(last, layer.weight, layer.bias, layer.eps).permute(0, 3, 1, 2)  # type: ignore[union-attr]


def torch_grid(module: nn.Module, x: Any) -> np.ndarray:
    """Pullbacks `[C, N, 3, H, W]` that share a forward pass."""
    given = x.clone().requires_grad_()
    logits = module(given)
    fields = [torch.autograd.grad(logits[:, c].sum(), given, retain_graph=True)[0] for c in CLASSES]
    return torch.stack(fields).numpy()


def torch_ascent(module: nn.Module, x: Any) -> np.ndarray:
    """Ascents of each image towards half of the classes, `[N * C, 3, H, W]`."""
    chosen = torch.tensor(CLASSES[:3]).repeat(len(x))
    here = x.repeat_interleave(3, 0)
    for _ in range(STEPS):
        given = here.clone().requires_grad_()
        values = module(given).gather(1, chosen[:, None])
        (field,) = torch.autograd.grad(values.sum(), given)
        norms = field.flatten(1).norm(dim=1).clamp(min=1e-20)
        here = here + 20 * field / norms[:, None, None, None]
    return here.numpy()


def our_grid(network: Any, x: np.ndarray) -> jax.Array:
    """The same by `pullback_grid`."""
    return je.pullback_grid(network, x, CLASSES, gating=recipes.SEMANTIC)


def our_ascent(network: Any, x: np.ndarray) -> jax.Array:
    """The same by `pga_grid`."""
    return je.pga_grid(network, x, CLASSES[:3], recipes.SEMANTIC_PGA, gating=recipes.SEMANTIC)


def main(
    models: Annotated[list[str], typer.Argument(help="Models of torchvision.")],
    rounds: Annotated[int, typer.Option(min=1, help="How often each job is timed.")] = 3,
    size: Annotated[int, typer.Option(min=32, help="Pixels of an image's side.")] = 224,
) -> None:
    """Print the time of each job for both, the ratio of the medians, and how far they differ."""
    for name in models:
        compare(name, rounds, size)


def compare(name: str, rounds: int, size: int) -> None:
    """Time one network."""
    module = reference.reference(name, dtype=torch.float32)
    network = reference.to_jax(name, module)
    put_rules(module)
    x = np.random.default_rng(0).uniform(-1, 1, (5, size, size, 3)).astype(np.float32)
    first = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    layouts = {
        "contiguous": (module, first),
        "channels-last": (module, first.to(memory_format=torch.channels_last)),
    }
    jobs: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
        "grid, 5 images, 6 classes": (our_grid, torch_grid, 5),
        "PGA, 2 images, 3 classes, 5 steps": (our_ascent, torch_ascent, 2),
    }
    for job, (ours, theirs, count) in jobs.items():
        runs: dict[str, Callable[[], Any]] = {"ours": functools.partial(ours, network, x[:count])}
        for layout, (own, images) in layouts.items():
            runs[layout] = functools.partial(theirs, own, images[:count])
        results = {way: np.asarray(run()) for way, run in runs.items()}
        times: dict[str, list[float]] = {way: [] for way in runs}
        for _ in range(rounds):
            for way, run in runs.items():
                start = time.perf_counter()
                jax.block_until_ready(run())
                times[way].append(time.perf_counter() - start)
        medians = {way: statistics.median(found) for way, found in times.items()}
        best = min(layouts, key=lambda layout: medians[layout])
        mine = np.moveaxis(results["ours"], -1, -3)
        mine = mine.swapaxes(0, 1) if job.startswith("grid") else mine.reshape(results[best].shape)
        error = np.linalg.norm(mine - results[best]) / np.linalg.norm(results[best])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name}, {job}: ours {medians['ours']:.2f} s, PyTorch ({best}) {medians[best]:.2f} s, "
            f"ratio {medians[best] / medians['ours']:.2f} (relative difference {error:.1e}; peak "
            f"{peak:.1f} GB)",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
