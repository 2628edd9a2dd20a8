"""The demonstration: real fields from the package iris-sample-data, compressed, checked and drawn.

Needs the extra ``demo`` (iris-sample-data, matplotlib), and no network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._store import open_array, open_folder
from .conversion import ConversionSummary, Progress, VariableSummary, convert
from .errors import ConversionError
from .verification import VerificationReport, verify

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DemoResult", "run_demo"]

BOUNDS = {
    "air_temperature": ("abs", 0.05),
    "tos": ("abs", 0.01),
    "air_potential_temperature": ("range_rel", 1e-3),
}
_TITLES = {
    "air_temperature": "Near-surface air temperature, climate projection, last year",
    "tos": "Sea surface temperature, global ocean model, last month",
    "air_potential_temperature": "Air potential temperature, 100 m model, lowest level",
}
_COLORS = {"air_temperature": "RdYlBu_r", "tos": "viridis", "air_potential_temperature": "inferno"}


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration left, and what it measured.

    Attributes
    ----------
    source : Path
        NetCDF file with the sample fields.
    summary : ConversionSummary
    lossless_ratios : dict
        Variable name to the ratio of each lossless codec on the same chunks; Zstandard is Zarr's default.
    verification : VerificationReport
    picture : Path
    """

    source: Path
    summary: ConversionSummary
    lossless_ratios: Mapping[str, Mapping[str, float]]
    verification: VerificationReport
    picture: Path


def run_demo(out: str | Path, *, progress: Callable[[Progress], None] | None = None) -> DemoResult:
    """Write the sample fields to ``out/sample.nc``, compress them, check the result and draw it.

    Parameters
    ----------
    out : path
        Folder for ``sample.nc``, ``sample.zarr`` and ``sample.png``; earlier ones are replaced.
    progress : callable, optional
        As for `convert`.

    Raises
    ------
    ConversionError
        If the extra ``demo`` is not installed, or the folder cannot be written.
    """
    sample = _sample_dataset()
    folder = Path(out)
    source, store, picture = (folder / "sample.nc", folder / "sample.zarr", folder / "sample.png")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sample.to_netcdf(source)
    except OSError as error:
        raise ConversionError(f"out: cannot write {source}: {error.strerror or error}") from error
    summary = convert(source, store, BOUNDS, overwrite=True, progress=progress)
    verification = verify(source, store, progress=progress)
    ratios = {v.name: _lossless_ratios(sample[v.name].values, v) for v in summary.variables}
    _draw(sample, summary, picture)
    return DemoResult(source, summary, ratios, verification, picture)


def _sample_dataset() -> xr.Dataset:
    """Put fields on three grids together: a climate projection, an ocean model, a fine weather model."""
    try:
        import iris_sample_data  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConversionError.at(
            "demo",
            found=f"no module {error.name}",
            expected="it installed",
            remedy="pip install 'aesz-codec[demo]'",
        ) from error
    import xarray as xr

    root = Path(iris_sample_data.path)

    def load(path: Path, drop: list[str]) -> xr.Dataset:
        with xr.open_dataset(path, decode_times=False, decode_timedelta=False) as dataset:
            return dataset.drop_vars(drop).load()

    reference = ["forecast_period", "forecast_reference_time"]
    air = load(root / "A1B_north_america.nc", reference)
    months = [
        load(path, ["time_counter", "time_centered_bounds", "bounds_lat", "bounds_lon"])
        for path in sorted((root / "NEMO").glob("nemo_1m_*.nc"))
    ]
    ocean = xr.concat(
        [month[["tos"]] for month in months],
        dim="time_counter",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="override",
    )
    ocean["time_centered"] = xr.concat([month["time_centered"] for month in months], dim="time_counter")
    hills = load(root / "hybrid_height.nc", [*reference, "time"])
    parts = [air, ocean.set_coords("time_centered"), hills]
    merged = xr.merge([part.drop_attrs(deep=False) for part in parts])
    for variable in merged.variables.values():
        if variable.attrs.get("bounds") not in merged.variables:
            variable.attrs.pop("bounds", None)
    merged.attrs = {"Conventions": "CF-1.5", "source": "sample fields of the package iris-sample-data"}
    return merged


def _lossless_ratios(values: np.ndarray, variable: VariableSummary) -> dict[str, float]:
    """Measure lossless codecs as Zarr stores with them, in the same chunks."""
    import zarr
    from zarr.codecs import BloscCodec, ZstdCodec

    peers: dict[str, Any] = {
        "Zstandard,\nlossless": ZstdCodec(),
        "Blosc (zstd, shuffle),\nlossless": BloscCodec(
            cname="zstd", shuffle="shuffle", typesize=values.dtype.itemsize
        ),
    }
    ratios = {}
    for title, codec in peers.items():
        with tempfile.TemporaryDirectory() as folder:
            zarr.create_array(
                Path(folder) / "array",
                data=values,
                chunks=variable.chunks,
                compressors=codec,
                fill_value=np.nan,
            )
            ratios[title] = variable.raw_bytes / open_array(open_folder(Path(folder)), "array").stored_bytes()
    return ratios


def _draw(sample: xr.Dataset, summary: ConversionSummary, picture: Path) -> None:
    """Draw one row a variable: original, reconstruction, and the error in units of the bound."""
    import xarray as xr
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 12), layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(len(summary.variables), 1, hspace=0.03)
    with xr.open_zarr(summary.store, chunks=None, decode_times=False) as stored:
        for row, variable in zip(rows, summary.variables, strict=True):
            frame = 0 if variable.name == "air_potential_temperature" else -1
            original = sample[variable.name][frame]
            reconstruction = stored[variable.name][frame]
            _draw_row(row, variable, original, reconstruction)
    figure.savefig(picture, dpi=110, metadata={"Software": None})


def _draw_row(
    row: Any, variable: VariableSummary, original: xr.DataArray, reconstruction: xr.DataArray
) -> None:
    assert variable.resolved.value is not None
    x, x_hat = (original.values.astype(np.float64), reconstruction.values.astype(np.float64))
    errors = (x_hat - x) / variable.resolved.value
    units = {"degree_C": "°C"}.get(original.attrs["units"], original.attrs["units"])
    panels = row.subplots(1, 3, sharey=True)
    row.suptitle(
        f"{_TITLES[variable.name]}:  ratio {variable.compression_ratio:.1f}, "
        f"|error| ≤ {variable.resolved.value:.3g} {units}",
        fontsize=13,
        fontweight="bold",
    )
    low, high = np.nanpercentile(x, (0.5, 99.5))
    field: dict[str, Any] = {"cmap": _COLORS[variable.name], "vmin": low, "vmax": high}
    images = (
        ("original", x, field, units),
        ("reconstruction", x_hat, field, units),
        ("error / bound", errors, {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}, "error / bound"),
    )
    labels, extent = _axes(original)
    for panel, (title, values, style, unit) in zip(panels, images, strict=True):
        panel.set_facecolor("0.75")
        image = panel.imshow(
            values, origin="lower", aspect="auto", interpolation="nearest", extent=extent, **style
        )
        panel.set_title(title)
        panel.set_xlabel(labels[1])
        extend = "neither" if unit == "error / bound" else "both"
        row.colorbar(image, ax=panel, label=unit, extend=extend, shrink=0.95)
    panels[0].set_ylabel(labels[0])
    largest = np.nanmax(np.abs(errors))
    panels[2].set_title(
        f"error / bound: largest {largest:.3f} here, {variable.errors.max_error_over_bound:.3f} in all"
    )


def _axes(field: xr.DataArray) -> tuple[list[str], tuple[float, ...] | None]:
    """Return the labels of the axes and, on a regular grid, its corners."""
    labels: list[str] = []
    extent: list[float] = []
    for dim in field.dims:
        if dim not in field.coords:
            labels.append(f"grid index {dim}")
            continue
        values = field[dim].values
        half = (values[1] - values[0]) / 2
        extent = [values[0] - half, values[-1] + half, *extent]
        units = (
            str(field[dim].attrs.get("units", ""))
            .replace("degrees_north", "°N")
            .replace("degrees_east", "°E")
        )
        labels.append(f"{str(dim).replace('_', ' ')} ({units.replace('degrees', '°')})")
    return labels, tuple(map(float, extent)) if len(extent) == 4 else None
