"""Defaults of the package's policies, for their constructors and for the configuration alike."""

from __future__ import annotations

from typing import Final

HIDDEN_SIZES: Final = (64, 64)
"""Widths of the fully connected hidden layers."""
RECURRENT_SIZE: Final = 64
"""Width of a recurrent cell."""
CONV_LAYERS: Final = ((16, 3, 2, 1), (32, 3, 2, 1), (32, 3, 2, 1))
"""Channels, kernel, stride and padding of each convolution; these halve height and width three times and
accept images of any size."""
ACTIVATION: Final = "tanh"
"""Nonlinearity after each hidden layer and each convolution."""
INITIALIZATION: Final = "orthogonal"
"""Initial weights."""
ACTION_BOUNDS: Final = "rescale"
"""How outputs become actions of a Box."""
NORMALIZE_OBSERVATIONS: Final = True
"""Whether vector observations are standardized; the bound on them is `normalization.OBSERVATION_CLIP`."""
