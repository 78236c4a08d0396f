"""Networks from ONNX files: weights, names, batches, dtypes, preprocessing, and hostile files."""

import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import jax_excite as je
from jax_excite import InputError, NetworkError, SettingError
from jax_excite.data.preprocessing import Preprocessing
from jax_excite.onnx.network import load_onnx
from tests.networks import relative_error


def arrays(seed=0):
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    return {
        "conv.weight": 0.3 * draw(4, 3, 3, 3),
        "conv.bias": draw(4),
        "head.weight": draw(5, 4),
        "head.bias": draw(5),
    }


NODES = [
    helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], "/conv/Conv", pads=[1] * 4),
    helper.make_node("Relu", ["a"], ["b"], "/relu/Relu"),
    helper.make_node("MaxPool", ["b"], ["c"], "/pool/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    helper.make_node("GlobalAveragePool", ["c"], ["d"], "/mean/GlobalAveragePool"),
    helper.make_node("Shape", ["d"], ["shape"], "/Shape"),
    helper.make_node("Gather", ["shape", "zero"], ["count"], "/Gather"),
    helper.make_node("Unsqueeze", ["count", "first"], ["counts"], "/Unsqueeze"),
    helper.make_node("Concat", ["counts", "rest"], ["flat"], "/Concat", axis=0),
    helper.make_node("Reshape", ["d", "flat"], ["e"], "/Reshape"),
    helper.make_node("Gemm", ["e", "head.weight", "head.bias"], ["y"], "/head/Gemm", transB=1),
]
INTEGERS = {"zero": np.array(0), "first": np.array([0]), "rest": np.array([-1])}


def model(
    nodes=NODES, constants=None, inputs=None, outputs=("y",), batch="batch", version=17, **metadata
):
    """An ONNX model, by default a small convolutional network of images [N, 3, 8, 8]."""
    constants = {**arrays(), **INTEGERS} if constants is None else constants
    inputs = {"x": [batch, 3, 8, 8]} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    helper.set_model_props(built, metadata)
    return built


@pytest.fixture
def write(tmp_path):
    def write(built=None, name="network.onnx", **options):
        path = tmp_path / name
        path.write_bytes((built or model(**options)).SerializeToString())
        return path

    return write


def by_hand(weights, x):
    """The same network in JAX, of images [N, 8, 8, 3]."""
    kernel = jnp.transpose(weights["conv.weight"], (2, 3, 1, 0))
    a = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    b = jax.nn.relu(a + weights["conv.bias"])
    c = jax.lax.reduce_window(b, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return c.mean((1, 2)) @ weights["head.weight"].T + weights["head.bias"]


def images(n=3, seed=1):
    return jax.random.uniform(jax.random.key(seed), (n, 8, 8, 3), minval=-1)


def test_weights_are_leaves_under_their_names(write):
    network = je.load(write())
    leaves = jax.tree_util.tree_flatten_with_path(network)[0]
    names = {jax.tree_util.keystr(path, simple=True): leaf.shape for path, leaf in leaves}
    assert names == {name: array.shape for name, array in arrays().items()}


def test_outputs_pullbacks_and_sites(write):
    network, x = je.load(str(write())), images()
    first = jnp.moveaxis(x, -1, 1)
    np.testing.assert_allclose(network(first), by_hand(arrays(), x), rtol=1e-5, atol=1e-5)
    wanted = je.pullback(lambda x: by_hand(arrays(), x), x, 2)
    assert relative_error(jnp.moveaxis(je.pullback(network, first, 2), 1, -1), wanted) < 1e-5
    sites = je.sites(network, first)
    assert [(site.name, site.kind) for site in sites] == [
        ("relu/Relu/relu", "relu"),
        ("pool/MaxPool/max_pool", "max_pool"),
    ]
    unit = je.pullback(network, first, 1, at="relu/Relu/relu")
    grid = je.pullback_grid(network, first, [0, 1, 2], at=0)
    assert relative_error(unit, grid[:, 1]) < 1e-5
    assert je.pga(network, first, 2, je.Ascent(2, 1.0)).shape == first.shape


def test_two_loads_of_a_file_share_compiled_programs(write):
    path, x = write(), jnp.moveaxis(images(), -1, 1)
    traces = []

    def counted(network, x):
        traces.append(None)
        return network(x)

    compiled = jax.jit(counted)
    compiled(je.load(path), x)
    compiled(jax.tree.map(lambda leaf: 2 * leaf, je.load(path)), x)
    assert len(traces) == 1


def test_a_file_for_one_item_takes_any_number(write):
    flat = {**INTEGERS, **arrays(), "shape": np.array([1, -1])}
    nodes = [*NODES[:4], helper.make_node("Reshape", ["d", "shape"], ["e"], "flat"), NODES[-1]]
    network, x = je.load(write(nodes=nodes, constants=flat, batch=1)), images(5)
    first = jnp.moveaxis(x, -1, 1)
    np.testing.assert_allclose(network(first), by_hand(arrays(), x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network(first[:1]), network(first)[:1], rtol=1e-5, atol=1e-6)
    wanted = je.pullback(lambda x: by_hand(arrays(), x), x, 2)
    assert relative_error(jnp.moveaxis(je.pullback(network, first, 2), 1, -1), wanted) < 1e-5
    unit = je.pullback(network, first, (0, 1, 3, 3), at=0)
    assert relative_error(je.pullback(network, first[0], (1, 3, 3), at=0), unit[0]) < 1e-5


def test_several_inputs_and_outputs(write):
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "w"], ["logits"]),
        helper.make_node("Relu", ["logits"], ["active"]),
    ]
    w = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    network = je.load(
        write(
            nodes=nodes,
            constants={"w": w},
            inputs={"a": ["n", 2], "b": ["n", 3]},
            outputs=("logits", "active"),
        )
    )
    x = {"a": np.ones((3, 2), np.float32), "b": np.full((3, 3), 2, np.float32)}
    outputs = network(x)
    assert {name: value.shape for name, value in outputs.items()} == {
        "logits": (3, 4),
        "active": (3, 4),
    }
    field = je.pullback(network, x, ("active", 1), batched=True, gating=je.recipes.VANILLA)
    active = float(outputs["logits"][0, 1] > 0)
    np.testing.assert_allclose(field["b"][0], active * w[2:, 1], rtol=1e-6)
    with pytest.raises(InputError, match="x has the inputs a: the network takes a, b"):
        network({"a": x["a"]})


def test_weights_can_be_cast(write, x64):
    network = je.load(write(), dtype=jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {np.dtype("float64")}
    x = jnp.moveaxis(images().astype(jnp.float64), -1, 1)
    wide = {name: array.astype(np.float64) for name, array in arrays().items()}
    wanted = by_hand(wide, jnp.moveaxis(x, 1, -1))
    assert relative_error(network(x), wanted) < 1e-12


PIXELS = Preprocessing((0.0,) * 3, (1 / 255,) * 3, size=8)
IMAGES = {
    "signed": (Preprocessing((0.5,) * 3, (0.5,) * 3), lambda x: x),
    "unit": (Preprocessing((0.0,) * 3, (1.0,) * 3), lambda x: (x + 1) / 2),
    "pixels": (PIXELS, lambda x: 127.5 * (x + 1)),
    "imagenet": (
        Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        lambda x: ((x + 1) / 2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
    ),
    "bgr": (
        Preprocessing((0.0,) * 3, (1 / 255,) * 3, order="BGR"),
        lambda x: 127.5 * (x[..., ::-1] + 1),
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_in_minus_1_to_1_go_in(write, kind):
    preprocessing, to_input = IMAGES[kind]
    path, x = write(), images()
    network = je.load(path, preprocessing=preprocessing, class_names="abcde")
    assert network.class_names == ("a", "b", "c", "d", "e")
    plain = je.load(path)

    def wanted(x):
        return plain(jnp.moveaxis(to_input(x).astype(jnp.float32), -1, 1))

    np.testing.assert_allclose(network(x), wanted(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network(x[0]), wanted(x)[0], rtol=1e-4, atol=1e-4)
    assert relative_error(je.pullback(network, x, 2), je.pullback(wanted, x, 2)) < 1e-4
    assert je.pga(network, x[0], 2, je.Ascent(2, 1.0)).shape == x[0].shape
    with pytest.raises(je.ImageError, match="W, 3"):
        network(x[..., :2])


def test_a_grey_network(write):
    weights = {**arrays(), **INTEGERS, "conv.weight": arrays()["conv.weight"][:, :1]}
    path = write(constants=weights, inputs={"x": ["n", 1, 8, 8]})
    network = je.load(path, preprocessing=Preprocessing((0.5,), (0.5,), size=8))
    photograph = np.zeros((8, 8, 3), np.uint8)
    photograph[..., 1] = 255
    x = network.preprocessing.load_images([photograph])
    assert x.shape == (1, 8, 8, 1)
    np.testing.assert_allclose(x, 2 * 0.587 - 1, rtol=1e-5)
    assert je.pullback(network, x, 2).shape == x.shape
    with pytest.raises(NetworkError, match="images of 1 channels: the preprocessing has 3"):
        je.load(path, preprocessing=PIXELS)


@pytest.mark.parametrize(
    "text", ["{0: 'cat', 1: 'dog'}", '["cat", "dog"]', "cat\ndog", "('cat', 'dog')"]
)
def test_class_names_in_the_metadata(write, text):
    network = je.load(write(names=text, author="me"))
    assert network.class_names == ("cat", "dog")
    assert network.metadata["author"] == "me"


def test_operators_that_are_not_supported_are_listed(write):
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["a"], "first", hidden_size=2),
        helper.make_node("Fancy", ["a"], ["b"], "second", domain="com.example"),
        helper.make_node("Relu", ["b"], ["y"], "third"),
    ]
    constants = {"w": np.zeros((1, 8, 3), np.float32), "r": np.zeros((1, 8, 2), np.float32)}
    path = write(nodes=nodes, constants=constants)
    said = r"not supported, LSTM, com.example.Fancy: LSTM 'first', Fancy 'second'$"
    with pytest.raises(NetworkError, match=said):
        je.load(path)


def test_errors(write, tmp_path):
    path = write()
    with pytest.raises(FileNotFoundError):
        je.load(tmp_path / "absent.onnx")
    with pytest.raises(SettingError, match="an ONNX file has its own"):
        je.load(path, weights=None)
    with pytest.raises(SettingError, match="for ONNX files"):
        je.load("resnet50", weights=None, preprocessing=PIXELS)
    with pytest.raises(InputError, match=r"'x' has shape \(2, 8, 8, 3\): .* \[any, 3, 8, 8\]"):
        je.load(path)(np.zeros((2, 8, 8, 3), np.float32))
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(NetworkError, match=r"text\.onnx"):
        je.load(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(NetworkError, match="no graph with nodes"):
        je.load(tmp_path / "empty.onnx")
    with pytest.raises(NetworkError, match="takes 'b', which no earlier node computes"):
        je.load(write(nodes=NODES[2:], name="missing.onnx"))
    with pytest.raises(NetworkError, match="no node computes the output 'z'"):
        je.load(write(outputs=("z",), name="output.onnx"))
    wrong = {**arrays(), **INTEGERS, "head.weight": np.zeros((5, 7), np.float32)}
    with pytest.raises(NetworkError, match=r"Gemm 'head/Gemm' cannot be computed from \(2, 4\)"):
        je.load(write(constants=wrong, name="wrong.onnx"))(np.zeros((2, 3, 8, 8), np.float32))


def test_shapes_that_depend_on_the_input_are_refused(write):
    nodes = [
        helper.make_node("Cast", ["x"], ["shape"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape"),
    ]
    network = je.load(write(nodes=nodes, constants={}, inputs={"x": [1]}))
    with pytest.raises(NetworkError, match="Reshape 'reshape': its shape depends on the input"):
        jax.jit(network)(np.ones(1, np.float32))


def external(location, shape=(4,), **entries):
    built = model(
        nodes=[helper.make_node("Mul", ["x", "w"], ["y"])], constants={}, inputs={"x": ["n", 4]}
    )
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    built.graph.initializer.append(tensor)
    return built


def test_external_data_stays_inside_its_folder(write, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    numbers = np.arange(6, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(numbers.tobytes())
    (inner / "link.bin").symlink_to(tmp_path / "weights.bin")
    network = je.load(write(external("weights.bin", offset=8, length=16)))
    np.testing.assert_array_equal(network.weights["w"], numbers[2:])
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "link.bin"):
        path = inner / "network.onnx"
        path.write_bytes(external(location).SerializeToString())
        with pytest.raises(NetworkError, match="outside of the folder"):
            je.load(path)
    for built, said in (
        (external("absent.bin"), "missing: put it beside network.onnx"),
        (external("weights.bin", shape=(2**40,)), "too short"),
        (external("weights.bin", offset=16), "too short"),
        (external("weights.bin", length=4), "does not fit the shape"),
        (external("weights.bin", offset=-4), "does not fit"),
        (external("weights.bin", shape=(-4,)), r"has the shape \(-4,\)"),
    ):
        with pytest.raises(NetworkError, match=said):
            je.load(write(built))


def constant(shape, op="ConstantOfShape", **attributes):
    nodes = [
        helper.make_node(op, ["shape"], ["big"], "big", **attributes),
        helper.make_node("Mul", ["x", "big"], ["y"]),
    ]
    return model(nodes=nodes, constants={"shape": np.array(shape)}, inputs={"x": ["n", 1]})


def test_sizes_are_bounded_before_memory_is_taken(write):
    network = je.load(write(constant([2**20, 2**20])))
    with pytest.raises(NetworkError, match=r"'big': an array of shape .* too large"):
        network(np.zeros((1, 1), np.float32))
    huge = model()
    huge.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(NetworkError, match=r"'conv.weight' has the shape .* but 432 bytes of data"):
        je.load(write(huge))


SEED = model(batch=2, names=json.dumps(["a"] * 5)).SerializeToString()


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255), st.sampled_from("scdi")),
        min_size=1,
        max_size=4,
    )
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, changes):
    data = bytearray(SEED)
    for place, byte, what in changes:
        place = min(place, len(data) - 1)
        if what == "s":
            data[place] = byte
        elif what == "c":
            del data[place:]
        elif what == "d":
            del data[place : place + 1 + byte % 8]
        else:
            data[place:place] = bytes([byte]) * (1 + byte % 5)
        data = data or bytearray(b"\0")
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(data))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        network = load_onnx(path)
        jax.eval_shape(network, np.zeros((2, 3, 8, 8), np.float32))
    except (NetworkError, InputError):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert time.monotonic() - start < 20


def test_the_extra_that_is_needed_is_named(write, monkeypatch):
    path = write()
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(NetworkError, match=r"pip install .jax-excite\[onnx\]"):
        je.load(path)


def test_a_file_with_functions_of_its_own(write):
    body = [helper.make_node("Relu", ["u"], ["v"], "inside")]
    own = helper.make_function("mine", "Half", ["u"], ["v"], body, [helper.make_opsetid("", 17)])
    built = model(
        nodes=[helper.make_node("Half", ["x"], ["y"], "call", domain="mine")],
        constants={},
        inputs={"x": ["n", 3]},
    )
    built.functions.append(own)
    built.opset_import.append(helper.make_opsetid("mine", 1))
    x = np.array([[-1, 0, 2]], np.float32)
    np.testing.assert_array_equal(je.load(write(built))(x), np.maximum(x, 0))
