import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, model_spec
from jax_excite.weights.loading import fill, named_leaves
from weights_converter.convert import find_rule, fit
from weights_converter.names import TABLES

SMALL = "squeezenet1_0"


def convert_tensors(source, name):
    return {
        key: np.asarray(tensor) for key, tensor in fit(source, model_spec(name)).tensors.items()
    }


def state_dict(name, seed=0):
    """What PyTorch would call and lay out random weights, by rules written out independently."""
    rng = np.random.default_rng(seed)
    found = {}
    for ours, leaf in named_leaves(model_spec(name).abstract()).items():
        module, _, kind = ours.rpartition(".")
        shape = leaf.shape
        if kind == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        theirs = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
        theirs |= {"var": "running_var", "bias": "bias"}
        found[f"{module}.{theirs[kind]}"] = rng.standard_normal(shape, np.float32)
        if kind == "var":
            found[f"{module}.num_batches_tracked"] = np.asarray(3)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_matches_one_rule_and_has_one_source(name):
    spec = model_spec(name)
    leaves = named_leaves(spec.abstract())
    rules = TABLES[spec.family].rules
    sources = [find_rule(target, leaf.ndim, rules)[1] for target, leaf in leaves.items()]
    assert len(set(sources)) == len(leaves)


def test_layouts():
    source = state_dict("vgg11_bn")
    found = convert_tensors(source, "vgg11_bn")
    conv = source["features.0.weight"]
    assert found["features.0.kernel"][1, 2, 0, 5] == conv[5, 0, 1, 2]
    np.testing.assert_array_equal(found["classifier.3.kernel"], source["classifier.3.weight"].T)
    np.testing.assert_array_equal(found["features.1.scale"], source["features.1.weight"])
    np.testing.assert_array_equal(found["features.1.mean"], source["features.1.running_mean"])
    np.testing.assert_array_equal(found["features.1.var"], source["features.1.running_var"])
    image = np.random.default_rng(1).standard_normal((512, 7, 7), np.float32)
    ours = image.transpose(1, 2, 0).reshape(-1) @ found["classifier.0.kernel"][:, :8]
    theirs = source["classifier.0.weight"][:8] @ image.reshape(-1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_older_names():
    dense = state_dict("densenet121")
    legacy = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): array for key, array in dense.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in legacy
    wanted = convert_tensors(dense, "densenet121")
    found = convert_tensors(legacy, "densenet121")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(WeightsError, match=r"there twice: .*norm1\.weight and .*norm\.1\.weight"):
        convert_tensors(dense | legacy, "densenet121")


def test_underscores():
    wanted = state_dict("efficientnet_lite0")
    theirs = {
        re.sub(r"(^|\.)(?=[a-z])(?!weight|bias|running|num)", r"\1_", k): v
        for k, v in wanted.items()
    }
    assert "_blocks.1._bn0.running_mean" in theirs
    found = convert_tensors(theirs, "efficientnet_lite0")
    wanted = wanted["blocks.1.bn0.running_mean"]
    np.testing.assert_array_equal(found["blocks.1.bn0.mean"], wanted)
    assert found["blocks.0.depthwise_conv.kernel"].shape == (3, 3, 1, 32)


def test_a_state_dict_that_does_not_fit():
    source = state_dict(SMALL)
    del source["classifier.1.bias"]
    source["head.weight"] = np.zeros((2, 2), np.float32)
    source["features.0.weight"] = np.zeros((96, 3, 3, 3), np.float32)
    with pytest.raises(WeightsError) as caught:
        fit(source, model_spec(SMALL), "FILE")
    assert str(caught.value) == (
        "FILE does not fit squeezenet1_0: 1 missing: classifier.1.bias; 1 unexpected: head.weight; "
        "1 mis-shaped: features.0.weight is [96, 3, 3, 3] instead of [96, 3, 7, 7]"
    )


def test_bfloat16_checkpoints():
    source = {name: a.astype(ml_dtypes.bfloat16) for name, a in state_dict(SMALL).items()}
    filled = fill(model_spec(SMALL).abstract(), convert_tensors(source, SMALL), "half the bytes")
    assert {leaf.dtype for leaf in jax.tree.leaves(filled)} == {jnp.dtype("bfloat16")}


def test_densenet_layers_are_filled_by_name():
    source = state_dict("densenet121")
    found = named_leaves(
        fill(
            model_spec("densenet121").abstract(),
            dict(sorted(convert_tensors(source, "densenet121").items())),
            "a shuffled file",
        )
    )
    for layer in (1, 2, 10, 11, 24):
        name = f"features.denseblock3.denselayer{layer}"
        wanted = source[f"{name}.conv2.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found[f"{name}.conv2.kernel"], wanted)
