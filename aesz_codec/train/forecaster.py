"""Causal weights for every point of one grid, as a pack of the kind ``forecaster``.

Method: least squares of every point on decoded values that precede it, in its frame and in those before, from years of
frames; the noise of the quantizer in these values is added to the products (a ridge of tolerance^2 / 3).  Weights are rounded one
after the other, those that follow making up for the error so far (Frantar et al. 2022, GPTQ), so that few bits do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelError
from .basis import grid_of_all

__all__ = ["TAPS", "fit"]

Doubles = npt.NDArray[np.float64]
Tap = tuple[int, int, int]

TAPS: tuple[Tap, ...] = (
    *((1, b, c) for b in (-2, -1, 0, 1, 2) for c in (-2, -1, 0, 1, 2)),
    *((2, b, c) for b in (-1, 0, 1) for c in (-1, 0, 1)),
    *((4, b, c) for b, c in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))),
    (3, 0, 0),
    *((0, 1, c) for c in (0, 1, -1, 2, -2, 3, -3)),
    *((0, 2, c) for c in (0, 1, -1, 2, -2)),
    (0, 3, 0),
    *((0, 0, c) for c in (1, 2, 3)),
)
"""Frames, lines and columns back; those in the line come last."""

_SETS = ((0, 2), (1, 1), (4, 3))  # from which frame on, and how far taps reach: few frames are early ones
_RIDGE = 1e-5  # towards the weights that are best for all points
_LOST = 0.02  # share of the error that rounding may add
_SHIFTS = range(4, 13)
_SPREAD = 12.0  # what the expected magnitude of a code weighs beside those of its neighbors, 18 in all
_LARGEST = 32767
_FEWEST = 8  # frames for each tap


def fit(
    frames: Sequence[npt.NDArray[Any]], tolerances: Sequence[float]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Fit the weights of a forecaster.

    Parameters
    ----------
    frames : sequence of float array
        Frames x lines x columns, in steps of time that are all alike, the same grid each; a gap (NaN) counts as the mean of its
        point.  The first frame of an array does not follow the last one of the array before.
    tolerances : sequence of float
        What the decoded values may be off by; the weights are a compromise of all.

    Returns
    -------
    (dict, dict)
        ``network`` of the manifest, and the tensors.

    Raises
    ------
    InvalidModelError
        If there are too few frames, other grids, or only NaN or constants.
    """
    grid = grid_of_all(frames)
    oldest = max(tap[0] for tap in TAPS)
    count = sum(max(0, len(part) - oldest) for part in frames)
    if count < _FEWEST * len(TAPS):
        raise InvalidModelError.at(
            "training data",
            found=f"{count} frames with {oldest} before them",
            expected=f"at least {_FEWEST * len(TAPS)}",
        )
    mean = _mean(frames)
    parts = []
    for part in frames:
        anomalies = np.asarray(part, np.float64) - mean
        anomalies[~np.isfinite(anomalies)] = 0.0
        parts.append(anomalies)
    if not any(part.any() for part in parts):
        raise InvalidModelError.at(
            "training data", found="only NaN, or constant", expected="values that differ"
        )
    noise = float(np.mean(np.square(tolerances))) / 3
    products, targets, powers = _products(parts, oldest)
    inside = _inside(grid)
    products[:, range(len(TAPS)), range(len(TAPS))] += noise * inside
    solved = []
    for age, reach in _SETS:
        kept = [k for k, (a, b, c) in enumerate(TAPS) if a <= age and max(abs(b), abs(c)) <= reach]
        solved.append((kept, _solved(products[:, kept][:, :, kept], targets[:, kept], inside[:, kept])))
    kept, weights = solved[-1]
    least = float(_errors(products, targets, powers, weights).sum())
    for shift in _SHIFTS:
        rounded = _rounded(products, weights, shift)
        if _errors(products, targets, powers, rounded).sum() <= (1 + _LOST) * least:
            break
    network = {"grid": list(grid), "ages": [age for age, _ in _SETS], "shift": shift}
    tensors: dict[str, npt.NDArray[Any]] = {}
    finest = min(min(tolerances), float(np.sqrt(least / len(mean.reshape(-1)))))
    offset_shift = int(np.clip(np.ceil(np.log2(16 / finest)), -40, 40))
    offsets = []
    means = _shifted(mean[None], [0])[0]
    for s, (kept, weights) in enumerate(solved):
        rounded = _rounded(products[:, kept][:, :, kept], weights, shift)
        rounded[powers == 0] = 0.0
        offsets.append(mean.reshape(-1) - (rounded * means[:, kept]).sum(axis=1))
        tensors[f"taps{s}"] = np.array([TAPS[k] for k in kept], np.int8)
        tensors[f"weights{s}"] = np.ascontiguousarray(
            np.rint(rounded * 2.0**shift).astype(np.int16).T
        ).reshape(len(kept), *grid)
    while np.abs(offsets).max() * 2.0**offset_shift >= 2**31 - 1 and offset_shift > -40:
        offset_shift -= 1
    for s, offset in enumerate(offsets):
        tensors[f"offset{s}"] = np.rint(offset * 2.0**offset_shift).astype(np.int32).reshape(grid)
    network["offset_shift"] = offset_shift
    spread = _SPREAD * np.sqrt(np.maximum(_errors(products, targets, powers, rounded), 0.0))
    spread_shift = int(np.clip(10 - np.ceil(np.log2(spread.max())), -40, 40))
    network["spread_shift"] = spread_shift
    tensors["spread"] = (
        np.rint(np.minimum(spread * 2.0**spread_shift, _LARGEST)).astype(np.int16).reshape(grid)
    )
    return network, tensors


def _mean(frames: Sequence[npt.NDArray[Any]]) -> Doubles:
    total, known = np.zeros(frames[0].shape[1:]), np.zeros(frames[0].shape[1:])
    for part in frames:
        finite = np.isfinite(part)
        total += np.where(finite, part, 0.0).sum(axis=0, dtype=np.float64)
        known += finite.sum(axis=0)
    return np.asarray(total / np.maximum(known, 1))


def _shifted(part: Doubles, ages: Sequence[int] | None = None, line: int | None = None) -> Doubles:
    """Return what the taps see, frames x points x taps; 0 outside the grid. With `ages`, all taps in the same frame."""
    frames, lines, columns = part.shape
    oldest = 0 if ages else max(tap[0] for tap in TAPS)
    wanted = range(lines) if line is None else [line]
    seen = np.zeros((frames - oldest, len(wanted), columns, len(TAPS)))
    for k, (back, b, c) in enumerate(TAPS):
        source = part[oldest - (0 if ages else back) :][: frames - oldest]
        left, right = max(0, c), min(columns, columns + c)
        for i, y in enumerate(wanted):
            if 0 <= y - b < lines and left < right:
                seen[:, i, left:right, k] = source[:, y - b, left - c : right - c]
    return seen.reshape(frames - oldest, -1, len(TAPS))


def _inside(grid: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return which taps of which points lie in the grid, points x taps."""
    return np.asarray(_shifted(np.ones((1, *grid)), [0])[0] > 0)


def _products(parts: Sequence[Doubles], oldest: int) -> tuple[Doubles, Doubles, Doubles]:
    """Return mean products of the taps with each other, with the target, and of the target, for every point."""
    _, lines, columns = parts[0].shape
    n = len(TAPS)
    products = np.zeros((lines, columns, n, n))
    targets, powers = np.zeros((lines, columns, n)), np.zeros((lines, columns))
    count = 0
    for part in parts:
        if len(part) <= oldest:
            continue
        count += len(part) - oldest
        for y in range(lines):
            seen = np.ascontiguousarray(_shifted(part, line=y).transpose(1, 2, 0))  # columns x taps x frames
            target = part[oldest:, y].T
            products[y] += seen @ seen.transpose(0, 2, 1)
            targets[y] += (seen @ target[:, :, None])[:, :, 0]
            powers[y] += (target * target).sum(axis=1)
    return (
        products.reshape(-1, n, n) / count,
        targets.reshape(-1, n) / count,
        powers.reshape(-1) / count,
    )


def _solved(products: Doubles, targets: Doubles, inside: npt.NDArray[np.bool_]) -> Doubles:
    """Return the weights of every point, drawn towards those that are best for all."""
    n = targets.shape[1]
    everywhere = products.mean(axis=0)
    ridge = 1e-9 * np.trace(everywhere) / n
    common = np.linalg.solve(everywhere + ridge * np.eye(n), targets.mean(axis=0)) * inside
    draw = _RIDGE * np.trace(products, axis1=1, axis2=2) / n + ridge
    left = targets - (products @ common[:, :, None])[:, :, 0]
    change = np.linalg.solve(products + draw[:, None, None] * np.eye(n), left[:, :, None])[:, :, 0]
    return np.asarray((common + change) * inside)


def _rounded(products: Doubles, weights: Doubles, shift: int) -> Doubles:
    """Round the weights of every point to multiples of 2^-shift."""
    n = weights.shape[1]
    sizes = np.trace(products, axis1=1, axis2=2) / n
    ridge = 1e-6 * np.maximum(sizes, 1e-3 * sizes.mean())
    inverse = np.linalg.inv(products + ridge[:, None, None] * np.eye(n))
    upper = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    weights = weights.copy()
    for k in range(n):
        rounded = np.clip(np.rint(weights[:, k] * 2.0**shift), -_LARGEST, _LARGEST) * 2.0**-shift
        error = (weights[:, k] - rounded) / upper[:, k, k]
        weights[:, k:] -= error[:, None] * upper[:, k, k:]
        weights[:, k] = rounded
    return weights


def _errors(products: Doubles, targets: Doubles, powers: Doubles, weights: Doubles) -> Doubles:
    """Return the mean squared error of every point."""
    both = np.einsum("pk,pkl,pl->p", weights, products, weights)
    return np.asarray(powers - 2 * (weights * targets).sum(axis=1) + both)
