"""What the workers of the tests of faults compute: numbers, and on request a fault. In a module that they import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from vaerobust.cluster.shards import Content


def numbers(folder: str, start: int, stop: int, fault: str = "") -> Content:
    """Return a tensor that depends on the range alone; with a fault, first let it happen, some only once."""
    if fault:
        mark = Path(folder) / f"{fault}-{start}"
        first = not mark.exists()
        mark.touch()
        if fault == "raise":
            raise ZeroDivisionError(f"images {start} to {stop}")
        if fault == "kill" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "memory":
            held = []
            while True:
                held.append(torch.ones(2**21))  # 8 MB, until the nanny ends this worker
                time.sleep(0.005)
        if fault == "slow":
            time.sleep(1.0)
    noise = torch.randn(stop - start, 3, generator=torch.Generator().manual_seed(7)) + start
    return Content({"values": noise}, {"start": start})


def wait(note: str) -> None:
    """Write the number of this process, and go on for minutes."""
    Path(note).write_text(str(os.getpid()))
    time.sleep(300)
