"""Bytes of every peer on the same chunks at the same bounds, with every decoded value checked.

Run as ``python -m benchmarks.rates --suite FOLDER`` or
``python -m benchmarks.rates FILE.nc:VARIABLE --chunks 24,181,360``. Writes ``rates-<dtype>.csv`` (one row a
field, bound and setting) and ``rates-<dtype>.md``. Exit status 1 if aesz-codec breaks a bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import fields, report
from benchmarks.peers import FAMILIES, Peer, select


@dataclasses.dataclass(frozen=True)
class Rate:
    """One field at one bound through one setting of one peer."""

    field: str
    dtype: str
    shape: str
    chunks: str
    bound: str
    tolerance: float
    raw_bytes: int
    peer: str
    family: str
    coded_bytes: int
    max_error_over_bound: float
    violations: int

    @property
    def ratio(self) -> float:
        return self.raw_bytes / self.coded_bytes


def error(original: np.ndarray, decoded: np.ndarray, tolerance: float) -> tuple[float, int]:
    """Largest error of a finite value, and number of values out of bound: float64, on the decoder's output.

    Another shape or dtype, a NaN or infinity that did not stay itself, and a finite value that did not stay
    finite are violations too.
    """
    if decoded.shape != original.shape or decoded.dtype != original.dtype:
        return math.inf, original.size
    finite = np.isfinite(original)
    kept = np.where(np.isnan(original), np.isnan(decoded), original == decoded)
    violations = int(np.count_nonzero(~kept & ~finite))
    errors = np.abs(original[finite].astype(np.float64) - decoded[finite].astype(np.float64))
    errors[np.isnan(errors)] = np.inf
    violations += int(np.count_nonzero(errors > tolerance))
    return float(errors.max(initial=0.0)), violations


def measure(field: fields.Field, bound: fields.Bound, dtype: str, peers: Sequence[Peer]) -> list[Rate]:
    """Code, decode and check every chunk of one field with every peer."""
    values = field.read(dtype)
    chunk_shape = field.chunk_shape(values)
    tolerance = bound.tolerance(values)
    rates = []
    for peer in peers:
        coded, largest, violations = 0, 0.0, 0
        for chunk in fields.split(values, chunk_shape):
            for part in fields.slices(chunk, peer.max_ndim):
                stream = peer.compress(part, tolerance)
                coded += len(stream)
                decoded = peer.decompress(stream, part.shape, part.dtype)
                part_error, part_violations = error(part, decoded, tolerance)
                largest = max(largest, part_error)
                violations += part_violations
        rates.append(
            Rate(
                field=field.name,
                dtype=dtype,
                shape="x".join(map(str, values.shape)),
                chunks="x".join(map(str, chunk_shape)),
                bound=bound.label,
                tolerance=tolerance,
                raw_bytes=values.nbytes,
                peer=peer.name,
                family=peer.family,
                coded_bytes=coded,
                max_error_over_bound=largest / tolerance,
                violations=violations,
            )
        )
    return rates


class Table:
    """The rates of a run, by cell (field and bound)."""

    def __init__(self, rates: Sequence[Rate]) -> None:
        self.rates = list(rates)
        self.cells: dict[tuple[str, str], dict[str, Rate]] = {}
        for rate in self.rates:
            self.cells.setdefault((rate.field, rate.bound), {})[rate.peer] = rate
        self.ours = list(dict.fromkeys(rate.peer for rate in self.rates if rate.family == "aesz"))
        self.others = list(dict.fromkeys(rate.family for rate in self.rates if rate.family != "aesz"))
        # Means are over the bounds that every field has (fractions of its range); absolute ones stand apart.
        self.groups: dict[str, list[tuple[str, str]]] = {}
        for cell in self.cells:
            self.groups.setdefault("abs" if cell[1].startswith("abs") else cell[1], []).append(cell)
        relative = [cell for cell in self.cells if not cell[1].startswith("abs")]
        if len(self.groups) > 1 and relative:
            self.groups["all range_rel"] = relative

    def best(self, cell: tuple[str, str], family: str) -> Rate:
        candidates = [rate for rate in self.cells[cell].values() if rate.family == family]
        return min(candidates, key=lambda rate: rate.coded_bytes)

    def gain(self, cell: tuple[str, str], family: str, ours: str) -> float:
        """Bytes of the best setting of `family` over the bytes of `ours`: above 1, ours is smaller."""
        return self.best(cell, family).coded_bytes / self.cells[cell][ours].coded_bytes

    def violations(self) -> list[Rate]:
        return [rate for rate in self.rates if rate.violations]

    def parts(self, title: str) -> Iterator[str]:
        """The Markdown report."""
        yield f"# {title}"
        yield report.environment()
        if self.ours:
            for family in self.others:
                yield f"## Best {family} setting's bytes / ours"
                yield self._gains(family)
        yield "## Compression ratio by bound"
        yield (
            "Geometric mean over fields, in brackets the dataset ratio (all raw bytes / all coded bytes). "
            "`best` takes the smallest setting of each cell."
        )
        yield self._ratios()
        yield "## Every field and bound"
        yield self._cells()
        yield "## Bound"
        yield self._bound()

    def _gains(self, family: str) -> str:
        rows = []
        for group, cells in self.groups.items():
            for ours in self.ours:
                gains = {cell: self.gain(cell, family, ours) for cell in cells}
                worst = min(gains, key=gains.__getitem__)
                mean = report.geometric_mean(gains.values())
                best_bytes = sum(self.best(cell, family).coded_bytes for cell in cells)
                dataset = best_bytes / sum(self.cells[cell][ours].coded_bytes for cell in cells)
                row = [group, ours, len(cells), f"{mean:.3f}", f"{dataset:.3f}", f"{max(gains.values()):.3f}"]
                row += [sum(gain < 1 for gain in gains.values()), f"{gains[worst]:.3f}", ", ".join(worst)]
                rows.append(row)
        header = [
            "bound",
            "ours",
            "cells",
            "geometric mean",
            "dataset",
            "highest",
            "below 1",
            "worst",
            "worst cell",
        ]
        return report.markdown_table(header, rows, text_columns=2)

    def _ratios(self) -> str:
        def text(rates: list[Rate]) -> str:
            dataset = sum(rate.raw_bytes for rate in rates) / sum(rate.coded_bytes for rate in rates)
            return f"{report.geometric_mean(rate.ratio for rate in rates):.2f} ({dataset:.2f})"

        groups = self.groups.values()
        rows = []
        for name in dict.fromkeys(rate.peer for rate in self.rates):
            rows.append([name, *(text([self.cells[cell][name] for cell in cells]) for cells in groups)])
        for family in self.others:
            rows.append(
                [f"best {family}", *(text([self.best(cell, family) for cell in cells]) for cells in groups)]
            )
        return report.markdown_table(["peer", *self.groups], rows)

    def _cells(self) -> str:
        peers = list(dict.fromkeys(rate.peer for rate in self.rates))
        header = ["field", "bound", "tolerance", "raw bytes", *peers]
        header += [f"best {family}" for family in self.others]
        header += [f"best {family} / {ours}" for family in self.others for ours in self.ours]
        header += [f"max error / bound, {ours}" for ours in self.ours]
        rows = []
        for cell, rates in self.cells.items():
            first = next(iter(rates.values()))
            row = [*cell, f"{first.tolerance:.6g}", first.raw_bytes]
            row += [rates[peer].coded_bytes for peer in peers]
            row += [self.best(cell, family).peer for family in self.others]
            row += [f"{self.gain(cell, family, ours):.3f}" for family in self.others for ours in self.ours]
            row += [f"{rates[ours].max_error_over_bound:.6f}" for ours in self.ours]
            rows.append(row)
        return report.markdown_table(header, rows, text_columns=2)

    def _bound(self) -> str:
        rows = []
        for name in dict.fromkeys(rate.peer for rate in self.rates):
            mine = [rate for rate in self.rates if rate.peer == name]
            highest = max(rate.max_error_over_bound for rate in mine)
            rows.append([name, f"{highest:.9f}", sum(rate.violations for rate in mine)])
        return report.markdown_table(["peer", "max error / bound", "values out of bound"], rows)


def _task(task: tuple[fields.Field, fields.Bound, str, Sequence[Peer]]) -> list[Rate]:
    return measure(*task)


def run(tasks: Sequence[tuple], workers: int) -> Iterator[list[Rate]]:
    """The tasks' results, in order."""
    if workers == 1:
        yield from map(_task, tasks)
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_task, tasks)


def _arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[fields.Field], list[Peer]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE:VARIABLE", help="instead of a suite")
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--fields", help="only these fields of the suite, separated by commas")
    parser.add_argument("--bounds", help="1e-3 is a fraction of the range, abs:0.05 absolute; commas")
    parser.add_argument("--chunks", help="chunk shape of files, e.g. 24,181,360 (default: the whole array)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="cast to it")
    parser.add_argument("--peers", default=",".join(FAMILIES), help="families, default %(default)s")
    parser.add_argument("--efforts", default="default", help="of aesz: fast,default,max")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", help="of the two files, default rates-DTYPE")
    options = parser.parse_args(argv)
    try:
        chunks = tuple(int(size) for size in options.chunks.split(",")) if options.chunks else None
        if options.files:
            chosen = [fields.file_field(argument, chunks) for argument in options.files]
        else:
            path = fields.find_suite(options.suite)
            if path is None:
                raise ValueError("no fields: give --suite, set AESZ_DATA, or name FILE:VARIABLE")
            chosen = fields.suite_fields(path)
            if options.fields:
                names = options.fields.split(",")
                missing = sorted(set(names) - {field.name for field in chosen})
                if missing:
                    raise ValueError(f"--fields: {', '.join(missing)} not in {path.name}")
                chosen = [field for field in chosen if field.name in names]
        if options.bounds:
            bounds = tuple(fields.parse_bound(text) for text in options.bounds.split(","))
            chosen = [dataclasses.replace(field, bounds=bounds) for field in chosen]
        if options.workers < 1:
            raise ValueError(f"--workers: found {options.workers}, expected at least 1")
        peers = select(options.peers.split(","), options.efforts.split(","))
    except ValueError as problem:
        parser.error(str(problem))
    return options, chosen, peers


def main(argv: Sequence[str] | None = None) -> int:
    options, chosen, peers = _arguments(argv)
    tasks = [(field, bound, options.dtype, peers) for field in chosen for bound in field.bounds]
    rates: list[Rate] = []
    for (field, bound, *_), result in zip(tasks, run(tasks, options.workers), strict=True):
        rates += result
        ratios = "  ".join(f"{rate.peer} {rate.ratio:.2f}" for rate in result)
        print(f"{field.name:32} {bound.label:9} {ratios}", flush=True)
    table = Table(rates)
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.name or f"rates-{options.dtype}"
    columns = [column.name for column in dataclasses.fields(Rate)]
    report.write_csv(options.out / f"{name}.csv", columns, map(dataclasses.astuple, rates))
    report.write_markdown(options.out / f"{name}.md", table.parts(f"Rates, {options.dtype}"))
    print(f"\n{options.out / name}.md, .csv")
    broken = table.violations()
    for rate in broken:
        found = f"{rate.violations} values out of bound, max error / bound {rate.max_error_over_bound:.9g}"
        print(f"VIOLATION {rate.peer} {rate.field} {rate.bound}: {found}", file=sys.stderr)
    return int(any(rate.family == "aesz" for rate in broken))


if __name__ == "__main__":
    sys.exit(main())
