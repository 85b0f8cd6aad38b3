"""Serve MathJax from the site itself, so that formulas appear without a network.

The script and its fonts, 1.7 MB, come from the package sphinx-mathjax-offline.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

SCRIPT = "tex-chtml-full.js"  # the variant with all TeX packages inside, which loads nothing but fonts
FONTS = "output/chtml/fonts/woff-v2"


def use_own_copy(app: Sphinx, config: Config) -> None:
    """Make Sphinx load MathJax from ``_static`` and not from the network."""
    config.mathjax_path = f"mathjax/{SCRIPT}"


def copy_files(app: Sphinx, exception: Exception | None) -> None:
    """Copy script and fonts from the installed package into the site."""
    spec = find_spec("sphinx-mathjax-offline")
    if exception is not None or app.builder.format != "html":
        return
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package sphinx-mathjax-offline is not installed")
    package, site = Path(spec.origin).parent / "static/mathjax", Path(app.outdir, "_static/mathjax")
    (site / FONTS).mkdir(parents=True, exist_ok=True)
    for path in [package / SCRIPT, *(package / FONTS).glob("*.woff")]:
        shutil.copyfile(path, site / path.relative_to(package))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("config-inited", use_own_copy)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
