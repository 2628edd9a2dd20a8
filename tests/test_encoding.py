"""`encoding_for`: which variables, which bound, which dtype, which chunks.  Nothing is written here."""

import json
import math
import pickle

import numpy as np
import pytest
import xarray as xr

from aesz_codec import encoding_for, errors
from aesz_codec.bounds import ErrorBound
from aesz_codec.encoding import default_chunks


def config(encoding, name):
    return encoding[name]["serializer"]["configuration"]


def bound(encoding, name):
    found = config(encoding, name)
    return found["mode"], found["error_bound"]


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {
            "t2m": (dims, rng.normal(280, 10, (20, 6, 8)).astype("f4")),
            "msl": (dims, rng.normal(1e5, 500, (20, 6, 8))),
            "steps": (dims, np.arange(960, dtype="i4").reshape(20, 6, 8)),
            "land": (dims[1:], np.ones((6, 8), bool)),
            "label": ("time", np.array(["x"] * 20)),
            "seen": ("time", np.arange(20).astype("M8[ns]")),
            "lat_bnds": (("lat", "edge"), np.linspace(0, 1, 12).reshape(6, 2)),
            "time_raw": ("time", np.arange(20.0), {"units": "hours since 1900-01-01"}),
        },
        coords={
            "lat": ("lat", np.linspace(-50, 50, 6), {"bounds": "lat_bnds"}),
            "lon": np.linspace(0, 35, 8),
            "area": (("lat", "lon"), np.ones((6, 8), "f4")),
        },
    )


# --- variables and bounds ---


def test_one_number_is_for_every_float_variable_and_no_other(ds):
    encoding = encoding_for(ds, 0.05)
    assert list(encoding) == ["t2m", "msl"]
    assert bound(encoding, "t2m") == bound(encoding, "msl") == ("abs", 0.05)


def test_what_a_mapping_leaves_out_is_lossless(ds):
    encoding = encoding_for(ds, {"t2m": 0.05})
    assert bound(encoding, "t2m") == ("abs", 0.05)
    assert bound(encoding, "msl") == ("lossless", None)
    assert list(encoding) == ["t2m", "msl"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, ("pw_rel", 0.5)),
        (np.float64(0.5), ("pw_rel", 0.5)),
        (("abs", 3), ("abs", 3.0)),
        (["abs", 3], ("abs", 3.0)),
        (("lossless", None), ("lossless", None)),
        (ErrorBound("abs", 2.0), ("abs", 2.0)),
        ("lossless", ("lossless", None)),
    ],
)
def test_forms_of_a_bound(ds, given, expected):
    assert bound(encoding_for(ds, {"msl": given}, mode="pw_rel"), "msl") == expected
    assert bound(encoding_for(ds, given, mode="pw_rel"), "msl") == expected


def test_lossless_needs_no_bound(ds):
    encoding = encoding_for(ds, mode="lossless")
    assert bound(encoding, "t2m") == bound(encoding, "msl") == ("lossless", None)


def test_auxiliary_variables_can_be_named(ds):
    assert bound(encoding_for(ds, {"lat_bnds": 0.1}), "lat_bnds") == ("abs", 0.1)


def test_half_floats_are_said_to_be_lossless():
    ds = xr.Dataset({"x": ("i", np.ones(4, "f2"))})
    encoding = encoding_for(ds, 0.1)
    assert bound(encoding, "x") == ("lossless", None)
    assert encoding["x"]["dtype"] == "float16"


@pytest.mark.parametrize("value", [None, 0, -1, math.nan, math.inf, "0.1", True])
def test_bad_bounds_are_refused_and_named(ds, value):
    with pytest.raises(errors.InvalidBoundError, match="error_bound"):
        encoding_for(ds, value)
    with pytest.raises(errors.InvalidBoundError, match="msl: error_bound"):
        encoding_for(ds, {"t2m": 0.1, "msl": value})


@pytest.mark.parametrize(
    ("name", "cls", "words"),
    [
        ("t2n", errors.InvalidConfigError, ["'t2n'", "'t2m'", "'msl'", "spelling"]),
        ("lat", errors.InvalidConfigError, ["coordinate", "'lat'"]),
        ("area", errors.InvalidConfigError, ["coordinate", "'area'"]),
        ("steps", errors.UnsupportedDtypeError, ["'steps'", "int32", "leave it out"]),
        ("seen", errors.UnsupportedDtypeError, ["'seen'", "datetime64"]),
        ("land", errors.UnsupportedDtypeError, ["'land'", "bool"]),
    ],
)
def test_names_that_cannot_have_a_bound(ds, name, cls, words):
    with pytest.raises(cls) as caught:
        encoding_for(ds, {name: 0.1})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("arguments", "cls", "match"),
    [
        ({"mode": "rel"}, errors.InvalidConfigError, "mode: .*'rel'"),
        ({"effort": "slow"}, errors.InvalidConfigError, "effort: .*'slow'"),
        ({"zarr_format": 4}, errors.InvalidConfigError, "zarr_format: .*4"),
        ({"model": "era5"}, errors.ModelNotFoundError, "model: .*'era5'"),
        ({"shards": {"time": 8}, "zarr_format": 2}, errors.InvalidConfigError, "shards: .*format 2"),
        ({"chunks": {"level": 3}}, errors.InvalidConfigError, "chunks: .*'level'.*'time'"),
        ({"chunks": {"time": 0}}, errors.InvalidConfigError, "chunks: found 0"),
        ({"chunks": {"time": 2.5}}, errors.InvalidConfigError, "chunks: found 2.5"),
        ({"chunks": {"time": True}}, errors.InvalidConfigError, "chunks: found True"),
        ({"chunks": (-1, 2, 3)}, errors.InvalidConfigError, "chunks: found -1"),
        ({"chunks": "auto"}, errors.InvalidConfigError, "chunks: found 'auto'"),
        ({"chunks": 64}, errors.InvalidConfigError, "chunks: found 64"),
        ({"chunks": (4, 6)}, errors.InvalidConfigError, "chunks of t2m: .*2 sizes.*'time'"),
        ({"chunks": {"time": 4}, "shards": {"time": 6}}, errors.InvalidConfigError, "shards of t2m: .*use 8"),
        ({"chunks": {"time": 4}, "shards": (8,)}, errors.InvalidConfigError, "shards of t2m: found 1 sizes"),
    ],
)
def test_options_that_are_wrong(ds, arguments, cls, match):
    with pytest.raises(cls, match=match):
        encoding_for(ds, 0.05, **arguments)


def test_array_instead_of_dataset(ds):
    with pytest.raises(errors.InvalidConfigError, match="DataArray.*to_dataset"):
        encoding_for(ds["t2m"], 0.05)


# --- what comes back ---


def test_format_3_entry(ds):
    entry = encoding_for(ds, 0.05, effort="fast")["t2m"]
    assert math.isnan(entry.pop("_FillValue"))
    assert entry == {
        "dtype": "float32",
        "serializer": {
            "name": "aesz",
            "configuration": {"error_bound": 0.05, "mode": "abs", "effort": "fast"},
        },
        "compressors": None,
        "filters": None,
        "chunks": (20, 6, 8),
    }


def test_format_2_entry(ds):
    entry = encoding_for(ds, 0.05, zarr_format=2)["msl"]
    assert math.isnan(entry.pop("_FillValue"))
    assert entry == {
        "dtype": "float64",
        "compressors": [{"id": "aesz", "error_bound": 0.05, "mode": "abs", "effort": "default"}],
        "filters": None,
        "chunks": (20, 6, 8),
    }


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_entries_are_json_and_pickle(ds, zarr_format):
    encoding = encoding_for(ds, {"t2m": np.float32(0.05)}, zarr_format=zarr_format)
    assert json.dumps(encoding) == json.dumps(pickle.loads(pickle.dumps(encoding)))


def test_dataset_is_left_as_it_was(ds):
    before = ds.copy(deep=True)
    encoding_for(ds, 1e-3, mode="range_rel", chunks={"time": 4})
    assert ds.identical(before)
    assert {k: v.encoding for k, v in ds.variables.items()} == {
        k: v.encoding for k, v in before.variables.items()
    }


# --- range_rel ---


def test_range_is_that_of_the_whole_variable(ds):
    encoding = encoding_for(ds, {"t2m": 0.01, "msl": ("abs", 5.0)}, mode="range_rel")
    extent = float(ds.t2m.max()) - float(ds.t2m.min())
    assert bound(encoding, "t2m") == ("abs", 0.01 * extent)
    assert bound(encoding, "msl") == ("abs", 5.0)


def test_range_leaves_out_what_is_no_value():
    x = np.linspace(0, 10, 50, dtype="f4")
    x[:5] = [np.nan, np.inf, -np.inf, -9999, 1e30]
    x[5], x[-1] = 2, 8
    x[6:-1] = np.clip(x[6:-1], 2, 8)
    ds = xr.Dataset({"a": ("i", x, {"_FillValue": np.float32(-9999), "missing_value": [1e30, -9999.0]})})
    assert bound(encoding_for(ds, 0.1, mode="range_rel"), "a") == ("abs", pytest.approx(0.6))
    ds = xr.Dataset({"a": ("i", x)})
    ds.a.encoding.update(_FillValue=-9999.0, missing_value=np.float32(1e30))
    assert bound(encoding_for(ds, 0.1, mode="range_rel"), "a") == ("abs", pytest.approx(0.6))


@pytest.mark.parametrize("x", [np.full(9, 3.5), np.full(9, np.nan), np.array([np.inf, -np.inf]), np.empty(0)])
def test_variables_without_a_range_are_lossless(x):
    assert bound(encoding_for(xr.Dataset({"a": ("i", x)}), 0.1, mode="range_rel"), "a") == ("lossless", None)


class Recorder(xr.backends.BackendArray):
    """A source that notes the shape of each read."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.reads = values, values.shape, values.dtype, []

    def __getitem__(self, key):
        return xr.core.indexing.explicit_indexing_adapter(
            key, self.shape, xr.core.indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key):
        part = self.values[key]
        self.reads.append(part.shape)
        return part


def lazy(values, dims, encoding=None):
    source = Recorder(values)
    variable = xr.Variable(dims, xr.core.indexing.LazilyIndexedArray(source), encoding=encoding)
    return source, xr.Dataset({"a": variable})


@pytest.mark.parametrize("mode", ["abs", "pw_rel", "lossless"])
def test_other_modes_read_nothing(mode):
    source, ds = lazy(np.ones((10, 4)), ("time", "x"))
    encoding_for(ds, None if mode == "lossless" else 0.1, mode=mode)
    assert source.reads == []


def test_range_is_read_block_by_block_and_not_kept():
    values = np.broadcast_to(np.arange(300.0)[:, None, None], (300, 500, 400))  # 480 MB if it were one
    source, ds = lazy(values, ("time", "y", "x"), {"preferred_chunks": {"time": 7, "y": 100, "x": 400}})
    assert bound(encoding_for(ds, 0.1, mode="range_rel"), "a") == ("abs", pytest.approx(29.9))
    assert sum(math.prod(shape) for shape in source.reads) == values.size
    assert max(math.prod(shape) for shape in source.reads) * 8 <= 64 << 20
    assert {shape[0] % 7 for shape in source.reads[:-1]} == {0}
    assert not isinstance(ds.variables["a"]._data, np.ndarray)


# --- packed sources ---


def packed(values, **packing):
    ds = xr.Dataset({"a": ("i", values)})
    ds.a.encoding.update(packing)
    return ds


def test_packed_integers_become_float32_and_the_cast_is_in_the_bound():
    scale, offset = 0.0015, 280.0
    values = np.arange(-32767, 32768).astype("i2") * scale + offset
    ds = packed(values, dtype=np.dtype("i2"), scale_factor=scale, add_offset=offset, _FillValue=-32768)
    encoding = encoding_for(ds, 0.05)
    assert encoding["a"]["dtype"] == "float32"
    tolerance = config(encoding, "a")["error_bound"]
    cast = np.abs(values.astype("f4").astype("f8") - values).max()
    assert 0.05 * 15 / 16 <= tolerance <= 0.05 - cast
    relative = encoding_for(ds, 1e-3, mode="range_rel")
    assert config(relative, "a")["error_bound"] < 1e-3 * np.ptp(values)
    assert config(relative, "a")["error_bound"] == pytest.approx(1e-3 * np.ptp(values), rel=0.01)


@pytest.mark.parametrize(
    ("packing", "error_bound", "mode"),
    [
        (
            {"dtype": np.dtype("i2"), "scale_factor": 0.01, "add_offset": 280.0},
            1e-5,
            "abs",
        ),  # tighter than the cast
        ({"dtype": np.dtype("i4"), "scale_factor": 1.0}, 0.05, "abs"),
        ({"dtype": np.dtype("i2"), "scale_factor": 1e35}, 1e33, "abs"),  # beyond float32
        ({"dtype": np.dtype("i2"), "scale_factor": 0.01}, 0.01, "pw_rel"),
        ({"dtype": np.dtype("i2"), "scale_factor": 0.01}, None, "lossless"),
        ({"dtype": np.dtype("i2")}, 0.05, "abs"),
        ({"dtype": np.dtype("f4"), "scale_factor": 0.01}, 0.05, "abs"),
        ({}, 0.05, "abs"),
    ],
)
def test_float64_stays_where_float32_would_not_do(packing, error_bound, mode):
    encoding = encoding_for(packed(np.arange(9.0), **packing), error_bound, mode=mode)
    assert encoding["a"]["dtype"] == "float64"
    assert bound(encoding, "a") == (mode, error_bound)


def test_unsigned_packing_counts_its_whole_range():
    signed = {"dtype": np.dtype("i2"), "scale_factor": 1.0}
    a = encoding_for(packed(np.arange(9.0), **signed), 0.5)
    b = encoding_for(packed(np.arange(9.0), _Unsigned="true", **signed), 0.5)
    assert config(b, "a")["error_bound"] == pytest.approx(0.5 - 65535 * 2**-24)
    assert config(b, "a")["error_bound"] < config(a, "a")["error_bound"]


def test_float32_sources_keep_their_bound():
    ds = packed(np.arange(9, dtype="f4"), dtype=np.dtype("i2"), scale_factor=np.float32(0.01))
    assert bound(encoding_for(ds, 1e-6), "a") == ("abs", 1e-6)


def test_raw_fill_value_of_an_unmasked_source_is_left_to_xarray():
    ds = xr.Dataset({"a": ("i", np.ones(3, "f4"), {"_FillValue": np.float32(-1)})})
    assert "_FillValue" not in encoding_for(ds, 0.1)["a"]


# --- chunks and shards ---


@pytest.mark.parametrize(
    ("shape", "itemsize", "chunks"),
    [
        ((24, 33, 49), 4, (24, 33, 49)),
        ((744, 33, 49), 4, (124, 33, 49)),
        ((130, 33, 49), 4, (65, 33, 49)),
        ((8760, 721, 1440), 4, (4, 721, 1440)),
        ((8760, 721, 1440), 8, (2, 721, 1440)),
        ((24, 37, 181, 360), 4, (24, 2, 181, 360)),
        ((10, 21600, 43200), 4, (1, 1350, 2700)),
        ((721, 1440), 4, (721, 1440)),
        ((10_000_000,), 4, (2_500_000,)),
        ((1, 1, 1), 4, (1, 1, 1)),
        ((0, 5, 6), 4, (1, 5, 6)),
        ((), 4, ()),
    ],
)
def test_default_chunks(shape, itemsize, chunks):
    assert default_chunks(shape, itemsize) == chunks
    assert math.prod(chunks) * itemsize <= 16 << 20


def chunks(ds, given=None, shards=None, name="t2m"):
    entry = encoding_for(ds, 0.05, chunks=given, shards=shards)[name]
    return entry["chunks"] if shards is None else (entry["chunks"], entry["shards"])


def test_chunks_by_dimension_are_cut_to_it_and_others_are_whole(ds):
    assert chunks(ds, {"time": 8}) == (8, 6, 8)
    assert chunks(ds, {"time": 64, "lon": 3}) == (20, 6, 3)
    assert chunks(ds, {"time": -1, "lat": np.int64(2)}) == (20, 2, 8)


def test_chunks_as_a_sequence_are_exact(ds):
    ds = ds[["t2m"]]
    assert chunks(ds, (64, 6, 8)) == (64, 6, 8)
    assert chunks(ds, [64, 6, 8]) == (64, 6, 8)


def test_chunks_of_dask(ds):
    pytest.importorskip("dask")
    lazy = ds.chunk(time=8)
    assert chunks(lazy) == (8, 6, 8)
    assert chunks(lazy, {"lon": 4}) == (8, 6, 4)
    assert chunks(ds.chunk(time=64)) == (20, 6, 8)


@pytest.mark.parametrize("uneven", [(4, 8, 8), (8, 4, 8), (8, 12)])
def test_uneven_chunks_of_dask_say_what_to_do(ds, uneven):
    pytest.importorskip("dask")
    lazy = ds.chunk(time=uneven)
    with pytest.raises(errors.InvalidConfigError, match=r"chunks of t2m: .*'time'.*ds\.chunk\({'time': "):
        encoding_for(lazy, 0.05)
    assert chunks(lazy, {"time": 4}) == (4, 6, 8)


def test_shards(ds):
    assert chunks(ds, {"time": 4}, {"time": 8}) == ((4, 6, 8), (8, 6, 8))
    assert chunks(ds, {"time": 3, "lat": 4}, {"time": 6}) == ((3, 4, 8), (6, 8, 8))
    assert chunks(ds, {"time": 3}, {"time": -1}) == ((3, 6, 8), (21, 6, 8))
    assert chunks(ds, {"time": 3}, {"time": 300}) == ((3, 6, 8), (21, 6, 8))
    assert chunks(ds[["t2m"]], (16, 6, 8), (64, 6, 8)) == ((16, 6, 8), (64, 6, 8))


def test_scalars_have_no_chunks():
    entry = encoding_for(xr.Dataset({"a": 3.5}), 0.1, shards={})["a"]
    assert "chunks" not in entry and "shards" not in entry
