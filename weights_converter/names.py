"""Tables of the names and layouts that our weights have in PyTorch checkpoints."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Rule:
    """The source of the weights of one kind.

    Attributes:
        pattern: a regular expression that matches the whole of our name.
        rank: the number of dimensions of such a weight.
        source: PyTorch's name, which may refer to groups of the pattern.
        order: our axis `i` is PyTorch's axis `order[i]`.
        flattened: the channels, height and width of the image whose flattening, in this order,
            indexes the columns of PyTorch's matrix; ours is flattened as height, width, channels.
    """

    pattern: str
    rank: int
    source: str
    order: tuple[int, ...] = (0,)
    flattened: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The mapping of names for one family of architectures.

    Attributes:
        rules: the rules, exactly one of which matches each weight.
        renames: pairs (pattern, replacement) that are applied to a checkpoint's names beforehand.
    """

    rules: tuple[Rule, ...]
    renames: tuple[tuple[str, str], ...] = ()

    def rename(self, name: str) -> str:
        """The present form of a checkpoint's name."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


# The number of times the weights of `torch.optim.swa_utils.AveragedModel` have been averaged.
AVERAGED = "n_averaged"
# Dropped: this number, and the number of batches that a BatchNorm layer has processed in training.
IGNORED = rf"{AVERAGED}|.+\.num_batches_tracked"
UNTRAINED = rf"{AVERAGED}|.+\.(num_batches_tracked|running_mean|running_var)"

CONV = Rule(r"(.+)\.kernel", 4, r"\1.weight", (2, 3, 1, 0))  # OIHW to HWIO
LINEAR = Rule(r"(.+)\.kernel", 2, r"\1.weight", (1, 0))
BIAS = Rule(r"(.+)\.bias", 1, r"\1.bias")
NORM = (
    Rule(r"(.+)\.scale", 1, r"\1.weight"),
    Rule(r"(.+)\.mean", 1, r"\1.running_mean"),
    Rule(r"(.+)\.var", 1, r"\1.running_var"),
)
COMMON = (CONV, LINEAR, BIAS, *NORM)

# The first matrix of the head follows a flattened [512, 7, 7].
VGG = (
    CONV,
    Rule(r"(classifier\.0)\.kernel", 2, r"\1.weight", (1, 0), flattened=(512, 7, 7)),
    Rule(r"(classifier\.[36])\.kernel", 2, r"\1.weight", (1, 0)),
    BIAS,
    *NORM,
)

# The published files have `norm.1` for `norm1`; torchvision itself no longer accepts such names.
LEGACY_DENSENET = (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.")

UNDERSCORES = (r"(^|\.)_", r"\1")

# The keys are families, as in `jax_excite.models.ModelSpec`.
TABLES: dict[str, Table] = {
    "resnet": Table(COMMON),
    "vgg": Table(VGG),
    "densenet": Table(COMMON, renames=(LEGACY_DENSENET,)),
    "squeezenet": Table(COMMON),
    "efficientnet_lite": Table(COMMON, renames=(UNDERSCORES,)),
}
