"""`jax-excite evaluate`: models x methods x metrics over photographs, in one table."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from jax_excite.cli.console import errors_in_one_line, with_progress
from jax_excite.cli.gatings import Recipe, RecipeName, check_gate, gating_of
from jax_excite.cli.manifest import (
    appear_together,
    check_folder,
    describe_file,
    describe_run,
    save_manifest,
)
from jax_excite.cli.networks import DEFAULT_MODEL, check_labels, open_images, open_network
from jax_excite.data.datasets import ImageData, image_folder
from jax_excite.errors import ExciteError
from jax_excite.evaluation.journal import Journal
from jax_excite.evaluation.scoring import COMPARED, METRICS, Chunk, Entrant, bound_methods, chunks
from jax_excite.evaluation.summary import markdown, summarise, writer_of
from jax_excite.gating import GATE_FUNCTIONS, Gating
from jax_excite.models import Classifier, model_spec
from jax_excite.pullbacks.pullback import pullback
from jax_excite.typing import Method

AT_ONCE = 12


class TargetChoice(StrEnum):
    """The class that is explained."""

    PREDICTED = "predicted"
    LABEL = "label"


def evaluate(
    images: Annotated[Path, typer.Argument(help="A folder of photographs.")],
    out: Annotated[
        Path,
        typer.Option(
            help="The .csv, .json or .parquet file to write; .md, .png, .manifest.json and "
            ".journal.jsonl files are written beside it."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name that `jax-excite models` lists, or NAME=WEIGHTS; may be repeated."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Attribution method; may be repeated. Default: all but the slowest."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to compute; may be repeated. Default: all.")
    ] = None,
    recipe: RecipeName = Recipe.EXCITATION,
    temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of excitation pullbacks. Default: each model's."),
    ] = None,
    temperatures: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated temperatures (of ReLUs and max-pools) of further excitation "
            "pullbacks."
        ),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help=f"Gate function of excitation pullbacks: {', '.join(GATE_FUNCTIONS)}. "
            "Default: sigmoid."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Method with which each other method is compared. Default: excitation_pullback, "
            "or the first one if that is not among them."
        ),
    ] = None,
    target: Annotated[
        TargetChoice, typer.Option(help="Explain the predicted class, or the photograph's label.")
    ] = TargetChoice.PREDICTED,
    limit: Annotated[int | None, typer.Option(help="Maximum number of photographs.", min=1)] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of noise, random subsets and the choice of other classes.", min=0),
    ] = 0,
) -> None:
    """Compare attribution methods by several metrics; resumes where a killed run stopped."""
    with errors_in_one_line():
        write = writer_of(out)
        _check_place(out, images)
        check_gate(gate)
        named = _models(model)
        metrics = _chosen_metrics(metric, len(named))
        photographs = _in_random_order(image_folder(images), seed, limit)
        if target is TargetChoice.LABEL:
            check_labels(photographs, "--target")
        entrants, files = [], {}
        for name, weights in named.items():
            spec = model_spec(name)
            path, network = open_network(name, weights or None)
            files[name] = describe_file(path)["sha256"]
            gating = gating_of(spec, network, recipe, temperature=temperature, gate=gate)
            standard, further = bound_methods(gating, seed), _ablation(gating, temperatures)
            kept = {
                each: standard[each] for each in _chosen("method", method or COMPARED, standard)
            }
            entrants.append(Entrant(name, network, {**kept, **further}, seed))
        for place, judge in enumerate(entrants[1:] + entrants[:1]):
            entrants[place] = dataclasses.replace(entrants[place], judge=judge.params)
        compared = list(entrants[0].methods)
        reference = _reference(reference, compared)
        settings = {
            "seed": seed,
            "version": importlib.metadata.version("jax-excite"),
            "models": list(files.items()),  # in order: each model is judged by the next
            "methods": compared,
            "recipe": recipe,
            "temperature": temperature,
            "gate": gate,
            "photographs": {n: describe_file(images / n)["sha256"] for n in photographs.names},
            "target": target,
        }
        with Journal.open(out.with_suffix(".journal.jsonl"), settings) as journal:
            _fill(journal, entrants, metrics, photographs, target)
            table = _table(journal, entrants, metrics, len(photographs))
        described = {**settings, "metrics": metrics, "reference": reference, **describe_run()}
        _write(out, write, summarise(table, reference, seed=seed), described)


def _write(out: Path, write: Any, lines: Any, manifest: dict[str, Any]) -> None:
    """Write the table and, beside it, the report, the plot and the manifest."""
    from jax_excite.evaluation import plots

    better = {name: metric.better for name, metric in METRICS.items()}
    beside = [out, *(out.with_suffix(each) for each in (".md", ".png", ".manifest.json"))]
    with appear_together(*beside) as (table, text, picture, described):
        write(table, lines)
        text.write_text(markdown(lines, better), "utf-8")
        plots.draw_intervals(picture, lines, better)
        save_manifest(described, manifest)
    typer.echo("\n".join(map(str, beside)))


def _reference(reference: str | None, compared: Sequence[str]) -> str:
    """The method that a user names, or the default, among those that are compared."""
    if reference is None:
        return "excitation_pullback" if "excitation_pullback" in compared else compared[0]
    if reference not in compared:
        raise ExciteError(
            f"--reference is {reference}: choose one of the compared methods, {', '.join(compared)}"
        )
    return reference


def _check_place(out: Path, images: Path) -> None:
    check_folder(out)
    if out.resolve().is_relative_to(images.resolve()):
        raise ExciteError(
            f"--out is {out}: choose a path outside {images}, the folder of the photographs"
        )


def _models(model: list[str] | None) -> dict[str, str]:
    """The weights that the user gives, or nothing, by the name of each model."""
    wanted = [each.partition("=") for each in model or [DEFAULT_MODEL]]
    named = {name: weights for name, _, weights in wanted}
    if len(named) < len(wanted):
        raise ExciteError("--model names a model twice: give each once")
    return named


def _chosen_metrics(metric: list[str] | None, models: int) -> list[str]:
    """The metrics that the user names, or all that so many models allow."""
    metrics = _chosen("metric", metric, METRICS)
    judged = [each for each in metrics if each.startswith("transfer")]
    if models > 1 or not judged:
        return metrics
    if metric:
        raise ExciteError(f"--metric {judged[0]} needs a second --model as the judge")
    return [each for each in metrics if each not in judged]


def _chosen(what: str, names: Sequence[str] | None, known: Mapping[str, Any]) -> list[str]:
    """The names that the user gives, or all names, in the order of `known`."""
    for name in names or ():
        if name not in known:
            raise ExciteError(f"there is no {what} {name!r}: choose one of {', '.join(known)}")
    return [name for name in known if not names or name in names]


def _in_random_order(photographs: ImageData, seed: int, limit: int | None) -> ImageData:
    """A random sample, so that a chunk has several classes; checks that all can be decoded."""
    order = np.random.default_rng(seed).permutation(len(photographs))[:limit].tolist()
    for place in order:
        photographs[place]
    return ImageData(
        [str(photographs.names[place]) for place in order],
        lambda number: photographs[order[number]].image,
        lambda number: photographs.labels[order[number]],
    )


def _ablation(gating: Gating, text: str | None) -> dict[str, Method]:
    """Excitation pullbacks, by name, at the temperatures in a comma-separated list."""
    found: dict[str, Method] = {}
    for each in text.split(",") if text else ():
        try:
            value = float(each)
        except ValueError:
            raise ExciteError(f"--temperatures has {each!r}: give numbers, or inf") from None
        own = dataclasses.replace(
            gating, temperature=value, pool_temperature=value, site_temperatures={}
        )
        found[f"excitation_pullback T={value:g}"] = functools.partial(
            pullback, gating=own, bounds=None
        )
    return found


def _fill(
    journal: Journal,
    entrants: Sequence[Entrant],
    metrics: Sequence[str],
    photographs: ImageData,
    target: TargetChoice,
) -> None:
    """Compute the scores that are missing from the journal, chunk by chunk."""
    parts = chunks(len(photographs), AT_ONCE)
    work = [
        (place, number)
        for place, entrant in enumerate(entrants)
        for number in range(len(parts))
        if any(_key(entrant.name, number, metric) not in journal for metric in metrics)
    ]
    for place, number in with_progress(work, "Comparing methods on chunks of photographs"):
        entrant, (indices, count) = entrants[place], parts[number]
        some = [photographs[int(index)] for index in indices]
        labels = np.asarray([each.label for each in some]) if target is TargetChoice.LABEL else None
        x = open_images(cast(Classifier, entrant.params), [each.image for each in some])
        chunk = Chunk(entrant, x, number, labels)
        for metric in metrics:
            key = _key(entrant.name, number, metric)
            if key not in journal:
                scores = METRICS[metric].compute(chunk)
                journal.add(key, {name: _plain(own[:count]) for name, own in scores.items()})


def _key(model: str, chunk: int, metric: str) -> str:
    return f"{model} {metric} {chunk}"


def _plain(scores: np.ndarray) -> list[float | None]:
    """Scores as JSON can represent them, with None in place of NaN and infinity."""
    return [float(score) if np.isfinite(score) else None for score in scores]


def _table(
    journal: Journal, entrants: Sequence[Entrant], metrics: Sequence[str], count: int
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """All scores by model, metric and method."""
    numbers = range(len(chunks(count, AT_ONCE)))
    return {
        entrant.name: {
            metric: {
                method: [
                    np.nan if score is None else score
                    for number in numbers
                    for score in journal[_key(entrant.name, number, metric)][method]
                ]
                for method in entrant.methods
            }
            for metric in metrics
        }
        for entrant in entrants
    }
