"""Devices: the golden model and the netlist behind one interface."""

import numpy as np
import pytest
from amaranth.hdl import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen import generate as generate_module
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.isa import COMMANDS, REPLIES, Op, Reply
from maskwork.sim_tb import tools
from maskwork.sim_tb.device import Device, RtlDevice, open_device
from maskwork.sim_tb.run import RunLimits, limits_for

from .caches import empty_cache

icarus = pytest.param("icarus", marks=[
    pytest.mark.icarus, pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH"),
])  # fmt: skip
both = pytest.mark.parametrize("simulator", [pytest.param("verilator", marks=pytest.mark.slow), icarus])

BEAT = data.StructLayout({"data": 32, "last": 1})


class Wires(wiring.Component):
    """Answers what it is sent."""

    i: In(stream.Signature(BEAT))
    o: Out(stream.Signature(BEAT))

    def elaborate(self, platform):
        m = Module()
        wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
        m.d.sync += Signal(name="toggle").eq(self.i.valid)  # the benches want a clock
        return m


def command(op, **fields):
    return COMMANDS[op].encode(fields)


def stream_of(*packets):
    words = np.array([word for packet in packets for word in packet], np.uint32)
    last = np.zeros(len(words), bool)
    last[np.cumsum([len(packet) for packet in packets]) - 1] = True
    return words, last


def test_limits_follow_from_the_last_commands():
    counters, sync, echo = command(Op.READ_COUNTERS), command(Op.SYNC, tag=3), command(Op.ECHO, token=5)
    run = command(Op.RUN, rows=1)
    limits = limits_for(*stream_of(echo, run, sync, counters), 1)
    assert limits.stop_count == 3
    assert limits.stop_kinds == {Reply.IDENTITY, Reply.ECHOED, Reply.SYNCED, Reply.ABORTED, Reply.COUNTERS}
    for packets in ([echo], [sync, run], [sync, command(Op.BEGIN)], [run, counters], [[0x7F], echo]):
        assert limits_for(*stream_of(*packets), 1) == RunLimits()
    words, last = stream_of(sync)
    assert limits_for(words, ~last, 1) == RunLimits()
    assert limits_for([], [], 1) == RunLimits()


def test_unknown_targets():
    for target in ("x", "x:/dev/tty", "serial"):
        listed = "unknown target.*targets: golden, cycle, rtl, serial:PORT"
        with pytest.raises(MaskworkValueError, match=listed), open_device(target, Config()):
            pass
    for target in ("golden", "cycle"):
        message = f"option in_stall needs target 'rtl', not '{target}'"
        with pytest.raises(MaskworkValueError, match=message), open_device(target, Config(), in_stall=0.1):
            pass
    with (
        pytest.raises(MaskworkValueError, match="unknown simulator 'x'; simulators: verilator, icarus"),
        open_device("rtl", Config(), simulator="x"),
    ):
        pass


def test_golden_device():
    pytest.importorskip("maskwork.sim_tb.golden.interpreter")
    config = Config(stream_words=2)
    with open_device("golden", config) as device:
        assert isinstance(device, Device)
        words, last = device.execute([Op.IDENTIFY, 0, Op.ECHO, 0x1234], [1, 1])
        assert last.tolist() == [False, True, True]
        identity = REPLIES[Reply.IDENTITY].decode(words[:4].tolist())
        assert identity["config"] == config.hash
        assert words[4:].tolist() == [Reply.ECHOED, 0x1234]
        assert [array.size for array in device.execute([], [])] == [0, 0]


@both
def test_rtl_device(simulator, monkeypatch, tmp_path):
    made = []

    def accelerator(config):
        made.append(config)
        return Wires()

    monkeypatch.setattr(generate_module, "_accelerator", accelerator)
    config = Config(name="dense-small")
    words = np.array([0x84, 0x85, 0], np.uint32)
    cache = empty_cache(tmp_path)
    for _ in range(2):
        limits = RunLimits(idle_limit=30)
        with open_device("rtl", config, simulator=simulator, limits=limits, cache=cache) as device:
            assert isinstance(device, RtlDevice)
            assert isinstance(device, Device)
            replies, last = device.execute(words, [0, 0, 1])
            device.reset()
        np.testing.assert_array_equal(replies, words)
        assert last.tolist() == [False, False, True]
        assert device.last_run is not None
        assert device.last_run.cycles == 3
        with pytest.raises(MaskworkError, match="the simulation was closed"):
            device.execute(words, [0, 0, 1])
    assert made == [config]
