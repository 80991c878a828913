"""The driver over a real serial device file: a model of the board behind it, and the complete design on Verilator."""

import errno
import json
import os
import signal
import subprocess
import sys
import types

import maskwork as mw
import numpy as np
import pytest
from maskwork.fpga.link import port as port_module
from maskwork.fpga.link.board_model import BoardModel
from maskwork.fpga.link.driver import SerialDevice
from maskwork.fpga.link.faults import FaultRates
from maskwork.fpga.link.identity import identity_words
from maskwork.fpga.link.virtual import ModelEngine, PtyBoard, RtlEngine, VirtualBoard
from maskwork.gen.cli import demo
from maskwork.gen.cli_common import run_command
from maskwork.gen.cli_serial import devices, serve
from maskwork.gen.isa import COMMANDS, Op, Reply
from maskwork.sim_tb.device import Device, GoldenDevice

TINY = mw.preset("tiny")


class SlowEngine(ModelEngine):
    """Takes some bytes at a time, and is unplugged after ``life`` of them."""

    def __init__(self, board, life=1 << 60):
        super().__init__(board)
        self.life = life

    def step(self, data):
        if self.life <= 0:
            raise mw.DeviceError("pulled out")
        taken = data[:500]
        self.life -= len(taken)
        return len(taken), self.board.receive(taken)


def model(config=TINY, says=None, **options):
    identity = identity_words(says or config, "virtual", 12e6, 3e6)
    return BoardModel(lambda: GoldenDevice(config), identity, stream_words=config.stream_words, **options)


def operands(m=23, k=40, n=17, seed=1):
    rng = np.random.default_rng(seed)
    a = rng.integers(-128, 128, (m, k)) * (rng.random((m, k)) < 0.4)
    b = rng.integers(-128, 128, (k, n)) * (rng.random((k, n)) < 0.5)
    return a, b, rng.random((m, n)) < 0.6


# ---------------------------------------------------------------------- the driver, on a model of the board


@pytest.mark.parametrize("config", [TINY, TINY.replace(name="wide", stream_words=4)], ids=["tiny", "wide"])
def test_serial_device(config):
    with PtyBoard(ModelEngine(model(config, seed=1))) as port, mw.open(f"serial:{port}", config) as device:
        assert isinstance(device, SerialDevice)
        assert isinstance(device, Device)
        assert device.identity.config == config
        beats = -(-2 // config.stream_words)
        words = (COMMANDS[Op.ECHO].encode({"token": 0x7E7D}) + [0] * 3)[: beats * config.stream_words]
        replies, last = device.execute(words, [False] * (beats - 1) + [True])
        assert replies[:2].tolist() == [Reply.ECHOED, 0x7E7D]
        assert device.last_run is not None
        assert (device.last_run.beats_in, device.last_run.beats_out, device.last_run.cycles) == (beats, len(last), 0)
        assert [array.size for array in device.execute([], [])] == [0, 0]
        device.reset()


@pytest.mark.parametrize("rate", [0, 0.001], ids=["clean", "faults"])
def test_a_product_through_a_device_file(rate):
    a, b, c_mask = operands()
    board = PtyBoard(ModelEngine(model(seed=2)), FaultRates.each(rate), seed=1)
    with board as port, SerialDevice(port) as device:  # the board's own configuration
        assert device.config == TINY
        from maskwork.gen.execute import execute_bound
        from maskwork.gen.matmul import Product
        from maskwork.gen.program import bind

        product = Product.of(TINY, a, b, {"c_mask": c_mask})
        bound = bind(product.program, product.operands, product.masks)
        device.last_run = None
        for _ in range(3):
            words, last = device.execute(bound.words, bound.last)
        golden = GoldenDevice(TINY)
        for _ in range(3):
            expected, expected_last = golden.execute(bound.words, bound.last)
        np.testing.assert_array_equal(words, expected)
        np.testing.assert_array_equal(last, expected_last)
        np.testing.assert_array_equal(execute_bound(golden, product.program, bound).outputs["c"], (a @ b) * c_mask)
        # (without faults too, if this machine is too slow for a while)
        assert device.link.words_repeated or not rate
    faults = [count for line in (board.to_board, board.from_board) for count in line.counts.values()]
    assert all(faults) if rate else not any(faults)


def test_the_wrong_bitstream_is_refused():
    other = TINY.replace(name="other", slots=4)
    with PtyBoard(ModelEngine(model(other))) as port:
        message = rf"'other' \({other.hash:#010x}\), the program is for 'tiny' \({TINY.hash:#010x}\): choose"
        with pytest.raises(mw.DeviceError, match=message):
            mw.matmul(*operands()[:2], config=TINY, target=f"serial:{port}")
    with PtyBoard(ModelEngine(model(other, says=TINY))) as port:  # its identity lies
        with pytest.raises(mw.DeviceError, match=rf"another build \({other.hash:#010x}\)"):
            SerialDevice(port, TINY)


def test_unplugged_in_mid_run():
    words = np.tile(np.array(COMMANDS[Op.ECHO].encode({"token": 3}), np.uint32), 5000)
    engine = SlowEngine(model())
    with pytest.raises(mw.DeviceError, match="pulled out"), PtyBoard(engine) as port, SerialDevice(port) as device:
        engine.life = 20000
        with pytest.raises(mw.DeviceError, match=rf"serial:{port}: the port is gone .*unplugged"):
            device.execute(words, [False, True] * 5000)


def test_no_answer():
    board = model()
    board.receive = lambda data: b""
    with PtyBoard(ModelEngine(board)) as port:
        with pytest.raises(mw.DeviceError, match=rf"serial:{port}: no answer at 3000000 baud: not a maskwork board"):
            SerialDevice(port, TINY)
    with PtyBoard(ModelEngine(model(version=9))) as port:
        with pytest.raises(mw.DeviceError, match="version 9 of the link is on the board, 1 here"):
            SerialDevice(port, TINY)


def test_ports_that_cannot_be_opened(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for target, message in (
        ("serial:/dev/none", r"serial:/dev/none: no such port; ports: "),
        (f"serial:{file}", "not a serial port"),
        (f"serial:{tmp_path}", "not a serial port"),
        ("serial:", r"serial:PORT or serial:PORT@BAUD is expected"),
        ("serial:/dev/none@fast", r"serial:PORT or serial:PORT@BAUD is expected"),
        ("parallel:/dev/lp0", r"unknown target 'parallel:/dev/lp0'; targets: golden, cycle, rtl, serial:PORT"),
    ):
        with pytest.raises(mw.MaskworkValueError, match=message), mw.open(target, TINY):
            pass
    with PtyBoard(ModelEngine(model())) as port, SerialDevice(port):
        with pytest.raises(mw.DeviceError, match=rf"serial:{port}: in use by another program"):
            SerialDevice(port)
    with pytest.raises(mw.MaskworkValueError, match=r"option seed is none of .*baud, patience"):
        with mw.open("serial:/dev/none", TINY, seed=1):
            pass


@pytest.mark.parametrize(
    ("error", "message"),
    [(PermissionError(errno.EACCES, "denied"), "no permission; on Linux join .*dialout.*udev"),
     (OSError(errno.EBUSY, "busy"), "in use"), (ValueError("Invalid baud rate: 7"), "does not do 7 baud"),
     (OSError(errno.EIO, "broken"), "cannot be opened .broken")],
)  # fmt: skip
def test_why_a_port_does_not_open(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(port_module.serial, "Serial", refuse)
    with pytest.raises(mw.MaskworkError, match=rf"^serial:/dev/ttyX: .*{message}"):
        SerialDevice("/dev/ttyX", baud=7)


# ---------------------------------------------------------------------- commands


def test_devices_command(capsys, monkeypatch):
    monkeypatch.setattr(port_module.list_ports, "comports", lambda: [])
    assert run_command(devices, ["--port", "/dev/none"]) == 2
    said = capsys.readouterr()
    assert "No board found (1 ports asked)" in said.out
    assert said.err == "maskwork: error: serial:/dev/none: no such port; ports: none (is the board plugged in?)\n"
    with PtyBoard(ModelEngine(model())) as port:
        assert run_command(devices, ["--port", port, "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found.pop("settings") == TINY.to_dict()
        assert found == {
            "port": port, "board": "virtual", "config": "tiny", "config_hash": TINY.hash, "pes": 2,
            "clock_hz": 12_000_000, "baud": 3_000_000, "maskwork": mw.__version__,
        }  # fmt: skip
        assert run_command(devices, ["--port", port, "--port", "/dev/none"]) == 2
        said = capsys.readouterr()
        assert f"{TINY.hash:#010x}" in said.out and port in said.out and "no such port" in said.err


def test_a_port_that_nobody_named_may_hold_no_board(capsys, monkeypatch):
    port = types.SimpleNamespace(device="/dev/other", vid=1, description="USB")
    monkeypatch.setattr(port_module.list_ports, "comports", lambda: [port])
    assert run_command(devices, ["--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["port"] == "/dev/other" and "serial:/dev/other: no such port" in said.err


def test_devices_without_boards(capsys, monkeypatch):
    monkeypatch.setattr(port_module.list_ports, "comports", lambda: [])
    assert run_command(devices, []) == 0
    assert "No board found (no USB serial port is there)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--board", "x"], "only 'virtual' can be served, not 'x'"), (["--baud-cycles", "3"], "baud_cycles must be 4"),
     (["--faults", "0.5"], "drop: a fault's rate must be from 0 to 0.1"),
     (["--truncate", "-1"], "truncate: a fault's rate must be from 0 to 0.1")],
)  # fmt: skip
def test_what_serve_refuses(arguments, message, capsys):
    assert run_command(serve, arguments) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------- the complete design


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0, 0.0005], ids=["clean", "faults"])
def test_a_product_on_the_complete_design(rate):
    a, b, c_mask = operands()
    options = {"c_mask": c_mask, "config": TINY}
    board = VirtualBoard(TINY, faults=FaultRates.each(rate), seed=2)
    with board as port:
        first = mw.matmul(a, b, target=f"serial:{port}", **options)
        second = mw.matmul(a + 1, b, target=f"serial:{port}", **options)
    np.testing.assert_array_equal(first.c, (a @ b) * c_mask)
    np.testing.assert_array_equal(second.c, ((a + 1) @ b) * c_mask)
    assert first.report["target"] == f"serial:{port}"
    assert sum(first.report["pe_cycles"].values()) == first.report["cycles"] * TINY.pes
    cycle = mw.matmul(a, b, target="cycle", **options).report
    for key in ("macs_effectual", "words_in", "words_out"):
        assert first.report[key] == cycle[key]
    assert first.report["pe_cycles"]["effectual"] == cycle["pe_cycles"]["effectual"]
    for line in (board.to_board, board.from_board):
        assert all(line.counts.values()) if rate else not any(line.counts.values())


@pytest.mark.slow  # a whole network through a simulated UART
def test_the_demonstration_with_faults(capsys, tmp_path):
    """It compares every output with the golden model's itself."""
    config, report = mw.preset("small"), tmp_path / "r.json"
    board = VirtualBoard(config, faults=FaultRates.each(0.0005), seed=3)
    with board as port:
        assert run_command(demo, ["--images", "1", "--target", f"serial:{port}", "--report", str(report)]) == 0
    link = json.loads(report.read_text())["link"]
    assert "link: " in capsys.readouterr().out and link["words_sent"] > 5000 and link["words_received"] > 1000
    assert all(count for line in (board.to_board, board.from_board) for count in line.counts.values())
    assert link["answers_dropped"] and link["board_dropped"] and link["words_repeated"]


@pytest.mark.slow
def test_the_simulation_sleeps_when_nothing_comes():
    engine = RtlEngine(TINY)
    engine.linger = 0.05
    board = PtyBoard(engine)
    with board as port, SerialDevice(port, TINY) as device:
        words, last = COMMANDS[Op.ECHO].encode({"token": 5}), [False, True]
        device.execute(words, last)
        cycles = -1
        while cycles != engine.cycles:
            cycles = engine.cycles
            assert not board._thread.join(0.3)
        assert device.execute(words, last)[0].tolist() == [Reply.ECHOED, 5]
        assert engine.cycles > cycles


@pytest.mark.slow
def test_serve_command():
    code = "import sys; from maskwork.gen import cli_common as c, cli_serial as s; sys.exit(c.run_command(s.serve))"
    command = [sys.executable, "-c", code, "--preset", "tiny", "--faults", "0.0003", "--seed", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            assert "virtual board with tiny (2 PEs) on /dev/" in line
            target = server.stdout.readline().split()[-1]
            a, b, _ = operands()
            np.testing.assert_array_equal(mw.matmul(a, b, config=TINY, target=target).c, a @ b)
        finally:
            server.send_signal(signal.SIGTERM)
        text = server.stdout.read()
        assert server.wait(20) == 0
    assert "to the board: " in text and "from the board: " in text
    counts = [int(word) for word in text.replace(",", " ").split() if word.isdecimal()]
    assert len(counts) == 10 and sum(counts[1:5]) > 0 and sum(counts[6:]) > 0
