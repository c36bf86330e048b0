"""Whose steps are timed: sizes alone, so that every library can build them.

A step is one forward of a batch, the divergence from a standard normal prior, and the backward of

    loss = cross entropy + KL / NUM_DATA

(the LSTM has the mean square of its outputs in place of the cross entropy). No optimizer takes part.
"""

from __future__ import annotations

FC = (784, 512, 512, 10)
"""Widths; ReLU between layers."""
CHANNELS, KERNEL, IMAGE, WIDTH, CLASSES = (1, 32, 64), 5, 28, 512, 10
"""The paper's ConvNet: twice a 5x5 convolution (padded), ReLU, 2x2 max pooling; then WIDTH and CLASSES."""
FLAT = CHANNELS[-1] * (IMAGE // 4) ** 2
LSTM, STEPS = (128, 128), 50
"""Inputs and units of one layer, and time steps."""
NUM_DATA = 60_000

INPUT_SHAPES = {"fc": (FC[0],), "conv": (CHANNELS[0], IMAGE, IMAGE), "lstm": (STEPS, LSTM[0])}
"""Shape of an example, channels first, by network."""
NAMES = {
    "fc": f"fully connected {'-'.join(map(str, FC))}",
    "conv": f"ConvNet {KERNEL}x{KERNEL} {'/'.join(map(str, CHANNELS[1:]))}, {WIDTH}",
    "lstm": f"LSTM {'-'.join(map(str, LSTM))}, {STEPS} time steps",
}
