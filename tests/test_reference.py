"""The package and tests/reference.py, written from docs/format.md alone, decode streams to the same bits."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aesz_codec import _core, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.errors import AESZError
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Frames, Interpolation, Local, Quantizer
from aesz_codec.predictors.forecasts import LeastSquares, Motion, Nearest
from aesz_codec.stream import Coder, Method, Section, Stream, Transform, Writer

SHAPES = [(), (1,), (2,), (100,), (17, 23), (1, 50), (9, 10, 11), (3, 1, 8, 9), (3, 4, 5, 6), (2, 2, 3, 4, 5)]
FLOATS = ("float32", "float64")
MODELS = Path(__file__).parent / "golden" / "models"
MODEL, FEW = (Pack.from_file(MODELS / f"{name}.aeszpack") for name in ("interpolation", "interpolation_few"))
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def smooth(shape, dtype="float64", noise=0.1, seed=0):
    """Waves of amplitude 10 and some noise; never negative for unsigned integers."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    waves = sum((10 * np.sin((i + 1) * x) for i, x in enumerate(axes)), np.zeros(shape))
    values = waves + noise * rng.normal(size=shape)
    return (np.abs(values) if np.dtype(dtype).kind == "u" else values).astype(dtype)


def bits(array):
    return array.reshape(-1).view(f"V{array.dtype.itemsize}")


def find_model(digest):
    return {MODEL.digest: MODEL, FEW.digest: FEW}[digest]


def check(reference, stream):
    """Assert that both decoders agree to the bit; return what they decoded."""
    decoded, expected = pipeline.decode(stream, find_model=find_model), reference.decode(stream, find_model)
    assert decoded.dtype == expected.dtype
    assert decoded.shape == expected.shape
    assert np.array_equal(bits(decoded), bits(expected))
    return decoded


# ---- what the encoder writes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "bound",
    [
        ErrorBound("abs", 0.2),
        ErrorBound("abs", 1e-5),
        ErrorBound("range_rel", 0.01),
        ErrorBound("pw_rel", 0.01),
    ],
    ids=lambda bound: f"{bound.mode}-{bound.value}",
)
def test_floats(reference, shape, dtype, bound):
    check(reference, pipeline.encode(smooth(shape, dtype), bound))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ("float16", *FLOATS, *INTEGERS))
def test_lossless(reference, shape, dtype):
    original = smooth(shape, dtype)
    decoded = check(reference, pipeline.encode(original, ErrorBound("lossless", None)))
    assert np.array_equal(bits(decoded), bits(original))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("tolerance", [1, 2.5])
def test_integers(reference, dtype, tolerance):
    original = 3 * smooth((25, 30), dtype)
    stream = pipeline.encode(original, ErrorBound("abs", tolerance))
    assert pipeline.describe(stream).parameters["transform"] == "integer"
    check(reference, stream)


@pytest.mark.parametrize("effort", pipeline.EFFORTS)
def test_efforts(reference, effort):
    check(reference, pipeline.encode(smooth((6, 12, 14), "float32"), ErrorBound("abs", 0.3), effort=effort))


def special(shape=(20, 30), dtype="float32"):
    """NaN, infinities, fill values, both zeros and both signs, none of them at the end."""
    array = smooth(shape, dtype)
    array[2:5, 3:9] = np.nan
    array[7, 4:9] = np.inf
    array[8, 4] = -np.inf
    array[11:14, :6] = 1e30
    array[14, 8:20] = -9999
    array[15, ::3] = 0
    return array


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["abs", "pw_rel"])
def test_labels_and_signs(reference, dtype, mode):
    stream = pipeline.encode(special(dtype=dtype), ErrorBound(mode, 0.05))
    names = {"labels", "signs"} if mode == "pw_rel" else {"labels"}
    assert names <= pipeline.describe(stream).sections.keys()
    check(reference, stream)


@pytest.mark.parametrize("shape", [(40,), (7, 30), (5, 6, 20), (2, 3, 7, 20)], ids=str)
def test_labels_of_every_number_of_axes(reference, shape):
    rng = np.random.default_rng(1)
    array = smooth(shape, "float32")
    array[rng.random(shape) < 0.3] = np.nan
    array[rng.random(shape) < 0.1] = -1e20
    array[(-1,) * len(shape)] = 1
    stream = pipeline.encode(array, ErrorBound("abs", 0.05))
    assert pipeline.describe(stream).parameters["special_values"] == 2
    check(reference, stream)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32"])
def test_crop(reference, dtype):
    array = np.full((30, 20), 7, dtype)
    array[:21, :13] = smooth((21, 13), dtype)
    stream = pipeline.encode(array, ErrorBound("lossless") if dtype == "float16" else ErrorBound("abs", 1))
    assert pipeline.describe(stream).parameters["region"] == [21, 13]
    check(reference, stream)


@pytest.mark.parametrize("fill", [0.0, -0.0, 3.25, np.nan])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (0,), (3, 0, 2)], ids=str)
def test_constant(reference, shape, fill):
    stream = pipeline.encode(np.full(shape, fill), ErrorBound("abs", 0.1))
    assert pipeline.describe(stream).predictor == "constant"
    check(reference, stream)


def test_bytes(reference):
    noise = np.random.default_rng(2).integers(0, 256, 400, np.uint8)
    noise[::2] = 0
    stream = pipeline.encode(noise.view("float32"), ErrorBound("lossless", None))
    assert pipeline.describe(stream).predictor == "bytes"
    check(reference, stream)


def test_layout_flags_change_nothing(reference):
    original = np.asfortranarray(smooth((9, 14))).astype(">f8", order="F")
    bound = ErrorBound("abs", 0.1)
    kept = check(reference, pipeline.encode(original, bound, keep_layout=True))
    assert np.array_equal(bits(kept), bits(check(reference, pipeline.encode(original, bound))))


# ---- what the encoder would not choose by itself


def forced(
    predictor, data, step=0.1, mask=None, specials=(), dtype=None, transform=Transform.NONE, offset=0.5
):
    """Return the stream of one predictor, whatever it costs."""
    codes, outliers = predictor.encode(data, mask, Quantizer(step / 2, step, offset))
    stream = Stream(
        np.dtype(dtype or data.dtype), data.shape, "abs", step / 2, step / 2, predictor.method, transform
    )
    stream.sections[Section.PLAN] = predictor.pack(step, offset)
    stream.sections[Section.CODES] = codes
    if predictor.model is not None:
        stream.sections[Section.MODEL] = bytes.fromhex(predictor.model.digest)
    if outliers:
        stream.sections[Section.OUTLIERS] = outliers
    if mask is not None:
        values = np.array(specials, stream.dtype).tobytes()
        stream.sections[Section.LABELS] = bytes([len(specials)]) + values + _core.encode_labels(mask)
    return stream


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((33,), 0), ((70,), 0), ((16, 17), 0), ((16, 17), 1), ((2, 90), 0), ((7, 8, 9), 0), ((7, 8, 9), 1)]
    + [((7, 8, 9), 2), ((3, 4, 5, 6), 0), ((3, 4, 5, 6), 1), ((3, 4, 5, 6), 2), ((3, 4, 5, 6), 3)],
    ids=str,
)
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("refers", [False, True])
def test_interpolation(reference, shape, batch, is_reversed, refers):
    predictor = Interpolation(batch=batch, reference=refers, reversed=is_reversed)
    check(reference, forced(predictor, smooth(shape, "float32")).to_bytes())


@pytest.mark.parametrize(("alpha16", "beta16"), [(16, 16), (20, 24), (24, 255), (255, 17)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_interpolation_steps(reference, alpha16, beta16, dtype):
    check(
        reference, forced(Interpolation(alpha16=alpha16, beta16=beta16), smooth((20, 37), dtype)).to_bytes()
    )


@pytest.mark.parametrize(
    "shape", [(50,), (3,), (1,), (13, 17), (2, 80), (80, 3), (6, 7, 8), (2, 3, 5, 7)], ids=str
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_causal(reference, shape, dtype):
    check(reference, forced(Causal(), smooth(shape, dtype)).to_bytes())


LOCAL_SHAPES = [(2, 2), (9, 8), (9, 13), (30, 40), (12, 17), (2, 90), (90, 2)] + [
    (2, 2, 2),
    (3, 9, 8),
    (4, 11, 21),
    (2, 3, 33),
    (2, 2, 2, 2),
    (2, 3, 9, 8),
    (3, 2, 8, 19),
]


@pytest.mark.parametrize("shape", LOCAL_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("noise", [0, 0.3])
def test_local(reference, shape, dtype, noise):
    check(reference, forced(Local(), smooth(shape, dtype, noise)).to_bytes())


@pytest.mark.parametrize("shape", [(20, 27), (4, 9, 11), (2, 3, 8, 9)], ids=str)
@pytest.mark.parametrize("step", [3.0, 1e-2, 1e-4, 1e-6])
def test_local_jumps(reference, shape, step):
    """Residuals of any size: the high bits by models, up to ten low ones raw, Exp-Golomb beyond."""
    rng = np.random.default_rng(6)
    data = smooth(shape, noise=1) * np.where(rng.random(shape) < 0.05, 5, 1)
    data[1:3] *= rng.random(data[1:3].shape) ** 9
    check(reference, forced(Local(), data, step).to_bytes())


@pytest.mark.parametrize("shape", [(12, 20), (3, 8, 9), (2, 2, 8, 9)], ids=str)
def test_local_at_the_largest_integers(reference, shape):
    """Up to 2^28 either way, where predictions are clamped; squared errors and sums at their largest."""
    rng = np.random.default_rng(7)
    data = np.where(rng.random(shape) < 0.5, -1.0, 1.0) * (2.0**28 - 1)
    data[:, 3:] = np.where(rng.random(data[:, 3:].shape) < 0.1, data[:, 3:], 2.0**28 - 1 - rng.integers(0, 9))
    decoded = check(reference, forced(Local(), data, 1.0, offset=0.0).to_bytes())
    assert np.array_equal(decoded, data)
    with pytest.raises(OverflowError):
        forced(Local(), 2 * data, 1.0, offset=0.0)


@pytest.mark.parametrize("shape", [(20, 21), (4, 9, 18), (2, 2, 9, 12)], ids=str)
@pytest.mark.parametrize("transform", ["integer", "logarithm", "lattice"])
@pytest.mark.parametrize("masked", [False, True])
def test_local_of_transformed_values(reference, shape, transform, masked):
    values = 20 + smooth(shape, noise=0.5)
    if transform == "integer":
        array, bound = np.round(values * 50).astype("int32"), ErrorBound("abs", 3)
        fill = -(2**31)
    else:
        array, fill = values.astype("float32"), np.nan
        bound = ErrorBound("pw_rel", 1e-3)
        if transform == "lattice":
            array, bound = np.round(array * 64) / 64, ErrorBound("abs", 1 / 64)
    if masked:
        array[..., 2:7] = fill
        array[np.random.default_rng(8).random(shape) < 0.1] = fill
    found = prepared(array, bound)
    assert pipeline.describe(found).parameters["transform"] == transform
    assert pipeline.describe(found).predictor == "local"
    check(reference, found)


def prepared(array, bound):
    """Return the stream that the encoder would write if it had no predictor but this one."""
    blank = Stream(array.dtype, array.shape, bound.mode, bound.value, 0.0, Method.LOSSLESS)
    lossy = pipeline._Lossy.prepare(array, bound, blank)
    codes, _ = Local().encode(lossy.values, lossy.mask, lossy.quantizer)
    lossy.stream.method = Method.LOCAL
    lossy.stream.sections[Section.PLAN] = Local().pack(lossy.quantizer.step, lossy.quantizer.offset)
    lossy.stream.sections[Section.CODES] = codes
    return lossy.stream.to_bytes()


def test_local_does_not_look_at_outliers(reference):
    stream = forced(Local(), smooth((9, 10), "float32"))
    plain = check(reference, stream.to_bytes())
    stream.sections[Section.OUTLIERS] = b"\x01\x02\x03"
    assert np.array_equal(check(reference, stream.to_bytes()), plain)


def test_local_has_two_axes_at_least(reference):
    stream = forced(Local(), smooth((9, 10), "float32"))
    for shape in [(90,), (1, 90), (90, 1, 1), (1, 1)]:
        stream.shape = shape
        assert not agree(reference, stream.to_bytes())


PREDICTORS = [
    Causal(),
    Interpolation(),
    Interpolation(batch=1, reference=True),
    Interpolation(batch=1),
    Causal(coder=Coder.ADAPTIVE_ZEROS),
    Interpolation(coder=Coder.ADAPTIVE_ZEROS),
    Interpolation(batch=1, reference=True, coder=Coder.ADAPTIVE_ZEROS),
]
NEWER = [
    kind
    for coder in (Coder.STATIC, Coder.MIXED)
    for kind in (
        Causal(coder=coder),
        Interpolation(coder=coder),
        Interpolation(batch=1, reference=True, coder=coder),
    )
]

FRAMES = [
    Frames(1, 4, LeastSquares()),
    Frames(1, 1, Motion()),
    Frames(1, 2, LeastSquares(), Coder.STATIC),
    Frames(1, 2, Nearest(), Coder.MIXED, MODEL),
]
LEARNED = [
    Interpolation(batch, reference, coder=coder, model=MODEL)
    for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED)
    for batch, reference in ((0, False), (1, False), (1, True))
]
LEARNED += [replace(choice, model=FEW) for choice in LEARNED if choice.coder is not Coder.MIXED]


@pytest.mark.parametrize("predictor", [*PREDICTORS, *NEWER, *LEARNED, *FRAMES, Local()], ids=str)
@pytest.mark.parametrize("step", [3.0, 0.1, 1e-3, 1e-6])
def test_code_magnitudes(reference, predictor, step):
    check(reference, forced(predictor, smooth((11, 9, 10), noise=1), step).to_bytes())


@pytest.mark.parametrize("predictor", [*PREDICTORS, *NEWER, *LEARNED, *FRAMES, Local()], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_quiet_data_with_bursts(reference, predictor, dtype):
    rng = np.random.default_rng(4)
    data = np.zeros((5, 20, 31), dtype)
    data[rng.random(data.shape) < 0.01] = 1
    data[2, 5:8, 6:11] = rng.normal(size=(3, 5))
    check(reference, forced(predictor, data).to_bytes())


@pytest.mark.parametrize("seed", range(40))
def test_learned_interpolation_of_small_arrays(reference, seed):
    """Any number of axes, frames smaller than what networks look at, steps, masks: the encoder knows what is decoded."""
    rng = np.random.default_rng(seed)
    axes = 2 + seed % 3
    sizes = rng.integers(1, (26, 9, 6)[seed % 3], axes)
    shape = tuple(sizes.tolist())  # of the loop itself: nothing folds axes of size 1
    data = np.cumsum(rng.normal(size=shape), -1) * rng.choice([0.01, 1, 100])
    data = (data if rng.random() < 0.7 else np.where(rng.random(shape) < 0.03, data, 0)).astype(
        FLOATS[seed // 3 % 2]
    )
    if rng.random() < 0.2:
        data[rng.random(shape) < 0.03] = 1e30
    mask = (rng.random(shape) < rng.choice([0.02, 0.3])).astype(np.uint8) if rng.random() < 0.4 else None
    predictor = Interpolation(
        int(rng.integers(axes)),
        bool(rng.random() < 0.6),
        alpha16=int(rng.choice([16, 20, 32])),
        beta16=int(rng.choice([16, 33, 80])),
        coder=(Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED)[int(rng.integers(3))],
        model=(MODEL, FEW)[int(rng.integers(2))],
    )
    step = float(rng.choice([4, 1, 0.25, 2.0**-6]))
    codes, outliers = predictor.encode(data, mask, Quantizer(step / 2, step, 0.5))
    decoded = np.zeros_like(data)
    predictor.decode(codes, outliers, decoded, mask, step, 0.5)
    assert (abs(decoded.astype("f8") - data) <= step / 2)[mask == 0 if mask is not None else ...].all()
    labels = [0] * data.size if mask is None else mask.reshape(-1).tolist()
    loop = reference.ClosedLoop(data.dtype, shape, labels, codes, np.frombuffer(outliers, data.dtype))
    reference.decode_interpolation(loop, predictor.pack(step, 0.5), predictor.model)
    assert loop.outliers_used == loop.outliers.size
    assert np.array_equal(bits(loop.values), bits(decoded))


@pytest.mark.parametrize("predictor", [p for p in LEARNED if p.coder is Coder.STATIC], ids=str)
def test_learned_tables_of_the_static_coder(reference, predictor):
    """So many symbols that not all lines are counted; masks of all kinds, whose points no half of a line codes."""
    rng = np.random.default_rng(9)
    data = np.cumsum(rng.normal(size=(3, 50, 61)), -1).astype("f4")
    data[1] *= 1e-2
    labels = np.zeros(data.shape, np.uint8)
    labels[0, 30:40] = labels[1, :, ::2] = labels[2, :, 1::2] = labels[2, :7, 20:] = 1
    labels[0, 0, 0] = 0
    for mask in (None, labels):
        stream = forced(predictor, data, 0.5, mask, (0,) if mask is not None else ())
        assert stream.minor == 5
        check(reference, stream.to_bytes())


def test_segments_of_the_static_coder(reference):
    """More symbols than one holds, and so many that tables are made anew by halved counts."""
    rng = np.random.default_rng(8)
    data = rng.normal(size=(260, 262)).astype("f4")
    data[100:180] *= 1e-3
    stream = forced(Causal(coder=Coder.STATIC), data, 0.5)
    assert stream.minor == 1
    check(reference, stream.to_bytes())


@pytest.mark.parametrize("predictor", PREDICTORS + NEWER + LEARNED, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_outliers(reference, predictor, dtype):
    data = smooth((5, 9, 10), dtype)
    data.reshape(-1)[[0, 17, 120, 121, 300, 449]] = [1e30, -3e38, 1e12, 1e9, -0.0, 1e20]
    stream = forced(predictor, data, 1e-4)
    assert Section.OUTLIERS in stream.sections
    check(reference, stream.to_bytes())


@pytest.mark.parametrize("predictor", [*PREDICTORS, *NEWER, Local()], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_places(reference, predictor, dtype):
    rng = np.random.default_rng(3)
    data = smooth((5, 12, 13), dtype)
    mask = (rng.random(data.shape) < 0.3).astype(np.uint8) * rng.integers(1, 16, data.shape, np.uint8)
    mask[2] = 1
    mask[0, 0, :3] = 15
    nan = np.frombuffer(b"\x01\x02\xf0\x7f\x03\x04\xf4\xff", f"<{dtype[0]}{np.dtype(dtype).itemsize}")[-1]
    check(reference, forced(predictor, data, mask=mask, specials=[nan, *range(14)]).to_bytes())


@pytest.mark.parametrize("predictor", PREDICTORS[:2], ids=str)
@pytest.mark.parametrize("dtype", ["float16", *FLOATS, *INTEGERS])
def test_transforms_at_their_limits(reference, predictor, dtype):
    """Exponents and integers far beyond what the dtype holds."""
    integer = np.dtype(dtype).kind in "iu"
    top = 2.0**65 if integer else 1300
    data = np.concatenate([np.linspace(-top, top, 90), np.linspace(-3, 3, 49)])
    transform = Transform.INTEGER if integer else Transform.LOGARITHM
    stream = forced(predictor, data, 0.25, dtype=dtype, transform=transform)
    if not integer:
        signs = np.random.default_rng(5).integers(0, 2, data.shape, np.uint8)
        stream.sections[Section.SIGNS] = _core.encode_labels(signs)
    check(reference, stream.to_bytes())


@pytest.mark.parametrize("shape", [(60,), (8, 9), (4, 5, 6), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", *FLOATS, "int16", "int64", "uint8"])
def test_every_lossless_prediction(reference, shape, dtype):
    original = smooth(shape, dtype)
    for dims in range(min(3, len(shape)) + 1):
        unsigned = original.view(f"u{original.itemsize}")
        codes = _core.encode_lossless(unsigned, dims, {"f": 2, "i": 1, "u": 0}[original.dtype.kind])
        sections = {Section.PLAN: bytes([dims]), Section.CODES: codes}
        stream = Stream(original.dtype, shape, "lossless", 0, 0, Method.LOSSLESS, sections=sections)
        assert np.array_equal(bits(check(reference, stream.to_bytes())), bits(original))


@pytest.mark.parametrize("method", [Method.CAUSAL, Method.LOSSLESS, Method.BYTES])
def test_corrections(reference, method):
    """First, adjacent, last; in the padding too."""
    array = np.full((6, 40), 2.0, "float32")
    array[:5, :30] = smooth((5, 30), "float32")
    region = np.ascontiguousarray(array[:5, :30])
    crop = Writer().varint(5).varint(30).raw(array[5, 39].tobytes()).done()
    if method is Method.CAUSAL:
        stream = forced(Causal(), region)
    else:
        codes = region.view(np.uint8).reshape(-1, 4).T.tobytes()
        sections = {Section.CODES: codes}
        if method is Method.LOSSLESS:
            codes = _core.encode_lossless(region.view("u4"), 2, 2)
            sections = {Section.CODES: codes, Section.PLAN: b"\x02"}
        stream = Stream(array.dtype, array.shape, "abs", 1, 1, method, sections=sections)
    stream.shape = array.shape
    stream.sections[Section.CROP] = crop
    places, values = [0, 1, 77, 215, 239], np.arange(5, dtype="float32")
    corrections = Writer().varint(len(places))
    for gap in np.diff(places, prepend=-1):
        corrections.varint(int(gap) - 1)
    stream.sections[Section.CORRECTIONS] = corrections.done() + values.tobytes()
    decoded = check(reference, stream.to_bytes())
    assert np.array_equal(decoded.reshape(-1)[places], values)


# ---- what no encoder writes


def outcome(decode, error, stream):
    try:
        return decode(stream)
    except error:
        return None


def agree(reference, stream):
    """Assert that both decoders reject the stream, or neither and they agree; say whether they decoded."""
    decoded = outcome(lambda s: pipeline.decode(s, find_model=find_model), AESZError, stream)
    expected = outcome(lambda s: reference.decode(s, find_model), reference.RejectedStreamError, stream)
    assert (decoded is None) == (expected is None)
    if decoded is None:
        return False
    assert decoded.dtype == expected.dtype
    same = bits(decoded) == bits(expected)
    if decoded.dtype.kind == "f":  # which NaN an operation gives is left open
        same |= (np.isnan(decoded) & np.isnan(expected)).reshape(-1)
    assert same.all()
    return True


def random_stream(rng):
    """Return random bytes as codes, labels and signs under a valid header and plan."""
    shape = [(60,), (13, 17), (5, 6, 7), (3, 4, 5, 3), (2, 33), (70, 3), (3, 1, 9, 8)][rng.integers(7)]
    n, axes = math.prod(shape), sum(m > 1 for m in shape)
    dtype = np.dtype(("float16", "float32", "float64", "int16", "int64", "uint64")[rng.integers(6)])
    method = Method(int(rng.choice([1, 2, 3, 5])))
    transform = Transform.NONE
    if method is not Method.LOSSLESS:
        if dtype.kind != "f":
            transform = Transform.INTEGER
        elif dtype.itemsize == 2 or rng.random() < 0.3:
            transform = Transform.LOGARITHM
    stream = Stream(dtype, shape, "abs", 1.0, 1.0, method, transform)

    def noise(size):  # few, half or most of the bits set
        data = rng.integers(0, 256, (3, size), np.uint8)
        return (data[0] & data[1] & data[2], data[0], data[0] | data[1] | data[2])[rng.integers(3)].tobytes()

    stream.sections[Section.CODES] = noise(int(rng.integers(0, 400)))
    step, offset = float(rng.choice([1e-3, 0.1, 7.3])), float(rng.normal())
    coder = Coder(int(rng.integers(3)))
    if method is Method.LOSSLESS:
        plan = bytes([rng.integers(0, min(3, axes) + 1)])
    elif method is Method.LOCAL:
        plan = Local().pack(step, offset)
    elif method is Method.CAUSAL:
        plan = Causal(coder=coder).pack(step, offset)
    else:
        refers, is_reversed = (bool(b) for b in rng.integers(0, 2, 2))
        steps = {"alpha16": int(rng.integers(16, 40)), "beta16": int(rng.integers(16, 99))}
        batch = int(rng.integers(axes))
        predictor = Interpolation(batch=batch, reference=refers, reversed=is_reversed, coder=coder, **steps)
        plan = predictor.pack(step, offset)
    stream.sections[Section.PLAN] = plan
    if rng.random() < 0.4:
        stream.sections[Section.LABELS] = b"\x0f" + rng.bytes(15 * dtype.itemsize) + noise(n // 4)
    if rng.random() < 0.4:
        stream.sections[Section.SIGNS] = noise(n // 4)
    return stream


@pytest.mark.parametrize("seed", range(8))
def test_random_codes(reference, seed):
    rng = np.random.default_rng(seed)
    decoded = sum(agree(reference, random_stream(rng).to_bytes()) for _ in range(20))
    assert 0 < decoded < 20


class RandomDecisions:
    """A range coder that a decoder takes for its own: it makes up every decision and encodes it."""

    def __init__(self, rng):
        self.rng, self.low, self.range, self.words = rng, 0, 2**64 - 1, 2
        self.ones = 0.1  # how often a bit is 1; changes now and then

    def _take(self, below, width):
        self.low += below
        self.range = width
        if self.range < 1 << 32:
            self.low, self.range, self.words = self.low << 32, self.range << 32, self.words + 1

    def bit(self, p1):
        if self.rng.random() < 0.03:
            self.ones = self.rng.choice([0.02, 0.1, 0.5, 0.99])
        bound = (self.range >> 16) * p1
        if self.rng.random() < self.ones:
            self._take(0, bound)
            return 1
        self._take(bound, self.range - bound)
        return 0

    def symbol(self, edge):
        s = int(self.rng.choice([0, 31, 16, self.rng.integers(32)]))
        unit = self.range >> 15
        self._take(unit * edge[s], unit * (edge[s + 1] - edge[s]))
        return s

    def raw(self, n):
        value = int(self.rng.choice([0, 2**n - 1, self.rng.integers(2**n)]))
        self._take((self.range >> n) * value, self.range >> n)
        return value

    def raw_groups(self, n):
        groups = [16] * (n // 16) + [n % 16] * (n % 16 > 0)
        value = 0
        for group in groups:
            value = value << group | self.raw(group)
        return value

    def encoded(self):
        return self.low.to_bytes(4 * self.words, "big")


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize(
    "predictor", [*PREDICTORS, *(p for p in LEARNED if p.coder is not Coder.STATIC), Local()], ids=str
)
def test_random_decisions(reference, predictor, seed):
    """Every branch of the entropy coder, however unlikely: long Golomb codes, outliers, clamped codes."""
    rng = np.random.default_rng(seed)
    shape, kind = [(5, 40), (3, 6, 7)][seed % 2], np.dtype(FLOATS[seed // 2 % 2])
    plan = predictor.pack(0.5, 1.0)
    loop = reference.ClosedLoop(kind, shape, [0] * math.prod(shape), b"", rng.normal(size=500).astype(kind))
    loop.coder = loop.residuals.coder = RandomDecisions(rng)
    decoder = getattr(reference, f"decode_{predictor.method.name.lower()}")
    with contextlib.suppress(reference.RejectedStreamError), np.errstate(all="ignore"):
        decoder(loop, plan, *[predictor.model] * (predictor in LEARNED))
    stream = Stream(kind, shape, "abs", 0.25, 0.25, predictor.method)
    stream.sections[Section.PLAN] = plan
    if predictor.model is not None:
        stream.sections[Section.MODEL] = bytes.fromhex(predictor.model.digest)
    stream.sections[Section.CODES] = loop.coder.encoded()
    stream.sections[Section.OUTLIERS] = loop.outliers[: loop.outliers_used].tobytes()
    agree(reference, stream.to_bytes())


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("low", [0, 2**16 - 10, 2**16 - 1])
def test_the_largest_tokens(reference, negative, low):
    """Magnitudes of 2^31 and more, by the longest of Golomb codes; node 1 is the sign."""

    class Largest(RandomDecisions):
        def bit(self, p1):
            self.ones = 1.0
            if self.is_sign and negative:
                self.ones = 0.0
            self.rng = Always()
            return super().bit(p1)

        def raw(self, n):
            value = low if n == 16 else 2**n - 1
            self._take((self.range >> n) * value, self.range >> n)
            return value

    class Always:
        def random(self):
            return 0.5

    class Models(reference.MixedDecisions):
        def decision(self, contexts, mix, node):
            self.coder.is_sign = node == 1
            bit = super().decision(contexts, mix, node)
            self.coder.is_sign = False
            return bit

    coder = Largest(None)
    coder.is_sign = False
    shape, plan = (3, 9), Local().pack(1.0, 0.0)
    loop = reference.ClosedLoop(np.dtype("f8"), shape, [0] * 27, b"", np.empty(0))
    loop.coder = coder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "MixedDecisions", Models)
        reference.decode_local(loop, plan)
    stream = Stream(np.dtype("f8"), shape, "abs", 0.5, 0.5, Method.LOCAL)
    stream.sections = {Section.PLAN: plan, Section.CODES: coder.encoded()}
    decoded = check(reference, stream.to_bytes())
    assert np.array_equal(decoded.reshape(-1), loop.values)
    assert abs(decoded).max() == 2**28


def test_every_kind_of_header(reference):
    """All dtypes, methods and transforms, most of which contradict the plan."""
    stream = forced(Causal(), smooth((5, 6), "float32"))
    decoded = 0
    for dtype in ("float16", *FLOATS, *INTEGERS):
        for method in Method:
            for transform in Transform:
                stream.dtype, stream.method, stream.transform = np.dtype(dtype), method, transform
                decoded += agree(reference, stream.to_bytes())
    assert decoded


@pytest.mark.parametrize(
    "section", [Section.CROP, Section.LABELS, Section.PLAN, Section.OUTLIERS, Section.CORRECTIONS]
)
@pytest.mark.parametrize("predictor", [Causal(), Local()], ids=str)
def test_damaged_sections(reference, predictor, section):
    """Every byte of a section set to what it may not be, bytes cut and bytes added."""
    data = smooth((5, 6), "float32")
    if isinstance(predictor, Local):
        if section is Section.OUTLIERS:
            pytest.skip("has none")
    else:
        data[2, 3] = 1e30
    stream = forced(predictor, data, mask=np.eye(5, 6, dtype=np.uint8), specials=[np.nan])
    stream.shape = (7, 6)
    stream.sections[Section.CROP] = b"\x05\x06" + bytes(4)
    stream.sections[Section.CORRECTIONS] = b"\x02\x00\x28" + bytes(8)
    assert agree(reference, stream.to_bytes())
    whole = stream.sections[section]
    damaged = [whole[:n] for n in range(len(whole))] + [whole + b"\x00", whole + b"\x01\x02\x03\x04"]
    for at in range(len(whole)):
        damaged += [whole[:at] + bytes([byte]) + whole[at + 1 :] for byte in (0, 7, 127, 128, 255)]
    for content in damaged:
        stream.sections[section] = content
        agree(reference, stream.to_bytes())


def test_damaged_bytes(reference):
    """Any changed byte of a stream is noticed by both, and any missing one."""
    stream = pipeline.encode(special((18, 20)), ErrorBound("abs", 0.5))
    for at in range(len(stream)):
        assert not agree(reference, stream[:at])
        assert not agree(reference, stream[:at] + bytes([stream[at] ^ 1 << at % 8]) + stream[at + 1 :])
    assert not agree(reference, stream + b"\x00")
