"""Pictures of pullbacks: scaling for display, heat maps and titled grids. Needs the `[viz]` extra.

This module does not use matplotlib's global state, so it does not change the settings of your
notebook or program.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from jax_excite.data.images import check_images, to_uint8
from jax_excite.errors import ImageError
from jax_excite.replacing import replacing
from jax_excite.typing import AnyArray

Mode = Literal["cell", "row", "global"]
_Align = Literal["left", "center", "right"]

# Lengths in pixels. The figures have 72 dots per inch, so a point is a pixel.
_CELL = 224
_GAP = 6
_MARGIN = 14
_ROW_TITLES = 224
_TEXT = 21
_TITLE = 26
_LINE = 1.25  # the height of a line, relative to the text size
_BASELINE = 0.76  # the baseline's distance from the top of a line, relative to its height
_LARGEST = 2**16 - 1

# The overlay: the quantile of magnitudes that is opaque, and its colours as RGB in [0, 1].
_OPAQUE = 0.995
_POSITIVE = (0.9, 0.1, 0.05)
_NEGATIVE = (0.05, 0.25, 0.95)


def scale(
    cells: Float[AnyArray, "*N H W C"], mode: Mode = "cell"
) -> Float32[np.ndarray, "*N H W C"]:
    """Scale signed fields to [0, 1] for display, from their minimum to their maximum.

    With "cell" this is what torchvision's `make_grid(normalize=True, scale_each=True)` does, except
    that fields with a range below 1e-5 are also scaled to all of [0, 1].

    Args:
        cells: finite fields `[..., H, W, 3]`; for "row", `[..., C, H, W, 3]`.
        mode: which values share one range: the pixels of a "cell", the cells of a "row", or all
            values ("global").

    Returns:
        A float32 array of the same shape. Its values are 0.5 where all values of a range are equal.

    Raises:
        ImageError: the fields have a different shape, or are not finite.
    """
    fields, axes = _shared(cells, mode)
    low, high = fields.min(axes, keepdims=True), fields.max(axes, keepdims=True)
    flat = high == low
    unit = (fields - low) / np.where(flat, 1, high - low)
    return np.where(flat, 0.5, unit).astype(np.float32)


def in_colour(images: Float[AnyArray, "*N H W C"]) -> Float[AnyArray, "*N H W D"]:
    """Images or fields of one channel with three equal channels; others unchanged."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def heat_map(
    field: Float[AnyArray, "*N H W C"], mode: Mode = "cell"
) -> Float32[np.ndarray, "*N H W"]:
    """Sum a signed field over its channels, for a colour map that diverges from zero.

    Args:
        field: finite fields `[..., H, W, 3]`; for "row", `[..., C, H, W, 3]`.
        mode: which maps share one range, as for `scale`.

    Returns:
        A float32 array `[..., H, W]` in [-1, 1]. The greatest magnitude of each range is 1, and
        zero stays zero. A map that is zero everywhere is not changed.

    Raises:
        ImageError: the fields have a different shape, or are not finite.
    """
    fields, axes = _shared(field, mode)
    total = fields.sum(-1, keepdims=True)
    peak = np.abs(total).max(axes, keepdims=True)
    return (total / np.where(peak == 0, 1, peak))[..., 0].astype(np.float32)


def overlay_heat_map(
    image: Float[AnyArray, "*#N H W C"], field: Float[AnyArray, "*#N H W C"], mode: Mode = "cell"
) -> Float32[np.ndarray, "*#N H W C"]:
    """Colour an image by the heat map of a field: red where positive, blue where negative.

    Args:
        image: images `[..., H, W, 3]` in [-1, 1].
        field: fields whose shape broadcasts with that of `image`.
        mode: which fields share one range, as for `scale`.

    Returns:
        A float32 array `[..., H, W, 3]` in [0, 1]. The opacity of the colour over the grey image
        increases with the magnitude; the greatest 0.5 % of a range are fully opaque.

    Raises:
        ImageError: the images or fields have a different shape, or are not finite.
    """
    grey = (_finite(image, at_least=3).mean(-1, keepdims=True).clip(-1, 1) + 1) / 2
    heat = heat_map(field, mode)[..., None]
    colour = np.where(heat > 0, _POSITIVE, _NEGATIVE)
    magnitude = np.abs(heat)
    full = np.quantile(magnitude, _OPAQUE, axis=_axes(mode, heat.ndim), keepdims=True)
    opacity = (magnitude / np.where(full == 0, 1, full)).clip(0, 1)
    return ((1 - opacity) * grey + opacity * colour).astype(np.float32)


def draw_grid(
    path: str | os.PathLike[str],
    cells: AnyArray,
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    *,
    title: str | None = None,
) -> None:
    """Write a grid of cells with titles as a PNG file.

    Each pixel of a cell is drawn as a square of whole pixels, so nothing is blurred. Titles are
    wrapped to the available width; line breaks in a title are kept. The file is written
    atomically.

    Args:
        path: the file, replaced if it exists.
        cells: `[R, C, H, W, 3]` in [0, 1].
        row_titles: R titles, left of the rows. They take no space if all are empty.
        column_titles: C titles, above the columns.
        title: a heading of the whole picture.

    Raises:
        ImageError: the cells have a different shape or range, the number of titles does not match,
            or the picture would be larger than matplotlib can draw.
    """
    pixels = _cell_pixels(cells, row_titles, column_titles)
    rows, columns, height, width, _ = pixels.shape
    row_lines = [_fit(_wrap(name, _ROW_TITLES, _TEXT), height) for name in row_titles]
    column_lines = [_wrap(name, width, _TEXT) for name in column_titles]
    indent = max((_width(line, _TEXT) for lines in row_lines for line in lines), default=0)
    left = _MARGIN + (indent + 2 * _GAP if indent else 0)
    right = left + columns * (width + _GAP) - _GAP
    heading = _wrap(title or "", right - _MARGIN, _TITLE)
    head = _height(heading, _TITLE) + (_MARGIN if heading else 0)
    named = any(column_titles)
    top = _MARGIN + head + (max(_height(c, _TEXT) for c in column_lines) + _GAP if named else 0)
    bottom = top + rows * (height + _GAP) - _GAP

    paper = _Paper(right + _MARGIN, bottom + _MARGIN)
    paper.write(heading, _MARGIN, _MARGIN, _TITLE, "left")
    xs = [left + column * (width + _GAP) for column in range(columns)]
    ys = [top + row * (height + _GAP) for row in range(rows)]
    for x, lines in zip(xs, column_lines, strict=True):
        paper.write(lines, x + width / 2, top - _GAP - _height(lines, _TEXT), _TEXT, "center")
    for y, lines in zip(ys, row_lines, strict=True):
        middle = y + (height - _height(lines, _TEXT)) / 2
        paper.write(lines, left - 2 * _GAP, middle, _TEXT, "right")
    canvas = paper.pixels()
    for y, row in zip(ys, pixels, strict=True):
        for x, cell in zip(xs, row, strict=True):
            canvas[y : y + height, x : x + width] = cell
    _save(canvas, Path(path))


class _Paper:
    """A white sheet of a given size in pixels, to write text on."""

    def __init__(self, width: int, height: int):
        if max(width, height) > _LARGEST:
            raise ImageError(
                f"the grid would have {width} x {height} pixels, and matplotlib draws at most "
                f"{_LARGEST} each way: draw fewer cells at a time"
            )
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)

    def write(self, lines: list[str], x: float, y: float, size: int, align: _Align) -> None:
        """Write lines from the top `y` down, aligned at `x`, all in pixels from the top left."""
        for number, line in enumerate(lines):
            baseline = y + (number + _BASELINE) * _LINE * size
            self.figure.text(
                x / self.width,
                1 - baseline / self.height,
                line,
                fontproperties=FontProperties(size=size),
                color="black",
                horizontalalignment=align,
                verticalalignment="baseline",
                parse_math=False,
                usetex=False,
            )

    def pixels(self) -> np.ndarray:
        """The sheet with its text: uint8 `[height, width, 3]`."""
        self.canvas.draw()
        return np.array(self.canvas.buffer_rgba())[..., :3]


def _shared(fields: AnyArray, mode: Mode) -> tuple[np.ndarray, tuple[int, ...]]:
    """Checked fields `[..., H, W, 3]`, and the axes of those that share one range."""
    axes = _axes(mode, np.ndim(fields))
    return _finite(fields, at_least=4 if mode == "row" else 3), axes


def _axes(mode: Mode, ndim: int) -> tuple[int, ...]:
    """The axes of fields of so many axes that share one range."""
    shared = {"cell": 3, "row": 4, "global": ndim}
    if mode not in shared:
        raise ImageError(f"mode is {mode!r}: give one of {', '.join(shared)}")
    return tuple(range(-shared[mode], 0))


def _finite(fields: AnyArray, at_least: int) -> np.ndarray:
    values = np.asarray(fields, np.float64)
    if values.ndim < at_least or values.shape[-1] != 3 or 0 in values.shape:
        axes = "[..., H, W, 3]" if at_least == 3 else "[..., C, H, W, 3]"
        raise ImageError(f"the fields have shape {values.shape}: give {axes}")
    if not np.isfinite(values).all():
        raise ImageError("the fields hold NaN or infinity: give finite ones")
    return values


def _cell_pixels(
    cells: AnyArray, row_titles: Sequence[str], column_titles: Sequence[str]
) -> np.ndarray:
    """Cells as bytes, with each pixel repeated so that a cell is about `_CELL` pixels wide."""
    shape = np.shape(cells)
    if len(shape) != 5 or 0 in shape:
        raise ImageError(f"the cells have shape {shape}: give [R, C, H, W, 3]")
    if (len(row_titles), len(column_titles)) != shape[:2]:
        raise ImageError(
            f"there are {len(row_titles)} row titles and {len(column_titles)} column titles for "
            f"{shape[0]} rows and {shape[1]} columns: give a title for each"
        )
    flat = np.asarray(cells).reshape(-1, *shape[2:])
    check_images(flat, bounds=(0, 1), channels=3)
    pixels = to_uint8(flat, bounds=(0, 1)).reshape(shape)
    times = max(1, round(_CELL / shape[3]))
    return pixels.repeat(times, axis=2).repeat(times, axis=3)


def _printable(text: str) -> str:
    """Replace bytes that are not UTF-8 in a text, such as a file name, by a printable character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _wrap(text: str, room: int, size: int) -> list[str]:
    """Break a text into lines of at most `room` pixels, at spaces, or else after `_`, `-`, `/`."""
    lines = []
    for paragraph in _printable(text).splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if _width(longer, size) <= room:
                line = longer
                continue
            if line:
                lines.append(line)
            while _width(word, size) > room and len(word) > 1:
                fitting = next(
                    n
                    for n in range(len(word) - 1, 0, -1)
                    if n == 1 or _width(word[:n], size) <= room
                )
                mark = max(word.rfind(each, 0, fitting) for each in "_-/")
                fitting = mark + 1 if mark > 0 else fitting
                lines.append(word[:fitting])
                word = word[fitting:]
            line = word
        lines.append(line)
    return lines


def _fit(lines: list[str], height: int) -> list[str]:
    """The lines that fit into the height, with an ellipsis in place of those that do not."""
    room = max(1, int(height / (_TEXT * _LINE)))
    return lines if len(lines) <= room else [*lines[: room - 1], "…"]


def _height(lines: list[str], size: int) -> int:
    return math.ceil(len(lines) * _LINE * size)


def _width(text: str, size: int) -> int:
    font = FontProperties(size=size)
    width, _, _ = _renderer().get_text_width_height_descent(text, font, ismath=False)
    return math.ceil(width)


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, 72)


def _save(pixels: np.ndarray, path: Path) -> None:
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, "PNG")
