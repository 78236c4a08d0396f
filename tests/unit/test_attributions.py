import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jax_excite import (
    Ascent,
    Gating,
    GatingError,
    InputError,
    SettingError,
    attributions,
    pga,
    pullback,
    recipes,
    sites,
)
from jax_excite.attributions.noise import with_noisy_weights
from jax_excite.attributions.registry import METHODS
from jax_excite.theory.induced_networks import gates
from tests.networks import Network, images, relative_error

KEY = jax.random.key(7)
CASES = {
    "gradient": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 4},
    "smooth_grad": {"key": KEY, "samples": 3},
    "guided_backprop": {},
    "deconvolution": {},
    "grad_cam": {},
    "guided_grad_cam": {},
    "excitation_pullback": {},
    "smoothed_pullback": {"key": KEY, "samples": 3},
    "fusion_pullback": {"key": KEY, "draws": 2, "samples": 2},
    "deep_lift": {"baseline": 0.2},
    "gradient_shap": {"key": KEY, "samples": 3, "std": 0.1},
    "pga_difference": {"ascent": Ascent(steps=2)},
    "random_map": {"key": KEY},
    "constant_map": {},
    "edges": {},
}
CONTROLS = ("random_map", "constant_map", "edges")


@pytest.fixture(scope="module")
def model():
    return Network()


@pytest.fixture(scope="module")
def x():
    return images(3)


def test_all_are_listed():
    assert set(CASES) == set(attributions.__all__)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_images(model, x, name):
    method = functools.partial(getattr(attributions, name), **CASES[name])
    classes = np.array([0, 3, 4])
    whole = method(model, x, classes)
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    for image, c, own in zip(x, classes, whole, strict=True):
        np.testing.assert_allclose(method(model, image, int(c)), own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONTROLS])
def test_blocks_and_devices_change_nothing(model, x, name):
    method = functools.partial(getattr(attributions, name), **CASES[name])
    whole = method(model, x, 2)
    np.testing.assert_allclose(method(model, x, 2, batch_size=2), whole, rtol=1e-4, atol=1e-6)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    spread = method(model, x, 2, sharding=sharding)
    np.testing.assert_allclose(spread, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONTROLS])
def test_float64_numpy_images_are_taken_and_bad_ones_refused(model, x, name):
    method = functools.partial(getattr(attributions, name), **CASES[name])
    np.testing.assert_allclose(
        method(model, np.asarray(x, np.float64), 2), method(model, x, 2), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(InputError, match="x has shape"):
        method(model, x[0, 0], 2)


def test_gradients_of_functions_without_gates():
    def smooth(x):
        return jnp.tanh(x).mean(axis=(1, 2))

    x = images(2)
    plain = jax.grad(lambda x: smooth(x)[:, 1].sum())(x)
    np.testing.assert_allclose(attributions.gradient(smooth, x, 1), plain, rtol=1e-6)
    line = attributions.integrated_gradients(smooth, x, 1, steps=20)
    rise = smooth(x)[:, 1] - smooth(jnp.zeros_like(x))[:, 1]
    np.testing.assert_allclose(line.sum(axis=(1, 2, 3)), rise, rtol=1e-4, atol=1e-6)
    for method in (attributions.guided_backprop, attributions.deconvolution):
        with pytest.raises(GatingError, match="no gate to soften"):
            method(smooth, x, 1)


def test_guided_and_deconvolution_by_hand():
    weights = jax.random.normal(jax.random.key(0), (2, 3, 4))
    above = jax.random.normal(jax.random.key(1), (2, 4, 2))

    def net(x):
        hidden = jax.nn.relu(x.mean(axis=(1, 2)) @ weights[0])
        return jax.nn.relu(hidden @ above[0] @ above[1].T @ jnp.eye(4)) @ above[1]

    x = images(3)
    z1 = x.mean(axis=(1, 2)) @ weights[0]
    z2 = jax.nn.relu(z1) @ above[0] @ above[1].T
    for method, active in (
        (attributions.guided_backprop, lambda z: z > 0),
        (attributions.deconvolution, lambda z: z == z),
    ):
        g = jnp.broadcast_to(above[1][:, 1], z2.shape)
        g = jnp.maximum(g, 0) * active(z2)
        g = jnp.maximum(g @ (above[0] @ above[1].T).T, 0) * active(z1)
        wanted = (g @ weights[0].T / (x.shape[1] * x.shape[2]))[:, None, None]
        found = method(net, x, 1)
        np.testing.assert_allclose(found, jnp.broadcast_to(wanted, x.shape), rtol=1e-5, atol=1e-7)


def test_positive_cotangents_are_no_gating_function(model, x):
    with pytest.raises(GatingError, match="do not form a gating function"):
        gates(model, x, recipes.GUIDED_BACKPROP)
    with pytest.raises(GatingError, match="cotangents is 'some'"):
        Gating(cotangents="some")


def test_soft_gates_may_be_integrated_and_smoothed(model, x):
    soft = recipes.EXCITATION
    smooth = attributions.smooth_grad(model, x, 2, key=KEY, samples=2, std=0.0, gating=soft)
    assert relative_error(smooth, pullback(model, x, 2)) < 1e-6
    one = attributions.integrated_gradients(model, x, 2, steps=1, gating=soft, skip=0)
    wanted = pullback(model, x / 2, 2, skip=0) * x
    assert relative_error(one, wanted) < 1e-6


def test_another_baseline_key_or_temperature_traces_nothing(model, x, monkeypatch):
    traces, call = [], Network.__call__
    monkeypatch.setattr(Network, "__call__", lambda self, x: traces.append(1) or call(self, x))
    attributions.integrated_gradients(model, x, 2, steps=3)
    attributions.smooth_grad(model, x, 2, key=KEY, samples=2)
    before = len(traces)
    attributions.integrated_gradients(model, x, 4, steps=3, baseline=np.full((1, 1, 3), 0.5))
    assert len(traces) == before + 1, "another shape of baseline"
    attributions.integrated_gradients(model, x, 4, steps=3, baseline=-1)
    attributions.smooth_grad(
        model, x, 1, key=jax.random.key(9), samples=2, std=0.1, gating=recipes.VANILLA
    )
    assert len(traces) == before + 1


def test_grad_cam_of_a_named_layer(model, x):
    found = sites(model, x)
    with jax.disable_jit():
        first = jax.nn.relu(model.norm(model.conv1(x)))

    def above(layer):
        hidden = jax.nn.relu(
            model.conv2(
                jax.lax.reduce_window(
                    layer, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
                )
            )
        )
        return model.head(hidden.mean(axis=(1, 2)))

    gradients = jax.grad(lambda layer: above(layer)[:, 2].sum())(first)
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    cam = jnp.maximum((weights * first).sum(-1), 0)
    for site in (found[0].name, 0):
        own = attributions.grad_cam(model, x, 2, site=site)
        assert relative_error(own, jnp.broadcast_to(cam[..., None], x.shape)) < 1e-5
    last = attributions.grad_cam(model, x, 2)
    assert last.shape == x.shape
    assert (last >= 0).all()
    with pytest.raises(GatingError, match="site is 'nowhere': Grad-CAM needs"):
        attributions.grad_cam(model, x, 2, site="nowhere")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (attributions.integrated_gradients, {"steps": 0}, "steps is 0"),
        (attributions.integrated_gradients, {"steps": 2.5}, "steps is 2.5"),
        (
            attributions.integrated_gradients,
            {"baseline": np.zeros(7)},
            r"baseline has shape \(7,\)",
        ),
        (attributions.smooth_grad, {"key": KEY, "samples": True}, "samples is True"),
        (attributions.smooth_grad, {"key": KEY, "std": -1}, "std is -1"),
    ],
)
def test_wrong_settings_are_named(model, x, method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(model, x, 2, **settings)


def test_controls():
    x = images(2, size=9)
    noise = attributions.random_map(None, x, 0, key=KEY)
    assert 0.8 < noise.std() < 1.2
    # A draw of its own for each image, target and network, and the same each time.
    for other in (
        noise[1],
        attributions.random_map(None, x[0], 1, key=KEY),
        attributions.random_map(jnp.ones(3), x[0], 0, key=KEY),
        attributions.random_map(None, x[0], 0, key=jax.random.key(8)),
    ):
        assert abs(np.corrcoef(np.ravel(noise[0]), np.ravel(other))[0, 1]) < 0.3
    again = attributions.random_map(None, x[0], np.array(0), key=KEY)
    np.testing.assert_allclose(noise[0], again, atol=1e-6)
    assert (attributions.constant_map(None, x, 0) == 1).all()
    step = jnp.zeros((8, 8, 3)).at[:, 4:].set(1.0)
    wanted = np.zeros((8, 8, 3))
    wanted[:, 3:5] = 4
    np.testing.assert_allclose(attributions.edges(None, step, 0), wanted)
    turned = attributions.edges(None, step.swapaxes(0, 1), 0)
    np.testing.assert_allclose(turned, wanted.swapaxes(0, 1))


def test_fusion_by_hand(model, x):
    fused = functools.partial(attributions.fusion_pullback, model, x, 1, key=KEY)
    plain = pullback(model, x, 1)
    still = fused(draws=2, samples=2, weight_std=0.0, std=0.0)
    assert relative_error(still, plain) < 1e-5
    one_draw = fused(draws=1, samples=1, std=0.0, gating=recipes.SEMANTIC)
    key, _ = jax.random.split(jax.random.fold_in(KEY, 0))
    network = with_noisy_weights(model, key, 0.1)
    assert relative_error(one_draw, pullback(network, x, 1, gating=recipes.SEMANTIC)) < 1e-5
    two = [fused(draws=n, samples=1, std=0.0) for n in (1, 2)]
    key, _ = jax.random.split(jax.random.fold_in(KEY, 1))
    second = pullback(with_noisy_weights(model, key, 0.1), x, 1)
    assert relative_error(two[1], (two[0] + second) / 2) < 1e-5
    for settings in ({"draws": 0}, {"samples": 1.5}, {"weight_std": -1}, {"std": -0.1}):
        with pytest.raises(SettingError, match=next(iter(settings))):
            fused(**settings)


def test_noise_of_weights_leaves_statistics_and_what_is_no_weight(model):
    noisy = with_noisy_weights(model, KEY, 0.1)
    np.testing.assert_array_equal(noisy.norm.var[...], model.norm.var[...])
    ratio = np.asarray(noisy.conv1.kernel[...] / model.conv1.kernel[...])
    assert abs(ratio.mean() - 1) < 0.03
    assert 0.07 < ratio.std() < 0.13
    tree = {"weight": jnp.ones(1000), "count": jnp.arange(3)}
    jittered = with_noisy_weights(tree, KEY, 0.5)
    assert 0.4 < float(jittered["weight"].std()) < 0.6
    np.testing.assert_array_equal(jittered["count"], tree["count"])


def test_gradient_shap_by_hand(model, x):
    found = attributions.gradient_shap(
        model, x, 1, key=KEY, samples=2, std=0.2, baseline=0.1, gating=recipes.SEMANTIC
    )
    wanted = 0
    for sample in range(2):
        own = jax.random.fold_in(KEY, sample)
        copy = x + 0.2 * jax.random.normal(own, x.shape[1:])
        place = jax.random.uniform(jax.random.fold_in(own, 1_000_003))
        there = 0.1 + place * (copy - 0.1)
        fields = pullback(model, there, 1, gating=recipes.SEMANTIC, bounds=None)
        wanted += fields * (copy - 0.1) / 2
    assert relative_error(found, wanted) < 1e-5
    # The sum of a linear function's map is the difference between its values.
    linear = lambda x: x.mean((1, 2)) @ np.ones((3, 2))  # noqa: E731
    exact = attributions.gradient_shap(linear, x, 0, key=KEY, samples=1)
    np.testing.assert_allclose(exact.sum((1, 2, 3)), linear(x)[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "leaky_relu", "silu", "gelu", "hard_swish"]
)
def test_deep_lift_is_complete(activation, x64):
    """Maps sum up to the difference; temperatures matter only where pre-activations are equal."""
    weights = np.random.default_rng(1).standard_normal((3, 6, 6))
    act = getattr(jax.nn, activation)

    def net(x):
        hidden = act(4 * x @ weights[0][:3])
        return (-act(-hidden @ weights[1])).mean((1, 2)) @ weights[2]

    x = np.asarray(images(3), np.float64)
    item = np.random.default_rng(2).uniform(-1, 1, x.shape[1:])
    for baseline in (0.3, item):
        found = attributions.deep_lift(net, x, 4, baseline=baseline)
        rise = net(x)[:, 4] - net(np.broadcast_to(baseline, x.shape))[:, 4]
        np.testing.assert_allclose(found.sum((1, 2, 3)), rise, rtol=1e-9, atol=1e-12)
        soft = attributions.deep_lift(net, x, 4, baseline=baseline, gating=recipes.SEMANTIC)
        np.testing.assert_allclose(soft, found, rtol=1e-9)
    same = np.concatenate([x[:1], 0 * x[:1] + 0.3])
    assert not attributions.deep_lift(net, same, 4, baseline=0.3)[1].any()


def test_deep_lift_by_hand():
    """What the gating does where pre-activations are equal, and in max-pooling; what is skipped."""
    weights = np.random.default_rng(1).standard_normal((3, 4))

    def net(x):
        hidden = jax.nn.relu(x[..., :2] @ weights[:2])
        pooled = jax.lax.reduce_window(
            hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return pooled.mean((1, 2))

    x = images(2)
    base = np.asarray(x) - np.asarray([0, 0, 1], np.float32)  # what the network does not see
    for gating in (recipes.VANILLA, recipes.EXCITATION):
        multipliers = pullback(net, x, 1, gating=gating)
        found = attributions.deep_lift(net, x[:1], 1, baseline=base[0], gating=gating)
        np.testing.assert_allclose(found, multipliers[:1] * (x - base)[:1], atol=1e-7)
    hard = attributions.deep_lift(net, x, 1, skip=("relu", "max_pool"))
    plain = attributions.gradient(net, x, 1) * x
    np.testing.assert_allclose(hard, plain, atol=1e-6)
    pooled = attributions.deep_lift(net, x, 1, gating=recipes.EXCITATION)
    assert relative_error(pooled, attributions.deep_lift(net, x, 1)) > 0.1


def test_deep_lift_inside_a_scan():
    weights = np.random.default_rng(1).standard_normal((3, 3, 3)).astype(np.float32)

    def step(h, w):
        return jax.nn.relu(h @ w), None

    def looped(x):
        return jax.lax.scan(step, x.mean((1, 2)), weights)[0]

    def written_out(x):
        h = x.mean((1, 2))
        for w in weights:
            h = jax.nn.relu(h @ w)
        return h

    x = images(3)
    found = attributions.deep_lift(looped, x, 1, baseline=-0.4)
    wanted = attributions.deep_lift(written_out, x, 1, baseline=-0.4)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, each in METHODS.items() if each.gating])
def test_a_method_with_a_gating_is_the_pullback_at_it(name, model, x):
    """In its function as in its gating, which stores take instead of the function."""
    bound = METHODS[name].bind(Gating(9.0, 9.0), KEY)
    field = pullback(model, x, 1, gating=METHODS[name].gating)
    np.testing.assert_allclose(bound(model, x, 1), field, rtol=1e-5, atol=1e-8)


def test_methods_of_the_successor(model, x):
    bound = {
        name: METHODS[name].bind(Gating(9.0, 9.0), KEY)
        for name in METHODS
        if name.startswith("semantic_")
    }
    assert set(bound) == {
        "semantic_pullback",
        "semantic_smoothed_pullback",
        "semantic_fusion_pullback",
        "semantic_pga_difference",
    }
    assert METHODS["semantic_pullback"].gating == recipes.SEMANTIC
    smoothed = attributions.smoothed_pullback(
        model, x, 1, key=KEY, samples=50, std=0.15, gating=recipes.SEMANTIC
    )
    np.testing.assert_allclose(bound["semantic_smoothed_pullback"](model, x, 1), smoothed)
    ascent = pga(model, x, 1, recipes.SEMANTIC_PGA, gating=recipes.SEMANTIC) - x
    np.testing.assert_allclose(bound["semantic_pga_difference"](model, x, 1), ascent, atol=1e-6)
    soft = METHODS["soft_gradient_shap"].bind(recipes.SEMANTIC, KEY)(model, x, 1)
    own = attributions.gradient_shap(model, x, 1, key=KEY, gating=recipes.SEMANTIC)
    np.testing.assert_allclose(soft, own)
