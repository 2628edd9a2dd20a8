"""A mean and the empirical orthogonal functions of one grid, as a pack of the kind ``basis``.

Method: Lorenz 1956 (EOFs): eigenvectors of the covariance of points, from frames of the past. Each mode is quantized with a step
of its own, coarser the less the mode varies, so that all of it adds a few percent to what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelError

__all__ = ["fit", "grid_of_all"]

_NOISE = 0.25  # root of the share that quantization adds to what is left
_MOST_SHIFT = 40
_LARGEST = 32767


def fit(
    frames: Sequence[npt.NDArray[Any]], components: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Fit a basis.

    Parameters
    ----------
    frames : sequence of float array
        Frames x the axes of the grid, the same grid each; a gap (NaN) counts as the mean of its point.
    components : int
        How many modes.

    Returns
    -------
    (dict, dict)
        ``network`` of the manifest, and the tensors.

    Raises
    ------
    InvalidModelError
        If there are fewer frames than modes, other grids, or only NaN or constants.
    """
    grid = grid_of_all(frames)
    values = np.concatenate([part.reshape(len(part), -1) for part in frames]).astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    known = np.isfinite(values)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    anomalies = np.where(known, values - mean, 0.0)
    del values, known
    count = min(components, *anomalies.shape)
    if not anomalies.any():
        raise InvalidModelError.at(
            "training data", found="only NaN, or constant", expected="values that differ"
        )
    if len(anomalies) < 2 * components:
        raise InvalidModelError.at(
            "training data",
            found=f"{len(anomalies)} frames",
            expected=f"at least two for each of {components} modes",
        )
    variances, vectors = _modes(anomalies)
    spread, vectors = np.sqrt(np.maximum(variances[:count], 0.0)), vectors[:, :count].T
    left = np.sqrt(max(float(variances[count:].sum()), 1e-6 * float(variances.sum())))
    # noise of a mode with the step d, over the whole frame: spread * d * sqrt(points / 12)
    points = anomalies.shape[1]
    wanted = _NOISE * left / (np.maximum(spread, 1e-12 * left) * np.sqrt(points * count / 12))
    widest = np.abs(vectors).max(axis=1) / _LARGEST
    exponents = np.floor(np.log2(np.clip(wanted, np.maximum(widest, 1e-11), 0.25))).astype(int)
    exponents = np.maximum(exponents, np.ceil(np.log2(np.maximum(widest, 1e-11))).astype(int))
    modes = np.rint(vectors * 2.0 ** -exponents[:, None])
    finest = int(exponents.min())
    mean_shift = int(np.clip(np.ceil(np.log2(8 * np.sqrt(points) / left)), 0, _MOST_SHIFT))
    while mean_shift and np.abs(mean).max() * 2.0**mean_shift >= 2**31 - 1:
        mean_shift -= 1
    network = {"grid": list(grid), "shift": -finest, "mean_shift": mean_shift}
    return network, {
        "mean": np.rint(mean * 2.0**mean_shift).astype(np.int32).reshape(grid),
        "modes": modes.astype(np.int16 if np.abs(modes).max() > 127 else np.int8).reshape(count, *grid),
        "shift": (exponents - finest).astype(np.uint8),
    }


def grid_of_all(frames: Sequence[npt.NDArray[Any]]) -> tuple[int, ...]:
    """Return the shape of the frames of all arrays; InvalidModelError if there are several."""
    grids = {part.shape[1:] for part in frames}
    if len(grids) > 1:
        raise InvalidModelError.at(
            "training data",
            found=f"frames of the shapes {', '.join(map(str, sorted(grids)))}",
            expected="one grid",
            remedy="name the variable, or train one model a grid",
        )
    return grids.pop()


def _modes(anomalies: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the variances of all modes, falling, and the modes as columns; through the smaller of the two products."""
    frames, points = anomalies.shape
    if points <= frames:
        variances, vectors = np.linalg.eigh(anomalies.T @ anomalies / frames)
        return variances[::-1], vectors[:, ::-1]
    variances, shares = np.linalg.eigh(anomalies @ anomalies.T / frames)
    variances, shares = np.maximum(variances[::-1], 0.0), shares[:, ::-1]
    vectors = anomalies.T @ shares
    return variances, vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-300)
