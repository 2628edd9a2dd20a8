"""The bound on real fields, where a folder of them is at hand: AESZ_DATA names one with suite.json and load.py."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from aesz_codec import pipeline
from aesz_codec.bounds import ErrorBound, finite_range

DATA = Path(os.environ.get("AESZ_DATA", "."))
SUITE = json.loads((DATA / "suite.json").read_text()) if (DATA / "suite.json").exists() else {"fields": []}


def load(name):
    spec = importlib.util.spec_from_file_location("load", DATA / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(name)[0]


@pytest.mark.skipif(not SUITE["fields"], reason="AESZ_DATA names no folder with suite.json")
@pytest.mark.parametrize("field", SUITE["fields"], ids=lambda field: field["id"])
def test_every_value_is_within_its_bound(field):
    values = load(field["id"])
    chunk = [1] * (values.ndim - len(field["chunks"])) + field["chunks"]
    # the last chunk: an edge chunk where there is one
    last = values[tuple(slice((n - 1) // c * c, None) for n, c in zip(values.shape, chunk, strict=True))]
    for relative in SUITE["range_rel"]:
        bound = ErrorBound("range_rel", relative).resolve(*finite_range(values))
        for dtype in (np.float32, np.float64):
            original = last.astype(dtype)
            decoded = pipeline.decode(pipeline.encode(original, bound))
            error = np.abs(original.astype(np.float64) - decoded.astype(np.float64))
            assert np.array_equal(np.isnan(original), np.isnan(decoded))
            assert not (error > bound.value).any()
