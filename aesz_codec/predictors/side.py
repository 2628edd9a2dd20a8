"""Side predictions: fields from elsewhere that are taken away before the closed loop codes what is left.

Idea: a chunk is described by a few integers (*latents*, a small stream inside the stream); a pack turns them into a prediction
of all its values at once, in arithmetic that is exact on every machine.

::

    values --describe--> latents --predict--> f           values - f --closed loop--> codes
                            |                 |
                            +-- pack ---------+

`Basis` knows one grid: a mean and its empirical orthogonal functions (EOFs, Lorenz 1956), of which each frame takes its share.
Interpolation inside the frame could not have guessed it: a chunk is coded as what its few hundred frames have that years of other
frames did not.  Format: ``docs/format.md``, section 19; packs: ``docs/packs.md``, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..errors import CorruptStreamError, InvalidModelError
from ..packs import Pack, plain
from .networks import built_once

__all__ = ["SIDES", "Basis", "Side"]

Latents = npt.NDArray[np.int32]
Values = npt.NDArray[np.float64]

_MOST_AXES = 3
_MOST_SHIFT = 40
_MOST_MODES = 4096
_LARGEST_LATENT = 1 << 26
_EXACT = 2.0**53  # integers below are exact as float64


class Side(Protocol):
    """What a side prediction offers.

    Attributes
    ----------
    kind : str
        Of its packs.
    """

    kind: ClassVar[str]

    @property
    def pack(self) -> Pack:
        """The pack."""

    @classmethod
    def load(cls, pack: Pack) -> Self:
        """Build from a pack, once per process.

        Raises
        ------
        InvalidModelError
            If the pack is not what its kind says.
        """

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the greatest shape that latents of an array can have; None if the model is not for this shape."""

    def describe(self, values: Values, unit: float) -> Latents:
        """Return the latents of an array.

        Parameters
        ----------
        values : float64 array
            NaN where there is nothing to describe.
        unit : float
            What a latent of 1 is worth, in the units of the values.
        """

    def predict(self, latents: Latents, unit: float, shape: tuple[int, ...]) -> Values:
        """Return the prediction, the same bits on every machine.

        Raises
        ------
        CorruptStreamError
            If no encoder writes such latents.
        """


@dataclass(frozen=True, eq=False)
class Basis:
    """A mean field and a few modes of one grid.

    Attributes
    ----------
    grid : tuple of int
        Shape of a frame.
    mean : float64 array
        Points of the frame; integers over a power of two.
    modes : float64 array
        Modes x points; integers.
    scale : float
        A power of two; ``modes * scale`` are about orthonormal.
    inverse : float64 array
        Points x modes: from anomalies to latents. Encoder only.
    """

    kind: ClassVar[str] = "basis"

    pack: Pack
    grid: tuple[int, ...]
    mean: Values
    modes: Values
    scale: float
    inverse: Values

    @classmethod
    def load(cls, pack: Pack) -> Self:
        """See `Side`."""
        return _basis(pack)  # type: ignore[return-value]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """See `Side`: whole frames, whatever the axes before them are."""
        axes = len(self.grid)
        if len(shape) < axes or shape[len(shape) - axes :] != self.grid:
            return None
        return math.prod(shape[: len(shape) - axes]), len(self.modes)

    def describe(self, values: Values, unit: float) -> Latents:
        """See `Side`: the nearest multiples of the unit; modes that no frame has are left out at the end."""
        anomalies = values.reshape(-1, self.mean.size) - self.mean
        np.nan_to_num(anomalies, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        shares = np.rint(anomalies @ self.inverse * (1.0 / unit))
        latents = np.clip(shares, -_LARGEST_LATENT, _LARGEST_LATENT).astype(np.int32)
        used = np.flatnonzero(latents.any(axis=0))
        return np.ascontiguousarray(latents[:, : int(used[-1]) + 1 if used.size else 1])

    def predict(self, latents: Latents, unit: float, shape: tuple[int, ...]) -> Values:
        """See `Side`: the sum over the modes is one of integers, exact in whatever order a BLAS adds."""
        modes = self.modes[: latents.shape[1]]
        largest = float(np.abs(latents.astype(np.int64)).max(initial=0))
        if largest * float(np.abs(modes).sum(axis=0).max(initial=0.0)) >= _EXACT:
            raise CorruptStreamError.at(
                "latents",
                found=f"one of magnitude {largest:.0f}",
                expected="sums below 2^53",
                remedy="the stream is damaged: restore it from its source",
            )
        field = latents.astype(np.float64) @ modes
        field *= unit * self.scale
        field += self.mean
        return field.reshape(shape)


@built_once
def _basis(pack: Pack) -> Basis:
    network = pack.manifest["network"]
    name = f"pack {pack.id!r}"
    keys = {"grid", "mean_shift", "shift"}
    if not isinstance(network, Mapping) or set(network) != keys:
        raise InvalidModelError.at(
            f"{name}: network", found=repr(plain(network))[:80], expected=f"an object with {sorted(keys)}"
        )
    grid = network["grid"]
    if not isinstance(grid, tuple) or not 1 <= len(grid) <= _MOST_AXES or not all(map(_natural, grid)):
        raise InvalidModelError.at(
            f"{name}: grid", found=repr(plain(grid))[:80], expected=f"1 to {_MOST_AXES} lengths"
        )
    for key in ("mean_shift", "shift"):
        if not _natural(network[key], least=0) or network[key] > _MOST_SHIFT:
            raise InvalidModelError.at(
                f"{name}: {key}",
                found=repr(network[key])[:80],
                expected=f"an integer from 0 to {_MOST_SHIFT}",
            )
    if set(pack.tensors) != {"mean", "modes", "shift"}:
        raise InvalidModelError.at(
            f"{name}: tensors", found=", ".join(sorted(pack.tensors)), expected="mean, modes, shift"
        )
    mean, modes, shift = (pack.tensors[key] for key in ("mean", "modes", "shift"))
    if len(modes) > _MOST_MODES:
        raise InvalidModelError.at(f"{name}: modes", found=str(len(modes)), expected=f"at most {_MOST_MODES}")
    shapes = {"mean": (mean, grid), "modes": (modes, (len(modes), *grid)), "shift": (shift, (len(modes),))}
    for key, (tensor, expected) in shapes.items():
        if tensor.shape != expected:
            raise InvalidModelError.at(
                f"{name}: {key}", found=f"shape {tensor.shape}", expected=str(expected)
            )
    if shift.dtype != np.uint8 or int(shift.max()) > _MOST_SHIFT:
        raise InvalidModelError.at(
            f"{name}: shift",
            found=f"{shift.dtype} up to {shift.max()}",
            expected=f"uint8 up to {_MOST_SHIFT}",
        )
    flat = modes.reshape(len(modes), -1).astype(np.float64) * 2.0 ** shift.astype(np.float64)[:, None]
    if np.abs(flat).sum(axis=0).max() >= _EXACT:
        raise InvalidModelError.at(f"{name}: modes", found="sums from 2^53 on", expected="smaller ones")
    scale = 2.0 ** -network["shift"]
    return Basis(
        pack,
        grid,
        mean.reshape(-1).astype(np.float64) * 2.0 ** -network["mean_shift"],
        flat,
        scale,
        np.linalg.pinv(flat * scale),
    )


def _natural(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


SIDES: dict[str, type[Side]] = {side.kind: side for side in (Basis,)}
"""By the kind of pack that they take."""
