"""What models save: bytes with packs / bytes without, cell by cell.

Run as ``python -m benchmarks.models PACK...`` (suite of AESZ_DATA, else a synthetic field); writes ``models.csv`` and
``models.md``.
Every stream is decoded and checked. Packs that come with the package are not counted among the bytes; an array that carries one
in its metadata pays for it once, whatever its size: with one pack a column says from how many MB of raw data on that is earned.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from aesz_codec.packs import Pack
from benchmarks import fields, rates, report, speed
from benchmarks.peers import Peer, sz3
from benchmarks.peers.aesz import Aesz


def _table(measured: Sequence[rates.Rate], effort: str, pack_bytes: int | None) -> str:
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
        row: list[object] = [field, bound, off.coded_bytes, on.coded_bytes, f"{quotient:.3f}"]
        if pack_bytes is not None:
            row.append(math.ceil(pack_bytes / saved * off.raw_bytes / 1e6) if saved > 0 else "never")
        rows.append([*row, *([f"{smallest[field, bound] / on.coded_bytes:.3f}"] if smallest else [])])
    more = [""] * (bool(smallest) + (pack_bytes is not None))
    for bound, found in quotients.items():
        rows.append(
            [f"**{len(found)} fields**", bound, "", "", f"**{report.geometric_mean(found):.3f}**", *more]
        )
    every = [q for found in quotients.values() for q in found]
    rows.append(
        ["**all**", "", "", "", f"**{report.geometric_mean(every):.3f}** (most {max(every):.3f})", *more]
    )
    header = ["field", "bound", "bytes without", "with", "with / without"]
    header += ["embedded pack pays from, MB"] * (pack_bytes is not None)
    header += ["best SZ3 / with"] * bool(smallest)
    return report.markdown_table(header, rows, text_columns=2)


def _speeds(chosen: Sequence[fields.Field], labels: Sequence[str], peers: Sequence[Peer]) -> str:
    """The first chunk of every field, bounds of its range, one thread, against SZ3 in the same rounds."""
    rows: list[list[object]] = []
    for field in chosen:
        values = field.read("float32")
        chunk = next(fields.split(values, field.chunk_shape(values)))
        for bound in field.bounds:
            if bound.label in labels:
                measured = speed.speeds(field.name, chunk, bound, peers, repeats=7)
                rows += [
                    [
                        r.field,
                        r.bound,
                        r.peer,
                        f"{r.compress_to_sz3_median:.3f}",
                        f"{r.decompress_to_sz3_median:.3f}",
                    ]
                    for r in measured[1:]
                ]
    for label in labels:
        for peer in peers[1:]:
            found = [row for row in rows if row[1:3] == [label, peer.name]]
            means = [report.geometric_mean([float(str(row[i])) for row in found]) for i in (3, 4)]
            rows.append(
                [f"**{len(found)} fields**", label, peer.name, *(f"**{mean:.3f}**" for mean in means)]
            )
    header = ["field", "bound", "peer", "compress to SZ3", "decompress to SZ3"]
    return report.markdown_table(header, rows, text_columns=3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("packs", nargs="+", metavar="PACK", help="files of packs")
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--fields", default="", help="only these, separated by commas")
    parser.add_argument("--bounds", default="1e-2,1e-3", help="of the suite's (default: 1e-2,1e-3)")
    parser.add_argument("--abs", default="", help="bounds in the units of the fields, instead")
    parser.add_argument("--sz3", action="store_true", help="the smallest setting of SZ3 beside it")
    parser.add_argument("--efforts", default="default", help="separated by commas (default: default)")
    parser.add_argument("--title", default="What models save")
    parser.add_argument("--speed", action="store_true", help="speeds instead of bytes: speed.md")
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
    efforts = options.efforts.split(",")
    ours = [Aesz(effort, models=models) for effort in efforts for models in ((), tuple(options.packs))]
    if options.speed:
        text = f"# {options.title}\n\n" + _speeds(chosen, bounds, [sz3.INTERP_LORENZO, *ours])
        options.output.mkdir(parents=True, exist_ok=True)
        report.write_markdown(options.output / "speed.md", [text])
        print(text)
        return 0
    peers = [*ours, *(sz3.settings(()) if options.sz3 else ())]
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
    size = packs[0].nbytes if len(packs) == 1 else None
    names = ", ".join(f"`{pack.id}` ({pack.nbytes} bytes)" for pack in packs)
    text = f"# {options.title}\n\nPacks: {names}.\n"
    text += "".join(f"\nEffort `{effort}`:\n\n{_table(measured, effort, size)}" for effort in efforts)
    report.write_markdown(options.output / "models.md", [text])
    print(text)
    return int(any(rate.violations for rate in measured))


if __name__ == "__main__":
    sys.exit(main())
