"""Errors that a user can cause: one line each, saying what was wrong and what would be accepted."""

import lzma
import tokenize
import zipfile
import zlib

UNREADABLE = (
    ValueError, TypeError, EOFError, KeyError, SyntaxError, MemoryError, OverflowError, RuntimeError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What NumPy raises for files that are no arrays, or broken, encrypted or compressed in ways that nobody knows."""


class MaskworkError(Exception):
    """Base of every error that bad input causes; the command line prints it as one line and exits with status 2."""


class MaskworkValueError(MaskworkError, ValueError):
    """A value, shape, file content or configuration that cannot be used."""


class MaskworkTypeError(MaskworkError, TypeError):
    """An object of the wrong type or an array of the wrong dtype."""


class ConfigError(MaskworkValueError):
    """A configuration that cannot be built; the message names the field and what it accepts."""


class ProgramError(MaskworkValueError):
    """A program that the configuration cannot run, or a program file that cannot be read."""


class BankOverflow(ProgramError):
    """Operands that are denser than their program was made for: an activation bank cannot hold them."""


class DeviceError(MaskworkError, RuntimeError):
    """The accelerator answered with an error word, or a result that does not belong to the program."""


class BoardError(DeviceError):
    """A board that is not there, may not be used, holds another design or went away; bad input to the command line."""
