"""A forecaster as another package would have it: `tests/test_own_forecasters.py` installs it where it needs it."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aesz_codec.predictors.external import EXTERNAL
from aesz_codec.stream import corrupt

MOST = 4  # points


@dataclass(frozen=True)
class Drift:
    """The frame before, moved as a whole by a few points."""

    tag: ClassVar[int] = EXTERNAL
    name: ClassVar[str] = "acme-weather:drift"
    every: ClassVar[bool] = False

    lines: int = 0
    columns: int = 0

    def fit(self, examples, tolerance):
        def left(move):
            parts = (e.frame - type(self)(*move).predict(e.step, e.plane, e.source) for e in examples)
            return sum(float(np.nansum(np.abs(part))) for part in parts)

        return type(self)(*min(itertools.product(range(-MOST, MOST + 1), repeat=2), key=left))

    def predict(self, step, plane, source):
        out = source(step.earlier)
        for axis, move in enumerate((self.lines, self.columns)):
            out = out.take(np.arange(out.shape[axis]) + move, axis, mode="clip")
        return out

    def pack(self):
        return bytes([self.lines + MOST, self.columns + MOST])

    @classmethod
    def unpack(cls, reader):
        moves = [int(move) - MOST for move in reader.take(2)]
        reader.end()
        if max(map(abs, moves)) > MOST:
            raise corrupt("forecaster", f"moves {moves}", f"up to {MOST}")
        return cls(*moves)
