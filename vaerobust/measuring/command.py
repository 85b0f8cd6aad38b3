"""The command ``vaerobust measure``: a model and images from the command line, and a report in a folder.

Start reading at :func:`measure_model`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import click

from vaerobust.cluster.connecting import RETRY, cluster_options, connected
from vaerobust.measuring.compare import compare
from vaerobust.measuring.images import load
from vaerobust.measuring.measure import measure
from vaerobust.measuring.parts import FAILED
from vaerobust.measuring.probe import REACTIONS
from vaerobust.measuring.report import Report
from vaerobust.zoo.files import write_atomically

COMPARED = "compared"
"""Folder, within that of the report, of the report of the second model."""


@click.command("measure")
@click.argument("model", metavar="MODULE:NAME")
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the report.")
@click.option("--images", "first", type=click.IntRange(1), help="Measure only that many first images.")
@click.option("--device", help="Where to measure, such as cpu or cuda; where the model is if left out.")
@click.option("--level", default=0.9, show_default=True, help="r is this quantile of each image's own noise.")
@click.option("--r", type=float, help="One r for all images instead.")
@click.option("--confidence", default=0.999, show_default=True, help="Of each certificate and attack, per image.")
@click.option(
    "--samples", type=click.IntRange(1), help="Draws behind each certificate; by the model's cost if left out."
)
@click.option("--seed", default=0, show_default=True, help="Whole number from which all noise is drawn.")
@click.option(
    "--suspicions", type=click.Choice(REACTIONS), default="raise", show_default=True,
    help="What happens where something looks like a common mistake.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True,
    help="Threads that each part is computed on; the last digits may depend on it.",
)  # fmt: skip
@RETRY
@cluster_options
@click.option("--compare", "other", metavar="MODULE:NAME", help="A second model, measured on the same images.")
def measure_model(
    model: str, images: Path, out: Path, other: str | None, workers: int | None, scheduler: str | None, **options: Any
) -> None:  # fmt: skip
    """Measure how robust a VAE is at some images, and write a report.

    MODULE is a module that can be imported or the path of a .py file. NAME in it is a model, or a function without
    arguments that returns one. IMAGES is a .npy, .npz or .pt file or a folder of PNGs, with pixels in [0, 1] or of 8
    bits. An interrupted measurement is resumed by the same command. With --workers or --scheduler a Dask cluster
    computes the parts, and not a digit changes.
    """
    try:
        pixels = load(images)
        with connected(workers, scheduler) as client:
            options["client"] = client
            report = measure(named_model(model), pixels, out=out, name=model.split(":")[-1], **options)
            pages = [report.save(out)]
            if other is not None:
                pages += compared(report, other, pixels, out, options)
    except (TypeError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(report))
    for reason in dict.fromkeys(report.missing.values()):
        names = ", ".join(name for name, why in report.missing.items() if why == reason)
        click.echo(f"not measured: {names}: {reason}")
    for path in pages:
        click.echo(f"report: {path}")
    if any(reason.startswith(FAILED) for reason in report.missing.values()):
        raise click.ClickException("some images could not be measured; --retry tries them again")


def compared(report: Report, other: str, pixels: Any, out: Path, options: dict[str, Any]) -> list[Path]:
    """Measure a second model, put the comparison on the first one's page, and return the paths of the new pages."""
    from vaerobust.measuring.html import page  # Matplotlib takes a second to import

    second = measure(named_model(other), pixels, out=out / COMPARED, name=other.split(":")[-1], **options)
    comparison = compare(report, second)
    write_atomically(out / "report.html", page(report, comparison).encode())
    click.echo(comparison.headline)
    return [second.save(out / COMPARED), comparison.save(out)]


def named_model(text: str) -> Any:
    """Return the model that MODULE:NAME stands for.

    Raises
    ------
    ValueError
        If there is no such module or name, or it fails to give a model.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"MODULE:NAME must name a model, such as models.py:vae, but is {text!r}")
    try:
        found = getattr(imported(place), name)
    except AttributeError as error:
        raise ValueError(f"MODULE:NAME must name a model, but {place} has no {name}") from error
    if isinstance(found, type) or (callable(found) and not hasattr(found, "encode") and not hasattr(found, "encoder")):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{text} must return a model when called without arguments, but fails: {error}") from error
    return found


def imported(place: str) -> Any:
    """Import a module by its name, also from the folder of the call, or from its file.

    Raises
    ------
    ValueError
        If it is not there or fails.
    """
    path = Path(place)
    by_file = path.suffix == ".py"
    if by_file and not path.is_file():
        raise ValueError(f"MODULE must be a module or a .py file, but there is no file {place}")
    sys.path.insert(0, str((path.parent if by_file else Path()).resolve()))
    try:
        if not by_file:
            return importlib.import_module(place)
        # by its file, since another module may have the same name
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"no loader for {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        raise ValueError(f"MODULE {place} cannot be imported: {type(error).__name__}: {error}") from error
