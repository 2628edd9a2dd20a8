"""Sources: one file, many that belong together, a Zarr store, an object in a bucket, or a dataset; read lazily.

`open_source` gives one `xarray.Dataset` whose values stay where they are until a region of them is read.  Many
files become one dataset here and not through Dask, so that a read touches the bytes of its region and no more:

    files -> groups of the same variables -> sorted along the one dimension that differs -> `_Joined` arrays

What does not fit together (other grids, times that occur twice, variables that some files lack, other packing) is
found before anything is read.  Lazy variables pickle in a few kB and are opened again where they are unpickled.
"""

from __future__ import annotations

import glob
import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from .errors import AESZError, ConversionError

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

__all__ = [
    "Skipped",
    "Source",
    "SourceLike",
    "expand",
    "one_line",
    "open_source",
    "open_sources",
    "read_block",
]

Region = tuple[slice, ...]
SourceLike: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Store | xr.Dataset"

PACKING = ("scale_factor", "add_offset")
PATIENCE = (
    120.0  # seconds that a read or a write may fail for a reason that may pass, such as a server's restart
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_MISTAKES = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ImportError,
    NotImplementedError,
    AssertionError,
)
_PERMANENT_NUMBERS = {
    13,
    18,
    20,
    21,
    27,
    28,
    30,
    36,
    122,
}  # no permission, full disk, too large, read-only, quota

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Skipped:
    """A file or a variable that was left out because it could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """An open source.

    Attributes
    ----------
    decoded : xarray.Dataset
        Times as the numbers that are stored, unless they differ in their units from file to file; packed integers decoded.
    stored : xarray.Dataset or None
        The same as it is stored; None where the source is a dataset.
    files : tuple of str
    skipped : tuple of Skipped
        Files, and variables of files, that were left out.
    """

    decoded: xr.Dataset
    stored: xr.Dataset | None
    files: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def identity(self) -> list[list[Any]]:
        """Return name, size and time of change of each local file; names alone of what is elsewhere."""
        found: list[list[Any]] = []
        for name in self.files:
            if "://" not in name and Path(name).is_file():
                status = Path(name).stat()
                found.append([name, status.st_size, status.st_mtime_ns])
            else:
                found.append([name])
        return found


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def with_retries(action: Callable[[], _Result], patience: float = PATIENCE) -> _Result:
    """Do something over a network again, after growing pauses, while it fails for a reason that may pass."""
    deadline, pause = time.monotonic() + patience, _FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as error:
            if time.monotonic() + pause > deadline or not _may_pass(error):
                raise
        time.sleep(pause * random.uniform(0.5, 1))  # so that many workers do not come back together
        pause = min(2 * pause, _LONGEST_PAUSE)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, (AESZError, MemoryError, *_PERMANENT, *_MISTAKES)):
        return False
    if isinstance(error, OSError) and error.errno in _PERMANENT_NUMBERS:
        return False
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(status, int) and (status == 501 or (400 <= status < 500 and status not in (408, 429))):
        return False
    text = f"{type(error).__name__} {error}"
    return not any(
        word in text
        for word in (
            "AccessDenied",
            "NoSuchBucket",
            "InvalidAccessKey",
            "SignatureDoesNotMatch",
            "NoCredentials",
            "NotFoundError",
            "PermissionDenied",
            "Unauthenticated",
            "Forbidden",
        )
    )


def read_block(variable: xr.Variable, name: str, region: Region) -> np.ndarray:
    """Load one region of a variable, a few times over where the network fails.

    Raises
    ------
    ConversionError
        If the source cannot be read, with the place.
    """
    part = variable[region]
    if isinstance(variable._data, indexing.LazilyIndexedArray):
        _READ_LAST.append(variable)

    def load() -> np.ndarray:
        if part.chunks is not None:  # Dask's, and this may be one of its tasks
            return np.asarray(part.compute(scheduler="synchronous").values)
        return np.asarray(part.values)

    try:
        return with_retries(load) if _remote(part) else load()
    except (AESZError, MemoryError):
        raise
    except Exception as error:
        raise ConversionError(f"source: cannot read {place_of(name, region)}: {one_line(error)}") from error


def narrowed(block: xr.Variable) -> xr.Variable:
    """Drop the files that a region of many does not touch, before it is sent elsewhere."""
    import xarray as xr

    data = block._data
    if not isinstance(data, indexing.LazilyIndexedArray) or not isinstance(data.array, _Joined):
        return block
    key, axis = data.key.tuple, data.array.axis
    if not all(isinstance(k, slice) for k in key):
        return block
    joined, along = data.array.within(key[axis])
    inner = indexing.BasicIndexer(tuple(along if a == axis else k for a, k in enumerate(key)))
    return xr.Variable(block.dims, indexing.LazilyIndexedArray(joined, inner), block.attrs, block.encoding)


# Lazy variables that were read last. Their files are closed with the last variable that refers to them; where tasks come
# from elsewhere, each with variables of its own, they would be opened for each again.
_READ_LAST: deque[xr.Variable] = deque(maxlen=8)


def _remote(variable: xr.Variable) -> bool:
    return "://" in str(variable.encoding.get("source", ""))


def place_of(name: str, region: Region) -> str:
    """Write a region as ``name[start:stop, ...]``."""
    return f"{name}[{', '.join(f'{r.start}:{r.stop}' for r in region)}]"


# Opening


@contextmanager
def open_source(
    source: SourceLike,
    *,
    mask_and_scale: bool = True,
    on_error: str = "stop",
    storage_options: Mapping[str, Any] | None = None,
    skipped: list[Skipped] | None = None,
) -> Iterator[xr.Dataset]:
    """Open a source lazily; a `Dataset` is passed through.

    Parameters
    ----------
    source : path, URL, pattern such as ``"era5/*.nc"``, sequence of paths, Zarr store or Dataset
    mask_and_scale : bool
        Decode packed integers and fill values.  Times stay the numbers that are stored, unless the files of one
        dataset count them in different units.
    on_error : {"stop", "skip"}
        What to do with files that cannot be opened, and variables that some files lack.
    storage_options : mapping, optional
        For fsspec, where the source is a URL.
    skipped : list, optional
        Where to note what was left out.

    Raises
    ------
    ConversionError
        If there is no such source, nothing that xarray reads, or files that are not of one dataset.
    """
    import xarray as xr

    if isinstance(source, xr.Dataset):
        yield source
        return
    left_out = [] if skipped is None else skipped
    with ExitStack() as stack:
        if not isinstance(source, str | os.PathLike | Sequence):
            yield stack.enter_context(_opened(source, mask_and_scale, {}))
            return
        files = expand(source, storage_options)
        options = dict(storage_options or {})
        if len(files) == 1:
            yield stack.enter_context(_opened(files[0], mask_and_scale, options))
            return
        parts: list[_Part] = []
        for file in files:
            try:
                parts.append(_Part(file, stack.enter_context(_opened(file, mask_and_scale, options))))
            except ConversionError as error:
                if on_error != "skip":
                    raise
                left_out.append(Skipped(file, str(error)))
        if not parts:
            raise ConversionError.at("source", found="no file that can be read", expected="at least one")
        if _units_differ(parts):
            parts = [_Part(part.file, xr.decode_cf(part.dataset, mask_and_scale=False)) for part in parts]
        yield _joined(parts, on_error, left_out)


@contextmanager
def open_sources(
    source: SourceLike,
    *,
    on_error: str = "stop",
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[Source]:
    """Open a source twice, decoded and as it is stored; parameters and errors are those of `open_source`."""
    import xarray as xr

    if isinstance(source, xr.Dataset):
        yield Source(source, None)
        return
    skipped: list[Skipped] = []
    files = (
        expand(source, storage_options) if isinstance(source, str | os.PathLike | Sequence) else [str(source)]
    )
    how: dict[str, Any] = {"on_error": on_error, "storage_options": storage_options}
    with (
        open_source(source, skipped=skipped, **how) as decoded,
        open_source(source, mask_and_scale=False, **how) as stored,
    ):
        changed = {
            name: decoded.variables[name]
            for name in decoded.data_vars
            if decoded.variables[name].encoding.pop(_VARIOUS, False)
        }
        yield Source(decoded, stored.assign(changed) if changed else stored, tuple(files), tuple(skipped))


_VARIOUS = "aesz_various_packings"


def expand(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], storage_options: Any = None
) -> list[str]:
    """List the files that a path, a pattern or a sequence of them names.

    Raises
    ------
    ConversionError
        If there is none.
    """
    if not isinstance(source, str | os.PathLike):
        files = [file for item in source for file in expand(item, storage_options)]
        if not files:
            raise ConversionError.at("source", found="an empty list", expected="at least one file")
        return files
    text = os.fspath(source)
    is_pattern = any(sign in text for sign in "*?[")
    if "://" in text and not text.startswith("file://"):
        if not is_pattern:
            return [text]
        try:
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(text, **(storage_options or {}))
            found = [filesystem.unstrip_protocol(name) for name in filesystem.glob(path)]
        except Exception as error:
            raise ConversionError(f"source: cannot list {text}: {one_line(error)}") from error
    else:
        text = os.path.normpath(text.removeprefix("file://"))
        if Path(text).exists():
            return [text]
        found = glob.glob(text, recursive=True) if is_pattern else []  # noqa: PTH207
    if not found:
        expected = "at least one file that it matches" if is_pattern else "an existing file or Zarr store"
        raise ConversionError.at("source", found=text, expected=expected)
    return sorted(found)


@contextmanager
def _opened(source: Any, mask_and_scale: bool, storage_options: Mapping[str, Any]) -> Iterator[xr.Dataset]:
    import xarray as xr

    options: dict[str, Any] = {
        "decode_times": False,
        "decode_timedelta": False,
        "mask_and_scale": mask_and_scale,
        "chunks": None,
        "cache": False,
    }
    name = str(source)

    def open_it() -> xr.Dataset:
        if not isinstance(source, str):
            return xr.open_dataset(source, engine="zarr", **options)
        if "://" not in source:
            return xr.open_dataset(source, engine="zarr" if Path(source).is_dir() else None, **options)
        if source.rstrip("/").endswith((".nc", ".nc4", ".h5", ".hdf5", ".netcdf")):
            import fsspec

            opened = fsspec.open(source, "rb", **storage_options).open()
            return xr.open_dataset(opened, engine="h5netcdf", **options)
        return xr.open_dataset(
            source, engine="zarr", storage_options=dict(storage_options) or None, **options
        )

    try:
        dataset = with_retries(open_it) if "://" in name else open_it()
    except AESZError:
        raise
    except Exception as error:  # every engine has its own
        raise ConversionError(f"source: cannot read {name}: {one_line(error)}") from error
    for variable in dataset.variables.values():
        variable.encoding["source"] = name
    try:
        yield dataset
    finally:
        dataset.close()


# Many files


@dataclass
class _Part:
    file: str
    dataset: xr.Dataset
    first: Any = field(default=None)  # value of the joining coordinate


class _Joined(BackendArray):
    """Lazy arrays one after another along an axis; reads touch those that they need."""

    def __init__(self, parts: Sequence[xr.Variable], axis: int) -> None:
        self.parts = tuple(parts)
        self.axis = axis
        lengths = [part.shape[axis] for part in parts]
        self.starts = tuple(np.concatenate([[0], np.cumsum(lengths)]).tolist())
        self.shape = tuple(self.starts[-1] if a == axis else n for a, n in enumerate(parts[0].shape))
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def within(self, wanted: slice) -> tuple[_Joined, slice]:
        """Return the arrays that a slice along the axis touches, and the slice of them."""
        start, stop, step = wanted.indices(self.shape[self.axis])
        if step < 0 or stop <= start:
            return self, wanted
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop - 1, side="right"))
        part = _Joined(self.parts[first:last], self.axis)
        part.dtype = self.dtype
        return part, slice(start - self.starts[first], stop - self.starts[first], step)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted = key[self.axis]
        if isinstance(wanted, int | np.integer):
            position = int(wanted) % max(1, self.shape[self.axis])
            number = int(np.searchsorted(self.starts, position, side="right")) - 1
            return self._part(number, key, position - self.starts[number])
        start, stop, step = wanted.indices(self.shape[self.axis])
        if step < 0:
            positions = range(start, stop, step)
            forward = slice(positions[-1], positions[0] + 1, -step) if positions else slice(0, 0)
            backward = self._read(tuple(forward if a == self.axis else k for a, k in enumerate(key)))
            return np.flip(backward, self._axis_of_result(key))
        pieces = []
        for number, begin in enumerate(self.starts[:-1]):
            end = self.starts[number + 1]
            first = start if start >= begin else start + -(-(begin - start) // step) * step
            if first < min(end, stop):
                pieces.append(self._part(number, key, slice(first - begin, min(end, stop) - begin, step)))
        if not pieces:
            pieces = [self._part(0, key, slice(0, 0))]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces, axis=self._axis_of_result(key))

    def _part(self, number: int, key: tuple[Any, ...], along: Any) -> np.ndarray:
        whole = tuple(along if a == self.axis else k for a, k in enumerate(key))
        return np.asarray(self.parts[number][whole].values).astype(self.dtype, copy=False)

    def _axis_of_result(self, key: tuple[Any, ...]) -> int:
        return sum(1 for k in key[: self.axis] if isinstance(k, slice))


def _joined(parts: Sequence[_Part], on_error: str, skipped: list[Skipped]) -> xr.Dataset:
    """Make one dataset of files that have the same variables at other times, or other variables."""
    import xarray as xr

    parts = _with_the_same_variables(parts, on_error, skipped)
    groups: dict[frozenset[str], list[_Part]] = {}
    for part in parts:
        groups.setdefault(frozenset(map(str, part.dataset.data_vars)), []).append(part)
    datasets = [_concatenated(group) for group in groups.values()]
    for dataset, group in zip(datasets[1:], list(groups.values())[1:], strict=True):
        _check_same_grid(datasets[0], dataset, group[0].file, next(iter(groups.values()))[0].file, ignore=())
    if len(datasets) == 1:
        return datasets[0]
    return xr.merge(datasets, join="override", compat="override", combine_attrs="override")


def _with_the_same_variables(parts: Sequence[_Part], on_error: str, skipped: list[Skipped]) -> list[_Part]:
    """Drop, or complain about, variables that only some of the files with the others of their kind have."""
    names = [frozenset(map(str, part.dataset.data_vars)) for part in parts]
    kinds = set(names)
    if all(not (a & b) for a in kinds for b in kinds if a is not b and a != b):
        return list(parts)
    everywhere = frozenset.intersection(*names)
    for part, found in zip(parts, names, strict=True):
        for name in sorted(frozenset.union(*names) - found):
            reason = f"{name} is not in {part.file}, but in other files"
            if on_error != "skip":
                raise ConversionError.at(
                    "source",
                    found=f"no variable {name!r} in {part.file}",
                    expected="the variables of the other files",
                    remedy="leave that file out, or pass on_error='skip' (--on-error skip) to leave the variable out",
                )
            if not any(entry.name == name for entry in skipped):
                skipped.append(Skipped(name, reason))
    return [_Part(part.file, part.dataset[sorted(everywhere)]) for part in parts]


def _units_differ(parts: Sequence[_Part]) -> bool:
    seen: dict[str, Any] = {}
    for part in parts:
        for name in part.dataset.coords:
            attributes = part.dataset.variables[name].attrs
            if " since " in str(attributes.get("units", "")):
                units = (attributes["units"], attributes.get("calendar"))
                if seen.setdefault(str(name), units) != units:
                    return True
    return False


def _concatenated(parts: Sequence[_Part]) -> xr.Dataset:
    """Put files behind each other along the one dimension in which their coordinates differ."""
    import xarray as xr

    first = parts[0].dataset
    if len(parts) == 1:
        return first
    dim = _joining_dimension(parts)
    for part in parts[1:]:
        _check_same_grid(first, part.dataset, part.file, parts[0].file, ignore=(dim,))
    for part in parts:
        if not part.dataset.sizes[dim]:
            raise ConversionError.at(
                "source", found=f"no {dim} in {part.file}", expected="at least one", remedy="leave it out"
            )
        part.first = part.dataset[dim].values[0]
    ordered = sorted(parts, key=lambda part: part.first)
    for before, after in itertools.pairwise(ordered):
        if not before.dataset[dim].values[-1] < after.first:
            raise ConversionError.at(
                "source",
                found=f"{dim} {_as_time(after.dataset, dim, 0)} in {after.file}, where {before.file} reaches "
                f"{_as_time(before.dataset, dim, -1)}",
                expected="each of them once, in rising order",
                remedy="leave out files that overlap",
            )
    data = {}
    first = ordered[0].dataset
    for name, variable in first.variables.items():
        if dim not in variable.dims:
            data[name] = _the_same_in_all(ordered, str(name))
            continue
        pieces = [part.dataset.variables[name] for part in ordered]
        axis = variable.dims.index(dim)
        for part, piece in zip(ordered, pieces, strict=True):
            if piece.dims != variable.dims:
                raise ConversionError.at(
                    "source",
                    found=f"{name} with dimensions {piece.dims} in {part.file}",
                    expected=f"those in {ordered[0].file}, {variable.dims}",
                )
        lazy = indexing.LazilyIndexedArray(_Joined(pieces, axis))
        joined = xr.Variable(variable.dims, lazy, variable.attrs, _common_encoding(pieces))
        data[name] = joined.load() if name in first.coords else joined
    coordinates = {name: data.pop(name) for name in first.coords}
    return xr.Dataset(data, coordinates, first.attrs)


def _the_same_in_all(parts: Sequence[_Part], name: str) -> xr.Variable:
    first = parts[0].dataset.variables[name]
    for part in parts[1:]:
        other: Any = part.dataset.variables[name]
        if not other.equals(first, equiv=_equal):
            raise ConversionError.at(
                "source",
                found=f"{name} in {part.file} with other values",
                expected=f"those in {parts[0].file}, as it has no dimension along which files follow each other",
                remedy="leave that file out",
            )
    return first


def _equal(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f"))


def _joining_dimension(parts: Sequence[_Part]) -> str:
    first = parts[0].dataset
    differing = [
        str(dim)
        for dim in first.sizes
        if dim in first.coords
        and any(
            dim not in part.dataset.coords or not np.array_equal(first[dim].values, part.dataset[dim].values)
            for part in parts[1:]
        )
    ]
    times = [dim for dim in differing if is_time(first.variables[dim])]
    if len(times) == 1:
        return times[0]
    if len(differing) == 1:
        dim = differing[0]
        values = [part.dataset[dim].values for part in parts if dim in part.dataset.coords]
        if len(values) == len(parts) and len(np.unique(np.concatenate(values))) == sum(map(len, values)):
            return dim
        other = next(
            part for part in parts[1:] if not np.array_equal(first[dim].values, part.dataset[dim].values)
        )
        raise _other_grid(other.file, parts[0].file, dim)
    if not differing:
        time = next((str(d) for d in first.sizes if d in first.coords and is_time(first.variables[d])), None)
        where = f"the same {time}s" if time else "no coordinate that differs"
        raise ConversionError.at(
            "source",
            found=f"{where} in {parts[0].file} and {parts[1].file}",
            expected="each of them once",
            remedy="leave one of them out",
        )
    other = next(
        part
        for part in parts[1:]
        if not np.array_equal(first[differing[0]].values, part.dataset[differing[0]].values)
    )
    raise _other_grid(other.file, parts[0].file, differing[0])


def _check_same_grid(
    first: xr.Dataset, other: xr.Dataset, file: str, first_file: str, ignore: tuple[str, ...]
) -> None:
    for dim in {**first.sizes, **other.sizes}:
        if dim in ignore or dim not in first.sizes or dim not in other.sizes:
            continue
        same = first.sizes[dim] == other.sizes[dim]
        if same and dim in first.coords and dim in other.coords:
            same = bool(np.array_equal(first[dim].values, other[dim].values))
        if not same:
            raise _other_grid(file, first_file, str(dim))


def _other_grid(file: str, first_file: str, dim: str) -> ConversionError:
    return ConversionError.at(
        "source",
        found=f"another grid in {file}: its {dim} differs",
        expected=f"that of {first_file}",
        remedy="convert files on different grids into stores of their own",
    )


def _common_encoding(pieces: Sequence[xr.Variable]) -> dict[str, Any]:
    """Return the encoding of the first; where they are packed in different ways, the one that reaches farthest."""

    def reach(piece: xr.Variable) -> float:
        scale, offset = (
            float(np.asarray(piece.encoding.get(k, d)).ravel()[0])
            for k, d in zip(PACKING, (1, 0), strict=True)
        )
        return abs(scale) * 2.0**16 + abs(offset)

    def packing(piece: xr.Variable) -> tuple[Any, ...]:
        return tuple(str(piece.encoding.get(key)) for key in ("dtype", *PACKING, "_FillValue"))

    packed = [piece for piece in pieces if any(key in piece.encoding for key in PACKING)]
    if not packed or len({packing(piece) for piece in pieces}) == 1:
        return dict(pieces[0].encoding)
    if len(packed) < len(pieces):
        return {k: v for k, v in pieces[0].encoding.items() if k not in (*PACKING, "dtype", "_FillValue")} | {
            _VARIOUS: True
        }
    return {**max(packed, key=reach).encoding, _VARIOUS: True}


# Time


def is_time(variable: xr.Variable) -> bool:
    """Say whether a variable holds times, decoded or not."""
    if variable.dtype.kind == "M" or " since " in str(variable.attrs.get("units", "")):
        return True
    return bool(
        variable.dtype.kind == "O" and variable.size and hasattr(variable.values.ravel()[0], "calendar")
    )


def check_times(dataset: xr.Dataset) -> None:
    """Refuse times that occur twice or are in no order.

    Raises
    ------
    ConversionError
    """
    for dim in dataset.sizes:
        if dim not in dataset.coords or not is_time(dataset.variables[dim]) or dataset.sizes[dim] < 2:
            continue
        values = dataset.variables[dim].values
        rising = values[1:] > values[:-1]
        falling = values[1:] < values[:-1]
        if rising.all() or falling.all():
            continue
        wrong = int(np.argmin(rising if rising.sum() >= falling.sum() else falling)) + 1
        where = f"{_as_time(dataset, str(dim), wrong)} at position {wrong}"
        before = _as_time(dataset, str(dim), wrong - 1)
        what = "twice" if np.unique(values).size < values.size else "after " + before
        raise ConversionError.at(
            "source",
            found=f"{dim} {where}, {what}",
            expected="each of them once, in rising or falling order",
            remedy=f"sort them first, as with ds.sortby({str(dim)!r}).drop_duplicates({str(dim)!r})",
        )


def _as_time(dataset: xr.Dataset, dim: str, index: int) -> str:
    import xarray as xr

    single = xr.Dataset(coords={dim: dataset[dim][[index]].variable})
    with suppress(ValueError):  # units that are no time after all
        single = xr.decode_cf(single)
    return str(single[dim].values[0]).removesuffix(".000000000")
