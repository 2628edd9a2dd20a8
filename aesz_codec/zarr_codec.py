"""`AESZCodec`, the array-to-bytes codec of Zarr format 3.

It goes into an array's ``serializer``, with ``compressors=None``: what it returns does not compress further.
Zarr hands it whole chunks, edge chunks padded with the fill value, in any strides and byte order, from many
threads; the codec works by value, so neither is restored.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from . import pipeline
from .bounds import check_dtype, finite_range
from .codec import CodecConfig, as_stream
from .coordinates import Coordinates
from .errors import InvalidConfigError

if TYPE_CHECKING:
    import zarr
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

__all__ = ["AESZCodec", "write_states"]


@dataclass(frozen=True, repr=False)
class AESZCodec(CodecConfig, ArrayBytesCodec):
    """Error-bounded serializer for arrays of floats and integers in Zarr format 3, in shards too.

    Parameters and errors are those of `CodecConfig`; a dtype that cannot be coded is refused when the array
    is created.  The range that ``range_rel`` refers to is that of the chunk, the array's fill value left out.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> x = np.linspace(250, 300, 1000, dtype="float32").reshape(10, 100)
    >>> store = zarr.storage.MemoryStore()
    >>> z = zarr.create_array(store, data=x, serializer=AESZCodec(0.05), compressors=None)
    >>> z.serializer
    AESZCodec(error_bound=0.05, mode='abs')
    >>> bool(abs(z[:] - x).max() <= 0.05)
    True
    """

    is_fixed_size = False
    codec_name: ClassVar[str] = "aesz"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from array metadata: ``{"name": "aesz", "configuration": {...}}``."""
        name, configuration = data.get("name"), data.get("configuration", {})
        if name != cls.codec_name or not isinstance(configuration, Mapping):
            raise InvalidConfigError.at(
                "codec",
                found=repr(dict(data)),
                expected=f"name {cls.codec_name!r} and a mapping as its configuration",
                remedy="see the codecs in the array's metadata",
            )
        return cls.from_json(configuration)

    def to_dict(self) -> dict[str, Any]:
        """Return what the array metadata holds."""
        return {"name": self.codec_name, "configuration": self.to_json()}

    def validate(self, *, shape: Any, dtype: Any, chunk_grid: Any) -> None:
        """Refuse an array whose dtype cannot be coded; Zarr calls this for a new array's metadata."""
        check_dtype(dtype.to_native_dtype(), self.bound)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Refuse a dtype that cannot be coded; inside a shard, Zarr 3.1 asks here only."""
        check_dtype(array_spec.dtype.to_native_dtype(), self.bound)
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise, as Zarr expects where the size depends on the data."""
        raise NotImplementedError("the size of a compressed chunk depends on its values")

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        dtype = chunk_spec.dtype.to_native_dtype().newbyteorder("=")
        array = np.asarray(chunk_array.as_numpy_array(), dtype=dtype)
        bound = self.bound
        if (
            bound.mode == "range_rel"
        ):  # fill values are no data: they pad edge chunks and mark what is missing
            bound = bound.resolve(*(finite_range(array, ignore=(chunk_spec.fill_value,)) or (0.0, 0.0)))
        stream = pipeline.encode(
            array,
            bound,
            effort=self.effort,
            models=self.packs(),
            forecast=self.forecasting(),
            forecasters=self.forecasters(),
        )
        return chunk_spec.prototype.buffer.from_bytes(stream)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        dtype = chunk_spec.dtype.to_native_dtype().newbyteorder("=")
        expected = (tuple(chunk_spec.shape), dtype)
        array = pipeline.decode(as_stream(chunk_bytes), expected=expected, find_model=self.find_model)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)


def write_states(array: zarr.Array[Any], states: Any, first: int = 0) -> None:
    """Write states into an array whose codec has a foundation model, each chunk with the time of its own first state.

    A codec does not know which chunk it is given: with a plain ``array[...] = states`` every chunk is forecast as if it began at
    the array's start time, which is right within the bound, but larger where the model looks at the clock.

    Parameters
    ----------
    array : zarr.Array
        Of format 2 or 3, opened for writing, sharded or not; its first axis is time, the others are whole in every chunk.
    states : array_like
        Shape (states, ...), lazily indexed ones too: one chunk is read at a time.
    first : int
        Number of the first of these states in the array, a multiple of the chunk's length.

    Raises
    ------
    InvalidConfigError
        If the codec has no foundation model, chunks are cut along other axes, or the states do not begin at a chunk's first one
        or end beyond the array.
    """
    from zarr import Array, AsyncArray

    length, count = array.chunks[0], len(states)
    metadata = array.metadata.to_dict()
    found = _with_coordinates(metadata)
    whole = array.chunks[1:] == array.shape[1:]
    if not found or not whole or first % length or not 0 <= first <= first + count <= array.shape[0]:
        raise InvalidConfigError.at(
            "states",
            found=f"{count} from {first} on for an array of shape {array.shape}, chunks {array.chunks}"
            + ("" if found else ", without a foundation model"),
            expected="a codec with a foundation model, and whole chunks along time",
        )
    given = [Coordinates.from_json(configuration["coordinates"]) for configuration in found]
    for start in range(0, count, length):
        for configuration, coordinates in zip(found, given, strict=True):
            configuration["coordinates"] = coordinates.at(first + start).to_json()
        there: Any = type(array.metadata).from_dict(copy.deepcopy(metadata))
        chunk: Array[Any] = Array(AsyncArray(metadata=there, store_path=array.store_path))
        stop = min(start + length, count)
        chunk[first + start : first + stop] = np.asarray(states[start:stop])


def _with_coordinates(value: Any) -> list[dict[str, Any]]:
    """Return the configurations in array metadata that have coordinates."""
    if isinstance(value, Mapping):
        found = [cast("dict[str, Any]", value)] if "coordinates" in value and "forecaster" in value else []
        return found + [entry for item in value.values() for entry in _with_coordinates(item)]
    if isinstance(value, list | tuple):
        return [entry for item in value for entry in _with_coordinates(item)]
    return []
