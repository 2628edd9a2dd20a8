"""Frames that refer to what a forecaster makes of decoded ones, refined by multi-level interpolation.

Idea: as `interpolation`, frame by frame, but in an order of time that may be two-sided, and with a reference that is better than
the frame before::

    prediction = I(decoded points of the frame) + weight * (r - I(r))         r: the reference, by a forecaster

Three sets of weights, by how far the frames lie apart.  Format: ``docs/format.md``, section 21.  Choose it for series whose
steps are close to one another: hourly fields, daily ones of the ocean; about 70 ns a value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from .. import _core
from ..packs import Pack
from ..stream import Coder, Method, Reader, Writer, corrupt
from .external import EXTERNAL, pack_tag, predicted, unpack_tag
from .forecasts import (
    MOST_DISTANCE,
    Example,
    Forecaster,
    LeastSquares,
    Motion,
    Nearest,
    Source,
    Step,
    Summing,
    steps,
)
from .interpolation import (
    NEARLY_ZERO,
    QUIET,
    can_refer,
    coder_alone,
    coder_with_model,
    learned_handicap,
    networks_of,
)

if TYPE_CHECKING:
    from . import Floats, Mask, Predictor, Quantizer

__all__ = ["Frames"]

_AXES = 2  # of a frame
_LARGE = 1 << 18  # values, from which on fits on samples take next to no time
_ENOUGH = 120000  # values, of the frames of a kind of steps that something is fitted to
_MOST_EXAMPLES = 6  # frames of a kind
_REFERRING_SLOTS = range(3, 6)  # of networks: those of frames that refer


@dataclass(frozen=True, slots=True)
class Frames:
    """Choices of the order and of what it refers to.

    Attributes
    ----------
    batch : int
        Leading axes that are frames; the first of them is time.
    distance : int
        Of keyframes, a power of two up to 64; 1: every frame refers to those before.
    forecaster : Forecaster
    coder : Coder
        As in `Interpolation`.
    model : Pack or None
        As in `Interpolation`.
    """

    batch: int
    distance: int
    forecaster: Forecaster
    coder: Coder = Coder.ADAPTIVE
    model: Pack | None = None

    method: ClassVar[Method] = Method.FRAMES
    kind: ClassVar[str | None] = "interpolation"
    whole: ClassVar[bool] = False

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterator[Self]:
        """See `Predictor`: the nearest frames, for large arrays least squares; one- and two-sided; ``max`` also motion."""
        batch = len(shape) - _AXES
        if effort == "fast" or not can_refer(shape):
            return
        if effort == "max":
            yield cls(batch, 1, Motion())
        coder = coder_with_model(shape, effort)
        fitted = effort == "max" or math.prod(shape) >= _LARGE
        for distance in (1, 4) if effort == "default" else (1, 4, 16):
            if distance < shape[0]:
                plain = cls(batch, distance, LeastSquares() if fitted else Nearest())
                yield plain
                yield from (
                    replace(plain, coder=coder, model=model)
                    for model in models
                    if not networks_of(model)[1].isdisjoint(_REFERRING_SLOTS)
                )

    @classmethod
    def prepare(cls, pack: Pack) -> None:
        """See `Learned`."""
        networks_of(pack)

    def without_model(self, effort: str) -> Self | None:
        """See `Learned`."""
        return replace(self, coder=coder_alone(effort), model=None)

    def for_rate(self, rate: float) -> Self:
        """See `Learned`: the static coder is no good for zeros."""
        return (
            replace(self, coder=Coder.ADAPTIVE) if self.coder is Coder.STATIC and rate < NEARLY_ZERO else self
        )

    @staticmethod
    def limited(
        candidates: Iterable[Predictor], forecasters: Sequence[type[Forecaster]] | None
    ) -> Iterator[Predictor]:
        """Return the same candidates, but with frames that refer to what these forecasters say; None: as they are."""
        if forecasters is None:
            yield from candidates
            return
        seen: set[Predictor] = set()
        for candidate in candidates:
            if not isinstance(candidate, Frames):
                yield candidate
                continue
            for forecaster in forecasters:
                limited = replace(candidate, forecaster=forecaster())
                if limited not in seen:
                    seen.add(limited)
                    yield limited

    def refinements(self, effort: str, rate: float) -> Iterator[Self]:
        """See `Predictor`: the other forecaster; for ``default``, the fast coder.

        With a model ``default`` tries none but least squares: where the nearest frame is better, it was so without one.
        """
        yield replace(self, forecaster=LeastSquares())
        if effort == "max" or self.model is None:
            yield replace(self, forecaster=Nearest())
        if effort == "default" and self.model is None:
            yield replace(self, coder=Coder.STATIC)
        if effort == "default" and self.model is not None and self.coder is Coder.STATIC and rate < QUIET:
            yield replace(self, coder=Coder.ADAPTIVE)

    def side_bytes(self, shape: tuple[int, ...]) -> float:
        """See `Predictor`: weights of the classes of some levels, for every set, and those of the forecaster."""
        sets = 1 + min(self.distance.bit_length(), 3)
        return 20 * sets + (
            18 * self.distance.bit_length() if isinstance(self.forecaster, LeastSquares) else 0
        )

    def handicap(self, effort: str, rate: float, share: float) -> float:
        """See `Predictor`."""
        return learned_handicap(self.coder, self.model, effort, share)

    def final(self, effort: str) -> Self:
        """See `Predictor`."""
        return replace(self, coder=Coder.MIXED) if effort == "max" else self

    def encode(self, data: Floats, mask: Mask, quantizer: Quantizer) -> tuple[bytes, bytes]:
        """See `Predictor`; what the forecaster fitted stands before the codes."""
        fitting = _Fitting(self, data, mask, quantizer)
        forecaster = self.forecaster.fit(fitting.examples(self.forecaster.every), quantizer.tolerance)
        out = np.empty_like(data)
        codes, outliers = _core.encode_frames(
            data,
            mask,
            quantizer.tolerance,
            quantizer.step,
            quantizer.offset,
            *self._choices(),
            self._schedule(data.shape),
            self._references(forecaster, out),
            out,
            fitting.trained_on(forecaster),
        )
        fitted = forecaster.pack()
        return Writer().varint(len(fitted)).raw(fitted).raw(codes).done(), outliers

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """See `Predictor`."""
        if out.ndim - self.batch != _AXES or not can_refer(out.shape):
            raise corrupt("shape", f"{out.shape}, {self.batch} frame axes", "two axes more, of 8 or more")
        reader = Reader(codes, "codes")
        length = reader.varint()
        forecaster = type(self.forecaster).unpack(Reader(reader.take(length), "forecaster"))
        rest = bytes(reader.rest())
        _core.decode_frames(
            rest,
            outliers,
            out,
            mask,
            step,
            offset,
            *self._choices(),
            self._schedule(out.shape),
            self._references(forecaster, out),
        )

    def _choices(self) -> tuple[int, int, int, int, _core.LearnedNets | None]:
        return self.batch, self.coder, 16, 16, None if self.model is None else networks_of(self.model)[0]

    def _schedule(self, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        return schedule_of(shape[0], math.prod(shape[1 : self.batch]), self.distance)

    def _references(self, forecaster: Forecaster, out: Floats) -> Any:
        """Return what gives the native core the references of frames: sums of those in `out`, or a callable."""
        planes = math.prod(out.shape[1 : self.batch])
        if forecaster.tag != EXTERNAL and isinstance(forecaster, Summing):
            return _sums(forecaster, out.shape[0], planes, self.distance)
        frames = out.reshape(-1, *out.shape[self.batch :])
        order = {step.time: step for step in steps(out.shape[0], self.distance)}

        def reference(frame: int) -> Floats:
            time, plane = divmod(frame, planes)
            return predicted(forecaster, order[time], plane, lambda t: frames[t * planes + plane])

        return reference

    def pack(self, step: float, offset: float) -> bytes:
        """See `Predictor`."""
        flags = self.coder << 2 | (self.model is not None) << 4
        exponent = self.distance.bit_length() - 1
        writer = Writer().pack("ddBBBB", step, offset, self.batch, flags, exponent, self.forecaster.tag)
        return writer.raw(pack_tag(self.forecaster)).done()

    @classmethod
    def unpack(cls, plan: Reader) -> tuple[Self, float, float]:
        """See `Predictor`."""
        step, offset = plan.unpack("dd")
        batch, flags, exponent, tag = plan.take(4)
        forecaster = unpack_tag(tag, plan)
        plan.end()
        coder = Coder(flags >> 2 & 3)
        sound = flags & ~28 == 0 and (coder is not Coder.ADAPTIVE_ZEROS or not flags & 16) and batch
        if not sound or 1 << exponent > MOST_DISTANCE or forecaster is None:
            raise corrupt(
                "plan",
                f"{batch} frame axes, flags {flags}, distance 2^{exponent}, forecaster {tag}",
                f"at least 1, a coder and a model, up to {MOST_DISTANCE}, one that there is",
            )
        return cls(batch, 1 << exponent, forecaster, coder), step, offset

    def describe(self) -> dict[str, Any]:
        """See `Predictor`."""
        return {
            "frame_axes": self.batch,
            "order": "one-sided" if self.distance == 1 else "two-sided",
            "keyframes": self.distance,
            "forecaster": self.forecaster.name,
            "coder": self.coder.name.lower(),
        }


@functools.lru_cache(64)
def schedule_of(times: int, planes: int, distance: int) -> npt.NDArray[np.int64]:
    """Return a row for every frame in the order of coding: frame, set, the frames whose codes are contexts, or -1."""
    rows = [
        (
            step.time * planes + plane,
            step.set,
            -1 if step.earlier is None else step.earlier * planes + plane,
            -1 if step.later is None else step.later * planes + plane,
        )
        for step in steps(times, distance)
        for plane in range(planes)
    ]
    found = np.array(rows, np.int64)
    found.flags.writeable = False
    return found


def _sums(forecaster: Summing, times: int, planes: int, distance: int) -> _core.FrameSums:
    """Return the sums that all frames refer to."""
    numbers: dict[
        tuple[int, int, int], int
    ] = {}  # by identity; `sums` keeps the arrays, so that none takes another's place
    sums: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
    rows = [(-1, -1, -1)] * (times * planes)
    for step in steps(times, distance):
        if step.earlier is None:
            continue
        found = forecaster.sum(step)
        key = len(found.times), id(found.taps), id(found.weights)
        if key not in numbers:
            numbers[key] = len(sums)
            sums.append((found.taps, found.weights))
        first, second = found.times[0], found.times[1] if len(found.times) > 1 else None
        for plane in range(planes):
            rows[step.time * planes + plane] = (
                numbers[key],
                first * planes + plane,
                -1 if second is None else second * planes + plane,
            )
    return _core.FrameSums(np.array(rows, np.int64), sums)


class _Fitting:
    """The frames that the encoder fits to, with those before as a quantizer might have left them."""

    def __init__(self, choice: Frames, data: Floats, mask: Mask, quantizer: Quantizer) -> None:
        self._planes = math.prod(data.shape[1 : choice.batch])
        self._frames = data.reshape(-1, *data.shape[choice.batch :])
        self._masks = None if mask is None else mask.reshape(self._frames.shape)
        self._quantizer = quantizer
        self._kept: dict[int, Floats] = {}
        self._steps = steps(data.shape[0], choice.distance)
        few = max(2, len(self._frames) // 8)  # an eighth: fits must not outweigh the coding
        self._enough = max(1, min(_ENOUGH // self._frames[0].size, few, _MOST_EXAMPLES))

    def _quantized(self, frame: int) -> Floats:
        if frame not in self._kept:
            self._kept[frame] = out = np.empty_like(self._frames[frame])
            mask = None if self._masks is None else self._masks[frame]
            _core.round_frame(self._frames[frame], mask, self._quantizer.step, self._quantizer.offset, out)
        return self._kept[frame]

    def _source(self, plane: int) -> Source:
        return lambda t: self._quantized(t * self._planes + plane)

    @staticmethod
    def _spread(chosen: list[Step], count: int) -> list[Step]:
        n = max(1, min(count, len(chosen)))
        return [chosen[(2 * i + 1) * len(chosen) // (2 * n)] for i in range(n)]

    def examples(self, every: bool) -> list[Example]:
        """Return all frames that refer, or some of every distance and number of sources."""
        kinds: dict[tuple[int, int], list[Step]] = {}
        for step in self._steps:
            if step.set:
                kinds.setdefault((step.distance, len(step.sources)), []).append(step)
        if every:
            chosen = [
                (step, plane) for steps in kinds.values() for step in steps for plane in range(self._planes)
            ]
        else:
            some = [step for steps in kinds.values() for step in self._spread(steps, max(2, self._enough))]
            chosen = [(step, i % self._planes) for i, step in enumerate(some)]
        return [
            Example(step, plane, self._original(step.time, plane), self._source(plane))
            for step, plane in chosen
        ]

    def _original(self, time: int, plane: int) -> Floats:
        frame = cast("Floats", self._frames[time * self._planes + plane])
        if self._masks is None:
            return frame
        masked = self._masks[time * self._planes + plane] != 0
        return cast("Floats", np.where(masked, np.nan, frame).astype(frame.dtype))

    def trained_on(self, forecaster: Forecaster) -> list[tuple[int, int, Floats | None]]:
        """Return (frame, set, reference) of some frames of every set that refers; those of the rarer sets are fewer."""
        sets: dict[int, list[Step]] = {}
        for step in self._steps:
            if step.set:
                sets.setdefault(step.set, []).append(step)
        found: list[tuple[int, int, Floats | None]] = []
        for number, chosen in sets.items():
            count = self._enough if len(chosen) * 2 > len(self._steps) - 2 else self._enough // 2
            for i, step in enumerate(self._spread(chosen, count)):
                plane = i % self._planes
                reference = predicted(forecaster, step, plane, self._source(plane))
                found.append((step.time * self._planes + plane, number, reference))
        return found
