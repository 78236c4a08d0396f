"""ONNX's own node tests, for every operator that is implemented."""

import pytest

from jax_excite.onnx.operators import OPERATORS
from tests import onnx_cases


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.filterwarnings("ignore")  # NumPy's, about the data of the cases
def test_every_case_of(operator, x64):
    cases = onnx_cases.of(operator)
    assert cases
    for case in cases:
        onnx_cases.check(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_functions_that_onnx_writes_with_these_operators(x64):
    for case in onnx_cases.of_functions():
        onnx_cases.check(case)
