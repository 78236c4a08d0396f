"""The answer to a question: computed in parts, as pictures for the page and as files."""

import base64
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import special

from jax_excite import pictures
from jax_excite.app.networks import Networks, Opened
from jax_excite.app.question import Question
from jax_excite.cli.drawing import draw, row_of
from jax_excite.cli.manifest import describe_file, save_arrays, save_manifest
from jax_excite.cli.preview import Arrays
from jax_excite.cli.repeating import manifest_of
from jax_excite.cli.runs import Progress, Run, results
from jax_excite.data.images import to_uint8
from jax_excite.pictures import Mode
from jax_excite.pullbacks.pullback import value_and_pullback
from jax_excite.typing import AnyArray

TOP = 5


class Doing(NamedTuple):
    """An event: what is done now."""

    text: str


class Predicted(NamedTuple):
    """An event: the most probable classes of a photograph, and the probabilities.

    Attributes:
        class_names: the names of all classes of the network.
        classes: the indices of the most probable ones.
        probabilities: their probabilities.
    """

    class_names: tuple[str, ...]
    classes: list[int]
    probabilities: list[float]


class Sites(NamedTuple):
    """An event: the names of the gates of a network."""

    names: list[str]


class Part(NamedTuple):
    """An event: a part of the answer for one of the networks.

    Attributes:
        number: 0 for the first network, 1 for the second.
        model: the name of the network.
        run: what is computed.
        progress: the part, whose arrays are filled while more is computed.
        curves: for each column, the probability of the class before each step so far, or the
            activation of the channel.
    """

    number: int
    model: str
    run: Run
    progress: Progress
    curves: list[list[float]]


class Answer(NamedTuple):
    """An event, the last: the answer for all networks.

    Attributes:
        question: what was asked.
        opened: the networks.
        runs: what was computed for each.
        arrays: the results for each.
    """

    question: Question
    opened: list[Opened]
    runs: list[Run]
    arrays: list[Arrays]


def predict(networks: Networks, question: Question, compiled: set[Any]) -> Iterator[Any]:
    """Yield events that end with the most probable classes of a photograph.

    The program is that of the question's ascents, so that it is compiled once for both.

    Args:
        networks: the networks that are offered.
        question: the photograph, the first network and the method; the targets do not matter.
        compiled: as for `explain`.
    """
    (model, *_) = question.models
    yield Doing(f"Loading {model}")
    opened = networks.open(model)
    program = question.program(model)
    yield Doing(f"Looking at the photograph{_first(program, compiled)}")
    x = opened.network.preprocessing.load_images([question.photograph.image()])[0]
    gating = question.run(opened, opened).gating
    outputs, _ = value_and_pullback(opened.network, x, 0, gating=gating)
    compiled.add(program)
    found = probabilities(np.asarray(outputs))
    top = np.argsort(-found, kind="stable")[:TOP]
    yield Predicted(opened.network.class_names, top.tolist(), found[top].tolist())


def name_sites(networks: Networks, model: str) -> Iterator[Any]:
    """Yield events that end with the sites of a network."""
    yield Doing(f"Looking for the gates of {model}")
    yield Sites(networks.open(model).sites)


def explain(networks: Networks, question: Question, compiled: set[Any]) -> Iterator[Any]:
    """Yield events that end with the answer to a question.

    Args:
        networks: the networks that are offered.
        question: what to show.
        compiled: the programs that have been compiled, to which the question's are added.
    """
    opened, runs, arrays = [], [], []
    for number, model in enumerate(question.models):
        yield Doing(f"Loading {model}")
        opened.append(networks.open(model))
        network = opened[-1].network
        run = question.run(opened[-1], opened[0])
        runs.append(run)
        program = question.program(model)
        yield Doing(f"Explaining {model}{_first(program, compiled)}")
        x = network.preprocessing.load_images([question.photograph.image()])
        curves: list[list[float]] = [[] for _ in run.columns.indices]
        last: Arrays = {}
        for progress in results(network, x, run):
            _follow(curves[progress.column % len(curves)], run, progress)
            yield Part(number, model, run, progress, curves)
            compiled.add(program)
            last = progress.arrays
        arrays.append(last)
    yield Answer(question, opened, runs, arrays)


def _first(program: Any, compiled: set[Any]) -> str:
    return "" if program in compiled else ", compiling first, which takes seconds"


def _follow(curve: list[float], run: Run, progress: Progress) -> None:
    """Add the target's probability at a point of an ascent to its curve."""
    if run.ascent is None:
        return
    if progress.outputs is None:
        curve.append(float(progress.arrays["trajectory"][0, progress.column, progress.step]))
    else:
        index = run.columns.indices[progress.column]
        curve.append(float(probabilities(progress.outputs)[index]))


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """The softmax of logits `[K]`; outputs that are probabilities already are returned."""
    if np.all(outputs >= 0) and np.isclose(outputs.sum(), 1, atol=1e-3):
        return outputs
    return special.softmax(outputs.astype(np.float64))


def view_names(run: Run) -> list[str]:
    """The names of the pictures that `view` draws for a run, that of the photograph first."""
    if run.ascent is not None:
        return ["original", "perturbed", "difference", "heat map"]
    return ["original", "map", "heat map"]


def view(arrays: Arrays, column: int, name: str, mode: Mode) -> AnyArray:
    """A picture `[H, W, 3]` in [0, 1] of a cell.

    Args:
        arrays: results, or results so far, of one photograph.
        column: the column of the cell.
        name: one of `view_names`.
        mode: which cells share one range, as for `pictures.scale`.
    """
    original, perturbed, fields = row_of(arrays, 0)
    if name == "original":
        return original
    if name == "perturbed" and perturbed is not None:
        return perturbed[column]
    some, at = (slice(column, column + 1), 0) if mode == "cell" else (slice(None), column)
    if name == "heat map":
        image = pictures.in_colour(arrays["images"][0])
        return pictures.overlay_heat_map(image, fields[some], mode)[at]
    return pictures.scale(fields[some], mode)[at]


def data_url(picture: AnyArray) -> str:
    """A picture in [0, 1] as a PNG in a URL, which only the page that holds it can show."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(picture, bounds=(0, 1))).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def archive(answer: Answer) -> bytes:
    """A ZIP file with the photograph, and with picture, arrays and manifest of each network.

    `jax-excite grid --from manifest.json` computes the same arrays and draws the same picture.
    """
    file = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(file, "w") as whole:
        for opened, run, arrays in zip(answer.opened, answer.runs, answer.arrays, strict=True):
            alone = len(answer.opened) == 1
            place = Path(folder) if alone else Path(folder, opened.name)
            place.mkdir(exist_ok=True)
            photograph = place / f"photograph{answer.question.photograph.suffix}"
            photograph.write_bytes(answer.question.photograph.data)
            image = {**describe_file(photograph), "file": photograph.name}
            weights = opened.described_weights
            manifest = manifest_of(run, opened.model, opened.network, weights, [image])
            draw(place / "picture.png", arrays, [photograph.stem], run.column_titles())
            save_arrays(place / "arrays.npz", arrays, manifest)
            save_manifest(place / "manifest.json", manifest)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                whole.write(path, path.relative_to(folder))
    return file.getvalue()
