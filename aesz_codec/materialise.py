"""Rewrite a store so that no chunk of it needs a foundation model; every value stays as it is, bit by bit.

    chunk -> pipeline.materialise (decodes it with the model, stores the integers of its forecasts) -> chunk

Chunks are replaced one file at a time, each by a rename: a store that was interrupted in between is whole, part of it
rewritten.  Last the model's name goes out of the metadata.  With another folder as target the store is copied first, and has its
name only when all is done.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import foundation, pipeline
from ._store import CODEC, PARTIAL, StoreAddress, StoredArray, open_address, open_store
from .errors import AESZError, ConversionError, CorruptStreamError

__all__ = ["MaterialiseSummary", "MaterialisedVariable", "materialise"]

_METADATA = ("zarr.json", ".zarray", ".zmetadata")
_OF_MODELS = ("forecaster", "coordinates")  # keys of the codec's configuration
_EMPTY = 2**64 - 1


@dataclass(frozen=True)
class MaterialisedVariable:
    """What became of one variable.

    Attributes
    ----------
    name : str
    chunks, rewritten : int
        That are stored, and that needed a model.
    bytes_before, bytes_after : int
        Of all its chunks.
    models : tuple of str
        Digests of the models that were needed.
    """

    name: str
    chunks: int
    rewritten: int
    bytes_before: int
    bytes_after: int
    models: tuple[str, ...]


@dataclass(frozen=True)
class MaterialiseSummary:
    """The store, and what became of its variables."""

    store: Path
    variables: tuple[MaterialisedVariable, ...]


def materialise(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    find_forecaster: pipeline.FindForecaster = foundation.get,
    progress: Callable[[str, int, int], None] | None = None,
) -> MaterialiseSummary:
    """Make a finished local Zarr store of either format, sharded or not, model-free.

    Parameters
    ----------
    store : path
    out : path, optional
        Where to write; without, the store itself is rewritten.
    find_forecaster : callable
        From a digest to the foundation model.
    progress : callable, optional
        Called with a variable, chunks done and all chunks.

    Raises
    ------
    ConversionError
        If there is no store, `out` exists, other codecs stand around ours in an array with a model, or a file cannot be written.
    ModelNotFoundError, ModelDigestError, PredictionMismatchError
        If this machine does not have the model, or does not get its forecasts again: nothing of that chunk was changed.
    CorruptStreamError
        If a chunk cannot be read.
    """
    source = _folder(open_address(store))
    arrays = [array for array in open_store(source).values() if array.bound is not None]
    target = source
    if out is not None:
        goal = _folder(open_address(out, "out"))
        target = goal.with_name(goal.name + PARTIAL)
        for path in (goal, target):
            if path.exists():
                raise ConversionError.at("out", found=f"{path}, which exists", expected="a new folder")
        if source.resolve() in goal.resolve().parents:
            raise ConversionError.at("out", found=str(goal), expected="a place apart from the store")
    try:
        if out is not None:
            shutil.copytree(source, target)
        variables = tuple(_rewritten(array, target, find_forecaster, progress) for array in arrays)
        for path in sorted(target.rglob("*")):
            if path.name in _METADATA:
                _forget(path)
        if out is not None:
            target.rename(goal)
    except OSError as error:
        raise ConversionError(f"{target}: {error.strerror or error}") from error
    finally:
        if out is not None:
            shutil.rmtree(target, ignore_errors=True)
    return MaterialiseSummary(source if out is None else goal, variables)


def _folder(address: StoreAddress) -> Path:
    if address.path is None:
        raise ConversionError.at(
            "store", found=str(address), expected="a folder on this machine", remedy="copy the store here"
        )
    return address.path


def _rewritten(
    array: StoredArray,
    target: Path,
    find: pipeline.FindForecaster,
    progress: Callable[[str, int, int], None] | None,
) -> MaterialisedVariable:
    """Rewrite the files of an array, chunks or shards, in the target."""
    if array.wrapped:
        raise ConversionError.at(
            array.name,
            found="other codecs around this one, so that a chunk is no stream",
            expected="no filters and no compressors beside it",
        )
    units = [*np.ndindex(*(-(-s // u) for s, u in zip(array.array.shape, array.unit, strict=True)))]
    chunks = rewritten = before = after = 0
    models: dict[str, None] = {}

    def free(stream: bytes) -> bytes:
        nonlocal chunks, rewritten
        chunks += 1
        digest = pipeline.describe(stream).foundation
        if digest is None:
            return stream
        rewritten += 1
        models[digest] = None
        return pipeline.materialise(stream, find_forecaster=find)

    for number, unit in enumerate(units):
        path = target / array.unit_key(unit)
        if path.is_file():
            data = path.read_bytes()
            try:
                new = free(data) if array.array.shards is None else _shard(array, data, path.name, free)
            except AESZError as error:
                raise type(error)(f"{array.name}, chunk {unit}: {error}") from error
            before, after = before + len(data), after + len(new)
            if new != data:
                _replace(path, new)
        if progress is not None:
            progress(array.name, number + 1, len(units))
    return MaterialisedVariable(array.name, chunks, rewritten, before, after, tuple(models))


def _shard(array: StoredArray, data: bytes, name: str, free: Callable[[bytes], bytes]) -> bytes:
    """Rewrite the chunks of a shard and its index."""
    metadata: Any = array.array.metadata.to_dict()
    configuration = metadata["codecs"][0]["configuration"]
    checksum = any(codec["name"] == "crc32c" for codec in configuration["index_codecs"])
    first = configuration.get("index_location", "end") == "start"
    count = int(np.prod([u // c for u, c in zip(array.unit, array.array.chunks, strict=True)]))
    size = 16 * count + 4 * checksum
    if len(data) < size:
        raise CorruptStreamError.at(
            "shard index", found=f"{len(data)} bytes in {name}", expected=f"{size} or more"
        )
    entries = struct.iter_unpack(
        "<QQ", data[: 16 * count] if first else data[len(data) - size :][: 16 * count]
    )
    at, index, parts = size if first else 0, [], []
    for start, length in entries:
        if (start, length) == (_EMPTY, _EMPTY):
            index.append((_EMPTY, _EMPTY))
            continue
        if start + length > len(data):
            raise CorruptStreamError.at(
                "shard index",
                found=f"a chunk that ends at byte {start + length}",
                expected=f"{len(data)} bytes at most",
            )
        part = free(data[start : start + length])
        index.append((at, len(part)))
        parts.append(part)
        at += len(part)
    table = b"".join(struct.pack("<QQ", *entry) for entry in index)
    if checksum:
        from google_crc32c import value  # of Zarr

        table += struct.pack("<I", value(table))
    return b"".join((table, *parts) if first else (*parts, table))


def _forget(path: Path) -> None:
    """Take the model and its coordinates out of the configurations of our codec in a metadata file."""
    content = json.loads(path.read_text())
    changed = False

    def walk(value: Any) -> None:
        nonlocal changed
        if isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            ours = (
                value
                if value.get("id") == CODEC
                else value.get("configuration")
                if value.get("name") == CODEC
                else None
            )
            if isinstance(ours, dict):
                for key in _OF_MODELS:
                    changed |= ours.pop(key, None) is not None
            for item in value.values():
                walk(item)

    walk(content)
    if changed:
        _replace(path, json.dumps(content, indent=2).encode())


def _replace(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=PARTIAL, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.close()
            temporary.chmod(path.stat().st_mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
