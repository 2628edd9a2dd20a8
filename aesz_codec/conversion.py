"""Convert a dataset into a compressed Zarr store whose values are all within their bound.

    source -> plan_conversion -> tasks of whole target chunks -> write -> finish
              (bounds, chunks)    read | encode | read back      (one rename)

The plan is data: which variables, which bounds, which chunks.  A task reads one region of the source, a few
whole target chunks (shards where there are any), writes it, reads it back from the store and measures it.
Tasks do not depend on each other and never share a chunk.  Everything is written into ``<store>.partial``, a
sibling folder that becomes the store by one rename at the end; on an error or an interrupt it is removed.

Which variables are compressed, in which dtype and chunks, is `encoding_for`'s decision; floating-point
variables without a bound are compressed losslessly.  Everything else (coordinates, cell bounds, integers,
strings) is copied exactly, with Zarr's default codec.  Packed sources (``scale_factor``, ``add_offset``) are
decoded first: the bound is on the physical values.  Without a bound the packed integers are copied.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import zarr

from ._store import (
    PARTIAL,
    Region,
    group_size,
    is_zarr,
    local_path,
    one_line,
    open_array,
    open_source,
    read_block,
    regions,
)
from .bounds import ErrorBound, ErrorSummary, error_summary
from .encoding import BoundLike, default_chunks, encoding_for
from .errors import AESZError, ConversionError, ErrorBoundViolation, InvalidBoundError, InvalidConfigError
from .models import ModelChoice

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "ConversionPlan",
    "ConversionSummary",
    "Progress",
    "VariablePlan",
    "VariableSummary",
    "convert",
    "plan_conversion",
]

ALL = "*"  # the name that stands for every variable without a bound of its own

_WHOLE_COPY = 64 << 20  # copied variables up to this size are written in one piece
_PACKING = ("scale_factor", "add_offset")
_STORAGE_KEYS = {
    *(
        "chunks",
        "preferred_chunks",
        "shards",
        "compressor",
        "compressors",
        "filters",
        "serializer",
        "fill_value",
    ),
    *(
        "source",
        "original_shape",
        "chunksizes",
        "contiguous",
        "unlimited_dims",
        "endian",
        "least_significant_digit",
    ),
    *("zlib", "szip", "zstd", "bzip2", "blosc", "shuffle", "complevel", "fletcher32", "compression"),
    *("compression_opts", "quantize_mode", "significant_digits"),
}

_CF_KEYS = {"dtype", *_PACKING, "_FillValue", "missing_value", "_Unsigned"}

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class VariablePlan:
    """What happens to one variable.

    Attributes
    ----------
    name : str
    dims : tuple of str
    shape, chunks : tuple of int
    shards : tuple of int or None
    dtype : numpy.dtype
        As it is stored.
    requested : ErrorBound
        As it was asked for, on the physical values.
    resolved : ErrorBound
        The same, with ``range_rel`` resolved over the whole variable.
    recorded : ErrorBound
        As the codec of the stored array has it: `resolved`, less the rounding of a packed source to float32.
    tasks : tuple of regions
        Whole target chunks (shards where there are any) each, which one write covers.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    requested: ErrorBound
    resolved: ErrorBound
    recorded: ErrorBound
    tasks: tuple[Region, ...] = ()


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that is decided before the first byte is written.

    Attributes
    ----------
    dataset : xarray.Dataset
        The source, with the variables that get a bound decoded and the others as they are copied.
    variables : tuple of VariablePlan
        Those with a bound.
    large_copies : tuple of VariablePlan
        Those that are copied block by block; smaller ones are copied whole.
    encoding : dict
        Of the arrays of both, as ``xarray.Dataset.to_zarr`` takes it.
    zarr_format : int
    """

    dataset: xr.Dataset
    variables: tuple[VariablePlan, ...]
    large_copies: tuple[VariablePlan, ...]
    encoding: dict[str, dict[str, Any]]
    zarr_format: int


@dataclass(frozen=True)
class Progress:
    """How far a conversion or verification has come.

    Attributes
    ----------
    phase : {"range", "write", "verify"}
    variable : str
    done, total : int
        Bytes of the variable, decoded.
    """

    phase: str
    variable: str
    done: int
    total: int


@dataclass(frozen=True)
class VariableSummary:
    """What became of one variable.

    `errors` compares the values of the source with those read back from the store, in units of `resolved`;
    the other bounds are those of `VariablePlan`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    requested: ErrorBound
    resolved: ErrorBound
    recorded: ErrorBound
    raw_bytes: int
    stored_bytes: int
    errors: ErrorSummary
    seconds: float

    @property
    def compression_ratio(self) -> float:
        """Bytes of the values in the stored dtype over bytes of the chunks on disk."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.inf

    @property
    def throughput(self) -> float:
        """MB/s of decoded values, reading the source and checking included."""
        return self.raw_bytes / 1e6 / self.seconds if self.seconds else math.inf


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did.

    Attributes
    ----------
    store : Path
    variables : tuple of VariableSummary
        Those with a bound.
    copied : tuple of str
        Data variables that were copied, without this codec.
    seconds : float
    """

    store: Path
    variables: tuple[VariableSummary, ...]
    copied: tuple[str, ...]
    seconds: float

    @property
    def raw_bytes(self) -> int:
        """Of the variables with a bound, in their stored dtypes."""
        return sum(v.raw_bytes for v in self.variables)

    @property
    def stored_bytes(self) -> int:
        """Of their chunks on disk."""
        return sum(v.stored_bytes for v in self.variables)

    @property
    def compression_ratio(self) -> float:
        """Over all variables with a bound."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.inf


def convert(
    source: str | os.PathLike[str] | xr.Dataset,
    store: str | os.PathLike[str],
    error_bound: BoundLike | Mapping[str, BoundLike] | None = None,
    mode: str = "abs",
    *,
    variables: Sequence[str] | None = None,
    chunks: Mapping[str, int] | None = None,
    shards: Mapping[str, int] | None = None,
    zarr_format: int = 3,
    effort: str = "default",
    model: ModelChoice | Mapping[str, ModelChoice] = None,
    embed_models: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> ConversionSummary:
    """Convert a file, a Zarr store or a dataset into a compressed Zarr store.

    Parameters
    ----------
    source : path or xarray.Dataset
        Anything that xarray opens; read block by block and never changed.
    store : path
        Folder to create. It appears under this name only when it is complete.
    error_bound : number, "lossless", (mode, number), ErrorBound, or a mapping of variable name to these
        The key ``"*"`` stands for every floating-point data variable without an entry of its own. Variables
        without a bound are kept exactly.
    mode : {"abs", "range_rel", "pw_rel", "lossless"}
        Mode of plain numbers. ``range_rel`` is resolved over each whole variable.
    variables : sequence of str, optional
        Convert only these data variables, and leave the others out of the store.
    chunks, shards : mapping of dimension name to length, optional
        As for `encoding_for`; -1 means the whole dimension. While one chunk (shard) is encoded the next
        one is read, or several where they are small.
    zarr_format : {3, 2}
    effort : {"fast", "default", "max"}
    model, embed_models
        As for `encoding_for`; in a mapping, ``"*"`` stands for the variables without an entry of their own.
    overwrite : bool
        Replace an existing store, once the new one is complete.
    progress : callable, optional
        Called with a `Progress` after each block.

    Returns
    -------
    ConversionSummary

    Raises
    ------
    ConversionError
        If the source cannot be read, the store exists, or it cannot be written (a full disk, no permission).
        Nothing is left under the store's name.
    InvalidConfigError, InvalidBoundError, UnsupportedDtypeError
        If a variable, dimension, mode or bound does not fit the source.
    """
    started = time.perf_counter()
    requested = _requested_bounds(error_bound, mode)
    target = local_path(store, "store")
    _check_target(target, source, overwrite)
    with ExitStack() as stack:
        dataset, packed = (_select(stack.enter_context(open_source(source)), variables), None)
        if isinstance(source, str | os.PathLike):
            packed = _select(stack.enter_context(open_source(source, mask_and_scale=False)), variables)
        plan = plan_conversion(
            dataset,
            requested,
            packed=packed,
            chunks=chunks,
            shards=shards,
            zarr_format=zarr_format,
            effort=effort,
            model=model,
            embed_models=embed_models,
            progress=progress,
        )
        partial = _claim(target, overwrite)
        try:
            summaries = _write(plan, partial, progress)
            _finish(partial, target)
        except BaseException as error:
            left = "removed" if _remove(partial) else f"left at {partial}: delete it"
            if isinstance(error, OSError):
                reason = error.strerror or one_line(error)
                raise ConversionError(
                    f"store: cannot write {target}: {reason}; the unfinished copy was {left}"
                ) from error
            raise
    bounded = {variable.name for variable in plan.variables}
    copied = tuple(str(name) for name in plan.dataset.data_vars if name not in bounded)
    return ConversionSummary(target, tuple(summaries), copied, time.perf_counter() - started)


# Bounds


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


def _is_packed(variable: xr.Variable) -> bool:
    return variable.dtype.kind == "f" and any(key in variable.encoding for key in _PACKING)


# Plan


def plan_conversion(
    dataset: xr.Dataset,
    bounds: Mapping[str, ErrorBound],
    *,
    packed: xr.Dataset | None = None,
    chunks: Mapping[str, int] | None = None,
    shards: Mapping[str, int] | None = None,
    zarr_format: int = 3,
    effort: str = "default",
    model: ModelChoice | Mapping[str, ModelChoice] = None,
    embed_models: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> ConversionPlan:
    """Decide chunks, stored dtypes, bounds and models; reads the data only where a ``range_rel`` or a model needs it.

    Parameters
    ----------
    dataset : xarray.Dataset
        The source, decoded.
    bounds : mapping
        ``"*"`` stands for all variables that `encoding_for` compresses and that have no entry of their own.
    packed : xarray.Dataset, optional
        The same source without decoding. From it comes what is copied, exactly as it is; integers with
        ``scale_factor`` that get no bound, or ``lossless``, are copied too.
    chunks, shards, zarr_format, effort, model, embed_models, progress
        As for `convert`.

    Raises
    ------
    InvalidConfigError, InvalidBoundError, UnsupportedDtypeError
        As `encoding_for` does.
    """
    eligible = [str(name) for name in encoding_for(dataset, mode="lossless", model=None)]
    requested = {name: bounds[ALL] for name in eligible if ALL in bounds}
    requested |= {name: bound for name, bound in bounds.items() if name != ALL}
    for name in (*eligible, *requested):
        bound = requested.setdefault(name, ErrorBound("lossless"))
        exact = bound.mode == "lossless" and name in dataset
        if exact and packed is not None and _is_packed(dataset.variables[name]):
            del requested[name]
    if not requested and any(bound.mode != "lossless" for bound in bounds.values()):
        raise InvalidConfigError.at(
            "error_bound",
            found="no variable that it applies to",
            expected="at least one floating-point data variable in the source",
        )
    ranged = [name for name, bound in requested.items() if bound.mode == "range_rel" and name in dataset]
    _report_ranges(progress, dataset, ranged, done=False)
    layout: dict[str, Any] = {"chunks": chunks or None, "shards": shards or None}
    by_name: Any = dict(requested)  # its keys are str, not Hashable
    chosen: Any = model
    if isinstance(model, Mapping):
        chosen = dict.fromkeys(requested, model[ALL]) if ALL in model else {}
        chosen |= {name: choice for name, choice in model.items() if name != ALL}
    encoding: Any = encoding_for(
        dataset,
        by_name,
        zarr_format=zarr_format,
        effort=effort,
        model=chosen,
        embed_models=embed_models,
        **layout,
    )
    _report_ranges(progress, dataset, ranged, done=True)
    # What was left out of the bounds gets lossless from `encoding_for`; here it is copied instead.
    plans = [_variable_plan(dataset, name, bound, encoding[name]) for name, bound in requested.items()]
    mixed = (dataset if packed is None else packed).assign({p.name: dataset.variables[p.name] for p in plans})
    copies = tuple(
        _copy_plan(mixed, name)
        for name in map(str, mixed.variables)
        if _is_large_copy(mixed, name, requested)
    )
    return ConversionPlan(
        dataset=mixed,
        variables=tuple(plans),
        large_copies=copies,
        encoding={p.name: encoding[p.name] for p in plans} | {c.name: {"chunks": c.chunks} for c in copies},
        zarr_format=zarr_format,
    )


def _report_ranges(
    progress: Callable[[Progress], None] | None, dataset: xr.Dataset, names: Sequence[str], *, done: bool
) -> None:
    if progress is None:
        return
    for name in names:
        size = dataset.variables[name].nbytes
        progress(Progress("range", name, size if done else 0, size))


def _variable_plan(
    dataset: xr.Dataset, name: str, requested: ErrorBound, keys: Mapping[str, Any]
) -> VariablePlan:
    variable = dataset.variables[name]
    configuration = keys["serializer"]["configuration"] if "serializer" in keys else keys["compressors"][0]
    recorded = ErrorBound(configuration["mode"], configuration["error_bound"])
    return _with_tasks(
        VariablePlan(
            name=name,
            dims=tuple(str(dim) for dim in variable.dims),
            shape=tuple(variable.shape),
            chunks=tuple(keys.get("chunks", ())),
            shards=tuple(keys["shards"]) if "shards" in keys else None,
            dtype=np.dtype(keys["dtype"]),
            requested=requested,
            resolved=recorded if requested.mode == "range_rel" else requested,
            recorded=recorded,
        )
    )


def _copy_plan(dataset: xr.Dataset, name: str) -> VariablePlan:
    variable, exact = dataset.variables[name], ErrorBound("lossless")
    chunks = default_chunks(variable.shape, variable.dtype.itemsize)
    dims = tuple(str(dim) for dim in variable.dims)
    plan = VariablePlan(name, dims, variable.shape, chunks, None, variable.dtype, exact, exact, exact)
    return _with_tasks(plan)


def _with_tasks(plan: VariablePlan) -> VariablePlan:
    unit = plan.shards or plan.chunks
    return replace(plan, tasks=tuple(regions(plan.shape, unit, group_size(unit, plan.dtype.itemsize))))


def _is_large_copy(dataset: xr.Dataset, name: str, bounds: Mapping[str, ErrorBound]) -> bool:
    variable = dataset.variables[name]
    plain = variable.dtype.kind in "iufb" and not variable.encoding.keys() & (_CF_KEYS - {"dtype"})
    return plain and variable.nbytes > _WHOLE_COPY and name not in bounds and name not in dataset.xindexes


# Write


def _claim(target: Path, overwrite: bool) -> Path:
    """Create ``<target>.partial``; only one conversion can have it."""
    partial = target.with_name(target.name + PARTIAL)
    if overwrite and partial.exists():
        shutil.rmtree(partial)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except FileExistsError as error:
        raise ConversionError.at(
            "store",
            found=f"{partial}, an unfinished conversion",
            expected="no other conversion to the same store",
            remedy="if none is running, delete it or pass overwrite (--overwrite)",
        ) from error
    except OSError as error:
        raise ConversionError(
            f"store: cannot create {partial}: {error.strerror or one_line(error)}"
        ) from error
    return partial


def _check_target(target: Path, source: Any, overwrite: bool) -> None:
    if isinstance(source, str | os.PathLike):
        origin, goal = local_path(source, "source").resolve(), target.resolve()
        if origin == goal or goal in origin.parents or origin in goal.parents:
            raise ConversionError.at(
                "store",
                found=str(target),
                expected="a place apart from the source",
                remedy="choose another folder",
            )
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise ConversionError.at(
            "store",
            found=f"{target}, which exists",
            expected="a new folder",
            remedy="pass overwrite (--overwrite) to replace it, or choose another name",
        )
    if not (target.is_dir() and not target.is_symlink() and (is_zarr(target) or not any(target.iterdir()))):
        raise ConversionError.at(
            "store",
            found=f"{target}, which is no Zarr store",
            expected="a Zarr store to overwrite",
            remedy="choose another name",
        )


def _write(
    plan: ConversionPlan, partial: Path, progress: Callable[[Progress], None] | None
) -> list[VariableSummary]:
    with ThreadPoolExecutor(1, thread_name_prefix="aesz-write") as worker:
        _await(worker.submit(_create, plan, partial))
        for variable in plan.large_copies:
            _write_variable(plan.dataset, variable, partial, worker, progress)
        summaries = []
        for variable in plan.variables:
            started = time.perf_counter()
            errors = _write_variable(plan.dataset, variable, partial, worker, progress)
            stored = open_array(partial, variable.name)
            summaries.append(
                VariableSummary(
                    name=variable.name,
                    dtype=variable.dtype.name,
                    shape=variable.shape,
                    chunks=variable.chunks,
                    shards=variable.shards,
                    requested=variable.requested,
                    resolved=variable.resolved,
                    recorded=variable.recorded,
                    raw_bytes=stored.raw_bytes,
                    stored_bytes=stored.stored_bytes(),
                    errors=errors,
                    seconds=time.perf_counter() - started,
                )
            )
    return summaries


def _await(future: Future[_Result]) -> _Result:
    """Return the result of a write; an interrupt waits for it first, so that nothing is written after it."""
    try:
        return future.result()
    except BaseException:
        wait([future])
        raise


def _create(plan: ConversionPlan, partial: Path) -> None:
    """Create every array in the unfinished store, and fill those that are not written block by block."""
    try:
        _create_empty(plan, partial)
        _copy_small(plan, partial)
    except (AESZError, OSError):
        raise
    except Exception as error:  # of whichever library reads, or cannot store what it read
        raise ConversionError(f"store: cannot create its arrays: {one_line(error)}") from error


def _create_empty(plan: ConversionPlan, partial: Path) -> None:
    """Let xarray write the arrays, of length 0, with all its conventions; then stretch them to their size."""
    import xarray as xr

    blockwise = {variable.name: variable for variable in (*plan.variables, *plan.large_copies)}
    data = {}
    for name, variable in blockwise.items():
        source = plan.dataset.variables[name]
        attributes = dict(source.attrs)
        if "grid_mapping" in source.encoding:
            attributes.setdefault("grid_mapping", source.encoding["grid_mapping"])
        if variable in plan.variables:
            if _is_packed(source):
                _unpack_limits(attributes, source)
            attributes["aesz_codec"] = _provenance(variable, attributes.get("units"))
        data[name] = xr.Variable(
            variable.dims, np.empty((0,) * len(variable.dims), variable.dtype), attributes
        )
    # Of the coordinates, names and dimensions count here: xarray lists them in the attributes of the data.
    coordinates = {
        str(name): xr.Variable(source.dims, np.empty((0,) * source.ndim, "f4"))
        for name, source in plan.dataset.variables.items()
        if name in plan.dataset.coords and name not in blockwise
    }
    empty = xr.Dataset(data, coords=coordinates, attrs=plan.dataset.attrs)
    empty = empty.set_coords([name for name in blockwise if name in plan.dataset.coords])
    how: dict[str, Any] = {"zarr_format": plan.zarr_format, "consolidated": False}
    empty.to_zarr(partial, mode="w", encoding=plan.encoding, **how)
    group: Any = zarr.open_group(partial, mode="r+")
    for coordinate in coordinates:
        del group[coordinate]
    for name, variable in blockwise.items():
        group[name].resize(variable.shape)


def _copy_small(plan: ConversionPlan, partial: Path) -> None:
    blockwise = [variable.name for variable in (*plan.variables, *plan.large_copies)]
    rest = plan.dataset.drop_vars(blockwise).copy()
    for name, source in list(rest.variables.items()):
        dropped = _STORAGE_KEYS | (_CF_KEYS if source.dtype.kind == "f" else set())
        encoding = {key: value for key, value in source.encoding.items() if key not in dropped}
        if source.chunks is not None:  # Zarr wants Dask chunks of one size
            sizes = default_chunks(source.shape, source.dtype.itemsize)
            rest[name] = rest[name].chunk(dict(zip(source.dims, sizes, strict=True)))
        if source.dtype.kind == "f" and "_FillValue" not in source.attrs:
            encoding["_FillValue"] = None  # else xarray adds one
        rest[name].encoding = encoding
    if rest.variables:
        how: dict[str, Any] = {"zarr_format": plan.zarr_format, "consolidated": False}
        rest.to_zarr(partial, mode="a", **how)


def _provenance(variable: VariablePlan, units: Any) -> str:
    bound = variable.resolved
    unit = f" {units}" if units not in (None, "", "1", 1) else ""
    if bound.value is None:
        what = "lossless: every bit is kept"
    elif bound.mode == "pw_rel":
        what = f"error-bounded: |error| <= {bound.value:.9g} * |value| (pw_rel)"
    elif variable.requested.mode == "range_rel":
        what = f"error-bounded: |error| <= {bound.value:.9g}{unit} (range_rel {variable.requested.value:g})"
    else:
        what = f"error-bounded: |error| <= {bound.value:.9g}{unit} (abs)"
    return f"{what}; decode with: pip install aesz-codec"


def _unpack_limits(attributes: dict[str, Any], source: xr.Variable) -> None:
    """Bring the limits that CF gives in packed units into those of the unpacked values."""
    scale, offset = (source.encoding.get(key, default) for key, default in zip(_PACKING, (1, 0), strict=True))
    for key in ("valid_min", "valid_max", "valid_range"):
        if key in attributes and np.asarray(attributes[key]).dtype.kind in "iu":
            attributes[key] = np.asarray(attributes[key]) * scale + offset


def _write_variable(
    dataset: xr.Dataset,
    variable: VariablePlan,
    partial: Path,
    worker: ThreadPoolExecutor,
    progress: Callable[[Progress], None] | None,
) -> ErrorSummary:
    """Write all tasks of a variable; while the worker encodes one, the next is read."""
    # A chunk of NaNs with payloads equals the fill value, and must be stored nevertheless where bits count.
    with zarr.config.set({"array.write_empty_chunks": variable.recorded.mode == "lossless"}):
        array = zarr.open_array(partial / variable.name, mode="r+")
    total = math.prod(variable.shape) * variable.dtype.itemsize
    errors = ErrorSummary()
    running: Future[ErrorSummary] | None = None

    def finish(task: Future[ErrorSummary] | None) -> None:
        nonlocal errors
        if task is None:
            return
        errors = errors.merge(_await(task))
        if progress is not None:
            progress(Progress("write", variable.name, errors.n * variable.dtype.itemsize, total))

    try:
        for region in variable.tasks:
            block = read_block(dataset, variable.name, region)
            finish(running)
            running = worker.submit(_write_task, array, region, block, variable)
        finish(running)
    except BaseException:
        if running is not None:
            wait([running])
        raise
    return errors


def _write_task(
    array: zarr.Array[Any], region: Region, block: np.ndarray, variable: VariablePlan
) -> ErrorSummary:
    """Write whole chunks, read them back, and measure them against the source."""
    with np.errstate(over="ignore"):
        values = block.astype(variable.dtype, copy=False)
    array[region] = values
    stored = np.asarray(array[region])
    # The range was that of the values, its tolerance is what is left after rounding: compare what was stored.
    rounded = variable.requested.mode == "range_rel" or variable.resolved.mode == "lossless"
    errors = error_summary(values if rounded else block, stored, variable.resolved)
    if errors.violations:
        at = ", ".join(f"{r.start}:{r.stop}" for r in region)
        raise ErrorBoundViolation(
            f"{variable.name}[{at}]: found {errors.violations} values outside {variable.resolved}, expected "
            "none; the store was not created: please report this as a bug"
        )
    return errors


# Finish


def _finish(partial: Path, target: Path) -> None:
    """Consolidate the metadata and give the store its name: one rename, the moment at which it exists."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(partial)
    if not target.exists():
        partial.rename(target)
        return
    replaced = target.with_name(target.name + ".replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    target.rename(replaced)
    try:
        partial.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _remove(partial: Path) -> bool:
    for _ in range(20):  # threads of Zarr may still be writing the chunks that they had begun
        shutil.rmtree(partial, ignore_errors=True)
        time.sleep(0.02)
        if not partial.exists():
            return True
    return False
