"""The mean of every hour of the day and day of the year on one grid, as a pack of the kind ``cycle``.

Method: harmonics of the day times harmonics of the year, least squares at every point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelError
from ..predictors.side import roughness
from .basis import grid_of_all

__all__ = ["fit"]

_DAYS = 365  # of the table of a year
_UNIT = 1024  # of the tables
_LEAST_DAYS = 300  # of data that show a year
_NOISE = 1 / 16  # step of the modes, in what frames that are left differ from the mean of their neighbors
_ROUGH = 200  # frames that tell it
_RIDGE = 1e-9
_LARGEST = 2**31 - 1
_MOST_SHIFT = 80


def fit(
    frames: Sequence[npt.NDArray[Any]],
    ticks: Sequence[npt.NDArray[np.int64]],
    per_day: int,
    daily: int = 2,
    yearly: int = 2,
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Fit a cycle.

    Parameters
    ----------
    frames : sequence of float array
        Frames x the axes of the grid, the same grid each; a gap (NaN) counts as the mean of its point.
    ticks : sequence of int64 array
        When the frames are, in ticks since the beginning of a year.
    per_day : int
        Ticks of a day, 1 to 1440.
    daily, yearly : int
        How many harmonics, no more than the ticks of a day can tell; data of less than 300 days have no year. With ten
        days of hourly data four a day gained a twelfth less than two, twelve three tenths less.

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
    values = np.concatenate([part.reshape(len(part), -1) for part in frames]).astype(np.float64)
    when = np.concatenate(ticks)
    span = (int(when.max()) - int(when.min())) / per_day if when.size else 0.0
    hours = _harmonics(per_day, daily)
    days = _harmonics(_DAYS, yearly) if span >= _LEAST_DAYS else _harmonics(1, 0)
    count = hours.shape[1] * days.shape[1]
    if len(values) < 4 * count:
        raise InvalidModelError.at(
            "training data",
            found=f"{len(values)} frames",
            expected=f"at least four for each of {count} modes",
        )
    values[~np.isfinite(values)] = np.nan
    known = np.isfinite(values)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    anomalies = np.where(known, values - mean, 0.0)
    if not anomalies.any():
        raise InvalidModelError.at(
            "training data", found="only NaN, or constant", expected="values that differ"
        )
    day, hour = np.divmod(when, per_day)
    shares = hours[hour].astype(np.float64), days[day % len(days)].astype(np.float64)
    weights = (shares[0][:, :, None] * shares[1][:, None, :]).reshape(len(when), count)
    square = weights.T @ weights
    square[range(count), range(count)] += _RIDGE * np.trace(square) / count
    modes = np.linalg.solve(square, weights.T @ anomalies)
    some = slice(None, None, -(-len(values) // _ROUGH))
    left = (anomalies[some] - weights[some] @ modes).reshape(-1, *grid)
    rough = float(np.sqrt(np.mean(roughness(left, len(grid)) ** 2)))
    modes[0] += mean / _UNIT**2
    finest = max(_NOISE * rough, 1e-9 * float(np.abs(modes).max()) * _UNIT**2) / _UNIT**2
    shift = int(np.clip(-math.floor(math.log2(finest)), 0, _MOST_SHIFT))
    while shift and np.abs(modes).max() * 2.0**shift > _LARGEST:
        shift -= 1
    return {"grid": list(grid), "shift": shift}, {
        "hours": hours,
        "days": days,
        "modes": np.rint(modes * 2.0**shift).astype(np.int32).reshape(count, *grid),
    }


def _harmonics(length: int, count: int) -> npt.NDArray[np.int16]:
    """Return a constant, and cosines and sines of one to `count` periods, as integers: length x 1 to 2 count + 1."""
    phase = 2 * np.pi * np.arange(length) / length
    columns = [np.ones(length)]
    for k in range(1, min(count, length // 2) + 1):
        columns.append(np.cos(k * phase))
        if 2 * k < length:
            columns.append(np.sin(k * phase))
    return np.rint(_UNIT * np.stack(columns, axis=1)).astype(np.int16)
