"""Stores: what a run writes, and that nothing is lost where it is killed or misused."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import zarr
from matplotlib.image import imread
from PIL import Image

from jax_excite import (
    DataError,
    Gating,
    TargetError,
    attributions,
    load_images,
    open_store,
    pullback_grid,
    recipes,
    value_and_pullback,
)
from jax_excite.cli import networks
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.data.datasets import image_folder
from jax_excite.models import Classifier, Preprocessing, model_spec
from jax_excite.stores import filling, layout, ledger
from jax_excite.stores.explainer import Explainer, Targets, methods_by_name
from jax_excite.stores.filling import Job
from jax_excite.stores.source import decoded, fingerprint, open_source
from tests.networks import Network
from tests.snippets import run_snippets
from tests.unit.test_cli import CAT, run

PREPROCESSING = Preprocessing((0.5,) * 3, (0.25,) * 3, 16, 16)
SMALL = ("--chunk", 4, "--dtype", "float32")


@pytest.fixture
def network(monkeypatch):
    """A small network that the command takes for any model."""
    network = Classifier(Network(classes=1000), PREPROCESSING, CLASS_NAMES)
    monkeypatch.setattr(networks, "load_model", lambda *_, **__: network)
    # One device of the eight that tests have.
    monkeypatch.setattr(
        importlib.import_module("jax_excite.cli.attribute").jax, "local_devices", one
    )
    return network


def one():
    return jax.devices()[:1]


@pytest.fixture
def folder(tmp_path):
    """Ten photographs; the seventh cannot be decoded."""
    cat = Image.open(CAT).convert("RGB")
    where = tmp_path / "photographs"
    where.mkdir()
    for number in range(10):
        left, top = 20 * number, 10 * number
        cat.crop((left, top, left + 120, top + 120)).save(where / f"{7 * number:04}_cat.png")
    broken = where / "0042_cat.png"
    broken.write_bytes(broken.read_bytes()[:900])
    return where


def attribute(folder, out, *options):
    return run("attribute", folder, "--out", out, *SMALL, *options)


def contents(store):
    """All that is in the arrays of a store, as bytes on disk."""
    files = (file for file in (store / "arrays").rglob("*") if file.is_file())
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in files
        if not file.name.endswith("__lock")
    }


def test_a_store_has_what_the_functions_give(network, folder, tmp_path):
    out = tmp_path / "store"
    result = attribute(folder, out)
    assert result.exit_code == 0, result.stderr
    assert "10 of 10 images" in result.stderr
    store = open_store(out)
    good = [i for i in range(10) if i != 6]
    names = sorted(path.name for path in folder.iterdir())
    x = load_images([folder / names[i] for i in good], 16, resize=16)
    suited = model_spec("efficientnet_lite0").temperature
    gating = Gating(suited, suited)
    logits = np.asarray(network(x))
    target = logits.argmax(1)
    _, field = value_and_pullback(network, x, target, gating=gating)
    np.testing.assert_allclose(store.logits(good), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(store.predictions(good), target)
    np.testing.assert_array_equal(store.targets(good)[:, 0], target)
    np.testing.assert_allclose(store.attributions(good), field, rtol=1e-3, atol=1e-6)
    assert store.names == names
    assert list(store.labels) == [7 * i for i in range(10)]
    assert store.done.all()
    # The one that cannot be decoded is there by name, with the reason.
    assert list(store.skipped) == ["0042_cat.png"]
    assert np.isnan(store.attributions("0042_cat.png")).all()
    assert store.predictions(6) == -1
    # And however it is asked for it is the same.
    np.testing.assert_array_equal(store.attributions("0007_cat.png"), store.attributions(1))
    np.testing.assert_array_equal(store.attributions(slice(1, 3))[0], store.attributions([-9])[0])
    assert store.of_class(int(target[2])) == [
        (i, 0) for i, own in zip(good, target, strict=True) if own == target[2]
    ]
    group = zarr.open_group(out / "arrays", mode="r")
    np.testing.assert_array_equal(group["attributions"][1, 0, 0], store.attributions(1))
    dataset = store.to_xarray()
    assert dict(dataset.sizes)["image"] == 10
    own = dataset["attributions"].sel({"image": "0007_cat.png", "method": "excitation_pullback"})
    np.testing.assert_array_equal(own.values[0], store.attributions(1))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["recipe"]["temperature"] == suited
    assert len(manifest["settings"]["weights"]) == 64
    assert manifest["command"].startswith("jax-excite")


def test_several_methods_and_targets(network, folder, tmp_path):
    out = tmp_path / "store"
    chosen = ("gradient", "excitation_pullback", "input_x_gradient", "pga_difference")
    options = [option for name in chosen for option in ("--method", name)]
    found = attribute(folder, out, *options, "--targets", "top-2", "--temperature", 0.5)
    assert found.exit_code == 0, found.stderr
    store = open_store(out)
    assert store.methods == list(chosen)
    x = load_images([folder / store.names[3]], 16, resize=16)
    order = np.argsort(-np.asarray(network(x)), axis=1)[:, :2]
    np.testing.assert_array_equal(store.targets([3]), order)
    gating = Gating(0.5, 0.5)
    for place, index in enumerate(order[0]):
        for name, wanted in (
            ("gradient", value_and_pullback(network, x, index, gating=recipes.VANILLA)[1]),
            ("excitation_pullback", value_and_pullback(network, x, index, gating=gating)[1]),
            ("input_x_gradient", attributions.input_x_gradient(network, x, index)),
            ("pga_difference", attributions.pga_difference(network, x, index, gating=gating)),
        ):
            own = store.attributions([3], method=name, target=place)
            np.testing.assert_allclose(own, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("targets", ["label", "5,9"])
def test_targets_that_are_known_beforehand(network, folder, tmp_path, targets):
    assert attribute(folder, tmp_path / "s", "--targets", targets).exit_code == 0
    store = open_store(tmp_path / "s")
    wanted = store.labels[:, None] if targets == "label" else np.tile([5, 9], (10, 1))
    good = [i for i in range(10) if i != 6]
    np.testing.assert_array_equal(store.targets(good), wanted[good])


def test_channels_of_a_site(network, folder, tmp_path):
    out = tmp_path / "s"
    at = ("--at", "relu_1", "--channel", "5,2")
    result = attribute(folder, out, *at)
    assert result.exit_code == 0, result.stderr
    store = open_store(out)
    x = load_images([folder / store.names[3]], 16, resize=16)
    suited = model_spec("efficientnet_lite0").temperature
    grid = pullback_grid(network, x, [5, 2], at="relu_1", gating=Gating(suited, suited))
    for place in range(2):
        own = store.attributions([3], target=place)
        np.testing.assert_allclose(own, grid[:, place], rtol=2e-3, atol=1e-6)
    np.testing.assert_array_equal(store.targets([3]), [[5, 2]])
    np.testing.assert_allclose(store.logits([3]), network(x), rtol=1e-4, atol=1e-5)
    # It goes on only with the same site.
    assert attribute(folder, out, *at).exit_code == 0
    result = attribute(folder, out, "--targets", "5,2")
    assert result.exit_code == 2
    assert "was begun with at relu_1" in result.stderr
    assert run("view", out, "--out", tmp_path / "v.png", "--images", "3").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "relu_1"), "--at and --channel go together"),
        (("--channel", "1"), "--at and --channel go together"),
        (
            ("--at", "relu_1", "--channel", "1", "--targets", "label"),
            "one of --targets and --at",
        ),
        (("--at", "relu_1", "--channel", "8"), "channel 8 of relu_1 is out of range"),
        (("--at", "relu_1", "--channel", "x"), "give comma-separated channels"),
        (("--at", "relu_9", "--channel", "1"), "at names no site of the function"),
        (("--at", "relu_1", "--channel", "1", "--method", "grad_cam"), "is no single pullback"),
    ],
)
def test_wrong_sites_are_named(network, folder, tmp_path, options, message):
    result = attribute(folder, tmp_path / "s", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "s").exists()


def test_a_killed_run_ends_with_the_same_store(network, folder, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert attribute(folder, whole).exit_code == 0
    original, calls = filling.write_rows, []

    def killed(path, arrays, rows, values):
        if len(calls) in (1, 2):  # the second chunk, twice
            calls.append("killed")
            half = {name: values[name] for name in ("logits", "targets")}
            original(path, arrays, rows, half)
            raise KeyboardInterrupt
        calls.append(rows)
        original(path, arrays, rows, values)

    monkeypatch.setattr(filling, "write_rows", killed)
    for done in (4, 4):
        assert attribute(folder, cut).exit_code != 0
        assert open_store(cut).done.sum() == done
    # A line that was cut off counts for nothing, and stays alone.
    (journal,) = (cut / "journal").glob("*.jsonl")
    (cut / "journal" / "cut.jsonl").write_text(journal.read_text() + '{"chunk": 1, "ima')
    assert open_store(cut).done.sum() == 4
    result = attribute(folder, cut)
    assert result.exit_code == 0
    assert "4 of 10 images are done" in result.stderr
    assert contents(cut) == contents(whole)
    assert len(contents(cut)) == 6 + 1 + 6 * 3
    assert open_store(cut).skipped == open_store(whole).skipped
    again = attribute(folder, cut)
    assert again.exit_code == 0
    assert contents(cut) == contents(whole)


def test_the_number_of_devices_and_of_shards_does_not_matter(network, folder, tmp_path):
    data = image_folder(folder)
    stores = []
    for number, (devices, parts) in enumerate([(1, 1), (2, 1), (4, 1), (8, 1), (1, 3), (2, 2)]):
        own = methods_by_name(recipes.EXCITATION, 0)
        explainer = Explainer(
            network,
            {name: own[name] for name in ("excitation_pullback", "smooth_grad")},
            Targets.parse("top-1"),
            jax.devices()[:devices],
            2,
            16,
        )
        sizes = layout.Layout(10, 2, 1, 16, 16, 1000, "float32", 2)
        path = tmp_path / str(number)
        settings = {"methods": ["excitation_pullback", "smooth_grad"]}
        whole = {"settings": settings, "names": data.names, "labels": data.labels}
        layout.create(path, sizes, whole)
        job = Job(path, sizes, data, explainer, PREPROCESSING)
        for part in range(1, parts + 1):
            with ledger.exclusive(path, part, parts):
                list(job.fill(job.left(part, parts)))
        assert open_store(path).done.all()
        stores.append(contents(path))
    for store in stores:
        assert [name for name in store if store[name] != stores[0].get(name)] == []


def test_other_settings_are_refused(network, folder, tmp_path):
    out = tmp_path / "store"
    assert attribute(folder, out).exit_code == 0
    before = contents(out)
    for options, message in (
        (("--temperature", 0.9), "was begun with recipe"),
        (("--targets", "label"), "was begun with targets top-1, and this run has label"),
        (("--method", "gradient"), "was begun with methods"),
        (("--dtype", "float16"), "was begun with dtype float32, and this run has float16"),
        (("--chunk", 5), "was begun with chunk 4, and this run has 5"),
        (("--limit", 9), "was begun with source"),
        (("--model", "efficientnet_lite1"), "was begun with model"),
    ):
        found = attribute(folder, out, *options)
        assert (options, found.exit_code) == (options, 2)
        assert message in found.stderr
        assert contents(out) == before
    Image.open(CAT).save(folder / "0000_cat.png")
    assert "was begun with source" in attribute(folder, out).stderr


def test_a_second_run_is_refused(network, folder, tmp_path):
    out = tmp_path / "store"
    assert attribute(folder, out, "--shard", "2/3").exit_code == 0
    assert open_store(out).done.sum() == 4
    with ledger.exclusive(out, 1, 3):
        for shard in ("1/3", "1/1"):
            found = attribute(folder, out, "--shard", shard)
            assert found.exit_code == 2
            assert f"another run is writing part 1 of 3 of {out}" in found.stderr
        assert "being written: part 1 of 3" in run("status", out).stdout
        assert attribute(folder, out, "--shard", "3/3").exit_code == 0
    assert attribute(folder, out).exit_code == 0
    assert open_store(out).done.all()


def test_a_file_that_cannot_be_read_stops_the_run(network, folder, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "store"
    assert attribute(folder, whole).exit_code == 0
    lost = folder / "0056_cat.png"
    original = filling.Job.fill

    def vanish(job, chunks):
        lost.rename(tmp_path / "away.png")
        return original(job, chunks)

    monkeypatch.setattr(filling.Job, "fill", vanish)
    found = attribute(folder, out)
    assert found.exit_code == 2
    assert str(lost) in found.stderr
    assert open_store(out).done.sum() == 8
    monkeypatch.undo()
    (tmp_path / "away.png").rename(lost)


def test_the_snippet_of_the_docs(network, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "0007_cat.png").rename(folder / "cat.jpg")
    assert attribute(folder, "photos.store", "--targets", "281").exit_code == 0
    names = run_snippets(Path(__file__).parents[2] / "docs" / "stores.md")
    assert dict(names["dataset"].sizes)["image"] == 10


def test_strict_stops_at_what_cannot_be_decoded(network, folder, tmp_path):
    found = attribute(folder, tmp_path / "store", "--strict")
    assert found.exit_code == 2
    assert "0042_cat.png" in found.stderr


def test_a_store_that_cannot_be_written_says_so(network, folder, tmp_path):
    out = tmp_path / "store"
    assert attribute(folder, out, "--limit", 4).exit_code == 0
    for file in out.glob("journal/*"):
        file.unlink()
    # As root nothing is read-only, but a file cannot be a folder.
    for file in (out / "arrays" / "logits" / "c").rglob("*"):
        if file.is_file():
            file.unlink()
    (out / "arrays" / "logits" / "c" / "0").rmdir()
    (out / "arrays" / "logits" / "c" / "0").write_text("in the way")
    found = attribute(folder, out, "--limit", 4)
    assert found.exit_code == 2
    assert f"{out} cannot be written" in found.stderr
    assert not open_store(out).done.any()


def test_what_it_takes_is_said_and_nothing_written(network, folder, tmp_path):
    found = attribute(folder, tmp_path / "store", "--dry-run")
    assert found.exit_code == 0, found.stderr
    assert "10 images in 3 chunks" in found.stdout
    assert "disk: at most 0.00 GB" in found.stdout
    assert not (tmp_path / "store").exists()


def test_a_view_and_the_status(network, folder, tmp_path):
    out = tmp_path / "store"
    assert attribute(folder, out, "--targets", "5,9", "--shard", "1/2").exit_code == 0
    said = run("status", out).stdout
    assert "6 of 10 images done" in said
    assert run("view", out, "--out", tmp_path / "a.png", "--images", "0:3").exit_code == 0
    assert imread(tmp_path / "a.png").std() > 0.05
    found = run("view", out, "--out", tmp_path / "b.png", "--images", "5")
    assert found.exit_code == 2
    assert "0035_cat.png is not done yet" in found.stderr
    assert attribute(folder, out, "--targets", "5,9").exit_code == 0
    assert "skipped 0042_cat.png: " in run("status", out).stdout
    named = ("--images", "0007_cat.png,9", "--method", "excitation_pullback")
    assert run("view", out, "--out", tmp_path / "b.png", *named).exit_code == 0
    assert run("view", out, "--out", tmp_path / "c.png", "--class", 9).exit_code == 0
    by_name = run("view", out, "--out", tmp_path / "e.png", "--class", CLASS_NAMES[9])
    assert by_name.exit_code == 0, by_name.stderr
    assert (imread(tmp_path / "c.png") == imread(tmp_path / "e.png")).all()
    for wrong, message in (
        (("--images", "cat"), "has no image 'cat'"),
        (("--images", "99"), "has no image 99"),
        (("--method", "lime"), "has no method 'lime'"),
        (("--class", 3), "no images in this selection"),
        (("--class", "ostritch"), "did you mean ostrich"),
    ):
        found = run("view", out, "--out", tmp_path / "d.png", *wrong)
        assert (found.exit_code, message in found.stderr) == (2, True)
        assert not (tmp_path / "d.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--targets", "best"), "targets are 'best': give label, top-K"),
        (("--targets", "1000"), "class index 1000 is out of range"),
        (("--targets", "top-1001"), "there are 1000 classes"),
        (("--method", "lime"), "--method lime is unknown or given twice: choose from"),
        (("--method", "gradient", "--method", "gradient"), "each at most once"),
        (("--shard", "3/2"), "--shard is '3/2': give i/n"),
        (("--gate", "door"), "there is no gate 'door'"),
        (("--dtype", "int8"), "--dtype is int8"),
        (("--processes", 2, "--coordinator", "localhost:1"), "together"),
    ],
)
def test_wrong_input_is_named(network, folder, tmp_path, options, message):
    found = attribute(folder, tmp_path / "store", *options)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not (tmp_path / "store").exists()


def test_wrong_places_are_named(network, folder, tmp_path):
    found = attribute(folder, tmp_path / "no" / "store")
    assert "there is no folder" in found.stderr
    found = attribute(tmp_path / "nothing", tmp_path / "store")
    assert "there is no" in found.stderr
    found = attribute(folder, folder)
    assert "is not a store" in found.stderr
    with pytest.raises(DataError, match="there is no store"):
        open_store(tmp_path / "nothing")
    (folder / "strange.png").write_bytes((folder / "0007_cat.png").read_bytes())
    found = attribute(folder, tmp_path / "store", "--targets", "label")
    assert "the file name of strange.png contains no label" in found.stderr


def test_a_store_says_what_it_does_not_have(network, folder, tmp_path):
    assert attribute(folder, tmp_path / "store").exit_code == 0
    store = open_store(tmp_path / "store")
    assert repr(store).endswith("10 images, excitation_pullback>")
    with pytest.raises(TargetError, match="target is 1"):
        store.attributions(target=1)
    for wrong in (10, -11, 0.5, "dog"):
        with pytest.raises(DataError, match="has no image"):
            store.attributions(wrong)


def test_a_list_of_files_is_a_source(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("photographs/0014_cat.png\n\n" + f"{folder / '0007_cat.png'}\n")
    data = open_source(str(listed))
    assert data.labels == (14, 7)
    np.testing.assert_array_equal(data[0].image, image_folder(folder)[2].image)
    before = fingerprint(data)
    Image.open(CAT).save(folder / "0007_cat.png")
    assert fingerprint(data) != before
    listed.write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        open_source(str(listed))


def test_images_are_decoded_in_order(folder):
    data = image_folder(folder)
    groups = [[0, 1, 2], [6, 5], [9]]
    found = list(decoded(data, groups, PREPROCESSING))
    assert [[each.place for each in some] for some in found] == groups
    assert found[1][0].image is None
    assert "0042_cat.png" in found[1][0].reason
    np.testing.assert_array_equal(found[2][0].image, load_images([data[9].image], 16, resize=16)[0])


def test_float16_keeps_small_and_large_attributions():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 2, 1, 8, 8, 3)).astype(np.float32)
    maps[0] *= 1e-9
    maps[1] *= 1e7
    maps[2, 1] = 0
    stored, scales = filling.scaled(maps, "float16")
    assert stored.dtype == np.float16
    assert (np.abs(stored) < 2).all()
    again = stored * scales[..., None, None, None]
    error = np.abs(again - maps).max(axis=(-3, -2, -1))
    assert (error <= 2.0**-11 * np.abs(maps).max(axis=(-3, -2, -1))).all()
    same, ones = filling.scaled(maps, "float32")
    np.testing.assert_array_equal(same, maps)
    assert (ones == 1).all()


def test_sizes():
    sizes = layout.Layout(10, 2, 3, 16, 16, 5, "float16", 4)
    assert (sizes.chunks, list(sizes.rows(2))) == (3, [8, 9])
    assert sizes.bytes_of_attributions() == 10 * 2 * 3 * 16 * 16 * 3 * 2
    assert set(dataclasses.asdict(sizes)) == {field.name for field in dataclasses.fields(sizes)}
