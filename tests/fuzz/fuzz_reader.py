"""Coverage-guided fuzzing of the checkpoint reader.

    python tests/fuzz/fuzz_reader.py FOLDER -max_total_time=600

The folder keeps the inputs that are worth it, and those that fail. Options are libFuzzer's, and
-atheris_runs=COUNT. Whatever a file holds, it is read into no more bytes than its size allows, or
refused with `CheckpointError`, within libFuzzer's limits of time and memory.
"""

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["weights_converter", "json", "pickletools"]):
    from weights_converter.errors import CheckpointError
    from weights_converter.files import MAX_INFLATED_BYTES, MAX_INFLATION
    from weights_converter.inspection import mentioned_globals
    from weights_converter.reader import read_checkpoint

from tests.unit.weights_converter import crafted
from tests.unit.weights_converter.crafted import entry, group, integers, storage, tensor, text

LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=32768"]
FOLDER = Path(sys.argv[1])
WRAPS = {  # by an input's first byte: what is made of its rest, which can so change its length
    1: crafted.archive,
    2: crafted.legacy,
    3: lambda data: crafted.tar(pickle=data),
    4: lambda data: crafted.tar(tensors=data),
    5: lambda data: crafted.tar(storages=data),
    6: crafted.safetensors,
}


def seeds() -> list[bytes]:
    """A small file of every format, and of the less common things in them."""
    good = crafted.state_dict(tensor())
    view = storage("0", "FloatStorage", 6, group(text("v"), b"K\1", b"K\4"))
    old = crafted.state_dict(tensor(view, size=integers(4)))
    inside = text("epoch") + b"K\3" + text("state_dict") + good[2:-1]
    nested = crafted.pickled(b"}(" + inside + b"u")
    header = crafted.safetensors({"a": entry(0, 8, (2,)), "b": entry(8, 24, (2, 2))})
    noted = crafted.safetensors({"__metadata__": {"format": "pt"}, "b": entry(0, 0, (0,))}, b"")
    return [
        crafted.archive(good),
        crafted.archive(good, method=8),
        crafted.archive(nested, {"data/0": crafted.SIX_FLOATS, "byteorder": b"big"}),
        crafted.archive(crafted.pickled(text("os") + text("system") + b"\x93")),
        crafted.legacy(good),
        crafted.legacy(old),
        crafted.tar(),
        crafted.tar(mtime=1),
        header,
        noted,
        b"\1" + good,
        b"\1" + nested,
        b"\2" + old,
        b"\3" + crafted.TAR_PICKLE,
        b"\4" + crafted.TAR_TENSORS,
        b"\5" + crafted.TAR_STORAGES,
        b"\6" + header[8:-24],
    ]


def check(data: bytes) -> None:
    """Read every tensor and every global of the file that an input stands for."""
    if data[:1] and data[0] in WRAPS:
        data = WRAPS[data[0]](data[1:])
    path = FOLDER / "file"
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        mentioned_globals(path)
    try:
        checkpoint = read_checkpoint(path)
        arrays = dict(checkpoint)
    except CheckpointError:
        return
    total = 0
    for name, array in arrays.items():
        assert array.shape == checkpoint.shapes[name]
        assert array.dtype == checkpoint.dtypes[name]
        total += len(array.tobytes())
    assert total <= max(MAX_INFLATED_BYTES, MAX_INFLATION * len(data))


if __name__ == "__main__":
    first, kept = FOLDER / "seeds", FOLDER / "inputs"
    for folder in (first, kept):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (first / str(number)).write_bytes(seed)
    options = [f"-artifact_prefix={FOLDER}/", *LIMITS, *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options, str(kept), str(first)], check)
    atheris.Fuzz()
