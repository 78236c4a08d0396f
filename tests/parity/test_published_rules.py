"""`recipes.SEMANTIC` against the published rules in PyTorch, on networks that people use."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import jax_excite as je
from jax_excite import recipes
from tests import listings
from tests import published_rules as rules
from tests import torch_reference as reference
from tests.parity.test_onnx import build, export

SqueezeExcitation = listings.torchvision.ops.SqueezeExcitation

pytestmark = pytest.mark.usefixtures("little_memory")

# The height of the images, and the form of attention.
NETWORKS = {
    "mobilenet_v3_large": (64, "through"),
    "efficientnet_b0": (64, "through"),
    "convnext_tiny": (64, "through"),
    "vit_b_16": (224, "through"),
    "pvt_v2_b1": (64, "detached"),
}
# The kinds of sites that take the place of PyTorch's modules.
KINDS = {
    "ReLU": "relu",
    "SiLU": "silu",
    "GELU": "gelu",
    "Hardswish": "hard_swish",
    "MaxPool2d": "max_pool",
    "GroupNorm": "normalisation",
    "LayerNorm": "normalisation",
    "MultiheadAttention": "attention",
    "Attention": "attention",
}


def kinds_of(network, x):
    """How many sites there are of each kind that the recipe softens."""
    kinds = collections.Counter(site.kind for site in je.sites(network, x) if site.gated)
    del kinds["squeeze_excitation"]  # left by the recipe, as published
    return kinds


def sigmoid_of_onnx(z):
    """Hard sigmoid with the slope that ONNX files have: 1/6 as a float32 number."""
    return torch.clamp(z * float(np.float32(1 / 6)) + 0.5, 0, 1)


@pytest.mark.parametrize(
    ("name", "attention_t"),
    [
        ("mobilenet_v3_large", 1.0),
        *(
            pytest.param(name, t, marks=pytest.mark.slow)
            for name in NETWORKS
            for t in (1.0, 1.7)
            if name != "mobilenet_v3_large" and (t == 1 or name in ("vit_b_16", "pvt_v2_b1"))
        ),
    ],
)
def test_pullbacks_and_ascents(name, attention_t, tmp_path, x64, record_property):
    size, form = NETWORKS[name]
    module = build(name)
    rules.randomise(module, seed=1)
    reference.randomise(module)  # BatchNorm's statistics are measured
    module = module.double().eval()
    x = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1
    network = export(module, x, tmp_path / "network.onnx")
    found = kinds_of(network, x.numpy())
    for layer in module.modules():
        if isinstance(layer, nn.Hardsigmoid):
            layer.forward = sigmoid_of_onnx
    outputs = module(x).detach()
    replaced = rules.soften(module, attention_t)
    assert found == {KINDS[kind]: count for kind, count in replaced.items()}
    gating = dataclasses.replace(
        recipes.SEMANTIC, attention=form, attention_temperature=attention_t
    )
    found, field = je.value_and_pullback(network, x.numpy(), 3, gating=gating)
    climbed = je.pga(network, x.numpy(), 3, recipes.SEMANTIC_PGA, gating=gating)
    pairs = {
        "outputs": (found, outputs, 1e-9),
        "pullback": (field, rules.pullback(module, x, 3), 1e-9),
        "five steps": (climbed, rules.pga(module, x, 3, 5, 20.0), 1e-6),
    }
    for quantity, (ours, theirs, tolerance) in pairs.items():
        error = reference.relative_error(np.asarray(ours), theirs.numpy())
        form_of = f"SEMANTIC, {form}, T = {attention_t}"
        record_property("parity", (f"{name}, ONNX", form_of, quantity, f"{error:.1e}", "", "", ""))
        assert error < tolerance, (quantity, error)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_large",
        "efficientnet_b0",
        "convnext_tiny",
        "timm/pvt_v2_b1",
        pytest.param("efficientnet_v2_s", marks=pytest.mark.slow),
        pytest.param("vit_b_16", marks=pytest.mark.slow),
    ],
)
def test_networks_of_the_library(name, x64, record_property):
    size, form = NETWORKS.get(name.removeprefix("timm/"), (64, "through"))
    module = reference.reference(name, seed=1)
    x = reference.images(3, 2, size, size)
    gating = dataclasses.replace(recipes.SEMANTIC, attention=form)
    model = reference.to_jax(name, module)
    outputs, field = je.value_and_pullback(model, x, 3, gating=gating)
    # Short steps: where the reference takes longer ones, a difference of 1e-12 becomes one of 0.6.
    ascent = dataclasses.replace(recipes.SEMANTIC_PGA, step_size=1.0)
    climbed = je.pga(model, x, 3, ascent, gating=gating)
    found = kinds_of(model, x)
    for layer in module.modules():
        if isinstance(layer, nn.Hardsigmoid):  # PyTorch's derivative of it has float32's 1/6
            layer.forward = lambda z: torch.clamp(z / 6 + 0.5, 0, 1)
    given = listings.to_torch(x)
    wanted = {"outputs": (outputs, module(given).numpy(), 1e-9)}
    replaced = rules.soften(module)
    assert found == {KINDS[kind]: count for kind, count in replaced.items()}
    theirs = listings.to_numpy(rules.pullback(module, given, 3))
    ascended = listings.to_numpy(rules.pga(module, given, 3, 5, 1.0))
    wanted |= {"pullback": (field, theirs, 1e-9), "five steps": (climbed, ascended, 1e-6)}
    for quantity, (ours, published, tolerance) in wanted.items():
        error = reference.relative_error(np.asarray(ours), published)
        row = (f"{name}, Flax", f"SEMANTIC, {form}, T = 1", quantity, f"{error:.1e}", "", "", "")
        record_property("parity", row)
        assert error < tolerance, (quantity, error)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_squeeze_and_excitation_held_constant(name, x64):
    module = reference.reference(name, seed=1)
    x = reference.images(3, 1, 64, 64)
    gating = dataclasses.replace(recipes.SEMANTIC, squeeze_excitation="constant")
    model = reference.to_jax(name, module)
    outputs, field = je.value_and_pullback(model, x, 3, gating=gating)
    given = listings.to_torch(x)
    wanted = module(given).numpy()
    rules.soften(module)
    blocks = [each for each in module.modules() if isinstance(each, SqueezeExcitation)]
    for block in blocks:
        block.forward = lambda x, block=block: x * block._scale(x).detach()
    held = listings.to_numpy(rules.pullback(module, given, 3))
    sites = [site.kind for site in je.sites(model, x) if site.gated]
    assert sites.count("squeeze_excitation") == len(blocks) > 0
    assert reference.relative_error(np.asarray(outputs), wanted) < 1e-9
    assert reference.relative_error(np.asarray(field), held) < 1e-9
    own = je.pullback(model, x, 3, gating=recipes.SEMANTIC)
    assert reference.relative_error(np.asarray(own), held) > 1e-3


class Tokens(nn.Module):
    """A module of tokens within feature maps."""

    def __init__(self, inner, **options):
        super().__init__()
        self.inner = inner
        self.options = options

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        if isinstance(self.inner, nn.MultiheadAttention):
            # The exporter writes a mask of float64 networks only in the form that returns weights.
            options = {"need_weights": bool(self.options), **self.options}
            return self.inner(tokens, tokens, tokens, **options)[0]
        return self.inner(tokens)


MASK = torch.triu(torch.ones(64, 64, dtype=torch.bool), 1)
ALONE = {
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "GELU, tanh": lambda: nn.GELU(approximate="tanh"),
    "hard swish": nn.Hardswish,
    "max-pool": lambda: nn.MaxPool2d(3, 2, 1),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "LayerNorm": lambda: Tokens(nn.LayerNorm(8)),
    "attention": lambda: Tokens(nn.MultiheadAttention(8, 2, batch_first=True)),
    "attention, masked": lambda: Tokens(
        nn.MultiheadAttention(8, 2, batch_first=True), attn_mask=MASK
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_every_kind_alone(name, tmp_path, x64, record_property):
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), ALONE[name](), nn.Flatten(), nn.LazyLinear(5)
    )
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    module = module.double().eval()
    module(x)
    rules.randomise(module, seed=1)
    network = export(module, x, tmp_path / "network.onnx")
    outputs = module(x).detach()
    ((kind, count),) = rules.soften(module, 1.3).items()
    sites = je.sites(network, x.numpy())
    assert [(site.kind, site.gated) for site in sites] == [(KINDS[kind], True)] * count
    gating = dataclasses.replace(recipes.SEMANTIC, attention_temperature=1.3)
    found, field = je.value_and_pullback(network, x.numpy(), 3, gating=gating)
    wanted = rules.pullback(module, x, 3)
    for quantity, ours, theirs in (("outputs", found, outputs), ("pullback", field, wanted)):
        error = reference.relative_error(np.asarray(ours), theirs.numpy())
        record_property("parity", (name, "alone", quantity, f"{error:.1e}", "", "", ""))
        assert error < 1e-9, (quantity, error)
