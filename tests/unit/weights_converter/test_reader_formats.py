"""Formats are decided by content, and give the same arrays."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.unit.weights_converter import crafted
from weights_converter.reader import read_checkpoint

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def assert_equal(arrays, wanted):
    assert list(arrays) == list(wanted)
    for name, value in wanted.items():
        assert arrays[name].dtype == value.dtype
        assert arrays[name].shape == value.shape
        assert arrays[name].tobytes() == value.tobytes()


FORMATS = {
    "zip": crafted.archive(crafted.state_dict(crafted.tensor())),
    "legacy": crafted.legacy(crafted.state_dict(crafted.tensor())),
    "tar": crafted.tar(),
    "safetensors": crafted.safetensors({"w": crafted.entry(0, 24)}),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "tar", "zip"])
@pytest.mark.parametrize("written", FORMATS)
def test_formats_are_told_apart_by_content(tmp_path, written, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(FORMATS[written])
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == written
    assert checkpoint["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert checkpoint["w"].dtype == np.float32


@pytest.mark.parametrize("written", FORMATS)
def test_shapes_and_dtypes_are_known_before_any_array_is_made(tmp_path, written):
    path = tmp_path / "weights"
    path.write_bytes(FORMATS[written])
    checkpoint = read_checkpoint(path)
    path.write_bytes(b"")
    assert checkpoint.shapes["w"] == (6,)
    assert checkpoint.dtypes["w"] == np.float32
    assert "w" in checkpoint
    assert "x" not in checkpoint
    assert len(checkpoint) == len(checkpoint.shapes)


def test_safetensors_of_every_dtype(tmp_path):
    rng = np.random.default_rng(0)
    values = {name: (rng.normal(size=(3, 5)) * 50).astype(name) for name in DTYPES}
    values["bfloat16"] = rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16)
    values |= {"one": np.array(2.5), "none": np.empty((3, 0, 2)), "z": np.arange(7, dtype=np.int8)}
    save_file(values, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "weights.safetensors")
    assert checkpoint.metadata == {"format": "pt"}
    assert_equal({name: checkpoint[name] for name in values}, values)
    assert_equal(dict(sorted(checkpoint.items())), dict(sorted(values.items())))


def test_safetensors_whose_ranges_are_not_in_the_order_of_names(tmp_path):
    path = tmp_path / "weights.safetensors"
    header = {"a": crafted.entry(8, 24, (2, 2)), "b": crafted.entry(0, 8, (2,))}
    raw = json.dumps(header).encode().ljust(160)
    path.write_bytes(crafted.safetensors(raw))
    checkpoint = read_checkpoint(path)
    assert_equal(checkpoint, {name: load_file(path)[name] for name in header})
    assert checkpoint["b"].tolist() == [0, 1]


def test_safetensors_prefix_is_stripped(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(crafted.safetensors({"module.w": crafted.entry(0, 24)}))
    assert list(read_checkpoint(path)) == ["w"]


# PyTorch extracts the archive without saying how.
@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter")
def test_tar_as_pytorch_reads_it(tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(crafted.tar())
    checkpoint = read_checkpoint(path)
    wanted = torch.load(path, weights_only=False)
    assert_equal(checkpoint, {name: value.numpy() for name, value in wanted.items()})
    assert checkpoint["v"].tolist() == [1, 4]
    assert checkpoint.shapes == {"w": (6,), "v": (2,)}


def test_tar_of_python_2_on_a_gpu(tmp_path):
    strange = crafted.TAR_STORAGES.replace(crafted.text("cpu"), b"U\6cuda:0")
    tensors = crafted.TAR_TENSORS.replace(b"ctorch\n", b"ctorch.cuda\n")
    pickle = crafted.TAR_PICKLE.replace(crafted.text("1"), b"U\0011")
    path = tmp_path / "old.pth"
    path.write_bytes(crafted.tar(storages=strange, tensors=tensors, pickle=pickle))
    checkpoint = read_checkpoint(path)
    assert checkpoint["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert checkpoint["v"].tolist() == [1, 4]


def test_tar_nested_with_an_ordered_dict_and_a_parameter(tmp_path):
    parameter = crafted.named("torch.nn.parameter", "Parameter") + crafted.text("2") + b"Q\x85R"
    pairs = crafted.call("collections", "OrderedDict") + crafted.text("module.v") + parameter + b"s"
    value = b"}(" + crafted.text("epoch") + b"K\3" + crafted.text("state_dict") + pairs + b"u"
    path = tmp_path / "old.pth"
    path.write_bytes(crafted.tar(pickle=crafted.pickled(value)))
    assert {name: array.tolist() for name, array in read_checkpoint(path).items()} == {"v": [1, 4]}


@pytest.mark.parametrize("shape", [(), (1,), (1, 6), (0,), (6, 0, 2**20)])
@pytest.mark.parametrize("stride", [0, 1, 2**31, 2**62, 2**63, 2**80])
def test_stride_along_an_axis_that_takes_no_step_does_not_matter(tmp_path, shape, stride):
    strides = [1 if size == 6 else stride for size in shape]
    sizes = crafted.integers(*shape), crafted.integers(*strides)
    path = tmp_path / "weights.pth"
    path.write_bytes(crafted.archive(crafted.state_dict(crafted.tensor(None, None, *sizes))))
    wanted = np.arange(6, dtype=np.float32)[: np.prod(shape, dtype=int)].reshape(shape)
    assert_equal(read_checkpoint(path), {"w": wanted})
