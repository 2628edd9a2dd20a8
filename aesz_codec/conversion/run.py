"""`convert`: open, plan, claim the store, run the tasks, finish.

Where a store is written until it is finished:

- in the file system, in ``<store>.partial``, a sibling that becomes the store by one rename;
- elsewhere (buckets know no rename), in place, without the objects that make it a Zarr group. The last one to be
  written is the root's ``zarr.json`` (``.zgroup`` in format 2): before it nothing can be opened, after it all is there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._source import Region, Skipped, SourceLike, check_times, narrowed, one_line, open_sources, read_block
from .._store import JOURNAL, PARTIAL, StoreAddress, StoreLike, open_address, open_folder
from ..bounds import ErrorBound, ErrorSummary, finite_range
from ..encoding import BoundLike, fill_values, read_blocks
from ..errors import AESZError, ConversionError, ErrorBoundViolation, InvalidBoundError, InvalidConfigError
from ..models import ModelChoice
from ..progress import Progress, bars
from .engine import Engine, open_engine
from .journal import Journal, Lock
from .plan import ALL, ConversionPlan, VariablePlan, memory_in_bytes, plan_conversion, requested_by_name
from .summary import ConversionSummary, VariableSummary
from .write import BINS, Failure, TaskRecord, WriteTask, create_objects, root_objects, run_task, task_id

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

__all__ = ["convert"]

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")

_MUCH_READ_TWICE = 4.0
_FIRST_CONTACT = 10.0  # seconds; what does not answer then is no store


def convert(
    source: SourceLike,
    store: StoreLike,
    error_bound: BoundLike | Mapping[str, BoundLike] | None = None,
    mode: str = "abs",
    *,
    variables: Sequence[str] | None = None,
    chunks: Mapping[str, int] | None = None,
    shards: Mapping[str, int] | str | None = "auto",
    zarr_format: int = 3,
    effort: str = "default",
    model: ModelChoice | Mapping[str, ModelChoice] = None,
    embed_models: bool = True,
    overwrite: bool = False,
    resume: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    on_error: str = "stop",
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
) -> ConversionSummary:
    """Convert files, a Zarr store or a dataset into a compressed Zarr store.

    Parameters
    ----------
    source : path, URL, pattern, sequence of paths, Zarr store or xarray.Dataset
        Anything that xarray opens; ``"era5/*.nc"`` names files that follow each other in time, or hold other variables
        of the same grid. Read block by block and never changed.
    store : path, URL or Zarr store
        What to create: a folder, ``s3://bucket/name.zarr`` (through fsspec), or a Zarr store such as
        ``zarr.storage.ObjectStore`` of obstore. It can be opened only when it is complete.
    error_bound : number, "lossless", (mode, number), ErrorBound, or a mapping of variable name to these
        The key ``"*"`` stands for every floating-point data variable without an entry of its own. Variables
        without a bound are kept exactly.
    mode : {"abs", "range_rel", "pw_rel", "lossless"}
        Mode of plain numbers. ``range_rel`` is resolved over each whole variable, in one pass over the source.
    variables : sequence of str, optional
        Convert only these data variables, and leave the others out of the store.
    chunks : mapping of dimension name to length, optional
        As for `encoding_for`; -1 means the whole dimension.
    shards : "auto", None, or mapping of dimension name to length
        Objects that hold many chunks. ``"auto"``: of up to 64 MiB, decoded, for arrays of more than 32 chunks; format 3
        only.
    zarr_format : {3, 2}
    effort : {"fast", "default", "max"}
    model, embed_models
        As for `encoding_for`; in a mapping, ``"*"`` stands for the variables without an entry of their own.
    overwrite : bool
        Replace an existing store: in the file system once the new one is complete, elsewhere at the beginning.
    resume : bool
        Go on with what an interrupted, killed or failed conversion left, after comparing the checksums of all its
        objects. The arguments must be the same. Begins anew where there is nothing.
    workers : int, optional
        Processes of this machine (1: this process). Default: threads, one a core.
    scheduler : {"synchronous", "threads", "processes"} or address of a Dask scheduler, optional
    client : distributed.Client, optional
    memory_limit : int or str, optional
        What one worker may take, such as ``"1GB"``. Default: an even share of half of the machine's memory; on a
        cluster, that of its workers.
    on_error : {"stop", "skip"}
        What to do with files of several that cannot be opened and variables that cannot be read: stop, or leave them
        out of the store and name them in the summary.
    storage_options, source_options : mapping, optional
        For fsspec, of the store and of the source, such as ``{"anon": True}``.
    report : path, optional
        Where to write a report, an HTML file; the same as JSON goes beside it.
    progress : callable or True, optional
        Called with a `Progress` after each task; True draws bars, in a terminal or a notebook.

    Returns
    -------
    ConversionSummary

    Raises
    ------
    ConversionError
        If the source cannot be read, the store exists or is being written by another conversion, it cannot be written
        (a full disk, no permission, no such bucket), or workers die. What is finished is kept, for `resume`.
    InvalidConfigError, InvalidBoundError, UnsupportedDtypeError
        If a variable, dimension, mode or bound does not fit the source, or a chunk not into the memory. Nothing is left.
    """
    started = time.perf_counter()
    requested = _requested_bounds(error_bound, mode)
    _check_options(overwrite, resume, on_error)
    if report is not None:
        from .report import check_report, make_report

        check_report(report)
    target = Target.of(store, storage_options)
    target.check(source, overwrite=overwrite, resume=resume)
    with ExitStack() as stack:
        tell = (stack.enter_context(bars()) if progress else None) if isinstance(progress, bool) else progress
        opened = stack.enter_context(open_sources(source, on_error=on_error, storage_options=source_options))
        datasets = [None if d is None else _select(d, variables) for d in (opened.decoded, opened.stored)]
        dataset, packed = datasets
        assert dataset is not None
        check_times(dataset)
        layout: dict[str, Any] = {
            "chunks": chunks,
            "shards": shards,
            "zarr_format": zarr_format,
            "effort": effort,
            "model": model,
            "embed_models": embed_models,
        }
        request = {
            **{key: dict(value) if isinstance(value, Mapping) else value for key, value in layout.items()},
            "model": repr(model),
            "source": opened.identity(),
            "sizes": {str(k): v for k, v in dataset.sizes.items()},
            "bounds": {name: str(bound) for name, bound in requested.items()},
            "variables": None if variables is None else list(variables),
        }
        earlier = target.earlier(request) if resume else None
        engine = stack.enter_context(open_engine(scheduler, workers, client))
        limit = engine.memory_limit if memory_limit is None else None
        layout["memory_limit"] = limit or memory_in_bytes(memory_limit, engine.workers)
        plan, dropped = _planned(dataset, packed, requested, layout, earlier, engine, tell)
        if dropped and on_error != "skip":
            raise ConversionError(next(iter(dropped.values())))
        _warn_of_rereading(plan)
        run = Run(plan, target, engine, {"request": request, "dropped": dropped}, on_error, tell)
        run.skipped.extend([*opened.skipped, *(Skipped(name, reason) for name, reason in dropped.items())])
        records = run.execute(overwrite=overwrite, resume=resume)
        summary = run.summary(records, time.perf_counter() - started)
        if report is not None:
            make_report(summary, plan, target.final, report)
    return summary


def _check_options(overwrite: bool, resume: bool, on_error: str) -> None:
    if overwrite and resume:
        raise InvalidConfigError.at(
            "resume",
            found="overwrite beside it",
            expected="one of them",
            remedy="resume keeps, overwrite replaces",
        )
    if on_error not in ("stop", "skip"):
        raise InvalidConfigError.at("on_error", found=repr(on_error), expected="'stop' or 'skip'")


# Bounds and variables


def _requested_bounds(error_bound: Any, mode: str) -> dict[str, ErrorBound]:
    if isinstance(error_bound, Mapping):
        requested = {str(name): _as_bound(value, mode) for name, value in error_bound.items()}
    elif error_bound is None and mode != "lossless":
        requested = {}
    else:
        requested = {ALL: _as_bound(error_bound, mode)}
    if not requested:
        raise InvalidBoundError.at(
            "error_bound",
            found="none",
            expected="a bound for at least one variable",
            remedy="give one, or choose lossless",
        )
    return requested


def _as_bound(value: Any, mode: str) -> ErrorBound:
    if isinstance(value, ErrorBound):
        return value
    if isinstance(value, str) and value == "lossless":
        return ErrorBound("lossless")
    if isinstance(value, tuple | list) and len(value) == 2:
        return ErrorBound(value[0], value[1])
    return ErrorBound(mode, value)


def _select(dataset: xr.Dataset, variables: Sequence[str] | None) -> xr.Dataset:
    """Keep some data variables, and those that they or their coordinates name: cell bounds, grid mappings."""
    if variables is None:
        return dataset
    for name in variables:
        if name not in dataset.data_vars:
            raise InvalidConfigError.at(
                "variables",
                found=repr(name),
                expected=f"a data variable ({', '.join(map(str, dataset.data_vars)) or 'there is none'})",
            )
    selected = dataset[list(variables)]
    named = {
        word
        for variable in selected.variables.values()
        for key in ("bounds", "climatology", "grid_mapping")
        for word in str(variable.attrs.get(key, variable.encoding.get(key, ""))).replace(":", " ").split()
    }
    return dataset[[*variables, *(str(n) for n in dataset.data_vars if n in named and n not in variables)]]


@dataclass(frozen=True)
class _RangeTask:
    name: str
    block: xr.Variable
    fills: tuple[float, ...]


def _range_of(task: _RangeTask) -> tuple[str, int, tuple[float, float] | None] | Failure:
    whole: Region = tuple(slice(0, n) for n in task.block.shape)
    try:
        values = read_block(task.block, task.name, whole)
    except AESZError as error:
        return Failure(task.name, error, of_source=True)
    return task.name, values.nbytes, finite_range(values, task.fills)


def find_ranges(
    dataset: xr.Dataset, names: Sequence[str], engine: Engine, progress: Callable[[Progress], None] | None
) -> tuple[dict[str, tuple[float, float]], dict[str, AESZError]]:
    """Find the least and the greatest finite value of some variables, all in one pass.

    Returns
    -------
    ranges : dict of name to (lowest, highest)
    unreadable : dict of name to error
        Variables that cannot be read.
    """
    unreadable: dict[str, AESZError] = {}
    lowest, highest = dict.fromkeys(names, math.inf), dict.fromkeys(names, -math.inf)
    seen = dict.fromkeys(names, 0)

    def tell(name: str) -> None:
        if progress is not None:
            progress(Progress("range", name, seen[name], dataset.variables[name].nbytes))

    def done(result: tuple[str, int, tuple[float, float] | None] | Failure) -> None:
        if isinstance(result, Failure):
            unreadable.setdefault(result.name, result.error)
            return
        name, size, found = result
        if found is not None:
            lowest[name], highest[name] = min(lowest[name], found[0]), max(highest[name], found[1])
        seen[name] += size
        tell(name)

    tasks = (
        _RangeTask(name, culled(dataset.variables[name][block], engine), fill_values(dataset.variables[name]))
        for name, block in interleaved([(name, list(read_blocks(dataset.variables[name]))) for name in names])
        if name not in unreadable
    )
    for name in names:
        tell(name)
    engine.run(_range_of, tasks, done)
    ranges = {n: (lowest[n], highest[n]) if lowest[n] <= highest[n] else (0.0, 0.0) for n in names}
    return ranges, unreadable


def interleaved(parts: Sequence[tuple[_Key, Sequence[_Item]]]) -> Iterator[tuple[_Key, _Item]]:
    """Go through several sequences side by side, so that variables of the same time, and file, come one after another.

    Examples
    --------
    >>> list(interleaved([("a", [1, 2, 3, 4]), ("b", [5, 6])]))
    [('a', 1), ('b', 5), ('a', 2), ('a', 3), ('b', 6), ('a', 4)]
    """
    ways = [((k + 0.5) / len(items), n, k) for n, (_, items) in enumerate(parts) for k in range(len(items))]
    for _, n, k in sorted(ways):
        key, items = parts[n]
        yield key, items[k]


def culled(block: xr.Variable, engine: Engine) -> xr.Variable:
    """Drop what a region does not need, of a graph of Dask's or of many files, before it is sent elsewhere."""
    if engine.workers == 1:
        return block
    if block.chunks is None:
        return narrowed(block)
    import dask

    (optimized,) = dask.optimize(block)
    result: xr.Variable = optimized
    return result


def _planned(
    dataset: xr.Dataset,
    packed: xr.Dataset | None,
    requested: Mapping[str, ErrorBound],
    layout: Mapping[str, Any],
    earlier: Journal | None,
    engine: Engine,
    progress: Callable[[Progress], None] | None,
) -> tuple[ConversionPlan, dict[str, str]]:
    """Make the plan, with the decisions of an earlier run if there was one.

    The plan is without the variables whose range could not be found; they come second, with the reason.
    """
    if earlier is not None:
        decided = earlier.plan["encoding"]
        dropped = dict(earlier.plan["dropped"])
        ranges: dict[str, tuple[float, float]] = {}
    else:
        decided = None
        by_name = requested_by_name(dataset, requested, packed)
        ranged = [name for name, bound in by_name.items() if bound.mode == "range_rel" and name in dataset]
        if ranged:  # what is wrong with the rest is found before the data are read
            without = {n: ErrorBound("lossless") if n in ranged else b for n, b in by_name.items()}
            plan_conversion(dataset, without, packed=packed, **{**layout, "model": None})
        ranges, unreadable = find_ranges(dataset, ranged, engine, progress)
        dropped = {name: str(error) for name, error in unreadable.items()}
    if dropped:
        dataset, packed = dataset.drop_vars(dropped), None if packed is None else packed.drop_vars(dropped)
        requested = {name: bound for name, bound in requested.items() if name not in dropped}
        if not requested_by_name(dataset, {**requested, ALL: ErrorBound("lossless")}, packed):
            raise ConversionError(next(iter(dropped.values())))
    return (
        plan_conversion(dataset, requested, packed=packed, ranges=ranges, encoding=decided, **layout),
        dropped,
    )


def _warn_of_rereading(plan: ConversionPlan) -> None:
    for variable in plan.variables:
        if variable.amplification > _MUCH_READ_TWICE:
            warnings.warn(
                f"{variable.name}: chunks of the source lie across those of the store, so that each is read "
                f"{variable.amplification:.0f} times; a larger memory_limit, or chunks nearer to the source's, read less",
                stacklevel=3,
            )


# The store that is written


@dataclass(frozen=True)
class Target:
    """The store under its final name, and where it lies until it is finished."""

    final: StoreAddress
    work: StoreAddress

    @classmethod
    def of(cls, store: StoreLike, storage_options: Mapping[str, Any] | None) -> Target:
        final = open_address(store, storage_options=storage_options)
        if type(final.store).__name__ == "IcechunkStore":
            raise ConversionError.at(
                "store",
                found="a store of icechunk",
                expected="one that takes other objects than Zarr's, for the journal",
                remedy="write through xarray: ds.to_zarr(session.store, encoding=encoding_for(ds, ...))",
            )
        if final.path is None:
            return cls(final, final)
        partial = open_folder(final.path.with_name(final.path.name + PARTIAL))
        return cls(final, replace(partial, name=final.name))

    def check(self, source: Any, *, overwrite: bool, resume: bool) -> None:
        """Refuse what must not be written to; nothing is changed."""
        first = [replace(address, patience=_FIRST_CONTACT) for address in (self.final, self.work)]
        try:
            Target(*first)._check(source, overwrite, resume)
        except AESZError:
            raise
        except Exception as error:
            raise ConversionError(f"store: cannot reach {self.final}: {one_line(error)}") from error

    def _check(self, source: Any, overwrite: bool, resume: bool) -> None:
        self._check_apart(source)
        path = self.final.path
        begun = self.work.path.exists() if self.work.path is not None else self._journal() is not None
        if begun and not (overwrite or resume):
            raise ConversionError.at(
                "store",
                found=f"{self.work.path or self.work}, an unfinished conversion",
                expected="no other conversion to the same store",
                remedy="go on with it by resume (--resume), or pass overwrite (--overwrite) to begin anew",
            )
        if path is not None:
            there = path.exists() or path.is_symlink()
            replaceable = (
                path.is_dir() and not path.is_symlink() and (self.final.exists() or not any(path.iterdir()))
            )
        else:
            finished = self.final.exists()
            there = finished or (not begun and bool(self.final.sizes()))
            replaceable = finished
        if not there or (resume and (begun or self._finished_journal() is not None)):
            return
        if not overwrite:
            raise ConversionError.at(
                "store",
                found=f"{self.final}, which exists" + (", finished" if resume else ""),
                expected="an unfinished conversion" if resume else "a new store",
                remedy="pass overwrite (--overwrite) to replace it, or choose another name",
            )
        if not replaceable:
            raise ConversionError.at(
                "store",
                found=f"{self.final}, which is no Zarr store",
                expected="a Zarr store to overwrite",
                remedy="choose another name",
            )

    def _check_apart(self, source: Any) -> None:
        if self.final.path is None or not isinstance(source, str | os.PathLike) or "://" in os.fspath(source):
            return
        origin, goal = Path(os.path.normpath(source)).resolve(), self.final.path.resolve()
        if origin == goal or goal in origin.parents or origin in goal.parents:
            raise ConversionError.at(
                "store",
                found=str(self.final),
                expected="a place apart from the source",
                remedy="choose another folder",
            )

    def _journal(self) -> bytes | None:
        return self.work.get(f"{JOURNAL}/plan.json")

    def _finished_journal(self) -> Journal | None:
        """Return the journal that a conversion left which was killed after it had finished."""
        return Journal.find(self.final) if self.final.exists() else None

    def earlier(self, request: Mapping[str, Any]) -> Journal | None:
        """Find what an earlier run noted, and refuse to go on with another conversion."""
        journal = Journal.find(self.work) or self._finished_journal()
        if journal is None:
            return None
        found, expected = journal.plan.get("request", {}), json.loads(json.dumps(request))
        if "append" in found:
            raise ConversionError.at(
                "resume",
                found="an append to it that is not finished",
                expected=f"a conversion to {self.final} that was stopped",
                remedy="go on with that append (aesz-codec append ... --resume)",
            )
        differing = [key for key in expected if found.get(key) != expected[key]]
        if differing:
            key = differing[0]
            what = "files that have changed" if key == "source" else f"{key} = {expected[key]}"
            begun = "as they were" if key == "source" else str(found.get(key))
            raise ConversionError.at(
                "resume",
                found=what,
                expected=f"{begun}, as {self.work} was begun",
                remedy="give the same arguments, or pass overwrite (--overwrite) to begin anew",
            )
        return journal

    def clear(self) -> None:
        """Delete what an earlier conversion left, except for the lock that is held."""
        if self.work.path is not None:
            for path in self.work.path.iterdir():
                if path.name != JOURNAL:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in (self.work.path / JOURNAL).iterdir():
                if path.name != "lock":
                    path.unlink()
            return
        keys = sorted(self.work.sizes(), key=lambda key: "/" in key)  # those that make it a group come first
        for key in keys:
            if key != f"{JOURNAL}/lock":
                self.work.delete(key)

    def discard(self) -> None:
        """Delete everything that was written."""
        if self.work.path is not None:
            shutil.rmtree(self.work.path, ignore_errors=True)
            return
        for key in self.work.sizes():
            self.work.delete(key)

    def finish(self, root: Mapping[str, bytes]) -> None:
        """Make it a store: the last of these objects, and in the file system one rename."""
        for key, data in root.items():
            self.work.put(key, data)
        if self.work.path is not None:
            self._rename(self.work.path, self.final.path or self.work.path)
        self.tidy()

    def tidy(self) -> None:
        """Delete the journal of a finished store."""
        for key in self.final.sizes(f"{JOURNAL}/"):
            self.final.delete(key)
        if self.final.path is not None:
            shutil.rmtree(self.final.path / JOURNAL, ignore_errors=True)
            shutil.rmtree(self._replaced(self.final.path), ignore_errors=True)

    @staticmethod
    def _replaced(path: Path) -> Path:
        return path.with_name(path.name + ".replaced")

    def _rename(self, work: Path, final: Path) -> None:
        if not final.exists():
            work.rename(final)
            return
        replaced = self._replaced(final)
        if replaced.exists():
            shutil.rmtree(replaced)
        final.rename(replaced)
        try:
            work.rename(final)
        except BaseException:
            replaced.rename(final)
            raise


# Running


@dataclass(frozen=True)
class _CheckTask:
    address: StoreAddress
    id: str
    objects: Mapping[str, tuple[int, int]]


def _changed(task: _CheckTask) -> str | Failure | None:
    """Return the id of a finished task whose objects are not what was noted."""
    try:
        for key, (size, crc) in task.objects.items():
            data = task.address.get(key)
            if data is None or len(data) != size or zlib.crc32(data) != crc:
                return task.id
    except Exception as error:
        return Failure(
            task.id, ConversionError(f"store: cannot read {task.address}: {one_line(error)}"), False
        )
    return None


class Run:
    """One run of a plan, from the lock to the finished store."""

    def __init__(
        self,
        plan: ConversionPlan,
        target: Target,
        engine: Engine,
        decisions: Mapping[str, Any],
        on_error: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.plan = plan
        self.target = target
        self.engine = engine
        self.decisions = decisions
        self.on_error = on_error
        self.progress = progress
        self.skipped: list[Skipped] = []
        self.resumed = 0
        self._noted = False  # whether any task was ever finished
        self._blockwise = (*plan.large_copies, *plan.variables)

    def execute(self, *, overwrite: bool, resume: bool) -> dict[str, TaskRecord]:
        """Do what is not done yet, and finish; returns the records of all tasks."""
        if resume and (finished := self.target._finished_journal()) is not None:
            self.target.tidy()
            self.resumed = len(finished.records)
            return finished.records
        with ExitStack() as stack:
            lock = Lock(self.target.work)
            try:
                stack.enter_context(lock)
            except AESZError:
                raise
            except Exception as error:
                reason = getattr(error, "strerror", None) or one_line(error)
                raise ConversionError(f"store: cannot create {self.target.final}: {reason}") from error
            try:
                if overwrite:
                    self.target.clear()
                return self.write(lock, create_objects(self.plan), resume)
            except BaseException as error:
                kept = self._noted or resume
                if not kept:
                    self.target.discard()
                if not isinstance(error, Exception) or isinstance(error, ErrorBoundViolation):
                    raise
                text = str(error)
                if not isinstance(error, AESZError):
                    reason = getattr(error, "strerror", None) or one_line(error)
                    text = f"store: cannot write {self.target.final}: {reason}"
                if kept:
                    text += "; what is done is kept: go on with resume (--resume)"
                raise (type(error) if isinstance(error, AESZError) else ConversionError)(text) from error

    def write(self, lock: Lock, objects: Mapping[str, bytes], resume: bool) -> dict[str, TaskRecord]:
        """Do the tasks that the journal does not have, between `prepare` and `complete`."""
        journal = Journal.find(self.target.work) if resume else None
        if journal is None:
            count = sum(len(variable.tasks) for variable in self._blockwise)
            encoding = {v.name: self.plan.encoding[v.name] for v in self.plan.variables}
            journal = Journal.begin(
                self.target.work, {**self.decisions, "encoding": _plain(encoding), "tasks": count}
            )
        else:
            self._check_done(journal)
        self.prepare(objects)
        try:
            self._run_tasks(journal, lock)
        finally:
            self._noted = bool(journal.records)
            self._flush(journal)
        lock.check(now=True)
        self.complete(objects)
        return journal.records

    def prepare(self, objects: Mapping[str, bytes]) -> None:
        """Write what tasks need and what is copied whole."""
        for key, data in objects.items():
            if "/" in key:  # those of the root make it a store, and come last
                self.target.work.put(key, data)

    def complete(self, objects: Mapping[str, bytes]) -> None:
        """Make a store of what is there."""
        left_out = [entry.name for entry in self.skipped if entry.name in {v.name for v in self._blockwise}]
        for name in left_out:
            self.target.work.delete_all(name)
        self.target.finish(root_objects(objects, left_out))

    def place(self, variable: VariablePlan, region: Region) -> Region:
        """Return where a region of the source lies in the store."""
        return region

    def task(self, variable: VariablePlan, region: Region) -> WriteTask:
        """Make the task that writes a region of the source."""
        return WriteTask(
            name=variable.name,
            region=self.place(variable, region),
            address=self.target.work,
            block=self.plan.dataset.variables[variable.name],
            dtype=variable.dtype,
            unit=variable.unit,
            resolved=variable.resolved,
            # The range was that of the values, its tolerance is what is left after rounding.
            compare_stored=variable.requested.mode == "range_rel" or variable.resolved.mode == "lossless",
            coded=variable in self.plan.variables,
        )

    def _flush(self, journal: Journal) -> None:
        try:
            journal.flush()
        except Exception as error:  # such as a full disk, which the tasks met before
            warnings.warn(f"the journal could not be written to its end: {one_line(error)}", stacklevel=2)

    def _check_done(self, journal: Journal) -> None:
        wrong: list[str] = []

        def done(result: str | Failure | None) -> None:
            if isinstance(result, Failure):
                raise result.error
            if result is not None:
                wrong.append(result)

        planned = {task_id(v.name, self.place(v, region)) for v in self._blockwise for region in v.tasks}
        journal.forget([name for name in journal.records if name not in planned])
        work = self.target.work
        self.engine.run(
            _changed, (_CheckTask(work, r.id, r.objects) for r in list(journal.records.values())), done
        )
        journal.forget(wrong)
        self.resumed = len(journal.records)

    def _run_tasks(self, journal: Journal, lock: Lock) -> None:
        finished, stored = Counter[str](), Counter[str]()
        plans = {variable.name: variable for variable in self._blockwise}
        dropped: set[str] = set()

        def tell(name: str) -> None:
            if self.progress is not None:
                self.progress(Progress("write", name, finished[name], plans[name].nbytes, stored[name]))

        def count(record: TaskRecord) -> None:
            finished[record.name] += record.errors.n * plans[record.name].dtype.itemsize
            stored[record.name] += record.stored_bytes

        def done(result: TaskRecord | Failure | None) -> None:
            lock.check()
            if isinstance(result, TaskRecord):
                count(result)
                journal.note(result)
                tell(result.name)
            elif result is not None:
                if self.on_error != "skip" or not result.of_source:
                    raise result.error
                if result.name not in dropped:
                    dropped.add(result.name)
                    self.skipped.append(Skipped(result.name, str(result.error)))

        for record in journal.records.values():
            count(record)
        for name in list(finished):
            tell(name)
        self.engine.run(run_task, self._tasks(journal.records, dropped), done)

    def _tasks(self, records: Mapping[str, TaskRecord], dropped: set[str]) -> Iterator[WriteTask]:
        known = set(records)
        for variable, region in interleaved([(variable, variable.tasks) for variable in self._blockwise]):
            task = self.task(variable, region)
            if task.id not in known and variable.name not in dropped:
                yield task.of(culled(self.plan.dataset.variables[variable.name][region], self.engine))

    def summary(self, records: Mapping[str, TaskRecord], seconds: float) -> ConversionSummary:
        """Add up the records of all tasks."""
        left_out = {entry.name for entry in self.skipped}
        by_name: dict[str, list[TaskRecord]] = {}
        for record in records.values():
            by_name.setdefault(record.name, []).append(record)
        bounded = {variable.name for variable in self.plan.variables}
        return ConversionSummary(
            store=self.target.final.path or self.target.final.name,
            variables=tuple(
                self._variable_summary(v, by_name.get(v.name, []))
                for v in self.plan.variables
                if v.name not in left_out
            ),
            copied=tuple(
                str(n) for n in self.plan.dataset.data_vars if n not in bounded and n not in left_out
            ),
            seconds=seconds,
            skipped=tuple(self.skipped),
            resumed=self.resumed,
            workers=self.engine.workers,
        )

    def _variable_summary(self, variable: VariablePlan, records: Sequence[TaskRecord]) -> VariableSummary:
        errors, histogram = ErrorSummary(), np.zeros(BINS, np.int64)
        predictors, models, timings = Counter[str](), Counter[str](), Counter[str]()
        for record in records:
            errors = errors.merge(record.errors)
            if record.histogram:
                histogram += record.histogram
            predictors.update(record.predictors)
            models.update(record.models)
            timings.update(record.seconds)
        keys = self.plan.encoding[variable.name]
        configuration = (
            keys["serializer"]["configuration"] if "serializer" in keys else keys["compressors"][0]
        )
        return VariableSummary(
            name=variable.name,
            dtype=variable.dtype.name,
            shape=variable.shape,
            chunks=variable.chunks,
            shards=variable.shards,
            requested=variable.requested,
            resolved=variable.resolved,
            recorded=variable.recorded,
            raw_bytes=variable.nbytes,
            stored_bytes=sum(record.stored_bytes for record in records),
            errors=errors,
            seconds=sum(timings.values()),
            dims=variable.dims,
            timings=dict(timings),
            predictors=dict(predictors.most_common()),
            models=dict(models.most_common()),
            model_bytes=sum(len(entry.get("data") or "") for entry in configuration.get("models", ())),
            histogram=tuple(histogram.tolist()) if histogram.any() else (),
        )


def _plain(value: Any) -> Any:
    """Turn an encoding into JSON values that `plan_conversion` takes again."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
