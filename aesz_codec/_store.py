"""Stores as objects: local folders, buckets behind fsspec or obstore, or memory; finished or not.

`open_address` turns what a user names into a `StoreAddress`, whose methods get, put and list single objects and
try again where a network fails.  `open_store` opens the arrays of a finished store of either Zarr format.
`StoredArray` answers what the codec itself cannot know: which bound an array was written with, which bytes
belong to which chunk (inside shards too), how much the chunks take.  `regions` cuts an array into whole chunks.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore

from ._source import PATIENCE, Region, one_line, with_retries
from ._source import open_source as open_source  # for those who look for it here
from .bounds import ErrorBound
from .errors import AESZError, ConversionError, CorruptStreamError
from .foundation import Reference
from .models import ModelReference

CODEC = "aesz"
PARTIAL = ".partial"  # what the name of a local folder ends with while it is written
JOURNAL = ".aesz"  # where a store that is being written keeps its journal

METADATA_FILES = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_ROOTS = ("zarr.json", ".zgroup", ".zmetadata")
_EMPTY = 2**64 - 1  # offset and size of an inner chunk that was never written, in the index of a shard

StoreLike: TypeAlias = "str | os.PathLike[str] | Store"

_Result = TypeVar("_Result")


# Addresses


@dataclass(frozen=True)
class StoreAddress:
    """Where a store is, and how to reach its objects; pickles.

    Attributes
    ----------
    name : str
        As it is shown.
    store : zarr.abc.store.Store
    path : Path or None
        In the local file system.
    patience : float
        Seconds in which a request that fails is made again.
    """

    name: str
    store: Store
    path: Path | None = None
    patience: float = PATIENCE

    def __str__(self) -> str:
        return self.name

    def get(self, key: str) -> bytes | None:
        """Read one object; None if there is none."""
        if self.path is not None:  # a LocalStore creates the folder that it looks into
            try:
                return (self.path / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
        found = self._run(lambda: self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Write one object, whole or not at all."""
        if self.path is not None:
            self._put_file(self.path / key, data)
            return
        self._run(lambda: self.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def create(self, key: str, data: bytes) -> bool:
        """Write one object unless there is one; say whether it is there as given."""
        if self.path is not None:
            (self.path / key).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), (self.path / key).open("xb") as file:
                file.write(data)
            return self.get(key) == data
        self._run(
            lambda: self.store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(data))
        )
        return self.get(key) == data

    def delete(self, key: str) -> None:
        """Delete one object, if it is there."""
        if self.path is not None:
            (self.path / key).unlink(missing_ok=True)
            return

        async def gone() -> None:
            with suppress(FileNotFoundError):
                await self.store.delete(key)

        self._run(gone)

    def delete_all(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        if self.path is not None:
            shutil.rmtree(self.path / prefix)
            return
        self._run(lambda: self.store.delete_dir(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """List the objects below a prefix with their bytes."""
        if self.path is not None:
            root = self.path / prefix
            found = (Path(folder) / file for folder, _, files in os.walk(root) for file in files)
            return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in found}
        found_there: dict[str, int] = self._run(lambda: _sizes(self.store, prefix))
        return found_there

    def exists(self) -> bool:
        """Say whether there is a finished store."""
        return any(self.get(key) is not None for key in (*_ROOTS, ".zarray"))

    def _put_file(self, file: Path, data: bytes) -> None:
        """Write beside the journal first: there a killed process may leave it, not between the chunks."""
        assert self.path is not None
        unfinished = self.path / JOURNAL / f"writing-{secrets.token_hex(8)}"
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(data)
            unfinished.replace(file)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def _run(self, action: Any) -> Any:
        return with_retries(lambda: sync(action()), self.patience)


async def _sizes(store: Any, prefix: str) -> dict[str, int]:
    if hasattr(store, "fs"):  # one listing with sizes, where Zarr asks for each
        root = f"{store.path}/{prefix}".rstrip("/")
        store.fs.invalidate_cache()
        found = await store.fs._find(root, detail=True)
        return {name.removeprefix(store.path).lstrip("/"): int(info["size"]) for name, info in found.items()}
    if isinstance(store, ObjectStore):
        import obstore

        listed = obstore.list(store.store, prefix=prefix or None)
        return {entry["path"]: entry["size"] async for batch in listed for entry in batch}
    keys = [key async for key in (store.list_prefix(prefix) if prefix else store.list())]
    return {key: await store.getsize(key) for key in keys}


def open_address(
    store: StoreLike,
    field: str = "store",
    *,
    storage_options: Mapping[str, Any] | None = None,
    read_only: bool = False,
) -> StoreAddress:
    """Find a store by path, by URL (through fsspec), or take a Zarr store, as for obstore.

    Raises
    ------
    ConversionError
        If the protocol of a URL is unknown, its package is not installed or its options do not fit.
    """
    if isinstance(store, LocalStore):
        return StoreAddress(str(store.root), store, Path(store.root))
    if isinstance(store, Store):
        return StoreAddress(str(store), store)
    text = os.fspath(store)
    if "://" not in text or text.startswith("file://"):
        path = Path(os.path.normpath(text.removeprefix("file://")))
        return StoreAddress(str(path), LocalStore(path, read_only=read_only), path)
    from zarr.storage import FsspecStore

    try:
        opened = FsspecStore.from_url(text, storage_options=dict(storage_options or {}), read_only=read_only)
    except Exception as error:
        raise ConversionError(f"{field}: cannot open {text}: {one_line(error)}") from error
    return StoreAddress(text, opened)


def open_folder(path: Path) -> StoreAddress:
    """Return the address of a local folder."""
    return StoreAddress(str(path), LocalStore(path), path)


# Planning


def regions(shape: Sequence[int], unit: Sequence[int]) -> Iterator[Region]:
    """Cut an array into regions of the shape of a unit (a chunk, a shard, several of them).

    Examples
    --------
    >>> list(regions((5, 4), (4, 4)))
    [(slice(0, 4, None), slice(0, 4, None)), (slice(4, 5, None), slice(0, 4, None))]
    """
    if 0 in shape:
        return
    for index in np.ndindex(*(-(-size // step) for size, step in zip(shape, unit, strict=True))):
        yield tuple(
            slice(i * step, min(size, (i + 1) * step))
            for i, step, size in zip(index, unit, shape, strict=True)
        )


# Stores


@dataclass(frozen=True)
class StoredArray:
    """One array of a store.

    Attributes
    ----------
    name : str
    array : zarr.Array
    address : StoreAddress
        Of the store that it is in.
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
    address: StoreAddress
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
        """Bytes of the array's chunks in the store, without its metadata."""
        sizes = self.address.sizes(f"{self.name}/")
        return sum(size for key, size in sizes.items() if key.rpartition("/")[2] not in METADATA_FILES)

    def chunk_bytes(self, index: tuple[int, ...]) -> bytes | None:
        """Read the bytes of one (inner) chunk; None where all is fill value and nothing is stored.

        Raises
        ------
        CorruptStreamError
            If the index of the shard points outside the shard.
        """
        for found, data in self.unit_chunks(tuple(i * c // u for i, c, u in self._axes(index))):
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
                yield from self.unit_chunks(unit)
            except CorruptStreamError as error:
                first = tuple(i * u // c for i, u, c in zip(unit, self.unit, self.array.chunks, strict=True))
                yield first, error

    def chunk_count(self) -> tuple[int, ...]:
        """Return the number of (inner) chunks along each axis."""
        return tuple(-(-s // c) for s, c in zip(self.array.shape, self.array.chunks, strict=True))

    def key_exists(self, position: tuple[int, ...]) -> bool:
        """Say whether the object, of a chunk or a shard, that holds a value exists."""
        unit = tuple(p // u for p, u in zip(position, self.unit, strict=True))
        return self.address.get(self.unit_key(unit)) is not None

    def unit_key(self, unit: tuple[int, ...]) -> str:
        """Return the key of a chunk, or of a shard, in the store."""
        return f"{self.name}/{self.array.metadata.encode_chunk_key(unit)}"

    def _axes(self, index: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
        return zip(index, self.array.chunks, self.unit, strict=True)

    def unit_chunks(self, unit: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], bytes | None]]:
        key = self.unit_key(unit)
        data = self.address.get(key)
        if self.array.shards is None:
            yield unit, data
            return
        inner = tuple(u // c for u, c in zip(self.unit, self.array.chunks, strict=True))
        counts = self.chunk_count()
        entries = self._shard_index(key, data, math.prod(inner)) if data is not None else None
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
                    f"expected an end within the {len(data)} bytes of {key}; restore it"
                )
            yield index, data[start : start + size]

    def _shard_index(self, key: str, data: bytes, count: int) -> list[tuple[int, int]]:
        metadata: Any = self.array.metadata.to_dict()
        configuration = metadata["codecs"][0]["configuration"]
        checksum = 4 if any(codec["name"] == "crc32c" for codec in configuration["index_codecs"]) else 0
        size = 16 * count + checksum
        if len(data) < size:
            raise CorruptStreamError(
                f"shard index: found {len(data)} bytes in {key}, expected {size} or more; restore it"
            )
        start = 0 if configuration.get("index_location", "end") == "start" else len(data) - size
        return list(struct.iter_unpack("<QQ", data[start : start + 16 * count]))


def open_store(
    store: StoreLike, *, storage_options: Mapping[str, Any] | None = None
) -> dict[str, StoredArray]:
    """Open the arrays of a finished Zarr store, of format 2 or 3.

    Raises
    ------
    ConversionError
        If there is no store, or it cannot be read, or its conversion is not finished.
    """
    address = open_address(store, storage_options=storage_options, read_only=True)
    try:
        _check_finished(address)
        group = zarr.open_group(address.store, mode="r")
        return {name: stored_array(address, name, array) for name, array in sorted(group.arrays())}
    except AESZError:
        raise
    except Exception as error:
        raise ConversionError(f"store: cannot read {address}: {one_line(error)}") from error


def _check_finished(address: StoreAddress) -> None:
    from .conversion.journal import unfinished_work

    if address.path is not None and address.path.name.endswith(PARTIAL):
        raise ConversionError.at(
            "store",
            found=f"{address}, {unfinished_work(address)}",
            expected="a finished store",
            remedy="it is still being written, or its conversion was stopped: convert again, with resume (--resume)",
        )
    if address.exists():
        return
    remedy = ""
    work = address
    if address.path is not None:
        work = open_folder(address.path.with_name(address.path.name + PARTIAL))
    if (work.path is not None and work.path.exists()) or work.get(f"{JOURNAL}/plan.json") is not None:
        remedy = f"its conversion was never finished, {unfinished_work(work)}: convert again, with resume (--resume)"
    raise ConversionError.at("store", found=str(address), expected="a Zarr store", remedy=remedy)


def open_array(address: StoreAddress, name: str) -> StoredArray:
    """Open one array of a store, finished or not."""
    return stored_array(address, name, zarr.open_array(address.store, path=name, mode="r"))


def stored_array(address: StoreAddress, name: str, array: zarr.Array[Any]) -> StoredArray:
    """Read what the metadata of an array say of its codec."""
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
        if "digest" in (configuration.get("forecaster") or ()):  # else it is no foundation model
            forecaster = Reference.of(configuration["forecaster"])
        models = tuple(ModelReference.from_json(entry) for entry in configuration.get("models", ()))
        bound = ErrorBound(configuration.get("mode", "abs"), configuration.get("error_bound"))
    return StoredArray(
        name=name,
        array=array,
        address=address,
        bound=bound,
        effort=None if configuration is None else configuration.get("effort", "default"),
        wrapped=len(chain) > 1,
        models=models,
        forecaster=forecaster,
    )
