"""Every command and every snippet of README.md and of the tour runs."""

import importlib.resources
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

from jax_excite import open_store
from tests import torch_reference as reference
from weights_converter.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "README.md", ROOT / "docs" / "tour.md"
README = "\n".join(page.read_text() for page in PAGES)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the photograph that README.md speaks of."""
    data = importlib.resources.files("skimage.data") / "chelsea.png"
    with importlib.resources.as_file(data) as path:
        matplotlib.image.imsave(tmp_path / "photo.jpg", matplotlib.image.imread(path))
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_kind_of_block_is_run_here():
    assert set(re.findall(r"```(\w+)", README)) == {"bash", "python", "bibtex"}
    assert {command.split()[0] for command in COMMANDS} == {
        "make",
        "pip",
        "jax-excite",
        "weights-converter",
    }


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_snippet(code, folder):
    exec(compile(code, "README.md", "exec"), {})
    assert len(code.splitlines()) < 40


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("jax-excite")])
def test_command(command, folder):
    _, *arguments = shlex.split(command)
    run = [sys.executable, "-c", "from jax_excite.cli import main; main()", *arguments]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if "--out" in arguments:
        out = folder / arguments[arguments.index("--out") + 1]
        picture = out.with_suffix(".png") if out.suffix == ".csv" else out
        assert out.exists()
        if out.is_dir():
            assert open_store(out).done.all()
            return
        if picture.suffix == ".png":
            assert matplotlib.image.imread(picture).std() > 0.05
        assert picture.stat().st_size > (10_000 if out.suffix == ".csv" else 100_000)


def test_weights_converter(folder):
    """One after the other, as the second verifies what the first wrote."""
    module = reference.reference("resnet18", num_classes=5, dtype=torch.float32)
    torch.save(module.net.state_dict(), folder / "flowers.pth")
    commands = [c for c in COMMANDS if c.startswith("weights-converter")]
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert (folder / "flowers.safetensors").exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_target_exists(command):
    """`make demo`, `app` and `test` themselves cannot run here; CI runs the last."""
    result = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    wanted = ("jax-excite demo", "jax-excite app", "python -m pytest")
    assert any(each in result.stdout for each in wanted)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pip")])
def test_extras_exist(command):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"\[(.*?)\]", command)
    assert named
    assert set(named) <= set(extras)


def test_links_lead_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        assert links
        local = [link for link in links if "://" not in link]
        assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_readme_fits_on_two_screens():
    lines = PAGES[0].read_text().splitlines()
    assert len(lines) < 110
