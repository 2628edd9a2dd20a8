"""The command ``aesz-codec``: demo, convert, append, verify, inspect, materialise, models, train.

Results go to standard output, progress and errors to standard error.  Exit status: 0 if all is well, 1 if
`verify` found a value outside its bound or a chunk that cannot be read, if `convert --on-error skip` left
something out, or `models verify` found a pack that is not sound, 2 if a command could not do its work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AESZError, ErrorBoundViolation, InvalidBoundError, InvalidConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .conversion import ConversionSummary, Progress
    from .dissection import Forecast
    from .inspection import ChunkReport, StoreReport, VariableReport
    from .packs import Pack
    from .train.training import Judgement
    from .verification import VariableVerification, VerificationReport
    from .zoo import Entry

__all__ = ["main"]

_WIDTH_WITHOUT_TERMINAL = 150
_WIDE = 110  # columns of a terminal in which all columns of a summary fit
_BOUND_MODES = ("abs", "range_rel", "pw_rel")
_INTERRUPTED: dict[bool | str, str] = {
    False: "interrupted",
    True: "interrupted: what was being written was removed",
    "resumable": "interrupted: what is done is kept: go on with --resume",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; nothing but a bug ends in a traceback."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with _short_warnings(), _terminable():
            status: int = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _fail(_INTERRUPTED[options.writes])
    except ErrorBoundViolation as error:
        return _fail(f"{error}")
    except AESZError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as in: aesz-codec inspect ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        return _fail("this is a bug in aesz-codec: please report it with the lines above")


_interrupted = threading.Event()


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat a request to terminate like Ctrl-C, so that an unfinished store is removed; see also `_go_on`."""

    def interrupt(number: int, frame: Any) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, interrupt)) for number in heeded]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _go_on(event: Progress) -> None:
    """Raise an interrupt again that was swallowed, as Python does where an object's finalizer runs."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _fail(message: str) -> int:
    print(f"aesz-codec: error: {message}", file=sys.stderr)
    return 2


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show the warnings of the libraries beneath in one line each, and once."""

    shown = set()

    def show(message: Warning | str, *ignored: Any) -> None:
        text = " ".join(str(message).split())
        if text not in shown:
            print(f"aesz-codec: warning: {text}", file=sys.stderr)
        shown.add(text)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


# Arguments


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="aesz-codec",
        description="Error-bounded compression of gridded data: NetCDF in, a Zarr store out.",
    )
    parser.add_argument("--version", action="version", version=f"aesz-codec {version('aesz-codec')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_convert(commands)
    _add_append(commands)
    _add_verify(commands)
    _add_inspect(commands)
    _add_materialise(commands)
    _add_models(commands)
    _add_train(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="compress sample fields, draw a picture and leave a store to open",
        description="Compress real sample fields (from the extra 'demo': no network), print the outcome, "
        "draw the original, the reconstruction and the error, and leave a store to open.",
    )
    demo.add_argument(
        "--out", default="aesz-demo", metavar="DIR", help="folder for the results (default: %(default)s)"
    )
    demo.set_defaults(run=_run_demo, writes=True)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="compress NetCDF files or a Zarr store into a Zarr store, here or in a bucket",
        description="Compress what xarray opens into a Zarr store. A bound is VALUE for all floating-point "
        "variables, or VAR=VALUE for one, which beats the general one; options can be repeated. Variables "
        "without a bound are kept exactly. The store can be opened only when it is complete; what was stopped goes on "
        "with --resume.",
        epilog="example: aesz-codec convert 'era5/*.nc' s3://bucket/era5.zarr --abs t2m=0.05 --range-rel 1e-3 "
        "--chunks time=64 --workers 2 --report report.html",
    )
    convert.add_argument(
        "source", nargs="+", help="file, pattern, URL or Zarr store to read, or several files; never changed"
    )
    convert.add_argument(
        "store", help="Zarr store to create: a folder, or a URL such as s3://bucket/name.zarr"
    )
    bounds = convert.add_argument_group("error bounds")
    bounds.add_argument(
        "--abs",
        action="append",
        default=[],
        metavar="[VAR=]VALUE",
        help="|error| <= VALUE, in the variable's units",
    )
    bounds.add_argument(
        "--range-rel",
        action="append",
        default=[],
        metavar="[VAR=]VALUE",
        help="|error| <= VALUE * (max - min), over the whole variable",
    )
    bounds.add_argument(
        "--pw-rel", action="append", default=[], metavar="[VAR=]VALUE", help="|error| <= VALUE * |value|"
    )
    bounds.add_argument(
        "--lossless",
        action="append",
        nargs="?",
        const="*",
        default=[],
        metavar="VAR",
        help="keep every bit, of one variable or (without VAR, at the end of the line) of all others",
    )
    layout = convert.add_argument_group("layout")
    layout.add_argument(
        "--chunks",
        action="append",
        default=[],
        metavar="DIM=N",
        help="length of the chunks, -1 for the whole dimension; dimensions not named are whole "
        "(default: chunks of up to 16 MiB)",
    )
    layout.add_argument(
        "--shards",
        action="append",
        default=[],
        metavar="DIM=N",
        help="length of the shards, multiples of the chunks; or 'none' (default: of up to 64 MiB, decoded, for arrays of "
        "more than 32 chunks)",
    )
    layout.add_argument("--zarr-format", type=int, choices=(2, 3), default=3, help="default: %(default)s")
    convert.add_argument(
        "--variables",
        action="append",
        default=[],
        metavar="VAR[,VAR...]",
        help="convert only these data variables",
    )
    convert.add_argument(
        "--effort",
        choices=("fast", "default", "max"),
        default="default",
        help="bytes against time: fast (half of SZ3's speed), default, or max (smallest)",
    )
    convert.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[VAR=]ID",
        help="models that the encoder may use, for all variables or for one: an id, a file of a pack, 'auto' (installed "
        "ones that are for the variable and pay on a sample) or 'none' (default: none: encoding takes half the time)",
    )
    convert.add_argument(
        "--no-embedded-models",
        action="store_true",
        help="do not put packs into the store's metadata: readers must have them installed",
    )
    existing = convert.add_mutually_exclusive_group()
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing store: a folder when the new one is complete, a bucket's at once",
    )
    existing.add_argument(
        "--resume",
        action="store_true",
        help="go on with a conversion that was stopped, after checking what it wrote; same arguments",
    )
    convert.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="with files that cannot be opened and variables that cannot be read: stop (default), or leave them out and "
        "exit with status 1",
    )
    _add_work(convert)
    _add_memory(convert)
    _add_cloud(convert)
    convert.add_argument(
        "--report", metavar="FILE", help="write a report: one HTML file, and the same as JSON beside it"
    )
    convert.set_defaults(run=_run_convert, writes="resumable")


def _add_append(commands: Any) -> None:
    append = commands.add_parser(
        "append",
        help="put a later part, such as a new month, behind the end of a store",
        description="Append a later part, with the codec and the bounds that the store has. Until the end the store is "
        "read as it was; what was stopped goes on with --resume. The store must end with a whole chunk (shard).",
        epilog="example: aesz-codec append 'era5/2024-02-*.nc' s3://bucket/era5.zarr",
    )
    append.add_argument(
        "source", nargs="+", help="the new part: file, pattern, URL or Zarr store, or several files"
    )
    append.add_argument("store", help="Zarr store that `aesz-codec convert` wrote")
    append.add_argument("--dim", default="time", help="dimension (default: %(default)s)")
    existing = append.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on with an append of the same part that was stopped"
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="drop what an append that was stopped has left, and begin anew",
    )
    _add_work(append)
    _add_memory(append)
    _add_cloud(append)
    append.set_defaults(run=_run_append, writes="resumable")


def _add_memory(command: Any) -> None:
    command.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="what one worker may take, such as 1GB (default: half of the machine's memory, shared)",
    )


def _add_work(command: Any) -> None:
    work = command.add_argument_group("work")
    work.add_argument(
        "--workers", type=int, metavar="N", help="processes (1: this one; default: threads, one a core)"
    )
    work.add_argument(
        "--scheduler",
        metavar="NAME",
        help="synchronous, threads, processes, or the address of a Dask scheduler",
    )
    work.add_argument(
        "--progress",
        choices=("bars", "json", "none"),
        default="bars",
        help="on standard error (default: bars)",
    )
    work.add_argument("--quiet", action="store_true", help="no progress, and no output but errors")


def _add_cloud(command: Any) -> None:
    cloud = command.add_argument_group("buckets")
    cloud.add_argument(
        "--storage-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for fsspec, of the store: anon=true, endpoint_url=http://localhost:8333, ...; JSON values",
    )
    cloud.add_argument(
        "--source-option", action="append", default=[], metavar="KEY=VALUE", help="the same, of the source"
    )


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="check every value of a store against its source",
        description="Check every value of a store against its source and the bound that the store records. "
        "Exit status 1 if one is outside its bound or a chunk cannot be read.",
    )
    verify.add_argument("source", nargs="+", help="what the store was converted from")
    verify.add_argument("store", help="Zarr store to check")
    _add_work(verify)
    _add_cloud(verify)
    verify.set_defaults(run=_run_verify, writes=False)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="show ratios, bounds, what the encoder chose, and bytes by section",
        description="Show, by variable, ratio and bound, what the encoder chose, and where the bytes went.",
    )
    inspect.add_argument("store", help="Zarr store to look into")
    inspect.add_argument(
        "--chunk",
        metavar="VAR[=I,J,...]",
        help="show one chunk in detail (every one of the variable without an index): how its frames refer to one another, and "
        "what every choice of the encoder would have cost",
    )
    inspect.add_argument(
        "--source",
        help="with --chunk: what the store was converted from; the choices then code the original values, and their bytes are "
        "exact. Without, they code the decoded ones: an estimate",
    )
    inspect.add_argument(
        "--header-only", action="store_true", help="with --chunk: decode nothing, leave the choices out"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument(
        "--storage-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for fsspec, where STORE is a URL",
    )
    inspect.set_defaults(run=_run_inspect, writes=False)


def _add_materialise(commands: Any) -> None:
    materialise = commands.add_parser(
        "materialise",
        help="rewrite a store that needs a foundation model so that it needs none",
        description="Rewrite the chunks of a store that need a foundation model so that anybody can read them; every value "
        "stays as it is. Needs the model, once. Without OUT the store itself is rewritten, chunk by chunk.",
    )
    materialise.add_argument("store", metavar="STORE", help="Zarr store")
    materialise.add_argument("out", metavar="OUT", nargs="?", help="write a copy there")
    materialise.set_defaults(run=_run_materialise, writes=False)


def _add_models(commands: Any) -> None:
    models = commands.add_parser(
        "models",
        help="list, show, add and verify model packs",
        description="Model packs: those installed with aesz-codec, and those in the folders and URLs of the "
        "environment variable AESZ_ZOO (default: ~/.local/share/aesz-codec/zoo).",
    )
    actions = models.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = actions.add_parser("list", help="list the models that can be found")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_run_models_list, writes=False)
    show = actions.add_parser("show", help="print what a pack says of itself")
    show.add_argument("model", metavar="ID", help="id, digest or the beginning of one, or file of a pack")
    show.add_argument("--json", action="store_true", help="print JSON, with the whole manifest")
    show.set_defaults(run=_run_models_show, writes=False)
    add = actions.add_parser("add", help="copy a pack into your own folder, where it is found by its id")
    add.add_argument("file", metavar="FILE", help="the pack")
    add.set_defaults(run=_run_models_add, writes=True)
    verify = actions.add_parser(
        "verify",
        help="read packs again, from beginning to end",
        description="Read packs again and check every checksum, weight and digest. Exit status 1 if one fails.",
    )
    verify.add_argument(
        "models", nargs="*", metavar="ID|FILE", help="ids, digests or files (default: all that can be found)"
    )
    verify.set_defaults(run=_run_models_verify, writes=False)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a model from your own data",
        description="Trains a model pack from NetCDF files or Zarr stores and judges it on data that it has not seen: networks "
        "for learned interpolation; a basis, a cycle or a forecaster for the grid of one variable; a block autoencoder. Needs "
        "torch (pip install 'aesz-codec[train]'); an interrupted run of 'interpolation' goes on where it was.",
    )
    train.add_argument(
        "kind",
        metavar="KIND",
        help="interpolation, basis, cycle, forecaster (causal weights of a grid) or autoencoder",
    )
    train.add_argument("data", nargs="+", metavar="DATA", help="NetCDF files or Zarr stores to learn from")
    train.add_argument("--out", required=True, metavar="PACK", help="the pack to be written")
    train.add_argument("--id", required=True, help="name of the model: small letters, digits, '-', '_', '.'")
    train.add_argument("--licence", required=True, help="licence of the model, and whose data it comes from")
    train.add_argument("--description", default="", help="one sentence for 'models show'")
    train.add_argument(
        "--variable",
        action="append",
        default=[],
        metavar="NAME",
        help="only these variables (may be repeated)",
    )
    train.add_argument(
        "--bound",
        action="append",
        default=[],
        metavar="MODE=VALUE",
        help="bounds to learn, abs or range_rel (may be repeated; default: range_rel=1e-2, 3e-3 and 1e-3); an autoencoder "
        "learns all and is judged at these (default: range_rel=1e-1, 1e-2 and 1e-3)",
    )
    train.add_argument(
        "--validate", nargs="+", default=[], metavar="DATA", help="data to judge by, not learned from"
    )
    train.add_argument(
        "--hidden",
        metavar="N,N",
        help="interpolation: widths of the hidden layers (default: 24,12 or 16,8, as every network needs)",
    )
    train.add_argument(
        "--block",
        default="32,32",
        metavar="N,N",
        help="autoencoder: shape of a block, over the last axes (default: 32,32)",
    )
    train.add_argument(
        "--latents", type=int, default=16, help="autoencoder: numbers that stand for a block (default: 16)"
    )
    train.add_argument(
        "--steps", type=int, help="of training, for every network (default: 4000; autoencoder: 2000)"
    )
    train.add_argument(
        "--samples",
        type=int,
        help="from every variable and bound (default: 6000); autoencoder: blocks, of all variables (default: 16000)",
    )
    train.add_argument("--modes", type=int, default=48, help="of a basis (default: 48)")
    train.add_argument(
        "--per-day",
        type=int,
        metavar="N",
        help="of a cycle: ticks of a day (default: as the times of the data say; data without times have N frames a day "
        "and begin with a year)",
    )
    train.add_argument("--seed", type=int, default=0, help="default: 0")
    train.set_defaults(run=_run_train, writes=True)


def _bounds(options: argparse.Namespace) -> dict[str, tuple[str, float] | str]:
    """Collect the bounds by variable name, ``"*"`` for the general one."""
    bounds: dict[str, tuple[str, float] | str] = {}

    def add(name: str, bound: tuple[str, float] | str, option: str) -> None:
        if name in bounds:
            which = "all variables" if name == "*" else f"{name!r}"
            raise InvalidConfigError.at(
                option, found=f"a second bound for {which}", expected="one", remedy="remove one of the two"
            )
        bounds[name] = bound

    for mode in _BOUND_MODES:
        option = "--" + mode.replace("_", "-")
        for text in getattr(options, mode):
            name, separator, number = text.rpartition("=")
            if separator and not name:
                raise _malformed(option, text, "VALUE or VARIABLE=VALUE")
            try:
                value = float(number)
            except ValueError:
                raise InvalidBoundError.at(
                    option, found=repr(number), expected="a number, such as 0.05"
                ) from None
            add(name or "*", (mode, value), option)
    for name in options.lossless:
        add(name, "lossless", "--lossless")
    return bounds


def _lengths(option: str, texts: Sequence[str]) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for text in (part for item in texts for part in item.split(",")):
        dim, separator, number = text.partition("=")
        try:
            length = int(number)
        except ValueError:
            length = 0
        if not dim or not separator or (length < 1 and length != -1):
            raise _malformed(option, text, "DIMENSION=LENGTH, as in time=64; -1 for the whole dimension")
        if dim in lengths:
            raise _malformed(option, text, f"one length for {dim!r}")
        lengths[dim] = length
    return lengths


def _options(option: str, texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise _malformed(option, text, "KEY=VALUE, as in anon=true")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _models(texts: Sequence[str]) -> Any:
    """Collect the models by variable name, ``"*"`` for the others."""
    chosen: dict[str, list[str]] = {}
    for text in texts:
        name, separator, model = text.rpartition("=")
        if (separator and not name) or not model:
            raise _malformed("--model", text, "ID or VARIABLE=ID")
        chosen.setdefault(name or "*", []).append(model)
    for name, models in chosen.items():
        if len(models) > 1 and {"auto", "none"} & set(models):
            raise _malformed("--model", ", ".join(models), f"'auto' or 'none' alone for {name!r}")
    words: dict[str, Any] = {"auto": "auto", "none": None}
    found = {name: words.get(models[0], models) for name, models in chosen.items()}
    return {"*": None, **found} if found else None


def _malformed(option: str, found: str, expected: str) -> InvalidConfigError:
    return InvalidConfigError.at(option, found=repr(found), expected=expected)


# Commands


def _run_demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    with _progress() as progress:
        result = run_demo(options.out, progress=progress)
    console = _console()
    console.print(f"Sample fields: {result.source}\n")
    console.print(summary_table(result.summary, console.width))
    console.print(f"\n{_totals(result.summary)}\n")
    console.print(_peers_table(result.lossless_ratios, result.summary))
    outcome = "each value is within its bound" if result.verification.ok else "values are outside their bound"
    console.print(f"\nCompared with the source again, value by value: {outcome}.")
    console.print(f"Picture: {result.picture}")
    console.print(f"Store:   {result.summary.store}\n")
    console.print(
        f'Open it:  python -c "import xarray; print(xarray.open_zarr({str(result.summary.store)!r}))"'
    )
    console.print(f"Look in:  aesz-codec inspect {result.summary.store}")
    return 0 if result.verification.ok else 1


def _run_convert(options: argparse.Namespace) -> int:
    from .conversion import convert

    bounds = _bounds(options)
    chunks = _lengths("--chunks", options.chunks)
    shards: Any = "auto"
    if options.shards:
        shards = None if options.shards == ["none"] else _lengths("--shards", options.shards)
    variables = [name for item in options.variables for name in item.split(",")]
    with _progress("none" if options.quiet else options.progress) as progress:
        summary = convert(
            options.source[0] if len(options.source) == 1 else options.source,
            options.store,
            bounds,
            variables=variables or None,
            chunks=chunks,
            shards=shards,
            zarr_format=options.zarr_format,
            effort=options.effort,
            model=_models(options.model),
            embed_models=not options.no_embedded_models,
            overwrite=options.overwrite,
            resume=options.resume,
            memory_limit=options.memory_limit,
            on_error=options.on_error,
            **_work(options),
            report=options.report,
            progress=progress,
        )
    for left_out in summary.skipped:
        print(f"aesz-codec: left out {left_out.name}: {left_out.reason}", file=sys.stderr)
    if options.quiet:
        return 1 if summary.skipped else 0
    console = _console()
    if summary.variables:
        console.print(summary_table(summary, console.width))
    console.print(_totals(summary))
    if summary.copied:
        console.print(f"Copied exactly, without this codec: {', '.join(summary.copied)}")
    if summary.resumed:
        console.print(f"Tasks that were done before: {summary.resumed}")
    if options.report:
        console.print(f"Report: {options.report}", soft_wrap=True)
    return 1 if summary.skipped else 0


def _work(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `convert`, `append` and `verify` take alike: how to work, and how to reach stores and sources."""
    return {
        "workers": options.workers,
        "scheduler": options.scheduler,
        "storage_options": _options("--storage-option", options.storage_option),
        "source_options": _options("--source-option", options.source_option),
    }


def _run_append(options: argparse.Namespace) -> int:
    from .conversion import append

    with _progress("none" if options.quiet else options.progress) as progress:
        summary = append(
            options.source[0] if len(options.source) == 1 else options.source,
            options.store,
            options.dim,
            resume=options.resume,
            overwrite=options.overwrite,
            memory_limit=options.memory_limit,
            **_work(options),
            progress=progress,
        )
    if options.quiet:
        return 0
    console = _console()
    console.print(summary_table(summary, console.width))
    console.print(f"Appended: {_totals(summary)}")
    if summary.resumed:
        console.print(f"Tasks that were done before: {summary.resumed}")
    return 0


def _run_verify(options: argparse.Namespace) -> int:
    from .verification import verify

    with _progress("none" if options.quiet else options.progress) as progress:
        report = verify(
            options.source[0] if len(options.source) == 1 else options.source,
            options.store,
            **_work(options),
            progress=progress,
        )
    if options.quiet and report.ok:
        return 0
    console = _console()
    console.print(_verification_table(report))
    for variable in report.variables:
        for line in _failures(variable):
            console.print(line)
    if report.missing:
        console.print(f"Not in the store: {', '.join(report.missing)}")
    console.print("All values are within their bounds." if report.ok else "FAILED: see above.")
    return 0 if report.ok else 1


def _run_inspect(options: argparse.Namespace) -> int:
    from .inspection import inspect_chunk, inspect_chunks, inspect_store

    console = _console()
    storage_options = _options("--storage-option", options.storage_option)
    if options.chunk is not None:
        name, separator, text = options.chunk.rpartition("=")
        try:
            index = tuple(int(part) for part in text.split(",")) if separator and text else None
        except ValueError:
            index = None
        if separator and index is None:
            raise _malformed("--chunk", options.chunk, "VARIABLE=I,J,..., as in t2m=0,0,0, or VARIABLE")
        if options.source and options.header_only:
            raise _malformed("--source", options.source, "no --header-only beside it")
        detail: dict[str, Any] = {
            "candidates": not options.header_only,
            "source": options.source,
            "storage_options": storage_options,
        }
        if index is not None:
            chunk = inspect_chunk(options.store, name, index, **detail)
            if options.json:
                _print_json(_fields(chunk))
            else:
                _print_chunk(console, chunk)
            return 0
        chunks = inspect_chunks(options.store, options.chunk, **detail)
        if options.json:
            _print_json([_fields(chunk) for chunk in chunks])
        else:
            for chunk in chunks:
                console.print(f"{chunk.variable}={','.join(map(str, chunk.index))}")
                _print_chunk(console, chunk)
                console.print()
        return 0
    for option, given in (("--source", options.source), ("--header-only", options.header_only)):
        if given:
            raise _malformed(option, str(given), "--chunk beside it")
    report = inspect_store(options.store, storage_options=storage_options)
    if options.json:
        _print_json(report.to_json())
    else:
        _print_store(console, report)
    return 0


def _run_materialise(options: argparse.Namespace) -> int:
    from .materialise import materialise

    with _step_bars() as progress:
        summary = materialise(options.store, options.out, progress=progress)
    console = _console()
    table = _table(
        ("variable", "text"),
        ("chunks", "number"),
        ("rewritten", "number"),
        ("before", "number"),
        ("after", "number"),
        ("models", "text"),
    )
    for v in summary.variables:
        models = ", ".join(digest[:12] for digest in v.models) or "-"
        table.add_row(
            v.name, str(v.chunks), str(v.rewritten), _size(v.bytes_before), _size(v.bytes_after), models
        )
    console.print(table)
    console.print(f"{summary.store} needs no foundation model.")
    return 0


def _run_models_list(options: argparse.Namespace) -> int:
    from . import zoo

    entries = zoo.list()
    if options.json:
        _print_json([_model_fields(entry) for entry in entries])
        return 0
    console = _console()
    if not entries:
        console.print("No models found; 'aesz-codec models add FILE' adds one.")
        return 0
    table = _table(
        ("id", "text"),
        ("kind", "word"),
        ("variables", "text"),
        ("bytes", "number"),
        ("digest", "word"),
        ("place", "text"),
    )
    for e in entries:
        table.add_row(e.id, e.kind, _model_variables(e), str(e.nbytes), e.digest[:12], e.place)
    console.print(table)
    return 0


def _run_models_show(options: argparse.Namespace) -> int:
    from .packs import pack_sections

    entry = _model(options.model)
    if options.json:
        _print_json(_model_fields(entry))
        return 0
    console, manifest = _console(), entry.pack.manifest
    table = _table(("field", "word"), ("value", "text"))
    table.add_row("id", entry.id)
    table.add_row("kind", entry.kind)
    table.add_row("description", manifest["description"] or "-")
    table.add_row("digest", entry.digest)
    table.add_row("variables", _model_variables(entry))
    table.add_row("grid", manifest["grid"] or "any")
    for key, value in manifest["training"].items():
        table.add_row(f"training {key}", value if isinstance(value, str) else _json_text(value))
    for key in ("licence", "arithmetic"):
        table.add_row(key, manifest[key])
    for key in ("normalisation", "network"):
        text = _json_text(manifest[key])
        table.add_row(key, text if len(text) <= 300 else f"{text[:300]}... (--json shows all)")
    table.add_row("place", entry.place)
    table.add_row("card", entry.card or "-")
    table.add_row("bytes", str(entry.nbytes))
    console.print(table)

    sections = _table(
        ("section", "text"), ("dtype", "word"), ("shape", "text"), ("coding", "word"), ("bytes", "number")
    )
    for name, coding, stored in pack_sections(entry.pack):
        tensor = entry.pack.tensors.get(name) if sections.row_count else None
        dtype, shape = ("-", "-") if tensor is None else (tensor.dtype.name, _shape(tensor.shape))
        sections.add_row(name, dtype, shape, coding.name.lower(), str(stored))
    console.print()
    console.print(sections)

    rates = manifest["rates"]
    if rates:
        columns = list(dict.fromkeys(key for row in rates for key in row))
        measured = _table(*((key, "text") for key in columns))
        for row in rates:
            measured.add_row(*(_cell(row.get(key)) for key in columns))
        console.print()
        console.print(measured)
    return 0


def _run_models_add(options: argparse.Namespace) -> int:
    from . import zoo

    pack = zoo.add(options.file)
    _console().print(f"Added {pack.id} ({pack.kind}, {_size(pack.nbytes)}, digest {pack.digest[:12]}).")
    return 0


def _run_models_verify(options: argparse.Namespace) -> int:
    from . import zoo

    console, failed = _console(), 0
    checks = zoo.verify(options.models or None)
    for check in checks:
        if check.problem is None and check.pack is not None:
            console.print(f"{check.name}: ok, digest {check.pack.digest}")
        else:
            failed += 1
            console.print(f"{check.name}: FAILED: {check.problem}", soft_wrap=True)
    console.print("FAILED: see above." if failed else f"{len(checks)} packs are sound.")
    return 1 if failed else 0


def _run_train(options: argparse.Namespace) -> int:
    from .bounds import ErrorBound

    try:
        from .train.training import train
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return _fail("training needs torch: pip install 'aesz-codec[train]'")
    bounds = []
    for text in options.bound:
        mode, _, number = text.partition("=")
        try:
            bounds.append(ErrorBound(mode, float(number)))
        except ValueError:
            raise _malformed("--bound", text, "abs=VALUE or range_rel=VALUE") from None
    for name in ("steps", "samples", "modes"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise _malformed(f"--{name}", str(number), "a positive number")
    common: dict[str, Any] = {
        "id": options.id,
        "licence": options.licence,
        "description": options.description,
        "variables": options.variable,
        "validate": options.validate,
        "seed": options.seed,
    }
    common |= {"bounds": bounds} if bounds else {}
    common |= {"steps": options.steps} if options.steps else {}
    common |= {"count": options.samples} if options.samples else {}
    if options.kind == "autoencoder":
        return _train_autoencoder(options, common)
    hidden = None
    if options.hidden is not None:
        hidden = _widths("--hidden", options.hidden, "widths from 1 to 256, such as 16,8")
    with _step_bars() as progress:
        report = train(
            options.kind,
            options.data,
            options.out,
            hidden=hidden,
            modes=options.modes,
            per_day=options.per_day,
            progress=progress,
            **common,
        )
    console = _console()
    networks = _table(
        ("network", "number"),
        ("samples", "number"),
        ("bits a value", "number"),
        ("innovation gain", "number"),
    )
    for slot, (count, bits, gain) in report.slots.items():
        networks.add_row(str(slot), f"{count:,}", f"{bits:.3f}", f"{gain:.3f}")
    if report.slots:
        console.print(networks)
    _print_judged(console, report.judged)
    if report.judged:
        console.print(f"Pays for itself from {report.break_even:.3g} million values of such data.")
    console.print(f"Pack: {report.path}, {_size(report.pack.nbytes)}, digest {report.pack.digest}")
    return 0


def _train_autoencoder(options: argparse.Namespace, common: dict[str, Any]) -> int:
    from .train.autoencoder import train

    block = _widths("--block", options.block, "lengths, such as 32,32 or 8,8,8")
    with _step_bars() as progress:
        report = train(
            options.data, options.out, block=block, latents=options.latents, progress=progress, **common
        )
    console = _console()
    console.print(
        f"{report.blocks:,} blocks; of unseen ones the integers explain {report.explained:.3f} of the power, as many "
        f"principal components {report.linear:.3f}."
    )
    _print_judged(console, report.judged)
    console.print(f"Pack: {report.path}, {_size(report.pack.nbytes)}, digest {report.pack.digest}")
    return 0


def _widths(option: str, text: str, expected: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > 256:
        raise _malformed(option, text, expected)
    return numbers


def _print_judged(console: Console, judged: Sequence[Judgement]) -> None:
    if not judged:
        return
    table = _table(
        ("data", "text"),
        ("bound", "word"),
        ("bytes without", "number"),
        ("with", "number"),
        ("saved", "number"),
    )
    for j in judged:
        name = f"{Path(j.source).name}:{j.variable}"
        table.add_row(name, j.bound, f"{j.without:,}", f"{j.with_model:,}", f"{100 * j.saved:.1f} %")
    console.print(table)


def _model(name: str) -> Entry:
    """Find a model by id, digest, the beginning of one, or file."""
    from . import zoo
    from .packs import Pack

    if name.endswith(".aeszpack"):
        return zoo.Entry(Pack.from_file(name), name)
    entries = zoo.list()
    named = [e for e in entries if name in (e.id, e.digest)]
    begun = [e for e in entries if len(name) >= 6 and e.digest.startswith(name)]
    if named or len(begun) == 1:
        return (named or begun)[0]
    pack: Pack = zoo.get(name)  # raises what is wrong with it
    return zoo.Entry(pack, "-")


def _model_fields(entry: Entry) -> dict[str, Any]:
    from .packs import plain

    return {
        "id": entry.id,
        "kind": entry.kind,
        "digest": entry.digest,
        "bytes": entry.nbytes,
        "place": entry.place,
        "card": entry.card,
        "manifest": plain(entry.pack.manifest),
    }


def _model_variables(entry: Entry) -> str:
    keys = ("standard_name", "short_name", "level", "units")
    return ", ".join(" ".join(str(v[k]) for k in keys if k in v) for v in entry.variables) or "any"


def _json_text(value: Any) -> str:
    from .packs import plain

    return json.dumps(plain(value), ensure_ascii=False)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _json_text(value)


# Output


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    return Console(width=width, markup=False, highlight=False, soft_wrap=False)


@contextmanager
def _progress(kind: str = "bars") -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error, as "bars" (none where that is no terminal), "json" or "none"."""
    from .progress import bars, json_lines

    shown: Any = {"bars": bars, "json": json_lines}.get(kind, _silent)
    with shown() as show:

        def progress(event: Progress) -> None:
            _go_on(event)
            show(event)

        yield progress


@contextmanager
def _silent() -> Iterator[Callable[[Progress], None]]:
    yield lambda event: None


@contextmanager
def _step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Draw one bar a step of the work on standard error; none where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    with Bars(console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, visible=done < total)

        yield progress


def _table(*columns: tuple[str, str]) -> Table:
    """Build a table; a column is its title and what it holds: "text", "word" or "number"."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for title, kind in columns:  # in a narrow terminal, text is folded
        justify: Any = "right" if kind == "number" else "left"
        folded: dict[str, Any] = {"overflow": "fold", "min_width": 8} if kind == "text" else {"no_wrap": True}
        table.add_column(title, justify=justify, **folded)
    return table


def summary_table(summary: ConversionSummary, width: int = _WIDTH_WITHOUT_TERMINAL) -> Table:
    """Lay out what a conversion did, one row a variable; a narrow one leaves out what is least asked for."""
    wide = width >= _WIDE
    rows = []
    for v in summary.variables:
        bound = str(v.requested)
        if wide and v.requested.mode == "range_rel" and v.resolved.value is not None:
            bound += f" = {v.resolved.value:.3g}"
        row = {
            ("variable", "text"): v.name,
            ("dtype", "word"): v.dtype,
            ("shape", "text"): _shape(v.shape),
            ("chunks", "text"): _chunks(v.chunks, v.shards),
            ("bound", "text"): bound,
            ("ratio", "number"): _number(v.compression_ratio, 2),
            ("max error\n/ bound", "number"): (
                "-" if v.resolved.value is None else f"{v.errors.max_error_over_bound:.4f}"
            ),
            ("PSNR dB", "number"): _number(v.errors.psnr, 1),
            ("seconds", "number"): f"{v.seconds:.2f}",
            ("MB/s", "number"): _number(v.throughput, 1),
        }
        if not wide:
            for dropped in (("dtype", "word"), ("chunks", "text"), ("seconds", "number")):
                del row[dropped]
        rows.append(row)
    table = _table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    return table


def _totals(summary: ConversionSummary) -> str:
    return (
        f"{summary.store}: {_size(summary.raw_bytes)} -> {_size(summary.stored_bytes)}, "
        f"ratio {_number(summary.compression_ratio, 2)}, {summary.seconds:.1f} s"
    )


def _peers_table(ratios: Mapping[str, Mapping[str, float]], summary: ConversionSummary) -> Table:
    peers = list(next(iter(ratios.values())))
    table = _table(("ratio", "text"), *((p, "number") for p in peers), ("AESZ, within\nits bound", "number"))
    for v in summary.variables:
        table.add_row(
            v.name, *(_number(ratios[v.name][p], 2) for p in peers), _number(v.compression_ratio, 2)
        )
    return table


def _verification_table(report: VerificationReport) -> Table:
    table = _table(
        ("variable", "text"),
        ("result", "word"),
        ("bound", "text"),
        ("values", "number"),
        ("max error", "number"),
        ("max error\n/ bound", "number"),
        ("outside", "number"),
        ("bad\nchunks", "number"),
    )
    for v in report.variables:
        error = ratio = "-"
        if v.errors is not None and v.errors.n_finite:
            error = f"{v.errors.max_abs_error:.6g}"
            if v.bound is not None and v.bound.value is not None:
                ratio = f"{v.errors.max_error_over_bound:.4f}"
        table.add_row(
            v.name,
            "ok" if v.ok else "FAILED",
            "equal" if v.bound is None else str(v.bound),
            str(v.n),
            error,
            ratio,
            str(v.violations),
            str(len(v.unreadable)),
        )
    return table


def _failures(variable: VariableVerification) -> Iterator[str]:
    if variable.mismatch:
        yield f"{variable.name}: {variable.mismatch}"
    first = variable.first
    if first is not None:
        place = "".join(f", {dim} {value}" for dim, value in first.coordinates.items())
        bound = "equal to it" if first.bound is None else f"within {first.bound} of it"
        missing = "" if first.stored else " (there is no chunk in the store here)"
        yield (
            f"{variable.name}: {variable.violations} of {variable.n} values outside, the first at index "
            f"{first.index}{place}: value {first.value!s}, reconstruction {first.reconstruction!s}{missing}, "
            f"expected {bound}"
        )
    for chunk in variable.unreadable[:10]:
        yield f"{variable.name}: chunk {chunk.index} cannot be read: {chunk.reason}"
    if len(variable.unreadable) > 10:
        yield f"{variable.name}: and {len(variable.unreadable) - 10} more chunks"


def _print_store(console: Console, report: StoreReport) -> None:
    table = _table(
        ("variable", "text"),
        ("dtype", "word"),
        ("shape", "text"),
        ("chunks", "text"),
        ("bound", "text"),
        ("stored", "number"),
        ("ratio", "number"),
        ("bits per\nvalue", "number"),
    )
    for v in report.variables:
        table.add_row(
            v.name,
            v.dtype,
            _shape(v.shape),
            _chunks(v.chunks, v.shards),
            str(v.bound),
            _size(v.stored_bytes),
            _number(v.compression_ratio, 2),
            f"{v.bits_per_value:.3f}",
        )
    console.print(f"{report.store} (Zarr format {report.zarr_format})\n")
    if report.appending:
        console.print(f"An append to it is {report.appending}: go on with aesz-codec append ... --resume\n")
    if report.variables:
        console.print(table)
    for v in report.variables:
        console.print()
        for line in _details(v):
            console.print(line)
    if report.others:
        console.print(
            "\nOther arrays: "
            + ", ".join(f"{n} ({_size(stored)})" for n, (_, stored) in report.others.items())
        )


def _details(variable: VariableReport) -> Iterator[str]:
    empty = f", {variable.empty_chunks} empty" if variable.empty_chunks else ""
    yield f"{variable.name}: {variable.chunk_count} chunks{empty}, effort {variable.effort}"
    if variable.wrapped:
        yield "  other codecs stand around this one: the chunks cannot be described"
    if variable.predictors:
        yield f"  predictor: {_counts(variable.predictors)}"
    for model in variable.models:
        data = f", {_size(model.embedded_bytes)} in the metadata" if model.embedded_bytes else ""
        yield f"  model: {model.id or 'one that the store does not name'} in {model.chunks}, digest {model.digest}{data}"
    for name, values in variable.parameters.items():
        yield f"  {name}: {_counts(values)}"
    total = sum(variable.sections.values())
    if total:
        parts = sorted(variable.sections.items(), key=lambda item: -item[1])
        yield "  bytes: " + ", ".join(f"{name} {_size(size)} ({size / total:.0%})" for name, size in parts)
    for index, reason in list(variable.unreadable.items())[:10]:
        yield f"  chunk ({index}) cannot be read: {reason}"


def _print_chunk(console: Console, chunk: ChunkReport) -> None:
    fields = _fields(chunk)
    parameters, sections = fields.pop("parameters") or {}, fields.pop("sections") or {}
    for name in ("forecast", "candidates", "candidates_from"):
        fields.pop(name)
    table = _table(("field", "word"), ("value", "text"))
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), str(value))
    for name, value in parameters.items():
        table.add_row(f"parameter {name}", str(value))
    for name, size in sections.items():
        table.add_row(f"section {name}", f"{size} bytes")
    console.print(table)
    if chunk.forecast is not None:
        _print_forecast(console, chunk.forecast)
    if chunk.candidates:
        console.print()
        if chunk.candidates_from == "source":
            console.print("What every choice costs, from the original values:")
        else:
            console.print(
                "What every choice costs, estimated from the decoded values (exact where chosen; --source makes all exact):"
            )
        stored = next(c.nbytes for c in chunk.candidates if c.chosen)
        costs = _table(
            ("method", "word"),
            ("choices", "text"),
            ("bytes", "number"),
            ("to chosen", "number"),
            ("", "word"),
        )
        for c in chunk.candidates:
            plain = {"step": c.parameters.get("step"), "reversed": False, "alpha": 1.0, "beta": 1.0}
            shown = {k: v for k, v in c.parameters.items() if plain.get(k) != v and v is not False}
            choices = ", ".join(k if v is True else f"{k} {v}" for k, v in shown.items())
            costs.add_row(
                c.method, choices, f"{c.nbytes:,}", f"{c.nbytes / stored:.3f}", "chosen" if c.chosen else ""
            )
        console.print(costs)


def _print_forecast(console: Console, forecast: Forecast) -> None:
    console.print()
    if forecast.used:
        console.print(
            f"Frames refer to others: {forecast.order}, keyframes every {forecast.keyframes}, {forecast.forecaster}."
        )
    else:
        console.print("Frames do not refer to others. What the frame before would have told:")
    for name, value in forecast.fitted.items():
        console.print(f"  {name}: {value}")
    gains = _table(
        ("level", "number"),
        ("points", "number"),
        ("left by interpolation", "number"),
        ("innovation gain", "number"),
        ("best weight", "number"),
    )
    for g in forecast.gains:
        gains.add_row(str(g.level), f"{g.points:,}", f"{g.left:.4g}", f"{g.gain:.3f}", f"{g.weight:.2f}")
    console.print(gains)
    if forecast.weights:
        console.print()
        levels = sorted({w.level for w in forecast.weights})
        weights = _table(
            ("distance", "word"), ("between", "word"), *((f"level {level}", "number") for level in levels)
        )
        by_place = {(w.distance, w.odd, w.level): f"{w.weight:.2f}" for w in forecast.weights}
        for distance, odd in dict.fromkeys((w.distance, w.odd) for w in forecast.weights):
            weights.add_row(distance, odd, *(by_place.get((distance, odd, level), "-") for level in levels))
        console.print("Weights of innovations, by distance of the frames and place of the points:")
        console.print(weights)


def _fields(chunk: ChunkReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(chunk)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def _counts(counts: Any) -> str:
    shown = [f"{name} in {count}" for name, count in list(counts.items())[:4]]
    return ", ".join(shown) + (f", {len(counts) - 4} more" if len(counts) > 4 else "")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _chunks(chunks: Sequence[int], shards: Sequence[int] | None) -> str:
    return _shape(chunks) if shards is None else f"{_shape(chunks)} in {_shape(shards)}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
