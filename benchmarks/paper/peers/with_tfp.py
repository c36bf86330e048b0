"""TensorFlow Probability: DenseFlipout and Convolution2DFlipout, in a tf.function; it has no LSTM layer.

Biases are not random, as is its default. `XLA = True` compiles the function with XLA, too (`with_tfp_xla`).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

from benchmarks.paper.peers import networks
from benchmarks.paper.peers.check import SIGMA, Array, Forward

PACKAGES = ["tensorflow-probability", "tensorflow", "tf_keras"]
Dense, Conv = tfp.layers.DenseFlipout, tfp.layers.Convolution2DFlipout
RHO = math.log(math.expm1(SIGMA))
"""Standard deviation is softplus(rho)."""
warnings.filterwarnings("ignore", category=UserWarning)  # of its own use of tf_keras


def set_threads(count: int) -> None:
    """Lets an operation use so many threads, and runs one operation after the other."""
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def set_seed(seed: int) -> None:
    """Seeds TensorFlow's default generator."""
    tf.random.set_seed(seed)


def step(network: str, batch: int, xla: bool = False):
    """Returns a step of a network.

    Raises:
        KeyError: if TFP has no such layer.
    """
    model = tf_keras.Sequential(_layers(network))
    shape = networks.INPUT_SHAPES[network]
    shape = shape if network == "fc" else (*shape[1:], shape[0])  # channels last
    x = tf.random.normal((batch, *shape))
    labels = tf.random.uniform((batch,), maxval=networks.CLASSES, dtype=tf.int32)
    model(x)

    @tf.function(jit_compile=xla)
    def run(x, labels):
        with tf.GradientTape() as tape:
            logits = model(x)
            error = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(error) + tf.add_n(model.losses) / networks.NUM_DATA
        return tape.gradient(loss, model.trainable_variables)

    return lambda: [each.numpy() for each in run(x, labels)[-1:]]  # waits for the gradient


def _layers(network: str) -> list[tf_keras.layers.Layer]:
    dense = [Dense(networks.WIDTH, activation="relu"), Dense(networks.CLASSES)]
    if network == "fc":
        return [Dense(networks.FC[1], activation="relu"), *dense]
    if network == "conv":
        kind = {"kernel_size": networks.KERNEL, "padding": "same", "activation": "relu"}
        layers: list[tf_keras.layers.Layer] = []
        for channels in networks.CHANNELS[1:]:
            layers += [Conv(channels, **kind), tf_keras.layers.MaxPool2D(2)]
        return [*layers, tf_keras.layers.Flatten(), *dense]
    raise KeyError(f"TensorFlow Probability has no layer for {network!r}")


def _with_weights(layer: tf_keras.layers.Layer, inputs: tuple[int, ...], mean: Array) -> None:
    layer.build((None, *inputs))
    location, rho = layer.trainable_variables
    location.assign(mean)
    rho.assign(np.full_like(mean, RHO))


def _linear(weight: Array) -> tf_keras.layers.Layer:
    layer = Dense(weight.shape[0], bias_posterior_fn=None, dtype="float64")
    _with_weights(layer, (weight.shape[1],), weight.T)
    return layer


def linear(weight: Array) -> Forward:
    """Returns a fully connected layer, called with all positions at once."""
    run = tf.function(_linear(weight))
    return lambda x: run(tf.constant(x)).numpy()


def reused(weight: Array) -> Forward:
    """Returns the same layer, called once per position."""
    layer = _linear(weight)
    run = tf.function(lambda x: tf.stack([layer(row) for row in tf.unstack(x, axis=1)], axis=1))
    return lambda x: run(tf.constant(x)).numpy()


def conv(weight: Array) -> Forward:
    """Returns a convolution; images and outputs are transposed to channels last and back."""
    outputs, inputs, size, _ = weight.shape
    layer = Conv(outputs, size, bias_posterior_fn=None, dtype="float64")
    _with_weights(layer, (None, None, inputs), weight.transpose(2, 3, 1, 0))
    run = tf.function(layer)
    return lambda x: run(tf.constant(x.transpose(0, 2, 3, 1))).numpy().transpose(0, 3, 1, 2)


LAYERS = {"linear": linear, "reused": reused, "conv": conv}
