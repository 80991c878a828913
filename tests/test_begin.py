"""BEGIN brings the array to one state: a program's counters depend on nothing that ran before it."""

import random

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.isa import COUNTERS, Op
from maskwork.sim_tb.device import RtlDevice
from maskwork.sim_tb.packets import Packets, decode, joined
from maskwork.sim_tb.random_programs import RandomProgram
from maskwork.sim_tb.run import limits_for

from .variants import CONFIGS as VARIANTS

pytestmark = pytest.mark.slow

NAMES = ("abc-1-2", "abc-4-2", "none-1-2", "a-2-4", "icebreaker", "K in PEs, abc", "hops 1")
CONFIGS = {"tiny": preset("tiny"), **{name: VARIANTS[name] for name in NAMES}}


def counted(device: RtlDevice, program: RandomProgram) -> dict[str, int]:
    """All counters of a program that ends with SYNC and READ_COUNTERS."""
    config = device.config
    words, last = device.execute(*joined(config, program.packets))
    ends = np.flatnonzero(last) + 1
    begin = int(ends[-2]) if len(ends) > 1 else 0
    counters = decode(config, words[begin * config.stream_words :])
    assert sum(counters[name] for name in COUNTERS[:8]) == counters["cycles"] * config.pes
    return {name: counters[name] for name in COUNTERS}


def disturb(device: RtlDevice, chance: random.Random) -> None:
    """Other programs, whole or aborted, and cycles in which nothing happens."""
    config, make = device.config, Packets(device.config)
    for _ in range(chance.randint(1, 3)):
        packets = RandomProgram(config, chance, runs=chance.randint(1, 3)).packets
        if chance.random() < 0.5:
            packets = [*packets[: chance.randint(1, len(packets))], make.command(Op.ABORT)]
        packets += [make.command(Op.ECHO)] * chance.randint(0, 3)
        words, last = joined(config, packets)
        stalls = {f"{stream}_stall": chance.choice((0.0, 0.4, 0.9)) for stream in ("in", "out")}
        device.model.run(words, last, **stalls, seed=chance.getrandbits(30),
                         limits=limits_for(words, last, config.stream_words))  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_counters_depend_on_the_program_alone(name):
    config = CONFIGS[name]
    device = RtlDevice(config)
    for seed in range(12):
        program = RandomProgram(config, random.Random(f"{name} {seed}"))
        device.model.reset()
        fresh = counted(device, program)
        assert counted(device, program) == fresh
        chance = random.Random(seed)
        for _ in range(3):
            disturb(device, chance)
            assert counted(device, program) == fresh
    device.close()


@pytest.mark.parametrize("name", ["tiny", "abc-4-2"])
def test_begin_directly_behind_sync(name):
    """The SYNCED that is still leaving does not stop the new program's counters (it is a beat of its words_out)."""
    config = CONFIGS[name]
    device = RtlDevice(config)
    for seed in range(6):
        program = RandomProgram(config, random.Random(seed))
        expected = counted(device, program)
        program.packets.insert(0, Packets(config).command(Op.SYNC))
        got = counted(device, program)
        assert got.pop("words_out") - expected.pop("words_out") in (0, 1)
        assert got == expected
