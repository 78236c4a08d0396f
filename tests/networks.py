"""Small networks, and a soft ReLU derived another way than the library's."""

import jax
import jax.numpy as jnp
from flax import nnx


def soft_relu(z, temperature, bound=None):
    """ReLU whose derivative is sigmoid(z / T), from the antiderivative T * softplus(z / T)."""
    hard = jnp.maximum(z, 0) if bound is None else jnp.clip(z, 0, bound)
    soft = temperature * jax.nn.softplus(z / temperature)
    return jax.lax.stop_gradient(hard) + soft - jax.lax.stop_gradient(soft)


def soft_max_pool(x, temperature, size=2):
    """Non-overlapping softmax-pooling with the output of max-pooling, by reshaping."""
    n, h, w, c = x.shape
    cells = x.reshape(n, h // size, size, w // size, size, c)
    cells = jnp.moveaxis(cells, 2, 3).reshape(n, h // size, w // size, size * size, c)
    soft = jnp.sum(cells * jax.nn.softmax(cells / temperature, axis=3), axis=3)
    return jax.lax.stop_gradient(cells.max(axis=3)) + soft - jax.lax.stop_gradient(soft)


class Network(nnx.Module):
    """Convolution, BatchNorm, two ReLUs and a max-pool; `relu` and `pool` may be replaced."""

    def __init__(self, classes=5, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv1 = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (3, 3), rngs=rngs)
        self.head = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x):
        return self.run(x, jax.nn.relu, lambda x: nnx.max_pool(x, (2, 2), (2, 2)))

    def run(self, x, relu, pool):
        x = pool(relu(self.norm(self.conv1(x))))
        x = relu(self.conv2(x))
        return self.head(x.mean(axis=(1, 2)))


def images(n=2, size=8, seed=0, dtype=jnp.float32):
    return jax.random.uniform(
        jax.random.key(seed), (n, size, size, 3), minval=-1, maxval=1, dtype=dtype
    )


def relative_error(a, b):
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))
