"""Compress an xarray dataset into a Zarr store, and read it back with nothing but xarray.

python examples/xarray_store.py
"""

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from aesz_codec import encoding_for


def make_dataset() -> xr.Dataset:
    """Ten days of 2 m temperature (K) and pressure (Pa) on a one-degree grid, with missing values."""
    rng = np.random.default_rng(7)
    hours = np.arange(0, 240, 6)
    lat, lon = np.linspace(70, 30, 41), np.linspace(-20, 40, 61)
    waves = np.sin(np.deg2rad(4 * lon) - hours[:, None, None] / 24) * np.cos(np.deg2rad(3 * lat))[:, None]
    t2m = 288 - 0.5 * (lat[:, None] - 45) + 6 * waves + rng.normal(0, 0.1, waves.shape)
    t2m[:, :6, :8] = np.nan
    msl = 101_325 + 1500 * waves + rng.normal(0, 10, waves.shape)
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {
            "t2m": (dims, t2m.astype("float32"), {"units": "K", "standard_name": "air_temperature"}),
            "msl": (dims, msl.astype("float32"), {"units": "Pa"}),
        },
        coords={
            "time": np.datetime64("2020-01-01", "ns") + hours.astype("timedelta64[h]"),
            "lat": lat,
            "lon": lon,
        },
    )


def main() -> None:
    dataset = make_dataset()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "weather.zarr"

        # A bound for each variable: 0.05 K, and a thousandth of the range of the pressure.
        bounds = {"t2m": 0.05, "msl": ("range_rel", 1e-3)}
        dataset.to_zarr(store, encoding=encoding_for(dataset, error_bound=bounds))

        # Reading needs no import of this package: Zarr finds the codec by its entry point.
        with xr.open_zarr(store, chunks=None) as opened:
            for name in bounds:
                error = float(abs(opened[name].astype("float64") - dataset[name]).max())
                chunks = [
                    path for path in (store / name).rglob("*") if path.is_file() and path.name != "zarr.json"
                ]
                ratio = dataset[name].nbytes / sum(path.stat().st_size for path in chunks)
                codec = opened[name].encoding["serializer"]
                print(f"{name}: ratio {ratio:.1f}, largest error {error:.4g} {dataset[name].units}, {codec}")
            assert abs(opened.t2m - dataset.t2m).max() <= 0.05
            assert (opened.t2m.isnull() == dataset.t2m.isnull()).all()


if __name__ == "__main__":
    main()
