"""A network by name: how it is built, and which weights have been published for it."""

import dataclasses
from typing import Protocol

import jax
from flax import nnx

from jax_excite.data.preprocessing import IMAGENET, Preprocessing
from jax_excite.models.layers import NotDrawn
from jax_excite.models.published import Published


class Configuration(Protocol):
    """What distinguishes the members of a family, such as depths and widths."""

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> nnx.Module:
        """The member with random weights."""
        ...


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A network by name.

    Attributes:
        name: its name, which is torchvision's name if torchvision has the network.
        family: the architecture, whose members share one table of names in checkpoints.
        configuration: what distinguishes it from the rest of its family.
        head: the dotted name of the layer that computes the logits, the same as in PyTorch. The
            length of its bias is the number of classes.
        temperature: the temperature of ReLUs and max-pools at which its excitation pullbacks are
            clear. With BatchNorm it is the paper's 0.3. For SqueezeNet 1.0 and EfficientNet-Lite0
            it was found by visual inspection instead, and is used for the rest of their families.
            None if the network has neither: it needs `recipes.SEMANTIC`, which has its own
            temperatures.
        parameters: the number of trained weights, with 1000 classes; 0 if it is not known.
        published: its published weights; the first are those called "pretrained".
        hub: the repository on the Hugging Face Hub whose weights are called "pretrained" instead.
        calibrated: whether one temperature does not suit all sites, because their pre-activations
            have no common scale: temperatures are measured for each set of weights.
    """

    name: str
    family: str
    configuration: Configuration
    head: str
    temperature: float | None
    parameters: int
    published: tuple[Published, ...] = ()
    hub: str = ""
    calibrated: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that its pretrained weights require.

        That of a network on the Hub is in a file beside its weights; here it is ImageNet's.
        """
        if self.published:
            return self.published[0].preprocessing
        size = getattr(self.configuration, "size", None)
        return IMAGENET if size is None else dataclasses.replace(IMAGENET, resize=size, size=size)

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> nnx.Module:
        """The network with random weights."""
        return self.configuration.build(num_classes=num_classes, rngs=rngs)

    def abstract(self, *, num_classes: int = 1000) -> nnx.Module:
        """The network with shapes in place of weights; no arrays are created."""
        return jax.eval_shape(lambda: self.build(num_classes=num_classes, rngs=NotDrawn(0)))
