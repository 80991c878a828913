"""The command line, ``maskwork``. Commands import what they need themselves, so that help pages come at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.cli_bench import bench
from maskwork.gen.cli_build import build, flash
from maskwork.gen.cli_compare import compare
from maskwork.gen.cli_cost import cost, sizes
from maskwork.gen.cli_network import compile_command, run_command
from maskwork.gen.cli_quantise import quantise_command
from maskwork.gen.cli_serial import devices, serve
from maskwork.gen.cli_train import train_demo
from maskwork.gen.config import Config, preset_doc, presets
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.report import link_line

_KIB_BITS = 8 * 1024

_SHAPE = {
    "PEs": "pes", "lanes": "lanes", "PEs a lane": "pes_per_lane", "slots": "slots", "contexts": "rows_in_flight",
    "stream words": "stream_words", "skip": "skip",
}  # fmt: skip


@click.group(
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="CONFIG is --preset NAME or --config FILE.toml, and any number of --set KEY=VALUE. Bad input gives one "
    "line on standard error and exit status 2.",
)
@click.version_option(package_name="maskwork", message="%(prog)s %(version)s")
def cli() -> None:
    """Generate sparse-aware neural-network accelerators, and run them.

    Start with `maskwork demo`.
    """


def main() -> None:
    """Entry of the console script. SIGTERM and SIGHUP end a command as Ctrl-C does, with its tools and unfinished
    outputs.
    """
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if _starts_a_tool(frame):  # nobody knows it yet who could end it: a moment later
            later = threading.Timer(0.02, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return
        signal.signal(number, signal.SIG_IGN)
        ended.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    # nohup's commands go on
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, end)
    status = common.run_command(cli)
    sys.exit(128 + ended[0] if ended and status == common.INTERRUPTED else status)


def _starts_a_tool(frame: FrameType | None) -> bool:
    while frame and frame.f_code is not subprocess.Popen.__init__.__code__:
        frame = frame.f_back
    return frame is not None


@cli.command(
    "presets",
    epilog=common.examples(
        "maskwork presets",
        "maskwork presets --json",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def presets_command(as_json: bool) -> None:
    """List the presets: PEs, lanes, slots, memories, boards."""
    from maskwork.gen.memories import memory_bits

    bits = {name: memory_bits(config) for name, config in presets().items()}
    if as_json:
        common.print_json(
            [
                {"name": name, "doc": preset_doc(name), "pes": config.pes, "lanes": config.lanes,
                 "lanes_per_cluster": config.lanes_per_cluster, "pes_per_lane": config.pes_per_lane,
                 "slots": config.slots, "skip": config.skip, "stream_words": config.stream_words,
                 "memory_bits": bits[name], "memory_bytes": -(-sum(bits[name].values()) // 8),
                 "config": config.to_dict()}
                for name, config in presets().items()
            ]
        )  # fmt: skip
        return
    for name in presets():
        click.echo(f"{name}: {preset_doc(name)}")
    table = common.new_table("", *presets())
    for heading, field in _SHAPE.items():
        table.add_row(heading, *(str(getattr(config, field) or "none") for config in presets().values()))
    table.add_section()
    kinds = next(iter(bits.values()))
    for kind in kinds:
        sizes = [own[kind] for own in bits.values()]
        table.add_row(kind.replace("_", " "), *(f"{size / _KIB_BITS:.1f}" for size in sizes))
    table.add_row("total", *(f"{sum(own.values()) / _KIB_BITS:.1f}" for own in bits.values()))
    common.console().print(table)
    click.echo("Memories, from weights to total, are in KiB: both banks and all copies together.")


@cli.command(
    short_help="Write the accelerator and its manifest.",
    epilog=common.examples(
        "maskwork generate --preset ulx3s-85f -o build",
        "maskwork generate --preset small --set skip=ab --set name=ab -o build --verilog",
        "maskwork generate --preset small --bus axi -o build",
    ),
)
@common.config_options()
@click.option("-o", "--output", metavar="DIR", required=True, help="Directory, made if missing.")
@click.option("--verilog", is_flag=True, help="Plain Verilog-2005 instead of SystemVerilog.")
@click.option("--bus", default="stream", show_default=True,
              help="stream (bare), axi (AXI4-Stream, AXI4-Lite), wishbone, wishbone-pipelined.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def generate(config: Config, output: str, verilog: bool, bus: str, as_json: bool) -> None:
    """Write the accelerator (NAME.sv or NAME.v) and its manifest (NAME.json)."""
    from maskwork.gen.generate import generate as generate_netlist

    top = None
    if bus != "stream":
        from maskwork.fpga.wrap import wrapped

        top = wrapped(config, bus)
    with common.progress(f"generating {config.name}", 1):
        result = generate_netlist(config, output, verilog=verilog, top=top)
    manifest = result.manifest
    if as_json:
        common.print_json({**manifest, "paths": [str(path) for path in result.paths]})
        return
    click.echo(f"{result.paths[0]}: {manifest['language']}, module {manifest['top']}, {config.pes} PEs")
    click.echo(f"  {manifest['modules']} modules, {manifest['bytes']} bytes, sha256 {result.sha256}")
    click.echo(f"{result.paths[1]}: manifest, configuration {config.hash:#010x}")


@cli.command(
    short_help="One masked product C<Mc> = A<Ma> . B<Mb> on a target.",
    epilog=common.examples(
        "maskwork matmul --a A.npy --b B.npy --c-mask M.npy -o C.npy --report R.json",
        "maskwork matmul --a A.npy --b B.npy --preset tiny --target golden --json",
    ),
)
@common.config_options()
@common.target_options
@click.option("--a", "a_file", metavar="A.npy", required=True, help="Streamed operand, integers (M, K).")
@click.option("--b", "b_file", metavar="B.npy", required=True, help="Resident operand, integers (K, N).")
@click.option("--a-mask", metavar="M.npy", help="Elements of A that exist, bool or 0/1, (M, K).")
@click.option("--b-mask", metavar="M.npy", help="Elements of B that exist, (K, N).")
@click.option("--c-mask", metavar="M.npy", help="Results that are wanted, (M, N); others are 0.")
@click.option("--dense", is_flag=True, help="Do not skip the operands' own zeros; given masks still count.")
@click.option("-o", "--output", metavar="C.npy", help="Write C: int32 where acc_width <= 32, else int64.")
@click.option("--report", metavar="R.json", help="Write the report.")
@click.option("--program", metavar="P.mwp", help="Write the program (see `maskwork disasm`).")
@click.option("--trace", metavar="W.vcd", help="Write waveforms of the whole product (target rtl).")
@click.option("--trace-tile", metavar="N", type=int, help="Only of the program's N-th RUN, from 0, to its last result.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def matmul(
    config: Config, target: str, simulator: str | None, a_file: str, b_file: str, dense: bool, output: str | None,
    report: str | None, program: str | None, trace: str | None, trace_tile: int | None, as_json: bool,
    **mask_files: str | None,
) -> None:  # fmt: skip
    """One masked product C<Mc> = A<Ma> . B<Mb> on a target.

    An operand's effective mask is its given mask AND its nonzeros. Every target gives the same numbers.
    """
    from maskwork.gen.matmul import Product
    from maskwork.gen.tile import check_tile

    if trace_tile is not None and trace is None:
        raise MaskworkValueError("--trace-tile needs --trace W.vcd")
    if trace is not None and not trace.lower().endswith(".vcd"):
        raise MaskworkValueError(f"--trace {trace}: waveforms are VCD; a name that ends with .vcd is expected")
    options = common.device_options(target, simulator, trace)  # type: ignore[arg-type]
    with common.OutputFiles() as files:
        outputs = (("-o", output), ("--report", report), ("--program", program), ("--trace", trace))
        paths = {option: files.reserve(path, option) for option, path in outputs if path is not None}
        masks = {name: common.load_array(path) for name, path in mask_files.items() if path is not None}
        names = {"a": a_file, "b": b_file} | {name: path for name, path in mask_files.items() if path is not None}
        operands = common.load_array(a_file), common.load_array(b_file)
        product = Product.of(config, *operands, masks, dense, names)
        if trace is not None:
            options["trace"] = paths["--trace"]
        if trace_tile is not None:
            check_tile(product.program, trace_tile, "--trace-tile")
            options["trace_tile"] = trace_tile
        with common.progress(f"running on {target}", 1):
            result = product.run(target, **options)
        if output is not None:
            common.write_array(paths["-o"], result.c)
        if report is not None:
            common.write_json(paths["--report"], result.report)
        if program is not None:
            paths["--program"].write_text(result.program.to_json(), encoding="utf-8")
        files.commit()
    if as_json:
        common.print_json(result.report)
    else:
        _print_product(result, {option: path for option, path in outputs if path is not None})


def _print_product(result: Any, written: dict[str, str]) -> None:
    report = result.report
    (m, n), config = result.c.shape, report["config"]
    click.echo(f"C ({m}, {n}) {result.c.dtype} on target {report['target']}, {config['name']} ({report['pes']} PEs)")
    click.echo(f"  {report['macs_effectual']} of {report['macs_dense']} products effectual")
    if "cycles" in report:
        click.echo(
            f"  {report['cycles']} cycles, {report['compute_cycles']} of them computing; utilisation "
            f"{report['utilization']:.3f}, {report['speedup_vs_dense']:.2f} x an ideal dense array"
        )
        total = report["cycles"] * report["pes"]
        shares = (f"{name} {count / total:.1%}" for name, count in report["pe_cycles"].items() if count)
        click.echo(f"  PE-cycles: {', '.join(shares)}")
    if "link" in report:
        click.echo(f"  {link_line(report)}")
    for option, path in written.items():
        click.echo(f"  {option} {path}")


@cli.command(
    short_help="Print a readable listing of a program file.",
    epilog=common.examples(
        "maskwork matmul --a A.npy --b B.npy --target golden --program P.mwp",
        "maskwork disasm P.mwp",
    ),
)
@click.argument("program", metavar="PROGRAM.mwp")
def disasm(program: str) -> None:
    """Print a readable listing of a program file, after checking that it is legal."""
    from maskwork.gen.listing import disassemble
    from maskwork.gen.program import Program

    click.echo(disassemble(Program.load(program)), nl=False)


@cli.command(
    short_help="Run a pruned int8 network layer by layer on the hardware.",
    epilog=common.examples(
        "maskwork demo",
        "maskwork demo --preset sim-64 --images 50 --report R.json",
    ),
)
@common.config_options()
@common.target_options
@click.option("--images", metavar="N", type=int, default=20, show_default=True, help="Held-back test images to run.")
@click.option("-o", "--output", metavar="DIR", help="Keep netlist, programs and layer outputs in DIR.")
@click.option("--report", metavar="R.json", help="Write the report, with one entry a layer.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def demo(
    config: Config, target: str, simulator: str | None, images: int, output: str | None, report: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Run a pruned int8 network for handwritten digits, layer by layer, on the generated hardware.

    Generates the netlist, builds its simulator, runs held-back test images, compares every output with the golden
    model bit for bit, and shows where the PEs' cycles went.
    """
    from maskwork.gen import demo as the_demo

    options = common.device_options(target, simulator)
    with common.OutputFiles() as files:
        path = files.reserve(report, "--report") if report is not None else None
        with common.progress("generating", the_demo.steps()) as step:
            result = the_demo.run(config, images, target, output, step, **options)
        if path is not None:
            common.write_json(path, result.report)
            files.commit()
    if as_json:
        common.print_json(result.report)
    else:
        the_demo.show(result, common.console())


@cli.command(
    short_help="Measure how fast the netlist and the cycle model simulate.",
    epilog=common.examples(
        "maskwork speed --preset small",
        "maskwork speed --preset small --target cycle --json",
    ),
)
@common.config_options()
@click.option("--cycles", metavar="N", type=int, default=500_000, show_default=True, help="About how many to run.")
@click.option("--runs", metavar="N", type=int, default=5, show_default=True, help="So often; the fastest counts.")
@click.option("--target", metavar="T", default="rtl", show_default=True, help="rtl, or cycle: the model beside it.")
@click.option("--simulator", metavar="NAME", default="verilator", show_default=True, help="verilator or icarus.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def speed(config: Config, cycles: int, runs: int, target: str, simulator: str, as_json: bool) -> None:
    """Measure how fast the netlist simulates, in cycles and effectual multiplies per second.

    One long product, sent and received by the compiled harness; its result is compared with NumPy's. With --target
    cycle the cycle model gets the same words after each run: its cycles must be the netlist's, and the ratio of the
    speeds is shown, of the fastest run of each; the model, which takes less time, has three after each.
    """
    from maskwork.gen.measure import simulation_speed

    common.device_options("rtl", simulator)
    with common.progress(f"building and running {config.name}", 1):
        result = simulation_speed(config, cycles, simulator, target, runs)
    if as_json:
        common.print_json(result)
        return
    click.echo(f"{result['preset']} ({config.pes} PEs) {_speed_line(simulator, result.get('rtl', result))}")
    if target == "cycle":
        click.echo(f"{result['preset']} ({config.pes} PEs) {_speed_line('the cycle model', result['cycle'])}")
        click.echo(
            f"  {result['ratio']:.1f} times as fast by the fastest of {runs} runs, and of {3 * runs} of the model's "
            f"({min(result['ratios']):.1f} to {max(result['ratios']):.1f} run by run), for counters alone; outputs are "
            f"the golden model's, which takes {result['cycle']['golden_seconds']:.2f} s for them"
        )


def _speed_line(where: str, rates: dict[str, Any]) -> str:
    return (
        f"on {where}: {rates['cycles']} cycles in {rates['seconds']:.2f} s = {rates['cycles_per_second']:,.0f} "
        f"cycles/s, {rates['macs_per_second']:,.0f} effectual multiplies/s"
    )


def _study() -> Config:
    from maskwork.gen.measure import STUDY

    return STUDY


@cli.command(
    short_help="Utilisation of the compute phase, by densities and skip letters.",
    epilog=common.examples(
        "maskwork utilization",
        "maskwork utilization --skips abc,none --json",
        "maskwork utilization --skips abc --longest-first",
        "maskwork utilization --target rtl",
    ),
)
@common.config_options(_study)
@click.option(
    "--skips",
    metavar="LIST",
    default="abc,ab,ac,bc,a,none",
    show_default=True,
    help='Values of skip to compare, with commas; "none" skips nothing.',
)
@click.option("--rows", metavar="M", type=int, default=256, show_default=True, help="Rows of A and C.")
@click.option("--inner", metavar="K", type=int, default=576, show_default=True, help="Columns of A, rows of B.")
@click.option("--columns", metavar="N", type=int, default=128, show_default=True, help="Columns of B and C.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of operands and masks.")
@click.option("--longest-first", "longest", is_flag=True, help="Sort the rows of A and C by their work, longest first.")
@click.option(
    "--target", type=click.Choice(["cycle", "rtl"]), default="cycle", show_default=True,
    help="The cycle model, or the netlist on Verilator: the same figures.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def utilization(
    config: Config,
    skips: str,
    rows: int,
    inner: int,
    columns: int,
    seed: int,
    longest: bool,
    target: str,
    as_json: bool,
) -> None:
    """Utilisation of the compute phase, from the hardware's counters.

    Random masks of some densities, all operands resident before the first row starts; without CONFIG on
    `utilization-study`: sim-64 with buffers that hold everything. A column for each value of skip.
    """
    from maskwork.gen.measure import DENSITIES, show_utilization, utilization_table

    values = ["" if text.strip() == "none" else text.strip() for text in skips.split(",")]
    with common.progress("running", len(values) * len(DENSITIES)) as step:
        result = utilization_table(config, values, (rows, inner, columns), seed, step, longest, target)
    if as_json:
        common.print_json(result)
    else:
        show_utilization(result, common.console())


for _command in (
    bench, build, flash, devices, serve, compare, quantise_command, compile_command, run_command, train_demo, cost,
    sizes,
):  # fmt: skip
    cli.add_command(_command)
