"""What a conversion did, variable by variable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .._source import Skipped
from ..bounds import ErrorBound, ErrorSummary

__all__ = ["ConversionSummary", "VariableSummary"]


@dataclass(frozen=True)
class VariableSummary:
    """What became of one variable.

    `errors` compares the values of the source with those that the stored bytes decode to, in units of `resolved`; the
    other bounds are those of `VariablePlan`. `seconds` are those of all workers together, `timings` what they went
    into; `predictors` and `models` count chunks; `histogram` counts signed errors of a sample, from -1 to 1 times the
    bound.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    requested: ErrorBound
    resolved: ErrorBound
    recorded: ErrorBound
    raw_bytes: int
    stored_bytes: int
    errors: ErrorSummary
    seconds: float
    dims: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    predictors: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    model_bytes: int = 0
    histogram: tuple[int, ...] = ()

    @property
    def compression_ratio(self) -> float:
        """Bytes of the values in the stored dtype over bytes of the chunks in the store."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.inf

    @property
    def throughput(self) -> float:
        """MB/s of decoded values of one worker, reading the source and checking included."""
        return self.raw_bytes / 1e6 / self.seconds if self.seconds else math.inf


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did.

    Attributes
    ----------
    store : Path or str
    variables : tuple of VariableSummary
        Those with a bound.
    copied : tuple of str
        Data variables that were copied, without this codec.
    seconds : float
        From the call to its end; of the last run, where a conversion was resumed.
    skipped : tuple of Skipped
        Files and variables that were left out.
    resumed : int
        Tasks that earlier runs had finished.
    workers : int
    """

    store: Path | str
    variables: tuple[VariableSummary, ...]
    copied: tuple[str, ...]
    seconds: float
    skipped: tuple[Skipped, ...] = ()
    resumed: int = 0
    workers: int = 1

    @property
    def raw_bytes(self) -> int:
        """Of the variables with a bound, in their stored dtypes."""
        return sum(v.raw_bytes for v in self.variables)

    @property
    def stored_bytes(self) -> int:
        """Of their chunks in the store."""
        return sum(v.stored_bytes for v in self.variables)

    @property
    def compression_ratio(self) -> float:
        """Over all variables with a bound."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.inf
