"""Draw the picture of the README, ``book/_static/readme.png``; the command behind ``make picture``.

It shows the first test images under attack, and their reconstructions by a model that ships.
"""

from __future__ import annotations

from checkout import ROOT  # first, since it puts the package on the search path

from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.page.figures import image_grid, set_style
from vaerobust.zoo import data
from vaerobust.zoo.weights import pretrained

TARGET = ROOT / "book/_static/readme.png"
NORM = 3.0
"""2-norm of the perturbations, in pixel values."""
COLUMNS = 10


def main() -> None:
    """Attack the first test images and write the picture."""
    set_style()
    vae, x = pretrained("mnist", beta=1.0).vae, data.load("mnist", "test").pixels[:COLUMNS]
    delta = maximum_damage(vae, x, NORM, AttackSettings(box=True)).delta
    rows = {"image": x, "output": vae.decode(vae.encode(x)[0]).detach()}
    # the space makes the second "output" another key
    rows |= {"attacked": x + delta, "output ": vae.decode(vae.encode(x + delta)[0]).detach()}
    image_grid(rows, scale=0.75).savefig(TARGET, dpi=90, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
