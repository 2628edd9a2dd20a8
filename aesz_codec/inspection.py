"""What a store holds: ratios, bounds, what the encoder chose in each chunk, and where the bytes went.

Streams are described from their headers; nothing is decoded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._store import StoredArray, StoreLike, open_address, open_store
from .bounds import ErrorBound
from .errors import AESZError, ConversionError, CorruptStreamError, InvalidConfigError

__all__ = ["ChunkReport", "ModelReport", "StoreReport", "VariableReport", "inspect_chunk", "inspect_store"]


@dataclass(frozen=True)
class ChunkReport:
    """One chunk.

    Attributes
    ----------
    variable : str
    index : tuple of int
        Of the chunk, along each dimension; of the inner chunk in sharded arrays.
    stored : bool
        False where every value is the fill value: nothing is stored, and the rest is empty.
    raw_bytes, stored_bytes : int
    format_version : str
    dtype : str
    shape : tuple of int
    mode : str
    error_bound, tolerance : float or None
    predictor : str
    parameters : dict
    sections : dict
        Section name to bytes.
    models : dict of str to (str or None)
        Digests of the models that decode it, to their ids, None where the store does not name one.
    """

    variable: str
    index: tuple[int, ...]
    stored: bool
    raw_bytes: int = 0
    stored_bytes: int = 0
    format_version: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    mode: str = ""
    error_bound: float | None = None
    tolerance: float | None = None
    predictor: str = ""
    parameters: Mapping[str, Any] | None = None
    sections: Mapping[str, int] | None = None
    models: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelReport:
    """A model that a variable's configuration or one of its chunks names.

    Attributes
    ----------
    id : str or None
        None if only chunks name it.
    digest : str
    chunks : int
        How many chunks use it.
    embedded_bytes : int
        What it takes in the metadata.
    """

    id: str | None
    digest: str
    chunks: int
    embedded_bytes: int


@dataclass(frozen=True)
class VariableReport:
    """One variable that this codec wrote.

    Attributes
    ----------
    name : str
    dtype : str
    shape, chunks : tuple of int
    shards : tuple of int or None
    mode : str
    error_bound : float or None
        As recorded in the store.
    effort : str
    raw_bytes, stored_bytes : int
        In the stored dtype, and of the chunks on disk.
    wrapped : bool
        Whether other codecs stand around this one; the chunks are no streams then, and the rest is empty.
    chunk_count, empty_chunks : int
        Empty ones hold nothing but the fill value, and take no bytes.
    unreadable : dict
        Chunk index, as text, to why its header cannot be read.
    predictors : dict
        Name of a predictor to the number of chunks that it was chosen for.
    parameters : dict
        Name of a parameter to the number of chunks by value, most frequent first.
    sections : dict
        Section of the streams to bytes, over all chunks.
    models : tuple of ModelReport
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    mode: str
    error_bound: float | None
    effort: str
    raw_bytes: int
    stored_bytes: int
    wrapped: bool
    chunk_count: int
    empty_chunks: int
    unreadable: Mapping[str, str]
    predictors: Mapping[str, int]
    parameters: Mapping[str, Mapping[str, int]]
    sections: Mapping[str, int]
    models: tuple[ModelReport, ...] = ()

    @property
    def bound(self) -> ErrorBound:
        """Mode and value as one object."""
        return ErrorBound(self.mode, self.error_bound)

    @property
    def compression_ratio(self) -> float:
        """``raw_bytes / stored_bytes``."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.inf

    @property
    def bits_per_value(self) -> float:
        """Stored bits for each value."""
        values = math.prod(self.shape)
        return 8 * self.stored_bytes / values if values else 0.0


@dataclass(frozen=True)
class StoreReport:
    """A whole store.

    Attributes
    ----------
    store : Path
    zarr_format : int
    variables : tuple of VariableReport
        Those that this codec wrote.
    others : dict
        Name of every other array (coordinates too) to its (raw, stored) bytes.
    """

    store: Path | str
    zarr_format: int
    variables: tuple[VariableReport, ...]
    others: Mapping[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values; an infinite ratio (nothing stored) is None."""
        report = asdict(self)
        report["store"] = str(self.store)
        for entry, variable in zip(report["variables"], self.variables, strict=True):
            ratio = variable.compression_ratio
            entry["compression_ratio"] = ratio if math.isfinite(ratio) else None
            entry["bits_per_value"] = variable.bits_per_value
        report["others"] = {
            name: {"raw_bytes": raw, "stored_bytes": stored} for name, (raw, stored) in self.others.items()
        }
        return report


def inspect_store(store: StoreLike, *, storage_options: Mapping[str, Any] | None = None) -> StoreReport:
    """Describe every variable of a finished Zarr store; its chunks are fetched, and not decoded.

    Parameters
    ----------
    store : path, URL or Zarr store
    storage_options : mapping, optional
        For fsspec, if it is a URL.

    Raises
    ------
    ConversionError
        If there is no finished store, or its metadata cannot be read. Chunks whose header cannot be read are
        in the report.
    """
    arrays = open_store(store, storage_options=storage_options)
    address = open_address(store, storage_options=storage_options, read_only=True)
    formats = {array.array.metadata.zarr_format for array in arrays.values()}
    return StoreReport(
        store=address.path or address.name,
        zarr_format=formats.pop() if formats else 3,
        variables=tuple(_describe_array(a) for a in arrays.values() if a.bound is not None),
        others={a.name: (a.raw_bytes, a.stored_bytes()) for a in arrays.values() if a.bound is None},
    )


def inspect_chunk(
    store: StoreLike,
    variable: str,
    index: tuple[int, ...],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> ChunkReport:
    """Describe one chunk of one variable.

    Parameters
    ----------
    store : path, URL or Zarr store
    variable : str
    index : tuple of int
        Of the chunk along each dimension; of the inner chunk in sharded arrays.
    storage_options : mapping, optional
        For fsspec, if it is a URL.

    Raises
    ------
    InvalidConfigError
        If the store has no such variable or chunk.
    CorruptStreamError, UnsupportedFormatError
        If the header of its stream cannot be read.
    """
    arrays = open_store(store, storage_options=storage_options)
    ours = [name for name, array in arrays.items() if array.bound is not None]
    if variable not in ours:
        raise InvalidConfigError.at(
            "chunk",
            found=f"variable {variable!r}",
            expected=f"one of {', '.join(ours) or 'none in this store'}",
        )
    stored = arrays[variable]
    counts = stored.chunk_count()
    if len(index) != len(counts) or any(not 0 <= i < n for i, n in zip(index, counts, strict=True)):
        raise InvalidConfigError.at(
            "chunk",
            found=f"index {index}",
            expected=f"{len(counts)} numbers below {counts}, one for each dimension",
        )
    if stored.wrapped:
        raise ConversionError.at(
            variable,
            found="other codecs around this one, so that a chunk is no stream",
            expected="no filters and no compressors beside it",
            remedy="write the store with encoding_for",
        )
    return _describe_chunk(stored, index, stored.chunk_bytes(index))


def _describe_array(stored: StoredArray) -> VariableReport:
    predictors: Counter[str] = Counter()
    parameters: dict[str, Counter[str]] = {}
    sections: Counter[str] = Counter()
    unreadable: dict[str, str] = {}
    used: Counter[str] = Counter()
    empty = 0
    for index, data in () if stored.wrapped else stored.chunks():
        try:
            if isinstance(data, CorruptStreamError):
                raise data
            chunk = _describe_chunk(stored, index, data)
        except AESZError as error:
            unreadable[",".join(map(str, index))] = f"{type(error).__name__}: {error}"
            continue
        if not chunk.stored:
            empty += 1
            continue
        predictors[chunk.predictor] += 1
        for name, value in (chunk.parameters or {}).items():
            parameters.setdefault(name, Counter())[_as_text(value)] += 1
        sections.update(chunk.sections or {})
        used.update([*chunk.models])
    named = {model.digest: model for model in stored.models}
    assert stored.bound is not None
    return VariableReport(
        name=stored.name,
        dtype=stored.array.dtype.name,
        shape=tuple(stored.array.shape),
        chunks=tuple(stored.array.chunks),
        shards=None if stored.array.shards is None else tuple(stored.array.shards),
        mode=stored.bound.mode,
        error_bound=stored.bound.value,
        effort=stored.effort or "default",
        raw_bytes=stored.raw_bytes,
        stored_bytes=stored.stored_bytes(),
        wrapped=stored.wrapped,
        chunk_count=math.prod(stored.chunk_count()),
        empty_chunks=empty,
        unreadable=unreadable,
        predictors=dict(predictors.most_common()),
        parameters={name: dict(values.most_common()) for name, values in parameters.items()},
        sections=dict(sections),
        models=tuple(
            ModelReport(
                id=named[digest].id if digest in named else None,
                digest=digest,
                chunks=used[digest],
                embedded_bytes=len(named[digest].data or "") if digest in named else 0,
            )
            for digest in {**named, **used}
        ),
    )


def _describe_chunk(stored: StoredArray, index: tuple[int, ...], data: bytes | None) -> ChunkReport:
    from . import pipeline

    if data is None:
        return ChunkReport(stored.name, index, stored=False)
    info = pipeline.describe(data)
    ids = {model.digest: model.id for model in stored.models}
    return ChunkReport(
        variable=stored.name,
        index=index,
        stored=True,
        raw_bytes=math.prod(stored.array.chunks) * stored.array.dtype.itemsize,
        stored_bytes=len(data),
        format_version=_version_text(info.format_version),
        dtype=str(info.dtype),
        shape=tuple(info.shape),
        mode=info.mode,
        error_bound=info.value,
        tolerance=info.tolerance,
        predictor=info.predictor,
        parameters=dict(info.parameters),
        sections=dict(info.sections),
        models={digest: ids.get(digest) for digest in info.models},
    )


def _version_text(version: Any) -> str:
    return ".".join(map(str, version)) if isinstance(version, tuple | list) else str(version)


def _as_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
