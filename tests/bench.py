"""Time named alternatives side by side and print their ratios, then how measurements scale: ``make bench``.

``make bench DEVICE=cuda`` times everything of the performance table on a GPU, and nothing else.
"""

from __future__ import annotations

import argparse

import torch

from vaerobust.study import benchmarks, scaling, timing
from vaerobust.study.equal_error import compare_random_directions
from vaerobust.zoo.machine import processor


def print_scaling() -> None:
    """Print the strong scaling over one and two workers, and the overhead of a shard."""
    found, extra = scaling.strong_scaling(), scaling.overhead()
    for workers, seconds, core, ratio in zip(
        found.workers, found.seconds, found.core_seconds, found.speed_up, strict=True
    ):
        print(f"{workers} workers: {seconds:.1f} s, {core:.1f} core-seconds, speed-up {ratio:.2f}")
    print(
        f"overhead per shard: {1000 * extra.here:.1f} ms here, {1000 * extra.cluster:.1f} ms on a worker, "
        f"files of {extra.size:,} bytes"
    )


def print_performance(device: str) -> None:
    """Print the performance table; on a processor, what would take minutes is scaled."""
    slow = device == "cpu"
    table = scaling.performance(device, most=100_000 if slow else 10_000_000, batches=20 if slow else None)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def print_alternatives() -> None:
    """Print the times of alternatives."""
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is a GPU")
    device = parser.parse_args().device
    if device == "cpu":
        print_alternatives()
        print_scaling()
    print_performance(device)
