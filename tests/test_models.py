"""Models at work: packs in the closed loop, in streams, in configurations of codecs, and those that `encoding_for` picks.

The packs are made here: one with small random weights, one with large ones (noise), and one fitted to waves that pays for them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from aesz_codec import AESZ, AESZCodec, _core, encoding_for, errors, inspect_store, pipeline, zoo
from aesz_codec.bounds import ErrorBound
from aesz_codec.cli import main
from aesz_codec.conversion import convert
from aesz_codec.models import ModelReference
from aesz_codec.packs import Pack, plain
from aesz_codec.predictors import Frames, Interpolation, Quantizer, interpolation, learned_by
from aesz_codec.stream import Coder, Method, Section, Stream
from aesz_codec.train.packing import write_pack

BOUND = ErrorBound("abs", 0.5)
SLOTS = {2: range(3), 3: range(6, 13)}  # by the number of axes; those that refer to a frame before are 3 to 5


# Packs


def inputs_of(slot: int) -> int:
    return 49 if 3 <= slot < 6 else 36


def linear(slots: dict[int, tuple[np.ndarray, np.ndarray]], id_: str, sees=None, **fields) -> Pack:
    """A pack of networks of one layer: weights (2, inputs) and bias (2,) by slot."""
    tensors, described = {}, {}
    for slot, (weight, bias) in slots.items():
        tensors |= {f"{slot}.w": weight.astype(np.int16), f"{slot}.b": bias.astype(np.int32)}
        layer = {"type": "linear", "weight": f"{slot}.w", "bias": f"{slot}.b"}
        described[str(slot)] = {
            "arithmetic": "INT-1",
            "input": {"channels": weight.shape[1]},
            "layers": [layer],
        }
    network = {"slots": described} if sees is None else {"slots": described, "sees": sees}
    manifest = {"id": id_, "kind": "interpolation", "licence": "CC0-1.0", "network": network}
    return Pack.from_bytes(write_pack({**manifest, **fields}, tensors))


def random_pack(id_: str = "random", seed: int = 0, largest: int = 20, slots=range(13), **fields) -> Pack:
    rng = np.random.default_rng(seed)
    return linear(
        {
            slot: (
                rng.integers(-largest, largest + 1, (2, inputs_of(slot))),
                rng.integers(-100 * largest, 100 * largest + 1, 2),
            )
            for slot in slots
        },
        id_,
        **fields,
    )


def noise_pack() -> Pack:
    return random_pack("noise", 1, 1000)


def fitted_pack(id_: str = "waves", **fields) -> Pack:
    """A pack that pays for `waves`."""
    return linear(fitted(), id_, **fields)


@cache
def fitted() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Least squares on what the predictor collects; the class of magnitude is the spread's, with the best constant."""
    slots = {}
    for axes, numbers in SLOTS.items():
        shape = (24, 96, 96)[3 - axes :]
        collected = _core.collect_interpolation(
            waves(*shape, seed=99), None, 0.5, 1.0, 0.0, 0, False, 1, interpolation.MOST_SEEN
        )
        for slot in numbers:
            x = np.frombuffer(collected[slot][0], np.int16).reshape(-1, inputs_of(slot)).astype(np.float64)
            lacking, spread = np.frombuffer(collected[slot][1], np.float32).reshape(-1, 2).astype(float).T
            codes = 37 if inputs_of(slot) == 49 else 24  # they are others once the model is at work
            x[:, codes : codes + 8] = 0
            target = np.clip(lacking / spread, -0.05, 0.05) * 2**24
            gram = x.T @ x
            weight = np.linalg.solve(
                gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ target
            )
            weight = np.clip(np.rint(weight), -1000, 1000)
            slots[slot] = (np.stack([weight, 0 * weight]), np.array([0, -12000]))
    return slots


def contexts_pack() -> Pack:
    manifest = {"id": "contexts", "kind": "contexts", "licence": "CC0-1.0"}
    return Pack.from_bytes(write_pack(manifest, {"w": np.ones((2, 2), np.int8)}))


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    """Short waves in four directions, which the few weights of plain interpolation do not follow, and noise."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed + 1)
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    total = rng.normal(0, 0.1, shape)
    for _ in range(4):
        direction = fixed.normal(size=len(shape))
        phase = 2 * np.pi / fixed.uniform(6, 9) / np.linalg.norm(direction)
        total += np.cos(phase * sum(d * a for d, a in zip(direction, axes, strict=True)) + rng.uniform(0, 7))
    return total.astype("f4")


def put(folder: Path, pack: Pack) -> Path:
    path = folder / pack.id / "model.aeszpack"
    path.parent.mkdir(parents=True)
    path.write_bytes(pack.data)
    return path


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """Give the zoo nothing but two empty folders, and no memory."""
    found = {"built-in": tmp_path / "built-in", "added": tmp_path / "added"}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.setattr(zoo, "_installed", lambda: [str(found["built-in"])])
    for memory in ("_by_digest", "_by_source", "_embedded"):
        monkeypatch.setattr(zoo, memory, {})
    monkeypatch.setenv("AESZ_ZOO", str(found["added"]))
    return found


def coded(data, model: Pack | None, effort="default", bound=BOUND) -> bytes:
    return pipeline.encode(data, bound, effort=effort, models=() if model is None else (model,))


def finder(*packs: Pack):
    return {pack.digest: pack for pack in packs}.__getitem__


# The closed loop


@pytest.mark.parametrize("shape", [(96, 96), (20, 40, 40), (3, 64, 64), (2, 3, 48, 48)])
@pytest.mark.parametrize("effort", ["fast", "default", "max"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_model_that_fits_saves_bytes_and_keeps_the_bound(shape, effort, dtype):
    data, pack = waves(*shape).astype(dtype), fitted_pack()
    stream = coded(data, pack, effort)
    decoded = pipeline.decode(stream, find_model=finder(pack))
    assert abs(decoded - data).max() <= 0.5
    assert len(stream) <= 1.001 * len(coded(data, None, effort))
    info = pipeline.describe(stream)
    if shape in ((96, 96), (20, 40, 40)):
        assert (info.models, info.format_version, info.sections["model"]) == ((pack.digest,), "1.2", 32)
        assert len(stream) < 0.99 * len(coded(data, None, effort))


@pytest.mark.parametrize("pack", [random_pack(), noise_pack()], ids=lambda pack: pack.id)
@pytest.mark.parametrize("effort", ["fast", "default", "max"])
def test_a_bad_model_costs_at_most_half_a_percent(pack, effort):
    rng = np.random.default_rng(5)
    smooth = 30 * np.cumsum(np.cumsum(rng.normal(0, 0.01, (3, 80, 90)), 1), 2).astype("f4")
    masked = np.where(rng.random((3, 80, 90)) < 0.1, np.nan, smooth)
    for data in (
        smooth,
        masked,
        waves(90, 70),
        waves(12, 30, 31),
        np.rint(smooth * 20).astype("i4"),
        smooth[0, 0],
    ):
        for value in (2.0, 0.05):
            bound = ErrorBound("abs", value)
            stream = coded(data, pack, effort, bound)
            assert len(stream) <= 1.005 * len(coded(data, None, effort, bound))
            decoded = pipeline.decode(stream, find_model=finder(pack))
            error = np.abs(decoded.astype(float) - data.astype(float))
            assert np.nanmax(error) <= value
            assert np.array_equal(np.isnan(decoded.astype(float)), np.isnan(data.astype(float)))


def test_streams_without_a_model_stay_as_they_are():
    data = np.random.default_rng(0).normal(0, 1, (40, 50)).astype("f4")
    assert coded(data, noise_pack()) == coded(data, None)
    assert Stream.from_bytes(coded(data, noise_pack())).version < (1, 2)
    assert coded(data, noise_pack(), "fast") == coded(data, None, "fast")


def test_the_better_of_several_models_is_taken():
    packs = [noise_pack(), fitted_pack(), random_pack()]
    for order in (packs, packs[::-1]):
        assert pipeline.describe(pipeline.encode(waves(96, 96), BOUND, models=order)).models == (
            fitted_pack().digest,
        )


def test_a_model_is_proposed_where_it_has_a_network():
    def proposed(shape, *slots):
        pack = random_pack(slots=slots)
        found = Interpolation.candidates(shape, "default", 0.0, [pack])
        return {(c.batch, c.reference) for c in found if c.model is not None}

    assert proposed((20, 30), 0) == {(0, False)}
    assert proposed((20, 30), 3, 12) == set()
    assert proposed((4, 20, 30), 2) == {(1, False)}
    assert proposed((4, 7, 30), 3) == {(1, True)}
    assert proposed((4, 20, 30), 3) == set()  # larger frames refer by `Frames`
    found = Frames.candidates((4, 20, 30), "default", 0.0, [random_pack(slots=(3,))])
    assert [c.model is not None for c in found] == [False, True]
    assert proposed((4, 20, 30), 6) == {(0, False)}
    assert proposed((30,), 0, 3, 6) == set()
    with_model = Interpolation(model=random_pack())
    assert not any(c.reversed for c in with_model.refinements("max", 1.0))


def test_threads_give_the_same_bytes_and_share_the_networks():
    pack, fields = fitted_pack(), [waves(96, 96, seed=seed) for seed in range(4)] * 3
    alone = [coded(data, pack) for data in fields]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda data: coded(data, pack), fields)) == alone
        decoded = list(threads.map(lambda s: pipeline.decode(s, find_model=finder(pack)).tobytes(), alone))
    assert decoded == [pipeline.decode(s, find_model=finder(pack)).tobytes() for s in alone]


def test_networks_are_built_once_for_a_digest(monkeypatch):
    built = []
    network = interpolation.mlps
    monkeypatch.setattr(
        interpolation, "mlps", lambda pack, *more: built.append(pack.digest) or network(pack, *more)
    )
    pack = random_pack("once", 77)
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        Interpolation.prepare(Pack.from_bytes(pack.data))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert built == [pack.digest]


# Packs that cannot be used


def test_a_pack_of_another_kind_is_refused():
    with pytest.raises(errors.ModelKindError, match="'contexts'.*'interpolation' or .*'basis'"):
        coded(waves(20, 20), contexts_pack())
    with pytest.raises(errors.ModelKindError, match="model 'contexts'"):
        AESZ(0.1, model=contexts_pack())
    with pytest.raises(errors.ModelKindError, match="'forecaster'.*damaged"):
        learned_by(random_pack(), Method.CAUSAL)
    with pytest.raises(errors.ModelKindError, match="no model.*damaged"):
        learned_by(random_pack(), Method.LOCAL)
    assert issubclass(errors.ModelKindError, ValueError)


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (None, "network: found None"),
        ({}, "slots"),
        ({"slots": {}}, "slots"),
        ({"slots": [1]}, "slots"),
        ({"slots": {"0": {}}, "more": 1}, "slots"),
        ({"slots": {"13": {}}}, "'13'.*0 to 12"),
        ({"slots": {"00": {}}}, "'00'"),
        ({"slots": {"-1": {}}}, "'-1'"),
        ({"slots": {"0": {"arithmetic": "INT-1"}}}, r"slots\.0: "),
    ],
)
def test_networks_that_are_not_sound(network, match):
    manifest = {"id": "bad", "kind": "interpolation", "licence": "CC0-1.0", "network": network}
    pack = Pack.from_bytes(write_pack(manifest, {"w": np.ones((2, 36), np.int8)}))
    with pytest.raises(errors.InvalidModelError, match=match):
        AESZ(0.1, model=pack)
    with pytest.raises(errors.InvalidModelError, match="pack 'bad'"):
        coded(waves(20, 20), pack)


def test_a_network_with_other_inputs_than_its_slot():
    pack = linear({0: (np.zeros((2, 35)), np.zeros(2))}, "narrow")
    with pytest.raises(errors.InvalidModelError, match="pack 'narrow': found .*inputs"):
        AESZ(0.1, model=pack)


def seeing(**other) -> list:
    """Eight points everywhere, five in the frame before; but for some slots."""
    return [other.get(f"_{slot}", [8, 5 if 3 <= slot < 6 else 0]) for slot in range(13)]


@pytest.mark.parametrize(
    "sees",
    [5, [], [8, 5], {"0": [8, 0]}, seeing()[:12], seeing() + [[8, 0]], seeing(_1=8), seeing(_1=[8])]
    + [seeing(_1=[8, 0, 0]), seeing(_1=[8.0, 0]), seeing(_1=[8, False]), seeing(_1=["8", 0])]
    + [seeing(_1=[3, 0]), seeing(_1=[25, 0]), seeing(_1=[8, 1]), seeing(_4=[8, -1]), seeing(_4=[8, 14])]
    + [seeing(_9=[8, 5]), seeing(_9=[1 << 40, 0]), seeing(_0=[9, 0])],
    ids=str,
)
def test_networks_that_see_what_there_is_not(sees):
    """The last would see nine points, but has inputs for eight."""
    pack = linear({0: (np.zeros((2, 20)), np.zeros(2))}, "blind", sees)
    with pytest.raises(errors.InvalidModelError, match="pack 'blind'"):
        AESZ(0.1, model=pack)


@pytest.mark.parametrize("seen", [(4, 0), (8, 5), (12, 13), (13, 0), (24, 13)], ids=str)
def test_how_much_networks_see(seen):
    rng = np.random.default_rng(3)
    sees = [[seen[0], seen[1] if 3 <= slot < 6 else 0] for slot in range(13)]
    slots = {
        slot: (rng.integers(-20, 21, (2, sum(counts) + 12)), rng.integers(-2000, 2001, 2))
        for slot, counts in enumerate(sees)
    }
    pack = linear(slots, "sees", sees)
    for shape, batch in (((30, 40), 0), ((3, 20, 30), 1), ((9, 14, 20), 0)):
        data = waves(*shape)
        for coder in (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED):
            for refers in (False, True) if batch else (False,):
                choice = Interpolation(batch, reference=refers, coder=coder, model=pack)
                codes, outliers = choice.encode(data, None, Quantizer(0.5, 1.0, 0.0))
                plain_codes, _ = replace(choice, model=None).encode(data, None, Quantizer(0.5, 1.0, 0.0))
                assert codes != plain_codes
                out = np.empty_like(data)
                choice.decode(codes, outliers, out, None, 1.0, 0.0)
                assert np.abs(out - data).max() <= 0.5


@pytest.mark.parametrize(("hidden", "sound"), [((256, 218), True), ((256, 219), False), ((256,) * 9, False)])
def test_a_network_that_would_make_decoding_slow(hidden, sound):
    """36 inputs, two outputs: 65,460 multiplications for a point, 65,718, and many more."""
    widths, layers, tensors = (36, *hidden, 2), [], {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        tensors |= {f"{i}.w": np.zeros((outputs, inputs), np.int8), f"{i}.b": np.zeros(outputs, np.int32)}
        layers.append({"type": "linear", "weight": f"{i}.w", "bias": f"{i}.b"})
        if outputs > 2:
            tensors[f"{i}.s"] = np.ones(outputs, np.uint8)
            layers[-1] |= {"shift": f"{i}.s", "activation": "relu"}
    network = {"slots": {"0": {"arithmetic": "INT-1", "input": {"channels": 36}, "layers": layers}}}
    manifest = {"id": "wide", "kind": "interpolation", "licence": "CC0-1.0", "network": network}
    pack = Pack.from_bytes(write_pack(manifest, tensors))
    if sound:
        AESZ(0.1, model=pack)
        return
    with pytest.raises(errors.InvalidModelError, match=r"slots\.0: found \d{5,6} multipl.*at most 65536"):
        AESZ(0.1, model=pack)


def test_verify_loads_the_networks(places):
    put(places["added"], fitted_pack())
    bad = linear({0: (np.zeros((2, 35)), np.zeros(2))}, "narrow")
    put(places["added"], bad)
    by_name = {check.pack.id if check.pack else "?": check.problem for check in zoo.verify()}
    assert by_name["waves"] is None
    assert "narrow" in by_name["?"]


# Streams


def test_a_missing_model_is_named_with_the_places(places):
    stream, digest = coded(waves(96, 96), fitted_pack()), fitted_pack().digest
    with pytest.raises(errors.ModelNotFoundError) as caught:
        pipeline.decode(stream)
    for word in (digest, str(places["added"]), str(places["built-in"]), "models add", "AESZ_ZOO"):
        assert word in str(caught.value)
    put(places["added"], fitted_pack())
    assert abs(pipeline.decode(stream) - waves(96, 96)).max() <= 0.5


def test_another_pack_than_the_stream_names():
    stream = coded(waves(96, 96), fitted_pack())
    with pytest.raises(errors.PackDigestError, match="'random'.*the stream"):
        pipeline.decode(stream, find_model=lambda digest: random_pack())
    parsed = Stream.from_bytes(stream)
    parsed.sections[Section.MODEL] = bytes.fromhex(contexts_pack().digest)
    with pytest.raises(errors.ModelKindError, match="'contexts'"):
        pipeline.decode(parsed.to_bytes(), find_model=lambda digest: contexts_pack())


@pytest.mark.parametrize("shape", [(190, 190), (10, 60, 64)])
def test_large_arrays_get_the_fast_coder_but_for_zeros(shape):
    data, pack = waves(*shape), fitted_pack()
    found = [c for c in Interpolation.candidates(shape, "default", 0.0, [pack]) if c.model is not None]
    assert {c.coder for c in found} == {Coder.STATIC}
    assert {c.for_rate(2.0).coder for c in found} == {Coder.STATIC}
    assert {c.for_rate(0.1).coder for c in found} == {Coder.ADAPTIVE}
    small = Interpolation.candidates((20, 30), "default", 0.0, [pack])
    assert {c.coder for c in small if c.model is not None} == {Coder.ADAPTIVE}
    stream = coded(data, pack, "default")
    info = pipeline.describe(stream)
    assert (info.parameters["coder"], info.models) == ("adaptive", (pack.digest,))  # nearly all zeros
    assert abs(pipeline.decode(stream, find_model=finder(pack)) - data).max() <= 0.5
    assert len(stream) <= 1.001 * len(coded(data, None, "default"))
    assert pipeline.describe(coded(data, pack, "max")).parameters["coder"] == "mixed"


def test_any_networks_decode_any_codes():
    """Damage that no checksum sees: wild networks, other codes, other outliers; an array or an error."""
    rng = np.random.default_rng(3)
    packs = [noise_pack(), random_pack(largest=500, seed=9), fitted_pack()]
    for n in range(120):
        pack = packs[n % 3]
        shape = [(9, 11), (3, 8, 9), (2, 40)][n // 3 % 3]
        batch = len(shape) - 2
        coder = (Coder.ADAPTIVE, Coder.STATIC, Coder.MIXED)[n // 9 % 3]
        model = Interpolation(batch, reference=bool(n & 1 and batch), coder=coder, model=pack)
        wild = waves(*shape) * np.float32(10.0 ** rng.integers(-30, 36))
        stream = Stream(np.dtype("f4"), shape, "abs", 1.0, 1.0, Method.INTERPOLATION)
        step = float(10.0 ** rng.integers(-40, 36))
        codes, outliers = model.encode(wild, None, Quantizer(step / 2, step, 0.0))
        stream.sections[Section.PLAN] = model.pack(step, float(wild.flat[0]))
        stream.sections[Section.CODES] = bytes(
            b ^ (int(rng.integers(256)) if rng.random() < 0.05 else 0) for b in codes
        )
        stream.sections[Section.OUTLIERS] = outliers
        stream.sections[Section.MODEL] = bytes.fromhex(pack.digest)
        try:
            decoded = pipeline.decode(stream.to_bytes(), find_model=finder(pack))
        except errors.CorruptStreamError:
            continue
        assert decoded.shape == shape


# Codecs


@pytest.mark.parametrize(
    "make", [str, Path, lambda path: Pack.from_file(path), lambda path: [path, random_pack()]]
)
def test_a_model_by_file_is_embedded(tmp_path, make):
    path = put(tmp_path / "packs", fitted_pack())
    codec = AESZ(0.5, model=make(path))
    first = codec.models[0]
    assert (first.id, first.digest) == ("waves", fitted_pack().digest)
    assert Pack.from_bytes(zoo.embed(first.data).data) == fitted_pack()
    config = json.loads(json.dumps(codec.get_config()))
    assert [model.keys() for model in config["models"]] == [{"id", "digest", "data"}] * len(codec.models)
    again = numcodecs.get_codec(config)
    assert again == codec
    assert hash(again) == hash(codec)
    assert pickle.loads(pickle.dumps(codec)) == codec
    data = waves(96, 96)
    assert pickle.loads(pickle.dumps(again)).encode(data) == codec.encode(data)
    assert abs(again.decode(codec.encode(data)) - data).max() <= 0.5


def test_models_by_id_and_digest(places):
    put(places["added"], fitted_pack())
    put(places["built-in"], random_pack())
    added, builtin = AESZ(0.5, model="waves"), AESZ(0.5, model="random")
    assert repr(added) == "AESZ(error_bound=0.5, mode='abs', model='waves')"
    assert added == AESZ(0.5, model=fitted_pack().digest) == AESZ(0.5, model=added.models)
    assert builtin.get_config()["models"] == [{"id": "random", "digest": random_pack().digest}]
    both = AESZ(0.5, model=["waves", "random", fitted_pack()])
    assert [model.id for model in both.models] == ["waves", "random"]
    assert repr(both).endswith("model=['waves', 'random'])")
    assert "data" not in repr(added.models)
    by_hand = numcodecs.get_codec({"id": "aesz", "error_bound": 0.5, "model": "waves"})
    assert by_hand == added
    with pytest.raises(errors.ModelNotFoundError, match="'wave'"):
        AESZ(0.5, model="wave")
    assert AESZ(0.5).get_config() == {"id": "aesz", "error_bound": 0.5, "mode": "abs", "effort": "default"}


def test_auto_takes_installed_models_for_any_variable(places):
    assert AESZ(0.5, model="auto") == AESZ(0.5)
    put(places["added"], random_pack(variables=[{"short_name": "t2m"}]))
    put(places["built-in"], fitted_pack())
    zoo.embed(noise_pack().data)  # of an archive that was read; nothing to write with
    assert [model.id for model in AESZ(0.5, model="auto").models] == ["waves"]


def test_embedding_refused(places):
    with pytest.raises(errors.InvalidConfigError, match="embed_models: .*'waves'.*not installed.*models add"):
        AESZ(0.5, model=fitted_pack(), embed_models=False)
    put(places["added"], fitted_pack())
    codec = AESZ(0.5, model=fitted_pack(), embed_models=False)
    assert codec.get_config()["models"] == [{"id": "waves", "digest": fitted_pack().digest}]
    assert AESZ.from_config(codec.get_config()) == codec != AESZ(0.5, model=fitted_pack())


def test_a_large_pack_is_embedded_by_none(places):
    noise = np.random.default_rng(0).integers(-128, 128, (700, 1000), dtype=np.int8)
    small = random_pack()
    manifest = {"id": "large", "kind": "interpolation", "licence": "CC0-1.0", "network": None}
    manifest["network"] = plain(small.manifest["network"])
    pack = Pack.from_bytes(write_pack(manifest, {**small.tensors, "more": noise}))
    with pytest.raises(errors.PackSizeError, match="'large'.*512000"):
        AESZ(0.5, model=pack)
    put(places["added"], pack)
    assert AESZ(0.5, model="large", embed_models=False).models[0].data is None
    with pytest.raises(errors.PackSizeError, match="models.data"):
        ModelReference("large", pack.digest, "A" * 700_000)


@pytest.mark.parametrize(
    "models",
    [
        "waves",
        [1],
        [{"id": "a"}],
        [{"id": "a", "digest": "b"}],
        [{"id": 1, "digest": "0" * 64}],
        [{"id": "a", "digest": "0" * 64, "data": 1}],
        [{"id": "a", "digest": "0" * 64, "more": 1}],
    ],
)
def test_models_of_a_configuration_are_checked(models):
    with pytest.raises(errors.InvalidConfigError, match="models"):
        AESZ.from_config({"error_bound": 1, "models": models})
    with pytest.raises(errors.InvalidConfigError, match="beside it"):
        AESZ.from_config({"error_bound": 1, "models": [], "model": "a"})


def test_what_cannot_be_a_model():
    for model in (1, b"waves", [None]):
        with pytest.raises(errors.InvalidConfigError, match="model: "):
            AESZ(0.1, model=model)


def test_a_configuration_whose_model_is_missing_opens_and_raises_at_first_use():
    config = {"error_bound": 0.5, "models": [{"id": "gone", "digest": fitted_pack().digest}]}
    codec = AESZ.from_config(config)
    for use in (
        lambda: codec.encode(waves(20, 20)),
        lambda: codec.decode(coded(waves(96, 96), fitted_pack())),
    ):
        with pytest.raises(errors.ModelNotFoundError, match=f"'gone'.*{fitted_pack().digest}"):
            use()
    plain = AESZ(0.5).encode(waves(20, 20))
    assert codec.decode(plain).shape == (20, 20)  # a stream that uses none needs none


def test_a_configuration_whose_pack_is_another_one():
    data = zoo.embedded(random_pack())
    codec = AESZ.from_config({"error_bound": 1, "models": [{"id": "a", "digest": "0" * 64, "data": data}]})
    with pytest.raises(errors.PackDigestError, match="configuration"):
        codec.encode(waves(20, 20))
    broken = AESZ.from_config({"error_bound": 1, "models": [{"id": "a", "digest": "0" * 64, "data": "AAAA"}]})
    with pytest.raises(errors.PackError):
        broken.encode(waves(20, 20))


# Stores


def dataset(**attributes) -> xr.Dataset:
    t = waves(20, 64, 64)
    return xr.Dataset(
        {"t2m": (("time", "lat", "lon"), t, attributes), "other": (("time", "lat"), t[:, 0])},
        coords={
            "lat": ("lat", np.linspace(60, 50, 64), {"units": "degrees_north"}),
            "lon": ("lon", np.linspace(0, 10, 64), {"units": "degrees_east"}),
        },
    )


READ = """
import sys, warnings
import numpy as np
import xarray as xr
warnings.simplefilter("error")
ds = xr.open_zarr(sys.argv[1], chunks=None)
np.save(sys.argv[2], ds["t2m"].values)
"""


def read_elsewhere(store: Path, empty: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", READ, str(store), str(store) + ".npy"],
        env={**os.environ, "AESZ_ZOO": str(empty)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("zarr_format", "shards"), [(2, None), (3, None), (3, {"time": 20})])
def test_an_archive_brings_its_model_along(tmp_path, places, zarr_format, shards):
    ds, store = dataset(), tmp_path / "a.zarr"
    put(places["added"], fitted_pack())
    how = {"zarr_format": zarr_format, "chunks": {"time": 10}, "shards": shards}
    encoding = encoding_for(ds, {"t2m": 0.5}, model={"t2m": "waves"}, **how)
    ds.to_zarr(store, encoding=encoding, zarr_format=zarr_format)
    result = read_elsewhere(store, tmp_path / "empty")
    assert result.returncode == 0, result.stderr
    decoded = np.load(str(store) + ".npy")
    assert abs(decoded - ds.t2m.values).max() <= 0.5
    assert np.array_equal(decoded, xr.open_zarr(store).t2m.values)
    reports = {v.name: v for v in inspect_store(store).variables}
    (model,) = reports["t2m"].models
    assert (model.id, model.digest, model.chunks) == ("waves", fitted_pack().digest, 2)
    assert model.embedded_bytes > 0
    assert reports["other"].models == ()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_archive_without_its_model_opens_and_raises_when_it_is_read(tmp_path, places, zarr_format):
    ds, store = dataset(), tmp_path / "a.zarr"
    put(places["added"], fitted_pack())
    encoding = encoding_for(ds, {"t2m": 0.5}, model="waves", embed_models=False, zarr_format=zarr_format)
    ds.to_zarr(store, encoding=encoding, zarr_format=zarr_format)
    assert abs(xr.open_zarr(store).t2m.values - ds.t2m.values).max() <= 0.5
    result = read_elsewhere(store, tmp_path / "empty")
    assert result.returncode == 1
    assert "ModelNotFoundError" in result.stderr.splitlines()[-1]
    for word in ("'waves'", fitted_pack().digest, str(tmp_path / "empty")):
        assert word in result.stderr


def test_dask_writes_and_reads(tmp_path):
    ds, store = dataset().chunk({"time": 5}), tmp_path / "a.zarr"
    encoding = encoding_for(ds, {"t2m": 0.5}, model=fitted_pack())
    ds.to_zarr(store, encoding=encoding)
    opened = xr.open_zarr(store, chunks={})
    assert float(abs(opened.t2m - ds.t2m).max()) <= 0.5
    codec = zarr.open_array(store / "t2m").serializer
    assert isinstance(codec, AESZCodec)
    assert pickle.loads(pickle.dumps(codec)) == codec


# What `encoding_for` picks


def models_of(encoding, name="t2m"):
    return [model["id"] for model in encoding[name]["serializer"]["configuration"].get("models", ())]


def test_auto_without_packs_reads_nothing():
    ds = dataset()

    class Lazy(BackendArray):
        dtype, shape = np.dtype("f4"), (20, 64, 64)

        def __getitem__(self, key):
            raise AssertionError("read")

    lazy = xr.Dataset({"t2m": (("time", "lat", "lon"), indexing.LazilyIndexedArray(Lazy()))})
    assert (
        encoding_for(lazy, 0.5, model="auto")
        == encoding_for(lazy, 0.5, model=None)
        == encoding_for(lazy, 0.5)
    )
    assert encoding_for(ds, 0.5) == encoding_for(ds, 0.5, model=None)


def test_auto_takes_what_is_for_the_variable_and_pays(places):
    ds = dataset(standard_name="air_temperature", units="K")
    put(places["built-in"], fitted_pack("wind", variables=[{"standard_name": "eastward_wind"}]))
    put(places["built-in"], random_pack("useless", variables=[{"standard_name": "air_temperature"}]))
    assert models_of(encoding_for(ds, 0.5, model="auto")) == []
    grid = zoo.grid_hash(ds.lat, ds.lon)
    put(
        places["built-in"],
        fitted_pack("elsewhere", grid="0" * 32, variables=[{"standard_name": "air_temperature"}]),
    )
    assert models_of(encoding_for(ds, 0.5, model="auto")) == []
    put(places["built-in"], fitted_pack("here", grid=grid, variables=[{"standard_name": "air_temperature"}]))
    encoding = encoding_for(ds, 0.5, model="auto")
    assert models_of(encoding) == ["here"]
    assert "data" not in encoding["t2m"]["serializer"]["configuration"]["models"][0]
    assert models_of(encoding_for(ds, 0.5, model="auto", effort="fast")) == ["here"]
    assert models_of(encoding_for(ds, 0.5, model=None)) == []
    assert models_of(encoding_for(ds, "lossless", model="auto")) == []
    assert models_of(encoding_for(ds, 0.5, model={"t2m": "wind"})) == ["wind"]


def test_auto_counts_what_travels_along(places):
    put(places["added"], fitted_pack())
    small, large = dataset().isel(time=slice(4)), xr.concat([dataset()] * 4, "time")
    encoding = encoding_for(large, 0.5, chunks={"time": 20}, model="auto")
    assert models_of(encoding) == ["waves"]
    assert "data" in encoding["t2m"]["serializer"]["configuration"]["models"][0]
    assert models_of(encoding_for(small, 0.5, model="auto")) == []  # the pack is larger than what it saves


def test_models_for_unknown_variables_are_refused():
    with pytest.raises(errors.InvalidConfigError, match="model: .*'msl'.*'t2m'"):
        encoding_for(dataset(), 0.5, model={"msl": "auto"})


# The command line


def test_convert_and_inspect(tmp_path, places, capsys):
    source = tmp_path / "in.nc"
    dataset().to_netcdf(source)
    path = put(tmp_path / "packs", fitted_pack())
    arguments = ["convert", str(source), "--abs", "0.5", "--chunks", "time=10"]
    for name, options, found in (
        ("a", [], []),
        ("b", ["--model", f"t2m={path}"], ["waves"]),
        ("c", ["--model", "none"], []),
        ("d", ["--model", str(path), "--model", "t2m=none"], []),
    ):
        store = tmp_path / f"{name}.zarr"
        assert main([*arguments[:2], str(store), *arguments[2:], *options]) == 0
        reports = {v.name: v for v in inspect_store(store).variables}
        assert [model.id for model in reports["t2m"].models] == found
    assert [model.id for model in reports["other"].models] == ["waves"]
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "b.zarr")]) == 0
    assert f"model: waves in 2, digest {fitted_pack().digest}" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "b.zarr"), "--chunk", "t2m=0,0,0", "--json"]) == 0
    chunk = json.loads(capsys.readouterr().out)
    assert chunk["models"] == {fitted_pack().digest: "waves"}
    assert main(["verify", str(source), str(tmp_path / "b.zarr")]) == 0
    for options in (["--model", "t2m=none", "--model", "t2m=waves"], ["--model", "=a"], ["--model", "gone"]):
        assert main([*arguments[:2], str(tmp_path / "x.zarr"), *arguments[2:], *options]) == 2
    assert not (tmp_path / "x.zarr").exists()


def test_convert_takes_models(tmp_path):
    convert(dataset(), tmp_path / "a.zarr", 0.5, model={"t2m": fitted_pack()})
    (report,) = [v for v in inspect_store(tmp_path / "a.zarr").variables if v.name == "t2m"]
    assert report.models[0].chunks == report.chunk_count
