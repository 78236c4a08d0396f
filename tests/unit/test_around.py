"""Around the core: inputs, files and layers as people have them."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jax_excite as je
from jax_excite import attributions, metrics
from tests.networks import images, relative_error

BIN = Path(sys.executable).parent


class ChannelsFirst(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.first = eqx.nn.Conv2d(3, 6, 3, stride=2, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(6, 10, 3, padding=1, key=keys[1])
        self.head = eqx.nn.Linear(10, 5, key=keys[2])

    def features(self, x):
        return jax.nn.relu(self.second(jax.nn.relu(self.first(jnp.moveaxis(x, -1, 0)))))

    def top(self, layer):
        return self.head(layer.mean((1, 2)))

    def __call__(self, x):
        return jax.vmap(lambda x: self.top(self.features(x)))(x)


def cam_by_hand(layer, top, x, channels):
    gradients = jax.grad(lambda layer: top(layer)[:, 1].sum())(layer)
    places = tuple(axis for axis in (1, 2, 3) if axis != channels)
    weights = gradients.mean(places, keepdims=True)
    cam = jnp.maximum((layer * weights).sum(channels), 0)
    return jnp.broadcast_to(jax.image.resize(cam, x.shape[:3], "linear")[..., None], x.shape)


def test_grad_cam_of_a_network_with_channels_first():
    net, x = ChannelsFirst(), images(size=16)
    wanted = cam_by_hand(jax.vmap(net.features)(x), jax.vmap(net.top), x, 1)
    assert relative_error(attributions.grad_cam(net, x, 1), wanted) < 1e-5
    assert relative_error(attributions.grad_cam(net, x, 1, channel_axis=1), wanted) < 1e-5


def test_grad_cam_inside_a_scan_is_that_of_the_last_step():
    weights = np.random.default_rng(0).normal(size=(3, 6, 6)) / 2
    first = np.random.default_rng(1).normal(size=(3, 6))

    def layer(x):
        step = lambda h, w: (jax.nn.relu(h @ w), None)  # noqa: E731
        return jax.lax.scan(step, x @ first, jnp.asarray(weights, x.dtype))[0]

    def top(h):
        return h.mean((1, 2)) @ weights[0]

    x = images()
    wanted = cam_by_hand(layer(x), top, x, 3)
    assert relative_error(attributions.grad_cam(lambda x: top(layer(x)), x, 1), wanted) < 1e-5


def test_grad_cam_asks_where_channels_cannot_be_told():
    def net(x):
        return jax.nn.relu(2 * x.reshape(2, 8, 4, 6)).mean((1, 2))

    x = images()
    with pytest.raises(je.GatingError, match="cannot be determined: give channel_axis"):
        attributions.grad_cam(net, x, 1)
    assert attributions.grad_cam(net, x, 1, channel_axis=-1).shape == x.shape


class Binary(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.conv(x)).mean((1, 2)))


def test_one_logit_is_the_second_of_two():
    net, x = Binary(nnx.Rngs(0)), images()
    both = lambda x: jnp.concatenate([jnp.zeros((len(x), 1)), net(x)], 1)  # noqa: E731
    maps = attributions.gradient(net, x, 0)
    for metric in (metrics.deletion, metrics.insertion):
        one = metric(net, x, 0, maps, steps=4)
        two = metric(both, x, 1, maps, steps=4)
        np.testing.assert_allclose(one.values, two.values, rtol=1e-5)
    options = {"runs": 6, "subset_size": 20, "key": jax.random.key(0)}
    one = metrics.faithfulness_correlation(net, x, 0, maps, **options)
    two = metrics.faithfulness_correlation(both, x, 1, maps, **options)
    np.testing.assert_allclose(one, two, rtol=1e-3)


TAGS = {
    "a float as make": (271, 11, 1, struct.pack("<f", 1.5)),
    "a rational as make": (271, 5, 1, struct.pack("<I", 8)),
    "a pointer to nowhere": (34665, 4, 1, struct.pack("<I", 1 << 20)),
    "bytes as a date": (306, 7, 4, b"\xff\xfe\x00\x01"),
    "an unknown type": (305, 99, 1, b"\0\0\0\0"),
}


def photograph(tag, orientation):
    rows, columns = np.mgrid[:64, :96]
    pixels = np.stack([columns * 2, rows * 3, columns + rows], -1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    number, kind, count, value = tag
    entries = struct.pack("<HHI", number, kind, count) + value.ljust(4, b"\0")
    turn = struct.pack("<HHIHH", 274, 3, 1, orientation, 0)
    pairs = sorted([(number, entries), (274, turn)])
    body = b"II*\0" + struct.pack("<IH", 8, 2) + b"".join(e for _, e in pairs) + bytes(4)
    exif = b"Exif\0\0" + body
    whole = file.getvalue()
    return pixels, whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


TURNED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("tag", TAGS)
def test_odd_exif_tags_do_not_matter(tag, orientation, tmp_path):
    pixels, data = photograph(TAGS[tag], orientation)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    wanted = je.load_image(np.ascontiguousarray(TURNED[orientation](pixels)), 32)
    assert np.abs(je.load_image(path, 32) - wanted).max() < 0.1


def test_names_that_are_not_utf8_and_names_with_commas(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (b"caf\xe9.jpg", b"Lake, morning.jpg", b"0,1.jpg"):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        image.save(photos / os.fsdecode(name), "JPEG")
    store = tmp_path / "a.store"

    def run(*arguments):
        command = [str(BIN / "jax-excite"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace")

    done = run("attribute", str(photos), "--out", str(store), "--method", "gradient")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "v.png"
    done = run("view", str(store), "--images", "Lake, morning.jpg,0,1.jpg", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", [("jax-excite", "models"), ("weights-converter", "list")])
def test_a_full_output_device(command):
    name, *arguments = command
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [str(BIN / name), *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_refusals_are_errors_of_the_library():
    def net(x):
        return jax.nn.relu(x).mean((1, 2))

    x = images()
    with pytest.raises(je.ExciteError):
        je.pullback(net, x, 0, batch_size=-3)
    with pytest.raises(je.SettingError, match="steps is -1"):
        je.pga(net, x, 0, je.Ascent(-1))
    with pytest.raises(je.SettingError, match="samples is 0"):
        attributions.smooth_grad(net, x, 0, key=jax.random.key(0), samples=0)
    with pytest.raises(je.SettingError, match="out has shape"):
        je.pullback_grid(net, x, [0], out=np.zeros(3))
    assert issubclass(je.SettingError, ValueError)
