"""The native core: prediction, quantization and entropy coding of whole chunks (aesz_codec/native/module.cpp)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_Bytes = npt.NDArray[np.uint8]

class CorruptDataError(ValueError): ...

def encode_interpolation(
    data: _Floats,
    mask: _Bytes | None,
    tolerance: float,
    step: float,
    offset: float,
    batch: int,
    reference: bool,
    reversed: bool,
    coder: int,
    alpha16: int,
    beta16: int,
    nets: LearnedNets | None = None,
) -> tuple[bytes, bytes]: ...
def decode_interpolation(
    codes: bytes,
    outliers: bytes,
    out: _Floats,
    mask: _Bytes | None,
    step: float,
    offset: float,
    batch: int,
    reference: bool,
    reversed: bool,
    coder: int,
    alpha16: int,
    beta16: int,
    nets: LearnedNets | None = None,
) -> None: ...
def encode_frames(
    data: _Floats,
    mask: _Bytes | None,
    tolerance: float,
    step: float,
    offset: float,
    batch: int,
    coder: int,
    alpha16: int,
    beta16: int,
    nets: LearnedNets | None,
    schedule: npt.NDArray[np.int64],
    predict: Callable[[int], _Floats | None] | FrameSums,
    out: _Floats,
    examples: list[tuple[int, int, _Floats | None]],
) -> tuple[bytes, bytes]: ...
def decode_frames(
    codes: bytes,
    outliers: bytes,
    out: _Floats,
    mask: _Bytes | None,
    step: float,
    offset: float,
    batch: int,
    coder: int,
    alpha16: int,
    beta16: int,
    nets: LearnedNets | None,
    schedule: npt.NDArray[np.int64],
    predict: Callable[[int], _Floats | None] | FrameSums,
) -> None: ...

class FrameSums:
    def __init__(
        self,
        rows: npt.NDArray[np.int64],
        sums: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]],
    ) -> None: ...

def weigh_frames(
    frames: list[_Floats], taps: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], out: _Floats
) -> None: ...
def fit_frames(
    frames: _Floats, sources: _Floats, taps: npt.NDArray[np.int64], points: int, tolerance: float
) -> list[float]: ...
def round_frame(frame: _Floats, mask: _Bytes | None, step: float, offset: float, out: _Floats) -> None: ...
def move_frame(frame: _Floats, vectors: npt.NDArray[np.int16], block: int, out: _Floats) -> None: ...
def collect_interpolation(
    data: _Floats,
    mask: _Bytes | None,
    tolerance: float,
    step: float,
    offset: float,
    batch: int,
    reference: bool,
    every: int,
    sees: Sequence[tuple[int, int]],
) -> list[tuple[bytes, bytes]]: ...

class Forecaster:
    def __init__(self, lines: int, columns: int) -> None: ...
    def add(
        self,
        age: int,
        taps: npt.NDArray[np.int8],
        weights: npt.NDArray[np.int16],
        shift: int,
        offset: npt.NDArray[np.int32],
        offset_shift: int,
    ) -> None: ...
    def set_spread(self, spread: npt.NDArray[np.int16], shift: int) -> None: ...
    @property
    def grid(self) -> tuple[int, int]: ...

def encode_causal(
    data: _Floats,
    mask: _Bytes | None,
    tolerance: float,
    step: float,
    offset: float,
    coder: int,
    forecaster: Forecaster | None = None,
) -> tuple[bytes, bytes]: ...
def decode_causal(
    codes: bytes,
    outliers: bytes,
    out: _Floats,
    mask: _Bytes | None,
    step: float,
    offset: float,
    coder: int,
    forecaster: Forecaster | None = None,
) -> None: ...
def encode_lossless(values: npt.NDArray[Any], dims: int, order: int) -> bytes: ...
def decode_lossless(codes: bytes, values: npt.NDArray[Any], dims: int, order: int) -> None: ...
def encode_labels(labels: _Bytes) -> bytes: ...
def decode_labels(codes: bytes, labels: _Bytes) -> None: ...
def encode_weights(values: npt.NDArray[np.int32]) -> bytes: ...
def decode_weights(codes: bytes, out: npt.NDArray[np.int32], lowest: int, highest: int) -> None: ...
def exp2_into(x: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> None: ...
def encode_local(
    data: _Floats, mask: _Bytes | None, tolerance: float, step: float, offset: float
) -> bytes: ...
def decode_local(codes: bytes, out: _Floats, mask: _Bytes | None, step: float, offset: float) -> None: ...
def error_moments(
    original: npt.NDArray[Any], reconstruction: npt.NDArray[Any]
) -> tuple[float, float, float, float]: ...
def within(original: npt.NDArray[Any], reconstruction: npt.NDArray[Any], tolerance: float) -> bool: ...

class Dense:
    def __init__(
        self,
        weight: npt.NDArray[np.int16],
        bias: npt.NDArray[np.int32],
        shift: _Bytes | None,
        amax: int,
        lo: int,
        hi: int,
        slope: int,
    ) -> None: ...

class Mlp:
    max_width: int
    inputs: int
    padded_inputs: int
    outputs: int
    products: int
    def __init__(self, layers: list[Dense], lo: int, hi: int, level: int = -1) -> None: ...
    def run(self, input: npt.NDArray[np.int16], output: npt.NDArray[np.int32]) -> None: ...

class LearnedNets:
    def __init__(self, nets: list[Mlp | None], sees: Sequence[tuple[int, int]]) -> None: ...

class Network:
    def __init__(self, channels: int, dims: int, lo: int, hi: int, level: int = -1) -> None: ...
    def linear(self, dense: Dense) -> None: ...
    def conv(
        self, dense: Dense, kernel: list[int], stride: list[int], pad: list[int], padding: list[int]
    ) -> None: ...
    def reshape(self, shape: list[int]) -> None: ...
    def pixel_shuffle(self, factor: list[int]) -> None: ...
    def gdn(self, sums: Dense, norm_shift: _Bytes, shift: _Bytes, lo: int, hi: int) -> None: ...
    def add(self, tensor: int, a: int, b: int, shift: int, lo: int, hi: int, slope: int) -> None: ...
    def table(self, table: npt.NDArray[np.int16], lo: int, hi: int) -> None: ...
    def run(
        self, input: npt.NDArray[np.int16], items: int, spatial: list[int], output: npt.NDArray[np.int32]
    ) -> None: ...

def network_levels() -> list[str]: ...
