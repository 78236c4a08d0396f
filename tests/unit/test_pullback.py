import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_excite
from jax_excite import (
    ExciteError,
    Gating,
    GatingError,
    InputError,
    TargetError,
    excite,
    pullback,
    pullback_grid,
    recipes,
    value_and_pullback,
)
from tests.networks import Network, images, relative_error, soft_max_pool, soft_relu


@pytest.fixture(scope="module")
def model():
    return Network()


@pytest.fixture(scope="module")
def x():
    return images(3)


def by_hand(model, x, c, temperature=0.3):
    def logits(x):
        return model.run(
            x, lambda z: soft_relu(z, temperature), lambda z: soft_max_pool(z, temperature)
        )

    return jax.grad(lambda x: logits(x)[jnp.arange(len(x)), c].sum())(x)


def test_equals_the_gradient_of_the_network_softened_by_hand(model, x):
    logits, field = value_and_pullback(model, x, [0, 3, 4])
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=1e-6)
    assert relative_error(field, by_hand(model, x, jnp.array([0, 3, 4]))) < 1e-6
    np.testing.assert_array_equal(pullback(model, x, [0, 3, 4]), field)


def test_zero_temperature_is_jax_grad_of_the_plain_network(model, x):
    for gating in (recipes.VANILLA, Gating(temperature=0.0, pool_temperature=0.0)):
        with jax.disable_jit():
            plain = jax.grad(lambda x: model(x)[:, 2].sum())(x)
            field = jax.grad(lambda x, g=gating: excite(model, g)(x)[:, 2].sum())(x)
        np.testing.assert_array_equal(field, plain)
        assert relative_error(pullback(model, x, 2, gating=gating), plain) < 1e-6


def test_infinite_temperature_is_the_linear_network(model, x):
    """Gates of 1/2 and average pooling: the field is the same at every image."""
    infinite = Gating(temperature=jnp.inf, pool_temperature=jnp.inf)
    field = pullback(model, x, 1, gating=infinite)
    assert relative_error(field[1:], jnp.broadcast_to(field[0], field[1:].shape)) < 1e-6

    def linear(x):
        return model.run(x, lambda z: z / 2, lambda z: nnx.avg_pool(z, (2, 2), (2, 2)))

    expected = jax.grad(lambda x: linear(x)[:, 1].sum())(x)
    assert relative_error(field, expected) < 1e-6


def test_index_cotangent_and_objective_agree(model, x):
    field = pullback(model, x, 3)
    one_hot = np.eye(5, dtype=np.float32)
    for c in (
        np.array([3, 3, 3]),
        jnp.array(3),
        np.int64(3),
        one_hot[[3, 3, 3]],
        lambda logits: logits[3],
        jax.tree_util.Partial(lambda weight, logits: weight @ logits, one_hot[3]),
    ):
        assert relative_error(pullback(model, x, c), field) < 1e-6
    single = pullback(model, x[0], one_hot[3])
    assert relative_error(single, field[0]) < 1e-6


def test_objective_is_differentiated_at_the_logits(model, x):
    def margin(logits):
        return logits[0] - jax.nn.logsumexp(logits[1:])

    weights = np.asarray(jax.vmap(jax.grad(margin))(model(x)))
    assert relative_error(pullback(model, x, margin), pullback(model, x, weights)) < 1e-5


def test_single_image_is_a_batch_of_one(model, x):
    logits, field = value_and_pullback(model, x, 1)
    for i in range(len(x)):
        one_logits, one = value_and_pullback(model, x[i], 1)
        assert one.shape == x[i].shape
        assert one_logits.shape == (5,)
        assert relative_error(one, field[i]) < 1e-6
        np.testing.assert_allclose(one_logits, logits[i], rtol=1e-5, atol=1e-6)


def test_grid_equals_single_pullbacks(model, x):
    grid = pullback_grid(model, x, [4, 0, 2])
    assert grid.shape == (3, 3, 8, 8, 3)
    for column, c in enumerate([4, 0, 2]):
        assert relative_error(grid[:, column], pullback(model, x, c)) < 1e-6
    assert relative_error(pullback_grid(model, x[1], [4, 0, 2]), grid[1]) < 1e-6
    rows = np.array([[4, 0], [1, 2], [3, 3]])
    own = pullback_grid(model, x, rows)
    for row in range(3):
        assert relative_error(own[row], pullback_grid(model, x[row], rows[row])) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
def test_batch_size_changes_nothing_else(model, x, batch_size):
    field = pullback(model, x, [0, 1, 2])
    assert relative_error(pullback(model, x, [0, 1, 2], batch_size=batch_size), field) < 1e-6
    objective = pullback(model, x, lambda y: y[0] ** 2)
    chunked = pullback(model, x, lambda y: y[0] ** 2, batch_size=batch_size)
    assert relative_error(chunked, objective) < 1e-6
    grid = pullback_grid(model, x, [0, 3, 4])
    assert relative_error(pullback_grid(model, x, [0, 3, 4], batch_size=batch_size), grid) < 1e-6


def test_grid_runs_one_forward_pass_for_all_classes(model, x):
    """The compiled program of the grid has as many convolutions as that of one class."""

    def convolutions(fn, *args):
        text = jax.jit(fn).lower(*args).compile().as_text()
        return sum(" convolution(" in line or "__onednn$conv" in line for line in text.splitlines())

    one = convolutions(lambda m, x: pullback_grid(m, x, [0], bounds=None), model, x)
    many = convolutions(lambda m, x: pullback_grid(m, x, [0, 1, 2, 3], bounds=None), model, x)
    forward = convolutions(lambda m, x: m(x), model, x)
    assert forward == 2
    assert one == many == 2 * forward


@pytest.mark.parametrize("grid", ["pullback_grid", "pga_grid"])
def test_blocks_of_classes_share_a_forward_pass(model, x, grid):
    passes = []

    def counting(x):
        jax.debug.callback(lambda: passes.append(len(x)))
        return model(x)

    options = {} if grid == "pullback_grid" else {"ascent": jax_excite.Ascent(1)}
    getattr(jax_excite, grid)(counting, x, [0, 1, 2, 3, 4], batch_size=2, **options)
    jax.effects_barrier()
    assert passes == [1] * len(x)


def test_temperatures_that_vary_over_images(model):
    x = images(8)
    temperatures = np.linspace(0.1, 1, 8).astype(np.float32)
    field = pullback(model, x, 2, gating=Gating(temperatures.reshape(8, 1, 1, 1), 0.3))
    for image, t, own in zip(x, temperatures, field, strict=True):
        assert relative_error(own, pullback(model, image, 2, gating=Gating(t, 0.3))) < 1e-5


def test_kernels_and_biases_that_a_scan_goes_through():
    keys = jax.random.split(jax.random.key(3), 3)
    kernels = jax.random.normal(keys[0], (4, 3, 3, 8, 8)) / 8
    biases, first = jax.random.normal(keys[1], (4, 8)) / 8, jax.random.normal(keys[2], (3, 8))

    def layer(h, kernel, bias, relu):
        numbers = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return relu(z + bias)

    @jax.tree_util.Partial
    def constants(x):
        def step(h, weights):
            return layer(h, *weights, jax.nn.relu), None

        return jax.lax.scan(step, x @ first, (kernels, biases))[0].mean(axis=(1, 2))

    def by_hand(x):
        h = x @ first
        for kernel, bias in zip(kernels, biases, strict=True):
            h = layer(h, kernel, bias, lambda z: soft_relu(z, 0.3))
        return h.mean(axis=(1, 2))

    x = images(2)
    wanted = jax.grad(lambda x: by_hand(x)[:, 1].sum())(x)
    assert relative_error(pullback(constants, x, 1), wanted) < 1e-5
    assert relative_error(pullback_grid(constants, x, [1])[:, 0], wanted) < 1e-5


def test_what_changes_in_a_value_recompiles_nothing(model, x):
    traces = []

    @jax.tree_util.Partial
    def counting(x):
        traces.append(x.shape)
        return model(x)

    def traced(call):
        before = len(traces)
        call()
        return len(traces) - before

    assert traced(lambda: pullback(counting, x, 0, gating=Gating(0.3))) > 0
    assert traced(lambda: pullback(counting, x, 4, gating=Gating(0.7))) == 0
    assert traced(lambda: pullback(counting, x, [1, 2, 3], gating=Gating(0, 9.0))) == 0
    assert traced(lambda: pullback(counting, x + 0.0, 1)) == 0
    assert traced(lambda: pullback(counting, x, 0, gating=Gating(jnp.asarray(0.5)))) == 0
    assert traced(lambda: pullback(counting, x, 0, gating=Gating(jnp.bfloat16(0.5)))) == 0
    assert traced(lambda: pullback_grid(counting, x, [0, 1])) > 0
    assert traced(lambda: pullback_grid(counting, x, [3, 2], gating=Gating(1.0))) == 0


def test_two_models_of_one_kind_share_a_program(x):
    traces = []

    class Counted(Network):
        def __call__(self, x):
            traces.append(x.shape)
            return super().__call__(x)

    first, second = pullback(Counted(seed=0), x, 0), None
    count = len(traces)
    second = pullback(Counted(seed=1), x, 0)
    assert len(traces) == count
    assert relative_error(first, second) > 0.1


def test_weights_are_arguments_not_constants(model, x):
    pullback(model, x, 0)
    changed = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert relative_error(pullback(changed, x, 0), by_hand(changed, x, 0)) < 1e-6


def test_sites_can_be_left_hard(model, x):
    all_hard = pullback(model, x, 0, skip=[0, 1, 2])
    assert relative_error(all_hard, pullback(model, x, 0, gating=recipes.VANILLA)) < 1e-6
    only = pullback(model, x, 0, only="relu_1")
    assert relative_error(only, pullback(model, x, 0, skip=("relu", 1))) < 1e-6
    assert relative_error(only, all_hard) > 1e-3
    grid = pullback_grid(model, x, [0, 1], only="relu_1")
    assert relative_error(grid[:, 0], only) < 1e-6


def test_equinox_module_with_functions_among_its_leaves(x):
    mlp = eqx.nn.MLP(8 * 8 * 3, 5, 16, 1, activation=jax.nn.relu, key=jax.random.key(0))
    params = jax.tree_util.Partial(lambda m, x: jax.vmap(m)(x.reshape(len(x), -1)), mlp)
    w0, w1 = (layer.weight for layer in mlp.layers)
    z = x.reshape(3, -1) @ w0.T + mlp.layers[0].bias
    expected = (w1[2] * jax.nn.sigmoid(z / 0.3)) @ w0
    assert relative_error(pullback(params, x, 2).reshape(3, -1), expected) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_stays_low(model, x, dtype):
    low = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    field = pullback(low, x.astype(dtype), 0)
    assert field.dtype == dtype
    assert relative_error(field.astype(jnp.float32), pullback(model, x, 0)) < 0.05


@pytest.mark.usefixtures("x64")
def test_double_precision(model, x):
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    field = pullback(double, x.astype(jnp.float64), 0)
    assert field.dtype == jnp.float64
    assert relative_error(field, by_hand(double, x.astype(jnp.float64), 0)) < 1e-12


def test_composes_with_the_callers_transformations(model, x):
    field = jax.jit(lambda model, x, t: pullback(model, x, 1, gating=Gating(t, t)))
    assert relative_error(field(model, x, 0.3), pullback(model, x, 1)) < 1e-6
    swept = jax.vmap(lambda t: field(model, x, t))(jnp.array([0.1, 0.3]))
    assert relative_error(swept[1], field(model, x, 0.3)) < 1e-6
    noisy = jax.vmap(lambda key: pullback(model, x + 0.1 * jax.random.normal(key, x.shape), 1))
    assert noisy(jax.random.split(jax.random.key(0), 4)).shape == (4, *x.shape)


X = np.zeros((2, 8, 8, 3), np.float32)
BAD_IMAGES = [
    (np.zeros((8, 8), np.float32), r"shape \(8, 8\)"),
    (np.zeros((1, 2, 8, 8, 3), np.float32), r"shape \(1, 2, 8, 8, 3\)"),
    (np.zeros((0, 8, 8, 3), np.float32), r"\(0, 8, 8, 3\)"),
    (np.zeros((8, 8, 3), np.uint8), "uint8"),
    (np.full((8, 8, 3), 200, np.float32), "200"),
    (np.full((8, 8, 3), -1.5, np.float32), "-1.5"),
    (np.full((8, 8, 3), np.nan, np.float32), "(?i)nan|finite"),
    (np.full((8, 8, 3), np.inf, np.float32), "(?i)inf|finite"),
]


@pytest.mark.parametrize(("x", "message"), BAD_IMAGES)
@pytest.mark.parametrize("call", [pullback, lambda m, x, c: pullback_grid(m, x, [c])])
def test_bad_images(model, call, x, message):
    with pytest.raises(InputError, match=message):
        call(model, x, 0)


def test_an_error_of_the_network_says_what_it_was_called_with(model):
    with pytest.raises((TypeError, ValueError), match="shape") as error:
        pullback(model, np.zeros((8, 8, 4), np.float32), 0)
    note = "params was called with x of shape (1, 8, 8, 4); images have their channels last"
    assert note in error.value.__notes__


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_are_recognised_where_the_network_fails(model, channels):
    x = np.zeros((2, channels, 8, 8), np.float32)
    with pytest.raises(InputError, match=r"shape \(2, ., 8, 8\), which looks as if channels came"):
        pullback(model, x, 0)
    moved = np.moveaxis(x, -3, -1)
    assert pullback(lambda x: model(x.mean(-1, keepdims=True) + jnp.zeros(3)), moved, 0).shape == (
        *(2, 8, 8),
        channels,
    )


def test_what_is_no_network_is_refused(model, x):
    _, state = nnx.split(model)
    for call in (pullback, lambda network, x, _: excite(network)(x)):
        with pytest.raises(InputError, match="the network is the class Network: give an instance"):
            call(type(model), x, 0)
        with pytest.raises(InputError, match=r"of type State, which cannot be called.*nnx\.merge"):
            call(state, x, 0)


def test_only_has_to_name_what_the_gating_softens(x):
    def network(x):
        return jax.nn.silu(nnx.relu(x)).reshape(len(x), -1)

    pullback(network, x, 0, only="relu")
    pullback(network, x, 0, only=["silu"], gating=recipes.SEMANTIC)
    pullback(network, x, 0, only=["silu"], gating=recipes.VANILLA)
    for only in ("silu", ["relu", "silu"]):
        message = r"only= names sites that this gating does not soften: silu \(.*SEMANTIC"
        with pytest.raises(GatingError, match=message):
            pullback(network, x, 0, only=only)
        with pytest.raises(GatingError, match=message):
            excite(network, only=only)(x)


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (5, "class index 5 is out of range: there are 5, so give 0 to 4"),
        (-1, "class index -1 is out of range"),
        (np.array([0, 7]), "class index 7"),
        (jnp.array([0, 7]), "class index 7"),
        ([0, 1, 2], r"shape \(3,\).*shape \(2,\)"),
        (np.array([[0], [1]]), r"shape \(2, 1\)"),
        ("church", r"string 'church'.*class_index"),
        (0.5, r"float array of shape \(\).*\(2, 5\)"),
        (np.zeros(5), r"shape \(5,\).*\(2, 5\)"),
        (np.array([True, False]), "dtype bool"),
        (lambda logits: logits, r"objective maps the outputs of one item, \(5,\), to .*one float"),
    ],
)
def test_bad_targets(model, c, message):
    with pytest.raises(TargetError, match=message):
        pullback(model, X, c)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "shape"),
        (3, r"shape \(\)"),
        ([0, 5], "class index 5 is out of range"),
        (np.zeros((3, 2), int), r"shape \(3, 2\).*\(2, C\)"),
        ([0.5], "dtype float64"),
        (["church"], r"the targets are strings: .*class_index\('church'\)"),
    ],
)
def test_bad_classes(model, classes, message):
    with pytest.raises(TargetError, match=message):
        pullback_grid(model, X, classes)


def test_bad_models(model):
    with pytest.raises(GatingError, match="no gate to soften"):
        pullback(lambda x: x.mean(axis=(1, 2)), X, 0)
    with pytest.raises(
        TargetError, match=r"outputs have shape \(2, 8, 8, 3\): a class index needs logits \[N, K\]"
    ):
        pullback(jax.nn.relu, X, 0)
    with pytest.raises(GatingError, match="skip names no site"):
        pullback(model, X, 0, skip="layer9")
    with pytest.raises(GatingError, match="temperature is -1"):
        pullback(model, X, 0, gating=Gating(-1.0))
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match=f"batch_size is {wrong}"):
            pullback(model, X, 0, batch_size=wrong)
    for call in (pullback, lambda m, x, c, **settings: pullback_grid(m, x, [c], **settings)):
        with pytest.raises(GatingError, match="gating is 'excitation': give a Gating"):
            call(model, X, 0, gating="excitation")
    assert issubclass(ExciteError, ValueError)


def test_bounds_of_the_images_can_be_moved(model):
    x = np.full((8, 8, 3), 1.2, np.float32)
    with pytest.raises(InputError):
        pullback(model, x, 0)
    assert pullback(model, x, 0, bounds=None).shape == x.shape
    assert pullback(model, x, 0, bounds=(0, 2)).shape == x.shape
