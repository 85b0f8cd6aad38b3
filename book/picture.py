"""Draw the picture of the README, ``book/_static/readme.png``: digits under attack, by a model that ships."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not

from vaerobust.attacks import AttackSettings, maximum_damage  # noqa: E402
from vaerobust.page.figures import image_grid, set_style  # noqa: E402
from vaerobust.zoo import data  # noqa: E402
from vaerobust.zoo.weights import pretrained  # noqa: E402

TARGET = ROOT / "book/_static/readme.png"
NORM = 3.0
COLUMNS = 10


def main() -> None:
    """Attack the first test images and write the picture."""
    set_style()
    vae, x = pretrained("mnist", beta=1.0).vae, data.load("mnist", "test").pixels[:COLUMNS]
    delta = maximum_damage(vae, x, NORM, AttackSettings(box=True)).delta
    rows = {"image": x, "output": vae.decode(vae.encode(x)[0]).detach()}
    rows |= {"attacked": x + delta, "output ": vae.decode(vae.encode(x + delta)[0]).detach()}
    image_grid(rows, scale=0.75).savefig(TARGET, dpi=90, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
