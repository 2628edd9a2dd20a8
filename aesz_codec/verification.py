"""Compare a store with its source: every value against the bound that the store records.

Variables that this codec wrote are compared under the bound in their codec's configuration; everything else,
also the coordinates, must be equal.  Both sides are read block by block, a few whole chunks at a time, and
decoded by xarray.  A floating-point source is compared in the stored dtype: a packed source that decodes to
float64 but is stored as float32 was rounded before it was encoded, and its recorded bound is smaller by that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._store import (
    Region,
    StoredArray,
    group_size,
    local_path,
    one_line,
    open_source,
    open_store,
    read_block,
    regions,
)
from .bounds import ErrorBound, ErrorSummary, error_summary, finite_range, first_violation
from .conversion import Progress
from .errors import ConversionError, ModelNotFoundError, UnsupportedFormatError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["UnreadableChunk", "VariableVerification", "VerificationReport", "Violation", "verify"]


@dataclass(frozen=True)
class Violation:
    """The first value of a variable, in the order of the blocks that are compared, that is outside its bound.

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
    source: str | os.PathLike[str] | xr.Dataset,
    store: str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] | None = None,
) -> VerificationReport:
    """Check every value of a store against its source.

    Parameters
    ----------
    source : path or xarray.Dataset
        What the store was converted from.
    store : path
        A finished local Zarr store, of format 2 or 3, written by `convert` or by xarray.
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

    arrays = open_store(store)
    path = local_path(store, "store")
    with ExitStack() as stack:
        original = stack.enter_context(open_source(source))
        numbers = stack.enter_context(open_source(path))
        decoded = numbers
        if isinstance(source, xr.Dataset):  # its times may be decoded
            decoded = stack.enter_context(_open_decoded(path))
        results = []
        for name in map(str, numbers.variables):
            times = name in original.variables and original.variables[name].dtype.kind in "mMO"
            pair = _Pair(arrays[name], original, decoded if times else numbers)
            results.append(pair.compare(progress))
    missing = tuple(str(name) for name in original.variables if name not in arrays)
    return VerificationReport(tuple(results), missing)


def _open_decoded(path: Path) -> xr.Dataset:
    import xarray as xr

    try:
        return xr.open_dataset(path, engine="zarr", chunks=None, cache=False)
    except Exception as error:
        raise ConversionError(f"store: cannot decode the times of {path}: {one_line(error)}") from error


class _Pair:
    """One array of the store and the variable that it was made from."""

    def __init__(self, stored: StoredArray, original: xr.Dataset, reconstruction: xr.Dataset) -> None:
        self.stored = stored
        self.name = stored.name
        self.original = original
        self.reconstruction = reconstruction
        self.dtype = reconstruction.variables[self.name].dtype

    def compare(self, progress: Callable[[Progress], None] | None) -> VariableVerification:
        mismatch = self._mismatch()
        if mismatch:
            return VariableVerification(self.name, self.stored.bound, mismatch=mismatch)
        # A relative range that was not resolved is that of each chunk.
        by_chunk = self.stored.bound is not None and self.stored.bound.mode == "range_rel"
        unit = self.stored.array.chunks if by_chunk else self.stored.unit
        group = 1 if by_chunk else group_size(unit, self.dtype.itemsize)
        errors, n, violations, first = ErrorSummary(), 0, 0, None
        unreadable: list[UnreadableChunk] = []
        for region in regions(self.stored.array.shape, unit, group):
            for part, values, values_hat in self._read(region, unreadable):
                found, place = self._compare_block(values, values_hat)
                errors = errors.merge(found)
                n, violations = n + values.size, violations + found.violations
                if place is not None and first is None:
                    first = self._violation(part, place, values, values_hat)
            if progress is not None:
                size = self.dtype.itemsize
                progress(Progress("verify", self.name, n * size, self.stored.array.size * size))
        return VariableVerification(
            name=self.name,
            bound=self.stored.bound,
            n=n,
            violations=violations,
            first=first,
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

    def _read(
        self, region: Region, unreadable: list[UnreadableChunk]
    ) -> list[tuple[Region, np.ndarray, np.ndarray]]:
        """Read a region of both; where that fails, chunk by chunk, noting which cannot be read."""
        values = read_block(self.original, self.name, region)
        if values.dtype.kind == "f" and self.dtype.kind == "f":
            with np.errstate(over="ignore"):
                values = values.astype(self.dtype.newbyteorder("="), copy=False)
        chunks = self.stored.array.chunks
        try:
            return [(region, values, self._stored_values(region))]
        except Exception as error:
            _raise_if_not_corrupt(error)
        parts = []
        start = tuple(side.start for side in region)
        for part in regions(values.shape, chunks):
            place = tuple(slice(r.start + s, r.stop + s) for r, s in zip(part, start, strict=True))
            try:
                parts.append((place, values[part], self._stored_values(place)))
            except Exception as error:
                _raise_if_not_corrupt(error)
                index = tuple(side.start // chunk for side, chunk in zip(place, chunks, strict=True))
                unreadable.append(UnreadableChunk(index, f"{type(error).__name__}: {one_line(error)}"))
        return parts

    def _stored_values(self, region: Region) -> np.ndarray:
        return np.asarray(self.reconstruction.variables[self.name][region].values)

    def _compare_block(
        self, values: np.ndarray, values_hat: np.ndarray
    ) -> tuple[ErrorSummary, tuple[int, ...] | None]:
        bound = self.stored.bound
        if bound is None:
            same = _equal(values, values_hat)
            count = int(same.size - np.count_nonzero(same))
            place = np.unravel_index(int(np.argmin(same)), same.shape) if count else None
            return ErrorSummary(n=same.size, violations=count), None if place is None else tuple(
                map(int, place)
            )
        if bound.mode == "range_rel":
            lowest, highest = finite_range(values) or (0.0, 0.0)
            fill = float(np.asarray(self.stored.array.fill_value, dtype=self.dtype))
            if values.shape != self.stored.array.chunks and np.isfinite(
                fill
            ):  # what an edge chunk is padded with
                lowest, highest = min(lowest, fill), max(highest, fill)
            bound = bound.resolve(lowest, highest)
        errors = error_summary(values, values_hat, bound)
        return errors, first_violation(values, values_hat, bound) if errors.violations else None

    def _violation(
        self, region: Region, place: tuple[int, ...], values: np.ndarray, values_hat: np.ndarray
    ) -> Violation:
        index = tuple(side.start + i for side, i in zip(region, place, strict=True))
        return Violation(
            index=index,
            coordinates=_coordinates(self.original, self.name, index),
            value=values[place],
            reconstruction=values_hat[place],
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
