"""The paper's Listings 1 and 2 on the networks of their authors: PyTorch alone, without JAX."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

try:
    import torchvision
except RuntimeError:
    # Its compiled operators did not load, and the import fails on their missing schemas. These live
    # as long as the library object does.
    _SCHEMAS = torch.library.Library("torchvision", "DEF")
    _SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
        "int pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )
    import torchvision


class Normalised(nn.Module):
    """A network that takes images `[N, 3, H, W]` in [-1, 1]."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(((x + 1) / 2 - self.mean) / self.std)


def original(name: str, num_classes: int = 1000) -> nn.Module:
    """The network as its authors build it, with their random weights."""
    if name.startswith("efficientnet_lite"):
        from efficientnet_lite_pytorch import EfficientNet

        # No image size: padding is computed from the input, not fixed for one size.
        options = {"image_size": None, "num_classes": num_classes}
        return EfficientNet.from_name(name.replace("_", "-"), **options)
    if name.startswith("timm/"):
        import timm

        architecture = name.removeprefix("timm/").partition(".")[0]
        return timm.create_model(architecture, num_classes=num_classes)
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


def to_torch(x: np.ndarray) -> Tensor:
    """Images `[N, H, W, C]` to `[N, C, H, W]`."""
    return torch.as_tensor(x).permute(0, 3, 1, 2).contiguous()


def to_numpy(x: Tensor) -> np.ndarray:
    """Images `[N, C, H, W]` to `[N, H, W, C]`."""
    return x.detach().permute(0, 2, 3, 1).numpy()


class SoftReLUFunction(torch.autograd.Function):
    """Listing 1 of the paper: `relu` forward, the gate `sigmoid(z / T)` backward.

    With an upper bound, as in ReLU6, the clip passes the gradient.
    """

    @staticmethod
    def forward(ctx, z: Tensor, temperature: float, bound: float | None) -> Tensor:
        ctx.save_for_backward(z)
        ctx.temperature = temperature
        return z.clamp(min=0, max=bound)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return gradients[0] * torch.sigmoid(z / ctx.temperature), None, None


class SoftReLU(nn.Module):
    def __init__(self, temperature: float, bound: float | None = None):
        super().__init__()
        self.temperature = temperature
        self.bound = bound

    def forward(self, z: Tensor) -> Tensor:
        return SoftReLUFunction.apply(z, self.temperature, self.bound)


class SoftMaxPool(nn.Module):
    """Listing 2 of the paper: the hard pool forward, the gradient of the softmax pool backward.

    Padding cells take part in the softmax as zeros, those that a ceil-mode window has outside of
    the image among them (the listing makes no provision for these).
    """

    def __init__(self, pool: nn.MaxPool2d, temperature: float):
        super().__init__()
        self.pool = pool
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        hard = self.pool(x)
        soft = self.soft(x, *hard.shape[-2:])
        return hard.detach() + (soft - soft.detach())

    def soft(self, x: Tensor, *out: int) -> Tensor:
        pool: Any = self.pool
        size, stride, padding = pool.kernel_size, pool.stride, pool.padding
        bottom, right = (
            max((m - 1) * stride + size - n - 2 * padding, 0)
            for m, n in zip(out, x.shape[-2:], strict=True)
        )
        padded = F.pad(x, (padding, padding + right, padding, padding + bottom))
        cells = F.unfold(padded, size, stride=stride).unflatten(1, (x.shape[1], size * size))
        weights = F.softmax(cells / self.temperature, dim=2)
        return (cells * weights).sum(2).unflatten(-1, out)


class DenseNetWithReLU(nn.Module):
    """torchvision's DenseNet with its last, functional ReLU as a module, so that it is replaced."""

    def __init__(self, net: torchvision.models.DenseNet):
        super().__init__()
        self.features = net.features
        self.relu = nn.ReLU()
        self.classifier = net.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.relu(self.features(x)).mean((2, 3)))


def soften(
    module: Normalised,
    temperature: float = 0.3,
    *,
    pool_temperature: float = 0.3,
    skip_functional: bool = True,
) -> Normalised:
    """A copy, with the same weights, whose ReLU, ReLU6 and max-pool modules are soft.

    `skip_functional` leaves the functional ReLU that ends torchvision's DenseNet hard, as the
    replacement of modules does that the paper's figures were made with.
    """
    shared = {id(tensor): tensor for tensor in _tensors(module)}
    module = copy.deepcopy(module, memo=shared)
    if not skip_functional and isinstance(module.net, torchvision.models.DenseNet):
        module.net = DenseNetWithReLU(module.net)
    _replace(module, functools.partial(_soft_module, temperature, pool_temperature))
    return module


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _replace(module: nn.Module, soft: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, child in module.named_children():
        replacement = soft(child)
        if replacement is not None:
            setattr(module, name, replacement)
        else:
            _replace(child, soft)


def _soft_module(
    temperature: float, pool_temperature: float, module: nn.Module
) -> nn.Module | None:
    if isinstance(module, nn.ReLU6):
        return SoftReLU(temperature, bound=6.0)
    if isinstance(module, nn.ReLU):
        return SoftReLU(temperature)
    if isinstance(module, nn.MaxPool2d):
        return SoftMaxPool(module, pool_temperature)
    return None


def pullback(module: nn.Module, x: Tensor, c: int | Tensor) -> Tensor:
    """The gradient of logit `c` with respect to the images; `c` may differ by image, `[N]`."""
    x = x.detach().requires_grad_()
    logits = module(x)
    classes = torch.as_tensor(c).expand(len(x))
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), x)
    return gradient


def pga(
    module: nn.Module,
    x: Tensor,
    c: int | Tensor,
    *,
    steps: int = 10,
    step_size: float = 20.0,
    radius: float = 100.0,
    bounds: tuple[float, float] | None = (-1.0, 1.0),
) -> Tensor:
    """Projected gradient ascent of logit `c` from the images `x`; returns the perturbed images.

    Each step adds the gradient at L2 norm `step_size`, projects onto the L2 ball of `radius` around
    `x`, and clips to the bounds.
    """
    current = x
    for _ in range(steps):
        gradient = pullback(module, current, c)
        current = current + step_size * gradient / _norms(gradient).clamp(min=1e-20)
        offset = current - x
        current = x + offset * (radius / _norms(offset).clamp(min=radius))
        if bounds is not None:
            current = current.clamp(*bounds)
    return current


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
