"""The benchmark in several processes: the same report, errors and interrupts like those of one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen import bench as bench_module
from maskwork.gen.bench import Bench
from maskwork.gen.bench_jobs import processors, run_all
from maskwork.gen.errors import DeviceError, MaskworkValueError
from maskwork.gen.workload import COLUMNS

from .test_process import MAIN, runs, wait_for

ROWS = (
    "net,a,1,8,8,6,6,3,3,1,1,1,1,0.5,0.7,1,0.4,0.6,element,forward+input_grad+weight_grad",
    "net,b,1,8,8,6,6,3,3,1,1,1,1,0.5,0.7,1,0.4,0.6,element,forward+input_grad",
    "net,c,2,8,12,6,6,3,3,1,1,1,1,0.5,0.5,1,0.4,1,element,forward+weight_grad",
    "other,a,1,8,12,6,6,3,3,1,1,1,1,0.5,0.5,1,0.4,1,element,input_grad",
)


def children(parent):
    """Processes whose parent it is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(stat.parent.name))
    return sorted(found)


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text("\n".join([",".join(COLUMNS), *ROWS]))
    return path


def square(n):
    return n * n


def fail_late(n):
    if n == 2:
        raise MaskworkValueError("two is too many")
    if n == 3:
        time.sleep(600)
    return n


class Big:
    """Work that no pipe holds."""

    def __init__(self):
        self.data = bytes(1 << 21)

    def __call__(self, n):
        return len(self.data) + n


class Unpicklable(Exception):
    def __init__(self, number, more):
        super().__init__("number")


def fail_strangely(n):
    raise Unpicklable(n, 2)


def stop_early(n):
    os._exit(3)


def die(n):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_report_is_the_same(workload, tmp_path):
    """Own masks, ablation and all passes; every step is reported once."""
    own = tmp_path / "own.npz"
    np.savez(own, **{"net/c.input": np.random.default_rng(1).random((2, 6, 6, 8)) < 0.3})

    def report(jobs):
        steps = []
        made = Bench(workload, mw.preset("tiny"), masks_from=[own], skips=["", "ab"], jobs=jobs)
        found = made.run(steps.append)
        assert len(steps) == made.steps
        return json.loads(json.dumps(found), object_hook=lambda x: {k: v for k, v in x.items() if "seconds" not in k})

    one, three = report(1), report(3)
    assert one == three
    order = [(layer["network"], layer["layer"], layer["pass"]) for layer in one["layers"]]
    assert order == [
        (network, name, which) for network, name, *_, passes in (row.split(",") for row in ROWS)
        for which in passes.split("+")
    ]  # fmt: skip


def test_how_many_processes(workload, monkeypatch):
    assert Bench(workload, mw.preset("tiny"), jobs=None).jobs == 1
    monkeypatch.setattr(bench_module, "PARALLEL", 0)
    assert Bench(workload, mw.preset("tiny"), jobs=None).jobs == processors()
    with pytest.raises(MaskworkValueError, match=r"^jobs must be an integer of at least 1, not 0$"):
        Bench(workload, mw.preset("tiny"), jobs=0)


@pytest.mark.slow
def test_results_come_in_order():
    ended = []
    assert run_all(square, 7, 2, ended.append) == [0, 1, 4, 9, 16, 25, 36]
    assert sorted(ended) == list(range(7))
    assert run_all(square, 0, 2, ended.append) == []


@pytest.mark.slow
def test_an_error_ends_all_processes():
    before = children(os.getpid())
    start = time.monotonic()
    with pytest.raises(MaskworkValueError, match=r"^two is too many$"):
        run_all(fail_late, 5, 2, lambda n: None)
    assert time.monotonic() - start < 300 and children(os.getpid()) == before


def refuse(n):
    raise MaskworkValueError("not here")


@pytest.mark.slow
def test_what_is_told_of_progress_may_fail():
    before = children(os.getpid())
    with pytest.raises(MaskworkValueError, match=r"^not here$"):
        run_all(square, 5, 2, refuse)
    assert children(os.getpid()) == before


@pytest.mark.slow
def test_large_work_and_others_children():
    """A child process of the caller's own lives on."""
    other = subprocess.Popen(["sleep", "100"])
    try:
        assert run_all(Big(), 3, 2, lambda n: None) == [(1 << 21) + n for n in range(3)]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_from_a_script_without_a_guard(workload, tmp_path):
    code = "import maskwork as mw; print(len(mw.bench('w.csv', 'tiny', jobs=2)['layers']))"
    done = subprocess.run([sys.executable], input=code, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


@pytest.mark.slow
def test_a_killed_process_is_an_error():
    before = children(os.getpid())
    with pytest.raises(DeviceError, match=r"^a process of the benchmark was killed \(signal 9\), .*--jobs take less$"):
        run_all(die, 3, 2, lambda n: None)
    with pytest.raises(DeviceError, match=r"^a process of the benchmark ended with status 3; --jobs 1 does without$"):
        run_all(stop_early, 3, 2, lambda n: None)
    with pytest.raises(DeviceError, match=r"^Unpicklable: number$"):
        run_all(fail_strangely, 3, 2, lambda n: None)
    assert children(os.getpid()) == before


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("number", "delay"),
    [(signal.SIGINT, 0), (signal.SIGINT, 2), (signal.SIGTERM, 0.3), (signal.SIGHUP, 2), (signal.SIGKILL, 2)],
)
def test_a_signal_ends_all_processes(tmp_path, number, delay):
    """No process is left, and no report; an interrupt from the keyboard comes to all of them."""
    big = "net,{0},1,512,512,{0},56,3,3,1,1,1,1,0.5,0.7,1,0.4,0.6,element,forward"
    (tmp_path / "w.csv").write_text("\n".join([",".join(COLUMNS), big.format(56), big.format(55)]))
    process = subprocess.Popen(
        [*MAIN, "bench", "w.csv", "--jobs", "2", "--sample", "0", "--report", "r.json"], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    wait_for(lambda: len(children(process.pid)) == 2)
    time.sleep(delay)
    workers = children(process.pid)
    assert len(workers) == 2 and process.poll() is None
    if number in (signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    wait_for(lambda: not any(runs(pid) for pid in workers))
    if number == signal.SIGKILL:
        return
    assert process.returncode == 128 + number
    assert errors.strip() == "maskwork: interrupted" and os.listdir(tmp_path) == ["w.csv"]
