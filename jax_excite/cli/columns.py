"""What the columns of a picture are pulled back from: classes, or channels of a site."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import typer

from jax_excite.data.class_names import class_index
from jax_excite.errors import ExciteError

Classes = Annotated[str | None, typer.Option(help="Comma-separated names or indices of classes.")]
At = Annotated[
    str | None,
    typer.Option(help="Site inside of the network whose channels to use, instead of classes."),
]
Channel = Annotated[
    str | None, typer.Option(help="Comma-separated channels of the site that --at names.")
]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Classes, or channels of a site.

    Attributes:
        indices: the classes or channels.
        names: a name for each.
        at: the site, or None for classes.
    """

    indices: list[int]
    names: list[str]
    at: str | None

    @staticmethod
    def of_classes(indices: Sequence[int], class_names: Sequence[str]) -> "Columns":
        """Classes by index."""
        return Columns([*indices], [class_names[index] for index in indices], None)

    @staticmethod
    def of_channels(indices: Sequence[int], at: str) -> "Columns":
        """Channels of a site."""
        return Columns([*indices], [f"channel {index}" for index in indices], at)

    def described(self) -> list[dict[str, int | str]]:
        """The columns for the manifest of a run."""
        pairs = zip(self.indices, self.names, strict=True)
        return [{"index": index, "name": name} for index, name in pairs]


def check_columns(
    classes: str | None, at: str | None, channel: str | None, option: str = "--classes"
) -> None:
    """Raise `ExciteError` unless classes, by an option, or a site with channels are given."""
    if (at is None) != (channel is None):
        raise ExciteError("--at and --channel go together: give the name of a site, and channels")
    if (at is None) == (classes is None):
        which = "only one" if classes is not None else "one"
        raise ExciteError(f"give {which} of {option} and --at with --channel")


def columns_of(
    class_names: Sequence[str], classes: str | None, at: str | None, channel: str | None
) -> Columns:
    """The columns that a user asks for, by options that `check_columns` accepts."""
    if at is None:
        indices = [class_index(name.strip(), class_names) for name in (classes or "").split(",")]
        return Columns.of_classes(indices, class_names)
    words = [word.strip() for word in (channel or "").split(",")]
    if not all(word.isdecimal() for word in words):
        raise ExciteError(f"--channel is {channel}: give comma-separated numbers")
    return Columns.of_channels([int(word) for word in words], at)
