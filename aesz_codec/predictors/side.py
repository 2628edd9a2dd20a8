"""Side predictions: fields from elsewhere that are taken away before the closed loop codes what is left.

Idea: a chunk is described by a few integers (*latents*, a small stream inside the stream); a pack turns them into a prediction
of all its values at once, in arithmetic that is exact on every machine.

::

    values --describe--> latents --predict--> f           values - f --closed loop--> codes
                            |                 |
                            +-- pack ---------+

`Basis` knows one grid: a mean and its empirical orthogonal functions (EOFs, Lorenz 1956), of which each frame takes its share.
Interpolation inside the frame could not have guessed it: a chunk is coded as what its few hundred frames have that years of other
frames did not.  `Cycle` knows the mean of every hour of the day and day of the year on one grid; a chunk takes from it what its
first frame's hour and the step between frames say, two numbers that the encoder finds by itself.  Format: ``docs/format.md``,
section 19; packs: ``docs/packs.md``, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..errors import CorruptStreamError, InvalidModelError
from ..packs import Pack, plain
from .networks import built_once

__all__ = ["SIDES", "Basis", "Cycle", "Side", "roughness"]

Latents = npt.NDArray[np.int32]
Values = npt.NDArray[np.float64]

_MOST_AXES = 3
_MOST_SHIFT = 40
_MOST_MODES = 4096
_LARGEST_LATENT = 1 << 26
_EXACT = 2.0**53  # integers below are exact as float64
_MOST_TICKS = 1 << 16  # of a cycle
_MOST_ROWS = 1 << 22  # ticks of a cycle times its modes
_STEPS = (1, 2, 3, 4, 6, 8, 12, 24, 48)  # of a cycle, that the encoder tries, besides a day
_SEARCHED = 32  # frames that it looks at for that
_HALF = 0.5  # of the points of the frame that has most: what a frame must have to be looked at


class Side(Protocol):
    """What a side prediction offers.

    Attributes
    ----------
    kind : str
        Of its packs.
    clocked : bool
        Whether the latents are two natural numbers for the whole array, below `ticks`, without a unit.
    """

    kind: ClassVar[str]
    clocked: ClassVar[bool]

    @property
    def pack(self) -> Pack:
        """The pack."""

    @classmethod
    def load(cls, pack: Pack) -> Self:
        """Build from a pack, once per process.

        Raises
        ------
        InvalidModelError
            If the pack is not what its kind says.
        """

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the greatest shape that latents of an array can have; None if the model is not for this shape."""

    def describe(self, values: Values, unit: float) -> Latents:
        """Return the latents of an array.

        Parameters
        ----------
        values : float64 array
            NaN where there is nothing to describe.
        unit : float
            What a latent of 1 is worth, in the units of the values; nothing if the latents have none.
        """

    def predict(self, latents: Latents, unit: float, shape: tuple[int, ...]) -> Values:
        """Return the prediction, the same bits on every machine.

        Raises
        ------
        CorruptStreamError
            If no encoder writes such latents.
        """


@dataclass(frozen=True, eq=False)
class Basis:
    """A mean field and a few modes of one grid.

    Attributes
    ----------
    grid : tuple of int
        Shape of a frame.
    mean : float64 array
        Points of the frame; integers over a power of two.
    modes : float64 array
        Modes x points; integers.
    scale : float
        A power of two; ``modes * scale`` are about orthonormal.
    inverse : float64 array
        Points x modes: from anomalies to latents. Encoder only.
    """

    kind: ClassVar[str] = "basis"
    clocked: ClassVar[bool] = False

    pack: Pack
    grid: tuple[int, ...]
    mean: Values
    modes: Values
    scale: float
    inverse: Values

    @classmethod
    def load(cls, pack: Pack) -> Self:
        """See `Side`."""
        return _basis(pack)  # type: ignore[return-value]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """See `Side`: whole frames, whatever the axes before them are."""
        axes = len(self.grid)
        if len(shape) < axes or shape[len(shape) - axes :] != self.grid:
            return None
        return math.prod(shape[: len(shape) - axes]), len(self.modes)

    def describe(self, values: Values, unit: float) -> Latents:
        """See `Side`: the nearest multiples of the unit; modes that no frame has are left out at the end."""
        anomalies = values.reshape(-1, self.mean.size) - self.mean
        np.nan_to_num(anomalies, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        shares = np.rint(anomalies @ self.inverse * (1.0 / unit))
        latents = np.clip(shares, -_LARGEST_LATENT, _LARGEST_LATENT).astype(np.int32)
        used = np.flatnonzero(latents.any(axis=0))
        return np.ascontiguousarray(latents[:, : int(used[-1]) + 1 if used.size else 1])

    def predict(self, latents: Latents, unit: float, shape: tuple[int, ...]) -> Values:
        """See `Side`: the sum over the modes is one of integers, exact in whatever order a BLAS adds."""
        modes = self.modes[: latents.shape[1]]
        largest = float(np.abs(latents.astype(np.int64)).max(initial=0))
        if largest * float(np.abs(modes).sum(axis=0).max(initial=0.0)) >= _EXACT:
            raise CorruptStreamError.at(
                "latents",
                found=f"one of magnitude {largest:.0f}",
                expected="sums below 2^53",
                remedy="the stream is damaged: restore it from its source",
            )
        field = latents.astype(np.float64) @ modes
        field *= unit * self.scale
        field += self.mean
        return field.reshape(shape)


@built_once
def _basis(pack: Pack) -> Basis:
    network = pack.manifest["network"]
    name = f"pack {pack.id!r}"
    keys = {"grid", "mean_shift", "shift"}
    if not isinstance(network, Mapping) or set(network) != keys:
        raise InvalidModelError.at(
            f"{name}: network", found=repr(plain(network))[:80], expected=f"an object with {sorted(keys)}"
        )
    grid = _grid(network["grid"], name)
    for key in ("mean_shift", "shift"):
        if not _natural(network[key], least=0) or network[key] > _MOST_SHIFT:
            raise InvalidModelError.at(
                f"{name}: {key}",
                found=repr(network[key])[:80],
                expected=f"an integer from 0 to {_MOST_SHIFT}",
            )
    if set(pack.tensors) != {"mean", "modes", "shift"}:
        raise InvalidModelError.at(
            f"{name}: tensors", found=", ".join(sorted(pack.tensors)), expected="mean, modes, shift"
        )
    mean, modes, shift = (pack.tensors[key] for key in ("mean", "modes", "shift"))
    if len(modes) > _MOST_MODES:
        raise InvalidModelError.at(f"{name}: modes", found=str(len(modes)), expected=f"at most {_MOST_MODES}")
    shapes = {"mean": (mean, grid), "modes": (modes, (len(modes), *grid)), "shift": (shift, (len(modes),))}
    for key, (tensor, expected) in shapes.items():
        if tensor.shape != expected:
            raise InvalidModelError.at(
                f"{name}: {key}", found=f"shape {tensor.shape}", expected=str(expected)
            )
    if shift.dtype != np.uint8 or int(shift.max()) > _MOST_SHIFT:
        raise InvalidModelError.at(
            f"{name}: shift",
            found=f"{shift.dtype} up to {shift.max()}",
            expected=f"uint8 up to {_MOST_SHIFT}",
        )
    flat = modes.reshape(len(modes), -1).astype(np.float64) * 2.0 ** shift.astype(np.float64)[:, None]
    if np.abs(flat).sum(axis=0).max() >= _EXACT:
        raise InvalidModelError.at(f"{name}: modes", found="sums from 2^53 on", expected="smaller ones")
    scale = 2.0 ** -network["shift"]
    return Basis(
        pack,
        grid,
        mean.reshape(-1).astype(np.float64) * 2.0 ** -network["mean_shift"],
        flat,
        scale,
        np.linalg.pinv(flat * scale),
    )


@dataclass(frozen=True, eq=False)
class Cycle:
    """The mean of every hour of the day and day of the year on one grid, as a sum of modes that a calendar weighs.

    A day has so many *ticks*; ticks are counted through the year. The frame at a tick is the sum of all modes, each times an
    entry for the tick of the day and one for the day.

    Attributes
    ----------
    grid : tuple of int
        Shape of a frame.
    hours : float64 array, ticks of a day x a; days : float64 array, days x b
        Integers.
    modes : float64 array, a * b x points
        Integers.
    scale : float
        A power of two.
    rough : float64 array, a * b x points
        What modes differ from the mean of their neighbors, times the scale. Encoder only.
    """

    kind: ClassVar[str] = "cycle"
    clocked: ClassVar[bool] = True

    pack: Pack
    grid: tuple[int, ...]
    hours: Values
    days: Values
    modes: Values
    scale: float
    rough: Values

    @classmethod
    def load(cls, pack: Pack) -> Self:
        """See `Side`."""
        return _cycle(pack)  # type: ignore[return-value]

    @property
    def ticks(self) -> int:
        """Ticks of a year."""
        return len(self.hours) * len(self.days)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """See `Side`: whole frames; of the axes before them the first is time."""
        axes = len(self.grid)
        if len(shape) < axes or shape[len(shape) - axes :] != self.grid:
            return None
        return 1, 2

    def weights(self, ticks: npt.NDArray[np.int64]) -> Values:
        """Return the weights of all modes at ticks of the year, ticks x modes; integers."""
        day, hour = np.divmod(ticks, len(self.hours))
        rows: Values = (self.hours[hour][:, :, None] * self.days[day][:, None, :]).reshape(len(ticks), -1)
        return rows

    def describe(self, values: Values, unit: float) -> Latents:
        """See `Side`: the tick of the first frame and the step that leave the least of what interpolation could not guess.

        A part of the frames is compared, point for point less the mean of the neighbors, with all ticks of the year.
        """
        shape = values.shape[: values.ndim - len(self.grid)] or (1,)
        frames = values.reshape(shape[0], -1, *self.grid)
        times = np.unique(np.linspace(0, shape[0] - 1, _SEARCHED).astype(np.int64))
        seen = roughness(frames[times].mean(axis=1), len(self.grid)).reshape(len(times), -1)
        known = np.isfinite(seen)
        whole = (
            known.sum(axis=1) >= _HALF * known.sum(axis=1).max()
        )  # gaps of some frames shall not hide all points
        sound = known[whole].all(axis=0)
        times, rough, seen = times[whole], self.rough[:, sound], seen[whole][:, sound]
        rows = self.weights(np.arange(self.ticks))
        power = ((rows @ (rough @ rough.T)) * rows).sum(axis=1)
        shares = seen @ rough.T
        lacking = power - 2 * (shares @ rows.T)  # times x ticks; less what is the same for all ticks
        tried = sorted({step % self.ticks for step in (*_STEPS, len(self.hours))}) if len(times) > 1 else [0]
        costs = np.zeros((len(tried), self.ticks))
        for cost, step in zip(costs, tried, strict=True):
            for time, row in zip(times.tolist(), lacking, strict=True):
                cost += np.roll(row, -(time * step % self.ticks))
        best, start = divmod(int(np.argmin(costs)), self.ticks)
        return np.array([[start, tried[best]]], np.int32)

    def predict(self, latents: Latents, unit: float, shape: tuple[int, ...]) -> Values:
        """See `Side`: the sum over the modes is one of integers, exact in whatever order a BLAS adds."""
        start, step = (int(latent) for latent in latents.flat)
        if max(start, step) >= self.ticks:
            raise CorruptStreamError.at(
                "latents",
                found=f"tick {start}, step {step}",
                expected=f"below {self.ticks}",
                remedy="the stream is damaged: restore it from its source",
            )
        before = shape[: len(shape) - len(self.grid)] or (1,)
        ticks = (start + np.arange(before[0]) * step % self.ticks) % self.ticks
        field = np.empty((len(ticks), self.modes.shape[1]))
        some = max(1, _MOST_ROWS // len(self.modes))  # frames at once
        for at in range(0, len(ticks), some):
            np.matmul(self.weights(ticks[at : at + some]), self.modes, out=field[at : at + some])
        field *= self.scale
        return np.repeat(field, math.prod(before[1:]), axis=0).reshape(shape)


@built_once
def _cycle(pack: Pack) -> Cycle:
    network, name = pack.manifest["network"], f"pack {pack.id!r}"
    if not isinstance(network, Mapping) or set(network) != {"grid", "shift"}:
        raise InvalidModelError.at(
            f"{name}: network", found=repr(plain(network))[:80], expected="an object with grid and shift"
        )
    grid = _grid(network["grid"], name)
    if not _natural(network["shift"], least=0) or network["shift"] > 2 * _MOST_SHIFT:
        raise InvalidModelError.at(
            f"{name}: shift",
            found=repr(network["shift"])[:80],
            expected=f"an integer from 0 to {2 * _MOST_SHIFT}",
        )
    if set(pack.tensors) != {"days", "hours", "modes"}:
        raise InvalidModelError.at(
            f"{name}: tensors", found=", ".join(sorted(pack.tensors)), expected="days, hours, modes"
        )
    hours, days, modes = (pack.tensors[key] for key in ("hours", "days", "modes"))
    for key, tensor in (("hours", hours), ("days", days)):
        if tensor.ndim != 2 or tensor.dtype == np.int32:
            raise InvalidModelError.at(
                f"{name}: {key}",
                found=f"{tensor.dtype}, shape {tensor.shape}",
                expected="two axes of int8, uint8 or int16",
            )
    count, ticks = hours.shape[1] * days.shape[1], len(hours) * len(days)
    if ticks > _MOST_TICKS or count > _MOST_MODES or count * ticks > _MOST_ROWS:
        raise InvalidModelError.at(
            f"{name}: hours, days",
            found=f"{ticks} ticks, {count} modes",
            expected=f"at most {_MOST_TICKS} and {_MOST_MODES}, and {_MOST_ROWS} if multiplied",
        )
    if modes.shape != (count, *grid):
        raise InvalidModelError.at(
            f"{name}: modes", found=f"shape {modes.shape}", expected=str((count, *grid))
        )
    flat = modes.reshape(count, -1).astype(np.float64)
    widest = [np.abs(tensor.astype(np.float64)).max(axis=0) for tensor in (hours, days)]
    if (np.outer(*widest).reshape(1, -1) @ np.abs(flat)).max() >= _EXACT:
        raise InvalidModelError.at(f"{name}: modes", found="sums from 2^53 on", expected="smaller ones")
    scale = 2.0 ** -network["shift"]
    rough = roughness(flat.reshape(count, *grid) * scale, len(grid)).reshape(count, -1)
    return Cycle(pack, grid, hours.astype(np.float64), days.astype(np.float64), flat, scale, rough)


def roughness(fields: Values, axes: int) -> Values:
    """Return what points differ from the mean of their neighbors along the last two of these axes."""
    out = np.zeros_like(fields)
    for axis in range(fields.ndim - min(axes, 2), fields.ndim):
        line = np.moveaxis(fields, axis, -1)
        wide = np.concatenate([line[..., :1], line, line[..., -1:]], axis=-1)
        out += np.moveaxis(line - 0.5 * (wide[..., 2:] + wide[..., :-2]), -1, axis)
    return out


def _grid(grid: Any, name: str) -> tuple[int, ...]:
    if not isinstance(grid, tuple) or not 1 <= len(grid) <= _MOST_AXES or not all(map(_natural, grid)):
        raise InvalidModelError.at(
            f"{name}: grid", found=repr(plain(grid))[:80], expected=f"1 to {_MOST_AXES} lengths"
        )
    return grid


def _natural(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


SIDES: dict[str, type[Side]] = {side.kind: side for side in (Basis, Cycle)}
"""By the kind of pack that they take."""
