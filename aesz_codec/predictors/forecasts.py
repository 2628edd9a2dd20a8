"""Forecasters: what is known of a frame from the frames of its chunk that are decoded already.

Idea: the frames of a chunk are coded in an order of their own, one after the other, or keyframes first and then the middle of
what lies between two that are there, again and again (*two-sided*). A forecaster makes a *reference* of the decoded ones; the
closed loop takes of it what interpolation inside the frame could not have guessed, with a weight for every level (zero allowed).
Nothing accumulates: every frame keeps the bound, and the next is predicted from what the decoder has.

::

    distance 4:     0 . . . 4 . . . 8         keyframes, each from the one before
                    0 . 2 . 4 . 6 . 8         2 from 0 and 4, 6 from 4 and 8
                    0 1 2 3 4 5 6 7 8         1 from 0 and 2, ...

What a forecaster fits to a chunk are integers in the stream; its arithmetic is exact: binary64 in one order, or integers.
Other packages offer the same interface (`Forecaster`): see `external`.  Format: ``docs/format.md``, section 21.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import zstandard

from .. import _core
from ..stream import Reader, Writer, corrupt, expand

if TYPE_CHECKING:
    from . import Floats

__all__ = [
    "FORECASTERS",
    "Example",
    "Forecaster",
    "LeastSquares",
    "Motion",
    "Nearest",
    "Source",
    "Step",
    "steps",
]

MOST_DISTANCE = 64

Source = Callable[[int], "Floats"]
"""From a time to the frame at it, which must have been decoded."""


@dataclass(frozen=True, slots=True)
class Step:
    """One time of a chunk, in the order of coding.

    Attributes
    ----------
    time : int
    distance : int
        To the frames that it refers to.
    earlier, later : int or None
        Times that are decoded before; without `earlier` the frame stands alone, `later` makes it two-sided.
    """

    time: int
    distance: int
    earlier: int | None = None
    later: int | None = None

    @property
    def set(self) -> int:
        """Which weights of the closed loop its frames share: 0 of those that stand alone, else by distance."""
        if self.earlier is None:
            return 0
        return 1 if self.distance == 1 else 2 if self.distance == 2 else 3

    @property
    def sources(self) -> tuple[int, ...]:
        """Times that a fit may use: two-sided both neighbors, else the one before and the one as far again before it."""
        if self.earlier is None:
            return ()
        if self.later is not None:
            return self.earlier, self.later
        before = self.earlier - self.distance
        return (self.earlier, before) if before >= 0 else (self.earlier,)


@functools.lru_cache(16)
def steps(times: int, distance: int) -> tuple[Step, ...]:
    """Return the order of coding: keyframes every `distance` (a power of two), then the middles, halving the distance."""
    order = [Step(0, distance)]
    order += [Step(t, distance, t - distance) for t in range(distance, times, distance)]
    half = distance // 2
    while half:
        order += [
            Step(t, half, t - half, t + half if t + half < times else None)
            for t in range(half, times, 2 * half)
        ]
        half //= 2
    return tuple(order)


@dataclass(frozen=True)
class Example:
    """What a forecaster is fitted to.

    Attributes
    ----------
    step : Step
    plane : int
        Number of the frame among those of the same time.
    frame : (Y, X) array
        The original; NaN where there is nothing to predict.
    source : callable
        From a time to that frame as a quantizer might have left it.
    """

    step: Step
    plane: int
    frame: Floats
    source: Source


class Forecaster(Protocol):
    """What a forecaster offers; immutable, hashable, and made by its class without arguments before it is fitted.

    Whatever `predict` says, the bound holds; but it must say the same bits in every process that decodes: no networks of floats,
    no sums whose order a library chooses.

    Attributes
    ----------
    tag : int
        Its number in the format; `external.EXTERNAL` for those of other packages.
    name : str
        Of those of other packages ``package:forecaster``: the stream has it.
    every : bool
        Whether it is fitted to every frame of a chunk; else to a few of every kind.
    """

    tag: ClassVar[int]
    name: ClassVar[str]
    every: ClassVar[bool]

    def fit(self, examples: Sequence[Example], tolerance: float) -> Self:
        """Return a forecaster for a chunk; encoder only.  `tolerance`: of the closed loop, in units of the frames."""

    def predict(self, step: Step, plane: int, source: Source) -> Floats:
        """Return the reference of the frame of a step: shape, dtype and C order of the frames of `source`.

        `plane`: number of the frame among those of the same time, for chunks with axes between time and latitude.
        """

    def pack(self) -> bytes:
        """Return what `unpack` needs; called once all frames are coded."""

    @classmethod
    def unpack(cls, reader: Reader) -> Self:
        """Read a forecaster.

        Raises
        ------
        CorruptStreamError
            If no encoder writes such bytes.
        """


class Sum(NamedTuple):
    """A reference that is a weighted sum over decoded frames; points beyond an edge are the nearest ones.

    One tap of weight 1 in its own place is the frame itself.

    Attributes
    ----------
    times : tuple of int
        One or two.
    taps : (count, 3) array of int64
        Number of the time, lines and columns ahead.
    weights : (count,) array of float64
    """

    times: tuple[int, ...]
    taps: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]

    def of(self, source: Source) -> Floats:
        """Return the reference, from a callable that returns frames by time."""
        frames = [source(time) for time in self.times]
        out = np.empty_like(frames[0])
        _core.weigh_frames(frames, self.taps, self.weights, out)
        return out


@runtime_checkable
class Summing(Protocol):
    """A forecaster whose references are sums, which the native core makes by itself."""

    def sum(self, step: Step) -> Sum:
        """Return the sum that `Forecaster.predict` returns for a step that refers."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest frame; the mean of two."""

    tag: ClassVar[int] = 0
    name: ClassVar[str] = "nearest"
    every: ClassVar[bool] = False

    def fit(self, examples: Sequence[Example], tolerance: float) -> Self:
        """See `Forecaster`: there is nothing to fit."""
        return self

    def predict(self, step: Step, plane: int, source: Source) -> Floats:
        """See `Forecaster`."""
        return self.sum(step).of(source)

    def sum(self, step: Step) -> Sum:
        """See `Summing`."""
        assert step.earlier is not None
        if step.later is None:
            return Sum((step.earlier,), _CENTRE, _WHOLE)
        return Sum((step.earlier, step.later), _CENTRES, _HALVES)

    def pack(self) -> bytes:
        """See `Forecaster`."""
        return b""

    @classmethod
    def unpack(cls, reader: Reader) -> Self:
        """See `Forecaster`."""
        reader.end()
        return cls()


_CENTRES = np.array([[0, 0, 0], [1, 0, 0]], np.int64)
_CENTRE = _CENTRES[:1]
_WHOLE, _HALVES = np.array([1.0]), np.array([0.5, 0.5])
_CROSS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
_TAPS = {n: np.array([(i, *shift) for i in range(n) for shift in _CROSS], np.int64) for n in (1, 2)}
_UNIT = 64  # of weights, about
_LEAST_SUM = 16
_LARGEST = 4096
_BLOCK = 16  # points of a side of what moves together
_VECTOR_BITS = 16.0  # about what a vector costs


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """A weighted sum over the two frames that a step refers to: at the point and at the four around it.

    The weights are those that predict best what interpolation inside the frame leaves, not the frame itself: they are fitted to
    differences of points from the mean of those around them.

    Attributes
    ----------
    weights : tuple of ((distance, number of sources), tuple of int)
        In parts of their sum; ten for two sources, five for one.
    """

    weights: tuple[tuple[tuple[int, int], tuple[int, ...]], ...] = ()
    _parts: dict[tuple[int, int], npt.NDArray[np.float64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = {kind: np.array([w / sum(weights) for w in weights]) for kind, weights in self.weights}
        object.__setattr__(self, "_parts", parts)

    tag: ClassVar[int] = 1
    name: ClassVar[str] = "least squares"
    every: ClassVar[bool] = False

    def fit(self, examples: Sequence[Example], tolerance: float) -> Self:
        """See `Forecaster`: one set of weights for every distance and number of sources."""
        by_key: dict[tuple[int, int], list[Example]] = {}
        for example in examples:
            by_key.setdefault((example.step.distance, len(example.step.sources)), []).append(example)
        fitted = []
        for key, chosen in sorted(by_key.items(), reverse=True):
            weights = self._fitted(chosen, tolerance)
            if weights is not None:
                fitted.append((key, weights))
        return type(self)(tuple(fitted))

    def _fitted(self, examples: list[Example], tolerance: float) -> tuple[int, ...] | None:
        frames = cast("Floats", np.stack([example.frame for example in examples]))
        sources = cast(
            "Floats",
            np.stack([[example.source(time) for time in example.step.sources] for example in examples]),
        )
        points = min(max(frames.size // 8, 250), 3000)
        taps = _TAPS[len(examples[0].step.sources)]
        w = np.array(_core.fit_frames(frames, sources, taps, points, tolerance), np.float64)
        if w.size == 0:
            return None
        total = float(w.sum())
        if not np.isfinite(total) or total < 0.05:  # nothing that resembles the frame
            return None
        scaled = np.rint(w * (_UNIT / total))
        if np.abs(scaled).max() > _LARGEST or scaled.sum() < _LEAST_SUM:
            return None
        return tuple(int(v) for v in scaled)

    def predict(self, step: Step, plane: int, source: Source) -> Floats:
        """See `Forecaster`; `Nearest` where there are no weights."""
        return self.sum(step).of(source)

    def sum(self, step: Step) -> Sum:
        """See `Summing`."""
        times = step.sources
        parts = self._parts.get((step.distance, len(times)))
        return Nearest().sum(step) if parts is None else Sum(times, _TAPS[len(times)], parts)

    def pack(self) -> bytes:
        """See `Forecaster`."""
        writer = Writer().pack("B", len(self.weights))
        for (distance, sources), weights in self.weights:
            writer.pack("BB", distance.bit_length() - 1, sources)
            for w in weights:
                writer.varint(_folded(w))
        return writer.done()

    @classmethod
    def unpack(cls, reader: Reader) -> Self:
        """See `Forecaster`."""
        found = []
        for _ in range(reader.byte()):
            exponent, sources = reader.take(2)
            if exponent > 6 or not 1 <= sources <= 2:
                raise corrupt(
                    "forecaster", f"distance 2^{exponent}, {sources} sources", "at most 2^6, 1 or 2"
                )
            weights = tuple(_unfolded(reader.varint()) for _ in range(sources * len(_CROSS)))
            if max(map(abs, weights)) > _LARGEST or sum(weights) < _LEAST_SUM:
                raise corrupt(
                    "forecaster", f"weights {weights}", f"up to {_LARGEST}, sums from {_LEAST_SUM} on"
                )
            found.append(((1 << exponent, sources), weights))
        if len(dict(found)) != len(found):
            raise corrupt("forecaster", "two sets of weights for the same frames", "one")
        reader.end()
        return cls(tuple(found))


@dataclass(frozen=True, slots=True)
class Motion:
    """The nearest frame, moved: every block of 16 x 16 points has a vector of its own, in halves of a point.

    For what drifts by whole points: clouds, rain, ocean fronts in a fine grid. The vectors are those whose moved frame has the
    cheapest high-pass difference from the frame; a two-sided step takes the mean of its neighbors as it is.

    Attributes
    ----------
    vectors : tuple of ((time, plane), vectors)
        int8 of the shape (blocks down, blocks across, 2): (lines, columns) from a point to where its value comes from.
    """

    vectors: tuple[tuple[tuple[int, int], bytes], ...] = ()
    _by_frame: dict[tuple[int, int], bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_frame", dict(self.vectors))

    tag: ClassVar[int] = 2
    name: ClassVar[str] = "motion"
    every: ClassVar[bool] = True

    def fit(self, examples: Sequence[Example], tolerance: float) -> Self:
        """See `Forecaster`."""
        found = []
        for example in examples:
            step = example.step
            if step.earlier is not None and step.later is None:
                vectors = _motion(example.frame, example.source(step.earlier), tolerance)
                if vectors.any():
                    found.append(((step.time, example.plane), vectors.tobytes()))
        return type(self)(tuple(found))

    def predict(self, step: Step, plane: int, source: Source) -> Floats:
        """See `Forecaster`; `Nearest` where there are no vectors."""
        vectors = self._by_frame.get((step.time, plane))
        if vectors is None or step.later is not None:
            return Nearest().predict(step, plane, source)
        assert step.earlier is not None
        frame = source(step.earlier)
        if len(vectors) != math.prod(_blocks(frame.shape)) * 2:
            raise corrupt("forecaster", f"{len(vectors)} bytes of vectors", f"two a block of {frame.shape}")
        out = np.empty_like(frame)
        _core.move_frame(frame, np.frombuffer(vectors, np.int8).astype(np.int16), _BLOCK, out)
        return out

    def pack(self) -> bytes:
        """See `Forecaster`."""
        writer = Writer().varint(len(self.vectors))
        for (time, plane), vectors in self.vectors:
            writer.varint(time).varint(plane).varint(len(vectors))
        body = b"".join(vectors for _, vectors in self.vectors)
        return writer.raw(zstandard.ZstdCompressor(level=19, write_content_size=False).compress(body)).done()

    @classmethod
    def unpack(cls, reader: Reader) -> Self:
        """See `Forecaster`."""
        found, total = [], 0
        for _ in range(reader.varint()):
            time, plane, length = reader.varint(), reader.varint(), reader.varint()
            found.append(((time, plane), length))
            total += length
        if len(dict(found)) != len(found):
            raise corrupt("forecaster", "two fields of vectors for a frame", "one")
        body = Reader(expand(reader.rest(), 1, total, "vectors"), "vectors")
        return cls(tuple((key, bytes(body.take(length))) for key, length in found))


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    return -(-shape[-2] // _BLOCK), -(-shape[-1] // _BLOCK)


@np.errstate(over="ignore", invalid="ignore")  # of the largest numbers that there are
def _motion(frame: Floats, before: Floats, tolerance: float) -> npt.NDArray[np.int8]:
    """Return the vectors of a frame: the cheapest of all within three points, halves within one and a half."""
    blocks = _blocks(frame.shape)
    still = (0, 0)
    wide = [(y, x) for y in range(-6, 7) for x in range(-6, 7)]
    tried = [v for v in wide if (v[0] % 2 == 0 and v[1] % 2 == 0) or max(map(abs, v)) <= 3]
    target, moved = _high_pass(frame), np.empty_like(before)
    costs = []
    for vector in tried:
        _core.move_frame(
            before, np.broadcast_to(np.array(vector, np.int16), (*blocks, 2)).copy(), _BLOCK, moved
        )
        bits = np.nan_to_num(np.log2(1 + np.abs(target - _high_pass(moved)) / tolerance), copy=False)
        padded = np.zeros((blocks[0] * _BLOCK, blocks[1] * _BLOCK))
        padded[: frame.shape[0], : frame.shape[1]] = bits
        cost = padded.reshape(blocks[0], _BLOCK, blocks[1], _BLOCK).sum(axis=(1, 3))
        costs.append(cost + (0.0 if vector == still else _VECTOR_BITS))
    best = np.argmin(np.stack(costs), axis=0)
    vectors: npt.NDArray[np.int8] = np.array(tried, np.int8)[best]
    return vectors


def _high_pass(frame: Floats) -> npt.NDArray[np.float64]:
    """Return what points differ from the mean of the four around them."""
    f = np.pad(frame.astype(np.float64), 1, mode="edge")
    out: npt.NDArray[np.float64] = f[1:-1, 1:-1] - 0.25 * (
        f[1:-1, 2:] + f[1:-1, :-2] + f[2:, 1:-1] + f[:-2, 1:-1]
    )
    return out


def _folded(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unfolded(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


FORECASTERS: dict[int, type[Forecaster]] = {f.tag: f for f in (Nearest, LeastSquares, Motion)}
"""By their number in the format."""
