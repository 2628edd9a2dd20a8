"""`encoding_for`: from error bounds by variable to the ``encoding`` of ``xarray.Dataset.to_zarr``.

A codec sees one chunk of stored values and nothing else.  What needs the whole variable is settled here,
before anything is written: the range that ``range_rel`` refers to, the dtype of packed sources, fill values,
chunks, and which models are worth a trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import pipeline, zoo
from .bounds import ErrorBound, check_dtype, finite_range
from .codec import AESZ, CodecConfig, forecaster_of
from .coordinates import Coordinates
from .errors import AESZError, InvalidConfigError, ModelInputError, PackSizeError, UnsupportedDtypeError
from .foundation import FoundationModel, Reference
from .models import ModelChoice, ModelReference, references, usable
from .predictors.external import Choice
from .predictors.forecasts import Forecaster

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["BoundLike", "ForecasterLike", "default_chunks", "encoding_for"]

BoundLike: TypeAlias = "float | str | tuple[str, float | None] | ErrorBound"
ForecasterLike: TypeAlias = "str | type[Forecaster] | FoundationModel | None"

_CHUNK_BYTES = 16 << 20
_READ_BYTES = 16 << 20  # larger arrays are mapped anew each time, and half of the time goes into their pages
_MAX_STEPS = 128
_FLOAT32_ROUNDING = 2.0**-24  # largest relative error of a cast to float32
_FLOAT32_SHARE = 1 / 16  # the part of a tolerance that this cast may use up
_AUTO = "auto"
_MOST_TRIED = 4  # models of a variable
_SAMPLE_CHUNKS = 3
_SAMPLE_VALUES = 1 << 19  # of each, at most
_LEAST_SAVED = 0.005  # of the bytes of the samples


def encoding_for(
    ds: xr.Dataset,
    error_bound: BoundLike | Mapping[Hashable, BoundLike] | None = None,
    mode: str = "abs",
    *,
    zarr_format: int = 3,
    effort: str = "default",
    chunks: Mapping[Hashable, int] | Sequence[int] | None = None,
    shards: Mapping[Hashable, int] | Sequence[int] | None = None,
    model: ModelChoice | Mapping[Hashable, ModelChoice] = None,
    embed_models: bool = True,
    forecaster: ForecasterLike | Mapping[Hashable, ForecasterLike] = None,
) -> dict[Hashable, dict[str, Any]]:
    """Write the encoding that compresses the float variables of a dataset within their bounds.

    Parameters
    ----------
    ds : xarray.Dataset
        In memory, lazily opened or Dask-backed.  Values are read for ``range_rel``, block by block; those of all
        Dask-backed variables in one ``dask.compute``.  A few chunks are read of variables that ``model="auto"`` finds a
        model for.
    error_bound : number, mapping, (mode, number), ErrorBound or "lossless"
        One bound for every float variable, or a bound by variable name.  A bare number has the mode `mode`.
        Float variables that a mapping leaves out are stored losslessly.  None goes with mode ``lossless``.
    mode : {"abs", "range_rel", "pw_rel", "lossless"}
        See `aesz_codec.bounds`.
    zarr_format : {3, 2}
        Must be what ``to_zarr`` is given, or its default.
    effort
        As for `AESZ`.
    model : None, "auto", id, path, Pack, a list of these, or a mapping of variable name to these
        ``"auto"``: of the installed models that are for the variable (`aesz_codec.zoo.find`: standard name, short name,
        units, level, grid), those that save at least 0.5 % on a few of its chunks, and more than what they take
        in the metadata; where none is installed nothing is tried or read.  A model that is named is taken as it is.  A
        mapping means no model for variables that it leaves out.
    embed_models : bool
        As for `AESZ`.
    forecaster : None, str, Forecaster class, FoundationModel, or a mapping of variable name to these
        What frames may refer to in time, as for `AESZ`: ``"none"``, ``"nearest"``, ``"least-squares"``, ``"motion"``, or
        ``"package:forecaster"``. A foundation model gets, with each variable of three or four dimensions, its coordinates:
        channels, start, step and grid (``docs/foundation-models.md``).
    chunks : mapping of dimension to int, or sequence of int, optional
        A mapping (-1: the whole dimension) is cut to the size of the dimension, and what it leaves out is the
        Dask chunk or the whole dimension.  A sequence is for variables of that many dimensions and taken as
        it is, so that an array which will be appended to can have chunks longer than its first part.
        Default: the chunks of Dask, else `default_chunks`.
    shards : mapping of dimension to int, or sequence of int, optional
        Multiples of the chunks, format 3 only.  Dimensions that a mapping leaves out are whole.  With Dask
        the Dask chunks must be multiples of the shards.

    Returns
    -------
    dict
        Variable name to encoding, of plain JSON-like values (``_FillValue`` is a NaN): pickles, and needs no
        import to be used.  Coordinates, bounds of coordinates (``lat_bnds``), times, integers, booleans and
        strings are not in it.

    Raises
    ------
    InvalidConfigError
        If a variable, dimension, mode, effort or format does not exist, or chunks and shards do not fit.
    ModelNotFoundError, ModelKindError, PackError
        If a model or a forecaster is named that is not installed, or that cannot be used or embedded.
    ModelInputError
        If a foundation model is not for a variable: a channel or level that it does not know, another step or grid.
        InvalidConfigError if the variable has no regular coordinates, or chunks that do not hold whole states.
    InvalidBoundError
        If a bound is not a finite number > 0.
    UnsupportedDtypeError
        If a bound is given by name to a variable that does not hold floats.

    Notes
    -----
    - The bound is on the values as xarray decodes them.  ``range_rel`` becomes ``abs`` over the finite values
      of the whole variable, its ``_FillValue`` and ``missing_value`` left out, and ``lossless`` where it is
      constant.
    - Integers packed with ``scale_factor`` often decode to float64.  With an absolute tolerance they are
      stored as float32, and the tolerance in the result is smaller by what that cast can add, so that the
      float64 values keep the bound that was asked for; where the cast would take more than a sixteenth of it,
      and in the other modes, they stay float64.
    - Missing values are stored as NaN: a fill value such as -9999 would be data to the codec.  A variable
      opened with ``mask_and_scale=False`` is stored as it is.
    - A dataset opened from another Zarr store carries the codecs of that store, in its coordinates too: write
      ``ds.drop_encoding().to_zarr(..., encoding=encoding)``, after `ds` itself was given to this function.
    - Who opens the store without this package sees an unknown codec, in every variable.  An encoding cannot
      set attributes: a hint such as ``ds.attrs["comment"] = "compressed; to read: pip install aesz-codec"``
      is read by those who look at the metadata.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> t2m = ("time", "lat"), np.linspace(250, 300, 32, dtype="float32").reshape(8, 4)
    >>> encoding = encoding_for(xr.Dataset({"t2m": t2m}), error_bound={"t2m": 0.05})
    >>> encoding["t2m"]["serializer"]["configuration"]
    {'error_bound': 0.05, 'mode': 'abs', 'effort': 'default'}
    >>> encoding["t2m"]["compressors"], encoding["t2m"]["chunks"]
    (None, (8, 4))
    """
    if not hasattr(ds, "data_vars"):
        raise InvalidConfigError.at(
            "ds",
            found=type(ds).__name__,
            expected="an xarray.Dataset",
            remedy="use .to_dataset(name=...) for a DataArray",
        )
    if zarr_format not in (2, 3):
        raise InvalidConfigError.at("zarr_format", found=repr(zarr_format), expected="2 or 3")
    if shards is not None and zarr_format == 2:
        raise InvalidConfigError.at(
            "shards", found="zarr_format=2", expected="zarr_format=3", remedy="format 2 has no shards"
        )
    for field, sizes in (("chunks", chunks), ("shards", shards)):
        _check_sizes(field, sizes, ds)
    CodecConfig(mode="lossless", effort=effort)
    models = _models_by_name(ds, model, embed_models)
    forecasters = {
        name: None if of is None else forecaster_of(of) for name, of in _by_name("forecaster", ds, forecaster)
    }

    encoding: dict[Hashable, dict[str, Any]] = {}
    for name, bound in _resolved(ds, _bounds_by_name(ds, error_bound, mode)).items():
        variable = ds.variables[name]
        dtype, bound = _stored_as(variable, bound)
        check_dtype(dtype, bound)
        sizes = _chunk_sizes(name, variable, chunks, dtype.itemsize) if variable.ndim else ()
        chosen, refers = models.get(name, ()), forecasters.get(name)
        if chosen is None:
            chosen = _worth_it(ds, name, sizes, dtype, bound, effort, embed_models, refers)
        place = None
        if isinstance(refers, Reference):
            place = _place(ds, name, refers, sizes, bound, named=isinstance(forecaster, Mapping))
            refers = None if place is None else refers
        config = CodecConfig(
            bound.value, bound.mode, effort, chosen, forecaster=refers, coordinates=place
        ).to_json()
        entry: dict[str, Any] = {"dtype": dtype.name}
        if zarr_format == 3:
            entry["serializer"] = {"name": AESZ.codec_id, "configuration": config}
            entry["compressors"] = None
        else:
            entry["compressors"] = [{"id": AESZ.codec_id, **config}]
        entry["filters"] = None
        if "_FillValue" not in variable.attrs:
            entry["_FillValue"] = math.nan
        if variable.ndim:
            entry["chunks"] = sizes
            if shards is not None:
                entry["shards"] = _shard_sizes(name, variable, shards, entry["chunks"])
        encoding[name] = entry
    return encoding


def default_chunks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Choose chunks of at most 16 MiB for an array whose leading dimension is time.

    The last two dimensions stay whole if they fit, else the longer one is halved until they do.  Then the
    leading dimensions, the first one first, take as much as is left, at most 128 steps of time; the parts of
    a dimension are of nearly equal size, so that the last chunk is hardly padded.

    Examples
    --------
    >>> default_chunks((8760, 33, 49), 4)
    (127, 33, 49)
    >>> default_chunks((24, 721, 1440), 4)
    (4, 721, 1440)
    """
    room = _CHUNK_BYTES // itemsize
    sizes = [max(1, size) for size in shape]
    frame = range(max(0, len(sizes) - 2), len(sizes))
    while math.prod(sizes[axis] for axis in frame) > room:
        longest = max(frame, key=lambda axis: sizes[axis])
        sizes[longest] = -(-sizes[longest] // 2)
    room //= math.prod(sizes[axis] for axis in frame)
    for axis in range(frame.start):
        fitting = min(sizes[axis], max(1, room), *([_MAX_STEPS] if axis == 0 else []))
        sizes[axis] = -(-sizes[axis] // -(-sizes[axis] // fitting))
        room //= sizes[axis]
    return tuple(sizes)


def _bounds_by_name(
    ds: xr.Dataset, error_bound: BoundLike | Mapping[Hashable, BoundLike] | None, mode: str
) -> dict[Hashable, ErrorBound]:
    """Give each variable that is to be compressed its bound, as asked for."""
    floats = [name for name, variable in ds.data_vars.items() if _is_float(variable)]
    auxiliary = _auxiliary(ds)
    if not isinstance(error_bound, Mapping):
        bound = _as_bound(error_bound, mode)
        return {name: bound for name in floats if name not in auxiliary}
    for name in error_bound:
        if name in ds.coords:
            raise InvalidConfigError.at(
                "error_bound",
                found=f"a bound for the coordinate {name!r}",
                expected="data variables only",
                remedy="coordinates are kept exactly: leave it out",
            )
        if name not in ds.data_vars:
            raise InvalidConfigError.at(
                "error_bound",
                found=f"a bound for {name!r}, which is not in the dataset",
                expected=f"one of {', '.join(map(repr, floats)) or 'none: there are no float variables'}",
                remedy="check the spelling",
            )
        if name not in floats:
            raise UnsupportedDtypeError.at(
                "error_bound",
                found=f"a bound for {name!r}, which holds {ds.variables[name].dtype}",
                expected="a variable of float16, float32 or float64",
                remedy="leave it out: other types are stored exactly, by the default codec",
            )
    return {
        name: _named(name, error_bound[name], mode) if name in error_bound else ErrorBound("lossless")
        for name in floats
        if name in error_bound or name not in auxiliary
    }


def _as_bound(given: Any, mode: str) -> ErrorBound:
    if isinstance(given, ErrorBound):
        return given
    if isinstance(given, str) and given == "lossless":
        return ErrorBound("lossless")
    if isinstance(given, tuple | list) and len(given) == 2:
        return ErrorBound(*given)
    return ErrorBound(mode, given)


def _named(name: Hashable, given: Any, mode: str) -> ErrorBound:
    try:
        return _as_bound(given, mode)
    except AESZError as error:
        raise type(error)(f"{name}: {error}") from None


def _is_float(variable: Any) -> bool:
    return bool(variable.dtype.kind == "f" and variable.dtype.itemsize <= 8)


def _auxiliary(ds: xr.Dataset) -> set[Hashable]:
    """Find the data variables that describe coordinates: CF bounds, and times that were not decoded."""
    names: set[Hashable] = set()
    for name, variable in ds.variables.items():
        properties = {**variable.encoding, **variable.attrs}
        for key in ("bounds", "climatology", "coordinates", "grid_mapping"):
            names.update(str(properties.get(key) or "").split())
        if " since " in str(properties.get("units", "")):
            names.add(name)
    return names


def _resolved(ds: xr.Dataset, bounds: dict[Hashable, ErrorBound]) -> dict[Hashable, ErrorBound]:
    """Turn each ``range_rel`` into ``abs`` over its variable; one pass over the data."""
    relative = [name for name, bound in bounds.items() if bound.mode == "range_rel"]
    parts: dict[Hashable, list[Any]] = {}
    lazy: dict[Hashable, list[Any]] = {}
    for name in relative:
        variable = ds.variables[name]
        fills = fill_values(variable)
        if variable.chunks is not None and hasattr(variable.data, "to_delayed"):
            from dask.delayed import delayed

            range_of = delayed(finite_range, pure=True)
            lazy[name] = [range_of(block, fills) for block in variable.data.to_delayed().ravel()]
        else:
            parts[name] = [finite_range(variable[block].values, fills) for block in read_blocks(variable)]
    if lazy:
        from dask.base import compute

        (computed,) = compute(lazy)
        parts.update(computed)
    resolved = dict(bounds)
    for name in relative:
        found = [part for part in parts[name] if part is not None]
        lowest, highest = (
            min((low for low, _ in found), default=0.0),
            max((high for _, high in found), default=0.0),
        )
        resolved[name] = bounds[name].resolve(lowest, highest)
    return resolved


def fill_values(variable: xr.Variable) -> tuple[float, ...]:
    """Return the numbers that a variable says stand for nothing."""
    found: list[float] = []
    for properties in (variable.attrs, variable.encoding):
        for key in ("_FillValue", "missing_value"):
            values = np.atleast_1d(np.asarray(properties.get(key, ())))
            if values.dtype.kind in "iuf":
                found.extend(values.ravel().tolist())
    return tuple(found)


def read_blocks(variable: xr.Variable) -> Iterator[tuple[slice, ...]]:
    """Cut a lazy variable into blocks of about 16 MiB that are multiples of its source's chunks."""
    preferred = variable.encoding.get("preferred_chunks", {})
    if variable.chunks is not None:  # of Dask
        preferred = {
            dim: max(sizes, default=1) for dim, sizes in zip(variable.dims, variable.chunks, strict=True)
        }
    steps: list[int] = []
    for dim, size in zip(variable.dims, variable.shape, strict=True):
        step = preferred.get(dim, 1)
        steps.append(max(1, min(size, step if isinstance(step, int) else 1)))
    room = _READ_BYTES // variable.dtype.itemsize
    for axis in reversed(range(variable.ndim)):
        steps[axis] *= max(1, min(room // math.prod(steps), -(-variable.shape[axis] // steps[axis])))
    starts = [range(0, size, step) for size, step in zip(variable.shape, steps, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + step) for start, step in zip(corner, steps, strict=True))


def _stored_as(variable: xr.Variable, bound: ErrorBound) -> tuple[np.dtype[Any], ErrorBound]:
    """Choose the stored dtype, and the bound that keeps the one asked for on the decoded values."""
    dtype = variable.dtype.newbyteorder("=")
    if dtype.itemsize == 2:
        return dtype, ErrorBound("lossless")
    if dtype == np.float64 and bound.mode == "abs" and bound.value is not None:
        # The cast moves a value by at most this; the tolerance itself is in it to cover rounding in float64.
        cast_error = (_largest_packed(variable) + bound.value) * _FLOAT32_ROUNDING
        if cast_error <= bound.value * _FLOAT32_SHARE:
            return np.dtype(np.float32), ErrorBound("abs", bound.value - cast_error)
    return dtype, bound


def _largest_packed(variable: xr.Variable) -> float:
    """Return the largest magnitude that the integers of a packed source can stand for; inf if it has none."""
    packing = variable.encoding
    source = np.dtype(packing.get("dtype", np.float64))
    scale, offset = (np.asarray(packing.get(k, d)) for k, d in (("scale_factor", 1.0), ("add_offset", 0.0)))
    if (
        source.kind not in "iu"
        or not packing.keys() & {"scale_factor", "add_offset"}
        or scale.size * offset.size != 1
    ):
        return math.inf
    limits = np.iinfo(source)
    highest = 2 * limits.max + 1 if "_Unsigned" in packing else limits.max
    largest = max(abs(float(scale.item()) * i + float(offset.item())) for i in (limits.min, highest))
    return largest if largest < float(np.finfo(np.float32).max) else math.inf


def _models_by_name(
    ds: xr.Dataset, model: Any, embed: bool
) -> dict[Hashable, tuple[ModelReference, ...] | None]:
    """Give each variable the models that were asked for; None where they are to be found."""
    known: dict[Any, tuple[ModelReference, ...] | None] = {}
    chosen: dict[Hashable, tuple[ModelReference, ...] | None] = {}
    for name, choice in _by_name("model", ds, model):
        automatic = isinstance(choice, str) and choice == _AUTO
        if id(choice) not in known:
            known[id(choice)] = None if automatic else references(choice, embed=embed)
        chosen[name] = known[id(choice)]
    return chosen


def _by_name(what: str, ds: xr.Dataset, given: Any) -> Iterator[tuple[Hashable, Any]]:
    """Yield what was asked for, by name or for all, with the name of each variable."""
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(ds.data_vars, given)
    for name, choice in by_name.items():
        if name not in ds.data_vars:
            raise InvalidConfigError.at(
                what,
                found=f"a {what} for {name!r}, which is no data variable of the dataset",
                expected=f"one of {', '.join(map(repr, ds.data_vars)) or 'none: there are none'}",
                remedy="check the spelling",
            )
        yield name, choice


def _place(
    ds: xr.Dataset,
    name: Hashable,
    reference: Reference,
    chunks: tuple[int, ...],
    bound: ErrorBound,
    *,
    named: bool,
) -> Coordinates | None:
    """Return the coordinates that a foundation model needs of a variable; None if it is of no use for it."""
    variable = ds.variables[name]
    if bound.mode != "abs" or not (named or variable.ndim in (3, 4)):
        return None
    if variable.ndim and variable.shape[0] == 1 and reference.model().history:
        return None  # one time has no step, and nothing before it
    try:
        place = Coordinates.of(ds[name])
        if chunks[1:] != variable.shape[1:]:
            raise InvalidConfigError.at(
                "chunks",
                found=str(chunks),
                expected=f"whole states, of shape {variable.shape[1:]}, in every chunk for a foundation model",
                remedy=f"for example chunks={{{variable.dims[0]!r}: 8}}",
            )
        reference.model().check(place, (variable.shape[-2], variable.shape[-1]))
    except (InvalidConfigError, ModelInputError) as error:
        raise type(error)(f"{name}: {error}") from None
    return place


def _worth_it(
    ds: xr.Dataset,
    name: Hashable,
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    bound: ErrorBound,
    effort: str,
    embed: bool,
    refers: Reference | Choice | None,
) -> tuple[ModelReference, ...]:
    """Return the installed models for a variable that pay on a sample of its chunks."""
    variable = ds.variables[name]
    if dtype.itemsize == 2 or not variable.size or variable.ndim < 2:
        return ()
    found: dict[str, ModelReference] = {}
    for entry in usable(properties_of(ds, name), grid_of(ds, name))[:_MOST_TRIED]:
        try:
            found[entry.digest] = ModelReference.of(entry.pack, embed=embed)
        except PackSizeError:  # too large to travel along: to be asked for by name
            continue
    if not found:
        return ()
    packs = [reference.pack() for reference in found.values()]
    forecasters = refers.forecasters() if isinstance(refers, Choice) else None
    plain = with_models = sampled = 0
    used: dict[str, ModelReference] = {}
    for region in _sample_regions(variable.shape, chunks):
        with np.errstate(over="ignore"):
            values = np.asarray(variable[region].values).astype(dtype)
        plain += len(pipeline.encode(values, bound, effort=effort, forecasters=forecasters))
        stream = pipeline.encode(values, bound, effort=effort, models=packs, forecasters=forecasters)
        with_models += len(stream)
        sampled += values.size
        used.update({digest: found[digest] for digest in pipeline.describe(stream).models})
    saved = plain - with_models
    travelling = sum(len(reference.data or "") for reference in used.values())
    if saved < _LEAST_SAVED * plain or saved * (variable.size / sampled) <= travelling:
        return ()
    return tuple(reference for digest, reference in found.items() if digest in used)


def _sample_regions(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield parts of a few chunks, from the beginning, the middle and the end of an array."""
    sizes = [min(chunk, n) for chunk, n in zip(chunks, shape, strict=True)]
    while math.prod(sizes) > _SAMPLE_VALUES:
        axis = next((axis for axis in range(len(sizes) - 2) if sizes[axis] > 1), None)
        axis = int(np.argmax(sizes)) if axis is None else axis
        sizes[axis] = -(-sizes[axis] // 2)
    counts = [max(1, n // chunk) for n, chunk in zip(shape, chunks, strict=True)]  # of whole chunks
    number = min(_SAMPLE_CHUNKS, math.prod(counts))
    seen = set()
    for i in range(number):
        place = math.prod(counts) * (2 * i + 1) // (2 * number)
        corner = tuple(int(k) for k in np.unravel_index(place, counts))
        if corner not in seen:
            seen.add(corner)
            yield tuple(slice(k * c, k * c + n) for k, c, n in zip(corner, chunks, sizes, strict=True))


def properties_of(ds: xr.Dataset, name: Hashable) -> dict[str, Any]:
    """Collect what a variable says of itself, with the level of a scalar coordinate."""
    properties = {"name": str(name), **ds.variables[name].attrs}
    if not properties.keys() & {"level", "GRIB_level"}:
        for coordinate in ds[name].coords.values():
            scale = {"hPa": 1.0, "millibars": 1.0, "mb": 1.0, "Pa": 0.01}.get(
                str(coordinate.attrs.get("units"))
            )
            if coordinate.size == 1 and scale is not None and coordinate.dtype.kind in "iuf":
                properties["level"] = float(coordinate.values.item()) * scale
    return properties


def grid_of(ds: xr.Dataset, name: Hashable) -> str | None:
    """Return the hash of the latitudes and longitudes of a variable, if it has them."""
    axes: dict[str, Any] = {}
    for key, coordinate in ds[name].coords.items():
        for axis, names, units in (
            ("lat", ("lat", "latitude"), "degrees_north"),
            ("lon", ("lon", "longitude"), "degrees_east"),
        ):
            said = coordinate.attrs.get("standard_name", str(key).lower())
            if coordinate.ndim and (said in names or coordinate.attrs.get("units") == units):
                axes.setdefault(axis, coordinate)
    if len(axes) < 2:
        return None
    try:
        return zoo.grid_hash(axes["lat"].values, axes["lon"].values)
    except (InvalidConfigError, TypeError, ValueError):  # coordinates with gaps, or that are no numbers
        return None


def _check_sizes(field: str, sizes: Any, ds: xr.Dataset) -> None:
    if sizes is None:
        return
    if isinstance(sizes, Mapping):
        for dim in sizes:
            if dim not in ds.sizes:
                raise InvalidConfigError.at(
                    field,
                    found=f"the dimension {dim!r}, which is not in the dataset",
                    expected=f"one of {', '.join(map(repr, ds.sizes))}",
                    remedy="check the spelling",
                )
        values, whole = list(sizes.values()), True
    elif isinstance(sizes, Sequence) and not isinstance(sizes, str | bytes):
        values, whole = list(sizes), False
    else:
        raise InvalidConfigError.at(
            field,
            found=repr(sizes),
            expected="sizes by dimension, or one for each dimension",
            remedy=f"for example {field}={{'time': 64}}",
        )
    for value in values:
        integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not integer or (value < 1 and not (whole and value == -1)):
            raise InvalidConfigError.at(
                field,
                found=repr(value),
                expected=f"an integer > 0{', or -1 for the whole dimension' if whole else ''}",
            )


def _chunk_sizes(name: Hashable, variable: xr.Variable, chunks: Any, itemsize: int) -> tuple[int, ...]:
    if chunks is not None and not isinstance(chunks, Mapping):
        return _exact_sizes("chunks", name, variable, chunks)
    if not chunks and variable.chunks is None:
        return default_chunks(variable.shape, itemsize)
    given = chunks or {}
    sizes: list[int] = []
    for axis, (dim, extent) in enumerate(zip(variable.dims, variable.shape, strict=True)):
        if dim in given:
            size = extent if given[dim] == -1 else min(int(given[dim]), extent)
        elif variable.chunks is not None:
            size = _uniform(name, dim, variable.chunks[axis])
        else:
            size = extent
        sizes.append(max(1, size))
    return tuple(sizes)


def _uniform(name: Hashable, dim: Hashable, dask_chunks: tuple[int, ...]) -> int:
    first = dask_chunks[0]
    if any(size != first for size in dask_chunks[:-1]) or dask_chunks[-1] > first:
        raise InvalidConfigError.at(
            f"chunks of {name}",
            found=f"Dask chunks {_shortened(dask_chunks)} along {dim!r}",
            expected="equal ones, the last one not longer",
            remedy=f"rechunk, for example with ds.chunk({{{dim!r}: {max(dask_chunks)}}})",
        )
    return first


def _shortened(sizes: tuple[int, ...]) -> str:
    return str(sizes) if len(sizes) <= 8 else f"({', '.join(map(str, sizes[:8]))}, ...)"


def _shard_sizes(
    name: Hashable, variable: xr.Variable, shards: Any, chunks: tuple[int, ...]
) -> tuple[int, ...]:
    whole = [
        -(-max(1, extent) // chunk) * chunk for extent, chunk in zip(variable.shape, chunks, strict=True)
    ]
    if isinstance(shards, Mapping):
        given = [shards.get(dim, -1) for dim in variable.dims]
        sizes = tuple(all_ if size == -1 else int(size) for size, all_ in zip(given, whole, strict=True))
    else:
        whole = [max(a, int(b)) for a, b in zip(whole, shards, strict=False)]
        sizes = _exact_sizes("shards", name, variable, shards)
    for dim, size, chunk in zip(variable.dims, sizes, chunks, strict=True):
        if size % chunk:
            raise InvalidConfigError.at(
                f"shards of {name}",
                found=f"{size} along {dim!r}",
                expected=f"a multiple of the chunk, {chunk}",
                remedy=f"use {-(-size // chunk) * chunk}",
            )
    return tuple(min(size, all_) for size, all_ in zip(sizes, whole, strict=True))


def _exact_sizes(field: str, name: Hashable, variable: xr.Variable, sizes: Sequence[int]) -> tuple[int, ...]:
    if len(sizes) != variable.ndim:
        raise InvalidConfigError.at(
            f"{field} of {name}",
            found=f"{len(sizes)} sizes",
            expected=f"one for each of {', '.join(map(repr, variable.dims))}",
            remedy=f"give {field} by dimension, as a mapping",
        )
    return tuple(int(size) for size in sizes)
