"""`inspect_store` and `inspect_chunk`: every byte of a store accounted for, and what else it could have been."""

import json
import math

import numpy as np
import pytest
import xarray as xr

from aesz_codec.bounds import ErrorBound
from aesz_codec.conversion import convert
from aesz_codec.dissection import candidates
from aesz_codec.errors import ConversionError, CorruptStreamError, InvalidConfigError
from aesz_codec.inspection import inspect_chunk, inspect_chunks, inspect_store

DIMS = ("time", "lat", "lon")
METADATA = {"zarr.json", ".zarray", ".zattrs"}


@pytest.fixture
def source():
    field = np.sin(np.arange(11 * 8 * 9, dtype="float32") / 50).reshape(11, 8, 9)
    field[4:8] = np.nan
    return xr.Dataset(
        {"v": (DIMS, field), "w": (DIMS, field.astype("float64")), "n": ("lat", np.arange(8))},
        coords={"lon": np.arange(9.0)},
    )


@pytest.fixture(params=["v2", "v3", "shards"])
def store(request, tmp_path, source):
    data = source
    layout = {"v2": {"zarr_format": 2}, "v3": {}, "shards": {"shards": {"time": 8}}}[request.param]
    convert(data, tmp_path / "a.zarr", {"v": 1e-3, "w": "lossless"}, chunks={"time": 4}, **layout)
    return tmp_path / "a.zarr"


def stored_bytes(store, name):
    files = [p for p in (store / name).rglob("*") if p.is_file() and p.name not in METADATA]
    return sum(p.stat().st_size for p in files)


def test_bytes_and_choices_add_up(store):
    report = inspect_store(store)
    assert [v.name for v in report.variables] == ["v", "w"]
    assert set(report.others) == {"n", "lon"}
    for variable in report.variables:
        assert variable.stored_bytes == stored_bytes(store, variable.name)
        assert variable.raw_bytes == 11 * 8 * 9 * {"v": 4, "w": 8}[variable.name]
        assert variable.compression_ratio == variable.raw_bytes / variable.stored_bytes
        assert variable.chunk_count == 3
        assert sum(variable.predictors.values()) == variable.chunk_count - variable.empty_chunks
        index = 2 * (2 * 16 + 4) if variable.shards else 0  # two shards of two chunks, with a checksum each
        assert sum(variable.sections.values()) == variable.stored_bytes - index
    v, w = report.variables
    assert (v.mode, v.error_bound, w.mode, w.error_bound) == ("abs", 1e-3, "lossless", None)
    assert (v.empty_chunks, w.empty_chunks) == (1, 0)  # lossless keeps the chunk of NaNs


def test_report_is_json(store):
    report = json.loads(json.dumps(inspect_store(store).to_json(), allow_nan=False))
    assert report["zarr_format"] in (2, 3)
    assert report["variables"][0]["name"] == "v"
    assert report["others"]["n"]["raw_bytes"] == 64


def test_a_chunk_in_detail(store):
    chunk = inspect_chunk(store, "v", (2, 0, 0))
    assert chunk.stored and chunk.shape == (4, 8, 9) and chunk.dtype == "float32"
    assert (chunk.mode, chunk.error_bound) == ("abs", 1e-3)
    assert sum(chunk.sections.values()) == chunk.stored_bytes
    assert not inspect_chunk(store, "v", (1, 0, 0)).stored


@pytest.mark.parametrize(
    ("name", "index"), [("v", (3, 0, 0)), ("v", (0, 0)), ("v", (-1, 0, 0)), ("n", (0,)), ("x", (0,))]
)
def test_no_such_chunk(store, name, index):
    with pytest.raises(InvalidConfigError):
        inspect_chunk(store, name, index)


def test_what_a_chunk_could_have_been(store):
    header = inspect_chunk(store, "v", (2, 0, 0), candidates=False)
    assert (header.candidates, header.candidates_from, header.forecast) == ((), "", None)
    for name, most in (("v", 30), ("w", 1)):  # of what is kept exactly, the encoder has one way for each
        chunk = inspect_chunk(store, name, (0, 0, 0))
        (chosen,) = (c for c in chunk.candidates if c.chosen)
        assert (chosen.method, chosen.nbytes) == (chunk.predictor, chunk.stored_bytes)
        assert chunk.candidates_from == "decoded"
        sizes = [c.nbytes for c in chunk.candidates]
        assert sizes == sorted(sizes) and most // 5 < len(sizes) <= most
    assert inspect_chunk(store, "v", (1, 0, 0)).candidates == ()  # nothing is stored
    every = list(inspect_chunks(store, "v"))
    assert [c.index for c in every] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert every[2] == inspect_chunk(store, "v", (2, 0, 0))


def test_what_a_chunk_could_have_been_from_the_source(store, source):
    """The last chunk reaches over the edge: the encoder saw it padded."""
    for index in ((0, 0, 0), (2, 0, 0)):
        chunk = inspect_chunk(store, "v", index, source=source)
        assert chunk.candidates_from == "source"
        array = np.full((4, 8, 9), np.nan, "f4")
        values = source["v"].values[4 * index[0] : 4 * index[0] + 4]
        array[: len(values)] = values
        known = {(c.method, str(c.parameters)): c.nbytes for c in candidates(array, ErrorBound("abs", 1e-3))}
        for c in chunk.candidates:
            same = [
                n for (m, p), n in known.items() if m == c.method and (c.chosen or p == str(c.parameters))
            ]
            assert c.nbytes in same


def test_sources_that_are_none(store, source, tmp_path):
    for wrong in (source.drop_vars("v"), source.isel(time=slice(4)), source.fillna(0).astype("int32")):
        with pytest.raises(ConversionError, match="source: found"):
            inspect_chunk(store, "v", (0, 0, 0), source=wrong)
    with pytest.raises(ConversionError, match="existing"):
        inspect_chunk(store, "v", (0, 0, 0), source=tmp_path / "none.nc")


def test_unreadable_chunks_are_reported(store):
    damaged = [p for p in (store / "v").rglob("*") if p.is_file() and p.name not in METADATA]
    for path in damaged:
        path.write_bytes(b"")
    v, w = inspect_store(store).variables
    assert len(v.unreadable) == len(damaged)
    assert not w.unreadable and sum(w.predictors.values()) == 3
    with pytest.raises(CorruptStreamError):
        inspect_chunk(store, "v", (0, 0, 0))


def test_arrays_inside_other_codecs(tmp_path):
    """Forgetting ``compressors=None`` adds Zstandard: sizes are right, chunks cannot be described."""
    data = xr.Dataset({"v": (DIMS, np.zeros((4, 5, 6), "float32"))})
    codec = {"name": "aesz", "configuration": {"error_bound": 0.1}}
    data.to_zarr(tmp_path / "a.zarr", encoding={"v": {"serializer": codec, "_FillValue": math.nan}})
    (v,) = inspect_store(tmp_path / "a.zarr").variables
    assert v.wrapped and v.stored_bytes > 0 and not v.predictors
    with pytest.raises(ConversionError, match="other codecs"):
        inspect_chunk(tmp_path / "a.zarr", "v", (0, 0, 0))
