"""Verilator and Icarus run the same words alike, notice what goes wrong, and are built once."""

import numpy as np
import pytest
from amaranth.hdl import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.generate import emit
from maskwork.rtl.hierarchy import submodule
from maskwork.sim_tb import tools, verilator
from maskwork.sim_tb.cache import Cache
from maskwork.sim_tb.icarus import IcarusModel
from maskwork.sim_tb.run import (
    RunLimits,
    SimulationError,
    SimulationStuck,
    SimulationTimeout,
    StreamViolation,
)
from maskwork.sim_tb.verilator import VerilatedModel

from .caches import empty_cache

QUICK = RunLimits(max_cycles=100_000, idle_limit=50, stuck_limit=200)

icarus = pytest.param("icarus", marks=[
    pytest.mark.icarus, pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH"),
])  # fmt: skip
icarus_verilog = pytest.param("icarus-verilog", marks=icarus.marks)
both = pytest.mark.parametrize("simulator", [pytest.param("verilator", marks=pytest.mark.slow), icarus])
all_three = pytest.mark.parametrize(
    "simulator", [pytest.param("verilator", marks=pytest.mark.slow), icarus, icarus_verilog]
)


def beat(stream_words):
    return data.StructLayout({"data": 32 * stream_words, "last": 1})


class Scrambler(wiring.Component):
    """Adds to the low byte what a table says, writes the table, and keeps a running sum: state of every kind."""

    def __init__(self, stream_words):
        self.stream_words = stream_words
        layout = beat(stream_words)
        super().__init__({"i": In(stream.Signature(layout)), "o": Out(stream.Signature(layout))})

    def hierarchy_key(self):
        return (self.stream_words,)

    def elaborate(self, platform):
        m = Module()
        m.submodules.lut = lut = memory.Memory(shape=8, depth=16, init=[3 * i for i in range(16)])
        m.submodules.block = block = memory.Memory(shape=8, depth=16, init=[5 * i for i in range(16)])
        lut_read, lut_write = lut.read_port(domain="comb"), lut.write_port()
        block_write = block.write_port()
        block_read = block.read_port(transparent_for=[block_write])
        total = Signal(8, init=17)
        low = Signal(32)
        low_valid, low_last = Signal(), Signal()
        rest = Signal(32 * self.stream_words)
        word = self.i.payload.data
        moves = Signal()
        m.d.comb += [
            moves.eq(self.o.ready | ~low_valid),
            self.i.ready.eq(moves),
            lut_read.addr.eq(word[:4]),
            lut_write.addr.eq(word[4:8]),
            lut_write.data.eq(word[8:16]),
            lut_write.en.eq(self.i.valid & moves),
            block_read.addr.eq(word[16:20]),
            block_read.en.eq(moves),
            block_write.addr.eq(word[20:24]),
            block_write.data.eq(word[24:32]),
            block_write.en.eq(self.i.valid & moves),
            self.o.valid.eq(low_valid),
            self.o.payload.last.eq(low_last),
            self.o.payload.data.eq(rest ^ (low + block_read.data)[:32]),
        ]
        with m.If(moves):
            m.d.sync += [low_valid.eq(self.i.valid), low_last.eq(self.i.payload.last), rest.eq(word)]
            m.d.sync += low.eq(Cat(Const(0, 8), lut_read.data, total))
            with m.Switch(word[24:27]):  # a selection of many becomes a function in Verilog-2005
                for case in range(5):
                    with m.Case(case):
                        m.d.sync += low[24:].eq(case * 40 + 1)
            with m.If(self.i.valid):
                m.d.sync += total.eq(total + word[:8])
        return m


class Echo(wiring.Component):
    """Two scramblers in a row."""

    def __init__(self, stream_words):
        self.stream_words = stream_words
        layout = beat(stream_words)
        super().__init__({"i": In(stream.Signature(layout)), "o": Out(stream.Signature(layout))})

    def elaborate(self, platform):
        m = Module()
        first = submodule(m, "first", Scrambler(self.stream_words), platform)
        second = submodule(m, "second", Scrambler(self.stream_words), platform)
        wiring.connect(m, wiring.flipped(self.i), first.i)
        wiring.connect(m, first.o, second.i)
        wiring.connect(m, second.o, wiring.flipped(self.o))
        return m


class ScramblerModel:
    """The scrambler in Python."""

    def __init__(self):
        self.lut = [3 * i for i in range(16)]
        self.block = [5 * i for i in range(16)]
        self.total = 17

    def __call__(self, value):
        word = value & 0xFFFFFFFF
        case = word >> 24 & 7
        low = self.lut[word & 15] << 8 | self.total << 16 | (case * 40 + 1 if case < 5 else 0) << 24
        self.lut[word >> 4 & 15] = word >> 8 & 255
        self.block[word >> 20 & 15] = word >> 24  # the read port is transparent
        low += self.block[word >> 16 & 15]
        self.total = (self.total + word) & 255
        return value ^ (low & 0xFFFFFFFF)


FAULTS = ["valid falls", "payload changes", "valid depends on ready", "stuck", "endless"]


class Faulty(wiring.Component):
    """Passes beats on, until the low byte of one picks a fault."""

    i: In(stream.Signature(beat(1)))
    o: Out(stream.Signature(beat(1)))

    def elaborate(self, platform):
        m = Module()
        fault = Signal(8)
        count = Signal(32)
        m.d.sync += count.eq(count + 1)
        m.d.comb += [self.i.ready.eq(self.o.ready), self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        with m.If(self.i.valid & self.i.ready & (fault == 0)):
            m.d.sync += fault.eq(self.i.payload.data)
        with m.Switch(fault):
            with m.Case(1):
                m.d.comb += self.o.valid.eq(count[0])
            with m.Case(2):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.data.eq(count)]
            with m.Case(3):
                m.d.comb += self.o.valid.eq(self.o.ready)
            with m.Case(4):
                m.d.comb += [self.i.ready.eq(0), self.o.valid.eq(0)]
            with m.Case(5):
                m.d.comb += self.o.valid.eq(1)
        return m


class Asserting(wiring.Component):
    """Passes beats on and asserts that none is 0x55."""

    i: In(stream.Signature(beat(1)))
    o: Out(stream.Signature(beat(1)))

    def elaborate(self, platform):
        m = Module()
        wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
        m.d.sync += Assert(~self.i.valid | (self.i.payload.data != 0x55))
        return m


def open_model(simulator, design, stream_words=1, **options):
    verilog = simulator == "icarus-verilog"
    text, _ = emit(design, "echo", verilog=verilog)
    if simulator == "verilator":
        return VerilatedModel(text, "echo", stream_words, **options)
    return IcarusModel(text, "echo", stream_words, verilog=verilog, **options)


def random_beats(stream_words, beats, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**32, beats * stream_words, dtype=np.uint32)
    last = rng.random(beats) < 0.2
    return words, last


def expected_replies(words, stream_words, models=None):
    models = models or (ScramblerModel(), ScramblerModel())
    replies = np.array(words).reshape(-1, stream_words)
    for row in replies:
        low = int(row[0])
        for model in models:
            low = model(low)
        row[0] = low
    return replies.reshape(-1)


# ---------------------------------------------------------------------- the same run everywhere


@all_three
@pytest.mark.parametrize("stream_words", [1, 2, 8])
def test_random_back_pressure_changes_nothing(simulator, stream_words):
    words, last = random_beats(stream_words, 400)
    expected = expected_replies(words, stream_words)
    with open_model(simulator, Echo(stream_words), stream_words) as model:
        for stalls in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.6)]:
            model.reset()
            if stalls != (0.0, 0.0):  # memories are not reset
                model.close()
                model = open_model(simulator, Echo(stream_words), stream_words)
            result = model.run(words, last, in_stall=stalls[0], out_stall=stalls[1], seed=7, limits=QUICK)
            np.testing.assert_array_equal(result.words, expected)
            np.testing.assert_array_equal(result.last, last)
            assert (result.beats_in, result.beats_out) == (400, 400)
            assert (result.out_waits > 0) == (stalls[1] > 0)
            if stalls == (0.0, 0.0):
                assert result.cycles == 402
        model.close()


@pytest.mark.slow
@pytest.mark.icarus
@pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH")
def test_cycles_agree_between_simulators():
    words, last = random_beats(1, 300)
    results = []
    for simulator in ("verilator", "icarus", "icarus-verilog"):
        with open_model(simulator, Echo(1)) as model:
            result = model.run(words, last, in_stall=0.4, out_stall=0.4, seed=3, limits=QUICK)
            results.append((result.cycles, result.in_waits, result.out_waits))
    assert results[0] == results[1] == results[2]
    assert results[0][0] > 500


@all_three
def test_state_lasts_from_run_to_run(simulator):
    words, last = random_beats(1, 60)
    expected = expected_replies(words, 1)
    with open_model(simulator, Echo(1)) as model:
        replies = [model.run(words[s], last[s], limits=QUICK).words for s in (slice(0, 25), slice(25, 60))]
        np.testing.assert_array_equal(np.concatenate(replies), expected)
        assert model.run([], [], limits=QUICK).beats_out == 0


@both
def test_replies_of_any_length(simulator):
    beats = 40_000 if simulator == "verilator" else 2_000
    words, last = random_beats(1, beats)
    with open_model(simulator, Echo(1)) as model:
        result = model.run(words, last, limits=QUICK)
    np.testing.assert_array_equal(result.words, expected_replies(words, 1))
    np.testing.assert_array_equal(result.last, last)


@both
def test_a_run_ends_at_the_packets_asked_for(simulator):
    words = np.array([0x90, 0x82, 0x83, 5, 0x0003_00EE, 0x9090_9090], np.uint32)
    last = np.array([1, 1, 0, 1, 1, 1], bool)
    limits = RunLimits(stop_count=3, stop_kinds=frozenset({0x82, 0x83}), stop_opcodes=frozenset({3}), stuck_limit=300)
    with open_model(simulator, Faulty()) as model:
        # fault 0x90 is none
        result = model.run(words, last, limits=limits)
        np.testing.assert_array_equal(result.words, words)
        with pytest.raises(SimulationStuck, match="nothing moved for 300 cycles: 4 of 4 beats taken, 4 sent"):
            model.run(words[:4], last[:4], limits=limits)


@both
def test_waveforms(simulator, tmp_path):
    with open_model(simulator, Asserting(), trace=tmp_path / "wave.vcd") as model:
        model.run([1, 2, 3], [0, 0, 1], limits=QUICK)
    assert "o__payload" in (tmp_path / "wave.vcd").read_text()
    with pytest.raises(MaskworkError, match=r"wave\.vcd: cannot be written"):
        open_model(simulator, Asserting(), trace=tmp_path / "missing" / "wave.vcd")


# ---------------------------------------------------------------------- what goes wrong


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(simulator, fault):
    error, message = {
        "valid falls": (StreamViolation, "valid fell before the transfer"),
        "payload changes": (StreamViolation, "payload changed before the transfer"),
        "valid depends on ready": (StreamViolation, "valid depends on ready"),
        "stuck": (SimulationStuck, "nothing moved for 200 cycles: 2 of 20 beats taken, 2 sent"),
        "endless": (SimulationTimeout, "did not end within 1000 cycles: 20 of 20 beats taken"),
    }[fault]
    words = np.full(20, FAULTS.index(fault) + 1, np.uint32)
    words[0] = 0
    stall = 0.5 if error is StreamViolation else 0.0
    limits = RunLimits(max_cycles=1000, idle_limit=50, stuck_limit=200)
    with open_model(simulator, Faulty()) as model, pytest.raises(error, match=message) as caught:
        model.run(words, np.ones(20, bool), out_stall=stall, limits=limits)
    assert isinstance(caught.value, MaskworkError)
    assert caught.value.result.beats_out >= 2


@pytest.mark.slow
def test_a_failed_assertion_is_an_error_not_the_end():
    with open_model("verilator", Asserting()) as model, pytest.raises(SimulationError, match="assertion failed"):
        model.run([0x54, 0x55, 0x56], [0, 0, 1], limits=QUICK)


@pytest.mark.icarus
@pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH")
@pytest.mark.parametrize(
    "port, message", [("i__ready", "i: ready is X"), ("o__valid", "o: valid is X"), ("o__payload", "payload holds X")]
)
def test_unknown_values_are_noticed(port, message):
    values = {"i__ready": "1", "o__valid": "1", "o__payload": "33'd0"} | {port: "1'bx"}
    text = (
        "module echo(input clk, input rst, input [32:0] i__payload, input i__valid, output i__ready,\n"
        "  output [32:0] o__payload, output o__valid, input o__ready);\n"
        + "".join(f"assign {name} = {value};\n" for name, value in values.items())
        + "endmodule\n"
    )
    with IcarusModel(text, "echo", 1) as model, pytest.raises(StreamViolation, match=message):
        model.run([1], [1], limits=QUICK)


@pytest.mark.icarus
@pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH")
def test_a_dead_simulator_is_an_error():
    with open_model("icarus", Faulty()) as model:
        assert model._process is not None
        model._process.kill()
        model._process.wait()
        with pytest.raises(SimulationError, match="the simulation stopped"):
            model.run([1], [1])
        with pytest.raises(MaskworkError, match="the simulation was closed"):
            model.run([1], [1])


@both
def test_bad_arguments(simulator):
    with open_model(simulator, Faulty()) as model:
        with pytest.raises(MaskworkTypeError, match="words must be uint32, not float64"):
            model.run([1.5], [1])
        with pytest.raises(MaskworkValueError, match=r"words must be from 0 to 2\*\*32 - 1"):
            model.run([-1], [1])
        with pytest.raises(MaskworkValueError, match="words must hold 1 for each of the 2 entries of last, not 3"):
            model.run([1, 2, 3], [0, 1])
        with pytest.raises(MaskworkValueError, match="out_stall must be a probability"):
            model.run([1], [1], out_stall=1.0)


@both
def test_a_netlist_that_cannot_be_built(simulator, tmp_path):
    cls = VerilatedModel if simulator == "verilator" else IcarusModel
    with pytest.raises(MaskworkError, match="failed with status") as caught:
        cls("module echo(; endmodule", "echo", 1, cache=empty_cache(tmp_path))
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("model.*") if path.is_file()]


# ---------------------------------------------------------------------- built once


@pytest.mark.slow
def test_the_second_build_runs_nothing(monkeypatch, tmp_path):
    text, _ = emit(Faulty(), "echo")
    cache = empty_cache(tmp_path)
    first = verilator.build(text, "echo", 1, cache=cache)

    def fail(*_):
        raise AssertionError("a tool was run")

    monkeypatch.setattr(verilator, "run_tool", fail)
    assert verilator.build(text, "echo", 1, cache=Cache(cache.root)) == first
    with pytest.raises(AssertionError):
        verilator.build(text + "\n", "echo", 1, cache=cache)
