"""The compressors that the benchmarks compare, one module each, behind one small interface.

To add a peer: write ``benchmarks/peers/<name>.py`` with ``settings(efforts) -> list[Peer]`` (one instance a
setting, a frozen dataclass, so that it travels to worker processes; the first one stands for all in the tables
of speeds) and add its name to `FAMILIES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from benchmarks.fields import BadArgument

FAMILIES = ("aesz", "sz3", "sperr", "jpegxl", "pcodec", "zfp")


class NotApplicable(ValueError):  # noqa: N818
    """A peer cannot code this chunk at this tolerance, e.g. one of integers of 16 bits: the cell goes without it."""


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
        """Code `chunk` (float32 or float64, C-contiguous) so that every value stays within `tolerance`.

        Raises NotApplicable if the peer cannot.
        """

    def decompress(self, stream: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array that `compress` coded, of that shape and dtype."""


def select(families: Iterable[str], efforts: Sequence[str]) -> list[Peer]:
    """Every setting of the named families; `efforts` are those of aesz.

    Raises BadArgument for a name that is not known and for a package that is not installed.
    """
    peers: list[Peer] = []
    for family in families:
        if family not in FAMILIES:
            raise BadArgument(f"peer: found {family!r}, expected one of {', '.join(FAMILIES)}")
        try:
            module = importlib.import_module(f"{__name__}.{family}")
        except ImportError as problem:
            raise BadArgument(
                f"peer {family}: {problem}; install the extra with: pip install 'aesz-codec[benchmark]', "
                f"or leave {family} out of --peers"
            ) from problem
        peers += module.settings(efforts)
    return peers
