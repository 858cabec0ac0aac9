"""Dropout whose masks follow from a seed and a position, on every backend alike."""

import math

import keras
import numpy as np
from keras import ops

# === Dropout ===
# A mask bit is a hash of the element's index and of a key. Against the usual generators this costs
# a few integer operations that XLA fuses into the multiplication (it draws philox numbers 15 to 20
# times slower than TensorFlow's kernel on CPU), and gives the same masks on every backend, compiled
# or not. It also makes recomputation safe: the key is an argument, not a state.


def _uint32(value):
    return ops.convert_to_tensor(np.uint32(value), dtype="uint32")


def _wrap(x):
    """Keep the low 32 bits on torch, where Keras holds uint32 in int64."""
    if keras.backend.backend() == "torch":
        return ops.bitwise_and(x, 0xFFFFFFFF)
    return x


def _xor_shift(x, bits):
    return ops.bitwise_xor(x, ops.right_shift(x, _uint32(bits)))


def hash_uint32(x, key):
    """Hash integers under a key of two words.

    The rounds are those of triple32 (C. Wellons, hash-prospector), whose output bits each depend on
    every input bit nearly evenly. The second word enters between the rounds: with the first alone
    masks of two keys would be reorderings of one another.

    Args:
        x: uint32 tensor.
        key: uint32 [2].

    Returns:
        uint32 tensor of the shape of x.
    """
    x = ops.bitwise_xor(x, key[0])
    x = _wrap(_xor_shift(x, 17) * _uint32(0xED5AD4BB))
    x = ops.bitwise_xor(x, key[1])
    x = _wrap(_xor_shift(x, 11) * _uint32(0xAC4C1B51))
    x = _wrap(_xor_shift(x, 15) * _uint32(0x31848BAB))
    return _xor_shift(x, 14)


def dropout_keys(seed, count):
    """Derive independent keys for the dropouts of one forward pass.

    Args:
        seed: integer [2] with values below 2**32, as `keras.random.SeedGenerator.next` gives.
        count: the number of keys.

    Returns:
        uint32 [count, 2].
    """
    seed = ops.cast(seed, "uint32")
    # Scramble the seed first: its words are small numbers, as the indices below are, and would
    # give the same keys in another order for neighbouring seeds.
    second = hash_uint32(seed[1], ops.stack([seed[0], _uint32(0x9E3779B9)]))
    first = hash_uint32(seed[0], ops.stack([second, _uint32(0x85EBCA6B)]))
    indices = ops.convert_to_tensor(np.arange(2 * count, dtype=np.uint32), dtype="uint32")
    return ops.reshape(hash_uint32(indices, ops.stack([first, second])), (count, 2))


def dropout(x, rate, key):
    """Set a fraction of elements to 0 and scale the others up to keep the mean.

    Args:
        x: float tensor of fewer than 2**32 elements.
        rate: Python float, the probability to drop an element.
        key: uint32 [2], from `dropout_keys`; None for no dropout, as in evaluation.

    Returns:
        Tensor like x.
    """
    if key is None or rate == 0.0:
        return x
    shape = ops.shape(x)
    index = ops.cast(ops.arange(math.prod(shape), dtype="int32"), "uint32")
    bits = ops.reshape(hash_uint32(index, key), shape)
    kept = ops.cast(bits >= _uint32(round(rate * 2**32)), x.dtype)
    return x * (kept * ops.cast(1.0 / (1.0 - rate), x.dtype))
