"""Networks by timm's names: weights from files, from a server like the Hub, and from its cache."""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from jax_excite import WeightsError, load
from jax_excite.models import model_spec
from jax_excite.models.timm import ARCHITECTURES
from jax_excite.weights.loading import named_leaves
from tests.listings import original
from weights_converter import convert_file
from weights_converter.verify import verify

NAME = "timm/resnet18.test_in1k"
CONFIG = {
    "architecture": "resnet18",
    "pretrained_cfg": {
        "input_size": [3, 160, 160],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "crop_pct": 0.8,
        "crop_mode": "center",
        "interpolation": "bicubic",
    },
}


def state_dict(name):
    """Random weights under PyTorch's names, of a network without LayerNorm or attention."""
    rng = np.random.default_rng(0)
    theirs = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    found = {}
    for ours, leaf in named_leaves(model_spec(name).abstract()).items():
        module, _, kind = ours.rpartition(".")
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
        array = rng.standard_normal(leaf.shape, np.float32).transpose(order)
        found[f"{module}.{theirs.get(kind, kind)}"] = np.ascontiguousarray(abs(array))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a repository of the Hub has it."""
    folder = tmp_path_factory.mktemp("repository")
    save_file(state_dict(NAME), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_file_with_its_description(folder):
    model = load(NAME, weights=folder / "model.safetensors")
    found = model.preprocessing
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (found.resize, found.size, found.min_size) == (200, 160, 1)
    assert found.interpolation == "bicubic"
    same = load("resnet18", weights=folder / "model.safetensors")
    assert jax.tree.structure(model.net) == jax.tree.structure(same.net)
    assert same.preprocessing == found
    assert len(model.class_names) == 1000


def test_a_converted_file_keeps_the_description(folder, tmp_path):
    converted = tmp_path / "converted.safetensors"
    convert_file(folder / "model.safetensors", converted, model=NAME)
    found, wanted = load(NAME, weights=converted), load(NAME, weights=folder / "model.safetensors")
    assert found.preprocessing == wanted.preprocessing
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(wanted)))


def test_a_converted_file_gives_the_originals_logits(tmp_path):
    pytest.importorskip("timm", reason="timm is a test dependency")
    name = "timm/convnext_tiny.test"
    module = original(name).eval()
    file, converted = tmp_path / "model.safetensors", tmp_path / "converted.safetensors"
    save_torch_file(module.state_dict(), file)
    config = {"architecture": "convnext_tiny", "pretrained_cfg": CONFIG["pretrained_cfg"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model in (name, None):  # None: it is recognised as torchvision's
        convert_file(file, converted, model=model)
        checks = {check.what: check for check in verify(converted, against=file)}
        assert checks["same logits"].passed is True, checks["same logits"].detail


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "has no config.json beside it.*https://huggingface.co/timm/resnet18.test_in1k"),
        ({"architecture": "resnet50"}, "it is of resnet50, not of timm/resnet18"),
        ({"pretrained_cfg": {}}, "no readable preprocessing: KeyError"),
        ({"crop_mode": "squash"}, "squash"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos': give one of"),
    ],
)
def test_a_description_that_is_missing_or_wrong(changes, message, folder, tmp_path):
    (tmp_path / "model.safetensors").hardlink_to(folder / "model.safetensors")
    if changes is not None:
        config = json.loads(json.dumps(CONFIG))
        whole = changes.keys() <= config.keys()
        (config if whole else config["pretrained_cfg"]).update(changes)
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        load(NAME, weights=tmp_path / "model.safetensors")


def test_names():
    assert {"resnet50", "convnext_tiny", "vit_base_patch16_224", "pvt_v2_b1"} <= set(ARCHITECTURES)
    with pytest.raises(WeightsError, match=r"'swin_tiny' here: choose one of resnet18.*ONNX"):
        load("timm/swin_tiny.ms_in1k")
    with pytest.raises(WeightsError, match="IMAGENET1K_V1: choose one of pretrained"):
        load(NAME, weights="IMAGENET1K_V1")
    model = load("timm/vit_tiny_patch16_224.any", weights=None)
    assert model.preprocessing.size == 224
    assert jax.eval_shape(model, np.zeros((224, 224, 3), np.float32)).shape == (1000,)


@contextlib.contextmanager
def hub(folder):
    """A server that answers as the Hub does, with the files of a folder."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            content = (folder / self.path.rpartition("/")[2]).read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def load_elsewhere(endpoint, cache, **environment):
    """Load the pretrained weights in a process that uses a server and a cache."""
    code = f"import jax_excite; print(jax_excite.load({NAME!r}).preprocessing.size)"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
    )


def test_download_is_announced_and_kept(folder, tmp_path):
    with hub(folder) as endpoint:
        first = load_elsewhere(endpoint, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == "160"
    for file in ("model.safetensors", "config.json"):
        assert f"downloading {endpoint}/{NAME}/resolve/main/{file}" in first.stderr
    again = load_elsewhere(endpoint, tmp_path)  # the server has gone
    assert again.returncode == 0, again.stderr
    assert "downloading" not in again.stderr


def test_offline_the_error_says_what_to_fetch(tmp_path):
    endpoint = "http://127.0.0.1:9"
    result = load_elsewhere(endpoint, tmp_path)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert f"cannot download {endpoint}/{NAME}/resolve/main/config.json" in message
    assert f"load('{NAME}', weights='FOLDER/model.safetensors')" in message
