"""The command evaluate: its table, and what happens when it is killed or misused."""

import csv
import importlib
import inspect
import json
import re

import filelock
import numpy as np
import pyarrow.parquet
import pytest
from matplotlib.image import imread
from PIL import Image

from jax_excite import (
    ExciteError,
    Gating,
    attributions,
    load_images,
    metrics,
    pullback,
    recipes,
)
from jax_excite.attributions.registry import METHODS
from jax_excite.cli import networks
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.evaluation.journal import Journal
from jax_excite.evaluation.scoring import COMPARED, METRICS, Chunk, bound_methods, chunks
from jax_excite.evaluation.summary import summarise
from jax_excite.models import Classifier, Preprocessing
from tests.networks import Network
from tests.unit.test_cli import CAT, run

PREPROCESSING = Preprocessing((0.5,) * 3, (0.25,) * 3, 16, 16)
MODELS = ("--model", "efficientnet_lite0", "--model", "efficientnet_lite1")
SOME = ("--method", "excitation_pullback", "--method", "gradient", "--method", "constant_map")
CHEAP = ("--metric", "total_variation", "--metric", "infidelity")


@pytest.fixture
def network(monkeypatch):
    """A small network that the command takes for any model."""
    network = Classifier(Network(classes=1000), PREPROCESSING, CLASS_NAMES)
    monkeypatch.setattr(networks, "load_model", lambda *_, **__: network)
    return network


@pytest.fixture
def folder(tmp_path):
    """Fourteen photographs: more than one chunk."""
    cat = Image.open(CAT).convert("RGB")
    where = tmp_path / "photographs"
    where.mkdir()
    for number in range(14):
        left, top = 20 * number, 10 * number
        cat.crop((left, top, left + 120, top + 120)).save(where / f"{7 * number:04}_cat.png")
    return where


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_table_of_two_models(network, folder, tmp_path):
    out = tmp_path / "table.csv"
    result = run("evaluate", folder, "--out", out, *MODELS, *SOME, "--seed", 3)
    assert result.exit_code == 0, result.stderr
    beside = [out.with_suffix(each) for each in (".csv", ".md", ".png", ".manifest.json")]
    assert result.stdout.splitlines() == [str(path) for path in beside]
    lines = rows(out)
    assert len(lines) == 2 * len(METRICS) * 3
    assert {line["metric"] for line in lines} == set(METRICS)
    by = {(each["model"], each["metric"], each["method"]): each for each in lines}

    x = load_images(sorted(folder.iterdir()), 16, resize=16)
    target = np.asarray(network(x)).argmax(1)
    field = attributions.gradient(network, x, target)
    wanted = metrics.total_variation(field)
    line = by["efficientnet_lite0", "total_variation", "gradient"]
    assert int(line["n"]) == 14
    assert float(line["mean"]) == pytest.approx(wanted.mean(), rel=1e-4)
    assert float(line["std"]) == pytest.approx(wanted.std(ddof=1), rel=1e-3)
    assert float(line["low"]) < wanted.mean() < float(line["high"])
    base = by["efficientnet_lite0", "total_variation", "excitation_pullback"]
    gap = float(line["mean"]) - float(base["mean"])
    assert float(line["difference"]) == pytest.approx(gap, abs=1e-5)
    assert base["difference"] == ""
    # A constant map has no correlation: it is in the table, with nothing to say.
    empty = by["efficientnet_lite1", "faithfulness_correlation", "constant_map"]
    assert (empty["n"], empty["mean"]) == ("0", "")

    text = out.with_suffix(".md").read_text()
    assert text.count("\n## ") + 1 == 2 * len(METRICS)
    assert imread(out.with_suffix(".png")).std() > 0.05
    manifest = json.loads(out.with_suffix(".manifest.json").read_text())
    assert manifest["metrics"] == list(METRICS)
    assert len(manifest["photographs"]) == 14


def test_a_killed_run_goes_on_where_it_stopped(network, folder, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    assert run("evaluate", folder, "--out", whole, *SOME, *CHEAP).exit_code == 0
    text = whole.with_suffix(".journal.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 2
    # Killed while it wrote the third result.
    cut.with_suffix(".journal.jsonl").write_text("".join(lines[:3]) + lines[3][:25])
    computed = []
    original = Chunk.on_maps

    def count(self, metric, **settings):
        computed.append(metric.__name__)
        return original(self, metric, **settings)

    monkeypatch.setattr(Chunk, "on_maps", count)
    assert run("evaluate", folder, "--out", cut, *SOME, *CHEAP).exit_code == 0
    assert computed == ["infidelity"]
    assert cut.read_text() == whole.read_text()
    assert cut.with_suffix(".journal.jsonl").read_text() == text
    # Another metric is added to what is there.
    computed.clear()
    more = run("evaluate", folder, "--out", cut, *SOME, "--metric", "deletion", *CHEAP)
    assert more.exit_code == 0
    assert computed == ["deletion", "deletion"]
    assert len(rows(cut)) == 9


def test_the_kinds_of_table_agree(network, folder, tmp_path):
    options = (*SOME, "--metric", "total_variation", "--limit", 3, "--temperatures", "0.5,inf")
    for ending in (".csv", ".json", ".parquet"):
        result = run("evaluate", folder, "--out", tmp_path / f"t{ending}", *options)
        assert result.exit_code == 0, result.stderr
    lines = rows(tmp_path / "t.csv")
    objects = json.loads((tmp_path / "t.json").read_text())
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert objects == table
    assert [{k: "" if v is None else str(v) for k, v in each.items()} for each in objects] == lines
    assert [line["method"] for line in lines[3:]] == [
        "excitation_pullback T=0.5",
        "excitation_pullback T=inf",
    ]


def test_further_temperatures_are_methods(network, folder, tmp_path):
    out = tmp_path / "t.csv"
    options = ("--metric", "total_variation", "--limit", 3, "--temperatures", "0,inf")
    only = ("--method", "gradient", "--gate", "softsign")
    assert run("evaluate", folder, "--out", out, *options, *only).exit_code == 0
    plain, cold, _ = rows(out)
    assert float(cold["mean"]) == pytest.approx(float(plain["mean"]), rel=1e-4)


def test_the_gate_is_the_users(network, folder, tmp_path):
    only = ("--metric", "total_variation", "--method", "excitation_pullback", "--temperature", 0.7)
    assert run("evaluate", folder, "--out", tmp_path / "a.csv", *only, "--limit", 4).exit_code == 0
    options = (*only, "--limit", 4, "--gate", "normal_cdf")
    assert run("evaluate", folder, "--out", tmp_path / "b.csv", *options).exit_code == 0
    order = np.random.default_rng(0).permutation(14)[:4]
    x = load_images(np.asarray(sorted(folder.iterdir()))[order].tolist(), 16, resize=16)
    target = np.asarray(network(x)).argmax(1)
    for name, gate in (("a", "sigmoid"), ("b", "normal_cdf")):
        field = pullback(network, x, target, gating=Gating(0.7, 0.7, gate=gate))
        wanted = metrics.total_variation(field).mean()
        assert float(rows(tmp_path / f"{name}.csv")[0]["mean"]) == pytest.approx(wanted, rel=1e-4)


def test_every_photograph_gets_a_mosaic_though_its_neighbours_are_alike(
    network, monkeypatch, folder, tmp_path
):
    """Sorted by name the first eight are of two classes, too few for a mosaic."""
    monkeypatch.setattr(importlib.import_module("jax_excite.cli.evaluate"), "AT_ONCE", 8)
    for number, photograph in enumerate(sorted(folder.iterdir())):
        photograph.rename(folder / f"{number // 4:04}_{number:02}.png")
    out = tmp_path / "t.csv"
    options = ("--method", "gradient", "--reference", "gradient", "--metric", "focus")
    found = run("evaluate", folder, "--out", out, "--target", "label", *options)
    assert found.exit_code == 0, found.stderr
    assert rows(out)[0]["n"] == "14"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "beauty"], "no metric 'beauty': choose one of faithfulness_correlation"),
        (["--method", "lime"], "no method 'lime': choose one of excitation_pullback"),
        (["--metric", "transfer_rank"], "--metric transfer_rank needs a second --model"),
        (["--gate", "door"], "there is no gate 'door': choose one of sigmoid, normal_cdf"),
        (["--model", "resnet50", "--model", "resnet50"], "names a model twice"),
        (
            ["--reference", "smooth_grad"],
            "--reference is smooth_grad: choose one of the compared methods, excitation_pullback, "
            "smoothed_pullback_8",
        ),
        (
            ["--reference", "smooth_grad", *SOME],
            "--reference is smooth_grad: choose one of the compared methods,",
        ),
        (["--temperatures", "warm"], "--temperatures has 'warm'"),
        (["--model", "nonet"], "nonet"),
    ],
)
def test_wrong_input_is_named(network, folder, tmp_path, options, message):
    result = run("evaluate", folder, "--out", tmp_path / "t.csv", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.glob("t.*"))


def test_wrong_places_are_named(network, folder, tmp_path):
    result = run("evaluate", folder, "--out", tmp_path / "t.txt")
    assert result.exit_code == 2
    assert "give a name that ends in .csv, .json, .parquet" in result.stderr
    result = run("evaluate", folder, "--out", tmp_path / "nowhere" / "t.csv")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr
    result = run("evaluate", folder, "--out", folder / "t.csv")
    assert result.exit_code == 2
    assert "choose a path outside" in result.stderr
    (folder / "strange.png").write_bytes((folder / "0007_cat.png").read_bytes())
    result = run("evaluate", folder, "--out", tmp_path / "t.csv", "--target", "label")
    assert result.exit_code == 2
    assert "the file name of strange.png contains no label" in result.stderr


def test_labels_are_explained_if_asked_for(network, folder, tmp_path):
    out = tmp_path / "t.csv"
    options = ("--metric", "total_variation", "--method", "gradient", "--reference", "gradient")
    assert run("evaluate", folder, "--out", out, "--target", "label", *options).exit_code == 0
    x = load_images(sorted(folder.iterdir()), 16, resize=16)
    field = attributions.gradient(network, x, 7 * np.arange(14))
    wanted = metrics.total_variation(field).mean()
    assert float(rows(out)[0]["mean"]) == pytest.approx(wanted, rel=1e-4)


def test_other_settings_and_a_second_run_are_refused(network, folder, tmp_path):
    out = tmp_path / "t.csv"
    options = ("--limit", 3, *SOME, "--metric", "total_variation")
    assert run("evaluate", folder, "--out", out, *options).exit_code == 0
    before = out.read_bytes()
    other = run("evaluate", folder, "--out", out, *options, "--seed", 8)
    assert other.exit_code == 2
    assert "belongs to a run with seed 0, and this run has 8" in other.stderr
    with filelock.FileLock(f"{out.with_suffix('.journal.jsonl')}.lock"):
        second = run("evaluate", folder, "--out", out, *options)
    assert second.exit_code == 2
    assert "another run is writing" in second.stderr
    assert out.read_bytes() == before


def test_journal_keeps_what_was_written(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal.open(path, {"a": 1}) as journal:
        journal.add("x", [1, None])
    with Journal.open(path, {"a": 1}) as journal:
        assert journal["x"] == [1, None]
        assert "y" not in journal
    with pytest.raises(ExciteError, match="with b null"), Journal.open(path, {"a": 1, "b": 2}):
        pass
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ExciteError, match="is not a journal"), Journal.open(path, {"a": 1}):
        pass


def test_a_journal_without_results_binds_nobody(tmp_path):
    for settings in ({"a": 1}, {"a": 2}):
        with Journal.open(tmp_path / "j.jsonl", settings):
            pass
    assert not (tmp_path / "j.jsonl").exists()


def test_chunks_have_one_size_and_miss_nothing():
    parts = chunks(14, 12)
    assert [len(indices) for indices, _ in parts] == [12, 12]
    own = [int(i) for indices, count in parts for i in indices[:count]]
    assert own == list(range(14))
    assert list(parts[1][0]) == [12, 13, *range(10)]
    assert [count for _, count in chunks(3, 12)] == [3]


def test_every_attribution_is_registered_under_its_own_name():
    assert set(attributions.__all__) <= set(METHODS) == set(bound_methods(recipes.EXCITATION))
    compared = {METHODS[name].function for name in COMPARED}
    only_if_named = {attributions.fusion_pullback, attributions.gradient_shap}
    every = {getattr(attributions, name) for name in attributions.__all__}
    assert compared == every - only_if_named


@pytest.mark.parametrize("name", sorted(n for n in METHODS if not n.startswith("semantic_")))
def test_a_registered_name_means_what_it_says(name):
    """A name without a number has the defaults of its function, else the number of passes."""
    method, (base, _, number) = (
        METHODS[name],
        re.fullmatch(r"(?:soft_)?(.*?)(_(\d+))?", name).groups(),
    )
    assert method.is_soft or not name.startswith("soft_")
    assert method.function is getattr(attributions, base)
    defaults = inspect.signature(method.function).parameters
    for setting, value in method.settings.items():
        assert value == (int(number) if number else defaults[setting].default)
        assert method.passes == value


def test_summary_by_hand():
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)
    other = base + 0.5 + rng.normal(size=400) / 10
    table = {"m": {"metric": {"a": list(base), "b": [*other[:-1], np.nan], "c": [1.0] * 400}}}
    first, second, third = summarise(table, "a")
    assert first.n == 400
    assert first.difference is None
    half = 1.96 * base.std(ddof=1) / 20
    assert first.low == pytest.approx(base.mean() - half, abs=0.02)
    assert first.high == pytest.approx(base.mean() + half, abs=0.02)
    assert (second.n, second.pairs) == (399, 399)
    assert second.difference == pytest.approx(0.5, abs=0.02)
    # Paired: far narrower than the scores' own spread.
    assert second.difference_high - second.difference_low < 0.03
    assert (third.low, third.high, third.median) == (1.0, 1.0, 1.0)
