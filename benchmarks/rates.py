"""Bytes of every peer on the same chunks at the same bounds, with every decoded value checked."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from benchmarks import fields, report
from benchmarks.peers import NotApplicable, Peer

OURS = "aesz"  # the family
Cell = tuple[str, str]  # field, bound


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
    values: int
    peer: str
    family: str
    coded_bytes: int
    max_error_over_bound: float
    violations: int
    psnr: float  # of the field's range, in dB; infinite if every value came back

    @property
    def ratio(self) -> float:
        return self.raw_bytes / self.coded_bytes

    @property
    def bits_per_value(self) -> float:
        return 8 * self.coded_bytes / self.values


@dataclasses.dataclass(frozen=True)
class Part:
    """Where the bytes of one of our rates are: a section of the streams, or the streams of one predictor."""

    field: str
    bound: str
    peer: str
    kind: str  # "section" or "predictor"
    part: str
    chunks: int
    coded_bytes: int


Choice = Callable[[Cell], Rate | None]


# ---- measuring -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Errors:
    """What the decoder's output is off by, summed over parts of a field.

    Errors are differences in float64. Another shape or dtype, a NaN or infinity that did not stay itself, and a
    finite value that did not stay finite are violations.
    """

    tolerance: float
    largest: float = 0.0
    violations: int = 0
    squares: float = 0.0
    finite: int = 0

    def add(self, original: np.ndarray, decoded: np.ndarray) -> None:
        if decoded.shape != original.shape or decoded.dtype != original.dtype:
            self.largest = math.inf
            self.violations += original.size
            return
        finite = np.isfinite(original)
        kept = np.where(np.isnan(original), np.isnan(decoded), original == decoded)
        self.violations += int(np.count_nonzero(~kept & ~finite))
        errors = np.abs(original[finite].astype(np.float64) - decoded[finite].astype(np.float64))
        errors[np.isnan(errors)] = np.inf
        self.violations += int(np.count_nonzero(errors > self.tolerance))
        self.largest = max(self.largest, float(errors.max(initial=0.0)))
        self.squares += float(np.dot(errors, errors))
        self.finite += errors.size

    def psnr(self, value_range: float) -> float:
        if not self.squares:
            return math.inf
        return (
            20 * math.log10(value_range / math.sqrt(self.squares / self.finite)) if value_range else math.nan
        )


def measure(
    field: fields.Field, bound: fields.Bound, dtype: str, peers: Sequence[Peer]
) -> tuple[list[Rate], list[Part]]:
    """Code, decode and check every chunk of one field with every peer that can code all of them."""
    values = field.read(dtype)
    chunk_shape = field.chunk_shape(values)
    tolerance = bound.tolerance(values)
    finite = values[np.isfinite(values)]
    value_range = float(finite.max()) - float(finite.min()) if finite.size else 0.0
    rates: list[Rate] = []
    parts: list[Part] = []
    for peer in peers:
        errors = Errors(tolerance)
        streams = []
        try:
            for chunk in fields.split(values, chunk_shape):
                for piece in fields.slices(chunk, peer.max_ndim):
                    streams.append(peer.compress(piece, tolerance))
                    errors.add(piece, peer.decompress(streams[-1], piece.shape, piece.dtype))
        except NotApplicable:
            continue
        rates.append(
            Rate(
                field=field.name,
                dtype=dtype,
                shape="x".join(map(str, values.shape)),
                chunks="x".join(map(str, chunk_shape)),
                bound=bound.label,
                tolerance=tolerance,
                raw_bytes=values.nbytes,
                values=values.size,
                peer=peer.name,
                family=peer.family,
                coded_bytes=sum(map(len, streams)),
                max_error_over_bound=errors.largest / tolerance,
                violations=errors.violations,
                psnr=errors.psnr(value_range),
            )
        )
        if peer.family == OURS:
            parts += _parts(field.name, bound.label, peer.name, streams)
    return rates, parts


def _parts(field: str, bound: str, peer: str, streams: Sequence[bytes]) -> Iterator[Part]:
    from aesz_codec.pipeline import describe

    counted: dict[tuple[str, str], list[int]] = {}
    for stream in streams:
        info = describe(stream)
        found = [("section", name, size) for name, size in info.sections.items()]
        for kind, name, size in [*found, ("predictor", info.predictor, info.nbytes)]:
            counted.setdefault((kind, name), []).append(size)
    for (kind, name), sizes in sorted(counted.items()):
        yield Part(field, bound, peer, kind, name, len(sizes), sum(sizes))


def _task(task: tuple) -> tuple[list[Rate], list[Part]]:
    return measure(*task)


def run(tasks: Sequence[tuple], workers: int) -> Iterator[tuple[list[Rate], list[Part]]]:
    """What `measure` returns for the arguments of every task, in order, computed by `workers` processes."""
    if workers == 1:
        yield from map(_task, tasks)
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_task, tasks)


# ---- tables ----------------------------------------------------------------------------------------------------


class Table:
    """The rates of a run by cell, and what the oracle chooses there.

    The oracle is the smallest of all settings of all peers but ours in a cell. Rates that broke the bound are
    listed, and take no part in anything else.
    """

    def __init__(self, rates: Sequence[Rate]) -> None:
        self.rates = [rate for rate in rates if not rate.violations]
        self.broken = [rate for rate in rates if rate.violations]
        self.cells: dict[Cell, dict[str, Rate]] = {}
        for rate in self.rates:
            self.cells.setdefault((rate.field, rate.bound), {})[rate.peer] = rate
        self.peers = {rate.peer: rate.family for rate in self.rates}
        self.ours = [peer for peer, family in self.peers.items() if family == OURS]
        self.families = list(dict.fromkeys(family for family in self.peers.values() if family != OURS))
        # Means are over the bounds that every field has (fractions of its range); absolute ones stand apart.
        self.groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            self.groups.setdefault("abs" if cell[1].startswith("abs") else cell[1], []).append(cell)
        relative = [cell for cell in self.cells if not cell[1].startswith("abs")]
        if len(self.groups) > 1 and relative:
            self.groups["all range_rel"] = relative

    def best(self, cell: Cell, family: str | None = None) -> Rate | None:
        """The smallest rate of `family`; of None, that of the oracle."""
        rates = [rate for rate in self.cells[cell].values() if rate.family == family or not family]
        return min(
            (rate for rate in rates if family or rate.family != OURS),
            key=lambda rate: rate.coded_bytes,
            default=None,
        )

    def references(self) -> dict[str, Choice]:
        """What ours is held against, by heading."""
        found: dict[str, Choice] = {}
        if "sz3" in self.families:
            found["best sz3"] = functools.partial(self.best, family="sz3")
        if set(self.families) - {"sz3"}:
            found["oracle"] = self.best
        return found

    def parts(self) -> Iterator[str]:
        """The Markdown report."""
        if self.ours and self.families:
            yield (
                "Bytes of the reference / ours: above 1 we are smaller. `best sz3` is the smallest setting of SZ3 "
                "in each cell (a field at a bound), `oracle` the smallest setting of all peers: "
                f"{', '.join(self.families)}. `dataset`: all their bytes / all ours."
            )
            yield self._gains()
        if self.families:
            yield "### Who is smallest"
            yield (
                "Cells in which a setting is the oracle, and bytes of a family's best setting / ours and / the "
                "oracle's (geometric means)."
            )
            yield self._winners()
        yield "### Compression ratio"
        yield (
            "Geometric mean over fields, in brackets the dataset ratio (all raw bytes / all coded bytes). "
            "`best` takes the smallest setting of each cell; `n/a`: cells that a peer could not code."
        )
        yield self._ratios()
        yield "### Every field and bound"
        yield self._cells()
        yield "### Bound"
        yield "Largest error / tolerance, and the cells in which a value was out of bound (not counted anywhere)."
        yield self._bound()

    def _pairs(self, first: Choice, second: Choice, cells: Sequence[Cell]) -> dict[Cell, tuple[int, int]]:
        """Bytes of both choices, in the cells that have both."""
        both = {cell: (first(cell), second(cell)) for cell in cells}
        return {cell: (one.coded_bytes, two.coded_bytes) for cell, (one, two) in both.items() if one and two}

    def _of(self, peer: str) -> Choice:
        return lambda cell: self.cells[cell].get(peer)

    def _gains(self) -> str:
        rows = []
        for (name, reference), (group, cells), ours in itertools.product(
            self.references().items(), self.groups.items(), self.ours
        ):
            pairs = self._pairs(reference, self._of(ours), cells)
            if not pairs:
                continue
            gains = {cell: theirs / mine for cell, (theirs, mine) in pairs.items()}
            least = min(gains, key=gains.__getitem__)
            dataset = sum(theirs for theirs, _ in pairs.values()) / sum(mine for _, mine in pairs.values())
            rows.append(
                [
                    *(f"{name} / {ours}", group, len(gains)),
                    *(f"**{report.geometric_mean(gains.values()):.3f}**", f"{dataset:.3f}"),
                    *(f"{gains[least]:.3f}", ", ".join(least)),
                    *(sum(gain < limit for gain in gains.values()) for limit in (1, 0.97)),
                ]
            )
        header = ["bytes", "bound", "cells", "geometric mean", "dataset", "least", "least cell"]
        return report.markdown_table([*header, "below 1", "below 0.97"], rows, text_columns=2)

    def _winners(self) -> str:
        oracle = {cell: rate.peer for cell in self.cells if (rate := self.best(cell))}
        rows: list[list[object]] = []
        for peer in self.peers:
            won = [sum(oracle.get(cell) == peer for cell in cells) for cells in self.groups.values()]
            if any(won):
                rows.append([peer, *won])
        table = report.markdown_table(["oracle", *self.groups], rows)
        rows = []
        for family, other in itertools.product(self.families, ["oracle", *self.ours]):
            second = self.best if other == "oracle" else self._of(other)
            row: list[object] = [f"best {family} / {other}"]
            for cells in self.groups.values():
                pairs = self._pairs(functools.partial(self.best, family=family), second, cells)
                mean = report.geometric_mean(theirs / mine for theirs, mine in pairs.values())
                row.append(f"{mean:.3f}" if pairs else "")
            rows.append(row)
        return table + "\n\n" + report.markdown_table(["bytes", *self.groups], rows)

    def _ratios(self) -> str:
        def text(rates: list[Rate | None]) -> str:
            found = [rate for rate in rates if rate]
            if not found:
                return ""
            dataset = sum(rate.raw_bytes for rate in found) / sum(rate.coded_bytes for rate in found)
            missing = f", n/a {len(rates) - len(found)}" if len(found) < len(rates) else ""
            return f"{report.geometric_mean(rate.ratio for rate in found):.2f} ({dataset:.2f}){missing}"

        groups = self.groups.values()
        rows = [
            [name, *(text([self.cells[cell].get(name) for cell in cells]) for cells in groups)]
            for name in self.peers
        ]
        for family in self.families:
            rows.append(
                [f"best {family}", *(text([self.best(cell, family) for cell in cells]) for cells in groups)]
            )
        if len(self.families) > 1:
            rows.append(["oracle", *(text([self.best(cell) for cell in cells]) for cells in groups)])
        return report.markdown_table(["peer", *self.groups], rows)

    def _cells(self) -> str:
        references = self.references()
        header = ["field", "bound", "tolerance", "raw bytes"]
        header += [text for name in references for text in (f"{name}, bytes", "setting")]
        header += [f"{ours}, bytes" for ours in self.ours]
        header += [f"{name} / {ours}" for name in references for ours in self.ours]
        header += [f"max error / bound, {ours}" for ours in self.ours]
        rows = []
        for cell, rates in self.cells.items():
            first = next(iter(rates.values()))
            row: list[object] = [*cell, f"{first.tolerance:.6g}", first.raw_bytes]
            best = [reference(cell) for reference in references.values()]
            mine = [rates.get(ours) for ours in self.ours]
            for rate in best:
                row += [rate.coded_bytes, rate.peer] if rate else ["", ""]
            row += [rate.coded_bytes if rate else "" for rate in mine]
            row += [f"{a.coded_bytes / b.coded_bytes:.3f}" if a and b else "" for a in best for b in mine]
            row += [f"{rate.max_error_over_bound:.6f}" if rate else "" for rate in mine]
            rows.append(row)
        return report.markdown_table(header, rows, text_columns=2)

    def _bound(self) -> str:
        rows = []
        for name in dict.fromkeys(rate.peer for rate in self.rates + self.broken):
            mine = [rate for rate in self.rates + self.broken if rate.peer == name]
            highest = max(rate.max_error_over_bound for rate in mine)
            broken = [
                f"{rate.field} {rate.bound}: {rate.violations} values" for rate in mine if rate.violations
            ]
            rows.append(
                [name, f"{highest:.9f}", len(broken), "; ".join(broken[:3]) + ("; ..." * (len(broken) > 3))]
            )
        return report.markdown_table(["peer", "max error / bound", "cells broken", "which"], rows)


def where_the_bits_are(parts: Sequence[Part], rates: Sequence[Rate]) -> Iterator[str]:
    """Markdown: our bytes by section of the stream, by predictor and by field."""
    values = {rate.field: rate.values for rate in rates}
    groups = list(dict.fromkeys((part.peer, part.bound) for part in parts))
    for kind, text in (
        ("section", "Bytes of a section / all bytes of the bound, over all fields."),
        ("predictor", "The same by the predictor that the encoder chose, and the number of chunks."),
    ):
        names = list(dict.fromkeys(part.part for part in parts if part.kind == kind))
        rows = []
        for group in groups:
            mine = [part for part in parts if part.kind == kind and (part.peer, part.bound) == group]
            whole = sum(part.coded_bytes for part in mine)
            row = []
            for name in names:
                size = sum(part.coded_bytes for part in mine if part.part == name)
                chunks = sum(part.chunks for part in mine if part.part == name)
                row.append(
                    f"{size / whole:.2%}" + (f" ({chunks})" if kind == "predictor" else "") if size else ""
                )
            rows.append([*group, whole, *row])
        yield text
        yield report.markdown_table(["peer", "bound", "bytes", *names], rows, text_columns=2)
    peers = list(dict.fromkeys(peer for peer, _ in groups))
    shown = "aesz-default" if "aesz-default" in peers else peers[0]
    yield (
        f"By field: bits a value; and of {shown} the share of all bytes of the bound, and the share of a field's bytes "
        "that are not in the section `codes`."
    )
    sections = [part for part in parts if part.kind == "section"]
    rows = []
    for field, bound in dict.fromkeys((part.field, part.bound) for part in sections):
        mine = [part for part in sections if (part.field, part.bound) == (field, bound)]
        coded = {peer: sum(part.coded_bytes for part in mine if part.peer == peer) for peer in peers}
        rest = sum(part.coded_bytes for part in mine if part.peer == shown and part.part != "codes")
        whole = sum(part.coded_bytes for part in sections if (part.peer, part.bound) == (shown, bound))
        bits = [f"{8 * coded[peer] / values[field]:.3f}" for peer in peers]
        rows.append([field, bound, *bits, f"{coded[shown] / whole:.1%}", f"{rest / coded[shown]:.1%}"])
    yield report.markdown_table(["field", "bound", *peers, "share", "not codes"], rows, text_columns=2)
