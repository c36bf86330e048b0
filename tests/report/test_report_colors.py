"""Groups can be told apart, by color-blind people, too, and seen, in the light and in the dark."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest

from es_flipout.report.page import NUM_COLORS

STYLE = (files("es_flipout.report") / "parts" / "page.css").read_text()
SCHEMES = [
    dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root {(.*?)}", STYLE, re.S)
]
# Machado, Oliveira and Fernandes 2009, severity 1: what is seen of linear RGB.
SEEN = {
    "by most": np.eye(3),
    "without red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "without green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "without blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Linear sRGB to XYZ, whose second row is the luminance, and the white of D65.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(color):
    values = np.array([*bytes.fromhex(color[1:])]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """Returns CIE L*a*b*, in which a distance of 2.3 can just be seen."""
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    """Returns the ratio of WCAG 2."""
    bright, dark = sorted(((TO_XYZ[1] @ linear(color) + 0.05 for color in (one, other))), reverse=True)
    return bright / dark


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_groups_look_different(scheme, seen):
    colors = [lab(SEEN[seen] @ linear(scheme[f"group-{index}"])) for index in range(NUM_COLORS)]
    assert min(np.linalg.norm(one - other) for one, other in combinations(colors, 2)) > 30


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_contrast(scheme):
    assert min(contrast(scheme[f"group-{index}"], scheme["card"]) for index in range(NUM_COLORS)) >= 3
    for back in ("page", "card"):
        assert min(contrast(scheme[front], scheme[back]) for front in ("text", "soft", "accent")) >= 4.5
