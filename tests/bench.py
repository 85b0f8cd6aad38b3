"""Time named alternatives side by side, in one process, and print their ratios: ``make bench``."""

from __future__ import annotations

import torch

from vaerobust.study import benchmarks, timing
from vaerobust.study.equal_error import compare_random_directions
from vaerobust.zoo.machine import processor

if __name__ == "__main__":
    # Adam's second moments of dead units become denormal numbers, which some processors handle 100 times slower.
    torch.set_flush_denormal(True)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    walks = [compare_random_directions(target) for target in (0.03, 0.01)]
    attacks = benchmarks.compare_attacks()
    comparisons = [
        *(walk.timed for walk in walks), benchmarks.compare_jacobians(), attacks.by_bisection, attacks.on_grid,
        *benchmarks.compare_training(),
    ]  # fmt: skip
    print(timing.as_table(comparisons).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for walk in walks:
        print(
            f"Algorithm 2, target {walk.target:.1%}: error {walk.error:.2%} from {walk.drawn:,.0f} draws of ours, "
            f"{walk.other_error:.2%} from {walk.other_drawn:,.0f} of the printed one"
        )
    print(f"attack margins of ours over those of L-BFGS-B: {(attacks.ours / attacks.other).tolist()}")
    seconds = benchmarks.certificate_seconds()
    print(f"certificates of 100 points, 100,000 samples each: {seconds:.0f} s, scaled from 4 points")
