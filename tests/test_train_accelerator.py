"""The device that a framework's layers share: what it refuses, and how it rounds."""

import numpy as np
import pytest
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.train.accelerator import Accelerator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "gpu"}, r"unknown target 'gpu'; targets: golden, cycle, rtl"),
        ({"bits": 4}, r"bits must be 8 or 16, not 4"),
        ({"bits": 16, "config": "small"}, r"needs a_width and b_width of 16 or more"),
        ({"seed": -1}, r"a seed must be an integer of 0 or more, not -1"),
        ({"rounding": "up"}, r"rounding must be nearest or stochastic, or one for each of input, weight, output_grad"),
        ({"rounding": {"bias": "nearest"}}, r"rounding must be nearest or stochastic"),
        ({"config": "huge"}, r"unknown preset 'huge'"),
        ({"simulator": "icarus"}, r"option simulator needs target 'rtl'"),
    ],
)
def test_accelerator_refuses(arguments, message):
    with pytest.raises(MaskworkError, match=message):
        Accelerator(**arguments)


def test_quantised_to_the_least_power_of_two():
    assert Accelerator(bits=16).config.a_width == 16
    accelerator = Accelerator(bits=8)
    for top, exponent in ((127, 0), (128, 1), (254, 1), (1, -6), (0.9, -7), (0, 0), (127 * 2.0**-900, -900)):
        found = accelerator.quantise(np.array([top, -top, 0.0]), "input", "x")
        assert found.exponent == exponent
        assert np.abs(np.ldexp(found.values.astype(float), exponent) - [top, -top, 0]).max() <= 2.0**exponent
    for bad in (np.nan, np.inf):
        with pytest.raises(MaskworkValueError, match="x: weight must be finite"):
            accelerator.quantise(np.array([bad]), "weight", "x")
    noisy = Accelerator(rounding={"output_grad": "stochastic"})
    values = np.array([127.0] + [0.25] * 4000 + [0.0] * 100)
    assert not noisy.quantise(values, "weight", "x").values[1:].any()
    drawn = noisy.quantise(values, "output_grad", "x").values
    assert set(drawn[1:4001]) == {0, 1} and abs(drawn[1:4001].mean() - 0.25) < 0.03 and not drawn[4001:].any()
