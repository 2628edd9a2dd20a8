"""Dask: lazily resolved ranges, and the same store from every scheduler."""

import hashlib

import numpy as np
import pytest
import xarray as xr

from aesz_codec import encoding_for, errors
from aesz_codec.bounds import ErrorBound, first_violation

dask = pytest.importorskip("dask")
FORMATS = pytest.mark.parametrize("zarr_format", [2, 3])


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    dims, shape = ("time", "lat", "lon"), (24, 12, 17)
    smooth = np.cumsum(rng.normal(0, 0.3, shape), axis=0)
    t2m = (280 + smooth).astype("f4")
    t2m[5, :3] = np.nan
    return xr.Dataset({"t2m": (dims, t2m), "msl": (dims, 1e5 + 100 * smooth), "n": ("time", np.arange(24))})


def digest(path):
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check(ds, path):
    back = xr.open_zarr(path, consolidated=False)
    assert first_violation(ds.t2m.values, back.t2m.values, ErrorBound("abs", 0.05)) is None
    assert first_violation(ds.msl.values, back.msl.values, ErrorBound("abs", 5.0)) is None
    assert np.array_equal(back.n, ds.n)


BOUNDS = {"t2m": 0.05, "msl": 5.0}


@pytest.mark.parametrize(
    ("scheduler", "zarr_format"),
    [("synchronous", 2), ("synchronous", 3), ("threads", 2), ("threads", 3), ("processes", 3)],
)
def test_every_scheduler_writes_the_same_store(ds, tmp_path, scheduler, zarr_format):
    lazy = ds.chunk(time=4)
    encoding = encoding_for(lazy, BOUNDS, zarr_format=zarr_format)
    assert encoding["t2m"]["chunks"] == (4, 12, 17)
    plain = encoding_for(ds, BOUNDS, zarr_format=zarr_format, chunks={"time": 4})
    ds.to_zarr(tmp_path / "plain.zarr", encoding=plain, zarr_format=zarr_format, consolidated=False)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        lazy.to_zarr(tmp_path / "lazy.zarr", encoding=encoding, zarr_format=zarr_format, consolidated=False)
        check(ds, tmp_path / "lazy.zarr")
    chunks = {k: v for k, v in digest(tmp_path / "lazy.zarr").items() if k.startswith(("t2m", "msl"))}
    assert chunks == {
        k: v for k, v in digest(tmp_path / "plain.zarr").items() if k.startswith(("t2m", "msl"))
    }


def test_distributed_processes(ds, tmp_path):
    distributed = pytest.importorskip("distributed")
    lazy = ds.chunk(time=4)
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        for zarr_format in (2, 3):
            encoding = encoding_for(lazy, {**BOUNDS, "msl": ("range_rel", 1e-3)}, zarr_format=zarr_format)
            path = tmp_path / f"{zarr_format}.zarr"
            lazy.to_zarr(path, encoding=encoding, zarr_format=zarr_format, consolidated=False)
            check(ds, path)


@FORMATS
def test_template_and_regions(ds, tmp_path, zarr_format):
    lazy = ds.chunk(time=4)
    path = tmp_path / "a.zarr"
    lazy.to_zarr(
        path,
        encoding=encoding_for(lazy, BOUNDS, zarr_format=zarr_format),
        zarr_format=zarr_format,
        consolidated=False,
        compute=False,
    )
    for start in range(0, 24, 8):
        part = slice(start, start + 8)
        lazy.isel(time=part).to_zarr(path, region={"time": part}, consolidated=False)
    check(ds, path)


def test_shards_and_chunks_of_dask(ds, tmp_path):
    lazy = ds.chunk(time=8)
    encoding = encoding_for(lazy, BOUNDS, chunks={"time": 4}, shards={"time": 8})
    lazy.to_zarr(tmp_path / "a.zarr", encoding=encoding, consolidated=False)
    check(ds, tmp_path / "a.zarr")
    encoding = encoding_for(ds.chunk(time=4), BOUNDS, shards={"time": 8})
    with pytest.raises(ValueError, match="overlap"):  # two tasks in one shard would lose data
        ds.chunk(time=4).to_zarr(tmp_path / "b.zarr", encoding=encoding, consolidated=False)


def test_chunks_across_those_of_dask_are_refused_by_xarray(ds, tmp_path):
    encoding = encoding_for(ds.chunk(time=6), BOUNDS, chunks={"time": 4})
    with pytest.raises(ValueError, match="overlap"):
        ds.chunk(time=6).to_zarr(tmp_path / "a.zarr", encoding=encoding, consolidated=False)


def test_stale_chunks_of_a_source_store_do_not_get_in_the_way(ds, tmp_path):
    ds = ds[["t2m", "msl"]]
    encoding = encoding_for(ds, BOUNDS, chunks={"time": 10})
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding, consolidated=False)
    opened = xr.open_zarr(tmp_path / "a.zarr", consolidated=False).chunk(time=6)
    opened.to_zarr(tmp_path / "b.zarr", encoding=encoding_for(opened, BOUNDS), consolidated=False)
    back = xr.open_zarr(tmp_path / "b.zarr", consolidated=False)
    assert back.t2m.encoding["chunks"] == (6, 12, 17)
    assert first_violation(ds.t2m.values, back.t2m.values, ErrorBound("abs", 0.1)) is None


# --- ranges ---


def test_ranges_take_one_pass_over_all_variables(ds):
    lazy = ds.chunk(time=4)
    passes = []

    def scheduler(graph, keys, **options):
        passes.append(keys)
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=scheduler):
        found = encoding_for(lazy, {"t2m": 1e-3, "msl": 1e-4}, mode="range_rel")
        assert len(passes) == 1
        encoding_for(lazy, BOUNDS)
        encoding_for(lazy, mode="lossless")
        assert len(passes) == 1
    expected = encoding_for(ds, {"t2m": 1e-3, "msl": 1e-4}, mode="range_rel")
    for name in ("t2m", "msl"):
        assert found[name]["serializer"] == expected[name]["serializer"]
    assert lazy.t2m.chunks is not None


def test_ranges_ignore_what_is_no_value(ds):
    ds["t2m"][3, 3, 3] = np.inf
    ds["t2m"][4, 4, 4] = -9999
    ds["t2m"].encoding["_FillValue"] = -9999.0
    valid = ds.t2m.values[np.isfinite(ds.t2m.values) & (ds.t2m.values != -9999)].astype("f8")
    config = encoding_for(ds.chunk(time=4), {"t2m": 0.01}, mode="range_rel")["t2m"]["serializer"][
        "configuration"
    ]
    assert (config["mode"], config["error_bound"]) == ("abs", pytest.approx(0.01 * np.ptp(valid)))


def test_ranges_of_blocks_without_values(ds):
    ds["t2m"][:4] = np.nan
    lazy = ds.chunk(time=4)
    config = encoding_for(lazy, {"t2m": 0.01}, mode="range_rel")["t2m"]["serializer"]["configuration"]
    assert config["error_bound"] == pytest.approx(0.01 * float(ds.t2m.max() - ds.t2m.min()), rel=1e-6)
    nothing = encoding_for(lazy.where(False), 0.01, mode="range_rel")["t2m"]["serializer"]["configuration"]
    assert nothing["mode"] == "lossless"


def test_error_of_a_chunk_reaches_the_caller(ds, tmp_path):
    lazy = ds.chunk(time=4)
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding_for(lazy, BOUNDS), consolidated=False)
    path = tmp_path / "a.zarr" / "t2m" / "c" / "2" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-5])
    with dask.config.set(scheduler="processes", num_workers=2), pytest.raises(errors.TruncatedStreamError):
        xr.open_zarr(tmp_path / "a.zarr", consolidated=False).t2m.load()
