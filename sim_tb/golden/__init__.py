"""Golden model: what the hardware computes, written from the mathematics in NumPy and bit-exact.

:func:`masked_matmul` and :func:`conv2d` are the arithmetic, :func:`requantise` the post-processing (:func:`noise` its
random numbers), and :class:`Interpreter` executes the words of the command stream and answers the words of the reply
stream.
"""

from maskwork.sim_tb.golden import masks
from maskwork.sim_tb.golden.gradients import conv2d_pass
from maskwork.sim_tb.golden.interpreter import Interpreter
from maskwork.sim_tb.golden.noise import noise
from maskwork.sim_tb.golden.product import conv2d, conv2d_macs, macs, masked_matmul
from maskwork.sim_tb.golden.requantise import requantise
from maskwork.sim_tb.golden.vector import vector

__all__ = [
    "Interpreter",
    "conv2d",
    "conv2d_macs",
    "conv2d_pass",
    "macs",
    "masked_matmul",
    "masks",
    "noise",
    "requantise",
    "vector",
]
