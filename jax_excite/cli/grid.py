"""`jax-excite grid`: a class grid of any photographs, as a picture and as arrays."""

import enum
import hashlib
import importlib.metadata
import json
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from jax_excite import recipes
from jax_excite.ascent import pga_grid
from jax_excite.cli.console import errors_in_one_line, with_progress
from jax_excite.errors import ExciteError
from jax_excite.gating import Gating
from jax_excite.imagenet import CLASS_NAMES, class_index
from jax_excite.images import load_images
from jax_excite.models import model_spec
from jax_excite.pullback import pullback_grid
from jax_excite.weights import load, pretrained_path


class What(enum.StrEnum):
    """What the cells show."""

    ASCENT = "ascent"
    PULLBACK = "pullback"


class Recipe(enum.StrEnum):
    """The published settings."""

    EXCITATION = "excitation"
    SEMANTIC = "semantic"
    VANILLA = "vanilla"


GATINGS = {
    Recipe.EXCITATION: (recipes.EXCITATION, recipes.EXCITATION_PGA),
    Recipe.SEMANTIC: (recipes.SEMANTIC, recipes.SEMANTIC_PGA),
    Recipe.VANILLA: (recipes.VANILLA, recipes.EXCITATION_PGA),
}


def grid(
    images: Annotated[list[Path], typer.Argument(help="Photographs.")],
    classes: Annotated[str, typer.Option(help="Names or indices of classes, by commas.")],
    out: Annotated[Path, typer.Option(help="PNG file; the arrays go beside it, as .npz.")],
    model: Annotated[str, typer.Option(help="A name that `models` lists.")] = "efficientnet_lite0",
    weights: Annotated[
        Path | None, typer.Option(help="A .pth or .safetensors file; else the pretrained ones.")
    ] = None,
    what: Annotated[What, typer.Option(help="Gradient ascent, or the pullback itself.")] = (
        What.ASCENT
    ),
    recipe: Annotated[Recipe, typer.Option(help="Published settings.")] = Recipe.EXCITATION,
    temperature: Annotated[
        float | None, typer.Option(help="Of ReLUs; else the model's, or the recipe's.")
    ] = None,
    pool_temperature: Annotated[float | None, typer.Option(help="Of max-pools.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps [10].")] = None,
    step_size: Annotated[float | None, typer.Option(help="L2 norm of a step [20].")] = None,
    radius: Annotated[
        float | None, typer.Option(help="Of the L2 ball around a photograph [100]; inf for none.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="A site to leave hard; may be repeated.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Cells at a time, to bound memory.")
    ] = None,
) -> None:
    """Draw photographs (rows) and what draws them towards classes (columns)."""
    with errors_in_one_line():
        from jax_excite import viz

        if out.suffix.lower() != ".png":
            raise ExciteError(f"--out is {out}: give a file name that ends in .png")
        if not out.parent.is_dir():
            raise ExciteError(f"--out is {out}: there is no folder {out.parent}")
        spec = model_spec(model)
        indices = [class_index(name.strip()) for name in classes.split(",")]
        gating, ascent = _settings(recipe, spec.temperature, temperature, pool_temperature)
        given = {"steps": steps, "step_size": step_size, "radius": radius}
        ascent |= {name: value for name, value in given.items() if value is not None}
        photographs = load_images(images, spec.preprocessing.size)
        network = load(model, weights=weights or "pretrained")

        options: dict[str, Any] = {"gating": gating, "skip": skip or (), "batch_size": batch_size}
        cells = []
        for photograph in with_progress(photographs, f"Computing {what}s"):
            if what is What.ASCENT:
                cell = pga_grid(network, photograph, indices, **ascent, **options)
            else:
                cell = pullback_grid(network, photograph, indices, **options)
            cells.append(np.asarray(cell))

        arrays = _arrays(network, photographs, np.stack(cells), indices, what)
        manifest = {
            "what": what,
            "recipe": recipe,
            "gating": {name: _plain(value) for name, value in vars(gating).items()},
            "ascent": ascent if what is What.ASCENT else None,
            "skip": skip or [],
            "model": model,
            "weights": _file(weights or pretrained_path(spec)),
            "images": [_file(path) for path in images],
            "classes": {str(index): CLASS_NAMES[index] for index in indices},
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("jax-excite", "jax", "jaxlib", "flax", "numpy", "pillow")
            },
            "backend": jax.default_backend(),
            "command": sys.argv[1:],
        }
        _draw(viz, out, photographs, arrays, [path.stem for path in images], indices)
        _save(out.with_suffix(".npz"), arrays, manifest)
        typer.echo(f"{out}\n{out.with_suffix('.npz')}")


def _settings(
    recipe: Recipe, model: float, temperature: float | None, pool_temperature: float | None
) -> tuple[Gating, dict[str, Any]]:
    """The gating and the ascent of a recipe, with the caller's temperatures or the model's."""
    base, ascent = GATINGS[recipe]
    fields = dict(vars(base))
    if recipe is Recipe.EXCITATION:
        fields["temperature"] = model
    if temperature is not None:
        fields["temperature"] = temperature
    if pool_temperature is not None:
        fields["pool_temperature"] = pool_temperature
    return Gating(**fields), dict(ascent)


def _arrays(
    network: Any, photographs: np.ndarray, cells: np.ndarray, indices: list[int], what: What
) -> dict[str, np.ndarray]:
    """What is saved: images `[N, H, W, 3]`, cells `[N, C, H, W, 3]`, logits before and after."""
    logits = jax.jit(lambda network, x: network(x))
    arrays = {
        "images": photographs,
        "classes": np.asarray(indices),
        "logits": np.asarray(logits(network, photographs)),
    }
    if what is What.PULLBACK:
        return arrays | {"pullbacks": cells}
    after = np.stack([np.asarray(logits(network, row)) for row in cells])
    return arrays | {"perturbed": cells, "logits_after": after}


def _draw(
    viz: Any,
    out: Path,
    photographs: np.ndarray,
    arrays: dict[str, np.ndarray],
    names: list[str],
    indices: list[int],
) -> None:
    rows, titles = [], []
    for row, (image, name) in enumerate(zip(photographs, names, strict=True)):
        original = (image + 1) / 2
        if "perturbed" in arrays:
            perturbed = arrays["perturbed"][row]
            rows.append([original, *np.clip((perturbed + 1) / 2, 0, 1)])
            rows.append([original, *viz.scale(perturbed - image)])
            titles += [name, f"{name}\ndifference"]
        else:
            rows.append([original, *viz.scale(arrays["pullbacks"][row])])
            titles.append(name)
    columns = ["original", *(CLASS_NAMES[index] for index in indices)]
    viz.draw_grid(out, np.asarray(rows, np.float32), titles, columns)


def _save(path: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Write the arrays and the manifest (JSON, under `manifest`); all of the file or none."""
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.npz")
    try:
        everything: dict[str, Any] = {"manifest": np.asarray(json.dumps(manifest)), **arrays}
        np.savez_compressed(partial, **everything)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _file(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, jax.Array)) else value
