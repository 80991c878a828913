"""The command line as a process: its exit statuses, and what it leaves when a signal ends it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

AB = ("--a", "a.npy", "--b", "b.npy")
MAIN = [sys.executable, "-c", "from maskwork.gen.cli import main; main()"]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def runs(number):
    """Whether there is a process that has not ended; one whose end nobody has asked for yet has."""
    try:
        stat = pathlib.Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with two operands."""
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.int8))
    np.save(tmp_path / "b.npy", np.ones((4, 5), np.int8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_exit_statuses_of_the_process(folder):
    good = subprocess.run([*MAIN, "matmul", *AB, "--target", "golden"], capture_output=True, text=True)
    assert good.returncode == 0 and not good.stderr
    bad = subprocess.run([*MAIN, "matmul", *AB, "--preset", "x"], capture_output=True, text=True)
    assert bad.returncode == 2 and not bad.stdout and bad.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupt(folder, number, status):
    os.mkfifo("pipe.npy")  # opening it waits for a writer that never comes
    before = sorted(os.listdir())
    process = subprocess.Popen(
        [*MAIN, "matmul", "--a", "pipe.npy", "--b", "b.npy", "-o", "c.npy"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    wait_for(lambda: sorted(os.listdir()) != before)
    assert any(name.startswith(".c.npy.") for name in os.listdir())
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status and "Traceback" not in errors
    assert sorted(os.listdir()) == before


SLOW_START = """
import subprocess, time
start = subprocess.Popen._execute_child
def and_wait(*args, **kwargs):
    start(*args, **kwargs)
    time.sleep(1)
subprocess.Popen._execute_child = and_wait
"""


@pytest.mark.parametrize("before", ["", SLOW_START], ids=["running", "starting"])
def test_a_terminated_build_ends_its_tools(folder, before):
    """A yosys that sleeps for ever, and notes its process number; the signal may come while it is being started."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "yosys").write_text("#!/bin/sh\n[ $1 = -V ] && exec echo Yosys 0.60\necho $$ > $NOTE\nexec sleep 1000\n")
    (tools / "yosys").chmod(0o755)
    note = folder / "note"
    own = {
        "PATH": f"{tools}:{os.environ['PATH']}", "NOTE": str(note), "MASKWORK_CACHE": str(folder / "cache"),
        "AMARANTH_USE_YOSYS": "builtin",
    }  # fmt: skip
    command = [*MAIN[:2], before + MAIN[2], "build", "--board", "icebreaker", "-o", "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **own})
    wait_for(lambda: note.exists() and note.read_text())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and "Traceback" not in errors
    assert not any((folder / "out").glob("*")) and not any((folder / "out").glob(".*"))
    wait_for(lambda: not runs(int(note.read_text())))
