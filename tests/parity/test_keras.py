"""Somebody else's networks: those of `keras.applications` on the JAX backend, with random weights.

What Keras says that they hold is what `sites` has to find; gradients are those of `jax.grad`.
"""

import collections
import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import pytest

import jax_excite as je
import jax_excite.attributions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of TensorFlow's absence, and what else an import says
    keras = pytest.importorskip("keras", reason="keras is a test dependency")

pytestmark = pytest.mark.usefixtures("little_memory")


@pytest.fixture(autouse=True)
def _one_family_at_a_time():
    yield
    keras.backend.clear_session()


# Family: a network of it, and the smallest images that it takes, about.
FAMILIES = {
    "ConvNeXt": ("ConvNeXtTiny", 32),
    "DenseNet": ("DenseNet121", 32),
    "EfficientNet": ("EfficientNetB0", 32),
    "EfficientNetV2": ("EfficientNetV2B0", 32),
    "InceptionResNetV2": ("InceptionResNetV2", 75),
    "InceptionV3": ("InceptionV3", 75),
    "MobileNet": ("MobileNet", 32),
    "MobileNetV2": ("MobileNetV2", 32),
    "MobileNetV3": ("MobileNetV3Small", 32),
    "NASNet": ("NASNetMobile", 32),
    "ResNet": ("ResNet50", 32),
    "ResNetV2": ("ResNet50V2", 32),
    "VGG16": ("VGG16", 32),
    "VGG19": ("VGG19", 32),
    "Xception": ("Xception", 71),
}


def build(family):
    name, size = FAMILIES[family]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    key = jax.random.key(0)
    return model, jax.random.uniform(key, (2, size, size, 3), jnp.float32, -1, 1)


def layers_of(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


def held(model):
    """The gates that Keras says a model holds, by our names for them."""
    found = collections.Counter()
    for layer in layers_of(model):
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        if isinstance(layer, keras.layers.ReLU):
            found["relu" if layer.max_value is None else "clipped_relu"] += 1
        elif isinstance(layer, keras.layers.MaxPooling2D):
            found["max_pool"] += 1
        elif activation in ("relu", "relu6"):
            found["relu" if activation == "relu" else "clipped_relu"] += 1
        elif activation in ("hard_silu", "hard_swish"):
            found["hard_swish"] += 1
        elif activation in ("silu", "gelu"):
            found[activation] += 1
        elif isinstance(layer, keras.layers.LayerNormalization):
            found["normalisation"] += 1
        elif isinstance(layer, keras.layers.Multiply) and "excite" in layer.name:
            found["squeeze_excitation"] += 1
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gates_that_keras_holds(family):
    model, x = build(family)
    sites = je.sites(model, x)
    wanted = held(model)
    found = collections.Counter(site.kind for site in sites)
    # Keras writes a hard sigmoid as a ReLU6 layer between an addition and a product.
    found["clipped_relu"] += found.pop("hard_sigmoid", 0)
    assert +found == +wanted
    assert all(site.gated == (site.kind != "hard_sigmoid") for site in sites)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_jax(family, x64):
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        model, x = build(family)
        x = x.astype(jnp.float64)
        gradient = je.attributions.gradient(model, x, 3)
        wanted = jax.jit(jax.grad(lambda x: model(x)[:, 3].sum()))(x)
        error = jnp.linalg.norm(gradient - wanted) / jnp.linalg.norm(wanted)
        # Keras's LayerNormalization computes in float32, whatever it is asked for.
        assert error < (1e-6 if family == "ConvNeXt" else 1e-10)
    finally:
        keras.config.set_floatx(before)


def test_the_answer_follows_the_weights():
    model, x = build("MobileNetV3")
    before = je.pullback(model, x, 3)
    for variable in model.trainable_variables[-2:]:
        variable.assign(2 * variable.value)
    after = je.pullback(model, x, 3)
    assert jnp.linalg.norm(after - 2 * before) < 1e-4 * jnp.linalg.norm(after)
