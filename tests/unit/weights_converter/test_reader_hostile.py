import json
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.weights_converter import crafted, hostile
from weights_converter.errors import CheckpointError
from weights_converter.reader import read_checkpoint

SMALL = {
    "zip": crafted.archive(crafted.state_dict(crafted.tensor())),
    "deflated": crafted.archive(crafted.state_dict(crafted.tensor()), method=8),
    "legacy": crafted.legacy(crafted.state_dict(crafted.tensor())),
    "tar": crafted.tar(mtime=1),
    "safetensors": crafted.safetensors({"w": crafted.entry(0, 24)}),
}
LIMITED = """
import json, pathlib, resource, sys, time
from weights_converter.errors import CheckpointError
from weights_converter.reader import read_checkpoint

pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.perf_counter()
    try:
        for array in read_checkpoint(path).values():
            array.sum()
        message = "read without complaint"
    except CheckpointError as error:
        message = str(error).removeprefix(f"{path}: ")
    print(json.dumps([path.name, message, time.perf_counter() - start]))
"""


def test_hostile_corpus_is_refused_without_running_quickly_in_little_memory(tmp_path):
    sentinel = tmp_path / "sentinel"
    directory = tmp_path / "corpus"
    directory.mkdir()
    wanted = {}
    for name, data, words in hostile.corpus(sentinel):
        assert name not in wanted
        wanted[name] = words
        (directory / name).write_bytes(data)
    assert len(wanted) > 350

    command = [sys.executable, "-c", LIMITED, str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    seen = [json.loads(line) for line in run.stdout.splitlines()]

    assert [name for name, _, _ in seen] == sorted(wanted)
    assert not [(n, m) for n, m, _ in seen if wanted[n] not in m]
    assert not [(name, seconds) for name, _, seconds in seen if seconds > 2]
    assert not sentinel.exists()


def test_payloads_would_run_if_they_were_let(tmp_path):
    sentinel = tmp_path / "sentinel"
    pickle.loads(crafted.pickled(crafted.call("os", "system", crafted.text(f"touch {sentinel}"))))
    assert sentinel.exists()


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL)
def test_truncation_at_every_byte_is_refused(tmp_path, data):
    path = tmp_path / "cut.pth"
    path.write_bytes(data)
    assert read_checkpoint(path)["w"].tolist() == [0, 1, 2, 3, 4, 5]
    unread = []
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        try:
            dict(read_checkpoint(path))
        except CheckpointError:
            unread.append(length)
    assert len(unread) == len(data)


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL)
def test_any_change_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "changed.pth"
    places = st.dictionaries(st.integers(0, len(data) - 1), st.integers(0, 255), min_size=1)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(changes=places)
    def check(changes):
        changed = bytearray(data)
        for place, value in changes.items():
            changed[place] = value
        path.write_bytes(changed)
        try:
            arrays = dict(read_checkpoint(path))
        except CheckpointError:
            return
        assert sum(array.nbytes for array in arrays.values()) <= len(data)

    check()


@pytest.mark.parametrize("wrap", [crafted.archive, crafted.legacy])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from([
    crafted.text("storage"), crafted.text("model"), crafted.integer(3), crafted.storage(),
    crafted.tensor(), crafted.named("collections", "OrderedDict"), crafted.integers(2, 3),
    crafted.named("torch", "FloatStorage"), crafted.named("torch._utils", "_rebuild_tensor"),
    *(bytes([code]) for code in b"()]}tuesaRbQN\x81\x85\x86\x87\x88\x89\x93\x94"), b"q\0", b"h\0",
])))  # fmt: skip
def test_any_program_is_read_or_refused(tmp_path_factory, wrap, parts):
    path = tmp_path_factory.getbasetemp() / "program.pth"
    path.write_bytes(wrap(crafted.state_dict(b"".join(parts))))
    try:
        dict(read_checkpoint(path))
    except CheckpointError:
        return
