"""Every public function once, with the shapes in signatures checked as it runs.

`python -m tests.shapes` installs the checks before the library is imported. It prints the names of
the functions that were called, and ends at the first array that has not the shape, or not the kind
of dtype, that a signature says.
"""

import functools

import jaxtyping

# Those whose signatures have shapes: not the models, whose layers take images of any size.
CHECKED = (
    *("ascent", "attributions", "data", "gates", "gating", "metrics", "pictures"),
    *("pullbacks", "theory", "transform"),
)
with jaxtyping.install_import_hook([f"jax_excite.{name}" for name in CHECKED], "beartype.beartype"):
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jax_excite
    from jax_excite import attributions, metrics, pictures, theory
    from jax_excite.data.images import to_uint8
    from jax_excite.theory import path_space
    from tests.networks import Network, images

jax.config.update("jax_disable_most_optimizations", True)  # compile quickly
NET, OTHER = Network(), Network(seed=1)
X = images(4)
CLASSES = np.array([0, 1, 2, 3])
KEY = jax.random.key(0)
MAPS = np.asarray(images(4, seed=1))


def on_both(fn, *args, **kwargs):
    """Call a function with one image and with a batch."""
    fn(NET, X[0], 1, *args, **kwargs)
    return fn(NET, X, CLASSES, *args, **kwargs)


def on_maps(fn, **kwargs):
    """Call a metric of maps with one image, a batch, and the maps of two methods."""
    fn(NET, X[0], 1, MAPS[0], **kwargs)
    fn(NET, X, CLASSES, MAPS, **kwargs)
    fn(NET, X, CLASSES, np.stack([MAPS, -MAPS]), **kwargs)


def core():
    grid = functools.partial(jax_excite.pullback_grid, NET)
    yield "pullback", lambda: on_both(jax_excite.pullback)
    yield "value_and_pullback", lambda: on_both(jax_excite.value_and_pullback)
    yield "pullback_grid", lambda: (grid(X[0], [0, 2]), grid(X, np.tile([0, 2], (4, 1))))
    yield "pga", lambda: (on_both(jax_excite.pga), on_both(jax_excite.pga, trajectory=True))
    yield "pga_grid", lambda: jax_excite.pga_grid(NET, X, [0, 2])
    yield "pga_steps", lambda: [*jax_excite.pga_steps(NET, X, CLASSES, jax_excite.Ascent(1))]
    yield "calibrate", lambda: (jax_excite.calibrate(NET, X), jax_excite.calibrate(NET, [X, X]))
    yield "temperature_sweep", lambda: on_both(jax_excite.temperature_sweep, [0.1, 0.3])
    yield "excite", lambda: jax.grad(lambda x: jax_excite.excite(NET)(x).sum())(X)
    yield "sites", lambda: jax_excite.sites(NET, X)
    for name in ("gated_silu", "gated_gelu", "gated_hard_swish", "surrogate_normalisation"):
        own = getattr(jax_excite, name)
        yield name, lambda own=own: jax.grad(lambda z: own(z).sum())(X)
    heads = jnp.ones((2, 5, 4, 3))
    yield (
        "surrogate_attention",
        lambda: [
            jax_excite.surrogate_attention(heads, heads[:, :3, :2], heads[:, :3, :2], form=form)
            for form in ("through", "detached")
        ],
    )
    yield "gated_relu", lambda: jax.grad(lambda z: jax_excite.gated_relu(z).sum())(X)
    yield (
        "surrogate_max_pool",
        lambda: jax.grad(lambda x: jax_excite.surrogate_max_pool(x, (2, 2), (2, 2)).sum())(X),
    )
    photograph = np.zeros((9, 9, 3), np.uint8)
    yield "load_image", lambda: to_uint8(jax_excite.load_image(photograph, 8))
    yield "load_images", lambda: to_uint8(jax_excite.load_images([photograph] * 2, 8))


def of_attributions():
    keyed = {
        "fusion_pullback",
        "gradient_shap",
        "random_map",
        "smooth_grad",
        "smoothed_pullback",
    }
    for name in attributions.__all__:
        options = {"key": KEY} if name in keyed else {}
        yield name, functools.partial(on_both, getattr(attributions, name), **options)


def of_metrics():
    method = functools.partial(attributions.gradient, bounds=None)
    for name in ("deletion", "insertion"):
        yield name, functools.partial(on_maps, getattr(metrics, name), steps=4)
    yield (
        "faithfulness_correlation",
        lambda: on_maps(metrics.faithfulness_correlation, key=KEY, runs=3, subset_size=5),
    )
    yield "faithfulness_estimate", lambda: on_maps(metrics.faithfulness_estimate, steps=4)
    yield "infidelity", lambda: on_maps(metrics.infidelity, patch_size=4)
    mosaics = metrics.mosaics(X, CLASSES)
    yield "mosaics", lambda: metrics.mosaics(X, CLASSES)
    boxes = metrics.boxes(np.array([[0, 0, 4, 4]] * 4), 8, 8)
    yield "boxes", lambda: boxes
    yield "focus", lambda: metrics.focus(MAPS, mosaics.masks)
    yield "pointing_game", lambda: metrics.pointing_game(np.stack([MAPS, MAPS]), boxes)
    for name in ("cosine", "spearman", "ssim"):
        yield name, functools.partial(getattr(metrics, name), MAPS, np.asarray(X))
    yield "pearson", lambda: metrics.pearson(MAPS, np.asarray(X))
    yield "total_variation", lambda: metrics.total_variation(MAPS)
    yield (
        "max_sensitivity",
        lambda: metrics.max_sensitivity(method, NET, X, CLASSES, key=KEY, samples=2),
    )
    yield "random_logit", lambda: metrics.random_logit(method, NET, X, CLASSES, key=KEY)
    yield "randomised", lambda: metrics.randomised(NET, X)
    yield (
        "parameter_randomisation",
        lambda: metrics.parameter_randomisation(method, NET, OTHER, X, CLASSES),
    )
    yield "climb_along", lambda: metrics.climb_along(method, NET, X, CLASSES)
    yield "standing", lambda: metrics.standing(NET, X, CLASSES)
    yield "transfer", lambda: metrics.transfer(method, NET, OTHER, X, CLASSES)


def of_theory():
    gates = theory.gates(NET, X)
    yield "preactivations", lambda: theory.preactivations(NET, X)
    yield "gates", lambda: gates
    yield "induced", lambda: theory.induced(NET, X, gates)
    yield "induced_matrix", lambda: theory.induced_matrix(NET, X, gates)
    yield "induced_pullback", lambda: theory.induced_pullback(NET, X, CLASSES, gates)
    yield "induced_value", lambda: theory.induced_value(NET, X, CLASSES, gates)
    yield "gram", lambda: theory.gram(NET, X, X[:2])


def of_path_space():
    net = path_space.Perceptron.random((3, 4, 2, 3))
    x = jnp.ones((2, 3))
    gates = list(theory.gates(net, x).values.values())
    tau = path_space.tensor_field(gates)
    yield "paths", lambda: path_space.path_activity(gates, path_space.paths(net))
    yield "atoms", lambda: path_space.atoms(net, 1)
    yield "omega", lambda: path_space.omega(net, 1)
    yield "tensor_pullback", lambda: path_space.tensor_pullback(net, 1, tau)
    yield "tensor_value", lambda: path_space.tensor_value(net, x, 1, tau)
    yield "phi", lambda: path_space.phi(tau, x)
    yield "path_space_value", lambda: path_space.path_space_value(net, x, 1, tau)


def of_pictures():
    yield "scale", lambda: pictures.scale(MAPS)
    yield "heat_map", lambda: pictures.heat_map(MAPS)
    yield "in_colour", lambda: pictures.in_colour(MAPS[..., :1])
    yield "overlay_heat_map", lambda: pictures.overlay_heat_map(np.asarray(X[0]), MAPS)


TOURS = {
    "jax_excite": core,
    "jax_excite.attributions": of_attributions,
    "jax_excite.metrics": of_metrics,
    "jax_excite.theory": of_theory,
    "jax_excite.theory.path_space": of_path_space,
    "jax_excite.pictures": of_pictures,
}

if __name__ == "__main__":
    for module, tour in TOURS.items():
        for name, call in tour():
            call()
            print(f"{module}.{name}", flush=True)
