"""The AXI wrapper with cocotbext-axi's bus models, which pause at random on every channel."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge, SimTimeoutError, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiStreamBus, AxiStreamFrame, AxiStreamSink, AxiStreamSource
from maskwork.fpga.wrap import registers as regs
from maskwork.fpga.wrap.bench_common import ProgramBench
from maskwork.gen.isa import ISA_VERSION, Op, Reply
from maskwork.sim_tb.benches.bench_accelerator import Replies
from maskwork.sim_tb.benches.stream import check_contract, configuration, parameters
from maskwork.sim_tb.packets import Packet, Packets, decode
from maskwork.sim_tb.random_programs import RandomProgram

LIMIT = 20_000
"""Cycles without a reply after which the accelerator counts as stuck."""


def pauses(chance: random.Random, share: float) -> Iterator[int]:
    """Pause in that share of the cycles, for ever."""
    own = random.Random(chance.random())
    while True:
        yield int(own.random() < share)


class Bench(ProgramBench):
    """The bus models on the component."""

    def __init__(self, dut: Any, chance: random.Random) -> None:
        self.dut, self.config, self.chance = dut, configuration(), chance
        reset = {"reset": dut.aresetn, "reset_active_level": False}
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), dut.aclk, **reset)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), dut.aclk, **reset)
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.aclk, **reset)

    async def open(self) -> None:
        """Start the clock and the checker, and reset."""
        dut = self.dut
        cocotb.start_soon(Clock(dut.aclk, 10, unit="ns").start())
        dut.aresetn.value = 0
        await ClockCycles(dut.aclk, 3)
        dut.aresetn.value = 1
        await ClockCycles(dut.aclk, 2)
        for payload in (dut.m_axis_tdata, dut.m_axis_tlast, dut.m_axis_tkeep):
            port: Any = SimpleNamespace(name=f"m_axis ({payload._name})", clk=dut.aclk, valid=dut.m_axis_tvalid,
                                        ready=dut.m_axis_tready, payload=payload)  # fmt: skip
            cocotb.start_soon(check_contract(port))
        for name in ("r", "b"):
            payload = {"r": dut.s_axil_rdata, "b": dut.s_axil_bresp}[name]
            port = SimpleNamespace(name=f"s_axil_{name}", clk=dut.aclk, valid=getattr(dut, f"s_axil_{name}valid"),
                                   ready=getattr(dut, f"s_axil_{name}ready"), payload=payload)  # fmt: skip
            cocotb.start_soon(check_contract(port))

    def pause(self) -> None:
        """Draw anew how often each channel pauses."""
        write: Any = self.bus.write_if
        read: Any = self.bus.read_if
        for channel in (self.source, self.sink, write.aw_channel, write.w_channel, write.b_channel, read.ar_channel,
                        read.r_channel):  # fmt: skip
            channel.set_pause_generator(pauses(self.chance, self.chance.choice((0.0, 0.3, 0.8))))

    async def read(self, register: regs.Register, field: str = "value") -> int:
        """A field of a register."""
        return await self.bus.read_dword(register.offset) >> register.bits(field).start & (
            (1 << (register.bits(field).stop - register.bits(field).start)) - 1
        )

    def offer(self, packets: Sequence[Packet]) -> None:
        """Queue packets in the source."""
        for packet in packets:
            frame = AxiStreamFrame(np.array(packet, "<u4").tobytes())
            self.source.send_nowait(frame)

    async def replies(self, count: int) -> Replies:
        """Wait for so many reply packets."""
        got: Replies = []
        while len(got) < count:
            try:
                frame = await with_timeout(self.sink.recv(), 10 * LIMIT, "ns")
            except SimTimeoutError:
                raise AssertionError(f"stuck: {len(got)} of {count} packets came") from None
            got.append(np.frombuffer(bytes(frame.tdata), "<u4"))
        return got

    async def send(self, packets: Sequence[Packet], count: int) -> Replies:
        """Send packets and wait for so many reply packets."""
        self.pause()
        self.offer(packets)
        return await self.replies(count)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def registers(dut: Any) -> None:
    """Every register reads as documented, and only CONTROL and SCRATCH can be written."""
    chance = random.Random(f"registers {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    assert await bench.bus.read_dword(regs.ID.offset) == regs.MAGIC == int.from_bytes(b"MASK", "little")
    fixed = {
        (regs.VERSION, "map"): regs.MAP_VERSION,
        (regs.VERSION, "isa"): ISA_VERSION,
        (regs.CONFIG, "value"): config.hash,
        (regs.SIZE, "pes"): config.pes,
        (regs.SIZE, "stream_words"): config.stream_words,
        (regs.STATUS, "idle"): 1,
        (regs.STATUS, "in_reset"): 0,
    }
    for _ in range(2):
        for (register, field), value in fixed.items():
            assert await bench.read(register, field) == value, (register.name, field)
        for register in regs.TABLES["axi"]:
            if register.access == "ro":
                await bench.bus.write_dword(register.offset, chance.getrandbits(32))
        bench.pause()
    assert await bench.bus.read_dword(0x7C) == 0
    expected = bytearray(4)
    for _ in range(40):
        lane, length = chance.choice(((0, 4), (0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2)))
        data = chance.randbytes(length)
        expected[lane : lane + length] = data
        response = await bench.bus.write(regs.SCRATCH.offset + lane, data)
        assert response.resp == 0
        answer = await bench.bus.read(regs.SCRATCH.offset, 4)
        assert answer.resp == 0 and answer.data == expected
    # many at once, reads and writes independent of each other
    writes = [cocotb.start_soon(bench.bus.write_dword(regs.SCRATCH.offset, n)) for n in range(20)]
    reads = [cocotb.start_soon(bench.bus.read_dword(regs.CONFIG.offset)) for _ in range(20)]
    assert [await task for task in reads] == [config.hash] * 20
    for task in writes:
        await task
    assert await bench.read(regs.SCRATCH) == 19


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def programs(dut: Any) -> None:
    """IDENTIFY and random programs, while software keeps reading registers."""
    chance = random.Random(f"programs {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    packets = Packets(config)
    (identity,) = await bench.send([packets.command(Op.IDENTIFY)], 1)
    assert decode(config, identity)["config"] == config.hash

    async def poll() -> None:
        while True:
            assert await bench.read(regs.CONFIG) == config.hash

    cocotb.start_soon(poll())
    sent = got = 1
    for _ in range(parameters().get("programs", 3)):
        before = bench.source.queue_occupancy_frames
        assert before == 0
        program_replies = await bench.check_program()
        got += program_replies
        assert await bench.read(regs.STATUS, "idle") == 1
        assert await bench.read(regs.PACKETS_OUT) == got
        taken = await bench.read(regs.PACKETS_IN)
        assert taken > sent
        sent = taken
    # a command that starts work and no SYNC after it
    bench.offer([packets.begin_packet()])
    while await bench.read(regs.PACKETS_IN) == sent:
        pass
    assert await bench.read(regs.STATUS, "idle") == 0
    (reply,) = await bench.send([packets.command(Op.SYNC, tag=5)], 1)
    assert decode(config, reply) == {"reply": Reply.SYNCED, "tag": 5}
    await ClockCycles(dut.aclk, 2)
    assert await bench.read(regs.STATUS, "idle") == 1
    assert await bench.read(regs.PACKETS_IN) == sent + 2
    assert await bench.read(regs.PACKETS_OUT) == got + 1


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def soft_reset(dut: Any) -> None:
    """Reset anywhere in a program: no stream breaks its contract, and the next program runs right."""
    chance = random.Random(f"reset {cocotb.RANDOM_SEED}")
    bench = Bench(dut, chance)
    config = bench.config
    await bench.open()
    cut = 0
    for _ in range(parameters().get("resets", 6)):
        program = RandomProgram(config, chance, runs=2)
        beats = sum(map(len, program.packets)) // config.stream_words
        bench.pause()
        bench.offer(program.packets)
        for _ in range(chance.randrange(3 * beats)):
            await RisingEdge(dut.aclk)
        cut += int(dut.m_axis_tvalid.value) or not bench.source.empty()
        await bench.bus.write_dword(regs.CONTROL.offset, 1)
        await bench.source.wait()  # whatever it still had is taken
        assert await bench.read(regs.STATUS, "in_reset") == 1
        assert await bench.read(regs.STATUS, "idle") == 0
        assert await bench.read(regs.CONTROL, "reset") == 1
        while await bench.read(regs.STATUS, "out_packet") or await bench.read(regs.STATUS, "out_waits"):
            pass
        assert await bench.read(regs.STATUS, "in_packet") == 0
        while not bench.sink.empty():
            bench.sink.recv_nowait()
        await bench.bus.write_dword(regs.CONTROL.offset, 0)
        while await bench.read(regs.STATUS, "in_reset"):
            pass
        assert await bench.read(regs.PACKETS_IN) == await bench.read(regs.PACKETS_OUT) == 0
        replies = await bench.check_program()
        await ClockCycles(dut.aclk, 50)
        assert bench.sink.empty() and bench.sink.idle()
        assert await bench.read(regs.PACKETS_OUT) == replies
        assert await bench.read(regs.SCRATCH) == 0
    assert cut, "no reset came in mid-program"
