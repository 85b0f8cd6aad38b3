"""Sealed files: tensors and a record in one safetensors file, whose header holds a digest of both.

Checkpoints of a training run and the shards of a measurement are such files. A file in which a byte was changed is
found by its digest and never read as something else. Start at :func:`seal`.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vaerobust.zoo.files import digest

BROKEN = (SafetensorError, ValueError, KeyError, TypeError)
"""What :func:`unseal` raises where the content is not what was sealed."""


def seal(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    """Return tensors and a record as the bytes of one file, with their digest inside.

    Parameters
    ----------
    tensors : dict of Tensor
        Contiguous and on the CPU, or on one device.
    record : dict
        What ``json.dumps`` takes.
    """
    header = {"record": json.dumps(record)}
    return save(tensors, header | {"sha256": digest(save(tensors, header))})


def unseal(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of a sealed file.

    Raises
    ------
    SafetensorError, ValueError, KeyError, TypeError
        If the content is not what :func:`seal` returned.
    """
    tensors = load(content)
    # A safetensors file begins with the length of its header, in 8 bytes.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if digest(save(tensors, {"record": header["record"]})) != header["sha256"]:
        raise ValueError("its content is not what was written")
    return tensors, json.loads(header["record"])
