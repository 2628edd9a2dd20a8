"""aesz-codec itself, through the numcodecs codec that users have, absolute bound, one instance an effort."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aesz_codec.codec import AESZ
from aesz_codec.pipeline import EFFORTS
from benchmarks.fields import BadArgument


@dataclass(frozen=True)
class Aesz:
    effort: str = "default"
    max_ndim: int | None = None
    family: str = "aesz"
    models: tuple[str, ...] = ()  # files of packs

    @property
    def name(self) -> str:
        return f"aesz-{self.effort}" + ("-models" if self.models else "")

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        return bytes(_codec(tolerance, self.effort, self.models).encode(chunk))

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        # The stream knows its shape and dtype: the benchmark checks what comes back, nothing is forced here.
        return np.asarray(AESZ(mode="lossless").decode(stream))


@functools.lru_cache(8)
def _codec(tolerance: float, effort: str, models: tuple[str, ...]) -> AESZ:
    """Return one codec for all chunks of an array, as Zarr has it."""
    return AESZ(error_bound=tolerance, mode="abs", effort=effort, model=list(models) or None)


def settings(efforts: Sequence[str]) -> list[Aesz]:
    """One instance an effort."""
    if unknown := [effort for effort in efforts if effort not in EFFORTS]:
        raise BadArgument(f"effort: found {', '.join(unknown)}, expected some of {', '.join(EFFORTS)}")
    return [Aesz(effort) for effort in efforts]
