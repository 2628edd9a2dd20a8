"""Another process, years later: a bare ``xr.open_zarr``, and an import that loads next to nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from aesz_codec import encoding_for

HEAVY = ("torch", "xarray", "dask", "zarr", "matplotlib", "numcodecs", "numpy")


def run(code, *arguments, flags=()):
    result = subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result


NO_TORCH = """
import importlib.abc, json, sys
class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not here")
sys.meta_path.insert(0, NoTorch())
"""

READ = (
    NO_TORCH
    + """
import warnings
import numpy as np
import xarray as xr
assert not any(name.startswith("aesz_codec") for name in sys.modules)
warnings.simplefilter("error")
ds = xr.open_zarr(sys.argv[1], chunks=None)
values = ds["t2m"].values
point = float(ds["t2m"][3, 5, 7])
assert "torch" not in sys.modules
np.save(sys.argv[2], values)
print(json.dumps({"point": point, "ours": sorted(n for n in sys.modules if n.startswith("aesz_codec"))}))
"""
)


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    t2m = (280 + np.cumsum(rng.normal(0, 0.3, (24, 12, 17)), axis=0)).astype("f4")
    t2m[5, :3] = np.nan
    return xr.Dataset({"t2m": (("time", "lat", "lon"), t2m)}, coords={"time": np.arange(24)})


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize(
    ("zarr_format", "shards"),
    [(2, None), (3, None), (3, {"time": 8})],
    ids=["format 2", "format 3", "shards"],
)
def test_bare_open_zarr_decodes_without_a_warning(ds, tmp_path, zarr_format, shards):
    path = tmp_path / "a.zarr"
    encoding = encoding_for(ds, 0.05, zarr_format=zarr_format, chunks={"time": 4}, shards=shards)
    ds.to_zarr(path, encoding=encoding, zarr_format=zarr_format)
    result = run(READ, path, tmp_path / "values.npy")
    assert result.stderr == ""
    values = np.load(tmp_path / "values.npy")
    assert values.dtype == np.float32
    assert np.array_equal(np.isnan(values), np.isnan(ds.t2m.values))
    assert np.nanmax(np.abs(values.astype("f8") - ds.t2m.values)) <= 0.05
    found = json.loads(result.stdout)
    assert abs(found["point"] - float(ds.t2m[3, 5, 7])) <= 0.05
    assert "aesz_codec" in found["ours"]
    assert not {"aesz_codec.encoding", "aesz_codec.conversion", "aesz_codec.cli"} & set(found["ours"])


def test_get_codec_finds_the_codec():
    code = """
import numcodecs
codec = numcodecs.get_codec({"id": "aesz", "error_bound": 0.05, "mode": "abs"})
print(type(codec).__module__, codec)
"""
    assert run(code, flags=["-W", "error"]).stdout == "aesz_codec.codec AESZ(error_bound=0.05, mode='abs')\n"


def test_import_loads_nothing_heavy():
    code = f"""
import sys
before = set(sys.modules)
import aesz_codec
names = dir(aesz_codec)
assert {{"AESZ", "AESZCodec", "encoding_for", "errors", "__version__"}} <= set(names)
print([name for name in {HEAVY} if name in set(sys.modules) - before])
"""
    assert run(code, flags=["-W", "error"]).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("errors", HEAVY),
        ("AESZ", ("torch", "xarray", "dask", "zarr", "matplotlib")),
        ("AESZCodec", ("torch", "xarray", "dask", "matplotlib")),
        ("encoding_for", ("torch", "xarray", "dask", "zarr", "matplotlib")),
    ],
)
def test_each_name_loads_only_what_it_needs(name, absent):
    code = f"""
import sys
from aesz_codec import {name}
print([name for name in {absent} if name in sys.modules])
"""
    assert run(code, flags=["-W", "error"]).stdout == "[]\n"


def test_unknown_name_and_version():
    import aesz_codec

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aesz_codec.nothing  # noqa: B018
    assert aesz_codec.__version__.count(".") >= 1
