import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from jax_excite import Gating, load, load_images, pga_grid, pullback_grid
from jax_excite.cli import app
from jax_excite.cli.demo import CLASSES, PHOTOGRAPHS
from jax_excite.models import MODELS

DATA = Path(importlib.metadata.distribution("scikit-image").locate_file("skimage/data"))
CAT, COFFEE = DATA / "chelsea.png", DATA / "coffee.png"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def cells_of(picture, rows, columns):
    """The cells of a picture of 224-pixel cells, found by their white gaps from the far corner."""
    pixels = imread(picture)[..., :3]
    bottom, right = pixels.shape[0] - 14, pixels.shape[1] - 14
    return np.array(
        [
            [
                pixels[
                    bottom - (rows - r) * 230 + 6 : bottom - (rows - r) * 230 + 230,
                    right - (columns - c) * 230 + 6 : right - (columns - c) * 230 + 230,
                ]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )


def roughness(cell):
    """How much of a cell's variation is from one pixel to the next."""
    grey = cell.mean(axis=-1)
    return np.abs(np.diff(grey, axis=0)).mean() / grey.std()


def test_demo(tmp_path):
    result = run("demo", "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.stderr
    tops = {
        line.split(":")[0].strip(): line.split(":")[1] for line in result.stdout.split("\n")[:3]
    }
    assert tops["cat"].strip().startswith(("tiger cat", "Egyptian cat", "tabby"))
    assert tops["coffee"].strip().startswith("espresso")
    assert tops["rocket"].strip().startswith(("missile", "projectile"))

    cells = cells_of(tmp_path / "new/folder/demo.png", 2 * len(PHOTOGRAPHS), 1 + len(CLASSES))
    photographs = (load_images([DATA / file for file in PHOTOGRAPHS.values()]) + 1) / 2
    for row, photograph in enumerate(photographs):
        for drawn in cells[2 * row : 2 * row + 2, 0]:
            np.testing.assert_allclose(drawn, photograph, atol=1 / 255)
    soft, hard = cells[::2, 1:], cells[1::2, 1:]
    assert min(cell.std() for cell in cells.reshape(-1, *cells.shape[2:])) > 0.03
    rougher = [
        roughness(noisy) > roughness(clear)
        for clear, noisy in zip(
            soft.reshape(-1, 224, 224, 3), hard.reshape(-1, 224, 224, 3), strict=True
        )
    ]
    assert all(rougher)


def test_grid_of_pullbacks_holds_what_the_library_computes(tmp_path):
    out = tmp_path / "grid.png"
    result = run(
        *("grid", CAT, "--classes", "Tabby, 497,espresso", "--what", "pullback", "--out", out)
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(out), str(tmp_path / "grid.npz")]
    arrays = np.load(tmp_path / "grid.npz")
    model, x = load("efficientnet_lite0"), load_images([CAT])
    expected = pullback_grid(model, x, [281, 497, 967], gating=Gating(temperature=1.0))
    np.testing.assert_allclose(arrays["pullbacks"], expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(arrays["images"], x)
    np.testing.assert_array_equal(arrays["classes"], [281, 497, 967])
    np.testing.assert_allclose(arrays["logits"], model(x), rtol=1e-4, atol=1e-4)
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["model"] == "efficientnet_lite0"
    assert manifest["classes"] == {"281": "tabby", "497": "church", "967": "espresso"}
    assert manifest["gating"]["temperature"] == 1.0
    assert manifest["weights"]["sha256"].startswith("57934424")  # as the file's name says
    assert manifest["images"][0]["file"] == str(CAT)
    assert manifest["versions"]["jax"] == importlib.metadata.version("jax")
    assert cells_of(out, 1, 4).std() > 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.npz", "grid.png"]


def test_grid_of_ascents_takes_every_setting(tmp_path):
    result = run(
        *("grid", CAT, COFFEE, "--classes", "church,ostrich", "--recipe", "semantic"),
        *("--temperature", 0.8, "--pool-temperature", 0.2, "--steps", 2, "--step-size", 9),
        *("--radius", 12, "--skip", "blocks.0/clipped_relu", "--batch-size", 1),
        *("--out", tmp_path / "a.png"),
    )
    assert result.exit_code == 0, result.stderr
    arrays = np.load(tmp_path / "a.npz")
    perturbed, x = arrays["perturbed"], load_images([CAT, COFFEE])
    expected = pga_grid(
        load("efficientnet_lite0"),
        x,
        [497, 9],
        steps=2,
        step_size=9,
        radius=12,
        gating=Gating(0.8, 0.2, gate="normal_cdf", pool_weights="detached"),
        skip="blocks.0/clipped_relu",
    )
    difference = np.linalg.norm(perturbed - expected) / np.linalg.norm(expected - x[:, None])
    assert difference < 0.01
    rows, columns = np.arange(2)[:, None], np.arange(2)
    classes = arrays["classes"]
    after, before = arrays["logits_after"], arrays["logits"]
    assert (after[rows, columns, classes] > before[rows, classes]).all()
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["ascent"] == {"steps": 2, "step_size": 9.0, "radius": 12.0}
    assert manifest["skip"] == ["blocks.0/clipped_relu"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--classes": "chruch"}, "church"),
        ({"--classes": "1000"}, "1000"),
        ({"--classes": "crane"}, "134"),
        ({"--model": "alexnet"}, "'alexnet'.*efficientnet_lite0"),
        ({"--model": "resnet50"}, "resnet50-0676ba61.pth"),
        ({"--weights": "nowhere.pth"}, "nowhere.pth is no file"),
        ({"--temperature": "-1"}, "temperature is -1"),
        ({"--steps": "-1"}, "steps is -1"),
        ({"--skip": "layer1"}, "skip names no site"),
        ({"--out": "grid.jpg"}, "ends in .png"),
        ({"--out": "nowhere/grid.png"}, "no folder nowhere"),
        ({"image": "nowhere.jpg"}, "nowhere.jpg"),
        ({"image": __file__}, "test_cli.py"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(changed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"image": CAT, "--classes": "church", "--out": "grid.png", "--steps": "1"} | changed
    image = options.pop("image")
    arguments = [part for pair in options.items() for part in pair]
    result = run("grid", image, *arguments)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_models_are_listed():
    result = run("models")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert set(lines) == set(MODELS)
    assert "25.6 M" in lines["resnet50"]
    assert "resnet50-0676ba61.pth" in lines["resnet50"]
    assert lines["efficientnet_lite0"].endswith("efficientnet-lite0-57934424.pth")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jax_excite.viz", raising=False)
    monkeypatch.delattr(sys.modules["jax_excite"], "viz", raising=False)
    result = run("demo")
    assert result.exit_code == 2
    assert 'matplotlib is not installed: pip install "jax-excite[demo]"' in result.stderr


def test_entry_point_answers():
    result = subprocess.run(
        [sys.executable, "-c", "from jax_excite.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("demo", "grid", "models"))
