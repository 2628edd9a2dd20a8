r"""Decide what happens to each variable, and cut the work into tasks; nothing is written.

    bounds + dataset --encoding_for--> stored dtype, chunks, codec     source chunks, target chunks, memory
                                \                                     /
                                 `--> default shards --> plan_tasks -'--> tasks of whole target chunks

A task is a region of whole units; a unit is what is one object in the store, a chunk or a shard.  Tasks never
share one, so they can run in any order, at the same time and again.  Where the chunks of the source lie across
those of the target, a task takes as many units as memory allows, so that few source chunks are read twice.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._source import PACKING, Region
from .._store import regions
from ..bounds import ErrorBound
from ..encoding import default_chunks, encoding_for
from ..errors import InvalidConfigError
from ..models import ModelChoice

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ConversionPlan", "VariablePlan", "memory_in_bytes", "plan_conversion", "plan_tasks"]

ALL = "*"  # the name that stands for every variable without a bound of its own
CF_KEYS = {"dtype", *PACKING, "_FillValue", "missing_value", "_Unsigned"}

WHOLE_COPY = 64 << 20  # copied variables up to this size are written in one piece
_SHARD_BYTES = 64 << 20  # decoded, of a default shard
_MANY_CHUNKS = 32  # arrays of more get shards by default
_TASK_BYTES = 256 << 20  # decoded; tasks grow to this only where it saves reading twice
_INTERPRETER = 300_000_000  # bytes of a worker before it has any data
_ENCODER = 56  # bytes of working memory for each value of the chunk that is coded
_SHARE = 0.5  # of the machine's memory, for all workers together


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
        Whole target chunks (shards where there are any) each.
    amplification : float
        How often each chunk of the source is read, on average.
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
    amplification: float = 1.0

    @property
    def unit(self) -> tuple[int, ...]:
        """Shape of what is one object in the store."""
        return self.shards or self.chunks

    @property
    def nbytes(self) -> int:
        """Of the values, in the stored dtype."""
        return math.prod(self.shape) * self.dtype.itemsize


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


def plan_conversion(
    dataset: xr.Dataset,
    bounds: Mapping[str, ErrorBound],
    *,
    packed: xr.Dataset | None = None,
    chunks: Mapping[str, int] | None = None,
    shards: Mapping[str, int] | str | None = "auto",
    zarr_format: int = 3,
    effort: str = "default",
    model: ModelChoice | Mapping[str, ModelChoice] = None,
    embed_models: bool = True,
    memory_limit: int | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConversionPlan:
    """Decide chunks, stored dtypes, bounds, models and tasks; reads the data only where a ``range_rel`` or a model needs it.

    Parameters
    ----------
    dataset : xarray.Dataset
        The source, decoded.
    bounds : mapping
        ``"*"`` stands for all variables that `encoding_for` compresses and that have no entry of their own.
    packed : xarray.Dataset, optional
        The same source without decoding. From it comes what is copied, exactly as it is; integers with
        ``scale_factor`` that get no bound, or ``lossless``, are copied too.
    chunks, shards, zarr_format, effort, model, embed_models
        As for `convert`.
    memory_limit : int, optional
        Bytes of one worker; no limit if None.
    ranges : mapping of name to (lowest, highest), optional
        Of the variables with ``range_rel``; what is missing is read.
    encoding : mapping, optional
        Of an earlier plan of the same conversion, taken as it is.

    Raises
    ------
    InvalidConfigError, InvalidBoundError, UnsupportedDtypeError
        As `encoding_for` does, and if a chunk or shard does not fit into `memory_limit`.
    """
    requested = requested_by_name(dataset, bounds, packed)
    if encoding is None:
        encoding = _encoding(
            dataset, requested, chunks, shards, zarr_format, effort, model, embed_models, ranges or {}
        )
    else:  # JSON has no tuples
        sizes = ("chunks", "shards")
        encoding = {
            n: {k: tuple(v) if k in sizes and v else v for k, v in keys.items()}
            for n, keys in encoding.items()
        }
    # What was left out of the bounds gets lossless from `encoding_for`; here it is copied instead.
    plans = [
        _variable_plan(dataset, name, bound, encoding[name], memory_limit)
        for name, bound in requested.items()
    ]
    mixed = (dataset if packed is None else packed).assign({p.name: dataset.variables[p.name] for p in plans})
    copies = tuple(
        _copy_plan(mixed, name, memory_limit)
        for name in map(str, mixed.variables)
        if _is_large_copy(mixed, name, requested)
    )
    return ConversionPlan(
        dataset=mixed,
        variables=tuple(plans),
        large_copies=copies,
        encoding={p.name: dict(encoding[p.name]) for p in plans}
        | {c.name: {"chunks": c.chunks} for c in copies},
        zarr_format=zarr_format,
    )


def requested_by_name(
    dataset: xr.Dataset, bounds: Mapping[str, ErrorBound], packed: xr.Dataset | None = None
) -> dict[str, ErrorBound]:
    """Give each variable that the codec is to store its bound as it was asked for; see `plan_conversion`."""
    eligible = [str(name) for name in encoding_for(dataset, mode="lossless", model=None)]
    requested = {name: bounds[ALL] for name in eligible if ALL in bounds}
    requested |= {name: bound for name, bound in bounds.items() if name != ALL}
    for name in (*eligible, *requested):
        bound = requested.setdefault(name, ErrorBound("lossless"))
        exact = bound.mode == "lossless" and name in dataset
        if (
            exact
            and packed is not None
            and is_packed(dataset.variables[name])
            and packed.variables[name].dtype.kind in "iu"
        ):
            del requested[name]
    if not requested and any(bound.mode != "lossless" for bound in bounds.values()):
        raise InvalidConfigError.at(
            "error_bound",
            found="no variable that it applies to",
            expected="at least one floating-point data variable in the source",
        )
    return requested


def is_packed(variable: xr.Variable) -> bool:
    """Say whether floats were decoded from packed integers."""
    return variable.dtype.kind == "f" and any(key in variable.encoding for key in PACKING)


def _encoding(
    dataset: xr.Dataset,
    requested: Mapping[str, ErrorBound],
    chunks: Mapping[str, int] | None,
    shards: Mapping[str, int] | str | None,
    zarr_format: int,
    effort: str,
    model: ModelChoice | Mapping[str, ModelChoice],
    embed_models: bool,
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, dict[str, Any]]:
    if isinstance(shards, str) and shards != "auto":
        raise InvalidConfigError.at(
            "shards", found=repr(shards), expected="'auto', None, or lengths by dimension"
        )
    automatic = shards == "auto"
    layout: dict[str, Any] = {"chunks": chunks or None, "shards": None if automatic else shards or None}
    by_name: Any = {  # its keys are str, not Hashable
        name: bound.resolve(*ranges[name]) if bound.mode == "range_rel" and name in ranges else bound
        for name, bound in requested.items()
    }
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
    if automatic and zarr_format == 3:
        for name, keys in encoding.items():
            shape, sizes = dataset.variables[name].shape, keys.get("chunks", ())
            if found := default_shards(shape, sizes, np.dtype(keys["dtype"]).itemsize):
                keys["shards"] = found
    return {str(name): keys for name, keys in encoding.items()}


def default_shards(shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> tuple[int, ...] | None:
    """Choose shards of up to 64 MiB for an array of more than 32 chunks, so that a store has few objects.

    Examples
    --------
    >>> default_shards((8760, 721, 1440), (4, 721, 1440), 4)
    (16, 721, 1440)
    >>> default_shards((20, 721, 1440), (4, 721, 1440), 4) is None
    True
    """
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    if math.prod(counts) <= _MANY_CHUNKS:
        return None
    room = _SHARD_BYTES // (math.prod(chunks) * itemsize)
    if room < 2:
        return None
    factors = []
    for count in counts:
        factor = max(1, min(count, room))
        factors.append(-(-count // -(-count // factor)))
        room //= factors[-1]
    return tuple(chunk * factor for chunk, factor in zip(chunks, factors, strict=True))


def _variable_plan(
    dataset: xr.Dataset, name: str, requested: ErrorBound, keys: Mapping[str, Any], memory_limit: int | None
) -> VariablePlan:
    variable = dataset.variables[name]
    configuration = keys["serializer"]["configuration"] if "serializer" in keys else keys["compressors"][0]
    recorded = ErrorBound(configuration["mode"], configuration["error_bound"])
    chunks = tuple(keys.get("chunks", ()))
    shards = tuple(keys["shards"]) if keys.get("shards") else None
    dtype = np.dtype(keys["dtype"])
    tasks, amplification = plan_tasks(
        tuple(variable.shape),
        source_chunks(variable),
        chunks,
        shards,
        itemsizes=(variable.dtype.itemsize, dtype.itemsize),
        memory_limit=memory_limit,
        name=name,
        dims=tuple(map(str, variable.dims)),
    )
    return VariablePlan(
        name=name,
        dims=tuple(str(dim) for dim in variable.dims),
        shape=tuple(variable.shape),
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        requested=requested,
        resolved=recorded if requested.mode == "range_rel" else requested,
        recorded=recorded,
        tasks=tasks,
        amplification=amplification,
    )


def _copy_plan(dataset: xr.Dataset, name: str, memory_limit: int | None) -> VariablePlan:
    variable, exact = dataset.variables[name], ErrorBound("lossless")
    chunks = default_chunks(variable.shape, variable.dtype.itemsize)
    dims = tuple(str(dim) for dim in variable.dims)
    size = variable.dtype.itemsize
    tasks, amplification = plan_tasks(
        variable.shape, source_chunks(variable), chunks, None,
        itemsizes=(size, size), memory_limit=memory_limit, name=name, dims=dims,
    )  # fmt: skip
    return VariablePlan(
        name, dims, variable.shape, chunks, None, variable.dtype, exact, exact, exact, tasks, amplification
    )


def _is_large_copy(dataset: xr.Dataset, name: str, bounds: Mapping[str, ErrorBound]) -> bool:
    variable = dataset.variables[name]
    plain = variable.dtype.kind in "iufb" and not variable.encoding.keys() & (CF_KEYS - {"dtype"})
    return plain and variable.nbytes > WHOLE_COPY and name not in bounds and name not in dataset.xindexes


def source_chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Return the chunks in which a lazy variable is read; 1 along axes that can be cut anywhere."""
    if variable.chunks is not None:
        return tuple(max(sizes, default=1) for sizes in variable.chunks)
    preferred = variable.encoding.get("preferred_chunks") or {}
    found = []
    for dim, size in zip(variable.dims, variable.shape, strict=True):
        step = preferred.get(dim, 1)
        found.append(max(1, min(size, step if isinstance(step, int) else 1)))
    return tuple(found)


# Tasks


def plan_tasks(
    shape: tuple[int, ...],
    source: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    *,
    itemsizes: tuple[int, int],
    memory_limit: int | None = None,
    name: str = "data",
    dims: tuple[str, ...] = (),
) -> tuple[tuple[Region, ...], float]:
    """Cut an array into tasks of whole target chunks, or shards, each of which fits into the memory of a worker.

    Parameters
    ----------
    shape, source, chunks : tuple of int
        Of the array, of the chunks that it is read in, of those that it is written in.
    shards : tuple of int or None
    itemsizes : (int, int)
        Bytes of a value as it is read and as it is stored.
    memory_limit : int, optional
        Bytes of a worker, its interpreter included.
    name, dims
        For the message of an error.

    Returns
    -------
    tasks : tuple of regions
    amplification : float
        Bytes of source chunks that are read, over their bytes.

    Raises
    ------
    InvalidConfigError
        If one unit does not fit; the message says which chunks would.

    Examples
    --------
    Frames are read one by one, and written four at a time:

    >>> tasks, amplification = plan_tasks((8, 3), (1, 3), (4, 3), None, itemsizes=(4, 4))
    >>> tasks
    ((slice(0, 4, None), slice(0, 3, None)), (slice(4, 8, None), slice(0, 3, None)))

    Whole series are read, so that both chunks are written by one task:

    >>> plan_tasks((8, 3), (8, 1), (4, 3), None, itemsizes=(4, 4))
    (((slice(0, 8, None), slice(0, 3, None)),), 1.0)
    """
    unit = shards or chunks
    need = _bytes_of_task(unit, unit, chunks, itemsizes)
    if memory_limit is not None and need > memory_limit:
        _refuse(unit, chunks, itemsizes, memory_limit, need, name, dims, sharded=shards is not None)
    steps = list(unit)
    amplification = _amplification(shape, source, steps)
    while amplification > 1:
        trials = []
        for axis in range(len(steps)):
            if steps[axis] >= shape[axis]:
                continue
            for times in (2, 3, -(-source[axis] // unit[axis])):
                wider = [*steps]
                wider[axis] = min(steps[axis] * times, -(-shape[axis] // unit[axis]) * unit[axis])
                if wider[axis] == steps[axis]:
                    continue
                size = _bytes_of_task(tuple(wider), unit, chunks, itemsizes)
                block = math.prod(map(min, wider, shape)) * itemsizes[0]
                if block <= _TASK_BYTES and (memory_limit is None or size <= memory_limit):
                    trials.append((_amplification(shape, source, wider), math.prod(wider), wider))
        best = min(trials, default=None)
        if best is None or best[0] >= amplification:
            break
        amplification, _, steps = best
    return tuple(regions(shape, steps)), amplification


def _bytes_of_task(
    block: Sequence[int], unit: Sequence[int], chunks: Sequence[int], itemsizes: tuple[int, int]
) -> int:
    """Estimate what a worker holds: the values as read and as stored, a unit coded and decoded, the encoder's own."""
    read, stored = itemsizes
    cast = stored if read != stored else 0
    return (
        _INTERPRETER
        + math.prod(block) * (read + cast)
        + math.prod(unit) * stored
        + math.prod(chunks) * (stored + _ENCODER)
    )


def _amplification(shape: Sequence[int], source: Sequence[int], steps: Sequence[int]) -> float:
    factor = 1.0
    for size, chunk, step in zip(shape, source, steps, strict=True):
        if not size or chunk <= 1:
            continue
        read = sum(
            min(size, -(-min(size, start + step) // chunk) * chunk) - start // chunk * chunk
            for start in range(0, size, step)
        )
        factor *= read / size
    return factor


def _refuse(
    unit: tuple[int, ...],
    chunks: tuple[int, ...],
    itemsizes: tuple[int, int],
    memory_limit: int,
    need: int,
    name: str,
    dims: tuple[str, ...],
    *,
    sharded: bool,
) -> None:
    fitting = list(chunks)
    while _bytes_of_task(fitting, fitting, fitting, itemsizes) > memory_limit and max(fitting, default=1) > 1:
        axis = next((axis for axis in range(len(fitting)) if fitting[axis] > 1), 0)
        fitting[axis] = -(-fitting[axis] // 2)
    fits = _bytes_of_task(fitting, fitting, fitting, itemsizes) <= memory_limit
    lengths = ",".join(f"{dim}={n}" for dim, n in itertools.zip_longest(dims, fitting, fillvalue="?"))
    sizes = "x".join(map(str, unit))
    raise InvalidConfigError.at(
        "memory_limit",
        found=f"{'shards' if sharded else 'chunks'} of {name} of {sizes}, for which a worker needs {need / 1e6:.0f} MB",
        expected=f"at most {memory_limit / 1e6:.0f} MB",
        remedy=(f"chunks of {lengths} would fit" + (", without shards" if sharded else ""))
        if fits
        else "raise the limit",
    )


def memory_in_bytes(limit: int | float | str | None, workers: int) -> int:
    """Read a limit such as ``"1GB"``; None is half of the machine's memory, shared by the workers.

    Raises
    ------
    InvalidConfigError
        If it is no such text or not > 0.

    Examples
    --------
    >>> memory_in_bytes("1.5 GB", 2), memory_in_bytes("512MiB", 1)
    (1500000000, 536870912)
    """
    if limit is None:
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # Windows
            memory = 8 << 30
        return max(1_000_000_000, int(memory * _SHARE) // max(1, workers))
    matched = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?)(i?)B?\s*", str(limit))
    try:
        number = float(matched[1]) if matched else 0.0
    except ValueError:
        number = 0.0
    if matched is None or not number > 0:
        raise InvalidConfigError.at(
            "memory_limit", found=repr(limit), expected="bytes, such as '1GB' or '800MiB'"
        )
    power = " kMGT".index(matched[2].replace("K", "k")) if matched[2] else 0
    return int(number * (1024 if matched[3] else 1000) ** power)
