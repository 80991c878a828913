"""The benchmark in several processes: the same report, errors and interrupts like those of one."""

import json
import multiprocessing
import os
import signal
import subprocess
import time

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
    start = time.monotonic()
    with pytest.raises(MaskworkValueError, match=r"^two is too many$"):
        run_all(fail_late, 5, 2, lambda n: None)
    assert time.monotonic() - start < 300 and not multiprocessing.active_children()


@pytest.mark.slow
def test_a_killed_process_is_an_error():
    with pytest.raises(DeviceError, match=r"^a process of the benchmark was killed, .*fewer --jobs take less$"):
        run_all(die, 3, 2, lambda n: None)
    assert not multiprocessing.active_children()


def children(parent):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes(tmp_path, number):
    """No process is left, and no report; an interrupt from the keyboard comes to all of them."""
    big = "net,{0},1,512,512,{0},56,3,3,1,1,1,1,0.5,0.7,1,0.4,0.6,element,forward"
    (tmp_path / "w.csv").write_text("\n".join([",".join(COLUMNS), big.format(56), big.format(55)]))
    process = subprocess.Popen(
        [*MAIN, "bench", "w.csv", "--jobs", "2", "--sample", "0", "--report", "r.json"], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    # two, and multiprocessing's own
    wait_for(lambda: len(children(process.pid)) == 3)
    time.sleep(2)
    workers = children(process.pid)
    assert len(workers) == 3 and process.poll() is None
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    wait_for(lambda: not any(runs(pid) for pid in workers))
    if number == signal.SIGKILL:
        return
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert errors.strip() == "maskwork: interrupted" and os.listdir(tmp_path) == ["w.csv"]
