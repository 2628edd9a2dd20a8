"""Zarr format 3: `AESZCodec` as the serializer, alone and in shards."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
import zarr.storage
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype

from aesz_codec import AESZ, AESZCodec, errors
from aesz_codec.bounds import first_violation

SHAPE, CHUNKS = (10, 33, 49), (4, 20, 49)
CODECS = [
    AESZCodec(0.05),
    AESZCodec(1e-3, "range_rel"),
    AESZCodec(1e-3, "pw_rel"),
    AESZCodec(mode="lossless"),
]
SHARDS = pytest.mark.parametrize("shards", [None, (8, 40, 49)], ids=["plain", "shards"])

PIPELINES = ["zarr.core.codec_pipeline.BatchedCodecPipeline"]
if hasattr(__import__("zarr.core.codec_pipeline", fromlist=["x"]), "FusedCodecPipeline"):  # since zarr 3.3
    PIPELINES.append("zarr.core.codec_pipeline.FusedCodecPipeline")


@pytest.fixture(autouse=True, params=PIPELINES, ids=lambda path: path.rsplit(".", 1)[1])
def pipeline(request):
    with zarr.config.set({"codec_pipeline.path": request.param}):
        yield


def field(shape=SHAPE, dtype="f4"):
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 0.05, shape)
    return (280 + 10 * np.sin(sum(axes)) + noise).astype(dtype)


def create(x, codec, store=None, *, chunks=CHUNKS, fill_value=0, **options):
    z = zarr.create_array(
        zarr.storage.MemoryStore() if store is None else store,
        shape=x.shape,
        dtype=x.dtype,
        chunks=chunks,
        serializer=codec,
        **{"compressors": None, "filters": None, "fill_value": fill_value, **options},
    )
    z[...] = x
    return z


# --- a value ---


@pytest.mark.parametrize("codec", CODECS)
def test_metadata_is_plain_json_and_round_trips(codec):
    data = json.loads(json.dumps(codec.to_dict(), allow_nan=False))
    assert data["name"] == "aesz"
    assert AESZCodec.from_dict(data) == codec
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert hash(codec) == hash(AESZCodec.from_dict(data))


def test_codec_is_immutable_with_a_short_repr():
    codec = AESZCodec(np.float32(0.25))
    assert repr(codec) == "AESZCodec(error_bound=0.25, mode='abs')"
    assert type(codec.error_bound) is float
    with pytest.raises(AttributeError):
        codec.mode = "pw_rel"
    assert codec != AESZ(0.25)
    assert codec.is_fixed_size is False
    with pytest.raises(NotImplementedError):
        codec.compute_encoded_size(100, None)


@pytest.mark.parametrize(
    ("data", "cls", "match"),
    [
        (
            {"name": "aesz", "configuration": {"error_bound": 0.1, "level": 3}},
            errors.InvalidConfigError,
            "'level'",
        ),
        ({"name": "aesz", "configuration": {"error_bound": -1}}, errors.InvalidBoundError, "-1"),
        ({"name": "aesz"}, errors.InvalidBoundError, "None"),
        ({"name": "zfp", "configuration": {}}, errors.InvalidConfigError, "'zfp'"),
        ({"name": "aesz", "configuration": [1]}, errors.InvalidConfigError, "mapping"),
        (
            {"name": "aesz", "configuration": {"error_bound": 1, "model": "m"}},
            errors.ModelNotFoundError,
            "'m'",
        ),
    ],
)
def test_bad_metadata_is_a_typed_error(data, cls, match):
    with pytest.raises(cls, match=match):
        AESZCodec.from_dict(data)


def test_stored_metadata(tmp_path):
    create(field(), AESZCodec(np.float32(0.25)), tmp_path / "a.zarr")
    codecs = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["codecs"]
    assert codecs == [
        {"name": "aesz", "configuration": {"error_bound": 0.25, "mode": "abs", "effort": "default"}}
    ]
    assert zarr.open_array(tmp_path / "a.zarr").serializer == AESZCodec(0.25)


def test_json_dict_as_serializer():
    z = create(field(), {"name": "aesz", "configuration": {"error_bound": 0.05}})
    assert z.serializer == AESZCodec(0.05)
    assert np.abs(z[...] - field()).max() <= 0.05


# --- what it is given ---

MEMORY = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@SHARDS
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("codec", CODECS)
def test_any_memory_within_the_bound_and_untouched(codec, memory, shards):
    x = MEMORY[memory](field())
    before = x.tobytes()
    z = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=SHAPE,
        dtype="<f4",
        chunks=(4, 40, 49) if shards else SHAPE,
        shards=shards,
        serializer=codec,
        compressors=None,
    )
    z[...] = x
    assert x.tobytes() == before
    assert first_violation(x, z[...], codec.bound.resolve(float(x.min()), float(x.max()))) is None


@SHARDS
@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", "i1", ">i2", "<u4", ">u8", ">f2"])
def test_dtypes(dtype, shards):
    x = (field() * 3 % 100).astype(dtype)
    y = create(x, AESZCodec(mode="lossless"), shards=shards)[...]
    assert y.dtype.newbyteorder("=") == x.dtype.newbyteorder("=")
    assert np.array_equal(y, x)
    y = create(x, AESZCodec(1.5), shards=shards)[...]
    assert np.abs(y.astype("f8") - x.astype("f8")).max() <= 1.5


@SHARDS
@pytest.mark.parametrize("dtype", ["?", "c8", "M8[s]", "S5"])
def test_other_dtypes_are_refused_when_the_array_is_created(dtype, shards):
    with pytest.raises(errors.UnsupportedDtypeError, match="dtype: found"):
        zarr.create_array(
            zarr.storage.MemoryStore(),
            shape=SHAPE,
            dtype=dtype,
            chunks=CHUNKS,
            shards=shards,
            serializer=AESZCodec(0.1),
            compressors=None,
        )


@pytest.mark.parametrize("step", ["validate", "evolve"])
def test_both_steps_refuse_a_dtype(step):
    # Zarr 3.1 does not validate the codecs within a shard, so each of the two has to refuse.
    metadata = zarr.create_array(zarr.storage.MemoryStore(), shape=(4,), dtype="c8", chunks=(4,)).metadata
    config, prototype = ArrayConfig.from_dict({}), default_buffer_prototype()
    spec = ArraySpec((4,), metadata.data_type, metadata.fill_value, config, prototype)
    codec = AESZCodec(0.1)
    with pytest.raises(errors.UnsupportedDtypeError, match="complex64"):
        if step == "validate":
            codec.validate(shape=(4,), dtype=spec.dtype, chunk_grid=metadata.chunk_grid)
        else:
            codec.evolve_from_array_spec(array_spec=spec)


@SHARDS
@pytest.mark.parametrize("fill_value", [0, np.nan, 1e30])
def test_range_relative_leaves_the_fill_value_out(fill_value, shards):
    x = field()
    x[1::3, 3:9, 10:20] = fill_value
    codec = AESZCodec(1e-3, "range_rel")
    y = create(x, codec, fill_value=fill_value, shards=shards)[...]
    values = ~np.isnan(x) if np.isnan(fill_value) else x != fill_value
    bound = codec.bound.resolve(float(x[values].min()), float(x[values].max()))
    assert first_violation(x[values], y[values], bound) is None
    assert first_violation(x, y, AESZ(1e-6, "pw_rel").bound) is not None  # not by being lossless


def test_it_is_no_compressor_and_no_filter():
    for key in ("compressors", "filters"):
        with pytest.raises(TypeError):
            zarr.create_array(zarr.storage.MemoryStore(), shape=(4,), dtype="f4", **{key: [AESZCodec(0.1)]})


def test_after_a_transpose():
    z = create(field(), AESZCodec(0.05), filters=[zarr.codecs.TransposeCodec(order=(2, 0, 1))])
    assert np.abs(z[...] - field()).max() <= 0.05


@SHARDS
@pytest.mark.parametrize("fill_value", [0, np.nan, 1e30, -9999.0])
@pytest.mark.parametrize("codec", [c for c in CODECS if c.mode != "range_rel"])
def test_edge_chunks_padded_with_any_fill_value(codec, fill_value, shards):
    x = field()
    x[8:, 20:, 40:] = np.nan
    z = create(x, codec, fill_value=fill_value, shards=shards)
    assert first_violation(x, z[...], codec.bound) is None


def test_padding_costs_next_to_nothing():
    x = field((1, 33, 49))
    alone = create(x, AESZCodec(0.05), chunks=x.shape, fill_value=np.nan).nbytes_stored()
    for fill_value in (np.nan, 0, 1e30):
        padded = create(x, AESZCodec(0.05), chunks=(64, 33, 49), fill_value=fill_value).nbytes_stored()
        assert padded < alone + 100 + 0.02 * alone


def test_chunks_that_are_all_fill_value_have_no_key():
    store = zarr.storage.MemoryStore()
    x = field()
    x[:4, :20] = np.nan
    z = create(x, AESZCodec(0.05), store, fill_value=np.nan)
    assert "c/0/0/0" not in store._store_dict and "c/0/1/0" in store._store_dict
    assert np.isnan(z[:4, :20]).all()
    create(x, AESZCodec(0.05), store, fill_value=np.nan, overwrite=True, config={"write_empty_chunks": True})
    assert "c/0/0/0" in store._store_dict
    assert first_violation(x, zarr.open_array(store, mode="r")[...], AESZ(0.05).bound) is None


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (1, 1, 1), (3, 1, 4), (2, 3, 4, 5, 6)])
def test_odd_shapes(shape):
    x = np.ones(shape, "f4") if 0 in shape else field(shape) if shape else np.array(281.25, "f4")
    z = create(x, AESZCodec(0.05), chunks=tuple(max(1, n) for n in shape))
    assert z.shape == shape
    assert first_violation(x, np.asarray(z[...]), AESZ(0.05).bound) is None


# --- reading and writing parts ---


@SHARDS
def test_parts(shards):
    z = create(field(), AESZCodec(0.05), shards=shards)
    y = z[...]
    for key in (np.s_[3, 5, 7], np.s_[2:9, 15:25, ::5], np.s_[-1], np.s_[::4, 32, :]):
        assert np.array_equal(z[key], y[key])
    assert np.array_equal(z.oindex[[1, 8], [0, 32], [5, 48]], y[np.ix_([1, 8], [0, 32], [5, 48])])


@pytest.fixture
def calls(monkeypatch):
    counts = {"encode": 0, "decode": 0}
    for name in counts:
        method = getattr(AESZCodec, f"_{name}_sync")

        def counted(self, data, spec, _method=method, _name=name):
            counts[_name] += 1
            return _method(self, data, spec)

        monkeypatch.setattr(AESZCodec, f"_{name}_sync", counted)
    return counts


def test_one_value_of_a_shard_decodes_one_chunk(calls):
    z = create(field(), AESZCodec(0.05), shards=(8, 40, 49))
    calls.update(encode=0, decode=0)
    assert abs(z[3, 5, 7] - field()[3, 5, 7]) <= 0.05
    assert calls == {"encode": 0, "decode": 1}


@SHARDS
def test_a_misaligned_write_stays_within_twice_the_bound(shards):
    x = field()
    z = create(x, AESZCodec(0.05), shards=shards)
    z[1:3, 5:9] = 300
    expected = x.copy()
    expected[1:3, 5:9] = 300
    assert np.abs(z[...] - expected).max() <= 2 * 0.05


@SHARDS
def test_many_threads_on_one_array(shards):
    x = field((64, 33, 49))
    z = create(x, AESZCodec(0.05), chunks=(2, 33, 49), shards=shards and (4, 33, 49))
    expected = z[...]
    z[...] = np.nan
    step = 4
    starts = range(0, 64, step)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: z.__setitem__(slice(i, i + step), x[i : i + step]), starts))
        parts = list(pool.map(lambda i: z[i : i + step], starts))
    assert np.array_equal(np.concatenate(parts), expected)
    assert np.abs(expected - x).max() <= 0.05


# --- damage ---


def test_damaged_chunk_is_a_typed_error_and_the_others_still_read(tmp_path):
    z = create(field(), AESZCodec(0.05), tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
    stream = path.read_bytes()
    path.write_bytes(stream[:-7])
    with pytest.raises(errors.TruncatedStreamError):
        z[5, 3, 3]
    path.write_bytes(b"")
    with pytest.raises(errors.TruncatedStreamError):
        z[5, 3, 3]
    path.write_bytes(stream[:60] + bytes([stream[60] ^ 4]) + stream[61:])
    with pytest.raises(errors.CorruptStreamError):
        z[5, 3, 3]
    assert abs(z[0, 3, 3] - field()[0, 3, 3]) <= 0.05


@pytest.mark.parametrize("other", [field((20, 4, 49)), field((4, 20, 49), "f8"), field((4, 20))])
def test_chunk_of_another_array_is_refused(tmp_path, other):
    z = create(field(), AESZCodec(0.05), tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(AESZ(0.05).encode(other))
    with pytest.raises(errors.CorruptStreamError, match=r"chunk: found a stream of .*\(4, 20, 49\)"):
        z[5, 3, 3]
