"""SPERR (package ``imagecodecs``), one thread, point-wise error, in two settings.

SPERR ends the whole process on NaN, infinities, huge values, and 3-D shapes with an axis of size 1: none of
them gets here. It computes in float64 and casts, so that its error may exceed the bound by the rounding; then
it runs again with the tolerance less that rounding, and then with smaller ones. That a stream keeps the bound is
found by decoding it, which is part of the time to compress, as it is of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from imagecodecs import sperr_decode, sperr_encode

from benchmarks.peers import NotApplicable, lattice

_LARGEST_QUOTIENT = 2.0**40  # value / tolerance: well below where SPERR ends the process


@dataclass(frozen=True)
class SPERR:
    name: str
    max_ndim: int | None = None
    family: str = "sperr"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        filled, mask = lattice.fill(chunk)
        volumes = filled.reshape(_volumes(chunk.shape))
        if float(np.abs(filled).max()) > _LARGEST_QUOTIENT * tolerance:
            raise NotApplicable(f"values up to {np.abs(filled).max():g} at tolerance {tolerance:g}")
        return lattice.join([mask, *(_coded(volume, tolerance) for volume in volumes)])

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count, *volume = _volumes(shape)
        mask, *streams = lattice.take_apart(stream, 1 + count)
        decoded = np.stack([_decoded(part, tuple(volume), dtype) for part in streams])
        return lattice.restore(decoded.reshape(shape), mask)


def _volumes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(volume, row, column) or (volume, plane, row, column), without axes of size 1."""
    shape = lattice.squeezed(shape)
    if len(shape) not in (2, 3, 4):
        raise NotApplicable(f"SPERR has 2 or 3 dimensions: found {shape}")
    return shape if len(shape) == 4 else (1, *shape)


def _coded(volume: np.ndarray, tolerance: float) -> bytes:
    for attempt in _tolerances(volume, tolerance):
        stream = sperr_encode(volume, attempt, mode="pwe", numthreads=1)
        decoded = _decoded(stream, volume.shape, volume.dtype)
        if np.abs(decoded.astype(np.float64) - volume).max() <= tolerance:
            return stream
    raise NotApplicable(f"SPERR leaves the bound {tolerance:g} even at {attempt:g}")


def _tolerances(volume: np.ndarray, tolerance: float) -> Iterator[float]:
    yield tolerance
    rounded = tolerance - float(np.spacing(np.abs(volume).max())) / 2
    if rounded > 0:
        yield rounded
    for factor in (0.97, 0.9, 0.75, 0.5):
        yield factor * tolerance


def _decoded(stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return sperr_decode(stream, shape=shape, dtype=dtype, numthreads=1).astype(dtype, copy=False)


def settings(efforts: Sequence[str]) -> list[SPERR]:
    """In three dimensions (of 4-D chunks one volume after the other) and in slices; SPERR has no effort."""
    return [SPERR("sperr"), SPERR("sperr-slices", max_ndim=2)]
