"""Integers within the bound, Lorenzo differences, then Pcodec (package ``pcodec``), in two settings.

The integers of `benchmarks.peers.lattice` are differenced along every axis, or along the last two, and coded as
a series of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from benchmarks.peers import lattice

_CONFIG = ChunkConfig(mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op())


@dataclass(frozen=True)
class Pcodec:
    name: str
    axes: int | None = None  # the last ones that are differenced; None: all
    max_ndim: int | None = None
    family: str = "pcodec"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        filled, mask = lattice.fill(chunk)
        codes, place = lattice.quantize(filled.reshape(lattice.squeezed(chunk.shape)), tolerance)
        for axis in self._axes(codes.ndim):  # int32 wraps around, and back in `decompress`
            codes = np.diff(codes, axis=axis, prepend=np.zeros_like(codes.take([0], axis)))
        coded = standalone.simple_compress(np.ascontiguousarray(codes.ravel()), _CONFIG)
        return lattice.join([mask, place + coded])

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        mask, coded = lattice.take_apart(stream, 2)
        codes = standalone.simple_decompress(coded[16:]).reshape(lattice.squeezed(shape))
        for axis in self._axes(codes.ndim):
            codes = np.cumsum(codes, axis=axis, dtype=np.int32)
        return lattice.restore(lattice.dequantize(codes, coded, dtype).reshape(shape), mask)

    def _axes(self, ndim: int) -> range:
        return range(0 if self.axes is None else max(0, ndim - self.axes), ndim)


def settings(efforts: Sequence[str]) -> list[Pcodec]:
    """Both settings, that of the best ratio on the suite first, at Pcodec's default level; it has no effort."""
    return [Pcodec("pcodec-lorenzo-2d", axes=2), Pcodec("pcodec-lorenzo")]
