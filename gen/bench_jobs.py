"""Parts of a benchmark in several processes at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from maskwork.gen.errors import DeviceError

Work = Callable[[int], Any]

_work: Work | None = None


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
        ended: called in this process, from any of its threads, with the number of each that has ended.

    Raises:
        DeviceError: if a process is killed.
        Exception: what ``work`` raises; the other processes are then ended.
    """
    jobs = min(jobs, number)
    if jobs <= 1:
        results = []
        for n in range(number):
            results.append(work(n))
            ended(n)
        return results
    # started anew: a copy of a process with threads (a progress bar's, NumPy's) can hang
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, context, _begin, (work,))
    try:
        futures = [pool.submit(_call, n) for n in range(number)]
        for n, future in enumerate(futures):
            future.add_done_callback(lambda done, n=n: None if _failed(done) else ended(n))
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if _failed(future):
                future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DeviceError("a process of the benchmark was killed, as happens when memory runs out; "
                          "fewer --jobs take less") from None  # fmt: skip
    finally:
        # whoever still works does so in vain
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _failed(future: Any) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _begin(work: Work) -> None:
    global _work
    _work = work
    # an interrupt from the keyboard goes to all processes; the first one ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(n: int) -> Any:
    assert _work is not None  # _begin has run
    return _work(n)
