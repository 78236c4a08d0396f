"""What is published: the package's files, and those that describe the project."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The wheel and the source archive, built as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def names_in_wheel(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as whole:
        return set(whole.namelist())


def test_archives_are_fit_to_upload(dist):
    assert {path.name for path in dist.iterdir()} == {
        f"jax_excite-{PROJECT['version']}-py3-none-any.whl",
        f"jax_excite-{PROJECT['version']}.tar.gz",
    }
    command = [sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(dist):
    listed = subprocess.run(
        ["git", "ls-files", "jax_excite", "weights_converter"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = names_in_wheel(dist)
    assert {name for name in names if ".dist-info/" not in name} == set(listed.stdout.split())
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert (
        sum(name.endswith(("page.css", "imagenet_classes.txt", "py.typed")) for name in names) >= 3
    )


def test_the_page_of_the_package_index_needs_no_clone(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as whole:
        (path,) = [name for name in whole.namelist() if name.endswith("/METADATA")]
        _, _, page = whole.read(path).decode().partition("\n\n")
    assert page.startswith("# jax_excite")
    assert re.findall(r"\]\((?!https?:)[^)]*\)|docs/\S+\.jpg", page) == []
    readme = (ROOT / "README.md").read_text()
    assert "\nmake " not in page
    assert 'pip install "jax-excite[demo]"\njax-excite demo' in page
    sections = readme.split("\n## ")
    kept = page.split("\n## ")
    assert [each.split("\n")[0] for each in kept[1:]] == ["Use it", "Cite"]
    assert len(kept[1]) > 0.8 * len(sections[2])
    assert kept[2] == sections[3]


def test_the_source_archive_can_run_the_tests(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as whole:
        names = {name.split("/", 1)[-1] for name in whole.getnames()}
    assert {"Makefile", "README.md", "LICENSE", "tests/conftest.py", ".ci/run"} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/", "out/"))]


def test_one_version():
    version = PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "authors", "title"} <= set(citation)
    newest = re.search(r"^## (\S+?)(,|$)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == version


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    tried = jobs["test"]["strategy"]["matrix"]["python"]
    classified = re.findall(r"Python :: (3\.\d+)", json.dumps(PROJECT["classifiers"]))
    assert tried == classified
    assert set(jobs["publish"]["needs"]) == {"test", "build"}
    torch = next(step["run"] for step in jobs["test"]["steps"] if "torch==" in step.get("run", ""))
    (pinned,) = [
        each for each in PROJECT["optional-dependencies"]["test"] if each.startswith("torch=")
    ]
    assert pinned in torch


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("*.md")), ids=lambda path: path.name
)
def test_templates(path):
    text = path.read_text()
    if path.parent.name == "ISSUE_TEMPLATE":
        _, head, _ = text.split("---", 2)
        assert set(yaml.safe_load(head)) == {"name", "about"}
    assert ".ci/run" in text or "**" in text
