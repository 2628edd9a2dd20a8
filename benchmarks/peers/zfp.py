"""zfp (package ``zfpy``), one thread, fixed accuracy, without axes of size 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zfpy

from benchmarks.peers import NotApplicable, lattice


@dataclass(frozen=True)
class ZFP:
    name: str = "zfp"
    max_ndim: int | None = None
    family: str = "zfp"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        filled, mask = lattice.fill(chunk)
        shape = lattice.squeezed(chunk.shape)
        if len(shape) > 4:
            raise NotApplicable(f"zfp has 1 to 4 dimensions: found {shape}")
        return lattice.join([mask, zfpy.compress_numpy(filled.reshape(shape), tolerance=tolerance)])

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        mask, coded = lattice.take_apart(stream, 2)
        return lattice.restore(zfpy.decompress_numpy(coded).reshape(shape), mask)


def settings(efforts: Sequence[str]) -> list[ZFP]:
    """One setting; zfp has no effort."""
    return [ZFP()]
