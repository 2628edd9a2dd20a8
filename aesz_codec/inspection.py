"""What a store holds: ratios, bounds, what the encoder chose in each chunk, and where the bytes went.

Streams are described from their headers; only `inspect_chunk` decodes one, to say what its alternatives would have cost.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import zoo
from ._source import open_source, read_block
from ._store import JOURNAL, StoredArray, StoreLike, open_address, open_store
from .bounds import ErrorBound
from .errors import AESZError, ConversionError, CorruptStreamError, InvalidConfigError

if TYPE_CHECKING:
    import xarray as xr

    from .dissection import Candidate, Forecast
    from .packs import Pack

__all__ = [
    "ChunkReport",
    "ModelReport",
    "StoreReport",
    "VariableReport",
    "inspect_chunk",
    "inspect_chunks",
    "inspect_store",
]


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
    forecast : Forecast or None
        How its frames refer to one another, and what that explains; None if it has none.
    candidates : tuple of Candidate
        What every choice of the encoder costs, the smallest first; the chosen one as it is stored.
    candidates_from : str
        ``source`` if they coded the original values. ``decoded`` if they coded what the stream decodes to; then all but the
        chosen one are estimates, mostly too high, since decoded values carry the noise of a quantizer: by 2 to 10 %,
        and up to 25 % at loose bounds. Empty if there are none.
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
    forecast: Forecast | None = None
    candidates: tuple[Candidate, ...] = ()
    candidates_from: str = ""


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
    appending : str
        How far an append has come that is not finished; empty if there is none.
    """

    store: Path | str
    zarr_format: int
    variables: tuple[VariableReport, ...]
    others: Mapping[str, tuple[int, int]]
    appending: str = ""

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
    from .conversion.journal import unfinished_work

    arrays = open_store(store, storage_options=storage_options)
    address = open_address(store, storage_options=storage_options, read_only=True)
    formats = {array.array.metadata.zarr_format for array in arrays.values()}
    return StoreReport(
        store=address.path or address.name,
        zarr_format=formats.pop() if formats else 3,
        variables=tuple(_describe_array(a) for a in arrays.values() if a.bound is not None),
        others={a.name: (a.raw_bytes, a.stored_bytes()) for a in arrays.values() if a.bound is None},
        appending="" if address.get(f"{JOURNAL}/plan.json") is None else unfinished_work(address),
    )


def inspect_chunk(
    store: StoreLike,
    variable: str,
    index: tuple[int, ...],
    *,
    candidates: bool = True,
    source: str | os.PathLike[str] | xr.Dataset | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ChunkReport:
    """Describe one chunk of one variable.

    Parameters
    ----------
    store : path, URL or Zarr store
    variable : str
    index : tuple of int
        Of the chunk along each dimension; of the inner chunk in sharded arrays.
    candidates : bool
        Decode the chunk, and code it with every choice of the encoder: takes some ten times as long as writing it took. Without,
        only the header is read.
    source : path or xarray.Dataset, optional
        What the store was converted from: the choices then code the original values.
    storage_options : mapping, optional
        For fsspec, if it is a URL.

    Raises
    ------
    InvalidConfigError
        If the store has no such variable or chunk.
    ConversionError
        If chunks are no streams, or the source is none of this variable.
    CorruptStreamError, UnsupportedFormatError
        If its stream cannot be read.
    ModelNotFoundError
        If `candidates`, and a model of the variable or the stream is not found.
    """
    stored = _ours(store, variable, storage_options)
    counts = stored.chunk_count()
    if len(index) != len(counts) or any(not 0 <= i < n for i, n in zip(index, counts, strict=True)):
        raise InvalidConfigError.at(
            "chunk",
            found=f"index {index}",
            expected=f"{len(counts)} numbers below {counts}, one for each dimension",
        )
    data = stored.chunk_bytes(index)
    report = _describe_chunk(stored, index, data)
    return _dissected(report, stored, data, source) if candidates and data is not None else report


def inspect_chunks(
    store: StoreLike,
    variable: str,
    *,
    candidates: bool = True,
    source: str | os.PathLike[str] | xr.Dataset | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[ChunkReport]:
    """Describe every chunk of one variable, one after the other; see `inspect_chunk`.

    Raises
    ------
    InvalidConfigError
        If the store has no such variable.
    ConversionError, CorruptStreamError, UnsupportedFormatError, ModelNotFoundError
        As `inspect_chunk`.
    """
    for index in np.ndindex(*_ours(store, variable, storage_options).chunk_count()):
        yield inspect_chunk(
            store, variable, index, candidates=candidates, source=source, storage_options=storage_options
        )


def _ours(store: StoreLike, variable: str, storage_options: Mapping[str, Any] | None) -> StoredArray:
    """Return an array that this codec wrote, and no other codec around it."""
    arrays = open_store(store, storage_options=storage_options)
    ours = [name for name, array in arrays.items() if array.bound is not None]
    if variable not in ours:
        raise InvalidConfigError.at(
            "chunk",
            found=f"variable {variable!r}",
            expected=f"one of {', '.join(ours) or 'none in this store'}",
        )
    stored = arrays[variable]
    if stored.wrapped:
        raise ConversionError.at(
            variable,
            found="other codecs around this one, so that a chunk is no stream",
            expected="no filters and no compressors beside it",
            remedy="write the store with encoding_for",
        )
    return stored


def _dissected(
    report: ChunkReport,
    stored: StoredArray,
    data: bytes,
    source: str | os.PathLike[str] | xr.Dataset | None,
) -> ChunkReport:
    """Add what only decoding and coding again tell."""
    from . import dissection, pipeline

    packs = {model.digest: model.pack() for model in stored.models}

    def find_model(digest: str) -> Pack:
        return packs[digest] if digest in packs else zoo.get(digest)

    if source is None:
        values = pipeline.decode(data, find_model=find_model)
    else:
        values = _original(stored, report, source)
    exact = report.mode == "lossless"
    mode = "abs" if report.mode == "range_rel" else report.mode
    bound = ErrorBound(mode, None if exact else report.tolerance)
    parameters = dict(report.parameters or {})
    named = pipeline.describe(data).models  # packs: the report names a foundation model as well
    models = {digest: find_model(digest) for digest in (*packs, *named)}
    tried = dissection.candidates(
        values,
        bound,
        effort=stored.effort or "default",
        models=list(models.values()),
        # decoded values may lie on a lattice that the original ones did not
        snap=source is not None or exact or parameters.get("transform") == "lattice",
    )
    names = [name for name in report.models.values() if name]
    chosen = {**parameters, "model": names[0]} if names else parameters
    rows = [dissection.Candidate(report.predictor, chosen, report.stored_bytes, chosen=True)]
    for row in tried:
        same = row.method == report.predictor and all(chosen.get(k) == v for k, v in row.parameters.items())
        same = same and ("model" in row.parameters or not report.models)
        kept_exactly = row.method in ("lossless", "bytes")
        if not same and (source is not None or exact or not kept_exactly):
            rows.append(row)
    return replace(
        report,
        forecast=dissection.forecast(data, find_model=find_model),
        candidates=tuple(sorted(rows, key=lambda row: row.nbytes)),
        candidates_from="decoded" if source is None else "source",
    )


def _original(
    stored: StoredArray, report: ChunkReport, source: str | os.PathLike[str] | xr.Dataset
) -> np.ndarray[Any, Any]:
    """Read the values that became a chunk; where it reaches over the edge of the array, what Zarr fills it with."""
    array, name = stored.array, stored.name
    with open_source(source) as dataset:
        found = dataset.variables.get(name)
        if found is None or found.shape != array.shape or found.dtype.kind != array.dtype.kind:
            raise ConversionError.at(
                "source",
                found="no such variable" if found is None else f"{found.dtype}, shape {found.shape}",
                expected=f"{name!r} with {array.dtype}, shape {array.shape}, as in the store",
                remedy="give what the store was converted from",
            )
        region = tuple(
            slice(i * c, min(n, (i + 1) * c))
            for i, c, n in zip(report.index, array.chunks, array.shape, strict=True)
        )
        values = read_block(found, name, region)
    chunk = np.full(array.chunks, array.fill_value, array.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        chunk[tuple(slice(0, n) for n in values.shape)] = values
    return chunk


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
    named = {model.digest: (model.id, len(model.data or "")) for model in stored.models}
    if stored.forecaster is not None:
        named[stored.forecaster.digest] = stored.forecaster.name, 0
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
                id=named[digest][0] if digest in named else None,
                digest=digest,
                chunks=used[digest],
                embedded_bytes=named[digest][1] if digest in named else 0,
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
    if stored.forecaster is not None:
        ids[stored.forecaster.digest] = stored.forecaster.name
    needed = info.models if info.foundation is None else (*info.models, info.foundation)
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
        models={digest: ids.get(digest) for digest in needed},
    )


def _version_text(version: Any) -> str:
    return ".".join(map(str, version)) if isinstance(version, tuple | list) else str(version)


def _as_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
