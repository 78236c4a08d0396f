"""Comparison of the logits with PyTorch's. This is the only file here that needs torch."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError

from jax_excite.models import ModelSpec
from jax_excite.models.timm import architecture
from jax_excite.weights.loading import load_model
from weights_converter.names import TABLES
from weights_converter.reader import NESTED_IN, PREFIX
from weights_converter.recognise import count_classes

TOLERANCE = 1e-9


def compare_logits(spec: ModelSpec, converted: Path, checkpoint: Path) -> float:
    """Run both networks on one random image, in float64.

    Args:
        spec: the model of both.
        converted: a safetensors file of this library.
        checkpoint: the PyTorch checkpoint, which our own reader has already accepted.

    Returns:
        The L2 norm of the difference of the logits, relative to that of PyTorch's logits.

    Raises:
        ImportError: torch, or the package that contains the original network, is not installed.
    """
    import torch

    size = spec.preprocessing.size
    image = np.random.default_rng(0).uniform(-1, 1, (size, size, 3))
    with jax.enable_x64(True):
        classifier = load_model(spec.name, weights=converted, dtype=np.float64)
        normalised = np.array(classifier.preprocessing.normalise(jax.numpy.asarray(image)))
        ours = np.asarray(jax.jit(lambda params, x: params(x))(classifier, image))

    state_dict = _state_dict(_read(checkpoint))
    original = _original(spec, state_dict).double().eval()
    with torch.no_grad():
        theirs = original(torch.as_tensor(normalised).permute(2, 0, 1)[None])[0].numpy()
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _read(checkpoint: Path) -> dict[str, Any]:
    import torch

    try:
        from safetensors.torch import load_file

        return load_file(checkpoint)
    except SafetensorError:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)


def _state_dict(value: Any) -> dict[str, Any]:
    nested = next((value[key] for key in NESTED_IN if isinstance(value.get(key), dict)), value)
    return {name.removeprefix(PREFIX): tensor for name, tensor in nested.items()}


def _original(spec: ModelSpec, state_dict: dict[str, Any]) -> Any:
    """The original network with the weights of a state dict, which may have legacy names."""
    rename = TABLES[spec.family].rename
    renamed = {rename(name): tensor for name, tensor in state_dict.items()}
    classes = count_classes({name: tuple(t.shape) for name, t in renamed.items()}, spec)
    if spec.family == "efficientnet_lite":
        from efficientnet_lite_pytorch import EfficientNet

        # Without an image size, padding is computed from the input.
        network = EfficientNet.from_name(
            spec.name.replace("_", "-"), image_size=None, num_classes=classes
        )
    elif spec.hub:
        import timm

        network = timm.create_model(architecture(spec.name), num_classes=classes)
    else:
        try:
            import torchvision
        except RuntimeError as error:  # its operators are missing
            raise ImportError(str(error)) from error
        network = torchvision.models.get_model(spec.name, weights=None, num_classes=classes)
    own = network.state_dict()
    names = {rename(name): name for name in own}
    # Our reader has compared names and shapes. Only counters of batches may be missing, and axes of
    # length 1 at the end of a shape.
    network.load_state_dict(
        {
            names[name]: tensor.reshape(own[names[name]].shape)
            for name, tensor in renamed.items()
            if name in names
        },
        strict=False,
    )
    return network
