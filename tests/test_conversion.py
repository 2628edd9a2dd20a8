"""`convert`: what it writes, what it keeps, and what it leaves behind when it fails."""

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from aesz_codec import pipeline
from aesz_codec.bounds import ErrorBound, error_summary
from aesz_codec.conversion import convert
from aesz_codec.conversion.write import WriteTask, _Measured
from aesz_codec.errors import (
    ConversionError,
    ErrorBoundViolation,
    InvalidBoundError,
    InvalidConfigError,
    UnsupportedDtypeError,
)

DIMS = ("time", "lat", "lon")
SHAPE = (20, 12, 18)


def weather(shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    field = 280 + 8 * np.sin(t / 5 + x / 9) + 4 * np.cos(y / 6) + rng.normal(0, 0.05, shape)
    field[:, :3, :4] = np.nan
    return field.astype("float32")


def dataset():
    field = weather()
    data = xr.Dataset(
        {
            "t2m": (DIMS, field, {"units": "K", "long_name": "2 m temperature", "grid_mapping": "crs"}),
            "msl": (DIMS, field.astype("float64") * 350, {"units": "Pa"}),
            "packed": (DIMS, field.astype("float64"), {"units": "K", "valid_max": np.int16(30000)}),
            "counts": (("lat", "lon"), np.arange(12 * 18, dtype="int32").reshape(12, 18)),
            "time_bnds": (("time", "side"), np.arange(40.0).reshape(20, 2)),
            "crs": ((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}),
            "station": (("lat",), np.array([f"row {i}" for i in range(12)], dtype=object)),
        },
        coords={
            "time": ("time", np.arange(20) * 6.0, {"units": "hours since 2000-01-01", "bounds": "time_bnds"}),
            "lat": ("lat", np.linspace(60, 40, 12), {"units": "degrees_north"}),
            "lon": ("lon", np.linspace(0, 17, 18).astype("float32"), {"units": "degrees_east"}),
            "area": (("lat", "lon"), np.full((12, 18), 2.5), {"units": "m2"}),
        },
        attrs={"title": "a test", "Conventions": "CF-1.8"},
    )
    return data


PACKING = {"dtype": "int16", "scale_factor": 0.001, "add_offset": 280.0, "_FillValue": np.int16(-32767)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "in.nc"
    dataset().to_netcdf(path, encoding={"packed": PACKING})
    return path


def numbers(path, **options):
    """Open without decoding times, as the stored numbers."""
    if Path(path).is_dir():
        return xr.open_zarr(path, chunks=None, decode_times=False, **options)
    return xr.open_dataset(path, decode_times=False, **options)


def largest_error(path, store, name):
    with numbers(path) as a, numbers(store) as b:
        x, x_hat = a[name].values.astype("float64"), b[name].values.astype("float64")
    assert np.array_equal(np.isnan(x), np.isnan(x_hat))
    return np.nanmax(np.abs(x - x_hat))


def chunk_files(store, name):
    return [p for p in (Path(store) / name).rglob("*") if p.is_file() and p.name not in METADATA]


METADATA = {"zarr.json", ".zarray", ".zattrs"}


@pytest.mark.parametrize(
    "layout", [{"zarr_format": 2}, {}, {"shards": {"time": 16}}], ids=["v2", "v3", "shards"]
)
def test_each_value_is_within_its_bound(source, tmp_path, layout):
    store = tmp_path / "out.zarr"
    bounds = {"t2m": 0.05, "msl": ("pw_rel", 1e-4), "packed": 0.02}
    summary = convert(source, store, bounds, chunks={"time": 8}, **layout)
    assert largest_error(source, store, "t2m") <= 0.05
    assert largest_error(source, store, "packed") <= 0.02
    with numbers(source) as a, numbers(store) as b:
        x, x_hat = a.msl.values, b.msl.values
        valid = ~np.isnan(x)
        assert (np.abs(x - x_hat)[valid] <= 1e-4 * np.abs(x)[valid]).all()
        assert b.t2m.encoding["chunks"] == (8, 12, 18)
        assert b.t2m.encoding["shards"] == ((16, 12, 18) if "shards" in layout else None)
    assert {v.name for v in summary.variables} == {"t2m", "msl", "packed"}
    assert set(summary.copied) == {"counts", "time_bnds", "crs", "station"}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_coordinates_attributes_and_the_rest_are_kept(source, tmp_path, zarr_format):
    store = tmp_path / "out.zarr"
    convert(source, store, 0.1, zarr_format=zarr_format)
    with numbers(source) as a, numbers(store) as b:
        assert b.attrs == a.attrs
        assert set(b.coords) == set(a.coords)
        for name in set(a.variables) - {"t2m", "msl", "packed"}:
            assert np.array_equal(a[name].values, b[name].values), name
            assert b[name].attrs == a[name].attrs, name
            if a[name].dtype.kind != "O":
                assert b[name].dtype == a[name].dtype, name
        assert {k: v for k, v in b.t2m.attrs.items() if k != "aesz_codec"} == a.t2m.attrs
    with xr.open_dataset(source) as a, xr.open_zarr(store, chunks=None) as b:
        assert b.indexes["time"].equals(a.indexes["time"])


def test_attributes_say_what_was_lost_and_how_to_read(source, tmp_path):
    store = tmp_path / "out.zarr"
    summary = convert(source, store, {"t2m": 0.05, "msl": ("pw_rel", 0.001), "packed": ("range_rel", 0.01)})
    tolerance = {v.name: v.resolved.value for v in summary.variables}["packed"]
    with numbers(store) as b:
        note = "; decode with: pip install aesz-codec"
        assert b.t2m.attrs["aesz_codec"] == "error-bounded: |error| <= 0.05 K (abs)" + note
        assert b.msl.attrs["aesz_codec"] == "error-bounded: |error| <= 0.001 * |value| (pw_rel)" + note
        expected = f"error-bounded: |error| <= {tolerance:.9g} K (range_rel 0.01)"
        assert b.packed.attrs["aesz_codec"] == expected + note
        assert "aesz_codec" not in b.counts.attrs


def test_bound_of_a_variable_beats_the_general_one(source, tmp_path):
    summary = convert(
        source, tmp_path / "out.zarr", {"t2m": 0.5, "*": ("range_rel", 1e-3), "msl": "lossless"}
    )
    requested = {v.name: v.requested for v in summary.variables}
    assert requested == {
        "t2m": ErrorBound("abs", 0.5),
        "msl": ErrorBound("lossless"),
        "packed": ErrorBound("range_rel", 1e-3),
    }


def test_range_is_that_of_the_whole_variable(tmp_path):
    """One chunk spans 1, the whole 100: a bound by chunk would be a hundred times tighter."""
    field = np.linspace(0, 1, 400, dtype="float32").reshape(4, 10, 10) % 1
    field[3] += 99
    data = xr.Dataset({"v": (DIMS, field)})
    summary = convert(data, tmp_path / "out.zarr", ("range_rel", 0.01), chunks={"time": 1})
    extent = float(field.max()) - float(field.min())
    assert summary.variables[0].resolved == ErrorBound("abs", 0.01 * extent)
    with numbers(tmp_path / "out.zarr") as b:
        assert b.v.encoding["serializer"].error_bound == 0.01 * extent
        error = np.abs(field.astype("float64") - b.v.values.astype("float64"))
        assert error.max() <= 0.01 * extent


class TestPackedSources:
    def test_bound_is_on_the_physical_values_though_stored_as_float32(self, source, tmp_path):
        summary = convert(source, tmp_path / "out.zarr", {"packed": 0.004})
        with numbers(source) as a, numbers(tmp_path / "out.zarr") as b:
            assert a.packed.dtype == "float64" and b.packed.dtype == "float32"
        assert largest_error(source, tmp_path / "out.zarr", "packed") <= 0.004
        packed = next(v for v in summary.variables if v.name == "packed")
        assert packed.requested.value == 0.004 > packed.recorded.value
        assert 0.5 < packed.errors.max_error_over_bound <= 1

    def test_bound_too_tight_for_float32_keeps_float64(self, source, tmp_path):
        convert(source, tmp_path / "out.zarr", {"packed": 1e-5})
        with numbers(tmp_path / "out.zarr") as b:
            assert b.packed.dtype == "float64"
        assert largest_error(source, tmp_path / "out.zarr", "packed") <= 1e-5

    @pytest.mark.parametrize("bounds", [{"t2m": 0.1}, {"t2m": 0.1, "packed": "lossless"}])
    def test_without_a_bound_the_integers_are_copied(self, source, tmp_path, bounds):
        summary = convert(source, tmp_path / "out.zarr", bounds)
        assert "packed" in summary.copied
        with (
            numbers(source, mask_and_scale=False) as a,
            numbers(tmp_path / "out.zarr", mask_and_scale=False) as b,
        ):
            assert b.packed.dtype == "int16"
            assert np.array_equal(a.packed.values, b.packed.values)
            assert b.packed.attrs["scale_factor"] == 0.001
        assert largest_error(source, tmp_path / "out.zarr", "packed") == 0

    def test_limits_in_packed_units_are_unpacked(self, source, tmp_path):
        convert(source, tmp_path / "out.zarr", {"packed": 0.02})
        with numbers(tmp_path / "out.zarr") as b:
            assert b.packed.attrs["valid_max"] == pytest.approx(30000 * 0.001 + 280)
            assert not {"scale_factor", "add_offset"} & set(b.packed.attrs)


def test_nan_payloads_survive_lossless(tmp_path):
    """A chunk of NaNs equals the fill value; Zarr would leave it out, and the payloads with it."""
    bits = np.full((4, 5), 0x7FC00000, dtype="uint32")
    bits[:2] |= np.arange(10, dtype="uint32").reshape(2, 5)
    data = xr.Dataset({"v": (("y", "x"), bits.view("float32"))})
    convert(data, tmp_path / "out.zarr", "lossless", chunks={"y": 2})
    stored = zarr.open_array(tmp_path / "out.zarr" / "v", mode="r")[:]
    assert np.array_equal(stored.view("uint32"), bits)


def test_summary_is_measured(source, tmp_path):
    store = tmp_path / "out.zarr"
    summary = convert(source, store, {"t2m": 0.05}, variables=["t2m"], chunks={"time": 8})
    (t2m,) = summary.variables
    stored = sum(p.stat().st_size for p in chunk_files(store, "t2m"))
    assert t2m.stored_bytes == stored
    assert t2m.compression_ratio == pytest.approx(20 * 12 * 18 * 4 / stored)
    assert t2m.errors.n == 20 * 12 * 18
    error = largest_error(source, store, "t2m")
    assert t2m.errors.max_abs_error == error
    assert t2m.errors.max_error_over_bound == pytest.approx(error / 0.05)
    with numbers(source) as a, numbers(store) as b:
        difference = a.t2m.values.astype("float64") - b.t2m.values.astype("float64")
        extent = float(a.t2m.max()) - float(a.t2m.min())
    psnr = 20 * np.log10(extent / np.sqrt(np.nanmean(difference**2)))
    assert t2m.errors.psnr == pytest.approx(psnr)


@pytest.mark.parametrize("chunks", [{"time": 5}, {"time": 8}, {"time": 4, "lat": 5}], ids=str)
@pytest.mark.parametrize("shards", [None, {"time": 40}])
def test_what_the_encoder_checked_is_what_is_stored(source, tmp_path, chunks, shards):
    """Measured when the encoder checks itself: padded chunks, several of a shard, packed sources."""
    bounds = {"t2m": 0.05, "msl": ("pw_rel", 1e-3), "packed": 0.02}
    summary = convert(source, tmp_path / "out.zarr", bounds, chunks=chunks, shards=shards)
    with numbers(source) as a, numbers(tmp_path / "out.zarr") as b:
        for v in summary.variables:
            x, x_hat = a[v.name].values, b[v.name].values
            expected = error_summary(x, x_hat, v.resolved)
            assert v.errors.n == expected.n == x.size and v.errors.n_finite == expected.n_finite
            assert v.errors.max_abs_error == expected.max_abs_error
            assert v.errors.max_error_over_bound == pytest.approx(expected.max_error_over_bound)
            assert v.errors.sum_squared_error == pytest.approx(expected.sum_squared_error)
            assert (v.errors.minimum, v.errors.maximum) == (expected.minimum, expected.maximum)


def test_nothing_is_decoded_twice(source, tmp_path, monkeypatch):
    def read(array, place):
        raise AssertionError(f"read back: {place}")

    monkeypatch.setattr(zarr.Array, "__getitem__", read)
    convert(
        source, tmp_path / "out.zarr", {"t2m": 0.05, "packed": 0.02}, variables=["t2m", "packed"],
        chunks={"time": 8, "lat": 5}, shards={"time": 16, "lat": 15}, scheduler="synchronous",
    )  # fmt: skip


def test_only_what_is_stored_is_measured():
    """Encoders use encoders: what those check are no chunks, even if they have their shape."""
    bound = ErrorBound("abs", 0.1)
    task = WriteTask("v", (slice(0, 6),), None, None, np.dtype("f4"), unit=(6,), resolved=bound)
    values = np.arange(6, dtype="f4")
    record = _Measured(task)
    with record.watching((slice(0, 6),), values.astype("f8"), values, (4,)) as unseen:
        tell = pipeline.when_checked.get()
        tell(values[:4] + 1, values[:4] + 1)
        tell(values[:4].astype("i4"), values[:4].astype("i4"))
        assert unseen == [(slice(0, 4),), (slice(4, 6),)] and record.errors.n == 0
        tell(np.array([4, 5, 0, 0], "f4"), np.array([4, 5.0625, 9, 9], "f4"))
        assert unseen == [(slice(0, 4),)]
        assert (record.errors.n, record.errors.max_abs_error) == (2, 0.0625)
        with pytest.raises(ErrorBoundViolation, match=r"v\[0:4\]"):
            tell(values[:4], values[:4] + 1)
    assert pipeline.when_checked.get() is None


def test_chosen_variables_bring_their_bounds_and_grid(source, tmp_path):
    convert(source, tmp_path / "out.zarr", 0.1, variables=["t2m"])
    with numbers(tmp_path / "out.zarr") as b:
        assert set(b.data_vars) == {"t2m", "time_bnds", "crs"}
        assert "area" in b.coords


def test_zarr_sources_of_either_format(source, tmp_path):
    """A store of the other format carries encodings that do not fit."""
    convert(source, tmp_path / "a.zarr", 0.1, zarr_format=2, chunks={"time": 5})
    convert(tmp_path / "a.zarr", tmp_path / "b.zarr", {"t2m": 0.2}, chunks={"time": 8})
    assert largest_error(tmp_path / "a.zarr", tmp_path / "b.zarr", "t2m") <= 0.2
    assert largest_error(tmp_path / "a.zarr", tmp_path / "b.zarr", "msl") == 0


class TestDatasets:
    def test_decoded_times_and_dask(self, source, tmp_path):
        pytest.importorskip("dask")
        with xr.open_dataset(source, chunks={"time": 7}) as data:
            convert(data, tmp_path / "out.zarr", {"t2m": 0.05}, chunks={"time": 4})
            with xr.open_zarr(tmp_path / "out.zarr", chunks=None) as b:
                assert b.indexes["time"].equals(data.indexes["time"])
                assert abs(b.t2m - data.t2m).max() <= 0.05
                assert np.array_equal(b.packed.values, data.packed.values, equal_nan=True)
                assert np.array_equal(b.station.values, data.station.values)

    def test_other_calendars(self, tmp_path):
        times = xr.date_range("2000-02-01", periods=6, freq="10D", calendar="360_day", use_cftime=True)
        data = xr.Dataset({"v": (("time", "x"), np.ones((6, 4), "f4"))}, coords={"time": times})
        convert(data, tmp_path / "out.zarr", 0.1)
        with xr.open_zarr(tmp_path / "out.zarr", chunks=None) as b:
            assert list(b.time.values) == list(data.time.values)

    def test_scalars_and_empty_dimensions(self, tmp_path):
        data = xr.Dataset(
            {
                "a": ((), np.float32(2.5)),
                "b": (("time", "x"), np.zeros((0, 3), "f4")),
                "c": ("x", [1.0, 2, 3]),
            }
        )
        summary = convert(data, tmp_path / "out.zarr", {"a": 0.01, "b": 0.1, "c": 0.1})
        assert len(summary.variables) == 3
        with numbers(tmp_path / "out.zarr") as b:
            assert abs(float(b.a) - 2.5) <= 0.01
            assert b.b.shape == (0, 3)
            assert abs(b.c - data.c).max() <= 0.1

    def test_stale_packing_does_not_touch_the_values(self, source, tmp_path):
        """A changed variable that still carries int16 packing must not be packed again."""
        with xr.open_dataset(source) as data:
            data = data.load()
        data["packed"].values += 1e-5
        convert(data, tmp_path / "out.zarr", {"t2m": 0.1})
        with numbers(tmp_path / "out.zarr") as b:
            assert np.array_equal(b.packed.values, data.packed.values, equal_nan=True)

    def test_the_dataset_is_left_as_it_was(self, source, tmp_path):
        with xr.open_dataset(source) as data:
            before = {name: (dict(v.attrs), dict(v.encoding)) for name, v in data.variables.items()}
            convert(data, tmp_path / "out.zarr", {"t2m": 0.1})
            assert {name: (dict(v.attrs), dict(v.encoding)) for name, v in data.variables.items()} == before


def test_large_copies_go_block_by_block(source, tmp_path, monkeypatch):
    monkeypatch.setattr("aesz_codec.conversion.plan.WHOLE_COPY", 100)
    convert(source, tmp_path / "out.zarr", {"t2m": 0.1})
    with (
        numbers(source, mask_and_scale=False) as a,
        numbers(tmp_path / "out.zarr", mask_and_scale=False) as b,
    ):
        for name in ("counts", "packed", "area", "time_bnds"):
            assert np.array_equal(a[name].values, b[name].values), name
            np.testing.assert_equal(dict(b[name].attrs), dict(a[name].attrs))  # NaN equals NaN
        assert "area" in b.coords


@pytest.mark.parametrize(
    ("bounds", "options", "error", "words"),
    [
        ({"nope": 0.1}, {}, InvalidConfigError, "nope"),
        ({"lat": 0.1}, {}, InvalidConfigError, "coordinate"),
        ({"counts": 0.1}, {}, UnsupportedDtypeError, "counts"),
        (None, {}, InvalidBoundError, "bound"),
        ({}, {}, InvalidBoundError, "bound"),
        (-1.0, {}, InvalidBoundError, "-1.0"),
        (float("nan"), {}, InvalidBoundError, "nan"),
        ({"t2m": ("relative", 0.1)}, {}, InvalidConfigError, "relative"),
        (0.1, {"variables": ["nope"]}, InvalidConfigError, "nope"),
        (0.1, {"variables": ["counts"]}, InvalidConfigError, "no variable"),
        (0.1, {"chunks": {"tim": 4}}, InvalidConfigError, "tim"),
        (0.1, {"chunks": {"time": 0}}, InvalidConfigError, "0"),
        (0.1, {"chunks": {"time": 4}, "shards": {"time": 6}}, InvalidConfigError, "multiple"),
        (0.1, {"shards": {"time": 8}, "zarr_format": 2}, InvalidConfigError, "shards"),
        (0.1, {"zarr_format": 4}, InvalidConfigError, "zarr_format"),
        (0.1, {"effort": "extreme"}, InvalidConfigError, "effort"),
    ],
)
def test_wrong_arguments_leave_nothing(source, tmp_path, bounds, options, error, words):
    with pytest.raises(error, match=words):
        convert(source, tmp_path / "out.zarr", bounds, **options)
    assert list(tmp_path.iterdir()) == []


class TestTargets:
    def test_existing_store_is_refused(self, source, tmp_path):
        store = tmp_path / "out.zarr"
        convert(source, store, {"t2m": 0.1}, variables=["t2m"])
        before = tree(store)
        with pytest.raises(ConversionError, match="exists"):
            convert(source, store, {"t2m": 0.2}, variables=["t2m"])
        assert tree(store) == before

    def test_overwrite_replaces_it(self, source, tmp_path):
        store = tmp_path / "out.zarr"
        convert(source, store, {"t2m": 0.1})
        convert(source, store, {"t2m": 0.2}, variables=["t2m"], overwrite=True)
        with numbers(store) as b:
            assert b.t2m.encoding["serializer"].error_bound == 0.2
            assert "msl" not in b
        assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]

    def test_only_a_zarr_store_is_overwritten(self, source, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.txt").write_text("years of work")
        with pytest.raises(ConversionError, match="no Zarr store"):
            convert(source, tmp_path / "precious", 0.1, overwrite=True)
        assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"

    @pytest.mark.parametrize("place", ["", "inner.zarr"])
    def test_the_source_is_no_target(self, source, tmp_path, place):
        store = tmp_path / "a.zarr"
        convert(source, store, {"t2m": 0.1})
        before = tree(store)
        with pytest.raises(ConversionError, match="apart from the source"):
            convert(store, store / place, 0.1, overwrite=True)
        assert tree(store) == before

    def test_an_unfinished_conversion_is_in_the_way(self, source, tmp_path):
        (tmp_path / "out.zarr.partial").mkdir()
        with pytest.raises(ConversionError, match="unfinished"):
            convert(source, tmp_path / "out.zarr", 0.1)
        convert(source, tmp_path / "out.zarr", 0.1, overwrite=True)
        assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]

    def test_unknown_protocols_are_refused(self, source):
        with pytest.raises(ConversionError, match="nope"):
            convert(source, "nope://bucket/out.zarr", 0.1)

    def test_no_permission(self, source):
        with pytest.raises(ConversionError, match="cannot create"):
            convert(source, "/proc/out.zarr", 0.1)


class TestSources:
    def test_missing(self, tmp_path):
        with pytest.raises(ConversionError, match="nope.nc"):
            convert(tmp_path / "nope.nc", tmp_path / "out.zarr", 0.1)

    @pytest.mark.parametrize("content", [b"", b"no data at all\n" * 100])
    def test_unreadable(self, tmp_path, content):
        (tmp_path / "in.nc").write_bytes(content)
        with pytest.raises(ConversionError, match="cannot read"):
            convert(tmp_path / "in.nc", tmp_path / "out.zarr", 0.1)
        assert [p.name for p in tmp_path.iterdir()] == ["in.nc"]

    def test_unreadable_in_the_middle(self, tmp_path):
        """The file opens, and its third frame has a wrong checksum."""
        field = np.random.default_rng(0).normal(size=(4, 30, 40)).astype("float32")
        options = {"v": {"fletcher32": True, "chunksizes": (1, 30, 40)}}
        xr.Dataset({"v": (DIMS, field)}).to_netcdf(tmp_path / "in.nc", encoding=options)
        content = bytearray((tmp_path / "in.nc").read_bytes())
        content[content.index(field[2].tobytes()) + 100] ^= 1
        (tmp_path / "in.nc").write_bytes(content)
        with pytest.raises(ConversionError, match=r"cannot read v\[2:.*resume"):
            convert(tmp_path / "in.nc", tmp_path / "out.zarr", 0.1, chunks={"time": 1}, workers=1)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.zarr.partial"]

    def test_is_never_changed(self, source, tmp_path):
        before = (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns)
        convert(source, tmp_path / "out.zarr", ("range_rel", 0.01))
        assert (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns) == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_write_that_fails_leaves_nothing_and_keeps_the_old_store(tmp_path):
    """The operating system refuses files above a limit: the same path as a full disk."""
    noise = np.random.default_rng(0).normal(size=(8, 100, 100)).astype("float32")
    xr.Dataset({"v": (DIMS, noise)}).to_netcdf(tmp_path / "in.nc")
    convert(tmp_path / "in.nc", tmp_path / "out.zarr", 10.0)
    before = tree(tmp_path / "out.zarr")
    script = """
        import resource, sys
        from aesz_codec.conversion import convert
        from aesz_codec.errors import ConversionError
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            convert("in.nc", "out.zarr", "lossless", chunks={"time": 4}, overwrite=True)
        except ConversionError as error:
            print(error)
    """
    done = run_python(script, tmp_path)
    assert "store: cannot write out.zarr: File too large; in v[" in done.stdout
    assert tree(tmp_path / "out.zarr") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "out.zarr"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a small disk needs root to be mounted"
)
def test_a_full_disk(source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no mounts in this container")
    try:
        with pytest.raises(ConversionError, match="No space left on device"):
            convert(source, disk / "out.zarr", "lossless")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_interrupt_leaves_what_is_done(source, tmp_path):
    def interrupt(event):
        if event.phase == "write" and event.done > event.total // 2:
            raise KeyboardInterrupt

    store, options = tmp_path / "out.zarr", {"chunks": {"time": 2}}
    with pytest.raises(KeyboardInterrupt):
        convert(source, store, 0.1, **options, progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr.partial"]
    summary = convert(source, store, 0.1, **options, resume=True)
    assert summary.resumed > 5
    convert(source, tmp_path / "other.zarr", 0.1, **options)
    assert tree(store) == tree(tmp_path / "other.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.zarr", "out.zarr"]


def test_unfinished_store_has_another_name(source, tmp_path):
    seen = []

    def look(event):
        seen.append(sorted(p.name for p in tmp_path.iterdir()))

    convert(source, tmp_path / "out.zarr", 0.1, chunks={"time": 4}, progress=look)
    assert seen and all(names == ["out.zarr.partial"] for names in seen)


def test_progress_reaches_the_end_of_each_variable(source, tmp_path):
    events = []
    convert(source, tmp_path / "out.zarr", {"t2m": 0.1, "msl": ("range_rel", 0.1)}, progress=events.append)
    last = {(e.phase, e.variable): (e.done, e.total) for e in events}
    assert last["write", "t2m"] == (20 * 12 * 18 * 4,) * 2
    assert last["range", "msl"][0] == last["range", "msl"][1] == 20 * 12 * 18 * 8


def test_same_input_same_chunks(source, tmp_path):
    for name in ("a.zarr", "b.zarr"):
        convert(source, tmp_path / name, 0.05, chunks={"time": 6})
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = {}
    for frames in (40, 320):
        field = np.broadcast_to(
            np.sin(np.arange(250 * 400) / 1e4, dtype="f4").reshape(250, 400), (frames, 250, 400)
        )
        xr.Dataset({"v": (DIMS, field)}).to_netcdf(tmp_path / f"{frames}.nc")
        script = f"""
            from pathlib import Path
            from aesz_codec.conversion import convert
            convert("{frames}.nc", "{frames}.zarr", 0.01, chunks={{"time": 4}}, shards={{"time": 8}}, effort="fast")
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            print(1024 * int(status["VmHWM"].split()[0]))
        """
        peaks[frames] = int(run_python(script, tmp_path).stdout)
    assert 320 * 250 * 400 * 4 == 128_000_000
    assert peaks[320] - peaks[40] < 32_000_000


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def run_python(script, folder):
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done
