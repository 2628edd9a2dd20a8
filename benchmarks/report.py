"""Results as CSV files of dataclasses, tables in Markdown, and the line that says what ran where."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")
_TYPES: dict[str, type] = {"str": str, "int": int, "float": float}
_PACKAGES = ("aesz-codec", "numpy", "pysz", "imagecodecs", "pcodec", "zfpy")


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def environment() -> str:
    """Versions and processor, one line."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
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


def write_markdown(path: Path, parts: Iterable[str]) -> None:
    path.write_text("\n\n".join(filter(None, parts)) + "\n")


def write_rows(path: Path, kind: type[Any], rows: Iterable[Any]) -> None:
    """One line a row, under the names of the fields of the dataclass `kind`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.name for column in dataclasses.fields(kind))
        writer.writerows(map(dataclasses.astuple, rows))


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """What `write_rows` wrote; nothing if there is no such file."""
    if not path.exists():
        return []
    types = {column.name: _TYPES[str(column.type)] for column in dataclasses.fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="") as file:
        return [
            kind(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]
