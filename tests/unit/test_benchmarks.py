"""The benchmark harness on tiny jobs: that it is correct, never how fast anything is."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import ours, referee, torch_variants
from benchmarks.check import Accuracy, complaint, error_of, first_step, is_inside
from benchmarks.contest import Measurement, Setup
from benchmarks.jobs import JOBS, Sizes, gflop
from benchmarks.rows import make_rows
from benchmarks.table import COLUMNS, markdown
from benchmarks.variants import OURS, PUBLISHED, SHARED, TUNED, Task
from benchmarks.work import forward_gflop
from benchmarks.workers import ROOT, Worker, WorkerError
from tests.served import CHROMIUM

TINY = Sizes(images=2, classes=2, size=64, steps=2)
# Each compiles for seconds. The command does `grid`; the last two share a program.
OURS_BY_JOB = {
    "grid": [],
    "pga": [(OURS, 3)],
    "latency": [(OURS, None)],
    "throughput": [(OURS, 1)],
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet18")
    referee.prepare(folder, "resnet18", TINY)
    return Setup("resnet18", folder, "cpu", TINY, rounds=1)


def do(setup, job, variant, batch_size=None):
    """The results of a variant, in a file as a worker writes it."""
    folder, steps = str(setup.folder), setup.sizes.steps
    side = torch_variants if variant.framework == "torch" else ours
    task = Task(variant, job, setup.model, folder, setup.device, batch_size, steps)
    runner = side.Runner(task)
    arrays = {"result": runner.fetch(runner.run(steps)), "first_step": runner.fetch(runner.run(1))}
    path = setup.folder / f"{job}-{variant.name}.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("job", JOBS)
def test_every_variant_agrees_with_float64(setup, job):
    contestants = [(PUBLISHED, None), (TUNED, 3), (SHARED, None), *OURS_BY_JOB[job]]
    results = [do(setup, job, *each) for each in contestants if job in each[0].jobs]
    errors = [error_of(job, result, setup.folder) for result in results]
    assert len(errors) >= 3
    assert max(errors) < 1e-5
    if job == "pga":
        rises = referee.mean_rises(setup.folder, setup.model, results)
        assert min(rises) > 0.9 * rises[0] > 0


def test_folding_batch_norm_leaves_none_after_a_convolution(setup):
    task = Task(TUNED, "grid", "resnet18", str(setup.folder), "cpu", None, 1)
    kinds = [type(layer).__name__ for layer in torch_variants.Runner(task).module.modules()]
    assert "Conv2d" in kinds
    assert "BatchNorm2d" not in kinds


@pytest.mark.parametrize("job", ["grid", "pga"])
def test_wrong_result_fails(setup, job):
    path = do(setup, job, PUBLISHED)
    right = Accuracy(error_of(job, path, setup.folder))
    with np.load(path) as arrays:
        wrong = {name: array.copy() for name, array in arrays.items()}
    for array in wrong.values():
        array[-1] = array[0]
    np.savez(path, **wrong)
    found = Accuracy(error_of(job, path, setup.folder))
    assert complaint(right, right, "float32", is_ours=True) == ""
    for is_ours in (True, False):
        assert "is above" in complaint(found, right, "float32", is_ours=is_ours)
        assert "is above" in complaint(found, found, "float32", is_ours=is_ours)


@pytest.mark.parametrize("error", [np.nan, np.inf, 1.7e-5])
def test_error_of_ours_above_that_of_the_reference_fails(error):
    reference = Accuracy(1e-5)
    assert "is above 1.6e-05" in complaint(Accuracy(error), reference, "float32", is_ours=True)
    assert complaint(Accuracy(1.5e-5), reference, "float32", is_ours=True) == ""


def test_ascent_that_rises_less_fails():
    reference = Accuracy(0.0, 10.0)
    assert complaint(Accuracy(0.0, 9.5), reference, "float32", is_ours=True) == ""
    assert "rose by 5.00" in complaint(Accuracy(0.0, 5.0), reference, "float32", is_ours=True)


def test_first_step_clips():
    x = np.full((1, 2, 2, 3), 0.5)
    field = np.zeros_like(x)
    field[0, 0, 0, 0], field[0, 1, 1, 1] = 3.0, -1e-3
    expected = x.copy()
    expected[0, 0, 0, 0], expected[0, 1, 1, 1] = 1.0, 0.5 - 20 * 1e-3 / 3
    np.testing.assert_allclose(first_step(x, field), expected, rtol=1e-6)


def test_an_ascent_that_leaves_the_ball_or_the_bounds_is_found():
    x = np.zeros((2, 64, 64, 3))
    near, far, bright = x.copy(), x.copy(), x.copy()
    near[0] = 0.9
    far[1] = 0.95
    bright[0, 0, 0, 0] = 1.1
    assert np.linalg.norm(near[0]) < 100 < np.linalg.norm(far[1])
    assert is_inside(near, x)
    assert not is_inside(far, x)
    assert not is_inside(bright, x)


def test_work_of_resnet50():
    forward = forward_gflop("resnet50", 224)
    sizes = Sizes()
    assert gflop("grid", sizes, forward, shared=False) == pytest.approx(490, rel=0.01)
    assert gflop("grid", sizes, forward, shared=True) == pytest.approx(286, rel=0.01)
    assert gflop("pga", sizes, forward, shared=False) == pytest.approx(4904, rel=0.01)
    assert gflop("latency", sizes, forward, shared=False) == pytest.approx(490 / 30, rel=0.01)


def test_work_counts_groups_once():
    forward = forward_gflop("efficientnet_lite0", 224)
    assert forward / 2 == pytest.approx(0.407, rel=0.06)  # of its authors' table, in 10^9


def test_failures_have_rows(setup):
    sound = Measurement(PUBLISHED, seconds=[2.0, 3.0], begun=[2.0, 3.0], peak=2_000_000)
    wrong = Measurement(OURS, seconds=[1.0, 1.0], begun=[0.1, 0.1])
    broken = Measurement(TUNED, failure="no compiler")
    optional = Measurement(dataclasses.replace(SHARED, optional=True), failure="no | compiler")
    measurements = [sound, broken, optional, wrong]
    accuracies = {sound: Accuracy(1e-6), wrong: Accuracy(1e-2)}
    rates = {"float32": 100.0}
    rows = make_rows(setup, "grid", "default", measurements, accuracies, rates, 1.0)
    assert [row.failed for row in rows] == [False, True, False, True]
    assert rows[3].ratios == {"A": [2.0, 3.0]}
    assert rows[3].share == pytest.approx(6 / 100)
    about = {"date": "", "commit": "", "device": "", "processor": "", "cores": 1, "system": ""}
    text = markdown(rows, [], {**about, "versions": {}, "environments": {}})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "2.50 (2.00 to 3.00)" in lines[5]
    assert "FAILED: error 1.0e-02" in lines[5]


def test_worker_that_ends_says_why():
    with Worker("benchmarks.worker", [], {}) as worker, pytest.raises(WorkerError, match="JSON"):
        worker.tell("nonsense")


def test_worker_of_ours_never_imports_torch():
    code = "import sys, benchmarks.worker, benchmarks.ours; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


def test_command_writes_a_row_for_each_variant(tmp_path):
    chosen = ["--variant", PUBLISHED.name, "--variant", OURS.name]
    tiny = ["--images", "2", "--classes", "2", "--size", "64", "--rounds", "1"]
    arguments = ["--model", "resnet18", "--job", "grid", "--environment", "default"]
    command = [sys.executable, "-m", "benchmarks", *arguments, *chosen, *tiny]
    result = subprocess.run(
        [*command, "--out", tmp_path / "table"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr + result.stdout
    written = (tmp_path / "table.md").read_text()
    assert written.strip() in result.stdout
    everything = json.loads((tmp_path / "table.json").read_text())
    assert [row["variant"] for row in everything["rows"]] == [PUBLISHED.name, OURS.name]
    assert all(row["seconds"] and not row["complaint"] for row in everything["rows"])
    assert everything["rows"][1]["cached"] is not None


def test_first_answers_have_a_row_for_each_side(tmp_path):
    tiny = ["--model", "resnet18", "--job", "pullback", "--size", "64", "--rounds", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_answer", *tiny, "--out", tmp_path / "table.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split("|")[3].strip() for row in rows] == [
        "PyTorch, as published",
        "ours, cold",
        "ours, warm",
    ]
    assert {row.count("|") for row in rows} == {head.count("|")}
    assert all(float(row.split("|")[7]) > 0 for row in rows)
    assert not rows[0].split("|")[8].strip()


def test_a_worker_of_first_answers_never_imports_the_other_side():
    def imported(module, other):
        code = f"import sys, benchmarks.{module}; print({other!r} in sys.modules)"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert imported("first_torch", "jax").strip() == "False"
    assert imported("first_ours", "torch").strip() == "False"


def gpu_command(folder, *arguments):
    """Run the benchmark for GPUs on a small network on the CPU; the result has its rows."""
    tiny = ["--images", "2", "--classes", "2", "--stream", "3", "--size", "64", "--steps", "2"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--model", "resnet18"]
    result = subprocess.run(
        [*command, *tiny, "--rounds", "1", "--out", folder / "table", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return result, json.loads((folder / "table.json").read_text())["rows"]


def test_gpu_benchmark_says_what_is_not_done_within_the_limit(tmp_path):
    result, rows = gpu_command(tmp_path, "--limit", "0")
    assert result.returncode == 1, result.stderr
    assert len(rows) == 9
    assert {row["complaint"] for row in rows} == {"not begun within the limit"}


@pytest.mark.slow
def test_gpu_benchmark_measures_every_variant(tmp_path):
    result, rows = gpu_command(tmp_path)
    assert result.returncode == 0, result.stderr + result.stdout
    assert len(rows) == 9
    assert all(row["seconds"] and not row["complaint"] for row in rows)
    assert [row["rise"] is None for row in rows] == [*[True] * 6, *[False] * 3]


def test_gpu_benchmark_names_missing_packages(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(bare)}
    result = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "lacks filelock, flatbuffers, flax, jax[cuda13]" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_is_timed(tmp_path):
    out = tmp_path / "page.md"
    tiny = ("--rounds", "1", "--runs", "3", "--out", out)
    subprocess.run([sys.executable, "-m", "benchmarks.page", *tiny], cwd=ROOT, check=True)
    cold, warm = [line for line in out.read_text().splitlines() if "efficientnet_lite0" in line]
    seconds = [[float(cell) for cell in row.split("|")[3:-1]] for row in (cold, warm)]
    assert all(0 < second < 300 for row in seconds for second in row)
    assert seconds[1][0] < seconds[0][0]
    assert "MB: " in out.read_text()
