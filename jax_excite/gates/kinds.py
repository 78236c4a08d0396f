"""The kinds of gates that can be softened, one class per file."""

from jax_excite.gates.attention import Attention
from jax_excite.gates.gate import Gate
from jax_excite.gates.gelu import Gelu
from jax_excite.gates.hard_swish import HardSwish
from jax_excite.gates.max_pool import MaxPool
from jax_excite.gates.normalisation import Normalisation
from jax_excite.gates.relu import Relu
from jax_excite.gates.silu import Silu
from jax_excite.gates.squeeze_excitation import SqueezeExcitation

KINDS: tuple[type[Gate], ...] = (
    Relu,
    MaxPool,
    Silu,
    Gelu,
    HardSwish,
    Normalisation,
    Attention,
    SqueezeExcitation,
)
# The names under which `sites` lists them.
GATE_KINDS = tuple(name for kind in KINDS for name in kind.kinds)
