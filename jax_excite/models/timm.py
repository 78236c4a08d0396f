"""Networks by timm's names, whose weights are on the Hugging Face Hub.

`timm/resnet50.a1_in1k` is the repository of the weights: an architecture, and what the weights were
trained on. Each repository has the weights (`model.safetensors`), and the preprocessing that they
require (`config.json`).
"""

import json
from pathlib import Path

from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import SettingError, WeightsError
from jax_excite.models.convnext import CONVNEXTS
from jax_excite.models.pvt_v2 import PVTS_V2
from jax_excite.models.resnet import RESNETS
from jax_excite.models.spec import Configuration, ModelSpec
from jax_excite.models.vit import ViTConfig

PREFIX = "timm/"
CONFIG = "config.json"

_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
_VITS = {
    f"vit_{name}_patch{patch}_{size}": ViTConfig(patch, *numbers, size)
    for name, numbers in _SIZES.items()
    for patch in (16, 32)
    for size in (224, 384)
}

# By architecture: the family, its head, the temperature of ReLUs, and the configuration.
ARCHITECTURES: dict[str, tuple[str, str, float | None, Configuration]] = {
    **{name: ("resnet", "fc", 0.3, config) for name, config in RESNETS.items()},
    **{name: ("convnext", "classifier.2", None, config) for name, config in CONVNEXTS.items()},
    **{name: ("vit", "heads.head", None, config) for name, config in _VITS.items()},
    **{name: ("pvt_v2", "head", None, config) for name, config in PVTS_V2.items()},
}


def timm_spec(name: str) -> ModelSpec:
    """The network of a name such as `timm/resnet50.a1_in1k`.

    Raises:
        WeightsError: its architecture is not one of `ARCHITECTURES`.
    """
    wanted = architecture(name)
    if wanted not in ARCHITECTURES:
        raise WeightsError(
            f"no architecture of timm's is called {wanted!r} here: choose one of "
            f"{', '.join(ARCHITECTURES)}, or export the network to ONNX"
        )
    family, head, temperature, configuration = ARCHITECTURES[wanted]
    return ModelSpec(name, family, configuration, head, temperature, parameters=0, hub=name)


def architecture(name: str) -> str:
    """The architecture in a name such as `timm/resnet50.a1_in1k`."""
    return name.removeprefix(PREFIX).partition(".")[0]


def read_preprocessing(path: Path, spec: ModelSpec) -> Preprocessing | None:
    """The preprocessing that a `config.json` of timm's describes; None if the file is not timm's.

    Images are resized to `size / crop_pct` before the crop, as in timm.

    Raises:
        WeightsError: it is of another network, cannot be read, or describes what is not supported.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("pretrained_cfg")
        if found is None:
            return None
        if spec.hub and config["architecture"] != architecture(spec.name):
            raise ValueError(f"it is of {config['architecture']}, not of {spec.name}")
        channels, height, width = found["input_size"]
        if height != width or channels != 3 or found.get("crop_mode", "center") != "center":
            raise ValueError(f"images of {channels} x {height} x {width}, {found['crop_mode']}")
        return Preprocessing(
            tuple(map(float, found["mean"])),
            tuple(map(float, found["std"])),
            int(height / found["crop_pct"]),
            height,
            height if found.get("fixed_input_size") else 1,
            interpolation=found["interpolation"],
        )
    except (OSError, AttributeError, KeyError, TypeError, ValueError, SettingError) as error:
        raise WeightsError(f"{path} has no readable preprocessing: {error!r}") from error
