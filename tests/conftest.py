"""Settings that hold for every test, and the table that the parity tests fill."""

import ctypes
import gc
import os
import sys
from pathlib import Path

import jax
import pytest

# Programs that take a second to compile are kept for the next run. The processes that tests start
# do not share them: some are killed, and would leave damaged ones.
KEPT = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(KEPT))

# Each of pytest-xdist's processes on a core of its own: the thread pools of JAX and PyTorch spin,
# and two processes that share all cores take several times as long.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, {cores[number % len(cores)]})

# Eight devices on every machine, so that tests of sharding mean something.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_modifyitems(items):
    """The longest file first, so that no process is left with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_programs.py")


@pytest.fixture(scope="module", autouse=True)
def _without_the_memory_of_other_files():
    """Compiled programs of a file are of no use to the next, and take gigabytes."""
    yield
    give_memory_back()


@pytest.fixture
def little_memory():
    """For tests of large networks: each gives back the memory of its own."""
    yield
    give_memory_back()


def give_memory_back():
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # otherwise glibc keeps what was freed
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(request):
    """XLA optimises little but for files with `OPTIMISE = True`: most networks here are small."""
    jax.config.update(
        "jax_disable_most_optimizations", not getattr(request.module, "OPTIMISE", False)
    )


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


# What the parity tests measure, printed as one table at the end.
COLUMNS = "model", "images", "quantity", "error in float64", "float32: ours", "PyTorch's", "ratio"


# And what the tests of the paper's equations measure: the greatest error of each comparison.
EQUATION_COLUMNS = "equation", "what", "relative error"


def pytest_terminal_summary(terminalreporter):
    rows = recorded(terminalreporter, "parity")
    write_table(terminalreporter, "parity with PyTorch, relative L2", COLUMNS, rows)
    worst = {}
    for number, what, error in recorded(terminalreporter, "equation"):
        worst[number, what] = max(error, worst.get((number, what), 0.0))
    rows = [(number, what, f"{error:.1e}") for (number, what), error in sorted(worst.items())]
    write_table(terminalreporter, "the paper's equations", EQUATION_COLUMNS, rows)


def recorded(terminalreporter, wanted):
    return [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == wanted
    ]


def write_table(terminalreporter, title, columns, rows):
    if rows:
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        terminalreporter.section(title)
        for row in (columns, *rows):
            line = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  ".join(line).rstrip())
