"""maskwork: sparse-aware neural-network accelerators from one configuration."""

from maskwork.gen.api import Result, bench, compile, generate, matmul, open, quantise, run
from maskwork.gen.config import Config, preset, presets
from maskwork.gen.errors import (
    BoardError,
    ConfigError,
    DeviceError,
    MaskworkError,
    MaskworkTypeError,
    MaskworkValueError,
    ProgramError,
)
from maskwork.gen.mask import Mask
from maskwork.gen.train import step as train

__all__ = [
    "BoardError",
    "Config",
    "ConfigError",
    "DeviceError",
    "Mask",
    "MaskworkError",
    "MaskworkTypeError",
    "MaskworkValueError",
    "ProgramError",
    "Result",
    "bench",
    "compile",
    "generate",
    "matmul",
    "open",
    "preset",
    "presets",
    "quantise",
    "run",
    "train",
]
__version__ = "0.1.0"
