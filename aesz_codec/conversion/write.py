"""What a worker does with one task, and how a store begins and ends.

    task: read a region of the source -> per unit: encode in memory -> decode, measure -> one put

A unit (a chunk or a shard, one object) is written by Zarr into a store in memory that has the metadata of the real
array; what lies there then is put into the real store, whole, with retries.  So the bytes are known: their
checksums go into the record of the task, and what was put once is never fetched to be measured.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from .. import pipeline
from .._source import PACKING, Region, one_line, place_of, read_block
from .._store import METADATA_FILES, StoreAddress, regions, stored_array
from ..bounds import ErrorBound, ErrorSummary, error_summary
from ..encoding import default_chunks
from ..errors import AESZError, ConversionError, ErrorBoundViolation
from .plan import CF_KEYS, ConversionPlan, VariablePlan, is_packed

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Failure", "TaskRecord", "WriteTask", "create_objects", "root_objects", "run_task"]

BINS = 64  # of the histogram of errors, from -1 to 1 times the bound
_SAMPLE = 61  # one of so many values of a large chunk is in it; no divisor of the usual lengths of rows
_SAMPLE_LEAST = 4096  # values of a chunk that are, if it has as many

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


# Tasks


def task_id(name: str, region: Region) -> str:
    """Name and region: runs that cut the work differently, as with more memory, do not mistake each other's tasks."""
    return f"{name}/{','.join(f'{side.start}:{side.stop}' for side in region)}"


@dataclass(frozen=True)
class WriteTask:
    """One region of one variable, on its way to a worker.

    `block` is the lazy region of the source, `coded` whether our codec stores it, `compare_stored` whether the bound is on
    the values in the stored dtype and not on those of the source; `shape` that of the array where it grows by this task.
    """

    name: str
    region: Region
    address: StoreAddress
    block: xr.Variable
    dtype: np.dtype[Any]
    unit: tuple[int, ...]
    resolved: ErrorBound
    compare_stored: bool = False
    coded: bool = True
    shape: tuple[int, ...] | None = None

    @property
    def id(self) -> str:
        """See `task_id`."""
        return task_id(self.name, self.region)

    def of(self, block: xr.Variable) -> WriteTask:
        """Return the task with its part of the source."""
        return replace(self, block=block)


@dataclass(frozen=True)
class TaskRecord:
    """What a task wrote and measured; plain JSON through `to_json`.

    Attributes
    ----------
    id, name : str
    objects : dict
        Key in the store to (bytes, CRC-32). Units of nothing but fill value have no object and are not in it.
    errors : ErrorSummary
    histogram : tuple of int
        Of signed errors over the bound of their value, of a sample; empty where nothing is lost.
    predictors, models : dict
        Name of a predictor, digest of a model, to the number of chunks.
    seconds : dict
        Spent to read, to encode, to check and to write.
    """

    id: str
    name: str
    objects: Mapping[str, tuple[int, int]]
    errors: ErrorSummary
    histogram: tuple[int, ...] = ()
    predictors: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Of the objects."""
        return sum(size for size, _ in self.objects.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values; infinities are text."""
        errors = {key: repr(getattr(self.errors, key)) for key in ErrorSummary.__slots__}
        return {**self.__dict__, "errors": errors}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TaskRecord:
        """Read what `to_json` wrote."""
        whole = {"n", "n_finite", "violations"}
        errors: Any = {
            key: int(value) if key in whole else float(value) for key, value in entry["errors"].items()
        }
        objects = {str(key): (int(size), int(crc)) for key, (size, crc) in entry["objects"].items()}
        return cls(
            **{
                **entry,
                "errors": ErrorSummary(**errors),
                "objects": objects,
                "histogram": tuple(entry["histogram"]),
            }
        )


@dataclass(frozen=True)
class Failure:
    """A task that could not be done; `of_source` if the source could not be read."""

    name: str
    error: AESZError
    of_source: bool


def run_task(task: WriteTask) -> TaskRecord | Failure:
    """Do one task; what a user can do something about comes back as a `Failure`."""
    clock = _Clock()
    whole = tuple(slice(0, side.stop - side.start) for side in task.region)
    try:
        block = _read(task, whole)
    except AESZError as error:
        return Failure(task.name, error, of_source=True)
    clock.lap("read")
    try:
        return _written(task, block, clock)
    except AESZError as error:
        return Failure(task.name, error, of_source=False)
    except MemoryError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        where = place_of(task.name, task.region)
        return Failure(
            task.name,
            ConversionError(f"store: cannot write {task.address}: {reason}; in {where}"),
            of_source=False,
        )


def _read(task: WriteTask, whole: Region) -> np.ndarray:
    try:
        return read_block(task.block, task.name, whole)
    except ConversionError as error:  # with the place in the whole variable
        text = str(error).replace(place_of(task.name, whole), place_of(task.name, task.region))
        raise ConversionError(text) from error


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._last
        self._last = now


def _written(task: WriteTask, block: np.ndarray, clock: _Clock) -> TaskRecord:
    metadata = {f"{task.name}/{key}": task.address.get(f"{task.name}/{key}") for key in METADATA_FILES[:3]}
    objects: dict[str, Any] = {}
    memory = StoreAddress("memory", MemoryStore(objects))
    for key, data in metadata.items():
        if data is not None:
            if task.shape is not None and not key.endswith(".zattrs"):
                data = json.dumps({**json.loads(data), "shape": task.shape}).encode()
            memory.put(key, data)
    described = set(objects)
    array = zarr.open_array(memory.store, path=task.name, mode="r+")
    # A chunk of NaNs with payloads equals the fill value, and must be stored nevertheless where bits count.
    array = array.with_config({"write_empty_chunks": task.coded and task.resolved.mode == "lossless"})
    stored = stored_array(memory, task.name, array)
    record = _Measured(task)
    written: dict[str, tuple[int, int]] = {}
    corner = [side.start for side in task.region]
    for part in regions(block.shape, task.unit) if block.ndim else [()]:
        region = tuple(slice(s.start + c, s.stop + c) for s, c in zip(part, corner, strict=True))
        piece = block[part]
        with np.errstate(over="ignore"):
            values = piece.astype(task.dtype, copy=False)
        with record.watching(region, piece, values, array.chunks) as unseen:
            array[region] = values
        clock.lap("encode")
        for inner in unseen:
            place = _moved(inner, region)
            record.add(place, piece[inner], values[inner], np.asarray(array[place]))
        unit = tuple(side.start // n for side, n in zip(region, task.unit, strict=True))
        if task.coded:
            record.describe(stored.unit_chunks(unit))
        clock.lap("check")
        key = stored.unit_key(unit)
        if key in objects:
            data = objects[key].to_bytes()
            task.address.put(key, data)
            written[key] = (len(data), zlib.crc32(data))
        for key in set(objects) - described:
            del objects[key]
        clock.lap("write")
    return record.result(written, clock)


def _moved(inner: Region, region: Region) -> Region:
    """Return a region of a region as one of the whole array."""
    return tuple(slice(s.start + r.start, s.stop + r.start) for s, r in zip(inner, region, strict=True))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    bits = np.dtype(f"u{a.dtype.itemsize}")
    a, b = a.view(bits), b.view(bits)
    line = (0,) * (a.ndim - 1)
    return bool((a[line] == b[line]).all()) and bool((a == b).all())


class _Measured:
    """Adds up what the units of a task show."""

    def __init__(self, task: WriteTask) -> None:
        self.task = task
        self.errors = ErrorSummary()
        self.predictors: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.histogram = np.zeros(BINS, np.int64)

    @contextmanager
    def watching(
        self, region: Region, piece: np.ndarray, values: np.ndarray, chunks: tuple[int, ...]
    ) -> Iterator[list[Region]]:
        """Measure each chunk with what the encoder decodes of its stream to check itself.

        Yields the places, within `piece`, of the chunks that have not been seen yet. Those that are left at the end were
        not coded, as they hold nothing but fill value or another codec stores them.
        """
        unseen: list[Region] = list(regions(piece.shape, chunks)) if piece.ndim else [()]
        lock = threading.Lock()  # Zarr codes the chunks of a shard in threads of its own

        def measure(original: np.ndarray, decoded: np.ndarray) -> None:
            """Find the place by its values: an encoder that is used by another one is given others."""
            if original.shape != tuple(chunks) or original.dtype != values.dtype:
                return
            with lock:
                for inner in unseen:
                    inside = tuple(slice(0, side.stop - side.start) for side in inner)  # the rest is padding
                    if _same_bits(original[inside], values[inner]):
                        self.add(_moved(inner, region), piece[inner], values[inner], decoded[inside])
                        unseen.remove(inner)
                        return

        token = pipeline.when_checked.set(measure if self.task.coded else None)
        try:
            yield unseen
        finally:
            pipeline.when_checked.reset(token)

    def add(self, region: Region, piece: np.ndarray, values: np.ndarray, values_hat: np.ndarray) -> None:
        if not self.task.coded:
            same = values.tobytes() == values_hat.tobytes()
            errors = ErrorSummary(n=values.size, violations=0 if same else values.size)
        else:
            original = values if self.task.compare_stored else piece
            errors = error_summary(original, values_hat, self.task.resolved)
            self._add_to_histogram(original, values_hat)
        if errors.violations:
            raise ErrorBoundViolation(
                f"{place_of(self.task.name, region)}: found {errors.violations} values outside {self.task.resolved}, "
                "expected none; the store was not finished: please report this as a bug"
            )
        self.errors = self.errors.merge(errors)

    def _add_to_histogram(self, original: np.ndarray, values_hat: np.ndarray) -> None:
        bound = self.task.resolved
        if bound.value is None:
            return
        step = max(1, min(_SAMPLE, original.size // _SAMPLE_LEAST))
        x, x_hat = (a.reshape(-1)[::step].astype(np.float64) for a in (original, values_hat))
        allowed = bound.value if bound.mode == "abs" else bound.value * np.abs(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            place = ((x_hat - x) / allowed + 1) * (BINS / 2)
        place = place[np.isfinite(place)]
        self.histogram += np.bincount(np.clip(place.astype(np.int64), 0, BINS - 1), minlength=BINS)

    def describe(self, chunks: Iterable[tuple[tuple[int, ...], bytes | None]]) -> None:
        for _, data in chunks:
            if data is not None:
                info = pipeline.describe(data)
                self.predictors[info.predictor] += 1
                self.models.update(info.models)

    def result(self, objects: Mapping[str, tuple[int, int]], clock: _Clock) -> TaskRecord:
        return TaskRecord(
            id=self.task.id,
            name=self.task.name,
            objects=objects,
            errors=self.errors,
            histogram=tuple(self.histogram.tolist()) if self.histogram.any() else (),
            predictors=dict(self.predictors),
            models=dict(self.models),
            seconds={key: round(value, 4) for key, value in clock.seconds.items()},
        )


# The store around them


def create_objects(plan: ConversionPlan) -> dict[str, bytes]:
    """Make, in memory, every object of the new store but the chunks that the tasks write.

    Raises
    ------
    ConversionError
        If a variable that is copied whole cannot be read, or not stored.
    """
    objects: dict[str, Any] = {}
    try:
        _create_empty(plan, MemoryStore(objects))
        _copy_small(plan, MemoryStore(objects))
    except AESZError:
        raise
    except Exception as error:  # of whichever library reads, or cannot store what it read
        raise ConversionError(f"store: cannot create its arrays: {one_line(error)}") from error
    return {key: data.to_bytes() for key, data in objects.items()}


def root_objects(objects: Mapping[str, bytes], without: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the objects that make a group of the arrays, with consolidated metadata, in the order of writing."""
    held: dict[str, Any] = {}
    memory = StoreAddress("memory", MemoryStore(held))
    for key, data in objects.items():
        if key.partition("/")[0] not in without and key.rpartition("/")[2] in METADATA_FILES:
            memory.put(key, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(memory.store)
    last = "zarr.json" if "zarr.json" in held else ".zgroup"
    return {key: held[key].to_bytes() for key in sorted((k for k in held if "/" not in k), key=last.__eq__)}


def _create_empty(plan: ConversionPlan, store: MemoryStore) -> None:
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
            if is_packed(source):
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
    empty.to_zarr(store, mode="w", encoding=plan.encoding, **how)
    group: Any = zarr.open_group(store, mode="r+")
    for coordinate in coordinates:
        del group[coordinate]
    for name, variable in blockwise.items():
        group[name].resize(variable.shape)


def _copy_small(plan: ConversionPlan, store: MemoryStore) -> None:
    blockwise = [variable.name for variable in (*plan.variables, *plan.large_copies)]
    rest = plan.dataset.drop_vars(blockwise).copy()
    for name, source in list(rest.variables.items()):
        dropped = _STORAGE_KEYS | (CF_KEYS if source.dtype.kind == "f" else set())
        encoding = {key: value for key, value in source.encoding.items() if key not in dropped}
        if source.chunks is not None:  # Zarr wants Dask chunks of one size
            sizes = default_chunks(source.shape, source.dtype.itemsize)
            rest[name] = rest[name].chunk(dict(zip(source.dims, sizes, strict=True)))
        if source.dtype.kind == "f" and "_FillValue" not in source.attrs:
            encoding["_FillValue"] = None  # else xarray adds one
        rest[name].encoding = encoding
    if rest.variables:
        how: dict[str, Any] = {"zarr_format": plan.zarr_format, "consolidated": False}
        rest.to_zarr(store, mode="a", **how)


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
    scale, offset = (source.encoding.get(key, default) for key, default in zip(PACKING, (1, 0), strict=True))
    for key in ("valid_min", "valid_max", "valid_range"):
        if key in attributes and np.asarray(attributes[key]).dtype.kind in "iu":
            attributes[key] = np.asarray(attributes[key]) * scale + offset
