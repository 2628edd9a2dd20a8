"""Months that are appended to a finished store, and regions that are written again: docs/archives.md."""

import numpy as np
import pytest
import xarray as xr

from aesz_codec.conversion import convert
from aesz_codec.inspection import inspect_store
from aesz_codec.verification import verify

DIMS = ("time", "lat", "lon")
CHUNK = 6


def month(first, steps, seed=0):
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(first, first + steps), np.arange(20), np.arange(30), indexing="ij")
    field = 280 + 5 * np.sin(t / 3 + x / 4) + np.cos(y / 3) + rng.normal(0, 0.02, t.shape)
    return xr.Dataset(
        {"t2m": (DIMS, field.astype("float32"), {"units": "K"})},
        {
            "time": ("time", np.arange(first, first + steps), {"units": "hours since 2000-01-01"}),
            "lat": np.arange(20.0),
        },
    )


@pytest.fixture(params=[{}, {"zarr_format": 2}, {"shards": {"time": 2 * CHUNK}}], ids=["v3", "v2", "shards"])
def store(request, tmp_path):
    convert(month(0, 24), tmp_path / "a.zarr", {"t2m": 0.05}, chunks={"time": CHUNK}, **request.param)
    return tmp_path / "a.zarr"


def configurations(store):
    with xr.open_zarr(store, chunks=None) as stored:
        encoding = stored.t2m.encoding
        codec = encoding.get("serializer") or encoding["compressors"][0]
        return codec.error_bound, codec.mode, encoding["chunks"]


def test_a_month_is_appended(store):
    """In whole chunks, and with no encoding: the array has its own."""
    before = configurations(store)
    later = month(24, 12, seed=1)
    later.to_zarr(store, append_dim="time")
    both = xr.concat([month(0, 24), later], "time", data_vars="minimal")
    assert configurations(store) == before
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        assert stored.sizes["time"] == 36
        assert float(np.abs(stored.t2m - both.t2m).max()) <= 0.05
        assert np.array_equal(stored.time, both.time)
    assert verify(both, store).ok
    assert inspect_store(store).variables[0].chunk_count == 6


def test_appending_keeps_what_was_there(store):
    def chunks():
        return {
            p: p.read_bytes()
            for p in (store / "t2m").rglob("*")
            if p.is_file() and p.name not in ("zarr.json", ".zarray")
        }

    before = chunks()
    month(24, 12, seed=1).to_zarr(store, append_dim="time")
    after = chunks()
    assert all(after[path] == data for path, data in before.items()) and len(after) > len(before)


def test_a_region_is_written_again(store):
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        untouched = stored.t2m.values
    changed = month(0, 24, seed=2).isel(time=slice(12, 24)).drop_vars("lat")
    changed.to_zarr(store, region={"time": slice(12, 24)})
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        assert np.array_equal(stored.t2m.values[:12], untouched[:12])
        assert np.abs(stored.t2m.values[12:] - changed.t2m.values).max() <= 0.05


def test_a_part_of_a_chunk_encodes_the_rest_anew(store):
    """Documented: what was in the chunk before may be off by twice the bound."""
    changed = month(0, 24, seed=2).isel(time=slice(13, 15)).drop_vars("lat")
    changed.to_zarr(store, region={"time": slice(13, 15)})
    with xr.open_zarr(store, chunks=None, decode_times=False) as stored:
        error = np.abs(stored.t2m.values - month(0, 24).t2m.values).max(axis=(1, 2))
        assert error[:12].max() <= 0.05
        assert error[[12, 15, 16, 17]].max() <= 0.1
        assert np.abs(stored.t2m.values[13:15] - changed.t2m.values).max() <= 0.05


def test_dask_refuses_to_append_across_chunks(store):
    pytest.importorskip("dask")
    month(24, 12).chunk(time=4).to_zarr(store, append_dim="time", align_chunks=True)
    with pytest.raises(ValueError, match="chunk"):
        month(36, 12).chunk(time=4).to_zarr(store, append_dim="time")
