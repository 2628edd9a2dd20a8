"""The compressors that the benchmarks compare, one module each, behind one small interface.

To add a peer: write ``benchmarks/peers/<name>.py`` with ``settings(efforts) -> list[Peer]`` (one instance a
setting, a frozen dataclass, so that it travels to worker processes) and add its name to `FAMILIES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

FAMILIES = ("aesz", "sz3")


class Peer(Protocol):
    """One setting of one compressor, holding an absolute error bound.

    Attributes
    ----------
    name : str
        Column name, unique among the settings of a run.
    family : str
        The compressor it belongs to; tables report the best setting of a family.
    max_ndim : int or None
        Most dimensions of one call: a chunk is cut into slices over its last `max_ndim` axes, each a call and
        a stream of its own. None: the whole chunk in its own dimensions.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def max_ndim(self) -> int | None: ...

    def compress(self, chunk: np.ndarray, tolerance: float) -> bytes:
        """Code `chunk` (float32 or float64, C-contiguous) so that every value stays within `tolerance`."""

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array that `compress` coded, of that shape and dtype."""


def select(families: Iterable[str], efforts: Sequence[str]) -> list[Peer]:
    """Every setting of the named families; `efforts` are those of aesz. Unknown names raise ValueError."""
    peers: list[Peer] = []
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"peer: found {family!r}, expected one of {', '.join(FAMILIES)}")
        peers += importlib.import_module(f"{__name__}.{family}").settings(efforts)
    return peers
