"""Compare a store with its source: every value against the bound that the store records.

Variables that this codec wrote are compared under the bound in their codec's configuration; everything else,
also the coordinates, must be equal.  Both sides are read block by block, a few whole chunks at a time, by the
workers that `convert` has too, and decoded by xarray.  A floating-point source is compared in the stored
dtype: a packed source that decodes to float64 but is stored as float32 was rounded before it was encoded, and
its recorded bound is smaller by that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ._source import Region, SourceLike, one_line, open_source, read_block
from ._store import StoredArray, StoreLike, open_address, open_store, regions
from .bounds import ErrorBound, ErrorSummary, error_summary, finite_range, first_violation
from .conversion import Progress
from .conversion.engine import Engine, open_engine
from .conversion.run import culled
from .errors import AESZError, ConversionError, ModelNotFoundError, UnsupportedFormatError

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

__all__ = ["UnreadableChunk", "VariableVerification", "VerificationReport", "Violation", "verify"]

_TASK_BYTES = 16 << 20  # small chunks are compared together, up to this


@dataclass(frozen=True)
class Violation:
    """The first value of a variable, in the order of its indices, that is outside its bound.

    Attributes
    ----------
    index : tuple of int
        In the whole variable.
    coordinates : dict
        Dimension name to the value of its coordinate there, as text; without dimensions that have none.
    value, reconstruction : object
        Of the source and of the store.
    bound : ErrorBound or None
        None for a variable that must be equal.
    stored : bool
        False if there is no chunk in the store at this place, so that the reconstruction is the fill value.
    """

    index: tuple[int, ...]
    coordinates: dict[str, str]
    value: Any
    reconstruction: Any
    bound: ErrorBound | None
    stored: bool


@dataclass(frozen=True)
class UnreadableChunk:
    """A chunk that cannot be decoded: its index along each dimension, and why."""

    index: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class VariableVerification:
    """What was found in one variable.

    Attributes
    ----------
    name : str
    bound : ErrorBound or None
        As recorded in the store; None where another codec wrote the variable and it must be equal.
    n : int
        Values compared.
    violations : int
        Values outside the bound, NaN and infinities that did not survive included.
    first : Violation or None
    unreadable : tuple of UnreadableChunk
    mismatch : str
        Why the two cannot be compared at all; empty if they can.
    errors : ErrorSummary or None
        None for a variable that must be equal.
    """

    name: str
    bound: ErrorBound | None
    n: int = 0
    violations: int = 0
    first: Violation | None = None
    unreadable: tuple[UnreadableChunk, ...] = ()
    mismatch: str = ""
    errors: ErrorSummary | None = None

    @property
    def ok(self) -> bool:
        """Whether every value was read and is within its bound."""
        return not (self.violations or self.unreadable or self.mismatch)


@dataclass(frozen=True)
class VerificationReport:
    """What `verify` found; `missing` are variables of the source that the store does not have."""

    variables: tuple[VariableVerification, ...]
    missing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every value in the store is within its bound."""
        return all(variable.ok for variable in self.variables)


def verify(
    source: SourceLike,
    store: StoreLike,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    client: Client | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> VerificationReport:
    """Check every value of a store against its source.

    Parameters
    ----------
    source : path, URL, pattern, sequence of paths, Zarr store or xarray.Dataset
        What the store was converted from.
    store : path, URL or Zarr store
        A finished Zarr store, of format 2 or 3, written by `convert` or by xarray.
    workers, scheduler, client, storage_options, source_options
        As for `convert`.
    progress : callable, optional
        Called with a `Progress` after each block.

    Returns
    -------
    VerificationReport
        Values outside their bound, and chunks that are truncated or corrupt, are results and not errors.

    Raises
    ------
    ConversionError
        If the source or the metadata of the store cannot be read.
    UnsupportedFormatError, ModelNotFoundError
        If a chunk needs a newer version of this package, or a model that is not installed.
    """
    import xarray as xr

    arrays = open_store(store, storage_options=storage_options)
    address = open_address(store, storage_options=storage_options, read_only=True)
    with ExitStack() as stack:
        original = stack.enter_context(open_source(source, storage_options=source_options))
        numbers = stack.enter_context(open_source(address.store))
        decoded = numbers
        if isinstance(source, xr.Dataset) or _times_are_decoded(original):
            decoded = stack.enter_context(_open_decoded(address.store))
        engine = stack.enter_context(open_engine(scheduler, workers, client))
        pairs = []
        for name in map(str, numbers.variables):
            times = name in original.variables and original.variables[name].dtype.kind in "mMO"
            pairs.append(_Pair(arrays[name], original, decoded if times else numbers))
        results = _compare_all(pairs, engine, progress)
    missing = tuple(str(name) for name in original.variables if name not in arrays)
    return VerificationReport(results, missing)


def _times_are_decoded(dataset: xr.Dataset) -> bool:
    return any(dataset.variables[name].dtype.kind in "mMO" for name in dataset.coords)


def _open_decoded(store: Any) -> xr.Dataset:
    import xarray as xr

    try:
        return xr.open_dataset(store, engine="zarr", chunks=None, cache=False)
    except Exception as error:
        raise ConversionError(f"store: cannot decode the times of {store}: {one_line(error)}") from error


@dataclass(frozen=True)
class _Task:
    """A region of both, lazy, and what it takes to compare them."""

    stored: StoredArray
    region: Region
    block: xr.Variable
    block_hat: xr.Variable

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.block_hat.dtype
        return dtype


@dataclass(frozen=True)
class _Found:
    """What comparing a region showed; `place` is the first value outside the bound, with both values."""

    name: str
    n: int = 0
    errors: ErrorSummary = field(default_factory=ErrorSummary)
    place: tuple[tuple[int, ...], Any, Any] | None = None
    unreadable: tuple[UnreadableChunk, ...] = ()
    failure: AESZError | None = None


def _compare_all(
    pairs: Sequence[_Pair], engine: Engine, progress: Callable[[Progress], None] | None
) -> tuple[VariableVerification, ...]:
    comparable = {pair.name: pair for pair in pairs if not pair.mismatch}
    found: dict[str, list[_Found]] = {pair.name: [] for pair in pairs}
    compared: Counter[str] = Counter()

    def done(result: _Found) -> None:
        if result.failure is not None:
            raise result.failure
        found[result.name].append(result)
        compared[result.name] += result.n
        if progress is not None:
            array = comparable[result.name].stored.array
            size = array.dtype.itemsize
            progress(Progress("verify", result.name, compared[result.name] * size, array.size * size))

    engine.run(_compare, (task for pair in comparable.values() for task in pair.tasks(engine)), done)
    return tuple(pair.result(found[pair.name]) for pair in pairs)


def _compare(task: _Task) -> _Found:
    """Compare one region, in a worker."""
    try:
        unreadable: list[UnreadableChunk] = []
        errors, n, first = ErrorSummary(), 0, None
        for part, values, values_hat in _read(task, unreadable):
            of_part, place = _compare_block(task, values, values_hat)
            errors, n = errors.merge(of_part), n + values.size
            if place is not None:
                index = tuple(side.start + i for side, i in zip(part, place, strict=True))
                if first is None or index < first[0]:
                    first = (index, values[place], values_hat[place])
        return _Found(task.stored.name, n, errors, first, tuple(unreadable))
    except AESZError as error:
        return _Found(task.stored.name, failure=error)


def _read(task: _Task, unreadable: list[UnreadableChunk]) -> list[tuple[Region, np.ndarray, np.ndarray]]:
    """Read a region of both; where that fails, chunk by chunk, noting which cannot be read."""
    whole = tuple(slice(0, side.stop - side.start) for side in task.region)
    values = read_block(task.block, task.stored.name, whole)
    if values.dtype.kind == "f" and task.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(task.dtype.newbyteorder("="), copy=False)
    chunks = task.stored.array.chunks
    try:
        return [(task.region, values, np.asarray(task.block_hat.values))]
    except Exception as error:
        _raise_if_not_corrupt(error)
    parts = []
    for part in regions(values.shape, chunks):
        place = tuple(
            slice(r.start + s.start, r.stop + s.start) for r, s in zip(part, task.region, strict=True)
        )
        try:
            parts.append((place, values[part], np.asarray(task.block_hat[part].values)))
        except Exception as error:
            _raise_if_not_corrupt(error)
            index = tuple(side.start // chunk for side, chunk in zip(place, chunks, strict=True))
            unreadable.append(UnreadableChunk(index, f"{type(error).__name__}: {one_line(error)}"))
    return parts


def _compare_block(
    task: _Task, values: np.ndarray, values_hat: np.ndarray
) -> tuple[ErrorSummary, tuple[int, ...] | None]:
    bound = task.stored.bound
    if bound is None:
        same = _equal(values, values_hat)
        count = int(same.size - np.count_nonzero(same))
        place = np.unravel_index(int(np.argmin(same)), same.shape) if count else None
        return ErrorSummary(n=same.size, violations=count), None if place is None else tuple(map(int, place))
    if bound.mode == "range_rel":
        lowest, highest = finite_range(values) or (0.0, 0.0)
        fill = float(np.asarray(task.stored.array.fill_value, dtype=task.dtype))
        if values.shape != task.stored.array.chunks and np.isfinite(
            fill
        ):  # what an edge chunk is padded with
            lowest, highest = min(lowest, fill), max(highest, fill)
        bound = bound.resolve(lowest, highest)
    errors = error_summary(values, values_hat, bound)
    return errors, first_violation(values, values_hat, bound) if errors.violations else None


class _Pair:
    """One array of the store and the variable that it was made from."""

    def __init__(self, stored: StoredArray, original: xr.Dataset, reconstruction: xr.Dataset) -> None:
        self.stored = stored
        self.name = stored.name
        self.original = original
        self.reconstruction = reconstruction
        self.mismatch = self._mismatch()

    def tasks(self, engine: Engine) -> Iterator[_Task]:
        chunks = list(self.stored.array.chunks)
        # A relative range that was not resolved is that of each chunk.
        if self.stored.bound is None or self.stored.bound.mode != "range_rel":
            room = _TASK_BYTES // max(1, math.prod(chunks) * self.stored.array.dtype.itemsize)
            for axis, (size, chunk) in enumerate(zip(self.stored.array.shape, chunks, strict=True)):
                times = max(1, min(room, -(-size // chunk)))
                chunks[axis] *= times
                room //= times
        source, stored = self.original.variables[self.name], self.reconstruction.variables[self.name]
        for region in regions(self.stored.array.shape, chunks):
            yield _Task(self.stored, region, culled(source[region], engine), stored[region])

    def result(self, found: Sequence[_Found]) -> VariableVerification:
        if self.mismatch:
            return VariableVerification(self.name, self.stored.bound, mismatch=self.mismatch)
        errors = ErrorSummary()
        for part in found:
            errors = errors.merge(part.errors)
        places = [part.place for part in found if part.place is not None]
        first = min(places, key=lambda place: place[0], default=None)
        unreadable = sorted(
            (chunk for part in found for chunk in part.unreadable), key=lambda chunk: chunk.index
        )
        return VariableVerification(
            name=self.name,
            bound=self.stored.bound,
            n=sum(part.n for part in found),
            violations=errors.violations,
            first=None if first is None else self._violation(*first),
            unreadable=tuple(unreadable),
            errors=None if self.stored.bound is None else errors,
        )

    def _mismatch(self) -> str:
        if self.name not in self.original.variables:
            return "not in the source"
        variable, variable_hat = (
            self.original.variables[self.name],
            self.reconstruction.variables[self.name],
        )
        if variable.dims != variable_hat.dims or variable.shape != variable_hat.shape:
            sizes, sizes_hat = dict(variable.sizes), dict(variable_hat.sizes)
            return f"found dimensions {sizes_hat}, expected those of the source, {sizes}"
        kinds = variable.dtype.kind + variable_hat.dtype.kind
        same = variable.dtype.newbyteorder("=") == variable_hat.dtype.newbyteorder("=")
        if not same and kinds not in ("ff", "OU", "UO", "SO", "OS", "SU", "US", "OT", "TO", "UU", "SS"):
            return f"found dtype {variable_hat.dtype}, expected that of the source, {variable.dtype}"
        return ""

    def _violation(self, index: tuple[int, ...], value: Any, value_hat: Any) -> Violation:
        return Violation(
            index=index,
            coordinates=_coordinates(self.original, self.name, index),
            value=value,
            reconstruction=value_hat,
            bound=self.stored.bound,
            stored=self.stored.key_exists(index),
        )


def _raise_if_not_corrupt(error: Exception) -> None:
    """Raise what says nothing about the bytes: a newer format, a missing model, an unreadable disk."""
    if isinstance(error, UnsupportedFormatError | ModelNotFoundError):
        raise error
    if isinstance(error, OSError) and error.errno is not None:
        raise ConversionError(f"store: cannot read: {error.strerror}") from error


def _equal(values: np.ndarray, values_hat: np.ndarray) -> np.ndarray:
    """Say for each value whether it is equal; NaN and NaT equal themselves."""
    if values.dtype.kind in "OSUT" or values_hat.dtype.kind in "OSUT":
        pairs = zip(values.ravel().tolist(), values_hat.ravel().tolist(), strict=True)
        same = np.fromiter((_as_text(a) == _as_text(b) for a, b in pairs), dtype=bool, count=values.size)
        return same.reshape(values.shape)
    same = np.asarray(values == values_hat)
    if values.dtype.kind in "fc":
        same |= np.isnan(values) & np.isnan(values_hat)
    elif values.dtype.kind in "mM":
        same |= np.isnat(values) & np.isnat(values_hat)
    return same


def _as_text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _coordinates(dataset: xr.Dataset, name: str, index: tuple[int, ...]) -> dict[str, str]:
    import xarray as xr

    found = {}
    for dim, i in zip(dataset.variables[name].dims, index, strict=True):
        if dim not in dataset.coords:
            continue
        single = xr.Dataset(coords={dim: dataset[dim][i : i + 1].variable})
        with suppress(ValueError):  # units that are no time after all
            single = xr.decode_cf(single)
        value = single[dim].values[0]
        found[str(dim)] = str(value)[:19] if single[dim].dtype.kind == "M" else str(value)
    return found
