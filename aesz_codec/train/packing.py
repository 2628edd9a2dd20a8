"""Writing model packs, and choosing the steps of quantized weights by the bytes they cost.  ``docs/packs.md``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from .. import _core
from ..errors import PackError, PackSizeError, WeightRangeError
from ..packs import (
    ARITHMETICS,
    DTYPES,
    MAX_BYTES,
    ZSTD_LEVEL,
    Coding,
    Pack,
    Tensor,
    canonical_json,
    little_endian,
    may_hold,
    parse_manifest,
    take_differences,
    write_file,
)

__all__ = ["QuantizedTensor", "StepChoice", "choose_steps", "coded_tensor", "write_pack"]

_DEFAULTS: dict[str, Any] = {
    "arithmetic": ARITHMETICS[0],
    "description": "",
    "grid": None,
    "network": None,
    "normalisation": None,
    "rates": [],
    "training": {},
    "variables": [],
}


def write_pack(
    manifest: Mapping[str, Any],
    tensors: Mapping[str, npt.ArrayLike],
    *,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> bytes:
    """Write a pack: the same arguments give the same bytes.

    Parameters
    ----------
    manifest : mapping of JSON values
        ``id``, ``kind`` and ``licence`` at least; see ``docs/packs.md``, section 3, for the others and what they
        default to.  ``tensors`` is filled in here.
    tensors : mapping of str to array
        int8, int16, int32 or uint8, of one to five axes; rows are along the last.
    ranges : mapping of str to (int, int), optional
        Lowest and highest value that a tensor declares: readers refuse what is outside.

    Returns
    -------
    bytes
        Read back and compared before they are returned.

    Raises
    ------
    PackError
        If a field or a tensor is none that a pack can have.
    PackSizeError
        If the pack is above a limit.
    """
    arrays: dict[str, Tensor] = {}
    entries = []
    ranges = dict(ranges or {})
    for name, values in sorted(tensors.items()):
        array = np.asarray(values)
        if array.dtype.newbyteorder("=") not in DTYPES.values():
            raise PackError.at(
                f"tensor {name!r}", found=str(array.dtype), expected=f"one of {', '.join(DTYPES)}"
            )
        array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        entry = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        if name in ranges:
            lowest, highest = map(int, ranges.pop(name))
            if array.size and not lowest <= int(array.min()) <= int(array.max()) <= highest:
                raise WeightRangeError.at(
                    f"tensor {name!r}",
                    found=f"weights in [{array.min()}, {array.max()}]",
                    expected=f"[{lowest}, {highest}]",
                )
            entry["range"] = [lowest, highest]
        entries.append(entry)
        arrays[name] = array
    if ranges:
        raise PackError.at("ranges", found=", ".join(ranges), expected="names of tensors")
    if "tensors" in manifest:
        raise PackError.at("manifest.tensors", found="a field", expected="none: it is made from the tensors")
    text = canonical_json({**_DEFAULTS, **manifest, "tensors": entries})
    parse_manifest(text)
    packed = _zstd(text)
    head = (Coding.ZSTD, packed) if len(packed) < len(text) else (Coding.STORED, text)
    data = write_file(head, [coded_tensor(array) for array in arrays.values()])
    if len(data) > MAX_BYTES:
        raise PackSizeError.at(
            "pack",
            found=f"{len(data)} bytes",
            expected=f"at most {MAX_BYTES}",
            remedy="make the model smaller",
        )
    again = Pack.from_bytes(data)
    if any(not np.array_equal(again.tensors[name], array) for name, array in arrays.items()):
        raise AssertionError("a pack was written that reads back with other weights")  # a bug here
    return data


def coded_tensor(tensor: Tensor) -> tuple[Coding, bytes]:
    """Code the values of a tensor in the way that takes the fewest bytes; of equals, the first of `Coding`."""
    raw = little_endian(tensor)
    rows = np.ascontiguousarray(tensor, np.int32).reshape(-1, tensor.shape[-1])
    best = (Coding.STORED, raw)
    packed = _zstd(raw)
    if len(packed) < len(raw) <= len(packed) << 16:
        best = (Coding.ZSTD, packed)
    for axes, coding in enumerate((Coding.WEIGHTS, Coding.DIFFERENCES, Coding.DIFFERENCES_2)):
        codes = _core.encode_weights(take_differences(rows, axes))
        if may_hold(len(codes), tensor.size) and len(codes) < len(best[1]):
            best = (coding, codes)
    return best


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=False).compress(data)


# Steps


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers and the step that they count: ``values = codes * step``."""

    codes: npt.NDArray[np.int32]
    step: float

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The weights that the integers stand for."""
        return self.codes.astype(np.float64) * self.step


@dataclass(frozen=True)
class StepChoice:
    """What `choose_steps` found.

    Attributes
    ----------
    tensors : mapping of str to QuantizedTensor
    weight_bytes, sample_bytes : int
        Coded weights, and what the sample costs with them, once.
    evaluations : int
        How often the sample was coded.
    """

    tensors: Mapping[str, QuantizedTensor]
    weight_bytes: int
    sample_bytes: int
    evaluations: int


def choose_steps(
    weights: Mapping[str, npt.NDArray[np.floating[Any]]],
    cost: Callable[[Mapping[str, QuantizedTensor]], int],
    *,
    uses: float = 1.0,
    bits: int = 8,
    per_octave: int = 2,
    sweeps: int = 8,
) -> StepChoice:
    """Choose the step of every tensor so that weights and data together take the fewest bytes.

    The steps are powers of ``2 ** (1 / per_octave)``.  Each tensor starts with the finest that lets its largest
    weight fit `bits` bits with sign; then, tensor by tensor, its step is made coarser or finer as long as
    ``weight bytes + uses * sample bytes`` falls, until a sweep over all tensors changes nothing.

    Parameters
    ----------
    weights : mapping of str to float array
    cost : callable
        Bytes of a sample coded with these quantized weights.  Called once for every choice that is tried.
    uses : float
        How many times the sample's amount of data will be coded with one copy of the pack.
    bits : int
        Width of the integers, 2 to 16.
    per_octave : int
        1 for steps that are powers of two, as INT-1 networks want them.
    sweeps : int
        At most so many passes over the tensors.

    Returns
    -------
    StepChoice

    Raises
    ------
    PackError
        If a weight is not finite, or `bits`, `uses` or `per_octave` out of range.
    """
    if not 2 <= bits <= 16 or per_octave < 1 or not (math.isfinite(uses) and uses >= 0):
        raise PackError.at(
            "choose_steps",
            found=f"bits={bits}, per_octave={per_octave}, uses={uses}",
            expected="2 <= bits <= 16, per_octave >= 1, uses >= 0",
        )
    largest = 2 ** (bits - 1) - 1
    finest: dict[str, int] = {}
    for name, values in weights.items():
        top = float(np.max(np.abs(values), initial=0.0))
        if not math.isfinite(top):
            raise PackError.at(f"tensor {name!r}", found="NaN or infinite weights", expected="finite weights")
        finest[name] = math.ceil(per_octave * math.log2(top / largest)) if top else 0

    def quantized(name: str, exponent: int) -> QuantizedTensor:
        step = 2.0 ** (exponent / per_octave)
        codes = np.clip(np.rint(np.asarray(weights[name], np.float64) / step), -largest, largest)
        return QuantizedTensor(codes.astype(np.int32), step)

    def coded(tensor: QuantizedTensor) -> int:
        narrow: Tensor = tensor.codes.astype(np.int8 if bits <= 8 else np.int16)
        return len(coded_tensor(narrow)[1])

    exponents = dict(finest)
    tensors = {name: quantized(name, k) for name, k in exponents.items()}
    sizes = {name: coded(tensor) for name, tensor in tensors.items()}
    sample = cost(tensors)
    evaluations = 1
    for _ in range(sweeps):
        changed = False
        for name in weights:
            for direction in (1, -1):
                while exponents[name] + direction >= finest[name] and tensors[name].codes.any():
                    tried = quantized(name, exponents[name] + direction)
                    size = coded(tried)
                    found = cost({**tensors, name: tried})
                    evaluations += 1
                    if size + uses * found >= sizes[name] + uses * sample:
                        break
                    exponents[name] += direction
                    tensors[name], sizes[name], sample, changed = tried, size, found, True
        if not changed:
            break
    return StepChoice(tensors, sum(sizes.values()), sample, evaluations)
