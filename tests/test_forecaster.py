"""Causal prediction with weights for every point: packs, streams, the choice by bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aesz_codec import AESZ, errors, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.packs import Pack
from aesz_codec.predictors import Causal, Quantizer, prepare
from aesz_codec.stream import Coder, Section
from aesz_codec.train.forecaster import fit
from aesz_codec.train.packing import write_pack

GOLDEN = Path(__file__).parent / "golden" / "models" / "forecaster.aeszpack"
GRID = (7, 9)
TOLERANCE = 0.125


def weather(frames: int, seed: int, grid: tuple[int, int] = GRID) -> np.ndarray:
    """Anomalies that move along with a wind of their own in every column, on a mean of their own at every point."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    mean, share = fixed.normal(280, 5, grid), fixed.uniform(0.2, 0.9, grid)
    values, out = np.zeros(grid), np.empty((frames, *grid))
    for t in range(frames):
        values = share * np.roll(values, 1, 0) + (0.95 - share) * np.roll(values, -1, 1)
        values += rng.normal(0, 0.5, grid) * fixed.uniform(0.5, 1.0) + 0.2 * rng.normal()
        out[t] = mean + values
    return out.astype("f4")


def built(name: str, network: dict[str, Any], tensors: dict[str, np.ndarray]) -> Pack:
    manifest = {"id": name, "kind": "forecaster", "licence": "CC0-1.0", "network": network}
    return Pack.from_bytes(write_pack(manifest, tensors))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return built("weather", *fit([weather(2500, seed) for seed in range(2)], [TOLERANCE]))


def coded(array: np.ndarray, model: Pack | None, effort: str = "default", mode: str = "abs") -> bytes:
    models = () if model is None else (model,)
    bound = ErrorBound(mode, TOLERANCE if mode == "abs" else 1e-3)
    stream = pipeline.encode(array, bound, effort=effort, models=models)
    decoded = pipeline.decode(stream, find_model=lambda digest: model)
    kept = bound.value * (np.abs(array.astype(float)) if mode == "pw_rel" else 1.0)
    if mode == "range_rel":
        kept = bound.value * (np.nanmax(array).astype(float) - np.nanmin(array))
    known = np.isfinite(array)
    np.testing.assert_array_equal(np.isfinite(decoded), known)
    with np.errstate(invalid="ignore"):
        assert (np.abs(decoded.astype(float) - array) <= kept)[known].all()
    return stream


@pytest.mark.parametrize("effort", ["default", "max"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_forecaster_saves_bytes_on_frames_that_it_has_not_seen(pack, effort, dtype):
    frames = weather(64, 7).astype(dtype)
    plain, learned = coded(frames, None, effort), coded(frames, pack, effort)
    assert len(learned) < 0.9 * len(plain)
    info = pipeline.describe(learned)
    assert (info.format_version, info.predictor, info.models) == ("1.4", "causal", (pack.digest,))
    assert pipeline.describe(plain).format_version < "1.4"


def test_it_is_used_with_gaps_and_for_a_single_frame(pack):
    frames = weather(64, 7)
    frames[np.random.default_rng(1).random(frames.shape) < 0.05] = np.nan
    frames[3:9, 2:4, 5:] = np.inf
    assert pipeline.describe(coded(frames, pack)).models == (pack.digest,)
    for shape in (GRID, (1, *GRID), (1, 1, *GRID)):
        coded(weather(1, 8).reshape(shape), pack)
    padded = np.full((64, *GRID), 7, "f4")
    padded[:50] = weather(50, 8)
    assert pipeline.describe(coded(padded, pack)).models == (pack.digest,)


@pytest.mark.parametrize("shape", [(16, 9, 7), (16, 7, 10), (4, 4, 7, 9), (63,), (16, 63)])
def test_other_shapes_do_not_use_it(pack, shape):
    array = weather(64, 7).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    assert coded(array, pack, "max") == coded(array, None, "max")


@pytest.mark.parametrize("mode", ["pw_rel", "range_rel"])
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_other_bounds_and_efforts(pack, mode, effort):
    stream = coded(weather(32, 7), pack, effort, mode)
    used = bool(pipeline.describe(stream).models)
    assert used == (mode == "range_rel" and effort == "default")


def test_data_on_a_lattice_leave_it_where_the_model_saves_more(pack):
    packed = (np.rint(weather(64, 7) * 32) / 32).astype("f4")
    plain, learned = coded(packed, None), coded(packed, pack)
    assert pipeline.describe(plain).parameters["transform"] == "lattice"
    assert pipeline.describe(learned).models == (pack.digest,)
    assert len(learned) < 0.95 * len(plain)


def test_data_on_a_lattice_and_integers_are_coded_as_without_or_smaller(pack):
    packed = (np.rint(weather(64, 7) * 8) / 8).astype("f4")
    assert len(coded(packed, pack)) <= len(coded(packed, None)) + 35
    integers = np.rint(weather(64, 7) * 8).astype("i4")
    assert coded(integers, pack) == coded(integers, None)


def test_the_model_of_another_variable_costs_next_to_nothing(pack):
    rng = np.random.default_rng(3)
    for other in (
        rng.normal(0, 5, (64, *GRID)).cumsum(0),
        np.broadcast_to(np.add.outer(np.arange(7.0), np.arange(9.0)), (64, *GRID)) ** 2,
        -1e6 * weather(64, 5)[::-1, ::-1],
    ):
        array = np.ascontiguousarray(other, "f4")
        assert len(coded(array, pack)) <= 1.005 * len(coded(array, None))


@pytest.mark.parametrize("coder", [Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED])
def test_values_of_any_size_are_kept(coder):
    """The predictions of a model that knows nothing of the data may overflow."""
    rng = np.random.default_rng(5)
    predictor = Causal(coder, Pack.from_file(GOLDEN))
    for dtype in ("f4", "f8"):
        array = np.ldexp(rng.normal(size=(5, 9, 11)), rng.integers(-60, 120, (5, 9, 11))).astype(dtype)
        mask = (rng.random(array.shape) < 0.1).astype("u1")
        for labels in (None, mask):
            codes, outliers = predictor.encode(array, labels, Quantizer(0.5, 1.0, 0.25))
            out = np.zeros_like(array)
            predictor.decode(codes, outliers, out, labels, 1.0, 0.25)
            there = mask == 0 if labels is not None else np.ones(array.shape, bool)
            assert (np.abs(out.astype("f8") - array) <= 0.5)[there].all()


def test_the_codec_takes_it(pack):
    frames = weather(64, 7)
    codec = AESZ(TOLERANCE, model=pack)
    decoded = AESZ.from_config(codec.get_config()).decode(codec.encode(frames))
    assert np.abs(decoded.reshape(frames.shape).astype(float) - frames).max() <= TOLERANCE


def sound() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    golden = Pack.from_file(GOLDEN)
    network = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in golden.manifest["network"].items()
    }
    return network, dict(golden.tensors)


def refused(network: Any, tensors: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(errors.InvalidModelError, match=match):
        prepare(built("bad", network, tensors))


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("grid", [9], "two integers"),
        ("grid", [9, 11, 1], "two integers"),
        ("grid", "9x11", "two integers"),
        ("grid", [9, 11.0], "two integers"),
        ("grid", [1, 99], "lengths below 2"),
        ("grid", [-9, -11], "lengths below 2"),
        ("grid", [11, 9], "shape"),
        ("grid", [2**24, 2**24], "shape"),
        ("ages", [], "0 sets"),
        ("ages", [0, 1], "spread: int16"),
        ("ages", [1, 2, 3], "rise from 0"),
        ("ages", [0, 3, 3], "rise from 0"),
        ("ages", [0, 1, 2], "a frame that there is not"),
        ("ages", [0, 1, 2**40], "integers"),
        ("ages", list(range(9)), "9 sets"),
        ("shift", 16, "shift"),
        ("shift", -1, "shift"),
        ("shift", True, "integers"),
        ("offset_shift", 41, "offset_shift"),
        ("offset_shift", None, "integers"),
        ("spread_shift", -41, "spread_shift"),
        ("more", 1, "an object with"),
    ],
)
def test_networks_that_are_not_sound(key, value, match):
    network, tensors = sound()
    refused({**network, key: value}, tensors, match)


@pytest.mark.parametrize(
    ("tap", "row", "match"),
    [
        ((0, 0, 0), -1, "does not precede"),
        ((0, 0, -1), -1, "does not precede"),
        ((0, -1, 5), 0, "does not precede"),
        ((-1, 2, 2), 0, "does not precede"),
        ((1, 0, 0), 0, "a frame that there is not"),
        ((0, 0, 1), 0, "after those in the line"),
    ],
)
def test_taps_that_are_not_sound(tap, row, match):
    network, tensors = sound()
    taps = tensors["taps0"].copy()
    taps[row] = tap
    refused(network, {**tensors, "taps0": taps}, match)


def test_tensors_that_are_not_sound():
    network, tensors = sound()
    weights = tensors["weights1"]
    refused(network, {**tensors, "weights1": weights.astype("i4")}, "weights1: int16")
    refused(network, {**tensors, "weights1": weights[1:]}, "weights of another shape")
    refused(network, {**tensors, "weights1": weights.reshape(-1)}, "weights of another shape")
    refused(network, {**tensors, "offset0": tensors["offset0"].T.copy()}, "an offset of another shape")
    refused(network, {**tensors, "taps0": tensors["taps0"][:, :2].copy()}, "rows of three")
    refused(network, {**tensors, "spread": -1 - tensors["spread"]}, "a spread below 0")
    refused(network, {**tensors, "spread": tensors["spread"][1:]}, "a spread of another shape")
    many = np.tile(np.array([[1, 0, 0]], "i1"), (129, 1))
    wide = np.zeros((129, 9, 11), "i2")
    refused(network, {**tensors, "taps1": many, "weights1": wide}, "more than 128 taps")
    refused(network, {key: tensor for key, tensor in tensors.items() if key != "spread"}, "tensors")
    refused(network, {**tensors, "more": weights}, "tensors")
    refused(None, tensors, "an object with")


def test_a_stream_that_names_a_model_for_another_grid(pack):
    stream = pipeline.Stream.from_bytes(coded(weather(64, 7), pack))
    other = Pack.from_file(GOLDEN)
    stream.sections[Section.MODEL] = bytes.fromhex(other.digest)
    with pytest.raises(errors.CorruptStreamError, match=r"the grid \(9, 11\)"):
        pipeline.decode(stream.to_bytes(), find_model=lambda digest: other)


def test_training_says_what_is_wrong():
    frames = weather(600, 1)
    with pytest.raises(errors.InvalidModelError, match="one grid"):
        fit([frames, frames[:, 1:]], [0.1])
    with pytest.raises(errors.InvalidModelError, match="frames with"):
        fit([frames[:100]], [0.1])
    for nothing in (np.full_like(frames, np.nan), np.full_like(frames, 3)):
        with pytest.raises(errors.InvalidModelError, match="only NaN, or constant"):
            fit([nothing], [0.1])


def test_points_without_values_have_no_weights():
    frames = weather(1200, 1)
    frames[:, 2, 3] = np.nan
    frames[5, :3] = np.nan
    network, tensors = fit([frames], [TOLERANCE])
    assert not tensors["weights1"][:, 2, 3].any() and tensors["weights1"].any()
    land = weather(64, 7)
    land[:, 2, 3] = np.nan
    model = built("land", network, tensors)
    assert pipeline.describe(coded(land, model)).models == (model.digest,)
