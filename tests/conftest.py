"""Hypothesis profiles ``ci`` and ``nightly`` (``--hypothesis-profile=nightly``), the reference decoder, no models of your own."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# Each of the five tests of tests/properties takes this many: 625 in all, 25,000 in a night.
settings.register_profile("ci", max_examples=125, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=5000, deadline=None, print_blob=True)
settings.load_profile("ci")

os.environ["COLUMNS"] = "160"  # lines of tables would break where the terminal ends
os.environ["AESZ_ZOO"] = ""  # what `encoding_for` writes would depend on the packs in your own folder


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """Return tests/reference.py, the second decoder."""
    path = Path(__file__).with_name("reference.py")
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
