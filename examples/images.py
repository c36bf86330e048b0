"""Small image data sets: MNIST from its IDX files, or the 8x8 digits that come with scikit-learn."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08
NUM_CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Labeled images, split into a training and a held-out set.

    Attributes:
        name: name of the data set.
        x: training images, float32 [N, 1, side, side], with mean 0 and standard deviation 1 over all pixels.
        y: training labels, int64 [N].
        held_out_x: held-out images, scaled like `x`.
        held_out_y: held-out labels, int64 [M].
    """

    name: str
    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes; it is gzipped if its name ends in .gz.

    The format (http://yann.lecun.com/exdb/mnist/): two zero bytes, the type (8 for unsigned bytes), the
    number of dimensions, each of them as a big-endian 32-bit integer, and the values, the last dimension
    fastest.

    Raises:
        ValueError: if the file does not have this format or its length does not match its header.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, UNSIGNED_BYTE]) or not data[3]:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {data[:4].hex(' ') or 'nothing'}, "
            "not with 00 00 08 and the number of dimensions"
        )
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError(f"{path} is cut short: {len(data)} bytes, and the header alone has {header}")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).tolist()
    if len(data) != header + math.prod(shape):
        raise ValueError(
            f"{path} should have {header + math.prod(shape)} bytes for values of shape {shape}, "
            f"but has {len(data)}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads MNIST, or any data set in its format, from its four files, plain or gzipped.

    Returns:
        Training images [N, H, W] and labels [N], held-out images [M, H, W] and labels [M], all uint8.

    Raises:
        ValueError: if a file is missing or malformed.
    """

    def read(name: str, ndim: int) -> np.ndarray:
        paths = [folder / f"{name}-idx{ndim}-ubyte{suffix}" for suffix in ("", ".gz")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ValueError(f"{folder} has neither {paths[0].name} nor {paths[1].name}")
        values = read_idx(path)
        if values.ndim != ndim:
            raise ValueError(f"{path} should have {ndim} dimensions, but has {values.ndim}")
        return values

    parts = [(read(f"{part}-images", 3), read(f"{part}-labels", 1)) for part in ("train", "t10k")]
    for images, labels in parts:
        if len(images) != len(labels) or not len(images):
            raise ValueError(f"{folder} has {len(labels)} labels for {len(images)} images")
    return *parts[0], *parts[1]


def load_mnist(folder: Path) -> Images:
    """Loads MNIST, or any data set in its format, from its four files, plain or gzipped.

    Raises:
        ValueError: if a file is missing or malformed.
    """
    return _images("MNIST", *read_mnist(folder))


def load_digits() -> Images:
    """Loads scikit-learn's 1,797 digits of 8x8 pixels and holds out every fifth."""
    from sklearn.datasets import load_digits as load

    digits = load()
    held_out = np.arange(len(digits.target)) % 5 == 4
    return _images(
        "scikit-learn digits",
        *(digits.images[~held_out], digits.target[~held_out]),
        *(digits.images[held_out], digits.target[held_out]),
    )


def _images(
    name: str, x: np.ndarray, y: np.ndarray, held_out_x: np.ndarray, held_out_y: np.ndarray
) -> Images:
    mean, deviation = x.mean(), x.std()

    def scaled(images: np.ndarray) -> Tensor:
        return torch.from_numpy((images - mean) / max(deviation, 1e-6)).float().unsqueeze(1)

    def labels(values: np.ndarray) -> Tensor:
        if values.max() >= NUM_CLASSES:
            raise ValueError(f"labels must be 0 .. {NUM_CLASSES - 1}, found {values.max()}")
        return torch.from_numpy(values.astype(np.int64))

    return Images(name, scaled(x), labels(y), scaled(held_out_x), labels(held_out_y))
