"""Frames that refer to the forecasts of a foundation model, refined by multi-level interpolation.

Idea: as `frames`, one-sided: the states of a chunk are coded one after the other, channel by channel; a frame takes of the
forecast, made of decoded states and verified (`verified`), what interpolation inside it could not have guessed, with a weight
for every level, zero allowed.  Frames without a forecast refer to the state before.

::

    state 0   state 1  ...  state h  ...      0: stands alone; before h = history: refer to the state before (set 2);
    alone     set 2         set 1             from there on to the forecast (set 1)

Format: ``docs/format.md``, section 22.  Cost: that of the model in both directions; the rest is as cheap as interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from .. import _core
from ..stream import Coder, Method, Reader, Writer, corrupt
from .interpolation import LEAST_LENGTH
from .verified import Decoded, Encoded, Stored

if TYPE_CHECKING:
    from . import Floats, Mask, Quantizer

__all__ = ["Modelled"]

_TAG = 255  # in the place of a forecaster's number
_ALONE, _FORECAST, _BEFORE = 0, 1, 2  # sets of weights
_STATES, _FRAMES = 2, 6  # that weights are fitted to


@dataclass(frozen=True, slots=True)
class Modelled:
    """Choices of frames that refer to forecasts.

    Attributes
    ----------
    batch : int
        Leading axes that are frames.
    channels : int
        Frames of a state.
    history : int
        States before the first that may have a forecast.
    end : Encoded, Decoded, Stored or None
        Whom to ask for forecasts, in one pass; None to describe only.
    coder : Coder
    told : dict or None
        Collects by frame what those of a decoder refer to, where it is one.
    """

    batch: int
    channels: int
    history: int
    end: Encoded | Decoded | Stored | None = None
    coder: Coder = Coder.ADAPTIVE
    told: dict[int, Floats] | None = field(default=None, compare=False)

    def encode(self, data: Floats, mask: Mask, quantizer: Quantizer) -> tuple[bytes, bytes]:
        """Return the codes and the outliers; `end` knows its section afterwards."""
        end = self.end
        assert isinstance(end, Encoded)
        out = np.empty_like(data)
        codes, outliers = _core.encode_frames(
            data,
            mask,
            quantizer.tolerance,
            quantizer.step,
            quantizer.offset,
            self.batch,
            self.coder,
            16,
            16,
            None,
            self._schedule(data.shape),
            self._references(end, out),
            out,
            self._examples(data, mask, quantizer, end),
        )
        return codes, outliers

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """Fill `out`; at masked places it gets predictions, in frames that went wrong NaN."""
        end = self.end
        assert isinstance(end, Decoded | Stored)
        if out.ndim - self.batch != 2 or min(out.shape[-2:]) < LEAST_LENGTH:
            raise corrupt(
                "plan", f"frames of {out.shape[self.batch :]}", f"two axes of at least {LEAST_LENGTH}"
            )
        _core.decode_frames(
            codes,
            outliers,
            out,
            mask,
            step,
            offset,
            self.batch,
            self.coder,
            16,
            16,
            None,
            self._schedule(out.shape),
            self._references(end, out),
        )
        end.finish()
        out.reshape(-1, *out.shape[self.batch :])[end.wrong] = np.nan

    def _set(self, state: int) -> int:
        return _FORECAST if state >= self.history else _BEFORE if state else _ALONE

    def _schedule(self, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Return a row for every frame, in the order of coding: frame, set, the frame whose codes are contexts or -1, -1."""
        frames = np.arange(math.prod(shape[: self.batch]))
        sets = [self._set(frame // self.channels) for frame in frames.tolist()]
        before = np.where((frames >= self.channels) & (np.array(sets) != _ALONE), frames - self.channels, -1)
        return np.stack([frames, sets, before, np.full(len(frames), -1)], axis=1).astype(np.int64)

    def _references(self, end: Encoded | Decoded | Stored, out: Floats) -> Callable[[int], Floats]:
        """Return what the native core asks for the reference of a frame."""
        frames = out.reshape(-1, *out.shape[self.batch :])
        seen = frames.view()
        seen.flags.writeable = False
        asked = -1

        def reference(frame: int) -> Floats:
            nonlocal asked
            for earlier in range(asked + 1, frame):  # those that stand alone are not asked for
                end.predict(earlier, seen)
            asked = frame
            forecast = end.predict(frame, seen)
            if forecast is not None:
                made = cast("Floats", forecast.astype(out.dtype))
                if self.told is not None:
                    self.told[frame] = made
                return made
            if frame >= self.channels:
                return cast("Floats", frames[frame - self.channels])
            return cast("Floats", np.zeros_like(frames[0]))

        return reference

    def _examples(
        self, data: Floats, mask: Mask, quantizer: Quantizer, end: Encoded
    ) -> list[tuple[int, int, Floats | None]]:
        """Return (frame, set, reference) of some frames, from states as a quantizer might have left them."""
        frames = data.reshape(-1, *data.shape[self.batch :])
        states = len(frames) // self.channels

        def quantized(first: int, last: int) -> npt.NDArray[Any]:
            values = np.rint(frames[first:last] / quantizer.step) * quantizer.step
            if mask is not None:
                values[mask.reshape(frames.shape)[first:last] != 0] = quantizer.offset
            return np.nan_to_num(values, nan=quantizer.offset).astype(data.dtype)

        planes = sorted({(2 * i + 1) * self.channels // (2 * _FRAMES) for i in range(_FRAMES)})
        examples: list[tuple[int, int, Floats | None]] = []
        count = min(_STATES, states - self.history)
        for i in range(count):
            state = self.history + (2 * i + 1) * (states - self.history) // (2 * count)
            before = quantized((state - self.history) * self.channels, state * self.channels)
            forecast = end.sketch(state, before)
            for plane in planes[i % 2 :: 2] or planes:
                if forecast is not None:
                    reference = cast("Floats", np.ascontiguousarray(forecast[plane], data.dtype))
                    examples.append((state * self.channels + plane, _FORECAST, reference))
        for plane in planes if self.history > 1 and states > 1 else ():
            reference = cast("Floats", quantized(plane, plane + 1)[0])
            examples.append((self.channels + plane, _BEFORE, reference))
        if self.history:
            examples += [(plane, _ALONE, None) for plane in planes]
        return examples

    def pack(self, step: float, offset: float) -> bytes:
        """Return the section ``plan``."""
        return (
            Writer()
            .pack("ddBBBB", step, offset, self.batch, self.coder << 2, 0, _TAG)
            .varint(self.history)
            .done()
        )

    @staticmethod
    def meant(method: Method, plan: bytes) -> bool:
        """Say whether a stream of this method and plan is of this kind."""
        return method is Method.FRAMES and len(plan) > 19 and plan[19] == _TAG

    @classmethod
    def unpack(cls, plan: Reader, channels: int) -> tuple[Self, float, float]:
        """Read the section ``plan``, but for `end`; the number of channels is in the section ``forecast``."""
        step, offset = plan.unpack("dd")
        batch, flags, exponent, tag = plan.take(4)
        history = plan.varint()
        plan.end()
        if flags & ~12 or not batch or exponent or tag != _TAG or history > 64:
            raise corrupt(
                "plan",
                f"{batch} frame axes, flags {flags}, {exponent}, {history} states",
                "at least 1, a coder, 0, up to 64",
            )
        return cls(batch, channels, history, None, Coder(flags >> 2 & 3)), step, offset

    def describe(self) -> dict[str, Any]:
        """Return the choices as JSON values."""
        return {
            "frame_axes": self.batch,
            "order": "one-sided",
            "forecaster": "foundation model",
            "channels": self.channels,
            "coder": self.coder.name.lower(),
        }
