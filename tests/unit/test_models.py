"""What every network by name must be; what costs a compilation is shown on one of each family."""

import functools
import importlib.util
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from flax import nnx

import jax_excite
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.errors import ImageError, WeightsError
from jax_excite.models import MODELS, Classifier, model_spec
from jax_excite.models.layers import MaxPool, adaptive_avg_pool, halve
from jax_excite.models.temperatures import measured_temperatures
from jax_excite.weights.loading import named_leaves
from jax_excite.weights.networks import load
from tests.listings import original, torchvision
from weights_converter.convert import find_rule
from weights_converter.names import IGNORED, TABLES

SMALL = "squeezenet1_0"
MEMBERS = [
    SMALL,
    "resnet50",
    "vgg11_bn",
    "densenet121",
    "efficientnet_lite0",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "convnext_tiny",
    "timm/pvt_v2_b0",
]
ONE_SIZE = [name for name, spec in MODELS.items() if spec.family == "vit"]
TORCHVISIONS = [name for name, spec in MODELS.items() if spec.family != "efficientnet_lite"]
PACKAGED = [name for name, spec in MODELS.items() if spec.published[0].package]
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EACH_FAMILY = pytest.mark.parametrize("name", MEMBERS)


@functools.cache
def abstract(name):
    return model_spec(name).abstract()


@functools.cache
def random_classifier(name):
    return load(name, weights=None)


@pytest.fixture(scope="module", params=MEMBERS)
def classifier(request):
    return random_classifier(request.param)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).uniform(-1, 1, (2, 45, 38, 3)).astype(np.float32)


@jax.jit
def logits(classifier, x):
    return classifier(x)


def original_shapes(name, num_classes=1000):
    """The original's parameters and buffers, and how many numbers the parameters are."""
    with torch.device("meta"):
        net = original(name, num_classes)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in net.state_dict().items()
        if not re.fullmatch(IGNORED, name)
    }
    return shapes, sum(parameter.numel() for parameter in net.parameters())


def shapes_by_table(name, net):
    """What our weights are called and shaped in a checkpoint, by the family's table."""
    found = {}
    for target, leaf in named_leaves(net).items():
        rule, source = find_rule(target, leaf.ndim, TABLES[MODELS[name].family].rules)
        shape = tuple(leaf.shape[rule.order.index(axis)] for axis in range(leaf.ndim))
        found[source] = (*shape, *(1,) * rule.ones)
    return found


# Every model


@EVERY_MODEL
def test_weights_are_named_and_shaped_as_the_originals(name):
    table = TABLES[MODELS[name].family]
    wanted, parameters = original_shapes(name)
    for pattern, replacement in table.renames:
        wanted = {re.sub(pattern, replacement, key): shape for key, shape in wanted.items()}
    assert shapes_by_table(name, abstract(name)) == wanted
    trained = jax.tree.leaves(nnx.state(abstract(name), nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in trained) == parameters


@EVERY_MODEL
def test_another_number_of_classes_changes_the_head_alone(name):
    thousand, seven = (named_leaves(MODELS[name].abstract(num_classes=n)) for n in (1000, 7))
    head = MODELS[name].head
    assert thousand[f"{head}.bias"].shape == (1000,)
    assert seven[f"{head}.bias"].shape == (7,)
    changed = {key for key, leaf in seven.items() if leaf.shape != thousand[key].shape}
    assert changed == {f"{head}.kernel", f"{head}.bias"}
    assert seven[f"{head}.kernel"].shape == (*thousand[f"{head}.kernel"].shape[:-1], 7)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_SIZE])
def test_takes_every_size_from_the_smallest(name):
    preprocessing = model_spec(name).preprocessing
    smallest = preprocessing.min_size
    classifier = Classifier(abstract(name), preprocessing)

    def shape(*size):
        x = jax.ShapeDtypeStruct((*size, 3), np.float32)
        return jax.eval_shape(lambda classifier, x: classifier(x), classifier, x).shape

    assert shape(smallest, smallest + 3) == (1000,)
    if smallest > 1:
        with pytest.raises(
            ImageError, match=f"takes images of at least {smallest} x {smallest} pixels"
        ):
            shape(smallest + 3, smallest - 1)


@pytest.mark.parametrize("name", ONE_SIZE)
def test_takes_the_only_size_that_its_positions_are_for(name):
    classifier = Classifier(abstract(name), model_spec(name).preprocessing)

    def shape(*size):
        x = jax.ShapeDtypeStruct((*size, 3), np.float32)
        return jax.eval_shape(lambda classifier, x: classifier(x), classifier, x).shape

    assert shape(2, 224, 224) == (2, 1000)
    with pytest.raises(ImageError, match="exactly 224 x 224 pixels"):
        shape(224, 256)


@EVERY_MODEL
def test_two_of_a_kind_are_one_compilation(name):
    first, second = jax.tree.structure(abstract(name)), jax.tree.structure(MODELS[name].abstract())
    assert first == second
    assert hash(first) == hash(second)


def test_no_two_models_are_the_same():
    assert len({jax.tree.structure(abstract(name)) for name in MODELS}) == len(MODELS) == 47
    files = [published.file for spec in MODELS.values() for published in spec.published]
    assert len(set(files)) == len(files) == 57


def test_an_unknown_model():
    with pytest.raises(
        WeightsError, match=r"'resnet51': did you mean resnet50, .*`jax-excite models` lists all"
    ):
        model_spec("resnet51")


# Published weights


def test_every_member_of_torchvisions_families_is_there():
    names = torchvision.models.list_models(module=torchvision.models)
    families = (
        r"(wide_)?resne[x]?t.*|vgg.*|densenet.*|squeezenet.*|mobilenet.*|convnext.*|vit_[bl].*|"
        r"efficientnet_(b.*|v2_s)"
    )
    assert {name for name in names if re.fullmatch(families, name)} == set(TORCHVISIONS)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_published_weights_are_torchvisions(name):
    wanted = {
        weights.name: weights
        for weights in torchvision.models.get_model_weights(name)
        # VGG16 without a head, and ViTs that were trained on other images and sizes.
        if weights.name != "IMAGENET1K_FEATURES" and "SWAG" not in weights.name
    }
    assert [published.name for published in MODELS[name].published] == list(wanted)
    for published in MODELS[name].published:
        weights = wanted[published.name]
        assert published.url == weights.url
        assert published.package == ""
        assert re.fullmatch(r"[0-9a-f]{8}", published.sha256_prefix)
        trainer = "(_rwightman|_lukemelas)?"
        assert re.fullmatch(f"{name}{trainer}-{published.sha256_prefix}.pth", published.file)
        ours, theirs = published.preprocessing, weights.transforms()
        assert list(ours.mean) == theirs.mean
        assert list(ours.std) == theirs.std
        assert [ours.resize] == theirs.resize_size
        assert [ours.size] == theirs.crop_size
        assert theirs.interpolation == torchvision.transforms.InterpolationMode(ours.interpolation)
        assert (ours.min_size, ours.min_size) == weights.meta["min_size"]


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights(name):
    (published,) = MODELS[name].published
    assert published.url == ""
    size = published.preprocessing.size
    assert size == EfficientNet.get_image_size(name.replace("_", "-"))
    assert published.preprocessing.resize == size + 32
    package = importlib.util.find_spec(published.package)
    if package is None:
        pytest.skip(f"the package {published.package} is not installed")
    assert package.origin is not None
    assert (Path(package.origin).parent / "models" / published.file).is_file()


def test_pretrained_means_the_first_weights():
    spec = MODELS["resnet50"]
    assert [published.name for published in spec.published] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert spec.preprocessing == spec.published[0].preprocessing
    assert (spec.preprocessing.resize, spec.published[1].preprocessing.resize) == (256, 232)


def test_temperatures():
    found = {}
    for spec in MODELS.values():
        found.setdefault(spec.family, set()).add(spec.temperature)
    paper = {"resnet": {0.3}, "vgg": {0.3}, "densenet": {0.3}}
    inspected = {"squeezenet": {60.0}, "efficientnet_lite": {1.0}}
    new = {"mobilenet_v2": {0.3}, "mobilenet_v3": {0.3}}
    without = {family: {None} for family in ("efficientnet", "convnext", "vit")}
    assert found == paper | inspected | new | without


def test_the_networks_whose_temperatures_are_measured():
    found = {spec.name for spec in MODELS.values() if spec.calibrated}
    plain = {"vgg11", "vgg13", "vgg16", "vgg19", "squeezenet1_0", "squeezenet1_1"}
    assert found == plain | {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"}


@pytest.mark.parametrize("name", PACKAGED)
def test_measured_temperatures_are_of_every_site(name):
    found = dict(measured_temperatures(name, "IMAGENET1K_V1"))
    sites = jax_excite.sites(random_classifier(name), np.zeros((1, 64, 64, 3), np.float32))
    assert set(found) == {site.name for site in sites if site.gated}
    assert all(0.3 < value < 10 for value in found.values())
    assert measured_temperatures(name, None) == measured_temperatures("resnet50", "any") == ()


def test_measured_temperatures_come_with_the_published_weights():
    name = "efficientnet_lite0"
    if importlib.util.find_spec(MODELS[name].published[0].package) is None:
        pytest.skip("the weights of EfficientNet-Lite0 are not installed")
    assert load(name).temperatures == measured_temperatures(name, "IMAGENET1K_V1")
    assert random_classifier(name).temperatures == ()


def test_normalisation():
    x = jnp.asarray([[[-1.0, 0.0, 1.0]]])
    efficientnet = MODELS["efficientnet_lite0"].preprocessing.normalise(x)
    np.testing.assert_allclose(efficientnet, [[[-127 / 128, 0.5 / 128, 1.0]]], rtol=1e-6)
    resnet = MODELS["resnet50"].preprocessing.normalise(x)
    wanted = [[[-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]]]
    np.testing.assert_allclose(resnet, wanted, rtol=1e-6)


# One of each family


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


@EACH_FAMILY
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_dtype_is_kept(name, dtype, x64, strict_promotion):
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract(name))
    classifier = Classifier(weights, model_spec(name).preprocessing)
    image = jax.ShapeDtypeStruct((64, 64, 3), dtype)
    assert jax.eval_shape(lambda classifier, x: classifier(x), classifier, image).dtype == dtype


def test_bfloat16_is_near_float32(x):
    wide = logits(random_classifier(SMALL), x)
    narrow = logits(load(SMALL, weights=None, dtype="bfloat16"), jnp.asarray(x, "bfloat16"))
    assert narrow.dtype == "bfloat16"
    error = np.linalg.norm(narrow.astype("float32") - wide) / np.linalg.norm(wide)
    assert error < 0.05


@EACH_FAMILY
def test_two_loads_are_one_compilation(name):
    first, second = random_classifier(name), load(name, weights=None, seed=2)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(second))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(first))


def test_builders_agree_with_load():
    spec = MODELS[SMALL]
    built = Classifier(spec.build(rngs=nnx.Rngs(0)), spec.preprocessing, CLASS_NAMES)
    assert jax.tree.structure(built) == jax.tree.structure(random_classifier(SMALL))
    kernels = [leaf for name, leaf in named_leaves(built).items() if name.endswith("kernel")]
    spread = {float(np.std(kernel)) for kernel in kernels}
    assert len(spread) == len(kernels)  # each is drawn anew
    assert min(spread) > 0


def test_scopes_carry_module_paths():
    def scopes(name):
        eqns = jax.make_jaxpr(random_classifier(name).net)(jnp.zeros((64, 64, 3))).eqns
        return {str(eqn.source_info.name_stack) for eqn in eqns}

    assert {"relu", "maxpool", "layer1.0", "layer4.2", "fc"} <= scopes("resnet50")
    assert {"features.denseblock1.denselayer3", "features.transition1", "final"} <= scopes(
        "densenet121"
    )
    assert {"stem", "blocks.4", "head"} <= scopes("efficientnet_lite0")
    assert {"features.3", "classifier.4"} <= scopes("vgg11_bn")


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
        random_classifier(SMALL)(x)


# Blocks


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
