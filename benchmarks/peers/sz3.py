"""SZ3 (package ``pysz``), one thread, absolute bound, in four settings; the smallest is the "best SZ3".

Axes of size 1 in front are dropped. NaN and infinities go in as they are: SZ3 keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode


@dataclass(frozen=True)
class SZ3:
    name: str
    algorithm: str
    max_ndim: int | None = None
    family: str = "sz3"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        chunk = chunk.reshape(_shape(chunk.shape))
        config = szConfig(chunk.shape)
        config.cmprAlgo = getattr(szAlgorithm, self.algorithm)
        config.errorBoundMode = szErrorBoundMode.ABS
        config.absErrorBound = tolerance
        config.openmp = False
        return sz.compress(chunk, config)[0].tobytes()

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        array, _ = sz.decompress(np.frombuffer(stream, np.uint8), dtype, _shape(shape))
        return array.reshape(shape)


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without the leading axes of size 1 (one axis is left)."""
    start = 0
    while start < len(shape) - 1 and shape[start] == 1:
        start += 1
    return shape[start:]


INTERP_LORENZO = SZ3("sz3-interp-lorenzo", "INTERP_LORENZO")


def settings(efforts: Sequence[str]) -> list[SZ3]:
    """The four settings; SZ3 has no effort."""
    return [
        INTERP_LORENZO,
        SZ3("sz3-interp", "INTERP"),
        SZ3("sz3-lorenzo-reg", "LORENZO_REG"),
        SZ3("sz3-slices", "INTERP_LORENZO", max_ndim=2),
    ]
