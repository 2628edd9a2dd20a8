"""Lossless JPEG XL, effort 7, of integers within the bound (package ``imagecodecs``), in four settings.

The integers of `benchmarks.peers.lattice` are gray images of at most 16 bits, one a slice over the last two axes
or all slices below each other as one tall image; with ``-time`` every slice but the first is first replaced by
its difference to the one before it along the first axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from imagecodecs import jpegxl_decode, jpegxl_encode

from benchmarks.peers import NotApplicable, lattice

_EFFORT = 7
_LARGEST = 0xFFFF


@dataclass(frozen=True)
class JpegXL:
    name: str
    tall: bool = False
    difference: bool = False
    max_ndim: int | None = None
    family: str = "jpegxl"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        filled, mask = lattice.fill(chunk)
        codes, place = lattice.quantize(filled.reshape(_image_shape(chunk.shape)), tolerance)
        bias = 0
        if self.difference:
            codes = np.diff(codes, axis=0, prepend=np.zeros_like(codes[:1]))
            bias = -int(codes.min())
        if codes.max() + bias > _LARGEST:
            raise NotApplicable(f"JPEG XL has 16 bits: found integers up to {codes.max() + bias}")
        images = self._cut(codes + bias)
        streams = [_coded(image) for image in images]
        return lattice.join([mask, place + bias.to_bytes(2, "little"), *streams])

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        image_shape = _image_shape(shape)
        count = 1 if self.tall else math.prod(image_shape[:-2])
        mask, place, *streams = lattice.take_apart(stream, 2 + count)
        images = np.concatenate([jpegxl_decode(part, numthreads=1).ravel() for part in streams])
        codes = images.reshape(image_shape).astype(np.int32) - int.from_bytes(place[16:], "little")
        if self.difference:
            codes = np.cumsum(codes, axis=0, dtype=np.int32)
        return lattice.restore(lattice.dequantize(codes, place, dtype).reshape(shape), mask)

    def _cut(self, images: np.ndarray) -> np.ndarray:
        """(image, row, column)"""
        rows, columns = images.shape[-2:]
        return images.reshape((1, -1, columns) if self.tall else (-1, rows, columns))


def _coded(image: np.ndarray) -> bytes:
    """One image with no more bits than it needs: above 12 JPEG XL wraps the stream in a box of 49 bytes."""
    bits = int(image.max()).bit_length()
    if bits <= 8:
        return jpegxl_encode(image.astype(np.uint8), lossless=True, effort=_EFFORT, numthreads=1)
    return jpegxl_encode(
        image.astype(np.uint16), lossless=True, effort=_EFFORT, bitspersample=bits, numthreads=1
    )


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """At least (frame, row, column)."""
    shape = lattice.squeezed(shape)
    return (1,) * (3 - len(shape)) + shape


def settings(efforts: Sequence[str]) -> list[JpegXL]:
    """The four settings, that of the best ratio on the suite first, at effort 7; `efforts` are not JPEG XL's."""
    return [
        JpegXL("jpegxl-tall-time", tall=True, difference=True),
        JpegXL("jpegxl-tall", tall=True),
        JpegXL("jpegxl-slices-time", difference=True),
        JpegXL("jpegxl-slices"),
    ]
