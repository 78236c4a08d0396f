"""A class grid as one object: what its cells show, how they are computed and recorded.

`jax-excite grid` and the page compute their results here. A run is recorded in a manifest, from
which `jax-excite grid --from` computes it again.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_excite.ascent import Ascent
from jax_excite.attributions.registry import METHODS
from jax_excite.cli.columns import Columns
from jax_excite.cli.gatings import Recipe, at_temperature
from jax_excite.cli.networks import Network, logits
from jax_excite.cli.preview import Arrays
from jax_excite.errors import ExciteError
from jax_excite.gating import Gating
from jax_excite.pullbacks.pga import pga_grid
from jax_excite.pullbacks.pga_steps import pga_steps
from jax_excite.pullbacks.pullback import pullback, pullback_grid, value_and_pullback

ASCENT, PULLBACK, SWEEP = "ascent", "pullback", "sweep"
WHAT = (ASCENT, PULLBACK, SWEEP, *METHODS)


class Progress(NamedTuple):
    """A part of a run that has been computed.

    Attributes:
        arrays: the results so far. Cells that have not been computed are unchanged photographs in
            `perturbed`, and zero in `maps`.
        row: the photograph of the last cell.
        column: the column of the last cell.
        step: the number of steps that the cell has climbed.
        outputs: the outputs of the network for the photograph so far, or None.
    """

    arrays: Arrays
    row: int
    column: int
    step: int = 0
    outputs: Any = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What the cells of a class grid show, without the network and the photographs.

    Attributes:
        what: `ascent`; `pullback`; `sweep`, the pullback at several temperatures; or the name of an
            attribution method.
        recipe: the published settings that the gating started from.
        gating: how gates are softened.
        columns: the targets: classes, or channels of a site.
        ascent: the settings of ascents, None for anything else.
        skip: sites that stay hard.
        batch_size: the number of cells of an ascent that are computed together.
        stepwise: compute ascents by `pga_steps`, and pullbacks by the same compiled program.
        seed: the seed of methods that draw random numbers.
        temperatures: those of a sweep, each for all gates that the recipe softens.
    """

    what: str
    recipe: Recipe
    gating: Gating
    columns: Columns
    ascent: Ascent | None = None
    skip: tuple[str, ...] = ()
    batch_size: int | None = None
    stepwise: bool = False
    seed: int = 0
    temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise ExciteError(f"--what is {self.what!r}: give one of {', '.join(WHAT)}")
        if self.what in METHODS and (self.columns.at is not None or self.skip):
            raise ExciteError(
                f"--what is {self.what}: sites are chosen for ascents, pullbacks and sweeps only"
            )
        if self.what == SWEEP and len(self.columns.indices) != 1:
            raise ExciteError("a sweep has one target: give one class or channel")

    def described(self) -> dict[str, Any]:
        """The entries of a manifest that `of_manifest` reads."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "gating": dataclasses.asdict(self.gating),
            "ascent": self.ascent and dataclasses.asdict(self.ascent),
            "classes": self.columns.described(),
            "at": self.columns.at,
            "columns": None,
        }

    @staticmethod
    def of_manifest(manifest: Mapping[str, Any]) -> "Run":
        """The run that a manifest records.

        Raises:
            ExciteError: the manifest lacks an entry, or an entry is not one of its values.
        """
        names = [field.name for field in dataclasses.fields(Run) if field.name != "columns"]
        given = {name: manifest[name] for name in names}
        targets = manifest["classes"]
        columns = Columns(
            [each["index"] for each in targets], [each["name"] for each in targets], manifest["at"]
        )
        stored = manifest["gating"]["site_temperatures"].items()
        temperatures = {site: np.asarray(value, np.float32) for site, value in stored}
        ascent = manifest["ascent"]
        if ascent is not None:
            bounds = ascent["bounds"]
            ascent = Ascent(**{**ascent, "bounds": bounds and tuple(bounds)})
        return Run(
            **{
                **given,
                "recipe": Recipe(manifest["recipe"]),
                "gating": Gating(**{**manifest["gating"], "site_temperatures": temperatures}),
                "ascent": ascent,
                "skip": tuple(manifest["skip"]),
                "temperatures": tuple(manifest["temperatures"]),
            },
            columns=columns,
        )

    def parts(self, photographs: int) -> int:
        """The number of parts that `results` yields for so many photographs."""
        columns = len(self.columns.indices)
        if self.what == SWEEP:
            return photographs * len(self.temperatures)
        if self.what == PULLBACK and not self.stepwise:
            return photographs
        if self.what == ASCENT and self.ascent is not None and self.stepwise:
            return photographs * columns * (self.ascent.steps + 1)
        if self.what == ASCENT and self.batch_size is not None:
            return photographs
        return photographs * columns

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of pullbacks and ascents that the run sets."""
        return {"at": self.columns.at, "gating": self.gating, "skip": self.skip}

    def column_titles(self) -> list[str]:
        """The titles of the columns of the picture, without that of the photograph."""
        if self.what == SWEEP:
            return [f"T = {temperature:g}" for temperature in self.temperatures]
        return self.columns.names


def results(network: Network, photographs: np.ndarray, run: Run) -> Iterator[Progress]:
    """Compute a run, and yield each part.

    Args:
        network: the network.
        photographs: `[N, H, W, 3]` in [-1, 1].
        run: what to compute.

    Returns:
        An iterator of parts that share one mapping of arrays, which is complete when the iterator
        ends: `images` and `classes`; for an ascent `perturbed` `[N, C, H, W, 3]` and `trajectory`
        `[N, C, steps + 1]`, the values of the targets along the way; for a sweep `temperatures` and
        `pullbacks` `[N, T, H, W, 3]`; otherwise `pullbacks`, or `maps`, `[N, C, H, W, 3]`. Ascents
        and pullbacks of classes also have `logits` `[N, K]`, ascents `logits_after` `[N, C, K]`.
    """
    compute = {ASCENT: _ascents, PULLBACK: _pullbacks, SWEEP: _sweep}.get(run.what, _maps)
    common = {"images": photographs, "classes": np.asarray(run.columns.indices)}
    yield from compute(network, photographs, run, common)


def _ascents(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    assert run.ascent is not None
    perturbed = np.repeat(photographs[:, None], len(run.columns.indices), axis=1)
    shape = *perturbed.shape[:2], run.ascent.steps + 1
    trajectory = np.full(shape, np.nan, np.float32)
    arrays |= {"perturbed": perturbed, "trajectory": trajectory}
    climb = _by_steps if run.stepwise else _in_loops
    yield from climb(network, run, run.ascent, arrays)
    if run.columns.at is None and "logits" not in arrays:
        arrays["logits"] = logits(network, photographs)
        arrays["logits_after"] = np.stack([logits(network, row) for row in perturbed])


def _in_loops(
    network: Network, run: Run, ascent: Ascent, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    """Cells are computed one at a time, so that progress is visible, or a batch at a time."""
    indices, size = run.columns.indices, run.batch_size
    at_once = [indices] if size is not None else [[index] for index in indices]
    options: Any = {**run.options, "batch_size": size, "trajectory": True}
    for row, image in enumerate(arrays["images"]):
        done = 0
        for chosen in at_once:
            place = row, slice(done, done + len(chosen))
            cells, values = pga_grid(network, image, chosen, ascent, **options)
            arrays["perturbed"][place], arrays["trajectory"][place] = cells, values
            done += len(chosen)
            yield Progress(arrays, row, done - 1, ascent.steps)


def _by_steps(
    network: Network, run: Run, ascent: Ascent, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    before, after = [], []
    for row, image in enumerate(arrays["images"]):
        for column, index in enumerate(run.columns.indices):
            outputs = None
            for step, point in enumerate(pga_steps(network, image, index, ascent, **run.options)):
                arrays["perturbed"][row, column] = point.x
                arrays["trajectory"][row, column, step] = point.value
                outputs = None if run.columns.at else np.asarray(point.outputs)
                if outputs is not None and step == column == 0:
                    before.append(outputs)
                yield Progress(arrays, row, column, step, outputs)
            after.append(outputs)
    if before:
        shape = arrays["perturbed"].shape[:2]
        arrays["logits"] = np.stack(before)
        arrays["logits_after"] = np.stack(after).reshape(*shape, -1)


def _pullbacks(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    indices, at = run.columns.indices, run.columns.at

    def compute(image: np.ndarray, column: int) -> tuple[Any, Any]:
        outputs, field = value_and_pullback(network, image, indices[column], **run.options)
        return None if at else np.asarray(outputs), field

    found = []
    if run.stepwise:
        for part in _filled(arrays, "pullbacks", len(indices), compute):
            if part.column == len(indices) - 1:
                found.append(part.outputs)
            yield part
    else:
        fields = arrays["pullbacks"] = _blank(photographs, len(indices))
        for row, image in enumerate(photographs):
            options: Any = {**run.options, "batch_size": run.batch_size}
            fields[row] = pullback_grid(network, image, indices, **options)
            yield Progress(arrays, row, len(indices) - 1)
    if at is None:
        arrays["logits"] = np.stack(found) if run.stepwise else logits(network, photographs)


def _sweep(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    (index,) = run.columns.indices
    gatings = [at_temperature(run.gating, temperature) for temperature in run.temperatures]

    def compute(image: np.ndarray, column: int) -> tuple[None, Any]:
        options: Any = {**run.options, "gating": gatings[column]}
        return None, pullback(network, image, index, **options)

    arrays["temperatures"] = np.asarray(run.temperatures)
    yield from _filled(arrays, "pullbacks", len(gatings), compute)


def _maps(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    method = METHODS[run.what].bind(run.gating, jax.random.key(run.seed))
    indices = run.columns.indices

    def compute(image: np.ndarray, column: int) -> tuple[None, Any]:
        return None, method(network, image, indices[column])

    yield from _filled(arrays, "maps", len(indices), compute)


def _filled(
    arrays: dict[str, np.ndarray],
    name: str,
    columns: int,
    compute: Callable[[np.ndarray, int], tuple[Any, Any]],
) -> Iterator[Progress]:
    """Fill an array of fields `[N, columns, H, W, 3]` one cell at a time.

    Args:
        arrays: the results so far, which get the fields under `name`.
        name: the name of the fields.
        columns: the number of columns.
        compute: maps a photograph and the number of a column to the outputs, or None, and a field.
    """
    fields = arrays[name] = _blank(arrays["images"], columns)
    for row, image in enumerate(arrays["images"]):
        for column in range(columns):
            outputs, fields[row, column] = compute(image, column)
            yield Progress(arrays, row, column, outputs=outputs)


def _blank(photographs: np.ndarray, columns: int) -> np.ndarray:
    """Fields `[N, columns, H, W, 3]` that are zero."""
    return np.zeros_like(np.repeat(photographs[:, None], columns, axis=1))
