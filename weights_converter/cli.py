"""The command line `weights-converter`.

Exit codes: 0 success; 2 wrong input (a file that is missing, refused or does not fit), reported in
one line on standard error; 3 `verify` found a difference; 130 interrupted; 1 any other error, which
is a bug.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jax_excite.cli.console import announce, errors_in_one_line
from jax_excite.cli.entry import run
from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, model_spec
from jax_excite.weights.published import PRETRAINED, at_hand, find_published, find_weights
from weights_converter.convert import Conversion, convert_file
from weights_converter.inspection import Inspection, inspect_file
from weights_converter.verify import Check, verify

DIFFERENT = 3

app = typer.Typer(
    help="Convert PyTorch checkpoints to JAX without PyTorch, and without running what they "
    "contain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def main() -> None:
    """Run the command line."""
    run(app)


@app.command("convert")
def convert_command(
    source: Annotated[Path, typer.Argument(help="A PyTorch checkpoint or safetensors file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Name of the network (see `list`). Default: recognised from the file."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="File of class names: text with one per line, or a JSON list."),
    ] = None,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Measure temperatures on photographs that come with scikit-image, and store them. "
            "Default: for networks without a recommended temperature.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output file if it exists.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of a supported network with any number of classes."""
    with errors_in_one_line():
        _check_out(out, source, force)
        names = None if class_names is None else _read_names(class_names)
        announce(f"Converting {source}")
        found = convert_file(source, out, model=model, class_names=names, calibrate=calibrate)
        checks = verify(out)
        if as_json:
            _print_json(_summary(found, out) | {"checks": [dataclasses.asdict(c) for c in checks]})
        else:
            _print_conversion(found, source, out, checks)
        _exit_by(checks)


@app.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="A checkpoint or safetensors file, of any kind.")],
    as_json: Json = False,
) -> None:
    """Show what a file holds: tensors, metadata, and every global that its pickles mention."""
    with errors_in_one_line():
        found = inspect_file(file)
        if as_json:
            _print_json(dataclasses.asdict(found))
        else:
            _print_inspection(found)
        if found.refusal:
            raise WeightsError(found.refusal)


@app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(help="A converted file.")],
    against: Annotated[
        Path | None,
        typer.Option(
            help="PyTorch checkpoint to compare with: the tensors, and the logits that PyTorch "
            "computes."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check names, shapes, finite values and the checksum of a converted file."""
    with errors_in_one_line():
        checks = verify(file, against)
        if as_json:
            _print_json([dataclasses.asdict(check) for check in checks])
        else:
            _print_checks(checks)
        _exit_by(checks)


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the supported networks and their published weights."""
    rows = [
        {
            "model": spec.name,
            "parameters": spec.parameters,
            "weights": published.name,
            "source": published.url or f"package {published.package.replace('_', '-')}",
            "at_hand": str(at_hand(published) or ""),
        }
        for spec in MODELS.values()
        for published in spec.published
    ]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        where = row["at_hand"] or row["source"]
        millions = f"{row['parameters'] / 1e6:.2f} M"
        typer.echo(f"{row['model']:<18}  {millions:>9}  {row['weights']:<13}  {where}")


@app.command("download")
def download_command(
    model: Annotated[str, typer.Argument(help="Name of the network, as shown by `list`.")],
    weights: Annotated[
        str, typer.Option(help="Name of the weights, as shown by `list`.")
    ] = "pretrained",
) -> None:
    """Download and convert published weights into the cache, and print the path of the file."""
    with errors_in_one_line():
        spec = model_spec(model)
        is_on_hub = bool(spec.hub) and weights == PRETRAINED
        if not is_on_hub and find_published(spec, weights) is None:
            names = ", ".join(published.name for published in spec.published) or PRETRAINED
            raise WeightsError(f"{model} has no weights {weights}: choose one of {names}")
        typer.echo(find_weights(spec, weights))


def _check_out(out: Path, source: Path, force: bool) -> None:
    if not out.parent.is_dir():
        raise WeightsError(f"--out is {out}: there is no folder {out.parent}")
    if out.exists() and source.exists() and out.samefile(source):
        raise WeightsError(f"--out is {out}, which is the file to convert: give another file")
    if out.is_dir():
        raise WeightsError(f"--out is {out}: give a file, not a folder")
    if out.exists() and not force:
        raise WeightsError(f"{out} exists already: give another file, or --force to replace it")


def _read_names(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is not UTF-8 text: {error}") from error
    try:
        names = json.loads(text)
    except ValueError:
        return text.splitlines()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{path} is JSON, but not a list of strings")
    return names


def _summary(found: Conversion, out: Path) -> dict[str, Any]:
    with out.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": found.spec.name,
        "classes": found.num_classes,
        "tensors": len(found.tensors),
        "dtypes": sorted({str(tensor.dtype) for tensor in found.tensors.values()}),
        "ignored": found.ignored,
        "renamed": found.renamed,
        "temperatures": found.temperatures,
        "file": str(out),
        "bytes": out.stat().st_size,
        "sha256": digest,
    }


def _print_conversion(found: Conversion, source: Path, out: Path, checks: Sequence[Check]) -> None:
    summary = _summary(found, out)
    typer.echo(f"{source} is a {found.spec.name} of {found.num_classes} classes")
    typer.echo(f"renamed from legacy names: {len(found.renamed)}")
    typer.echo(f"left out: {len(found.ignored)} batch counters (num_batches_tracked)")
    if found.temperatures or found.spec.calibrated:
        typer.echo(f"temperatures measured: {len(found.temperatures)}")
    size = f"{summary['bytes'] / 1e6:.1f} MB"
    typer.echo(
        f"{out}: {summary['tensors']} tensors, {', '.join(summary['dtypes'])}, {size}, "
        f"sha256 {summary['sha256']}"
    )
    _print_checks(checks)


def _print_inspection(found: Inspection) -> None:
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        typer.echo(f"{tensor.name:<60}  {tensor.dtype:<9}  {shape:<22}  {tensor.nbytes:>12,} bytes")
    total = sum(tensor.nbytes for tensor in found.tensors)
    typer.echo(f"{found.format}: {len(found.tensors)} tensors, {total:,} bytes")
    for key, value in found.metadata.items():
        cut = value if len(value) < 200 else value[:200] + " ..."
        typer.echo(f"metadata {_shown(key)}: {_shown(cut)}")
    for name, allowed in found.globals:
        typer.echo(f"global {_shown(name)}: {'known' if allowed else 'REFUSED'}")


def _shown(text: str) -> str:
    """Text from an untrusted file, escaped if it could disturb the terminal or forge a line."""
    return text if text.isprintable() else ascii(text)


def _print_checks(checks: Sequence[Check]) -> None:
    words = {True: "ok", False: "WRONG", None: "not checked"}
    for check in checks:
        typer.echo(f"{check.what}: {words[check.passed]} ({check.detail})")


def _exit_by(checks: Sequence[Check]) -> None:
    if any(check.passed is False for check in checks):
        raise typer.Exit(DIFFERENT)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
