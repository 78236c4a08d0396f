import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_excite import (
    Ascent,
    Gating,
    ImageError,
    InputError,
    SettingError,
    TargetError,
    pga,
    pga_grid,
    pga_steps,
    pullback,
    recipes,
)
from tests.networks import Network, images, relative_error

ASCENT = Ascent(steps=4, step_size=1.5, radius=3.0)


@pytest.fixture(scope="module")
def model():
    return Network()


@pytest.fixture(scope="module")
def x():
    return 0.8 * images(3)


def norms(x):
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=(-3, -2, -1)))


def slow_ascent(model, x, c, ascent, **options):
    """Section 5.1 of the paper, step by step in NumPy."""
    original = current = np.asarray(x)
    for _ in range(ascent.steps):
        field = np.asarray(pullback(model, current, c, bounds=None, **options))
        current = current + ascent.step_size * field / norms(field)[:, None, None, None]
        delta = current - original
        if ascent.radius is not None:
            delta = delta * np.minimum(1, ascent.radius / norms(delta))[:, None, None, None]
        current = original + delta
        if ascent.bounds is not None:
            current = np.clip(current, *ascent.bounds)
    return current


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({}, {}),
        ({"radius": None, "steps": 3}, {}),
        ({"bounds": None}, {}),
        ({"bounds": (-0.9, 0.95), "radius": 2.0}, {}),
        ({"step_size": -1.0}, {}),
        ({}, {"gating": recipes.SEMANTIC}),
        ({}, {"skip": "relu"}),
    ],
    ids=str,
)
def test_equals_the_paper_step_by_step(model, x, changed, options):
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    x, ascent = x.astype(jnp.float64), dataclasses.replace(ASCENT, **changed)
    ours = pga(double, x, [0, 1, 2], ascent, **options)
    slow = slow_ascent(double, x, [0, 1, 2], ascent, **options)
    assert relative_error(ours - x, slow - x) < 1e-10


def test_defaults_are_those_of_the_paper(model):
    x = images(1, size=64)
    explicit = Ascent(steps=10, step_size=20.0, radius=100.0, bounds=(-1, 1))
    np.testing.assert_array_equal(
        pga(model, x, 0), pga(model, x, 0, explicit, gating=recipes.EXCITATION)
    )


def test_published_settings_belong_to_their_recipes(model, x):
    assert pga(model, x, 0, recipes.SEMANTIC_PGA, gating=recipes.SEMANTIC).shape == x.shape
    assert pga(model, x, 0, recipes.EXCITATION_PGA, gating=recipes.EXCITATION).shape == x.shape


@pytest.mark.parametrize("function", ["pga", "pga_grid"])
def test_when_it_is_clipped(model, x, function):
    wide = Ascent(steps=3, step_size=9.0, radius=None)

    def climbed(**settings):
        ascent = dataclasses.replace(wide, **settings)
        if function == "pga":
            return pga(model, x, 1, ascent)
        return pga_grid(model, x, [1], ascent)[:, 0]

    unchecked = climbed(bounds=None)
    assert np.abs(unchecked).max() > 1.5
    np.testing.assert_array_equal(climbed(clip="never"), unchecked)
    np.testing.assert_allclose(climbed(clip="last"), np.clip(unchecked, -1, 1), atol=1e-6)
    each = climbed()
    assert np.abs(each).max() <= 1
    assert relative_error(each, np.clip(unchecked, -1, 1)) > 1e-3
    with pytest.raises(SettingError, match="clip is 'first': choose one of 'each', 'last'"):
        climbed(clip="first")


def test_a_relative_step_is_in_units_of_the_image(model, x):
    one = Ascent(steps=1, step_size=0.05, radius=None, bounds=None, relative=True)
    change = np.asarray(pga(model, x, 1, one) - x).reshape(len(x), -1)
    norms = np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)
    np.testing.assert_allclose(np.linalg.norm(change, axis=1), 0.05 * norms, rtol=1e-4)
    several = dataclasses.replace(one, steps=3)
    grid = pga_grid(model, x, [1], several)[:, 0]
    assert relative_error(grid, pga(model, x, 1, several)) < 1e-5


def test_infinite_radius_is_no_ball(model, x):
    free, infinite = (dataclasses.replace(ASCENT, radius=radius) for radius in (None, np.inf))
    assert infinite == free
    np.testing.assert_array_equal(pga(model, x, 0, infinite), pga(model, x, 0, free))


def test_no_steps_return_the_images(model, x):
    np.testing.assert_array_equal(pga(model, x, 0, Ascent(steps=0)), x)
    perturbed, values = pga(model, x, 2, Ascent(steps=0), trajectory=True)
    np.testing.assert_array_equal(perturbed, x)
    np.testing.assert_allclose(values, model(x)[:, 2:3], rtol=1e-5)


def test_zero_gradient_moves_nothing(x):
    still = pga(lambda x: jax.nn.relu(0 * x.mean(axis=(1, 2)) - 1), x, 0, gating=recipes.VANILLA)
    np.testing.assert_array_equal(still, x)


def test_trajectory_is_the_target_along_the_way(model, x):
    perturbed, values = pga(model, x, [0, 1, 2], ASCENT, trajectory=True)
    assert values.shape == (3, 5)
    for step in range(5):
        at = pga(model, x, [0, 1, 2], dataclasses.replace(ASCENT, steps=step))
        np.testing.assert_allclose(
            values[:, step], model(at)[np.arange(3), np.arange(3)], rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(perturbed, pga(model, x, [0, 1, 2], ASCENT))
    assert bool(jnp.all(values[:, -1] > values[:, 0]))

    def margin(logits):
        return logits[0] - logits[1]

    _, margins = pga(model, x[0], margin, ascent=ASCENT, trajectory=True)
    assert margins.shape == (5,)
    np.testing.assert_allclose(margins[0], margin(model(x[:1])[0]), rtol=1e-4)


def test_single_image_is_a_batch_of_one(model, x):
    batch = pga(model, x, 1, ASCENT)
    assert relative_error(pga(model, x[1], 1, ASCENT), batch[1]) < 1e-5


def test_grid_equals_single_ascents(model, x):
    grid, values = pga_grid(model, x, [3, 0], ascent=ASCENT, trajectory=True)
    assert grid.shape == (3, 2, 8, 8, 3)
    assert values.shape == (3, 2, 5)
    for column, c in enumerate([3, 0]):
        one, one_values = pga(model, x, c, ascent=ASCENT, trajectory=True)
        assert relative_error(grid[:, column] - x, one - x) < 1e-4
        np.testing.assert_allclose(values[:, column], one_values, rtol=1e-4, atol=1e-5)
    assert relative_error(pga_grid(model, x[2], [3, 0], ASCENT), grid[2]) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 50])
def test_batch_size_changes_nothing_else(model, x, batch_size):
    grid = pga_grid(model, x, [3, 0], ASCENT)
    chunked = pga_grid(model, x, [3, 0], ascent=ASCENT, batch_size=batch_size)
    assert relative_error(chunked - x[:, None], grid - x[:, None]) < 1e-4
    chunked = pga(model, x, [1, 2, 3], ascent=ASCENT, batch_size=batch_size)
    assert relative_error(chunked - x, pga(model, x, [1, 2, 3], ASCENT) - x) < 1e-4


def test_what_changes_in_a_value_recompiles_nothing(model, x):
    traces = []

    @jax.tree_util.Partial
    def counting(x):
        traces.append(x.shape)
        return model(x)

    pga(counting, x, 0, Ascent(2))
    count = len(traces)
    for ascent in (Ascent(2, 3.0), Ascent(2, radius=7), Ascent(2, bounds=(-2, 2))):
        pga(counting, x, 1, ascent)
    pga(counting, x, 1, Ascent(2), gating=Gating(0.5, 0.1))
    assert len(traces) == count


def test_settings_may_be_traced(model, x):
    @jax.jit
    def climb(step_size, radius):
        return pga(model, x, 0, Ascent(3, step_size, radius))

    expected = pga(model, x, 0, Ascent(3, 1.5, 2.0))
    assert relative_error(climb(1.5, 2.0) - x, expected - x) < 1e-4
    swept = jax.vmap(climb, in_axes=(0, None))(jnp.array([0.5, 1.5]), 2.0)
    assert relative_error(swept[1] - x, expected - x) < 1e-4


def test_ascent_is_one_compiled_loop(model, x):
    def program(steps):
        ascent = jax.jit(lambda m, x: pga(m, x, 0, Ascent(steps)))
        return ascent.lower(model, x).as_text()

    assert "stablehlo.while" in program(10)
    assert program(10).count("stablehlo.convolution") == program(2).count("stablehlo.convolution")


def test_low_precision_images_climb_too(model, x):
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    perturbed = pga(low, x.astype(jnp.bfloat16), 0, ASCENT)
    assert perturbed.dtype == jnp.bfloat16
    exact = pga(model, x, 0, ASCENT)
    assert relative_error((perturbed - x).astype(jnp.float32), exact - x) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps is -1: give a whole number of at least 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"step_size": np.nan}, "step_size is nan"),
        ({"radius": 0}, "radius is 0: give a positive number, or None"),
        ({"radius": -2.0}, "radius is -2"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=message):
        Ascent(**settings)


def test_a_wrong_batch_size_is_named(model, x):
    for ascend, target in ((pga, 0), (pga_grid, [0])):
        with pytest.raises(SettingError, match="batch_size is 0"):
            ascend(model, x, target, batch_size=0)


def test_an_ascent_is_a_pytree_that_checks_nothing_on_the_way():
    leaves, tree = jax.tree.flatten(ASCENT)
    assert leaves == [1.5, 3.0, -1.0, 1.0]
    assert tree.unflatten([None, *leaves[1:]]).step_size is None
    assert jax.tree.map(lambda leaf: leaf, ASCENT) == ASCENT


def test_wrong_input_is_named(model, x):
    with pytest.raises(ImageError, match="255"):
        pga(model, np.full((8, 8, 3), 255, np.float32), 0)
    with pytest.raises(ImageError):
        pga(model, x, 0, Ascent(bounds=(-0.1, 0.1)))
    with pytest.raises(TargetError, match="class index 9 is out of range"):
        pga(model, x, 9)
    with pytest.raises(TargetError, match="class index 9 is out of range"):
        pga_grid(model, x, [0, 9])


@pytest.mark.usefixtures("x64")
def test_going_on_with_an_ascent():
    model = jax.tree.map(lambda leaf: leaf.astype(float), Network())
    x = 0.8 * images(3, dtype=jnp.float64)
    half, whole = (pga(model, x, 1, Ascent(steps, 1.5, 3.0)) for steps in (3, 5))
    rest = Ascent(2, 1.5, 3.0)
    np.testing.assert_allclose(pga(model, half, 1, rest, around=x), whole, rtol=1e-12, atol=1e-12)
    single = pga(model, half[0], 1, rest, around=x[0], batch_size=1)
    np.testing.assert_allclose(single, whole[0], rtol=1e-9, atol=1e-12)
    astray = pga(model, half, 1, rest)
    assert not np.allclose(astray, whole)


def test_a_centre_for_each_image(model, x):
    with pytest.raises(InputError, match=r"around has shape \(8, 8, 3\): give the shape of x"):
        pga(model, x, 1, around=x[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({}, {}),
        ({"steps": 0}, {}),
        ({"radius": None, "bounds": None}, {}),
        ({"clip": "last", "step_size": 9.0}, {}),
        ({"clip": "never", "relative": True}, {"gating": Gating(0.7)}),
        ({}, {"at": 1, "skip": "max_pool"}),
    ],
)
def test_one_step_at_a_time(changed, options):
    model, x = Network(), np.asarray(0.8 * images(3, dtype=np.float64))
    ascent = dataclasses.replace(ASCENT, **changed)
    points = list(pga_steps(model, x, 2, ascent, **options))
    end, values = pga(model, x, 2, ascent, trajectory=True, **options)
    assert len(points) == ascent.steps + 1
    assert relative_error(points[-1].x - x + 1, end - x + 1) < 1e-12
    assert relative_error(np.stack([p.value for p in points], axis=1), values) < 1e-12
    assert relative_error(points[0].field, pullback(model, x, 2, bounds=None, **options)) < 1e-12
    if "at" not in options:
        assert relative_error(points[-1].outputs, model(end)) < 1e-12
    *_, alone = pga_steps(model, x[1], 2, ascent, **options)
    assert alone.x.shape == x[1].shape
    assert relative_error(alone.x, points[-1].x[1]) < 1e-12
    assert relative_error(alone.value, values[1, -1]) < 1e-12


def test_another_number_of_steps_recompiles_nothing(x):
    traces = []

    def network(x):
        traces.append(x.shape)
        return jax.nn.relu(x).mean((1, 2))

    for point in pga_steps(network, x, 1, dataclasses.replace(ASCENT, steps=1)):
        assert point.x.shape == x.shape
    before = len(traces)
    assert len(list(pga_steps(network, x, 2, dataclasses.replace(ASCENT, steps=5)))) == 6
    assert len(traces) == before


def test_steps_of_low_precision_images(model, x):
    short = jnp.asarray(x, jnp.bfloat16)
    *_, end = pga_steps(model, short, 1, ASCENT)
    assert end.x.dtype == jnp.bfloat16
    assert relative_error(end.x.astype(float), pga(model, x, 1, ASCENT)) < 0.02


def test_wrong_input_of_steps_is_named_at_once(model, x):
    with pytest.raises(TargetError, match="99"):
        pga_steps(model, x, 99)
    with pytest.raises(ImageError):
        pga_steps(model, x + 2, 1)
