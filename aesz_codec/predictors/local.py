"""Local least squares on quantized values, blended with simpler guesses, coded by mixed contexts.

Idea: round the values to integers first; then predict each from the integers around it and before it by weights that follow the
field, and let seven contexts say how likely each outcome is.

::

    frame before        frame              sums of products for every block of eight columns, which forget lines far back,
      b b b            n n n n n n n       solved again for every block of every line; the last errors are features too;
      b b b            n n n n n n n       blended with a global solution, the median of west, north and Lorenzo, and the
      b b b            w w w x             frame before, each weighed by its errors nearby

Nothing of this is stored: the decoder learns the same weights. Papers: Wu and Memon 1997 (error feedback), Li and Orchard 2001
(least squares that follow edges), Meyer and Tischer 2001 (blending). Format: ``docs/format.md``, section 17. Choose it for
tight bounds and rough fields, where bytes count more than time: 250 to 500 ns a value in either direction.
Takes 6 bytes a value and 0.25 kB (two axes) or 0.45 kB (more) a column besides the array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .. import _core
from ..stream import Coder, Method, Reader, Writer
from .coders import handicap_of

if TYPE_CHECKING:
    from ..packs import Pack
    from . import Floats, Mask, Quantizer

__all__ = ["Local"]


@dataclass(frozen=True, slots=True)
class Local:
    """Has no choices."""

    method: ClassVar[Method] = Method.LOCAL
    kind: ClassVar[str | None] = None
    model: ClassVar[Pack | None] = None
    whole: ClassVar[bool] = False

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterator[Self]:
        """See `Predictor`: only for lines that leave something to learn from; ``default`` from 1.6 bits a value on."""
        if effort != "fast" and (effort == "max" or rate >= 1.6) and len(shape) > 1 and min(shape[-2:]) >= 8:
            yield cls()

    def refinements(self, effort: str, rate: float) -> Iterator[Self]:
        """See `Predictor`."""
        return iter(())

    def side_bytes(self, shape: tuple[int, ...]) -> float:
        """See `Predictor`."""
        return 0.0

    def handicap(self, effort: str, rate: float, share: float) -> float:
        """See `Predictor`: for ``default`` it must save much, since it takes six to eight times as long."""
        if effort == "max":
            return 1.0
        return handicap_of(Coder.MIXED, effort, share) * (1.085 if rate < 4 else 1.06)

    def final(self, effort: str) -> Self:
        """See `Predictor`."""
        return self

    def encode(self, data: Floats, mask: Mask, quantizer: Quantizer) -> tuple[bytes, bytes]:
        """See `Predictor`."""
        return _core.encode_local(data, mask, quantizer.tolerance, quantizer.step, quantizer.offset), b""

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """See `Predictor`."""
        _core.decode_local(codes, out, mask, step, offset)

    def pack(self, step: float, offset: float) -> bytes:
        """See `Predictor`."""
        return Writer().pack("dd", step, offset).done()

    @classmethod
    def unpack(cls, plan: Reader) -> tuple[Self, float, float]:
        """See `Predictor`."""
        step, offset = plan.unpack("dd")
        plan.end()
        return cls(), step, offset

    def describe(self) -> dict[str, Any]:
        """See `Predictor`."""
        return {}
