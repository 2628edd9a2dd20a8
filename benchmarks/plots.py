"""The two plots of a report: rate against distortion, and ratio against speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, speed
from benchmarks.rates import OURS, Rate, Table

# Okabe and Ito: told apart by the color-blind; ours is one color in several markers.
_COLORS = {
    OURS: "#D55E00",
    "sz3": "#000000",
    "sperr": "#0072B2",
    "jpegxl": "#009E73",
    "pcodec": "#CC79A7",
    "zfp": "#E69F00",
}
_MARKERS = {"sz3": "s", "sperr": "D", "jpegxl": "v", "pcodec": "X", "zfp": "P"}
_OUR_MARKERS = {"aesz-fast": "<", "aesz-default": "o", "aesz-max": ">"}


def _style(name: str) -> dict[str, Any]:
    family = name.partition("-")[0]
    return {
        "color": _COLORS.get(family, "#56B4E9"),
        "marker": _OUR_MARKERS.get(name) or _MARKERS.get(family, "*"),
        "markersize": 8,
        "linewidth": 2.2 if family == OURS else 1.4,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "zorder": 3 if family == OURS else 2,
    }


def rate_distortion(path: Path, table: Table) -> bool:
    """Bits per value against PSNR, one line a peer; False, and no file, if there is nothing to draw.

    A point is a bound: the geometric mean of bits per value and the mean PSNR over the fields that every peer
    coded. Of a peer with several settings, each cell has its smallest.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    bounds = list(dict.fromkeys(bound for _, bound in table.cells))
    bounds = [bound for bound in bounds if not bound.startswith("abs")] or bounds
    lines: dict[str, list[tuple[float, float]]] = {}
    fields = 0
    for bound in bounds:
        cells = [chosen for cell in table.cells if cell[1] == bound and (chosen := _by_line(table, cell))]
        fields = max(fields, len(cells))
        for name in cells[0] if cells else ():
            rates = [cell[name] for cell in cells]
            bits = report.geometric_mean(rate.bits_per_value for rate in rates)
            lines.setdefault(name, []).append((bits, statistics.fmean(rate.psnr for rate in rates)))
    if not lines:
        return False
    figure, axes = pyplot.subplots(figsize=(8.5, 5.2), layout="constrained")
    for name, points in lines.items():
        label = f"best {name}" if _settings(table, name) > 1 else name
        axes.plot(*zip(*sorted(points), strict=True), label=label, **_style(name))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda bits, _: f"{bits:g}"))
    axes.set_xlabel("bits per value (geometric mean, log scale)")
    axes.set_ylabel("PSNR, dB (mean)")
    several = f"{fields} fields" if fields > 1 else next(iter(table.cells))[0]
    axes.set_title(
        f"Rate and distortion: {several}, error bounds {', '.join(bounds)} of the range", fontsize=11
    )
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return True


def _listed(bounds: Sequence[str]) -> str:
    return ", ".join(bounds) + ("" if bounds[0].startswith("abs") else " of the range")


def _settings(table: Table, family: str) -> int:
    return sum(family == found for found in table.peers.values())


def _by_line(table: Table, cell: tuple[str, str]) -> dict[str, Rate] | None:
    """What every line has in one cell; None if one of them has nothing there, or no finite PSNR."""
    found = {name: table.cells[cell].get(name) for name in table.ours}
    found |= {family: table.best(cell, family) for family in table.families}
    rates = {name: rate for name, rate in found.items() if rate and math.isfinite(rate.psnr)}
    return rates if len(rates) == len(found) else None


def ratio_speed(path: Path, rows: Sequence[speed.Speed]) -> bool:
    """Geometric mean ratio against speeds relative to SZ3; False, and no file, if there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    means = speed.means(rows)
    bounds = list(dict.fromkeys(bound for bound, _ in means))
    points = {peer: three for (bound, peer), three in means.items() if bound == bounds[-1]}
    if not points:
        return False
    figure, panels = pyplot.subplots(
        1, 2, figsize=(10.5, 4.8), sharex=True, sharey=True, layout="constrained"
    )
    for axes, way, at in zip(panels, ("compress", "decompress"), (1, 2), strict=True):
        ours = [(three[at], three[0]) for peer, three in points.items() if peer.startswith(OURS)]
        axes.plot(*zip(*ours, strict=True), color=_COLORS[OURS], linewidth=1, alpha=0.6) if ours else None
        for peer, three in points.items():
            axes.plot(three[at], three[0], label=peer, linestyle="none", **_style(peer) | {"markersize": 10})
        axes.axvline(1, color="#888888", linewidth=1, linestyle=":", zorder=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, ticks in ((axes.xaxis, (1, 2, 5)), (axes.yaxis, (1, 1.5, 2, 3, 4, 5, 7))):
            axis.set_major_locator(ticker.LogLocator(base=10, subs=ticks))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel(f"speed to {way} / SZ3's (log scale)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("compression ratio (geometric mean, log scale)")
    arrays = len({(row.field, row.shape) for row in rows})
    shown = _listed([bound for bound in bounds if bound != "all"])
    figure.suptitle(f"Ratio and speed, one thread: {arrays} arrays, error bounds {shown}", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return True
