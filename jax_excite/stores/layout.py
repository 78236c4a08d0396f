"""The arrays of a store: Zarr, version 3, through tensorstore."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jax_excite.errors import DataError

MANIFEST = "manifest.json"
ARRAYS = "arrays"  # a Zarr group, beside which are the manifest, the journal and the locks
DONE, SKIPPED = 1, 2  # values of the array `status`; 0 is not yet computed


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of a store.

    Attributes:
        images: number of images.
        methods: number of attribution methods.
        targets: number of targets of each image.
        height: of an attribution, in pixels.
        width: of an attribution, in pixels.
        logits: of the network.
        dtype: of attributions, `float16` or `float32`.
        chunk: images in a chunk, which is what is written at a time.
    """

    images: int
    methods: int
    targets: int
    height: int
    width: int
    logits: int
    dtype: str
    chunk: int

    @property
    def chunks(self) -> int:
        """Number of chunks; the last may be smaller."""
        return -(-self.images // self.chunk)

    def rows(self, chunk: int) -> range:
        """The images of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.images))

    def bytes_of_attributions(self) -> int:
        """On disk, if nothing could be compressed."""
        cells = self.images * self.methods * self.targets
        return cells * self.height * self.width * 3 * np.dtype(self.dtype).itemsize

    def arrays(self) -> dict[str, dict[str, Any]]:
        """What Zarr has to know of each array, by name.

        An attribution is that of `attributions` times that of `scales`, a power of two, so that
        float16 has eleven bits of small attributions too.
        """
        n, of = self.images, self.chunk
        plane = (self.height, self.width, 3)
        size = (n, self.methods, self.targets, *plane)
        axes = ("image", "method", "target", "row", "column", "channel")
        return {
            "attributions": _array(size, (of, 1, 1, *plane), axes, self.dtype, "NaN"),
            "scales": _array(size[:3], (of, self.methods, self.targets), axes[:3], fill="NaN"),
            "logits": _array((n, self.logits), (of, self.logits), ("image", "class"), fill="NaN"),
            "predictions": _array((n,), (of,), ("image",), "int32", -1),
            "targets": _array((n, self.targets), (of, self.targets), ("image", "target"), "int32"),
            "status": _array((n,), (of,), ("image",), "uint8", 0),
        }


def _array(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: str = "float32",
    fill: Any = -1,
) -> dict[str, Any]:
    return {
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default"},
        "data_type": dtype,
        "fill_value": fill,
        "dimension_names": axes,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 1}},
        ],
    }


def create(path: Path, layout: Layout, manifest: dict[str, Any]) -> None:
    """Make an empty store; it appears whole or not at all.

    Raises:
        DataError: the folder cannot be written to.
        FileExistsError: another run was faster.
    """
    import tensorstore

    with _what_fails_named(path):
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            for name, metadata in layout.arrays().items():
                spec = {**_spec(staged, name), "metadata": metadata}
                tensorstore.open(spec, create=True).result()
            group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
            (staged / ARRAYS / "zarr.json").write_text(json.dumps(group), "utf-8")
            text = json.dumps({**manifest, "layout": dataclasses.asdict(layout)}, indent=1)
            (staged / MANIFEST).write_text(text + "\n", "utf-8")
            staged.chmod(0o755)
            try:
                staged.rename(path)
            except OSError as error:
                if path.exists():
                    raise FileExistsError(path) from error
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a store was made with; None if nothing is at the path.

    Raises:
        DataError: what is there is no store.
    """
    if not path.exists():
        return None
    try:
        return json.loads((path / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise DataError(
            f"{path} is no store: it lacks a readable {MANIFEST}; give the path of a store, or of "
            "nothing yet"
        ) from None


def layout_of(manifest: dict[str, Any]) -> Layout:
    """The sizes that a manifest tells."""
    return Layout(**manifest["layout"])


def open_arrays(path: Path, layout: Layout, *, write: bool = False) -> dict[str, Any]:
    """The arrays of a store by name, of tensorstore; nothing is read yet."""
    import tensorstore

    names = layout.arrays()
    opened = {n: tensorstore.open(_spec(path, n), read=True, write=write) for n in names}
    try:
        return {name: future.result() for name, future in opened.items()}
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def write_rows(path: Path, arrays: dict[str, Any], rows: range, values: dict[str, Any]) -> None:
    """Write images of all arrays; once this returns they are on disk.

    Raises:
        DataError: they cannot be written; the message says why.
    """
    with _what_fails_named(path):
        written = [arrays[n][rows.start : rows.stop].write(each) for n, each in values.items()]
        for future in written:
            future.result()


def _spec(store: Path, name: str) -> dict[str, Any]:
    folder = f"{store.absolute() / ARRAYS / name}/"
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": folder}}


@contextlib.contextmanager
def _what_fails_named(path: Path) -> Iterator[None]:
    """Tensorstore raises `ValueError`s where the file system fails."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {error}") from error
