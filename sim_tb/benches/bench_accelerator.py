"""The whole accelerator: random programs with random back-pressure on both streams, against the golden model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles
from maskwork.gen.config import Config
from maskwork.gen.isa import COUNTERS, Op, Reply
from maskwork.gen.lower import lower_matmul
from maskwork.gen.program import bind
from maskwork.gen.results import ResultAssembler
from maskwork.sim_tb.benches.stream import Port, Sink, Source, check_contract, configuration, parameters, start
from maskwork.sim_tb.golden import Interpreter, masked_matmul
from maskwork.sim_tb.packets import Packet, Packets, decode, joined
from maskwork.sim_tb.random_programs import RandomProgram

LIMIT = 20_000
"""Cycles without a reply after which the accelerator counts as stuck."""

Replies = list[np.ndarray]


class Bench:
    """The two streams, watched."""

    def __init__(self, dut: Any, chance: random.Random) -> None:
        self.dut, self.config = dut, configuration()
        self._chance = chance
        self._sink = Sink(Port(dut, "o"), seed=chance.random())

    async def open(self) -> None:
        """Reset, and start the sink and the checkers."""
        await start(self.dut, i__valid=0, i__payload=0, o__ready=0)
        cocotb.start_soon(self._sink.run())
        for name in "io":
            cocotb.start_soon(check_contract(Port(self.dut, name)))

    async def send(self, packets: Sequence[Packet], replies: int) -> Replies:
        """Send packets and wait for so many reply packets, with back-pressure drawn anew."""
        config, bits = self.config, self.config.beat_bits
        words, last = joined(config, packets)
        beats = [
            sum(int(word) << 32 * n for n, word in enumerate(row)) | int(end) << bits
            for row, end in zip(words.reshape(-1, config.stream_words), last, strict=True)
        ]
        self._sink.stall = self._chance.choice((0.0, 0.3, 0.8))
        idle = self._chance.choice((0.0, 0.3, 0.8))
        first = len(self._sink.got)
        cocotb.start_soon(Source(Port(self.dut, "i"), beats, idle, self._chance.random()).run())
        seen = quiet = 0
        while sum(beat >> bits for beat in self._sink.got[first:]) < replies:
            await ClockCycles(self.dut.clk, 100)
            quiet = 0 if len(self._sink.got) > seen else quiet + 100
            seen = len(self._sink.got)
            assert quiet < LIMIT + 10 * len(beats), f"stuck: {seen - first} beats came, {replies} packets are expected"
        return _packets(config, self._sink.got[first:])


def _packets(config: Config, beats: Sequence[int]) -> Replies:
    packets: Replies = []
    words: list[int] = []
    for beat in beats:
        words += [beat >> 32 * n & 0xFFFFFFFF for n in range(config.stream_words)]
        if beat >> config.beat_bits:
            packets.append(np.array(words, np.uint32))
            words = []
    assert not words, "the replies end within a packet"
    return packets


def _unordered(config: Config, packets: Replies, shared: dict[int, bool]) -> list[tuple[int, ...]]:
    """Packets, sorted; a row that is not shared may come from any lane of its cluster. Counters are left out."""
    result = []
    for packet in packets:
        words = packet.tolist()
        if words[0] & 0xFF == Reply.RESULT and not shared[words[0] >> 8 & 0xFF]:
            lane = words[0] >> 16 & 0xFF
            words[0] += (lane // config.lanes_per_cluster - lane) << 16
        if words[0] & 0xFF != Reply.COUNTERS:
            result.append(tuple(words))
    return sorted(result)


def _check_counters(config: Config, packet: np.ndarray) -> None:
    counters = decode(config, packet)
    assert counters["reply"] == Reply.COUNTERS
    assert sum(counters[name] for name in COUNTERS[:8]) == counters["cycles"] * config.pes


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def random_commands(dut: Any) -> None:
    """Sequences of commands that no compiler would make."""
    chance = random.Random(f"commands {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    for _ in range(parameters().get("programs", 5)):
        program = RandomProgram(config, chance, runs=2)
        words, last = joined(config, program.packets)
        golden = Interpreter(config).execute(words, last)
        ours = await bench.send(program.packets, len(golden))
        assert _unordered(config, ours, program.shared) == _unordered(config, golden, program.shared)
        _check_counters(config, ours[-1])


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def random_products(dut: Any) -> None:
    """Compiled products, bound to random operands, against NumPy."""
    chance = random.Random(f"products {cocotb.RANDOM_SEED}")
    numbers = np.random.default_rng(cocotb.RANDOM_SEED)
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    sizes = [(7, 9, 11), *(tuple(numbers.integers(1, 24, 3).tolist()) for _ in range(parameters().get("products", 4)))]
    for m, k, n in sizes:
        program = lower_matmul(config, m, k, n, use_c=True)
        a, b = numbers.integers(-8, 8, (m, k)), numbers.choice([-8, 7], (k, n))
        masks = {name: numbers.random(shape) < chance.choice((0.0, 0.5, 1.0))
                 for name, shape in (("a", (m, k)), ("b", (k, n)), ("c_mask", (m, n)))}  # fmt: skip
        bound = bind(program, {"a": a, "b": b}, masks)
        packets = [packet.tolist() for packet in bound.packets()]
        packets.append(Packets(config).command(Op.READ_COUNTERS))
        assembler = ResultAssembler(program)
        golden = Interpreter(config).execute(*joined(config, packets))
        ours = await bench.send(packets, len(golden))
        assembler.feed_packets(ours)
        assert np.array_equal(assembler.outputs()["c"], masked_matmul(a, b, masks["a"], masks["b"], masks["c_mask"]))
        _check_counters(config, ours[-1])
