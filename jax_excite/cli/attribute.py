"""`jax-excite attribute`: write attributions of a whole data set to a store."""

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console

from jax_excite.cli.columns import At, Channel, check_columns
from jax_excite.cli.console import announce, errors_in_one_line
from jax_excite.cli.gatings import Recipe, RecipeName, check_gate, gating_of
from jax_excite.cli.manifest import check_folder, describe_file, describe_run
from jax_excite.cli.networks import (
    DEFAULT_MODEL,
    ClassesFile,
    ModelName,
    Prepared,
    Weights,
    check_labels,
    find_spec,
    open_network,
)
from jax_excite.data.datasets import ImageData
from jax_excite.errors import DataError, ExciteError
from jax_excite.gating import GATE_FUNCTIONS, Gating

_SECONDS_BETWEEN_LINES = 2.0


def attribute(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a text file with one path per line, or imagenette/160px/train."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Path of the store: a new one, or one to continue.")],
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    classes_file: ClassesFile = None,
    preprocessing: Prepared = None,
    at: At = None,
    channel: Channel = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Attribution method; may be repeated. Default: excitation_pullback."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Classes to explain: label, top-K, or comma-separated class indices. Default: "
            "top-1."
        ),
    ] = None,
    recipe: RecipeName = Recipe.EXCITATION,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of ReLUs and max-pools. Default: the model's.")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help=f"Gate function: {', '.join(GATE_FUNCTIONS)}. Default: sigmoid."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Data type of the attributions: float16 or float32.")
    ] = "float16",
    chunk: Annotated[
        int,
        typer.Option(
            help="Number of images that a device processes, and that are written, together.", min=1
        ),
    ] = 12,
    limit: Annotated[int | None, typer.Option(help="Maximum number of images.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the methods that add noise.", min=0)] = 0,
    shard: Annotated[
        str,
        typer.Option(
            help="i/n: compute every n-th chunk, starting with the i-th. For job schedulers."
        ),
    ] = "1/1",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be decoded.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate disk space, time and memory, and write nothing."),
    ] = False,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed", help="Run as one of several processes; SLURM sets which one."
        ),
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="Address of process 0, as HOST:PORT.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Total number of processes.", min=1)] = None,
    process: Annotated[
        int | None, typer.Option(help="Number of this process, counted from 0.", min=0)
    ] = None,
) -> None:
    """Compute attributions of all images of a source; resumes where a killed run stopped."""
    with errors_in_one_line():
        from jax_excite.stores import distributed as together
        from jax_excite.stores.explainer import Explainer, methods_by_name
        from jax_excite.stores.filling import Job
        from jax_excite.stores.ledger import exclusive
        from jax_excite.stores.source import fingerprint, open_source

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        _check(out, dtype)
        check_gate(gate)
        number, shards = _shard(shard)
        spec, wanted = find_spec(model), _targets(targets, at, channel)
        if distributed or coordinator is not None:
            together.join(coordinator, processes, process)
        data = open_source(source)[:limit]
        if wanted.label:
            check_labels(data, "--targets")
        file, network = open_network(model, weights, classes_file, preprocessing)
        gating = gating_of(spec, network, recipe, temperature=temperature, gate=gate)
        methods, prepared = _chosen(method, methods_by_name(gating, seed)), network.preprocessing
        if prepared.channels != 3:
            raise ExciteError(f"{model} takes {prepared.channels} channels: stores hold 3")
        explainer = Explainer(network, methods, wanted, jax.local_devices(), chunk, prepared.size)
        layout = _layout(explainer, len(data), dtype, chunk)
        job = Job(out, layout, data, explainer, prepared, strict)
        if dry_run:
            return _estimate(job)
        settings = {
            "source": fingerprint(data),
            "model": model,
            "weights": describe_file(file)["sha256"],
            "preprocessing": json.loads(json.dumps(dataclasses.asdict(prepared))),
            "methods": list(methods),
            "targets": channel or targets or "top-1",
            "at": at,
            "recipe": _plain(gating),
            "seed": seed,
        }
        _begin(out, layout, settings, data, source)
        part, parts = together.part_of_process(number, shards)
        with exclusive(out, part, parts):
            _fill(job, job.left(part, parts))
        together.wait_for_others(job, number, shards)
        typer.echo(str(out))


def _targets(targets: str | None, at: str | None, channel: str | None) -> Any:
    """The targets that a user asks for: classes, or channels of a site."""
    from jax_excite.stores.explainer import Targets

    if at is None and channel is None:
        return Targets.parse(targets or "top-1")
    check_columns(targets, at, channel, "--targets")
    return Targets.parse(channel or "", at)


def _layout(explainer: Any, images: int, dtype: str, chunk: int) -> Any:
    """The layout of a store with the maps of so many images."""
    from jax_excite.stores.layout import Layout

    height, width, _ = explainer.shape
    sizes = len(explainer.methods), explainer.targets.count, height, width, explainer.classes
    return Layout(images, *sizes, dtype, chunk)


def _check(out: Path, dtype: str) -> None:
    if dtype not in ("float16", "float32"):
        raise ExciteError(f"--dtype is {dtype}: give float16 or float32")
    check_folder(out)


def _chosen(method: list[str] | None, known: dict[str, Any]) -> dict[str, Any]:
    """The methods that the user names, each once, in the user's order."""
    names = method or ["excitation_pullback"]
    for name in names:
        if name not in known or names.count(name) > 1:
            raise ExciteError(
                f"--method {name} is unknown or given twice: choose from {', '.join(known)}, "
                "each at most once"
            )
    return {name: known[name] for name in names}


def _shard(text: str) -> tuple[int, int]:
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ExciteError(f"--shard is {text!r}: give i/n, from 1/n to n/n")
    return int(first), int(last)


def _plain(gating: Gating) -> dict[str, Any]:
    """The gating as values that JSON can represent."""
    found = {field.name: getattr(gating, field.name) for field in dataclasses.fields(gating)}
    found["site_temperatures"] = {
        site: np.asarray(own).tolist() for site, own in gating.site_temperatures.items()
    }
    return found


def _begin(out: Path, layout: Any, settings: dict[str, Any], data: ImageData, source: str) -> None:
    """Create the store, or check that the existing store was made with the same settings."""
    from jax_excite.stores.layout import create, layout_of, read_manifest

    found = read_manifest(out)
    if found is None:
        whole = {
            "settings": settings,
            "from": source,
            "names": list(data.names),
            "labels": data.labels,
            **describe_run(),
        }
        try:
            create(out, layout, whole)
        except FileExistsError:
            found = read_manifest(out)
    if found is None:
        return
    sizes = dataclasses.asdict(layout), dataclasses.asdict(layout_of(found))
    for ours, theirs in ((settings, found["settings"]), sizes):
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise DataError(
                    f"{out} was begun with {name} {_short(theirs.get(name))}, and this run has "
                    f"{_short(value)}: use the same value, or write to another store"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fill(job: Any, chunks: list[int]) -> None:
    images = sum(len(job.layout.rows(chunk)) for chunk in chunks)
    before = job.layout.images - images
    if before:
        announce(
            f"{before} of {job.layout.images} images are done already or belong to other parts"
        )
    said = -float("inf")
    console = Console(stderr=True)
    for progress in job.fill(chunks):
        last = progress.images == images
        if time.monotonic() - said < _SECONDS_BETWEEN_LINES and not last:
            continue
        said = time.monotonic()
        rate = progress.images / progress.seconds
        left = (images - progress.images) / rate
        line = (
            f"{progress.images} of {images} images, {rate:.2f} per second, {left:.0f} s left, "
            f"devices busy {progress.busy / progress.seconds:.0%}"
        )
        console.print(line, end="\r" if console.is_terminal and not last else "\n", highlight=False)


def _estimate(job: Any) -> None:
    """Print the disk space, computed from sizes, and time and memory, measured on some images."""
    import resource

    from jax_excite.stores.source import decoded

    layout, explainer = job.layout, job.explainer
    places = [i % layout.images for i in range(explainer.images)]
    seconds = []
    for some in decoded(job.data, [places, places], job.preprocessing):
        started = time.monotonic()
        jax.block_until_ready(job.explained(some))
        seconds.append(time.monotonic() - started)
    total = layout.images / explainer.images * seconds[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    devices = f"{len(jax.local_devices())} {jax.default_backend()} devices"
    typer.echo(
        f"{layout.images} images in {layout.chunks} chunks\n"
        f"disk: at most {layout.bytes_of_attributions() / 1e9:.2f} GB\n"
        f"time: {seconds[0]:.0f} s to start, then about {total:.0f} s on {devices}\n"
        f"memory of this process: about {peak / 1e9:.1f} GB"
    )
