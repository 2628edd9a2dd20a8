"""What models save: bytes with packs / bytes without, cell by cell.

Run as ``python -m benchmarks.models PACK...`` (suite of AESZ_DATA, else a synthetic field); writes ``models.csv`` and
``models.md``.
Every stream is decoded and checked. Packs that come with the package are not counted among the bytes; an array that carries one
in its metadata pays for it once, whatever its size: a column says from how many MB of raw data on that is earned.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from aesz_codec.packs import Pack
from benchmarks import fields, rates, report
from benchmarks.peers import sz3
from benchmarks.peers.aesz import Aesz


def _table(measured: Sequence[rates.Rate], effort: str, pack_bytes: int) -> str:
    coded = {(r.peer, r.field, r.bound): r for r in measured}
    rows: list[list[object]] = []
    quotients: dict[str, list[float]] = {}
    smallest: dict[tuple[str, str], int] = {}
    for rate in measured:
        if rate.family == "sz3":
            cell = rate.field, rate.bound
            smallest[cell] = min(rate.coded_bytes, smallest.get(cell, rate.coded_bytes))
    for (peer, field, bound), off in coded.items():
        if peer != f"aesz-{effort}":
            continue
        on = coded[f"aesz-{effort}-models", field, bound]
        quotient = on.coded_bytes / off.coded_bytes
        quotients.setdefault(bound, []).append(quotient)
        saved = off.coded_bytes - on.coded_bytes
        even = f"{math.ceil(pack_bytes / saved * off.raw_bytes / 1e6)}" if saved > 0 else "never"
        row = [field, bound, off.coded_bytes, on.coded_bytes, f"{quotient:.3f}", even]
        rows.append([*row, *([f"{smallest[field, bound] / on.coded_bytes:.3f}"] if smallest else [])])
    more = [""] * bool(smallest)
    for bound, found in quotients.items():
        rows.append(
            [f"**{len(found)} fields**", bound, "", "", f"**{report.geometric_mean(found):.3f}**", "", *more]
        )
    every = [q for found in quotients.values() for q in found]
    rows.append(
        ["**all**", "", "", "", f"**{report.geometric_mean(every):.3f}** (most {max(every):.3f})", "", *more]
    )
    header = ["field", "bound", "bytes without", "with", "with / without", "embedded pack pays from, MB"]
    header += ["best SZ3 / with"] * bool(smallest)
    return report.markdown_table(header, rows, text_columns=2)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("packs", nargs="+", metavar="PACK", help="files of packs")
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--fields", default="", help="only these, separated by commas")
    parser.add_argument("--bounds", default="1e-2,1e-3", help="of the suite's (default: 1e-2,1e-3)")
    parser.add_argument("--abs", default="", help="bounds in the units of the fields, instead")
    parser.add_argument("--sz3", action="store_true", help="the smallest setting of SZ3 beside it")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--title", default="What models save")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmark-report"))
    options = parser.parse_args(argv)
    packs = [Pack.from_file(path) for path in options.packs]
    suite = fields.find_suite(options.suite)
    chosen = fields.suite_fields(suite) if suite else [fields.synthetic_field((24, 181, 360))]
    wanted = [name for name in options.fields.split(",") if name]
    if missing := set(wanted) - {field.name for field in chosen}:
        parser.error(f"no such fields: {', '.join(sorted(missing))}")
    chosen = [field for field in chosen if not wanted or field.name in wanted]
    bounds = options.bounds.split(",")
    peers = [Aesz(options.effort), Aesz(options.effort, models=tuple(options.packs))]
    peers = [*peers, *(sz3.settings(()) if options.sz3 else ())]
    absolute = fields.parse_bounds("abs", options.abs) if options.abs else ()
    tasks = [
        (field, bound, "float32", peers)
        for field in chosen
        for bound in absolute or field.bounds
        if absolute or not suite or bound.label in bounds
    ]
    measured = [rate for found, _ in rates.run(tasks, options.workers) for rate in found]
    options.output.mkdir(parents=True, exist_ok=True)
    report.write_rows(options.output / "models.csv", rates.Rate, measured)
    size = sum(pack.nbytes for pack in packs)
    names = ", ".join(f"`{pack.id}` ({pack.nbytes} bytes)" for pack in packs)
    text = f"# {options.title}\n\nPacks: {names}; effort `{options.effort}`.\n\n" + _table(
        measured, options.effort, size
    )
    report.write_markdown(options.output / "models.md", [text])
    print(text)
    return int(any(rate.violations for rate in measured))


if __name__ == "__main__":
    sys.exit(main())
