"""The command line with ONNX files, and with channels of a site in place of classes."""

import json

import jax
import numpy as np
import onnx
import pytest
from matplotlib.image import imread
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import jax_excite as je
from jax_excite import recipes
from jax_excite.cli import runs
from jax_excite.data.photographs import packaged_photographs
from jax_excite.data.preprocessing import IMAGENET, Preprocessing
from jax_excite.onnx.network import TEMPERATURES
from tests.unit.test_cli import CAT, run

SIDE = 16


def network(folder, channels=3, classes=3, side=SIDE):
    """The path of an ONNX file with a small classifier."""
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.normal(size=(4, channels, 3, 3)).astype(np.float32),
        "head": generator.normal(size=(4, classes)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "/body/relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        helper.make_node("Gemm", ["d", "head"], ["y"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = folder / "small.onnx"
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(built.SerializeToString())
    return path


def arrays_of(path):
    with np.load(path) as archive:
        found = dict(archive)
    return json.loads(str(found.pop("manifest"))), found


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\ncup\n")
    return path


PIXELS = Preprocessing((0.0,) * 3, (1 / 255,) * 3, 18, SIDE, order="BGR", fit="letterbox")


@pytest.mark.parametrize(
    ("words", "preprocessing"),
    [
        ((), Preprocessing(IMAGENET.mean, IMAGENET.std, 18, SIDE)),
        (("--preprocessing", "pixels,bgr,letterbox"), PIXELS),
    ],
)
def test_a_grid_of_an_onnx_file(tmp_path, names, words, preprocessing):
    path, out = network(tmp_path), tmp_path / "grid.png"
    result = run(
        *("grid", CAT, "--model", path, "--classes-file", names, "--classes", "dog,2"),
        *("--what", "pullback", "--out", out, *words),
    )
    assert result.exit_code == 0, result.stderr
    manifest, arrays = arrays_of(out.with_suffix(".npz"))
    assert manifest["classes"] == [{"index": 1, "name": "dog"}, {"index": 2, "name": "cup"}]
    model = je.load(path, preprocessing=preprocessing)
    x = preprocessing.load_images([CAT])
    np.testing.assert_array_equal(arrays["images"], x)
    np.testing.assert_allclose(arrays["logits"], model(x), rtol=1e-4, atol=1e-5)
    wanted = je.pullback_grid(model, x, [1, 2], gating=recipes.EXCITATION)
    np.testing.assert_allclose(arrays["pullbacks"], wanted, rtol=1e-3, atol=1e-6)


def test_channels_of_a_site(tmp_path):
    path, out = network(tmp_path), tmp_path / "grid.png"
    model = je.load(path, preprocessing=Preprocessing(IMAGENET.mean, IMAGENET.std, 18, SIDE))
    at = ("--at", "body/relu/relu", "--channel", "3,0")
    for what in ("pullback", "ascent"):
        options = ("--what", what, "--out", out)
        result = run("grid", CAT, "--model", path, *at, *options)
        assert result.exit_code == 0, result.stderr
        manifest, arrays = arrays_of(out.with_suffix(".npz"))
        assert manifest["at"] == "body/relu/relu"
        assert [each["name"] for each in manifest["classes"]] == ["channel 3", "channel 0"]
        x = arrays["images"]
        if what == "pullback":
            wanted = je.pullback_grid(model, x, [3, 0], at=0)
            np.testing.assert_allclose(arrays["pullbacks"], wanted, rtol=1e-3, atol=1e-6)
        else:
            wanted, values = je.pga_grid(model, x, [3, 0], at=0, trajectory=True)
            np.testing.assert_allclose(arrays["perturbed"], wanted, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(arrays["trajectory"], values, rtol=1e-3)
            assert (values[..., -1] > values[..., 0]).all()
    result = run("sweep", CAT, "--model", path, *at[:3], "3", "--out", out)
    assert result.exit_code == 0, result.stderr
    _, arrays = arrays_of(out.with_suffix(".npz"))
    assert arrays["pullbacks"].shape[1:] == (1, SIDE, SIDE, 3)


def test_a_grey_network(tmp_path):
    path, out = network(tmp_path, channels=1), tmp_path / "grid.png"
    options = ("--classes", "0", "--preprocessing", "signed", "--what", "pullback")
    result = run("grid", CAT, "--model", path, *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    _, arrays = arrays_of(out.with_suffix(".npz"))
    assert arrays["pullbacks"].shape == (1, 1, SIDE, SIDE, 1)
    assert np.asarray(Image.open(out)).std() > 5


def test_a_store_of_an_onnx_file(tmp_path, names, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    path = network(tmp_path)
    (tmp_path / "photographs").mkdir()
    Image.open(CAT).save(tmp_path / "photographs/0001_cat.png")
    result = run(
        *("attribute", tmp_path / "photographs", "--out", tmp_path / "s", "--model", path),
        *("--classes-file", names, "--targets", "0,2", "--chunk", 2),
    )
    assert result.exit_code == 0, result.stderr
    store = je.open_store(tmp_path / "s")
    assert store.attributions([0], target=1).shape == (1, SIDE, SIDE, 3)
    result = run(
        *("attribute", tmp_path / "photographs", "--out", tmp_path / "s", "--model", path),
        *("--targets", "0,2", "--chunk", 2, "--preprocessing", "unit"),
    )
    assert result.exit_code == 2
    assert "was begun with preprocessing" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "0", "--weights", "x"), "has its own weights"),
        (("--classes", "cat"), "there is no class 'cat'"),
        (("--classes", "3"), "class index 3 is out of range"),
        (("--classes", "0", "--preprocessing", "sepia"), "--preprocessing has 'sepia'"),
        (("--classes", "0", "--preprocessing", "32"), "not a square side"),
        ((), "give one of --classes and --at with --channel"),
        (("--classes", "0", "--at", "x", "--channel", "1"), "give only one of --classes and --at"),
        (("--at", "x"), "--at and --channel go together"),
        (("--at", "x", "--channel", "1"), "at names no site of the function"),
        (("--at", "body/relu/relu", "--channel", "9"), "channel 9 of body/relu/relu is out of"),
        (("--at", "body/relu/relu", "--channel", "-1"), "give comma-separated numbers"),
    ],
)
def test_wrong_input(tmp_path, options, message):
    out = tmp_path / "out.png"
    result = run("grid", CAT, "--model", network(tmp_path), "--out", out, *options)
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert not out.exists()


def test_names_that_do_not_fit(tmp_path, names):
    path = network(tmp_path, classes=4)
    options = ("--classes-file", names, "--classes", "cat", "--out", tmp_path / "out.png")
    result = run("grid", CAT, "--model", path, *options)
    assert result.exit_code == 2
    assert "names 3 classes" in " ".join(result.stderr.split())
    result = run("grid", CAT, *options)
    assert result.exit_code == 2
    assert "--classes-file is for ONNX files" in " ".join(result.stderr.split())


def test_temperatures_of_an_onnx_file(tmp_path, names):
    """They are measured on photographs that come with a package, kept in a copy, and used."""
    path, out = network(tmp_path), tmp_path / "calibrated.onnx"
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"author": "someone", TEMPERATURES: "{}"})
    onnx.save(model, path)
    result = run("calibrate", "--model", path, "--out", out)
    assert result.exit_code == 0, result.stderr
    prepared = Preprocessing(IMAGENET.mean, IMAGENET.std, 18, SIDE)
    plain = je.load(path, preprocessing=prepared)
    assert plain.site_temperatures == {}
    photographs = prepared.load_images(packaged_photographs())
    wanted = je.calibrate(plain, photographs).site_temperatures
    copy = je.load(out, preprocessing=prepared)
    assert copy.site_temperatures.keys() == wanted.keys() == {"body/relu/relu"}
    np.testing.assert_allclose(*(list(t.values()) for t in (copy.site_temperatures, wanted)))
    assert copy.metadata["author"] == "someone"
    assert onnx.load(out).graph == model.graph

    def drawn(model):
        options = ("--classes", "dog", "--what", "pullback", "--out", tmp_path / "out.png")
        result = run("grid", CAT, "--model", model, "--classes-file", names, *options)
        assert result.exit_code == 0, result.stderr
        return arrays_of(tmp_path / "out.npz")[1]["pullbacks"][0], result.stderr

    found, messages = drawn(out)
    x = prepared.load_images([CAT])[0]
    gating = je.Gating(site_temperatures=copy.site_temperatures)
    np.testing.assert_allclose(found[0], je.pullback(copy, x, 1, gating=gating), rtol=1e-3)
    assert "jax-excite calibrate" not in messages
    other, messages = drawn(path)
    assert not np.allclose(other, found)
    assert "no temperatures of their own (jax-excite calibrate measures them)" in messages
    assert "taking 0.3 for ReLUs and 0.3 for max-pools" in messages

    # In place, and per channel.
    options = ("--out", out, "--per-channel")
    assert run("calibrate", CAT, "--model", out, *options).exit_code == 0
    assert je.load(out).site_temperatures["body/relu/relu"].shape == (4,)


def test_onnx_files_that_cannot_be_calibrated(tmp_path):
    path = network(tmp_path)
    result = run("calibrate", CAT, "--model", path, "--out", tmp_path / "out.safetensors")
    assert result.exit_code == 2
    assert "ends in .onnx" in result.stderr

    model = onnx.load(path)
    elsewhere = tmp_path / "elsewhere.onnx"
    storage = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(model, elsewhere, **storage)
    (tmp_path / "folder").mkdir()
    options = ("calibrate", CAT, "--model", elsewhere, "--out")
    result = run(*options, tmp_path / "folder" / "out.onnx")
    assert result.exit_code == 2
    assert "has tensors in files beside it: write out.onnx into" in " ".join(result.stderr.split())
    assert list((tmp_path / "folder").iterdir()) == []
    assert run(*options, tmp_path / "out.onnx").exit_code == 0
    assert len(je.load(tmp_path / "out.onnx").site_temperatures) == 1

    onnx.helper.set_model_props(model, {TEMPERATURES: "[1, 2]"})
    onnx.save(model, path)
    with pytest.raises(je.WeightsError, match="not a mapping from sites to numbers"):
        _ = je.load(path).site_temperatures


def test_a_picture_of_the_cells_so_far(tmp_path, names, monkeypatch):
    """The first cell is drawn while the second is computed, which is the photograph until then."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    climb, seen = runs.pga_grid, []

    def look(*arguments, **options):
        seen.append([imread(path) for path in folder.glob("a.preview-*.png")])
        return climb(*arguments, **options)

    monkeypatch.setattr(runs, "pga_grid", look)
    options = ("--classes-file", names, "--classes", "cat,dog", "--steps", 1)
    path = network(tmp_path)
    result = run("grid", CAT, "--model", path, *options, "--out", folder / "a.png")
    assert result.exit_code == 0, result.stderr
    assert "the cells so far are in" in result.stderr
    assert {path.name for path in folder.iterdir()} == {"a.png", "a.npz"}
    final = imread(folder / "a.png")
    assert [len(pictures) for pictures in seen] == [0, 1]
    preview = seen[1][0]
    assert preview.shape == final.shape
    changed = np.flatnonzero((preview != final).any((0, 2)))
    assert 0 < len(changed) <= 224
    assert changed[0] > final.shape[1] - 300  # the last column, and no other


def test_sites_are_listed(tmp_path):
    for options in (("--model", network(tmp_path)), ("--model", "vit_b_16"), ()):
        result = run("sites", *options)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0].split() == ["index", "name", "shape", "per", "image", "how"]
        assert [line.split()[0] for line in lines[1:-1]] == list(map(str, range(len(lines) - 2)))
    loaded = je.load("efficientnet_lite0")
    found = je.sites(loaded, np.zeros((1, 224, 224, 3), np.float32))
    assert [line.split()[1] for line in lines[1:-1]] == [site.name for site in found]
    assert all("computed by `relu6`" in line for line in lines[1:-1])
    assert lines[-1] == "33 sites of efficientnet_lite0 for an image of (224, 224, 3)"
    assert run("sites", "--model", "resnet5").stderr.startswith(
        "error: no model is called 'resnet5': did you mean resnet50"
    )
