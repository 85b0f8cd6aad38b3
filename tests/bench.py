"""Time named alternatives side by side, in one process, and print their ratios: ``make bench``."""

from __future__ import annotations

import pandas as pd
import torch

from vaerobust.study import benchmarks
from vaerobust.zoo.training import processor

if __name__ == "__main__":
    # Adam's second moments of dead units sink into denormal numbers, which some processors handle 100 times slower
    torch.set_flush_denormal(True)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    walks = [benchmarks.random_directions(target) for target in (0.03, 0.01)]
    margins = benchmarks.attacks()
    timed = [*(walk.timed for walk in walks), benchmarks.jacobians(), *margins.timed, *benchmarks.training()]
    table = pd.DataFrame([one._asdict() | {"ratio": one.ratio} for one in timed])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for walk in walks:
        print(
            f"Algorithm 2, target {walk.target:.1%}: error {walk.error:.2%} from {walk.drawn:,.0f} draws of ours, "
            f"{walk.other_error:.2%} from {walk.other_drawn:,.0f} of the printed one"
        )
    print(f"attack margins of ours over those of L-BFGS-B: {(margins.ours / margins.other).tolist()}")
    print(f"certificates of 100 points, 100,000 samples each: {benchmarks.certificates():.0f} s, scaled from 4 points")
