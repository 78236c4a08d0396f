"""The PyTorch side of the parity tests: networks with random weights, and the same for JAX."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from jax_excite.models import Classifier, model_spec
from jax_excite.weights.loading import fill
from jax_excite.weights.networks import load
from tests.listings import (
    Normalised,
    original,
)
from weights_converter import convert_file
from weights_converter.convert import fit


def reference(
    name: str,
    seed: int = 0,
    *,
    num_classes: int = 1000,
    weights: Path | None = None,
    dtype: torch.dtype = torch.float64,
) -> Normalised:
    """The original network in evaluation form, with a checkpoint's weights or random ones.

    Random weights leave nothing at a value that would hide a mistake: biases and BatchNorm's affine
    parameters are drawn, BatchNorm's statistics are measured on random images. The weights are
    float32 numbers whatever the dtype, so that float32 and float64 are the same network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = original(name, num_classes)
        if weights is None:
            randomise(net)
        else:
            net.load_state_dict(torch.load(weights, weights_only=True))
    for layer in net.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    preprocessing = model_spec(name).preprocessing
    module = Normalised(net, preprocessing.mean, preprocessing.std)
    return module.eval().requires_grad_(False).to(dtype)


def randomise(net: nn.Module) -> None:
    """Draw biases and BatchNorm's affine parameters; measure BatchNorm's statistics.

    The last BatchNorm of a residual branch gets small weights, as it has in trained networks. Where
    branches are as strong as what they are added to, ten steps of PGA blow a difference of rounding
    up 10^11 times, and no two correct implementations agree.
    """
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    ends = [_last_norm(block) for block in net.modules()]
    for parameter_name, parameter in net.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter_name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.1, 0.3)
        elif parameter_name.endswith(
            ("class_token", "cls_token", "heads.head.weight")
        ):  # zeros otherwise
            nn.init.normal_(parameter, std=0.1)
    for norm in norms:
        ends_branch = any(norm is end for end in ends)
        nn.init.uniform_(norm.weight, *((0.1, 0.3) if ends_branch else (0.5, 1.5)))
        norm.momentum = None  # cumulative averages
    if norms:
        net.train()
        with torch.no_grad():
            for _ in range(2):
                net(torch.randn(4, 3, 96, 96))


def _last_norm(block: nn.Module) -> nn.Module | None:
    """The last BatchNorm of a residual branch; None for any other module."""
    kind = type(block).__name__
    if kind in ("BasicBlock", "Bottleneck"):
        return getattr(block, "bn2" if kind == "BasicBlock" else "bn3")
    if kind in ("InvertedResidual", "MBConv", "FusedMBConv"):
        return [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
    return None


def to_jax(name: str, module: Normalised) -> Classifier:
    """The same network with the same weights and dtype for JAX; float64 needs `jax.enable_x64`."""
    spec = model_spec(name)
    state_dict = {key: tensor.numpy() for key, tensor in module.net.state_dict().items()}
    found = fit(state_dict, spec)
    network = fill(spec.abstract(num_classes=found.num_classes), found.tensors, name)
    return Classifier(network, spec.preprocessing)


def through_file(name: str, module: Normalised) -> Classifier:
    """The same by way of `torch.save`, the converter and `load`, as users come by it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, converted = Path(folder, "weights.pth"), Path(folder, "weights.safetensors")
        torch.save(module.net.state_dict(), checkpoint)
        convert_file(checkpoint, converted, calibrate=False)
        return load(name, weights=converted)


def images(seed: int, n: int, height: int, width: int) -> np.ndarray:
    """Random images `[N, H, W, 3]` in [-1, 1], float64: soft blobs with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.as_tensor(rng.uniform(-1, 1, (n, 3, 8, 8)))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1).numpy()
    return np.clip(smooth + rng.normal(0, 0.05, smooth.shape), -1, 1)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """L2 norm of the difference, relative to the wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
