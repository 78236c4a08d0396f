"""The node tests of ONNX itself (`onnx.backend.test`), run through our evaluation.

`python -m tests.onnx_cases` prints how many cases of each operator pass.
"""

import collections
import tempfile
from pathlib import Path

import jax
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from jax_excite.onnx.network import OnnxNetwork, load_onnx
from jax_excite.onnx.operators import OPERATORS

# Cases that no array program can pass, by what is in their names.
LEFT_OUT = {
    "training_dropout": "the expected mask is that of NumPy's random generator",
    "dynamicquantizelinear_expanded": "a quotient is a tie to XLA, which rounds it differently",
}
_STRINGS = onnx.TensorProto.STRING


def cases(op):
    """The test cases of an operator."""
    return [case for case in all_cases() if case.model is not None and operator_of(case) == op]


_CASES = []


def all_cases():
    if not _CASES:
        _CASES.extend(collect_testcases(None))
    return _CASES


def main():
    passed, failed = collections.Counter(), collections.defaultdict(list)
    others = collections.Counter()
    for case in all_cases():
        ops = {node.op_type for node in case.model.graph.node}
        if not ops <= OPERATORS.keys() | {"Constant"}:
            others.update(ops - OPERATORS.keys())
            continue
        name = next(iter(ops))
        try:
            why = obstacle(case)
            if why:
                failed[name].append((case.name, "LEFT OUT: " + why))
                continue
            check(case)
            passed[name] += 1
        except Exception as error:
            failed[name].append((case.name, f"{type(error).__name__}: {str(error)[:300]}"))
    for name in sorted(passed):
        print(name, passed[name])
    print("passed", sum(passed.values()), "failed", sum(map(len, failed.values())))
    for name, listed in failed.items():
        for case, why in listed:
            print("  ", name, case, why.replace("\n", " | ")[:260])
    print("not claimed:", dict(others))


def obstacle(case):
    """Why a case cannot be run on arrays; empty if it can."""
    for word, why in LEFT_OUT.items():
        if word in case.name:
            return why
    for info in [*case.model.graph.input, *case.model.graph.output]:
        if not info.type.HasField("tensor_type"):
            return "it takes or returns no tensor"
        if info.type.tensor_type.elem_type == _STRINGS:
            return "it takes or returns strings"
    return ""


def check(case):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        path.write_bytes(case.model.SerializeToString())
        network = load_onnx(path)
    for inputs, outputs in case.data_sets:
        names = [info.name for info in case.model.graph.input]
        given = dict(zip(names, map(as_array, inputs), strict=False))
        found = run(network, given)
        wanted = [info.name for info in case.model.graph.output]
        for name, expected in zip(wanted, map(as_array, outputs), strict=True):
            got = np.asarray(found[name] if isinstance(found, dict) else found)
            assert got.shape == expected.shape, (got.shape, expected.shape)
            assert got.dtype == expected.dtype, (got.dtype, expected.dtype)
            wide = np.float64 if got.dtype.kind not in "biuc" else got.dtype
            np.testing.assert_allclose(
                got.astype(wide), expected.astype(wide), rtol=case.rtol, atol=case.atol
            )


def as_array(value):
    return value if isinstance(value, np.ndarray | np.generic) else numpy_helper.to_array(value)


def run(network: OnnxNetwork, given):
    return network(given)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
