"""Attributions against Captum on the same weights, in float64."""

import functools
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_excite import attributions
from tests import listings
from tests import torch_reference as reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import captum.attr
    from captum.metrics import infidelity as captum_infidelity

EXACT = 1e-9
CLASSES = np.array([3, 8])
# Model, and the module of the last layer that has more than one place at 96 x 96.
CASES = {
    "resnet18": lambda net: net.layer4,
    "vgg11_bn": lambda net: net.features[-1],
    "squeezenet1_0": lambda net: net.classifier[2],
}


@functools.cache
def networks(name):
    """The module of PyTorch, images, and all that Captum makes of them."""
    module = reference.reference(name, seed=3, num_classes=10)
    x = reference.images(5, 2, 96, 96)
    image, target = listings.to_torch(x), torch.as_tensor(CLASSES)
    layer = CASES[name](module.net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradient = captum.attr.Saliency(module)
        cam = captum.attr.LayerGradCam(module, layer).attribute(
            image, target, relu_attributions=True
        )
        wide = captum.attr.LayerAttribution.interpolate(cam, (96, 96), "bilinear")
        wanted = {
            "gradient": gradient.attribute(image, target, abs=False),
            "input_x_gradient": captum.attr.InputXGradient(module).attribute(image, target),
            "integrated_gradients": integrated(module, image, target),
            "guided_backprop": captum.attr.GuidedBackprop(module).attribute(image, target),
            "deconvolution": captum.attr.Deconvolution(module).attribute(image, target),
            "grad_cam": wide.expand(-1, 3, -1, -1),
            "guided_grad_cam": captum.attr.GuidedGradCam(module, layer).attribute(
                image, target, interpolate_mode="bilinear"
            ),
        }
    return module, x, {key: listings.to_numpy(value) for key, value in wanted.items()}


def integrated(module, image, target):
    """Captum's integrated gradients, whose weights it would round to float32."""
    method = captum.attr.IntegratedGradients(module)
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):
            return method.attribute(image, target=target, n_steps=7, baselines=-0.5)
    finally:
        torch.set_default_dtype(torch.float32)


METHODS = {
    "gradient": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 7, "baseline": -0.5},
    "guided_backprop": {},
    "deconvolution": {},
    "grad_cam": {},
    "guided_grad_cam": {},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "vgg11_bn" else n for n in CASES],
)
def test_equals_captum(name, method, record_property):
    module, x, wanted = networks(name)
    with jax.enable_x64(True):
        model = reference.to_jax(name, module)
        found = getattr(attributions, method)(model, jnp.asarray(x), CLASSES, **METHODS[method])
    error = reference.relative_error(found, wanted[method])
    row = (name, "2 x 96 x 96", f"{method}, Captum", f"{error:.1e}", "-", "-", "-")
    record_property("parity", row)
    assert error <= EXACT


@pytest.mark.parametrize("name", ["resnet18"])
def test_smooth_grad_is_captums_mean_over_the_same_noise(name):
    module, x, _ = networks(name)
    key = jax.random.key(4)
    with jax.enable_x64(True):
        model = reference.to_jax(name, module)
        found = attributions.smooth_grad(
            model, jnp.asarray(x), CLASSES, key=key, samples=3, std=0.2
        )
        keys = [jax.random.fold_in(key, sample) for sample in range(3)]
        noise = [np.asarray(jax.random.normal(k, x.shape[1:], jnp.float64)) for k in keys]
    saliency = captum.attr.Saliency(module)
    target = torch.as_tensor(CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = [
            saliency.attribute(listings.to_torch(x + 0.2 * n), target, abs=False) for n in noise
        ]
    wanted = listings.to_numpy(torch.stack(each).mean(0))
    assert reference.relative_error(found, wanted) <= EXACT


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity_equals_captum(scaled):
    from jax_excite import metrics

    module, x, wanted = networks("resnet18")
    side, count = 32, 9
    square = np.arange(96) // side
    number = (square[:, None] * 3 + square)[..., None]
    copies = np.stack([np.where(number == k, 0.25, x) for k in range(count)], axis=1)
    perturbed = torch.cat([listings.to_torch(each) for each in copies])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = captum_infidelity(
            module,
            lambda inputs: (inputs - perturbed, perturbed),
            listings.to_torch(x),
            listings.to_torch(wanted["gradient"]),
            target=torch.as_tensor(CLASSES),
            n_perturb_samples=count,
            normalize=scaled,
        ).numpy()
    with jax.enable_x64(True):
        model = reference.to_jax("resnet18", module)
        found = metrics.infidelity(
            model,
            jnp.asarray(x),
            CLASSES,
            wanted["gradient"],
            patch_size=side,
            baseline=0.25,
            scaled=scaled,
        )
    np.testing.assert_allclose(found, theirs, rtol=1e-9)


def test_deep_lift(record_property, x64):
    """DeepLIFT, in a network without max-pooling, for which Captum has a rule of its own."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 10),
    )
    module = module.double().eval()
    first, second, norm, hidden, last = (
        {name: jnp.asarray(value.numpy()) for name, value in module[i].state_dict().items()}
        for i in (0, 2, 3, 7, 9)
    )

    def network(x):
        def conv(x, w, stride):
            layout = "NHWC", "OIHW", "NHWC"
            strides = stride, stride
            return jax.lax.conv_general_dilated(x, w, strides, "VALID", dimension_numbers=layout)

        h = jax.nn.relu(conv(x, first["weight"], 1))
        h = conv(h, second["weight"], 2) + second["bias"]
        h = (h - norm["running_mean"]) / jnp.sqrt(norm["running_var"] + 1e-5)
        h = jax.nn.leaky_relu(h * norm["weight"] + norm["bias"], 0.1).mean((1, 2))
        h = jax.nn.relu(h @ hidden["weight"].T + hidden["bias"])
        return h @ last["weight"].T + last["bias"]

    x = reference.images(5, 2, 24, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image, baseline = listings.to_torch(x), listings.to_torch(np.full_like(x, -0.5))
        wanted = captum.attr.DeepLift(module).attribute(image, baseline, torch.as_tensor(CLASSES))
    found = attributions.deep_lift(network, x, CLASSES, baseline=-0.5)
    error = reference.relative_error(found, listings.to_numpy(wanted))
    record_property("parity", ("small", "2 x 24 x 24", "deep_lift, Captum", f"{error:.1e}", *"---"))
    assert error < EXACT
