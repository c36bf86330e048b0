"""The image classifiers of the flipout paper (arXiv 1803.04386, sections 4.1, 4.3 and 5), in any size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn


def fully_connected(pixels: int, hidden: Sequence[int] = (512, 512), classes: int = 10) -> nn.Sequential:
    """Returns linear layers with ReLU between them; the paper's network is 784-512-512-10.

    Args:
        pixels: H * W of the images [B, 1, H, W].
        hidden: widths of the hidden layers.
        classes: outputs, logits [B, classes].
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise([pixels, *hidden]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([pixels, *hidden][-1], classes))


def convnet(
    side: int, channels: Sequence[int] = (32, 64), hidden: int = 512, classes: int = 10
) -> nn.Sequential:
    """Returns 5x5 convolutions, each with ReLU and 2x2 max-pooling, and a fully connected hidden layer.

    The paper's has sizes 32, 64 and 512. Convolutions are padded, so that two of them work on 8x8 pixels.

    Args:
        side: height and width of the images [B, 1, side, side].
        channels: outputs of each convolution.
        hidden: width of the fully connected layer.
        classes: outputs, logits [B, classes].
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise([1, *channels]):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    features = [1, *channels][-1] * (side // 2 ** len(channels)) ** 2
    return nn.Sequential(
        *layers, *(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU()), nn.Linear(hidden, classes)
    )
