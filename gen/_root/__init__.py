"""maskwork: sparse-aware neural-network accelerators from one configuration."""

from maskwork.gen.config import Config, preset, presets
from maskwork.gen.errors import MaskworkError

__all__ = ["Config", "MaskworkError", "preset", "presets"]
__version__ = "0.1.0"
