"""`jax-excite grid`: a class grid of photographs, as a picture and as arrays."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from jax_excite.cli.columns import At, Channel, Classes, check_columns, columns_of
from jax_excite.cli.console import errors_in_one_line, with_progress
from jax_excite.cli.gatings import (
    Recipe,
    RecipeName,
    options,
    recipe_of,
    with_stored_temperatures,
)
from jax_excite.cli.manifest import (
    appear_together,
    check_picture,
    describe_file,
    save_arrays,
)
from jax_excite.cli.networks import (
    DEFAULT_MODEL,
    ClassesFile,
    ModelName,
    Prepared,
    Weights,
    find_spec,
    open_images,
    open_network,
)
from jax_excite.cli.preview import previewed
from jax_excite.cli.repeating import Repeated, manifest_of, read_run
from jax_excite.cli.runs import ASCENT, SWEEP, Run, results
from jax_excite.errors import ExciteError
from jax_excite.gating import GATE_FUNCTIONS

# The options that go with --from: the files, if they have moved.
_WITH_FROM = ("out", "manifest", "model", "weights")


def grid(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="PNG file to write; the arrays are written beside it, as .npz.")
    ],
    images: Annotated[list[Path] | None, typer.Argument(help="Photographs.")] = None,
    classes: Classes = None,
    at: At = None,
    channel: Channel = None,
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    classes_file: ClassesFile = None,
    preprocessing: Prepared = None,
    what: Annotated[
        str,
        typer.Option(
            help="Draw the ascent, the pullback itself, or the map of an attribution method of "
            "`jax-excite evaluate`."
        ),
    ] = ASCENT,
    recipe: RecipeName = Recipe.EXCITATION,
    temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of ReLUs. Default: the model's, or the recipe's."),
    ] = None,
    pool_temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of max-pools. Default: the model's, or the recipe's."),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help=f"Gate function: {', '.join(GATE_FUNCTIONS)}. Default: the recipe's."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps. Default: 10.")] = None,
    step_size: Annotated[
        float | None, typer.Option(help="L2 norm of each step. Default: 20.")
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(
            help="Radius of the L2 ball around each photograph, or none for no ball. Default: 100."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Site whose gates stay hard; may be repeated.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Number of cells computed together, to limit memory.")
    ] = None,
    stepwise: Annotated[
        bool,
        typer.Option(
            help="Compute ascents one step at a time: a few cells are ready earlier, because less "
            "is compiled; many cells take longer."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw random numbers.")] = 0,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Compute a run again: its .npz, or the manifest.json that the page (`jax-excite "
            "app`) writes. Only --out goes with it, and --model and --weights if those files have "
            "moved.",
        ),
    ] = None,
) -> None:
    """Draw ascents or pullbacks of photographs (rows) towards classes (columns)."""
    with errors_in_one_line():
        from jax_excite.cli.drawing import draw

        if manifest is not None:
            repeated = _repeated(context, manifest, model, weights)
            check_picture(out, repeated.images)
            _write(out, repeated, draw)
            return
        if not images:
            raise ExciteError("there are no photographs: give at least one, or --from")
        check_picture(out, images)
        check_columns(classes, at, channel)
        settings = {"temperature": temperature, "pool_temperature": pool_temperature, "gate": gate}
        spec = find_spec(model)
        gating, ascent = recipe_of(recipe, spec, **settings)
        ascent = dataclasses.replace(
            ascent, **_ascent(what, steps=steps, step_size=step_size, radius=radius)
        )
        if batch_size is not None and batch_size < 1:
            raise ExciteError(f"--batch-size is {batch_size}: give a number of at least 1")
        if what == SWEEP:
            raise ExciteError("--what is sweep: use the command `jax-excite sweep`")
        if stepwise and batch_size is not None:
            raise ExciteError("--stepwise computes one cell at a time: leave out --batch-size")
        path, network = open_network(model, weights, classes_file, preprocessing)
        given = temperature, pool_temperature
        run = Run(
            what=what,
            recipe=recipe,
            gating=with_stored_temperatures(gating, spec, network, recipe, *given),
            columns=columns_of(network.class_names, classes, at, channel),
            ascent=ascent if what == ASCENT else None,
            skip=tuple(skip or ()),
            batch_size=batch_size,
            stepwise=stepwise,
            seed=seed,
        )
        _write(out, Repeated(run, model, path, network, images), draw)


def _repeated(context: typer.Context, manifest: Path, model: str, weights: str | None) -> Repeated:
    """The run of a manifest, which no other options go with than those for files that moved."""
    others = [name for name in _given(context) if name not in _WITH_FROM]
    if others:
        raise ExciteError(f"--from has all settings: leave out {options(others)}")
    moved = model if "model" in _given(context) else None
    return read_run(manifest, model=moved, weights=weights)


def _given(context: typer.Context) -> list[str]:
    """The parameters that the user gives, in the order of the alphabet."""
    sources = {name: context.get_parameter_source(name) for name in sorted(context.params)}
    return [name for name, source in sources.items() if source and source.name != "DEFAULT"]


def _write(out: Path, repeated: Repeated, draw: Callable[..., None]) -> None:
    """Compute a run; write its picture, and its arrays with the manifest."""
    run, network, images = repeated.run, repeated.network, repeated.images
    photographs = open_images(network, images)
    names, titles = [path.stem for path in images], run.column_titles()

    def show(path: Path, arrays: Any) -> None:
        draw(path, arrays, names, titles)

    with (
        appear_together(out, out.with_suffix(".npz")) as (picture, archive),
        previewed(out, show) as preview,
    ):
        described = [describe_file(path) for path in images]
        weights = describe_file(repeated.weights)
        manifest = manifest_of(run, repeated.model, network, weights, described)
        arrays = {}
        doing = "Climbing towards each column" if run.what == ASCENT else "Explaining each column"
        parts = results(network, photographs, run)
        for part in with_progress(parts, doing, run.parts(len(photographs))):
            arrays = part.arrays
            preview(arrays)
        show(picture, arrays)
        save_arrays(archive, arrays, manifest)
    typer.echo(f"{out}\n{out.with_suffix('.npz')}")


def _ascent(
    what: str, *, steps: int | None, step_size: float | None, radius: str | None
) -> dict[str, Any]:
    """The settings of ascent that the caller gives, checked before anything is loaded."""
    given: dict[str, Any] = {"steps": steps, "step_size": step_size}
    settings = {name: value for name, value in given.items() if value is not None}
    if radius is not None:
        size = math.inf if radius == "none" else _number(radius)
        if not size > 0:
            raise ExciteError(f"--radius is {radius}: give a positive number, or none")
        settings["radius"] = None if size == math.inf else size
    if what != ASCENT and settings:
        raise ExciteError(f"--what {what} makes no ascent: leave out {options(settings)}")
    if settings.get("steps", 0) < 0:
        raise ExciteError(f"--steps is {steps}: give a number of at least 0")
    if not math.isfinite(settings.get("step_size", 0)):
        raise ExciteError(f"--step-size is {step_size}: give a finite number")
    return settings


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
