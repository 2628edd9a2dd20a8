"""Sources and stores as files: opened lazily, cut into whole chunks, read in bounded memory.

`open_source` opens what xarray can open, `open_store` a finished local Zarr store of either format.
`StoredArray` answers what the codec itself cannot know: which bound an array was written with, which bytes
belong to which chunk (inside shards too), how much the chunks take on disk.  `regions` cuts the work on an
array into groups of whole chunks.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from .bounds import ErrorBound
from .errors import AESZError, ConversionError, CorruptStreamError
from .foundation import Reference
from .models import ModelReference

if TYPE_CHECKING:
    import xarray as xr

CODEC = "aesz"
PARTIAL = ".partial"
GROUP_BYTES = 256 << 20  # chunks that are read, coded and compared together are at most this large, decoded

_METADATA_FILES = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
_EMPTY = 2**64 - 1  # offset and size of an inner chunk that was never written, in the index of a shard

Region = tuple[slice, ...]


def is_zarr(path: Path) -> bool:
    """Say whether a folder is the root of a Zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata"))


def local_path(path: str | os.PathLike[str], field: str) -> Path:
    """Return a path in the file system; URLs are refused."""
    text = os.fspath(path)
    if "://" in text:
        raise ConversionError.at(
            field,
            found=text,
            expected="a path in the local file system",
            remedy="copy it to a local folder first",
        )
    return Path(os.path.normpath(text))


@contextmanager
def open_source(
    source: str | os.PathLike[str] | xr.Dataset, *, mask_and_scale: bool = True
) -> Iterator[xr.Dataset]:
    """Open a source lazily, times as the numbers that are stored; a `Dataset` is passed through.

    Raises
    ------
    ConversionError
        If there is no such path, or nothing that xarray reads.
    """
    import xarray as xr

    if isinstance(source, xr.Dataset):
        yield source
        return
    path = local_path(source, "source")
    if not path.exists():
        raise ConversionError.at("source", found=str(path), expected="an existing file or Zarr store")
    options: dict[str, Any] = {
        "decode_times": False,
        "decode_timedelta": False,
        "mask_and_scale": mask_and_scale,
        "chunks": None,
    }
    try:
        if path.is_dir():
            dataset = xr.open_dataset(path, engine="zarr", cache=False, **options)
        else:
            dataset = xr.open_dataset(path, cache=False, **options)
    except AESZError:
        raise
    except Exception as error:  # every engine has its own
        raise ConversionError(f"source: cannot read {path}: {one_line(error)}") from error
    try:
        yield dataset
    finally:
        dataset.close()


def read_block(dataset: xr.Dataset, name: str, region: Region) -> np.ndarray:
    """Load one region of a variable; errors of the source become a `ConversionError` with the place."""
    variable = dataset.variables[name]
    try:
        values = variable[region].values
    except AESZError:
        raise
    except Exception as error:
        at = ", ".join(f"{r.start}:{r.stop}" for r in region)
        raise ConversionError(f"source: cannot read {name}[{at}]: {one_line(error)}") from error
    return np.asarray(values)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


# Planning


def regions(shape: Sequence[int], unit: Sequence[int], group: int = 1) -> Iterator[Region]:
    """Cut an array into regions of whole units (chunks or shards), up to `group` of them side by side.

    Examples
    --------
    >>> list(regions((5, 4), (2, 4), group=2))
    [(slice(0, 4, None), slice(0, 4, None)), (slice(4, 5, None), slice(0, 4, None))]
    """
    if 0 in shape:
        return
    steps = list(unit)
    for axis, size in enumerate(shape):
        if unit[axis] < size:
            steps[axis] = unit[axis] * max(1, group)
            break
    for index in np.ndindex(*(-(-size // step) for size, step in zip(shape, steps, strict=True))):
        yield tuple(
            slice(i * step, min(size, (i + 1) * step))
            for i, step, size in zip(index, steps, shape, strict=True)
        )


def group_size(unit: Sequence[int], itemsize: int) -> int:
    """Say how many units may be in memory together: one a core, and at most `GROUP_BYTES`."""
    return max(1, min(os.cpu_count() or 1, GROUP_BYTES // max(1, math.prod(unit) * itemsize)))


# Stores


@dataclass(frozen=True)
class StoredArray:
    """One array of a store.

    Attributes
    ----------
    name : str
    array : zarr.Array
    folder : Path
        Where its chunks lie.
    bound : ErrorBound or None
        As recorded in the configuration of its codec; None if another codec wrote it.
    effort : str or None
    wrapped : bool
        Whether other codecs stand around ours, so that a chunk's bytes are no stream.
    models : tuple of ModelReference
        Those in the configuration.
    forecaster : Reference or None
        The foundation model in the configuration.
    """

    name: str
    array: zarr.Array[Any]
    folder: Path
    bound: ErrorBound | None
    effort: str | None
    wrapped: bool
    models: tuple[ModelReference, ...] = ()
    forecaster: Reference | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions, empty where the store has none."""
        names = getattr(self.array.metadata, "dimension_names", None)
        return tuple(names or self.array.attrs.get("_ARRAY_DIMENSIONS", ()))  # type: ignore[arg-type]

    @property
    def unit(self) -> tuple[int, ...]:
        """Shape of what is one object in the store: a shard, or a chunk."""
        return tuple(self.array.shards or self.array.chunks)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the values in the stored dtype."""
        return self.array.size * self.array.dtype.itemsize

    def stored_bytes(self) -> int:
        """Bytes of the array's chunks on disk, without its metadata."""
        return sum(
            (Path(folder) / file).stat().st_size
            for folder, _, files in os.walk(self.folder)
            for file in files
            if file not in _METADATA_FILES
        )

    def chunk_bytes(self, index: tuple[int, ...]) -> bytes | None:
        """Read the bytes of one (inner) chunk; None where all is fill value and nothing is stored.

        Raises
        ------
        CorruptStreamError
            If the index of the shard points outside the shard.
        """
        for found, data in self._unit_chunks(tuple(i * c // u for i, c, u in self._axes(index))):
            if found == index:
                return data
        return None

    def chunks(self) -> Iterator[tuple[tuple[int, ...], bytes | CorruptStreamError | None]]:
        """Yield (index, bytes) of every (inner) chunk inside the array, as `chunk_bytes` reads them.

        A shard with a broken index gives its error once, at the first of its chunks.
        """
        if 0 in self.array.shape:
            return
        for unit in np.ndindex(*(-(-s // u) for s, u in zip(self.array.shape, self.unit, strict=True))):
            try:
                yield from self._unit_chunks(unit)
            except CorruptStreamError as error:
                first = tuple(i * u // c for i, u, c in zip(unit, self.unit, self.array.chunks, strict=True))
                yield first, error

    def chunk_count(self) -> tuple[int, ...]:
        """Return the number of (inner) chunks along each axis."""
        return tuple(-(-s // c) for s, c in zip(self.array.shape, self.array.chunks, strict=True))

    def key_exists(self, position: tuple[int, ...]) -> bool:
        """Say whether the chunk file (or shard) that holds a value exists."""
        unit = tuple(p // u for p, u in zip(position, self.unit, strict=True))
        return (self.folder / self.array.metadata.encode_chunk_key(unit)).is_file()

    def _axes(self, index: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
        return zip(index, self.array.chunks, self.unit, strict=True)

    def _unit_chunks(self, unit: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], bytes | None]]:
        path = self.folder / self.array.metadata.encode_chunk_key(unit)
        try:
            data: bytes | None = path.read_bytes()
        except FileNotFoundError:
            data = None
        if self.array.shards is None:
            yield unit, data
            return
        inner = tuple(u // c for u, c in zip(self.unit, self.array.chunks, strict=True))
        counts = self.chunk_count()
        entries = self._shard_index(path, data, math.prod(inner)) if data is not None else None
        for number, offset in enumerate(np.ndindex(*inner)):
            index = tuple(i * n + o for i, n, o in zip(unit, inner, offset, strict=True))
            if any(i >= n for i, n in zip(index, counts, strict=True)):
                continue  # the shard reaches over the edge of the array
            if data is None or entries is None or entries[number] == (_EMPTY, _EMPTY):
                yield index, None
                continue
            start, size = entries[number]
            if start + size > len(data):
                raise CorruptStreamError(
                    f"shard index: found chunk {index} at bytes {start} to {start + size}, "
                    f"expected an end within the {len(data)} bytes of {path.name}; restore the file"
                )
            yield index, data[start : start + size]

    def _shard_index(self, path: Path, data: bytes, count: int) -> list[tuple[int, int]]:
        metadata: Any = self.array.metadata.to_dict()
        configuration = metadata["codecs"][0]["configuration"]
        checksum = 4 if any(codec["name"] == "crc32c" for codec in configuration["index_codecs"]) else 0
        size = 16 * count + checksum
        if len(data) < size:
            raise CorruptStreamError(
                f"shard index: found {len(data)} bytes in {path.name}, expected {size} or more; restore it"
            )
        start = 0 if configuration.get("index_location", "end") == "start" else len(data) - size
        return list(struct.iter_unpack("<QQ", data[start : start + 16 * count]))


def open_store(store: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """Open the arrays of a finished local Zarr store, of format 2 or 3.

    Raises
    ------
    ConversionError
        If there is no store, or it cannot be read, or its conversion was never finished.
    """
    path = local_path(store, "store")
    if path.name.endswith(PARTIAL):
        raise ConversionError.at(
            "store",
            found=str(path),
            expected="a finished store",
            remedy="this one is still being written, or its conversion was killed: convert again",
        )
    if not is_zarr(path):
        unfinished = path.with_name(path.name + PARTIAL)
        remedy = (
            f"{unfinished.name} beside it was never finished: convert again" if unfinished.exists() else ""
        )
        raise ConversionError.at("store", found=str(path), expected="a Zarr store", remedy=remedy)
    try:
        group = zarr.open_group(path, mode="r")
        return {name: _stored_array(path, name, array) for name, array in sorted(group.arrays())}
    except AESZError:
        raise
    except Exception as error:
        raise ConversionError(f"store: cannot read {path}: {one_line(error)}") from error


def open_array(path: Path, name: str) -> StoredArray:
    """Open one array of a store, finished or not."""
    return _stored_array(path, name, zarr.open_array(path / name, mode="r"))


def _stored_array(path: Path, name: str, array: zarr.Array[Any]) -> StoredArray:
    metadata: Any = array.metadata.to_dict()
    if metadata["zarr_format"] == 2:
        chain = [codec for codec in (*(metadata["filters"] or ()), metadata["compressor"]) if codec]
        ours = [codec for codec in chain if codec["id"] == CODEC]
        configuration = ours[0] if ours else None
    else:
        chain = list(metadata["codecs"])
        if chain[0]["name"] == "sharding_indexed":
            chain = [*chain[0]["configuration"]["codecs"], *chain[1:]]
        ours = [codec for codec in chain if codec["name"] == CODEC]
        configuration = ours[0].get("configuration", {}) if ours else None
    bound: ErrorBound | None = None
    models: tuple[ModelReference, ...] = ()
    forecaster = None
    if configuration is not None:
        if configuration.get("forecaster") is not None:
            forecaster = Reference.of(configuration["forecaster"])
        models = tuple(ModelReference.from_json(entry) for entry in configuration.get("models", ()))
        bound = ErrorBound(configuration.get("mode", "abs"), configuration.get("error_bound"))
    return StoredArray(
        name=name,
        array=array,
        folder=path / name,
        bound=bound,
        effort=None if configuration is None else configuration.get("effort", "default"),
        wrapped=len(chain) > 1,
        models=models,
        forecaster=forecaster,
    )
