"""The command that compares sparse and dense arrays on the same device: ``maskwork compare``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import MaskworkValueError

if TYPE_CHECKING:
    from maskwork.fpga.dense.config import DenseConfig

DEVICES = ("ecp5-85f",)

DEFAULT_SHAPES = ("12x13",)
"""As many PEs as the device has DSP blocks."""

_SHAPE = re.compile(r"(\d{1,3})x(\d{1,3})(?::(\d{1,5}))?(?:@(\d{1,4}))?")


@click.command(
    short_help="Sparse and dense array on the same device: clock, LUTs, speed on workloads, break-even density.",
    epilog=common.examples(
        "maskwork compare WORKLOAD.csv --cache results --write compare.json --svg compare.svg",
        "maskwork compare WORKLOAD.csv --sparse routed.json --dense 12x13 --dense 18x32:156@80",
        "maskwork compare WORKLOAD.csv --cache results --no-route --skips a,ab,abc --json",
    ),
)
@common.config_options(lambda: preset("ulx3s-85f"))
@click.argument("workloads", metavar="WORKLOAD.csv...", nargs=-1, required=True)
@click.option("--device", metavar="NAME", default=DEVICES[0], show_default=True, help="LFE5U-85F at speed grade 6.")
@click.option("--sparse", metavar="FILE", help="The sparse array as it was routed: JSON of `maskwork cost --route "
              "--whole --write`, or report.json of `maskwork build`; its configuration counts.")  # fmt: skip
@click.option("--dense", metavar="RxC[:DSPS][@MHZ]|FILE", multiple=True,
              help="A dense array of R rows and C columns, DSPS of its PEs with a DSP block (default: all), to be "
              "routed, for MHZ instead of --freq; or one routed before. Repeatable, the fastest of each kind counts "
              "(default 12x13).")  # fmt: skip
@click.option("--skips", metavar="LIST",
              help="What each mask port costs and earns: values of skip, with commas: a,ab,abc.")  # fmt: skip
@click.option("--freq", type=click.IntRange(1, 1000), default=150, show_default=True, metavar="MHZ",
              help="Clock that routing of dense arrays aims for.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="Seeds of the placer to try; the best one counts.")  # fmt: skip
@click.option("--sample", metavar="N", type=click.IntRange(min=0), default=100_000_000, show_default=True,
              help="As of `maskwork bench`.")  # fmt: skip
@click.option("--requantise", metavar="LIST",
              help="Passes whose results leave the sparse array as 8 bits, as of `maskwork bench`.")  # fmt: skip
@click.option("--cache", metavar="DIR", help="Keep each step's result there, and begin where the last run ended.")
@click.option("--no-route", is_flag=True, help="Make nothing that is not in --cache.")
@click.option("--write", metavar="FILE", help="Write the result as JSON as well.")
@click.option("--svg", metavar="FILE", help="Write speed-up by density as a plot.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    config: Config, workloads: tuple[str, ...], device: str, sparse: str | None, dense: tuple[str, ...],
    skips: str | None, freq: int, seeds: int, sample: int, requantise: str | None, cache: str | None, no_route: bool,
    write: str | None, svg: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Compare the sparse array with weight-stationary dense ones on the same FPGA, after place and route.

    Dense arrays: one with a DSP block in each PE, and one with multipliers of LUTs in further PEs. Place and route
    takes minutes to an hour for each array; --cache keeps what is done. Needs the extra `synth`.
    """
    from maskwork.gen.bench import Bench
    from maskwork.gen.workload import read_workload

    if device not in DEVICES:
        raise MaskworkValueError(f"--device: unknown device {device!r}; devices: {', '.join(DEVICES)}")
    if no_route and cache is None:
        raise MaskworkValueError("--no-route needs --cache DIR, where the results are")
    chosen = _skips(skips)
    for workload in workloads:
        read_workload(workload)
    shapes, files = _dense(dense or DEFAULT_SHAPES)

    from maskwork.fpga.dense.records import Cache, read_record
    from maskwork.fpga.dense.steps import Steps

    routed = None
    if sparse is not None:
        routed = read_record(sparse, "sparse")
        config = Config.from_dict(routed["config"], sparse)
    passes = common.names(requantise, "--requantise") or []
    for workload in workloads:
        Bench(workload, config, requantise=passes)  # says what is wrong before anything is routed
    records = [_named(read_record(file, "dense")) for file in files]
    with common.OutputFiles([*workloads, *files, *([sparse] if sparse else [])]) as outputs:
        paths = {option: outputs.reserve(path, option) for option, path in (("--write", write), ("--svg", svg)) if path}
        with common.progress("comparing", 0) as step:
            steps = Steps(
                cache=Cache(cache, no_route), freq=freq, seeds=seeds, sample=sample, requantise=passes, progress=step
            )
            result = steps.compare(config, workloads, shapes, chosen, routed, records)
        if write:
            common.write_json(paths["--write"], result)
        if svg:
            from maskwork.fpga.dense.compare_plot import plot

            titles = {array["name"]: f"{array['name']}: {array['pes']} PEs" for array in result["arrays"]}
            paths["--svg"].write_text(plot(result["break_even"], titles), encoding="utf-8")
        outputs.commit()
    if as_json:
        common.print_json(result)
    else:
        _show(result)


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """A dense array's record by its kind of multipliers."""
    from maskwork.fpga.dense.config import DenseConfig

    try:
        config = DenseConfig(**found["config"])
    except TypeError:
        raise MaskworkValueError("--dense: the file is of a sparse array; one of a dense array is expected") from None
    return {**found, "name": "dense" if config.dsps in (None, config.pes) else "dense-soft"}


def _dense(texts: tuple[str, ...]) -> tuple[list[tuple[DenseConfig, int | None]], list[str]]:
    from maskwork.fpga.dense.config import DenseConfig
    from maskwork.fpga.dense.route import check_size

    shapes, files = [], []
    for text in texts:
        if match := _SHAPE.fullmatch(text):
            dsps, freq = (None if part is None else int(part) for part in match.groups()[2:])
            if freq is not None and freq not in range(1, 1001):
                raise MaskworkValueError(f"--dense {text}: MHZ must be an integer from 1 to 1000, not {freq}")
            shapes.append((DenseConfig(rows=int(match[1]), columns=int(match[2]), dsps=dsps), freq))
            check_size(shapes[-1][0])
        elif Path(text).suffix == ".json":
            files.append(text)
        else:
            raise MaskworkValueError(
                f"--dense {text}: RxC[:DSPS][@MHZ] or a .json file is expected, such as 18x32:156@80"
            )
    return shapes, files


def _skips(text: str | None) -> list[str]:
    if text is None:
        return []
    found = ["".join(sorted(part.strip())) for part in text.split(",")]
    for part in found:
        if set(part) - set("abc") or len(set(part)) < len(part):
            raise MaskworkValueError(f"--skips {text}: {part!r} is not made of the letters a, b and c, each once")
    return list(dict.fromkeys(found))


def _show(result: dict[str, Any]) -> None:
    console = common.console()
    table = common.new_table("array", "PEs", "MHz", "LUTs", "FFs", "block RAMs", "DSPs", "G products/s peak")
    for array in result["arrays"]:
        cells = ("-" if array.get("hypothetical") and key != "luts" else str(array[key]["used"])
                 for key in ("luts", "ffs", "brams", "dsps"))  # fmt: skip
        table.add_row(array["name"], str(array["pes"]), f"{array['fmax_mhz']:g}", *cells,
                      f"{array['peak_products_per_s'] / 1e9:.2f}")  # fmt: skip
    console.print(table)
    names = [array["name"] for array in result["arrays"][1:]]
    kinds = {"sparse over": "real", "over it perfect": "perfect", "by LUT": "real_per_lut"}
    table = common.new_table("network", "G products/s", "dense array", "its G products/s", *kinds)
    for network in result["networks"]:
        for title, own in ((network["network"], network), *((f"  {p['pass']}", p) for p in network["passes"])):
            for n, name in enumerate(names):
                begin = ("", "") if n else (title, f"{own['arrays']['sparse']['products_per_s'] / 1e9:.2f}")
                cells = [f"{own['speedup'][name][kind]:.2f}" for kind in kinds.values()]
                table.add_row(*begin, name, f"{own['arrays'][name]['products_per_s'] / 1e9:.2f}", *cells)
    console.print(table)
    table = common.new_table("dense array", "masks on", "sparse wins below a combined density of")
    for curve in result["break_even"]["curves"]:
        even = f"{curve['break_even']:.3f}" if curve["break_even"] else f"always {curve['always']}"
        table.add_row(curve["dense"], curve["masks"], even)
    console.print(table)
    if "mask_ports" in result:
        table = common.new_table("skip", "LUTs a PE", "block RAMs", "MHz", *(
            f"{network['network']}: {kind}" for network in result["mask_ports"][0]["networks"]
            for kind in ("fewer cycles", "net")))  # fmt: skip
        for row in result["mask_ports"]:
            cells = [f"{network[kind]:.2f}" for network in row["networks"] for kind in ("gain", "net")]
            table.add_row(row["skip"] or "none", f"{row['luts_per_pe']:.0f}", str(row["brams"]),
                          f"{row['fmax_mhz']:g}", *cells)  # fmt: skip
        console.print(table)
