import dataclasses
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import typer
from PIL import Image

from jax_excite.cli.console import errors_in_one_line
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.data.datasets import (
    IMAGENETTE,
    DataError,
    Example,
    ImageData,
    batches,
    image_folder,
    imagenette,
    select,
)
from jax_excite.data.images import load_image
from jax_excite.errors import ImageError, TargetError

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "imagenette_examples"
NAME = "imagenette2-160.tgz"
URL = f"https://s3.amazonaws.com/fast-ai-imageclas/{NAME}"
PREPARED = Path("imagenette", "160px-v2", "1.0.0")
PER_CLASS = {"train": 1, "val": 3}
# A process of its own, which knows the small archive's checksum as this one does.
CHILD = """
import dataclasses, hashlib, os, sys
from pathlib import Path
import tensorflow_datasets as tfds
root, url = Path(sys.argv[1]), sys.argv[2]
archive = root / "downloads" / "manual" / "imagenette2-160.tgz"
infos = tfds.builder_cls("imagenette").url_infos
digest = hashlib.sha256(archive.read_bytes()).hexdigest()
size = type(infos[url].size)(archive.stat().st_size)
infos[url] = dataclasses.replace(infos[url], checksum=digest, size=size)
"""
UNMODIFIED = """
import glob, importlib.machinery, os, sys, types
class StandIn:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "tensorflow" else None
    def create_module(self, spec):
        module = types.ModuleType("tensorflow")
        module.__version__ = "2.20.0"
        module.compat = types.SimpleNamespace(as_text=str)
        gfile = types.SimpleNamespace(listdir=os.listdir, glob=glob.glob, GFile=open)
        module.io = types.SimpleNamespace(gfile=gfile)
        return module
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, StandIn())
"""


def jpeg(label, number):
    """An image of one colour that tells its label, and of a height that tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (30, 20 + number), (25 * label, 10, 200)).save(file, "JPEG", quality=95)
    return file.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small archive, laid out as the published one."""
    path = tmp_path_factory.mktemp("archive") / NAME
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "imagenette2-160/noisy_imagenette.csv", b"path,label\n")
        for folder, count in PER_CLASS.items():
            for label, of_class in IMAGENETTE.items():
                at = f"imagenette2-160/{folder}/{of_class.wordnet}"
                add(tar, f"{at}/._{folder}.JPEG", b"no image")
                for number in range(count):
                    add(tar, f"{at}/{folder}_{label}_{number}.JPEG", jpeg(label, number))
    return path


@pytest.fixture(scope="module", autouse=True)
def registered(archive):
    """The small archive's size and checksum in the place of the published one's.

    tfds checks both, and has no switch against it. The registry, `url_infos` of the builder's
    class, is public and read once a process; nothing is written to the installed package.
    """
    infos = tfds.builder_cls("imagenette").url_infos
    with pytest.MonkeyPatch.context() as patch:
        size = type(infos[URL].size)(archive.stat().st_size)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        patch.setitem(infos, URL, dataclasses.replace(infos[URL], size=size, checksum=digest))
        yield infos


def by_hand(archive, root):
    place = root / "downloads" / "manual"
    place.mkdir(parents=True)
    shutil.copy(archive, place)


@pytest.fixture(scope="module")
def root(archive, tmp_path_factory):
    """A data_dir in which the small archive was put by hand and prepared."""
    root = tmp_path_factory.mktemp("data")
    by_hand(archive, root)
    imagenette(data_dir=root)
    return root


@pytest.fixture
def no_network(monkeypatch):
    """Every request is refused at once, here and in child processes."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_labels():
    assert [IMAGENETTE[label].index for label in range(10)] == [
        *(0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    ]
    assert IMAGENETTE[1].name == "English springer"
    assert IMAGENETTE[6].name == CLASS_NAMES[569] == "garbage truck"
    names = tfds.builder("imagenette/160px-v2").info.features["label"].names
    assert [IMAGENETTE[label].wordnet for label in range(10)] == names


@pytest.mark.parametrize(("split", "folder"), [("train", "train"), ("validation", "val")])
def test_imagenette(root, split, folder):
    data = imagenette("160px", split, data_dir=root)
    count = PER_CLASS[folder]
    assert len(data) == 10 * count
    assert Counter(data.labels) == {each.index: count for each in IMAGENETTE.values()}
    heights = {each.index: set() for each in IMAGENETTE.values()}
    for place, example in enumerate(data):
        assert example.image.dtype == np.uint8
        label = round(example.image[..., 0].mean() / 25)
        assert example.label == data.labels[place] == IMAGENETTE[label].index
        assert example.name == f"imagenette-160px-v2-{split}-{place:05}"
        heights[example.label].add(example.image.shape[0])
    assert all(found == set(range(20, 20 + count)) for found in heights.values())


def test_second_time_needs_no_archive(root, tmp_path, no_network, capfd):
    shutil.copytree(root / "imagenette", tmp_path / "imagenette")
    assert imagenette(data_dir=tmp_path).labels == imagenette(data_dir=root).labels
    assert capfd.readouterr() == ("", "")


def test_preparing_is_said(archive, tmp_path, capfd):
    by_hand(archive, tmp_path)
    imagenette(data_dir=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"Preparing imagenette/160px-v2/1.0.0 in {tmp_path / PREPARED}\n"


def test_same_examples_as_the_unmodified_builder(archive, root, tmp_path):
    by_hand(archive, tmp_path)
    prepare = """
builder = tfds.builder("imagenette/160px-v2", data_dir=root)
config = tfds.download.DownloadConfig(manual_dir=archive.parent)
builder.download_and_prepare(download_config=config, file_format="array_record")
"""
    result = run(UNMODIFIED + CHILD + prepare, tmp_path, URL)
    assert result.returncode == 0, result.stderr
    for split in ("train", "validation"):
        ours, theirs = (
            tfds.builder_from_directory(folder / PREPARED).as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            for folder in (root, tmp_path)
        )
        assert list(ours) == list(theirs)


def test_unmodified_builder_reads_what_was_prepared(root):
    builder = tfds.builder("imagenette/160px-v2", data_dir=root)
    assert builder.info.splits["validation"].num_examples == 30
    assert len(builder.as_data_source("train")) == 10


def test_without_tensorflow_and_network(archive, tmp_path):
    by_hand(archive, tmp_path)
    code = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"{event}: {arguments}")
    if event == "import" and arguments[0] == "tensorflow":
        raise RuntimeError("imports TensorFlow")
sys.addaudithook(watch)
import jax_excite.data.datasets
assert "tensorflow_datasets" not in sys.modules
"""
    use = """
data = jax_excite.data.datasets.imagenette(data_dir=root)
print(len(data), data[7].image.shape, *(name in sys.modules for name in ("tensorflow", "torch")))
"""
    result = run(code + CHILD + use, tmp_path, URL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("30 (2")
    assert result.stdout.endswith(", 30, 3) False False\n")


@pytest.mark.parametrize(
    ("end", "code"), [("os._exit(9)", {9}), ("raise KeyboardInterrupt", {-2, 130})]
)
def test_interrupted(archive, root, tmp_path, end, code):
    by_hand(archive, tmp_path)
    interrupt = f"""
from jax_excite.data.datasets import imagenette
whole = tfds.download.iter_archive
def part(*arguments):
    for number, each in enumerate(whole(*arguments)):
        if number == 30:
            {end}
        yield each
tfds.download.iter_archive = part
imagenette(data_dir=root)
"""
    assert run(CHILD + interrupt, tmp_path, URL).returncode in code
    assert not (tmp_path / PREPARED).exists()
    assert imagenette(data_dir=tmp_path).labels == imagenette(data_dir=root).labels


def test_two_processes_at_once(archive, root, tmp_path):
    by_hand(archive, tmp_path)
    both = """
from jax_excite.data.datasets import imagenette
print(*imagenette(data_dir=root).labels)
"""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD + both, str(tmp_path), URL],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as other:
        ours = run(CHILD + both, tmp_path, URL)
        assert other.stdout is not None
        theirs = other.stdout.read()
    wanted = " ".join(map(str, imagenette(data_dir=root).labels)) + "\n"
    assert (ours.stdout, theirs) == (wanted, wanted), ours.stderr


def test_another_archive_put_there_by_hand(archive, tmp_path):
    by_hand(archive, tmp_path)
    place = tmp_path / "downloads" / "manual" / NAME
    place.write_bytes(b"something else")
    with pytest.raises(DataError) as caught:
        imagenette(data_dir=tmp_path)
    for part in (str(place), URL, hashlib.sha256(b"something else").hexdigest()):
        assert part in str(caught.value)
    assert place.read_bytes() == b"something else"
    assert not (tmp_path / PREPARED).exists()


def refusal(root, capfd, url=URL):
    """The message of a download that fails and leaves nothing; it must always say how to go on."""
    place = root / "downloads" / "manual"
    with pytest.raises(DataError) as caught:
        imagenette(data_dir=root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (url, f"get {NAME} (", f"put it in {place}"):
        assert part in message
    assert list(place.iterdir()) == []
    assert not (root / PREPARED).exists()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"Downloading {url} (")
    assert err.endswith(f") to {place / NAME}\n")
    return message


def test_offline(tmp_path, no_network, capfd):
    assert "proxy" in refusal(tmp_path, capfd)


class Handler(http.server.BaseHTTPRequestHandler):
    answer = b""

    def do_GET(self):
        self.send_response(200 if self.answer else 404)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(registered, monkeypatch):
    """Of a server on this machine, registered in the place of the published address."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_port}/{NAME}"
        monkeypatch.setitem(registered, url, registered[URL])
        monkeypatch.delitem(registered, URL)
        yield url
        server.shutdown()


def test_download(archive, root, url, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Handler, "answer", archive.read_bytes())
    data = imagenette(data_dir=tmp_path)
    assert data.labels == imagenette(data_dir=root).labels
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"Downloading {url} (")
    assert second.startswith("Preparing")
    assert [file.name for file in (tmp_path / "downloads" / "manual").iterdir()] == [NAME]


def test_download_of_something_else(url, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Handler, "answer", b"something else")
    assert hashlib.sha256(b"something else").hexdigest() in refusal(tmp_path, capfd, url)


def test_download_of_nothing(url, tmp_path, capfd):
    assert "404" in refusal(tmp_path, capfd, url)


def test_prepared_for_tensorflow(root, tmp_path):
    shutil.copytree(root / "imagenette", tmp_path / "imagenette")
    path = tmp_path / PREPARED / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"tfrecord.* give another data_dir"):
        imagenette(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("size", "split", "given"), [("100px", "validation", "100px"), ("160px", "test", "test")]
)
def test_no_such_data(size, split, given):
    with pytest.raises(DataError, match=f"'{given}': give one of"):
        imagenette(size, split)


def test_missing_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(typer.Exit), errors_in_one_line():
        imagenette()
    assert 'pip install "jax-excite[data]"' in capsys.readouterr().err


def test_folder_of_photographs():
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"{PHOTOGRAPHS} is absent")
    data = image_folder(PHOTOGRAPHS)
    assert list(data.labels) == [IMAGENETTE[label].index for label in range(10)]
    example = data[4]
    assert (example.label, example.name) == (497, "0497_church.jpg")
    assert example.image.shape == (256, 256, 3)
    ((images, labels),) = batches(data[4:6], 8)
    assert list(labels) == [497, 566]
    np.testing.assert_array_equal(images[0], load_image(PHOTOGRAPHS / example.name))


def test_labels_of_samples():
    samples = PHOTOGRAPHS.parent / "imagenet_samples"
    if not samples.is_dir():
        pytest.skip(f"{samples} is absent")
    assert list(image_folder(samples).labels) == list(range(0, 1000, 10))


def test_labels_of_folders(tmp_path):
    wanted = {
        "0497_church.jpg": 497,
        "0007_cock.png": 7,
        "7_cock.png": None,
        "12_05_2024.jpg": None,
        "2024_05_12.jpg": None,
        "2024-05-12.jpg": None,
        "1.jpg": None,
        "00497_church.jpg": None,
        "1000_beyond.jpg": None,
        "golden_gate.JPEG": None,
        "497.jpg": None,
        "n03028079/x.jpg": 497,
        "n03028079/0001_x.jpg": 497,
        "garbage truck/a.jpg": 569,
        "golf_ball/b.jpg": 574,
        "9/ostrich.jpg": 9,
        "deep/er/0012/c.jpg": 12,
        "holiday/d.jpg": None,
        "holiday/0013_e.jpg": 13,
    }
    for number, name in enumerate(wanted):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number % 10, 0))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.jpg").write_text("no image")
    data = image_folder(tmp_path)
    assert dict(zip((each.name for each in data), data.labels, strict=True)) == wanted
    assert [each.label for each in data] == list(data.labels)


def test_kinds_of_images(tmp_path):
    Image.new("L", (5, 4), 200).save(tmp_path / "a.png")
    Image.new("RGBA", (5, 4), (1, 2, 3, 4)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    data = image_folder(tmp_path)
    assert (data[0].image == np.full((4, 5, 3), 200)).all()
    assert (data[1].image == [1, 2, 3]).all()
    with pytest.raises(ImageError, match=r"c\.png cannot be read"):
        data[2]


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        image_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        image_folder(tmp_path / "absent")


@pytest.fixture
def lazy():
    """Sixty examples of the classes 0 to 4 and of none, and which images were read."""
    read = []
    labels = [None if number % 6 == 5 else number % 6 for number in range(60)]

    def image(place):
        read.append(place)
        return np.full((4, 4, 3), place, np.uint8)

    data = ImageData([f"{number}" for number in range(60)], image, labels.__getitem__)
    return data, read


def test_sequence(lazy):
    data, read = lazy
    assert len(data) == 60
    assert data[-1].name == data[59].name == "59"
    assert read == [59, 59]
    part = data[10:20:2]
    assert isinstance(part, ImageData)
    assert part.labels == data.labels[10:20:2]
    assert [each.name for each in part] == ["10", "12", "14", "16", "18"]
    assert part[-1].image[0, 0, 0] == 18
    with pytest.raises(IndexError):
        data[60]


def test_select(lazy):
    data, read = lazy
    chosen = select(data, [3, "tench", 1], per_class=4)
    assert [each.label for each in chosen] == [3] * 4 + [0] * 4 + [1] * 4
    assert len({each.name for each in chosen}) == len(read) == 12
    names = [each.name for each in chosen]
    assert [each.name for each in select(list(data), [3, 0, 1], per_class=4)] == names
    assert [each.name for each in select(data, [1, 3], per_class=4)] == names[8:] + names[:4]
    assert [each.name for each in select(data, [3, 0, 1], per_class=4, seed=0)] != names
    drawn = {select(data, [2], seed=seed)[0].name for seed in range(100)}
    assert len(drawn) == 10


def test_select_too_many(lazy):
    with pytest.raises(TargetError, match=r"class 0 \(tench\) has 10, class 7 \(cock\) has 0"):
        select(lazy[0], [0, 7], per_class=11)
    with pytest.raises(TargetError, match="per_class is 0"):
        select(lazy[0], [0], per_class=0)
    with pytest.raises(TargetError, match="no class 'tinch'"):
        select(lazy[0], ["tinch"])


def test_batches(lazy):
    data, read = lazy
    found = batches(data, 25, size=8)
    assert read == []
    images, labels = next(found)
    assert read == list(range(25))
    assert images.shape == (25, 8, 8, 3)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[24], 24 / 127.5 - 1, atol=1e-6)
    assert labels.dtype == np.int32
    assert list(labels[:7]) == [0, 1, 2, 3, 4, -1, 0]
    assert [len(labels) for _, labels in found] == [25, 10]


def test_batches_resize():
    example = Example(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3), 1, "x")
    ((images, _),) = batches([example], 1, size=16, resize=20)
    np.testing.assert_array_equal(images[0], load_image(example.image, 16, resize=20))
    assert (images[0] != load_image(example.image, 16)).any()


def test_batches_of_nothing(lazy):
    assert list(batches([], 4)) == []
    with pytest.raises(ImageError, match="batch_size is 0"):
        batches(lazy[0], 0)
