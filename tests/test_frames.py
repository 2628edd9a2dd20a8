"""Frames that refer to what forecasters make of decoded ones: order, bound, choice by bytes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from aesz_codec import _core, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.errors import CorruptStreamError
from aesz_codec.predictors import Frames, Interpolation, Quantizer
from aesz_codec.predictors.forecasts import FORECASTERS, Example, LeastSquares, Motion, Nearest, steps
from aesz_codec.stream import Coder, Method, Reader

BOUND = ErrorBound("abs", 0.02)


def smooth(lines, width, seed=0):
    """A field without a lattice, of order 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:lines, :width]
    waves = sum(
        np.sin(y * rng.uniform(0.05, 0.9) + x * rng.uniform(-0.9, 0.9) + rng.uniform(0, 6)) / (k + 1)
        for k in range(12)
    )
    return waves + 0.02 * rng.normal(size=(lines, width))


def drifting(frames, lines=48, width=56, noise=0.003):
    """A field that moves by (2, 3) points from frame to frame."""
    ground = smooth(lines + 2 * frames, width + 3 * frames)
    rng = np.random.default_rng(1)
    moved = [ground[2 * t : 2 * t + lines, 3 * t : 3 * t + width] for t in range(frames)]
    return (np.stack(moved) + noise * rng.normal(size=(frames, lines, width))).astype(np.float32)


def changing(frames, lines=24, width=31, seed=2):
    """Two fields, from one to the other and back, smoothly in time; a little noise."""
    a, b = smooth(lines, width, seed), smooth(lines, width, seed + 1)
    rng = np.random.default_rng(seed)
    phase = np.sin(np.arange(frames) / 5)[:, None, None]
    return (a + phase * b + 0.004 * rng.normal(size=(frames, lines, width))).astype(np.float32)


def coded(choice, data, tolerance=0.02, mask=None):
    quantizer = Quantizer(tolerance, 2 * tolerance * (1 - 2.0**-12), float(data.flat[0]))
    codes, outliers = choice.encode(data, mask, quantizer)
    out = np.empty_like(data)
    choice.decode(codes, outliers, out, mask, quantizer.step, quantizer.offset)
    return len(codes) + len(outliers), out


@pytest.mark.parametrize("distance", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("times", [1, 2, 3, 7, 8, 9, 48])
def test_every_time_is_coded_once_after_those_that_it_refers_to(times, distance):
    order = steps(times, distance)
    assert sorted(step.time for step in order) == list(range(times))
    done = set()
    for step in order:
        assert {*step.sources, *({step.later} - {None})} <= done
        assert (step.earlier is None) == (step.time == 0) == (step.set == 0)
        if step.later is not None:
            assert step.time - step.earlier == step.later - step.time == step.distance
        done.add(step.time)


@pytest.mark.parametrize("forecaster", [Nearest(), LeastSquares(), Motion()], ids=lambda f: f.name)
@pytest.mark.parametrize("distance", [1, 4])
@pytest.mark.parametrize("coder", [Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_frame_keeps_the_bound(forecaster, distance, coder, dtype):
    data = changing(11).astype(dtype)
    _, out = coded(Frames(1, distance, forecaster, coder), data)
    assert np.abs(out.astype("f8") - data).max(axis=(1, 2)).max() <= 0.02


def test_errors_do_not_accumulate():
    """500 frames: the error of the last is that of the first."""
    data = changing(500, 16, 17)
    for distance in (1, 16):
        _, out = coded(Frames(1, distance, LeastSquares()), data)
        errors = out.astype("f8") - data
        rms = np.sqrt((errors**2).mean(axis=(1, 2)))
        assert np.abs(errors).max() <= 0.02
        assert rms[-50:].mean() == pytest.approx(rms[:50].mean(), rel=0.1)


def test_planes_of_a_time_refer_to_the_same_plane_of_another():
    """Levels that have nothing in common: with time and level as frames, each is predicted from its own past."""
    levels = np.stack([changing(8, seed=7 * k) for k in range(3)], axis=1)
    size, out = coded(Frames(2, 1, LeastSquares()), levels)
    assert np.abs(out - levels).max() <= 0.02
    apart = sum(coded(Frames(1, 1, LeastSquares()), np.ascontiguousarray(levels[:, k]))[0] for k in range(3))
    assert size < 1.03 * apart


def test_least_squares_saves_what_the_nearest_frame_does_not():
    data = changing(24)
    nearest, fitted = (coded(Frames(1, 1, f), data)[0] for f in (Nearest(), LeastSquares()))
    assert fitted < 0.97 * nearest


def forecast(weights, sources):
    """The sum of ten shifted frames, points beyond an edge taken from it."""
    around = [np.pad(frame, 1, mode="edge") for frame in sources]
    lines, width = sources[0].shape
    cross = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
    views = [
        f[1 + y : 1 + y + lines, 1 + x : 1 + x + width].astype(np.float64) for f in around for y, x in cross
    ]
    total = np.zeros((lines, width))
    for weight, view in zip(weights, views, strict=True):
        total += weight / sum(weights) * view
    return total.astype(sources[0].dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(8, 8), (9, 33), (40, 41)])
def test_least_squares_is_a_weighted_sum(shape, dtype):
    sources = [smooth(*shape, seed).astype(dtype) for seed in (0, 1)]
    weights = (30, 2, -5, 7, 1, 25, 0, 3, 4, -3)
    chosen = LeastSquares((((1, 2), weights),))
    (step,) = [s for s in steps(3, 2) if s.distance == 1]
    found = chosen.predict(step, 0, lambda t: sources[t // 2])
    np.testing.assert_array_equal(found, forecast(weights, sources))


class Told:
    """A forecaster whose references come through Python, one by one."""

    def __init__(self, forecaster):
        self.tag, self.name, self.every = forecaster.tag, forecaster.name, forecaster.every
        self._forecaster = forecaster
        self.pack, self.predict = forecaster.pack, forecaster.predict

    def fit(self, examples, tolerance):
        return Told(self._forecaster.fit(examples, tolerance))


@pytest.mark.parametrize("forecaster", [Nearest(), LeastSquares()])
@pytest.mark.parametrize("distance", [1, 4])
def test_the_native_core_makes_the_sums_that_predict_returns(forecaster, distance):
    data = np.stack([changing(9, 12, 31), changing(9, 12, 31, seed=5)], axis=1)  # two planes of a time
    data[4, 0, 3:6] = -0.0
    quantizer = Quantizer(0.01, 0.02 * (1 - 1e-4), 0.0)
    native = Frames(2, distance, forecaster).encode(data, None, quantizer)
    assert native == Frames(2, distance, Told(forecaster)).encode(data, None, quantizer)


def test_sums_of_frames_that_there_are_not_are_refused():
    taps, weights = np.zeros((1, 3), np.int64), np.ones(1)
    two = np.array([[0, 0, 0], [1, 0, 0]])
    for row, sums in (
        ((1, 0, -1), [(taps, weights)]),
        ((0, 5, -1), [(taps, weights)]),
        ((0, -1, 0), [(taps, weights)]),
        ((0, 0, -1), [(two, np.ones(2))]),
        ((0, 0, -1), [(taps, np.ones(2))]),
        *(
            ((0, 0, -1), [(taps + [0, *far], weights)])
            for far in ((-(2**63), 0), (0, -(2**63)), (0, 2**63 - 1))
        ),
    ):
        with pytest.raises(ValueError):
            _core.FrameSums(np.array([(-1, -1, -1), row]), sums)


def test_least_squares_finds_the_weights_of_a_frame_made_by_them():
    weights = (30, 2, -4, 6, 0, 25, 0, 3, 4, -2)
    sources = [smooth(40, 41, seed).astype(np.float32) for seed in (0, 1)]
    frame = forecast(weights, sources)
    frame[3:7, 5:9] = np.nan  # what is not finite says nothing
    (step,) = [s for s in steps(3, 2) if s.distance == 1]
    fitted = LeastSquares().fit([Example(step, 0, frame, lambda t: sources[t // 2])], 1e-3)
    ((kind, found),) = fitted.weights
    assert kind == (1, 2)
    np.testing.assert_allclose(found, weights, atol=1)
    none = [Example(step, 0, np.full_like(frame, np.nan), lambda t: sources[t // 2])]
    assert LeastSquares().fit(none, 1e-3).weights == ()


def test_two_sided_order_pays_where_frames_lie_between_their_neighbors():
    data = changing(33)
    one, two = (coded(Frames(1, distance, Nearest()), data)[0] for distance in (1, 8))
    assert two < 0.97 * one


def test_motion_saves_a_third_of_what_drifts():
    """``max`` finds it; nothing else sees it."""
    data = drifting(10)
    with_motion = pipeline.encode(data, BOUND, effort="max")
    info = pipeline.describe(with_motion)
    assert (info.format_version, info.predictor, info.parameters["forecaster"]) == ("1.5", "frames", "motion")
    others = [Interpolation(), Interpolation(1, True), Frames(1, 1, LeastSquares())]
    assert len(with_motion) < 0.67 * min(coded(other, data)[0] for other in others)
    assert np.abs(pipeline.decode(with_motion) - data).max() <= 0.02


def test_frames_together_cost_less_than_alone():
    data = changing(24, 32, 40)
    stream = pipeline.encode(data, BOUND)
    alone = sum(len(pipeline.encode(frame, BOUND)) for frame in data)
    assert len(stream) < 0.8 * alone
    assert np.abs(pipeline.decode(stream) - data).max() <= 0.02


@dataclass(frozen=True)
class Noise:
    """A forecaster that knows nothing."""

    tag: ClassVar[int] = 200
    name: ClassVar[str] = "noise"
    every: ClassVar[bool] = False

    def fit(self, examples, tolerance):
        return self

    def predict(self, step, plane, source):
        shape = source(step.earlier).shape
        return np.random.default_rng(step.time).normal(size=shape).astype(source(step.earlier).dtype)

    def pack(self):
        return b""

    @classmethod
    def unpack(cls, reader):
        reader.end()
        return cls()


def test_a_bad_forecaster_costs_next_to_nothing(monkeypatch):
    """Its weights become 0: what is left is interpolation frame by frame."""
    monkeypatch.setitem(FORECASTERS, Noise.tag, Noise)
    data = np.stack([smooth(40, 50, seed=t) for t in range(12)]).astype(np.float32)
    bad, out = coded(Frames(1, 1, Noise()), data)
    alone, _ = coded(Interpolation(batch=1), data)
    assert bad < 1.03 * alone
    assert np.abs(out - data).max() <= 0.02


def test_what_a_forecaster_says_may_be_anything(monkeypatch):
    @dataclass(frozen=True)
    class Wild(Noise):
        def predict(self, step, plane, source):
            return np.full_like(source(step.earlier), (np.nan, np.inf, 1e38)[step.time % 3])

    monkeypatch.setitem(FORECASTERS, Noise.tag, Wild)
    data = changing(6)
    _, out = coded(Frames(1, 1, Wild()), data)
    assert np.abs(out - data).max() <= 0.02


@pytest.mark.parametrize("effort", ["default", "max"])
def test_frames_of_nothing_but_nan(effort):
    data = changing(20)
    data[7] = data[8] = np.nan
    data[:, :3, :5] = np.nan
    restored = pipeline.decode(pipeline.encode(data, BOUND, effort=effort))
    assert np.array_equal(np.isnan(restored), np.isnan(data))
    assert np.nanmax(np.abs(restored - data)) <= 0.02
    labels = np.isnan(data).view(np.uint8)
    filled = np.where(np.isnan(data), np.float32(0), data)
    for forecaster in (Nearest(), LeastSquares(), Motion()):
        _, out = coded(Frames(1, 4, forecaster), filled, mask=labels)
        assert np.abs(out - data)[labels == 0].max() <= 0.02


@pytest.mark.parametrize("shape", [(1, 30, 31), (2, 30, 31), (9, 7, 31), (9, 30, 1), (30, 31), (9,)])
def test_nothing_to_refer_to(shape):
    """One time, frames too small, no frames at all: spatial coding, or what there is."""
    data = smooth(60, 300).astype(np.float32).flat[: int(np.prod(shape))].reshape(shape)
    stream = pipeline.encode(data, BOUND, effort="max")
    assert np.abs(pipeline.decode(stream) - data).max() <= 0.02


def test_a_distance_beyond_the_chunk():
    data = changing(3)
    _, out = coded(Frames(1, 64, LeastSquares()), data)
    assert np.abs(out - data).max() <= 0.02


def test_damaged_weights_are_refused():
    sound = LeastSquares((((1, 1), (60, 1, 1, 1, 1)),)).pack()
    assert LeastSquares.unpack(Reader(sound, "forecaster")).pack() == sound
    for damaged in (sound[:-1], sound + b"\0", b"\1\0\1\2\0\0\0\0", b"\1\7" + sound[2:]):
        with pytest.raises(CorruptStreamError, match="forecaster"):
            LeastSquares.unpack(Reader(damaged, "forecaster"))


def test_vectors_of_another_grid_are_refused():
    fitted = Motion((((1, 0), bytes(8)),))
    with pytest.raises(CorruptStreamError, match="vectors"):
        fitted.predict(steps(2, 1)[1], 0, lambda t: np.zeros((40, 40), "f4"))


def test_method_6_raises_the_version():
    stream = pipeline.encode(drifting(6), BOUND, effort="max")
    parsed = pipeline.Stream.from_bytes(stream)
    assert (parsed.method, parsed.version) == (Method.FRAMES, (1, 5))
