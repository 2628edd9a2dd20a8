"""What one chunk is made of: what every candidate would have cost, and what its frames know of one another.

`candidates` codes an array with each choice that the encoder has. `forecast` reads out of a stream the order of its frames,
what its forecaster fitted and the weights of the innovations; `innovation_gains` says what share of what interpolation leaves a
reference explains: the number to judge a forecaster by, since the share of the *field* that it explains says nothing about bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from . import _core, zoo
from .bounds import ErrorBound, check_dtype
from .packs import Pack
from .pipeline import (
    FindModel,
    _begun,
    _coded_exactly,
    _folded,
    _Lossy,
    closed_loop,
    coded_region,
)
from .predictors import PREDICTORS, SIDES, Frames, Interpolation, Predictor
from .predictors.forecasts import LeastSquares, Motion, Step, steps
from .predictors.modelled import Modelled
from .stream import Reader, Stream, corrupt

__all__ = [
    "Candidate",
    "Forecast",
    "InnovationWeight",
    "LevelGain",
    "candidates",
    "forecast",
    "innovation_gains",
]

_LEVELS = 5  # finer than these have weights of their own: docs/format.md, section 10
_CLASSES = ((0, 1), (1, 0), (1, 1))  # odd multiples along (lines, columns), in the order of the bits
_ONE = 256  # of weights

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """One choice of the encoder.

    Attributes
    ----------
    method : str
        As `StreamInfo.predictor`.
    parameters : dict
        As JSON values.
    nbytes : int
        Of the whole stream.
    chosen : bool
        Whether it is what a stream at hand was coded with.
    """

    method: str
    parameters: Mapping[str, Any]
    nbytes: int
    chosen: bool = False


@dataclass(frozen=True)
class LevelGain:
    """What a reference knows of one level of its frame that the coarser levels do not.

    Attributes
    ----------
    level : int
        Its points lie ``2**level`` apart; 0 is the finest, three quarters of all points.
    points : int
    left : float
        Root mean square of what cubic interpolation leaves, in the units of the frames.
    gain : float
        Share of its power that ``weight * innovation`` explains, 0 to 1, with the best weight for the level.
    weight : float
        That one; the stream's own are fitted for every class of points (`InnovationWeight`).
    """

    level: int
    points: int
    left: float
    gain: float
    weight: float


@dataclass(frozen=True)
class InnovationWeight:
    """A weight of the innovation as it is in the stream.

    Attributes
    ----------
    distance : str
        Of the frames that share it: ``"1"``, ``"2"`` or ``"4 or more"``.
    level : int
    odd : str
        Axes along which these points lie between decoded ones: ``lines``, ``columns`` or ``both``.
    weight : float
        0: the reference is not used; 1: as it is.
    """

    distance: str
    level: int
    odd: str
    weight: float


@dataclass(frozen=True)
class Forecast:
    """How the frames of a chunk refer to one another.

    Attributes
    ----------
    order : str
        ``one-sided`` or ``two-sided``.
    keyframes : int
        Their distance; 1 in one-sided order.
    forecaster : str
    used : bool
        False if the stream does not refer to other frames: the gains are then those that the frame before would have had.
    fitted : dict
        What the forecaster fitted to the chunk, as JSON values.
    gains : tuple of LevelGain
        The finest level first, over all frames that refer, from decoded values.
    weights : tuple of InnovationWeight
        Empty where they are not to be read out: a model corrects the prediction, or the method is ``interpolation``.
    """

    order: str
    keyframes: int
    forecaster: str
    used: bool
    fitted: Mapping[str, Any]
    gains: tuple[LevelGain, ...]
    weights: tuple[InnovationWeight, ...]


# ---- candidates ------------------------------------------------------------------------------------------------


def candidates(
    array: npt.ArrayLike,
    bound: ErrorBound,
    *,
    effort: str = "default",
    models: Sequence[Pack] = (),
    snap: bool = True,
) -> tuple[Candidate, ...]:
    """Code a whole array with every choice that an effort has, the smallest first.

    The encoder tries most of them on samples only, so its choice may not be the smallest. Nothing is decoded and compared here.
    Takes the time of one encoding for every choice: about 10 for ``default``, 30 for ``max``.

    Parameters
    ----------
    array : array_like
        As `pipeline.encode` takes it.
    bound : ErrorBound
    effort : {"fast", "default", "max"}
    models : sequence of Pack
        Those of the closed loop; side predictions are left out.
    snap : bool
        Whether a lattice is looked for.

    Raises
    ------
    UnsupportedDtypeError
        If the dtype cannot be coded, or not in this mode.

    Examples
    --------
    >>> field = np.sin(np.arange(4000.0) / 30).reshape(10, 20, 20)
    >>> found = candidates(field, ErrorBound("abs", 1e-3))
    >>> found[0].nbytes <= found[-1].nbytes
    True
    """
    original = np.asarray(array)
    check_dtype(original.dtype, bound)
    original = np.require(original, original.dtype.newbyteorder("="), ["C", "ALIGNED"])
    region, blank = _begun(original, bound)
    if not region.size:
        return ()
    exact = _coded_exactly(region, blank)
    found = [Candidate(exact.method.name.lower(), {}, len(exact.to_bytes()))]
    lossy = None
    if original.dtype != np.float16:
        lossy = _Lossy.prepare(region, bound, blank, snap=snap)
    if lossy is not None:
        found += _tried(lossy, effort, [model for model in models if model.kind not in SIDES])
    return tuple(sorted(found, key=lambda candidate: candidate.nbytes))


def _tried(lossy: _Lossy, effort: str, models: Sequence[Pack]) -> list[Candidate]:
    values, mask, quantizer = lossy.values, lossy.mask, lossy.quantizer
    sizes: dict[Predictor, int] = {}

    def attempt(choices: Iterable[Predictor]) -> None:
        for choice in choices:
            final = choice.final(effort)
            if final not in sizes:
                try:
                    sizes[final] = len(
                        lossy.stream_of(final, *final.encode(values, mask, quantizer)).to_bytes()
                    )
                except OverflowError:  # not for these values
                    continue

    for kind in PREDICTORS.values():
        rate = 8 * min(sizes.values(), default=0) / values.size
        usable = [model for model in models if model.kind == kind.kind]
        attempt(kind.candidates(values.shape, effort, rate, usable))
    for kind in PREDICTORS.values():
        own = [choice for choice in sizes if isinstance(choice, kind)]
        if own:
            best = min(own, key=sizes.__getitem__)
            attempt([*best.refinements(effort, 8 * sizes[best] / values.size)])
    return [
        Candidate(
            choice.method.name.lower(),
            {**choice.describe(), **({} if choice.model is None else {"model": choice.model.id})},
            size,
        )
        for choice, size in sizes.items()
    ]


# ---- what frames know of one another ---------------------------------------------------------------------------


def innovation_gains(pairs: Iterable[tuple[Array, Array]]) -> tuple[LevelGain, ...]:
    """Say what references explain of what interpolation inside their frames leaves, level by level, the finest first.

    Parameters
    ----------
    pairs : iterable of (frame, reference)
        Each two arrays of the same shape (Y, X); points that are not finite are left out.

    Returns
    -------
    tuple of LevelGain
        Up to five, as many as the frames have.

    Notes
    -----
    With e what cubic interpolation between the points of the coarser levels leaves of the frame, and f what it leaves of the
    reference: ``gain = (sum e f)^2 / (sum e^2 sum f^2)``. The weights of interpolation are those of ``docs/format.md``, section
    10, before any fit.

    Examples
    --------
    >>> frame = np.random.default_rng(0).normal(size=(32, 32))
    >>> [round(level.gain, 3) for level in innovation_gains([(frame, 0.5 * frame)])][:2]
    [1.0, 1.0]
    """
    sums: dict[int, npt.NDArray[np.float64]] = {}
    for frame, reference in pairs:
        for level in range(_LEVELS):
            if 1 << level >= max(frame.shape):
                break
            e = np.concatenate([part.ravel() for part in _innovations(frame, 1 << level)])
            f = np.concatenate([part.ravel() for part in _innovations(reference, 1 << level)])
            sound = np.isfinite(e) & np.isfinite(f)
            e, f = e[sound], f[sound]
            sums[level] = sums.get(level, np.zeros(4)) + [e @ e, e @ f, f @ f, e.size]
    found = []
    for level, (ee, ef, ff, points) in sums.items():
        if points:
            gain = min(1.0, ef * ef / (ee * ff)) if ee * ff > 0 else 0.0
            weight = ef / ff if ff > 0 else 0.0
            found.append(LevelGain(level, int(points), math.sqrt(ee / points), float(gain), float(weight)))
    return tuple(found)


def _innovations(frame: Array, spacing: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield what interpolation leaves of the points of a level, class by class."""
    grid = frame[::spacing, ::spacing].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        yield grid[::2, 1::2] - _between(grid[::2], 1)
        yield grid[1::2, ::2] - _between(grid[:, ::2], 0)
        both = _between(grid[1::2], 1) + _between(grid[:, 1::2], 0)
        yield grid[1::2, 1::2] - 0.5 * both


def _between(grid: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Interpolate the odd points along an axis: cubic, linear near the ends, the last one as its neighbor."""
    n = grid.shape[axis]
    odd = np.arange(1, n, 2)
    after = np.where(odd + 1 < n, odd + 1, odd - 1)
    near = grid.take(odd - 1, axis) + grid.take(after, axis)
    inside = (odd >= 3) & (odd + 3 < n)
    far = grid.take(np.where(inside, odd - 3, 0), axis) + grid.take(np.where(inside, odd + 3, 0), axis)
    where = inside if axis == 1 else inside[:, None]
    return cast("npt.NDArray[np.float64]", np.where(where, (9 * near - far) / 16, near / 2))


def forecast(stream: bytes | memoryview, *, find_model: FindModel = zoo.get) -> Forecast | None:
    """Say how the frames of a stream refer to one another; it is decoded once, or a few times where weights are read out.

    Returns
    -------
    Forecast or None
        None if it has no frames of at least two axes: one or two axes, or no predictor at all.

    Raises
    ------
    TruncatedStreamError, CorruptStreamError, UnsupportedFormatError, ModelNotFoundError
        As `pipeline.decode`.
    """
    try:
        return _forecast(Stream.from_bytes(stream), find_model)
    except _core.CorruptDataError as error:
        raise corrupt("codes", str(error), "what an encoder writes") from None


def _forecast(parsed: Stream, find_model: FindModel) -> Forecast | None:
    shape, _ = coded_region(parsed)
    folded = _folded(shape)
    if parsed.method not in PREDICTORS or len(folded) < 3:
        return None
    loop = closed_loop(parsed, folded, find_model)
    told: dict[int, Floats] = {}
    if isinstance(loop.predictor, Modelled):
        loop = replace(loop, predictor=replace(loop.predictor, told=told))
    values, predictor, mask = loop.decoded(), loop.predictor, loop.mask
    seen = values if mask is None else cast("Floats", np.where(mask != 0, np.nan, values))
    if isinstance(predictor, Frames):
        reader = Reader(loop.codes, "codes")
        fitted = type(predictor.forecaster).unpack(Reader(reader.take(reader.varint()), "forecaster"))
        planes = math.prod(folded[1 : predictor.batch])
        frames = values.reshape(-1, *folded[-2:])

        def predicted() -> Iterator[tuple[Array, Array]]:
            for step, plane in itertools.product(steps(folded[0], predictor.distance), range(planes)):
                if step.set:
                    reference = fitted.predict(step, plane, lambda t: frames[t * planes + plane])  # noqa: B023
                    yield seen.reshape(frames.shape)[step.time * planes + plane], reference

        described = predictor.describe()
        return Forecast(
            order=described["order"],
            keyframes=described["keyframes"],
            forecaster=described["forecaster"],
            used=True,
            fitted=_fitted(fitted),
            gains=innovation_gains(predicted()),
            weights=_weights(predictor, loop.codes, loop.outliers, values, mask, loop.step, loop.offset),
        )
    if isinstance(predictor, Modelled):
        frames = seen.reshape(-1, *folded[-2:])
        gains = innovation_gains((frames[frame], reference) for frame, reference in told.items())
        return Forecast("one-sided", 1, "foundation model", True, {}, gains, ())
    refers = isinstance(predictor, Interpolation) and predictor.reference
    back = math.prod(folded[predictor.batch if isinstance(predictor, Interpolation) and refers else 1 : -2])
    frames = values.reshape(-1, *folded[-2:])
    pairs = zip(seen.reshape(frames.shape)[back:], frames, strict=False)
    return Forecast("one-sided", 1, "frame before", refers, {}, innovation_gains(pairs), ())


def _fitted(forecaster: Any) -> dict[str, Any]:
    if isinstance(forecaster, LeastSquares):
        return {
            f"distance {distance}, {sources} source{'s' * (sources > 1)}": list(weights)
            for (distance, sources), weights in forecaster.weights
        }
    if isinstance(forecaster, Motion):
        vectors = np.frombuffer(b"".join(v for _, v in forecaster.vectors), np.int8).reshape(-1, 2)
        moved = vectors[vectors.any(axis=1)]
        return {
            "frames": len(forecaster.vectors),
            "blocks moved": len(moved),
            "mean points moved": float(np.hypot(*(moved.T / 2)).mean()) if len(moved) else 0.0,
        }
    return {}


def _weights(
    choice: Frames,
    codes: bytes,
    outliers: bytes,
    values: Floats,
    mask: npt.NDArray[np.uint8] | None,
    step: float,
    offset: float,
) -> tuple[InnovationWeight, ...]:
    """Read the weights of innovations out of a stream, by decoding it with references that are none.

    No context depends on a reference, and predictions depend linearly on it. Where a reference is 0 but for the points of one
    class of one level, nothing changes that these are predicted from, and they change by their weight: one decoding tells it
    for one class of every frame.
    """
    if choice.model is not None:
        return ()
    planes = math.prod(values.shape[1 : choice.batch])
    of_set: dict[int, list[Step]] = {}
    for s in steps(values.shape[0], choice.distance):
        of_set.setdefault(s.set, []).append(s)
    of_set.pop(0)
    size = values.shape[-2:]
    places = [
        (level, odd)
        for level in range(_LEVELS)
        for odd in _CLASSES
        if all(not o or n > 1 << level for o, n in zip(odd, size, strict=True))
    ]
    # a power of two that outweighs the rounding of all values
    peak = float(np.nanmax(np.abs(values), initial=step))
    height = 2.0 ** math.ceil(math.log2(peak)) if math.isfinite(peak) else 1.0
    reader = Reader(codes, "codes")
    length = reader.varint()
    reader.take(length)
    rest = bytes(reader.rest())

    def decoded(marked: Mapping[int, tuple[int, tuple[int, int]]]) -> Floats:
        out = np.empty_like(values)

        def reference(frame: int) -> Floats:
            r = np.zeros(size, values.dtype)
            if frame in marked:
                _points(r, *marked[frame])[...] = height
            return r

        schedule = choice._schedule(values.shape)
        _core.decode_frames(
            rest,
            outliers,
            out,
            mask,
            step,
            offset,
            choice.batch,
            choice.coder,
            16,
            16,
            None,
            schedule,
            reference,
        )
        return out.reshape(-1, *size)

    found: dict[tuple[int, int, tuple[int, int]], list[Array]] = {}
    base: Floats | None = None
    rounds = max((-(-len(places) // (len(s) * planes)) for s in of_set.values()), default=0)
    for turn in range(rounds):
        marked = {}
        for number, chosen in of_set.items():
            every = [s.time * planes + plane for s in chosen for plane in range(planes)]
            for i, frame in enumerate(every):
                at = turn * len(every) + i
                if at < len(places) or turn == 0:
                    marked[frame] = (number, *places[at % len(places)])
        if base is None:
            base = decoded({})
        changed = decoded({frame: place for frame, (_, *place) in marked.items()})  # type: ignore[misc]
        for frame, (number, level, odd) in marked.items():
            with np.errstate(invalid="ignore", over="ignore"):
                change = _points(changed[frame], level, odd).astype(np.float64) - _points(
                    base[frame], level, odd
                )
            found.setdefault((number, level, odd), []).append(change.ravel())
    names = {1: "1", 2: "2", 3: "4 or more"}
    axes = {(0, 1): "columns", (1, 0): "lines", (1, 1): "both"}
    weights = []
    for (number, level, odd), changes in sorted(found.items()):
        all_changes = np.concatenate(changes)
        sound = all_changes[np.isfinite(all_changes)]
        if sound.size:  # outliers do not change
            weight = round(float(np.median(sound)) / height * _ONE) / _ONE
            weights.append(InnovationWeight(names[number], level, axes[odd], weight))
    return tuple(weights)


def _points(frame: Floats, level: int, odd: tuple[int, int]) -> Floats:
    """Return a view of the points of a class of a level."""
    spacing = 1 << level
    return frame[odd[0] * spacing :: 2 * spacing, odd[1] * spacing :: 2 * spacing]
