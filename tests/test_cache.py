"""The cache of built simulators, and the search for the simulators."""

import subprocess
import sys
import threading
import time

import pytest
from maskwork.gen.errors import MaskworkError
from maskwork.sim_tb import tools
from maskwork.sim_tb.cache import Cache, content_key

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
