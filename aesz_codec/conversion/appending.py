"""`append`: put a later part of a dataset behind the end of a finished store, as exactly once as a conversion.

    part -> checks: grid, order, units, whole chunks -> tasks beyond the end -> coordinates -> metadata, root last
                                                             |
                                        journal in the store + lock, as of `convert`

What is written first lies beyond the shape that the metadata give, where nobody reads. The last object, the root's
metadata, shows all arrays at their new length at once to everyone who opens the store by it, as xarray does. The codec and
its bound are those of the arrays: nothing that is in the store is coded again.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
from zarr.storage import MemoryStore

from .._source import PACKING, Region, Source, SourceLike, check_times, is_time, one_line, open_sources
from .._store import JOURNAL, StoreAddress, StoredArray, StoreLike, open_address, open_array, open_store
from ..bounds import ErrorBound
from ..errors import AESZError, ConversionError, InvalidConfigError
from ..progress import Progress, bars
from .engine import open_engine
from .journal import Journal, Lock
from .plan import WHOLE_COPY, ConversionPlan, VariablePlan, memory_in_bytes, plan_tasks, source_chunks
from .run import Run, Target
from .summary import ConversionSummary
from .write import TaskRecord, WriteTask

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

__all__ = ["append"]


def append(
    source: SourceLike,
    store: StoreLike,
    dim: str = "time",
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
) -> ConversionSummary:
    """Append a later part, such as a new month, to a store that `convert` wrote.

    Parameters
    ----------
    source : path, URL, pattern, sequence of paths, Zarr store or xarray.Dataset
        The new part alone: the variables of the store, on its grid, after its last time.
    store : path, URL or Zarr store
        A finished one. Until the end it is read as it was.
    dim : str
    resume : bool
        Go on with an append of the same part that was interrupted or killed, after comparing all checksums.
    overwrite : bool
        Drop what another append left, which was not finished, and begin anew.
    workers, scheduler, client, memory_limit, storage_options, source_options, progress
        As for `convert`.

    Returns
    -------
    ConversionSummary
        Of the new part. Bounds are those of the store, on the values in its dtype.

    Raises
    ------
    ConversionError
        If the part does not fit (another grid, other variables or units, times that are not later), the store does not end
        with a whole chunk (shard) of each compressed variable, another append is unfinished, or one cannot read or write.
    InvalidConfigError
        If a chunk does not fit into the memory, or options exclude each other.
    """
    started = time.perf_counter()
    if overwrite and resume:
        raise InvalidConfigError.at("resume", found="overwrite beside it", expected="one of them")
    arrays = open_store(store, storage_options=storage_options)
    address = open_address(store, storage_options=storage_options)
    journal = Journal.find(address)
    if journal is not None and not (resume or overwrite):
        raise _unfinished(address)
    with ExitStack() as stack:
        tell = (stack.enter_context(bars()) if progress else None) if isinstance(progress, bool) else progress
        opened = stack.enter_context(open_sources(source, storage_options=source_options))
        check_times(opened.decoded)
        before = journal if resume else None
        part = _Part.of(opened, arrays, dim, None if before is None else _start_of(before, address, dim))
        engine = stack.enter_context(open_engine(scheduler, workers, client))
        limit = engine.memory_limit if memory_limit is None else None
        plan = part.plan(limit or memory_in_bytes(memory_limit, engine.workers))
        request = {
            "source": opened.identity(),
            "append": {"dim": dim, "start": part.start, "stop": part.start + part.length},
        }
        if before is not None and before.plan["request"] != json.loads(json.dumps(request)):
            raise ConversionError.at(
                "resume",
                found="another part, or files that have changed",
                expected=f"those with which the append to {address} was begun",
                remedy="give the same source, or pass overwrite (--overwrite) to begin anew",
            )
        run = _Appending(plan, address, engine, {"request": request}, part, tell)
        records = run.append(resume=resume, overwrite=overwrite)
        return run.summary(records, time.perf_counter() - started)


def _unfinished(address: StoreAddress) -> ConversionError:
    return ConversionError.at(
        "store",
        found=f"{address}, to which something was appended and not finished",
        expected="a finished store",
        remedy="go on with it by resume (--resume), or pass overwrite (--overwrite) to drop it",
    )


def _start_of(journal: Journal, address: StoreAddress, dim: str) -> int:
    begun = journal.plan.get("request", {}).get("append", {})
    if begun.get("dim") != dim:
        raise ConversionError.at(
            "resume",
            found=f"what is no append along {dim} in {address}",
            expected="an append that was stopped",
        )
    return int(begun["start"])


# What is appended


@dataclass(frozen=True)
class _Part:
    """A new part and where it goes.

    Attributes
    ----------
    dim : str
    start, length : int
        Along `dim`: of the store before, and of the part.
    arrays : dict of name to StoredArray
        Those of the store that grow.
    variables : dict of name to xarray.Variable
        The same of the part: lazy; those that another codec stores with the values that lie in the store.
    """

    dim: str
    start: int
    length: int
    arrays: dict[str, StoredArray]
    variables: dict[str, xr.Variable]

    @classmethod
    def of(cls, source: Source, arrays: Mapping[str, StoredArray], dim: str, start: int | None) -> _Part:
        """Check that a source fits behind what the store holds.

        Raises
        ------
        ConversionError
        """
        dataset = source.decoded
        stored = dataset if source.stored is None else source.stored
        growing = {name: array for name, array in arrays.items() if dim in array.dims}
        lengths = {array.array.shape[array.dims.index(dim)] for array in growing.values()}
        if not growing or not dataset.sizes.get(dim):
            where = "source" if growing else "store"
            raise ConversionError.at("dim", found=f"no {dim!r} in the {where}", expected="a dimension of it")
        if start is None:
            if len(lengths) > 1:
                raise ConversionError.at(
                    "store", found=f"arrays of {sorted(lengths)} along {dim}", expected="one length"
                )
            start = lengths.pop()
        _check_names(dataset, arrays, growing)
        part = cls(dim, start, dataset.sizes[dim], growing, {})
        for name, array in arrays.items():
            if name not in growing and name in dataset.variables:
                _check_equal(name, stored.variables[name], array)
        for name, array in growing.items():
            part._check_shape(name, dataset.variables[name], array)
            if array.bound is not None:
                part._check_coded(name, dataset.variables[name], array)
                part.variables[name] = dataset.variables[name]
            else:
                part.variables[name] = _as_stored(name, stored, array)
            if name not in part.small():
                part._check_end(name, array)
        if dim in growing:
            part._check_order()
        return part

    def place(self, name: str, region: Region) -> Region:
        """Return where a region of the part lies in the array."""
        axis = self.arrays[name].dims.index(self.dim)
        return tuple(
            slice(side.start + self.start, side.stop + self.start) if a == axis else side
            for a, side in enumerate(region)
        )

    def grown(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array when the part is in it."""
        array = self.arrays[name]
        return tuple(
            self.start + self.length if d == self.dim else n
            for d, n in zip(array.dims, array.array.shape, strict=True)
        )

    def small(self) -> list[str]:
        """Name what is written in one piece: the coordinates, and whatever else another codec stores and is not large."""
        return [n for n in self.variables if self.arrays[n].bound is None and not self._is_large(n)]

    def units(self, name: str) -> list[tuple[int, ...]]:
        """Return the chunks (shards) of an array in which there is something of the part."""
        array = self.arrays[name]
        axis, counts = array.dims.index(self.dim), list(self.grown(name))
        counts = [-(-n // u) for n, u in zip(counts, array.unit, strict=True)]
        first = self.start // array.unit[axis]
        return [index for index in np.ndindex(*counts) if index[axis] >= first]

    def plan(self, memory_limit: int) -> ConversionPlan:
        """Cut the part into tasks; the regions are those of the part."""
        import xarray as xr

        coded = [self._variable_plan(n, memory_limit) for n, a in self.arrays.items() if a.bound is not None]
        large = [self._variable_plan(n, memory_limit) for n in self.arrays if self._is_large(n)]
        return ConversionPlan(
            dataset=xr.Dataset({v.name: self.variables[v.name] for v in (*coded, *large)}),
            variables=tuple(coded),
            large_copies=tuple(large),
            encoding={v.name: _encoding_of(self.arrays[v.name]) for v in coded},
            zarr_format=3,
        )

    def _is_large(self, name: str) -> bool:
        return self.arrays[name].bound is None and self.variables[name].nbytes > WHOLE_COPY

    def _variable_plan(self, name: str, memory_limit: int) -> VariablePlan:
        array, variable = self.arrays[name], self.variables[name]
        bound = array.bound or ErrorBound("lossless")
        dtype = array.array.dtype
        shards = tuple(array.array.shards) if array.array.shards else None
        tasks, amplification = plan_tasks(
            variable.shape, source_chunks(variable), array.array.chunks, shards,
            itemsizes=(variable.dtype.itemsize, dtype.itemsize), memory_limit=memory_limit, name=name, dims=array.dims,
        )  # fmt: skip
        return VariablePlan(
            name, array.dims, variable.shape, array.array.chunks, shards, dtype, bound, bound, bound, tasks,
            amplification,
        )  # fmt: skip

    def _check_shape(self, name: str, variable: xr.Variable, array: StoredArray) -> None:
        expected = {
            d: self.length if d == self.dim else n for d, n in zip(array.dims, array.array.shape, strict=True)
        }
        found = dict(zip(map(str, variable.dims), variable.shape, strict=True))
        if list(found.items()) != list(expected.items()):
            raise ConversionError.at(
                "source", found=f"{name} of {found}", expected=f"{expected}, as in the store"
            )

    def _check_coded(self, name: str, variable: xr.Variable, array: StoredArray) -> None:
        assert array.bound is not None
        exact = array.bound.mode == "lossless" and variable.dtype != array.array.dtype
        if variable.dtype.kind != "f" or exact:
            raise ConversionError.at(
                "source",
                found=f"{name} of {variable.dtype}",
                expected=str(array.array.dtype) if exact else "floating-point values",
            )
        units, units_there = variable.attrs.get("units"), array.array.attrs.get("units")
        if units != units_there:
            raise ConversionError.at(
                "source",
                found=f"{name} in {units!r}",
                expected=f"{units_there!r}, as in the store",
                remedy="convert it first",
            )
        if array.bound.mode == "range_rel" or array.forecaster is not None:
            raise ConversionError.at(
                "store",
                found=f"{name} with "
                + ("a foundation model" if array.forecaster else "a bound by the range of each chunk"),
                expected="an array that `convert` wrote",
                remedy="append with xarray or write_states: docs/archives.md",
            )

    def _check_end(self, name: str, array: StoredArray) -> None:
        unit = array.unit[array.dims.index(self.dim)]
        if self.start % unit:
            raise ConversionError.at(
                "store",
                found=f"{name} of length {self.start} along {self.dim}, in {'shards' if array.array.shards else 'chunks'} "
                f"of {unit}",
                expected="a whole number of them, as the last one would have to be coded again and lose precision",
                remedy="convert the first part with chunks and shards that divide its length, or append with xarray "
                "(docs/archives.md)",
            )

    def _check_order(self) -> None:
        """Later times than those there are, or whatever rises or falls along the dimension."""
        there = np.asarray(self.arrays[self.dim].array[max(0, self.start - 2) : self.start])
        new = np.asarray(self.variables[self.dim].values)
        both = np.concatenate([there, new])
        if there.size and not ((both[1:] > both[:-1]).all() or (both[1:] < both[:-1]).all()):
            units = self.arrays[self.dim].array.attrs.get("units", "")
            raise ConversionError.at(
                "source",
                found=f"{self.dim} {new[0]} to {new[-1]} {units}".rstrip(),
                expected=f"later ones than the store's last, {there[-1]}, in order",
                remedy="leave out what is in the store",
            )


def _encoding_of(array: StoredArray) -> dict[str, Any]:
    """Say of the codec what a summary asks."""
    return {"serializer": {"configuration": {"models": [model.to_json() for model in array.models]}}}


def _check_names(
    dataset: xr.Dataset, arrays: Mapping[str, StoredArray], growing: Mapping[str, StoredArray]
) -> None:
    missing = [name for name in growing if name not in dataset.variables]
    unknown = [str(name) for name in dataset.data_vars if name not in arrays]
    if missing or unknown:
        raise ConversionError.at(
            "source",
            found=f"no variable {missing[0]!r}" if missing else f"a variable {unknown[0]!r}",
            expected="the variables of the store",
            remedy="" if missing else "leave it out",
        )


def _check_equal(name: str, variable: xr.Variable, array: StoredArray) -> None:
    values, there = np.asarray(variable.values), np.asarray(array.array[...])
    if values.dtype.kind in "mMOSU" or there.dtype.kind not in "biufc":
        return
    if values.shape != there.shape or not np.array_equal(values, there, equal_nan=values.dtype.kind in "fc"):
        raise ConversionError.at(
            "source",
            found=f"another {name}",
            expected="that of the store",
            remedy="append what is on its grid",
        )


def _as_stored(name: str, dataset: xr.Dataset, array: StoredArray) -> xr.Variable:
    """Return a variable with the numbers that the array would hold: of its units of time and of its packing."""
    import xarray as xr

    variable, attributes = dataset.variables[name], cast("dict[str, Any]", dict(array.array.attrs))
    keys = ("units", "calendar") if is_time(variable) or variable.dtype.kind == "m" else (*PACKING, "units")
    if any(_plain(variable.attrs.get(key)) != attributes.get(key) for key in keys):
        if keys[0] != "units":
            raise ConversionError.at(
                "source",
                found=f"{name} packed, or in units, that are not those of the store",
                expected=str({key: attributes.get(key) for key in keys}),
            )
        decoded = xr.decode_cf(dataset[[name]]).variables[name].copy(deep=False)
        decoded.encoding = {
            **{key: attributes[key] for key in keys if key in attributes},
            "dtype": array.array.dtype,
        }
        units = attributes.get("units")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other units, which are refused below
                variable = xr.conventions.encode_cf_variable(decoded, name=name)
        except (ValueError, OverflowError) as error:
            raise ConversionError(f"source: cannot write {name} in {units!r}: {one_line(error)}") from error
        if variable.attrs.get("units") != units:
            raise ConversionError.at(
                "source",
                found=f"{name} that takes {variable.attrs.get('units')!r}",
                expected=f"whole numbers of the store's units, {units!r}",
            )
    if variable.nbytes <= WHOLE_COPY:
        values = np.asarray(variable.values)
        with np.errstate(invalid="ignore", over="ignore"):
            cast_values = values.astype(array.array.dtype)
        if values.dtype.kind in "biufc" and not np.array_equal(
            values, cast_values, equal_nan=values.dtype.kind in "fc"
        ):
            raise ConversionError.at(
                "source",
                found=f"{name} with values that {array.array.dtype} does not hold",
                expected="those that it does",
            )
        variable = xr.Variable(variable.dims, cast_values)
    elif variable.dtype != array.array.dtype:
        raise ConversionError.at(
            "source", found=f"{name} of {variable.dtype}", expected=str(array.array.dtype)
        )
    return variable


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


# Running


class _Appending(Run):
    """A run whose tasks lie behind the end of arrays that are there."""

    def __init__(
        self,
        plan: ConversionPlan,
        address: StoreAddress,
        engine: Any,
        decisions: Mapping[str, Any],
        part: _Part,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        super().__init__(plan, Target(address, address), engine, decisions, "stop", progress)
        self.address = address
        self.part = part

    def append(self, *, resume: bool, overwrite: bool) -> dict[str, TaskRecord]:
        """Do what is not done yet, then show it; what was not finished is kept if there is anything."""
        with self._locked() as lock:
            if not resume:
                self._check_unchanged(overwrite)
            if overwrite and (abandoned := Journal.find(self.address)) is not None:
                self._drop(abandoned)
            try:
                return self.write(lock, {}, resume)
            except Exception as error:
                text = str(error)
                if not isinstance(error, AESZError):
                    reason = getattr(error, "strerror", None) or one_line(error)
                    text = f"store: cannot write {self.address}: {reason}"
                journal = Journal.find(self.address)
                if journal is not None and not journal.records:
                    self._drop(journal)
                elif journal is not None:
                    text += "; what is done is kept: go on with resume (--resume)"
                raise (type(error) if isinstance(error, AESZError) else ConversionError)(text) from error

    def _check_unchanged(self, overwrite: bool) -> None:
        """Compare with what the part was checked against, before the lock was there."""
        if not overwrite and self.address.get(f"{JOURNAL}/plan.json") is not None:
            raise _unfinished(self.address)
        for name, array in self.part.arrays.items():
            there = open_array(self.address, name).array.shape
            if there[array.dims.index(self.part.dim)] != self.part.start:
                raise ConversionError.at(
                    "store",
                    found=f"{name} of shape {there}, which another append has changed",
                    expected=f"length {self.part.start} along {self.part.dim}, as the metadata of the store had it",
                    remedy="append again, or where it was stopped at the end, go on with it by resume (--resume)",
                )

    @contextmanager
    def _locked(self) -> Iterator[Lock]:
        try:
            with Lock(self.address) as lock:
                yield lock
        finally:
            if self.address.path is not None:
                with suppress(OSError):  # not empty: something is left to resume
                    (self.address.path / JOURNAL).rmdir()

    def place(self, variable: VariablePlan, region: Region) -> Region:
        """Behind the end."""
        return self.part.place(variable.name, region)

    def task(self, variable: VariablePlan, region: Region) -> WriteTask:
        """Compare in the stored dtype, as the bound is recorded for it."""
        return replace(
            super().task(variable, region), shape=self.part.grown(variable.name), compare_stored=True
        )

    def prepare(self, objects: Mapping[str, bytes]) -> None:
        """Write nothing: the arrays are there."""

    def complete(self, objects: Mapping[str, bytes]) -> None:
        """Write the coordinates, then the metadata, of all arrays at once in the root's, and forget the journal."""
        for name in self.part.small():
            for key, data in self._small_objects(name).items():
                self.address.put(key, data)
        shapes = {name: list(self.part.grown(name)) for name in self.part.arrays}
        for name, shape in shapes.items():
            for key in (f"{name}/zarr.json", f"{name}/.zarray"):
                if (found := self.address.get(key)) is not None:
                    self.address.put(key, _indented({**json.loads(found), "shape": shape}))
        for root in ("zarr.json", ".zmetadata"):
            if (found := self.address.get(root)) is not None:
                self.address.put(root, _indented(_with_shapes(json.loads(found), shapes)))
        self._forget()

    def _small_objects(self, name: str) -> dict[str, bytes]:
        """Let Zarr write an array in memory, behind what the last chunk holds."""
        array = self.part.arrays[name]
        held: dict[str, Any] = {}
        memory = StoreAddress("memory", MemoryStore(held))
        for key in ("zarr.json", ".zarray"):
            if (data := self.address.get(f"{name}/{key}")) is not None:
                grown = {**json.loads(data), "shape": list(self.part.grown(name))}
                memory.put(f"{name}/{key}", _indented(grown))
        metadata = set(held)
        for unit in self.part.units(name):
            if (data := self.address.get(array.unit_key(unit))) is not None:
                memory.put(array.unit_key(unit), data)
        values = self.part.variables[name].values
        place = self.part.place(name, tuple(slice(0, n) for n in values.shape))
        zarr.open_array(memory.store, path=name, mode="r+")[place] = values
        return {key: data.to_bytes() for key, data in held.items() if key not in metadata}

    def _drop(self, journal: Journal) -> None:
        """Delete what an append has written beyond the end, which the next one may leave empty."""
        begun = journal.plan.get("request", {}).get("append", {})
        start, stop = int(begun.get("start", 0)), int(begun.get("stop", 0))
        if begun.get("dim") == self.part.dim and start == self.part.start:  # else it had been shown
            there = replace(self.part, start=start, length=stop - start)
            for name, array in there.arrays.items():
                if array.bound is not None or there._is_large(name):
                    for unit in there.units(name):
                        self.address.delete(array.unit_key(unit))
        self._forget()

    def _forget(self) -> None:
        for key in self.address.sizes(f"{JOURNAL}/"):
            if key != f"{JOURNAL}/lock":
                self.address.delete(key)


def _indented(document: Any) -> bytes:
    return json.dumps(document, indent=2).encode()


def _with_shapes(root: dict[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Set the shapes in consolidated metadata, of either format, where there are any."""
    consolidated = root.get("consolidated_metadata") or root
    for name, shape in shapes.items():
        for key in (name, f"{name}/.zarray"):
            if key in consolidated.get("metadata", {}):
                consolidated["metadata"][key]["shape"] = list(shape)
    return root
