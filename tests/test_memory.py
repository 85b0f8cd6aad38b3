"""Memory grows neither with the number of points nor with that of samples, beyond arguments and results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHILD = """
import resource, sys
from pathlib import Path
import torch
from vaerobust.attacks import AttackSettings, maximum_damage
from vaerobust.certify.certificates import certified_r, certify
from vaerobust.certify.failures import failures
from vaerobust.distance import distances, distances_in_random_directions
from vaerobust.jacobians import jacobian_norms
from vaerobust.model import VAE
from vaerobust.random_direction import RandomSearch, random_direction_radius

def peak():
    try:  # of this program alone; getrusage also counts the program that started it
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)

torch.manual_seed(0)
vae = VAE(784, 16, 4)  # as wide as an image, and otherwise small, to be fast
small = VAE(8, 4, 2)
images = torch.rand(20_000, 784)
calls = {
    "distances": (2, 200_000, lambda x, samples: distances(vae, x, samples=samples)),
    "failures": (2, 200_000, lambda x, samples: failures(vae, x, [0.5], samples=samples)),
    "certify": (2_000, 100, lambda x, samples: certify(vae, x, failures(vae, x, [0.5], samples=samples)[0], refine=0)),
    "certified_r": (400, 50_000, lambda x, samples: certified_r(small, x[:, :8], [0.0], samples=samples, refine=0)),
    "jacobian_norms": (20_000, 1, lambda x, samples: jacobian_norms(vae, x)),
    "distances_in_random_directions": (
        1, 200_000, lambda x, samples: distances_in_random_directions(vae, x, 1.0, samples=samples),
    ),
    "random_direction_radius": (
        1, 200_000,
        lambda x, samples: random_direction_radius(vae, x, 0.5, RandomSearch(samples=samples, grid=2, tolerance=5.0)),
    ),
    "maximum_damage": (
        4_000, 50,
        lambda x, samples: maximum_damage(
            vae, x, 1.0, AttackSettings(steps=1, restarts=1, samples=1, choosing_samples=samples)
        ),
    ),
}
for _, _, call in calls.values():
    call(images[:2], 8)
before = peak()
for name, (n, samples, call) in calls.items():
    call(images[:n], samples)
    print(name, peak() - before)
"""
ALLOWED = 500
"""MB beyond what was in use before: a block of 16,384 images is 50 MB, and several exist at a time."""


def test_peak_memory_depends_neither_on_points_nor_on_samples():
    """Each call computes 20,000 Jacobians, or at least 200,000 reconstructions: 600 MB if all were held at once."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = {name: float(megabytes) for name, megabytes in map(str.split, done.stdout.splitlines())}
    assert len(grown) == 8
    assert max(grown.values()) < ALLOWED, grown  # the peak so far, after each call
