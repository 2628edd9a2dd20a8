"""The lattice of packed sources: found where it is, used where it pays, harmless where it is not.

Sources are imitated as they come: GRIB, ``(R + k * 2**E) * 10**-D`` with a float32 R for every field, and int16 with
``scale_factor`` and ``add_offset``.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesz_codec import lattice, pipeline
from aesz_codec.bounds import ErrorBound, first_violation
from aesz_codec.errors import CorruptStreamError
from aesz_codec.lattice import Lattice

LOSSLESS = ErrorBound("lossless")


def integers(shape, rng, spread=2000.0, noise=4.0):
    """Return a smooth field of integers from 0, with noise."""
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij", sparse=True)
    wave = sum((np.sin(x * (a + 1) + a) for a, x in enumerate(axes)), start=np.zeros(shape))
    k = np.rint(spread * wave + noise * rng.standard_normal(shape))
    return k - k.min()


def grib(k, references, exponent=-9, decimals=0, dtype="float32"):
    """Unpack integers with a reference value for every frame (or one for all)."""
    r = np.float32(references).astype(np.float64)
    r = r.reshape(r.shape + (1,) * (k.ndim - r.ndim))
    return ((r + k * 2.0**exponent) * 10.0**-decimals).astype(dtype)


def find(values, tolerance, mask=None):
    before = values.copy()
    found = lattice.find(values, mask, tolerance)
    assert np.array_equal(before, values, equal_nan=True)
    return found


def check(array, bound):
    """Encode, decode, compare; return what the stream says."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = pipeline.encode(array, bound)
    decoded = pipeline.decode(stream)
    if bound.mode == "range_rel":
        bound = bound.resolve(float(np.nanmin(array)), float(np.nanmax(array)))
    assert first_violation(array, decoded, bound) is None
    info = pipeline.describe(stream)
    used = info.parameters.get("transform") == "lattice"
    newer = used or info.predictor == "local" or info.parameters.get("coder") in ("static", "mixed")
    assert info.format_version == ("1.1" if newer else "1.0")
    return info, used


# ---- detection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3000,), (60, 70), (5, 20, 30), (2, 3, 20, 30)])
def test_one_lattice_for_all(shape, dtype):
    values = grib(integers(shape, np.random.default_rng(1)), 251.40625, dtype=dtype)
    found = find(values, 0.0)
    assert (found.lattice.unit, found.lattice.bits, found.units) == (2.0**-9, 0, 0)
    assert np.array_equal(found.lattice.to_values(found.values, values.dtype), values)


def test_an_origin_for_every_frame():
    rng = np.random.default_rng(2)
    references = 250 + rng.integers(0, 1 << 14, 12) / 2.0**14
    values = grib(integers((12, 21, 31), rng), references)
    found = find(values, 0.0)
    assert (found.lattice.unit, found.units) == (2.0**-9, 0)
    assert 1 <= found.lattice.bits <= 7  # the last place of the values is 2**-16 to 2**-15
    assert np.array_equal(found.lattice.to_values(found.values, values.dtype), values)


def test_frames_of_twice_the_unit():
    rng = np.random.default_rng(3)
    k = integers((6, 40, 50), rng)
    k[::2] *= 2
    k[::2] += 1  # origins differ by an odd number too
    values = grib(k, 1000 + np.arange(6) / 16, exponent=-3)
    for offset in (0, 1):  # the frame that is looked at first has the whole unit, or its double
        part = np.ascontiguousarray(values[offset : offset + 5])
        found = find(part, 0.0)
        assert found.lattice.unit == 2.0**-3
        assert np.array_equal(found.lattice.to_values(found.values, part.dtype), part)


@pytest.mark.parametrize(("unit", "power"), [(0.01, None), (0.025, None), (1.0, 0), (2.5, None), (5.0, None)])
def test_round_units_are_found_to_the_bit(unit, power):
    k = integers((50, 60), np.random.default_rng(4), 300)
    values = (100 + unit * k).astype("float32")
    assert find(values, 0.0).lattice.unit == unit


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_int16_with_scale_and_offset(dtype):
    k = integers((9, 40, 50), np.random.default_rng(5), 9000) - 12000
    scale, offset = np.float64(0.0010025264012614294), np.float64(253.12345678)
    values = (k * scale + offset).astype(dtype)
    found = find(values, 1e-4)
    assert found.units == 0
    assert found.lattice.unit == pytest.approx(scale, rel=1e-7)
    assert np.abs(found.lattice.to_values(found.values, values.dtype) - values).max() < 1e-4


def test_int16_in_float32_arithmetic():
    k = (integers((9, 40, 50), np.random.default_rng(6), 9000) - 12000).astype("float32")
    values = k * np.float32(0.00133) + np.float32(11.7)  # two roundings, the offset larger than many values
    assert find(values, 5e-4).lattice.unit == pytest.approx(0.00133, rel=1e-6)
    assert check(values, ErrorBound("abs", 5e-4))[1]


def test_few_different_values():
    land = (np.random.default_rng(7).random((30, 40)) < 0.3).astype("float32")
    assert find(land, 0.0).lattice.unit == 1
    assert find(np.full((30, 40), 2.5, "f4"), 0.0) is None


def test_no_lattice():
    rng = np.random.default_rng(8)
    for values in (
        rng.standard_normal((8, 64, 64)),
        280 + 10 * rng.random((8, 64, 64)),
        np.exp(10 * rng.standard_normal(5000)),
        rng.integers(0, 2**52, 3000).astype("float64"),  # a lattice, but too fine
    ):
        for dtype in ("float32", "float64"):
            for tolerance in (0.0, 1e-7, 1e-5, 1e-3, 1e-1, 1e3):
                assert find(values.astype(dtype), tolerance) is None


def test_masked_places_do_not_matter():
    rng = np.random.default_rng(9)
    values = grib(integers((6, 30, 40), rng), 250 + np.arange(6) / 2048)
    mask = (rng.random(values.shape) < 0.3).astype(np.uint8)
    mask[4] = 1
    values[mask == 1] = np.nan
    values[0, mask[0] == 1] = 1e30
    found = find(values, 0.0, mask)
    assert found.lattice.unit == 2.0**-9
    back = found.lattice.to_values(found.values, values.dtype)
    assert np.array_equal(back[mask == 0], values[mask == 0])
    mask[3] = 1  # the frame in the middle, where the search starts
    whole = find(np.where(mask, np.nan, values).astype("f4") // 1, 0.0, mask)
    assert whole.lattice.unit == 1


# ---- the choice of the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "unit", "units"),
    [
        (0.0, 1.0, 0),
        (0.01, 1.0, 0),
        (0.49, 1.0, 0),
        (0.5, 0.5, 1),  # a step of 1.5, where 1 is all that other data have
        (0.6, 0.5, 1),
        (0.76, 0.25, 3),
        (1.0, 1.0, 1),  # allowed to be reached: all values are exact
        (1.3, 1.0, 1),
        (5.0, 1.0, 5),
        (24.0, 1.0, 24),
        (30.0, None, None),  # hardly anything to gain
    ],
)
def test_step(tolerance, unit, units):
    values = integers((60, 70), np.random.default_rng(10)).astype("float32")
    found = find(values, tolerance)
    assert (found and found.lattice.unit, found and found.units) == (unit, units)
    check(values, ErrorBound("abs", tolerance) if tolerance else LOSSLESS)


def test_a_tolerance_of_whole_decimal_units_is_not_overstepped():
    values = (integers((60, 70), np.random.default_rng(11), 500) * 0.1).astype("float32")
    for tolerance in (0.1, 0.2, 0.3):
        info, _ = check(values, ErrorBound("abs", tolerance))
        assert info.sections.get("corrections", 0) < 100


def test_it_pays(monkeypatch):
    rng = np.random.default_rng(12)
    values = grib(integers((6, 60, 70), rng), 250 + np.arange(6) / 2048)
    bounds = [ErrorBound("abs", e) for e in (0.0003, 0.0011, 0.0022, 0.0041)] + [LOSSLESS]
    sizes = [len(pipeline.encode(values, bound)) for bound in bounds]
    monkeypatch.setattr(lattice, "find", lambda *_: None)
    others = [len(pipeline.encode(values, bound)) for bound in bounds]
    gains = [other / size for other, size in zip(others, sizes, strict=True)]
    assert gains[0] > 1.2 and gains[-1] > 1.5 and min(gains) > 1.02, gains


# ---- through the pipeline --------------------------------------------------------------------------------------


@st.composite
def packed(draw):
    """Return an array like one that was packed, and its unit."""
    shape = draw(st.sampled_from([(700,), (23, 31), (4, 9, 11), (5, 3, 4), (2, 3, 8, 9), (1, 1, 20, 30)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k = integers(
        shape, rng, draw(st.sampled_from([0.7, 20.0, 2000.0, 30000.0])), draw(st.sampled_from([0, 1, 40]))
    )
    dtype = draw(st.sampled_from(["float32", "float64"]))
    if draw(st.booleans()):
        exponent, decimals = draw(st.integers(-12, 4)), draw(st.integers(0, 3))
        base = draw(st.sampled_from([0.0, -40.0, 250.0, 100000.0])) * 10.0**decimals
        shifts = rng.integers(0, 1 << 12, shape[:-2]) / 2.0**12 if draw(st.booleans()) else 0.0
        values, unit = grib(k, base + shifts, exponent, decimals, dtype), 2.0**exponent * 10.0**-decimals
    else:
        unit = draw(st.floats(1e-5, 1e3))
        offset = draw(st.floats(-1e4, 1e4))
        values = (k * unit + offset).astype(dtype)
    if draw(st.booleans()):
        values[rng.random(shape) < 0.1] = np.nan
    return values, unit


@given(packed(), st.floats(1e-3, 30), st.booleans())
def test_packed_sources_keep_their_bound(source, ratio, lossless):
    values, unit = source
    check(values, LOSSLESS if lossless else ErrorBound("abs", ratio * unit))


@given(
    packed(), st.floats(1e-3, 30), st.sampled_from(["jitter", "few", "scaled", "bits"]), st.integers(0, 99)
)
def test_nearly_a_lattice_is_no_trap(source, ratio, kind, seed):
    values, unit = source
    rng = np.random.default_rng(seed)
    if kind == "jitter":
        values = values + (unit * 10.0 ** -rng.integers(0, 9) * rng.standard_normal(values.shape)).astype(
            values.dtype
        )
    elif kind == "few":
        values.reshape(-1)[rng.integers(values.size, size=3)] += values.dtype.type(0.37 * unit)
    elif kind == "scaled":
        values = values * (1 + np.linspace(0, 1e-4, values.shape[-1])).astype(values.dtype)
    else:
        flips = (rng.random(values.shape) < 0.01).astype(f"u{values.itemsize}")
        values = (values.view(flips.dtype) ^ flips).view(values.dtype)
    for bound in (ErrorBound("abs", ratio * unit), LOSSLESS):
        check(values, bound)


@given(packed())
def test_reference_decoder_agrees(reference, source):
    values, unit = source
    for bound in (ErrorBound("abs", 0.3 * unit), LOSSLESS):
        stream = pipeline.encode(values, bound)
        expected, decoded = reference.decode(stream), pipeline.decode(stream)
        assert expected.tobytes() == decoded.tobytes()


def test_lossless_keeps_the_sign_of_zero_and_nan():
    values = integers((40, 50), np.random.default_rng(13)).astype("float32")
    values -= np.median(values)
    values[values == 0] = -0.0
    values[3, 4] = 0.0
    values[5:9, 7:30] = np.nan
    bits = values.view("u4")
    bits[6, 8] = 0x7FC12345
    info, used = check(values, LOSSLESS)
    assert used and info.mode == "lossless" and info.sections["corrections"] > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padding_and_fill_values(dtype):
    values = np.full((20, 40, 50), -9999, dtype)
    values[:9, :, :33] = grib(integers((9, 40, 33), np.random.default_rng(14)), 250 + np.arange(9) / 1024, -6)
    values[2, 5:9, 8:20] = np.nan
    for bound in (ErrorBound("abs", 0.005), ErrorBound("range_rel", 1e-5), LOSSLESS):
        info, used = check(values, bound)
        assert used and info.parameters["region"] == [9, 40, 33]


@pytest.mark.parametrize("mode", ["pw_rel", "integers", "float16"])
def test_not_for_these(mode):
    values = integers((40, 50), np.random.default_rng(15), 100) + 10
    if mode == "pw_rel":
        assert not check(values.astype("f4"), ErrorBound("pw_rel", 1e-3))[1]
    else:
        values = values.astype("i4" if mode == "integers" else "f2")
        assert not check(values, ErrorBound("abs", 1.0))[1]
        assert not check(values, LOSSLESS)[1]


def test_largest_and_smallest_numbers():
    rng = np.random.default_rng(16)
    k = integers((30, 40), rng, 100)
    for scale in (5e-324, 1e-310, 1e-160, 1e-30, 1e30, 1e160, 1e300, 4e305):
        check(k * scale, ErrorBound("abs", 0.3 * scale) if scale > 1e-320 else LOSSLESS)
        check(k * scale, LOSSLESS)
    for scale in (1e-45, 1e-38, 1e35):
        check((k * scale).astype("f4"), LOSSLESS)


# ---- the section and what is said of it ------------------------------------------------------------------------


@given(
    st.floats(-1e9, 1e9),
    st.floats(1e-9, 1e9),
    st.integers(0, 16).flatmap(
        lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=6, max_size=6))
    ),
)
def test_section_returns(origin, unit, shifts):
    bits, numbers = shifts
    given_ = Lattice(origin, unit, bits, tuple(numbers) if bits else ())
    assert Lattice.unpack(given_.pack(), (2, 3, 8, 9)) == given_


@pytest.mark.parametrize(
    "section",
    [
        b"",
        Lattice(math.nan, 1.0).pack(),
        Lattice(math.inf, 1.0).pack(),
        Lattice(0.0, 0.0).pack(),
        Lattice(0.0, -1.0).pack(),
        Lattice(0.0, math.inf).pack(),
        Lattice(0.0, 1.0, 17, (0,) * 6).pack(),
        Lattice(0.0, 1.0, 3, (0,) * 5).pack(),
        Lattice(0.0, 1.0, 3, (0,) * 7).pack(),
        Lattice(0.0, 1.0, 3, (8,) * 6).pack(),
        Lattice(0.0, 1.0).pack() + b"\x00",
    ],
)
def test_bad_sections(section):
    with pytest.raises(CorruptStreamError):
        Lattice.unpack(section, (2, 3, 8, 9))


def test_frames_beyond_all_bounds_are_refused_at_once():
    with pytest.raises(CorruptStreamError):
        Lattice.unpack(Lattice(0.0, 1.0, 3, (0,) * 9).pack(), (2**40, 3, 3))


def test_description():
    values = grib(integers((6, 30, 40), np.random.default_rng(17)), 250 + np.arange(6) / 2048)
    info, used = check(values, ErrorBound("abs", 0.0042))
    assert used and info.parameters["transform"] == "lattice"
    assert info.parameters["lattice_unit"] == 2.0**-9
    assert info.parameters["lattice_error"] == 2
    assert info.parameters["lattice_by_frame"] is True
    assert info.parameters["step"] == pytest.approx(5 * 2.0**-9, rel=1e-5)
