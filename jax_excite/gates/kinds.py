"""The kinds of gates that can be softened, one class per file."""

from jax_excite.gates.gate import Gate
from jax_excite.gates.max_pool import MaxPool
from jax_excite.gates.relu import Relu

KINDS: tuple[type[Gate], ...] = (Relu, MaxPool)
# The names under which `sites` lists them.
GATE_KINDS = tuple(name for kind in KINDS for name in kind.kinds)
