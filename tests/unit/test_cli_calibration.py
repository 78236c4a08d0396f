"""The commands calibrate, sweep and sanity, on small images and networks."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from jax_excite import Gating, calibrate, load, load_images, pullback
from jax_excite.cli import networks
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.models import Classifier, Preprocessing, model_spec
from jax_excite.weights.files import describe, read
from jax_excite.weights.loading import save
from tests.networks import Network
from tests.unit.test_cli import CAT, COFFEE, run

NAME = "squeezenet1_0"
PREPROCESSING = Preprocessing((0.5,) * 3, (0.25,) * 3, 16, 16)


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


@pytest.fixture
def tiny(monkeypatch):
    """A small network that the commands take for any model."""
    network = Classifier(Network(classes=1000), PREPROCESSING, CLASS_NAMES)
    monkeypatch.setattr(networks, "load_model", lambda *_, **__: network)
    return network


def with_temperatures(network):
    x = load_images([CAT, COFFEE], 16, resize=16)
    found = calibrate(network, x, scale=0.5).site_temperatures
    stored = tuple((site, float(t)) for site, t in found.items())
    return Classifier(network.net, PREPROCESSING, CLASS_NAMES, stored)


def test_grid_uses_stored_temperatures(tiny, tmp_path, monkeypatch):
    network = with_temperatures(tiny)
    monkeypatch.setattr(networks, "load_model", lambda *_, **__: network)
    options = ("--classes", "3,5", "--what", "pullback", "--out")
    assert run("grid", CAT, *options, tmp_path / "a.png").exit_code == 0
    with np.load(tmp_path / "a.npz") as arrays:
        stored = json.loads(str(arrays["manifest"]))["gating"]["site_temperatures"]
        fields = arrays["pullbacks"][0]
    assert stored == pytest.approx(dict(network.temperatures))
    gating = Gating(site_temperatures=network.site_temperatures)
    wanted = pullback(network, load_images([CAT], 16, resize=16)[0], 5, gating=gating)
    np.testing.assert_allclose(fields[1], wanted, rtol=1e-3, atol=1e-6)
    assert run("grid", CAT, *options, tmp_path / "b.png", "--temperature", "9").exit_code == 0
    with np.load(tmp_path / "b.npz") as arrays:
        assert json.loads(str(arrays["manifest"]))["gating"]["site_temperatures"] == {}
        assert not np.allclose(arrays["pullbacks"][0], fields)


@pytest.mark.parametrize("option", [(), ("--calibrated",)], ids=["plain", "calibrated"])
def test_sweep(tiny, tmp_path, option):
    out = tmp_path / "sweep.png"
    options = ("--classes", "3,5", "--out", out, "--temperatures", "0,0.6,inf")
    result = run("sweep", CAT, COFFEE, *options, *option)
    assert result.exit_code == 0, result.stderr
    assert imread(out).std() > 0.05
    with np.load(tmp_path / "sweep.npz") as arrays:
        fields, values = arrays["pullbacks"], arrays["temperatures"]
    np.testing.assert_array_equal(values, [0, 0.6, np.inf])
    x = load_images([CAT, COFFEE], 16, resize=16)
    gating = calibrate(tiny, x, scale=0.6) if option else Gating(0.6, 0.6)
    wanted = pullback(tiny, x, np.array([3, 5]), gating=gating)
    np.testing.assert_allclose(fields[1], wanted, rtol=1e-3, atol=1e-6)


def test_sanity_of_a_network(tiny):
    result = run("sanity", CAT, "--classes", "3,5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["head", "conv2", "norm", "conv1"]
    assert [line.split()[0] for line in lines[-3:]] == ["passed"] * 3


def test_sanity_fails_where_classes_have_one_map(tiny):
    """Two logits with the same weights: the check has to see it."""
    tiny.net.head.kernel = tiny.net.head.kernel[...].at[:, 5].set(tiny.net.head.kernel[..., 3])
    result = run("sanity", CAT, "--classes", "3,5")
    assert result.exit_code == 3, result.output
    assert "FAILED  two classes" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", CAT, "--out", "a.pth"), "ends in .safetensors"),
        (("calibrate", CAT, "--out", "a.safetensors", "--scale", "-1"), "scale is -1"),
        (("sweep", CAT, "--classes", "3", "--out", "a.jpg"), "ends in .png"),
        (
            ("sweep", CAT, "--classes", "3,5", "--out", "a.png"),
            "give one class, or one per photograph (1)",
        ),
        (
            ("sweep", CAT, "--classes", "3", "--out", "a.png", "--temperatures", "1,hot"),
            "has 'hot': give numbers, or inf",
        ),
        (
            ("sweep", CAT, "--classes", "3", "--out", "a.png", "--temperatures", "-1"),
            "a temperature is 0",
        ),
        (("sanity", CAT, "--classes", "3,3"), "give two different classes"),
        (("sanity", CAT, "--classes", "3,5", "--seed", "-1"), "--seed"),
        (("calibrate", CAT, "--out", "no/folder.safetensors"), "there is no folder no"),
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
