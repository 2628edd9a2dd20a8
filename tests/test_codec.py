"""`AESZ` as a value and as a numcodecs codec."""

import array
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numcodecs
import numpy as np
import pytest

from aesz_codec import AESZ, errors
from aesz_codec.bounds import ErrorBound, first_violation
from aesz_codec.predictors import Interpolation, Quantizer
from aesz_codec.stream import Coder


def field(shape=(12, 33, 49), dtype="f4", seed=0):
    """A smooth field with noise; what the codec is made for."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    return (280 + 10 * np.sin(sum(axes)) + rng.normal(0, 0.05, shape)).astype(dtype)


# --- a value ---


def test_codec_is_immutable_hashable_and_equal_by_value():
    codec = AESZ(0.05)
    for name in ("error_bound", "mode", "effort", "model", "anything"):
        with pytest.raises(AttributeError):
            setattr(codec, name, "abs")
    with pytest.raises(AttributeError):
        del codec.mode
    assert codec == AESZ(error_bound=0.05, mode="abs", effort="default") != AESZ(0.06)
    assert codec != AESZ(0.05, "range_rel")
    assert codec != AESZ(0.05, effort="max")
    assert len({codec, AESZ(0.05), AESZ(0.06)}) == 2
    assert codec != "abs"


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        (AESZ(0.05), "AESZ(error_bound=0.05, mode='abs')"),
        (AESZ(1e-3, "range_rel", "fast"), "AESZ(error_bound=0.001, mode='range_rel', effort='fast')"),
        (AESZ(mode="lossless"), "AESZ(mode='lossless')"),
    ],
)
def test_repr_is_short_and_evaluates(codec, text):
    assert repr(codec) == text
    assert eval(text) == codec


@pytest.mark.parametrize(
    "codec", [AESZ(0.05), AESZ(np.float32(0.01), "pw_rel", effort="max"), AESZ(mode="lossless")]
)
def test_config_is_plain_json_and_round_trips(codec):
    config = codec.get_config()
    assert list(config) == ["id", "error_bound", "mode", "effort"]
    assert config["id"] == "aesz"
    again = json.loads(json.dumps(config, allow_nan=False))
    assert again == config
    assert numcodecs.get_codec(again) == codec
    assert AESZ.from_config(config) == codec
    assert config == codec.get_config()
    pickled = pickle.dumps(codec)
    assert len(pickled) < 150
    assert pickle.loads(pickled) == codec


def test_numpy_numbers_are_stored_as_python_floats():
    codec = AESZ(np.float32(0.01))
    assert type(codec.error_bound) is float
    assert codec.error_bound == float(np.float32(0.01))


def test_defaults_of_a_config():
    assert numcodecs.get_codec({"id": "aesz", "error_bound": 0.05, "mode": "abs"}) == AESZ(0.05)
    assert numcodecs.get_codec({"id": "aesz", "mode": "lossless"}) == AESZ(mode="lossless")


@pytest.mark.parametrize("value", [None, 0, -0.1, math.nan, math.inf, True, "0.1"])
def test_bad_bounds_are_refused(value):
    with pytest.raises(errors.InvalidBoundError, match="error_bound"):
        AESZ(value)
    with pytest.raises(errors.InvalidBoundError, match="error_bound"):
        AESZ.from_config({"error_bound": value})


def test_lossless_takes_no_bound():
    with pytest.raises(errors.InvalidBoundError, match="lossless"):
        AESZ(0.1, "lossless")


@pytest.mark.parametrize("effort", ["slow", "", None, 3, ["fast"]])
def test_unknown_effort_names_the_known_ones(effort):
    with pytest.raises(errors.InvalidConfigError, match="effort: .*fast, default, max"):
        AESZ(0.1, effort=effort)


def test_unknown_mode_is_refused():
    with pytest.raises(errors.InvalidConfigError, match="mode: .*'rel'.*range_rel"):
        AESZ(0.1, "rel")


def test_unknown_keys_are_named_with_the_known_ones():
    with pytest.raises(errors.InvalidConfigError) as caught:
        numcodecs.get_codec({"id": "aesz", "error_bound": 0.1, "eb": 1, "level": 3})
    message = str(caught.value)
    assert all(word in message for word in ("'eb'", "'level'", "error_bound", "mode", "effort", "model"))
    with pytest.raises(errors.InvalidConfigError, match="'id'"):
        AESZ.from_config({"id": "zlib", "error_bound": 0.1})


def test_missing_model_is_named():
    with pytest.raises(errors.ModelNotFoundError, match=r"'era5-t2m'.*in these places: .*model_zoo"):
        AESZ(0.1, model="era5-t2m")


# --- encode ---

LAYOUTS = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian F": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "subclass": lambda a: a.view(np.recarray),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    "codec", [AESZ(0.01), AESZ(1e-4, "range_rel"), AESZ(1e-4, "pw_rel"), AESZ(mode="lossless")]
)
def test_any_layout_keeps_bound_shape_dtype_and_input(codec, dtype, layout):
    x = LAYOUTS[layout](field(dtype=dtype))
    before = x.copy()
    stream = codec.encode(x)
    y = codec.decode(stream)
    assert type(stream) is bytes
    assert x.tobytes() == before.tobytes()
    assert y.shape == x.shape and y.dtype == x.dtype
    assert first_violation(x, y, codec.bound.resolve(float(x.min()), float(x.max()))) is None
    assert codec.encode(x) == stream


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<i4", ">i4", "<u2", ">u2"])
def test_memory_order_and_byte_order_come_back(dtype, order):
    # Zarr format 2 reinterprets the memory of what decode returns: by value alone, chunks would be scrambled.
    x = np.array(field((6, 5, 4)), dtype=dtype, order=order)
    y = AESZ(mode="lossless").decode(AESZ(mode="lossless").encode(x))
    assert y.dtype.str == x.dtype.str
    assert y.flags.f_contiguous == x.flags.f_contiguous
    assert y.tobytes(order="A") == x.tobytes(order="A")


def test_read_only_input_is_accepted():
    x = field()
    x.flags.writeable = False
    assert np.abs(AESZ(0.05).decode(AESZ(0.05).encode(x)) - x).max() <= 0.05


@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (3, 0, 2), (1, 1, 1), (5,), (1, 7), (2, 3, 4, 5, 2), (2,) * 7]
)
def test_odd_shapes(shape):
    x = np.arange(math.prod(shape), dtype="f4").reshape(shape) * 0.3
    y = AESZ(0.01).decode(AESZ(0.01).encode(x))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert first_violation(x, y, ErrorBound("abs", 0.01)) is None


def test_values_that_are_not_finite_survive():
    x = field()
    x[0, :9, :9] = np.nan
    x[1, 2, 3], x[1, 2, 4] = np.inf, -np.inf
    x[2, :, 5] = np.float32(1e30)
    x[3, 0, :4] = 1e-42
    for codec in (AESZ(0.01), AESZ(1e-3, "pw_rel"), AESZ(mode="lossless")):
        assert first_violation(x, codec.decode(codec.encode(x)), codec.bound) is None


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_integers(dtype):
    limits = np.iinfo(dtype)
    x = np.array([limits.min, limits.max, 0, 1, 7, 100] * 20, dtype).reshape(12, 10)
    assert np.array_equal(AESZ(mode="lossless").decode(AESZ(mode="lossless").encode(x)), x)
    y = AESZ(2.5).decode(AESZ(2.5).encode(x))
    assert y.dtype == x.dtype
    assert first_violation(x, y, ErrorBound("abs", 2.5)) is None


def test_half_floats_are_kept_exactly():
    x = field(dtype="f2")
    assert AESZ(0.5).decode(AESZ(0.5).encode(x)).tobytes() == x.tobytes()


@pytest.mark.parametrize("dtype", ["?", "c8", "M8[s]", "m8[s]", "S4", "U4", "O"])
def test_other_dtypes_are_refused_with_advice(dtype):
    with pytest.raises(errors.UnsupportedDtypeError, match="dtype: found .*; .+"):
        AESZ(0.1).encode(np.zeros((3, 4), dtype))


def test_pointwise_relative_integers_are_refused():
    with pytest.raises(errors.UnsupportedDtypeError, match="pw_rel"):
        AESZ(0.1, "pw_rel").encode(np.arange(9))


@pytest.mark.parametrize("raw", [b"\x00" * 16, bytearray(16)])
def test_raw_bytes_are_refused(raw):
    with pytest.raises(errors.UnsupportedDtypeError, match="filter"):
        AESZ(0.1).encode(raw)


def test_other_buffers_with_a_dtype_are_arrays():
    y = AESZ(0.1).decode(AESZ(0.1).encode(array.array("d", [1.0, 2.0, 3.5])))
    assert y.dtype == np.float64 and np.abs(y - [1.0, 2.0, 3.5]).max() <= 0.1


# --- decode ---


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        bytearray,
        memoryview,
        lambda s: np.frombuffer(s, np.uint8),
        lambda s: np.frombuffer(s, np.int8),
        lambda s: np.repeat(np.frombuffer(s, np.uint8), 2)[::2],
        lambda s: np.frombuffer(bytearray(s), np.uint8),
    ],
)
def test_any_buffer_decodes_and_is_not_written_to(wrap):
    codec = AESZ(0.05)
    x = field()
    stream = codec.encode(x)
    buffer = wrap(stream)
    y = codec.decode(buffer)
    assert np.abs(y - x).max() <= 0.05
    assert bytes(buffer) == stream
    y += 1  # the result is the caller's own
    assert bytes(buffer) == stream


def test_zarr_buffers_decode():
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer.from_bytes(AESZ(0.05).encode(field()))
    assert AESZ(0.05).decode(buffer).shape == field().shape


def test_decoding_needs_no_matching_config():
    stream = AESZ(0.05, effort="max").encode(field())
    assert np.array_equal(AESZ(mode="lossless").decode(stream), AESZ(0.05).decode(stream))


OUTS = {
    "C": lambda s, d: np.zeros(s, d),
    "F": lambda s, d: np.zeros(s, d, order="F"),
    "view": lambda s, d: np.zeros((s[0] + 4, s[1] * 2, s[2] + 1), d)[2:-2, ::2, 1:],
    "reversed": lambda s, d: np.zeros(s, d)[::-1],
}


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_out_array_gets_the_values_by_index(dtype, order, kind):
    x = np.array(field((4, 5, 6)), dtype=dtype, order=order)
    codec = AESZ(mode="lossless")
    out = OUTS[kind](x.shape, dtype)
    assert codec.decode(codec.encode(x), out=out) is out
    assert np.array_equal(out, x)


@pytest.mark.parametrize("order", ["C", "F"])
def test_out_memory_gets_the_bytes(order):
    x = np.array(field((4, 5, 6)), order=order)
    codec = AESZ(mode="lossless")
    for out in (bytearray(x.nbytes), np.zeros(x.nbytes, np.uint8), np.zeros(x.size, x.dtype)):
        assert codec.decode(codec.encode(x), out=out) is out
        assert bytes(out) == x.tobytes(order="A")


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((4, 5, 7), "f4"),
        np.zeros(119, "f4"),
        np.zeros((4, 5, 12), "f4")[..., ::2].astype("f8"),
        np.zeros((5, 4, 12), "f4")[..., ::2],
        bytearray(479),
        bytes(480),
        np.frombuffer(bytes(480), "f4").reshape(4, 5, 6),
    ],
)
def test_out_that_does_not_fit_is_refused_untouched(out):
    before = bytes(out)
    with pytest.raises(errors.InvalidConfigError, match=r"out: found .*480 contiguous bytes"):
        AESZ(mode="lossless").decode(AESZ(mode="lossless").encode(field((4, 5, 6))), out=out)
    assert bytes(out) == before


@pytest.mark.parametrize("junk", [b"", b"\x00", b"\x00" * 100, b"not a stream at all"])
def test_junk_is_a_typed_error(junk):
    with pytest.raises((errors.CorruptStreamError, errors.UnsupportedFormatError)):
        AESZ(0.1).decode(junk)


def test_damage_is_a_typed_error_and_leaves_out_alone():
    x = field()
    stream = AESZ(0.05).encode(x)
    out = np.zeros_like(x)
    with pytest.raises(errors.TruncatedStreamError):
        AESZ(0.05).decode(stream[: len(stream) // 2], out=out)
    flipped = bytearray(stream)
    flipped[len(stream) // 2] ^= 0x10
    with pytest.raises(errors.CorruptStreamError):
        AESZ(0.05).decode(flipped, out=out)
    assert not out.any()


# --- weights ---


@pytest.mark.parametrize("tolerance", [0.05, 0.02])
def test_a_few_points_at_a_coast_do_not_decide_over_the_sea(tolerance):
    y, x = np.mgrid[:192, :192] / 192
    rng = np.random.default_rng(1)
    sea = 10 * np.cos(3 * y) + 2 * np.sin(7 * x + 3 * y)
    for _ in range(12):
        height, (across, down), phase = rng.normal(0, 0.3), rng.uniform(2, 14, 2), rng.uniform(0, 7)
        sea += height * np.cos(2 * np.pi * (across * x + down * y) + phase)
    sea = sea.astype("f4")
    land = np.zeros(sea.shape, bool)
    for _ in range(14):
        cy, cx, size = rng.uniform(0, 1, 3)
        land |= (y - cy) ** 2 + (x - cx) ** 2 < (0.04 + 0.09 * size) ** 2
    assert 0.2 < land.mean() < 0.4
    offset = float(sea[~land][0])
    quantizer, predictor = Quantizer(tolerance, 1.99 * tolerance, offset), Interpolation(coder=Coder.STATIC)
    everywhere = sum(map(len, predictor.encode(sea, None, quantizer)))
    where_sea = np.where(land, np.float32(offset), sea)
    assert sum(map(len, predictor.encode(where_sea, land.view("u1"), quantizer))) < 1.1 * everywhere


# --- threads ---


def test_many_threads_give_what_one_gives():
    codecs = [AESZ(0.05), AESZ(1e-3, "range_rel"), AESZ(mode="lossless"), AESZ(0.5, effort="fast")]
    jobs = [(codecs[i % 4], field((6, 20, 30), "f4" if i % 3 else "f8", seed=i)) for i in range(32)]
    alone = [codec.encode(x) for codec, x in jobs]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda job: job[0].encode(job[1]), jobs))
        decoded = list(pool.map(lambda job: job[0][0].decode(job[1]), zip(jobs, together, strict=True)))
    assert together == alone
    for (codec, _), stream, y in zip(jobs, alone, decoded, strict=True):
        assert codec.decode(stream).tobytes() == y.tobytes()
