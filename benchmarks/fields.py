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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

# Bounds in the units of the field that its users set, beside the suite's fractions of the range.
_ABSOLUTE_BOUNDS = {"era5_uk_hourly_t2m": (0.05, 0.25, 1.0)}


_MESOSCALE = 80  # waves around the globe: 500 km


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
            raise ValueError("a constant or empty field has no range: give an absolute bound (abs:VALUE)")
        return self.value * (float(finite.max()) - float(finite.min()))


def parse_bound(text: str) -> Bound:
    """``1e-3`` (fraction of the range) or ``abs:0.05`` (units of the field)."""
    mode, _, number = text.rpartition(":")
    value = float(number)
    if mode not in ("", "abs", "range_rel") or not 0 < value < float("inf"):
        raise ValueError(f"bound: found {text!r}, expected FRACTION or abs:VALUE, finite and > 0")
    return Bound(mode or "range_rel", value)


@dataclass(frozen=True)
class Field:
    """Where one field is, and how it is cut; `read` loads it, so that worker processes get a few bytes."""

    name: str
    source: str  # suite.json, or a file that xarray opens
    variable: str | None  # None: `name` is an id of the suite
    chunks: tuple[int, ...] | None  # None: the whole array
    bounds: tuple[Bound, ...]

    def read(self, dtype: str) -> np.ndarray:
        return _read(self, dtype)

    def chunk_shape(self, values: np.ndarray) -> tuple[int, ...]:
        shape = self.chunks or values.shape
        if len(shape) != values.ndim or min(shape, default=1) < 1:
            raise ValueError(
                f"chunks of {self.name}: found {shape}, expected one size an axis of {values.shape}"
            )
        return shape


@functools.lru_cache(maxsize=1)
def _read(field: Field, dtype: str) -> np.ndarray:
    if field.variable is None:
        values = _loader(Path(field.source).with_name("load.py")).load(field.name)[0]
    else:
        import xarray

        with xarray.open_dataset(field.source) as dataset:
            values = dataset[field.variable].values
    return np.ascontiguousarray(values, dtype=dtype)


@functools.lru_cache
def _loader(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_suite_loader", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"suite: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_suite(argument: str | None) -> Path | None:
    """suite.json by argument (the file or its folder), else by ``AESZ_DATA``, else None."""
    place = argument or os.environ.get("AESZ_DATA")
    if not place:
        return None
    path = Path(place)
    path = path / "suite.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"suite: found no file {path}, expected suite.json; give --suite or set AESZ_DATA")
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


def file_field(argument: str, chunks: tuple[int, ...] | None) -> Field:
    """``FILE:VARIABLE``, any file that xarray opens, in chunks of one shape (None: whole)."""
    source, _, variable = argument.rpartition(":")
    if not source or not variable:
        raise ValueError(f"field: found {argument!r}, expected FILE:VARIABLE")
    bounds = tuple(Bound("range_rel", value) for value in (1e-2, 1e-3, 1e-4))
    return Field(f"{Path(source).stem}:{variable}", source, variable, chunks, bounds)


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
