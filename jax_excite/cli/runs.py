"""A class grid as one object: what its cells show, how they are computed, drawn and recorded.

`jax-excite grid` and the page compute their results here. A run is recorded in a manifest, from
which `jax-excite grid --from` computes it again.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_excite.ascent import Ascent
from jax_excite.attributions.registry import METHODS
from jax_excite.cli.columns import Columns
from jax_excite.cli.gatings import Recipe
from jax_excite.cli.networks import Network, logits
from jax_excite.errors import ExciteError
from jax_excite.gating import Gating
from jax_excite.pullbacks.pga import pga_grid
from jax_excite.pullbacks.pga_steps import pga_steps
from jax_excite.pullbacks.pullback import pullback_grid, value_and_pullback

ASCENT, PULLBACK, SWEEP = "ascent", "pullback", "sweep"
WHAT = (ASCENT, PULLBACK, SWEEP, *METHODS)

Arrays = Mapping[str, np.ndarray]


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

    def column_titles(self) -> list[str]:
        """The titles of the columns of the picture, without that of the photograph."""
        if self.what == SWEEP:
            return [f"T = {temperature:g}" for temperature in self.temperatures]
        return self.columns.names


def at_temperature(gating: Gating, temperature: float) -> Gating:
    """A gating with one temperature for all gates that it softens.

    It has the structure of the gating that is given, so compiled programs serve both.
    """
    own = {
        site: np.full_like(value, temperature) for site, value in gating.site_temperatures.items()
    }
    fields = [field.name for field in dataclasses.fields(gating)]
    kinds = [name for name in fields if name.endswith("temperature")]
    softened = {name: temperature for name in kinds if getattr(gating, name) is not None}
    return dataclasses.replace(gating, **softened, site_temperatures=own)


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
    indices, at = run.columns.indices, run.columns.at
    perturbed = np.repeat(photographs[:, None], len(indices), axis=1)
    shape = *perturbed.shape[:2], run.ascent.steps + 1
    trajectory = np.full(shape, np.nan, np.float32)
    arrays |= {"perturbed": perturbed, "trajectory": trajectory}
    climb = _by_steps if run.stepwise else _in_loops
    yield from climb(network, photographs, run, arrays)
    if at is None and "logits" not in arrays:
        arrays["logits"] = logits(network, photographs)
        arrays["logits_after"] = np.stack([logits(network, row) for row in perturbed])


def _in_loops(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    """Cells are computed one at a time, so that progress is visible, or a batch at a time."""
    indices = run.columns.indices
    at_once = [indices] if run.batch_size is not None else [[index] for index in indices]
    for row, image in enumerate(photographs):
        done = 0
        for chosen in at_once:
            cells, values = pga_grid(
                network,
                image,
                chosen,
                run.ascent or Ascent(),
                at=run.columns.at,
                gating=run.gating,
                skip=run.skip,
                batch_size=run.batch_size,
                trajectory=True,
            )
            place = row, slice(done, done + len(chosen))
            arrays["perturbed"][place], arrays["trajectory"][place] = cells, values
            done += len(chosen)
            yield Progress(arrays, row, done - 1, arrays["trajectory"].shape[-1] - 1)


def _by_steps(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    before, after = [], []
    for row, image in enumerate(photographs):
        for column, index in enumerate(run.columns.indices):
            points = pga_steps(
                network,
                image,
                index,
                run.ascent or Ascent(),
                at=run.columns.at,
                gating=run.gating,
                skip=run.skip,
            )
            outputs = None
            for step, point in enumerate(points):
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
    options: Any = {"at": at, "gating": run.gating, "skip": run.skip}
    fields = arrays["pullbacks"] = np.zeros_like(np.repeat(photographs[:, None], len(indices), 1))
    found = []
    for row, image in enumerate(photographs):
        outputs = None
        if not run.stepwise:
            size = run.batch_size
            fields[row] = pullback_grid(network, image, indices, batch_size=size, **options)
            yield Progress(arrays, row, len(indices) - 1)
            continue
        for column, index in enumerate(indices):
            outputs, fields[row, column] = value_and_pullback(network, image, index, **options)
            yield Progress(arrays, row, column, outputs=None if at else np.asarray(outputs))
        found.append(outputs)
    if at is None:
        arrays["logits"] = np.stack(found) if run.stepwise else logits(network, photographs)


def _sweep(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    (index,), count = run.columns.indices, len(run.temperatures)
    fields = np.zeros_like(np.repeat(photographs[:, None], count, axis=1))
    arrays |= {"temperatures": np.asarray(run.temperatures), "pullbacks": fields}
    for row, image in enumerate(photographs):
        for column, temperature in enumerate(run.temperatures):
            gating = at_temperature(run.gating, temperature)
            options: Any = {"at": run.columns.at, "gating": gating, "skip": run.skip}
            _, fields[row, column] = value_and_pullback(network, image, index, **options)
            yield Progress(arrays, row, column)


def _maps(
    network: Network, photographs: np.ndarray, run: Run, arrays: dict[str, np.ndarray]
) -> Iterator[Progress]:
    method = METHODS[run.what].bind(run.gating, jax.random.key(run.seed))
    indices = run.columns.indices
    maps = arrays["maps"] = np.zeros_like(np.repeat(photographs[:, None], len(indices), axis=1))
    for row, image in enumerate(photographs):
        for column, index in enumerate(indices):
            maps[row, column] = method(network, image, index)
            yield Progress(arrays, row, column)


def draw(path: Path, arrays: Arrays, names: Sequence[str], titles: Sequence[str]) -> None:
    """Draw rows of photographs and cells; cells that are not computed yet are grey or unchanged.

    Args:
        path: the PNG file to write.
        arrays: results, or results so far.
        names: the names of the photographs.
        titles: the titles of the columns.
    """
    from jax_excite import pictures

    rows, row_titles = [], []
    for number, name in enumerate(names):
        image = pictures.in_colour(arrays["images"][number])
        original = (image + 1) / 2
        if "perturbed" in arrays:
            perturbed = pictures.in_colour(arrays["perturbed"][number])
            rows.append([original, *((perturbed + 1) / 2).clip(0, 1)])
            rows.append([original, *pictures.scale(perturbed - image)])
            row_titles += [name, f"{name}\ndifference"]
        else:
            fields = arrays["maps"] if "maps" in arrays else arrays["pullbacks"]
            rows.append([original, *pictures.scale(pictures.in_colour(fields[number]))])
            row_titles.append(name)
    pictures.draw_grid(path, np.asarray(rows, np.float32), row_titles, ["original", *titles])
