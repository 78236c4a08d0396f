"""Files of the real `torch.save`, through `load`, and through a converted file."""

import hashlib
import json

import jax
import numpy as np
import pytest
import torch

from jax_excite import WeightsError, load
from jax_excite.imagenet import CLASS_NAMES
from jax_excite.weight_files import read
from tests import torch_reference as reference
from weights_converter import convert_file

FAMILIES = ["resnet50", "vgg11_bn", "densenet121", "squeezenet1_0", "efficientnet_lite0"]
FILES = [(name, True) for name in FAMILIES] + [("densenet121", False), ("squeezenet1_0", False)]


@pytest.mark.parametrize(("name", "zipped"), FILES)
def test_load_from_a_checkpoint_and_from_its_conversion(name, zipped, tmp_path):
    module = reference.reference(name, seed=3, dtype=torch.float32)
    checkpoint, converted = tmp_path / "weights.bin", tmp_path / "weights.safetensors"
    torch.save(module.net.state_dict(), checkpoint, _use_new_zipfile_serialization=zipped)
    wanted = jax.tree.leaves(reference.to_jax(name, module))
    convert_file(checkpoint, converted, model=name)
    for path in (checkpoint, converted):
        model = load(name, weights=path)
        assert jax.tree.structure(model) == jax.tree.structure(load(name, weights=None))
        for found, leaf in zip(jax.tree.leaves(model), wanted, strict=True):
            np.testing.assert_array_equal(found, leaf)

    _, metadata = read(converted)
    assert metadata["model"] == name
    assert metadata["source"] == "weights.bin"
    assert metadata["source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert json.loads(metadata["class_names"]) == list(CLASS_NAMES)
    assert json.loads(metadata["preprocessing"])["size"] == 224


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
