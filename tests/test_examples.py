"""Each script in ``examples/`` runs, quickly, in a fresh process and an empty folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example(script, tmp_path):
    if script.stem == "xarray_store":
        pytest.importorskip("xarray")
    started = time.monotonic()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    assert time.monotonic() - started < 30  # ten seconds on an idle machine
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
