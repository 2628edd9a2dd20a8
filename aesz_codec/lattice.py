"""Sources that were packed as integers lie on a lattice: GRIB fields, NetCDF with ``scale_factor``, whole meters.

Idea: where values are ``origin + unit * k`` and the tolerance e is m units and a fraction, the closed loop codes the integers k
with a step of 2m + 1 units.  That is more than the 2e of other data if the fraction is below a half, and most of all where
e is below half a unit: then k is kept exactly, at the price of one unit a step.  Where the fraction is above a half, a part of
the unit may do: e = 0.6 units allows one half, and thus a step of three halves.

::

    values --find--> Lattice, k --+ 3 * 2^22--> closed loop in binary32, whose rounding is to integers --> k --to_values--> values

GRIB packs every field with an origin of its own, often with the same unit: then each frame (two last axes) has its shift, a
fraction of the unit.  Format: ``docs/format.md``, section 14.  The search costs a sort of 512 values where there is no lattice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .stream import Reader, Writer, corrupt

__all__ = ["Lattice", "Snapped", "described", "find"]

Array = npt.NDArray[Any]
Float64s = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8] | None

_MIDDLE = float(3 << 22)  # binary32 numbers around it are the integers
_REACH = float(1 << 22)  # as far as they are, on both sides
_MAX_BITS = 16  # of the shift of a frame
_BLOCK = 1 << 16  # values taken at a time

_FIRST_LOOK, _SAMPLE, _LARGE_SAMPLE = 512, 4096, 32768  # values judged before all are looked at
_LEAST_FRAME = 64  # values worth a shift of their own
_NOISE = 0.75  # how far a value is from its point, in units in the last place of the largest
_LEAST_UNIT = 12  # likewise; finer lattices drown in it
_GAIN = 1.02  # the step must grow by this much
_LARGEST_RATIO = 25  # tolerance / unit from which it cannot
_DIVISORS = range(1, 9)  # of the unit


@dataclass(frozen=True, slots=True)
class Lattice:
    """Points ``origin + unit * (k + shift / 2**bits)``, every frame with its own shift.

    Attributes
    ----------
    origin, unit : float
        In the units of the data; `unit` > 0.
    bits : int
        0 to 16; 0 if there are no shifts.
    shifts : tuple of int
        One for each frame, from 0 to ``2**bits - 1``.
    """

    origin: float
    unit: float
    bits: int = 0
    shifts: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """Return the section ``lattice``."""
        section = Writer().pack("ddB", self.origin, self.unit, self.bits)
        for shift in self.shifts:
            section.varint(shift)
        return section.done()

    @classmethod
    def unpack(cls, section: bytes, shape: tuple[int, ...]) -> Lattice:
        """Read the section ``lattice`` of a region of this folded shape.

        Raises
        ------
        CorruptStreamError
        """
        reader = Reader(section, "lattice")
        origin, unit = reader.unpack("dd")
        bits = reader.byte()
        if not (math.isfinite(origin) and math.isfinite(unit) and unit > 0) or bits > _MAX_BITS:
            raise corrupt(
                "lattice",
                f"origin {origin}, unit {unit}, {bits} bits",
                f"finite numbers, the unit above 0, at most {_MAX_BITS} bits",
            )
        frames = math.prod(shape[:-2]) if bits else 0
        if frames > len(section):
            raise corrupt("lattice", f"{len(section)} bytes", f"a shift for each of {frames} frames")
        shifts = tuple(reader.varint() for _ in range(frames))
        reader.end()
        if any(shift >> bits for shift in shifts):
            raise corrupt("lattice", f"shift {max(shifts)}", f"below {1 << bits}")
        return cls(float(origin), float(unit), bits, shifts)

    def divided(self, divisor: int) -> Lattice:
        """Return the lattice of parts of the unit."""
        shifts = tuple(shift * divisor % (1 << self.bits) for shift in self.shifts)
        return replace(self, unit=self.unit / divisor, shifts=shifts)

    def to_values(self, loop: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> Array:
        """Return the points for what the closed loop decoded, in folded shape; `loop` itself if that is the dtype."""
        out = loop if dtype == loop.dtype else np.empty(loop.shape, dtype)
        points = _rows(out, bool(self.shifts))
        rows = _rows(loop, bool(self.shifts))
        with np.errstate(all="ignore"):  # damaged streams
            for block in _blocks(rows.shape):
                k = rows[block].astype(np.float64)
                np.nan_to_num(k, copy=False, nan=_MIDDLE)
                k -= _MIDDLE
                np.rint(np.clip(k, -_REACH, _REACH, out=k), out=k)
                points[block] = self._points(k, block[0])
        return out

    def _points(self, k: Float64s, frames: slice) -> Float64s:
        """Turn integers into points, in place: the arithmetic of the format but for the last rounding."""
        if self.shifts:
            k += np.array(self.shifts[frames], np.float64)[:, None] / (1 << self.bits)
        k *= self.unit
        k += self.origin
        return k

    def _indices(self, x: Float64s, frames: slice) -> Float64s:
        """Turn values into the nearest integers, in place."""
        x -= self.origin
        x /= self.unit
        if self.shifts:
            x -= np.array(self.shifts[frames], np.float64)[:, None] / (1 << self.bits)
        return np.rint(x, out=x)


def described(section: bytes, step: float) -> dict[str, Any]:
    """Say of a stream what `inspect` shows: the unit, the units of error that the integers may have, the step in data units."""
    unit, bits = Reader(section, "lattice").unpack("ddB")[1:]
    return {
        "step": step * unit,
        "lattice_unit": unit,
        "lattice_error": max(0, round((step - 1) / 2)) if math.isfinite(step) else 0,
        "lattice_by_frame": bits > 0,
    }


@dataclass(frozen=True, slots=True)
class Snapped:
    """Values on their lattice, ready for the closed loop.

    Attributes
    ----------
    lattice : Lattice
    values : float32, shape of the values
        Integers around 3 * 2**22; that number itself where the mask is set.
    units : int
        The error that the tolerance leaves to the integers: m.
    """

    lattice: Lattice
    values: npt.NDArray[np.float32]
    units: int

    @property
    def tolerance(self) -> float:
        """For the closed loop, whose errors are integers here."""
        return self.units + 0.25

    @property
    def step(self) -> float:
        """A little below ``2 * units + 1``: a prediction between two integers must reach both."""
        return (2 * self.units + 1) * (1 - 2.0**-20)


def find(values: Array, mask: Mask, tolerance: float) -> Snapped | None:
    """Find the lattice of an array, if it has one that makes the stream smaller.

    Parameters
    ----------
    values : float32 or float64, folded shape
        Finite where the mask is 0.
    mask : uint8 of the same shape, or None
    tolerance : float
        0 if every bit must be kept.

    Returns
    -------
    Snapped or None
        A few values may be off their points by more than the tolerance allows: the caller checks and corrects them.
    """
    with np.errstate(all="ignore"):
        return _found(values, mask, tolerance)


def _found(values: Array, mask: Mask, tolerance: float) -> Snapped | None:
    framed = values.ndim > 2 and math.prod(values.shape[-2:]) >= _LEAST_FRAME
    rows = _rows(values, framed)
    masks = None if mask is None else _rows(mask, framed)
    middle = slice(len(rows) // 2, len(rows) // 2 + 1)
    part = (rows[middle], None if masks is None else masks[middle])
    first = _points_of(*part, _FIRST_LOOK)
    if first.size < 2:  # a frame without values, or all alike
        framed, part = False, (rows, masks)
        rows, masks = rows.reshape(1, -1), None if masks is None else masks.reshape(1, -1)
        first = _points_of(*part, _FIRST_LOOK)
    kind = _type_of(first, values.dtype)
    last_place = _last_place(first, kind)
    for ulp in (last_place, 8 * last_place):  # 8: the packing had an offset larger than the values
        least = max(_LEAST_UNIT * ulp, tolerance / _LARGEST_RATIO)
        if _fit(first, ulp, least) is not None:
            break
    else:
        return None
    size = _SAMPLE if tolerance else _LARGE_SAMPLE  # bits take more care than bounds
    points = _points_of(*part, size)
    ulp = max(ulp, _last_place(points, kind))
    least = max(_LEAST_UNIT * ulp, tolerance / _LARGEST_RATIO)
    fitted = _fit(points, ulp, least)
    if fitted is None:
        return None
    if framed:
        all_points = _points_of(rows, masks, size)
        ulp = max(ulp, _last_place(all_points, kind))
        least = max(_LEAST_UNIT * ulp, tolerance / _LARGEST_RATIO)
        whole = _fit(all_points, ulp, least)
        if whole is not None and whole.unit > 0.6 * fitted.unit:
            whole = _with_exact_origin(whole, all_points, values.dtype, kind)
            if (found := _on(whole, all_points, values, mask, tolerance)) is not None:
                return found
    fitted = _with_exact_origin(fitted, points, values.dtype, kind)
    lattice = _by_frame(fitted, rows, masks, ulp, kind) if framed else fitted
    if lattice is None or lattice.unit < least:
        return None
    return _on(lattice, points, values, mask, tolerance)


def _on(lattice: Lattice, points: Float64s, values: Array, mask: Mask, tolerance: float) -> Snapped | None:
    """Choose the step and put all values on the lattice; None if it does not pay or they are not on it."""
    choice = _choice(replace(lattice, bits=0, shifts=()), points, tolerance, values.dtype)
    if choice is None:
        return None
    divisor, units = choice
    return _snapped(lattice.divided(divisor), values, mask, tolerance, units)


# ---- the unit and the origin, from a sample --------------------------------------------------------------------


def _points_of(rows: Array, masks: Mask, most: int) -> Float64s:
    """Return different values of a sample, rising."""
    stride = max(1, rows.size // most)
    if stride % 2 == 0 and stride > 2:
        stride -= 1  # not always the same columns
    sample = rows.reshape(-1)[::stride]
    if masks is not None:
        sample = sample[masks.reshape(-1)[::stride] == 0]
    return np.unique(sample).astype(np.float64)


def _type_of(points: Float64s, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type whose rounding the values have: float64 may hold float32 numbers."""
    single = dtype == np.float32 or bool((points.astype(np.float32) == points).all())
    return np.dtype(np.float32 if single else np.float64)


def _last_place(points: Float64s, kind: np.dtype[Any]) -> float:
    """Return the unit in the last place of the largest value; in float64 there may be a few roundings."""
    if not points.size:
        return 0.0
    peak = max(abs(float(points[0])), abs(float(points[-1])))
    return float(np.spacing(kind.type(peak))) * (1 if kind == np.float32 else 4)


def _meant(rest: Float64s, x: Array, unit: float, kind: np.dtype[Any]) -> tuple[Float64s, Float64s]:
    """Return from where to where the unrounded value may lie, less whole units, for each line; all in units."""
    half = np.spacing(np.abs(x).astype(kind)).astype(np.float64)
    half /= 2 * unit
    return (rest - half).max(axis=-1), (rest + half).min(axis=-1)


def _fit(points: Float64s, ulp: float, least: float) -> Lattice | None:
    """Fit origin and unit to rising points: an approximate greatest common divisor of their gaps, then least squares."""
    if points.size < 2:
        return None
    noise = _NOISE * ulp
    gaps = np.sort(np.diff(points))
    gaps = gaps[:: max(1, gaps.size // 1024)]
    unit, doubt = float(gaps[0]), 2 * noise
    if not least <= unit < math.inf:
        return None
    before = 0
    for _ in range(64):
        k = np.rint(gaps / unit)
        allowed = 2 * noise + k * doubt
        sure = allowed < unit / 3
        rest = np.abs(gaps - k * unit)
        wrong = sure & (rest > allowed)
        if wrong.any():  # Euclid's step, with the smallest gap that asks for it
            i = int(np.argmax(wrong))
            unit, doubt, before = float(rest[i]), float(allowed[i]), 0
            if unit < least:
                return None
            continue
        count = int(np.count_nonzero(sure))
        if count <= before:
            break
        before = count
        squares = float(k[sure] @ k[sure])
        unit, doubt = float(k[sure] @ gaps[sure]) / squares, 4 * noise / math.sqrt(squares)
    fitted = _fit_line(points, unit, doubt, noise)
    return None if fitted is None or fitted.unit < least else fitted


def _fit_line(points: Float64s, unit: float, doubt: float, noise: float) -> Lattice | None:
    """Sharpen the unit on more and more points around the middle one, as far as their integers are certain."""
    x = points - points[points.size // 2]
    distance = np.abs(x)
    before, origin = 0, 0.0
    while True:
        near = distance * max(doubt, unit * 2.0**-50) <= unit * unit / 4
        count = int(np.count_nonzero(near))
        if count <= before:
            return None
        before = count
        k = np.rint((x[near] - origin) / unit)
        if k[-1] - k[0] >= 2 * _REACH:
            return None
        deviation = k - k.mean()
        squares = float(deviation @ deviation)
        if not squares:
            return None
        unit = float(deviation @ x[near]) / squares
        origin = float(x[near].mean() - unit * k.mean())
        doubt = 4 * noise / math.sqrt(squares)
        if not unit > 0:
            return None
        if count == x.size:
            break
    unit = _round_unit(unit, noise / max(1.0, float(k[-1] - k[0])))
    origin = float(np.mean(x - unit * k))
    if np.abs(x - unit * k - origin).max() > 2 * noise:
        return None
    return Lattice(float(points[points.size // 2]) + origin, unit)


def _round_unit(unit: float, doubt: float) -> float:
    """Return 2**e / 10**d for small d if that is meant: the units of GRIB, and decimals."""
    doubt = max(doubt, unit * 2.0**-48)
    for d in (0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3):
        scale = 10.0 ** abs(d)
        wide = unit * scale if d >= 0 else unit / scale
        power = 2.0 ** round(math.log2(wide)) if 0 < wide < math.inf else 0.0
        meant = power / scale if d >= 0 else power * scale
        if abs(meant - unit) <= doubt:
            return meant
    return unit


def _with_exact_origin(
    lattice: Lattice, points: Float64s, dtype: np.dtype[Any], kind: np.dtype[Any]
) -> Lattice:
    """Choose the origin that gives most points to the bit: the point with the finest last place, or a fitted one."""
    rest = (points - lattice.origin) / lattice.unit
    low, high = _meant(rest - np.rint(rest), points, lattice.unit, kind)
    middle = lattice.origin + lattice.unit * float(low + high) / 2
    best = lattice, -1
    for origin in (float(points[int(np.argmin(np.abs(points)))]), middle, lattice.origin):
        candidate = replace(lattice, origin=origin)
        k = candidate._indices(points.copy(), slice(0, 1))
        same = int(np.count_nonzero(candidate._points(k, slice(0, 1)).astype(dtype) == points))
        if same > best[1]:
            best = candidate, same
    return best[0]


def _choice(
    lattice: Lattice, points: Float64s, tolerance: float, dtype: np.dtype[Any]
) -> tuple[int, int] | None:
    """Return what to divide the unit by and the units of error then, for the largest step; None if no step pays."""
    if not tolerance:
        return 1, 0
    ratio = tolerance / lattice.unit * (1 + 2.0**-40)
    gains = {d: (2 * int(ratio * d) + 1) / (2 * ratio * d) for d in _DIVISORS}
    for divisor in sorted(gains, key=lambda d: d / 1000 - gains[d]):  # of about the same, the whole unit
        if gains[divisor] < _GAIN:
            break
        part, units = lattice.divided(divisor), int(ratio * divisor)
        wrong = 0
        for way in {-units, units}:
            k = part._indices(points.copy(), slice(0, 1)) + way
            found = part._points(k, slice(0, 1)).astype(dtype)
            wrong += int(np.count_nonzero(np.abs(found - points) > tolerance)) if units else 0
        if wrong * 512 <= points.size:
            return divisor, units
    return None


# ---- frames and values -----------------------------------------------------------------------------------------


def _rows(values: Array, framed: bool) -> Array:
    """View an array as (frames, values of a frame); as one frame if `framed` is not set."""
    return values.reshape(math.prod(values.shape[:-2]) if framed else 1, -1)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Cut (frames, values) into parts of at most `_BLOCK` values."""
    width = min(shape[1], _BLOCK)
    height = max(1, _BLOCK // max(1, width))
    for row, column in itertools.product(range(0, shape[0], height), range(0, shape[1], width)):
        yield slice(row, min(row + height, shape[0])), slice(column, column + width)


def _by_frame(lattice: Lattice, rows: Array, masks: Mask, ulp: float, kind: np.dtype[Any]) -> Lattice | None:
    """Find the shift of every frame; None if the frames do not have this unit, half of it, a quarter, or an eighth."""
    for _ in range(4):
        phases = _phases(lattice, rows, masks, 2 * _NOISE * ulp / lattice.unit, kind)
        if phases is not None:
            break
        lattice = replace(lattice, unit=lattice.unit / 2)
    else:
        return None
    accuracy = ulp / lattice.unit / 256
    for bits in range(_MAX_BITS + 1):
        shifts = np.rint(phases * (1 << bits))
        if (np.abs(shifts / (1 << bits) - phases) <= accuracy).all():
            break
    if not bits:
        return lattice
    return replace(lattice, bits=bits, shifts=tuple((shifts.astype(np.int64) % (1 << bits)).tolist()))


def _phases(
    lattice: Lattice, rows: Array, masks: Mask, spread: float, kind: np.dtype[Any]
) -> Float64s | None:
    """Return where in a unit each frame lies, from 0 to 1; None if the values of one are not a unit apart, or nearly."""
    stride = max(1, rows.shape[1] // _FIRST_LOOK) | 1
    phases = np.zeros(len(rows))
    for start in range(0, len(rows), 64):  # a part of every frame is enough: all values are compared later
        frames = slice(start, start + 64)
        x = rows[frames, ::stride].astype(np.float64)
        ordinary = np.ones(x.shape, bool) if masks is None else masks[frames, ::stride] == 0
        x[~ordinary] = lattice.origin
        values = x.copy()
        x -= lattice.origin
        x /= lattice.unit
        first = np.argmax(ordinary, axis=1)[:, None]
        anchors = np.take_along_axis(x, first, 1)[:, 0]
        x -= anchors[:, None]
        x -= np.rint(x)
        x[~ordinary] = 0
        if not (x.max(axis=1) - x.min(axis=1) <= 2 * spread).all():
            return None
        values[~ordinary] = np.take_along_axis(values, first, 1).repeat(x.shape[1], 1)[~ordinary]
        low, high = _meant(x, values, lattice.unit, kind)
        phases[frames] = np.where(ordinary.any(axis=1), anchors + (low + high) / 2, 0)
    return phases - np.floor(phases)


def _snapped(lattice: Lattice, values: Array, mask: Mask, tolerance: float, units: int) -> Snapped | None:
    """Put all values on the lattice; None if too many are off it."""
    framed = bool(lattice.shifts)
    loop = np.empty(values.shape, np.float32)
    rows, out = _rows(values, framed), _rows(loop, framed)
    masks = None if mask is None else _rows(mask, framed)
    allowed = tolerance - units * lattice.unit
    wrong, most = 0, values.size >> (10 if tolerance else 6)
    for block in _blocks(rows.shape):
        x = rows[block].astype(np.float64)
        k = lattice._indices(x.copy(), block[0])
        ordinary: Array | bool = True
        if masks is not None:
            ordinary = masks[block] == 0
            k[~ordinary] = 0
        if max(-float(k.min()), float(k.max())) > _REACH - 2:
            return None
        out[block] = k + _MIDDLE
        points = lattice._points(k, block[0]).astype(values.dtype)
        np.subtract(points, x, out=x)
        wrong += int(np.count_nonzero((np.abs(x, out=x) > allowed) & ordinary))
        if wrong > most:
            return None
    return Snapped(lattice, loop, units)
