"""Zarr format 2: `AESZ` as the compressor.

Format 2 views the memory of what ``decode`` returns with the array's own dtype and order, so both must be
those that ``encode`` was given; otherwise chunks are scrambled or bits reinterpreted without an error.
"""

import json

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.storage

from aesz_codec import AESZ, errors
from aesz_codec.bounds import first_violation

SHAPE, CHUNKS = (10, 33, 49), (4, 20, 49)


def field(shape=SHAPE, dtype="f4"):
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 0.05, shape)
    return (280 + 10 * np.sin(sum(axes)) + noise).astype(dtype)


def create(x, codec, store=None, *, order="C", chunks=CHUNKS, fill_value=0, **options):
    z = zarr.create_array(
        zarr.storage.MemoryStore() if store is None else store,
        shape=x.shape,
        dtype=x.dtype,
        chunks=chunks,
        zarr_format=2,
        compressors=codec,
        filters=None,
        order=order,
        fill_value=fill_value,
        **options,
    )
    z[...] = x
    return z


@pytest.mark.parametrize(
    "codec", [AESZ(0.05), AESZ(1e-3, "range_rel"), AESZ(1e-3, "pw_rel"), AESZ(mode="lossless")]
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_order_and_byte_order(dtype, order, codec):
    x = field(dtype=dtype)
    z = create(x, codec, order=order)
    y = z[...]
    extent = float(x.min()), float(x.max())
    assert first_violation(x, y, codec.bound.resolve(*extent)) is None
    if codec.mode == "lossless":
        assert y.tobytes() == x.astype(y.dtype).tobytes()
    assert np.array_equal(z[3:7, 5:25, ::3], y[3:7, 5:25, ::3])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "memory", [np.ascontiguousarray, np.asfortranarray, lambda a: np.broadcast_to(a[:1], a.shape)]
)
def test_the_users_array_is_not_written_to(memory, order):
    x = memory(field())
    before = x.tobytes()
    y = create(x, AESZ(0.05), order=order, chunks=SHAPE)[...]
    assert x.tobytes() == before
    assert np.abs(y - x).max() <= 0.05


def test_the_stored_bytes_are_not_written_to_and_the_result_is():
    store = zarr.storage.MemoryStore()
    z = create(field(), AESZ(0.05), store, chunks=SHAPE)
    before = store._store_dict["0.0.0"].to_bytes()
    y = z[...]
    y += 1
    assert store._store_dict["0.0.0"].to_bytes() == before


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<u4", ">i8", "<u8", "<f2", ">f2"])
def test_integers_and_half_floats(dtype):
    x = (field() * 3 % 100).astype(dtype)
    assert np.array_equal(create(x, AESZ(mode="lossless"))[...], x)
    y = create(x, AESZ(1.5))[...]
    assert y.dtype == x.dtype
    assert np.abs(y.astype("f8") - x.astype("f8")).max() <= 1.5


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (1, 1, 1), (3, 1, 4), (2, 3, 4, 5, 6)])
def test_odd_shapes(shape):
    x = np.ones(shape, "f4") if 0 in shape else field(shape) if shape else np.array(281.25, "f4")
    z = create(x, AESZ(0.05), chunks=tuple(max(1, n) for n in shape))
    assert z.shape == shape
    assert first_violation(x, np.asarray(z[...]), AESZ(0.05).bound) is None


@pytest.mark.parametrize("fill_value", [0, np.nan, 1e30, -9999.0, None])
@pytest.mark.parametrize("codec", [AESZ(0.05), AESZ(1e-3, "pw_rel"), AESZ(mode="lossless")])
def test_edge_chunks_padded_with_any_fill_value(codec, fill_value):
    x = field()
    x[8:, 20:, 40:] = np.nan
    z = create(x, codec, fill_value=fill_value)
    assert first_violation(x, z[...], codec.bound) is None


def test_chunks_that_are_all_fill_value_have_no_key():
    store = zarr.storage.MemoryStore()
    x = field()
    x[:4, :20] = np.nan
    z = create(x, AESZ(0.05), store, fill_value=np.nan)
    assert "0.0.0" not in store._store_dict and "0.1.0" in store._store_dict
    assert np.isnan(z[:4, :20]).all()
    create(x, AESZ(0.05), store, fill_value=np.nan, overwrite=True, config={"write_empty_chunks": True})
    assert "0.0.0" in store._store_dict
    assert first_violation(x, zarr.open_array(store, mode="r")[...], AESZ(0.05).bound) is None


def test_padding_costs_next_to_nothing():
    x = field((1, 33, 49))
    alone = create(x, AESZ(0.05), chunks=x.shape, fill_value=np.nan).nbytes_stored()
    padded = create(x, AESZ(0.05), chunks=(64, 33, 49), fill_value=np.nan).nbytes_stored()
    assert padded < alone + 100 + 0.02 * alone


def test_a_misaligned_write_stays_within_twice_the_bound():
    x = field()
    z = create(x, AESZ(0.05))
    z[1:3, 5:9] = 300
    expected = x.copy()
    expected[1:3, 5:9] = 300
    assert np.abs(z[...] - expected).max() <= 2 * 0.05


def test_metadata_opens_without_the_codecs_class(tmp_path):
    create(field(), AESZ(np.float32(0.25)), tmp_path / "a.zarr")
    metadata = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    assert metadata["compressor"] == {"id": "aesz", "error_bound": 0.25, "mode": "abs", "effort": "default"}
    assert zarr.open_array(tmp_path / "a.zarr").compressors == (AESZ(0.25),)


@pytest.mark.parametrize("dtype", ["?", "c8", "M8[s]", "S5"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(errors.UnsupportedDtypeError, match="dtype: found"):
        create(np.ones((4, 5), "i8").astype(dtype), AESZ(0.1), chunks=(4, 5), fill_value=None)


def test_raw_bytes_from_another_filter_are_refused():
    class ToBytes(numcodecs.abc.Codec):
        codec_id = "test-to-bytes"

        def encode(self, buf):
            return bytearray(np.ascontiguousarray(buf).tobytes())

        def decode(self, buf, out=None):
            return buf

    numcodecs.register_codec(ToBytes)
    z = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=(4,),
        dtype="f4",
        zarr_format=2,
        filters=[ToBytes()],
        compressors=AESZ(0.1),
    )
    with pytest.raises(errors.UnsupportedDtypeError, match="filter"):
        z[...] = np.arange(4, dtype="f4")


def test_unknown_key_in_the_metadata(tmp_path):
    create(field(), AESZ(0.05), tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / ".zarray"
    path.write_text(path.read_text().replace('"error_bound"', '"tolerance"'))
    with pytest.raises(errors.InvalidConfigError, match="'tolerance'"):
        zarr.open_array(tmp_path / "a.zarr")


def test_damaged_chunk_is_a_typed_error_and_the_others_still_read(tmp_path):
    z = create(field(), AESZ(0.05), tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "1.0.0"
    stream = path.read_bytes()
    path.write_bytes(stream[:-7])
    with pytest.raises(errors.TruncatedStreamError):
        z[5, 3, 3]
    path.write_bytes(stream[:60] + bytes([stream[60] ^ 4]) + stream[61:])
    with pytest.raises(errors.CorruptStreamError):
        z[5, 3, 3]
    assert abs(z[0, 3, 3] - field()[0, 3, 3]) <= 0.05
