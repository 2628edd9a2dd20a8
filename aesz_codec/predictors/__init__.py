"""Predictors of the closed loop, one module each.

A predictor is a frozen dataclass of the choices that its stream carries.  It encodes and decodes whole arrays of at most
four axes through the native core, and proposes the candidates among which the encoder chooses by coded bytes.

A learned one names the kind of pack that it takes; `learned_by` finds it by the pack, and `networks` has what it needs to build
its networks.  Its plan says whether a model is used (`aesz_codec.stream.Stream.uses_model`), the section ``model`` which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..errors import ModelKindError
from ..packs import Pack
from ..stream import Method, Reader
from .causal import Causal
from .frames import Frames
from .interpolation import Interpolation
from .local import Local
from .side import SIDES, Side

__all__ = [
    "LEARNED",
    "PREDICTORS",
    "SIDES",
    "Causal",
    "Frames",
    "Interpolation",
    "Learned",
    "Local",
    "Predictor",
    "Quantizer",
    "Side",
    "learned_by",
    "load_side",
    "predictor_of",
    "prepare",
]

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
    """What a closed-loop predictor offers.

    Attributes
    ----------
    method : Method
        Its number in the format.
    kind : str or None
        Kind of the packs that it takes as models; None if it takes none.
    """

    method: ClassVar[Method]
    kind: ClassVar[str | None]

    @property
    def model(self) -> Pack | None:
        """The pack that this choice uses."""

    @property
    def whole(self) -> bool:
        """Whether this choice codes nothing but the whole array, so that no trial on a part tells what it is worth."""

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterable[Self]:
        """Return the choices worth a trial on an array of this shape, the most likely first.

        `rate`: bits a value of the best of the predictors before this one, 0 for the first.  `models`: packs of its `kind`.
        """

    def refinements(self, effort: str, rate: float) -> Iterable[Self]:
        """Return variations worth a trial once this choice has won; `rate`: bits a value on a sample."""

    def side_bytes(self, shape: tuple[int, ...]) -> float:
        """Return about how many bytes a stream has beside its codes: a sample has as many as the whole."""

    def handicap(self, effort: str, rate: float, share: float) -> float:
        """Return what bytes count against others that take less time: 1.1 must save a tenth.

        `rate`: bits a value on a sample, which is `share` of the values.
        """

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
        """Read the section ``plan``: the predictor, without its model, the step and the offset."""

    def describe(self) -> dict[str, Any]:
        """Return the choices as JSON values."""


class Learned(Predictor, Protocol):
    """A predictor that takes models."""

    @classmethod
    def prepare(cls, pack: Pack) -> None:
        """Build the networks of a pack, once per process.

        InvalidModelError or UnsupportedModelError if they are not sound.
        """

    def without_model(self, effort: str) -> Self | None:
        """Return the same choice as it is tried without a model; None if it is not."""

    def for_rate(self, rate: float) -> Self:
        """Return the same choice with the coder to be tried first at so many bits a value."""


PREDICTORS: dict[Method, type[Predictor]] = {p.method: p for p in (Interpolation, Frames, Causal, Local)}
LEARNED: dict[str, tuple[type[Learned], ...]] = {
    "interpolation": (Interpolation, Frames),
    "forecaster": (Causal,),
}
"""By the kind of pack that they take."""


def learned_by(pack: Pack, method: Method | None = None) -> type[Learned]:
    """Return the predictor class that takes a pack as its model; with `method`, it must be that one.

    Raises
    ------
    ModelKindError
        If it is of a kind that no predictor takes, or another one.
    """
    for predictor in LEARNED.get(pack.kind, ()):
        if method in (None, predictor.method):
            return predictor
    kinds = [kind for kind, takers in LEARNED.items() if method in (None, *(p.method for p in takers))]
    kinds += [*SIDES] if method is None else []
    raise ModelKindError.at(
        f"model {pack.id!r}",
        found=f"a pack of the kind {pack.kind!r}",
        expected=f"{' or '.join(map(repr, kinds)) or 'no model'}",
        remedy="use another model"
        if method is None
        else "the stream is damaged, or was not written by an encoder",
    )


def load_side(pack: Pack) -> Side:
    """Return the side prediction of a pack.

    Raises
    ------
    ModelKindError, InvalidModelError
        If it is of a kind that is none, or not sound.
    """
    if pack.kind not in SIDES:
        raise ModelKindError.at(
            f"model {pack.id!r}",
            found=f"a pack of the kind {pack.kind!r}",
            expected=" or ".join(map(repr, SIDES)),
            remedy="the stream is damaged, or was not written by an encoder",
        )
    return SIDES[pack.kind].load(pack)


def prepare(pack: Pack) -> None:
    """Build what a pack holds, once per process, whatever its kind.

    Raises
    ------
    ModelKindError, InvalidModelError, UnsupportedModelError
        If nothing takes its kind, or it is not sound.
    """
    if pack.kind in SIDES:
        load_side(pack)
    else:
        learned_by(pack).prepare(pack)


def predictor_of(method: Method) -> type[Predictor]:
    """Return the predictor class of a method."""
    return PREDICTORS[method]
