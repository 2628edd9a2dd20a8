"""The guarantee, over arrays made to break it.

Hypothesis chooses the structure of an array (dtype, shape, memory layout, kind of signal, magnitudes, what is
planted in it) and a seed; the values come from NumPy, or one by one from Hypothesis for small arrays.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from aesz_codec import AESZ, pipeline
from aesz_codec.bounds import ErrorBound, first_violation
from aesz_codec.predictors import Local
from aesz_codec.stream import Method

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
KINDS = (
    "smooth",
    "noise",
    "noisy",
    "steps",
    "constant",
    "spike",
    "sparse",
    "dynamic",
    "bits",
    "frames",
    "lattice",
)
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


# ---- arrays ------------------------------------------------------------------------------------------------


def signal(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return float64 values of order 1."""
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij", sparse=True) if shape else []
    wave: Any = sum((np.sin(x * (k + 1) + k) for k, x in enumerate(axes)), start=np.zeros(shape))
    if kind == "smooth":
        return wave
    if kind == "noisy":
        return wave + 1e-3 * rng.standard_normal(shape)
    if kind == "steps":
        return np.floor(2 * wave)
    if kind == "constant":
        return np.full(shape, rng.standard_normal())
    if kind == "spike":
        out = np.full(shape, rng.standard_normal())
        if out.size:
            out.reshape(-1)[rng.integers(out.size)] = 1e6
        return out
    if kind == "sparse":
        return np.where(rng.random(shape) < 0.05, rng.standard_normal(shape), 0.0)
    if kind == "dynamic":
        return rng.standard_normal(shape) * 10.0 ** rng.uniform(-30, 30, shape)
    if kind == "frames":  # the same along the first axis, but for a little
        frame = rng.standard_normal(shape[1:])
        return frame + 1e-4 * rng.standard_normal(shape) if shape else frame
    if kind == "lattice":
        return np.round(wave * 50) / 50
    return rng.standard_normal(shape)


PLANTS = (
    "nan", "payload", "+inf", "-inf", "1e30", "-9999", "-0.0", "denormal", "max", "-max", "padding", "land",
)  # fmt: skip


def plant(array: np.ndarray, what: str, rng: np.random.Generator) -> None:
    """Put special values into a float array."""
    if not array.size:
        return
    limits = np.finfo(array.dtype)
    if what == "padding":
        axis = int(rng.integers(array.ndim)) if array.ndim else 0
        n = array.shape[axis] if array.ndim else 0
        fill = rng.choice([0.0, np.nan, -9999.0, 1.0])
        array[(slice(None),) * axis + ((slice(rng.integers(n + 1), None),) if array.ndim else ())] = fill
        return
    if what == "land":  # a connected region without data
        array[tuple(slice(n // 3, n // 3 + (n + 1) // 2) for n in array.shape)] = np.nan
        return
    where = rng.random(array.shape) < rng.choice([0.01, 0.1, 0.7])
    where.reshape(-1)[rng.integers(array.size)] = True
    if what == "payload":
        bits = array.view(BITS[array.itemsize])
        nan = np.array(rng.choice((np.nan, np.inf)), array.dtype).view(bits.dtype)  # from inf: signaling
        bits[where] = nan | rng.integers(1, 255, int(where.sum())).astype(bits.dtype)
        return
    with np.errstate(over="ignore"):
        array[where] = {
            "nan": np.nan,
            "+inf": np.inf,
            "-inf": -np.inf,
            "1e30": 1e30,
            "-9999": -9999.0,
            "-0.0": -0.0,
            "denormal": limits.smallest_subnormal * int(rng.integers(1, 1000)),
            "max": limits.max,
            "-max": limits.min,
        }[what]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """0 to 5 axes, few values; sometimes enough for the encoder to choose by a sample."""
    ndim = draw(st.sampled_from((0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5)))
    largest = {0: 1, 1: 600, 2: 40, 3: 14, 4: 7, 5: 5}[ndim]
    lengths = st.one_of(st.integers(1, 3), *2 * [st.integers(largest // 3, largest)])
    shape = [draw(lengths) for _ in range(ndim)]
    if ndim and draw(st.integers(0, 19)) == 0:
        shape[draw(st.integers(0, ndim - 1))] = 0
    if ndim and draw(st.integers(0, 15)) == 0:
        shape[draw(st.integers(0, ndim - 1))] *= 13_000 // max(1, math.prod(shape))
    return tuple(shape)


@st.composite
def float_arrays(draw: st.DrawFn, dtype: str) -> np.ndarray:
    shape = draw(shapes())
    if math.prod(shape) <= 24 and draw(st.booleans()):
        width = np.dtype(dtype).itemsize * 8
        return draw(nps.arrays(dtype, shape, elements=st.floats(width=width)))  # type: ignore[arg-type]
    kind = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    limits = np.finfo(dtype)
    if kind == "bits":
        bits = (
            rng.integers(0, 2 ** (8 * limits.bits // 8), shape, dtype=np.uint64, endpoint=False)
            if limits.bits < 64
            else rng.integers(0, 2**64 - 1, shape, dtype=np.uint64, endpoint=True)
        )
        return np.asarray(bits).astype(BITS[limits.bits // 8]).view(dtype).reshape(shape)
    scale = 10.0 ** draw(st.one_of(st.integers(-5, 5), st.integers(-45, 38)))
    offset = draw(st.sampled_from([0.0, 0.0, 1.0, 273.15, -1e5, 1e12])) * scale
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        array = np.asarray(signal(kind, shape, rng) * scale + offset).astype(dtype)
        if draw(st.integers(0, 9)) == 0:  # up to the edge of what the dtype can hold
            array *= limits.max / max(1.0, float(np.abs(array[np.isfinite(array)]).max(initial=0)))
    for what in draw(st.lists(st.sampled_from(PLANTS), max_size=3)):
        plant(array, what, rng)
    return array


@st.composite
def integer_arrays(draw: st.DrawFn, dtype: str) -> np.ndarray:
    shape = draw(shapes())
    limits = np.iinfo(dtype)
    if math.prod(shape) <= 24 and draw(st.booleans()):
        return draw(nps.arrays(dtype, shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(KINDS))
    if kind == "bits":
        return (
            rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
            if shape
            else np.array(limits.max, dtype)
        )
    amplitude = draw(st.sampled_from([3.0, 100.0, 1e4, 1e9, 1e15, float(limits.max) / 8]))
    center = draw(st.sampled_from([0, limits.max, limits.min, 2**53, -(2**53), 1000]))
    wide = np.clip(signal(kind, shape, rng) * amplitude, -(2.0**62), 2.0**62)
    flat = [min(max(int(v) + center, limits.min), limits.max) for v in wide.reshape(-1)]
    return np.array(flat, dtype).reshape(shape)


@st.composite
def laid_out(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """Return the same values in another memory layout or byte order, read-only."""
    layout = draw(
        st.sampled_from(["C", "C", "F", "reversed", "spread", "transposed", "broadcast", "unaligned"])
    )
    if layout == "F":
        array = np.asfortranarray(array)
    elif layout == "reversed":
        array = np.ascontiguousarray(array[(slice(None, None, -1),) * array.ndim])[
            (slice(None, None, -1),) * array.ndim
        ]
    elif layout == "spread":
        wide = np.zeros(tuple(2 * n + 1 for n in array.shape), array.dtype)
        target = wide[(..., *(slice(1, None, 2),) * array.ndim)]
        target[...] = array
        array = target
    elif layout == "transposed" and array.ndim:
        axes = draw(st.permutations(range(array.ndim)))
        array = np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
    elif layout == "broadcast" and array.ndim and array.shape[0]:
        array = np.broadcast_to(array[:1], array.shape)
    elif layout == "unaligned":
        memory = np.zeros(array.nbytes + 1, np.uint8)
        target = memory[1:].view(array.dtype).reshape(array.shape)
        target[...] = array
        array = target
    if draw(st.booleans()):
        array = array.astype(array.dtype.newbyteorder(draw(st.sampled_from("<>"))), order="K")
    array = array.view()
    array.flags.writeable = False
    return array


anything = st.one_of(st.floats(1e-40, 1e38), st.integers(-40, 38).map(lambda k: 10.0**k))


@st.composite
def bounds(draw: st.DrawFn, array: np.ndarray) -> ErrorBound:
    """Return a bound: mostly one that leaves something to code, of an absolute one a fraction of the spread."""
    floating = array.dtype.kind == "f"
    choices = ["abs"] * 6 + ["range_rel"] * 2 + ["pw_rel"] * 3 * floating + ["wild", "lossless"]
    choice = draw(st.sampled_from(choices))
    if choice == "lossless":
        return ErrorBound("lossless")
    if choice == "wild":
        return ErrorBound("abs", draw(anything))
    if choice == "pw_rel":
        return ErrorBound(
            "pw_rel", draw(st.one_of(st.floats(1e-7, 0.9), st.sampled_from([1e-7, 1e-5, 1e-3, 0.1, 0.9])))
        )
    fraction = 10.0 ** draw(st.one_of(st.integers(-4, 0), st.floats(-12, 1.5)))
    if choice == "range_rel":
        return ErrorBound("range_rel", fraction)
    values = array[np.isfinite(array)].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.percentile(values, [10, 90]) if values.size else (0.0, 0.0)  # apart from fill values
        tolerance = fraction * (high / 2 - low / 2)
    return (
        ErrorBound("abs", float(tolerance)) if 0 < tolerance < np.inf else ErrorBound("abs", draw(anything))
    )


efforts = st.sampled_from(pipeline.EFFORTS)


@dataclass(frozen=True)
class Case:
    array: np.ndarray
    bound: ErrorBound
    effort: str

    def __repr__(self) -> str:
        a = self.array
        head = f"{a.dtype.str} {a.shape} strides {a.strides}, {self.bound}, {self.effort}"
        return f"Case({head}, values {a.ravel()[:64].tolist()})"


@st.composite
def cases(draw: st.DrawFn, *, lossless: bool = False) -> Case:
    dtype = draw(st.sampled_from(("float32", "float64") * 12 + ("float16",) + INTEGERS))
    array = draw(float_arrays(dtype) if dtype in FLOATS else integer_arrays(dtype))
    bound = ErrorBound("lossless") if lossless else draw(bounds(array))
    return Case(draw(laid_out(array)), bound, draw(efforts))


# ---- judges, independent of the package --------------------------------------------------------------------


def native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


def outside(original: np.ndarray, decoded: np.ndarray, bound: ErrorBound) -> int:
    """Count the values that break the definitions in `aesz_codec.bounds`, computed anew."""
    assert bound.value is not None
    if original.dtype.kind in "iu":
        x, y = original.ravel().astype(object), decoded.ravel().astype(object)
        tolerance = bound.value
        if bound.mode == "range_rel":
            tolerance *= int(x.max() - x.min()) if x.size else 0
        return sum(abs(a - b) > tolerance for a, b in zip(x, y, strict=True))
    with np.errstate(invalid="ignore"):  # signaling NaN
        x, y = original.ravel().astype(np.float64), decoded.ravel().astype(np.float64)
    finite = np.isfinite(x)
    wrong = int((np.isnan(x) != np.isnan(y)).sum())
    wrong += int((x[np.isinf(x)] != y[np.isinf(x)]).sum()) + int((~np.isfinite(y[finite])).sum())
    x, y = x[finite], y[finite]
    with np.errstate(over="ignore", under="ignore"):
        if bound.mode == "pw_rel":
            allowed: Any = bound.value * np.abs(x)
        elif bound.mode == "range_rel":
            allowed = min(bound.value * (x.max() - x.min()), np.finfo(np.float64).max) if x.size else 0.0
        else:
            allowed = bound.value
        return wrong + int((np.abs(x - y) > allowed).sum())


def encoded(case: Case, **options: bool) -> bytes:
    """Encode; a warning of NumPy is an error, and so is a changed input."""
    before = case.array.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = pipeline.encode(case.array, case.bound, effort=case.effort, **options)
    assert case.array.tobytes() == before
    return stream


# ---- properties --------------------------------------------------------------------------------------------


@given(cases())
def test_every_value_is_within_the_bound(case: Case) -> None:
    stream = encoded(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = pipeline.decode(stream)
    original, bound = native(case.array), case.bound
    assert decoded.shape == original.shape
    assert decoded.dtype == original.dtype and decoded.dtype.isnative
    assert decoded.flags.c_contiguous and decoded.flags.writeable

    info = pipeline.describe(stream)
    assert (info.dtype, info.shape, info.mode, info.value) == (
        original.dtype.name,
        original.shape,
        bound.mode,
        bound.value,
    )
    assert sum(info.sections.values()) == info.nbytes == len(stream)
    newer = info.parameters.get("transform") == "lattice" or info.predictor == "local"
    newer |= info.parameters.get("coder") in ("static", "mixed")
    assert info.format_version == ("1.1" if newer else "1.0")

    if bound.mode == "lossless" or original.dtype == np.float16 or info.tolerance == 0:
        assert info.tolerance == 0
        assert info.predictor in ("constant", "lossless", "bytes")
        assert same_bits(original, decoded)
        assert first_violation(original, decoded, ErrorBound("lossless")) is None
        return
    assert outside(original, decoded, bound) == 0
    kept = ErrorBound("abs" if bound.mode == "range_rel" else bound.mode, info.tolerance)
    assert first_violation(original, decoded, kept) is None
    if bound.mode != "range_rel":
        assert info.tolerance == bound.value
    if original.dtype.kind == "f":
        assert np.array_equal(np.isnan(original), np.isnan(decoded))
        infinite = np.isinf(original)
        assert np.array_equal(original[infinite], decoded[infinite])
        if bound.mode == "pw_rel":
            zero = original == 0
            assert (decoded[zero] == 0).all()
            assert (np.signbit(decoded) == np.signbit(original))[~np.isnan(original) & ~zero].all()


@given(cases(lossless=True))
def test_lossless_keeps_every_bit(case: Case) -> None:
    stream = encoded(case)
    assert same_bits(native(case.array), pipeline.decode(stream))
    assert pipeline.describe(stream).value is None
    raw = case.array.nbytes
    assert len(stream) <= raw + raw // 32 + 128  # what cannot be compressed costs next to nothing


class LocalWherePossible(Local):
    """Proposed for shapes of any size that have the axes."""

    @classmethod
    def candidates(
        cls, shape: tuple[int, ...], effort: str, rate: float, models: object = ()
    ) -> Iterator[Local]:
        if len(shape) > 1:
            yield Local()


@given(cases())
def test_local_least_squares_keep_the_bound_on_any_shape(case: Case) -> None:
    with patch.object(pipeline, "PREDICTORS", {Method.LOCAL: LocalWherePossible}):
        stream = encoded(case)
    decoded, info = pipeline.decode(stream), pipeline.describe(stream)
    if info.tolerance == 0:
        assert same_bits(native(case.array), decoded)
    else:
        assert outside(native(case.array), decoded, case.bound) == 0


@given(cases())
def test_streams_and_decoded_bytes_are_deterministic(case: Case) -> None:
    stream = encoded(case)
    copy = np.array(native(case.array), order="C")
    assert pipeline.encode(copy, case.bound, effort=case.effort) == stream  # whatever the memory layout
    serial = pipeline.decode(stream).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert all(array.tobytes() == serial for array in pool.map(pipeline.decode, [stream] * 4))
    for form in (bytearray(stream), memoryview(stream)):
        assert pipeline.decode(form).tobytes() == serial  # type: ignore[arg-type]


@given(cases())
@example(Case(np.asfortranarray(np.zeros((3, 4), ">f4")), ErrorBound("abs", 0.1), "fast"))
def test_the_codec_restores_layout_and_config(case: Case) -> None:
    codec = AESZ(case.bound.value, mode=case.bound.mode, effort=case.effort)
    assert AESZ.from_config(codec.get_config()) == codec
    stream = codec.encode(case.array)
    decoded = codec.decode(stream)
    assert decoded.dtype == case.array.dtype and decoded.shape == case.array.shape
    if decoded.size:
        f_ordered = case.array.flags.f_contiguous and not case.array.flags.c_contiguous
        assert decoded.flags.f_contiguous if f_ordered else decoded.flags.c_contiguous
    plain = pipeline.decode(pipeline.encode(case.array, case.bound, effort=case.effort))
    assert same_bits(native(decoded), plain)
    out = np.empty_like(plain)
    assert codec.decode(stream, out) is out and same_bits(out, plain)
