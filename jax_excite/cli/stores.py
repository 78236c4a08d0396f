"""`jax-excite status` and `jax-excite view`: the contents of a store."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from jax_excite.cli.console import errors_in_one_line
from jax_excite.cli.manifest import check_picture
from jax_excite.data.class_names import CLASS_NAMES, class_index
from jax_excite.errors import DataError

if TYPE_CHECKING:
    from jax_excite.stores import Store

StorePath = Annotated[Path, typer.Argument(help="A store written by `jax-excite attribute`.")]


def status(store: StorePath) -> None:
    """Show the progress of a store, the skipped images, and the parts that are being written."""
    with errors_in_one_line():
        from jax_excite.stores import open_store
        from jax_excite.stores.ledger import active

        found = open_store(store)
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        typer.echo(f"{found.done.sum()} of {len(found)} images done, {size / 1e6:.1f} MB")
        settings = found.manifest["settings"]
        typer.echo(
            f"{settings['model']}, {', '.join(found.methods)}, targets {settings['targets']}"
        )
        for part in active(store):
            typer.echo(f"being written: {part}")
        for name, reason in found.skipped.items():
            typer.echo(f"skipped {name}: {reason}")


def view(
    store: StorePath,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    images: Annotated[
        str,
        typer.Option(help="A range of indices, such as 0:5, or comma-separated indices or names."),
    ] = "0:5",
    method: Annotated[
        list[str] | None, typer.Option(help="Method to draw; may be repeated. Default: all.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--class", help="Draw only the images that have this target: an index, or a class name."
        ),
    ] = None,
) -> None:
    """Draw a selection of a store: one row per image, one column per method and target."""
    with errors_in_one_line():
        from jax_excite import pictures
        from jax_excite.stores import open_store

        check_picture(out)
        found = open_store(store)
        methods = method or found.methods
        cells = _cells(found, images, None if target is None else _index(found, target))
        if not cells:
            wanted = "" if target is None else f" with target {target}"
            raise DataError(f"{store} has no images in this selection{wanted}")
        done = found.done
        rows, titles = [], []
        for place, targets in cells:
            if not done[place]:
                raise DataError(f"{found.names[place]} is not done yet: see `jax-excite status`")
            maps = [
                found.attributions(place, method=each, target=target)
                for each in methods
                for target in targets
            ]
            rows.append(pictures.scale(np.nan_to_num(np.asarray(maps, np.float32))))
            explained = [_named(found, index) for index in found.targets(place)[targets]]
            titles.append("\n".join([found.names[place], *explained]))
        columns = [
            each if len(cells[0][1]) == 1 else f"{each}, target {target}"
            for each in methods
            for target in cells[0][1]
        ]
        pictures.draw_grid(
            out, np.asarray(rows, np.float32), titles, columns, title=str(store.name)
        )
        typer.echo(str(out))


def _index(found: "Store", target: str) -> int:
    """The index of a target, of which a class of ImageNet has a name too."""
    return int(target) if target.isdecimal() else class_index(target, _class_names(found))


def _class_names(found: "Store") -> Sequence[str]:
    """The names of a store's classes, or none."""
    of_channels = found.manifest["settings"].get("at") is not None
    return () if of_channels or found.layout.logits != len(CLASS_NAMES) else CLASS_NAMES


def _cells(found: "Store", images: str, index: int | None) -> list[tuple[int, list[int]]]:
    """The index of each image, with the positions of its targets."""
    if index is not None:
        return [(image, [target]) for image, target in found.of_class(index)]
    first, colon, last = images.partition(":")
    if colon and images not in found.names:
        if not all(each.isdecimal() or not each for each in (first, last)):
            raise DataError(
                f"--images is {images!r}: give first:last, or comma-separated indices or names"
            )
        places = range(len(found))[slice(int(first or 0), int(last) if last else None)]
    else:
        places = [found.place(each) for each in _listed(images.split(","), set(found.names))]
    return [(place, list(range(found.layout.targets))) for place in places]


def _listed(parts: list[str], names: set[str]) -> Iterator[int | str]:
    """Indices and names in a comma-separated list; the names may contain commas."""
    while parts:
        ends = range(len(parts), 0, -1)
        end = next((end for end in ends if ",".join(parts[:end]) in names), 1)
        one, parts = ",".join(parts[:end]), parts[end:]
        yield int(one) if one.isdecimal() and one not in names else one


def _named(found: "Store", index: int) -> str:
    if index < 0:
        return "skipped"
    if (at := found.manifest["settings"].get("at")) is not None:
        return f"{at}, channel {index}"
    names = _class_names(found)
    return names[index] if names else str(index)
