import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from jax_excite import ExciteError, ImageError, attributions, metrics, recipes
from jax_excite.metrics.curves import blurred
from jax_excite.metrics.faithfulness import random_subsets, ranked_groups
from jax_excite.metrics.stability import other_classes
from tests.networks import Network, images

KEY = jax.random.key(5)
WEIGHTS = jax.random.normal(jax.random.key(1), (16, 16, 3, 4))


def linear(x):
    """Logits that are linear in the image, gated nowhere."""
    return jnp.einsum("nhwc,hwck->nk", x, WEIGHTS)


@pytest.fixture(scope="module")
def x():
    return images(3, size=16)


@pytest.fixture(scope="module")
def model():
    return Network()


@pytest.fixture(scope="module")
def maps(x):
    """Input x gradient of a linear function: what each value adds to logit 2, exactly."""
    return x * WEIGHTS[..., 2]


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        (metrics.faithfulness_correlation, {"key": KEY, "runs": 10, "subset_size": 30}),
        (metrics.faithfulness_estimate, {"steps": 8}),
    ],
)
def test_a_linear_function_is_explained_by_its_parts(x, maps, metric, settings):
    np.testing.assert_allclose(metric(linear, x, 2, maps, **settings), 1, rtol=1e-4)
    np.testing.assert_allclose(metric(linear, x, 2, -3 * maps, **settings), -1, rtol=1e-4)


def test_infidelity_of_a_linear_function(x):
    gradient = jnp.broadcast_to(WEIGHTS[..., 2], x.shape)
    exact = metrics.infidelity(linear, x, 2, gradient, patch_size=5, scaled=False)
    power = metrics.infidelity(linear, x, 2, 0 * gradient, patch_size=5, scaled=False)
    assert (exact < 1e-8 * power).all()
    scaled = metrics.infidelity(linear, x, 2, -7 * gradient, patch_size=5)
    assert (scaled < 1e-8 * power).all()
    # Nothing is explained by a map of zeros, with or without scale.
    np.testing.assert_allclose(metrics.infidelity(linear, x, 2, 0 * gradient, patch_size=5), power)
    with pytest.raises(ValueError, match="patch_size is 0"):
        metrics.infidelity(linear, x, 2, gradient, patch_size=0)


def test_several_methods_share_answers_and_one_image_is_one_of_a_batch(model, x):
    several = jnp.stack([x, jnp.abs(x), -x])
    for metric, settings in (
        (metrics.faithfulness_correlation, {"key": KEY, "runs": 5, "subset_size": 30}),
        (metrics.faithfulness_estimate, {"steps": 4}),
        (metrics.infidelity, {"patch_size": 8}),
        (lambda *args, **kwargs: metrics.deletion(*args, **kwargs).area, {"steps": 4}),
        (lambda *args, **kwargs: metrics.insertion(*args, **kwargs).area, {"steps": 4}),
    ):
        whole = metric(model, x, np.array([0, 1, 2]), several, **settings)
        assert whole.shape == (3, 3)
        for own, expected in zip(several, whole, strict=True):
            found = metric(model, x, np.array([0, 1, 2]), own, batch_size=2, **settings)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
        alone = metric(model, x[1], 1, several[:, 1], **settings)
        np.testing.assert_allclose(alone, whole[:, 1], rtol=1e-3, atol=1e-6)
        assert np.shape(metric(model, x[1], 1, several[0, 1], **settings)) == ()


def test_subsets_are_distinct_and_the_options_reach_the_network(x, maps):
    subsets = random_subsets(KEY, 6, 40, 50)
    assert all(len(set(map(int, subset))) == 40 for subset in subsets)
    assert len({tuple(map(int, subset)) for subset in subsets}) == 6
    for options in ({}, {"baseline": 0.5}, {"softmax": True}):
        chosen = random_subsets(KEY, 4, 30, x[0].size)
        base, softmax = options.get("baseline", 0.0), options.get("softmax", False)

        def value(x, softmax=softmax):
            logits = linear(x)
            return (jax.nn.softmax(logits) if softmax else logits)[:, 2]

        drops = [
            value(x) - value(x.reshape(3, -1).at[:, own].set(base).reshape(x.shape))
            for own in chosen
        ]
        sums = [maps.reshape(3, -1)[:, own].sum(axis=1) for own in chosen]
        pairs = zip(np.transpose(sums), np.transpose(drops), strict=True)
        wanted = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
        found = metrics.faithfulness_correlation(
            linear, x, 2, maps, key=KEY, runs=4, subset_size=30, **options
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
    with pytest.raises(ValueError, match="subset_size is 900: give at most 768"):
        metrics.faithfulness_correlation(linear, x, 2, maps, key=KEY, subset_size=900)


def test_groups_are_by_rank():
    values = jnp.array([3.0, 1.0, 2.0, 2.0, 5.0, 0.0, 9.0]).reshape(7, 1, 1)
    np.testing.assert_array_equal(ranked_groups(values, 3).ravel(), [0, 1, 1, 1, 0, 2, 0])


@pytest.mark.parametrize("softmax", [False, True])
def test_curves_by_hand(x, softmax):
    maps = jax.random.normal(KEY, x.shape)
    strength = np.asarray(maps.sum(-1)).reshape(3, -1)
    order = np.argsort(-strength, axis=1)
    target = np.array([0, 3, 1])

    def value(image, c):
        logits = linear(jnp.asarray(image)[None])[0]
        return (jax.nn.softmax(logits) if softmax else logits)[c]

    blur = np.asarray(blurred(x))
    kinds = ((metrics.deletion, 0.25, True), (metrics.insertion, "blur", False))
    for metric, baseline, deleting in kinds:
        curve = metric(linear, x, target, maps, steps=3, baseline=baseline, softmax=softmax)
        base = blur if baseline == "blur" else np.full(x.shape, baseline)
        for i in range(3):
            points = []
            for k in range(4):
                mask = np.zeros(256, bool)
                mask[order[i, : min(k * 86, 256)]] = True
                mask = mask.reshape(16, 16, 1)
                image = np.where(mask == deleting, base[i], x[i])
                points.append(float(value(image, target[i])))
            np.testing.assert_allclose(curve.values[i], points, rtol=1e-3, atol=1e-6)
            area = np.trapezoid(points, np.array([0, 86, 172, 256]) / 256)
            np.testing.assert_allclose(curve.area[i], area, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="baseline is 'grey'"):
        metrics.deletion(linear, x, target, maps, baseline="grey")


def test_blur_keeps_flat_images_and_the_sum_of_others():
    flat = jnp.full((1, 20, 20, 3), 0.4)
    np.testing.assert_allclose(blurred(flat), flat, rtol=1e-5)
    point = jnp.zeros((1, 41, 41, 3)).at[0, 20, 20].set(1.0)
    spread = blurred(point)
    np.testing.assert_allclose(spread.sum(), 3, rtol=1e-4)
    ratio = float(spread[0, 20, 25, 0] / spread[0, 20, 20, 0])
    np.testing.assert_allclose(ratio, math.exp(-0.5), rtol=1e-3)


def test_max_sensitivity(model, x):
    constant = metrics.max_sensitivity(attributions.constant_map, model, x, 2, key=KEY, samples=2)
    np.testing.assert_array_equal(constant, 0)

    def image(params, x, c):
        return x

    found = metrics.max_sensitivity(image, model, x, 2, key=KEY, samples=5, radius=0.1)
    noise = [
        jax.random.uniform(jax.random.fold_in(KEY, i), x.shape[1:], minval=-0.1, maxval=0.1)
        for i in range(5)
    ]
    largest = max(float(jnp.linalg.norm(n.ravel())) for n in noise)
    wanted = largest / np.linalg.norm(np.asarray(x).reshape(3, -1), axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.isnan(
        metrics.max_sensitivity(lambda p, x, c: 0 * x, model, x[0], 2, key=KEY, samples=1)
    )
    with pytest.raises(ValueError, match="radius is 0"):
        metrics.max_sensitivity(image, model, x, 2, key=KEY, radius=0)


def test_random_logit(model, x):
    fixed = metrics.random_logit(attributions.edges, model, x, 2, key=KEY)
    np.testing.assert_allclose(fixed, 1, rtol=1e-5)
    moved = metrics.random_logit(attributions.gradient, model, x, 2, key=KEY)
    assert (moved < 0.9).all()
    classes = np.repeat(np.arange(5), 200)
    drawn = other_classes(KEY, classes, 5)
    assert (drawn != classes).all()
    assert set(drawn) == set(range(5))
    with pytest.raises(ExciteError, match="one logit"):
        metrics.random_logit(
            attributions.gradient, lambda x: x.mean((1, 2, 3))[:, None], x, 0, key=KEY
        )


def test_parameter_randomisation(model, x):
    changed = metrics.randomised(model, x)
    blind = metrics.parameter_randomisation(attributions.edges, model, changed, x, 2)
    np.testing.assert_allclose(blind, 1)
    seeing = metrics.parameter_randomisation(attributions.gradient, model, changed, x, 2)
    assert (np.abs(seeing) < 0.9).all()
    head = metrics.randomised(model, x, down_to="head")
    np.testing.assert_array_equal(head.conv1.kernel[...], model.conv1.kernel[...])
    assert not np.array_equal(head.head.kernel[...], model.head.kernel[...])
    above = metrics.parameter_randomisation(attributions.gradient, model, head, x, 2)
    assert not np.allclose(above, seeing)
    with pytest.raises(
        ExciteError, match="down_to is 'neck': choose one of the layers head, conv2"
    ):
        metrics.randomised(model, x, down_to="neck")


def test_mosaics_focus_and_pointing():
    x, classes = images(6, size=16), np.array([0, 0, 1, 2, 3, 4])
    made = metrics.mosaics(x, classes, seed=3)
    np.testing.assert_array_equal(made.masks.sum(axis=(1, 2)), 64)
    half = np.asarray(jax.image.resize(x, (6, 8, 8, 3), "linear"))
    for number in range(6):
        assert len(set(classes[made.parts[number]])) == 4
        place = int(np.flatnonzero(made.parts[number] == number)[0])
        top, left = 8 * (place // 2), 8 * (place % 2)
        inside = made.x[number, top : top + 8, left : left + 8]
        np.testing.assert_allclose(inside, half[number], atol=1e-6)
        assert made.masks[number, top : top + 8, left : left + 8].all()
    np.testing.assert_allclose(metrics.focus(np.ones_like(made.x), made.masks), 0.25)
    inside = np.broadcast_to(made.masks[..., None], made.x.shape).astype(float)
    np.testing.assert_allclose(metrics.focus(np.stack([inside, inside - 1]), made.masks)[0], 1)
    assert np.isnan(metrics.focus(inside - 1, made.masks)).all()
    np.testing.assert_array_equal(metrics.pointing_game(inside, made.masks), 1)
    np.testing.assert_array_equal(metrics.pointing_game(1 - inside, made.masks), 0)
    assert np.isnan(metrics.pointing_game(np.ones_like(made.x), made.masks)).all()
    with pytest.raises(ImageError, match="fewer than four classes"):
        metrics.mosaics(x, np.array([0, 0, 1, 1, 2, 2]))


def test_pointing_game_with_boxes_and_tolerance():
    masks = metrics.boxes(np.array([[2, 3, 5, 6]]), 10, 12)
    assert masks.sum() == 9
    assert masks[0, 3:6, 2:5].all()
    maps = np.zeros((1, 10, 12, 3))
    maps[0, 4, 6, 1] = 2
    assert metrics.pointing_game(maps, masks) == 0
    assert metrics.pointing_game(maps, masks, tolerance=1) == 0
    assert metrics.pointing_game(maps, masks, tolerance=2) == 1
    with pytest.raises(ImageError, match="masks"):
        metrics.pointing_game(maps, masks.astype(int))


def test_total_variation():
    ramp = np.broadcast_to(np.arange(10.0)[:, None, None], (10, 10, 3))
    np.testing.assert_allclose(metrics.total_variation(ramp), 0.5 / 4.5)
    np.testing.assert_allclose(metrics.total_variation(7 * ramp), 0.5 / 4.5)
    assert metrics.total_variation(np.ones((4, 8, 8, 3))).tolist() == [0] * 4
    noise = np.random.default_rng(0).normal(size=(200, 200, 3))
    np.testing.assert_allclose(metrics.total_variation(noise), math.sqrt(2), rtol=0.02)


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_ssim_is_scikit_images(shift):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(2, 20, 24, 3)) + shift
    b = a + rng.normal(size=a.shape) / 3
    wanted = [
        structural_similarity(p, q, data_range=np.ptp(np.stack([p, q])))
        for p, q in zip(a.sum(-1), b.sum(-1), strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(a, b), wanted, rtol=1e-3)
    np.testing.assert_allclose(metrics.ssim(a, a), 1, rtol=1e-5)


def test_correlations_of_nothing_are_nan():
    assert np.isnan(metrics.pearson(np.ones(4), np.arange(4.0)))
    assert np.isnan(metrics.spearman(np.ones((1, 2, 2, 3)), images(1, size=2)))
    assert np.isnan(metrics.cosine(np.zeros((1, 2, 2, 3)), images(1, size=2)))


def test_climbing_along_the_pullback_is_pga(model, x):
    from jax_excite import Ascent, pga

    classes = np.array([0, 1, 4])
    ascent = Ascent(steps=3, step_size=2.0, radius=5.0)
    method = functools.partial(
        attributions.excitation_pullback, gating=recipes.EXCITATION, bounds=None
    )
    climbed = metrics.climb_along(method, model, x, classes, ascent)
    np.testing.assert_allclose(climbed, pga(model, x, classes, ascent), atol=1e-5)
    before, after = metrics.transfer(method, model, Network(seed=3), x, classes, ascent)
    logits = np.asarray(Network(seed=3)(climbed))
    own = logits[np.arange(3), classes]
    np.testing.assert_array_equal(after.rank, (logits > own[:, None]).sum(1))
    wanted = jax.nn.softmax(logits)[jnp.arange(3), classes]
    np.testing.assert_allclose(after.probability, wanted, rtol=1e-4)
    assert before.rank.shape == (3,)
    # A map without a direction leaves the image where it is.
    still = metrics.climb_along(lambda p, x, c: 0 * x * jnp.nan, model, x, classes, ascent)
    np.testing.assert_array_equal(still, x)
    alone = metrics.climb_along(method, model, x[1], 1, ascent)
    np.testing.assert_allclose(alone, climbed[1], atol=1e-5)


def test_transfer_takes_functions_and_names_what_is_wrong(model, x):
    found = metrics.standing(lambda x: model(x), x, [0, 1, 4])
    np.testing.assert_array_equal(found.rank, metrics.standing(model, x, [0, 1, 4]).rank)
    assert metrics.standing(model, x[0], 2).rank.shape == (1,)
    with pytest.raises(ExciteError, match="class index -1 is out of range"):
        metrics.standing(model, x, -1)
    with pytest.raises(ExciteError, match="image"):
        metrics.climb_along(attributions.gradient, model, 300 * x, 0)


@pytest.mark.parametrize(
    "metric",
    [
        functools.partial(metrics.faithfulness_correlation, key=KEY, runs=4, subset_size=9),
        functools.partial(metrics.faithfulness_estimate, steps=5),
        functools.partial(metrics.infidelity, patch_size=5),
        lambda *case: metrics.deletion(*case, steps=4).area,
        lambda *case: metrics.insertion(*case, steps=4).area,
    ],
)
def test_metrics_of_maps_compile_once_and_say_nothing_of_maps_that_are_not_finite(model, x, metric):
    maps = np.array(x)
    maps[1, 0, 0, 0] = np.nan
    traces = []

    def counting(x):
        traces.append(x.shape)
        return model(x)

    found = metric(counting, x, 2, maps)
    assert list(np.isnan(found)) == [False, True, False]
    traces.clear()
    metric(counting, x / 2, 3, x)
    assert traces == []


def test_maps_have_to_fit(model, x):
    for maps in (x[:2], x[..., :1], jnp.stack([x[:2]] * 3)):
        with pytest.raises(ImageError, match="maps have shape"):
            metrics.infidelity(model, x, 2, maps)
