"""Arrays are made on access, and take no more memory than they must."""

import gc
import json
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.weights_converter.crafted import (
    archive,
    entry,
    group,
    integer,
    integers,
    legacy,
    named,
    pickled,
    safetensors,
    storage,
    tar,
    tensor,
    text,
)
from weights_converter.errors import CheckpointError
from weights_converter.reader import read_checkpoint

needs_proc = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc to write to"
)
COUNT, SIZE = 8, 2 << 20  # of tensors, and of the elements of each: 64 MiB
PEAK = """
import json, resource, sys
import numpy as np
from weights_converter.reader import read_checkpoint

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10

checkpoint = read_checkpoint(sys.argv[1])
peaks = []
for held in 1, len(checkpoint):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    kept = []
    for array in checkpoint.values():
        assert int(array.view(np.uint8).max()) == 255
        kept = [*kept, array][-held:]
    peaks.append(status("VmHWM") - before)
    del array, kept
print(json.dumps(peaks))
"""


def numbers(count=COUNT, size=SIZE):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32) for _ in range(count)]


def many(count=COUNT, size=SIZE):
    one = [
        text(f"w{i}") + tensor(storage(str(i), count=size), None, integers(size))
        for i in range(count)
    ]
    return pickled(b"}(" + b"".join(one) + b"u")


def write_stored(path):
    path.write_bytes(archive(many(), {f"data/{i}": a.tobytes() for i, a in enumerate(numbers())}))


def write_deflated(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("a/data.pkl", many())
        for i, array in enumerate(numbers()):
            file.writestr(f"a/data/{i}", array.tobytes())


def write_big_endian(path):
    records = {f"data/{i}": a.byteswap().tobytes() for i, a in enumerate(numbers())}
    path.write_bytes(archive(many(), records | {"byteorder": b"big"}))


def write_legacy(path):
    data = b"".join(struct.pack("<q", SIZE) + array.tobytes() for array in numbers())
    path.write_bytes(legacy(many(), data, tuple(map(str, range(COUNT)))))


def write_safetensors(path):
    save_file({f"w{i}": array for i, array in enumerate(numbers())}, path)


def write_tar(path):
    head, tensors, pickle = pickled(integer(COUNT)), pickled(integer(COUNT)), b"}("
    parts = [head]
    for i, array in enumerate(numbers()):
        key = group(integer(i), text("cpu"), named("torch", "FloatStorage"))
        parts += [pickled(key), struct.pack("<q", SIZE), array.tobytes()]
        of = group(integer(100 + i), integer(i), named("torch", "FloatTensor"))
        tensors += pickled(of) + struct.pack("<2i3q", 1, 0, SIZE, 1, 0)
        pickle += text(f"w{i}") + text(str(100 + i)) + b"Q"
    storages = b"".join([*parts, pickled(b"]")])
    path.write_bytes(tar(storages=storages, tensors=tensors, pickle=pickled(pickle + b"u")))


WRITERS = {
    "stored": write_stored,
    "deflated": write_deflated,
    "big-endian": write_big_endian,
    "legacy": write_legacy,
    "tar": write_tar,
    "safetensors": write_safetensors,
}


@needs_proc
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_peak_memory(tmp_path, write):
    path = tmp_path / "weights"
    write(path)
    command = [sys.executable, "-c", PEAK, path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    one, every = json.loads(run.stdout)
    assert one < 2.5 * SIZE * 4
    assert 0.9 < every / (COUNT * SIZE * 4) < 1.3


def test_one_large_tensor_of_the_other_byte_order_is_not_there_twice(tmp_path):
    path = tmp_path / "big.pth"
    (array,) = numbers(1, 1 << 20)
    records = {"data/0": array.byteswap().tobytes(), "byteorder": b"big"}
    path.write_bytes(archive(many(1, 1 << 20), records))
    tracemalloc.start()
    read = read_checkpoint(path)["w0"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.tobytes() == array.tobytes()
    assert peak < 1.2 * array.nbytes


def mappings(path):
    return Path("/proc/self/maps").read_text().count(str(path))


@needs_proc
def test_mapping_goes_with_its_array(tmp_path):
    path = tmp_path / "weights.pth"
    write_legacy(path)
    checkpoint = read_checkpoint(path)
    assert mappings(path) == 0
    first, again = checkpoint["w0"], checkpoint["w0"].reshape(2, -1)
    assert mappings(path) == 2
    del checkpoint
    assert np.array_equal(first.view(np.uint32), again.reshape(-1).view(np.uint32))
    del first
    assert mappings(path) == 1
    del again
    assert mappings(path) == 0


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@needs_proc
def test_file_is_closed_when_the_checkpoint_goes(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors({"w": entry(0, 24)}))
    gc.collect()
    before = open_files()
    checkpoint = read_checkpoint(path)
    array = checkpoint["w"]
    with pytest.raises(KeyError):
        checkpoint["x"]
    del checkpoint
    gc.collect()
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    assert open_files() == before


def test_arrays_are_read_only_and_equal_each_time(tmp_path):
    for name, write in (("large", write_legacy), ("swapped", write_big_endian)):
        write(tmp_path / name)
        checkpoint = read_checkpoint(tmp_path / name)
        assert not checkpoint["w1"].flags.writeable
        assert checkpoint["w1"].tobytes() == checkpoint["w1"].tobytes()


def test_more_arrays_than_the_process_may_have_open_files(tmp_path):
    path = tmp_path / "many.safetensors"
    values = {f"w{i}": np.full(20_000, i, np.float32) for i in range(100)}
    save_file(values, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    checkpoint = read_checkpoint(path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        arrays = dict(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all((arrays[name] == value).all() for name, value in values.items())


@pytest.mark.parametrize("write", [write_stored, write_deflated, write_big_endian])
def test_a_file_that_has_changed_is_refused(tmp_path, write):
    path = tmp_path / "weights.pth"
    write(path)
    checkpoint = read_checkpoint(path)
    os.truncate(path, path.stat().st_size // 2)
    for name in checkpoint:
        with pytest.raises(CheckpointError, match=r"weights\.pth: the file had .* has changed"):
            checkpoint[name]


def test_file_that_is_replaced_is_read_as_it_was(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors({"w": entry(0, 24)}))
    checkpoint = read_checkpoint(path)
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(path)
    assert checkpoint["w"].tolist() == [0, 1, 2, 3, 4, 5]
