import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_excite.errors import ImageError, WeightsError
from jax_excite.models import MODELS, Classifier, model_spec
from jax_excite.models.blocks import MaxPool, adaptive_avg_pool, halve
from jax_excite.weights import load, named_leaves

EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
SMALL = "squeezenet1_0"


@pytest.fixture(scope="module", params=MODELS)
def classifier(request):
    return load(request.param, weights=None)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).uniform(-1, 1, (2, 45, 38, 3)).astype(np.float32)


@jax.jit
def logits(classifier, x):
    return classifier(x)


def test_a_batch_equals_its_images(classifier, x):
    batch = logits(classifier, x)
    assert batch.shape == (2, 1000)
    for image, wanted in zip(x, batch, strict=True):
        found = logits(classifier, image)
        assert found.shape == (1000,)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_images_matter(classifier, x):
    first, second = logits(classifier, x)
    assert not np.allclose(first, second, rtol=1e-3)


@EVERY_MODEL
def test_takes_every_size_from_the_smallest(name):
    smallest = model_spec(name).preprocessing.min_size
    classifier = load(name, weights=None)
    shape = jax.eval_shape(classifier, jnp.zeros((smallest, smallest + 3, 3)))
    assert shape.shape == (1000,)
    if smallest > 1:
        with pytest.raises(ImageError, match=f"takes images of {smallest} x {smallest} pixels"):
            jax.eval_shape(classifier, jnp.zeros((smallest + 3, smallest - 1, 3)))


@EVERY_MODEL
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_dtype_is_kept(name, dtype, x64, strict_promotion):
    classifier = load(name, weights=None, dtype=dtype)
    found = jax.eval_shape(classifier, jax.ShapeDtypeStruct((64, 64, 3), dtype))
    assert found.dtype == dtype


def test_bfloat16_is_near_float32(x):
    wide = logits(load(SMALL, weights=None), x)
    narrow = logits(load(SMALL, weights=None, dtype="bfloat16"), jnp.asarray(x, "bfloat16"))
    assert narrow.dtype == "bfloat16"
    error = np.linalg.norm(narrow.astype("float32") - wide) / np.linalg.norm(wide)
    assert error < 0.05


@EVERY_MODEL
def test_two_loads_are_one_compilation(name):
    first, second = load(name, weights=None, seed=1), load(name, weights=None, seed=2)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(second))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(first))


def test_builders_agree_with_load():
    spec = MODELS[SMALL]
    built = jax.eval_shape(lambda: Classifier(spec.build(rngs=nnx.Rngs(0)), spec.preprocessing))
    assert jax.tree.structure(built) == jax.tree.structure(load(SMALL, weights=None))


@EVERY_MODEL
def test_the_number_of_classes(name):
    net = jax.eval_shape(lambda: MODELS[name].build(num_classes=7, rngs=nnx.Rngs(0)))
    logits = jax.eval_shape(lambda net, x: net(x), net, jnp.zeros((64, 64, 3)))
    assert logits.shape == (7,)


def test_names_are_torchvisions():
    names = named_leaves(load("resnet50", weights=None).net)
    assert {"conv1.kernel", "layer1.0.bn3.scale", "layer4.2.conv2.kernel", "fc.bias"} <= set(names)
    assert "layer2.0.downsample.1.var" in names


def test_scopes_carry_module_paths():
    def scopes(name):
        net = load(name, weights=None).net
        eqns = jax.make_jaxpr(net)(jnp.zeros((64, 64, 3))).eqns
        return {str(eqn.source_info.name_stack) for eqn in eqns}

    assert {"relu", "maxpool", "layer1.0", "layer4.2", "fc"} <= scopes("resnet50")
    assert {"features.denseblock1.denselayer3", "features.transition1", "final"} <= scopes(
        "densenet121"
    )
    assert {"stem", "blocks.4", "head"} <= scopes("efficientnet_lite0")
    assert {"features.3", "classifier.4"} <= scopes("vgg11_bn")


def test_preprocessing():
    x = jnp.asarray([[[-1.0, 0.0, 1.0]]])
    efficientnet = MODELS["efficientnet_lite0"].preprocessing.normalise(x)
    np.testing.assert_allclose(efficientnet, [[[-127 / 128, 0.5 / 128, 1.0]]], rtol=1e-6)
    torchvision = MODELS["resnet50"].preprocessing.normalise(x)
    wanted = [[[-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]]]
    np.testing.assert_allclose(torchvision, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((64, 64), np.float32), r"shape \(64, 64\)"),
        (np.zeros((64, 64, 1), np.float32), r"shape \(64, 64, 1\)"),
        (np.zeros((64, 64, 3), np.uint8), "dtype uint8"),
    ],
)
def test_refuses_what_are_no_images(x, message):
    with pytest.raises(ImageError, match=message):
        load(SMALL, weights=None)(x)


def test_an_unknown_model():
    with pytest.raises(WeightsError, match=r"'resnet51': there are resnet18, resnet34, resnet50"):
        model_spec("resnet51")


def test_max_pool_in_ceil_mode():
    x = jnp.arange(8.0).reshape(1, 8, 1)
    taller = jnp.concatenate([x, x + 8, x + 16])
    floor = MaxPool(3, 2)(taller)
    ceil = MaxPool(3, 2, ceil_mode=True)(taller)
    np.testing.assert_array_equal(floor[..., 0], [[18, 20, 22]])
    np.testing.assert_array_equal(ceil[..., 0], [[18, 20, 22, 23]])
    # With padding 1 a fifth window would start in the padding: it does not count.
    padded = MaxPool(2, 2, padding=1, ceil_mode=True)(x)
    np.testing.assert_array_equal(padded[..., 0], [[0, 2, 4, 6, 7]])


def test_max_pool_pads_with_minus_infinity():
    x = -jnp.ones((1, 4, 4, 1))
    np.testing.assert_array_equal(MaxPool(3, 2, padding=1)(x), -jnp.ones((1, 2, 2, 1)))


def test_adaptive_average_pool():
    x = jnp.arange(5.0).reshape(5, 1, 1)
    found = adaptive_avg_pool(x, 3)
    assert found.shape == (3, 3, 1)
    np.testing.assert_allclose(found[:, 0, 0], [0.5, 2, 3.5])  # bins 0-1, 1-3, 3-4
    np.testing.assert_array_equal(found[:, 0], found[:, 2])
    same = jnp.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(adaptive_avg_pool(same, 2), same)


def test_halving_drops_an_odd_row():
    x = jnp.arange(10.0).reshape(5, 2, 1)
    np.testing.assert_array_equal(halve(x)[..., 0], [[1.5], [5.5]])
