"""Filling a store: chunk after chunk, each written while the next is computed."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_excite.data.datasets import ImageData
from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import DataError
from jax_excite.stores.explainer import Explained, Explainer
from jax_excite.stores.layout import DONE, SKIPPED, Layout, open_arrays, write_rows
from jax_excite.stores.ledger import Ledger
from jax_excite.stores.source import Decoded, decoded


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        images: the number of images done by this run.
        busy: the seconds in which the devices computed.
        seconds: the seconds since the run began.
    """

    images: int
    busy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run computes, and where it is stored.

    Attributes:
        path: the store.
        layout: the sizes of the store.
        data: the images.
        explainer: computes the attributions.
        preprocessing: how images are brought to the size that the network takes.
        strict: whether to stop at an image that cannot be decoded.
    """

    path: Path
    layout: Layout
    data: ImageData
    explainer: Explainer
    preprocessing: Preprocessing
    strict: bool = False

    def left(self, part: int = 1, parts: int = 1) -> list[int]:
        """The chunks of a part that no run has completed."""
        done = Ledger(self.path).done()
        mine = range(part - 1, self.layout.chunks, parts)
        return [chunk for chunk in mine if chunk not in done]

    def fill(self, chunks: list[int]) -> Iterator[Progress]:
        """Compute and write chunks, and yield the progress after each group of them.

        Raises:
            DataError: the store cannot be written to or, with `strict`, an image cannot be decoded.
            OSError: an image's file cannot be read.
        """
        arrays = open_arrays(self.path, self.layout, write=True)
        ledger = Ledger(self.path)
        at_once = self.explainer.images // self.layout.chunk
        groups = [chunks[start : start + at_once] for start in range(0, len(chunks), at_once)]
        places = [[place for chunk in group for place in self._rows(chunk)] for group in groups]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            begun = ready = time.monotonic()
            busy, count = 0.0, 0
            writing: concurrent.futures.Future[float] | None = None
            dispatched, images = begun, 0
            for group, some in zip(
                groups, decoded(self.data, places, self.preprocessing), strict=True
            ):
                self._check(some)
                # Start before the previous group is written, so devices do not wait for the disk.
                now, explained = time.monotonic(), self.explained(some)
                if writing is not None:
                    last, ready = ready, writing.result()
                    busy += ready - max(dispatched, last)
                    count += images
                    yield Progress(count, busy, time.monotonic() - begun)
                writing = pool.submit(self._write, arrays, ledger, group, some, explained)
                dispatched, images = now, sum(len(self.layout.rows(chunk)) for chunk in group)
            if writing is not None:
                last, ready = ready, writing.result()
                busy += ready - max(dispatched, last)
                yield Progress(count + images, busy, time.monotonic() - begun)

    def _rows(self, chunk: int) -> list[int]:
        """The places of a chunk's images; the last chunk is filled up with its last place."""
        rows = self.layout.rows(chunk)
        return [min(rows.start + i, rows.stop - 1) for i in range(self.layout.chunk)]

    def _check(self, some: list[Decoded]) -> None:
        for each in some:
            if each.failure is not None:
                raise each.failure
            if self.strict and each.reason is not None:
                raise DataError(f"{self.data.names[each.place]}: {each.reason}")

    def explained(self, some: list[Decoded]) -> list[Explained]:
        """The results of a full group, one per chunk; missing images are replaced by grey."""
        count = self.explainer.images
        x = np.zeros((count, *self.explainer.shape), np.float32)
        labels = np.zeros(count, np.int32)
        for row, each in enumerate(some):
            label = self.data.labels[each.place]
            labels[row] = 0 if label is None else label
            if each.image is not None:
                x[row] = each.image
        return self.explainer(x, labels)

    def _write(
        self,
        arrays: dict[str, Any],
        ledger: Ledger,
        group: list[int],
        some: list[Decoded],
        explained: list[Explained],
    ) -> float:
        """Write a group as soon as it is computed; returns the time at which it was computed."""
        jax.block_until_ready(explained)
        ready = time.monotonic()
        for number, (chunk, found) in enumerate(zip(group, explained, strict=False)):
            rows = self.layout.rows(chunk)
            first = number * self.layout.chunk
            images = some[first : first + len(rows)]
            read = np.array([each.image is not None for each in images])
            logits = np.asarray(found.logits, np.float32)[: len(rows)]
            maps, scales = scaled(np.asarray(found.maps)[: len(rows)], self.layout.dtype)
            classes = found.classes[: len(rows)].astype(np.int32)

            def known(values: np.ndarray, missing: Any, read: np.ndarray = read) -> np.ndarray:
                if read.all():
                    return values
                there = read.reshape(-1, *[1] * (values.ndim - 1))
                return np.where(there, values, np.asarray(missing, values.dtype))

            write_rows(
                self.path,
                arrays,
                rows,
                {
                    "attributions": known(maps, np.nan),
                    "scales": known(scales, np.nan),
                    "logits": known(logits, np.nan),
                    "predictions": known(logits.argmax(1).astype(np.int32), -1),
                    "targets": known(classes, -1),
                    "status": np.where(read, DONE, SKIPPED).astype(np.uint8),
                },
            )
            skipped = {each.place: each.reason for each in images if each.reason is not None}
            ledger.add(chunk, images=len(rows), skipped=skipped)
        return ready


def scaled(maps: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Attributions `[..., H, W, 3]` in a dtype, and the float32 scales `[...]` to multiply them by.

    For float16, a scale is the power of two below the greatest magnitude, so that scaling loses no
    precision. Otherwise it is 1.
    """
    plane = (-3, -2, -1)
    if dtype != "float16":
        return maps.astype(dtype), np.ones(maps.shape[:-3], np.float32)
    peaks = np.maximum(maps.max(axis=plane), -maps.min(axis=plane))
    known = np.isfinite(peaks) & (peaks > 0)
    scales = np.where(known, np.ldexp(np.float32(1), np.frexp(peaks)[1] - 1), np.float32(1))
    return (maps * (1 / scales)[..., None, None, None]).astype(dtype), scales.astype(np.float32)
