"""Causal least squares in closed loop.

Idea: predict each value from decoded ones that precede it in C order, in space and in earlier frames, with weights fitted to the
chunk.  Lorenzo's predictor is the special case west + north - northwest.

::

    frame before        frame
      . b .            n n n n n        weights: least squares on the original, as if it carried the quantizer's noise;
      b b b            n n n n n        quantized, in the stream (2 to 18 integers)
      . b .            w w x

With a model (a pack of the kind ``forecaster``) every point of one grid has taps, weights and an offset of its own, learned from
years of other frames: what wind, coasts and mountains make of the frames before differs from place to place.  Nothing is fitted
then, and no weights are in the stream.

Papers: Ibarria et al. 2003 (Lorenzo), Tao et al. 2017 (SZ).  Format: ``docs/format.md``, sections 11 and 20.  Choose it for tight
bounds, from about three bits a value, and for hourly series; about 50 ns a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .. import _core
from ..errors import InvalidModelError
from ..packs import Pack, plain
from ..stream import Coder, Method, Reader, Writer, corrupt
from .coders import handicap_of
from .networks import built_once

if TYPE_CHECKING:
    from . import Floats, Mask, Quantizer

__all__ = ["Causal"]

_MODEL_BIT = 16  # of the plan's coder
_SHIFTS = ("shift", "offset_shift", "spread_shift")
_PARTS = {"taps": np.dtype(np.int8), "weights": np.dtype(np.int16), "offset": np.dtype(np.int32)}
_MOST_SETS = 8


@built_once
def _forecaster(pack: Pack) -> _core.Forecaster:
    """Build what a pack of the kind ``forecaster`` holds."""
    network = pack.manifest["network"]
    field = f"pack {pack.id!r}: network"
    if not isinstance(network, Mapping) or set(network) != {"grid", "ages", *_SHIFTS}:
        raise InvalidModelError.at(
            field,
            found=repr(plain(network))[:80],
            expected=f"an object with grid, ages, {', '.join(_SHIFTS)}",
        )
    grid, ages, shifts = network["grid"], network["ages"], [network[key] for key in _SHIFTS]
    lists = isinstance(grid, tuple) and isinstance(ages, tuple)
    if not lists or len(grid) != 2 or not all(map(_integer, (*grid, *ages, *shifts))):
        raise InvalidModelError.at(
            field,
            found=repr(plain(network))[:80],
            expected=f"grid: two integers, ages: some; one each: {', '.join(_SHIFTS)}",
        )
    if not 1 <= len(ages) <= _MOST_SETS:
        raise InvalidModelError.at(
            f"{field}.ages", found=f"{len(ages)} sets of taps", expected=f"1 to {_MOST_SETS}"
        )
    names = {f"{part}{s}": dtype for s in range(len(ages)) for part, dtype in _PARTS.items()}
    names["spread"] = np.dtype(np.int16)
    found = {name: tensor.dtype for name, tensor in pack.tensors.items()}
    if found != names:
        raise InvalidModelError.at(
            f"pack {pack.id!r}: tensors",
            found=", ".join(f"{name}: {dtype}" for name, dtype in sorted(found.items())),
            expected=", ".join(f"{name}: {dtype}" for name, dtype in names.items()),
        )
    try:
        built = _core.Forecaster(*grid)
        for s, age in enumerate(ages):
            taps, weights, offset = (pack.tensors[f"{part}{s}"] for part in _PARTS)
            built.add(age, taps, weights, shifts[0], offset, shifts[1])  # type: ignore[arg-type]
        built.set_spread(pack.tensors["spread"], shifts[2])  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidModelError.at(
            f"pack {pack.id!r}",
            found=str(error),
            expected="taps that precede their points (docs/format.md, section 20)",
        ) from None
    return built


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


@dataclass(frozen=True, slots=True)
class Causal:
    """Has one choice besides its weights, which are among the codes or in the model.

    Attributes
    ----------
    coder : Coder
        As in `Interpolation`.
    model : Pack or None
        Weights for every point of its grid; not with ``Coder.ADAPTIVE_ZEROS``.
    """

    coder: Coder = Coder.ADAPTIVE
    model: Pack | None = None

    method: ClassVar[Method] = Method.CAUSAL
    kind: ClassVar[str | None] = "forecaster"

    @property
    def whole(self) -> bool:
        """See `Predictor`: a model knows places, and a part of an array has others."""
        return self.model is not None

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterator[Self]:
        """See `Predictor`: every model for frames of this shape, but for ``fast``."""
        yield cls(Coder.STATIC if effort == "fast" else Coder.ADAPTIVE)
        if effort != "fast" and len(shape) in (2, 3):
            yield from (cls(model=model) for model in models if _forecaster(model).grid == shape[-2:])

    @classmethod
    def prepare(cls, pack: Pack) -> None:
        """See `Learned`."""
        _forecaster(pack)

    def without_model(self, effort: str) -> Self | None:
        """See `Learned`."""
        return replace(self, model=None)

    def for_rate(self, rate: float) -> Self:
        """See `Learned`."""
        return self

    def refinements(self, effort: str, rate: float) -> Iterator[Self]:
        """See `Predictor`: for ``default``, the fast coder."""
        if effort == "default" and self.model is None:
            yield replace(self, coder=Coder.STATIC)

    def side_bytes(self, shape: tuple[int, ...]) -> float:
        """See `Predictor`: the weights."""
        return 0.0 if self.model else 1.0 * (2, 8, 15, 19)[len(shape) - 1]

    def handicap(self, effort: str, rate: float, share: float) -> float:
        """See `Predictor`: at low rates a sample makes too little of interpolation, whose coarse levels cost most there."""
        slower = 1.1 if effort == "fast" else handicap_of(self.coder, effort, share)
        return slower * (1.25 if rate < 1.2 else 1.0)

    def final(self, effort: str) -> Self:
        """See `Predictor`."""
        return replace(self, coder=Coder.MIXED) if effort == "max" else self

    def encode(self, data: Floats, mask: Mask, quantizer: Quantizer) -> tuple[bytes, bytes]:
        """See `Predictor`."""
        codes, outliers = _core.encode_causal(
            data, mask, quantizer.tolerance, quantizer.step, quantizer.offset, self.coder, self._weights()
        )
        return codes, outliers

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """See `Predictor`."""
        weights = self._weights()
        if weights is not None and (out.ndim not in (2, 3) or weights.grid != out.shape[-2:]):
            raise corrupt("model", f"one for the grid {weights.grid}", f"one for the shape {out.shape}")
        _core.decode_causal(codes, outliers, out, mask, step, offset, self.coder, weights)

    def _weights(self) -> _core.Forecaster | None:
        return None if self.model is None else _forecaster(self.model)

    def pack(self, step: float, offset: float) -> bytes:
        """See `Predictor`."""
        return Writer().pack("ddB", step, offset, self.coder | _MODEL_BIT * (self.model is not None)).done()

    @classmethod
    def unpack(cls, plan: Reader) -> tuple[Self, float, float]:
        """See `Predictor`."""
        step, offset = plan.unpack("dd")
        flags = plan.byte()
        plan.end()
        coder = flags & ~_MODEL_BIT
        if coder > max(Coder) or (flags & _MODEL_BIT and coder == Coder.ADAPTIVE_ZEROS):
            raise corrupt("plan", f"coder {flags}", f"at most {max(Coder)}, or {_MODEL_BIT} more but for 1")
        return cls(Coder(coder)), step, offset

    def describe(self) -> dict[str, Any]:
        """See `Predictor`."""
        return {"coder": self.coder.name.lower()}
