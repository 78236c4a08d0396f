"""Inputs of any rank, several inputs, and outputs of any structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_excite as je
from jax_excite import (
    Ascent,
    ImageError,
    InputError,
    TargetError,
    attributions,
    metrics,
    recipes,
)
from tests.networks import relative_error, soft_relu


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def of_flat(w1, w2, relu, x):
    """A network of items of any shape."""
    return relu(x.reshape(len(x), -1) @ w1) @ w2


@settings(max_examples=12, deadline=None)
@given(
    item=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    count=st.integers(1, 8),
    size=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 5),
)
def test_items_of_any_shape(item, count, size, seed):
    w1, w2 = draw(seed, int(np.prod(item)), 7), draw(seed + 1, 7, 3)
    x = draw(seed + 2, count, *item)

    def network(x):
        return of_flat(w1, w2, jax.nn.relu, x)

    how = {"batched": True, "bounds": None, "batch_size": size}
    field = je.pullback(network, x, 2, **how)
    wanted = jax.grad(lambda x: of_flat(w1, w2, lambda z: soft_relu(z, 0.3), x)[:, 2].sum())(x)
    assert relative_error(field, wanted) < 1e-5
    one = je.pullback(network, x[0], 2, batched=False, bounds=None)
    assert relative_error(one, wanted[0]) < 1e-5
    grid = je.pullback_grid(network, x, [0, 2], **how)
    assert grid.shape == (count, 2, *item)
    assert relative_error(grid[:, 1], wanted) < 1e-5
    # One step only: with one number per item, a second may lead back.
    perturbed = je.pga(network, x, 2, Ascent(1, 0.5, None, None), batched=True)
    norms = jnp.linalg.norm((perturbed - x).reshape(count, -1), axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_images_of_any_number_of_channels(channels):
    w1, w2 = draw(0, 16 * channels, 7), draw(1, 7, 3)
    x = 0.9 * jnp.tanh(draw(2, 3, 4, 4, channels))

    def network(x):
        return of_flat(w1, w2, jax.nn.relu, x)

    assert je.pullback(network, x, 1).shape == x.shape
    np.testing.assert_allclose(
        je.pullback(network, x[0], 1), je.pullback(network, x, 1)[0], rtol=1e-4, atol=1e-6
    )
    assert je.pga(network, x, 1, Ascent(2, 1.0)).shape == x.shape
    with pytest.raises(ImageError, match=r"values -0.*2.*bounds=None switches this check off"):
        je.pullback(network, x + 1.5 * (x == x.max()), 1)


def two_inputs():
    w = {"image": draw(0, 48, 6), "table": draw(1, 5, 6), "head": draw(2, 6, 3)}

    def network(x, relu=jax.nn.relu):
        image = x["image"].reshape(len(x["image"]), -1)
        h = relu(image @ w["image"] + x["table"] @ w["table"])
        return {"scores": h @ w["head"], "parts": (h, h.sum(axis=1))}

    x = {"image": 0.5 * draw(3, 4, 4, 4, 3), "table": draw(4, 4, 5)}
    return network, x


def soft(z):
    return soft_relu(z, 0.3)


def test_several_inputs_and_outputs():
    network, x = two_inputs()
    weights = {"scores": draw(5, 4, 3), "parts": (draw(6, 4, 6), draw(7, 4))}
    targets = {
        "entry": (("scores", 2), lambda y: y["scores"][:, 2].sum()),
        "nested": (("parts", 0, 3), lambda y: y["parts"][0][:, 3].sum()),
        "scalar": (("parts", 1), lambda y: y["parts"][1].sum()),
        "cotangent": (
            weights,
            lambda y: sum(
                (a * b).sum()
                for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(y), strict=True)
            ),
        ),
        "objective": (
            lambda y: y["scores"][0] * y["parts"][1],
            lambda y: (y["scores"][:, 0] * y["parts"][1]).sum(),
        ),
    }
    for target, scalar in targets.values():
        outputs, field = je.value_and_pullback(network, x, target, batched=True)
        wanted = jax.grad(lambda x, s=scalar: s(network(x, soft)))(x)
        for name in x:
            assert relative_error(field[name], wanted[name]) < 1e-5
        assert jax.tree.structure(outputs) == jax.tree.structure(network(x))
        blocks = je.pullback(network, x, target, batched=True, batch_size=3)
        for name in x:
            assert relative_error(blocks[name], wanted[name]) < 1e-5


def test_an_ascent_measures_all_inputs_together():
    network, x = two_inputs()
    perturbed, values = je.pga(
        network, x, ("scores", 1), Ascent(4, 0.5, 1.2, None), batched=True, trajectory=True
    )
    change = [(perturbed[name] - x[name]).reshape(4, -1) for name in x]
    norms = jnp.linalg.norm(jnp.concatenate(change, axis=1), axis=1)
    np.testing.assert_allclose(norms, 1.2, rtol=1e-5)
    assert values.shape == (4, 5)
    np.testing.assert_allclose(values[:, -1], network(perturbed)["scores"][:, 1], rtol=1e-5)
    cells = je.pga_grid(
        network, x, [("scores", 1), ("scores", 0)], Ascent(4, 0.5, 1.2, None), batched=True
    )
    for name in x:
        assert relative_error(cells[name][:, 0], perturbed[name]) < 1e-5


def test_a_single_item_of_several_inputs():
    network, x = two_inputs()
    one = jax.tree.map(lambda part: part[1], x)
    field = je.pullback(network, one, ("scores", 2), batched=False)
    whole = je.pullback(network, x, ("scores", 2), batched=True)
    for name in x:
        assert relative_error(field[name], whole[name][1]) < 1e-5


def test_attributions_and_calibration_take_other_inputs():
    network, x = two_inputs()
    target, key = ("scores", 2), jax.random.key(0)
    gradient = attributions.gradient(network, x, target, batched=True)
    product = attributions.input_x_gradient(network, x, target, batched=True)
    path = attributions.integrated_gradients(network, x, target, batched=True, steps=200)
    noisy = attributions.smooth_grad(network, x, target, batched=True, key=key, std=0.0)
    total = 0
    for name in x:
        np.testing.assert_allclose(product[name], x[name] * gradient[name], rtol=1e-6)
        np.testing.assert_allclose(noisy[name], gradient[name], rtol=1e-4, atol=1e-5)
        total += path[name].reshape(4, -1).sum(axis=1)
    zero = network(jax.tree.map(jnp.zeros_like, x))["scores"][:, 2]
    np.testing.assert_allclose(total, network(x)["scores"][:, 2] - zero, rtol=2e-2, atol=2e-2)
    gating = je.calibrate(network, x, batched=True)
    assert set(gating.site_temperatures) == {site.name for site in je.sites(network, x)}


def test_what_needs_images_says_so():
    network, x = two_inputs()
    with pytest.raises(InputError, match="Grad-CAM needs images"):
        attributions.grad_cam(network, x, ("scores", 2), batched=True)
    with pytest.raises(ImageError, match="images are float arrays"):
        metrics.infidelity(network, x["table"], 2, x["table"])


def test_plain_gradients_are_those_of_jax():
    network, x = two_inputs()
    field = je.pullback(network, x, ("parts", 1), batched=True, gating=recipes.VANILLA)
    wanted = jax.grad(lambda x: network(x)["parts"][1].sum())(x)
    for name in x:
        assert relative_error(field[name], wanted[name]) < 1e-6


def test_a_class_of_each_pixel():
    w = draw(0, 3, 4)

    def segment(x):
        return jax.nn.relu(x) @ w

    x = jnp.tanh(draw(1, 2, 5, 5, 3))
    field = je.pullback(segment, x, (2, 3, 1))
    assert np.argwhere(np.asarray(field).any(axis=(0, 3))).tolist() == [[2, 3]]
    rows = je.pullback(segment, x, (np.array([0, 4]), 3, 1))
    assert np.argwhere(np.asarray(rows).any(axis=3)).tolist() == [[0, 0, 3], [1, 4, 3]]
    with pytest.raises(TargetError, match=r"outputs have shape \(2, 5, 5, 4\): a class index need"):
        je.pullback(segment, x, 1)


def test_outputs_of_integers_have_no_derivative():
    network, x = two_inputs()

    def ranked(x):
        scores = network(x)["scores"]
        return {"scores": scores, "order": jnp.argsort(scores)}

    weights = draw(8, 4, 3)
    both = {"scores": weights, "order": jnp.ones((4, 3))}
    field = je.pullback(ranked, x, both, batched=True)
    wanted = je.pullback(lambda x: network(x)["scores"], x, weights, batched=True)
    for name in x:
        assert relative_error(field[name], wanted[name]) < 1e-6
    for target in (("order", 1), [("order", 1)]):
        call = je.pullback if isinstance(target, tuple) else je.pullback_grid
        with pytest.raises(TargetError, match="dtype int32, which has no derivative"):
            call(ranked, x, target, batched=True)
    with pytest.raises(TargetError, match="dtype int32, which has no derivative"):
        je.pullback(lambda x: ranked(x)["order"], x, 1, batched=True)


def test_indices_may_be_traced():
    network, x = two_inputs()
    wanted = je.pullback_grid(network, x, [("scores", 1), ("scores", 2)], batched=True)

    @jax.jit
    def traced(i):
        return je.pullback_grid(network, x, [("scores", i), ("scores", i + 1)], batched=True)

    for name in x:
        assert relative_error(traced(1)[name], wanted[name]) < 1e-6


def test_errors_say_what_would_be_right():
    network, x = two_inputs()
    table = x["table"]
    cases = [
        (InputError, r"batched=True if the first axis", lambda: je.pullback(network, x, 0)),
        (InputError, r"shape \(4, 5\).*batched=True", lambda: je.pullback(network, table, 0)),
        (InputError, "give a float array", lambda: je.pullback(network, "x.png", 0)),
        (InputError, "give a float array", lambda: je.pullback(network, [], 0)),
        (
            InputError,
            "in a batch, the first axis of each array counts the items",
            lambda: je.pullback(network, {**x, "table": table[:2]}, 0, batched=True),
        ),
        (
            InputError,
            "dtype int32: inputs are float arrays",
            lambda: je.pullback(network, {**x, "table": jnp.ones((4, 5), int)}, 0, batched=True),
        ),
        (
            InputError,
            "holds NaN or infinity",
            lambda: je.pullback(network, {**x, "table": table / 0}, 0, batched=True),
        ),
        (
            InputError,
            r"inputs are float arrays in \[-1, 1\].*bounds=None switches this check off",
            lambda: je.pga(network, x, ("scores", 1), batched=True),
        ),
        (TargetError, r"'scores': \(4, 3\)", lambda: je.pullback(network, x, 0, batched=True)),
        (
            TargetError,
            r"one of \['parts', 'scores'\]",
            lambda: je.pullback(network, x, ("score", 0), batched=True),
        ),
        (
            TargetError,
            "index 3 of the array .* is out of range",
            lambda: je.pullback(network, x, ("scores", 3), batched=True),
        ),
        (
            je.SettingError,
            "x is a pytree of several",
            lambda: je.pullback_grid(
                network, x, [("scores", 0)], batched=True, out=np.zeros((4, 1, 5))
            ),
        ),
        (
            TargetError,
            "the first axis of each output has to count the items, 4",
            lambda: je.pullback(
                lambda x: (network(x)["scores"], jax.nn.relu(x["table"]).sum()),
                x,
                (0, 1),
                batched=True,
            ),
        ),
    ]
    for error, said, call in cases:
        with pytest.raises(error, match=said):
            call()
