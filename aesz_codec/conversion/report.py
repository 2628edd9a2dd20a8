"""The outcome of a conversion for those who doubt it: one HTML file that needs no network, and the same as JSON.

Ratios, bounds and errors are those of every value, as the workers measured them while they wrote. Maps and spectra show
one frame of each variable, in the middle of its other dimensions, read from the source and from the finished store. The
histogram of errors is that of a sample.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import pipeline
from .._source import one_line
from .._store import StoreAddress, open_array
from ..errors import AESZError, ConversionError, InvalidConfigError
from ..models import ModelReference
from .plan import ConversionPlan
from .summary import ConversionSummary, VariableSummary

__all__ = ["check_report", "make_report"]

_LONGEST = 720  # points of a map along an axis
_SPECTRUM = 200  # points of a spectrum
_SHARES = (-1, -0.5, 0, 0.5, 1)  # of the bound, at axes
_BLUE, _ORANGE, _GRAY = "#1f5fa8", "#c2571a", "#8a8f98"


def check_report(path: str | os.PathLike[str]) -> Path:
    """Say before the work begins whether a report can be made.

    Raises
    ------
    InvalidConfigError
        If matplotlib is not installed.
    ConversionError
        If the file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise InvalidConfigError.at(
            "report",
            found="no package matplotlib",
            expected="it installed",
            remedy="pip install 'aesz-codec[report]'",
        )
    file = Path(path)
    if not file.parent.is_dir() or file.is_dir() or file.suffix == ".json":
        raise ConversionError.at(
            "report", found=str(file), expected="a file, such as report.html, in a folder that exists"
        )
    return file


def make_report(
    summary: ConversionSummary, plan: ConversionPlan, store: StoreAddress, path: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write a report, and its content as JSON beside it.

    Parameters
    ----------
    summary : ConversionSummary
    plan : ConversionPlan
        With the source, still open.
    store : StoreAddress
        The finished store.
    path : path
        Of the HTML file; the suffix becomes ``.json`` for the other.

    Returns
    -------
    dict
        What the JSON file holds.

    Raises
    ------
    ConversionError
        If one cannot be written.
    """
    file = check_report(path)
    frames = {v.name: _frames(v, plan, store) for v in summary.variables}
    content = {
        "store": str(summary.store),
        "zarr_format": plan.zarr_format,
        "seconds": round(summary.seconds, 3),
        "workers": summary.workers,
        "tasks_done_before": summary.resumed,
        "raw_bytes": summary.raw_bytes,
        "stored_bytes": summary.stored_bytes,
        "compression_ratio": _number(summary.compression_ratio),
        "copied": list(summary.copied),
        "skipped": [{"name": entry.name, "reason": entry.reason} for entry in summary.skipped],
        "variables": [_variable(v, plan, *frames[v.name]) for v in summary.variables],
    }
    pictures = {v.name: _pictures(v, plan, *frames[v.name]) for v in summary.variables}
    try:
        file.with_suffix(".json").write_text(
            json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        file.write_text(_page(content, pictures), encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"report: cannot write {file}: {error.strerror or one_line(error)}") from error
    return content


# Content


def _frames(
    variable: VariableSummary, plan: ConversionPlan, store: StoreAddress
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read one frame of the source, in the stored dtype, and of the store."""
    if len(variable.shape) < 2 or 0 in variable.shape:
        return None, None
    place: Any = (*(n // 2 for n in variable.shape[:-2]), slice(None), slice(None))
    try:
        with np.errstate(over="ignore"):
            x = np.asarray(plan.dataset.variables[variable.name][place].values).astype(variable.dtype)
        return x, np.asarray(open_array(store, variable.name).array[place])
    except AESZError:
        raise
    except Exception as error:
        raise ConversionError(f"report: cannot read a frame of {variable.name}: {one_line(error)}") from error


def _variable(
    v: VariableSummary, plan: ConversionPlan, x: np.ndarray | None, x_hat: np.ndarray | None
) -> dict[str, Any]:
    errors = v.errors
    entry: dict[str, Any] = {
        "name": v.name,
        "units": str(plan.dataset.variables[v.name].attrs.get("units", "")),
        "dims": list(v.dims),
        "shape": list(v.shape),
        "dtype": v.dtype,
        "chunks": list(v.chunks),
        "shards": None if v.shards is None else list(v.shards),
        "bound": {"mode": v.requested.mode, "value": v.requested.value, "resolved": v.resolved.value},
        "raw_bytes": v.raw_bytes,
        "stored_bytes": v.stored_bytes,
        "compression_ratio": _number(v.compression_ratio),
        "bits_per_value": _number(8 * v.stored_bytes / max(1, math.prod(v.shape))),
        "values": errors.n,
        "values_outside": errors.violations,
        "max_abs_error": errors.max_abs_error,
        "max_error_over_bound": _number(errors.max_error_over_bound)
        if v.resolved.value is not None
        else None,
        "rmse": _number(errors.rmse),
        "psnr": _number(errors.psnr),
        "range": [_number(errors.minimum), _number(errors.maximum)],
        "predictors": dict(v.predictors),
        "models": dict(v.models),
        "model_bytes": v.model_bytes,
        "ratio_with_models": _number(v.raw_bytes / (v.stored_bytes + v.model_bytes))
        if v.stored_bytes
        else None,
        "break_even_values": _break_even(v, plan) if v.models else None,
        "seconds": {key: round(value, 3) for key, value in v.timings.items()},
        "throughput_of_a_worker": _number(v.throughput),
        "histogram": list(v.histogram),
    }
    if x is not None and x_hat is not None:
        wavenumbers, of_original = _spectrum(x)
        _, of_error = _spectrum(x_hat.astype(np.float64) - x)
        entry["spectrum"] = {"wavenumber": wavenumbers, "original": of_original, "error": of_error}
    return entry


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _spectrum(frame: np.ndarray) -> tuple[list[float], list[float]]:
    """Return wavenumbers along the last axis and the mean power of the rows without gaps."""
    rows = frame.astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not rows.size or rows.shape[1] < 4:
        return [], []
    power = np.mean(np.abs(np.fft.rfft(rows - rows.mean(axis=1, keepdims=True), axis=1)) ** 2, axis=0)[1:]
    power /= rows.shape[1] ** 2
    edges = np.unique(np.geomspace(1, power.size + 1, min(_SPECTRUM, power.size) + 1).astype(int))
    counts = np.diff(edges)
    means = np.add.reduceat(power, edges[:-1] - 1) / counts if counts.size else power
    return [float(a + n / 2 - 0.5) for a, n in zip(edges[:-1], counts, strict=True)], [
        float(m) for m in means
    ]


def _break_even(v: VariableSummary, plan: ConversionPlan) -> int | None:
    """Estimate, on one chunk coded with its models and without, after how many values they have paid for themselves."""
    keys = plan.encoding[v.name]
    configuration = keys["serializer"]["configuration"] if "serializer" in keys else keys["compressors"][0]
    packs = [ModelReference.from_json(entry).pack() for entry in configuration.get("models", ())]
    place = tuple(
        slice(start := n // 2 // chunk * chunk, min(n, start + chunk))
        for n, chunk in zip(v.shape, v.chunks, strict=True)
    )
    values = np.asarray(plan.dataset.variables[v.name][place].values).astype(v.dtype)
    effort = configuration.get("effort", "default")
    plain = len(pipeline.encode(values, v.recorded, effort=effort))
    saved = plain - len(pipeline.encode(values, v.recorded, effort=effort, models=packs))
    return math.ceil(sum(pack.nbytes for pack in packs) * values.size / saved) if saved > 0 else None


# Pictures


def _pictures(
    v: VariableSummary, plan: ConversionPlan, x: np.ndarray | None, x_hat: np.ndarray | None
) -> list[tuple[str, str]]:
    """Draw what there is to draw: (title, ``data:`` URL) each."""
    from matplotlib import rc_context

    units = str(plan.dataset.variables[v.name].attrs.get("units", ""))
    pictures = []
    with rc_context({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False}):
        if x is not None and x_hat is not None:
            pictures.append(("Original, reconstruction and error of one frame", _maps(v, x, x_hat, units)))
        if v.histogram:
            pictures.append(("Errors over their bound", _histogram(v.histogram)))
        if x is not None and x_hat is not None:
            wavenumbers, of_original = _spectrum(x)
            _, of_error = _spectrum(x_hat.astype(np.float64) - x)
            if wavenumbers:
                pictures.append(
                    ("Power along the last dimension", _spectra(wavenumbers, of_original, of_error, units))
                )
    return pictures


def _maps(v: VariableSummary, x: np.ndarray, x_hat: np.ndarray, units: str) -> str:
    from matplotlib.figure import Figure

    steps = [max(1, -(-n // _LONGEST)) for n in x.shape]
    x, x_hat = (a[:: steps[0], :: steps[1]].astype(np.float64) for a in (x, x_hat))
    error = x_hat - x
    allowed = v.resolved.value if v.resolved.mode == "abs" else None
    if allowed:
        error = error / allowed
    of_units = f" ({units})" if units else ""
    title = "error / bound" if allowed else f"error{of_units}"
    height = 5.2 * min(1.2, max(0.3, x.shape[0] / x.shape[1])) + 0.7
    figure = Figure(figsize=(6, 3 * height), layout="constrained")
    finite = x[np.isfinite(x)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    limit = 1.0 if allowed else float(np.nanmax(np.abs(error), initial=0.0)) or 1.0
    panels: list[tuple[str, np.ndarray, Any]] = [
        (f"original{of_units}", x, {"vmin": low, "vmax": high, "cmap": "viridis"}),
        (f"reconstruction{of_units}", x_hat, {"vmin": low, "vmax": high, "cmap": "viridis"}),
        (title, error, {"vmin": -limit, "vmax": limit, "cmap": "RdBu_r"}),
    ]
    for number, (name, values, how) in enumerate(panels):
        axes = figure.add_subplot(3, 1, number + 1)
        image = axes.imshow(values, aspect="auto", interpolation="nearest", **how)
        axes.set_title(name, loc="left")
        axes.set_axis_off()
        ticks = _SHARES if allowed and values is error else None
        figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, ticks=ticks)
    return _url(figure, "png")


def _histogram(counts: Sequence[int]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axes = figure.add_subplot()
    edges = np.linspace(-1, 1, len(counts) + 1)
    axes.bar(edges[:-1], np.asarray(counts) / max(1, sum(counts)), np.diff(edges), align="edge", color=_BLUE)
    axes.set_xticks(_SHARES)
    axes.set_xlabel("error / bound")
    axes.set_ylabel("share of values")
    return _url(figure, "svg")


def _spectra(
    wavenumbers: Sequence[float], original: Sequence[float], error: Sequence[float], units: str
) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(wavenumbers, original, color=_BLUE, label="original")
    if max(error, default=0.0) > 0:
        axes.plot(wavenumbers, error, color=_ORANGE, label="error")
    axes.set_xscale("log")
    if max(original, default=0.0) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("wavenumber")
    axes.set_ylabel(f"power{f' ({units})²' if units else ''}")
    axes.legend(frameon=False)
    return _url(figure, "svg")


def _url(figure: Any, kind: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# Page

_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1b1e23; background: #fff; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid #d5d9df; padding-top: 1rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.numbers div { background: #f3f5f8; border-radius: .5rem; padding: .5rem .75rem; }
.numbers b { display: block; font-size: 1.15rem; } .numbers span { font-size: .875rem; color: #4a505a; }
figure { margin: 1.2rem 0; } figcaption { font-size: .9375rem; color: #4a505a; }
img { max-width: 100%; height: auto; } dl { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .15rem .9rem; }
dt { color: #4a505a; } dd { margin: 0; } .bad { color: #a3180d; }
@media (min-width: 50rem) { .pictures { columns: 2; } figure { break-inside: avoid; } }
"""


def _page(content: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    outside = sum(v["values_outside"] for v in content["variables"])
    values = sum(v["values"] for v in content["variables"])
    verdict = (
        f"Each of {values:,} values is within its bound: compared while they were written, value by value."
        if not outside
        else f"{outside:,} of {values:,} values are outside their bound."
    )
    body = [
        f"<h1>{_text(content['store'])}</h1>",
        f'<p class="{"bad" if outside else "good"}" id="verdict">{_text(verdict)}</p>',
        _cards(
            {
                "ratio": _shown(content["compression_ratio"]),
                "before": _size(content["raw_bytes"]),
                "after": _size(content["stored_bytes"]),
                "time": f"{content['seconds']:.1f} s, {content['workers']} worker"
                + "s" * (content["workers"] > 1),
            }
        ),
    ]
    if content["skipped"]:
        entries = "".join(f"<li>{_text(e['name'])}: {_text(e['reason'])}</li>" for e in content["skipped"])
        body.append(
            f'<p class="bad">Left out, because they could not be read:</p><ul class="bad">{entries}</ul>'
        )
    if content["copied"]:
        body.append(f"<p>Copied exactly, without this codec: {_text(', '.join(content['copied']))}.</p>")
    body.extend(_section(v, pictures[v["name"]]) for v in content["variables"])
    body.append(
        "<h2>How it was measured</h2><p>Largest errors and PSNR are over every value, in float64, between the source and what "
        "the stored bytes decode to. Maps and spectra show one frame in the middle; the histogram a sample of the values. "
        "Seconds are those of all workers together.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(content['store'])}: compression report</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _section(v: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    bound = v["bound"]
    units = f" {v['units']}" if v["units"] else ""
    asked = "every bit is kept" if bound["value"] is None else f"{bound['mode']} {bound['value']:g}"
    if bound["mode"] == "range_rel" and bound["resolved"] is not None:
        asked += f" = {bound['resolved']:.4g}{units}"
    elif bound["mode"] == "abs":
        asked += units
    over = v["max_error_over_bound"]
    cards = {
        "ratio": _shown(v["compression_ratio"]),
        "bound": asked,
        "largest error / bound": "-" if over is None else f"{over:.4f}",
        "PSNR": "-" if v["psnr"] is None else f"{v['psnr']:.1f} dB",
    }
    facts = {
        "values": f"{v['values']:,}, {v['values_outside']:,} outside the bound",
        "largest error": f"{v['max_abs_error']:.6g}{units}",
        "shape": f"{_lengths(v['shape'])} ({', '.join(v['dims'])}), {v['dtype']}",
        "chunks": _lengths(v["chunks"]) + (f" in shards of {_lengths(v['shards'])}" if v["shards"] else ""),
        "bytes": f"{_size(v['raw_bytes'])} to {_size(v['stored_bytes'])}, {v['bits_per_value']:.3g} bits a value",
        "predictors": ", ".join(f"{name} in {count}" for name, count in v["predictors"].items()) or "-",
        "seconds": ", ".join(f"{key} {value:.2f}" for key, value in v["seconds"].items()),
        "throughput": f"{_shown(v['throughput_of_a_worker'])} MB/s a worker",
    }
    if v["models"]:
        even = v["break_even_values"]
        facts["models"] = ", ".join(f"{digest[:12]} in {count}" for digest, count in v["models"].items())
        facts["their bytes"] = (
            f"{_size(v['model_bytes'])} in the metadata, ratio with them {_shown(v['ratio_with_models'])}"
        )
        facts["break-even"] = "not on the chunk that was tried" if even is None else f"after {even:,} values"
    rows = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts.items())
    drawn = "".join(
        f'<figure><img alt="{_text(v["name"])}: {_text(title)}" src="{url}"><figcaption>{_text(title)}</figcaption></figure>'
        for title, url in pictures
    )
    name = _text(v["name"])
    body = f'{_cards(cards)}<dl>{rows}</dl><div class="pictures">{drawn}</div>'
    return f'<section id="variable-{name}"><h2>{name}</h2>{body}</section>'


def _cards(entries: Mapping[str, str]) -> str:
    return '<div class="numbers">' + "".join(
        f"<div><span>{_text(key)}</span><b>{_text(value)}</b></div>" for key, value in entries.items()
    ) + "</div>"  # fmt: skip


def _text(value: Any) -> str:
    return html.escape(str(value))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _lengths(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes)) or "scalar"


def _size(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
