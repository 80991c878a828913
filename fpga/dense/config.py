"""Configuration of the dense array."""

from __future__ import annotations

from dataclasses import dataclass

from maskwork.gen.errors import ConfigError

LATE = 2
"""Cycles that the last bits of a weight are taken after the first (:mod:`maskwork.fpga.dense.product`): so long the
next weights wait."""

BLOCK = 256
"""Rows of the result whose sums are kept at a time; their memories hold two such blocks."""

DEPTH = 2048
"""Words of the activation memory of each row and of the weight memory of each column: one block RAM of nine bits."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A weight-stationary array of ``rows`` x ``columns`` PEs, one product a cycle each.

    Attributes:
        rows: PEs of a column, whose products are summed: K of a tile; from 2.
        columns: N of a tile.
        dsps: PEs with a DSP block, spread evenly; the others have a multiplier of LUTs. None: all.
        width: bits of the signed operands; a multiple of 3, at most 18.
        acc_width: bits of the sums over K tiles.

    Raises:
        ConfigError: naming the field.
    """

    rows: int
    columns: int
    dsps: int | None = None
    width: int = 9
    acc_width: int = 32

    def __post_init__(self) -> None:
        for name, least, most in (("rows", 2, 128), ("columns", 1, 128), ("acc_width", 2 * self.width, 64)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} must be an integer from {least} to {most}, not {value!r}")
        if type(self.width) is not int or self.width % 3 or not 3 <= self.width <= 18:
            raise ConfigError(f"width must be a multiple of 3 from 3 to 18, not {self.width!r}")
        if self.dsps is not None and (type(self.dsps) is not int or not 0 <= self.dsps <= self.pes):
            raise ConfigError(f"dsps must be an integer from 0 to {self.pes} (the PEs), not {self.dsps!r}")
        if self.psum_width(self.rows) > self.acc_width:
            raise ConfigError(f"acc_width must be at least {self.psum_width(self.rows)} for {self.rows} rows")

    @property
    def pes(self) -> int:
        """Products a cycle."""
        return self.rows * self.columns

    @property
    def multipliers(self) -> int:
        """DSP blocks."""
        return self.pes if self.dsps is None else self.dsps

    @property
    def brams(self) -> int:
        """Block RAMs of an ECP5: activations of each row; weights, sums and results of each column."""
        return self.rows + 3 * self.columns

    def psum_width(self, products: int) -> int:
        """Bits of the sum of so many products."""
        return 2 * self.width - 1 + products.bit_length()

    def has_dsp(self, row: int, column: int) -> bool:
        """Whether that PE multiplies in a DSP block."""
        dsps, index = self.multipliers, row * self.columns + column
        return (index + 1) * dsps // self.pes > index * dsps // self.pes
