"""Multi-level interpolation in closed loop.

Idea: refine the array from coarse to fine; predict the new points of each level from all decoded points around them, with
weights fitted level by level to *decoded* values, so that they know how much to smooth.

::

    every 2^L-th point -> ... -> every 2nd point -> all points
                                     |
         o   x   o      x: mean of the two nearest, corrected by the next two and by the diagonals
         y   z   y      z: mean of the four nearest, corrected by the next four and by the corners
         o   x   o      weights: least squares on this level, quantized, in the stream (about 5 bits each)

Leading axes may be kept out of it: each of their frames is then refined alone, optionally with the innovation of the frame
before, ``f - I(f)``, as one more regressor.

With a model (a pack of the kind ``interpolation``), small integer networks look at the decoded points around each new point of
the finest levels, correct its prediction and say how large its code will be.

Papers: Zhao et al. 2021 (SZ3), Liu et al. 2022 (QoZ: tighter bounds on coarse levels), Liu et al. 2024 (HPEZ: all directions
at once).  Format: ``docs/format.md``, section 10.  Choose it for smooth fields and loose bounds; about 45 ns a value, 60 with
a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .. import _core
from ..errors import InvalidModelError
from ..packs import Pack, plain
from ..stream import Coder, Method, Reader, Writer, corrupt
from .coders import handicap_of
from .networks import built_once, mlps

if TYPE_CHECKING:
    from . import Floats, Mask, Quantizer

__all__ = ["Interpolation"]

# The networks of a pack: by the number of axes of a frame and whether it refers to the one before, the slots of its classes.
_SLOTS = {(2, False): range(3), (2, True): range(3, 6), (3, False): range(6, 13)}
# Decoded points that networks see, in a frame and in the one before, by slot: docs/format.md, section 18.
MOST_SEEN = ((24, 0),) * 3 + ((24, 13),) * 3 + ((24, 0),) * 7
LEAST_LENGTH = 8  # of the axes of frames that have an order of their own
_SIDE_BYTES = (0.0, 8.0, 20.0, 60.0, 120.0)  # by the number of axes
_LEAST_SAVED = 1.003  # what bytes with a model count on a sample
NEARLY_ZERO = 0.4  # bits a value, below which the static coder costs very much
QUIET = 1.0  # bits a value, below which the static coder may cost much
_LEAST_SAVED_BY_SLOW = 1.03  # likewise, with a model, by the coder that takes twice the time
_FEW = 1 << 15  # values: not enough for the tables of the fast coder


@built_once
def networks_of(pack: Pack) -> tuple[_core.LearnedNets, frozenset[int]]:
    """Build the networks of a pack, and say which slots they are for."""
    found = mlps(pack, 13, ("sees",))
    sees = pack.manifest["network"].get("sees", MOST_SEEN)
    numbers = range(MOST_SEEN[0][0] + 1)
    if not isinstance(sees, tuple) or not all(
        isinstance(seen, tuple) and len(seen) == 2 and all(type(n) is int and n in numbers for n in seen)
        for seen in sees
    ):
        raise InvalidModelError.at(
            f"pack {pack.id!r}: network.sees",
            found=repr(plain(sees))[:80],
            expected="two integers for each of 13 slots (docs/format.md, section 18)",
        )
    try:
        return _core.LearnedNets([found.get(slot) for slot in range(13)], sees), frozenset(found)
    except ValueError as error:
        raise InvalidModelError.at(
            f"pack {pack.id!r}",
            found=str(error),
            expected="networks with the inputs and outputs of their slots (docs/format.md, section 18)",
        ) from None


def can_refer(shape: tuple[int, ...]) -> bool:
    """Return whether an array has frames of two axes that are large enough to refer to others."""
    return len(shape) > 2 and shape[0] > 0 and min(shape[-2:]) >= LEAST_LENGTH


def coder_alone(effort: str) -> Coder:
    """Return the coder that trials without a model take."""
    return Coder.STATIC if effort == "fast" else Coder.ADAPTIVE


def coder_with_model(shape: tuple[int, ...], effort: str) -> Coder:
    """Return the coder that a model is tried with."""
    return Coder.STATIC if effort != "max" and math.prod(shape) > _FEW else Coder.ADAPTIVE


def learned_handicap(coder: Coder, model: Pack | None, effort: str, share: float) -> float:
    """Return what bytes count: a model that saves next to nothing on a sample may cost something on the whole."""
    if model is None:
        return handicap_of(coder, effort, share)
    slow = _LEAST_SAVED_BY_SLOW if effort == "default" and coder is not Coder.STATIC else 1.0
    return handicap_of(Coder.ADAPTIVE, effort, share) * _LEAST_SAVED * slow


@dataclass(frozen=True, slots=True)
class Interpolation:
    """Choices of the interpolation.

    Attributes
    ----------
    batch : int
        Leading axes whose frames are refined one after the other.
    reference : bool
        Whether a frame refers to the one before it.
    reversed : bool
        Whether the last axis comes first among the classes of a level.
    alpha16, beta16 : int
        The step of level l is the finest step over ``min(alpha**l, beta)``; both in 1/16.
    coder : Coder
        How the codes are written.
    model : Pack or None
        Networks that correct the predictions; not with ``Coder.ADAPTIVE_ZEROS``, nor with `reversed`.
    """

    batch: int = 0
    reference: bool = False
    reversed: bool = False
    alpha16: int = 16
    beta16: int = 16
    coder: Coder = Coder.ADAPTIVE
    model: Pack | None = None

    method: ClassVar[Method] = Method.INTERPOLATION
    kind: ClassVar[str | None] = "interpolation"
    whole: ClassVar[bool] = False

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
    ) -> Iterator[Self]:
        """See `Predictor`: all axes at once, or frames of the last two; each also with every model."""
        for alone in cls._plain_candidates(shape, effort):
            yield alone
            needed = _SLOTS.get((len(shape) - alone.batch, alone.reference), ())
            coder = coder_with_model(shape, effort)
            yield from (
                replace(alone, coder=coder, model=model)
                for model in models
                if not networks_of(model)[1].isdisjoint(needed)
            )

    @classmethod
    def prepare(cls, pack: Pack) -> None:
        """See `Learned`."""
        networks_of(pack)

    def without_model(self, effort: str) -> Self | None:
        """See `Learned`."""
        return replace(self, coder=coder_alone(effort), model=None)

    @classmethod
    def _plain_candidates(cls, shape: tuple[int, ...], effort: str) -> Iterator[Self]:
        coder = coder_alone(effort)
        yield cls(coder=coder)
        frames = range(max(1, len(shape) - 2), len(shape) - 1) if effort != "max" else range(1, len(shape))
        for batch in frames:
            if effort == "fast" or not (can_refer(shape) and batch == len(shape) - 2):  # `Frames` has them
                yield cls(batch=batch, reference=True, coder=coder)
            if effort != "fast":
                yield cls(batch=batch, coder=coder)

    def for_rate(self, rate: float) -> Self:
        """See `Learned`: the static coder is no good for zeros."""
        return (
            replace(self, coder=Coder.ADAPTIVE) if self.coder is Coder.STATIC and rate < NEARLY_ZERO else self
        )

    def refinements(self, effort: str, rate: float) -> Iterator[Self]:
        """See `Predictor`: ``default`` tries the other coder; ``max`` tighter coarse levels and the other order of the axes.

        With a model the fast coder comes first, but for small arrays. It costs 1 to 3 % more, but 10 % where nearly all codes
        are 0; there the other, which skips them, is no slower.
        """
        if effort == "default" and self.model is None:
            yield replace(self, coder=Coder.STATIC)
        if effort == "default" and self.model is not None and self.coder is Coder.STATIC and rate < QUIET:
            yield replace(self, coder=Coder.ADAPTIVE)
        if effort != "max":
            return
        for alpha16, beta16 in ((18, 20), (20, 24), (20, 32), (24, 40), (28, 64)):
            yield replace(self, alpha16=alpha16, beta16=beta16)
        if self.model is None:
            yield replace(self, reversed=True)

    def side_bytes(self, shape: tuple[int, ...]) -> float:
        """See `Predictor`: weights of the classes of some levels."""
        return _SIDE_BYTES[len(shape) - self.batch] * (2 if self.reference else 1)

    def handicap(self, effort: str, rate: float, share: float) -> float:
        """See `Predictor`: a model that saves next to nothing on a sample may cost something on the whole."""
        return learned_handicap(self.coder, self.model, effort, share)

    def final(self, effort: str) -> Self:
        """See `Predictor`."""
        return replace(self, coder=Coder.MIXED) if effort == "max" else self

    def encode(self, data: Floats, mask: Mask, quantizer: Quantizer) -> tuple[bytes, bytes]:
        """See `Predictor`."""
        codes, outliers = _core.encode_interpolation(
            data, mask, quantizer.tolerance, quantizer.step, quantizer.offset, *self._choices()
        )
        return codes, outliers

    def decode(
        self, codes: bytes, outliers: bytes, out: Floats, mask: Mask, step: float, offset: float
    ) -> None:
        """See `Predictor`."""
        _core.decode_interpolation(codes, outliers, out, mask, step, offset, *self._choices())

    def _choices(self) -> tuple[int, bool, bool, int, int, int, _core.LearnedNets | None]:
        networks = None if self.model is None else networks_of(self.model)[0]
        return self.batch, self.reference, self.reversed, self.coder, self.alpha16, self.beta16, networks

    def pack(self, step: float, offset: float) -> bytes:
        """See `Predictor`."""
        flags = self.reference | self.reversed << 1 | self.coder << 2 | (self.model is not None) << 4
        return Writer().pack("ddBBBB", step, offset, self.batch, flags, self.alpha16, self.beta16).done()

    @classmethod
    def unpack(cls, plan: Reader) -> tuple[Self, float, float]:
        """See `Predictor`."""
        step, offset = plan.unpack("dd")
        batch, flags, alpha16, beta16 = plan.take(4)
        plan.end()
        coder = Coder(flags >> 2 & 3)
        alone = flags & 2 or coder is Coder.ADAPTIVE_ZEROS  # what there is no model with
        if flags > 31 or (flags & 16 and alone) or alpha16 < 16 or beta16 < 16:
            raise corrupt(
                "plan",
                f"flags {flags}, alpha {alpha16}, beta {beta16}",
                "flags below 32, a model not with coder 1 or 'reversed', the others from 16",
            )
        return cls(batch, bool(flags & 1), bool(flags & 2), alpha16, beta16, coder), step, offset

    def describe(self) -> dict[str, Any]:
        """See `Predictor`."""
        return {
            "frame_axes": self.batch,
            "reference_frames": self.reference,
            "reversed": self.reversed,
            "alpha": self.alpha16 / 16,
            "beta": self.beta16 / 16,
            "coder": self.coder.name.lower(),
        }
