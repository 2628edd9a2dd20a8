"""Verified float forecasts: a foundation model's next state as integers that encoder and decoder agree on, or an error.

::

    decoded states --model--> x (floats) --grid--> P = floor(x / g + 1/2) --flags, repair--> P --hashes right?--> P * g
                                                                                                |
                                                                                                +--> PredictionMismatchError

Idea: two machines that run the same float network differ in the last bits.  On a grid that is coarse against these, but fine
against the forecast's own error, their integers P differ in few places only, next to the ties.  The stream holds a hash of
every block of 64 x 64 integers; a decoder flips up to three of the 24 integers of a block that are nearest to a tie until the
hash is right, and gives up with an error that names the blocks where none fits.  What a frame refers to is P * g, never x;
decoded frames feed the next forecast, so nothing drifts; codes are parsed with contexts that know nothing of P, and the error
bound never rests on it.

The grid g, a power of two for each channel, is about the tolerance, or half of the forecast's own error on the first state of the
chunk if that is less: rounding should not add to what is left of the forecast at the finest level.  The encoder computes
every forecast twice in different numerics and declares four times the greatest difference, delta.  Up to half of the forecast's
error g is so coarse that delta / g is below 0.001, where mending suffices; above that, and where the second forecast could not
be mended, the places within delta of a tie are flagged with their parity.  A frame with delta / g above 0.01 is not forecast,
and a model all of whose frames are such is refused.

`Encoded` is what an encoder asks in the closed loop, `Decoded` what a decoder asks, `Stored` what it asks of a stream that was
made model-free.  Format: ``docs/format.md``, section 22.  Source: Ballé et al. 2019 (integer networks) state the problem; Tian
et al. 2023 send the places near ties.  Cost: that of the model, twice for the encoder; hashes of 0.016 bits a value.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..coordinates import Coordinates
from ..errors import (
    AESZError,
    InvalidConfigError,
    ModelInputError,
    PredictionMismatchError,
    UnstableForecastError,
)
from ..foundation import FoundationModel
from ..stream import Reader, Writer, corrupt

__all__ = ["BLOCK", "Decoded", "Encoded", "Forecast", "Stored"]

BLOCK = 64
"""Blocks are BLOCK x BLOCK integers, smaller at the ends of a frame."""

_HASH_BYTES, _WHOLE_HASH_BYTES, _DIGEST_BYTES = 8, 16, 32
_NEAREST, _MOST_FLIPS = 24, 3
_MARGIN = 4  # delta is so many times the greatest difference that was seen
_MOST_UNSTABLE = 0.01  # delta / g
_FLAGGED_FROM = 0.001  # delta / g
_LARGEST = 1 << 24  # integers below are exact as float32
_MOST_EXPONENT = 100
_MOST_FAILED = 64  # blocks; no more are tried
_SHOWN = 8
_MOST_LATENTS = 1 << 16

Integers = npt.NDArray[np.int32]
Values = npt.NDArray[np.float64]
Frame = npt.NDArray[np.float64]
FromIntegers = Callable[[Integers], bytes]
ToIntegers = Callable[[bytes, tuple[int, ...]], Integers]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The section ``forecast``, parsed.

    Attributes
    ----------
    exponents : int array, shape (channels,)
        The grid of a channel is ``2 ** exponent``.
    present : bool array, shape (frames,)
        Which frames have a forecast.
    digest : str or None
        Of the model; None if the integers are stored, and then `stored` has them.
    coordinates : Coordinates or None
        Of the region.
    latents : bytes
        A stream of integers, for models that have latents.
    flags : tuple of int64 arrays
        For each frame with a forecast ``2 * place + parity``, rising.
    hashes : bytes
        8 for each block of each frame with a forecast.
    whole : bytes
        Hash of all integers, in the order in which they are made.
    stored : bytes
        A stream of integers, shape (frames with a forecast, Y, X), those of the first channel first.
    """

    exponents: npt.NDArray[np.int16]
    present: npt.NDArray[np.bool_]
    digest: str | None = None
    coordinates: Coordinates | None = None
    latents: bytes = b""
    flags: tuple[npt.NDArray[np.int64], ...] = ()
    hashes: bytes = b""
    whole: bytes = b""
    stored: bytes = b""

    def pack(self) -> bytes:
        """Return the bytes of the section."""
        writer = Writer().pack("B", self.digest is None).varint(len(self.exponents))
        writer.raw(self.exponents.astype("<i2").tobytes())
        writer.raw(np.packbits(self.present, bitorder="little").tobytes())
        if self.digest is None:
            return writer.raw(self.stored).done()
        assert self.coordinates is not None
        writer.raw(bytes.fromhex(self.digest)).raw(self.coordinates.pack())
        writer.varint(len(self.latents)).raw(self.latents)
        for flags in self.flags:
            writer.varint(len(flags))
            for gap in np.diff(flags >> 1, prepend=-1) - 1 << 1 | flags & 1:
                writer.varint(int(gap))
        return writer.raw(self.hashes).raw(self.whole).done()

    @classmethod
    def unpack(cls, data: bytes, shape: tuple[int, int, int]) -> Self:
        """Read the section of a region of so many frames, latitudes and longitudes.

        Raises
        ------
        CorruptStreamError
            If no encoder writes it for this shape.
        """
        frames, rows, columns = shape
        reader = Reader(data, "forecast")
        kind, channels = reader.byte(), reader.varint()
        if kind > 1:
            raise corrupt("forecast: kind", str(kind), "0 or 1")
        if not 1 <= channels <= frames or frames % channels:
            raise corrupt("forecast: channels", str(channels), f"a divisor of {frames} frames")
        exponents = np.frombuffer(reader.take(2 * channels), "<i2").astype(np.int16)
        if np.abs(exponents.astype(np.int32)).max() > _MOST_EXPONENT:
            raise corrupt("forecast: grid", "2 to the power of one above 100", "-100 to 100")
        bits = np.unpackbits(np.frombuffer(reader.take(-(-frames // 8)), np.uint8), bitorder="little")
        present = bits[:frames].astype(np.bool_)
        if bits[frames:].any() or not present.any():
            raise corrupt(
                "forecast: frames", "none, or some beyond the last", "one or more of those that there are"
            )
        if kind == 1:
            return cls(exponents, present, stored=bytes(reader.rest()))
        digest = bytes(reader.take(_DIGEST_BYTES)).hex()
        coordinates = Coordinates.unpack(reader, channels)
        latents = bytes(reader.take(reader.varint()))
        flags = []
        for _ in range(int(present.sum())):
            count = reader.varint()
            if count > min(rows * columns, len(data)):
                raise corrupt("forecast: flags", str(count), f"at most {min(rows * columns, len(data))}")
            steps = np.fromiter((reader.varint() for _ in range(count)), np.int64, count)
            if count and (
                steps.max() > 2 * rows * columns
                or (places := np.cumsum((steps >> 1) + 1) - 1)[-1] >= rows * columns
            ):
                raise corrupt("forecast: flags", "a place beyond the frame", f"below {rows * columns}")
            flags.append(places << 1 | steps & 1 if count else steps)
        hashes = bytes(reader.take(_HASH_BYTES * _blocks(rows, columns) * len(flags)))
        whole = bytes(reader.take(_WHOLE_HASH_BYTES))
        reader.end()
        return cls(exponents, present, digest, coordinates, latents, tuple(flags), hashes, whole)


class _Loop(ABC):
    """What encoder and decoder share: which frames are decoded, and the states that a model is asked from."""

    def __init__(self, model: FoundationModel, coordinates: Coordinates, shape: tuple[int, int, int]) -> None:
        self.model, self.coordinates, self.shape = model, coordinates, shape
        self.channels = len(coordinates.channels)
        self.states = shape[0] // self.channels
        self._asked = np.zeros(shape[0], np.bool_)
        self._grids: dict[
            int, Integers
        ] = {}  # of frames whose state was forecast and that were not asked for yet
        self._state = -1
        self._hash = hashlib.blake2b(digest_size=_WHOLE_HASH_BYTES)

    def predict(self, frame: int, decoded: npt.NDArray[Any]) -> Frame | None:
        """Return what a frame refers to.

        Parameters
        ----------
        frame : int
            Its number; every frame is asked for once, in coding order.
        decoded : float array, shape (frames, Y, X)
            Where the frames that were asked for before are decoded, and only these.

        Returns
        -------
        float64, shape (Y, X), or None if this frame has no forecast
            Exact as float32.
        """
        state, channel = divmod(frame, self.channels)
        if state != self._state:
            self._state, self._grids = state, {}
            first = (state - self.model.history) * self.channels
            if first >= 0 and self._asked[first : state * self.channels].all():
                self._grids = self._forecast(state, decoded)
                for integers in self._grids.values():
                    self._hash.update(integers.astype("<i4").tobytes())
        self._asked[frame] = True
        if channel not in self._grids:
            return None
        return _times(self._grids[channel], self._grid(channel))

    @abstractmethod
    def _grid(self, channel: int) -> float:
        """Return the distance of the integers of a channel."""

    @abstractmethod
    def _forecast(self, state: int, decoded: npt.NDArray[Any]) -> dict[int, Integers]:
        """Return the integers of the channels of a state that have a forecast, rising."""

    def _inputs(self, state: int, decoded: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
        """Return the states before this one, None if the decoded frames are no states."""
        rows, columns = self.shape[1:]
        every = decoded.reshape(self.states, self.channels, rows, columns)
        with np.errstate(over="ignore"):
            states = every[state - self.model.history : state].astype(np.float32)
        return states if np.isfinite(states).all() else None

    def _ask(self, inputs: npt.NDArray[Any], state: int, *, other: bool = False) -> Values:
        """Run the model; float64, shape (channels, Y, X)."""
        try:
            step = self.model.step(inputs, self.coordinates.at(state), other=other)
            forecast = np.asarray(step).astype(np.float64)
        except AESZError:
            raise
        except Exception as error:  # of whatever library the model is written in
            raise ModelInputError.at(
                f"foundation model {self.model.name!r}",
                found=f"{type(error).__name__}: {error}",
                expected=f"a forecast of {self.coordinates.at(state).time}",
            ) from error
        if forecast.shape != (self.channels, *self.shape[1:]):
            raise ModelInputError.at(
                f"foundation model {self.model.name!r}",
                found=f"a forecast of shape {forecast.shape}",
                expected=f"{(self.channels, *self.shape[1:])}, as its input",
            )
        return forecast


class Encoded(_Loop):
    """The encoder's end: chooses the grid, measures how far another machine may be off, and writes the section.

    Parameters
    ----------
    model : FoundationModel
    coordinates : Coordinates
        Of the first state.
    data : float array, shape (frames, Y, X)
        What is coded; frames are states x channels in C order.
    mask : uint8 array of the same shape, or None
        1 where there is nothing to predict.
    tolerance : float
        Finer grids than a fraction of it are of no use.
    pack_integers : callable
        Codes an int32 array into a stream; for models with latents.

    Raises
    ------
    ModelInputError
        If the model is not for such states.
    InvalidConfigError
        If the coordinates are not those of such an array.

    Notes
    -----
    One object serves one pass of the closed loop; `fresh` makes another.
    """

    def __init__(
        self,
        model: FoundationModel,
        coordinates: Coordinates,
        data: npt.NDArray[Any],
        mask: npt.NDArray[np.uint8] | None,
        tolerance: float,
        pack_integers: FromIntegers,
    ) -> None:
        frames, rows, columns = data.shape
        if frames % len(coordinates.channels):
            raise InvalidConfigError.at(
                "coordinates.channels",
                found=f"{len(coordinates.channels)} channels",
                expected=f"as many as the array has, whose axes before the last two have {frames} places",
                remedy="the axes are (time, channel, latitude, longitude)",
            )
        super().__init__(model, coordinates, (frames, rows, columns))
        model.check(coordinates, (rows, columns))
        self._given = (model, coordinates, data, mask, tolerance, pack_integers)
        self._data, self._mask, self._tolerance = data, mask, tolerance
        empty = np.zeros(frames, np.bool_) if mask is None else np.all(mask.reshape(frames, -1), axis=1)
        self._empty: npt.NDArray[np.bool_] = np.asarray(empty)
        self._exponents: list[int | None] = [None] * self.channels
        self._present = np.zeros(frames, np.bool_)
        self._integers: dict[int, Integers] = {}
        self._flags: dict[int, npt.NDArray[np.int64]] = {}
        self._hashes: dict[int, bytes] = {}
        self._latents = self._described() if model.latents else None
        self._pack_integers = pack_integers
        self.unstable: dict[int, float] = {}
        """Frames that have no forecast because delta / g, which is here, was too large."""

    def fresh(self) -> Encoded:
        """Return an object for another pass."""
        return Encoded(*self._given)

    def sketch(self, state: int, before: npt.NDArray[Any]) -> Values | None:
        """Return the forecast of a state, shape (channels, Y, X), from given frames, for fits; leaves no trace."""
        inputs: npt.NDArray[Any] = before.reshape(self.model.history, self.channels, *self.shape[1:]).astype(
            np.float32
        )
        if self._latents is not None:
            inputs = self._latents[state]
        forecast = self._ask(inputs, state)
        if not np.isfinite(forecast).all():
            return None
        for channel in range(self.channels):  # as coarse as it may be
            exponent = self._exponent(channel, state * self.channels + channel, forecast[channel], 0.0)
            if exponent is not None:
                forecast[channel] = np.ldexp(np.rint(np.ldexp(forecast[channel], -exponent)), exponent)
        return forecast

    def section(self) -> Forecast | None:
        """Return what a decoder needs, after the closed loop has asked for every frame; None if no frame has a forecast."""
        if not self._present.any():
            return None
        frames = sorted(self._hashes)
        return Forecast(
            np.array([e or 0 for e in self._exponents], np.int16),
            self._present,
            self.model.digest,
            self.coordinates,
            b"" if self._latents is None else self._pack_integers(self._latents),
            tuple(self._flags[frame] for frame in frames),
            b"".join(self._hashes[frame] for frame in frames),
            self._hash.digest(),
        )

    def _described(self) -> Integers:
        """Return the latents of every state."""
        rows, columns = self.shape[1:]
        states = np.array(self._data.reshape(self.states, self.channels, rows, columns), np.float32)
        if self._mask is not None:
            states[self._mask.reshape(states.shape) != 0] = np.nan
            means = (
                np.nanmean(states, axis=(0, 2, 3), keepdims=True) if not self._empty.all() else np.float32(0)
            )
            states = np.where(np.isnan(states), np.nan_to_num(means), states)
        latents = [
            np.asarray(self.model.describe(state, self.coordinates.at(t))) for t, state in enumerate(states)
        ]
        return np.stack(latents).astype(np.int32).reshape(self.states, self.model.latents)

    def _grid(self, channel: int) -> float:
        exponent = self._exponents[channel]
        assert exponent is not None
        return math.ldexp(1.0, exponent)

    def _forecast(self, state: int, decoded: npt.NDArray[Any]) -> dict[int, Integers]:
        first, frames = state * self.channels, range(state * self.channels, (state + 1) * self.channels)
        before = self._empty[first - self.model.history * self.channels : first]
        if self._empty[first : first + self.channels].all() or before.any():  # a model makes nothing of gaps
            return {}
        inputs = self._inputs(state, decoded) if self._latents is None else self._latents[state]
        if inputs is None:
            return {}
        forecast, again = self._ask(inputs, state), self._ask(inputs, state, other=True)
        found: dict[int, Integers] = {}
        for channel, frame in enumerate(frames):
            if not self._empty[frame]:
                integers = self._on_grid(channel, frame, forecast[channel], again[channel])
                if integers is not None:
                    found[channel] = integers
        if not self._present.any() and self.unstable and not found:
            self._refuse()
        self._present[[first + channel for channel in found]] = True
        return found

    def _on_grid(self, channel: int, frame: int, forecast: Frame, again: Frame) -> Integers | None:
        """Choose the grid of a channel where there is none yet; make integers, their hashes and flags."""
        with np.errstate(invalid="ignore"):  # infinities
            difference = float(np.abs(forecast - again).max())
        if not math.isfinite(difference):
            return None
        delta = _MARGIN * difference
        exponent = self._exponents[channel]
        if exponent is None:
            exponent = self._exponent(channel, frame, forecast, delta)
            if exponent is None:
                return None
        grid = math.ldexp(1.0, exponent)
        if delta / grid > _MOST_UNSTABLE:
            self.unstable[frame] = delta / grid
            return None
        scaled = forecast / grid
        integers = _rounded(scaled)
        if integers is None:
            return None
        hashes = _hashes(integers)
        near = np.flatnonzero(np.abs(np.abs(scaled - integers) - 0.5) <= delta / grid)
        parities = near << 1 | (integers.reshape(-1)[near] & 1)
        for flags in (parities[:0], parities) if delta / grid <= _FLAGGED_FROM else (parities,):
            mended, failed, _ = _restored(again / grid, flags, hashes)
            if not failed and mended is not None and np.array_equal(mended, integers):
                break
        else:
            self.unstable[frame] = delta / grid
            return None
        self._exponents[channel] = exponent
        self._flags[frame], self._hashes[frame] = flags, hashes
        return integers

    def _exponent(self, channel: int, frame: int, forecast: Frame, delta: float) -> int | None:
        """Return the power of two nearest to the tolerance or half of the forecast's error, or a coarser one that is stable."""
        error = forecast - self._data[frame]
        ordinary = error if self._mask is None else error[self._mask[frame] == 0]
        if not ordinary.size:
            return None
        values = self._data[frame] if self._mask is None else self._data[frame][self._mask[frame] == 0]
        rmse = min(float(np.sqrt(np.mean(np.square(ordinary)))), float(np.std(values, dtype=np.float64)))
        if not math.isfinite(rmse):
            return None
        coarsest = max(rmse / 2, self._tolerance / 2)
        exponent = round(math.log2(min(coarsest, self._tolerance)))
        if delta:  # without flags if it may be, with flags if it must be
            exponent = max(exponent, min(_above(delta / _FLAGGED_FROM), round(math.log2(coarsest))))
            if math.ldexp(1.0, exponent) < delta / _MOST_UNSTABLE:
                exponent = _above(delta / _MOST_UNSTABLE)
                if math.ldexp(1.0, exponent) > 4 * coarsest:  # nothing would be left of the forecast
                    self.unstable[frame] = delta / coarsest
                    return None
        return exponent if abs(exponent) <= _MOST_EXPONENT else None

    def _refuse(self) -> None:
        frame, ratio = min(self.unstable.items(), key=lambda item: item[1])
        raise UnstableForecastError.at(
            f"foundation model {self.model.name!r}",
            found=f"forecasts that differ between two ways of computing them by {ratio / _MARGIN:.2g} of half their own error "
            f"(channel {self.coordinates.channels[frame % self.channels]!r}, the best)",
            expected=f"at most {_MOST_UNSTABLE / _MARGIN:g}",
            remedy="compute in float32 or float64, without autocast, bfloat16 or TF32; or encode without the model",
        )


class Decoded(_Loop):
    """The decoder's end: forecasts again, and lets nothing through that is not what the encoder had.

    Parameters
    ----------
    forecast : Forecast
        With a digest.
    model : FoundationModel
        The one with this digest.
    shape : (frames, Y, X)
    unpack_integers : callable
        Decodes a stream of int32 of a known shape.
    partial : bool
        Go on after a forecast that cannot be made right, with zeros in its place; `wrong` says which frames are wrong then.

    Raises
    ------
    ModelInputError
        If the model is not for such states.
    """

    def __init__(
        self,
        forecast: Forecast,
        model: FoundationModel,
        shape: tuple[int, int, int],
        unpack_integers: ToIntegers,
        partial: bool = False,
    ) -> None:
        assert forecast.coordinates is not None
        super().__init__(model, forecast.coordinates, shape)
        model.check(forecast.coordinates, shape[1:])
        if bool(model.latents) != bool(forecast.latents):
            raise corrupt(
                "forecast: latents",
                f"{len(forecast.latents)} bytes",
                f"those of a model with {model.latents} latents",
            )
        self._section, self._partial = forecast, partial
        self._latents = (
            unpack_integers(forecast.latents, (self.states, model.latents)) if model.latents else None
        )
        self._number = np.cumsum(forecast.present) - 1  # of a frame among those with a forecast
        self.wrong = np.zeros(shape[0], np.bool_)
        """Frames that are not what they should be, with `partial`."""
        self.kept: dict[int, Integers] | None = None
        """Set to a dictionary, it collects the integers by frame."""

    def finish(self) -> None:
        """Check, after the closed loop has asked for every frame, that all was used and all was right.

        Raises
        ------
        PredictionMismatchError, CorruptStreamError
        """
        if not self.wrong.any() and self._hash.digest() != self._section.whole:
            raise corrupt("forecast: hash", "another than that of all integers", "the same")

    def _grid(self, channel: int) -> float:
        return math.ldexp(1.0, int(self._section.exponents[channel]))

    def _forecast(self, state: int, decoded: npt.NDArray[Any]) -> dict[int, Integers]:
        frames = range(state * self.channels, (state + 1) * self.channels)
        wanted = [frame for frame in frames if self._section.present[frame]]
        if not wanted:
            return {}
        if self.wrong.any():  # nothing that follows can be trusted
            self.wrong[wanted] = True
            return {frame - frames[0]: np.zeros(self.shape[1:], np.int32) for frame in wanted}
        inputs = self._inputs(state, decoded) if self._latents is None else self._latents[state]
        if inputs is None:
            raise corrupt(
                "forecast: frames", f"a forecast of state {state} from values that are not finite", "none"
            )
        forecast = self._ask(inputs, state)
        found: dict[int, Integers] = {}
        failed: list[tuple[int, int]] = []
        size = _HASH_BYTES * _blocks(*self.shape[1:])
        for frame in wanted:
            number, channel = int(self._number[frame]), frame - frames[0]
            hashes = self._section.hashes[number * size : (number + 1) * size]
            scaled = forecast[channel] / self._grid(channel)
            integers, blocks, tried = _restored(
                scaled, self._section.flags[number], hashes, _MOST_FAILED - len(failed)
            )
            failed += [(frame, block) for block in blocks]
            if blocks:
                self.wrong[frame] = True
            found[channel] = np.zeros(self.shape[1:], np.int32) if integers is None or blocks else integers
            if len(failed) >= _MOST_FAILED or not tried:
                self.wrong[[later for later in wanted if later >= frame]] = True
                break
        if failed:
            if not self._partial:
                raise self._mismatch(failed)
            return {
                f - frames[0]: found.get(f - frames[0], np.zeros(self.shape[1:], np.int32)) for f in wanted
            }
        if self.kept is not None:
            self.kept |= {frames[0] + channel: integers for channel, integers in found.items()}
        return found

    def _mismatch(self, failed: list[tuple[int, int]]) -> PredictionMismatchError:
        rows, columns = self.shape[1:]
        across = -(-columns // BLOCK)
        shown = []
        for frame, block in failed[:_SHOWN]:
            y, x = block // across * BLOCK, block % across * BLOCK
            shown.append(
                f"state {frame // self.channels}, channel {self.coordinates.channels[frame % self.channels]!r}, "
                f"rows {y}:{min(y + BLOCK, rows)}, columns {x}:{min(x + BLOCK, columns)}"
            )
        more = f" and {len(failed) - _SHOWN} or more others" if len(failed) > _SHOWN else ""
        return PredictionMismatchError.at(
            f"foundation model {self.model.name!r}",
            found=f"forecasts other than the encoder's, beyond repair, in blocks: {'; '.join(shown)}{more}",
            expected="the same integers (no bfloat16, TF32 or autocast; the versions that the digest names)",
            remedy="decode where it was written and run 'aesz-codec materialise' there; nothing was returned",
        )


class Stored:
    """The decoder's end of a stream that was made model-free: the integers are in it.

    Parameters
    ----------
    forecast : Forecast
        Without a digest.
    shape : (frames, Y, X)
    unpack_integers : callable
        Decodes a stream of int32 of a known shape.
    """

    def __init__(self, forecast: Forecast, shape: tuple[int, int, int], unpack_integers: ToIntegers) -> None:
        self._section = forecast
        self._number = {frame: number for number, frame in enumerate(_by_channel(forecast))}
        self._integers = unpack_integers(forecast.stored, (int(forecast.present.sum()), *shape[1:]))
        self.wrong = np.zeros(shape[0], np.bool_)

    def predict(self, frame: int, decoded: npt.NDArray[Any]) -> Frame | None:
        """See `Decoded`."""
        if not self._section.present[frame]:
            return None
        exponent = int(self._section.exponents[frame % len(self._section.exponents)])
        return _times(self._integers[self._number[frame]], math.ldexp(1.0, exponent))

    def finish(self) -> None:
        """See `Decoded`."""


def stored(forecast: Forecast, kept: dict[int, Integers], pack_integers: FromIntegers) -> Forecast:
    """Return the section with the integers instead of the model."""
    integers = np.stack([kept[frame] for frame in _by_channel(forecast)])
    return Forecast(forecast.exponents, forecast.present, stored=pack_integers(integers))


def _above(value: float) -> int:
    """Return the exponent of the least power of two that is not below a value."""
    return math.ceil(math.log2(value))


def _by_channel(forecast: Forecast) -> list[int]:
    channels = len(forecast.exponents)
    return sorted(np.flatnonzero(forecast.present).tolist(), key=lambda frame: (frame % channels, frame))


# ---- integers --------------------------------------------------------------------------------------------------


def _times(integers: Integers, grid: float) -> Frame:
    return np.asarray(integers * grid, np.float64)


def _rounded(scaled: Frame) -> Integers | None:
    """Return the nearest integers, halves up; None if one is too large, or none at all."""
    if not max(float(scaled.max()), -float(scaled.min())) < _LARGEST - 2:  # so for NaN
        return None
    return np.floor(scaled + 0.5).astype(np.int32)


def _other(scaled: Frame, nearest: Integers) -> Integers:
    """Return the next nearest integers."""
    return nearest + np.where(scaled >= nearest, np.int32(1), np.int32(-1))


def _blocks(rows: int, columns: int) -> int:
    return -(-rows // BLOCK) * -(-columns // BLOCK)


def _places(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    starts = itertools.product(*(range(0, n, BLOCK) for n in shape))
    return [(slice(y, y + BLOCK), slice(x, x + BLOCK)) for y, x in starts]


def _hash(block: npt.NDArray[Any]) -> bytes:
    return hashlib.blake2b(block.tobytes(), digest_size=_HASH_BYTES).digest()


def _hashes(integers: Integers) -> bytes:
    little = integers.astype("<i4")
    return b"".join(_hash(little[place]) for place in _places(little.shape))


def _restored(
    scaled: Frame, flags: npt.NDArray[np.int64], hashes: bytes, most: int = _MOST_FAILED
) -> tuple[Integers | None, list[int], bool]:
    """Make the integers of a forecast those that the hashes are of.

    Returns
    -------
    integers : None if the forecast has no integers
    failed : numbers of the blocks that could not be made right
    tried : whether every block was
    """
    integers = _rounded(scaled)
    if integers is None:
        return None, list(range(min(most, _blocks(*scaled.shape)))), False
    places, flat = flags >> 1, integers.reshape(-1)
    fixed = np.zeros(integers.shape, np.bool_)
    fixed.reshape(-1)[places] = True
    other = _other(scaled.reshape(-1)[places], flat[places])
    flat[places] = np.where(flat[places] & 1 == flags & 1, flat[places], other)
    failed: list[int] = []
    for number, place in enumerate(_places(integers.shape)):
        block = integers[place].astype("<i4")
        expected = hashes[number * _HASH_BYTES : (number + 1) * _HASH_BYTES]
        if _hash(block) == expected:
            continue
        mended = _mended(block, scaled[place], fixed[place], expected)
        if mended is None:
            failed.append(number)
            if len(failed) >= most:
                return integers, failed, False
        else:
            integers[place] = mended
    return integers, failed, True


def _mended(
    block: npt.NDArray[Any], scaled: Frame, fixed: npt.NDArray[np.bool_], expected: bytes
) -> npt.NDArray[Any] | None:
    """Flip up to three of the integers nearest to a tie until the hash is right."""
    distance = np.where(fixed, -1.0, np.abs(scaled - block)).reshape(-1)
    ranked = np.argsort(distance, kind="stable")[::-1]
    ranked = ranked[: min(_NEAREST, int((~fixed).sum()))]  # flagged ones are known
    flat, flipped = block.reshape(-1), _other(scaled, block).reshape(-1)
    for count in range(1, _MOST_FLIPS + 1):
        for chosen in itertools.combinations(ranked.tolist(), count):
            places = [*chosen]
            before = flat[places]
            flat[places] = flipped[places]
            if _hash(flat) == expected:
                return block
            flat[places] = before
    return None
