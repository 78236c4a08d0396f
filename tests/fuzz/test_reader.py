"""Whatever a checkpoint holds, it is read or refused; and what it says of its tensors is true."""

import itertools
import json
import math
import operator
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.weights_converter import crafted
from weights_converter.errors import CheckpointError
from weights_converter.inspection import mentioned_globals
from weights_converter.reader import read_checkpoint

SECONDS = 20
COUNT = 24  # bytes of data in each file, which are six floats
NUMBERS = st.one_of(st.integers(-2, 8), st.sampled_from([2**31, 2**62, 2**64, -(2**40)]))
FEW = st.lists(NUMBERS, max_size=3)


def read(path, data):
    """The arrays of a file that holds `data`, or None if it is refused."""
    path.write_bytes(data)
    try:
        return dict(read_checkpoint(path))
    except CheckpointError:
        return None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(offset=NUMBERS, shape=FEW, strides=FEW, big=st.booleans(), old=st.booleans())
def test_strided_tensors_are_as_numpy_has_them_or_refused(path, offset, shape, strides, big, old):
    one = crafted.tensor(
        None, crafted.integer(offset), crafted.integers(*shape), crafted.integers(*strides)
    )
    floats = np.arange(6, dtype=">f4" if big and not old else "<f4").tobytes()
    if old:
        data = crafted.legacy(crafted.state_dict(one), struct.pack("<q", 6) + floats)
    else:
        records = {"data/0": floats, "byteorder": b"big" if big else b"little"}
        data = crafted.archive(crafted.state_dict(one), records)
    arrays = read(path, data)

    legal = len(shape) == len(strides) and min([offset, *shape, *strides]) >= 0
    if not legal or math.prod(shape) > 6 or math.prod(max(size, 1) for size in shape) > 2**40:
        assert arrays is None
        return
    indices = [] if 0 in shape else itertools.product(*map(range, shape))
    places = [offset + sum(map(operator.mul, index, strides)) for index in indices]
    assert (arrays is not None) == all(place < 6 for place in [*places, offset - 1])
    if arrays is not None:
        assert arrays["w"].shape == tuple(shape)
        assert arrays["w"].reshape(-1).tolist() == places


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F64", "F4"]),
        "shape": st.lists(st.one_of(st.integers(0, 6), NUMBERS), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 12, 24, 25, -1, 2**62]), max_size=3),
    }
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(header=st.dictionaries(st.sampled_from(["a", "b", "c", "é", "\n"]), ENTRIES, max_size=3))
def test_safetensors_are_covered_by_their_tensors_or_refused(path, header):
    arrays = read(path, crafted.safetensors(header, bytes(COUNT)))
    if arrays is not None:
        assert sum(array.nbytes for array in arrays.values()) == COUNT
        assert {name: list(array.shape) for name, array in arrays.items()} == {
            name: fields["shape"] for name, fields in header.items()
        }


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "F32"]), inner
        ),
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(header=st.dictionaries(st.text(max_size=3), JSON))
def test_any_json_header_is_read_or_refused(path, header):
    raw = json.dumps(header).encode()
    arrays = read(path, crafted.safetensors(raw, bytes(COUNT)))
    assert not arrays


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    views=st.lists(st.tuples(*[st.one_of(st.integers(6, 9), NUMBERS)] * 4), max_size=2),
    tensors=st.lists(
        st.tuples(st.integers(1, 3), st.integers(6, 9), FEW, FEW, st.integers(-1, 7)), max_size=3
    ),
)
def test_any_tar_is_read_or_refused(path, views, tensors):
    def small(numbers):
        return tuple(number % 2**63 for number in numbers)

    parts = [
        crafted.tar_tensor(key, of, small(shape), small(strides[: len(shape)]), offset)
        for key, of, shape, strides, offset in tensors
        if len(strides) >= len(shape)
    ]
    end = crafted.pickled(b"](" + b"".join(crafted.integers(*view) for view in views) + b"e")
    start = crafted.TAR_STORAGES[: crafted.TAR_STORAGES.index(crafted.SIX_FLOATS) + COUNT]
    data = crafted.tar(
        tensors=crafted.pickled(crafted.integer(len(parts))) + b"".join(parts), storages=start + end
    )
    arrays = read(path, data)
    assert arrays is None or all(array.size <= 6 for array in arrays.values())


@settings(max_examples=500, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300), wrap=st.sampled_from([crafted.archive, crafted.legacy]))
def test_globals_of_any_pickle_are_listed(path, data, wrap):
    path.write_bytes(wrap(b"\x80\2" + data))
    assert all(mention.name for mention in mentioned_globals(path))


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_coverage_guided(tmp_path):
    script = Path(__file__).with_name("fuzz_reader.py")
    # By way of a shell, whose child starts with a peak memory of its own: libFuzzer would take that
    # of this process, which a direct child inherits, for its own, and stop.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, script, tmp_path]
    command += [f"-max_total_time={SECONDS}", "-runs=30000"]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-5000:]
    assert "Done " in run.stderr
    assert len(list((tmp_path / "inputs").iterdir())) > 50
