"""Lowering of products to programs: matrix products and convolutions (implicit GEMM)."""

from __future__ import annotations

from maskwork.gen.lower_conv import conv_output_shape, lower_conv
from maskwork.gen.lower_matmul import lower_matmul
from maskwork.gen.lower_schedule import Post

__all__ = ["Post", "conv_output_shape", "lower_conv", "lower_matmul"]
