"""Speed and peak memory, one thread, against SZ3 (INTERP_LORENZO) on the same arrays in one run.

Repeats are interleaved (SZ3, ours, SZ3, ours, ...), so that a busy machine slows both.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fields, report
from benchmarks.peers import NotApplicable, Peer
from benchmarks.rates import OURS

SYNTHETIC_SHAPES = ((721, 1440), (24, 181, 360))
# Real fields at their own size (of 4-D ones the first time): resampled, they would be smoother than data are.
REAL_FIELDS = ("ecan_2010_uv200_u", "era5_isentropic_U", "cesm_T3d_train")
REFERENCE = "sz3-interp-lorenzo"
_SECONDS = 8.0  # a peer that has used them up is not run again, once it has _LEAST_REPEATS
_LEAST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """One array at one bound through one peer. Speeds in 1e6 raw bytes a second; `_to_sz3`: speed / SZ3's."""

    field: str
    shape: str
    bound: str
    peer: str
    ratio: float
    repeats: int
    compress_best: float
    compress_median: float
    decompress_best: float
    decompress_median: float
    compress_to_sz3_min: float
    compress_to_sz3_median: float
    decompress_to_sz3_min: float
    decompress_to_sz3_median: float
    verification_share: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """Peak resident memory of one call beyond what the process held before it, in multiples of the array."""

    field: str
    shape: str
    bound: str
    peer: str
    compress_peak: float
    decompress_peak: float


def _timed(call: Callable, *arguments: object) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def choose(peers: Sequence[Peer]) -> list[Peer]:
    """The reference first, every effort of ours, and of every other peer its first setting."""
    chosen = [peer for peer in peers if peer.name == REFERENCE]
    if not chosen:
        raise fields.BadArgument(
            "speeds are relative to SZ3: add sz3 to --peers, or leave speed out of --measure"
        )
    for peer in peers:
        if peer.family == OURS or peer.family not in (known.family for known in chosen):
            chosen.append(peer)
    return chosen


@dataclasses.dataclass
class _Times:
    """Seconds of every repeat of one peer."""

    compress: list[float] = dataclasses.field(default_factory=list)
    decompress: list[float] = dataclasses.field(default_factory=list)
    check: list[float] = dataclasses.field(default_factory=list)
    nbytes: int = 0

    @property
    def enough(self) -> bool:
        return len(self.compress) >= _LEAST_REPEATS and sum(self.compress) + sum(self.decompress) > _SECONDS


def _time_peers(
    values: np.ndarray, tolerance: float, peers: Sequence[Peer], repeats: int
) -> dict[str, _Times]:
    """By peer that can code `values`, the reference in every repeat; a first round warms up and is not counted."""
    times = {peer.name: _Times() for peer in peers}
    for turn in range(repeats + 1):
        for peer in peers:
            mine = times.get(peer.name)
            if mine is None or (mine.enough and peer.name != REFERENCE):
                continue
            pieces = list(fields.slices(values, peer.max_ndim))
            try:
                compress, streams = _timed(_compress, peer, pieces, tolerance)
            except NotApplicable:
                del times[peer.name]
                continue
            decompress, decoded = _timed(_decompress, peer, streams, pieces)
            check = _timed(_within, values, decoded[0], tolerance)[0] if peer.family == OURS else 0.0
            if turn:
                mine.compress.append(compress)
                mine.decompress.append(decompress)
                mine.check.append(check)
                mine.nbytes = sum(map(len, streams))
    return times


def _compress(peer: Peer, pieces: Sequence[np.ndarray], tolerance: float) -> list[bytes]:
    return [peer.compress(piece, tolerance) for piece in pieces]


def _decompress(peer: Peer, streams: Sequence[bytes], pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    shapes = ((stream, piece.shape, piece.dtype) for stream, piece in zip(streams, pieces, strict=True))
    return [peer.decompress(*arguments) for arguments in shapes]


def _within(values: np.ndarray, decoded: np.ndarray, tolerance: float) -> None:
    """The comparison that encode makes of every chunk."""
    from aesz_codec.bounds import ErrorBound, first_violation

    found = first_violation(values, decoded, ErrorBound("abs", tolerance))
    if found is not None:
        raise SystemExit(
            f"bound broken at {found}: {values[found]!r} became {decoded[found]!r}, bound {tolerance!r}"
        )


def speeds(
    name: str, values: np.ndarray, bound: fields.Bound, peers: Sequence[Peer], repeats: int
) -> list[Speed]:
    """One row a peer, the reference first."""
    times = _time_peers(values, bound.tolerance(values), peers, repeats)
    reference = times[REFERENCE]
    rows = []
    for peer, mine in times.items():
        # strict=False: a slow peer has fewer repeats
        compress = [theirs / ours for theirs, ours in zip(reference.compress, mine.compress, strict=False)]
        decompress = [
            theirs / ours for theirs, ours in zip(reference.decompress, mine.decompress, strict=False)
        ]
        phases = zip(mine.decompress, mine.check, mine.compress, strict=True)
        verified = [(decode + check) / encode for decode, check, encode in phases]
        checked = any(mine.check)
        rows.append(
            Speed(
                field=name,
                shape="x".join(map(str, values.shape)),
                bound=bound.label,
                peer=peer,
                ratio=values.nbytes / mine.nbytes,
                repeats=len(mine.compress),
                compress_best=values.nbytes / 1e6 / min(mine.compress),
                compress_median=values.nbytes / 1e6 / statistics.median(mine.compress),
                decompress_best=values.nbytes / 1e6 / min(mine.decompress),
                decompress_median=values.nbytes / 1e6 / statistics.median(mine.decompress),
                compress_to_sz3_min=min(compress),
                compress_to_sz3_median=statistics.median(compress),
                decompress_to_sz3_min=min(decompress),
                decompress_to_sz3_median=statistics.median(decompress),
                verification_share=statistics.median(verified) if checked else 0.0,
            )
        )
    return rows


def _peak_bytes() -> int:
    """Highest resident memory of this process so far.

    VmHWM where Linux has it: a child's ru_maxrss starts there from its parent's peak, which hides all below.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _hold(
    kind: str, peer: Peer, array_file: str, stream_file: str, tolerance: float, act: bool, answer: Connection
) -> None:
    """In a child process: hold the input of one call, make the call if `act`, answer with the peak memory."""
    small = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)  # loads the code of both ways
    peer.decompress(peer.compress(small, 0.1), small.shape, small.dtype)
    if kind == "compress":
        values = np.load(array_file)
        if act:
            peer.compress(values, tolerance)
    else:
        header = np.load(array_file, mmap_mode="r")
        stream = Path(stream_file).read_bytes()
        if act:
            peer.decompress(stream, header.shape, header.dtype)
    answer.send(_peak_bytes())
    answer.close()


def _child_peak(*arguments) -> int:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_hold, args=(*arguments, there))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        child.join()
        raise SystemExit(f"memory: the child process ended with status {child.exitcode}") from None
    finally:
        child.join()


def memory(name: str, values: np.ndarray, bound: fields.Bound, peers: Sequence[Peer]) -> Iterator[Memory]:
    """One row a peer: peak of a child that makes the call less that of one that only holds the input."""
    tolerance = bound.tolerance(values)
    with tempfile.TemporaryDirectory() as folder:
        array_file, stream_file = f"{folder}/array.npy", f"{folder}/stream"
        np.save(array_file, values)
        for peer in peers:
            Path(stream_file).write_bytes(peer.compress(values, tolerance))
            peaks = {}
            for kind in ("compress", "decompress"):
                arguments = (kind, peer, array_file, stream_file, tolerance)
                peaks[kind] = (_child_peak(*arguments, True) - _child_peak(*arguments, False)) / values.nbytes
            shape = "x".join(map(str, values.shape))
            yield Memory(name, shape, bound.label, peer.name, peaks["compress"], peaks["decompress"])


# ---- tables ----------------------------------------------------------------------------------------------------


def means(rows: Sequence[Speed]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """By bound and peer: geometric means of ratio and of speeds to SZ3, over the arrays that every peer coded.

    Bounds are those of the rows and ``all``.
    """
    peers = list(dict.fromkeys(row.peer for row in rows))
    cells: dict[tuple[str, str, str], dict[str, Speed]] = {}
    for row in rows:
        cells.setdefault((row.field, row.shape, row.bound), {})[row.peer] = row
    complete = [cell for cell in cells.values() if len(cell) == len(peers)]
    bounds = list(dict.fromkeys(row.bound for row in rows))
    found = {}
    for bound in [*bounds, *(["all"] if len(bounds) > 1 else [])]:
        for peer in peers:
            mine = [cell[peer] for cell in complete if bound in ("all", cell[peer].bound)]
            if mine:
                found[bound, peer] = (
                    report.geometric_mean(row.ratio for row in mine),
                    report.geometric_mean(row.compress_to_sz3_median for row in mine),
                    report.geometric_mean(row.decompress_to_sz3_median for row in mine),
                )
    return found


def parts(rows: Sequence[Speed], peaks: Sequence[Memory]) -> Iterator[str]:
    """The Markdown report."""
    if rows:
        yield (
            "One thread, interleaved repeats after one warm-up, the whole array as one chunk. `to SZ3`: speed / speed "
            "of SZ3 INTERP_LORENZO in the same repeat, median (least); above 1 is faster than SZ3. Of a peer with "
            "several settings the first one runs. Geometric means over the arrays that every peer can code:"
        )
        table = [
            [bound, peer, *(f"{mean:.2f}" for mean in three)] for (bound, peer), three in means(rows).items()
        ]
        header = ["bound", "peer", "ratio", "compress to SZ3", "decompress to SZ3"]
        yield report.markdown_table(header, table, text_columns=2)
        yield (
            "MB/s of raw bytes: best repeat (median). `verification`: time of decoding and comparing, measured "
            "apart, / time of encoding, which contains it."
        )
        header = ["array", "shape", "bound", "peer", "ratio", "repeats", "compress MB/s", "decompress MB/s"]
        header += ["compress to SZ3", "decompress to SZ3", "verification"]
        yield report.markdown_table(header, map(_line, rows), text_columns=4)
    if peaks:
        yield "### Peak memory"
        yield (
            "Beyond what the process held before the call (encode: the array; decode: the stream), in "
            "multiples of the array."
        )
        header = ["array", "shape", "bound", "peer", "encode", "decode"]
        table = [
            [
                *(peak.field, peak.shape, peak.bound, peak.peer),
                *(f"{peak.compress_peak:.2f}", f"{peak.decompress_peak:.2f}"),
            ]
            for peak in peaks
        ]
        yield report.markdown_table(header, table, text_columns=4)


def _line(row: Speed) -> list[object]:
    return [
        *(row.field, row.shape, row.bound, row.peer, f"{row.ratio:.2f}", row.repeats),
        f"{row.compress_best:.0f} ({row.compress_median:.0f})",
        f"{row.decompress_best:.0f} ({row.decompress_median:.0f})",
        f"{row.compress_to_sz3_median:.2f} ({row.compress_to_sz3_min:.2f})",
        f"{row.decompress_to_sz3_median:.2f} ({row.decompress_to_sz3_min:.2f})",
        f"{row.verification_share:.0%}" if row.verification_share else "",
    ]
