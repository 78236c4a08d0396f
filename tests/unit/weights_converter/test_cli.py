import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jax_excite import calibrate, load
from jax_excite.data.photographs import packaged_photographs
from jax_excite.models import MODELS
from jax_excite.weights.loading import named_leaves
from tests import torch_reference as reference
from tests.unit.weights_converter import crafted
from weights_converter import cli
from weights_converter.cli import app
from weights_converter.convert import find_rule
from weights_converter.names import TABLES
from weights_converter.recognise import recognise

NAME = "squeezenet1_1"
HOSTILE = crafted.archive(crafted.state_dict(crafted.call("os", "system", crafted.text("true"))))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(result, words, code=2):
    """It failed with one line that says so."""
    assert result.exit_code == code, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def checkpoint(folder):
    module = reference.reference(NAME, num_classes=3, dtype=torch.float32)
    torch.save(module.net.state_dict(), folder / "flowers.pth")
    return folder / "flowers.pth"


@pytest.fixture
def converted(checkpoint, tmp_path):
    out = tmp_path / "flowers.safetensors"
    assert run("convert", checkpoint, "-o", out).exit_code == 0
    return out


def edited(checkpoint, out, edit):
    state_dict = torch.load(checkpoint, weights_only=True)
    edit(state_dict)
    torch.save(state_dict, out)
    return out


def test_convert_says_what_it_did(checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    result = run("convert", checkpoint, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"is a {NAME} of 3 classes" in result.stdout
    for check in ("names and shapes", "finite values", "preprocessing and classes", "checksum"):
        assert f"{check}: ok" in result.stdout
    assert load(NAME, weights=out).class_names == ("0", "1", "2")

    fails(run("convert", checkpoint, "-o", out), "--force")
    again = run("convert", checkpoint, "-o", out, "--force", "--json", "--model", NAME)
    report = json.loads(again.stdout)
    assert (report["model"], report["classes"], report["tensors"]) == (NAME, 3, 52)
    assert report["bytes"] == out.stat().st_size
    assert all(check["passed"] for check in report["checks"])


def test_temperatures_are_measured_where_they_are_needed(checkpoint, tmp_path, monkeypatch):
    """SqueezeNet has no BatchNorm, so that no constant suits its sites; ResNet has."""

    def convert(source, *options):
        out = tmp_path / "out.safetensors"
        result = run("convert", source, "-o", out, "--force", *options)
        assert result.exit_code == 0, result.output
        return result.stdout, out

    words, out = convert(checkpoint)
    network = load(NAME, weights=out)
    photographs = network.preprocessing.load_images(packaged_photographs())
    wanted = calibrate(load(NAME, weights=checkpoint), photographs).site_temperatures
    assert len(wanted) == 29
    assert "temperatures measured: 29" in words
    for site, found in network.site_temperatures.items():
        np.testing.assert_allclose(found, wanted[site], rtol=1e-5)
    assert network.site_temperatures.keys() == wanted.keys()

    words, out = convert(checkpoint, "--no-calibrate")
    assert load(NAME, weights=out).site_temperatures == {}
    assert "temperatures measured: 0" in words

    module = reference.reference("resnet18", num_classes=3, dtype=torch.float32)
    torch.save(module.net.state_dict(), tmp_path / "resnet.pth")
    words, out = convert(tmp_path / "resnet.pth")
    assert load("resnet18", weights=out).site_temperatures == {}
    assert "temperatures measured" not in words
    _, out = convert(tmp_path / "resnet.pth", "--calibrate")
    assert len(load("resnet18", weights=out).site_temperatures) == 18

    monkeypatch.setitem(sys.modules, "skimage", None)
    _, out = convert(checkpoint)
    assert load(NAME, weights=out).site_temperatures == {}
    before = out.read_bytes()
    result = run("convert", checkpoint, "-o", out, "--force", "--calibrate")
    fails(result, 'pip install "jax-excite[demo]"')
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"rose\niris\npoppy\n", b'\xef\xbb\xbf["rose", "iris", "poppy"]']
)
def test_class_names(checkpoint, tmp_path, content):
    names, out = tmp_path / "names", tmp_path / "out.safetensors"
    names.write_bytes(content)
    assert run("convert", checkpoint, "-o", out, "--class-names", names).exit_code == 0
    assert load(NAME, weights=out).class_names == ("rose", "iris", "poppy")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"rose\niris\n", "2 class names"), (b"\xff", "UTF-8"), (b"[1, 2, 3]", "list of strings")],
)
def test_wrong_class_names(checkpoint, tmp_path, content, words):
    (tmp_path / "names").write_bytes(content)
    out = tmp_path / "out.safetensors"
    fails(run("convert", checkpoint, "-o", out, "--class-names", tmp_path / "names"), words)
    assert [path.name for path in tmp_path.iterdir()] == ["names"]


def test_convert_refuses(checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    (tmp_path / "hostile.pth").write_bytes(HOSTILE)
    broken = edited(checkpoint, tmp_path / "nan.pth", poison)
    before = sorted(tmp_path.iterdir())
    fails(run("convert", tmp_path / "hostile.pth", "-o", out), "'os.system'")
    fails(run("convert", broken, "-o", out), "features.3.squeeze.weight holds NaN")
    fails(run("convert", tmp_path / "absent.pth", "-o", out), "absent.pth")
    fails(run("convert", checkpoint, "-o", tmp_path / "no" / "out"), "no folder")
    fails(run("convert", checkpoint, "-o", tmp_path), "not a folder")
    fails(run("convert", checkpoint, "-o", checkpoint), "another file")
    fails(run("convert", checkpoint, "-o", out, "--model", "vgg11"), "does not fit vgg11")
    fails(run("convert", checkpoint, "-o", out, "--model", "alexnet"), "no model is called")
    assert sorted(tmp_path.iterdir()) == before


def poison(state_dict):
    state_dict["features.3.squeeze.weight"][1, 2] = float("nan")


def test_an_unknown_network(checkpoint, tmp_path):
    fewer = edited(checkpoint, tmp_path / "a.pth", lambda found: found.pop("features.0.weight"))
    fails(run("convert", fewer, "-o", tmp_path / "out"), "matches no known model")


def test_interrupted(checkpoint, tmp_path, monkeypatch):
    def interrupt(array):
        yield array
        raise KeyboardInterrupt

    # As an attribute the module is hidden by its function.
    monkeypatch.setattr(sys.modules["weights_converter.convert"], "split", interrupt)
    assert run("convert", checkpoint, "-o", tmp_path / "out").exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [1000, 7])
def test_every_model_is_recognised(classes):
    for spec in MODELS.values():
        shapes = {}
        for name, leaf in named_leaves(spec.abstract(num_classes=classes)).items():
            rules = TABLES[spec.family].rules
            rule, source = find_rule(name, leaf.ndim, rules)
            shapes[source] = tuple(leaf.shape[rule.order.index(axis)] for axis in range(leaf.ndim))
        shapes["bn1.num_batches_tracked"] = ()
        assert recognise(shapes) == spec.name


def test_legacy_names_are_recognised_and_counted(tmp_path):
    module = reference.reference("densenet121", dtype=torch.float32)
    state_dict = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in module.net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(state_dict, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    result = run("convert", tmp_path / "a.pth", "-o", tmp_path / "out", "--json")
    report = json.loads(result.stdout)
    assert report["model"] == "densenet121"
    assert report["renamed"]["features.denseblock1.denselayer1.norm.1.weight"] == (
        "features.denseblock1.denselayer1.norm1.weight"
    )
    assert report["ignored"] == []


def test_inspect(checkpoint, converted, tmp_path):
    result = run("inspect", checkpoint)
    assert result.exit_code == 0
    assert "features.0.weight" in result.stdout
    assert "64 x 3 x 3 x 3" in result.stdout
    assert "zip: 52 tensors" in result.stdout
    assert "global torch._utils._rebuild_tensor_v2: known" in result.stdout
    found = json.loads(run("inspect", converted, "--json").stdout)
    assert found["format"] == "safetensors"
    assert found["metadata"]["model"] == NAME
    assert found["globals"] == []

    (tmp_path / "hostile.pth").write_bytes(HOSTILE)
    result = run("inspect", tmp_path / "hostile.pth")
    fails(result, "'os.system'")
    assert "global os.system: REFUSED" in result.stdout


def test_inspect_forges_no_line(tmp_path):
    name = crafted.text("os") + crafted.text("x\nglobal y: known\x1b[2K") + b"\x93"
    (tmp_path / "a.pth").write_bytes(crafted.archive(crafted.state_dict(name)))
    result = run("inspect", tmp_path / "a.pth")
    assert "\x1b" not in result.output
    assert "global y: known" not in result.stdout.splitlines()


def test_verify(checkpoint, converted):
    result = run("verify", converted, "--against", checkpoint, "--json")
    checks = {check["what"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert all(check["passed"] for check in checks.values())
    assert "relative L2 error" in checks["same logits"]["detail"]


def test_verify_without_torch(checkpoint, converted, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("verify", converted, "--against", checkpoint)
    assert result.exit_code == 0
    assert "same tensors: ok" in result.stdout
    assert "same logits: not checked" in result.stdout


def test_verify_finds_differences(checkpoint, converted, tmp_path):
    def change(found):
        found["classifier.1.bias"][0] += 1

    other = edited(checkpoint, tmp_path / "other.pth", change)
    result = run("verify", converted, "--against", other)
    assert result.exit_code == cli.DIFFERENT
    assert "same tensors: WRONG (classifier.1.bias)" in result.stdout

    data = bytearray(converted.read_bytes())
    data[-1] ^= 1
    converted.write_bytes(data)
    result = run("verify", converted)
    assert result.exit_code == cli.DIFFERENT
    assert "checksum: WRONG" in result.stdout

    data[-4:] = np.float32(np.nan).tobytes()
    converted.write_bytes(data)
    assert "finite values: WRONG (" in run("verify", converted).stdout
    fails(run("verify", checkpoint), "not a safetensors file")


def test_list():
    rows = json.loads(run("list", "--json").stdout)
    assert {row["model"] for row in rows} == set(MODELS)
    assert {"IMAGENET1K_V1", "IMAGENET1K_V2"} == {row["weights"] for row in rows}
    assert "resnet50-0676ba61.pth" in run("list").stdout


def test_download_of_unknown_weights():
    fails(run("download", "resnet18", "--weights", "IMAGENET1K_V2"), "choose one of IMAGENET1K_V1")
    fails(run("download", "resnet18", "--weights", "mine.pth"), "no weights mine.pth")


def test_the_module_runs():
    command = [sys.executable, "-m", "weights_converter", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(word in result.stdout for word in ("convert", "inspect", "verify", "list"))
