"""Where and when the values of an array are: `Coordinates`, for models that need to know.

An array of states has the axes (time, channel, latitude, longitude), or (time, latitude, longitude) for one channel.  Time,
latitude and longitude advance in equal steps, so that few numbers say all; they are read off a dataset by `Coordinates.of`,
lie in the configuration of a codec (`to_json`), and in each stream that needs them (`pack`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from .errors import InvalidConfigError
from .stream import Reader, Writer, corrupt

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Coordinates", "split_channel"]

_EPOCH = datetime(1970, 1, 1)
_MOST_SECONDS = (datetime(9999, 1, 1) - _EPOCH).total_seconds()
_LEAST_SECONDS = (datetime(1, 1, 1) - _EPOCH).total_seconds()
_MOST_CHANNELS = 4096
_MOST_NAME = 100  # bytes
_EQUAL = 1e-3  # steps of an axis differ by less than this part of a step, as float32 coordinates do
_KEYS = ("channels", "start", "step", "latitude", "longitude")


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of an array of states.

    Attributes
    ----------
    channels : tuple of str
        Names along the channel axis, in order; ``name@level`` where there are levels (hPa), as in ``("2t", "t@850")``.
    start : int
        Time of the first state: seconds since 1970-01-01T00 UTC, in the proleptic Gregorian calendar. Given as text (ISO 8601), a
        `datetime.datetime` (UTC) or a `numpy.datetime64`, it becomes that.
    step : int
        Seconds from one state to the next, > 0.
    latitude, longitude : (float, float)
        Of the first point along the axis, and the step to the next, in degrees.

    Raises
    ------
    InvalidConfigError
        If a value is none that the attribute can have.
    """

    channels: tuple[str, ...]
    start: int
    step: int
    latitude: tuple[float, float]
    longitude: tuple[float, float]

    def __post_init__(self) -> None:
        channels = self.channels
        if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
            raise _invalid("channels", repr(channels)[:100], "a name for each channel")
        if len(channels) > _MOST_CHANNELS or len(set(channels)) != len(channels):
            raise _invalid("channels", f"{len(channels)} names", f"up to {_MOST_CHANNELS}, no two the same")
        for channel in channels:
            if not isinstance(channel, str) or not 1 <= len(channel.encode("utf-8", "replace")) <= _MOST_NAME:
                raise _invalid("channels", repr(channel)[:100], f"names of 1 to {_MOST_NAME} bytes")
            split_channel(channel)
        object.__setattr__(self, "channels", tuple(channels))
        object.__setattr__(self, "start", _seconds(self.start))
        if type(self.step) is not int or not 0 < self.step < 1 << 32:
            raise _invalid("step", repr(self.step)[:100], "a whole number of seconds > 0, below 2^32")
        for axis in ("latitude", "longitude"):
            pair = getattr(self, axis)
            pair = tuple(pair) if isinstance(pair, list | tuple) else ()
            if len(pair) != 2 or not all(isinstance(x, int | float) and math.isfinite(x) for x in pair):
                raise _invalid(axis, repr(getattr(self, axis))[:100], "[first, step] in degrees")
            if abs(pair[0]) > 1000 or not 0 < abs(pair[1]) < 1000:
                raise _invalid(axis, repr(pair), "[first, step] in degrees, the step not 0")
            object.__setattr__(self, axis, (float(pair[0]), float(pair[1])))

    @property
    def time(self) -> datetime:
        """Time of the first state, UTC, without a time zone."""
        return _EPOCH + timedelta(seconds=self.start)

    def at(self, state: int) -> Coordinates:
        """Return the coordinates of the states from this one on."""
        return replace(self, start=self.start + state * self.step)

    def latitudes(self, count: int) -> npt.NDArray[np.float64]:
        """Return the latitudes of so many points."""
        return np.asarray(self.latitude[0] + self.latitude[1] * np.arange(count), np.float64)

    def longitudes(self, count: int) -> npt.NDArray[np.float64]:
        """Return the longitudes of so many points, from 0 to 360."""
        return np.asarray((self.longitude[0] + self.longitude[1] * np.arange(count)) % 360.0, np.float64)

    @classmethod
    def of(cls, array: xr.DataArray, channels: Sequence[str] | None = None) -> Coordinates:
        """Read them off an array with the dimensions (time, channel, latitude, longitude), or without a channel.

        Parameters
        ----------
        array : xarray.DataArray
            The last two dimensions are latitude and longitude, the first is time, whatever they are called.
        channels : sequence of str, optional
            Names of the channels; without, those of the coordinate of the channel axis, or the array's own name.

        Returns
        -------
        Coordinates
            A single time has a step of 1 s.

        Raises
        ------
        InvalidConfigError
            If an axis has no coordinate or one whose steps are not equal, or channels have no names.
        """
        if array.ndim not in (3, 4):
            raise _invalid(
                "array",
                f"dimensions {array.dims}",
                "(time, channel, latitude, longitude), or without channel",
            )
        time, latitude, longitude = (array.dims[axis] for axis in (0, -2, -1))
        if channels is None:
            if array.ndim == 3:
                channels = (str(array.name),)
            else:
                names = array.coords.get(array.dims[1])
                if names is None or names.dtype.kind not in "OUT":
                    raise _invalid(
                        f"channels of {array.name}",
                        "no names along the channel axis",
                        "a coordinate of texts",
                        "give channels",
                    )
                channels = tuple(str(name) for name in names.values)
        count = 1 if array.ndim == 3 else array.shape[1]
        if len(channels) != count:
            raise _invalid("channels", f"{len(channels)} names", f"{count}, as the array has channels")
        start, step = _time_axis(_coordinate(array, time))
        return cls(
            tuple(channels),
            start,
            step,
            _degrees(_coordinate(array, latitude)),
            _degrees(_coordinate(array, longitude)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "channels": list(self.channels),
            "start": self.time.isoformat(),
            "step": self.step,
            "latitude": list(self.latitude),
            "longitude": list(self.longitude),
        }

    @classmethod
    def from_json(cls, value: Any) -> Coordinates:
        """Build from what `to_json` returned; a `Coordinates` is passed through.

        Raises
        ------
        InvalidConfigError
            If a key is missing or unknown, or a value is none that it can have.
        """
        if isinstance(value, Coordinates):
            return value
        if not isinstance(value, Mapping) or set(value) != set(_KEYS):
            found = f"keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else repr(value)
            raise _invalid("coordinates", found[:100], f"an object with {', '.join(_KEYS)}")
        return cls(**value)

    def pack(self) -> bytes:
        """Return the bytes of ``docs/format.md``, section 22."""
        writer = Writer().pack("qI4d", self.start, self.step, *self.latitude, *self.longitude)
        for channel in self.channels:
            name = channel.encode()
            writer.varint(len(name)).raw(name)
        return writer.done()

    @classmethod
    def unpack(cls, reader: Reader, channels: int) -> Self:
        """Read what `pack` wrote, with the names of so many channels.

        Raises
        ------
        CorruptStreamError
            If no encoder writes this.
        """
        start, step, *degrees = reader.unpack("qI4d")
        names = []
        for _ in range(channels):
            length = reader.varint()
            if not 1 <= length <= _MOST_NAME:
                raise corrupt("forecast: channel", f"a name of {length} bytes", f"1 to {_MOST_NAME}")
            try:
                names.append(bytes(reader.take(length)).decode())
            except UnicodeDecodeError:
                raise corrupt("forecast: channel", "bytes that are no text", "UTF-8") from None
        try:
            return cls(
                tuple(names), int(start), int(step), (degrees[0], degrees[1]), (degrees[2], degrees[3])
            )
        except InvalidConfigError as error:
            raise corrupt("forecast: coordinates", str(error), "what an encoder writes") from None


def split_channel(channel: str) -> tuple[str, float | None]:
    """Return name and level (hPa) of a channel.

    Examples
    --------
    >>> split_channel("t@850"), split_channel("2t")
    (('t', 850.0), ('2t', None))

    Raises
    ------
    InvalidConfigError
        If there is nothing before ``@``, or no number above 0 behind it.
    """
    name, separator, text = channel.partition("@")
    try:
        level = float(text) if separator else None
    except ValueError:
        level = math.nan
    if not name or (level is not None and not 0 < level < math.inf):
        raise _invalid(
            "channels", repr(channel)[:100], "a name, or name@level with the level in hPa, such as 't@850'"
        )
    return name, level


def _seconds(given: Any) -> int:
    """Turn a time into seconds since 1970."""
    try:
        if isinstance(given, str):
            given = datetime.fromisoformat(given.removesuffix("Z"))
        if isinstance(given, np.datetime64):
            given = given.astype("datetime64[s]").item()
        if isinstance(given, datetime) and given.tzinfo is None:
            given = int((given - _EPOCH).total_seconds())
    except (ValueError, OverflowError):
        pass
    if type(given) is not int or not _LEAST_SECONDS <= given <= _MOST_SECONDS:
        raise _invalid(
            "start", repr(given)[:100], "a time from year 1 to 9998, UTC, such as '2020-06-01T12:00:00'"
        )
    return given


def _coordinate(array: xr.DataArray, dim: Any) -> xr.DataArray:
    if dim not in array.coords or not array.sizes[dim]:
        raise _invalid(str(dim), "no coordinate", f"one for the dimension {dim!r} of {array.name}")
    coordinate: xr.DataArray = array.coords[dim]
    return coordinate


def _time_axis(coordinate: xr.DataArray) -> tuple[int, int]:
    import xarray as xr

    name = str(coordinate.name)
    if coordinate.dtype.kind in "iuf" and " since " in str(coordinate.attrs.get("units", "")):
        coordinate = xr.decode_cf(coordinate.drop_vars(coordinate.coords).to_dataset(name="t_"))["t_"]
    if coordinate.dtype.kind != "M" or np.isnat(coordinate.values).any():
        raise _invalid(
            name, f"{coordinate.dtype}, or times that are missing", "times of the Gregorian calendar"
        )
    seconds = coordinate.values.astype("datetime64[ms]").astype(np.int64)
    steps = np.unique(np.diff(seconds))
    if len(steps) > 1 or (steps <= 0).any() or (steps % 1000).any() or seconds[0] % 1000:
        shown = ", ".join(f"{s / 1000:g}" for s in steps[:4])
        raise _invalid(
            name,
            f"steps of {shown} s",
            "equal steps of whole seconds, forwards",
            "select or interpolate times of equal distance",
        )
    return int(seconds[0]) // 1000, int(steps[0]) // 1000 if len(steps) else 1


def _degrees(coordinate: xr.DataArray) -> tuple[float, float]:
    values = np.asarray(coordinate.values)
    if values.dtype.kind not in "iuf" or values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise _invalid(
            str(coordinate.name), f"{values.dtype}, shape {values.shape}", "two or more numbers of degrees"
        )
    step = (float(values[-1]) - float(values[0])) / (len(values) - 1)
    if not step or np.abs(np.diff(values.astype(np.float64)) - step).max() > _EQUAL * abs(step):
        raise _invalid(
            str(coordinate.name),
            "steps that are not equal",
            "equal ones: a regular grid",
            "interpolate to a regular grid",
        )
    return float(values[0]), _plain(step)


def _plain(step: float) -> float:
    """Drop the digits that float32 coordinates add to a step."""
    short = float(f"{step:.6g}")
    return short if abs(short - step) <= 2e-7 * abs(step) else step


def _invalid(field: str, found: str, expected: str, remedy: str = "") -> InvalidConfigError:
    return InvalidConfigError.at(field, found=found, expected=expected, remedy=remedy)
