"""The Wishbone wrapper with cocotbext-wishbone's bus model, which pauses at random between accesses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles
from cocotbext.wishbone.driver import WBOp, WishboneMaster
from maskwork.fpga.wrap import registers as regs
from maskwork.fpga.wrap.bench_common import ProgramBench
from maskwork.gen.isa import ISA_VERSION, Op, Reply
from maskwork.sim_tb.benches.bench_accelerator import Replies
from maskwork.sim_tb.benches.stream import configuration, parameters, start
from maskwork.sim_tb.packets import Packet, Packets, decode
from maskwork.sim_tb.random_programs import RandomProgram

ACK_LIMIT = 3
"""Cycles in which every access must be answered."""
LIMIT = 3_000
"""Looks at LEVELS without a word moved after which the accelerator counts as stuck."""
SIGNALS = {"cyc": "cyc", "stb": "stb", "we": "we", "adr": "adr", "datwr": "dat_w", "datrd": "dat_r", "ack": "ack"}


def fields(register: regs.Register, value: int) -> dict[str, int]:
    """A register's fields."""
    return {field.name: value >> field.low & ((1 << field.width) - 1) for field in register.fields}


class Bench(ProgramBench):
    """Software with a bus."""

    def __init__(self, dut: Any, chance: random.Random) -> None:
        self.dut, self.config, self.chance = dut, configuration(), chance
        self.depth = parameters()["queue_words"]
        self.idle = 0  # most cycles between accesses
        self.bus: Any = None

    async def open(self) -> None:
        """Reset, and connect the bus model."""
        await start(self.dut, wb_cyc=0, wb_stb=0, wb_we=0, wb_adr=0, wb_sel=0, wb_dat_w=0)
        self.bus = WishboneMaster(self.dut, "wb", self.dut.clk, timeout=100, signals_dict=SIGNALS)

    async def run(self, operations: Sequence[WBOp]) -> list[int]:
        """Make accesses in one bus cycle; the data read (of writes, nothing useful)."""
        for operation in operations:
            operation.acktimeout = ACK_LIMIT
            operation.idle = self.chance.randint(0, self.idle)
        answers = await self.bus.send_cycle(operations)
        assert len(answers) == len(operations) and all(answer.ack == 1 for answer in answers)
        return [int(answer.datrd) for answer in answers]

    async def read(self, register: regs.Register, field: str = "value") -> int:
        """A field of a register."""
        (value,) = await self.run([WBOp(register.offset // 4)])
        return fields(register, value)[field]

    async def write(self, register: regs.Register, value: int, sel: int = 0xF) -> None:
        """Write a register."""
        await self.run([WBOp(register.offset // 4, value, sel=sel)])

    async def send(self, packets: Sequence[Packet], replies: int, upto: int | None = None) -> Replies:
        """Send packets (or only their first words), as LEVELS allows, and collect so many reply packets."""
        self.idle = self.chance.choice((0, 1, 6))
        greed = self.chance.random()  # how often replies are fetched
        stream = [(word, at == len(packet) - 1) for packet in packets for at, word in enumerate(packet)][:upto]
        got: Replies = []
        words: list[int] = []
        quiet = 0
        while stream or len(got) < replies:
            (levels,) = await self.run([WBOp(regs.LEVELS.offset // 4)])
            state = fields(regs.LEVELS, levels)
            assert not state["refused"] and not state["missing"]
            moved, stream = stream[: state["space"]], stream[state["space"] :]
            if moved:
                await self.run([
                    WBOp((regs.WRITE_LAST if last else regs.WRITE).offset // 4, int(word)) for word, last in moved
                ])  # fmt: skip
            if state["words"] and (not moved or self.chance.random() < greed):
                answers = await self.run([WBOp(r.offset // 4) for r in (regs.LEVELS, regs.READ)] * state["words"])
                for before, word in zip(answers[::2], answers[1::2], strict=True):
                    words.append(word)
                    if fields(regs.LEVELS, before)["last"]:
                        got.append(np.array(words, np.uint32))
                        words = []
            quiet = 0 if moved or state["words"] else quiet + 1
            assert quiet < LIMIT, f"stuck: {len(got)} packets came, {replies} are expected"
        assert upto or not words
        return got


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def registers(dut: Any) -> None:
    """Every register reads as documented; full and empty queues are reported and never stall the bus."""
    chance = random.Random(f"registers {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    expected = {
        regs.ID: regs.MAGIC,
        regs.VERSION: regs.MAP_VERSION | ISA_VERSION << 8,
        regs.CONFIG: config.hash,
        regs.SIZE: config.pes | config.stream_words << 16,
        regs.STATUS: 1,
        regs.CONTROL: 0,
        regs.PACKETS_IN: 0,
        regs.PACKETS_OUT: 0,
        regs.SCRATCH: 0,
        regs.WRITE: 0,
        regs.WRITE_LAST: 0,
        regs.LEVELS: bench.depth,
    }
    assert {*expected, regs.READ} == set(regs.TABLES["wishbone"])
    await ClockCycles(dut.clk, 5)
    for bench.idle in (0, 4):
        for register in regs.TABLES["wishbone"]:
            if register.access == "ro" and register is not regs.READ:
                await bench.write(register, chance.getrandbits(32))
        answers = await bench.run([WBOp(register.offset // 4) for register in expected])
        assert answers == list(expected.values())
    scratch = 0
    for _ in range(20):
        value, sel = chance.getrandbits(32), chance.randrange(16)
        mask = sum(0xFF << 8 * lane for lane in range(4) if sel >> lane & 1)
        scratch = scratch & ~mask | value & mask
        await bench.write(regs.SCRATCH, value, sel)
        assert await bench.read(regs.SCRATCH) == scratch
    assert await bench.read(regs.READ) == 0
    state = {"space": bench.depth, "words": 0, "last": 0, "refused": 0, "missing": 0}
    assert fields(regs.LEVELS, (await bench.run([WBOp(regs.LEVELS.offset // 4)]))[0]) == {**state, "missing": 1}
    await bench.write(regs.LEVELS, 1 << regs.LEVELS.bits("missing").start)
    await bench.write(regs.WRITE, 5, sel=7)  # not a whole word
    assert fields(regs.LEVELS, (await bench.run([WBOp(regs.LEVELS.offset // 4)]))[0]) == {**state, "refused": 1}
    await bench.write(regs.LEVELS, 1 << regs.LEVELS.bits("refused").start)
    assert fields(regs.LEVELS, (await bench.run([WBOp(regs.LEVELS.offset // 4)]))[0]) == state
    # replies that nobody fetches fill every queue, up to a command that is refused
    echo = Packets(config).command(Op.ECHO, token=7)
    for _ in range(1000):
        await bench.run([WBOp((regs.WRITE, regs.WRITE_LAST)[n == len(echo) - 1].offset // 4, w)
                         for n, w in enumerate(echo)])  # fmt: skip
        if await bench.read(regs.LEVELS, "refused"):
            break
    assert await bench.read(regs.LEVELS, "space") == 0 and await bench.read(regs.LEVELS, "words") == bench.depth
    assert await bench.read(regs.STATUS, "out_waits") == 1
    await bench.write(regs.CONTROL, 1)
    await bench.write(regs.CONTROL, 0)
    while await bench.read(regs.STATUS, "in_reset"):
        pass
    assert fields(regs.LEVELS, (await bench.run([WBOp(regs.LEVELS.offset // 4)]))[0]) == state


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def programs(dut: Any) -> None:
    """IDENTIFY and random programs."""
    chance = random.Random(f"programs {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    packets = Packets(config)
    (identity,) = await bench.send([packets.command(Op.IDENTIFY)], 1)
    assert decode(config, identity)["config"] == config.hash
    assert await bench.read(regs.STATUS, "idle") == 1
    got = sent = 1
    for _ in range(parameters().get("programs", 3)):
        got += await bench.check_program()
        assert await bench.read(regs.STATUS, "idle") == 1
        assert await bench.read(regs.PACKETS_OUT) == got
        taken = await bench.read(regs.PACKETS_IN)
        assert taken > sent
        sent = taken
    await bench.send([packets.begin_packet()], 0)
    await ClockCycles(dut.clk, 10)
    assert await bench.read(regs.STATUS, "idle") == 0
    (reply,) = await bench.send([packets.command(Op.SYNC, tag=5)], 1)
    assert decode(config, reply) == {"reply": Reply.SYNCED, "tag": 5}
    assert await bench.read(regs.STATUS, "idle") == 1
    # what software forgot of a beat is filled up with zeros
    await bench.send([[int(Op.IDENTIFY)]], 1)
    assert await bench.read(regs.STATUS, "in_packet") == 0


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def soft_reset(dut: Any) -> None:
    """Reset anywhere in a program: the queues are empty, and the next program runs right."""
    chance = random.Random(f"reset {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    await bench.open()
    cut = 0
    for _ in range(parameters().get("resets", 6)):
        program = RandomProgram(bench.config, chance, runs=2)
        await bench.send(program.packets, 0, chance.randrange(3, sum(map(len, program.packets))))
        bench.idle = 0
        cut += not await bench.read(regs.STATUS, "idle")
        # as short as a bus can make it
        await bench.run([WBOp(regs.CONTROL.offset // 4, 1), WBOp(regs.CONTROL.offset // 4, 0)])
        while await bench.read(regs.STATUS, "in_reset"):
            pass
        answers = await bench.run([WBOp(r.offset // 4) for r in (regs.LEVELS, regs.PACKETS_IN, regs.PACKETS_OUT)])
        assert answers == [bench.depth, 0, 0]
        replies = await bench.check_program()
        assert await bench.read(regs.PACKETS_OUT) == replies
        assert await bench.read(regs.LEVELS, "words") == 0
    assert cut, "no reset came in mid-program"
