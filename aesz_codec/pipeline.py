"""From an array to a stream and back: crop and labels, transform, choice of the predictor, verification.

::

    array -> region (padding cropped) -> labels (NaN, fill values) -> transform -> trial of the candidates
          -> closed loop and entropy coder -> stream -> decoded and compared, value by value -> bytes

Nothing is returned that was not decoded and compared with the input.  Format: ``docs/format.md``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from . import _core, foundation, lattice, zoo
from .bounds import ErrorBound, check_dtype, violations
from .choice import DIGEST_BYTES, samples, smallest
from .errors import (
    CorruptStreamError,
    ErrorBoundViolation,
    InvalidConfigError,
    ModelDigestError,
    PackDigestError,
    PredictionMismatchError,
)
from .foundation import Forecasting, FoundationModel
from .packs import Pack
from .predictors import (
    PREDICTORS,
    SIDES,
    Causal,
    Floats,
    Mask,
    Predictor,
    Quantizer,
    Side,
    learned_by,
    load_side,
    predictor_of,
)
from .predictors.forecasts import Forecaster
from .predictors.interpolation import LEAST_LENGTH
from .predictors.modelled import Modelled
from .predictors.verified import Decoded, Encoded, Forecast, Stored, stored
from .stream import BIG_ENDIAN, F_ORDERED, Coder, Method, Reader, Section, Stream, Transform, Writer, corrupt

__all__ = [
    "EFFORTS",
    "FindForecaster",
    "FindModel",
    "StreamInfo",
    "decode",
    "describe",
    "encode",
    "materialise",
]

EFFORTS = ("fast", "default", "max")

Array = npt.NDArray[Any]
FindModel = Callable[[str], Pack]
"""From a digest (64 hexadecimal digits) to the pack that has it."""
FindForecaster = Callable[[str], FoundationModel]
"""From a digest to the foundation model that has it."""

_INTEGER_SLACK = 0.499  # an error below this vanishes when rounding to integers
_LARGEST_INTEGER = 2**53  # integers up to here are exact as float64
_MAX_LABELS = 15
_LEAST_PADDING = 16  # fewer values are cheaper as they are
_VALUES_PER_BYTE = 1 << 20  # no code is cheaper: docs/format.md, section 15
_LATENT_UNITS = {"default": (4.0,), "max": (2.0, 4.0, 8.0)}  # of side predictions, in steps
_EVERY_INTEGER = ErrorBound("abs", 0.25)
_LOCAL_VALUES_PER_BYTE = 1 << 17  # nor are those of method 5, each of which is at least one decision


# Called, where it is set, with each array that `encode` was given and what its stream decodes to, once that is known to be
# within the bound: for those who measure what they write. A context variable, as Zarr encodes in threads of its own.
when_checked: ContextVar[Callable[[Array, Array], None] | None] = ContextVar("when_checked", default=None)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a stream says of itself.

    Attributes
    ----------
    format_version : str
    dtype : str
    shape : tuple of int
    mode : str
        The bound that was asked for, with `value` (None for ``lossless``).
    tolerance : float
        What was kept: units of the data, or the factor of ``pw_rel``; 0 if every bit is kept.
    predictor : str
        ``constant``, ``interpolation``, ``causal``, ``local``, ``lossless`` or ``bytes``.
    parameters : dict
        Choices of the predictor and the transform, as JSON values.
    sections : dict of str to int
        Bytes in the stream, those of the header and the checksums under ``header``.
    nbytes : int
        Bytes of the whole stream.
    models : tuple of str
        Digests of the packs that a decoder needs.
    foundation : str or None
        Digest of the foundation model that a decoder needs.
    """

    format_version: str
    dtype: str
    shape: tuple[int, ...]
    mode: str
    value: float | None
    tolerance: float
    predictor: str
    parameters: dict[str, Any]
    sections: dict[str, int]
    nbytes: int
    models: tuple[str, ...] = ()
    foundation: str | None = None


# ---- encoding --------------------------------------------------------------------------------------------------


def encode(
    array: npt.ArrayLike,
    bound: ErrorBound,
    *,
    effort: str = "default",
    keep_layout: bool = False,
    models: Sequence[Pack] = (),
    forecast: Forecasting | None = None,
    forecasters: Sequence[type[Forecaster]] | None = None,
) -> bytes:
    """Compress an array into one stream.

    Parameters
    ----------
    array : array_like
        float16, float32, float64 or integers; any shape, strides and byte order; never written to.
    bound : ErrorBound
        ``range_rel`` means the range of the finite values of this array, fill values and constant padding left out.
    effort : {"fast", "default", "max"}
        How long to search for the smallest stream.
    keep_layout : bool
        Remember byte order and Fortran order for `decode`.
    models : sequence of Pack
        At most one of a kind is used, and only where it saves bytes; then the stream names its digest, and `decode` needs it.
        ``effort="fast"`` uses those of the kind ``interpolation`` only.
    forecast : Forecasting, optional
        A foundation model that may forecast the states of a float array, (time, channel, latitude, longitude) or without
        channel, in the modes ``abs`` and ``range_rel``; used only where that saves bytes, and then `decode` needs it
        (``docs/foundation-models.md``).
    forecasters : sequence of Forecaster classes, optional
        What frames may refer to, instead of those that `effort` tries; none if it is empty (``docs/time.md``).

    Returns
    -------
    bytes
        Decoded and compared: every value is within the bound.

    Raises
    ------
    UnsupportedDtypeError
        If the dtype cannot be coded, or not in this mode.
    ModelInputError, InvalidConfigError, UnstableForecastError
        If the foundation model is not for such states, the coordinates are not those of the array, or its forecasts cannot be
        reproduced.
    ModelKindError, InvalidModelError, UnsupportedModelError
        If a pack is of a kind that no predictor takes, or its networks are not sound.
    ErrorBoundViolation
        If even lossless coding did not return the input: a bug. Nothing is returned.
    """
    given = np.asarray(array)
    check_dtype(given.dtype, bound)
    sides = [load_side(model) for model in models if model.kind in SIDES]
    models = [model for model in models if model.kind not in SIDES]
    for model in models:
        learned_by(model)
    original = np.require(given, given.dtype.newbyteorder("="), ["C", "ALIGNED"])  # copied only if it must be
    flags = 0
    if keep_layout:
        flags |= F_ORDERED * (given.flags.f_contiguous and not given.flags.c_contiguous)
        flags |= BIG_ENDIAN * (given.dtype.newbyteorder("=") != given.dtype)
    region, blank = _begun(original, bound, flags)
    if not region.size:
        blank.method = Method.CONSTANT
        return _verified(blank, original, ErrorBound("lossless"))
    if (bound.mode != "lossless" or original.dtype.kind == "f") and original.dtype != np.float16:
        lossy = _Lossy.prepare(region, bound, blank)
        if lossy is not None:
            kept, stream = lossy.bound, lossy.coded(effort, models, forecasters)
            del lossy  # its values need not be held while the stream is decoded
            coded = stream.to_bytes()
            others = _otherwise(region, bound, blank, stream, sides, effort, models, forecasters)
            for other in itertools.chain(others, _forecast(region, bound, blank, effort, forecast)):
                if len(other_bytes := other.to_bytes()) < len(coded):
                    stream, coded = other, other_bytes
            if (
                kept.value is None or 2 * len(coded) > region.nbytes
            ):  # hardly smaller: exact bits may cost less
                exact = _coded_exactly(region, blank)
                exact_bytes = exact.to_bytes()
                if len(exact_bytes) < len(coded):
                    stream, coded = exact, exact_bytes
            packs = [*models, *(side.pack for side in sides)]
            return _verified(
                stream, original, kept, coded, lambda: _coded_exactly(region, blank), packs, forecast
            )
    return _verified(_coded_exactly(region, blank), original, ErrorBound("lossless"))


def _begun(original: Array, bound: ErrorBound, flags: int = 0) -> tuple[Array, Stream]:
    """Return what of an array is to be coded, and a stream of everything else."""
    region = _region(original)
    blank = Stream(
        original.dtype, original.shape, bound.mode, bound.value or 0.0, 0.0, Method.LOSSLESS, flags=flags
    )
    if region.shape != original.shape:
        crop = Writer()
        for n in region.shape:
            crop.varint(n)
        last = original[(-1,) * original.ndim] if original.size else original.dtype.type(0)
        blank.sections[Section.CROP] = crop.raw(_little_endian(np.asarray(last))).done()
    return region, blank


def _verified(
    stream: Stream,
    original: Array,
    bound: ErrorBound,
    coded: bytes | None = None,
    fallback: Callable[[], Stream] | None = None,
    models: Sequence[Pack] = (),
    forecast: Forecasting | None = None,
) -> bytes:
    """Decode what was coded and compare; mend, fall back, or raise."""
    coded = stream.to_bytes() if coded is None else coded
    given = {model.digest: model for model in models}
    wrong = _wrong(coded, original, bound, given, forecast)
    if wrong is not None and not wrong.size:
        return coded
    if fallback is not None:
        exact = fallback().to_bytes()
        if wrong is not None:
            # e.g. a rounding of the transform that the tolerance did not foresee: store the few that it hit
            stream.sections[Section.CORRECTIONS] = _corrections(wrong, original)
            coded = stream.to_bytes()
            wrong = _wrong(coded, original, bound, given, forecast) if len(coded) < len(exact) else None
            if wrong is not None and not wrong.size:
                return coded
        wrong = _wrong(exact, original, ErrorBound("lossless"))
        if wrong is not None and not wrong.size:
            return exact
    raise ErrorBoundViolation(
        f"the encoder's own check failed for an array of {original.dtype}, shape {original.shape}, bound {bound}; "
        "nothing was written; please report this with the array"
    )


def _wrong(
    coded: bytes,
    original: Array,
    bound: ErrorBound,
    models: Mapping[str, Pack] | None = None,
    forecast: Forecasting | None = None,
) -> npt.NDArray[np.int64] | None:
    """Decode a stream; return the positions of values outside the bound, None if it cannot be decoded."""
    known = {} if forecast is None else {forecast.model.digest: forecast.model}
    try:
        decoded = decode(coded, find_model=(models or {}).__getitem__, find_forecaster=known.__getitem__)
    except (CorruptStreamError, PredictionMismatchError):
        return None
    wrong: npt.NDArray[np.int64] | None = None
    if bound.mode == "abs" and original.dtype in (np.float32, np.float64):  # the quick way to say "none"
        assert bound.value is not None
        if _core.within(original, decoded, bound.value):
            wrong = np.empty(0, np.int64)
    if wrong is None:
        wrong = violations(original, decoded, bound)
    if not wrong.size and (tell := when_checked.get()) is not None:
        tell(original, decoded)
    return wrong


def _corrections(positions: npt.NDArray[np.int64], original: Array) -> bytes:
    writer = Writer().varint(positions.size)
    for gap in np.diff(positions, prepend=-1):
        writer.varint(int(gap) - 1)
    return writer.raw(_little_endian(original.reshape(-1)[positions])).done()


def _region(array: Array) -> Array:
    """Return the leading part of an array that is not constant padding, judged by bits."""
    if not array.size or not array.ndim:
        return array
    bits = array.view(_unsigned(array.dtype))
    last = bits[(-1,) * bits.ndim]
    for axis in range(bits.ndim):
        lines = np.moveaxis(bits, axis, 0)
        n = lines.shape[0]
        while n and (lines[n - 1] == last).all():
            n -= 1
        bits = np.moveaxis(lines[:n], 0, axis)
        if n == 0:
            return (
                array[:0]
                if array.ndim == 1
                else array[tuple(slice(0, 0 if a == axis else m) for a, m in enumerate(bits.shape))]
            )
    if array.size - bits.size <= _LEAST_PADDING:
        return array
    return np.ascontiguousarray(array[tuple(slice(0, n) for n in bits.shape)])


def _folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """At most four axes, none of size 1 unless it is the only one."""
    dims = [n for n in shape if n != 1]
    while len(dims) > 4:
        dims[:2] = [dims[0] * dims[1]]
    return tuple(dims) or (1,)


@dataclass(slots=True)
class _Lossy:
    """A region made ready for the closed loop."""

    stream: Stream
    bound: ErrorBound
    values: Floats  # folded, transformed
    mask: Mask
    quantizer: Quantizer

    @classmethod
    def prepare(
        cls,
        region: Array,
        bound: ErrorBound,
        blank: Stream,
        side: tuple[Side, float] | None = None,
        snap: bool = True,
    ) -> _Lossy | None:
        """Separate special values, resolve the bound, transform; None if only exact bits will do.

        Exact bits may do in the closed loop as well, if the values lie on a lattice; without `snap` none is looked for.  With a
        side prediction, and the unit of its latents in steps, what it leaves is coded.
        """
        integer = region.dtype.kind in "iu"
        folded = _folded(region.shape)
        sections = dict(blank.sections)
        labels, specials = _special_values(region, zero=bound.mode == "pw_rel")
        ordinary = region if labels is None else region[labels == 0]
        if not ordinary.size:
            return None
        low, high = ordinary.min(), ordinary.max()
        bound = bound.resolve(low.item(), high.item())
        if bound.value is None and integer:
            return None
        tolerance, transform = bound.value or 0.0, Transform.NONE
        if labels is not None:
            head = Writer().pack("B", len(specials)).raw(_little_endian(specials)).done()
            sections[Section.LABELS] = head + _core.encode_labels(labels.reshape(folded))
        values: Array = region
        snapped = None
        mask = None if labels is None else (labels != 0).view(np.uint8).reshape(folded)
        if bound.mode == "pw_rel":
            assert bound.value is not None
            transform = Transform.LOGARITHM
            negative = region < 0
            if labels is not None:
                negative &= labels == 0
            if negative.any():
                sections[Section.SIGNS] = _core.encode_labels(negative.view(np.uint8).reshape(folded))
            with np.errstate(divide="ignore", invalid="ignore"):  # special values, signaling NaN among them
                values = region.astype(np.float64)
                np.log2(np.abs(values, out=values), out=values)
            # the reconstruction is rounded to the dtype once more
            tolerance = math.log2(1 + bound.value) - 1.5 * float(np.finfo(region.dtype).eps) - 2.0**-50
            ordinary = values if labels is None else values[labels == 0]
            low, high = ordinary.min(), ordinary.max()
        elif integer:
            transform = Transform.INTEGER
            if max(abs(low.item()), abs(high.item())) > _LARGEST_INTEGER:
                return None
            values = region.astype(np.float64)
            tolerance = math.floor(tolerance) + _INTEGER_SLACK
        elif side is None and snap:
            snapped = lattice.find(region.reshape(folded), mask, tolerance)
        if snapped is not None:
            transform, values, step = Transform.LATTICE, snapped.values, snapped.step
            tolerance = snapped.tolerance
            sections[Section.LATTICE] = snapped.lattice.pack()
        else:
            peak = max(abs(float(low)), abs(float(high)))
            half_ulp = float(np.spacing(values.dtype.type(peak / 2)))
            if side is not None:
                tolerance -= 2 * half_ulp  # of what is left, and of the sum
            if not tolerance > half_ulp or not math.isfinite(2 * tolerance):
                return None
            step = 2 * (tolerance - (half_ulp if 4 * half_ulp < tolerance else 0.0))
            if side is not None:
                transform = Transform.SIDE
                values, sections[Section.SIDE] = _Side.taken_away(region, labels, side[0], side[1] * step)
        values = values.reshape(folded)
        first = 0 if mask is None else int(np.argmin(mask.reshape(-1)))
        offset = float(values.reshape(-1)[first])
        stream = Stream(
            blank.dtype,
            blank.shape,
            blank.mode,
            blank.bound,
            bound.value or 0.0,
            Method.CONSTANT,
            transform,
            blank.flags,
            sections,
        )
        return cls(stream, bound, values, mask, Quantizer(tolerance, step, offset))

    def coded(
        self, effort: str, models: Sequence[Pack], forecasters: Sequence[type[Forecaster]] | None = None
    ) -> Stream:
        """Choose the predictor by bytes and code the region with it."""
        if self.stream.transform is not Transform.NONE:  # models that know places know their values too
            models = [model for model in models if model.kind != Causal.kind]
        return self.stream_of(*smallest(self.values, self.mask, self.quantizer, effort, models, forecasters))

    def stream_of(self, predictor: Predictor, codes: bytes, outliers: bytes) -> Stream:
        """Return the stream of what a predictor coded."""
        sections = {
            **self.stream.sections,
            Section.PLAN: predictor.pack(self.quantizer.step, self.quantizer.offset),
            Section.CODES: codes,
        }
        if predictor.model is not None:
            sections[Section.MODEL] = bytes.fromhex(predictor.model.digest)
        if outliers:
            sections[Section.OUTLIERS] = _little_endian(np.frombuffer(outliers, self.values.dtype))
        return replace(self.stream, method=predictor.method, sections=sections)


def _special_values(region: Array, *, zero: bool) -> tuple[npt.NDArray[np.uint8] | None, Array]:
    """Label what is not to be predicted: NaN, infinities, fill values far from all others, zeros for ``pw_rel``.

    Returns
    -------
    labels : uint8, shape of `region`, or None if all values are ordinary
    specials : the values behind the labels 1, 2, ...
    """
    labels = np.zeros(region.shape, np.uint8)
    specials: list[Any] = []

    def mark(where: npt.NDArray[np.bool_], value: Any) -> None:
        specials.append(value)
        labels[where] = len(specials)

    if region.dtype.kind == "f":
        finite = np.isfinite(region)
        if not finite.all():
            nan = np.isnan(region)
            if nan.any():
                mark(nan, region.reshape(-1)[int(np.argmax(nan))])
            for infinity in (np.inf, -np.inf):
                if (where := region == infinity).any():
                    mark(where, region.dtype.type(infinity))
    if zero and (where := region == 0).any():
        mark(where, region.dtype.type(0))
    while len(specials) < _MAX_LABELS:
        fill = _fill_value(region, labels if specials else None)
        if fill is None:
            break
        mark(region == fill, fill)
    return (labels if specials else None), np.array(specials, region.dtype)


def _fill_value(region: Array, labels: npt.NDArray[np.uint8] | None) -> Any:
    """Return the least or the greatest ordinary value if it lies far outside all others, such as 1e30 or -9999."""
    ordinary = region.reshape(-1) if labels is None else region[labels == 0]
    if ordinary.size < 2:
        return None
    low, high = ordinary.min(), ordinary.max()

    def stands_apart(values: Array, extreme: Any) -> bool:
        rest = values[values != extreme]
        if not rest.size:
            return False
        least, greatest = float(rest.min()), float(rest.max())
        nearest = greatest if extreme == high else least
        return abs(float(extreme) - nearest) / 4 > greatest - least

    sample = ordinary[:: max(1, ordinary.size // 256)]  # enough to see that nothing is far outside
    for extreme in (high, low):
        suspect = (sample == extreme).all() or stands_apart(sample, extreme)
        if suspect and stands_apart(ordinary, extreme):
            return extreme
    return None


def _coded_exactly(region: Array, blank: Stream) -> Stream:
    """Code every bit: by the lossless predictor, or as shuffled bytes where zstd makes those smaller."""
    folded = region.reshape(_folded(region.shape))
    bits = folded.view(_unsigned(region.dtype))
    order = {"f": 2, "i": 1, "u": 0}[region.dtype.kind]
    (box,) = samples(folded.shape, "fast")
    sample = np.ascontiguousarray(bits[box])
    dims = min(range(min(3, folded.ndim) + 1), key=lambda d: len(_core.encode_lossless(sample, d, order)))
    streams = []
    for method, plan, codes in (
        (Method.LOSSLESS, bytes([dims]), _core.encode_lossless(bits, dims, order)),
        (Method.BYTES, None, _shuffled(region)),
    ):
        sections = {**blank.sections, Section.CODES: codes}
        if plan is not None:
            sections[Section.PLAN] = plan
        streams.append(
            Stream(
                blank.dtype,
                blank.shape,
                blank.mode,
                blank.bound,
                0.0,
                method,
                flags=blank.flags,
                sections=sections,
            )
        )
    return min(streams, key=lambda stream: len(stream.to_bytes()))


# ---- decoding --------------------------------------------------------------------------------------------------


def decode(
    stream: bytes | memoryview,
    *,
    restore_layout: bool = False,
    expected: tuple[tuple[int, ...], np.dtype[Any]] | None = None,
    find_model: FindModel = zoo.get,
    find_forecaster: FindForecaster = foundation.get,
    partial: bool = False,
) -> Array:
    """Restore the array of a stream.

    Parameters
    ----------
    stream : bytes-like
    restore_layout : bool
        Return the memory order and byte order that the input of `encode` had, if the stream remembers them.
    expected : (shape, dtype), optional
        What the array must be; another is refused before anything is allocated.
    find_model : callable
        Called with the digest of the pack that the stream names, if it names one; `aesz_codec.zoo.get` looks where
        ``docs/packs.md``, section 7, says.
    find_forecaster : callable
        Likewise for a foundation model.
    partial : bool
        Where this machine cannot reproduce a forecast: return NaN for that frame and all that rest on it, instead of raising
        `PredictionMismatchError`.

    Returns
    -------
    ndarray
        The caller's own, writable; C-contiguous and in native byte order unless the layout is restored.

    Raises
    ------
    TruncatedStreamError, CorruptStreamError, UnsupportedFormatError
    ModelNotFoundError
        If the stream names a pack that is not found; digest, the places searched and how to add it are in the message.
    PackDigestError, ModelKindError, InvalidModelError, UnsupportedModelError
        If what was found is another pack, not one for the method of the stream, or not sound.
    PredictionMismatchError, ModelDigestError, ModelInputError
        If this machine cannot reproduce a forecast; the message names the blocks. If what was found is another model, or not for
        such states.
    """
    parsed = Stream.from_bytes(stream)
    if expected is not None and expected != (parsed.shape, parsed.dtype):
        raise CorruptStreamError.at(
            "chunk",
            found=f"a stream of {parsed.dtype}, shape {parsed.shape}",
            expected=f"{expected[1]}, shape {expected[0]}, as the array's metadata says",
            remedy="the chunk is not of this array: restore it from its source",
        )
    try:
        array = _decoded(parsed, find_model, _Forecasts(find_forecaster, partial))
    except _core.CorruptDataError as error:
        raise corrupt("codes", str(error), "what an encoder writes") from None
    if restore_layout and parsed.flags & BIG_ENDIAN:
        array = array.astype(array.dtype.newbyteorder(">"))
    if restore_layout and parsed.flags & F_ORDERED:
        array = np.asfortranarray(array)
    return array


def _decoded(stream: Stream, find_model: FindModel, forecasts: _Forecasts) -> Array:
    shape, fill = coded_region(stream)
    if not math.prod(shape):
        if fill is None:
            return np.empty(stream.shape, stream.dtype)
        return np.full(stream.shape, fill, stream.dtype)
    codes = stream.sections.get(Section.CODES, b"")
    region = _decoded_region(stream, shape, codes, find_model, forecasts)
    if fill is None:
        array = region
    else:
        array = np.full(stream.shape, fill, stream.dtype)
        array[tuple(slice(0, n) for n in shape)] = region
    if Section.CORRECTIONS in stream.sections:
        _correct(array, stream.sections[Section.CORRECTIONS])
    return array


def coded_region(stream: Stream) -> tuple[tuple[int, ...], Any]:
    """Return the shape of what is coded, and what fills the rest; None if there is no rest.

    Raises
    ------
    CorruptStreamError
        If there are fewer codes than for so many values: nothing needs to be allocated for them.
    """
    shape, fill = stream.shape, None
    if Section.CROP in stream.sections:
        reader = Reader(stream.sections[Section.CROP], "crop")
        shape = tuple(reader.varint() for _ in stream.shape)
        fill = _values(reader.take(stream.dtype.itemsize), stream.dtype)[0]
        reader.end()
        if any(n > m for n, m in zip(shape, stream.shape, strict=True)):
            raise corrupt("crop", str(shape), f"at most {stream.shape}")
    size = math.prod(shape)
    if (stream.method is Method.CONSTANT) != (size == 0):
        raise corrupt(
            "method", stream.method.name.lower(), "'constant' if and only if the region has no values"
        )
    codes, labels = (stream.sections.get(section, b"") for section in (Section.CODES, Section.LABELS))
    most = _LOCAL_VALUES_PER_BYTE if stream.method is Method.LOCAL else _VALUES_PER_BYTE
    if size > most * (len(codes) + len(labels) + 1):
        raise corrupt("codes", f"{len(codes)} bytes", f"more for {size} values")
    return shape, fill


def _decoded_region(
    stream: Stream, shape: tuple[int, ...], codes: bytes, find_model: FindModel, forecasts: _Forecasts
) -> Array:
    folded = _folded(shape)
    plan = Reader(stream.sections.get(Section.PLAN, b""), "plan")
    if stream.method is Method.BYTES:
        expected = math.prod(shape) * stream.dtype.itemsize
        if len(codes) != expected:
            raise corrupt("codes", f"{len(codes)} bytes", str(expected))
        return _unshuffled(codes, stream.dtype).reshape(shape)
    if stream.method is Method.LOSSLESS:
        dims = plan.byte()
        plan.end()
        if dims > min(3, len(folded)):
            raise corrupt("plan", f"{dims} axes", f"at most {min(3, len(folded))}")
        exact = np.empty(folded, _unsigned(stream.dtype))
        _core.decode_lossless(codes, exact, dims, {"f": 2, "i": 1, "u": 0}[stream.dtype.kind])
        return exact.view(stream.dtype).reshape(shape)

    loop = closed_loop(stream, folded, find_model, forecasts)
    side = _Side.unpack(stream) if stream.transform is Transform.SIDE else None
    field = None if side is None else side.predicted(shape, find_model)
    on_lattice, labels = loop.lattice, loop.labels
    values = loop.decoded()
    if on_lattice is not None:
        region = on_lattice.to_values(cast("npt.NDArray[np.float32]", values), stream.dtype)
    elif field is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            region = np.add(field.reshape(folded), values, out=field.reshape(folded)).astype(stream.dtype)
    else:
        region = _transformed_back(values, stream, folded)
    if labels is not None:
        for i, special in enumerate(loop.specials, start=1):
            region[labels == i] = special
    return region.reshape(shape)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What a stream holds for its predictor.

    Attributes
    ----------
    predictor : Predictor
        With its model.
    step, offset : float
    codes, outliers : bytes
    labels : uint8 array of the folded shape, or None
        0 where the predictor codes the value.
    specials : array
        The values behind the labels 1, 2, ...
    lattice : Lattice or None
    shape, dtype
        Folded; of what the predictor decodes.
    """

    predictor: Predictor
    step: float
    offset: float
    codes: bytes
    outliers: bytes
    labels: npt.NDArray[np.uint8] | None
    specials: Array
    lattice: lattice.Lattice | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def mask(self) -> Mask:
        """1 where a value is not coded."""
        return None if self.labels is None else (self.labels != 0).view(np.uint8)

    def decoded(self) -> Floats:
        """Return what the predictor decodes; at masked places its predictions."""
        values: Floats = np.empty(self.shape, self.dtype)
        outliers = _native(self.outliers, values.dtype)
        self.predictor.decode(self.codes, outliers, values, self.mask, self.step, self.offset)
        return values


def closed_loop(
    stream: Stream, folded: tuple[int, ...], find_model: FindModel, forecasts: _Forecasts | None = None
) -> ClosedLoop:
    """Read what a stream of a predictor holds for it.

    Raises
    ------
    CorruptStreamError
        If no encoder writes such a stream.
    ModelNotFoundError, ModelKindError, PackDigestError, InvalidModelError, UnsupportedModelError
        As `decode`.
    """
    direct = stream.transform in (Transform.NONE, Transform.SIDE)
    if (direct and stream.dtype.kind != "f") or (direct and stream.dtype == np.float16):
        raise corrupt("transform", stream.transform.name.lower(), f"one for {stream.dtype}")
    plan = Reader(stream.sections.get(Section.PLAN, b""), "plan")
    predictor: Any
    if Modelled.meant(stream.method, stream.sections.get(Section.PLAN, b"")):
        predictor, step, offset = (forecasts or _Forecasts(foundation.get)).predictor(stream, folded, plan)
    else:
        predictor, step, offset = predictor_of(stream.method).unpack(plan)
    if (1, stream.minor) > stream.version:
        found = "a model" if stream.uses_model else f"coder {stream.coder}"
        raise corrupt("plan", found, f"format 1.{stream.minor} or later")
    if not (math.isfinite(step) and step > 0 and math.isfinite(offset)):
        raise corrupt("plan", f"step {step}, offset {offset}", "finite numbers, the step above 0")
    if predictor.describe().get("frame_axes", 0) >= len(folded):
        raise corrupt("plan", "as many frame axes as there are axes", f"fewer than {len(folded)}")
    if stream.method is Method.LOCAL and len(folded) < 2:
        raise corrupt("shape", f"one axis longer than 1 in {folded}", "at least two for method 'local'")
    if stream.uses_model:
        if stream.method is Method.CAUSAL and stream.transform is not Transform.NONE:
            raise corrupt("transform", stream.transform.name.lower(), "none with a model of method 'causal'")
        predictor = replace(predictor, model=_model(stream, find_model))
    labels, specials = _labels(stream, folded)
    on_lattice = _lattice(stream, folded)
    return ClosedLoop(
        predictor,
        step,
        offset,
        stream.sections.get(Section.CODES, b""),
        b"" if stream.method is Method.LOCAL else stream.sections.get(Section.OUTLIERS, b""),
        labels,
        specials,
        on_lattice,
        folded,
        stream.dtype if direct else np.dtype(np.float64 if on_lattice is None else np.float32),
    )


def _digest(stream: Stream) -> str:
    section = stream.sections.get(Section.MODEL, b"")
    if len(section) != DIGEST_BYTES:
        raise corrupt("model", f"{len(section)} bytes", f"a digest of {DIGEST_BYTES}")
    return section.hex()


def _model(stream: Stream, find_model: FindModel) -> Pack:
    pack = _found(_digest(stream), find_model)
    learned_by(pack, stream.method)
    return pack


def _found(digest: str, find_model: FindModel) -> Pack:
    pack = find_model(digest)
    if pack.digest != digest:
        raise PackDigestError.at(
            f"model {pack.id!r}",
            found=f"digest {pack.digest}",
            expected=f"{digest}, as the stream says",
            remedy="give the pack that the stream was written with",
        )
    return pack


def _lattice(stream: Stream, folded: tuple[int, ...]) -> lattice.Lattice | None:
    if stream.transform is not Transform.LATTICE:
        return None
    if stream.dtype not in (np.float32, np.float64):
        raise corrupt("transform", "lattice", f"another for {stream.dtype}")
    return lattice.Lattice.unpack(stream.sections.get(Section.LATTICE, b""), folded)


def _labels(stream: Stream, folded: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8] | None, Array]:
    if Section.LABELS not in stream.sections:
        return None, np.empty(0, stream.dtype)
    reader = Reader(stream.sections[Section.LABELS], "labels")
    count = reader.byte()
    if not 1 <= count <= _MAX_LABELS:
        raise corrupt("labels", str(count), f"1 to {_MAX_LABELS}")
    specials = _values(reader.take(count * stream.dtype.itemsize), stream.dtype)
    labels = np.empty(folded, np.uint8)
    _core.decode_labels(bytes(reader.rest()), labels)
    if labels.max() > count:
        raise corrupt("label", str(labels.max()), f"at most {count}")
    return labels, specials


def _transformed_back(values: Floats, stream: Stream, folded: tuple[int, ...]) -> Array:
    if stream.transform is Transform.NONE:
        return values
    if stream.transform is Transform.INTEGER:
        if stream.dtype.kind not in "iu":
            raise corrupt("transform", "integer", f"another for {stream.dtype}")
        limits = np.iinfo(stream.dtype)
        rounded = np.rint(np.nan_to_num(values, copy=False, nan=0.0))
        # the upper limits of 64-bit integers are no float64 values
        largest = np.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
        region: Array = np.clip(rounded, limits.min, largest).astype(stream.dtype)
        return region
    if stream.dtype.kind != "f":
        raise corrupt("transform", "logarithm", f"another for {stream.dtype}")
    wide = cast("npt.NDArray[np.float64]", values)
    _core.exp2_into(np.nan_to_num(wide, copy=False, nan=0.0, posinf=1100.0, neginf=-1100.0), wide)
    with np.errstate(over="ignore", under="ignore"):
        region = wide.astype(stream.dtype)
    if Section.SIGNS in stream.sections:
        signs = np.empty(folded, np.uint8)
        _core.decode_labels(stream.sections[Section.SIGNS], signs)
        np.negative(region, out=region, where=signs == 1)
    return region


def _correct(array: Array, section: bytes) -> None:
    reader = Reader(section, "corrections")
    count = reader.varint()
    if count > min(array.size, len(section)):
        raise corrupt("corrections", str(count), f"at most {min(array.size, len(section))}")
    position = -1
    positions = np.empty(count, np.int64)
    for i in range(count):
        position += 1 + reader.varint()
        if position >= array.size:
            raise corrupt("corrections", f"position {position}", f"below {array.size}")
        positions[i] = position
    array.reshape(-1)[positions] = _values(reader.take(count * array.dtype.itemsize), array.dtype)
    reader.end()


def describe(stream: bytes | memoryview) -> StreamInfo:
    """Read what a stream says of itself, without decoding its values.

    Raises
    ------
    TruncatedStreamError, CorruptStreamError, UnsupportedFormatError
    """
    parsed = Stream.from_bytes(stream)
    parameters: dict[str, Any] = {}
    side = _Side.unpack(parsed) if parsed.transform is Transform.SIDE else None
    forecast = _forecast_section(parsed)
    if parsed.method in PREDICTORS:
        plan = Reader(parsed.sections.get(Section.PLAN, b""), "plan")
        predictor: Any
        if forecast is not None:
            predictor, step, _ = Modelled.unpack(plan, len(forecast.exponents))
        else:
            predictor, step, _ = predictor_of(parsed.method).unpack(plan)
        parameters = {**predictor.describe(), "step": step}
        if parsed.transform is Transform.LATTICE:
            parameters |= lattice.described(parsed.sections.get(Section.LATTICE, b""), step)
    if parsed.transform is not Transform.NONE:
        parameters["transform"] = parsed.transform.name.lower()
    if side is not None:
        parameters |= side.described()
    if Section.CROP in parsed.sections:
        reader = Reader(parsed.sections[Section.CROP], "crop")
        parameters["region"] = [reader.varint() for _ in parsed.shape]
    if Section.LABELS in parsed.sections:
        parameters["special_values"] = Reader(parsed.sections[Section.LABELS], "labels").byte()
    return StreamInfo(
        format_version="{}.{}".format(*parsed.version),
        dtype=parsed.dtype.name,
        shape=parsed.shape,
        mode=parsed.mode,
        value=None if parsed.mode == "lossless" else parsed.bound,
        tolerance=parsed.tolerance,
        predictor=parsed.method.name.lower(),
        parameters=parameters,
        sections={
            "header": parsed.overhead,
            **{tag.name.lower(): n for tag, n in sorted(parsed.stored.items())},
        },
        nbytes=memoryview(stream).nbytes,
        models=(*([_digest(parsed)] if parsed.uses_model else ()), *([side.digest] if side else ())),
        foundation=None if forecast is None else forecast.digest,
    )


# ---- side predictions ------------------------------------------------------------------------------------------


def _otherwise(
    region: Array,
    bound: ErrorBound,
    blank: Stream,
    stream: Stream,
    sides: Sequence[Side],
    effort: str,
    models: Sequence[Pack],
    forecasters: Sequence[type[Forecaster]] | None,
) -> Iterator[Stream]:
    """Code a region with every side prediction that is for its shape, and off its lattice if a model cannot be used on it."""
    if (
        region.dtype not in (np.float32, np.float64)
        or bound.mode not in ("abs", "range_rel")
        or effort == "fast"
    ):
        return
    if stream.transform is Transform.LATTICE and any(model.kind == Causal.kind for model in models):
        lossy = _Lossy.prepare(region, bound, blank, snap=False)
        if lossy is not None:
            yield lossy.coded(effort, models, forecasters)
    for side in sides:
        if side.latent_shape(region.shape) is not None:
            for unit in (0.0,) if side.clocked else _LATENT_UNITS[effort]:
                lossy = _Lossy.prepare(region, bound, blank, (side, unit))
                if lossy is not None:
                    yield lossy.coded(effort, models, forecasters)


@dataclass(frozen=True, slots=True)
class _Side:
    """The section ``side``: a pack, the unit of the latents, a stream of them; or unit 0, and the two latents of a clock."""

    digest: str
    unit: float
    latents: bytes

    @classmethod
    def taken_away(
        cls, region: Array, labels: npt.NDArray[np.uint8] | None, side: Side, unit: float
    ) -> tuple[Array, bytes]:
        """Return what a side prediction leaves of a region, and the section."""
        wide = region.astype(np.float64)
        if labels is not None:
            wide[labels != 0] = np.nan
        latents = side.describe(wide, unit)
        section = Writer().raw(bytes.fromhex(side.pack.digest)).pack("d", unit)
        if side.clocked:
            for latent in latents.flat:
                section.varint(int(latent))
        else:
            section.raw(encode(latents, _EVERY_INTEGER, effort="max"))
        left = region - side.predict(latents, unit, region.shape)
        return left.astype(region.dtype), section.done()

    @classmethod
    def unpack(cls, stream: Stream) -> _Side:
        """Read the section; the latents are not decoded."""
        reader = Reader(stream.sections.get(Section.SIDE, b""), "side")
        digest = reader.take(DIGEST_BYTES).hex()
        (unit,) = reader.unpack("d")
        if not (math.isfinite(unit) and math.copysign(1.0, unit) > 0):
            raise corrupt("side", f"unit {unit}", "a finite number, not below 0")
        return cls(digest, unit, bytes(reader.rest()))

    def ticks(self) -> npt.NDArray[np.int32]:
        """Return the latents of a clock."""
        reader = Reader(self.latents, "side")
        latents = reader.varint(), reader.varint()
        reader.end()
        if max(latents) >= 1 << 31:
            raise corrupt("side", f"latents {latents}", "below 2^31")
        return np.array([latents], np.int32)

    def described(self) -> dict[str, Any]:
        """Return what the section says, as JSON values."""
        if not self.unit:
            return dict(zip(("first_tick", "ticks_a_step"), self.ticks()[0].tolist(), strict=True))
        return {"latents": list(Stream.from_bytes(self.latents, payloads=False).shape)}

    def predicted(self, shape: tuple[int, ...], find_model: FindModel) -> npt.NDArray[np.float64]:
        """Return the side prediction of a region."""
        side = load_side(_found(self.digest, find_model))
        most = side.latent_shape(shape)
        if most is None or side.clocked != (self.unit == 0):
            what = f"shape {shape}, latents {'of a clock' if self.unit == 0 else 'with a unit'}"
            raise corrupt("side", f"model {side.pack.id!r}", f"one for {what}")
        if side.clocked:
            return side.predict(self.ticks(), self.unit, shape)
        inner = Stream.from_bytes(self.latents, payloads=False)
        plain = inner.dtype == np.int32 and Section.MODEL not in inner.stored
        if (
            not plain
            or len(inner.shape) != 2
            or inner.shape[0] != most[0]
            or not 1 <= inner.shape[1] <= most[1]
        ):
            raise corrupt(
                "latents",
                f"{inner.dtype}, shape {inner.shape}",
                f"int32, {most[0]} x 1 to {most[1]}, no model",
            )
        return side.predict(decode(self.latents), self.unit, shape)


# ---- foundation models -----------------------------------------------------------------------------------------


def _forecast(
    region: Array, bound: ErrorBound, blank: Stream, effort: str, forecast: Forecasting | None
) -> Iterator[Stream]:
    """Code a region with the forecasts of a foundation model, if it has states enough."""
    if forecast is None or bound.mode not in ("abs", "range_rel"):
        return
    channels, shape = len(forecast.coordinates.channels), blank.shape
    if len(shape) not in (3, 4) or channels != (shape[1] if len(shape) == 4 else 1):
        raise InvalidConfigError.at(
            "coordinates",
            found=f"{channels} channels for an array of shape {shape}",
            expected="the axes (time, channel, latitude, longitude), or without channel",
        )
    if shape[0] == 1 and forecast.model.history:
        return  # one time has no step, and nothing before it
    forecast.model.check(forecast.coordinates, (shape[-2], shape[-1]))
    whole = region.shape[1:] == shape[1:] and region.shape[0] > forecast.model.history
    if not whole or min(shape[-2:]) < LEAST_LENGTH or region.dtype not in (np.float32, np.float64):
        return
    lossy = _Lossy.prepare(region, bound, blank, snap=False)
    if lossy is None or lossy.values.ndim < 3:
        return
    values = lossy.values
    frames = (math.prod(values.shape[:-2]), *values.shape[-2:])
    mask = None if lossy.mask is None else lossy.mask.reshape(frames)
    end = Encoded(
        *(forecast.model, forecast.coordinates, values.reshape(frames), mask),
        *(lossy.quantizer.tolerance, lambda integers: encode(integers, _EVERY_INTEGER)),
    )
    coder = Coder.MIXED if effort == "max" else Coder.ADAPTIVE
    predictor = Modelled(values.ndim - 2, channels, forecast.model.history, end, coder)
    try:
        codes, outliers = predictor.encode(values, lossy.mask, lossy.quantizer)
    except OverflowError:
        return
    section = end.section()
    if section is not None:
        stream = lossy.stream
        stream.method = Method.FRAMES
        stream.sections[Section.PLAN] = predictor.pack(lossy.quantizer.step, lossy.quantizer.offset)
        stream.sections[Section.CODES] = codes
        stream.sections[Section.FORECAST] = section.pack()
        if outliers:
            stream.sections[Section.OUTLIERS] = _little_endian(np.frombuffer(outliers, values.dtype))
        yield stream


def _forecast_section(stream: Stream) -> Forecast | None:
    """Parse the section ``forecast`` of a stream that has one and uses it."""
    if not Modelled.meant(stream.method, stream.sections.get(Section.PLAN, b"")):
        return None
    shape = stream.shape
    if Section.CROP in stream.sections:
        reader = Reader(stream.sections[Section.CROP], "crop")
        shape = tuple(reader.varint() for _ in stream.shape)
    return Forecast.unpack(stream.sections.get(Section.FORECAST, b""), _frames(_folded(shape)))


def _frames(folded: tuple[int, ...]) -> tuple[int, int, int]:
    if len(folded) < 3:
        raise corrupt("plan", f"forecasts for a folded shape {folded}", "three axes or more")
    return math.prod(folded[:-2]), folded[-2], folded[-1]


def _integers(stream: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Decode a stream of integers inside a stream."""
    inner = Stream.from_bytes(stream, payloads=False)
    plain = (
        inner.dtype == np.int32 and not {Section.MODEL, Section.SIDE, Section.FORECAST} & inner.stored.keys()
    )
    if not plain or inner.shape != shape:
        raise corrupt(
            "forecast: integers", f"{inner.dtype}, shape {inner.shape}", f"int32, {shape}, no model"
        )
    return decode(stream)


@dataclass(slots=True)
class _Forecasts:
    """What a decoder does about foundation models."""

    find: FindForecaster
    partial: bool = False
    kept: dict[int, npt.NDArray[np.int32]] | None = (
        None  # collects the integers of forecasts by frame, where it is one
    )

    def predictor(
        self, stream: Stream, folded: tuple[int, ...], plan: Reader
    ) -> tuple[Modelled, float, float]:
        """Return the predictor of a stream, step and offset."""
        section, frames = _forecast_section(stream), _frames(folded)
        assert section is not None
        if stream.transform is not Transform.NONE:
            raise corrupt("transform", stream.transform.name.lower(), "none with forecasts")
        predictor, step, offset = Modelled.unpack(plan, len(section.exponents))
        if section.present[: predictor.history * predictor.channels].any():
            raise corrupt(
                "forecast: frames",
                "one before there are states enough",
                f"none of {predictor.history} states",
            )
        end: Decoded | Stored
        if section.digest is None:
            end = Stored(section, frames, _integers)
        else:
            model = self.find(section.digest)
            if model.digest != section.digest:
                raise ModelDigestError.at(
                    f"foundation model {model.name!r}",
                    found=f"digest {model.digest}",
                    expected=f"{section.digest}, as the stream says",
                )
            if predictor.history != model.history:
                raise corrupt("plan", f"{predictor.history} states", f"{model.history}, as the model has")
            end = Decoded(section, model, frames, _integers, self.partial)
            end.kept = self.kept
        return replace(predictor, end=end), step, offset


def materialise(stream: bytes | memoryview, *, find_forecaster: FindForecaster = foundation.get) -> bytes:
    """Rewrite a stream so that it needs no foundation model; the decoded values stay the same, bit by bit.

    The integers of its forecasts are stored instead of their hashes, or all values exactly, whichever takes fewer bytes.
    A stream that needs none is returned as it is.

    Raises
    ------
    ModelNotFoundError, PredictionMismatchError
        And what else `decode` raises: it is decoded once with the model.
    ErrorBoundViolation
        If the new stream did not decode to the same values: a bug. Nothing is returned.
    """
    parsed = Stream.from_bytes(stream)
    section = _forecast_section(parsed)
    if section is None or section.digest is None:
        return bytes(stream)
    forecasts = _Forecasts(find_forecaster, kept={})
    try:
        values = _decoded(parsed, zoo.get, forecasts)
    except _core.CorruptDataError as error:
        raise corrupt("codes", str(error), "what an encoder writes") from None
    assert forecasts.kept is not None
    frugal = stored(section, forecasts.kept, lambda integers: encode(integers, _EVERY_INTEGER))
    rewritten = replace(parsed, sections={**parsed.sections, Section.FORECAST: frugal.pack()}, stored={})
    blank = replace(parsed, method=Method.LOSSLESS, transform=Transform.NONE, sections={}, stored={})
    exact = _coded_exactly(values, blank)
    exact.tolerance = parsed.tolerance
    coded = min((rewritten.to_bytes(), exact.to_bytes()), key=len)
    again = decode(coded)
    if again.tobytes() != values.tobytes():
        raise ErrorBoundViolation(
            f"a stream of {values.dtype}, shape {values.shape}, changed its values when it was made model-free; "
            "nothing was written; please report this with the stream"
        )
    return coded


# ---- bytes of values -------------------------------------------------------------------------------------------


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _little_endian(values: Array) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _values(data: bytes | memoryview, dtype: np.dtype[Any]) -> Array:
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)


def _native(data: bytes, dtype: np.dtype[Any]) -> bytes:
    if len(data) % dtype.itemsize:
        raise corrupt("outliers", f"{len(data)} bytes", f"a multiple of {dtype.itemsize}")
    return data if dtype.newbyteorder("<") == dtype else _values(data, dtype).tobytes()


def _shuffled(values: Array) -> bytes:
    data = np.frombuffer(_little_endian(values), np.uint8)
    return np.ascontiguousarray(data.reshape(-1, values.dtype.itemsize).T).tobytes()


def _unshuffled(data: bytes, dtype: np.dtype[Any]) -> Array:
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return _values(np.ascontiguousarray(planes.T).data, dtype)
