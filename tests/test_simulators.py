"""Verilator and Icarus run the same words alike, notice what goes wrong, and are built once."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from amaranth.hdl import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen import generate as generate_module
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.generate import emit
from maskwork.gen.isa import COMMANDS, REPLIES, Op, Reply
from maskwork.rtl.hierarchy import submodule
from maskwork.sim_tb import tools, verilator
from maskwork.sim_tb.cache import Cache, content_key
from maskwork.sim_tb.device import Device, RtlDevice, open_device
from maskwork.sim_tb.icarus import IcarusModel
from maskwork.sim_tb.run import (
    RunLimits,
    SimulationError,
    SimulationStuck,
    SimulationTimeout,
    StreamViolation,
    limits_for,
)
from maskwork.sim_tb.verilator import VerilatedModel

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
        cls("module echo(; endmodule", "echo", 1, cache=Cache(tmp_path))
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("model.*") if path.is_file()]


# ---------------------------------------------------------------------- tools


def test_missing_icarus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MaskworkError, match="no Icarus Verilog on PATH"):
        tools.find_icarus()


def test_missing_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MaskworkError, match=r"no C\+\+ compiler on PATH"):
        tools.find_verilator()


@pytest.mark.parametrize("version, used", [("5.006 2022-01-22", False), ("5.036 2025-04-27", True)])
def test_verilator_on_path_is_used_if_new_enough(monkeypatch, tmp_path, version, used):
    for name, text in (("verilator", f'[ $1 = --getenv ] && echo /root || echo "Verilator {version}"'), ("g++", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = tools.find_verilator()
    assert (found.command == str(tmp_path / "verilator")) == used
    assert found.environment["VERILATOR_ROOT"] == str(found.root)
    monkeypatch.setattr(tools.util, "find_spec", lambda name: None)
    tools._find_verilator.cache_clear()
    if not used:
        with pytest.raises(MaskworkError, match=r"no Verilator 5.036 or newer \(the one on PATH is 5.006\)"):
            tools.find_verilator()
    tools._find_verilator.cache_clear()


# ---------------------------------------------------------------------- cache


def test_parts_of_a_key_do_not_run_together():
    assert content_key("ab", "c") != content_key("a", "bc")
    assert content_key("ab", b"c") == content_key("ab", "c")


def test_an_entry_is_built_once(tmp_path):
    cache = Cache(tmp_path / "a b")
    builds = []

    def build(folder):
        builds.append(folder)
        time.sleep(0.05)
        (folder / "file").write_text("built")

    threads = [threading.Thread(target=lambda: cache.entry("ab" * 20, build)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert (cache.entry("ab" * 20, build) / "file").read_text() == "built"
    assert not list((tmp_path / "a b" / "building").iterdir())


def test_processes_share_a_cache(tmp_path):
    code = (
        "import sys, time, pathlib; from maskwork.sim_tb.cache import Cache\n"
        "def build(folder):\n"
        "    time.sleep(0.3); print('built'); (folder / 'file').write_text('x')\n"
        "print((Cache(pathlib.Path(sys.argv[1])).entry('cd' * 20, build) / 'file').read_text())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate()[0].split() for process in processes]
    assert sorted(outputs) == [["built", "x"], ["x"], ["x"]]


def test_a_failed_build_leaves_nothing(tmp_path):
    cache = Cache(tmp_path)

    def fail(folder):
        (folder / "half").write_text("")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry("ab" * 20, fail)
    assert not [path for path in tmp_path.rglob("half")]
    cache.entry("ab" * 20, lambda folder: None)


def test_the_cache_is_bounded(tmp_path):
    cache = Cache(tmp_path, max_entries=3, max_bytes=1000, grace=-1.0)
    for index in range(6):
        cache.entry(f"{index:040}", lambda folder: None)
        time.sleep(0.02)
        cache.entry(f"{0:040}", lambda folder: None)
        time.sleep(0.02)
    assert sorted(int(path.name) for path in (tmp_path / "entries").iterdir()) == [0, 4, 5]
    cache.entry(f"{9:040}", lambda folder: (folder / "big").write_bytes(bytes(900)) and None)
    time.sleep(0.02)
    cache.entry(f"{8:040}", lambda folder: (folder / "big").write_bytes(bytes(900)) and None)
    assert [int(path.name) for path in (tmp_path / "entries").iterdir()] == [8]


def test_entries_in_use_are_kept(tmp_path):
    cache = Cache(tmp_path, max_entries=1)
    for index in range(3):
        cache.entry(f"{index:040}", lambda folder: None)
    assert len(list((tmp_path / "entries").iterdir())) == 3


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskworkError, match=r"cannot be used as a cache .*set MASKWORK_CACHE"):
        Cache(tmp_path / "file").entry("ab" * 20, lambda folder: None)


def test_the_environment_places_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MASKWORK_CACHE", raising=False)
    assert Cache().root == tmp_path / "maskwork"
    monkeypatch.setenv("MASKWORK_CACHE", str(tmp_path / "own"))
    assert Cache().root == tmp_path / "own"


@pytest.mark.slow
def test_the_second_build_runs_nothing(monkeypatch, tmp_path):
    text, _ = emit(Faulty(), "echo")
    first = verilator.build(text, "echo", 1, cache=Cache(tmp_path))

    def fail(*_):
        raise AssertionError("a tool was run")

    monkeypatch.setattr(verilator, "run_tool", fail)
    assert verilator.build(text, "echo", 1, cache=Cache(tmp_path)) == first
    with pytest.raises(AssertionError):
        verilator.build(text + "\n", "echo", 1, cache=Cache(tmp_path))


# ---------------------------------------------------------------------- devices


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
    for target, reason in (("cycle", "not in this version"), ("serial:/dev/tty", "not in this version"), ("x", "unk")):
        with pytest.raises(MaskworkValueError, match=f"{reason}.*targets: golden, rtl"), open_device(target, Config()):
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
        return Faulty()

    monkeypatch.setattr(generate_module, "_accelerator", accelerator)
    config = Config(name="dense-small")
    words = np.array([0x84, 0x85, 0], np.uint32)
    for _ in range(2):
        limits = RunLimits(idle_limit=30)
        with open_device("rtl", config, simulator=simulator, limits=limits, cache=Cache(tmp_path)) as device:
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
