"""The arrays that the benchmarks run on: a suite, one variable of a file, or synthetic fields made here.

A suite is a folder with ``suite.json`` (fields, their chunk shapes and the bounds) and ``load.py``
(``load(id) -> (values, entry)``); its path is an argument or the environment variable ``AESZ_DATA``.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

# Bounds in the units of the field that its users set, beside the suite's fractions of the range.
_ABSOLUTE_BOUNDS = {"era5_uk_hourly_t2m": (0.05, 0.25, 1.0)}
_SMALL_CHUNKS = (8, 64, 64)
SYNTHETIC = "synthetic"
_MESOSCALE = 80  # waves around the globe: 500 km


class BadArgument(ValueError):  # noqa: N818
    """An argument, or a field that it names, cannot be used; the message says why."""


@dataclass(frozen=True)
class Bound:
    """An error bound as asked: a fraction of the field's range, or absolute."""

    mode: str  # "range_rel" or "abs"
    value: float

    @property
    def label(self) -> str:
        text = f"{self.value:g}"
        if self.mode == "abs":
            return f"abs {text}"
        mantissa, exponent = f"{self.value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"

    def tolerance(self, values: np.ndarray) -> float:
        """In the units of `values`: the range is that of all finite values, in float64."""
        if self.mode == "abs":
            return self.value
        finite = values[np.isfinite(values)]
        if finite.size == 0 or finite.min() == finite.max():
            raise BadArgument("a constant or empty field has no range: give an absolute bound (--abs)")
        return self.value * (float(finite.max()) - float(finite.min()))


DEFAULT_BOUNDS = tuple(Bound("range_rel", value) for value in (1e-2, 1e-3, 1e-4))


def parse_bounds(mode: str, text: str) -> tuple[Bound, ...]:
    """Bounds of one mode from ``1e-2,1e-3``."""
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = [0.0]
    if not all(0 < value < float("inf") for value in values):
        raise BadArgument(f"bounds: found {text!r}, expected numbers, finite and > 0, separated by commas")
    return tuple(Bound(mode, value) for value in values)


@dataclass(frozen=True)
class Field:
    """Where one field is, and how it is cut; `read` loads it, so that worker processes get a few bytes."""

    name: str
    source: str  # suite.json, a file that xarray opens, or "synthetic"
    variable: str | None  # of the file; None: `name` is an id of the suite, or a shape
    chunks: tuple[int, ...] | None  # of the last axes, 1 along those before them; None: the whole array
    bounds: tuple[Bound, ...]
    small: bool = False  # instead of `chunks`: 8 x 64 x 64 over the last axes, 64 x 64 of a field with two

    def read(self, dtype: str) -> np.ndarray:
        return _read(self.source, self.name, self.variable, dtype)

    def chunk_shape(self, values: np.ndarray) -> tuple[int, ...]:
        """The chunks' shape, nowhere larger than the field."""
        chunks = _SMALL_CHUNKS[-values.ndim :] if self.small else self.chunks or values.shape
        missing = values.ndim - len(chunks)
        if missing < 0 or min(chunks, default=1) < 1:
            raise BadArgument(
                f"chunks of {self.name}: found {chunks}, expected a size an axis of {values.shape}"
            )
        return tuple(map(min, (1,) * missing + chunks, values.shape))


@functools.lru_cache(maxsize=1)
def _read(source: str, name: str, variable: str | None, dtype: str) -> np.ndarray:
    if source == SYNTHETIC:
        values = synthetic(tuple(int(size) for size in name.rpartition(" ")[2].split("x")))
    elif variable is None:
        values = _loader(Path(source).with_name("load.py")).load(name)[0]
    else:
        import xarray

        with xarray.open_dataset(source) as dataset:
            values = dataset[variable].values
    return np.ascontiguousarray(values, dtype=dtype)


@functools.lru_cache
def _loader(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_suite_loader", path)
    if spec is None or spec.loader is None:
        raise BadArgument(f"suite: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- which fields ----------------------------------------------------------------------------------------------


def find_suite(argument: str | None) -> Path | None:
    """suite.json by argument (the file or its folder), else by ``AESZ_DATA``, else None."""
    place = argument or os.environ.get("AESZ_DATA")
    if not place:
        return None
    path = Path(place)
    path = path / "suite.json" if path.is_dir() else path
    if not path.is_file():
        raise BadArgument(f"suite: found no file {path}, expected suite.json; give --suite or set AESZ_DATA")
    return path.resolve()


def suite_fields(path: Path) -> list[Field]:
    """The fields of a suite, in its order, with its bounds."""
    suite = json.loads(path.read_text())
    relative = tuple(Bound("range_rel", float(value)) for value in suite["range_rel"])
    return [
        Field(
            name=entry["id"],
            source=str(path),
            variable=None,
            chunks=tuple(entry["chunks"]),
            bounds=relative + tuple(Bound("abs", value) for value in _ABSOLUTE_BOUNDS.get(entry["id"], ())),
        )
        for entry in suite["fields"]
    ]


def file_fields(path: str, variables: Sequence[str], chunks: str | None) -> list[Field]:
    """Variables of a file that xarray opens, by default its only one of floats.

    `chunks` is ``time=48,lat=64`` (other axes whole), ``48,64,128`` (the last axes) or None (whole arrays).
    """
    import xarray

    try:
        dataset = xarray.open_dataset(path)
    except (OSError, ValueError) as problem:
        raise BadArgument(f"file: {path} cannot be opened: {problem}") from problem
    with dataset:
        floats = [
            str(name) for name, array in dataset.data_vars.items() if array.dtype.kind == "f" and array.ndim
        ]
        if not variables and len(floats) != 1:
            raise BadArgument(f"--variable: {path} has {', '.join(floats) or 'none of floats'}; name one")
        chosen = []
        for variable in variables or floats:
            if variable not in floats:
                raise BadArgument(f"--variable: found {variable!r}, expected one of {', '.join(floats)}")
            sizes = {str(name): size for name, size in dataset[variable].sizes.items()}
            shape = _chunk_shape(chunks, sizes) if chunks else None
            chosen.append(Field(f"{Path(path).stem}:{variable}", path, variable, shape, DEFAULT_BOUNDS))
    return chosen


def _chunk_shape(text: str, sizes: dict[str, int]) -> tuple[int, ...]:
    expected = f"expected sizes, or NAME=SIZE with names of {', '.join(sizes)}"
    try:
        if "=" not in text:
            return tuple(int(size) for size in text.split(","))
        named = dict(part.split("=") for part in text.split(","))
        if not named.keys() <= sizes.keys():
            raise KeyError
        return tuple(int(named.get(name, size)) for name, size in sizes.items())
    except (KeyError, ValueError):
        raise BadArgument(f"--chunks: found {text!r}, {expected}") from None


def synthetic_field(shape: tuple[int, ...]) -> Field:
    """A field made here (see `synthetic`), in one chunk."""
    return Field(f"synthetic {'x'.join(map(str, shape))}", SYNTHETIC, None, None, DEFAULT_BOUNDS)


# ---- how they are cut ------------------------------------------------------------------------------------------


def split(values: np.ndarray, chunks: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The chunks in C order, contiguous; those at the edges are smaller, not padded."""
    starts = (range(0, size, step) for size, step in zip(values.shape, chunks, strict=True))
    for corner in itertools.product(*starts):
        window = tuple(slice(at, at + step) for at, step in zip(corner, chunks, strict=True))
        yield np.ascontiguousarray(values[window])


def slices(chunk: np.ndarray, max_ndim: int | None) -> Iterator[np.ndarray]:
    """`chunk` itself, or its parts over the last `max_ndim` axes."""
    if max_ndim is None or chunk.ndim <= max_ndim:
        yield chunk
    else:
        yield from chunk.reshape(-1, *chunk.shape[chunk.ndim - max_ndim :])


def synthetic(shape: tuple[int, ...], seed: int = 20261121) -> np.ndarray:
    """A smooth random field like a weather variable: (lat, lon) or (time, lat, lon), float32.

    The energy in a ring of wavenumber k is that of the atmosphere: k**-3, and k**-5/3 from 500 km down
    (Nastrom and Gage 1985). In time every spectral coefficient is an AR(1) process with an hourly step whose
    memory shortens with k**(2/3): large scales persist, small ones do not. Scaled to mean 280 and standard
    deviation 15, as temperature in kelvin.
    """
    *frames, rows, columns = shape
    rng = np.random.default_rng(seed)
    wavenumber = np.hypot(np.fft.fftfreq(rows, 1 / rows)[:, None], np.fft.rfftfreq(columns, 1 / columns))
    wavenumber[0, 0] = np.inf  # no mean
    energy = wavenumber**-3.0 + _MESOSCALE**-3.0 * (wavenumber / _MESOSCALE) ** (-5 / 3)
    amplitude = np.sqrt(energy / wavenumber)  # a ring of radius k has about k coefficients
    wavenumber[0, 0] = 0.0
    memory = np.exp(-0.01 * wavenumber ** (2 / 3))

    def noise() -> np.ndarray:
        return np.fft.rfft2(rng.standard_normal((rows, columns)))

    state = noise()
    steps = []
    for step in range(frames[0] if frames else 1):
        if step:
            state = memory * state + np.sqrt(1 - memory**2) * noise()
        steps.append(np.fft.irfft2(amplitude * state, s=(rows, columns)))
    values = np.stack(steps).reshape(shape)
    return (280 + 15 * (values - values.mean()) / values.std()).astype(np.float32)
