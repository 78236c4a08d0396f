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
        ones: the number of axes of length 1 that PyTorch's weight may have at its end.
        flattened: the channels, height and width of the image whose flattening, in this order,
            indexes the columns of PyTorch's matrix; ours is flattened as height, width, channels.
    """

    pattern: str
    rank: int
    source: str
    order: tuple[int, ...] = (0,)
    ones: int = 0
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

LAYER_SCALE = Rule(r"(.+\.layer_scale)", 1, r"\1", ones=2)

VIT = (
    Rule(r"(class_token|.+\.pos_embedding)", 3, r"\1", (0, 1, 2)),
    Rule(r"(.+)\.in_proj_kernel", 2, r"\1.in_proj_weight", (1, 0)),
    Rule(r"(.+\.in_proj_bias)", 1, r"\1"),
)
# The published files have these names of the matrices between attention blocks.
LEGACY_VIT = ((r"mlp\.linear_1\.", "mlp.0."), (r"mlp\.linear_2\.", "mlp.3."))

# timm's names of the same weights.
TIMM_CONVNEXT = (
    (r"^stem\.", "features.0."),
    *((rf"^stages\.{i}\.downsample\.", f"features.{2 * i}.") for i in range(1, 4)),
    *((rf"^stages\.{i}\.blocks\.", f"features.{2 * i + 1}.") for i in range(4)),
    (r"\.conv_dw\.", ".block.0."),
    (r"^(features\.\d+\.\d+)\.norm\.", r"\1.block.2."),
    (r"\.mlp\.fc1\.", ".block.3."),
    (r"\.mlp\.fc2\.", ".block.5."),
    (r"\.gamma$", ".layer_scale"),
    (r"^head\.norm\.", "classifier.0."),
    (r"^head\.fc\.", "classifier.2."),
)
TIMM_VIT = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
)

# The keys are families, as in `jax_excite.models.ModelSpec`.
TABLES: dict[str, Table] = {
    "resnet": Table(COMMON),
    "vgg": Table(VGG),
    "densenet": Table(COMMON, renames=(LEGACY_DENSENET,)),
    "squeezenet": Table(COMMON),
    "efficientnet_lite": Table(COMMON, renames=(UNDERSCORES,)),
    "efficientnet": Table(COMMON),
    "mobilenet_v2": Table(COMMON),
    "mobilenet_v3": Table(COMMON),
    "convnext": Table((*COMMON, LAYER_SCALE), renames=TIMM_CONVNEXT),
    "pvt_v2": Table(COMMON),
    "vit": Table((*COMMON, *VIT), renames=(*LEGACY_VIT, *TIMM_VIT)),
}
