"""The members of the families that `test_logits.py` does not have.

Of each, what its configuration brings that the members there cannot show: the
gradient and the pullback of one member for each kind of it, the logits of all. In float64 on both
sides, with random weights and measured BatchNorm, at images of 49x37: odd sizes, which leave rows
over at strides and pools. Larger images, ten steps of PGA and float32 are in `test_pullbacks.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_excite import Gating, pullback, value_and_pullback
from jax_excite.models import MODELS, model_spec
from tests import listings
from tests import torch_reference as reference
from tests.parity.test_logits import BLOCKS

EXACT = 1e-9
SIZE = {"vit": "its own"}
HARD, SOFT = Gating(0.0, 0.0), Gating(0.3, 0.3)
ELSEWHERE = set(BLOCKS)
PULLBACKS = [
    "resnet18",  # basic blocks
    "resnext50_32x4d",  # grouped convolutions
    "wide_resnet50_2",  # wide bottlenecks
    "vgg13",  # no BatchNorm
    "squeezenet1_1",  # another stem, and max-pools elsewhere
    "densenet161",  # another growth, and a wider stem
    "efficientnet_lite2",  # scaled widths and repeats
    "mobilenet_v2",  # linear ends of blocks
]
# Half a minute each; their families' first members are compared in test_pullbacks.py.
SLOWEST = ("densenet161", "efficientnet_lite2")
LOGITS = [
    *(name for name in MODELS if name not in ELSEWHERE and name not in PULLBACKS),
    "timm/vit_tiny_patch16_384",
    "timm/pvt_v2_b5",  # other ratios
]


@pytest.fixture
def x():
    return reference.images(7, 1, 49, 37)


def logits(name, model, x):
    # DenseNets take long to optimise, and no time to run.
    options = {"xla_backend_optimization_level": 0} if name.startswith("densenet") else {}
    return jax.jit(lambda model, x: model(x), compiler_options=options)(model, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGITS)
def test_logits(name, x, x64, record_property):
    spec = model_spec(name)
    if spec.family == "vit":
        x = reference.images(7, 1, spec.preprocessing.size, spec.preprocessing.size)
    module = reference.reference(name, seed=1)
    wanted = {"logits": module(listings.to_torch(x)).numpy()}
    found = {"logits": logits(name, reference.to_jax(name, module), x)}
    compare(name, found, wanted, record_property)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOWEST else name for name in PULLBACKS],
)
def test_logits_gradient_and_pullback(name, x, x64, record_property):
    module = reference.reference(name, seed=1)
    soft = listings.soften(module, 0.3, pool_temperature=0.3, skip_functional=False)
    image, classes = listings.to_torch(x), torch.tensor([497])
    wanted = {
        "logits": module(image).numpy(),
        "gradient": listings.to_numpy(listings.pullback(module, image, classes)),
        "pullback": listings.to_numpy(listings.pullback(soft, image, classes)),
    }
    # Gates that are soft make a difference: the third comparison is not the second again.
    assert reference.relative_error(wanted["pullback"], wanted["gradient"]) > 0.1
    model, c = reference.to_jax(name, module), classes.numpy()
    found = {"gradient": pullback(model, jnp.asarray(x), c, gating=HARD)}
    found["logits"], found["pullback"] = value_and_pullback(model, jnp.asarray(x), c, gating=SOFT)
    compare(name, found, wanted, record_property)


def compare(name, found, wanted, record_property):
    assert {value.dtype for value in found.values()} == {np.dtype(np.float64)}
    errors = {key: reference.relative_error(found[key], wanted[key]) for key in wanted}
    for quantity, error in errors.items():
        row = [
            f"{name}, random",
            SIZE.get(model_spec(name).family, "49x37"),
            quantity,
            f"{error:.1e}",
        ]
        record_property("parity", [*row, "", "", ""])
    assert {quantity: error for quantity, error in errors.items() if not error <= EXACT} == {}
