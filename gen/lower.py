"""Lowering of products to programs: matrix products, convolutions (implicit GEMM) and their weight gradients; and of
pooling and addition, gathered to windows; and of masks, norms and projections.
"""

from __future__ import annotations

from maskwork.gen.lower_conv import conv_output_shape, lower_conv
from maskwork.gen.lower_mask import lower_mask
from maskwork.gen.lower_matmul import lower_matmul
from maskwork.gen.lower_post import Post
from maskwork.gen.lower_vector import lower_vector
from maskwork.gen.lower_wgrad import by_channel, exchanged_pads, lower_weight_grad

__all__ = [
    "Post",
    "by_channel",
    "conv_output_shape",
    "exchanged_pads",
    "lower_conv",
    "lower_mask",
    "lower_matmul",
    "lower_vector",
    "lower_weight_grad",
]
