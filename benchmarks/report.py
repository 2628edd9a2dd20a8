"""Result tables as CSV and Markdown, and the line that says what ran where."""

from __future__ import annotations

import csv
import importlib.metadata
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def environment(packages: Sequence[str] = ("aesz-codec", "numpy", "pysz")) -> str:
    """Versions and processor, one line."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join([f"Python {platform.python_version()}", *found, _processor()])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """A Markdown table; the first `text_columns` columns to the left, the others to the right."""
    rule = ["---" if at < text_columns else "---:" for at in range(len(header))]
    lines = [header, rule, *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_markdown(path: Path, parts: Iterable[str]) -> None:
    path.write_text("\n\n".join(parts) + "\n")
