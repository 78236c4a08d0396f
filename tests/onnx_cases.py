"""The node tests of ONNX itself (`onnx.backend.test`), run through our evaluation.

`python -m tests.onnx_cases` prints how many cases of each operator pass.
"""

import collections
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from jax_excite.onnx.network import load_onnx
from jax_excite.onnx.operators import OPERATORS

# Cases that are left out, by a part of their names, and why.
LEFT_OUT = {
    "training_dropout": "the expected mask is that of NumPy's random generator",
    "dynamicquantizelinear_expanded": "a quotient is a tie to XLA, whose division rounds otherwise",
    "bf16_expanded": "attention in bfloat16 differs by two units in the last place",
}
_STRING = onnx.TensorProto.STRING


@functools.cache
def all_cases():
    return collect_testcases(None)


def operators_of(case):
    return {node.op_type for node in case.model.graph.node} - {"Constant"}


def is_function(case):
    """Whether a case has the body of an operator that ONNX defines by others."""
    return case.name.endswith("_expanded") or "_expanded_" in case.name


def of(operator):
    """The cases of an operator."""
    return [
        case
        for case in all_cases()
        if operators_of(case) == {operator} and not is_function(case) and not obstacle(case)
    ]


def of_functions():
    """The cases with the bodies of operators, as far as these consist of ours."""
    return [
        case
        for case in all_cases()
        if is_function(case) and operators_of(case) <= OPERATORS.keys() and not obstacle(case)
    ]


def obstacle(case):
    """Why a case is left out; empty for a case that has to pass."""
    for word, why in LEFT_OUT.items():
        if word in case.name:
            return why
    for info in [*case.model.graph.input, *case.model.graph.output]:
        if not info.type.HasField("tensor_type"):
            return "it takes or returns no tensor"
        if info.type.tensor_type.elem_type == _STRING:
            return "it takes or returns strings"
    return ""


def check(case):
    """Raise `AssertionError` unless the outputs of a case are those expected."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        path.write_bytes(case.model.SerializeToString())
        network = load_onnx(path)
    for inputs, outputs in case.data_sets:
        names = [info.name for info in case.model.graph.input]
        found = network(dict(zip(names, map(as_array, inputs), strict=False)))
        wanted = [info.name for info in case.model.graph.output]
        for name, expected in zip(wanted, map(as_array, outputs), strict=True):
            got = np.asarray(found[name] if isinstance(found, dict) else found)
            kind = got.shape, got.dtype
            assert kind == (expected.shape, expected.dtype), f"{case.name}: {kind}"
            wide = np.float64 if got.dtype.kind not in "biuc" else got.dtype
            np.testing.assert_allclose(
                got.astype(wide),
                expected.astype(wide),
                rtol=case.rtol,
                atol=case.atol,
                err_msg=case.name,
            )


def as_array(value):
    return value if isinstance(value, (np.ndarray, np.generic)) else numpy_helper.to_array(value)


def main():
    results = collections.Counter()
    for operator in sorted(OPERATORS):
        results[operator] = sum(passes(case) for case in of(operator))
        print(f"{operator:28} {results[operator]:4} of {len(of(operator)):4}", flush=True)
    print(f"operators: {len(results)}, cases: {sum(results.values())}")
    functions = of_functions()
    passed = sum(map(passes, functions))
    print(f"bodies of functions written with these operators: {passed} of {len(functions)}")
    left = collections.Counter(
        obstacle(case) for case in all_cases() if operators_of(case) <= OPERATORS.keys()
    )
    for why, count in left.items():
        if why:
            print(f"left out, {count}: {why}")
    others = set().union(*map(operators_of, all_cases())) - OPERATORS.keys()
    print("operators with cases that are not implemented:", ", ".join(sorted(others)))


def passes(case):
    try:
        check(case)
    except Exception as error:
        print(f"  {case.name}: {type(error).__name__} {str(error).strip()[:200]!r}")
        return False
    return True


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
