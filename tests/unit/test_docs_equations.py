"""docs/equations.md names what exists, and leaves no equation or test out."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "equations.md").read_text()
NAMES = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", PAGE)
LINKS = re.findall(r"\]\(([^)]+)\)", PAGE)


@functools.cache
def definitions(path):
    body = ast.parse((ROOT / path).read_text()).body
    named = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assigned = [target for node in body for target in getattr(node, "targets", [])]
    annotated = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {node.name for node in named} | {target.id for target in [*assigned, *annotated]}


@pytest.mark.parametrize(("name", "path"), sorted(set(NAMES)))
def test_named_function_or_test_exists(name, path):
    assert name.split(".")[-1] in definitions(path)
    assert len(name.split(".")) == 1 or name.split(".")[0] == Path(path).stem


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_link_leads_somewhere(link):
    assert (ROOT / "docs" / link).exists()


def test_every_equation_has_a_row_with_its_test():
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \| (?:exact|\d\.\de-\d\d) \|$", PAGE, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 24))
    for number, tests in rows:
        assert f"test_equation_{int(number):02d}_" in tests


def test_every_test_of_an_equation_is_named():
    for path in (ROOT / "tests" / "oracle").glob("test_equations*.py"):
        tests = {name for name in definitions(path) if name.startswith("test_")}
        named = {name for name, link in NAMES if link == path.relative_to(ROOT).as_posix()}
        assert tests == named
