"""Predictors of the closed loop, one module each.

A predictor is a frozen dataclass of the choices that its stream carries.  It encodes and decodes whole arrays of at most
four axes through the native core, and proposes the candidates among which the encoder chooses by coded bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..stream import Method, Reader
from .causal import Causal
from .interpolation import Interpolation
from .local import Local

__all__ = ["PREDICTORS", "Causal", "Interpolation", "Local", "Predictor", "Quantizer", "predictor_of"]

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Step and offset of the closed loop, in the units of what is predicted.

    Attributes
    ----------
    tolerance : float
        The bound that the encoder keeps.
    step : float
        Distance of two reconstructions; a little below ``2 * tolerance``, so that rounding to the type of the data does not
        push values out of the bound.
    offset : float
        Prediction of the first value.
    """

    tolerance: float
    step: float
    offset: float


class Predictor(Protocol):
    """What a closed-loop predictor offers."""

    method: ClassVar[Method]

    @classmethod
    def candidates(cls, shape: tuple[int, ...], effort: str, rate: float) -> Iterable[Self]:
        """Return the choices worth a trial on an array of this shape, the most likely first.

        `rate`: bits a value of the best of the predictors before this one, 0 for the first.
        """

    def refinements(self, effort: str) -> Iterable[Self]:
        """Return variations worth a trial once this choice has won."""

    def handicap(self, effort: str, rate: float) -> float:
        """Return what bytes count against others that take less time: 1.1 must save a tenth at `rate` bits a value."""

    def final(self, effort: str) -> Self:
        """Return this choice with the coder that codes the array itself; trials take a faster one."""

    def encode(self, data: Floats, mask: Mask, quantizer: Quantizer) -> tuple[bytes, bytes]:
        """Return the codes and the outliers; `mask` is 1 where a value is not to be coded.

        OverflowError if the predictor cannot code these values.
        """

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """Fill `out`; at masked places it gets predictions."""

    def pack(self, step: float, offset: float) -> bytes:
        """Return the section ``plan``."""

    @classmethod
    def unpack(cls, plan: Reader) -> tuple[Self, float, float]:
        """Read the section ``plan``: the predictor, the step and the offset."""

    def describe(self) -> dict[str, Any]:
        """Return the choices as JSON values."""


PREDICTORS: dict[Method, type[Predictor]] = {p.method: p for p in (Interpolation, Causal, Local)}


def predictor_of(method: Method) -> type[Predictor]:
    """Return the predictor class of a method."""
    return PREDICTORS[method]
