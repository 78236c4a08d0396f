"""The published settings, by name.

`EXCITATION` is the recipe of the paper and the default. `SEMANTIC` is the recipe of its 2026
successor. Both papers share the number arXiv 2507.22832; never mix their settings silently. The
corresponding settings of projected gradient ascent are `EXCITATION_PGA` and `SEMANTIC_PGA`:
`pga(params, x, c, recipes.SEMANTIC_PGA, gating=recipes.SEMANTIC)`.
"""

from jax_excite.ascent import Ascent
from jax_excite.gating import Gating

EXCITATION = Gating(temperature=0.3, pool_temperature=0.3, gate="sigmoid", pool_weights="through")
EXCITATION_PGA = Ascent(steps=10, step_size=20.0, radius=100.0)

SEMANTIC = Gating(
    temperature=0.6,
    pool_temperature=0.3,
    silu_temperature=1.6,
    gelu_temperature=1.0,
    hard_swish_temperature=1.0,
    attention_temperature=1.0,
    gate="normal_cdf",
    pool_weights="detached",
    normalisation="constant",
    attention="through",
)
SEMANTIC_PGA = Ascent(steps=5, step_size=20.0, radius=None, clip="never")

VANILLA = Gating(temperature=0.0, pool_temperature=0.0, gate="hard")

# Both propagate only positive cotangents: guided backpropagation where the unit is active
# (Springenberg et al., "Striving for Simplicity", 2015, section 3.4), deconvolution everywhere
# (Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", 2014, section 2.1).
GUIDED_BACKPROP = Gating(temperature=0.0, pool_temperature=0.0, gate="hard", cotangents="positive")
DECONVOLUTION = Gating(
    temperature=1.0, pool_temperature=0.0, slope=1.0, gate="leaky", cotangents="positive"
)
