"""Runs of `jax-excite grid`: what their cells show, and computing them again from a manifest."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import jax_excite as je
from jax_excite.attributions.registry import METHODS
from jax_excite.cli.columns import Columns
from jax_excite.cli.gatings import Recipe, at_temperature
from jax_excite.cli.runs import Run, results
from jax_excite.gating import Gating
from tests.networks import Network, images
from tests.unit.test_cli import CAT, run
from tests.unit.test_cli_networks import arrays_of, network

SITE = ("--at", "body/relu/relu", "--channel", "3,0")
CLASSES = ("--classes", "2,0")


@pytest.fixture
def path(tmp_path):
    return network(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        (*CLASSES, "--steps", 2),
        (*CLASSES, "--steps", 2, "--stepwise", "--radius", "none", "--recipe", "semantic"),
        (*SITE, "--stepwise", "--steps", 1),
        (*CLASSES, "--what", "pullback", "--temperature", "inf", "--gate", "softsign"),
        (*SITE, "--what", "pullback", "--stepwise"),
        (*CLASSES, "--what", "smooth_grad_8", "--seed", 3),
    ],
)
def test_a_run_is_computed_again_bit_by_bit(tmp_path, path, options):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    result = run("grid", CAT, "--model", path, *options, "--out", first)
    assert result.exit_code == 0, result.stderr
    result = run("grid", "--from", first.with_suffix(".npz"), "--out", again)
    assert result.exit_code == 0, result.stderr
    assert again.read_bytes() == first.read_bytes()
    (told, arrays), (told_again, found) = (
        arrays_of(each.with_suffix(".npz")) for each in (first, again)
    )
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, name)
    told.pop("command"), told_again.pop("command")
    assert told_again == told


def test_files_that_moved_with_their_manifest(tmp_path, path):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(CAT, home / "cat.png")
    out = home / "a.png"
    options = (*CLASSES, "--what", "pullback")
    assert run("grid", home / "cat.png", "--model", path, *options, "--out", out).exit_code == 0
    manifest, _ = arrays_of(home / "a.npz")
    manifest["images"][0]["file"] = "cat.png"
    (home / "manifest.json").write_text(json.dumps(manifest))
    home.rename(tmp_path / "elsewhere")
    path.rename(tmp_path / "moved.onnx")
    again = ("grid", "--from", tmp_path / "elsewhere" / "manifest.json")
    options = "--out", tmp_path / "b.png", "--model", tmp_path / "moved.onnx"
    result = run(*again, *options)
    assert result.exit_code == 0, result.stderr
    wanted = (tmp_path / "elsewhere" / "a.png").read_bytes()
    assert (tmp_path / "b.png").read_bytes() == wanted
    assert "small.onnx" in run(*again, "--out", tmp_path / "c.png").stderr
    other = network(home.with_name("elsewhere"), classes=4)
    result = run(*again, "--model", other, "--out", tmp_path / "c.png")
    assert result.exit_code == 2
    assert "is not the file that the run read" in result.stderr
    (tmp_path / "elsewhere" / "cat.png").write_bytes(b"another")
    result = run(*again, *options)
    assert "cat.png is not the file that the run read" in result.stderr
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "not JSON", "contains no manifest"),
        ("a.json", "{}", "is not the manifest of a class grid"),
        ("a.json", "[1]", "is not the manifest of a class grid"),
        ("a.npz", "not an archive", "contains no manifest"),
        ("missing.json", None, "No such file"),
    ],
)
def test_no_manifest(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    result = run("grid", "--from", tmp_path / name, "--out", tmp_path / "b.png")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((CAT, "--from", "a.npz", "--steps", 3), "leave out --images, --steps"),
        (CLASSES, "there are no photographs"),
        ((CAT, *CLASSES, "--what", "sweep"), "jax-excite sweep"),
        ((CAT, *CLASSES, "--what", "blur"), "--what is 'blur': give one of ascent, pullback"),
        ((CAT, *CLASSES, "--stepwise", "--batch-size", 2), "leave out --batch-size"),
        ((CAT, *SITE, "--what", "grad_cam"), "sites are chosen for ascents"),
        ((CAT, *CLASSES, "--what", "gradient", "--steps", 2), "makes no ascent"),
    ],
)
def test_wrong_options(tmp_path, path, options, message):
    result = run("grid", *options, "--model", path, "--out", tmp_path / "b.png")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "b.png").exists()


RUN = Run("sweep", Recipe.SEMANTIC, je.recipes.SEMANTIC, Columns([1], ["dog"], None))


def finished(x, **changed):
    """The arrays of a run, and its parts."""
    settings = dataclasses.replace(RUN, **changed)
    parts = list(results(Network(), x, settings))
    assert len(parts) == settings.parts(len(x))
    return parts[-1].arrays, parts


def test_a_sweep_is_the_pullback_at_each_temperature():
    x, temperatures = np.asarray(0.8 * images(2)), (0.0, 0.5, float("inf"))
    arrays, parts = finished(x, temperatures=temperatures)
    assert [(part.row, part.column) for part in parts] == [(n, t) for n in (0, 1) for t in range(3)]
    for column, temperature in enumerate(temperatures):
        gating = dataclasses.replace(
            je.recipes.SEMANTIC, temperature=temperature, pool_temperature=temperature
        )
        wanted = je.pullback(Network(), x, 1, gating=gating)
        np.testing.assert_allclose(arrays["pullbacks"][:, column], wanted, rtol=1e-4, atol=1e-7)


def test_a_temperature_for_all_gates_keeps_the_structure():
    stored = Gating(site_temperatures={"a": np.float32(2), "b": np.array([1, 3], np.float32)})
    for gating in (stored, je.recipes.SEMANTIC, je.recipes.VANILLA):
        uniform = at_temperature(gating, 0.5)
        assert jax.tree.structure(uniform) == jax.tree.structure(gating)
        assert all(np.all(np.asarray(leaf) == 0.5) for leaf in jax.tree.leaves(uniform)[:2])
        assert uniform.slope == gating.slope
    assert uniform.silu_temperature is None
    assert at_temperature(stored, 0.5).site_temperatures["b"].shape == (2,)


@pytest.mark.parametrize("what", METHODS)
def test_the_map_of_each_method(what):
    x = np.asarray(0.8 * images(1, size=16))
    arrays, parts = finished(x, what=what, columns=Columns([1, 0], ["dog", "cat"], None))
    wanted = METHODS[what].bind(RUN.gating, jax.random.key(0))(Network(), x[0], 0)
    np.testing.assert_allclose(arrays["maps"][0, 1], wanted, rtol=1e-4, atol=1e-7)
    assert len(parts) == 2
