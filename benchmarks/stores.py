"""Measures the cost of a store: `python -m benchmarks.stores FOLDER [--images N] [--out FOLDER]`.

The first part fills a store with EfficientNet-Lite0's attributions of crops of the photographs in
FOLDER, and records the memory of the process over time. The second part alternates, in one process,
between filling a store from image files and bare loops of `pullback` over the same images, which
are either in memory or read by the loop.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.worker import memory
from benchmarks.workers import ROOT

_CROP, _CHUNK = 256, 12
_COMPARED = 360  # number of images in the comparison


def main(
    photographs: Annotated[Path, typer.Argument(help="A folder of images.")],
    images: Annotated[int, typer.Option(min=12)] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Of the comparison.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the plot and its numbers.")] = (
        ROOT / "benchmarks" / "results"
    ),
) -> None:
    """Measure, and write store.json and store.png."""
    with tempfile.TemporaryDirectory(prefix="stores.") as folder:
        source = Path(folder, "crops")
        source.mkdir()
        crops(photographs, source, images)
        long = _worker("fill", {"source": str(source), "out": str(Path(folder, "store"))})
        print(f"{images} images: {long['seconds']:.0f} s, {long['rate']:.2f} a second", flush=True)
        some = Path(folder, "some")
        some.mkdir()
        crops(photographs, some, _COMPARED)
        found = _worker("compare", {"source": str(some), "out": folder, "rounds": rounds})
    overhead = {}
    for bare in ("in memory", "from files"):
        ratios = [ours / theirs for ours, theirs in zip(found["store"], found[bare], strict=True)]
        overhead[bare] = statistics.median(ratios) - 1
        told = f"{min(ratios):.3f} to {max(ratios):.3f} times"
        print(f"against a bare loop over images {bare}: {overhead[bare]:+.1%} ({told})")
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"images": images, **long, "compared": found, "overhead": overhead})
    (out / "store.json").write_text(text + "\n")
    plot(long, out / "store.png")


def crops(photographs: Path, folder: Path, number: int) -> None:
    """Write crops at random positions, taken from one photograph after the other."""
    rng = np.random.default_rng(0)
    files = sorted(photographs.glob("*.jpg"))
    for place in range(number):
        image = Image.open(files[place % len(files)]).convert("RGB")
        width, height = image.size
        side = min(_CROP, width, height)
        left, top = rng.integers(0, (width - side + 1, height - side + 1))
        box = (int(left), int(top), int(left) + side, int(top) + side)
        image.crop(box).save(folder / f"{place:05}.jpg", quality=92)


def _worker(what: str, task: dict[str, Any]) -> dict[str, Any]:
    call = f"from benchmarks import stores; stores.{what}()"
    command = [sys.executable, "-c", call, json.dumps(task)]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def fill() -> None:
    """Fill a store in a separate process, and print its rate and its memory over time."""
    task = json.loads(sys.argv[1])
    begun, samples, stop = time.monotonic(), [], threading.Event()

    def sample() -> None:
        while not stop.wait(0.5):
            samples.append((time.monotonic() - begun, _resident()))

    watcher = threading.Thread(target=sample)
    watcher.start()
    seconds, images = _filled(task["source"], task["out"])
    stop.set()
    watcher.join()
    rate = images / seconds
    print(
        json.dumps({"seconds": seconds, "rate": rate, "memory": samples, "peak": memory("VmHWM")})
    )


def compare() -> None:
    """Time a store and bare loops with the same images, in turns, in a separate process."""
    import jax

    import jax_excite

    task = json.loads(sys.argv[1])
    params = jax_excite.load("efficientnet_lite0")
    files = sorted(Path(task["source"]).iterdir())
    size, resize = params.preprocessing.size, params.preprocessing.resize

    def read(start: int) -> np.ndarray:
        return jax_excite.load_images(files[start : start + _CHUNK], size, resize=resize)

    def loop(images: Callable[[int], np.ndarray]) -> float:
        begun = time.monotonic()
        for start in range(0, len(files), _CHUNK):
            jax.block_until_ready(jax_excite.pullback(params, images(start), _greatest))
        return time.monotonic() - begun

    x = jax_excite.load_images(files, size, resize=resize)
    found: dict[str, list[float]] = {"store": [], "in memory": [], "from files": []}
    for number in range(task["rounds"] + 1):
        job = _job(params, task["source"], Path(task["out"], f"compared{number}"))
        begun = time.monotonic()
        list(job.fill(job.left()))
        ours = time.monotonic() - begun
        times = (ours, loop(lambda start: x[start : start + _CHUNK]), loop(read))
        if number:
            for name, seconds in zip(found, times, strict=True):
                found[name].append(seconds)
    print(json.dumps(found))


def _greatest(logits: Any) -> Any:
    return logits.max()


def _job(params: Any, source: str, out: Path) -> Any:
    """The same job as `jax-excite attribute` would do."""
    import jax

    from jax_excite import recipes
    from jax_excite.data.datasets import image_folder
    from jax_excite.stores.explainer import Explainer, Targets
    from jax_excite.stores.filling import Job
    from jax_excite.stores.layout import Layout, create

    data, chosen = image_folder(source), params.preprocessing
    methods = {"excitation_pullback": recipes.EXCITATION}
    devices, top = jax.local_devices(), Targets.parse("top-1")
    explainer = Explainer(params, methods, top, devices, _CHUNK, chosen.size)
    layout = Layout(len(data), 1, 1, chosen.size, chosen.size, 1000, "float16", _CHUNK)
    settings = {"methods": list(methods)}
    create(out, layout, {"settings": settings, "names": data.names, "labels": data.labels})
    return Job(out, layout, data, explainer, chosen)


def _filled(source: str, out: str) -> tuple[float, int]:
    """The seconds that `jax-excite attribute` takes in this process, and its image count."""
    from jax_excite.cli.attribute import attribute
    from jax_excite.cli.console import keep_compiled_programs
    from jax_excite.stores import open_store

    keep_compiled_programs()
    begun = time.monotonic()
    attribute(source, Path(out))
    return time.monotonic() - begun, len(open_store(out))


def _resident() -> int:
    """The current resident memory of this process in bytes; Linux only."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def plot(found: dict[str, Any], path: Path) -> None:
    """Plot memory over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    seconds, resident = zip(*found["memory"], strict=True)
    axis.plot(seconds, [each / 1e9 for each in resident])
    axis.set_ylim(0, 1.1 * max(resident) / 1e9)
    axis.set_xlabel("seconds")
    axis.set_ylabel("resident memory, GB")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
