"""Metrics against Quantus on the same images, maps and network, in float64.

What is random in Quantus is drawn by this library and handed to it. Where the two differ by
definition a test shows by what.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from jax_excite import attributions, metrics
from jax_excite.metrics.faithfulness import random_subsets
from jax_excite.metrics.stability import other_classes
from tests import listings
from tests import torch_reference as reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import quantus

NAME, SIZE, CLASSES = "resnet18", 48, np.array([3, 8])
QUIET = {"disable_warnings": True, "display_progressbar": False}


class Doubled(torch.nn.Module):
    """Quantus hands networks float32; this one computes in float64."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x.double())


@functools.cache
def case():
    """Our network, PyTorch's, images that float32 holds, and maps."""
    module = reference.reference(NAME, seed=3, num_classes=10)
    x = reference.images(5, 2, SIZE, SIZE).astype(np.float32).astype(np.float64)
    with jax.enable_x64(True):
        model = reference.to_jax(NAME, module)
        maps = np.asarray(attributions.input_x_gradient(model, jnp.asarray(x), CLASSES))
    return model, Doubled(module).eval(), x, maps


@pytest.fixture
def agree(request, record_property):
    """Asserts that values agree, and records by how much, for the table at the end."""

    def check(what, found, wanted, tolerance=1e-9):
        error = float(np.max(np.abs(np.asarray(found) / np.asarray(wanted) - 1)))
        row = (NAME, f"2 x {SIZE} x {SIZE}", f"{what}, Quantus", f"{error:.1e}", "-", "-", "-")
        record_property("parity", row)
        assert error <= tolerance

    return check


def first(array):
    """Channels first, as Quantus has images."""
    return np.moveaxis(np.asarray(array), -1, -3)


def theirs(metric, maps=None, **settings):
    """What a metric of Quantus gives for the case."""
    _, module, x, own = case()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(
            metric(
                model=module,
                x_batch=first(x),
                y_batch=CLASSES,
                a_batch=first(own if maps is None else maps),
                channel_first=True,
                device="cpu",
                **settings,
            )
        )


def ours(metric, *args, maps=None, **settings):
    model, _, x, own = case()
    with jax.enable_x64(True):
        return metric(
            model, jnp.asarray(x), CLASSES, own if maps is None else maps, *args, **settings
        )


def test_faithfulness_correlation(monkeypatch, agree):
    key, runs, size = jax.random.key(1), 6, 50
    with jax.enable_x64(True):
        subsets = np.asarray(random_subsets(key, runs, size, 3 * SIZE**2))
    # The places of values with channels first, drawn once for each image.
    pixel, channel = np.divmod(subsets, 3)
    drawn = iter(np.repeat(channel * SIZE**2 + pixel, 2, axis=0))
    monkeypatch.setattr(np.random, "choice", lambda *args, **kwargs: next(drawn))
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=runs, subset_size=size, perturb_baseline=0.0, return_aggregate=False, **QUIET
    )
    found = ours(metrics.faithfulness_correlation, key=key, runs=runs, subset_size=size)
    agree("faithfulness_correlation", found, theirs(metric))


def test_faithfulness_estimate(agree):
    metric = quantus.FaithfulnessEstimate(
        features_in_step=SIZE**2 // 3, perturb_baseline=0.0, **QUIET
    )
    found = ours(metrics.faithfulness_estimate, steps=9)
    agree("faithfulness_estimate", found, theirs(metric))


def test_deletion_is_pixel_flipping_by_whole_pixels(agree):
    # A pixel's three values rank next to each other, so that groups of values are pixels.
    order = np.random.default_rng(0).permutation(SIZE**2).reshape(SIZE, SIZE)
    maps = np.broadcast_to((order[..., None] + np.array([0, 0.1, 0.2])) / SIZE**2, case()[2].shape)
    metric = quantus.PixelFlipping(
        features_in_step=SIZE**2 // 3,
        perturb_baseline=0.0,
        return_auc_per_sample=False,
        **QUIET,
    )
    found = ours(metrics.deletion, steps=9, maps=maps)
    agree("deletion", found.values[:, 1:], theirs(metric, maps))


def test_infidelity_of_one_square_and_the_difference_for_more(agree):
    """Quantus leaves squares replaced when it goes on to the next; each alone is Yeh et al.'s."""
    metric = quantus.Infidelity(
        perturb_patch_sizes=[SIZE], perturb_baseline=0.0, n_perturb_samples=1
    )
    found = ours(metrics.infidelity, patch_size=SIZE, scaled=False)
    agree("infidelity of one square", found, theirs(metric))

    _, module, x, maps = case()
    square = np.arange(SIZE) // 24
    number = (square[:, None] * 2 + square)[..., None]
    errors = []
    with torch.no_grad():
        before = module(listings.to_torch(x)).numpy()[[0, 1], CLASSES]
        for k in range(4):
            copied = np.where(number <= k, 0.0, x)
            after = module(listings.to_torch(copied)).numpy()[[0, 1], CLASSES]
            errors.append(((maps * (x - copied)).sum((1, 2, 3)) - (before - after)) ** 2)
    metric = quantus.Infidelity(perturb_patch_sizes=[24], perturb_baseline=0.0, n_perturb_samples=1)
    agree("infidelity by their definition", np.mean(errors, axis=0), theirs(metric))


def explained(channel_last_method):
    """An `explain_func` for Quantus that calls our attribution."""
    network = case()[0]

    def explain(model, inputs, targets, **kwargs):
        with jax.enable_x64(True):
            x = jnp.asarray(np.moveaxis(np.asarray(inputs, np.float64), 1, -1))
            return first(channel_last_method(network, x, np.asarray(targets)))

    return explain


def test_max_sensitivity(monkeypatch, agree):
    method = functools.partial(attributions.gradient, bounds=None)
    model, _, x, _ = case()
    key = jax.random.key(2)
    with jax.enable_x64(True):
        maps = np.asarray(method(model, jnp.asarray(x), CLASSES))
        found = metrics.max_sensitivity(method, model, jnp.asarray(x), CLASSES, key=key, samples=3)
        noise = [
            np.asarray(
                jax.random.uniform(jax.random.fold_in(key, i), x.shape[1:], jnp.float64, -0.2, 0.2)
            )
            for i in range(3)
        ]
    drawn = iter(np.broadcast_to(first(n).reshape(1, -1), (2, n.size)) for n in noise)
    monkeypatch.setattr(np.random, "uniform", lambda *args, **kwargs: next(drawn))
    metric = quantus.MaxSensitivity(nr_samples=3, lower_bound=0.2, **QUIET)
    wanted = theirs(metric, maps, explain_func=explained(method))
    agree("max_sensitivity", found, wanted)


def flat_ssim(a, b):
    """Quantus takes maps for one long line, channels first."""
    lines = [first(m).reshape(len(m), -1, 1, 1) for m in (a, b)]
    from jax_excite.metrics.similarity import _ssim

    with jax.enable_x64(True):
        pairs = zip(*lines, strict=True)
        return np.array([_ssim(jnp.asarray(p).ravel(), jnp.asarray(q).ravel()) for p, q in pairs])


def test_random_logit(monkeypatch, agree):
    method = attributions.gradient
    model, _, x, _ = case()
    key = jax.random.key(3)
    with jax.enable_x64(True):
        maps = np.asarray(method(model, jnp.asarray(x), CLASSES))
        found = metrics.random_logit(
            method, model, jnp.asarray(x), CLASSES, key=key, similarity=flat_ssim
        )
        others = other_classes(key, CLASSES, 10)
    # Quantus draws a place among the classes that are left.
    places = others - (others > CLASSES)
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: places)
    metric = quantus.RandomLogit(num_classes=10, normalise=False, **QUIET)
    wanted = theirs(metric, maps, explain_func=explained(method))
    agree("random_logit", found, wanted)


def test_focus_and_pointing_game(agree):
    _, _, _, maps = case()
    masks = np.zeros((2, SIZE, SIZE), bool)
    masks[0, : SIZE // 2, SIZE // 2 :] = masks[1, SIZE // 2 :, : SIZE // 2] = True
    boxes = [(0, 1, 0, 0), (0, 0, 1, 0)]
    wanted = theirs(quantus.Focus(**QUIET), custom_batch=np.array(boxes))
    agree("focus", metrics.focus(maps, masks), wanted, tolerance=1e-6)
    inside = np.broadcast_to(masks[:, None], (2, 1, SIZE, SIZE))
    for one in (maps, -maps, np.abs(maps), np.roll(maps, 20, axis=1)):
        # Quantus wants one channel here.
        strength = one.max(axis=-1, keepdims=True)
        wanted = theirs(quantus.PointingGame(**QUIET), strength, s_batch=inside)
        np.testing.assert_array_equal(metrics.pointing_game(one, masks), wanted.astype(float))


def test_similarity_of_parameter_randomisation(agree):
    """Quantus draws weights by PyTorch's own rules, so only its similarity can be compared."""
    maps = case()[3]
    other = np.roll(maps, 3, axis=1)
    wanted = quantus.functions.similarity_func.correlation_spearman(
        maps.reshape(2, -1), other.reshape(2, -1), batched=True
    )
    agree("spearman", metrics.spearman(maps, other), wanted)
    assert spearmanr(maps[0].ravel(), other[0].ravel())[0] == pytest.approx(wanted[0])
