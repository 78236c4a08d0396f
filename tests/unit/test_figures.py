import dataclasses
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

from jax_excite import Ascent, Gating, pga_grid, pictures, pullback, recipes, sites
from jax_excite.cli import app, class_grid, figures
from jax_excite.cli.class_grid import Along, ClassGrid
from jax_excite.data.class_names import CLASS_NAMES, class_index
from jax_excite.data.images import to_uint8
from jax_excite.models import MODELS, Classifier, Preprocessing
from jax_excite.models.densenet import DenseNetConfig
from tests.networks import Network, relative_error

SOFT = Gating(0.5, 0.5)
TARGETS = [0, 482, 497, 569, 574, 9]
EXAMPLES = Path(__file__).parents[3] / "shared/data/imagenette_examples"


def small(net, size):
    return Classifier(net, Preprocessing((0.5,) * 3, (0.25,) * 3, size, size), CLASS_NAMES)


def run(*arguments):
    return CliRunner().invoke(app, ["figures", *map(str, arguments)])


def photographs(rows=2, size=96):
    return np.random.default_rng(0).uniform(-0.3, 0.3, (rows, size, size, 3))


def grid(network, x, **options):
    gatings = {Along.EXCITATION: SOFT, Along.VANILLA: recipes.VANILLA}
    return ClassGrid(network, x, TARGETS, gatings, **options)


@pytest.fixture
def network(x64):
    network = small(Network(classes=1000), 96)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), network)


@pytest.fixture
def folder(tmp_path):
    """Four photographs of each class of Imagenette, each of one colour with noise."""
    path = tmp_path / "photographs"
    path.mkdir()
    rng = np.random.default_rng(1)
    for index in (0, 217, 482, 491, 497, 566, 569, 571, 574, 701):
        for number in range(4):
            pixels = rng.integers(0, 40, (20, 20, 3)) + rng.integers(0, 215, 3)
            name = f"{index:04}_{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path / name)
    return path


@pytest.fixture
def tiny(monkeypatch):
    """A network that the command takes for any model."""
    network = small(Network(classes=1000), 16)
    monkeypatch.setattr(figures, "load_model", lambda *_, **__: network)
    return network


def test_figure_2_has_vanilla_gradients_above_excitation_pullbacks(network):
    x = photographs()
    cells, _ = figures.figure_cells(figures.FIGURES[2], grid(network, x, skip=["relu"]))
    assert cells.shape == (4, 7, 96, 96, 3)
    for row in range(2):
        for block, gating in enumerate((recipes.VANILLA, SOFT)):
            np.testing.assert_array_equal(cells[2 * block + row, 0], x[row])
            for column, target in enumerate(TARGETS, start=1):
                expected = pullback(network, x[row], target, gating=gating, skip="relu")
                assert relative_error(cells[2 * block + row, column], expected) < 1e-9


@pytest.mark.parametrize(
    ("number", "steps", "gating"), [(1, 5, SOFT), (3, 10, SOFT), (4, 10, recipes.VANILLA)]
)
def test_figures_of_ascents_are_those_of_pga(network, number, steps, gating):
    x = photographs()
    cells, _ = figures.figure_cells(figures.FIGURES[number], grid(network, x, skip=["relu"]))
    options = {"gating": gating, "skip": "relu"}
    expected = np.asarray(pga_grid(network, x, TARGETS, Ascent(steps), **options))
    difference = expected - x[:, None]
    np.testing.assert_array_equal(cells[:, 0], x)
    assert relative_error(cells[:, -6:], difference) < 1e-9
    if number == 1:
        assert cells.shape == (2, 7, 96, 96, 3)
        return
    assert cells.shape == (2, 13, 96, 96, 3)
    assert relative_error(cells[:, 1:7], expected) < 1e-9
    # The ball and the bounds both matter here.
    free = pga_grid(network, x, TARGETS, Ascent(steps, radius=None), **options)
    assert relative_error(free, expected) > 0.01
    assert np.abs(expected).max() == 1


def test_an_ascent_goes_on_where_it_stopped(network, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments[3].steps)
        return pga(*arguments, **options)

    pga = class_grid.pga
    monkeypatch.setattr(class_grid, "pga", counted)
    x = photographs(rows=1, size=16)
    cells = grid(network, x)
    five, seconds = cells.climb(Along.EXCITATION, 5)
    ten, more_seconds = cells.climb(Along.EXCITATION, 10)
    again, _ = cells.climb(Along.EXCITATION, 5)
    assert calls == [5, 5]
    assert more_seconds > seconds > 0
    np.testing.assert_array_equal(again, five)
    assert not np.array_equal(ten, five)


def test_last_relu_of_densenet_stays_hard(folder):
    net = DenseNetConfig((1, 1, 1, 1), growth=4, stem=8).build(rngs=nnx.Rngs(0))
    network, examples = small(net, 32), figures._examples(folder, 314)
    cells = figures._class_grid(network, MODELS["densenet121"], SOFT, examples)
    assert figures._describe_grid(figures.FIGURES[2], cells)["skip"] == ["final/relu"]
    listed = sites(network, cells.photographs[:1], skip=cells.skip)
    assert [site.name for site in listed if not site.gated] == ["final/relu"]


def test_command_draws_every_figure_with_a_manifest(tiny, folder, tmp_path):
    out = tmp_path / "new" / "folder"
    result = run("--images", folder, "--out", out, "--temperature", 0.7, "--pool-temperature", 0.4)
    assert result.exit_code == 0, result.stderr
    pictures = [out / f"figure{number}_efficientnet_lite0.png" for number in (1, 2, 3, 4)]
    assert result.stdout.split() == [str(picture) for picture in pictures]
    assert set(out.iterdir()) == {*pictures, *(path.with_suffix(".json") for path in pictures)}
    assert "Climbing along vanilla gradients: 1 of 5, compiling first ..." in result.stderr

    manifests = [json.loads(path.with_suffix(".json").read_text()) for path in pictures]
    assert [manifest["figure"] for manifest in manifests] == [1, 2, 3, 4]
    assert [set(manifest["gatings"]) for manifest in manifests] == [
        {"excitation pullbacks"},
        {"vanilla gradients", "excitation pullbacks"},
        {"excitation pullbacks"},
        {"vanilla gradients"},
    ]
    settings = {
        "step_size": 20.0,
        "radius": 100.0,
        "bounds": [-1.0, 1.0],
        "clip": "each",
        "relative": False,
    }
    assert [manifest["ascent"] for manifest in manifests] == [
        {"steps": 5, **settings},
        None,
        {"steps": 10, **settings},
        {"steps": 10, **settings},
    ]
    soft = dataclasses.asdict(Gating(0.7, 0.4))
    assert manifests[0]["gatings"]["excitation pullbacks"] == soft
    vanilla = dataclasses.asdict(recipes.VANILLA)
    assert manifests[3]["gatings"]["vanilla gradients"] == vanilla
    for manifest in manifests:
        assert manifest["model"] == "efficientnet_lite0"
        assert manifest["weights"]["sha256"].startswith("57934424")  # as the file's name says
        assert [target["index"] for target in manifest["targets"]] == TARGETS
        assert [target["name"] for target in manifest["targets"]][2::3] == ["church", "ostrich"]
        assert [image["class"] for image in manifest["images"]] == TARGETS[:5]
        assert manifest["skip"] == []
        assert manifest["seed"] == 314
        assert manifest["source"] == str(folder)
        assert manifest["versions"]["jax"] == importlib.metadata.version("jax")
        assert manifest["seconds"] >= 0
        for image in manifest["images"]:
            pixels = np.asarray(Image.open(folder / image["name"]))
            assert image["sha256_of_pixels"] == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_each_cell_is_scaled_on_its_own(tiny, folder, tmp_path):
    assert run("--images", folder, "--out", tmp_path, "--figure", 3).exit_code == 0
    pixels = np.asarray(Image.open(tmp_path / "figure3_efficientnet_lite0.png").convert("RGB"))
    side, gap, margin = 224, 6, 14
    bottom, right = (length - margin for length in pixels.shape[:2])
    examples = figures._examples(folder, 314)
    spec = MODELS["efficientnet_lite0"]
    cells, _ = figures.figure_cells(
        figures.FIGURES[3],
        figures._class_grid(tiny, spec, Gating(spec.temperature, spec.temperature), examples),
    )
    for r in range(5):
        for c in range(13):
            top = bottom - (5 - r) * (side + gap) + gap
            left = right - (13 - c) * (side + gap) + gap
            drawn = pixels[top : top + side : 14, left : left + side : 14]
            assert drawn.min() == 0
            assert drawn.max() == 255
            expected = to_uint8(pictures.scale(cells[r, c]), bounds=(0, 1))
            assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_seed_chooses_the_photographs(tiny, folder, tmp_path):
    def names(seed):
        result = run("--images", folder, "--out", tmp_path, "--figure", 2, "--seed", seed)
        assert result.exit_code == 0, result.stderr
        manifest = json.loads((tmp_path / "figure2_efficientnet_lite0.json").read_text())
        assert manifest["seed"] == seed
        return [image["name"] for image in manifest["images"]]

    assert names(1) == names(1)
    assert names(1) != names(2)
    assert all(
        name.startswith(f"{target:04}") for name, target in zip(names(3), TARGETS[:5], strict=True)
    )


def test_temperatures_stored_with_weights_are_used_unless_given(tiny, folder, tmp_path):
    tiny.temperatures = (("relu", 0.25),)

    def site_temperatures(*options):
        result = run("--images", folder, "--out", tmp_path, "--figure", 2, *options)
        assert result.exit_code == 0, result.stderr
        manifest = json.loads((tmp_path / "figure2_efficientnet_lite0.json").read_text())
        return manifest["gatings"]["excitation pullbacks"]["site_temperatures"]

    assert site_temperatures() == {"relu": 0.25}
    assert site_temperatures("--temperature", 2) == {}


def test_models_by_commas_and_figures_by_repetition(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "find_weights", lambda *_: folder / "0000_0.png")
    result = run(
        *("--images", folder, "--out", tmp_path / "out", "--figure", 4, "--figure", 2),
        *("--model", "resnet18, vgg11_bn", "--model", "squeezenet1_0"),
    )
    assert result.exit_code == 0, result.stderr
    assert [Path(line).stem for line in result.stdout.split()] == [
        f"figure{number}_{model}"
        for model in ("resnet18", "vgg11_bn", "squeezenet1_0")
        for number in (2, 4)
    ]


def test_photographs_are_imagenette_s_by_default(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "imagenette", lambda: figures.image_folder(folder))
    result = run("--out", tmp_path / "out", "--figure", 2)
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "out/figure2_efficientnet_lite0.json").read_text())
    assert manifest["source"] == "Imagenette, validation split"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", 5], "--figure is 5: choose one of 1, 2, 3, 4"),
        (["--model", "alexnet"], "'alexnet'.*jax-excite models"),
        (["--model", "squeezenet1_0,resnet18", "--weights", "a.pth"], "one --model"),
        (["--model", "squeezenet1_0", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "no-church"], "church|497"),
        (["--temperature", -1], "temperature is -1"),
        (["--seed", -1], "seed is -1"),
        (["--out", "file"], "file"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments, message, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "no-church").mkdir()
    for path in folder.iterdir():
        if not path.name.startswith("0497"):
            (tmp_path / "no-church" / path.name).write_bytes(path.read_bytes())
    result = run("--images", folder, *arguments)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not list(tmp_path.rglob("figure*"))


def test_picture_and_manifest_appear_together(tiny, folder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left")

    monkeypatch.setattr(figures, "save_manifest", fail)
    result = run("--images", folder, "--out", tmp_path / "out", "--figure", 2)
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason=f"no {EXAMPLES}")
def test_excitation_pullbacks_of_a_real_network_are_smoother(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "PHOTOGRAPHED", ("church",))
    monkeypatch.setattr(figures, "TARGETS", ("church", "ostrich"))
    kept = []
    scale = pictures.scale
    monkeypatch.setattr(pictures, "scale", lambda cells: kept.append(cells) or scale(cells))
    result = run("--images", EXAMPLES, "--out", tmp_path, "--figure", 2)
    assert result.exit_code == 0, result.stderr
    assert kept[0].shape == (2, 3, 224, 224, 3)
    vanilla, soft = kept[0][:, 1:].sum(-1)
    assert (roughness(vanilla) > 1.1 * roughness(soft)).all()


def roughness(fields):
    """How much of the variation of fields `[..., H, W]` is from one pixel to the next."""
    return np.abs(np.diff(fields, axis=-2)).mean((-2, -1)) / fields.std((-2, -1))


def test_targets_are_the_paper_s():
    assert [class_index(name) for name in figures.TARGETS] == TARGETS
