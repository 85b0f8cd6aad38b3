"""On what machine, and with which versions, something was trained or measured."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True)
class Hardware:
    """What a computation ran on.

    Attributes
    ----------
    processor : str
        Name of the processor.
    threads : int
        Threads that torch was allowed to use.
    device : str
        Torch's name of the device, 'cpu' or 'cuda'.
    """

    processor: str
    threads: int
    device: str = "cpu"


def hardware(device: str = "cpu") -> Hardware:
    """Return the processor and the number of threads in use, for computations on ``device``."""
    return Hardware(processor(), torch.get_num_threads(), device)


def processor() -> str:
    """Return the name of the processor, or its architecture where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the named packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
