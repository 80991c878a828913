"""Parts of a benchmark in several processes at a time.

The processes are started by hand: multiprocessing would run the caller's main script again in each of them, and shares
its bookkeeping with whatever else the caller does with it.
"""

from __future__ import annotations

import os
import pickle
import selectors
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from maskwork.gen.errors import DeviceError

Work = Callable[[int], Any]

_CODE = "from maskwork.gen.bench_jobs import serve; serve()"


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(work: Work, number: int, jobs: int, ended: Callable[[int], None]) -> list[Any]:
    """Results of ``work(0)`` to ``work(number - 1)``.

    Args:
        work: sent to each process once, when it starts; it and its results must be able to be pickled.
        number: how often.
        jobs: processes at most; 1 works in this one.
        ended: called with the number of each that has ended.

    Raises:
        DeviceError: if a process is killed or cannot work.
        Exception: what ``work`` raises; the other processes are then ended.
    """
    jobs = min(jobs, number)
    results: dict[int, Any] = {}
    if jobs <= 1:
        for n in range(number):
            results[n] = work(n)
            ended(n)
        return list(results.values())
    todo = deque(range(number))
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="maskwork-") as folder, selectors.DefaultSelector() as selector:
        path = Path(folder) / "work"
        path.write_bytes(pickle.dumps(work))
        try:
            for _ in range(jobs):
                worker = _Worker(path)
                workers.append(worker)
                selector.register(worker.answers, selectors.EVENT_READ, worker)
                worker.give(todo.popleft())
            while len(results) < number:
                for key, _ in selector.select():
                    n, result = key.data.take()
                    results[n] = result
                    ended(n)
                    if todo:
                        key.data.give(todo.popleft())
        finally:
            # whoever still works does so in vain
            for worker in workers:
                worker.end()
    return [results[n] for n in range(number)]


class _Worker:
    def __init__(self, path: Path):
        # a session of its own: what the keyboard or a terminal that goes sends comes to the first process alone
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None  # they are pipes
        self._numbers, self.answers = self._process.stdin, self._process.stdout

    def give(self, n: int) -> None:
        try:
            self._numbers.write(b"%d\n" % n)
            self._numbers.flush()
        except BrokenPipeError:
            raise self._dead() from None

    def take(self) -> tuple[int, Any]:
        try:
            n, good, value = pickle.load(self.answers)
        except (EOFError, pickle.UnpicklingError):
            raise self._dead() from None
        if not good:
            raise value
        return n, value

    def _dead(self) -> DeviceError:
        status = self._process.wait()
        if status < 0:
            return DeviceError(
                f"a process of the benchmark was killed (signal {-status}), as happens when memory runs out; fewer "
                "--jobs take less"
            )
        return DeviceError(f"a process of the benchmark ended with status {status}; --jobs 1 does without")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.answers.close()
        try:
            self._numbers.close()
        except BrokenPipeError:
            pass


def serve() -> None:
    """A process that works: numbers come on standard input, pickled answers go to standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer
    numbers: SimpleQueue[int] = SimpleQueue()
    threading.Thread(target=_receive, args=(numbers,), daemon=True).start()
    loaded: list[Work] = []
    while True:
        n = numbers.get()
        try:
            if not loaded:
                loaded.append(pickle.loads(Path(sys.argv[1]).read_bytes()))
            answer = pickle.dumps((n, True, loaded[0](n)))
        except Exception as error:
            answer = _error(n, error)
        answers.write(answer)
        answers.flush()


def _receive(numbers: SimpleQueue[int]) -> None:
    for line in sys.stdin.buffer:
        numbers.put(int(line))
    os._exit(1)  # the first process has gone, however that happened


def _error(n: int, error: Exception) -> bytes:
    try:
        answer = pickle.dumps((n, False, error))
        pickle.loads(answer)
    except Exception:
        # an exception that cannot be sent
        answer = pickle.dumps((n, False, DeviceError(f"{type(error).__name__}: {error}")))
    return answer
