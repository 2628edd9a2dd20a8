"""What a chunk is made of: candidates cost what their streams cost, gains and weights are those of the data."""

import contextlib
import itertools
from dataclasses import replace

import numpy as np
import pytest

from aesz_codec import _core, pipeline
from aesz_codec.bounds import ErrorBound
from aesz_codec.dissection import Forecast, candidates, forecast, innovation_gains
from aesz_codec.errors import AESZError, CorruptStreamError, TruncatedStreamError, UnsupportedDtypeError
from aesz_codec.predictors import Frames, Interpolation
from aesz_codec.predictors.forecasts import LeastSquares, Motion, Nearest
from aesz_codec.stream import Reader, Stream

TOLERANCE = ErrorBound("abs", 0.02)


def drifting(frames=16, shape=(40, 48), kept=1.0, seed=3, moved=0):
    """Smooth fields of their own, and detail that stays from frame to frame but for a factor, or moves by so many columns."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    detail = rng.normal(size=shape)
    out = np.empty((frames, *shape), np.float32)
    for t in range(frames):
        out[t] = 280 + 3 * np.sin(x / 30 + t) + 2 * np.cos(y / 25 - t) + detail
        detail = kept * np.roll(detail, moved, 1) + rng.normal(0, 0.05, shape)
    return out


def coded_as(choice, values, monkeypatch, bound=TOLERANCE):
    def smallest(values, mask, quantizer, *_):
        return choice, *choice.encode(values, mask, quantizer)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "smallest", smallest)
        return pipeline.encode(values, bound)


@pytest.mark.parametrize("effort", pipeline.EFFORTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_a_candidate_costs_what_its_stream_costs(effort, dtype):
    values = drifting()
    values = (values * 100).astype(dtype) if dtype == "i2" else values.astype(dtype)
    bound = ErrorBound("abs", 2.0 if dtype == "i2" else 0.02)
    found = candidates(values, bound, effort=effort)
    assert [c.nbytes for c in found] == sorted(c.nbytes for c in found)
    coded = pipeline.describe(pipeline.encode(values, bound, effort=effort))
    same = [
        c
        for c in found
        if c.method == coded.predictor and all(coded.parameters[k] == v for k, v in c.parameters.items())
    ]
    assert [c.nbytes for c in same] == [coded.nbytes]
    assert found[0].nbytes <= coded.nbytes


def test_candidates_of_what_is_kept_exactly():
    field = np.random.default_rng(0).normal(size=(4, 9, 9)).astype("f4")
    assert {c.method for c in candidates(field, ErrorBound("lossless"))} <= {"lossless", "bytes"}
    assert candidates(np.empty((0, 3), "f4"), TOLERANCE) == ()
    assert len(candidates(np.full((8, 8), np.nan, "f4"), TOLERANCE)) <= 1
    with pytest.raises(UnsupportedDtypeError):
        candidates(np.zeros(3, "c8"), TOLERANCE)


class TestGains:
    frame = np.random.default_rng(1).normal(size=(33, 49))

    def test_of_the_frame_itself_in_part(self):
        for level in innovation_gains([(self.frame, 0.5 * self.frame)]):
            assert level.gain == pytest.approx(1) and level.weight == pytest.approx(2)

    def test_of_noise(self):
        other = np.random.default_rng(2).normal(size=self.frame.shape)
        assert innovation_gains([(self.frame, other)])[0].gain < 0.01

    def test_what_is_smooth_tells_nothing_new(self):
        """Cubic interpolation knows polynomials of the third degree; near the ends it is linear."""
        y, x = np.meshgrid(np.arange(33.0), np.arange(49.0), indexing="ij")
        level = innovation_gains([(self.frame, 3 + 2 * x - y)])[0]
        assert level.gain < 1e-3
        bent = innovation_gains([((x / 48) ** 3 + (y / 32) ** 2, self.frame)])[0]
        assert bent.left < 1e-2

    def test_share_of_the_power(self):
        other = np.random.default_rng(2).normal(size=self.frame.shape)
        for share in (0.2, 0.7):
            mixed = np.sqrt(share) * self.frame + np.sqrt(1 - share) * other
            assert innovation_gains([(mixed, self.frame)])[0].gain == pytest.approx(share, abs=0.05)

    def test_points_and_levels(self):
        levels = innovation_gains([(self.frame, self.frame)] * 2)
        assert [level.level for level in levels] == [0, 1, 2, 3, 4]
        assert levels[0].points == 2 * (33 * 49 - 17 * 25)
        holes = self.frame.copy()
        holes[5, 6] = np.nan
        assert 0 < innovation_gains([(holes, self.frame)])[0].points < levels[0].points / 2
        assert innovation_gains([(np.full((4, 4), np.nan), np.ones((4, 4)))]) == ()
        assert [level.level for level in innovation_gains([(np.ones((1, 3)), np.ones((1, 3)))])] == [0, 1]


class TestForecast:
    @pytest.mark.parametrize("distance", [1, 2, 8])
    @pytest.mark.parametrize("kind", [Nearest, LeastSquares])
    def test_what_stays_from_frame_to_frame_is_explained(self, distance, kind, monkeypatch):
        found = forecast(coded_as(Frames(1, distance, kind()), drifting(), monkeypatch))
        assert found.used and found.forecaster == kind.name and found.keyframes == distance
        assert found.order == ("one-sided" if distance == 1 else "two-sided")
        assert found.gains[0].gain > 0.9
        assert {w.distance for w in found.weights} == {"1", "2", "4 or more"} if distance == 8 else {"1"}
        assert all(0.8 < w.weight < 1.1 for w in found.weights if w.level == 0)
        assert bool(found.fitted) == (kind is not Nearest)

    def test_what_moves(self, monkeypatch):
        found = forecast(coded_as(Frames(1, 1, Motion()), drifting(frames=5, moved=2), monkeypatch))
        assert found.forecaster == "motion" and found.fitted["frames"] == 4
        assert found.fitted["mean points moved"] == pytest.approx(2, abs=0.2)
        assert found.gains[0].gain > 0.8
        still = forecast(coded_as(Frames(1, 1, Nearest()), drifting(frames=5, moved=2), monkeypatch))
        assert still.gains[0].gain < 0.1

    def test_what_does_not_is_not(self, monkeypatch):
        found = forecast(coded_as(Frames(1, 1, Nearest()), drifting(kept=0.0), monkeypatch))
        assert found.gains[0].gain < 0.02
        assert all(abs(w.weight) < 0.1 for w in found.weights if w.level == 0)

    def test_half_of_it(self, monkeypatch):
        """Of detail that loses half of itself with every frame the reference has to count half."""
        values = drifting(frames=5, kept=0.5)
        found = forecast(coded_as(Frames(1, 1, Nearest()), values, monkeypatch, ErrorBound("abs", 1e-3)))
        assert all(0.45 < w.weight < 0.55 for w in found.weights if w.level == 0)
        assert found.gains[0].weight == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize("shape", [(9, 40, 48), (3, 4, 20, 24)])
    def test_weights_are_those_of_the_stream(self, shape, monkeypatch):
        """Decoding with other references at points of one class changes these by the weight."""
        values = drifting(int(np.prod(shape[:-2])), shape[-2:], kept=0.9).reshape(shape)
        values[0, ..., 3:9, 5:7] = np.nan
        choice = Frames(len(shape) - 2, 2, LeastSquares())
        stream = coded_as(choice, values, monkeypatch)
        weights = {(w.distance, w.level, w.odd): w.weight for w in forecast(stream).weights}
        loop = pipeline.closed_loop(Stream.from_bytes(stream), shape, dict().__getitem__)
        reader = Reader(loop.codes, "codes")
        reader.take(reader.varint())
        rest, rng = bytes(reader.rest()), np.random.default_rng(5)
        base = rng.normal(280, 3, (int(np.prod(shape[:-2])), *shape[-2:])).astype("f4")

        def decoded(references):
            out = np.empty(shape, np.float32)
            _core.decode_frames(
                rest, loop.outliers, out, loop.mask, loop.step, loop.offset, choice.batch, choice.coder,
                16, 16, None, choice._schedule(shape), lambda frame: references[frame],
            )  # fmt: skip
            return out.reshape(base.shape)

        before, schedule = decoded(base), choice._schedule(shape)
        classes = {"columns": (0, 1), "lines": (1, 0), "both": (1, 1)}
        for level, (name, odd) in itertools.product(range(2), classes.items()):
            s = 1 << level
            place = np.s_[:, odd[0] * s :: 2 * s, odd[1] * s :: 2 * s]
            other = base.copy()
            other[place] += rng.normal(0, 50, other[place].shape).astype("f4")
            change, asked = decoded(other)[place] - before[place], other[place] - base[place]
            for frame, number, *_ in schedule[:]:
                if number:
                    weight = weights[{1: "1", 2: "2"}[number], level, name]
                    assert np.median(np.abs(change[frame] - weight * asked[frame])) < 1e-3

    def test_frames_before_in_interpolation(self, monkeypatch):
        values = drifting()
        for refers in (True, False):
            choice = Interpolation(batch=1, reference=refers)
            found = forecast(coded_as(choice, values, monkeypatch))
            assert isinstance(found, Forecast)
            assert (found.used, found.weights, found.fitted) == (refers, (), {})
            assert found.gains[0].gain > 0.9

    def test_what_has_no_frames(self):
        field = drifting(1)[0]
        assert forecast(pipeline.encode(field, TOLERANCE)) is None
        assert forecast(pipeline.encode(field, ErrorBound("lossless"))) is None
        assert forecast(pipeline.encode(np.full((8, 9, 9), np.nan, "f4"), TOLERANCE)) is None
        with pytest.raises(TruncatedStreamError):
            forecast(pipeline.encode(drifting(), TOLERANCE)[:-9])

    def test_damaged_streams_are_an_error_or_a_forecast(self, monkeypatch):
        """A checksum guards the stream: what is behind it is damaged before it is sealed again."""
        stream = Stream.from_bytes(coded_as(Frames(1, 2, LeastSquares()), drifting(6), monkeypatch))
        rng = np.random.default_rng(11)
        for section, data in dict(stream.sections).items():
            for _ in range(40):
                damaged = bytearray(data)
                damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
                sealed = replace(stream, sections={**stream.sections, section: bytes(damaged)}).to_bytes()
                with contextlib.suppress(AESZError):
                    assert forecast(sealed) is not None
        huge = replace(stream, shape=(1 << 20, 1 << 12, 1 << 12), sections=dict(stream.sections))
        with pytest.raises(CorruptStreamError):
            forecast(huge.to_bytes())

    def test_a_chunk_that_is_padded(self, monkeypatch):
        values = drifting()
        values[:, 30:] = np.nan
        found = forecast(coded_as(Frames(1, 1, Nearest()), values, monkeypatch))
        assert found.gains[0].gain > 0.9
