"""`verify`: finds what is planted, names the place, and passes what is right."""

import shutil
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

from aesz_codec.bounds import ErrorBound
from aesz_codec.conversion import convert
from aesz_codec.encoding import encoding_for
from aesz_codec.errors import ConversionError
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")


def dataset():
    t, y, x = np.meshgrid(np.arange(12), np.arange(10), np.arange(14), indexing="ij")
    field = (280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3)).astype("float32")
    field[:, 0, 0] = np.nan
    return xr.Dataset(
        {
            "t2m": (DIMS, field, {"units": "K"}),
            "w": (DIMS, (field - 280).astype("float64")),
            "counts": (DIMS[1:], np.arange(140, dtype="int32").reshape(10, 14)),
            "label": ("lat", np.array([f"row {i}" for i in range(10)], dtype=object)),
        },
        coords={
            "time": ("time", np.arange(12) * 6.0, {"units": "hours since 2000-01-01"}),
            "lat": ("lat", np.linspace(50, 41, 10)),
            "lon": ("lon", np.arange(14.0)),
        },
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "in.nc"
    dataset().to_netcdf(path)
    return path


@pytest.fixture(scope="module", params=["v2", "v3", "shards"])
def good(request, source, tmp_path_factory):
    """A converted store; tests copy it before they damage it."""
    store = tmp_path_factory.mktemp(request.param) / "good.zarr"
    layout = {"v2": {"zarr_format": 2}, "v3": {}, "shards": {"shards": {"time": 8}}}[request.param]
    convert(source, store, {"t2m": 0.05, "w": ("pw_rel", 0.01)}, chunks={"time": 4}, **layout)
    return store


@pytest.fixture
def store(good, tmp_path):
    shutil.copytree(good, tmp_path / "out.zarr")
    return tmp_path / "out.zarr"


def result(report, name):
    (variable,) = [v for v in report.variables if v.name == name]
    return variable


def chunk_file(store, name, time):
    """Return the file that holds the chunk (time, 0, 0)."""
    folder = store / name
    if (folder / ".zarray").exists():
        return folder / f"{time}.0.0"
    sharded = zarr.open_array(folder, mode="r").shards is not None
    return folder / "c" / str(time // 2 if sharded else time) / "0" / "0"


def test_a_good_store(source, store):
    report = verify(source, store)
    assert report.ok and report.missing == ()
    t2m = result(report, "t2m")
    assert (t2m.bound, t2m.n, t2m.violations) == (ErrorBound("abs", 0.05), 12 * 10 * 14, 0)
    with xr.open_dataset(source) as a, xr.open_zarr(store, chunks=None) as b:
        largest = float(np.abs(a.t2m.astype("float64") - b.t2m.astype("float64")).max())
    assert t2m.errors.max_abs_error == largest
    assert result(report, "counts").bound is None
    assert {v.name for v in report.variables} == {"t2m", "w", "counts", "label", "time", "lat", "lon"}


def test_datasets_are_sources_too(source, store):
    with xr.open_dataset(source) as data:
        assert data.time.dtype.kind == "M"
        assert verify(data, store).ok


def planted(source, folder, name, index, value):
    """Copy the source with one value changed: no chunk is encoded again."""
    path = folder / "planted.nc"
    shutil.copy(source, path)
    with netCDF4.Dataset(path, "r+") as file:
        file[name].set_auto_mask(False)
        file[name][index] = value
    return path


@pytest.mark.parametrize("index", [(0, 3, 5), (5, 9, 13), (11, 4, 0)])
def test_a_planted_value_is_found(source, store, tmp_path, index):
    report = verify(planted(source, tmp_path, "t2m", index, 300.0), store)
    assert not report.ok
    t2m = result(report, "t2m")
    assert t2m.violations == 1
    assert t2m.first.index == index
    assert t2m.first.bound == ErrorBound("abs", 0.05)
    assert t2m.first.value == 300
    assert abs(t2m.first.reconstruction - dataset().t2m.values[index]) <= 0.05
    hour = 6 * index[0]
    expected = {"time": f"2000-01-0{1 + hour // 24}T{hour % 24:02}:00:00", "lat": str(50.0 - index[1])}
    assert t2m.first.coordinates == {**expected, "lon": str(float(index[2]))}
    assert result(report, "w").ok


@pytest.mark.parametrize(("beyond", "found"), [(0.999, 0), (1.001, 1)])
def test_the_recorded_bound_is_the_line(source, store, tmp_path, beyond, found):
    with xr.open_zarr(store, chunks=None) as stored:
        value = float(stored.t2m[7, 2, 2]) + beyond * 0.05
    t2m = result(verify(planted(source, tmp_path, "t2m", (7, 2, 2), value), store), "t2m")
    assert t2m.violations == found


@pytest.mark.parametrize(("index", "value"), [((6, 0, 0), 280.0), ((6, 1, 1), np.nan), ((6, 1, 1), np.inf)])
def test_missing_values_are_values(source, store, tmp_path, index, value):
    t2m = result(verify(planted(source, tmp_path, "t2m", index, value), store), "t2m")
    assert t2m.violations == 1 and t2m.first.index == index


@pytest.mark.parametrize(("name", "index", "value"), [("counts", (3, 4), 999), ("lat", 2, 48.5)])
def test_what_was_copied_must_be_equal(source, store, tmp_path, name, index, value):
    report = verify(planted(source, tmp_path, name, index, value), store)
    assert not report.ok
    changed = result(report, name)
    assert changed.violations == 1
    assert changed.first.bound is None and changed.first.value == value


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_chunk_is_named(source, store, damage):
    path = chunk_file(store, "t2m", 2)
    content = path.read_bytes()
    if damage == "flip":
        changed = bytearray(content)
        changed[len(content) // 3] ^= 0x10
        path.write_bytes(changed)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"")
    report = verify(source, store)
    t2m = result(report, "t2m")
    assert not report.ok
    assert [chunk.index for chunk in t2m.unreadable] == [(2, 0, 0)]
    assert t2m.unreadable[0].reason
    assert t2m.n == 8 * 10 * 14
    assert result(report, "w").ok


def test_a_missing_chunk(source, store):
    path = chunk_file(store, "t2m", 2)
    path.unlink()
    t2m = result(verify(source, store), "t2m")
    assert t2m.first.index == (8, 0, 1)  # the value before it is missing in the source too
    assert np.isnan(t2m.first.reconstruction)
    assert not t2m.first.stored


def test_other_shapes_and_names(source, store, tmp_path):
    with xr.open_dataset(source) as data:
        data.isel(time=slice(0, 8)).rename(w="v").load().to_netcdf(tmp_path / "other.nc")
    report = verify(tmp_path / "other.nc", store)
    assert not report.ok
    assert "dimensions" in result(report, "t2m").mismatch
    assert "not in the source" in result(report, "w").mismatch
    assert report.missing == ("v",)


def test_variables_that_were_left_out_are_no_failure(source, tmp_path):
    convert(source, tmp_path / "out.zarr", 0.1, variables=["t2m"])
    report = verify(source, tmp_path / "out.zarr")
    assert report.ok and set(report.missing) == {"w", "counts", "label"}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_that_xarray_wrote(source, tmp_path, zarr_format):
    data = dataset().drop_vars("label")
    encoding = encoding_for(data, error_bound={"t2m": 0.02, "w": "lossless"}, zarr_format=zarr_format)
    data.to_zarr(tmp_path / "out.zarr", encoding=encoding, zarr_format=zarr_format)
    report = verify(source, tmp_path / "out.zarr")
    assert report.ok
    assert result(report, "t2m").bound == ErrorBound("abs", 0.02)
    assert result(report, "w").bound == ErrorBound("lossless")


def test_relative_ranges_of_single_chunks(source, tmp_path):
    """A range that was not resolved is that of each chunk, padding included."""
    data = dataset()[["t2m"]]
    data.t2m.values[8:] *= 10
    data.to_netcdf(tmp_path / "in.nc")
    codec = {"name": "aesz", "configuration": {"mode": "range_rel", "error_bound": 0.01}}
    layout = {"serializer": codec, "compressors": None, "chunks": (5, 10, 14), "_FillValue": np.nan}
    data.to_zarr(tmp_path / "out.zarr", encoding={"t2m": layout})
    assert verify(tmp_path / "in.nc", tmp_path / "out.zarr").ok
    # Within a hundredth of the range of the whole, but not of that of the first chunk.
    value = float(data.t2m[1, 1, 1]) + 1
    changed = planted(tmp_path / "in.nc", tmp_path, "t2m", (1, 1, 1), value)
    assert result(verify(changed, tmp_path / "out.zarr"), "t2m").first.index == (1, 1, 1)


class TestErrors:
    def test_no_store(self, source, tmp_path):
        with pytest.raises(ConversionError, match="expected a Zarr store"):
            verify(source, tmp_path / "nope.zarr")

    def test_unfinished_store(self, source, store):
        partial = Path(f"{store}.partial")
        store.rename(partial)
        with pytest.raises(ConversionError, match="convert again"):
            verify(source, partial)
        with pytest.raises(ConversionError, match="never finished"):
            verify(source, store)

    def test_broken_metadata(self, source, store):
        for name in ("zarr.json", ".zmetadata", ".zgroup"):
            if (store / name).exists():
                (store / name).write_text("{")
        with pytest.raises(ConversionError, match="cannot read"):
            verify(source, store)
