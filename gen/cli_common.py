"""What the commands share: configuration options, input arrays, output files, tables and exit statuses."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import UNREADABLE, BoardError, MaskworkError, MaskworkTypeError, MaskworkValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

DEFAULT_PRESET = "small"

INTERRUPTED = 130
"""Exit status after SIGINT."""


def run_command(command: click.Command, args: list[str] | None = None) -> int:
    """Run a command line to its end.

    Returns:
        The exit status: 0 for success, 2 for bad input and for a board that is not there or not the right one (one
        line on standard error), 1 when a tool, simulator or device failed (one line too), 130 after SIGINT (143 of the
        process after SIGTERM).
    """
    try:
        status = command.main(args=args, prog_name="maskwork", standalone_mode=False)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "maskwork"
        return _fail(f"{error.format_message()} Try '{path} --help'.", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except MaskworkError as error:
        failed = isinstance(error, RuntimeError) and not isinstance(error, BoardError)
        return _fail(str(error), 1 if failed else 2)
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    click.echo(f"maskwork: error: {line}" if status != INTERRUPTED else f"maskwork: {line}", err=True)
    return status


# ---------------------------------------------------------------------- options


def config_options(default: Callable[[], Config] = lambda: preset(DEFAULT_PRESET)) -> Callable[..., Any]:
    """Decorator: options --preset, --config and --set, handed over as one argument ``config``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--preset", "preset_name", metavar="NAME", help="Start from a preset (see `maskwork presets`).")
        @click.option("--config", "config_file", metavar="FILE.toml", help="Start from a TOML file.")
        @click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a field; repeatable.")
        @functools.wraps(function)
        def with_config(
            *args: Any, preset_name: str | None, config_file: str | None, settings: tuple[str, ...], **kwargs: Any
        ) -> Any:
            if preset_name is not None and config_file is not None:
                raise click.UsageError("--preset and --config exclude each other: give one of them.")
            if config_file is not None:
                config = Config.from_toml(config_file)
            else:
                config = default() if preset_name is None else preset(preset_name)
            return function(*args, config=config.with_settings(settings), **kwargs)

        return with_config

    return decorate


def examples(*lines: str) -> str:
    """Epilog of a help page that shows these command lines."""
    return "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines)


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: options --target and --simulator, handed over as ``target`` and ``simulator`` (None if not given)."""
    function = click.option(
        "--simulator", metavar="NAME", help="Simulator of target rtl: verilator (default) or icarus."
    )(function)
    return click.option(
        "--target", metavar="T", default="rtl", show_default=True,
        help="golden (NumPy model), cycle (its results, with the netlist's exact cycles, fast), rtl (the generated "
        "netlist, simulated) or serial:PORT (a board, see `maskwork devices`).",
    )(function)  # fmt: skip


def device_options(target: str, simulator: str | None, trace: os.PathLike[str] | None = None) -> dict[str, Any]:
    """Options of :func:`maskwork.sim_tb.device.open_device`.

    Raises:
        MaskworkValueError: for an unknown target or simulator, or options that the target does not have.
    """
    from maskwork.sim_tb.device import SIMULATORS, is_target, target_names

    if not is_target(target):
        raise MaskworkValueError(f"--target: unknown target {target!r}; targets: {', '.join(target_names())}")
    if simulator is not None and simulator not in SIMULATORS:
        raise MaskworkValueError(f"--simulator: unknown simulator {simulator!r}; simulators: {', '.join(SIMULATORS)}")
    if target == "rtl":
        return {"simulator": simulator or SIMULATORS[0], "trace": trace}
    for option, value in (("--simulator", simulator), ("--trace", trace)):
        if value is not None:
            raise MaskworkValueError(f"{option} needs --target rtl, not {target}")
    return {}


# ---------------------------------------------------------------------- input


def names(text: str | None, option: str) -> list[str] | None:
    """The names in the value of an option, which has commas between; None where it was not given."""
    if text is None:
        return None
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise MaskworkValueError(f"{option} {text}: names with commas between are expected")
    return found


def load_array(path: str) -> NDArray[Any]:
    """Array of a ``.npy`` file, which is never unpickled.

    Raises:
        MaskworkValueError: if the file is missing, truncated or no array file.
        MaskworkTypeError: for an array of objects.
    """
    import numpy as np

    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise MaskworkValueError(f"{path}: not a NumPy array file (.npy), which is expected")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = np.load(file, allow_pickle=False)
    except OSError as error:
        reason = error.strerror or error
        raise MaskworkValueError(f"{path}: cannot be read ({reason}); a .npy file is expected") from None
    except MaskworkError:
        raise
    except UNREADABLE as error:
        if "Object arrays" in str(error):
            raise MaskworkTypeError(f"{path}: holds Python objects; an array of integers is expected") from None
        raise MaskworkValueError(f"{path}: a truncated or broken .npy file; a whole one is expected") from None
    return array


# ---------------------------------------------------------------------- output


class OutputFiles:
    """Output files that appear whole, all together, or not at all.

    Each is written under another name in its directory, which also shows early whether it can be written. Leaving
    the ``with`` block without :meth:`commit` leaves nothing behind. Files of ``inputs``, and that of --config, are
    never overwritten.
    """

    def __init__(self, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._pending: dict[Path, Path] = {}
        context = click.get_current_context(silent=True)
        config = None if context is None else context.params.get("config_file")
        self._inputs = {Path(os.path.realpath(path)) for path in (*inputs, config) if path is not None}

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for temporary in self._pending.values():
            temporary.unlink(missing_ok=True)
        self._pending.clear()

    def reserve(self, path: str | os.PathLike[str], option: str = "-o") -> Path:
        """The temporary file that :meth:`commit` will move to ``path``.

        Raises:
            MaskworkValueError: if ``path`` cannot be written, is an input or stands for another output already.
        """
        target = Path(os.path.realpath(path))
        if target in self._pending:
            raise MaskworkValueError(f"{option} {path}: already the name of another output")
        if target in self._inputs:
            raise MaskworkValueError(f"{option} {path}: it is an input; another file is expected")
        special = target.exists() and not target.is_file()
        try:
            if target.is_dir():
                raise IsADirectoryError(21, "it is a directory")
            folder = None if special else target.parent
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=folder)
            os.close(handle)
        except OSError as error:
            raise MaskworkValueError(
                f"{option} {path}: cannot be written ({error.strerror}); a file in a writable directory is expected"
            ) from None
        self._pending[target] = Path(name)
        return Path(name)

    def commit(self) -> None:
        """Give all files their names.

        Raises:
            MaskworkValueError: if one of them cannot be written.
        """
        umask = os.umask(0)
        os.umask(umask)
        for target, temporary in list(self._pending.items()):
            try:
                if target.exists() and not target.is_file():  # a terminal, a pipe, the null device
                    with open(temporary, "rb") as source, open(target, "wb") as sink:
                        shutil.copyfileobj(source, sink)
                    temporary.unlink()
                else:
                    temporary.chmod(0o666 & ~umask)
                    os.replace(temporary, target)
            except OSError as error:
                raise MaskworkValueError(f"{target}: cannot be written ({error.strerror})") from None
            del self._pending[target]


def write_json(path: Path, values: Any) -> None:
    """Write plain values as an indented JSON file."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as ``.npy``, under exactly this name."""
    import numpy as np

    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def print_json(values: Any) -> None:
    """Print plain values as JSON on standard output."""
    click.echo(json.dumps(values, indent=2))


def console() -> Console:
    """Standard output for tables: as wide as they are where it is not a terminal."""
    from rich.console import Console

    wide = Console(emoji=False)
    return wide if wide.is_terminal else Console(width=200, emoji=False)


def new_table(first: str, *headings: str) -> Table:
    """A narrow table: a column of names, then columns of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error, if that is a terminal.

    Args:
        text: what is done first.
        total: steps.

    Yields:
        A function that ends a step and names the next.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(text, total=total)

        def step(description: str) -> None:
            bar.update(task, advance=1, description=escape(description))

        yield step
