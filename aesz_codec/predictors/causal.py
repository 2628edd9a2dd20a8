"""Causal least squares in closed loop.

Idea: predict each value from decoded ones that precede it in C order, in space and in earlier frames, with weights fitted to the
chunk.  Lorenzo's predictor is the special case west + north - northwest.

::

    frame before        frame
      . b .            n n n n n        weights: least squares on the original, as if it carried the quantizer's noise;
      b b b            n n n n n        quantized, in the stream (2 to 18 integers)
      . b .            w w x

Papers: Ibarria et al. 2003 (Lorenzo), Tao et al. 2017 (SZ).  Format: ``docs/format.md``, section 11.  Choose it for tight
bounds, from about three bits a value, and for hourly series; about 50 ns a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .. import _core
from ..stream import Coder, Method, Reader, Writer, corrupt
from .coders import handicap_of

if TYPE_CHECKING:
    from ..packs import Pack
    from . import Floats, Mask, Quantizer

__all__ = ["Causal"]


@dataclass(frozen=True, slots=True)
class Causal:
    """Has one choice besides its weights, which are among the codes: the coder, as in `Interpolation`."""

    coder: Coder = Coder.ADAPTIVE

    method: ClassVar[Method] = Method.CAUSAL
    kind: ClassVar[str | None] = None
    model: ClassVar[Pack | None] = None

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterator[Self]:
        """See `Predictor`."""
        yield cls(Coder.STATIC if effort == "fast" else Coder.ADAPTIVE)

    def refinements(self, effort: str) -> Iterator[Self]:
        """See `Predictor`: for ``default``, the fast coder."""
        if effort == "default":
            yield replace(self, coder=Coder.STATIC)

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
            data, mask, quantizer.tolerance, quantizer.step, quantizer.offset, self.coder
        )
        return codes, outliers

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """See `Predictor`."""
        _core.decode_causal(codes, outliers, out, mask, step, offset, self.coder)

    def pack(self, step: float, offset: float) -> bytes:
        """See `Predictor`."""
        return Writer().pack("ddB", step, offset, self.coder).done()

    @classmethod
    def unpack(cls, plan: Reader) -> tuple[Self, float, float]:
        """See `Predictor`."""
        step, offset = plan.unpack("dd")
        coder = plan.byte()
        plan.end()
        if coder > max(Coder):
            raise corrupt("plan", f"coder {coder}", f"at most {max(Coder)}")
        return cls(Coder(coder)), step, offset

    def describe(self) -> dict[str, Any]:
        """See `Predictor`."""
        return {"coder": self.coder.name.lower()}
