"""Sources of many files: joined lazily, or refused with the name of what does not fit."""

import pickle

import numpy as np
import pytest
import xarray as xr

from aesz_codec._source import narrowed, open_source, open_sources
from aesz_codec.conversion import convert
from aesz_codec.errors import ConversionError
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")
FILES = 4
STEPS = 6


def part(number, names=("t2m", "msl"), lat=10, units="hours since 2000-01-01", shift=0):
    time = np.arange(STEPS) + STEPS * number - shift
    t, y, x = np.meshgrid(time + shift, np.arange(lat), np.arange(12), indexing="ij")
    field = (280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3)).astype("float32")
    data = {name: (DIMS, field * (i + 1), {"units": "K"}) for i, name in enumerate(names)}
    data["orography"] = (DIMS[1:], np.cos(y[0] / 3).astype("float32"))
    coordinates = {
        "time": ("time", time, {"units": units}),
        "lat": ("lat", np.linspace(50, 41, lat)),
        "lon": ("lon", np.arange(12.0)),
    }
    return xr.Dataset(data, coordinates)


@pytest.fixture
def folder(tmp_path):
    for number in (2, 0, 3, 1):  # names and times in different orders
        part(number).to_netcdf(tmp_path / f"{'bdac'[number]}.nc")
    return tmp_path


def whole():
    return xr.concat([part(n) for n in range(FILES)], "time", data_vars="minimal")


class TestJoined:
    def test_a_pattern_is_one_dataset_in_order_of_time(self, folder):
        with open_source(f"{folder}/*.nc") as joined:
            xr.testing.assert_equal(joined.load(), whole())

    @pytest.mark.parametrize(
        "key",
        [
            {"time": slice(4, 15)},
            {"time": slice(20, 2, -3)},
            {"time": slice(5, None, 7), "lat": slice(2, 9, 2)},
            {"time": 13},
            {"time": -1, "lon": 3},
            {"time": slice(3, 3)},
            {"time": [1, 6, 23], "lat": slice(3)},
            {"lat": 2, "time": slice(10, 1, -1)},
        ],
        ids=str,
    )
    def test_any_part_can_be_read(self, folder, key):
        with open_source(f"{folder}/*.nc") as joined:
            xr.testing.assert_equal(joined.isel(key).load(), whole().isel(key))

    def test_reading_touches_its_files_only(self, folder):
        with open_source(f"{folder}/*.nc") as joined:
            (folder / "b.nc").rename(folder / "gone")  # the first in time, not opened yet
            lazy = pickle.loads(pickle.dumps(joined.variables["t2m"][STEPS : 3 * STEPS]))
            assert lazy.shape[0] == 2 * STEPS
            assert len(pickle.dumps(lazy)) < 20_000
            np.testing.assert_array_equal(lazy.values, whole().t2m[STEPS : 3 * STEPS])

    def test_lists_and_other_variables_in_other_files(self, tmp_path):
        paths = []
        for name in ("t2m", "msl"):
            for number in range(2):
                paths.append(tmp_path / f"{name}-{number}.nc")
                part(number, [name]).drop_vars("orography").to_netcdf(paths[-1])
        with open_source(paths) as joined:
            assert set(joined.data_vars) == {"t2m", "msl"}
            assert joined.sizes["time"] == 2 * STEPS

    def test_times_in_other_units(self, folder):
        part(3, units="hours since 2000-01-01T12", shift=12).to_netcdf(folder / "c.nc")
        with open_source(f"{folder}/*.nc") as joined:
            expected = xr.decode_cf(whole())
            assert joined.indexes["time"].equals(expected.indexes["time"])
        convert(f"{folder}/*.nc", folder / "out.zarr", 0.1)
        with xr.open_zarr(folder / "out.zarr", chunks=None) as stored:
            assert stored.indexes["time"].equals(expected.indexes["time"])
        assert verify(f"{folder}/*.nc", folder / "out.zarr").ok

    def test_files_that_are_packed_differently(self, tmp_path):
        fields = []
        for number, scale in enumerate((0.01, 0.5)):
            data = part(number, ["t2m"]).drop_vars("orography")
            packing = {
                "dtype": "int16",
                "scale_factor": scale,
                "add_offset": 280.0,
                "_FillValue": np.int16(-32767),
            }
            data.to_netcdf(tmp_path / f"{number}.nc", encoding={"t2m": packing})
            with xr.open_dataset(tmp_path / f"{number}.nc") as stored:
                fields.append(stored.t2m.values.astype("float64"))
        convert(f"{tmp_path}/*.nc", tmp_path / "a.zarr", 0.02)
        with xr.open_zarr(tmp_path / "a.zarr", chunks=None) as stored:
            assert np.abs(stored.t2m.values - np.concatenate(fields)).max() <= 0.02
        convert(f"{tmp_path}/*.nc", tmp_path / "b.zarr", "lossless")
        with xr.open_zarr(tmp_path / "b.zarr", chunks=None) as stored:
            assert np.array_equal(stored.t2m.values, np.concatenate(fields))

    def test_the_store_is_that_of_one_file(self, folder):
        whole().to_netcdf(folder / "whole")
        for name, source in (("a.zarr", f"{folder}/*.nc"), ("b.zarr", folder / "whole")):
            convert(source, folder / name, {"t2m": 0.05, "msl": ("range_rel", 1e-3)}, chunks={"time": 4})
        with xr.open_zarr(folder / "a.zarr") as a, xr.open_zarr(folder / "b.zarr") as b:
            xr.testing.assert_identical(a.load(), b.load())
        assert verify(f"{folder}/*.nc", folder / "b.zarr").ok


class TestRefused:
    @pytest.fixture
    def refusal(self, folder):
        def refuse(**options):
            with pytest.raises(ConversionError) as caught:
                convert(f"{folder}/*.nc", folder / "out.zarr", 0.1, **options)
            assert sorted(p.suffix for p in folder.iterdir()) == [".nc"] * len(list(folder.glob("*.nc")))
            return str(caught.value)

        return refuse

    def test_no_file(self, tmp_path):
        with pytest.raises(ConversionError, match=r"\*\.nc"):
            convert(f"{tmp_path}/*.nc", tmp_path / "out.zarr", 0.1)
        with pytest.raises(ConversionError, match="empty list"):
            convert([], tmp_path / "out.zarr", 0.1)

    def test_another_grid(self, folder, refusal):
        part(3, lat=9).to_netcdf(folder / "c.nc")
        text = refusal()
        assert "another grid" in text and "c.nc" in text and "lat" in text

    def test_what_does_not_change_in_time_but_does(self, folder, refusal):
        changed = part(3)
        changed["orography"] = changed.orography + 1
        changed.to_netcdf(folder / "c.nc")
        assert "orography" in refusal() and "c.nc" in refusal()

    def test_shifted_coordinates(self, folder, refusal):
        part(3).assign_coords(lon=np.arange(12) + 0.5).to_netcdf(folder / "c.nc")
        assert "lon" in refusal()

    def test_times_twice(self, folder, refusal):
        part(1).to_netcdf(folder / "e.nc")
        text = refusal()
        assert ("e.nc" in text and "a.nc" not in text) or "d.nc" in text
        assert "2000-01-01T06:00:00" in text

    def test_the_same_file_twice(self, folder):
        with pytest.raises(ConversionError, match="each of them once"):
            convert([folder / "a.nc", folder / "a.nc"], folder / "out.zarr", 0.1)

    @pytest.mark.parametrize(("order", "words"), [([0, 2, 1, 3], "after"), ([0, 1, 1, 3], "twice")])
    def test_unsorted_and_duplicate_times_in_one_file(self, tmp_path, order, words):
        part(0).isel(time=order).to_netcdf(tmp_path / "in.nc")
        with pytest.raises(
            ConversionError, match=rf"time 2000-01-01T0[12]:00:00 at position 2, {words}.*sortby"
        ):
            convert(tmp_path / "in.nc", tmp_path / "out.zarr", 0.1)
        assert [p.name for p in tmp_path.iterdir()] == ["in.nc"]

    def test_falling_times_are_in_order(self, tmp_path):
        part(0).isel(time=slice(None, None, -1)).to_netcdf(tmp_path / "in.nc")
        convert(tmp_path / "in.nc", tmp_path / "out.zarr", 0.1)

    def test_a_variable_that_a_file_lacks(self, folder, refusal):
        part(3, ["t2m"]).to_netcdf(folder / "c.nc")
        assert "'msl' in" in refusal() and "c.nc" in refusal()
        summary = convert(f"{folder}/*.nc", folder / "out.zarr", 0.1, on_error="skip")
        assert [entry.name for entry in summary.skipped] == ["msl"]
        with xr.open_zarr(folder / "out.zarr") as stored:
            assert set(stored.data_vars) == {"t2m", "orography"}
            assert stored.sizes["time"] == FILES * STEPS

    def test_a_file_that_cannot_be_opened(self, folder, refusal):
        (folder / "c.nc").write_bytes(b"no NetCDF")
        assert "c.nc" in refusal()
        summary = convert(f"{folder}/*.nc", folder / "out.zarr", 0.1, on_error="skip")
        (skipped,) = summary.skipped
        assert skipped.name.endswith("c.nc") and "cannot read" in skipped.reason
        with xr.open_zarr(folder / "out.zarr") as stored:
            assert stored.sizes["time"] == 3 * STEPS


def test_a_variable_that_cannot_be_read_to_its_end(tmp_path):
    """Every file opens; a frame of one variable has a wrong checksum."""
    noise = np.random.default_rng(0).normal(size=(4, 30, 40)).astype("float32")
    options = {name: {"fletcher32": True, "chunksizes": (1, 30, 40)} for name in "vw"}
    for number in range(2):
        data = xr.Dataset(
            {"v": (DIMS, noise + number), "w": (DIMS, noise - number)}, {"time": np.arange(4) + 4 * number}
        )
        data.to_netcdf(tmp_path / f"{number}.nc", encoding=options)
    content = bytearray((tmp_path / "1.nc").read_bytes())
    content[content.index((noise + 1)[2].tobytes()) + 100] ^= 1
    (tmp_path / "1.nc").write_bytes(content)
    source = f"{tmp_path}/*.nc"
    with pytest.raises(ConversionError, match=r"cannot read v\[6:7.*resume"):
        convert(source, tmp_path / "out.zarr", 0.1, chunks={"time": 1}, workers=1)
    summary = convert(source, tmp_path / "out.zarr", 0.1, chunks={"time": 1}, resume=True, on_error="skip")
    assert [entry.name for entry in summary.skipped] == ["v"]
    assert summary.resumed >= 6
    with xr.open_zarr(tmp_path / "out.zarr") as stored:
        assert set(stored.data_vars) == {"w"}
        assert np.abs(stored.w[4:].values - (noise - 1)).max() <= 0.1
    assert not (tmp_path / "out.zarr" / "v").exists()

    # met while the ranges are found
    with pytest.raises(ConversionError, match=r"cannot read v\["):
        convert(source, tmp_path / "r.zarr", ("range_rel", 0.01), chunks={"time": 1})
    assert not list(tmp_path.glob("r.zarr*"))
    summary = convert(source, tmp_path / "r.zarr", ("range_rel", 0.01), chunks={"time": 1}, on_error="skip")
    assert [entry.name for entry in summary.skipped] == ["v"]
    with xr.open_zarr(tmp_path / "r.zarr") as stored:
        assert set(stored.data_vars) == {"w"}


def test_what_is_stored_and_what_it_means(tmp_path):
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0}
    part(0, ["t2m"]).to_netcdf(tmp_path / "in.nc", encoding={"t2m": packing})
    with open_sources(tmp_path / "in.nc") as source:
        assert (source.decoded.t2m.dtype.kind, source.stored.t2m.dtype.kind) == ("f", "i")
        assert source.identity()[0][0].endswith("in.nc")


@pytest.mark.parametrize("options", [{"scheduler": "synchronous"}, {"workers": 2}], ids=["one", "processes"])
def test_grib(tmp_path, options):
    eccodes = pytest.importorskip("eccodes")
    pytest.importorskip("cfgrib")
    grid = {"Ni": 36, "Nj": 19, "iDirectionIncrementInDegrees": 10, "jDirectionIncrementInDegrees": 10}
    corners = {"First": (90, 0), "Last": (-90, 350)}
    fields = 280 + np.random.default_rng(0).normal(size=(6, 19, 36)).cumsum(axis=2)
    with (tmp_path / "in.grib").open("wb") as file:
        for hour, field in enumerate(fields):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            keys = {**grid, "date": 20240101, "hour": hour, "bitsPerValue": 16, "shortName": "2t"}
            for which, (latitude, longitude) in corners.items():
                keys[f"latitudeOf{which}GridPointInDegrees"] = latitude
                keys[f"longitudeOf{which}GridPointInDegrees"] = longitude
            for key, value in keys.items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, field.ravel())
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    convert(tmp_path / "in.grib", tmp_path / "out.zarr", {"t2m": 0.05}, chunks={"time": 2}, **options)
    with xr.open_zarr(tmp_path / "out.zarr", chunks=None) as stored:
        assert stored.t2m.units == "K" and str(stored.time.values[1]) == "2024-01-01T01:00:00.000000000"
        assert float(np.abs(stored.t2m.values - fields).max()) <= 0.06  # 16 bits in the file
    assert verify(tmp_path / "in.grib", tmp_path / "out.zarr").ok


def test_a_region_brings_its_files_alone(folder):
    """What is sent to a worker does not grow with the archive."""
    with open_source(f"{folder}/*.nc") as joined:
        variable, data = joined.variables["t2m"], whole().t2m.values
        for along in (
            slice(0, 1),
            slice(5, 14),
            slice(4, 20, 5),
            slice(11, None),
            slice(4, 4),
            slice(None, None, -1),
            7,
        ):
            block = narrowed(variable[along, 1:3])
            assert np.array_equal(pickle.loads(pickle.dumps(block)).values, data[along, 1:3])
        assert len(pickle.dumps(narrowed(variable[:1]))) < len(pickle.dumps(variable[:1])) / 2
