"""Through icechunk, VirtualiZarr and kerchunk, where they are installed: what docs/archives.md says of each."""

import json

import numpy as np
import pytest
import xarray as xr

from aesz_codec import encoding_for
from aesz_codec.conversion import convert
from aesz_codec.errors import ConversionError

DIMS = ("time", "lat", "lon")


@pytest.fixture(scope="module")
def data():
    t, y, x = np.meshgrid(np.arange(24), np.arange(20), np.arange(30), indexing="ij")
    field = (280 + np.sin(t / 5 + y / 6 + x / 7)).astype("float32")
    return xr.Dataset(
        {"t2m": (DIMS, field, {"units": "K"})},
        {"time": ("time", np.arange(24), {"units": "hours since 2000-01-01"}), "lat": np.arange(20.0)},
    )


def close(stored, data):
    return float(np.abs(stored.t2m.values - data.t2m.values).max()) <= 0.05


def repository(icechunk, folder, **options):
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)), **options)


def test_icechunk(data, tmp_path):
    """Written by xarray: `convert` keeps its journal in the store, which icechunk does not take."""
    icechunk = pytest.importorskip("icechunk")
    repo = repository(icechunk, tmp_path / "repo")
    session = repo.writable_session("main")
    encoding = encoding_for(data, {"t2m": 0.05}, chunks={"time": 6})
    data.to_zarr(session.store, encoding=encoding, zarr_format=3, consolidated=False)
    session.commit("t2m")
    with xr.open_zarr(repo.readonly_session("main").store, chunks=None, consolidated=False) as stored:
        assert close(stored, data)
    with pytest.raises(ConversionError, match="encoding_for"):
        convert(data, repo.writable_session("main").store, {"t2m": 0.05})


@pytest.mark.parametrize("shards", [None, {"time": 12}], ids=["plain", "shards"])
def test_virtual_references(data, tmp_path, shards):
    """Of format 3, in icechunk: nothing is copied, and the codec comes with the metadata."""
    icechunk = pytest.importorskip("icechunk")
    virtualizarr = pytest.importorskip("virtualizarr")
    pytest.importorskip("arro3.core")
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore

    convert(data, tmp_path / "out.zarr", {"t2m": 0.05}, chunks={"time": 6}, shards=shards)
    virtual = virtualizarr.open_virtual_dataset(
        (tmp_path / "out.zarr").as_uri(),
        registry=ObjectStoreRegistry({"file://": LocalStore()}),
        parser=virtualizarr.parsers.ZarrParser(),
    )
    prefix = f"{tmp_path.as_uri()}/"
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(str(tmp_path)))
    )
    repo = repository(
        icechunk, tmp_path / "repo", config=config, authorize_virtual_chunk_access={prefix: None}
    )
    session = repo.writable_session("main")
    virtual.vz.to_icechunk(session.store, validate_containers=False)  # 2.5 takes file:/ for another prefix
    session.commit("references")
    with xr.open_zarr(repo.readonly_session("main").store, chunks=None, consolidated=False) as stored:
        assert close(stored, data) and np.array_equal(stored.lat, data.lat)


def test_kerchunk(data, tmp_path):
    """References to stores of format 2."""
    kerchunk = pytest.importorskip("kerchunk.zarr")
    convert(data, tmp_path / "out.zarr", {"t2m": 0.05}, chunks={"time": 6}, zarr_format=2)
    references = tmp_path / "references.json"
    references.write_text(json.dumps(kerchunk.single_zarr(str(tmp_path / "out.zarr"))))
    with xr.open_dataset(str(references), engine="kerchunk") as stored:
        assert close(stored, data)
