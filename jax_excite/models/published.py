"""Published weights: their files, and the preprocessing that they require."""

import dataclasses

from jax_excite.data.preprocessing import Interpolation, Preprocessing


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
    "mobilenet_v2": (3_504_872, 1, (("b0353104", 256), ("7ebf99e0", 232))),
    "mobilenet_v3_large": (5_483_032, 1, (("8738ca79", 256), ("5c1a4163", 232))),
    "mobilenet_v3_small": (2_542_856, 1, (("047dcff4", 256),)),
    "convnext_tiny": (28_589_128, 32, (("983f1562", 236),)),
    "convnext_small": (50_223_688, 32, (("0c510722", 230),)),
    "convnext_base": (88_591_464, 32, (("6075fbad", 232),)),
    "convnext_large": (197_767_336, 32, (("ea097f82", 232),)),
    "vit_b_16": (86_567_656, 224, (("c867db91", 256),)),
    "vit_b_32": (88_224_232, 224, (("d86f8d99", 256),)),
    "vit_l_16": (304_326_632, 224, (("852ce7e3", 242),)),
    "vit_l_32": (306_535_400, 224, (("c7638314", 256),)),
}

# EfficientNets were trained at different sizes: here the hash, preceded by what else the file's
# name has, comes with both lengths, of the short side before the crop and of the crop.
_EFFICIENTNETS: dict[str, tuple[int, int, tuple[tuple[str, int, int, Interpolation], ...]]] = {
    "efficientnet_b0": (5_288_548, 1, (("_rwightman-7f5810bc", 256, 224, "bicubic"),)),
    "efficientnet_b1": (
        7_794_184,
        1,
        (("_rwightman-bac287d4", 256, 240, "bicubic"), ("-c27df63c", 255, 240, "bilinear")),
    ),
    "efficientnet_b2": (9_109_994, 1, (("_rwightman-c35c1473", 288, 288, "bicubic"),)),
    "efficientnet_b3": (12_233_232, 1, (("_rwightman-b3899882", 320, 300, "bicubic"),)),
    "efficientnet_b4": (19_341_616, 1, (("_rwightman-23ab8bcd", 384, 380, "bicubic"),)),
    "efficientnet_b5": (30_389_784, 1, (("_lukemelas-1a07897c", 456, 456, "bicubic"),)),
    "efficientnet_b6": (43_040_704, 1, (("_lukemelas-24a108a5", 528, 528, "bicubic"),)),
    "efficientnet_b7": (66_347_960, 1, (("_lukemelas-c5b4e57e", 600, 600, "bicubic"),)),
    "efficientnet_v2_s": (21_458_488, 33, (("-dd5fe13b", 384, 384, "bilinear"),)),
}


def from_torchvision(name: str) -> tuple[int, tuple[Published, ...]]:
    """The number of parameters of a network of torchvision, and its published weights."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    versions: tuple[tuple[str, int, int, Interpolation], ...]
    if name in _EFFICIENTNETS:
        parameters, min_size, versions = _EFFICIENTNETS[name]
    else:
        parameters, min_size, found = _TORCHVISION[name]
        versions = tuple((f"-{digits}", resize, 224, "bilinear") for digits, resize in found)
    return parameters, tuple(
        Published(
            f"IMAGENET1K_V{number}",
            f"{name}{ending}.pth",
            Preprocessing(mean, std, resize, size, min_size, interpolation=interpolation),
        )
        for number, (ending, resize, size, interpolation) in enumerate(versions, start=1)
    )
