"""The bound itself: what is accepted, how it resolves, and which values are inside it."""

import math
import pickle
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from aesz_codec import errors
from aesz_codec.bounds import (
    MODES,
    ErrorBound,
    ErrorSummary,
    check_dtype,
    error_summary,
    finite_range,
    first_violation,
)

LOSSLESS = ErrorBound("lossless")


def absolute(value):
    return ErrorBound("abs", value)


# --- ErrorBound ---


@pytest.mark.parametrize(
    "value", [0.05, 3, np.float32(0.05), np.float64(0.05), np.int16(3), 5e-324, Fraction(1, 3)]
)
@pytest.mark.parametrize("mode", ["abs", "range_rel"])
def test_numbers_become_python_floats(mode, value):
    bound = ErrorBound(mode, value)
    assert type(bound.value) is float
    assert bound.value == float(value)


@pytest.mark.parametrize("mode", ["abs", "range_rel", "pw_rel"])
@pytest.mark.parametrize(
    "value",
    [
        0,
        0.0,
        -0.0,
        -1.0,
        math.nan,
        math.inf,
        -math.inf,
        True,
        np.True_,
        "0.05",
        None,
        10**400,
        1j,
        [0.1],
        np.ones(2),
    ],
)
def test_what_is_no_bound_is_refused(mode, value):
    with pytest.raises(errors.InvalidBoundError, match=r"^error_bound: found .*, expected .*; "):
        ErrorBound(mode, value)


@pytest.mark.parametrize("value", [1, 1.0, 7.5])
def test_pointwise_relative_bound_stays_below_one(value):
    with pytest.raises(errors.InvalidBoundError, match="below 1"):
        ErrorBound("pw_rel", value)
    assert ErrorBound("pw_rel", math.nextafter(1.0, 0.0)).value < 1


def test_lossless_has_no_value():
    assert ErrorBound("lossless").value is None
    with pytest.raises(errors.InvalidBoundError, match="lossless"):
        ErrorBound("lossless", 0.1)


@pytest.mark.parametrize("mode", ["rel", "ABS", "", None, 3])
def test_unknown_mode_names_the_known_ones(mode):
    with pytest.raises(errors.InvalidConfigError) as caught:
        ErrorBound(mode, 0.1)
    assert repr(mode) in str(caught.value)
    assert all(known in str(caught.value) for known in MODES)


def test_bound_is_immutable_hashable_and_pickles():
    bound = absolute(0.5)
    with pytest.raises(AttributeError):
        bound.value = 1.0
    assert {bound: 1}[absolute(0.5)] == 1
    assert pickle.loads(pickle.dumps(bound)) == bound


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-10.0, 30.0, absolute(0.4)),
        (5.0, 5.0, LOSSLESS),
        (math.nan, math.nan, LOSSLESS),
        (-math.inf, 1.0, LOSSLESS),
        (0.0, 5e-324, LOSSLESS),
        (-(2**63), 2**63 - 1, absolute(0.01 * (2**64 - 1))),
        (-1.7e308, 1.7e308, absolute(0.01 * 1.7e308 * 2)),
    ],
)
def test_range_relative_resolves_over_the_range(low, high, expected):
    resolved = ErrorBound("range_rel", 0.01).resolve(low, high)
    assert resolved.mode == expected.mode
    assert resolved.value == (None if expected.value is None else pytest.approx(expected.value, rel=1e-15))


def test_range_relative_never_resolves_to_infinity():
    assert math.isfinite(ErrorBound("range_rel", 1e10).resolve(-1.7e308, 1.7e308).value)


@pytest.mark.parametrize("bound", [absolute(2.0), ErrorBound("pw_rel", 0.1), LOSSLESS])
def test_other_modes_do_not_depend_on_the_range(bound):
    assert bound.resolve(0.0, 100.0) == bound


# --- first_violation ---

LAYOUTS = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(1,), (70_000,), (3, 5, 7), (3, 300, 400), (200_000, 3), (2, 70_000), (5, 2, 40_000)]
)
def test_violation_is_found_where_it_is(shape, layout):
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype(np.float32)
    bad = tuple(int(rng.integers(n)) for n in shape)
    x_hat = x + np.float32(0.25)
    later = tuple(n - 1 for n in shape)
    x_hat[later] += 1
    x_hat[bad] += 1
    arrange = LAYOUTS[layout]
    assert first_violation(arrange(x), arrange(x_hat), absolute(0.5)) == bad
    assert first_violation(arrange(x), x_hat, absolute(0.5)) == bad
    assert first_violation(arrange(x), arrange(x_hat), absolute(2.5)) is None


def test_scalars_and_empty_arrays():
    assert first_violation(np.float32(1).reshape(()), np.float32(2).reshape(()), absolute(0.5)) == ()
    assert first_violation(np.float32(1).reshape(()), np.float32(1).reshape(()), absolute(0.5)) is None
    empty = np.empty((3, 0, 4))
    assert first_violation(empty, empty, absolute(0.5)) is None
    assert error_summary(empty, empty, absolute(0.5)) == ErrorSummary()


def test_the_bound_is_inclusive_and_nothing_more():
    x = np.array([1.0])
    inside = np.array([1.5])
    assert first_violation(x, inside, absolute(0.5)) is None
    assert first_violation(x, np.nextafter(inside, 2), absolute(0.5)) == (0,)
    # In float32 the difference of these two would round to the bound itself.
    x32, x32_hat = np.array([1.0], np.float32), np.array([1 + 2**-23], np.float32)
    assert first_violation(x32, x32_hat, absolute(math.nextafter(2**-23, 0))) == (0,)
    assert first_violation(x32, x32_hat, absolute(2**-23)) is None


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("bound", [absolute(1.0), ErrorBound("pw_rel", 0.5)])
@pytest.mark.parametrize(
    ("x", "x_hat", "inside"),
    [
        (NAN, NAN, True),
        (INF, INF, True),
        (-INF, -INF, True),
        (0.0, -0.0, True),
        (NAN, 0.0, False),
        (0.0, NAN, False),
        (INF, -INF, False),
        (INF, 1e30, False),
        (1e30, INF, False),
        (INF, NAN, False),
        (1e30, -1e30, False),
    ],
)
def test_values_that_are_not_finite_stay_themselves(dtype, bound, x, x_hat, inside):
    found = first_violation(np.array([0, x], dtype), np.array([0, x_hat], dtype), bound)
    assert found == (None if inside else (1,))


def test_difference_that_overflows_is_a_violation():
    x = np.array([1.7e308])
    assert first_violation(x, -x, absolute(1.7e308)) == (0,)


def test_pointwise_relative():
    bound = ErrorBound("pw_rel", 0.1)
    x = np.array([100.0, -100.0, 1e-300, 0.0])
    assert first_violation(x, x * 1.09, bound) is None
    assert first_violation(x, x * 1.11, bound) == (0,)
    assert first_violation(x, np.array([100.0, -100.0, 1e-300, 5e-324]), bound) == (3,)
    assert first_violation(np.array([5e-324]), np.array([1e-323]), bound) == (0,)


def test_lossless_compares_bits():
    x = np.array([0.0, NAN, 1.0])
    payload = x.copy()
    payload.view("u8")[1] ^= 1
    assert first_violation(x, x.copy(), LOSSLESS) is None
    assert first_violation(x, payload, LOSSLESS) == (1,)
    assert first_violation(x, np.array([-0.0, NAN, 1.0]), LOSSLESS) == (0,)
    assert first_violation(x, payload, absolute(1e-9)) is None


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_integers_are_compared_exactly(dtype):
    limits = np.iinfo(dtype)
    low, high = np.array([limits.min], dtype), np.array([limits.max], dtype)
    extent = limits.max - limits.min
    assert first_violation(low, high, absolute(float(extent) * 2)) is None
    assert first_violation(low, high, absolute(float(extent) * 0.99)) == (0,)
    assert first_violation(high, low, absolute(float(extent) * 0.99)) == (0,)
    assert first_violation(high, high - np.array(1, dtype), absolute(1.5)) is None
    assert first_violation(high, high - np.array(2, dtype), absolute(1.5)) == (0,)


def test_integers_beyond_float64_are_compared_exactly():
    x = np.array([2**62 + 1])
    assert first_violation(x, x + 2, absolute(1.5)) == (0,)  # as float64 the two would be equal
    assert first_violation(x, x + 1, absolute(1.5)) is None


def test_memory_is_that_of_blocks():
    x = np.zeros((40, 300, 500), np.float32)[:, ::-1]
    tracemalloc.start()
    try:
        assert first_violation(x, x, absolute(1.0)) is None
        error_summary(x, x, absolute(1.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4


def test_what_cannot_be_compared_is_refused():
    x = np.zeros(3, np.float32)
    with pytest.raises(errors.InvalidBoundError, match="resolve"):
        first_violation(x, x, ErrorBound("range_rel", 0.1))
    with pytest.raises(ValueError, match="shape"):
        first_violation(x, x[:2], absolute(1.0))
    with pytest.raises(ValueError, match="dtype"):
        first_violation(x, x.astype("f8"), LOSSLESS)
    with pytest.raises(ValueError, match="dtype"):
        first_violation(x.astype("i4"), x, absolute(1.0))
    with pytest.raises(errors.UnsupportedDtypeError):
        first_violation(x.astype("i4"), x.astype("i4"), ErrorBound("pw_rel", 0.1))
    assert (
        first_violation(x, x.astype("f8") + 0.5, absolute(0.5)) is None
    )  # floats of two widths compare by value


# --- error_summary ---


@pytest.mark.parametrize("bound", [absolute(0.1), ErrorBound("pw_rel", 0.1)])
def test_summary_is_what_numpy_says_and_merges(bound):
    rng = np.random.default_rng(2)
    x = rng.normal(5, 1, size=(70, 1500)).astype(np.float32)
    x_hat = (x + rng.uniform(-0.2, 0.2, size=x.shape)).astype(np.float32)
    x[3, :5] = x_hat[3, :5] = NAN
    x[4, 0] = NAN  # lost
    summary = error_summary(x, x_hat, bound)
    ok = np.isfinite(x) & np.isfinite(x_hat)
    error = np.abs(x[ok].astype("f8") - x_hat[ok])
    allowed = bound.value * (np.abs(x[ok].astype("f8")) if bound.mode == "pw_rel" else 1)
    assert summary.n == x.size
    assert summary.n_finite == ok.sum() == x.size - 6
    assert summary.max_abs_error == error.max()
    assert summary.violations == (error > allowed).sum() + 1
    assert summary.max_error_over_bound == INF
    assert summary.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert summary.psnr == pytest.approx(20 * np.log10(np.ptp(x[ok]).astype("f8") / summary.rmse))
    halves = error_summary(x[:33], x_hat[:33], bound).merge(error_summary(x[33:], x_hat[33:], bound))
    assert halves.rmse == pytest.approx(summary.rmse)
    assert (halves.n, halves.violations, halves.minimum, halves.maximum) == (
        summary.n,
        summary.violations,
        summary.minimum,
        summary.maximum,
    )
    x[4, 0] = x_hat[4, 0]
    assert error_summary(x, x_hat, bound).max_error_over_bound == (error / allowed).max() > 1


def test_summary_without_error_or_without_values():
    x = np.array([1.0, 2.0, NAN])
    perfect = error_summary(x, x, absolute(0.1))
    assert (perfect.violations, perfect.rmse, perfect.psnr, perfect.max_error_over_bound) == (
        0,
        0.0,
        INF,
        0.0,
    )
    nothing = error_summary(x[2:], x[2:], absolute(0.1))
    assert (nothing.n, nothing.n_finite, nothing.violations) == (1, 0, 0)
    assert math.isnan(nothing.rmse) and math.isnan(nothing.psnr)


def test_summary_of_lossless_counts_changed_bits():
    x = np.array([0.0, 1.0])
    summary = error_summary(x, np.array([-0.0, 1.0]), LOSSLESS)
    assert (summary.violations, summary.max_abs_error, summary.max_error_over_bound) == (1, 0.0, INF)


# --- finite_range, check_dtype, errors ---


def test_finite_range():
    x = np.array([[NAN, 3.0, -INF], [1e30, -9999.0, 7.0]], np.float32)
    assert finite_range(x) == (-9999.0, float(np.float32(1e30)))
    assert finite_range(x, ignore=(float(np.float32(1e30)), -9999.0, NAN, 1e300)) == (3.0, 7.0)
    assert finite_range(np.full(5, NAN)) is None
    assert finite_range(np.empty((0, 3))) is None
    assert finite_range(np.array([2**63, 2**64 - 1], "u8")) == (2**63, 2**64 - 1)
    assert finite_range(x.astype(">f4"), ignore=(1e30, -9999.0))[0] == 3.0


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i1", "u1", "i2", ">u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("mode", MODES)
def test_supported_dtypes(dtype, mode):
    bound = ErrorBound(mode, None if mode == "lossless" else 0.5)
    if mode == "pw_rel" and np.dtype(dtype).kind != "f":
        with pytest.raises(errors.UnsupportedDtypeError, match="pw_rel"):
            check_dtype(dtype, bound)
    else:
        check_dtype(dtype, bound)


@pytest.mark.parametrize("dtype", ["?", "c8", "c16", "M8[ns]", "m8[s]", "O", "S3", "U3", "V4", [("a", "f4")]])
@pytest.mark.parametrize("bound", [absolute(0.1), LOSSLESS])
def test_unsupported_dtypes_say_what_to_do(dtype, bound):
    with pytest.raises(
        errors.UnsupportedDtypeError, match=r"^dtype: found .*, expected .*; (leave|convert|store)"
    ):
        check_dtype(dtype, bound)


@pytest.mark.skipif(np.dtype("longdouble").itemsize == 8, reason="no wider float here")
def test_wider_floats_are_unsupported():
    with pytest.raises(errors.UnsupportedDtypeError, match="float64"):
        check_dtype("longdouble", LOSSLESS)


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_share_a_base_and_pickle(name):
    cls = getattr(errors, name)
    error = cls.at("field", found="this", expected="that", remedy="do")
    assert isinstance(error, errors.AESZError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == "field: found this, expected that; do"


def test_errors_are_also_those_of_python():
    assert issubclass(errors.InvalidBoundError, ValueError)
    assert issubclass(errors.InvalidConfigError, ValueError)
    assert issubclass(errors.UnsupportedDtypeError, TypeError)
    assert issubclass(errors.TruncatedStreamError, errors.CorruptStreamError)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f8", "f4")], ids="/".join)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_the_quick_way_measures_what_the_slow_one_does(dtypes, size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=size).astype(dtypes[0])
    x_hat = (x + rng.uniform(-0.1, 0.1, size)).astype(dtypes[1])
    found = error_summary(x, x_hat, ErrorBound("abs", 0.2))
    error = np.abs(x.astype("f8") - x_hat)
    assert (found.n, found.n_finite, found.violations) == (size, size, 0)
    assert found.max_abs_error == error.max() and found.max_error_over_bound == error.max() / 0.2
    assert found.sum_squared_error == pytest.approx((error**2).sum())
    assert (found.minimum, found.maximum) == (x.min(), x.max())
    x[-1] = np.nan
    assert error_summary(x, x_hat, ErrorBound("abs", 0.2)).violations == 1


@pytest.mark.parametrize("fill", [1e20, -9999.0, np.nan, 1e300])
def test_a_range_without_fill_values(fill):
    """As the values have them: rounded to float32."""
    with np.errstate(over="ignore"):
        values = np.array([1, 2, fill, 3, np.inf, np.nan], "f4")
    assert finite_range(values, (fill,)) == (1.0, 3.0)
    assert finite_range(values[2:3], (fill,)) is None
    assert finite_range(values[:2], (fill,)) == (1.0, 2.0)
