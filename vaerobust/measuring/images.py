"""Images to measure on: from arrays, tensors, .npy, .npz and .pt files, or a folder of PNGs, to rows of pixels.

Pixels are numbers in [0, 1]. Integers of 8 bits are divided by 255. Any other number outside [0, 1] is an error, whose
message says what to do. Start reading at :func:`as_rows` and :func:`load`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaerobust import checks

FORMATS = (".npy", ".npz", ".pt")
NAMES = ("images", "x", "x_test", "test", "data", "pixels")
"""Names under which a file of several arrays may hold the images."""


class Rows(NamedTuple):
    """Images as rows of pixels.

    Attributes
    ----------
    pixels : Tensor, shape (n, d_x)
        In [0, 1].
    shape : tuple of int
        Of one image; (d_x,) if the rows cannot be shown as an image.
    """

    pixels: Tensor
    shape: tuple[int, ...]


def as_rows(images: Any, shape: tuple[int, ...] | None = None) -> Rows:
    """Return images as rows of pixels.

    Parameters
    ----------
    images : Tensor, ndarray, or object with a tensor ``pixels``
        Of shape (n, ...): floating point numbers in [0, 1], or integers of 8 bits.
    shape : tuple of int, optional
        Of one image as the model takes it; that of the images if left out.

    Returns
    -------
    Rows

    Raises
    ------
    TypeError
        If they are not numbers.
    ValueError
        If there are no images, if they do not have the given shape, or if a pixel is not finite or outside [0, 1].
    """
    images = getattr(images, "pixels", images)
    if isinstance(images, Tensor) and (images.layout != torch.strided or images.is_meta):
        raise TypeError(f"images must be a dense tensor with data, but are {images.layout} on {images.device}")
    try:
        pixels = images.detach() if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    except (TypeError, ValueError) as error:
        raise TypeError(f"images must be a tensor or an array of numbers, but are {type(images).__name__}") from error
    if pixels.ndim < 2 or pixels.numel() == 0:
        raise ValueError(f"images must have shape (n, ...) with n >= 1, but have {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    if not pixels.is_floating_point():
        raise TypeError(
            f"images must be floating point numbers in [0, 1] or whole numbers of 8 bits, but are {pixels.dtype}: "
            "divide them by their largest possible value"
        )
    require_pixels(pixels)
    own = tuple(pixels.shape[1:])
    shape = None if shape is None else shape_of_image(shape)
    if shape is not None and not fits(own, shape):
        turned = len(own) == 3 and own == (*shape[1:], shape[0])
        raise ValueError(
            f"images must have the model's shape {tuple(shape)}, but each has {own}"
            + (": put the channels first by images.permute(0, 3, 1, 2)" if turned else "")
        )
    rows = pixels.reshape(len(pixels), -1).contiguous()
    return Rows(rows, tuple(shape) if shape is not None and len(shape) > 1 else pictured(own))


def shape_of_image(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one image if it is one.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    if not isinstance(shape, tuple | list | torch.Size):
        raise TypeError(f"shape must be that of one image, such as (1, 28, 28), but is {type(shape).__name__}")
    if not shape:
        raise ValueError("shape must be the shape of one image, such as (1, 28, 28), but is empty")
    return tuple(checks.count("shape", size) for size in shape)


def fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether images fit a model's shape.

    They have the same number of pixels, and either one of the two shapes is flat, or the shapes differ only in
    dimensions of size 1.
    """
    flat = len(own) == 1 or len(shape) == 1
    same = [size for size in own if size > 1] == [size for size in shape if size > 1]
    return math.prod(own) == math.prod(shape) and (flat or same)


def require_pixels(pixels: Tensor) -> None:
    """Refuse what is not in [0, 1], and say what to do about it.

    Raises
    ------
    ValueError
        If a pixel is not finite or lies outside [0, 1].
    """
    if not torch.isfinite(pixels).all():
        raise ValueError(f"images must be finite, but hold {int((~torch.isfinite(pixels)).sum())} NaN or infinite")
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return
    if low >= 0 and high <= 255:
        remedy = "divide them by 255"
    elif low >= -1 and high <= 1:
        remedy = (
            "pass (images + 1) / 2, and wrap the model by "
            'vaerobust.wrap(model, shape=..., normalise=(0.5, 0.5), outputs="normalised" or "pixels")'
        )
    else:
        remedy = (
            "pass them before they are normalised, and wrap the model by "
            "vaerobust.wrap(model, shape=..., normalise=(mean, std), outputs=...)"
        )
    raise ValueError(f"images must hold pixels in [0, 1], but range over [{low:.4g}, {high:.4g}]: {remedy}")


def pictured(own: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which an image is shown. A row whose length is a square number is shown as a square image."""
    if len(own) > 1:
        return own
    side = math.isqrt(own[0])
    return (1, side, side) if side > 1 and side * side == own[0] else own


def load(path: str | Path) -> Tensor:
    """Read images from a file or a folder.

    Parameters
    ----------
    path : path
        A .npy file; a .npz file with one array, or one under a usual name such as ``images``; a .pt file with a tensor,
        or a dictionary of tensors like a .npz; or a folder of PNGs of one size, read in the order of their names.

    Returns
    -------
    Tensor, shape (n, ...)
        As it is in the file; PNGs have shape (n, channels, height, width) and 8 bits.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    TypeError
        If it is not a path.
    ValueError
        If no images can be read from it.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be the path of images, but is {type(path).__name__}")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"images must be a file or a folder, but there is no {path}")
    if path.is_dir():
        return pngs(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"images must be a folder of PNGs or a file {', '.join(FORMATS)}, but are {path.name}")
    content = content_of(path)
    if isinstance(content, dict):
        content = one_of_several(path, content)
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        return torch.from_numpy(content)
    if not isinstance(content, Tensor):
        kind = content.dtype if isinstance(content, np.ndarray) else type(content).__name__
        raise ValueError(f"images must be an array or a tensor of numbers, but {path.name} holds {kind}")
    return content


def content_of(path: Path) -> Any:
    """Return what a file holds, without running any code from it."""
    try:
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True)
        content = np.load(path, allow_pickle=False)
        return dict(content) if path.suffix == ".npz" else content
    except Exception as error:  # a damaged file makes NumPy and torch raise almost anything
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    """Return the error of a file that cannot be read."""
    reason = (str(error).splitlines() or [""])[0]
    return ValueError(f"images in {path} cannot be read ({type(error).__name__}: {reason})")


def one_of_several(path: Path, arrays: dict[str, Any]) -> Any:
    """Return the only array of a file, or the one under a usual name.

    Raises
    ------
    ValueError
        If several arrays may hold the images, or none has a usual name; the message lists the names.
    """
    names = list(arrays) if len(arrays) == 1 else [name for name in NAMES if name in arrays]
    if len(names) != 1:
        raise ValueError(
            f"images must be the only array of {path.name} or be named images, but it has: "
            + ", ".join(map(str, arrays))
        )
    return arrays[names[0]]


def pngs(folder: Path) -> Tensor:
    """Read the PNGs of a folder, shape (n, channels, height, width), with 8 bits."""
    from PIL import Image, UnidentifiedImageError  # Matplotlib requires Pillow

    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise ValueError(f"images must be PNGs, but {folder} holds none")
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                grey = picture.mode in ("1", "L", "LA")
                if picture.mode.startswith("I"):
                    raise ValueError(f"images must have 8 bits per channel, but {path.name} has 16")
                pictures.append(np.asarray(picture.convert("L" if grey else "RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise unreadable(path, error) from error
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(
                f"images must have one size, but {path.name} has {pictures[-1].shape} and {paths[0].name} "
                f"{pictures[0].shape}"
            )
    stacked = torch.from_numpy(np.stack(pictures))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()
