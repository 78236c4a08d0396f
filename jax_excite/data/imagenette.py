"""Imagenette as tensorflow-datasets builds it, without TensorFlow (docs/decisions/0007).

tensorflow-datasets, pooch, requests and filelock are imported where they are used.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.errors import DataError

SIZES = ("160px", "320px", "full-size")
# The folder of each split in the archive.
SPLITS = {"train": "train", "validation": "val"}
TIMEOUT = 30.0  # seconds to connect, and seconds without a byte


@dataclasses.dataclass(frozen=True)
class ImagenetteClass:
    """A class of Imagenette.

    Attributes:
        index: the index in the logits of an ImageNet-1k classifier.
        name: the name in `CLASS_NAMES`.
        wordnet: the WordNet id, which is the name of its folder in the archives.
    """

    index: int
    name: str
    wordnet: str


# The keys are Imagenette's own labels, 0 to 9, in the order of the WordNet ids.
IMAGENETTE: Mapping[int, ImagenetteClass] = MappingProxyType(
    {
        label: ImagenetteClass(index, CLASS_NAMES[index], wordnet)
        for label, (wordnet, index) in enumerate(
            {
                "n01440764": 0,
                "n02102040": 217,
                "n02979186": 482,
                "n03000684": 491,
                "n03028079": 497,
                "n03394916": 566,
                "n03417042": 569,
                "n03425413": 571,
                "n03445777": 574,
                "n03888257": 701,
            }.items()
        )
    }
)


def prepared(config: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The tensorflow-datasets builder, after preparing its data if that is not yet on the disk.

    Args:
        config: the configuration of the data set, such as "160px-v2".
        data_dir: the folder in which tensorflow-datasets keeps its data; its default if None.

    Raises:
        DataError: the archive cannot be downloaded, or is not the published one.
    """
    import filelock

    place = None if data_dir is None else Path(data_dir).expanduser().absolute()
    builder = _builder_class()(config=config, data_dir=place)
    if not builder.data_path.exists():
        root = Path(builder.data_dir_root)
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f".imagenette-{config}.lock"):
            if not builder.data_path.exists():
                _prepare(builder, root / "downloads")
        builder = _builder_class()(config=config, data_dir=place)
    return builder


def _prepare(builder: Any, downloads: Path) -> None:
    import tensorflow_datasets as tfds

    archive = downloads / "manual" / f"{builder.builder_config.dirname}.tgz"
    url, published = builder.archive()
    if archive.is_file():
        if problem := _mismatch(archive, published.checksum):
            raise DataError(
                f"{archive} is not the file published at {url}: {problem}. Remove it so that it "
                "is downloaded again, or replace it with the right file"
            )
    else:
        _download(url, archive, published)
    _say(f"Preparing {builder.info.full_name} in {builder.data_path}")
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # tfds reports a download that does not happen
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                manual_dir=archive.parent, try_download_gcs=False
            ),
            file_format="array_record",
        )


def _download(url: str, path: Path, published: Any) -> None:
    """Fetch a file; it appears only when it is complete and its checksum is verified."""
    import pooch
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _say(f"Downloading {url} ({published.size}) to {path}")
    try:
        fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
        fetch(url, partial, None)  # pyright: ignore[reportArgumentType]: no Pooch is needed
        problem = _mismatch(partial, published.checksum)
        if not problem:
            partial.replace(path)
    except requests.RequestException as error:
        cause = error.args[0] if error.args else error
        problem = str(getattr(cause, "reason", cause))
    finally:
        partial.unlink(missing_ok=True)
    if problem:
        raise DataError(
            f"cannot download {url}: {problem}. To continue without a network connection, get "
            f"{path.name} ({published.size}) by other means and put it in {path.parent}"
        )


def _mismatch(path: Path, sha256: str) -> str:
    """A description of a wrong SHA-256; empty if the file is the published one."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == sha256 else f"its SHA-256 is {digest}, which should be {sha256}"


@functools.cache
def _builder_class() -> Any:
    """tensorflow-datasets' builder, with the two methods that need TensorFlow's files replaced."""
    import tensorflow_datasets as tfds

    published: Any = tfds.builder_cls("imagenette")

    class Imagenette(published, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """Reads the archive directly; names, features, versions and records are those of tfds."""

        url_infos = published.url_infos  # otherwise tfds looks for them beside this file

        def archive(self) -> tuple[str, Any]:
            """The address of the archive, and its size and checksum."""
            name = f"{self.builder_config.dirname}.tgz"
            return next(each for each in self.url_infos.items() if each[1].filename == name)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            archive = dl_manager.download(self.archive()[0])
            top = PurePath(self.builder_config.dirname)
            return {
                split: self._generate_examples(archive, top / folder)
                for split, folder in SPLITS.items()
            }

        def _generate_examples(
            self, archive: Path, folder: PurePath
        ) -> Iterator[tuple[str, dict[str, Any]]]:
            with archive.open("rb") as file:
                for name, content in tfds.download.iter_archive(
                    file, tfds.download.ExtractMethod.TAR_GZ
                ):
                    path = PurePath(name)
                    if path.parent.parent == folder and path.suffix == ".JPEG":
                        yield path.name, {"image": content, "label": path.parent.name}

    return Imagenette


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
