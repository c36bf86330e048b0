"""The named choices and the defaults that constructors and configurations share.

They stand apart from what they are about, so that a configuration can be read, checked and explained without
torch: --help and a mistake answer at once.
"""

from __future__ import annotations

from typing import Final, Literal

EngineName = Literal["auto", "batch", "mjdata_pool", "warp", "gymnasium", "gymnasium_processes"]
"""What steps environments; see `make_vec`."""

Activation = Literal["tanh", "relu", "elu", "silu"]
"""Nonlinearity of a policy's layers."""
Initialization = Literal["orthogonal", "normc"]
"""Initial weights of a policy; see `policies.initialization`."""
ActionBounds = Literal["rescale", "clip"]
"""How outputs of a policy become actions of a Box; see `policies.heads.BoxActions`."""
HIDDEN_SIZES: Final = (64, 64)
"""Widths of the fully connected hidden layers."""
RECURRENT_SIZE: Final = 64
"""Width of a recurrent cell."""
CONV_LAYERS: Final = ((16, 3, 2, 1), (32, 3, 2, 1), (32, 3, 2, 1))
"""Channels, kernel, stride and padding of each convolution; these halve height and width three times and
accept images of any size."""
ACTIVATION: Final = "tanh"
INITIALIZATION: Final = "orthogonal"
ACTION_BOUNDS: Final = "rescale"
NORMALIZE_OBSERVATIONS: Final = True
"""Whether vector observations are standardized."""
OBSERVATION_CLIP: Final = 10.0
"""Bound on each standardized observation, in standard deviations."""

BaseDistribution = Literal["rademacher", "gaussian"]
"""Distribution of the entries of flipout's base matrices; see `Flipout`."""
BASE: Final = "rademacher"
NUM_BASES: Final = 1
"""Base matrices of flipout per weight."""
RANK: Final = 1
"""Rank of low-rank noise."""

SigmaRule = Literal["pgpe", "snes"]
"""How the standard deviation of each weight's noise follows the fitness; see `sigma_adaptation`."""
PGPE_SIGMA_LR: Final = 0.1
"""Learning rate of PGPE's rule."""
MAX_SIGMA_CHANGE: Final = 0.2
"""Bound on the relative change of a weight's sigma per generation."""

FitnessShaping = Literal["centered_ranks", "standardized", "nes", "raw"]
"""How fitness becomes utilities; see `fitness`."""
FITNESS_SHAPING: Final = "centered_ranks"
ELITE_FRACTION: Final = 1.0
"""Share of the directions whose members move the policy."""
OPTIMIZER: Final = "Adam"
"""Name of the optimizer."""
LEARNING_RATE: Final = 0.01

ResetSeeds = Literal["fresh", "common", "fixed"]
"""Which episodes start from the same states; see `reset_seeds`."""
BLOCK_SIZE: Final = 4
"""Episodes per block of a table; see `Episodes`."""

ExportFormat = Literal["onnx", "torch"]
"""Format of an exported policy: ONNX, or a program of torch.export."""
EXPORT_SUFFIXES: Final[dict[ExportFormat, str]] = {"onnx": ".onnx", "torch": ".pt2"}
"""How the names of exported files end."""

FILM_SUFFIXES: Final = (".mp4", ".gif")
"""How the names of films end."""
MOST_FILM_FRAMES: Final = 10_000
"""Where a film ends, unless its length is chosen: an episode may have no end."""
