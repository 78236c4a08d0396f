"""Files of the real `torch.save`, converted where there is no torch, tensor by tensor."""

import hashlib
import json

import jax
import numpy as np
import pytest
import torch

from jax_excite import WeightsError, load
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.models import MODELS
from jax_excite.weights.files import read
from jax_excite.weights.loading import named_leaves
from tests import listings, without_torch
from tests import torch_reference as reference
from weights_converter import convert_file

# One of each family, at its real size.
FAMILIES = {spec.family: name for name, spec in reversed(MODELS.items())}
FAMILIES |= {"resnet": "resnet50", "vgg": "vgg11_bn"}
pytestmark = pytest.mark.usefixtures("little_memory")

CONVERT = """
import importlib.util, pathlib, sys
from weights_converter.cli import app

assert importlib.util.find_spec("torch") is None
app(["convert", sys.argv[1], "-o", sys.argv[2], "--json", "--no-calibrate"])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return without_torch.make_environment(tmp_path_factory.mktemp("packages"))


@pytest.mark.parametrize(
    ("name", "zipped"),
    [
        # The largest by far; what a legacy file has otherwise, the smaller ones show.
        pytest.param(
            name,
            zipped,
            marks=[pytest.mark.slow]
            * (name in ("convnext_tiny", "vit_b_16") or (name == "vgg11_bn" and not zipped)),
        )
        for name in FAMILIES.values()
        for zipped in (True, False)
    ],
)
def test_converted_without_torch(name, zipped, tmp_path, environment):
    module = reference.reference(name, seed=3, dtype=torch.float32)
    checkpoint, converted = tmp_path / "weights.bin", tmp_path / "weights.safetensors"
    torch.save(module.net.state_dict(), checkpoint, _use_new_zipfile_serialization=zipped)
    without_torch.run(environment, "-c", CONVERT, str(checkpoint), str(converted))

    wanted = named_leaves(reference.to_jax(name, module).net)
    tensors, metadata = read(converted)
    assert tensors.keys() == wanted.keys()
    for key, leaf in wanted.items():
        assert np.array_equal(tensors[key], leaf), key
        assert tensors[key].dtype == leaf.dtype
    assert metadata["model"] == name
    assert metadata["source"] == "weights.bin"
    assert metadata["source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert json.loads(metadata["class_names"]) == list(CLASS_NAMES)
    assert json.loads(metadata["preprocessing"])["size"] == MODELS[name].preprocessing.size

    structure = jax.tree.structure(load(name, weights=None))
    for path in (checkpoint, converted):
        model = load(name, weights=path)
        assert jax.tree.structure(model) == structure
        for found, leaf in zip(jax.tree.leaves(model), wanted.values(), strict=True):
            np.testing.assert_array_equal(found, leaf)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "squeezenet1_1", "efficientnet_lite0"])
def test_a_fine_tuned_head(name, tmp_path):
    module = reference.reference(name, seed=3, dtype=torch.float32, num_classes=7)
    checkpoint, converted = tmp_path / "weights.pth", tmp_path / "weights.safetensors"
    state_dict = {f"module.{key}": value for key, value in module.net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state_dict}, checkpoint)
    names = ["daisy", "tulip", "rose", "iris", "lily", "poppy", "aster"]
    found = convert_file(checkpoint, converted, class_names=names)
    assert (found.spec.name, found.num_classes) == (name, 7)
    model = load(name, weights=converted)
    assert model.class_names == tuple(names)
    assert load(name, weights=checkpoint).class_names == tuple("0123456")

    x = reference.images(0, 1, 65, 97).astype(np.float32)
    with torch.no_grad():
        theirs = module(listings.to_torch(x)).numpy()
    assert reference.relative_error(jax.jit(lambda m, x: m(x))(model, x), theirs) < 1e-5


def test_checkpoint_of_another_model_is_refused(tmp_path):
    module = reference.reference("squeezenet1_0", dtype=torch.float32)
    torch.save(module.net.state_dict(), tmp_path / "squeezenet.pth")
    with pytest.raises(
        WeightsError, match=r"squeezenet.pth does not fit resnet50: \d+ missing.*\d+ unexpected"
    ):
        load("resnet50", weights=tmp_path / "squeezenet.pth")
    convert_file(tmp_path / "squeezenet.pth", tmp_path / "s.safetensors")
    with pytest.raises(WeightsError, match="weights of 'squeezenet1_0', not of resnet50"):
        load("resnet50", weights=tmp_path / "s.safetensors")
