"""TensorFlow Probability once more, its tf.function compiled with XLA."""

from __future__ import annotations

from functools import partial

from benchmarks.paper.peers import with_tfp
from benchmarks.paper.peers.with_tfp import LAYERS, PACKAGES, set_seed, set_threads

__all__ = ["LAYERS", "PACKAGES", "set_seed", "set_threads", "step"]
step = partial(with_tfp.step, xla=True)
