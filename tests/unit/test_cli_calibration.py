"""The commands calibrate, sweep and sanity, on small images and networks."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from jax_excite import Gating, calibrate, load, load_images, pullback
from jax_excite.models import model_spec
from jax_excite.weight_files import describe, read, write
from jax_excite.weights import save
from tests.unit.test_cli import CAT, COFFEE, run

NAME = "squeezenet1_0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that takes images of 64 x 64 pixels."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    metadata = describe(model_spec(NAME))
    fields = json.loads(metadata["preprocessing"]) | {"size": 64, "resize": 72}
    save(load(NAME, weights=None, seed=3), path, {**metadata, "preprocessing": json.dumps(fields)})
    return path


@pytest.fixture(scope="module")
def calibrated(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated") / "calibrated.safetensors"
    options = ("--model", NAME, "--weights", weights, "--out", out, "--scale", 0.5)
    result = run("calibrate", CAT, COFFEE, *options)
    assert result.exit_code == 0, result.stderr
    return out, result


def test_calibrate_stores_temperatures_with_the_weights(weights, calibrated):
    path, result = calibrated
    model = load(NAME, weights=path)
    x = load_images([CAT, COFFEE], 64, resize=72)
    wanted = calibrate(load(NAME, weights=weights), x, scale=0.5).site_temperatures
    assert dict(model.temperatures) == pytest.approx(
        {site: float(t) for site, t in wanted.items()}, rel=1e-4
    )
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [*wanted, str(path)]
    before, old = read(weights)
    after, new = read(path)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert json.loads(new["preprocessing"]) == json.loads(old["preprocessing"])


def test_calibrate_by_channel(weights, tmp_path):
    out = tmp_path / "channels.safetensors"
    options = ("--model", NAME, "--weights", weights, "--out", out, "--per-channel")
    assert run("calibrate", CAT, *options).exit_code == 0
    gating = Gating(site_temperatures=load(NAME, weights=out).site_temperatures)
    assert gating.site_temperatures["features.1/relu"].shape == (96,)


def test_grid_uses_stored_temperatures(calibrated, tmp_path):
    path, _ = calibrated
    options = ("--model", NAME, "--weights", path, "--classes", "3,5", "--what", "pullback")
    assert run("grid", CAT, *options, "--out", tmp_path / "a.png").exit_code == 0
    model = load(NAME, weights=path)
    x = load_images([CAT], 64, resize=72)[0]
    with np.load(tmp_path / "a.npz") as arrays:
        stored = json.loads(str(arrays["manifest"]))["gating"]["site_temperatures"]
        fields = arrays["pullbacks"][0]
    assert stored == pytest.approx(dict(model.temperatures))
    wanted = pullback(model, x, 5, gating=Gating(site_temperatures=model.site_temperatures))
    np.testing.assert_allclose(fields[1], wanted, rtol=1e-3, atol=1e-6)
    result = run("grid", CAT, *options, "--out", tmp_path / "b.png", "--temperature", "9")
    assert result.exit_code == 0
    with np.load(tmp_path / "b.npz") as arrays:
        assert json.loads(str(arrays["manifest"]))["gating"]["site_temperatures"] == {}
        assert not np.allclose(arrays["pullbacks"][0], fields)


@pytest.mark.parametrize("option", [(), ("--calibrated",)], ids=["plain", "calibrated"])
def test_sweep(weights, tmp_path, option):
    out = tmp_path / "sweep.png"
    options = ("--model", NAME, "--weights", weights, "--classes", "3,5", "--out", out)
    result = run("sweep", CAT, COFFEE, *options, "--temperatures", "0,0.6,inf", *option)
    assert result.exit_code == 0, result.stderr
    assert imread(out).std() > 0.05
    with np.load(tmp_path / "sweep.npz") as arrays:
        fields, values = arrays["pullbacks"], arrays["temperatures"]
    np.testing.assert_array_equal(values, [0, 0.6, np.inf])
    model, x = load(NAME, weights=weights), load_images([CAT, COFFEE], 64, resize=72)
    gating = calibrate(model, x, scale=0.6) if option else Gating(0.6, 0.6)
    wanted = pullback(model, x, np.array([3, 5]), gating=gating)
    np.testing.assert_allclose(fields[1], wanted, rtol=1e-2, atol=1e-5)


def test_sanity_of_a_network(weights):
    result = run("sanity", CAT, "--model", NAME, "--weights", weights, "--classes", "3,5")
    assert result.exit_code in (0, 3), result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split()[0] == "classifier.1"
    assert any(line.startswith("features.0 ") for line in lines)
    verdicts = [line.split()[0] for line in lines[-3:]]
    assert set(verdicts) <= {"passed", "FAILED"}
    assert result.exit_code == (3 if "FAILED" in verdicts else 0)
    assert verdicts[2] == "passed"


def test_sanity_fails_where_classes_have_one_map(tmp_path, weights):
    """Two logits with the same weights: the check has to see it."""
    tensors, metadata = read(weights)
    changed = {name: np.array(tensor) for name, tensor in tensors.items()}
    changed["classifier.1.kernel"][..., 5] = changed["classifier.1.kernel"][..., 3]
    changed["classifier.1.bias"][5] = changed["classifier.1.bias"][3]
    path = tmp_path / "twins.safetensors"
    write(path, changed, metadata)
    result = run("sanity", CAT, "--model", NAME, "--weights", path, "--classes", "3,5")
    assert result.exit_code == 3, result.stdout
    assert "FAILED  two classes" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", CAT, "--out", "a.pth"), "ends in .safetensors"),
        (("calibrate", CAT, "--out", "a.safetensors", "--scale", "-1"), "scale is -1"),
        (("sweep", CAT, "--classes", "3", "--out", "a.jpg"), "ends in .png"),
        (("sweep", CAT, "--classes", "3,5", "--out", "a.png"), "give one class, or 1"),
        (
            ("sweep", CAT, "--classes", "3", "--out", "a.png", "--temperatures", "1,hot"),
            "has 'hot': give numbers, or inf",
        ),
        (
            ("sweep", CAT, "--classes", "3", "--out", "a.png", "--temperatures", "-1"),
            "a temperature is 0",
        ),
        (("sanity", CAT, "--classes", "3,3"), "give two different classes"),
        (("sanity", "nowhere.png", "--classes", "3,5"), "nowhere.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_bad_input(weights, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--model", NAME, "--weights", weights)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
