"""What each ingredient of the encoder is worth: bytes without it / bytes with all of them.

Run as ``python -m benchmarks.ablation`` (suite of AESZ_DATA, else a synthetic field); writes ``ablation.csv`` and
``ablation.md``. Every stream of every variant is decoded and checked.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from aesz_codec import lattice, pipeline
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Interpolation, Local
from benchmarks import fields, rates, report
from benchmarks.peers.aesz import Aesz

INGREDIENTS = {
    "max": (
        "nothing", "local", "interpolation", "causal", "mixed coder", "frames of their own", "refinements", "lattice",
    ),
    "default": ("nothing", "local", "interpolation", "causal", "frames of their own", "lattice"),
    "fast": ("nothing", "interpolation", "causal", "frames of their own", "lattice"),
}  # fmt: skip


@dataclass(frozen=True)
class Variant(Aesz):
    """An effort without one ingredient."""

    without: str = "nothing"

    @property
    def name(self) -> str:
        return f"{self.effort} without {self.without}"

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        with self._taken_away():
            return super().compress(chunk, tolerance)

    @contextlib.contextmanager
    def _taken_away(self) -> Iterator[None]:
        kinds = {"local": Local, "interpolation": Interpolation, "causal": Causal}
        with contextlib.ExitStack() as stack:
            if self.without in kinds:
                left = {m: p for m, p in pipeline.PREDICTORS.items() if p is not kinds[self.without]}
                stack.enter_context(mock.patch.dict(pipeline.PREDICTORS, left, clear=True))
            elif self.without == "mixed coder":
                for kind in (Interpolation, Causal):
                    stack.enter_context(mock.patch.object(kind, "final", lambda self, effort: self))
            elif self.without == "frames of their own":
                every = Interpolation.candidates

                def candidates(
                    shape: tuple[int, ...], effort: str, rate: float, models: Sequence[Pack] = ()
                ) -> Iterator[Interpolation]:
                    return (c for c in every(shape, effort, rate, models) if c.batch == 0)

                stack.enter_context(mock.patch.object(Interpolation, "candidates", candidates))
            elif self.without == "refinements":
                stack.enter_context(
                    mock.patch.object(Interpolation, "refinements", lambda self, effort: iter(()))
                )
            elif self.without == "lattice":
                stack.enter_context(mock.patch.object(lattice, "find", lambda *arguments: None))
            yield


def _table(measured: Sequence[rates.Rate]) -> str:
    coded = {(r.peer, r.field, r.bound): r.coded_bytes for r in measured}
    bounds = list(dict.fromkeys(r.bound for r in measured))
    rows = []
    for effort, ingredients in INGREDIENTS.items():
        for without in ingredients[1:]:
            quotients: dict[str, list[float]] = {}
            for (peer, field, bound), size in coded.items():
                if peer == f"{effort} without {without}":
                    quotients.setdefault(bound, []).append(
                        size / coded[f"{effort} without nothing", field, bound]
                    )
            if quotients:
                every = [q for of_bound in quotients.values() for q in of_bound]
                means = [
                    f"{report.geometric_mean(quotients[b]):.3f}" if b in quotients else "" for b in bounds
                ]
                rows.append(
                    [effort, without, *means, f"{report.geometric_mean(every):.3f}", f"{max(every):.3f}"]
                )
    return report.markdown_table(["effort", "without", *bounds, "all", "most"], rows, text_columns=2)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--suite", help="suite.json or its folder (default: the variable AESZ_DATA)")
    parser.add_argument("--efforts", default="default,max")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmark-report"))
    options = parser.parse_args(argv)
    suite = fields.find_suite(options.suite)
    chosen = fields.suite_fields(suite) if suite else [fields.synthetic_field((24, 181, 360))]
    variants = [Variant(e, without=without) for e in options.efforts.split(",") for without in INGREDIENTS[e]]
    tasks = [(field, bound, "float32", variants) for field in chosen for bound in field.bounds]
    measured = [rate for found, _ in rates.run(tasks, options.workers) for rate in found]
    options.output.mkdir(parents=True, exist_ok=True)
    report.write_rows(options.output / "ablation.csv", rates.Rate, measured)
    text = (
        "# What each ingredient is worth\n\nBytes without it / bytes with all, geometric means over fields by bound, over "
        "all, and the largest: above 1 the ingredient saves bytes.\n\n" + _table(measured)
    )
    report.write_markdown(options.output / "ablation.md", [text])
    print(text)
    return int(any(rate.violations for rate in measured))


if __name__ == "__main__":
    sys.exit(main())
