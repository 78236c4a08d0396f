"""The page of `jax-excite app` without a browser: uploads, turns, questions, answers, server."""

import asyncio
import dataclasses
import io
import json
import socket
import struct
import threading
import zipfile
import zlib

import jax
import numpy as np
import pytest
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from typer.testing import CliRunner

from jax_excite.app import server
from jax_excite.app.answer import (
    Answer,
    Part,
    Predicted,
    archive,
    explain,
    predict,
    view,
    view_names,
)
from jax_excite.app.controls import samples
from jax_excite.app.networks import Networks
from jax_excite.app.photograph import MAX_BYTES, Photograph
from jax_excite.app.question import PULLBACKS, Question
from jax_excite.app.turns import Turns, Waiting
from jax_excite.cli import app
from jax_excite.errors import ExciteError, ImageError
from tests.unit.test_cli_networks import network


def encoded(kind="PNG", size=(30, 20), colour=(200, 30, 60)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def black_png(width, height):
    """A black PNG of any size, written without its pixels in memory."""
    packed = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


# Uploads.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_photograph_is_kept_as_it_is(kind):
    data = encoded(kind)
    found = Photograph.of(f"a.{kind}", data)
    assert found.data == data
    assert found.suffix == f".{kind.lower()}"
    assert found.image().size == (30, 20)
    assert np.abs(np.asarray(found.image())[0, 0].astype(int) - (200, 30, 60)).max() < 12


HOSTILE = {
    "empty": (b"", "cannot be read as an image"),
    "text": (b"<html><script>alert(1)</script></html>", "cannot be read as an image"),
    "cut off": (encoded()[:-30], "cannot be read as an image"),
    "20,000 x 20,000": (black_png(20_000, 20_000), "20000|decompression bomb"),
    "51 million pixels": (black_png(10_000, 5_100), "has 10000 x 5100 pixels: give a photograph"),
    "too many bytes": (encoded("BMP", (2600, 2600)), "has 20 MB|at most 20 MB"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_a_clear_message(name):
    data, message = HOSTILE[name]
    with pytest.raises(ImageError, match=message) as caught:
        Photograph.of("../../etc/passwd\x00\n.png", data)
    assert str(caught.value).startswith("passwd.png ")


def test_a_polyglot_is_its_pixels_only():
    """An image that is a web page too is decoded, and its bytes are shown to nobody."""
    found = Photograph.of("a.html", encoded("GIF") + b"<script>alert(1)</script>")
    assert found.suffix == ".gif"
    assert found.image().size == (30, 20)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../a/b.png", "b.png"),
        ("C:\\photos\\b.png", "b.png"),
        ("a\u202ebgnp.exe", "abgnp.exe"),
        ("x" * 500, "x" * 60),
        ("/", "the photograph"),
        ("\n", "the photograph"),
    ],
)
def test_names_of_uploads(given, shown):
    assert Photograph.of(given, encoded()).name == shown


# Turns.


def told(job):
    async def read():
        return [event async for event in job.events()]

    return read()


def test_jobs_are_computed_in_turn():
    running, most = [], []

    def work(name):
        for part in range(3):
            running.append(name)
            most.append(len(set(running)))
            yield name, part
        running.clear()

    async def people():
        turns = Turns()
        jobs = [turns.ask(lambda name=name: work(name)) for name in range(20)]
        return await asyncio.gather(*map(told, jobs))

    for name, events in enumerate(asyncio.run(people())):
        own = [event for event in events if not isinstance(event, Waiting)]
        assert own == [(name, part) for part in range(3)]
        ahead = [event.ahead for event in events if isinstance(event, Waiting)]
        assert ahead == sorted(ahead, reverse=True)
        assert all(each <= name for each in ahead)
    assert set(most) == {1}


def test_a_job_that_is_left_stops_and_lets_others_move_up():
    begun, go_on = threading.Event(), threading.Event()
    parts = []

    def long():
        for part in range(1000):
            parts.append(part)
            begun.set()
            yield part
            go_on.wait(10)

    async def people():
        turns = Turns()
        first, second, third = (turns.ask(work) for work in (long, long, lambda: iter("x")))
        await asyncio.to_thread(begun.wait, 10)
        turns.leave(second)
        turns.leave(first)
        go_on.set()
        return await asyncio.gather(told(first), told(second), told(third))

    _, second, third = asyncio.run(people())
    assert third[-1] == "x"
    assert [event.ahead for event in third[:-1]][-1] == 1
    assert second == []
    assert len(parts) <= 2  # the part that was being computed is the last


def test_jobs_end_with_the_server():
    begun = threading.Event()
    parts = []

    def endless():
        while True:
            parts.append(1)
            begun.set()
            yield 1

    async def people():
        turns = Turns()
        first, second = turns.ask(endless), turns.ask(endless)
        await asyncio.to_thread(begun.wait, 10)
        turns.stop()
        await asyncio.gather(told(first), told(second))

    asyncio.run(people())
    names = [thread.name for thread in threading.enumerate()]
    for thread in threading.enumerate():
        if thread.name.startswith("explaining"):
            thread.join(10)
            assert not thread.is_alive(), names


def test_errors_reach_those_who_asked():
    def wrong():
        yield 1
        raise ExciteError("no")

    async def people():
        turns = Turns()
        failing, next_one = turns.ask(wrong), turns.ask(lambda: iter("x"))
        with pytest.raises(ExciteError, match="no"):
            await told(failing)
        return await told(next_one)

    assert asyncio.run(people())[-1] == "x"


# Questions and answers.


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    names = folder / "names.txt"
    names.write_text("cat\ndog\ncup\n")
    path = network(folder)
    other = path.rename(folder / "other.onnx")
    return Networks([str(network(folder)), str(other)], names, "signed")


@pytest.fixture
def question(networks):
    return Question(Photograph.of("a.png", encoded()), (networks.names[0],), (2, 0), steps=2)


def asked(networks, question):
    events = list(explain(networks, question, set()))
    assert isinstance(events[-1], Answer)
    return events


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ()}, "0 classes are chosen: choose 1 to 9"),
        ({"classes": tuple(range(10))}, "10 classes"),
        ({"steps": 10**9}, "number of steps is 1000000000: give a number from 1 to 50"),
        ({"steps": 0}, "number of steps is 0"),
        ({"step_size": float("nan")}, "step size is nan"),
        ({"step_size": "20"}, "step size is 20"),
        ({"radius": -1.0}, "radius is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"method": "blur"}, "'blur'"),
        ({"method": "grad_cam"}, "choose the map"),
        ({"shown": "sweep"}, "one target"),
        ({"site": "a", "channels": (1,), "models": ("a", "b")}, "one network"),
    ],
)
def test_questions_are_checked(question, changed, message):
    with pytest.raises(ExciteError, match=message):
        dataclasses.replace(question, **changed)


@pytest.mark.parametrize("method", PULLBACKS)
def test_another_temperature_is_no_other_program(networks, question, method):
    opened = networks.open(question.models[0])
    gatings = [
        dataclasses.replace(question, method=method, temperature=temperature)
        .run(opened, opened)
        .gating
        for temperature in (None, 0.0, 0.3, 4.0)
    ]
    assert len({jax.tree.structure(gating) for gating in gatings}) == 1
    assert (len({str(gating) for gating in gatings}) == 1) == (method == "gradient")


def test_predictions(networks, question):
    compiled = set()
    _, looking, found = predict(networks, question, compiled)
    assert isinstance(found, Predicted)
    assert "compiling first" in looking.text
    assert "compiling" not in list(predict(networks, question, compiled))[1].text
    assert "compiling" not in list(explain(networks, question, compiled))[1].text
    semantic = dataclasses.replace(question, method="semantic_pullback")
    assert "compiling" in list(explain(networks, semantic, compiled))[1].text
    opened = networks.open(question.models[0]).network
    logits = opened(opened.preprocessing.load_images([question.photograph.image()]))[0]
    np.testing.assert_allclose(found.probabilities, -np.sort(-jax.nn.softmax(logits)), rtol=1e-4)
    assert found.classes == np.argsort(-logits).tolist()


def test_an_answer_comes_in_steps(networks, question):
    parts = [event for event in asked(networks, question) if isinstance(event, Part)]
    assert [(part.progress.column, part.progress.step) for part in parts] == [
        (column, step) for column in (0, 1) for step in range(3)
    ]
    curves = parts[-1].curves
    assert [len(curve) for curve in curves] == [3, 3]
    logits = parts[-1].progress.arrays["logits_after"][0]
    for column, index in enumerate((2, 0)):
        np.testing.assert_allclose(
            curves[column][-1], jax.nn.softmax(logits[column])[index], rtol=1e-4
        )


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"temperature": 0.7, "radius": None},
        {"method": "semantic_pullback", "shown": "pullback"},
        {"method": "gradient"},
        {"method": "integrated_gradients_16", "shown": "pullback"},
        {"classes": (1,), "shown": "sweep"},
        {"classes": (), "site": "body/relu/relu", "channels": (3, 0)},
        {"models": "both"},
    ],
)
def test_what_is_downloaded_computes_the_same_again(networks, question, changed, tmp_path):
    if changed.get("models"):
        changed = {"models": tuple(networks.names[:2])}
    *_, answer = asked(networks, dataclasses.replace(question, **changed))
    with zipfile.ZipFile(io.BytesIO(archive(answer))) as whole:
        whole.extractall(tmp_path)
    manifests = sorted(tmp_path.rglob("manifest.json"))
    assert len(manifests) == len(answer.runs)
    for manifest in manifests:
        again, place = tmp_path / "again.png", manifest.parent
        assert (place / "photograph.png").read_bytes() == question.photograph.data
        result = CliRunner().invoke(app, ["grid", "--from", str(manifest), "--out", str(again)])
        assert result.exit_code == 0, result.stderr
        assert again.read_bytes() == (place / "picture.png").read_bytes()
        with np.load(place / "arrays.npz") as one, np.load(again.with_suffix(".npz")) as two:
            assert one.keys() == two.keys()
            for name in set(one) - {"manifest"}:
                np.testing.assert_array_equal(one[name], two[name], name)
        assert json.loads(manifest.read_text())["images"][0]["file"] == "photograph.png"


def test_the_second_network_gets_its_own_classes(tmp_path, question):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\ncup\n")
    networks = Networks([str(network(tmp_path)), "efficientnet_lite0"], names)
    compared = dataclasses.replace(question, models=tuple(networks.names[:2]))
    opened = [networks.open(model) for model in compared.models]
    assert compared.run(opened[0], opened[0]).columns.names == ["cup", "cat"]
    with pytest.raises(ExciteError, match="there is no class 'cat'"):
        dataclasses.replace(compared, classes=(0,)).run(opened[1], opened[0])
    backwards = dataclasses.replace(compared, classes=(968,))
    assert backwards.run(opened[0], opened[1]).columns.indices == [2]


@pytest.mark.parametrize("mode", ["cell", "row"])
def test_views_of_a_cell(networks, question, mode):
    *_, answer = asked(networks, question)
    arrays = answer.arrays[0]
    change = arrays["perturbed"][0] - arrays["images"][0]
    found = {name: view(arrays, 1, name, mode) for name in view_names(answer.runs[0])}
    assert list(found) == ["original", "perturbed", "difference", "heat map"]
    np.testing.assert_allclose(found["original"], (arrays["images"][0] + 1) / 2)
    spread = change[1] if mode == "cell" else change
    wanted = (change[1] - spread.min()) / (spread.max() - spread.min())
    np.testing.assert_allclose(found["difference"], wanted, atol=1e-6)
    assert all(0 <= picture.min() <= picture.max() <= 1 for picture in found.values())


def test_networks_that_are_offered(tmp_path):
    assert Networks().names[0] == "efficientnet_lite0"
    with pytest.raises(ExciteError, match=r"missing\.onnx: there is no such file"):
        Networks(["missing.onnx"])
    with pytest.raises(ExciteError, match="'alexnet'"):
        Networks(["alexnet"])
    with pytest.raises(ExciteError, match="for an ONNX file"):
        Networks([], None, "signed")
    with pytest.raises(ExciteError, match="there is no network resnet50"):
        Networks().open("resnet50")


def test_photographs_to_pick_from():
    assert [sample.name for sample in samples()] == ["chelsea", "astronaut", "coffee", "rocket"]


# The server.


def test_large_bodies_are_refused():
    async def inner(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            if not message.get("more_body"):
                await PlainTextResponse("read")(scope, receive, send)
                return

    client = TestClient(server.bounded(server.with_headers(inner)))
    fine = client.post("/", content=b"x" * MAX_BYTES)
    assert fine.text == "read"
    assert "default-src 'self'" in fine.headers["content-security-policy"]
    assert client.post("/", content=b"x" * (MAX_BYTES + 200_000)).status_code == 413
    assert client.post("/", headers={"content-length": "-1"}).status_code == 413

    async def messages():
        sent = [{"type": "http.request", "body": b"x" * MAX_BYTES, "more_body": True}] * 2
        seen = []

        async def receive():
            return sent.pop()

        async def swallow(scope, receive, send):
            seen.extend([await receive(), await receive()])

        scope = {"type": "http", "headers": []}
        await server.bounded(swallow)(scope, receive, None)
        return [message["type"] for message in seen]

    assert asyncio.run(messages()) == ["http.request", "http.disconnect"]


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["app", "--port", str(port)])
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in result.stderr
    result = CliRunner().invoke(app, ["app", "--port", "99999"])
    assert result.exit_code == 2
    assert "65535" in result.stderr
