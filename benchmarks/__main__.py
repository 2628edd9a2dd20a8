"""Compare aesz-codec with its peers: bytes, speed and memory on the same arrays in one run.

Without FILE the fields are those of a suite, or, if there is none, synthetic ones. Every measurement goes to a
CSV file of its own in the output folder; report.md and the plots are then made from all CSV files there, so that
measurements can be made at different times. Exit status: 1 if aesz-codec breaks a bound, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import fields, plots, rates, report, speed
from benchmarks.peers import FAMILIES, Peer, select

MEASUREMENTS = ("rates", "small-chunks", "speed", "memory")
_RATES = ("rates", "small-chunks")
_DEFAULT_OUTPUT = Path("benchmark-report")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="that xarray opens, instead of a suite")
    add(
        "--variable",
        default="",
        help="of FILE, several separated by commas (default: its only one of floats)",
    )
    add("--chunks", help="of FILE: time=48,lat=64 (other axes whole) or 48,64,128 (default: whole arrays)")
    add("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    add("--fields", help="only these fields of the suite, separated by commas")
    add("--range-rel", metavar="BOUNDS", help="fractions of the range, e.g. 1e-2,1e-3 (default: the suite's)")
    add("--abs", metavar="BOUNDS", help="bounds in the units of the field, e.g. 0.05")
    add("--dtype", choices=("float32", "float64"), default="float32", help="cast to it, default %(default)s")
    add("--peers", default=",".join(FAMILIES), help="default %(default)s")
    add("--efforts", default="fast,default,max", help="of aesz, default %(default)s")
    add(
        "--measure",
        default=",".join(MEASUREMENTS),
        help="default %(default)s; nothing: only write the report",
    )
    add("--repeats", type=int, default=7, help="of a timed call, default %(default)s")
    add(
        "--workers",
        type=int,
        default=1,
        help="processes for rates; speeds always have one, default %(default)s",
    )
    add("--output", type=Path, default=_DEFAULT_OUTPUT, help="folder of the results, default %(default)s")
    return parser


def _fields(options: argparse.Namespace) -> list[fields.Field]:
    if options.file:
        if options.fields or options.suite:
            raise fields.BadArgument(
                "FILE is instead of a suite: leave out --suite and --fields, name --variable"
            )
        variables = [name for name in options.variable.split(",") if name]
        chosen = fields.file_fields(options.file, variables, options.chunks)
    elif options.variable or options.chunks:
        raise fields.BadArgument("--variable and --chunks need a FILE: a suite has chunks of its own")
    elif path := fields.find_suite(options.suite):
        chosen = fields.suite_fields(path)
        if options.fields:
            names = options.fields.split(",")
            if missing := sorted(set(names) - {field.name for field in chosen}):
                raise fields.BadArgument(f"--fields: {', '.join(missing)} not in {path.name}")
            chosen = [field for field in chosen if field.name in names]
    else:
        print("no FILE, and no suite (--suite, AESZ_DATA): synthetic fields", file=sys.stderr)
        chosen = [fields.synthetic_field(shape) for shape in speed.SYNTHETIC_SHAPES]
    bounds = fields.parse_bounds("range_rel", options.range_rel) if options.range_rel else ()
    bounds += fields.parse_bounds("abs", options.abs) if options.abs else ()
    return [dataclasses.replace(field, bounds=bounds) for field in chosen] if bounds else chosen


def _measure_rates(
    chosen: Sequence[fields.Field], peers: Sequence[Peer], options: argparse.Namespace
) -> tuple[list[rates.Rate], list[rates.Part]]:
    tasks = [(field, bound, options.dtype, peers) for field in chosen for bound in field.bounds]
    found: list[rates.Rate] = []
    parts: list[rates.Part] = []
    for (field, bound, *_), (cell, cell_parts) in zip(tasks, rates.run(tasks, options.workers), strict=True):
        found += cell
        parts += cell_parts
        ratios = "  ".join(f"{rate.peer} {rate.ratio:.2f}" for rate in cell)
        print(f"{field.name:32} {bound.label:9} {ratios}", flush=True)
    return found, parts


def _arrays(
    chosen: Sequence[fields.Field], dtype: str
) -> Iterator[tuple[str, np.ndarray, Sequence[fields.Bound]]]:
    """Of a suite two synthetic fields and three of its own; of files and synthetic fields the chunk in the middle."""
    suite = [field for field in chosen if field.source != fields.SYNTHETIC and field.variable is None]
    relative = [bound for bound in suite[0].bounds if bound.mode == "range_rel"] if suite else []
    if relative:
        for shape in speed.SYNTHETIC_SHAPES:
            field = fields.synthetic_field(shape)
            yield "synthetic", field.read(dtype), relative
    for field in chosen:
        values = field.read(dtype)
        if field in suite:
            if field.name in speed.REAL_FIELDS:
                yield field.name, values[0] if values.ndim == 4 else values, field.bounds
        else:
            chunks = list(fields.split(values, field.chunk_shape(values)))
            yield field.name, chunks[len(chunks) // 2], field.bounds


def _measure_speeds(
    chosen: Sequence[fields.Field], peers: Sequence[Peer], options: argparse.Namespace
) -> tuple[list[speed.Speed], list[speed.Memory]]:
    timed = speed.choose(peers)
    rows: list[speed.Speed] = []
    peaks: list[speed.Memory] = []
    for name, values, bounds in _arrays(chosen, options.dtype):
        if "speed" in options.measure:
            for bound in bounds:
                for row in speed.speeds(name, values, bound, timed, options.repeats):
                    rows.append(row)
                    print(
                        f"{row.field:20} {row.shape:12} {row.bound:6} {row.peer:20} ratio {row.ratio:7.2f}  "
                        f"to SZ3 {row.compress_to_sz3_median:.2f} {row.decompress_to_sz3_median:.2f}",
                        flush=True,
                    )
        if "memory" in options.measure:
            bound = bounds[len(bounds) // 2]
            for peak in speed.memory(name, values, bound, timed):
                peaks.append(peak)
                print(
                    f"{peak.field:20} {peak.shape:12} {peak.bound:6} {peak.peer:20} "
                    f"peak memory {peak.compress_peak:.2f} {peak.decompress_peak:.2f} x the array",
                    flush=True,
                )
    return rows, peaks


def _write_report(folder: Path) -> list[rates.Rate]:
    """report.md and the plots from the CSV files of `folder`; returns our rates that broke a bound."""
    runs = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    found = {name: report.read_rows(folder / f"{name}.csv", rates.Rate) for name in _RATES}
    tables = {name: rates.Table(rows) for name, rows in found.items()}
    parts = report.read_rows(folder / "parts.csv", rates.Part)
    rows = report.read_rows(folder / "speed.csv", speed.Speed)
    peaks = report.read_rows(folder / "memory.csv", speed.Memory)

    def text() -> Iterator[str]:
        yield "# aesz-codec and its peers"
        yield "How these tables are made and what their columns mean: `benchmarks/README.md`."
        if tables["rates"].rates:
            yield "## Rates"
            yield from (runs.get("rates", ""), *tables["rates"].parts())
            if plots.rate_distortion(folder / "rate-distortion.png", tables["rates"]):
                yield "### Rate and distortion"
                yield "![Bits per value against PSNR, one line a peer](rate-distortion.png)"
        if parts:
            yield "### Where the bits are"
            yield from rates.where_the_bits_are(parts, found["rates"])
        if tables["small-chunks"].rates:
            yield "## Small chunks: 8 x 64 x 64, or 64 x 64"
            yield from (runs.get("small-chunks", ""), *tables["small-chunks"].parts())
        if rows or peaks:
            yield "## Speed and memory"
            yield runs.get("speed", runs.get("memory", ""))
            if rows and plots.ratio_speed(folder / "ratio-speed.png", rows):
                yield "![Compression ratio against speed relative to SZ3](ratio-speed.png)"
            yield from speed.parts(rows, peaks)

    report.write_markdown(folder / "report.md", text())
    return [rate for table in tables.values() for rate in table.broken if rate.family == rates.OURS]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, report; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        options.measure = [] if options.measure == "nothing" else options.measure.split(",")
        if unknown := sorted(set(options.measure) - set(MEASUREMENTS)):
            raise fields.BadArgument(
                f"--measure: found {', '.join(unknown)}, expected some of {', '.join(MEASUREMENTS)}"
            )
        if min(options.workers, options.repeats) < 1:
            raise fields.BadArgument("--workers and --repeats: expected at least 1")
        options.output.mkdir(parents=True, exist_ok=True)
        if options.measure:
            chosen = _fields(options)
            peers = select(options.peers.split(","), options.efforts.split(","))
            if {"speed", "memory"} & set(options.measure):
                speed.choose(peers)
            _measure(chosen, peers, options)
        broken = _write_report(options.output)
    except fields.BadArgument as problem:
        parser.error(str(problem))
    print(f"\n{options.output / 'report.md'}")
    for rate in broken:
        found = f"{rate.violations} values out of bound, max error / bound {rate.max_error_over_bound:.9g}"
        print(f"VIOLATION {rate.peer} {rate.field} {rate.bound}: {found}", file=sys.stderr)
    return int(bool(broken))


def _measure(chosen: Sequence[fields.Field], peers: Sequence[Peer], options: argparse.Namespace) -> None:
    folder = options.output
    for name in _RATES:
        if name in options.measure:
            small = name == "small-chunks"
            cut = [dataclasses.replace(field, small=small) for field in chosen]
            found, parts = _measure_rates(cut, peers, options)
            report.write_rows(folder / f"{name}.csv", rates.Rate, found)
            if not small:
                report.write_rows(folder / "parts.csv", rates.Part, parts)
    if {"speed", "memory"} & set(options.measure):
        rows, peaks = _measure_speeds(chosen, peers, options)
        if "speed" in options.measure:
            report.write_rows(folder / "speed.csv", speed.Speed, rows)
        if "memory" in options.measure:
            report.write_rows(folder / "memory.csv", speed.Memory, peaks)
    path = folder / "run.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    here = f"{datetime.date.today().isoformat()}, {options.dtype}, {report.environment()}."
    path.write_text(json.dumps(runs | dict.fromkeys(options.measure, here), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
