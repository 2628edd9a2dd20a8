"""xarray: what `encoding_for` returns goes into ``to_zarr`` and comes back within the bound."""

import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

from aesz_codec import AESZ, AESZCodec, encoding_for
from aesz_codec.bounds import ErrorBound, first_violation

FORMATS = pytest.mark.parametrize("zarr_format", [2, 3])


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def field(shape, dtype="f4", seed=0):
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 0.05, shape)
    return (280 + 10 * np.sin(sum(axes)) + noise).astype(dtype)


@pytest.fixture
def ds():
    dims, shape = ("time", "lat", "lon"), (30, 12, 17)
    sst = field(shape, seed=1)
    sst[:, :4, :5] = np.nan
    return xr.Dataset(
        {
            "t2m": (dims, field(shape), {"units": "K", "long_name": "2 metre temperature"}),
            "sst": (dims, sst, {"units": "K"}),
            "msl": (dims, 350 * field(shape, "f8")),
            "count": ("time", np.arange(30, dtype="i4")),
            "flag": (("lat", "lon"), np.eye(12, 17, dtype=bool)),
            "name": ("lat", np.array([f"row {i}" for i in range(12)])),
        },
        coords={
            "time": np.datetime64("2020-01-01", "ns") + np.arange(30) * np.timedelta64(6, "h"),
            "lat": np.linspace(60, 49, 12),
            "lon": np.linspace(-8, 4, 17, dtype="f4"),
        },
        attrs={"title": "test"},
    )


def write(ds, path, encoding, zarr_format, **options):
    with warnings.catch_warnings():
        # Strings have no final type in format 3; time units are chosen by xarray.
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        ds.to_zarr(path, encoding=encoding, zarr_format=zarr_format, consolidated=False, **options)
    return xr.open_zarr(path, consolidated=False, chunks=None)


def codecs(path, name, zarr_format):
    array = zarr.open_array(path, path=name, zarr_format=zarr_format, mode="r")
    return (*array.filters, *([array.serializer] if zarr_format == 3 else []), *array.compressors)


@FORMATS
def test_round_trip(ds, tmp_path, zarr_format):
    bounds = {"t2m": 0.05, "sst": ("abs", 0.02), "msl": ("pw_rel", 1e-5)}
    path = tmp_path / "a.zarr"
    back = write(ds, path, encoding_for(ds, bounds, zarr_format=zarr_format, chunks={"time": 8}), zarr_format)
    for name, bound in (("t2m", ("abs", 0.05)), ("sst", bounds["sst"]), ("msl", bounds["msl"])):
        assert back[name].dtype == ds[name].dtype
        assert first_violation(ds[name].values, back[name].values, ErrorBound(*bound)) is None
        assert back[name].attrs == ds[name].attrs
        assert back[name].encoding["chunks"] == (8, 12, 17)
        cls = AESZ if zarr_format == 2 else AESZCodec
        assert codecs(path, name, zarr_format) == (
            cls(bound[1], bound[0]),
        )  # and nothing else: no zstd, no Blosc
    exact = ["count", "flag", "name"]
    assert back[exact].drop_encoding().identical(ds[exact])
    assert back.attrs == ds.attrs
    for name in (*exact, "time", "lat", "lon"):
        assert not any(isinstance(c, AESZ | AESZCodec) for c in codecs(path, name, zarr_format))


@FORMATS
def test_range_relative_is_of_the_variable_and_not_of_the_chunk(ds, tmp_path, zarr_format):
    # One chunk alone has hardly any range; its tolerance is that of the whole.
    ds["t2m"][8:16] = 280.0 + 1e-3 * ds["t2m"][8:16] / 280.0
    encoding = encoding_for(ds, 1e-3, mode="range_rel", zarr_format=zarr_format, chunks={"time": 8})
    back = write(ds, tmp_path / "a.zarr", encoding, zarr_format)
    for name in ("t2m", "sst", "msl"):
        tolerance = 1e-3 * float(ds[name].max().astype("f8") - ds[name].min().astype("f8"))
        assert first_violation(ds[name].values, back[name].values, ErrorBound("abs", tolerance)) is None
        (codec,) = codecs(tmp_path / "a.zarr", name, zarr_format)
        assert (codec.mode, codec.error_bound) == ("abs", pytest.approx(tolerance))


@FORMATS
def test_lossless(ds, tmp_path, zarr_format):
    back = write(
        ds, tmp_path / "a.zarr", encoding_for(ds, mode="lossless", zarr_format=zarr_format), zarr_format
    )
    assert back.drop_encoding().identical(ds)


@FORMATS
def test_scalars_and_empty_variables(tmp_path, zarr_format):
    ds = xr.Dataset({"a": 3.25, "b": ("i", np.empty(0, "f4")), "c": (("i", "j"), np.empty((0, 3)))})
    back = write(ds, tmp_path / "a.zarr", encoding_for(ds, 0.05, zarr_format=zarr_format), zarr_format)
    assert abs(float(back.a) - 3.25) <= 0.05
    assert back.b.shape == (0,) and back.c.shape == (0, 3)


# --- packed and filled sources ---


@pytest.fixture
def packed(ds, tmp_path):
    """A NetCDF file as ERA5 has them: int16 with a float64 scale and offset, and a fill value."""
    pytest.importorskip("h5netcdf")
    source = ds[["sst"]]
    low, high = float(source.sst.min()), float(source.sst.max())
    source["sst"].encoding = {
        "dtype": "i2",
        "scale_factor": (high - low) / 65532,
        "add_offset": (low + high) / 2,
        "_FillValue": np.int16(-32767),
    }
    path = tmp_path / "packed.nc"
    source.to_netcdf(path, engine="h5netcdf")
    return path


@FORMATS
@pytest.mark.parametrize(
    "bound", [("abs", 0.05), ("abs", 1e-4), ("range_rel", 1e-6), ("pw_rel", 1e-5), "lossless"]
)
def test_packed_source_keeps_the_bound_on_its_float64_values(packed, tmp_path, zarr_format, bound):
    with xr.open_dataset(packed, engine="h5netcdf") as ds:
        assert ds.sst.dtype == np.float64
        encoding = encoding_for(ds, {"sst": bound}, zarr_format=zarr_format)
        back = write(ds, tmp_path / "a.zarr", encoding, zarr_format)
        x, y = ds.sst.values, back.sst.values
    assert np.isnan(x).any() and not {"scale_factor", "add_offset"} & back.sst.encoding.keys()
    resolved = ErrorBound("lossless") if bound == "lossless" else ErrorBound(*bound)
    resolved = resolved.resolve(float(np.nanmin(x)), float(np.nanmax(x)))
    assert first_violation(x, y.astype("f8"), resolved) is None
    assert y.dtype == (np.float32 if bound == ("abs", 0.05) else np.float64)


@FORMATS
def test_unmasked_source_is_stored_as_it_is(ds, tmp_path, zarr_format):
    sst = ds[["sst"]].fillna(-9999)
    sst["sst"].attrs["_FillValue"] = np.float32(-9999)
    path = tmp_path / "a.zarr"
    write(sst, path, encoding_for(sst, 0.05, zarr_format=zarr_format), zarr_format)
    raw = zarr.open_array(path, path="sst", mode="r")[...]
    assert first_violation(sst.sst.values, raw, ErrorBound("abs", 0.05)) is None


@FORMATS
@pytest.mark.parametrize("bound", [("abs", 0.05), ("pw_rel", 1e-4), ("range_rel", 1e-3)])
def test_fill_value_of_the_source_does_not_reach_the_codec(ds, tmp_path, zarr_format, bound):
    # xarray would write -9999 for NaN: as data it would widen a range and lose the mask.
    ds["sst"].encoding.update(_FillValue=-9999.0, missing_value=-9999.0)
    back = write(
        ds, tmp_path / "a.zarr", encoding_for(ds, {"sst": bound}, zarr_format=zarr_format), zarr_format
    )
    x, y = ds.sst.values, back.sst.values
    assert np.array_equal(np.isnan(x), np.isnan(y))
    resolved = ErrorBound(*bound).resolve(float(np.nanmin(x)), float(np.nanmax(x)))
    assert first_violation(x, y, resolved) is None


@FORMATS
def test_data_beyond_the_tolerance_of_float32(tmp_path, zarr_format):
    ds = xr.Dataset({"a": ("i", 1e9 + np.linspace(0, 1, 5000))})
    back = write(ds, tmp_path / "a.zarr", encoding_for(ds, 1e-4, zarr_format=zarr_format), zarr_format)
    assert first_violation(ds.a.values, back.a.values, ErrorBound("abs", 1e-4)) is None


# --- writing in parts ---


@FORMATS
def test_append_and_region(ds, tmp_path, zarr_format):
    ds = ds[["t2m", "sst"]]
    path = tmp_path / "a.zarr"
    first = ds.isel(time=slice(0, 8))
    encoding = encoding_for(first, 0.05, zarr_format=zarr_format, chunks=(16, 12, 17))
    write(first, path, encoding, zarr_format)
    assert zarr.open_array(path, path="t2m", mode="r").chunks == (16, 12, 17)  # longer than the first part
    ds.isel(time=slice(8, 30)).to_zarr(path, append_dim="time", consolidated=False)
    region = ds.isel(time=slice(16, 30)) + 1
    region.drop_vars(("lat", "lon")).to_zarr(path, region={"time": slice(16, 30)}, consolidated=False)
    back = xr.open_zarr(path, consolidated=False, chunks=None)
    for name in ds:
        expected = np.concatenate([ds[name].values[:16], region[name].values])
        # The chunk that the append completed was coded twice.
        assert first_violation(expected[:16], back[name].values[:16], ErrorBound("abs", 0.1)) is None
        assert first_violation(expected[16:], back[name].values[16:], ErrorBound("abs", 0.05)) is None


def test_shards(ds, tmp_path):
    path = tmp_path / "a.zarr"
    encoding = encoding_for(ds, 0.05, chunks={"time": 4, "lat": 5}, shards={"time": 8})
    back = write(ds, path, encoding, 3)
    array = zarr.open_array(path, path="t2m", mode="r")
    assert (array.chunks, array.shards) == ((4, 5, 17), (8, 15, 17))
    assert first_violation(ds.sst.values, back.sst.values, ErrorBound("abs", 0.05)) is None


@FORMATS
def test_tree(ds, tmp_path, zarr_format):
    numbers = ds[["t2m", "sst", "count"]]
    coarse = numbers.isel(lat=slice(None, None, 2))
    tree = xr.DataTree.from_dict({"/": numbers.drop_dims("lat"), "/fine": numbers, "/coarse": coarse})
    encoding = {
        group.path: encoding_for(group.to_dataset(inherit=False), 0.05, zarr_format=zarr_format)
        for group in tree.subtree
    }
    path = tmp_path / "a.zarr"
    tree.to_zarr(path, encoding=encoding, zarr_format=zarr_format, consolidated=False)
    back = xr.open_datatree(path, engine="zarr", consolidated=False)
    for group in ("fine", "coarse"):
        assert (
            first_violation(tree[group].sst.values, back[group].sst.values, ErrorBound("abs", 0.05)) is None
        )


# --- from store to store ---


@pytest.mark.parametrize("target", [2, 3])
@pytest.mark.parametrize("source", [2, 3])
def test_store_to_store(ds, tmp_path, source, target):
    ds = ds[["t2m", "sst"]]
    encoding = encoding_for(ds, 0.05, zarr_format=source, chunks={"time": 8})
    opened = write(ds, tmp_path / "a.zarr", encoding, source)
    # Codecs and chunks of the source linger in .encoding; a full encoding or none has to win over them.
    part = opened.drop_encoding().transpose("lat", "time", "lon")
    back = write(part, tmp_path / "b.zarr", encoding_for(part, 0.05, zarr_format=target), target)
    for name in ds:
        assert first_violation(part[name].values, back[name].values, ErrorBound("abs", 0.05)) is None
        total = ErrorBound("abs", 0.1)
        assert first_violation(ds[name].values, back[name].transpose(*ds[name].dims).values, total) is None


@FORMATS
def test_chunks_carried_to_other_dimensions_do_not_get_in_the_way(ds, tmp_path, zarr_format):
    ds = ds[["t2m"]]
    encoding = encoding_for(ds, 0.05, zarr_format=zarr_format, chunks={"time": 8, "lat": 5})
    opened = write(ds, tmp_path / "a.zarr", encoding, zarr_format)
    part = opened.transpose("lon", "lat", "time")
    assert part.t2m.encoding["chunks"] == (8, 5, 17)  # of (time, lat, lon), and the codec of the source too
    encoding = encoding_for(part, 0.01, zarr_format=zarr_format, chunks={"time": 8})
    back = write(part, tmp_path / "b.zarr", encoding, zarr_format)
    assert back.t2m.encoding["chunks"] == (17, 12, 8)
    assert first_violation(part.t2m.values, back.t2m.values, ErrorBound("abs", 0.01)) is None


@FORMATS
def test_same_codec_again_does_not_drift(ds, tmp_path, zarr_format):
    ds = ds[["t2m"]]
    opened = ds
    for generation in range(3):
        encoding = encoding_for(opened, 0.05, zarr_format=zarr_format, chunks={"time": 8})
        opened = write(opened, tmp_path / f"{generation}.zarr", encoding, zarr_format).load()
    assert first_violation(ds.t2m.values, opened.t2m.values, ErrorBound("abs", 3 * 0.05)) is None


@FORMATS
def test_to_netcdf_from_an_opened_store(ds, tmp_path, zarr_format):
    pytest.importorskip("h5netcdf")
    ds = ds[["t2m", "sst", "count"]]
    opened = write(ds, tmp_path / "a.zarr", encoding_for(ds, 0.05, zarr_format=zarr_format), zarr_format)
    opened.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as back:
        assert np.array_equal(back.sst, opened.sst, equal_nan=True)


# --- by hand, without encoding_for ---


@pytest.mark.parametrize(
    ("zarr_format", "entry"),
    [
        (2, {"compressors": AESZ(0.05)}),
        (2, {"compressors": [AESZ(0.05)]}),
        (2, {"compressors": {"id": "aesz", "error_bound": 0.05}}),
        (2, {"filters": [AESZ(0.05)], "compressors": None}),
        (3, {"serializer": AESZCodec(0.05), "compressors": None}),
        (3, {"serializer": {"name": "aesz", "configuration": {"error_bound": 0.05}}, "compressors": None}),
    ],
)
def test_codec_objects_and_dicts_in_an_encoding(ds, tmp_path, zarr_format, entry):
    ds = ds[["sst"]]
    back = write(ds, tmp_path / "a.zarr", {"sst": entry}, zarr_format)
    assert first_violation(ds.sst.values, back.sst.values, ErrorBound("abs", 0.05)) is None
    assert codecs(tmp_path / "a.zarr", "sst", zarr_format)[0] in (AESZ(0.05), AESZCodec(0.05))


@pytest.mark.parametrize(
    ("zarr_format", "entry", "error"),
    [
        (2, {"compressor": AESZ(0.05)}, ValueError),
        (2, {"serializer": AESZCodec(0.05)}, ValueError),
        (3, {"compressors": AESZ(0.05)}, TypeError),
        (3, {"compressors": AESZCodec(0.05)}, TypeError),
        (3, {"filters": [AESZCodec(0.05)]}, TypeError),
    ],
)
def test_wrong_keys_fail_loudly(ds, tmp_path, zarr_format, entry, error):
    with pytest.raises(error):
        write(ds[["t2m"]], tmp_path / "a.zarr", {"t2m": entry}, zarr_format)


def test_opened_variable_shows_a_short_codec(ds, tmp_path):
    back = write(ds, tmp_path / "a.zarr", encoding_for(ds, 0.05), 3)
    assert "AESZCodec(error_bound=0.05, mode='abs')" in repr(back.t2m.encoding)
    assert "AESZCodec(error_bound=0.05, mode='abs')" in repr(
        zarr.open_array(tmp_path / "a.zarr", path="t2m").info
    )
