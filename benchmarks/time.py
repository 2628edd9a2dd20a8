"""What time is worth inside a chunk: bytes with and without it, what a forecast is worth, reading of single frames.

Run as ``python -m benchmarks.time`` (suite of AESZ_DATA); writes a CSV file a part and ``time.md``. Every stream is decoded and
checked. Parts (``--parts``):

hourly        hourly and 6-hourly series against the best SZ3 setting, without anything fitted beforehand
dataset       all series of the suite, with and without temporal prediction
noise         what a forecaster costs that knows nothing
accumulation  the errors of every frame of a chunk of 500
speed         decoding of a chunk of 64 frames of 181 x 360; memory: what it takes
access        reading of one frame by length of the chunk
study         L1 and innovation gain of forecasts, and what they are worth with Huffman + zstd; peers: what they are held against
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import heapq
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from unittest import mock

import numpy as np
import zstandard

from aesz_codec import pipeline
from aesz_codec.dissection import innovation_gains
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Frames, Interpolation, Local, interpolation
from aesz_codec.predictors.forecasts import (
    FORECASTERS,
    Example,
    Forecaster,
    LeastSquares,
    Motion,
    Nearest,
    Source,
    Step,
    steps,
)
from aesz_codec.stream import Coder, Reader
from benchmarks import fields, rates, report, speed
from benchmarks.peers import Peer, sz3
from benchmarks.peers.aesz import Aesz

# ---- the codec with less, or with something else ---------------------------------------------------------------


class _Stacked:
    """A causal method that sees all frames as one tall image: what it learns is of all, what it predicts from only above."""

    def encode(self, data: Any, mask: Any, quantizer: Any) -> tuple[bytes, bytes]:
        return super().encode(_tall(data), None if mask is None else _tall(mask), quantizer)  # type: ignore[misc]

    def decode(self, codes: bytes, outliers: bytes, out: Any, mask: Any, step: float, offset: float) -> None:
        mask = None if mask is None else _tall(mask)
        super().decode(codes, outliers, _tall(out), mask, step, offset)  # type: ignore[misc]


class _StackedCausal(_Stacked, Causal):
    pass


class _StackedLocal(_Stacked, Local):
    pass


class _Inside(Interpolation):
    """Interpolation inside the frames; in 4-D inside each volume, too, or from one level of it to the next."""

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterator[Self]:
        for batch in range(1, max(2, len(shape) - 1)):
            yield cls(batch=batch)
            if batch > 1:
                yield cls(batch=batch, reference=True)


def _tall(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[2:]) if array.ndim > 2 else array


@dataclass(frozen=True)
class WithoutTime(Aesz):
    """No value is predicted from one of another time, nor do contexts see one; the choice is the encoder's.

    Its streams are the codec's own but for the causal methods, which get the frames stacked into one image.
    """

    @property
    def name(self) -> str:
        return f"aesz-{self.effort}-without-time"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        with self._inside():
            return super().compress(chunk, tolerance)

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        with self._inside():
            return super().decompress(stream, shape, dtype)

    @staticmethod
    @contextlib.contextmanager
    def _inside() -> Iterator[None]:
        kinds = {kind.method: kind for kind in (_Inside, _StackedCausal, _StackedLocal)}
        with mock.patch.dict(pipeline.PREDICTORS, kinds, clear=True):
            yield


@dataclass(frozen=True)
class WithoutForecasts(Aesz):
    """Interpolation along time, the frame before and causal taps in it, but no forecasters (method 6)."""

    @property
    def name(self) -> str:
        return f"aesz-{self.effort}-without-forecasts"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        with (
            _only(Interpolation, Causal, Local),
            mock.patch.object(interpolation, "can_refer", lambda shape: False),
        ):
            return super().compress(chunk, tolerance)


@dataclass(frozen=True)
class WithNoise(Aesz):
    """The codec with a forecaster among its candidates that knows nothing; inside `_known`."""

    @property
    def name(self) -> str:
        return f"aesz-{self.effort}-with-noise"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        known = Frames.candidates

        def candidates(
            shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
        ) -> Iterator[Frames]:
            yield from known(shape, effort, rate, models)
            yield Frames(len(shape) - 2, 1, Noise())

        with mock.patch.object(Frames, "candidates", candidates):
            return super().compress(chunk, tolerance)


@dataclass(frozen=True)
class Forced(Aesz):
    """One choice, whatever it costs: frames alone (`distance` 0), or with a forecaster."""

    distance: int = 1
    forecaster: str = "least squares"
    coder: str = "adaptive"

    @property
    def name(self) -> str:
        order = {0: "frames alone", 1: "one-sided"}.get(self.distance, f"two-sided {self.distance}")
        name = order if not self.distance else f"{order} {self.forecaster}"
        return name if self.coder == "adaptive" else f"{name}, {self.coder} coder"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        def smallest(values: np.ndarray, mask: Any, quantizer: Any, *_: Any) -> Any:
            batch = max(0, values.ndim - 2)
            choice: Any = Interpolation(batch=batch)
            if self.distance and batch:
                choice = Frames(batch, self.distance, _FORECASTERS[self.forecaster]())
            choice = dataclasses.replace(choice, coder=Coder[self.coder.upper()])
            return choice, *choice.encode(values, mask, quantizer)

        with mock.patch.object(pipeline, "smallest", smallest):
            return super().compress(chunk, tolerance)


@contextlib.contextmanager
def _only(*kinds: type) -> Iterator[None]:
    left = {method: kind for method, kind in pipeline.PREDICTORS.items() if kind in kinds}
    with mock.patch.dict(pipeline.PREDICTORS, left, clear=True):
        yield


@dataclass(frozen=True, slots=True)
class Noise:
    """White noise with the mean and the spread of the frame before: a forecaster that knows nothing."""

    tag: ClassVar[int] = 200  # of no forecaster of the format
    name: ClassVar[str] = "noise"
    every: ClassVar[bool] = False

    def fit(self, examples: Sequence[Example], tolerance: float) -> Self:
        return self

    def predict(self, step: Step, plane: int, source: Source) -> Any:
        before = source(step.sources[0])
        noise = np.random.default_rng((step.time, plane)).standard_normal(before.shape)
        return (before.mean() + before.std() * noise).astype(before.dtype)

    def pack(self) -> bytes:
        return b""

    @classmethod
    def unpack(cls, reader: Reader) -> Self:
        reader.end()
        return cls()


@dataclass(frozen=True, slots=True)
class Blank(Noise):
    """The mean of the frame before: says nothing, right or wrong."""

    tag: ClassVar[int] = 254
    name: ClassVar[str] = "blank"

    def predict(self, step: Step, plane: int, source: Source) -> Any:
        before = source(step.sources[0])
        return np.full_like(before, before.mean())


@contextlib.contextmanager
def _known() -> Iterator[None]:
    """Let streams name forecasters that are no part of the format."""
    with mock.patch.dict(FORECASTERS, {kind.tag: kind for kind in (Noise, Blank)}):
        yield


_FORECASTERS: dict[str, Any] = {f.name: f for f in (Nearest, LeastSquares, Motion, Noise, Blank)}


# ---- the arrays ------------------------------------------------------------------------------------------------

_UK = "era5_uk_hourly_t2m"
_TILED = "era5_isentropic_U"


@dataclass(frozen=True)
class Some(fields.Field):
    """Frames of a field: every so many of those from `first` on."""

    first: int = 0
    every: int = 1

    def read(self, dtype: str) -> np.ndarray:
        return np.ascontiguousarray(super().read(dtype)[self.first :: self.every])


def _some(suite: Path, name: str, first: int, every: int, chunk: tuple[int, ...]) -> Some:
    bounds = fields.parse_bounds("abs", "0.05,0.25,1")
    return Some(name, str(suite), None, chunk, bounds, first=first, every=every)


def _hourly(suite: Path) -> dict[str, Some]:
    """Frames of the last two thirds: the first third may have been seen by whatever is fitted."""
    return {
        "hourly": _some(suite, _UK, 248, 1, (48, 33, 49)),
        "every 6th": _some(suite, _UK, 248, 6, (32, 33, 49)),
    }


def _series(suite: Path) -> list[fields.Field]:
    """Fields of the suite with several times in a chunk; in their last axis but two or three time comes first."""
    chosen = [f for f in fields.suite_fields(suite) if f.chunks and len(f.chunks) > 2 and f.chunks[0] > 1]
    relative = [tuple(b for b in f.bounds if b.mode == "range_rel") for f in chosen]
    return [dataclasses.replace(f, bounds=b) for f, b in zip(chosen, relative, strict=True)]


@dataclass(frozen=True)
class Scaled(fields.Bound):
    """A fraction of a range that is known already."""

    width: float = 1.0

    def tolerance(self, values: np.ndarray) -> float:
        return self.value * self.width


@dataclass(frozen=True)
class Spread(fields.Field):
    """Some chunks of a series, spread evenly over it."""

    count: int = 1

    def read(self, dtype: str) -> np.ndarray:
        values = super().read(dtype)
        assert self.chunks is not None
        length = self.chunks[0]
        whole = len(values) // length
        starts = [length * ((2 * i + 1) * whole // (2 * self.count)) for i in range(self.count)]
        return np.concatenate([values[start : start + length] for start in starts])


def _short(field: fields.Field, most: int) -> fields.Field:
    """The field, or chunks of it with at most so many frames; bounds are of the range of the whole."""
    values = field.read("float32")
    assert field.chunks is not None
    bounds = tuple(Scaled(b.mode, b.value, b.tolerance(values) / b.value) for b in field.bounds)
    if len(values) <= most:
        return dataclasses.replace(field, bounds=bounds)
    count = most // field.chunks[0]
    return Spread(field.name, field.source, field.variable, field.chunks, bounds, count=count)


def tiled(suite: Path) -> np.ndarray:
    """64 frames of 181 x 360: ten real ones, 6 hours apart, forwards and backwards, the rows at the ends twice.

    So each step in time is a real one, if 6 hours long; a copy made finer by interpolation would be all too predictable.
    """
    (field,) = [f for f in fields.suite_fields(suite) if f.name == _TILED]
    values = field.read("float32")
    last = len(values) - 1
    times = [last - abs(t % (2 * last) - last) for t in range(64)]
    return np.ascontiguousarray(np.pad(values[times], ((0, 0), (1, 1), (0, 0)), mode="edge"))


# ---- the parts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Bytes of one series at one bound through one peer."""

    series: str
    bound: str
    peer: str
    family: str
    raw_bytes: int
    coded_bytes: int
    max_error_over_bound: float
    violations: int


def _cells(series: str, field: fields.Field, peers: Sequence[Peer], workers: int) -> list[Cell]:
    tasks = [(field, bound, "float32", [peer]) for bound in field.bounds for peer in peers]
    return [
        Cell(
            series,
            *(r.bound, r.peer, r.family, r.raw_bytes, r.coded_bytes, r.max_error_over_bound, r.violations),
        )
        for found, _ in rates.run(tasks, workers)
        for r in found
    ]


def measure_hourly(suite: Path, options: argparse.Namespace) -> list[Cell]:
    efforts = options.efforts.split(",")
    ours = [kind(effort) for effort in efforts for kind in (Aesz, WithoutTime, WithoutForecasts)]
    found = []
    for label, field in _hourly(suite).items():
        found += _cells(label, field, [*sz3.settings(()), *ours], options.workers)
    return found


def hourly(rows: Sequence[Cell]) -> Iterator[str]:
    yield "## Hourly and 6-hourly series"
    yield (
        f"`{_UK}`, frames 248 to 743 in chunks of 48, and every sixth of them in chunks of 32; absolute bounds in K, no "
        "models. Bytes of the smallest setting of SZ3 / ours: above 1 we are smaller. `without-time`: no value is "
        "predicted from another time; `without-forecasts`: without method 6."
    )
    table = []
    for series in dict.fromkeys(row.series for row in rows):
        mine = [row for row in rows if row.series == series]
        bounds = list(dict.fromkeys(row.bound for row in mine))
        best = {
            b: min(row.coded_bytes for row in mine if row.bound == b and row.family == "sz3") for b in bounds
        }
        for peer in dict.fromkeys(row.peer for row in mine if row.family == "aesz"):
            found = {row.bound: best[row.bound] / row.coded_bytes for row in mine if row.peer == peer}
            mean = report.geometric_mean(found.values())
            table.append([series, peer, *(f"{found[b]:.3f}" for b in bounds), f"**{mean:.3f}**"])
    yield report.markdown_table(["frames", "ours", *bounds, "geometric mean"], table, text_columns=2)


def measure_dataset(suite: Path, options: argparse.Namespace) -> list[Cell]:
    efforts = options.efforts.split(",")
    ours = [kind(effort) for effort in efforts for kind in (Aesz, WithoutTime, WithoutForecasts)]
    found = []
    for field in _series(suite):
        found += _cells(field.name, field, [*sz3.settings(()), *ours], options.workers)
        _say(f"dataset: {field.name}")
    return found


def dataset(rows: Sequence[Cell]) -> Iterator[str]:
    yield "## The dataset level"
    yield (
        "All series of the suite in its chunks, bounds of the range. Bytes without / with temporal prediction; in "
        "brackets what method 6 (forecasts) adds to the temporal prediction there was before. Last, the smallest setting "
        "of SZ3 (chosen anew for every field and bound) / with."
    )
    bounds = list(dict.fromkeys(row.bound for row in rows))
    coded = {(row.series, row.bound, row.peer): row.coded_bytes for row in rows}
    series = list(dict.fromkeys(row.series for row in rows))
    best: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.family == "sz3":
            cell = row.series, row.bound
            best[cell] = min(row.coded_bytes, best.get(cell, row.coded_bytes))
    for effort in ("default", "max"):
        name = f"aesz-{effort}"
        if (series[0], bounds[0], name) not in coded:
            continue

        def quotient(cells: Sequence[tuple[str, str]], less: str, name: str = name) -> str:
            return f"{sum(coded[*c, name + less] for c in cells) / sum(coded[*c, name] for c in cells):.3f}"

        def sz3_quotient(cells: Sequence[tuple[str, str]], name: str = name) -> str:
            return f"{sum(best[c] for c in cells) / sum(coded[*c, name] for c in cells):.3f}"

        table = []
        for label, some in [*((s, [s]) for s in series), ("**all together**", series)]:
            row = [label]
            for chosen in [*([b] for b in bounds), bounds]:
                cells = list(itertools.product(some, chosen))
                row.append(f"{quotient(cells, '-without-time')} ({quotient(cells, '-without-forecasts')})")
            table.append([*row, sz3_quotient(list(itertools.product(some, bounds)))])
        yield f"Effort `{effort}`:"
        yield report.markdown_table(["field", *bounds, "all bounds", "best SZ3 / with"], table)
        least = min(
            itertools.product(series, bounds),
            key=lambda c: coded[*c, name + "-without-time"] / coded[*c, name],
        )
        yield f"Least gain: {quotient([least], '-without-time')} ({least[0]}, {least[1]})."


def measure_noise(suite: Path, options: argparse.Namespace) -> list[Cell]:
    (grid,) = [f for f in _series(suite) if f.name == _TILED]
    peers: list[Peer] = [Aesz(), WithNoise()]
    peers += [Forced(distance=d, forecaster=name) for d in (1, 4) for name in ("noise", "blank")]
    found = []
    with _known():  # in this process only
        for label, field in [("hourly", _hourly(suite)["hourly"]), (grid.name, grid)]:
            found += _cells(label, field, peers, workers=1)
    return found


def noise(rows: Sequence[Cell]) -> Iterator[str]:
    yield "## A forecaster that knows nothing"
    yield (
        "White noise with the mean and the spread of the frame before. `as a candidate`: bytes of `default` with it "
        "among the candidates / without it. `forced`: bytes of frames that have to refer to it / of frames in the same "
        "order that refer to a constant. What is left is the price of the coarse levels, where weights are not fitted "
        "but 0.5, and of the bytes of the weights: much for frames of 33 x 49, little for those of 179 x 360."
    )
    coded = {(row.series, row.bound, row.peer): row.coded_bytes for row in rows}

    def quotient(series: str, bound: str, one: str, other: str) -> str:
        return f"{coded[series, bound, one] / coded[series, bound, other]:.4f}"

    table = [
        [
            *cell,
            quotient(*cell, "aesz-default-with-noise", "aesz-default"),
            *(quotient(*cell, f"{order} noise", f"{order} blank") for order in ("one-sided", "two-sided 4")),
        ]
        for cell in dict.fromkeys((row.series, row.bound) for row in rows)
    ]
    header = ["series", "bound", "as a candidate", "forced, one-sided", "forced, two-sided"]
    yield report.markdown_table(header, table, text_columns=2)


@dataclass(frozen=True)
class FrameErrors:
    """Errors of one frame, in parts of the bound."""

    peer: str
    direction: str  # of the frames in the chunk: "forwards", or "backwards" in time
    frame: int  # its number in the chunk
    rms: float
    largest: float


def measure_accumulation(suite: Path, options: argparse.Namespace) -> list[FrameErrors]:
    values = _some(suite, _UK, 244, 1, (500, 33, 49)).read("float32")
    tolerance, found = 0.25, []
    for direction, frames in (("forwards", values), ("backwards", np.ascontiguousarray(values[::-1]))):
        for distance in (1, 16, 0):
            peer = Forced(distance=distance)
            decoded = peer.decompress(peer.compress(frames, tolerance), frames.shape, frames.dtype)
            errors = np.abs(frames.astype(np.float64) - decoded.astype(np.float64)) / tolerance
            for t, frame in enumerate(errors):
                rms, largest = float(np.sqrt((frame * frame).mean()).round(6)), float(frame.max().round(6))
                found.append(FrameErrors(peer.name, direction, t, rms, largest))
    return found


def accumulation(rows: Sequence[FrameErrors]) -> Iterator[str]:
    yield "## Nothing accumulates"
    yield (
        f"`{_UK}`, the last 500 frames as one chunk, 0.25 K, in order of time and backwards. Root mean squares of the "
        "errors of frames in parts of the bound: means over the first and the last 50 of the chunk, and the trend over "
        "all 500 (a straight line, with its standard error). What the weather does to errors changes its sign backwards; "
        "what accumulates does not: that is `accumulated`, the mean of the two trends. `frames alone` refer to nothing. "
        "Last, the largest error of any value."
    )
    table = []
    for peer in dict.fromkeys(row.peer for row in rows):
        line: list[object] = [peer]
        slopes, variances, largest = [], [], 0.0
        for direction in dict.fromkeys(row.direction for row in rows):
            mine = [row for row in rows if (row.peer, row.direction) == (peer, direction)]
            rms = np.array([row.rms for row in mine])
            largest = max(largest, *(row.largest for row in mine))
            t = np.linspace(-0.5, 0.5, len(rms))
            slopes.append(float(t @ rms / (t @ t)))
            left = rms - rms.mean() - slopes[-1] * t
            variances.append(float(left @ left / (len(rms) - 2) / (t @ t)))
            line.append(f"{rms[:50].mean():.4f}, {rms[-50:].mean():.4f}")
            line.append(f"{slopes[-1]:+.4f} ± {math.sqrt(variances[-1]):.4f}")
        both = f"{sum(slopes) / 2:+.4f} ± {math.sqrt(sum(variances)) / 2:.4f}"
        table.append([*line, both, f"{largest:.6f}"])
    header = [
        "ours",
        "forwards: first, last",
        "trend",
        "backwards: first, last",
        "trend",
        "accumulated",
        "largest",
    ]
    yield report.markdown_table(header, table)


def _decoders() -> list[Peer]:
    forced = [Forced(distance=d, coder=coder) for coder in ("adaptive", "static") for d in (1, 4)]
    return [sz3.INTERP_LORENZO, *forced, Aesz()]


def measure_speed(suite: Path, options: argparse.Namespace) -> list[speed.Speed]:
    values = tiled(suite)
    found = []
    for bound in fields.DEFAULT_BOUNDS:
        found += speed.speeds("tiled", values, bound, _decoders(), repeats=options.repeats)
        _say(f"speed: {bound.label}")
    return found


def decoding(rows: Sequence[speed.Speed], peaks: Sequence[speed.Memory]) -> Iterator[str]:
    yield "## Decoding a chunk of 64 frames of 181 x 360"
    yield (
        f"Made of the ten frames of `{_TILED}`, forwards and backwards, the first and the last row twice: every step is a "
        "real one, 6 hours long. One thread; speeds / those of SZ3 (INTERP_LORENZO) in the same round, median (least) of "
        "the rounds. Memory: peak beyond what the process held, in multiples of the array, at 1e-3."
    )
    peak = {row.peer: row for row in peaks}
    table = [
        [
            row.bound,
            row.peer,
            f"{row.ratio:.2f}",
            f"{row.compress_to_sz3_median:.3f} ({row.compress_to_sz3_min:.3f})",
            f"{row.decompress_to_sz3_median:.3f} ({row.decompress_to_sz3_min:.3f})",
            f"{row.decompress_best:.0f}",
            f"{peak[row.peer].decompress_peak:.2f}" if row.bound == "1e-3" and row.peer in peak else "",
        ]
        for row in rows
    ]
    header = ["bound", "peer", "ratio", "encode to SZ3", "decode to SZ3", "decode MB/s", "peak, decoding"]
    yield report.markdown_table(header, table, text_columns=2)


def measure_memory(suite: Path, options: argparse.Namespace) -> list[speed.Memory]:
    return list(speed.memory("tiled", tiled(suite), fields.Bound("range_rel", 1e-3), _decoders()))


@dataclass(frozen=True)
class Access:
    """Reading one frame out of chunks of some length."""

    series: str
    shape: str
    bound: str
    length: int
    predictor: str  # of how many chunks
    ratio: float
    milliseconds: float  # best of several, mean over chunks


_LENGTHS = (1, 8, 16, 32, 48, 64)


def measure_access(suite: Path, options: argparse.Namespace) -> list[Access]:
    hourly = _hourly(suite)["hourly"].read("float32")[:384]
    arrays = [("hourly", hourly, fields.Bound("abs", 0.25))]
    arrays += [("6-hourly", tiled(suite), fields.Bound("range_rel", 1e-3))]
    found = []
    for series, values, bound in arrays:
        tolerance = bound.tolerance(values)
        for length in _LENGTHS:
            kept = values[: len(values) // length * length]
            pieces = list(fields.split(kept, (length, *values.shape[1:])))
            streams = [Aesz().compress(piece, tolerance) for piece in pieces]
            tried = [
                min(_seconds(pipeline.decode, stream) for _ in range(options.repeats))
                for stream in streams[:: max(1, len(streams) // 8)]
            ]
            mean = 1e3 * sum(tried) / len(tried)
            ratio = kept.nbytes / sum(map(len, streams))
            shape = "x".join(map(str, values.shape[1:]))
            chosen = collections.Counter(pipeline.describe(stream).predictor for stream in streams)
            predictor = ", ".join(f"{name} {count}" for name, count in chosen.most_common())
            found.append(Access(series, shape, bound.label, length, predictor, ratio, mean))
    return found


def _seconds(call: Callable[..., Any], *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def access(rows: Sequence[Access]) -> Iterator[str]:
    yield "## Reading one frame, by length of the chunk"
    yield (
        "A chunk is decoded as a whole, so one frame costs all of them. `default`, no models, one thread, the stream in "
        "memory; best of several, mean over chunks."
    )
    table = [
        [
            f"{row.series}, {row.shape}, {row.bound}",
            row.length,
            row.predictor,
            f"{row.ratio:.2f}",
            f"{row.milliseconds:.2f}",
            f"{row.milliseconds / row.length:.3f}",
        ]
        for row in rows
    ]
    yield report.markdown_table(
        ["series", "frames a chunk", "methods of the chunks", "ratio", "ms a frame read", "ms a frame, all"],
        table,
    )


# ---- the study in small ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecasted:
    """What one predictor makes of a series, at one bound."""

    series: str
    bound: str
    predictor: str
    l1: float  # mean |frame - forecast| in parts of the bound
    gain: float  # innovation gain of the finest level
    coded_bytes: int  # Huffman + zstd of what is left of the forecast, all of it


_MOST_FRAMES = 256  # of a series

# name -> forecaster, distance of the keyframes
_PREDICTORS: dict[str, tuple[Any, int]] = {
    "frame before": (Nearest, 1),
    "least squares, one-sided": (LeastSquares, 1),
    "motion": (Motion, 1),
    "mean of both sides": (Nearest, 4),
    "least squares, two-sided": (LeastSquares, 4),
}


def _studied(suite: Path) -> list[fields.Field]:
    return [_short(field, _MOST_FRAMES) for field in _series(suite)]


def measure_peers(suite: Path, options: argparse.Namespace) -> list[Cell]:
    peers = [*sz3.settings(()), Aesz(), WithoutTime()]
    return [cell for field in _studied(suite) for cell in _cells(field.name, field, peers, options.workers)]


def measure_study(suite: Path, options: argparse.Namespace) -> list[Forecasted]:
    tasks = [(field, bound) for field in _studied(suite) for bound in field.bounds]
    found = []
    for field, bound in tasks:
        values = field.read("float32")
        tolerance = bound.tolerance(values)
        chunks = list(fields.split(values, field.chunk_shape(values)))
        alone = min(
            (
                [len(peer.compress(chunk[:1], tolerance)) for chunk in chunks]
                for peer in sz3.settings(())
                if peer.max_ndim is None
            ),
            key=sum,
        )
        for name, (kind, distance) in _PREDICTORS.items():
            losses, pairs, size = [], [], 0
            for chunk, first in zip(chunks, alone, strict=True):
                nbytes, loss, some = _plain(chunk, tolerance, kind, distance)
                size += first + nbytes
                losses.append(loss)
                pairs += some
            gains = innovation_gains(pairs)
            l1 = float(np.concatenate(losses).mean()) / tolerance
            found.append(Forecasted(field.name, bound.label, name, l1, gains[0].gain, size))
        _say(f"study: {field.name} {bound.label}")
    return found


def _plain(
    chunk: np.ndarray, tolerance: float, kind: Any, distance: int
) -> tuple[int, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Code a chunk frame by frame: what is left of the forecast, quantized, Huffman + zstd.

    Returns bytes (those of what the forecaster fitted, and of a bitmap of missing values, too, but the first frame's), the
    errors of the forecasts, and decoded frames with theirs; of two-sided ones those between the frames before and after.
    """
    missing = ~np.isfinite(chunk)
    frames = np.where(missing, chunk[~missing].mean(), chunk).reshape(len(chunk), -1, *chunk.shape[-2:])
    step = 2 * (tolerance - float(np.spacing(np.abs(frames).max())))
    order = steps(len(chunk), distance)
    rounded = {t: (np.rint(frames[t] / step) * step).astype(np.float32) for t in range(len(chunk))}
    planes = range(frames.shape[1])
    examples = _examples(order, frames, rounded, every=kind.every)
    forecaster: Forecaster = kind().fit(examples, tolerance)
    decoded = np.empty_like(frames)
    codes, losses, pairs = [], [], []
    for s in order:
        for plane in planes:
            frame = frames[s.time, plane]
            if s.earlier is None:  # coded by SZ3, bytes counted by the caller; here as if by rounding
                decoded[s.time, plane] = rounded[s.time][plane]
                continue
            r = forecaster.predict(s, plane, lambda t, p=plane: decoded[t, p])  # type: ignore[misc]
            q = np.rint((frame - r.astype(np.float64)) / step)
            decoded[s.time, plane] = r + q * step
            codes.append(q.astype(np.int64).ravel())
            if s.distance == 1 and (distance == 1 or s.later is not None):
                known = ~missing.reshape(frames.shape)[s.time, plane]
                losses.append(np.abs(frame - r)[known])
                pairs.append((np.where(known, decoded[s.time, plane], np.nan), r))
    if np.abs(decoded.astype(np.float64) - frames)[~missing.reshape(frames.shape)].max() > tolerance:
        raise SystemExit("study: a value left the bound")
    size = len(_huffman(np.concatenate(codes))) + len(forecaster.pack())
    if missing.any():
        size += len(zstandard.compress(np.packbits(missing).tobytes(), 19))
    return size, np.concatenate([np.empty(0), *losses]), pairs


def _examples(
    order: Sequence[Step], frames: np.ndarray, rounded: dict[int, np.ndarray], every: bool
) -> list[Example]:
    chosen = [(s, p) for s in order for p in range(frames.shape[1]) if s.earlier is not None]
    if not every:  # six of each kind of step are enough
        kinds: dict[tuple[int, int], list[tuple[Step, int]]] = {}
        for entry in chosen:
            kinds.setdefault((entry[0].distance, len(entry[0].sources)), []).append(entry)
        chosen = [e for kind in kinds.values() for e in kind[:: max(1, len(kind) // 6)][:6]]
    return [
        Example(s, p, frames[s.time, p], lambda t, p=p: rounded[t][p])  # type: ignore[misc]
        for s, p in chosen
    ]


def _huffman(values: np.ndarray) -> bytes:
    """A Huffman code of integers, with its table, packed by zstd at level 3, as in SZ."""
    symbols, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    lengths = np.ones(len(symbols), np.int64)
    if len(symbols) > 1:
        heap: list[tuple[int, int, list[int]]] = [(int(n), i, [i]) for i, n in enumerate(counts)]
        heapq.heapify(heap)
        lengths[:] = 0
        while len(heap) > 1:
            (n, _, a), (m, at, b) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[a + b] += 1
            heapq.heappush(heap, (n + m, at, a + b))
    codes = np.zeros(len(symbols), np.int64)
    code = last = 0
    for i in np.argsort(lengths, kind="stable"):  # canonical: the lengths are the table
        code <<= int(lengths[i]) - last
        last = int(lengths[i])
        codes[i] = code
        code += 1
    each = lengths[index]
    ends = np.cumsum(each)
    place = np.arange(ends[-1]) - np.repeat(ends - each, each)
    bits = np.repeat(codes[index], each) >> (np.repeat(each, each) - 1 - place) & 1
    table = np.diff(symbols, prepend=0).astype(np.int32).tobytes() + lengths.astype(np.uint8).tobytes()
    return zstandard.compress(table, 3) + zstandard.compress(np.packbits(bits.astype(np.uint8)).tobytes(), 3)


def study(rows: Sequence[Forecasted], cells: Sequence[Cell]) -> Iterator[str]:
    yield "## The study in small"
    yield (
        f"Each series in the suite's chunks (of those of more than {_MOST_FRAMES} frames chunks spread evenly). *L1*: "
        "mean distance of a forecast from its frame, in parts of the bound. *Gain*: innovation gain of the finest level, "
        "the share of what interpolation inside the frame leaves that the forecast explains. Both at 1e-3 of the range, "
        "over all frames of a chunk but the first, two-sided over those between the frame before and the one after (the "
        "bytes are of all, keyframes every four)."
    )
    series = list(dict.fromkeys(row.series for row in rows))
    bounds = list(dict.fromkeys(row.bound for row in rows))
    by = {(row.series, row.bound, row.predictor): row for row in rows}
    middle = "1e-3" if "1e-3" in bounds else bounds[0]
    table = [
        [s, *(f"{by[s, middle, p].l1:.2f} / {by[s, middle, p].gain:.2f}" for p in _PREDICTORS)]
        for s in series
    ]
    yield report.markdown_table(["L1 / gain", *_PREDICTORS], table)
    if not cells:
        return
    yield (
        "Bytes of the smallest setting of SZ3 / bytes of the others, at 1e-3: above 1 is smaller than SZ3. Each forecast "
        "in closed loop, its residual quantized, Huffman, zstd; the first frame of a chunk by SZ3. `best forecast` is "
        "chosen for each series by bytes. Ours: `default`, nothing pretrained."
    )
    best: dict[tuple[str, str], int] = {}
    coded = {(row.series, row.bound, row.peer): row.coded_bytes for row in cells}
    for row in cells:
        if row.family == "sz3":
            cell = row.series, row.bound
            best[cell] = min(row.coded_bytes, best.get(cell, row.coded_bytes))
    plain = {(s, b): min(by[s, b, p].coded_bytes for p in _PREDICTORS) for s in series for b in bounds}
    table = []
    for label, some, chosen in [
        *((s, [s], middle) for s in series),
        *((f"**all together, {b}**", series, b) for b in bounds),
    ]:
        reference = sum(best[s, chosen] for s in some)
        sizes = [sum(by[s, chosen, p].coded_bytes for s in some) for p in _PREDICTORS]
        sizes += [sum(plain[s, chosen] for s in some)]
        for less in ("-without-time", ""):
            sizes += [sum(coded[s, chosen, "aesz-default" + less] for s in some)]
        table.append([label, *(f"{reference / size:.2f}" for size in sizes)])
    header = ["SZ3 / ...", *_PREDICTORS, "best forecast", "ours without time", "ours"]
    yield report.markdown_table(header, table)


# ---- the command -----------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[type, Callable[[Path, argparse.Namespace], list[Any]]]] = {
    "hourly": (Cell, measure_hourly),
    "dataset": (Cell, measure_dataset),
    "noise": (Cell, measure_noise),
    "accumulation": (FrameErrors, measure_accumulation),
    "speed": (speed.Speed, measure_speed),
    "memory": (speed.Memory, measure_memory),
    "access": (Access, measure_access),
    "study": (Forecasted, measure_study),
    "peers": (Cell, measure_peers),
}


def text(rows: dict[str, list[Any]]) -> Iterator[str]:
    """The report, of the parts that there are."""
    yield "# Time inside the chunk"
    yield report.environment() + ". What the tables mean: `benchmarks/README.md` and `docs/time.md`."
    for name, described in {
        "hourly": hourly, "dataset": dataset, "noise": noise, "accumulation": accumulation, "access": access
    }.items():  # fmt: skip
        if rows[name]:
            yield from described(rows[name])
    if rows["speed"]:
        yield from decoding(rows["speed"], rows["memory"])
    if rows["study"]:
        yield from study(rows["study"], rows["peers"])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them; the others are read again")
    parser.add_argument("--efforts", default="default,max", help="of the parts hourly and dataset")
    parser.add_argument("--repeats", type=int, default=7, help="of speeds")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/time"))
    options = parser.parse_args(argv)
    chosen = options.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    suite = fields.find_suite(options.suite)
    if suite is None:
        parser.error("these measurements need real series: give --suite or set AESZ_DATA")
    options.output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Any]] = {}
    for name, (kind, measured) in PARTS.items():
        path = options.output / f"{name}.csv"
        if name in chosen:
            _say(f"measuring: {name}")
            report.write_rows(path, kind, measured(suite, options))
        rows[name] = report.read_rows(path, kind)
    report.write_markdown(options.output / "time.md", text(rows))
    broken = [row for name in ("hourly", "dataset", "noise") for row in rows[name] if row.violations]
    for row in broken:
        _say(f"out of bound: {row}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
