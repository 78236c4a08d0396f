"""How the cells of a run are drawn. Needs the `[viz]` extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_excite import pictures
from jax_excite.cli.preview import Arrays
from jax_excite.typing import AnyArray


class Row(NamedTuple):
    """What is drawn of a photograph, in colour.

    Attributes:
        original: the photograph `[H, W, 3]` in [0, 1].
        perturbed: the photograph after each ascent `[C, H, W, 3]` in [0, 1], or None.
        fields: the signed differences of ascents, or the fields `[C, H, W, 3]`.
    """

    original: AnyArray
    perturbed: AnyArray | None
    fields: AnyArray


def row_of(arrays: Arrays, number: int) -> Row:
    """What is drawn of one of the photographs."""
    image = pictures.in_colour(arrays["images"][number])
    original = (image + 1) / 2
    if "perturbed" in arrays:
        perturbed = pictures.in_colour(arrays["perturbed"][number])
        return Row(original, ((perturbed + 1) / 2).clip(0, 1), perturbed - image)
    fields = arrays["maps"] if "maps" in arrays else arrays["pullbacks"]
    return Row(original, None, pictures.in_colour(fields[number]))


def draw(path: Path, arrays: Arrays, names: Sequence[str], titles: Sequence[str]) -> None:
    """Draw rows of photographs and cells; cells that are not computed yet are grey or unchanged.

    Args:
        path: the PNG file to write.
        arrays: results, or results so far.
        names: the names of the photographs.
        titles: the titles of the columns.
    """
    rows, row_titles = [], []
    for number, name in enumerate(names):
        original, perturbed, fields = row_of(arrays, number)
        if perturbed is not None:
            rows.append([original, *perturbed])
            row_titles.append(name)
        rows.append([original, *pictures.scale(fields)])
        row_titles.append(name if perturbed is None else f"{name}\ndifference")
    pictures.draw_grid(path, np.asarray(rows, np.float32), row_titles, ["original", *titles])
