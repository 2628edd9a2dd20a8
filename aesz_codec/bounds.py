"""What an error bound is, and whether an array keeps it.  Everything else asks this module.

=============  ========================================================================================
``abs``        ``abs(x - x_hat) <= value``, in the units of the data
``range_rel``  ``abs(x - x_hat) <= value * (max - min)``, over the finite values; see `ErrorBound.resolve`
``pw_rel``     ``abs(x - x_hat) <= value * abs(x)`` for every value; zero stays zero
``lossless``   every bit is kept
=============  ========================================================================================

Errors are evaluated in float64 on the values in their own dtype, those of integers exactly.  In the lossy
modes NaN stays NaN (its payload may change), infinities stay themselves, and the sign of zero may change.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InvalidBoundError, InvalidConfigError, UnsupportedDtypeError

__all__ = [
    "MODES",
    "ErrorBound",
    "ErrorSummary",
    "check_dtype",
    "error_summary",
    "finite_range",
    "first_violation",
    "violations",
]

MODES = ("abs", "range_rel", "pw_rel", "lossless")

_BLOCK = 1 << 16  # values compared at a time: the temporaries stay in the cache
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """A mode and its value, valid by construction.

    Parameters
    ----------
    mode : {"abs", "range_rel", "pw_rel", "lossless"}
    value : float or None
        Finite and > 0, and < 1 for ``pw_rel``; None for ``lossless``. NumPy numbers become Python floats.

    Raises
    ------
    InvalidConfigError
        If the mode does not exist.
    InvalidBoundError
        If the value is not one that the mode can have.

    Examples
    --------
    >>> ErrorBound("range_rel", 0.5).resolve(-10.0, 30.0)
    ErrorBound(mode='abs', value=20.0)
    """

    mode: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidConfigError.at(
                "mode",
                found=repr(self.mode),
                expected=f"one of {', '.join(MODES)}",
                remedy="choose one of these",
            )
        object.__setattr__(self, "mode", str(self.mode))
        object.__setattr__(self, "value", self._checked_value())

    def _checked_value(self) -> float | None:
        value = self.value
        if self.mode == "lossless":
            if value is not None:
                raise InvalidBoundError.at(
                    "error_bound",
                    found=f"{value!r} with mode 'lossless'",
                    expected="None",
                    remedy="leave the bound out, or choose mode 'abs'",
                )
            return None
        if value is None:
            raise InvalidBoundError.at(
                "error_bound",
                found="None",
                expected=f"a finite number > 0 for mode {self.mode!r}",
                remedy="give a bound, or choose mode 'lossless'",
            )
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise InvalidBoundError.at(
                "error_bound",
                found=f"{value!r} ({type(value).__name__})",
                expected="a finite number > 0",
                remedy="pass a plain number, such as 0.05",
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and number > 0):
            raise InvalidBoundError.at(
                "error_bound",
                found=repr(value),
                expected="a finite number > 0",
                remedy="use mode 'lossless' to keep every value exactly",
            )
        if self.mode == "pw_rel" and number >= 1:
            raise InvalidBoundError.at(
                "error_bound",
                found=repr(value),
                expected="a number below 1 for mode 'pw_rel'",
                remedy="an error of 1 % is 0.01",
            )
        return number

    def __str__(self) -> str:
        return self.mode if self.value is None else f"{self.mode} {self.value:g}"

    def resolve(self, minimum: float, maximum: float) -> ErrorBound:
        """Turn ``range_rel`` into ``abs`` over the range from `minimum` to `maximum`; other modes stay.

        Without a range there is nothing to be relative to: where ``maximum - minimum`` is 0, or one of the
        two is not finite, or the tolerance is too small for a float64, the result is ``lossless``.
        """
        if self.mode != "range_rel":
            return self
        assert self.value is not None
        if not (math.isfinite(minimum) and math.isfinite(maximum) and maximum > minimum):
            return ErrorBound("lossless")
        extent = float(maximum - minimum)
        if math.isfinite(extent):
            tolerance = self.value * extent
        else:
            tolerance = self.value * float(maximum) - self.value * float(minimum)
        return ErrorBound("abs", min(tolerance, _LARGEST)) if tolerance > 0 else ErrorBound("lossless")


def check_dtype(dtype: npt.DTypeLike, bound: ErrorBound) -> None:
    """Refuse a dtype that cannot be coded, or not with this bound.

    float32 and float64 take every mode, integers of 8 to 64 bits all but ``pw_rel``.  float16 is accepted
    with every mode and always coded losslessly.

    Raises
    ------
    UnsupportedDtypeError
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return
    if dtype.kind in "iu":
        if bound.mode == "pw_rel":
            raise UnsupportedDtypeError.at(
                "dtype",
                found=f"{dtype.name} with mode 'pw_rel'",
                expected="float32 or float64 for this mode",
                remedy="use 'abs', 'range_rel' or 'lossless' for integers",
            )
        return
    remedies = {
        "f": "convert it with .astype('float64')",
        "c": "store the real and the imaginary part as two variables",
        "b": "leave it to another codec, or convert it with .astype('uint8')",
        "M": "leave it to xarray, which stores times as integers, or convert it with .astype('int64')",
        "m": "leave it to xarray, which stores times as integers, or convert it with .astype('int64')",
    }
    raise UnsupportedDtypeError.at(
        "dtype",
        found=dtype.name,
        expected="float16, float32, float64 or an integer of 8 to 64 bits",
        remedy=remedies.get(dtype.kind, "leave it out and let another codec store it"),
    )


def finite_range(array: npt.ArrayLike, ignore: Iterable[float] = ()) -> tuple[float, float] | None:
    """Return the smallest and the largest finite value, None where there is none.

    Values equal to one in `ignore` (fill values) do not count.  Integers come back as exact Python ints.
    """
    values = np.asarray(array)
    with np.errstate(over="ignore"):  # a fill value beyond the dtype equals nothing
        fills = [values.dtype.type(fill).item() if values.dtype.kind == "f" else fill for fill in ignore]
    fills = [fill for fill in fills if math.isfinite(fill)]
    lowest: float | None = None
    highest: float | None = None
    for (block,) in _blocks(values):
        with np.errstate(invalid="ignore"):  # signaling NaN
            low, high = block.min().item(), block.max().item()  # NaN if there is one
        if not -math.inf < low <= high < math.inf or any(low <= fill <= high for fill in fills):
            keep = np.isfinite(block)
            for fill in fills:
                keep &= block != fill
            block = block[keep]
            if not block.size:
                continue
            low, high = block.min().item(), block.max().item()
        lowest = low if lowest is None else min(lowest, low)
        highest = high if highest is None else max(highest, high)
    return None if lowest is None or highest is None else (lowest, highest)


def first_violation(
    original: npt.NDArray[np.generic], reconstruction: npt.NDArray[np.generic], bound: ErrorBound
) -> tuple[int, ...] | None:
    """Find the first value, in C order, that is outside the bound.

    Parameters
    ----------
    original, reconstruction : ndarray, same shape
        Any strides and byte order; never copied as a whole.
    bound : ErrorBound
        ``abs``, ``pw_rel`` or ``lossless``; ``range_rel`` must be resolved first.

    Returns
    -------
    tuple of int or None
        The index of the first value outside, None if there is none.

    Raises
    ------
    InvalidBoundError
        If the bound is ``range_rel``, or ``pw_rel`` for integers.
    ValueError
        If the two arrays cannot be compared: other shapes, or, where bits or integers are compared, other
        dtypes.
    """
    _check_comparable(original, reconstruction, bound)
    done = 0
    for block, block_hat in _blocks(original, reconstruction):
        inside = _inside(block, block_hat, bound)
        if not inside.all():
            return tuple(int(i) for i in np.unravel_index(done + int(np.argmin(inside)), original.shape))
        done += block.size
    return None


def violations(
    original: npt.NDArray[np.generic], reconstruction: npt.NDArray[np.generic], bound: ErrorBound
) -> npt.NDArray[np.int64]:
    """Find all values outside the bound: their positions in C order, rising.

    Parameters and errors are those of `first_violation`.
    """
    _check_comparable(original, reconstruction, bound)
    found = []
    done = 0
    for block, block_hat in _blocks(original, reconstruction):
        inside = _inside(block, block_hat, bound)
        if not inside.all():
            found.append(done + np.flatnonzero(~inside))
        done += block.size
    return np.concatenate(found) if found else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Errors of a reconstruction, mergeable over the parts of an array.

    Attributes
    ----------
    n : int
        Values compared.
    n_finite : int
        Those that are finite on both sides; the error figures are over these.
    violations : int
        Values outside the bound; a NaN or an infinity that did not survive is one.
    max_abs_error : float
        Units of the data.
    max_error_over_bound : float
        Largest error in units of the bound at that value; <= 1 if there is no violation, inf for an error
        where none is allowed.
    sum_squared_error : float
    minimum, maximum : float
        Of the finite originals; inf and -inf where there is none.
    """

    n: int = 0
    n_finite: int = 0
    violations: int = 0
    max_abs_error: float = 0.0
    max_error_over_bound: float = 0.0
    sum_squared_error: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, units of the data; NaN without finite values."""
        return math.sqrt(self.sum_squared_error / self.n_finite) if self.n_finite else math.nan

    @property
    def psnr(self) -> float:
        """``20 log10((maximum - minimum) / rmse)`` in dB; inf without error, NaN without finite values."""
        if not self.n_finite:
            return math.nan
        if self.rmse == 0:
            return math.inf
        extent = self.maximum - self.minimum
        return 20 * (math.log10(extent) - math.log10(self.rmse)) if extent > 0 else -math.inf

    def merge(self, other: ErrorSummary) -> ErrorSummary:
        """Return the summary of both parts together."""
        return ErrorSummary(
            n=self.n + other.n,
            n_finite=self.n_finite + other.n_finite,
            violations=self.violations + other.violations,
            max_abs_error=max(self.max_abs_error, other.max_abs_error),
            max_error_over_bound=max(self.max_error_over_bound, other.max_error_over_bound),
            sum_squared_error=self.sum_squared_error + other.sum_squared_error,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )


def error_summary(
    original: npt.NDArray[np.generic], reconstruction: npt.NDArray[np.generic], bound: ErrorBound
) -> ErrorSummary:
    """Measure a reconstruction against its bound; parameters and errors as for `first_violation`."""
    _check_comparable(original, reconstruction, bound)
    summary = ErrorSummary()
    for block, block_hat in _blocks(original, reconstruction):
        summary = summary.merge(_block_summary(block, block_hat, bound))
    return summary


def _block_summary(x: np.ndarray, x_hat: np.ndarray, bound: ErrorBound) -> ErrorSummary:
    if bound.mode == "abs" and bound.value is not None and x.dtype.kind == x_hat.dtype.kind == "f" and x.size:
        wide = np.result_type(x, x_hat, np.float32)
        largest, sum_squared_error, minimum, maximum = _core.error_moments(
            x.astype(wide, copy=False), x_hat.astype(wide, copy=False)
        )
        if largest <= bound.value and math.isfinite(sum_squared_error):  # nearly always
            return ErrorSummary(
                n=x.size,
                n_finite=x.size,
                max_abs_error=largest,
                max_error_over_bound=largest / bound.value,
                sum_squared_error=sum_squared_error,
                minimum=minimum,
                maximum=maximum,
            )
    inside = _inside(x, x_hat, bound)
    violations = int(x.size - np.count_nonzero(inside))
    finite = np.isfinite(x) & np.isfinite(x_hat)
    n_finite = int(np.count_nonzero(finite))
    # An infinity or a NaN that did not survive, or bits that changed, is an error without a size.
    ratio = math.inf if not inside.all() and (bound.value is None or not inside[~finite].all()) else 0.0
    if not n_finite:
        return ErrorSummary(n=x.size, violations=violations, max_error_over_bound=ratio)
    if n_finite < x.size:
        x, x_hat = x[finite], x_hat[finite]
    error = _absolute_error(x, x_hat).astype(np.float64)
    if bound.value is not None:
        allowed = bound.value if bound.mode == "abs" else bound.value * np.abs(x.astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = max(ratio, float(np.max(np.where(error > 0, error / allowed, 0.0))))
    with np.errstate(over="ignore", under="ignore"):
        sum_squared_error = float(np.dot(error, error))
    return ErrorSummary(
        n=int(inside.size),
        n_finite=n_finite,
        violations=violations,
        max_abs_error=float(error.max()),
        max_error_over_bound=ratio,
        sum_squared_error=sum_squared_error,
        minimum=float(x.min()),
        maximum=float(x.max()),
    )


def _check_comparable(original: np.ndarray, reconstruction: np.ndarray, bound: ErrorBound) -> None:
    if bound.mode == "range_rel":
        raise InvalidBoundError.at(
            "mode",
            found="'range_rel'",
            expected="'abs', 'pw_rel' or 'lossless'",
            remedy="resolve the bound over the range of the variable first",
        )
    if original.shape != reconstruction.shape:
        raise ValueError(
            f"shape: found {reconstruction.shape}, expected that of the original, {original.shape}"
        )
    kinds = original.dtype.kind + reconstruction.dtype.kind
    by_value = bound.mode != "lossless" and kinds == "ff"
    if not by_value and original.dtype.newbyteorder("=") != reconstruction.dtype.newbyteorder("="):
        raise ValueError(
            f"dtype: found {reconstruction.dtype}, expected that of the original, {original.dtype}"
        )
    check_dtype(original.dtype, bound)


def _inside(x: np.ndarray, x_hat: np.ndarray, bound: ErrorBound) -> np.ndarray:
    """Say for each value whether it is within the bound.  1-D blocks in native byte order."""
    if bound.mode == "lossless":
        bits = np.dtype(f"u{x.dtype.itemsize}")
        same: np.ndarray = x.view(bits) == x_hat.view(bits)
        return same
    assert bound.value is not None
    error = _absolute_error(x, x_hat)
    inside: np.ndarray
    if error.dtype.kind == "u":
        inside = error <= np.uint64(min(math.floor(bound.value), 2**64 - 1))
        return inside
    allowed: float | np.ndarray = bound.value
    if bound.mode == "pw_rel":
        with np.errstate(under="ignore", invalid="ignore"):  # invalid: signaling NaN
            allowed = bound.value * np.abs(x.astype(np.float64))
    # An infinite allowance is that of an infinite value, which only itself may stand for.
    inside = (error <= allowed) & (error < np.inf)
    if not inside.all():
        inside |= (x == x_hat) | (np.isnan(x) & np.isnan(x_hat))
    return inside


def _absolute_error(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """``abs(x - x_hat)``: uint64 and exact for integers, float64 otherwise."""
    if x.dtype.kind in "iu":
        wide = np.dtype(np.int64 if x.dtype.kind == "i" else np.uint64)
        error: np.ndarray = np.maximum(x, x_hat).astype(wide).view(np.uint64)
        error -= np.minimum(x, x_hat).astype(wide).view(np.uint64)
        return error
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.subtract(x, x_hat, dtype=np.float64)
    np.abs(error, out=error)
    return error


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Cut arrays of one shape into 1-D blocks, in C order and native byte order, never copied whole."""
    shape = arrays[0].shape
    if 0 in shape:
        return
    if all(a.flags.c_contiguous for a in arrays):
        arrays = tuple(a.reshape(-1) for a in arrays)
        shape = arrays[0].shape
    axis, inner = len(shape), 1  # the axis that is cut: the first whose inner part fits into a block
    while axis and inner * shape[axis - 1] <= _BLOCK:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield tuple(_flat(a) for a in arrays)
        return
    axis -= 1
    step = max(1, _BLOCK // inner)
    for lead in np.ndindex(shape[:axis]):
        for start in range(0, shape[axis], step):
            yield tuple(_flat(a[lead][start : start + step]) for a in arrays)


def _flat(block: np.ndarray) -> np.ndarray:
    flat: np.ndarray = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("=")).reshape(-1)
    return flat
