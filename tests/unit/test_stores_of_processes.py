"""Several processes of JAX's own runtime, over loopback, fill one store."""

import socket
import subprocess
import sys

import pytest
from PIL import Image

from tests.unit.test_cli import CAT
from tests.unit.test_stores import contents

COMMAND = [sys.executable, "-c", "from jax_excite.cli import main; main()", "attribute"]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    where = tmp_path_factory.mktemp("photographs")
    cat = Image.open(CAT).convert("RGB")
    for number in range(9):
        cat.crop((10 * number, 0, 10 * number + 250, 250)).save(where / f"{number}.png")
    return where


@pytest.fixture(scope="module")
def whole(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "store"
    run = [*COMMAND, photographs, "--out", out, "--chunk", "2"]
    subprocess.run(run, check=True, capture_output=True)
    return contents(out)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_make_the_same_store(photographs, whole, tmp_path, processes):
    out, address = tmp_path / "store", f"localhost:{free_port()}"
    shared = [*COMMAND, photographs, "--out", out, "--chunk", "2", "--coordinator", address]
    runs = [
        subprocess.Popen(
            [*shared, "--processes", str(processes), "--process", str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    said = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0] * processes, said
    assert contents(out) == whole
    assert len(list((out / "journal").glob("*.jsonl"))) == processes
