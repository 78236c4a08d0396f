import dataclasses
import itertools
import json

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from experiments import hypothesis_1, measures, summary, training
from experiments.hypothesis_1 import run
from experiments.results import QUICK
from jax_excite.theory.induced_networks import Gates


@pytest.fixture(scope="module")
def results():
    return run(QUICK, lambda line: None)


def curves(results, value="correlation", **where):
    return summary.series(results.correlations, value, **where)


def test_pearson_is_by_class():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 3))
    expected = [np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(measures.pearson(a, b), expected, rtol=1e-12)
    b[:, 1] = 7.0
    assert measures.pearson(a, b)[1] == 0


def gates_of(*layers):
    return Gates(values={f"relu{i}": layer for i, layer in enumerate(layers)}, stopped={})


def test_path_correlation_equals_enumeration():
    rng = np.random.default_rng(0)
    fields = [[gates_of(rng.random((2, 3)), rng.random((2, 4))) for _ in range(n)] for n in (1, 3)]

    def activities(field, image):
        return [
            np.mean([g.values["relu0"][image, i] * g.values["relu1"][image, j] for g in field])
            for i, j in itertools.product(range(3), range(4))
        ]

    expected = [np.corrcoef([activities(f, image) for f in fields])[0, 1] for image in range(2)]
    np.testing.assert_allclose(measures.path_correlation(*fields), expected, rtol=1e-9)


def test_path_correlation_refuses_convolutional_gates():
    gates = gates_of(np.ones((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"gates at relu0 have shape \(2, 4, 4, 3\)"):
        measures.path_correlation([gates], [gates])


def test_stability_of_known_gates():
    a = gates_of(np.array([[1.0, 0, 1, 0], [1, 1, 1, 1]]))
    b = gates_of(np.array([[1.0, 1, 0, 0], [1, 1, 1, 1]]))
    assert measures.equal_share(a, b) == {"relu0": 6 / 8}
    assert measures.cosine(a, b)["relu0"] == pytest.approx((0.5 + 1) / 2)


def test_flip_turns_over_the_first_in_order():
    gates = gates_of(np.array([[1.0, 0, 1, 0], [1, 1, 1, 1]]))
    order = {"relu0": np.array([[3.0, 0, 2, 9], [7, 8, 1, 6]])}
    flipped = measures.flip(gates, {"relu0": 3 / 8}, order)
    np.testing.assert_array_equal(flipped.values["relu0"], [[1, 1, 0, 0], [1, 1, 0, 1]])


def test_alignment_ignores_scale_and_offset():
    rng = np.random.default_rng(0)
    a, b = (v @ v.T for v in rng.normal(size=(2, 20, 4)))
    assert measures.alignment(a, 3 * a + 5) == pytest.approx(1)
    centre = np.eye(20) - 1 / 20
    u, v = (centre @ k @ centre for k in (a, b))
    expected = np.vdot(u, v) / np.sqrt(np.vdot(u, u) * np.vdot(v, v))
    assert measures.alignment(a, b) == pytest.approx(expected)


def test_emergence_is_where_the_curve_stays_above():
    times = [0, 1, 10, 100]
    assert summary.emergence(times, np.array([0.95, 0.5, 0.91, 0.99])) == 10
    assert summary.emergence(times, np.array([0.95, 0.95, 0.99, 0.9])) is None
    assert summary.emergence(times, np.ones(4)) == 0


def test_training_starts_from_the_untrained_network_and_learns():
    digits, held_out = training.load_digits(40)
    kept = training.train("mlp", digits, {0, 40}, seed=3, steps=QUICK.steps)
    untrained = training.build("mlp", 3, train=False)
    np.testing.assert_array_equal(kept[0](held_out.x[:5]), untrained(held_out.x[:5]))
    values = np.asarray(training.logits(kept[40], held_out.x))
    assert np.mean(values.argmax(axis=1) == held_out.y) > 0.5


def test_snapshots_with_batch_norm_are_in_evaluation_form():
    digits, _ = training.load_digits(20)
    kept = training.train("conv-bn", digits, {5}, seed=0, steps=QUICK.steps)
    together = training.logits(kept[5], digits.x[:4])
    alone = [training.logits(kept[5], digits.x[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_sets_are_disjoint_balanced_and_fixed():
    digits, held_out = training.load_digits(30)
    assert np.bincount(digits.y).tolist() == [30] * 10
    assert np.bincount(held_out.y).tolist() == [100] * 10
    assert not {x.tobytes() for x in digits.x} & {x.tobytes() for x in held_out.x}
    np.testing.assert_array_equal(digits.x, training.load_digits(30)[0].x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: training.load_digits(401), "per_class is 401"),
        (
            lambda d: training.train("vgg", d, {0}, seed=0, steps=5, batch_size=9),
            "network is 'vgg'",
        ),
        (lambda d: training.train("mlp", d, {7}, seed=0, steps=5), r"times \[7\]"),
        (lambda d: training.train("mlp", d, {0}, seed=0, steps=5, batch_size=11), "batch_size"),
    ],
)
def test_bad_settings_are_refused(call, message):
    digits, _ = training.load_digits(1)
    with pytest.raises(ValueError, match=message):
        call(digits)


def test_tables_have_a_row_for_each_step_and_all_is_finite(results):
    steps = len(QUICK.times())
    for images in ("training", "held out"):
        for network in QUICK.networks:
            for gates, temperature in summary.COMPARED:
                if temperature not in (0.0, 0.3):
                    continue
                where = {"network": network, "images": images, "gates": gates}
                assert curves(results, **where, temperature=temperature).shape == (1, steps)
    for name, rows in results.tables().items():
        assert rows, name
        numbers = [
            x for row in rows for k, x in row.items() if isinstance(x, float) and k != "temperature"
        ]
        assert np.isfinite(numbers).all(), name
    correlations = [row["correlation"] for row in results.correlations]
    assert max(np.abs(correlations)) <= 1 + 1e-12


@pytest.mark.parametrize("network", QUICK.networks)
def test_final_hard_gates_give_back_the_final_network(results, network):
    """Equation 7 with Lambda = G: f_G = f."""
    where = {"network": network, "gates": "final", "temperature": 0.0}
    for images in ("training", "held out"):
        assert curves(results, images=images, **where)[0, -1] == pytest.approx(1, abs=1e-5)
        assert curves(results, "agreement", images=images, **where)[0, -1] == 1
    untrained = {"network": network, "gates": "untrained", "temperature": 0.0}
    assert curves(results, images="training", **untrained)[0, 0] == pytest.approx(1, abs=1e-5)
    same_step = [
        row["correlation"]
        for row in results.pairs
        if row["network"] == network and row["temperature"] == 0 and row["gates of"] == row["step"]
    ]
    assert len(same_step) == len(QUICK.times())
    np.testing.assert_allclose(same_step, 1, atol=1e-5)
    last = [row for row in results.stability if row["step"] == QUICK.steps]
    np.testing.assert_allclose([row["equal"] for row in last], 1)
    np.testing.assert_allclose([row["cosine"] for row in last], 1)
    last = [row for row in results.flips if row["gates of"] == QUICK.steps]
    for value in ("earlier", "random", "weakest"):
        np.testing.assert_allclose([row[value] for row in last], 1, atol=1e-5)
    last = [row for row in results.kernels if row["step"] == QUICK.steps]
    np.testing.assert_allclose([row["with final"] for row in last], 1)


def test_gates_of_other_images_do_worse(results):
    for network in QUICK.networks:
        where = {"network": network, "images": "training", "temperature": 0.0}
        own = curves(results, gates="final", **where)[0, -1]
        digit = curves(results, gates="same digit", **where)[0, -1]
        any_image = curves(results, gates="other image", **where)[0, -1]
        assert own > digit > any_image


def test_runs_repeat():
    settings = dataclasses.replace(QUICK, networks=("mlp",), steps=5, snapshots=2)
    first, second = (run(settings, lambda line: None) for _ in range(2))
    assert first.tables() == second.tables()
    other = run(dataclasses.replace(settings, seeds=(1,)), lambda line: None)
    assert other.learning != first.learning


@pytest.fixture
def command(results, monkeypatch):
    monkeypatch.setattr(hypothesis_1, "run", lambda settings, report: results)
    app = Typer()
    app.command()(hypothesis_1.main)

    def invoke(*arguments):
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return invoke


def test_command_writes_plots_and_tables(command, tmp_path):
    out = tmp_path / "new" / "folder"
    result = command("--out", out, "--quick")
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.iterdir()}
    assert {"hypothesis-1.png", "correlations.csv", "tables.md", "run.json"} < names
    assert all(path.stat().st_size > 100 for path in out.iterdir())
    assert json.loads((out / "run.json").read_text())["settings"]["steps"] == QUICK.steps
    lines = (out / "correlations.csv").read_text().splitlines()
    assert lines[0].startswith("network,seed,images,gates,temperature,step,correlation")


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--steps", "19"], []])
def test_command_refuses_bad_input(command, tmp_path, arguments):
    file = tmp_path / "file"
    file.write_text("kept")
    result = command("--out", file, *arguments)
    assert result.exit_code == 2
    message = " ".join(result.output.replace("│", " ").split())
    assert (arguments[0] if arguments else "is a file: give a folder") in message
    assert file.read_text() == "kept"
