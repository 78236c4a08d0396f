"""Our networks against the originals, block by block and then whole."""

import re

import jax
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from flax import nnx

from jax_excite.models import MODELS
from tests import listings
from tests import torch_reference as reference

pytestmark = pytest.mark.usefixtures("little_memory")
OPTIMISE = True  # networks of real size: they compute for longer than they compile

# The blocks to compare, by their PyTorch names: every one with weights, and the max-pools.
BLOCKS = {
    "resnet50": r"conv1|bn1|maxpool|layer\d\.\d+|fc",
    "vgg11_bn": r"features\.\d+|classifier\.\d",
    "densenet121": r"features\.(conv0|norm\d|pool0|transition\d|\w+\.denselayer\d+)|classifier",
    "squeezenet1_0": r"features\.\d+|classifier\.1",
    "efficientnet_lite0": r"_conv_\w+|_bn\d|_blocks\.\d+|_fc",
    "efficientnet_b0": r"features\.\d(\.\d)?|classifier\.1",
    "efficientnet_v2_s": r"features\.\d(\.\d+)?|classifier\.1",
    "mobilenet_v2": r"features\.\d+|classifier\.1",
    "mobilenet_v3_large": r"features\.\d+|classifier\.[03]",
    "convnext_tiny": r"features\.\d(\.\d)?|classifier\.[02]",
    "vit_b_16": r"conv_proj|encoder(\.ln|\.layers\.\w+)?|heads\.head",
    "timm/pvt_v2_b1": r"stages\.[123]|stages\.\d\.blocks\.\d(\.attn|\.mlp)?|head",
}
# `test_pullbacks.py` has 224x224 and another. In float64, XLA makes a dense convolution of a
# depthwise one whose maps are smaller than its kernel: with smaller images it takes longer.
# The sizes of networks that cannot take, or are slow with, what the others take.
SIZES = {"convnext_tiny": (225, 241), "vit_b_16": (224, 224)}


@jax.jit
def logits(classifier, x):
    return classifier(x)


@pytest.fixture(params=BLOCKS, scope="module")
def original(request):
    return request.param, reference.reference(request.param, seed=1)


@jax.jit
def run_blocks(net, inputs):
    return {path: find(net, path)(x) for path, x in inputs.items()}


def test_each_block_agrees(original, x64):
    name, module = original
    inputs, outputs = record_blocks(name, module)
    found = run_blocks(reference.to_jax(name, module).net, inputs)
    errors = {path: reference.relative_error(found[path], y) for path, y in outputs.items()}
    assert len(errors) >= 14
    assert {path: error for path, error in errors.items() if not error <= 1e-9} == {}


def test_logits_agree(original, x64):
    name, module = original
    x = reference.images(2, 2, *SIZES.get(name, (161, 129)))
    found = logits(reference.to_jax(name, module), x)
    wanted = module(listings.to_torch(x)).numpy()
    assert found.dtype == np.float64
    assert reference.relative_error(found, wanted) <= 1e-9


@pytest.mark.parametrize(("size", "options"), [(224, {}), (165, {"image_size": 165})])
def test_efficientnet_pads_as_the_package_built_for_that_size(size, options, x64):
    """Its padding is fixed when it is built, by default for 224x224; ours follows the input."""
    name = "efficientnet_lite0"
    original = reference.reference(name, seed=4)
    fixed = EfficientNet.from_name("efficientnet-lite0", **options).double().eval()
    fixed.load_state_dict(original.net.state_dict())
    pixels = MODELS[name].preprocessing
    module = listings.Normalised(fixed, pixels.mean, pixels.std)
    x = reference.images(4, 1, size, size)
    found = logits(reference.to_jax(name, original), x)
    wanted = module(listings.to_torch(x)).detach().numpy()
    assert reference.relative_error(found, wanted) <= 1e-9


def record_blocks(name, module):
    """Inputs and outputs of the original's blocks under our names, in our layouts."""
    inputs, outputs = {}, {}

    def hook(path):
        def record(_, arguments, result):
            x = arguments[0]
            x = torch.cat(x, 1) if isinstance(x, list) else x  # DenseNet's layers
            if len(arguments) > 1:  # the tokens of PVT, with the height and width of their map
                x, result = (t.unflatten(1, arguments[1]).permute(0, 3, 1, 2) for t in (x, result))
            if path == "classifier.0" and name == "vgg11_bn":
                x = x.reshape(-1, 512, 7, 7).permute(0, 2, 3, 1).flatten(1)
            inputs[path] = to_ours(x)
            outputs[path] = to_ours(result)

        return record

    paths = {
        torch_path: re.sub(r"(^|\.)_", r"\1", torch_path)
        for torch_path, _ in module.net.named_modules()
        if re.fullmatch(BLOCKS[name], torch_path)
    }
    hooks = [
        module.net.get_submodule(theirs).register_forward_hook(hook(ours))
        for theirs, ours in paths.items()
    ]
    size = 224 if name in SIZES else 160
    module(listings.to_torch(reference.images(5, 2, size, size)))
    for handle in hooks:
        handle.remove()
    return inputs, outputs


def to_ours(x):
    x = x.clone()  # DenseNet's last ReLU is in place
    return x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy()


def find(net, path):
    """The block of our network at a dotted path."""
    for part in path.split("."):
        if part.isdigit():
            net = net[int(part)]
        else:
            net = net[part] if isinstance(net, nnx.Dict) else getattr(net, part)
    return net
