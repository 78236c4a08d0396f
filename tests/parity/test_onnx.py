"""Networks of other frameworks through ONNX files: against PyTorch, onnxruntime and our modules."""

import importlib.util
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jax_excite as je
from jax_excite.onnx.network import load_onnx
from tests import listings
from tests import torch_reference as reference
from tests.listings import torchvision

pytestmark = pytest.mark.usefixtures("little_memory")

EXACT = 1e-9
# torchvision's networks and one of timm's, with the height of images that they take.
NETWORKS = {
    "mobilenet_v3_small": 64,
    "resnet50": 64,
    "vgg11_bn": 224,  # the exporter takes adaptive pools of such sizes only
    "densenet121": 64,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 64,
    "pvt_v2_b1": 64,
}
AT_ONCE = ("mobilenet_v3_small",)
OWN = {"resnet18": 64, "resnet50": 64, "vgg11_bn": 224, "densenet121": 64}
SHARED = Path(__file__).parents[3] / "shared/data"


def build(name):
    torch.manual_seed(0)
    if name == "pvt_v2_b1":
        timm = pytest.importorskip("timm", reason="timm is a test dependency")
        return timm.create_model(name, pretrained=False, num_classes=10)
    module = getattr(torchvision.models, name)(weights=None)
    if name == "vit_b_16":  # its head is zero
        nn.init.normal_(module.heads.head.weight, std=0.02)
    return module


def export(module, x, path, **options):
    """Write an ONNX file for any number of items."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated in favour of a slower one
        torch.onnx.export(
            module,
            (x,),
            str(path),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
            **options,
        )
    return load_onnx(path)


@pytest.mark.parametrize(
    "name",
    [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def test_outputs_and_gradients_are_those_of_pytorch(name, tmp_path, x64, record_property):
    module = build(name).double().eval()
    size = NETWORKS[name]
    x = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1
    network = export(module, x, tmp_path / "network.onnx")
    given = x.clone().requires_grad_()
    wanted = module(given)
    wanted[:, 3].sum().backward()
    found, gradient = je.value_and_pullback(network, x.numpy(), 3, gating=je.recipes.VANILLA)
    pairs = {"outputs": (found, wanted.detach()), "gradient": (gradient, given.grad)}
    compare(f"{name}, ONNX", pairs, record_property)


def compare(name, pairs, record_property):
    """Assert that pairs of results agree, and record by how much they differ."""
    for quantity, (found, wanted) in pairs.items():
        error = reference.relative_error(np.asarray(found), np.asarray(wanted))
        record_property("parity", (name, "", quantity, f"{error:.1e}", "", "", ""))
        assert error < EXACT


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in list(OWN)[1:])]
)
def test_excitation_pullbacks_are_those_of_our_modules(name, tmp_path, x64, record_property):
    module = reference.reference(name, seed=1)
    x = reference.images(7, 2, OWN[name], OWN[name])
    network = export(module, listings.to_torch(x), tmp_path / "network.onnx")
    logits, wanted = je.value_and_pullback(reference.to_jax(name, module), x, 3)
    first = np.moveaxis(x, -1, 1)
    found, field = je.value_and_pullback(network, first, 3)
    pairs = {"outputs": (found, logits), "pullback": (np.moveaxis(field, 1, -1), wanted)}
    compare(f"{name}, ONNX and our module", pairs, record_property)


class Old(nn.Module):
    """What newer operator sets write in another way."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.clamp(self.norm(self.first(x)), -0.5, 1.5)
        x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        x = nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 3, 2)
        low, high = torch.split(x, [3, 5], dim=1)
        x = torch.cat([low, high[:, 1:, :, ::1]], dim=1)
        x = torch.softmax(x, dim=1) + x.sum(dim=(2, 3), keepdim=True) / 50
        x = nn.functional.adaptive_avg_pool2d(x.unsqueeze(1).squeeze(1), 1).flatten(1)
        return self.last(self.drop(torch.cat([x, x[:, :5]], 1)))


@pytest.mark.parametrize("version", [9, 10, 11, 12, 13, 15, 17, 18, 20])
def test_older_operator_sets(version, tmp_path, x64):
    torch.manual_seed(1)
    module = Old().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    network = export(module, x, tmp_path / "old.onnx", opset_version=version)
    given = x.clone().requires_grad_()
    wanted = module(given)
    wanted[:, 3].sum().backward()
    found, gradient = je.value_and_pullback(network, x.numpy(), 3, gating=je.recipes.VANILLA)
    assert reference.relative_error(np.asarray(found), wanted.detach().numpy()) < EXACT
    assert reference.relative_error(np.asarray(gradient), given.grad.numpy()) < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_16_bits(dtype, tmp_path):
    torch.manual_seed(1)
    module = Old().eval()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    wanted = module(x).detach().numpy()
    network = export(module.to(dtype), x.to(dtype), tmp_path / "short.onnx", opset_version=18)
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {
        jnp.dtype(str(dtype).partition(".")[2])
    }
    found = np.asarray(network(x.numpy()), np.float32)
    assert reference.relative_error(found, wanted) < 0.03
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network)
    assert reference.relative_error(np.asarray(wide(x.numpy())), wanted) < 0.02


def rapidocr():
    """The networks that the package rapidocr-onnxruntime contains."""
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    return Path(found.origin).parent / "models" if found and found.origin else Path("absent")


FILES = {
    rapidocr() / "ch_PP-OCRv4_rec_infer.onnx": (2, 3, 48, 320),
    rapidocr() / "ch_PP-OCRv4_det_infer.onnx": (2, 3, 96, 128),
    rapidocr() / "ch_ppocr_mobile_v2.0_cls_infer.onnx": (2, 3, 48, 192),
    SHARED / "yolox_nano.onnx": (1, 3, 416, 416),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_are_those_of_onnxruntime(path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a test dependency")
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, FILES[path]).astype(np.float32)
    x = 127.5 * (x + 1) if path.stem == "yolox_nano" else x
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    found = jax.jit(lambda network, x: network(x))(load_onnx(path), x)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-4, atol=1e-4)
