"""What the peers that were not made for such fields need: integers within the bound, missing values, joined parts.

SPERR, zfp and JPEG XL know no NaN: the places of all values that are not finite are stored beside the coded
field, as a bitmap that zstd compresses, and the peer gets the last finite value before them in C order. All
these bytes count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import zstandard

from benchmarks.peers import NotApplicable


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without its axes of size 1, of which some peers make much or crash; at least one axis."""
    return tuple(size for size in shape if size != 1) or (1,)


# ---- values that are not finite --------------------------------------------------------------------------------


def fill(chunk: np.ndarray) -> tuple[np.ndarray, bytes]:
    """`chunk` with every value finite, and the bytes that `restore` needs (none if all were finite)."""
    missing = ~np.isfinite(chunk).ravel()
    if not missing.any():
        return chunk, b""
    last = np.where(missing, -1, np.arange(missing.size))
    np.maximum.accumulate(last, out=last)
    last[last < 0] = np.argmin(missing)  # before the first finite value: that one
    filled = np.where(missing.all(), chunk.dtype.type(0), chunk.ravel()[last])
    values = chunk.ravel()[missing]
    kept = b"" if np.isnan(values).all() else values.tobytes()
    mask = np.packbits(missing).tobytes()
    return filled.reshape(chunk.shape), zstandard.compress(mask + kept, 19)


def restore(array: np.ndarray, mask: bytes) -> np.ndarray:
    """`array` with what `fill` took out of it."""
    if not mask:
        return array
    plain = zstandard.decompress(mask)
    size = -(-array.size // 8)
    missing = np.unpackbits(np.frombuffer(plain, np.uint8, size), count=array.size).astype(bool)
    restored = array.copy()
    values = np.frombuffer(plain[size:], array.dtype)
    restored.reshape(-1)[missing] = values if values.size else np.nan
    return restored


# ---- integers --------------------------------------------------------------------------------------------------


def quantize(values: np.ndarray, tolerance: float) -> tuple[np.ndarray, bytes]:
    """Integers from 0 up, one a value, and the 16 bytes that `dequantize` needs.

    The step is twice the tolerance, less what rounding to the dtype of `values` may add to an error.
    """
    highest = float(np.abs(values).max(initial=0))
    rounding = float(np.spacing(values.dtype.type(highest))) / 2 + 4 * math.ulp(highest)
    step = 2 * (tolerance - rounding)
    if not step > 0:
        raise NotApplicable(f"tolerance {tolerance:g} is below the spacing of {values.dtype} at {highest:g}")
    least = float(values.min(initial=np.inf))
    codes = np.rint((values.astype(np.float64) - least) / step)
    if codes.max(initial=0) > np.iinfo(np.int32).max:
        raise NotApplicable(f"more than 31 bits a value at tolerance {tolerance:g}")
    return codes.astype(np.int32), np.array([least, step]).tobytes()


def dequantize(codes: np.ndarray, lattice: bytes, dtype: np.dtype) -> np.ndarray:
    """The values that `quantize` chose for `codes`."""
    least, step = np.frombuffer(lattice, np.float64, 2)
    return (least + step * codes.astype(np.float64)).astype(dtype)


# ---- parts of a stream -----------------------------------------------------------------------------------------


def join(parts: Sequence[bytes]) -> bytes:
    """The parts in one stream: the length of each but the last (7 bits a byte), then all of them."""
    lengths = bytearray()
    for part in parts[:-1]:
        length = len(part)
        while length > 127:
            lengths.append(length & 127 | 128)
            length >>= 7
        lengths.append(length)
    return bytes(lengths) + b"".join(parts)


def take_apart(stream: bytes, count: int) -> list[bytes]:
    """The `count` parts that `join` joined."""
    lengths, at = [], 0
    for _ in range(count - 1):
        length = shift = 0
        while stream[at] > 127:
            length |= (stream[at] & 127) << shift
            shift, at = shift + 7, at + 1
        lengths.append(length | stream[at] << shift)
        at += 1
    parts = []
    for length in lengths:
        parts.append(stream[at : at + length])
        at += length
    return [*parts, stream[at:]]
