"""What contexts and weights that know a series from before could save: the most that a pack of primed contexts might hold.

Run as ``python -m benchmarks.priming`` (suite of AESZ_DATA); writes ``priming.md``.
A part of a series is coded alone, and behind another part of it, half the series away, in one stream. What that stream grows by
is less by what adaptive contexts, distributions and fitted weights had learned of the very variable; a pack, trained on other
data, knows less. Parts are as long as gives streams of some 6 to 50 kB. Besides, what the codec saves on the same part with
packs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from aesz_codec.codec import AESZ
from aesz_codec.predictors import Causal, Interpolation, Local, Predictor, Quantizer
from aesz_codec.stream import Coder
from benchmarks import fields, report

_FEW_POINTS, _SOME_POINTS = 800, 2500  # of a frame
_LEAST, _MOST = 6000, 50000  # bytes of a stream


def _frames(points: int) -> int:
    return 128 if points < _FEW_POINTS else 48 if points < _SOME_POINTS else 1


def _predictors(frames: int) -> dict[str, Predictor]:
    found: dict[str, Predictor] = {
        f"frames alone, {coder.name.lower()}": Interpolation(batch=1, coder=coder)
        for coder in (Coder.ADAPTIVE, Coder.MIXED)
    }
    if frames > 1:
        for coder in (Coder.ADAPTIVE, Coder.MIXED):
            found[f"three axes, {coder.name.lower()}"] = Interpolation(coder=coder)
            found[f"causal, {coder.name.lower()}"] = Causal(coder)
        found["local"] = Local()
    return found


def _size(predictor: Predictor, part: np.ndarray, tolerance: float) -> int:
    missing = ~np.isfinite(part)
    values = np.where(missing, part[~missing][0], part)
    mask = missing.view(np.uint8) if missing.any() else None
    codes, outliers = predictor.encode(
        values, mask, Quantizer(tolerance, 1.999 * tolerance, float(values.flat[0]))
    )
    return len(codes) + len(outliers)


def _rows(field: fields.Field, bounds: Sequence[str], packs: Sequence[str]) -> Iterator[list[object]]:
    values = field.read("float32")
    if values.ndim < 3:
        return
    values = values.reshape(-1, *values.shape[-2:])
    frames = _frames(values[0].size)
    before, part = values[:frames], values[len(values) // 2 :][:frames]
    span = float(np.nanmax(values)) - float(np.nanmin(values))
    for bound in bounds:
        tolerance = float(bound) * span
        plain = len(AESZ(tolerance).encode(part))
        with_packs = len(AESZ(tolerance, model=list(packs)).encode(part)) if packs else plain
        for name, predictor in _predictors(frames).items():
            try:
                alone = _size(predictor, part, tolerance)
                both = _size(predictor, np.concatenate([before, part]), tolerance)
                known = both - _size(predictor, before, tolerance)
            except OverflowError:  # more steps between the values than this predictor takes
                continue
            if _LEAST <= alone <= _MOST:
                saved, models = (
                    f"{100 * (1 - n / of):.1f}" for n, of in ((known, alone), (with_packs, plain))
                )
                yield [field.name, bound, frames, name, alone, saved, plain, models]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.priming", description=__doc__)
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--models", default="", help="ids or files of packs, separated by commas")
    parser.add_argument("--bounds", default="1e-2,1e-3", help="parts of the range (default: 1e-2,1e-3)")
    parser.add_argument("--output", type=Path, default=Path("benchmark-report"))
    options = parser.parse_args(argv)
    suite = fields.find_suite(options.suite)
    chosen = fields.suite_fields(suite) if suite else [fields.synthetic_field((96, 64, 64))]
    packs = [name for name in options.models.split(",") if name]
    rows = [row for field in chosen for row in _rows(field, options.bounds.split(","), packs)]
    header = ["field", "bound", "frames", "predictor", "bytes", "less if another part is known, %"]
    header += ["bytes of the codec", "less with packs, %"]
    text = "# What is known of a series before\n\n"
    if packs:
        text += f"Packs: {', '.join(packs)}.\n\n"
    for place, name in ((5, "another part is known"), (7, "packs")):
        found = sorted(float(str(row[place])) for row in rows)
        if found:
            middle = found[len(found) // 2]
            text += f"- {name}: {found[0]} to {found[-1]} %, median {middle} %\n"
    text += "\n" + report.markdown_table(header, rows, text_columns=4)
    options.output.mkdir(parents=True, exist_ok=True)
    report.write_markdown(options.output / "priming.md", [text])
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
