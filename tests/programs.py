"""Helpers of programs' tests: operands drawn at random, and a program run on the golden interpreter."""

import numpy as np
import pytest
from maskwork.gen.check import check_bound, check_program
from maskwork.gen.program import bind
from maskwork.gen.results import ResultAssembler


def sparse(rng, shape, density=0.4, high=100):
    return (rng.integers(-high, high, shape) * (rng.random(shape) < density)).astype(np.int16)


def parameters(rng, n):
    return {"bias": rng.integers(-1000, 1000, n), "mult": rng.integers(1, 1 << 20, n), "shift": rng.integers(10, 30, n)}


def golden(program, operands, masks=None, dense=False):
    """Output of a program on the golden interpreter, every check on the way."""
    interpreter = pytest.importorskip("maskwork.sim_tb.golden.interpreter")
    check_program(program)
    bound = bind(program, operands, masks, dense)
    check_bound(program.config, bound.words, bound.last)
    assembler = ResultAssembler(program)
    assembler.feed_packets(interpreter.Interpreter(program.config).execute(bound.words, bound.last))
    assert assembler.synced == [0]
    return assembler.outputs()["c"]
