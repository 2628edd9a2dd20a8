"""Make an archive like ERA5 and convert it: hourly, 0.25 degrees, five variables, 24 files that follow each other.

    python examples/make_archive.py                              # small, in a temporary folder, and converted
    python examples/make_archive.py --out era5 --gigabytes 4     # the files only, to play with

The fields are synthetic: waves with a spectrum that falls as that of the atmosphere, which travel at speeds that depend
on their length; humidity and rain come from the same waves.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

FILES = 24
VARIABLES = {  # standard name, units, mean, standard deviation, exponent of the spectrum
    "t2m": ("air_temperature", "K", 280.0, 12.0, -3.2),
    "msl": ("air_pressure_at_mean_sea_level", "Pa", 101_000.0, 900.0, -4.0),
    "u10": ("eastward_wind", "m s-1", 1.0, 5.0, -2.8),
    "v10": ("northward_wind", "m s-1", 0.0, 4.5, -2.8),
    "tp": ("precipitation_amount", "kg m-2", 0.0, 1.0, -2.4),
}


def waves(shape: tuple[int, int], exponent: float, hours: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield one field an hour, of mean 0 and standard deviation 1."""
    rng = np.random.default_rng(seed)
    ky, kx = np.fft.fftfreq(shape[0])[:, None] * shape[0], np.fft.rfftfreq(shape[1])[None] * shape[1]
    k = np.hypot(ky, kx)
    amplitude = np.where(k > 0, np.maximum(k, 3.0) ** ((exponent - 1) / 2), 0.0)
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(k.shape))
    frequency = 2 * np.pi * (kx * 0.012 / np.sqrt(1 + k / 20) + 0.004 * rng.normal(size=k.shape) * np.sqrt(k))
    scale = 1 / np.fft.irfft2(spectrum, shape).std()
    for hour in hours:
        yield np.fft.irfft2(spectrum * np.exp(1j * frequency * hour), shape) * scale


def make_archive(folder: Path, hours: int, step: float = 0.25, files: int = FILES) -> list[Path]:
    """Write the files, equally long ones, and return their paths."""
    latitude = np.arange(90, -90 - step / 2, -step)
    longitude = np.arange(0, 360, step)
    first = [hours * number // files for number in range(files + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    generators = {
        name: waves((latitude.size, longitude.size), exponent, np.arange(hours), seed)
        for seed, (name, (_, _, _, _, exponent)) in enumerate(VARIABLES.items())
    }
    paths = []
    for number in range(files):
        time = np.arange(first[number], first[number + 1])
        data = {}
        for name, (standard_name, units, mean, deviation, _) in VARIABLES.items():
            frames = np.stack([next(generators[name]) for _ in time])
            if name == "tp":
                frames = np.maximum(frames - 1, 0) ** 2
            elif name == "t2m":
                frames = frames + 2.5 * np.cos(np.radians(latitude))[None, :, None]
            attributes = {"standard_name": standard_name, "units": units}
            values = (mean + deviation * frames).astype("float32")
            data[name] = (("time", "latitude", "longitude"), values, attributes)
        coordinates = {
            "time": ("time", time, {"units": "hours since 2024-01-01", "standard_name": "time"}),
            "latitude": ("latitude", latitude, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east", "standard_name": "longitude"}),
        }
        paths.append(folder / f"era5-{number:02}.nc")
        xr.Dataset(data, coordinates, {"Conventions": "CF-1.8", "title": "synthetic"}).to_netcdf(paths[-1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the files, which are kept")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of all files (default: 4)")
    parser.add_argument("--step", type=float, default=0.25, help="of the grid, in degrees (default: 0.25)")
    options = parser.parse_args()
    if options.out is not None:
        frame = len(VARIABLES) * 4 * (180 / options.step + 1) * (360 / options.step)
        paths = make_archive(options.out, max(FILES, round(options.gigabytes * 1e9 / frame)), options.step)
        print(
            f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e9:.2f} GB in {options.out}"
        )
        return

    from aesz_codec import convert

    with tempfile.TemporaryDirectory() as folder:
        make_archive(Path(folder) / "era5", hours=FILES, step=4.0)
        store = Path(folder) / "era5.zarr"
        bounds = {"t2m": 0.05, "msl": 5.0, "*": ("range_rel", 1e-3)}
        summary = convert(
            f"{folder}/era5/*.nc", store, bounds, chunks={"time": 12}
        )  # report="report.html" draws it
        for variable in summary.variables:
            print(
                f"{variable.name}: ratio {variable.compression_ratio:.1f}, largest error / bound "
                f"{variable.errors.max_error_over_bound:.3f}, {variable.throughput:.0f} MB/s"
            )
        with xr.open_zarr(store, chunks=None) as stored:
            print(
                f"{stored.sizes['time']} hours from {stored.time.values[0]} on, mean {float(stored.t2m.mean()):.1f} K"
            )


if __name__ == "__main__":
    main()
