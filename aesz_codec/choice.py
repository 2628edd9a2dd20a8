"""Which predictor codes an array in the fewest bytes: candidates are tried on a few small parts of it.

::

    boxes of the array -> candidates without a model -> those with one, where they are near -> refinements of the best
                       -> the best of all, or two, on the whole

Encoder only: nothing here is part of the format.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from .packs import Pack
from .predictors import PREDICTORS, Floats, Frames, Interpolation, Learned, Mask, Predictor, Quantizer
from .predictors.forecasts import Forecaster
from .stream import Method

__all__ = ["DIGEST_BYTES", "samples", "smallest"]

DIGEST_BYTES = 32  # of the section "model"

_MODEL_BYTES = DIGEST_BYTES + 3  # with its place in the table
_FEW_FRAMES, _MANY_FRAMES = 6, 16  # of a sample
_HOPELESS = 1.1  # times the bytes of the best on a sample
_HOPELESS_WITHOUT = 1.06  # likewise, without a model, where one with a model is best
_HOPELESS_MODEL = 1.4  # likewise, with a model: what it has to learn of the data weighs more on a sample
_WORTH_DECODING = 0.99  # bytes with a model to those without: less would not pay for the time of the networks
_HOPELESS_PART = 1.06  # likewise, on the first part of a sample
_HOPELESS_PART_MODEL = 1.5  # likewise, with a model
_WORTH_A_MODEL = {"fast": 2.0, "default": 1.15, "max": 1.3}  # likewise, without the model that is to be tried
_WORTH_A_MODEL_OF_KIND = {"fast": 1.1, "default": 1.04, "max": 1.3}  # likewise, to the best of its kind
_HARDLY_ANYTHING = 0.05  # bits a value


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a candidate made of the samples."""

    size: float  # bytes, handicapped
    candidate: Predictor
    coded: list[tuple[bytes, bytes]]


def _bytes(coded: list[tuple[bytes, bytes]]) -> int:
    return sum(len(codes) + len(outliers) for codes, outliers in coded)


def smallest(
    values: Floats,
    mask: Mask,
    quantizer: Quantizer,
    effort: str,
    models: Sequence[Pack] = (),
    forecasters: Sequence[type[Forecaster]] | None = None,
) -> tuple[Predictor, bytes, bytes]:
    """Return the candidate that codes the values in the fewest bytes, and what it coded.

    Candidates are tried on a sample, those with a model last, and only where they are not far behind without it. ``max`` codes
    the whole with the best of every kind; the others with the best of all, each handicapped by the time that it costs. What codes
    nothing but the whole has no trial.
    """
    boxes = samples(values.shape, effort)
    parts = [_cut(values, mask, quantizer, box) for box in boxes]
    wide = len(parts)
    if effort != "fast":
        longer = _longer_samples(values.shape, parts[0][0].shape)
        parts += [_cut(values, mask, quantizer, box) for box in longer]
    count = sum(sample.size for sample, _, _ in parts)
    best: dict[tuple[Method, bool], _Trial] = {}  # with and without a model
    tried: dict[Predictor, float] = {}  # bytes; more than anything if a candidate was given up

    def side_bytes(candidate: Predictor) -> float:
        counts = (
            values.ndim > 2 and effort != "fast"
        )  # frames alone, and the one box of `fast`, have large samples
        return candidate.side_bytes(values.shape) if counts else 0.0

    def attempt(candidate: Predictor) -> None:
        coded: list[tuple[bytes, bytes]] = []
        tried[candidate] = math.inf
        few_lines = candidate.method is Method.LOCAL  # has too little to learn from on the long one
        for sample in parts[:wide] if few_lines else parts:
            try:
                coded.append(candidate.encode(*sample))
            except OverflowError:
                return
            if effort != "max" and given_up(coded, candidate):
                return
        size = float(_bytes(coded))
        if few_lines and wide < len(parts):
            rival = min(best.values(), key=lambda trial: _bytes(trial.coded))
            size *= _bytes(rival.coded) / max(1, _bytes(rival.coded[:wide]))
        share = count / values.size
        size -= min(side_bytes(candidate) * (len(coded) - share), size / 2)
        tried[candidate] = size
        named = 0.0 if candidate.model is None else _MODEL_BYTES * share  # the sample's
        trial = _Trial(size * candidate.handicap(effort, 8 * size / count, share) + named, candidate, coded)
        kind = candidate.method, candidate.model is not None
        if kind not in best or trial.size < best[kind].size:
            best[kind] = trial

    def given_up(coded: list[tuple[bytes, bytes]], candidate: Predictor) -> bool:
        """Whether a candidate is so far behind on the first samples that others will not mend it."""

        def beyond_side(coded: list[tuple[bytes, bytes]], candidate: Predictor) -> float:
            return _bytes(coded) - side_bytes(candidate) * len(coded)

        rivals = (
            beyond_side(trial.coded[: len(coded)], trial.candidate)
            for trial in best.values()
            if len(trial.coded) >= len(coded)
        )
        hopeless = _HOPELESS_PART if candidate.model is None else _HOPELESS_PART_MODEL
        return beyond_side(coded, candidate) > hopeless * max(min(rivals, default=math.inf), 0.0)

    learned: list[Learned] = []
    whole: list[Predictor] = []
    for kind in PREDICTORS.values():
        rate = 8 * min((trial.size for trial in best.values()), default=0.0) / count
        usable = [model for model in models if model.kind == kind.kind]
        for candidate in Frames.limited(kind.candidates(values.shape, effort, rate, usable), forecasters):
            if candidate.whole:
                whole.append(candidate)
            elif candidate.model is None:
                attempt(candidate)
            else:
                learned.append(cast(Learned, candidate))
    least = min(tried.values(), default=math.inf)
    alone = dict(tried)
    for candidate in learned:
        plain = candidate.without_model(effort)
        of_kind = min((size for p, size in alone.items() if p.method is candidate.method), default=0.0)
        most = min(_WORTH_A_MODEL[effort] * least, _WORTH_A_MODEL_OF_KIND[effort] * of_kind)
        if plain is None or tried.get(plain, 0) <= most:
            attempt(cast(Predictor, candidate.for_rate(8 * least / count)))
    leaders = sorted(best.values(), key=lambda trial: trial.size)
    first = leaders if effort == "max" else leaders[:1]
    for leader in (*first, *(trial for trial in leaders[len(first) :] if trial.candidate.model is not None)):
        alike = leader.candidate.method, leader.candidate.model is not None
        for _ in range(
            1 if effort == "max" else 2
        ):  # what a refinement is better by has refinements of its own
            refined = best[alike]
            rate = 8 * _bytes(refined.coded) / count
            for candidate in Frames.limited(refined.candidate.refinements(effort, rate), forecasters):
                if candidate not in tried:
                    attempt(candidate)
            if best[alike] is refined:
                break
    leaders = sorted(best.values(), key=lambda trial: trial.size)
    least = leaders[0].size if leaders else 0.0
    finalists = [trial.candidate.final(effort) for trial in leaders[:1]]
    if effort == "max":
        finalists = [trial.candidate.final(effort) for trial in leaders if trial.size <= _HOPELESS * least]
        if 8 * least < _HARDLY_ANYTHING * count:  # quiet blocks are cheaper than any decision
            finalists += [trial.candidate for trial in leaders[:1]]
    elif effort == "default" and learned and leaders:
        # a sample says little of what a model learns of the data: the best with one and the best without are both coded
        with_model = leaders[0].candidate.model is not None
        within = _HOPELESS_WITHOUT if with_model else _HOPELESS_MODEL
        others = [trial for trial in leaders if (trial.candidate.model is not None) != with_model]
        finalists += [trial.candidate.final(effort) for trial in others[:1] if trial.size <= within * least]
    finalists += [candidate.final(effort) for candidate in whole]
    # a sample that is the whole need not be coded again
    done = {trial.candidate: trial.coded[0] for trial in leaders} if count == values.size else {}
    coded: list[tuple[Predictor, bytes, bytes]] = []
    for final in finalists:
        with contextlib.suppress(OverflowError):
            coded.append((final, *(done.get(final) or final.encode(values, mask, quantizer))))
    if not coded:
        final = Interpolation().final(effort)
        coded.append((final, *final.encode(values, mask, quantizer)))

    def cost(predictor: Predictor, codes: bytes, outliers: bytes) -> float:
        size = len(codes) + len(outliers)
        if predictor.model is None:
            return size
        return (size + _MODEL_BYTES) / (1.0 if effort == "max" or predictor.whole else _WORTH_DECODING)

    return min(coded, key=lambda entry: cost(*entry))


def _cut(
    values: Floats, mask: Mask, quantizer: Quantizer, box: tuple[slice, ...]
) -> tuple[Floats, Mask, Quantizer]:
    """Return a part of an array, its mask and its quantizer."""
    sample = cast(Floats, np.ascontiguousarray(values[box]))
    sample_mask = None if mask is None else np.ascontiguousarray(mask[box])
    first = 0 if sample_mask is None else int(np.argmin(sample_mask.reshape(-1)))
    offset = float(sample.reshape(-1)[first])
    if not math.isfinite(offset):  # nothing but special values in the sample
        offset = quantizer.offset
    return sample, sample_mask, Quantizer(quantizer.tolerance, quantizer.step, offset)


def samples(shape: tuple[int, ...], effort: str) -> list[tuple[slice, ...]]:
    """Return one or two boxes of an array: the whole if it is small, else small parts of it."""
    n = math.prod(shape)
    part, least, most, count = {
        "fast": (48, 8192, 16384, 1),
        "default": (64, 6144, 16384, 2),
        "max": (12, 16384, 98304, 2),
    }[effort]
    target = min(max(n // part, least), most)
    if n <= 1.5 * count * target:
        return [tuple(slice(None) for _ in shape)]
    return _boxes(shape, _reduced(shape, target, _FEW_FRAMES), count)


def _longer_samples(shape: tuple[int, ...], part: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Return a box of more frames and less of each than a part has that has few: it shows what time is worth."""
    if all(d >= min(n, _MANY_FRAMES) for n, d in zip(shape[:-2], part[:-2], strict=True)):
        return []
    return _boxes(shape, _reduced(shape, math.prod(part), _MANY_FRAMES), 1)


def _reduced(shape: tuple[int, ...], target: int, frames: int) -> list[int]:
    """Return the shape of a part of about `target` values: so many frames, then a part of each, then fewer still."""
    dims = list(shape)
    while math.prod(dims) > target:
        for axes, fewest in (
            (range(max(0, len(dims) - 2)), frames),
            (range(len(dims)), 24),
            (range(len(dims)), 1),
        ):
            if wide := [axis for axis in axes if dims[axis] > fewest]:
                widest = max(wide, key=lambda axis: dims[axis])
                dims[widest] = (dims[widest] + 1) // 2
                break
    return dims


def _boxes(shape: tuple[int, ...], dims: list[int], count: int) -> list[tuple[slice, ...]]:
    return [
        tuple(
            slice((m - d) * place // (2 * count), (m - d) * place // (2 * count) + d)
            for m, d in zip(shape, dims, strict=True)
        )
        for place in range(1, 2 * count, 2)
    ]
