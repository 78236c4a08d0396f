"""The command line with ONNX files, and with channels of a site in place of classes."""

import json

import jax
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import jax_excite as je
from jax_excite import recipes
from jax_excite.data.preprocessing import IMAGENET, Preprocessing
from tests.unit.test_cli import CAT, run

COMPILE_QUICKLY = True
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
            np.testing.assert_allclose(arrays["values"], values[..., 0], rtol=1e-3)
            np.testing.assert_allclose(arrays["values_after"], values[..., -1], rtol=1e-3)
            assert (arrays["values_after"] > arrays["values"]).all()
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
        ((), "give --classes, or --at with --channel"),
        (("--classes", "0", "--at", "x", "--channel", "1"), "give --classes, or --at"),
        (("--at", "x"), "--at and --channel go together"),
        (("--at", "x", "--channel", "1"), "at names no site of the function"),
        (("--at", "body/relu/relu", "--channel", "9"), "channel of body/relu/relu 9 is out of"),
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
