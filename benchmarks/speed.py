"""Speed and peak memory, one thread, against SZ3 (INTERP_LORENZO) on the same arrays in one run.

Run as ``python -m benchmarks.speed`` (synthetic fields), with ``--suite FOLDER`` for three real ones as well.
Repeats are interleaved (SZ3, ours, SZ3, ours, ...), so that a busy machine slows both. Writes ``speed.csv``,
``memory.csv`` and ``speed.md``.
"""

from __future__ import annotations

import argparse
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
from benchmarks.peers import FAMILIES, Peer, select

_SYNTHETIC = ((721, 1440), (24, 181, 360))
# Real fields at their own size (of 4-D ones the first time): resampled, they would be smoother than data are.
_REAL = ("ecan_2010_uv200_u", "era5_isentropic_U", "cesm_T3d_train")
_REFERENCE = "sz3-interp-lorenzo"


@dataclasses.dataclass(frozen=True)
class Speed:
    """One array at one bound through one peer. Speeds in 1e6 raw bytes a second; `_to_sz3`: speed / SZ3's."""

    field: str
    shape: str
    bound: str
    peer: str
    ratio: float
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


def time_peers(
    values: np.ndarray, tolerance: float, peers: Sequence[Peer], repeats: int
) -> dict[str, dict[str, list]]:
    """Seconds of every repeat by peer, and the stream's bytes; a first round warms up and is not counted."""
    times: dict[str, dict[str, list]] = {
        peer.name: {"compress": [], "decompress": [], "check": [], "bytes": []} for peer in peers
    }
    for turn in range(repeats + 1):
        for peer in peers:
            compress, stream = _timed(peer.compress, values, tolerance)
            decompress, decoded = _timed(peer.decompress, stream, values.shape, values.dtype)
            check = _timed(_within, values, decoded, tolerance)[0] if peer.family == "aesz" else 0.0
            if turn:
                row = times[peer.name]
                row["compress"].append(compress)
                row["decompress"].append(decompress)
                row["check"].append(check)
                row["bytes"] = [len(stream)]
    return times


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
    times = time_peers(values, bound.tolerance(values), peers, repeats)
    reference = times[_REFERENCE]
    rows = []
    for peer in peers:
        mine = times[peer.name]
        to_sz3 = {
            kind: [theirs / ours for theirs, ours in zip(reference[kind], mine[kind], strict=True)]
            for kind in ("compress", "decompress")
        }
        phases = zip(mine["decompress"], mine["check"], mine["compress"], strict=True)
        verified = [(decode + check) / encode for decode, check, encode in phases]
        rows.append(
            Speed(
                field=name,
                shape="x".join(map(str, values.shape)),
                bound=bound.label,
                peer=peer.name,
                ratio=values.nbytes / mine["bytes"][0],
                compress_best=values.nbytes / 1e6 / min(mine["compress"]),
                compress_median=values.nbytes / 1e6 / statistics.median(mine["compress"]),
                decompress_best=values.nbytes / 1e6 / min(mine["decompress"]),
                decompress_median=values.nbytes / 1e6 / statistics.median(mine["decompress"]),
                compress_to_sz3_min=min(to_sz3["compress"]),
                compress_to_sz3_median=statistics.median(to_sz3["compress"]),
                decompress_to_sz3_min=min(to_sz3["decompress"]),
                decompress_to_sz3_median=statistics.median(to_sz3["decompress"]),
                verification_share=statistics.median(verified) if peer.family == "aesz" else 0.0,
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


def _arrays(suite: Path | None, synthetic: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    for shape in synthetic:
        yield "synthetic", fields.synthetic(shape)
    if suite is not None:
        for field in fields.suite_fields(suite):
            if field.name in _REAL:
                values = field.read("float32")
                yield field.name, values[0] if values.ndim == 4 else values


def _parts(rows: Sequence[Speed], peaks: Sequence[Memory], repeats: int) -> Iterator[str]:
    yield "# Speed and memory"
    yield report.environment()
    yield (
        f"One thread, float32, {repeats} interleaved repeats after one warm-up. MB/s of raw bytes: best "
        "repeat (median). `to SZ3`: speed / speed of SZ3 INTERP_LORENZO in the same repeat, median (least); "
        "above 1 is faster than SZ3. `verification`: time of decoding and comparing, measured apart, / time "
        "of encoding, which contains it."
    )
    header = ["field", "shape", "bound", "peer", "ratio", "compress MB/s", "decompress MB/s"]
    header += ["compress to SZ3", "decompress to SZ3", "verification"]
    table = []
    for row in rows:
        ours = row.peer.startswith("aesz")
        table.append(
            [
                *(row.field, row.shape, row.bound, row.peer, f"{row.ratio:.2f}"),
                f"{row.compress_best:.0f} ({row.compress_median:.0f})",
                f"{row.decompress_best:.0f} ({row.decompress_median:.0f})",
                f"{row.compress_to_sz3_median:.2f} ({row.compress_to_sz3_min:.2f})",
                f"{row.decompress_to_sz3_median:.2f} ({row.decompress_to_sz3_min:.2f})",
                f"{row.verification_share:.0%}" if ours else "",
            ]
        )
    yield report.markdown_table(header, table, text_columns=4)
    if peaks:
        yield "## Peak memory"
        yield (
            "Beyond what the process held before the call (encode: the array; decode: the stream), in "
            "multiples of the array."
        )
        header = ["field", "shape", "bound", "peer", "encode", "decode"]
        table = [
            [
                *(peak.field, peak.shape, peak.bound, peak.peer),
                *(f"{peak.compress_peak:.2f}", f"{peak.decompress_peak:.2f}"),
            ]
            for peak in peaks
        ]
        yield report.markdown_table(header, table, text_columns=4)


def _arguments(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, Path | None, list[fields.Bound], list[Peer]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", help="suite.json or its folder, for real fields (default: AESZ_DATA)")
    parser.add_argument("--shapes", help="of the synthetic fields, e.g. 721x1440,24x181x360 (the default)")
    parser.add_argument("--bounds", default="1e-2,1e-3,1e-4", help="of the range (abs:VALUE absolute)")
    parser.add_argument("--peers", default=",".join(FAMILIES), help="families, default %(default)s")
    parser.add_argument("--efforts", default="default", help="of aesz: fast,default,max")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="speed only")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    try:
        suite = fields.find_suite(options.suite)
        bounds = [fields.parse_bound(text) for text in options.bounds.split(",")]
        chosen = select(dict.fromkeys(["sz3", *options.peers.split(",")]), options.efforts.split(","))
        # Of SZ3 the reference alone; any other peer in every setting.
        peers = [peer for peer in chosen if peer.name == _REFERENCE or peer.family != "sz3"]
        if options.shapes:
            options.shapes = [tuple(int(n) for n in shape.split("x")) for shape in options.shapes.split(",")]
        if options.repeats < 1:
            raise ValueError(f"--repeats: found {options.repeats}, expected at least 1")
    except ValueError as problem:
        parser.error(str(problem))
    return options, suite, bounds, peers


def main(argv: Sequence[str] | None = None) -> int:
    options, suite, bounds, peers = _arguments(argv)
    rows: list[Speed] = []
    peaks: list[Memory] = []
    for name, values in _arrays(suite, options.shapes or _SYNTHETIC):
        for bound in bounds:
            for row in speeds(name, values, bound, peers, options.repeats):
                rows.append(row)
                print(
                    f"{row.field:20} {row.shape:12} {row.bound:6} {row.peer:20} ratio {row.ratio:7.2f}  "
                    f"MB/s {row.compress_best:6.0f} {row.decompress_best:6.0f}  "
                    f"to SZ3 {row.compress_to_sz3_median:.2f} {row.decompress_to_sz3_median:.2f}",
                    flush=True,
                )
            if not options.no_memory:
                for peak in memory(name, values, bound, peers):
                    peaks.append(peak)
                    print(
                        f"{peak.field:20} {peak.shape:12} {peak.bound:6} {peak.peer:20} "
                        f"peak memory {peak.compress_peak:.2f} {peak.decompress_peak:.2f} x the array",
                        flush=True,
                    )
    options.out.mkdir(parents=True, exist_ok=True)
    tables = [("speed", Speed, rows)] + ([] if options.no_memory else [("memory", Memory, peaks)])
    for name, kind, found in tables:
        columns = [column.name for column in dataclasses.fields(kind)]
        report.write_csv(options.out / f"{name}.csv", columns, map(dataclasses.astuple, found))
    report.write_markdown(options.out / "speed.md", _parts(rows, peaks, options.repeats))
    print(f"\n{options.out / 'speed'}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
