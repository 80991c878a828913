"""From a configuration to a netlist and its manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth._toolchain.yosys import YosysError, find_yosys
from amaranth.lib import wiring
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.isa import COUNTERS, ISA_VERSION
from maskwork.rtl.hierarchy import elaborate_all, module_count

MANIFEST_FORMAT = "maskwork-manifest"
MANIFEST_VERSION = 1

_STRIPPED = ("generator", "top", "src", "amaranth.hierarchy", "amaranth.decoding")

_PORT_DOCS = {
    "clk": "clock; every register takes its rising edge",
    "rst": "synchronous reset, active high; not needed after configuration or power-up",
    "i__payload": "command stream: data in the low bits, `last` of the packet in the top bit",
    "i__valid": "command stream: a beat is offered, and stays until it is taken",
    "i__ready": "command stream: the beat is taken at this edge if i__valid",
    "o__payload": "reply stream: data in the low bits, `last` of the packet in the top bit",
    "o__valid": "reply stream: a beat is offered, and stays until it is taken",
    "o__ready": "reply stream: the beat is taken at this edge if o__valid",
}

_KEYWORDS = frozenset(
    """accept_on alias always always_comb always_ff always_latch and assert assign assume automatic before begin bind
    bins binsof bit break buf bufif0 bufif1 byte case casex casez cell chandle checker class clocking cmos config const
    constraint context continue cover covergroup coverpoint cross deassign default defparam design disable dist do edge
    else end endcase endchecker endclass endclocking endconfig endfunction endgenerate endgroup endinterface endmodule
    endpackage endprimitive endprogram endproperty endsequence endspecify endtable endtask enum event eventually expect
    export extends extern final first_match for force foreach forever fork forkjoin function generate genvar global
    highz0 highz1 if iff ifnone ignore_bins illegal_bins implements implies import incdir include initial inout input
    inside instance int integer interconnect interface intersect join join_any join_none large let liblist library
    local localparam logic longint macromodule matches medium modport module nand negedge nettype new nexttime nmos nor
    noshowcancelled not notif0 notif1 null or output package packed parameter pmos posedge primitive priority program
    property protected pull0 pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase
    randsequence rcmos real realtime ref reg reject_on release repeat restrict return rnmos rpmos rtran rtranif0
    rtranif1 s_always s_eventually s_nexttime s_until s_until_with scalared sequence shortint shortreal showcancelled
    signed small soft solve specify specparam static string strong strong0 strong1 struct super supply0 supply1
    sync_accept_on sync_reject_on table tagged task this throughout time timeprecision timeunit tran tranif0 tranif1
    tri tri0 tri1 triand trior trireg type typedef union unique unique0 unsigned until until_with untyped use uwire var
    vectored virtual void wait wait_order wand weak weak0 weak1 while wildcard wire with within wor xnor xor""".split()
)

# the first words that memories are initialised with; a run of equal ones becomes a loop
_INIT = re.compile(r"^    (\S+|\\\S+ )\[(\d+)\] = (\d+'h[0-9a-fx]+);\n", re.MULTILINE)
_LOOP_FROM = 8
_INIT_BLOCK = re.compile(
    r"^  reg \[[^\n]*\] (\S+|\\\S+ ?) ?\[\d+:0\];\n  initial begin\n(.*?)^  end\n", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Generated:
    """A netlist and what describes it.

    Attributes:
        text: SystemVerilog, or Verilog-2005.
        manifest: plain values, as in ``NAME.json`` (docs/formats.md).
        name: the top module's name.
        paths: netlist and manifest as written, empty if they were not.
    """

    text: str
    manifest: dict[str, Any]
    name: str
    paths: tuple[Path, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the text, in hexadecimal."""
        return self.manifest["sha256"]


def module_name(config: Config) -> str:
    """The top module's name: the configuration's, with ``-`` replaced by ``_``, and with ``_top`` behind it where that
    is a Verilog keyword (``small`` is one) or a port's name.

    Raises:
        MaskworkValueError: if that is not a Verilog identifier.
    """
    name = config.name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise MaskworkValueError(f"name must hold only ASCII letters, digits, '-' and '_', not {config.name!r}")
    return f"{name}_top" if name in _KEYWORDS or name in _PORT_DOCS else name


def emit(top: wiring.Component, name: str, *, verilog: bool = False, verify: bool = False) -> tuple[str, int]:
    """Convert a component to a netlist in which each distinct component is one module.

    Args:
        top: the component, not elaborated before.
        name: top module's name.
        verilog: Verilog-2005 instead of SystemVerilog.
        verify: check the components' hierarchy keys (for tests).

    Returns:
        The text, byte-identical for equal designs, and the number of modules in it.

    Raises:
        MaskworkError: if the Yosys that Amaranth brings is not installed.
    """
    rtlil_text = elaborate_all(top, name, verify=verify)
    try:
        yosys = find_yosys(lambda version: version >= (0, 40))
    except YosysError:
        raise MaskworkError("no Yosys to write Verilog with: pip install 'amaranth[builtin-yosys]'") from None
    removals = " ".join(f"-remove {attribute}" for attribute in _STRIPPED)
    script = [
        f"read_rtlil <<rtlil\n{rtlil_text}\nrtlil",
        # SystemVerilog keeps processes (always_comb runs at time 0). Verilog-2005 has only `always @*`, which waits for
        # a change that never comes when inputs are constant (amaranth#1629): there they become continuous assignments.
        "proc -norom" if verilog else "proc -nomux -norom",
        "memory_collect",
        *(["delete t:$check"] if verilog else []),  # Verilog-2005 has no assertions
        f"attrmap {removals}",
        f"attrmap -modattr {removals}",
        # internal names such as $procmux$1 become functions' names, which Icarus takes for system functions: renamed
        "write_verilog" if verilog else "write_verilog -sv -norename",
    ]
    text = yosys.run(["-q", "-"], "\n".join(script), ignore_warnings=True)
    return _compact_initial_values(text), module_count(rtlil_text)


def generate(
    config: Config,
    output_dir: str | os.PathLike[str] | None = None,
    verilog: bool = False,
    top: wiring.Component | None = None,
) -> Generated:
    """Generate the accelerator of a configuration.

    Args:
        config: the configuration.
        output_dir: directory for ``NAME.sv`` (``NAME.v``) and ``NAME.json``, made if missing; ``None`` writes nothing.
        verilog: Verilog-2005 instead of SystemVerilog.
        top: another component than the accelerator: a wrapper around it, or one for tests. Its ``port_docs`` describe
            its ports, and its ``registers`` go into the manifest.

    Returns:
        The netlist and its manifest; equal configurations give equal bytes.

    Raises:
        MaskworkError: if the name cannot be a module's, or the directory cannot be written.
    """
    name = module_name(config)
    design = _accelerator(config) if top is None else top
    text, modules = emit(design, name, verilog=verilog)
    text = f"// maskwork {name}: configuration {config.hash:08x}, instruction set {ISA_VERSION}\n{text}"
    file_name = f"{config.name}{'.v' if verilog else '.sv'}"
    manifest = _manifest(config, name, file_name, text, modules, design)
    paths: tuple[Path, ...] = ()
    if output_dir is not None:
        document = json.dumps(manifest, indent=2) + "\n"
        paths = write_files(output_dir, {file_name: text, f"{config.name}.json": document})
    return Generated(text, manifest, name, paths)


def _accelerator(config: Config) -> wiring.Component:
    from maskwork.rtl.accelerator import Accelerator

    return Accelerator(config)


def _manifest(
    config: Config, name: str, file_name: str, text: str, modules: int, top: wiring.Component
) -> dict[str, Any]:
    encoded = text.encode()
    return {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "name": config.name,
        "top": name,
        "file": file_name,
        "language": "Verilog-2005" if file_name.endswith(".v") else "SystemVerilog",
        "isa_version": ISA_VERSION,
        "config_hash": config.hash,
        "config": config.to_dict(),
        "ports": _ports(top),
        **({"registers": top.registers} if hasattr(top, "registers") else {}),  # type: ignore[attr-defined]
        "latencies": dict(getattr(top, "latencies", {})),
        "counters": list(COUNTERS) if config.counters else [],
        "modules": modules,
        "bytes": len(encoded),
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }


def _ports(top: wiring.Component) -> list[dict[str, Any]]:
    docs: Mapping[str, str] = {**_PORT_DOCS, **getattr(top, "port_docs", {})}
    ports = [] if hasattr(top, "clock_ports") else [("clk", 1, "input"), ("rst", 1, "input")]
    for path, member, value in top.signature.flatten(top):
        width = len(value.as_value() if hasattr(value, "as_value") else value)  # type: ignore[union-attr]
        direction = "input" if member.flow == wiring.In else "output"
        ports.append(("__".join(map(str, path)), width, direction))
    return [
        {"name": name, "width": width, "direction": direction, "doc": docs.get(name, "")}
        for name, width, direction in ports
    ]


def write_files(directory: str | os.PathLike[str], files: Mapping[str, str]) -> tuple[Path, ...]:
    """Write text files so that a reader, or a crash, never meets half of one.

    Args:
        directory: made if missing.
        files: text by file name.

    Returns:
        Their paths, in order.

    Raises:
        MaskworkError: naming the directory, if it cannot be written; no file is left half written.
    """
    folder = Path(directory)
    pending: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file_name in files:
            if (folder / file_name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{file_name} is a directory")
        mode = 0o666 & ~_umask()
        for file_name, text in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{file_name}.", dir=folder)
            pending.append((temporary, folder / file_name))
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            os.chmod(temporary, mode)
        for temporary, path in pending:
            os.replace(temporary, path)
    except OSError as error:
        raise MaskworkError(
            f"{folder}: cannot be written ({error.strerror}); a writable directory is expected"
        ) from None
    finally:
        for temporary, _ in pending:
            Path(temporary).unlink(missing_ok=True)
    return tuple(path for _, path in pending)


def check_folder(directory: str | os.PathLike[str]) -> None:
    """Refuse a directory that files could not be written to, before any work is done for them; makes nothing.

    Raises:
        MaskworkError: naming it.
    """
    folder = Path(directory)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = os.strerror(errno.EACCES if nearest.is_dir() else errno.ENOTDIR)
        raise MaskworkError(f"{folder}: cannot be written ({why}); a writable directory is expected")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _compact_initial_values(text: str) -> str:
    """Write runs of equal initial words of a memory as loops: big memories start at 0, one line a word is megabytes."""

    def block(match: re.Match[str]) -> str:
        lines = _INIT.findall(match[2])
        if "".join(f"    {memory}[{index}] = {value};\n" for memory, index, value in lines) != match[2]:
            return match[0]
        body: list[str] = []
        position = 0
        looped = False
        while position < len(lines):
            memory, first, value = lines[position]
            end = position
            while end + 1 < len(lines) and lines[end + 1] == (memory, str(int(lines[end][1]) + 1), value):
                end += 1
            if end - position + 1 >= _LOOP_FROM:
                looped = True
                body.append(f"    for (index = {first}; index <= {lines[end][1]}; index = index + 1)\n")
                body.append(f"      {memory}[index] = {value};\n")
                position = end + 1
            else:
                body.append(f"    {memory}[{first}] = {value};\n")
                position += 1
        if not looped:
            return match[0]
        head = match[0][: match[0].index("  initial begin\n")]
        label = re.sub(r"\W", "_", match[1].strip()) + "_initial"
        return f"{head}  initial begin : {label}\n    integer index;\n{''.join(body)}  end\n"

    return _INIT_BLOCK.sub(block, text)
