"""Constants of the random numbers of stochastic rounding (docs/numerics.md): hardware and golden model share them."""

NOISE_KEY = 0x9E37
"""Constant of the rounds that make a row's state."""

NOISE_STEPS = ((8, 20), (9, 8), (13, 5), (11, 3), (15, 1), (10, 1), (14, 1), (8, 1))
"""For each bit of a column that is 1: the shift and the rotation that a row's state takes."""
