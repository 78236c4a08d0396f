"""The references: Listings 1 and 2 of the paper on torchvision modules, published and tuned."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from benchmarks.jobs import RADIUS, STEP_SIZE, JobName, as_cells
from benchmarks.variants import Device, Task
from tests import listings
from tests import torch_reference as reference


def prepare(device: Device) -> None:
    """Select TF32 for convolutions and matrix products on a GPU.

    Raises:
        RuntimeError: PyTorch finds no GPU.
    """
    if device == "gpu":
        if not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA device")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def device_peak(device: Device) -> int | None:
    """Peak bytes of the device's memory, or None if it has no memory of its own."""
    return torch.cuda.max_memory_allocated() if device == "gpu" else None


class Runner:
    """A network and images on the device, and one job to do with them."""

    def __init__(self, task: Task):
        variant, folder = task.variant, Path(task.folder)
        self.job: JobName = task.job
        self.shares = task.job in variant.shares
        self.batch_size = task.batch_size
        self.on_gpu = task.device == "gpu"
        published = variant.method == "published"
        place: dict[str, Any] = {
            "device": "cuda" if self.on_gpu else "cpu",
            "dtype": getattr(torch, variant.dtype),
            "memory_format": torch.contiguous_format if published else torch.channels_last,
        }
        module = copy.deepcopy(network(task.model, folder / "weights.pth", published))
        self.module = module.to(**place)
        if variant.method == "compiled":
            self.module.compile()
        images, classes = np.load(folder / "images.npy"), np.load(folder / "classes.npy")
        if task.job == "latency":
            images, classes = images[:1], classes[:1]
        cells, targets = as_cells(images, classes)
        self.images = listings.to_torch(images).to(**place)
        self.cells = listings.to_torch(cells).to(**place)
        self.classes = [int(c) for c in classes]
        self.targets = torch.as_tensor(targets, device=self.cells.device)

    def run(self, steps: int) -> Tensor:
        """Start the job; compilation has finished when this returns."""
        if self.job == "pga" and self.shares:
            return self._ascend(steps)
        if self.job == "pga":
            options = {"steps": steps, "step_size": STEP_SIZE, "radius": RADIUS}
            return listings.pga(self.module, self.cells, self.targets, **options)
        if self.shares:
            return self._shared_fields()
        parts = zip(
            self.cells.split(self.batch_size or len(self.cells)),
            self.targets.split(self.batch_size or len(self.cells)),
            strict=True,
        )
        return torch.cat([listings.pullback(self.module, x, c) for x, c in parts])

    def _shared_fields(self) -> Tensor:
        """One forward pass of all images, and one backward pass of all images per class."""
        x = self.images.detach().requires_grad_()
        logits = self.module(x)
        fields = [
            torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0] for c in self.classes
        ]
        return torch.stack(fields, dim=1).flatten(0, 1)

    def _ascend(self, steps: int) -> Tensor:
        """PGA as in `listings.pga`, but with shared forward passes in the first step."""
        current = self.cells
        for step in range(steps):
            field = (
                listings.pullback(self.module, current, self.targets)
                if step
                else self._shared_fields()
            )
            current = current + STEP_SIZE * field / _norms(field).clamp(min=1e-20)
            offset = current - self.cells
            current = self.cells + offset * (RADIUS / _norms(offset).clamp(min=RADIUS))
            current = current.clamp(-1, 1)
        return current

    def wait(self, _: Tensor) -> None:
        """Return when the job is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def fetch(self, result: Tensor) -> np.ndarray:
        """The result as float32, one row per cell."""
        return listings.to_numpy(result.float().cpu())


@functools.cache
def network(model: str, weights: Path, published: bool) -> nn.Module:
    """A network on the CPU; building it takes seconds, and a process may need it several times."""
    module = reference.reference(model, weights=weights, dtype=torch.float32)
    return as_published(module) if published else tuned(module)


def as_published(module: listings.Normalised) -> nn.Module:
    """The network as loaded, with its modules replaced as in the paper."""
    return listings.soften(module, skip_functional=False).requires_grad_(True)


def tuned(module: listings.Normalised) -> nn.Module:
    """The same with BatchNorm folded into convolutions, and with frozen weights."""
    fold_batch_norm(module, torch.zeros(1, 3, 64, 64))
    return listings.soften(module, skip_functional=False).requires_grad_(False)


def fold_batch_norm(module: nn.Module, example: Tensor) -> None:
    """Fold each BatchNorm whose input is the output of a convolution into that convolution.

    This is exact if such an output is used nowhere else, which holds for all torchvision networks.
    """
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            outputs[id(output)] = layer, output  # kept, so that no other tensor reuses its id
        elif isinstance(layer, nn.BatchNorm2d) and id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], layer))

    hooks = [layer.register_forward_hook(record) for layer in module.modules()]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    for convolution, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
    names = {layer: name for name, layer in module.named_modules()}
    for _, norm in pairs:
        module.set_submodule(names[norm], nn.Identity())


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
