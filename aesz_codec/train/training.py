"""Train the networks of a pack from files, judge them on data they have not seen, write the pack: ``aesz-codec train``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from .. import pipeline
from .._store import open_source
from ..bounds import ErrorBound
from ..encoding import grid_of, properties_of
from ..errors import InvalidConfigError, InvalidModelError
from ..packs import Pack
from ..predictors.side import Basis, Cycle
from .basis import fit as fit_basis
from .cycle import fit as fit_cycle
from .forecaster import fit as fit_forecaster
from .packing import write_pack
from .points import KINDS, Samples, collect, export, fit

__all__ = ["BOUNDS", "Judgement", "TrainingReport", "train"]

Array = npt.NDArray[Any]
Source = str | os.PathLike[str]

Progress = Callable[[str, int, int], None]

BOUNDS = tuple(ErrorBound("range_rel", value) for value in (1e-2, 3e-3, 1e-3))
"""What networks learn if nothing else is said."""

_LARGE, _SMALL = 5000, 800  # values of a frame: chunks of 10 frames above, of 128 below
_BUDGET = 300_000  # values of a file that are learned from, or judged
_FEWEST = 2000  # samples of a slot that gets a network
_MOST_PER_DAY = 1440  # ticks of a cycle


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a pack saves on one variable that it was not trained on, at one bound.

    Attributes
    ----------
    source, variable, bound : str
    values : int
        How many were coded.
    without, with_model : int
        Bytes of the streams, effort ``default``.
    """

    source: str
    variable: str
    bound: str
    values: int
    without: int
    with_model: int

    @property
    def saved(self) -> float:
        """Share of the bytes that the model saves."""
        return 1 - self.with_model / self.without


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training run came to.

    Attributes
    ----------
    pack : Pack
    path : Path
    slots : dict of int to (int, float, float)
        Samples, code length of a value in bits, innovation gain: the share of the residual's power, residuals beyond 4
        steps counted as 4, that the corrections explain.
    judged : tuple of Judgement
    """

    pack: Pack
    path: Path
    slots: dict[int, tuple[int, float, float]]
    judged: tuple[Judgement, ...]

    @property
    def break_even(self) -> float:
        """Values, in millions, from which the bytes saved exceed those of the pack; infinite if none are saved."""
        values = sum(j.values for j in self.judged)
        saved = sum(j.without - j.with_model for j in self.judged)
        return self.pack.nbytes / saved * values / 1e6 if saved > 0 else float("inf")


def train(
    kind: str,
    sources: Sequence[Source],
    out: Source,
    *,
    id: str,
    licence: str,
    description: str = "",
    variables: Sequence[str] = (),
    applies_to: Sequence[dict[str, Any]] = (),
    bounds: Sequence[ErrorBound] = BOUNDS,
    validate: Sequence[Source] = (),
    hidden: Sequence[int] | None = None,
    steps: int = 4000,
    count: int = 6000,
    seed: int = 0,
    modes: int = 48,
    per_day: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> TrainingReport:
    """Train a pack and write it; nothing is written before it is whole.

    A run that was interrupted goes on: finished networks are kept in ``OUT.partial`` until the pack is written.

    Parameters
    ----------
    kind : str
        ``basis``, ``cycle``, ``forecaster``, or one of `aesz_codec.train.points.KINDS`.
    sources : sequence of paths
        NetCDF files or Zarr stores. Of the floating-point variables, those named by `variables`, or all with two axes or more;
        for a cycle, with time and two axes.
    out : path
        The pack, ``*.aeszpack``.
    id, licence, description : str
    applies_to : sequence of dict
        Key ``variables`` of the manifest; empty: any variable.
    bounds : sequence of ErrorBound
        ``abs`` or ``range_rel`` (of each chunk; for a forecaster, of all frames); networks learn all of them, a forecaster
        their mean square.
    validate : sequence of paths
        Judged, not learned from. Without any, the last chunk of every source that has more than one.
    hidden, steps, count, seed
        See `aesz_codec.train.points.fit`; without `hidden`, every network has the widths of its `Kind`; `count` is the number of
        samples for a slot from every file and bound.
    modes : int
        Of a basis; the settings above are those of networks.
    per_day : int, optional
        Of a cycle: ticks of a day, 1 to 1440. By default what the times say; data without times have so many frames a day, and
        begin with a year.
    progress : callable
        ``(what, done, total)``.

    Raises
    ------
    InvalidConfigError
        If the kind or a bound is of no use, a variable is in none of the sources, or nothing says what time it is.
    InvalidModelError
        If there is nothing to learn from: only NaN, or constant.
    """
    fields = (Basis.kind, Cycle.kind, "forecaster")  # of one variable on one grid
    known = (*KINDS, *fields)
    if kind not in known:
        raise InvalidConfigError.at(
            "kind",
            found=repr(kind),
            expected=" or ".join(map(repr, known)),
            remedy="'autoencoder' is trained by aesz_codec.train.autoencoder and the command 'aesz-codec train autoencoder'",
        )
    for bound in bounds:
        if bound.mode not in ("abs", "range_rel"):
            raise InvalidConfigError.at("bound", found=str(bound), expected="abs or range_rel")
    path = Path(out)
    partial = path.with_name(path.name + ".partial")
    unseen: list[tuple[str, str, Array]] = []
    for source in validate:
        for name, chunks in _chunks(source, variables):
            unseen += [(str(source), name, chunk) for chunk in chunks[:2]]
    slots: dict[int, tuple[int, float, float]] = {}
    grid: str | None = None
    if kind in fields:
        frames, days, variable, grid = _frames(
            kind, sources, variables, unseen if not validate else None, progress
        )
        if kind == Basis.kind:
            network, tensors = fit_basis(frames, modes)
        elif kind == Cycle.kind:
            ticks, per_day = _ticks(frames, days, per_day)
            network, tensors = fit_cycle(frames, ticks, per_day)
        else:
            network, tensors = fit_forecaster(frames, [_tolerance(bound, frames) for bound in bounds])
        applies_to = applies_to or [variable]
    else:
        samples = _samples(
            kind, sources, variables, bounds, count, unseen if not validate else None, progress
        )
        network, tensors, slots = _networks(kind, samples, hidden, steps, seed, partial, progress)
    manifest = {
        "id": id,
        "kind": kind,
        "licence": licence,
        "description": description,
        "variables": list(applies_to),
        "grid": grid,
        "network": network,
        "training": {
            "data": sorted({Path(source).name for source in sources}),
            "bounds": [f"{bound.mode} {bound.value!r}" for bound in bounds],
            **({} if kind in fields else {"seed": seed, "steps": steps}),
        },
    }
    judged = tuple(_judged(Pack.from_bytes(write_pack(manifest, tensors)), unseen, bounds, progress))
    manifest["rates"] = [
        {
            "data": f"{Path(j.source).name}:{j.variable}",
            "bound": j.bound,
            "without": j.without,
            "with": j.with_model,
        }
        for j in judged
    ]
    data = write_pack(manifest, tensors)
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(data)
    temporary.replace(path)
    shutil.rmtree(partial, ignore_errors=True)
    return TrainingReport(Pack.from_bytes(data), path, slots, judged)


def _tolerance(bound: ErrorBound, frames: Sequence[Array]) -> float:
    assert bound.value is not None
    if bound.mode == "abs":
        return bound.value
    low, high = (
        [float(of(part[np.isfinite(part)], initial=start)) for part in frames]
        for of, start in ((np.min, np.inf), (np.max, -np.inf))
    )
    return bound.value * max(0.0, max(high) - min(low))


def _frames(
    kind: str,
    sources: Sequence[Source],
    variables: Sequence[str],
    unseen: list[tuple[str, str, Array]] | None,
    progress: Progress,
) -> tuple[list[Array], list[Array | None], dict[str, Any], str | None]:
    """Read all frames of one variable, their days since a year began, if known, what it is, and the hash of its grid.

    With a list for what is not to be learned from, the last tenth of each source goes there.
    """
    frames: list[Array] = []
    days: list[Array | None] = []
    known: dict[str, tuple[dict[str, Any], str | None]] = {}
    for number, source in enumerate(sources):
        for name, values, times, about in _variables(source, variables, 3 if kind == Cycle.kind else None):
            kept = len(values) if unseen is None else len(values) - len(values) // 10
            frames.append(values[:kept])
            days.append(None if times is None else times[:kept])
            known.setdefault(name, about)
            if unseen is not None and kept < len(values):
                unseen.append((str(source), name, np.array(values[kept : kept + 128], np.float32)))
        progress("reading", number + 1, len(sources))
    _check_found(variables, known)
    if len(known) != 1:
        raise InvalidConfigError.at(
            "variable",
            found=", ".join(sorted(known)) or "none",
            expected=f"one for a {kind}",
            remedy="name it with --variable",
        )
    ((name, (properties, grid)),) = known.items()
    variable = {"short_name": str(properties.get("GRIB_shortName", name))}
    variable |= {key: str(properties[key]) for key in ("standard_name", "units") if properties.get(key)}
    return frames, days, variable, grid


def _ticks(
    frames: Sequence[Array], days: Sequence[Array | None], per_day: int | None
) -> tuple[list[Array], int]:
    """Return when frames are, in ticks since the beginning of a year, and the ticks of a day."""
    if per_day is None:
        steps = [np.diff(times) for times in days if times is not None and len(times) > 1]
        if len(steps) < len(frames):
            raise InvalidConfigError.at(
                "time",
                found="data without times",
                expected="a coordinate of the first axis with units such as 'hours since 2000-01-01'",
                remedy="say with --per-day how many frames a day has; the first one is then that of a year",
            )
        step = float(np.median(np.concatenate(steps)))
        per_day = round(1 / step) if step > 0 else 0
        if per_day < 1 and step >= 1:
            per_day = 1
    if not 1 <= per_day <= _MOST_PER_DAY:
        raise InvalidConfigError.at(
            "per_day", found=f"{per_day} ticks a day", expected=f"1 to {_MOST_PER_DAY}"
        )
    ticks = [
        np.arange(len(part)) if times is None else np.rint(times * per_day).astype(np.int64)
        for part, times in zip(frames, days, strict=True)
    ]
    return ticks, per_day


def _days(coordinate: Any) -> Array | None:
    """Return times as days since the beginning of the year of the first one; None if they are none."""
    try:
        decoded = xr.decode_cf(xr.Dataset(coords={coordinate.name: coordinate}), decode_timedelta=False)
        times = decoded[coordinate.name].to_numpy()
    except (ImportError, OverflowError, ValueError):  # no such units, or a calendar that needs cftime
        return None
    if times.dtype.kind == "M" and not np.isnat(times).any():
        elapsed = times - times[0].astype("M8[Y]").astype(times.dtype)
        return np.asarray(elapsed / np.timedelta64(1, "D"), np.float64)
    if times.dtype == object and all(hasattr(time, "dayofyr") for time in times):  # other calendars
        first = times[0]
        begun = first.dayofyr - 1 + (3600 * first.hour + 60 * first.minute + first.second) / 86400
        return np.array([begun + (time - first).total_seconds() / 86400 for time in times])
    return None


def _samples(
    kind: str,
    sources: Sequence[Source],
    variables: Sequence[str],
    bounds: Sequence[ErrorBound],
    count: int,
    unseen: list[tuple[str, str, Array]] | None,
    progress: Progress,
) -> list[Samples]:
    """Collect what networks learn from; with a list for what is not to be learned from, the last chunks go there."""
    inputs = KINDS[kind]
    learned: list[tuple[str, Array]] = []
    found: set[str] = set()
    for number, source in enumerate(sources):
        for name, chunks in _chunks(source, variables):
            found.add(name)
            if unseen is not None and len(chunks) > 1:
                unseen.append((str(source), name, chunks.pop()))
            learned += [(f"{source}:{name}", chunk) for chunk in chunks]
        progress("reading", number + 1, len(sources))
    _check_found(variables, found)
    per_source: dict[str, int] = {}
    for origin, _ in learned:
        per_source[origin] = per_source.get(origin, 0) + 1
    samples = [Samples(np.empty((0, n), np.int16), np.empty((0, 2), np.float32)) for n in inputs.inputs]
    limits = [(bound.value or 0.0, bound.mode == "range_rel") for bound in bounds]
    parts: list[list[Samples]] = []
    for number, (origin, chunk) in enumerate(learned):
        if np.isfinite(chunk).any() and np.nanmin(chunk) < np.nanmax(chunk):
            parts.append(collect(inputs, [chunk], limits, max(500, count // per_source[origin])))
        progress("collecting", number + 1, len(learned))
    if not parts:
        raise InvalidModelError.at(
            "training data", found="only NaN, or constant", expected="values that differ"
        )
    for slot in range(len(samples)):
        samples[slot] = Samples(
            np.concatenate([part[slot].inputs for part in parts]),
            np.concatenate([part[slot].targets for part in parts]),
        )
    return samples


def _networks(
    kind: str,
    samples: Sequence[Samples],
    hidden: Sequence[int] | None,
    steps: int,
    seed: int,
    partial: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Array], dict[int, tuple[int, float, float]]]:
    """Train a network for every slot that has enough samples: ``network`` of the manifest, tensors, what came of it."""
    inputs = KINDS[kind]
    slots: dict[int, tuple[int, float, float]] = {}
    network: dict[str, Any] = {}
    tensors: dict[str, Array] = {}
    for slot, known in enumerate(samples):
        if len(known.targets) < _FEWEST:
            continue

        def tell(done: int, slot: int = slot) -> None:
            progress("training", slot * steps + done, len(samples) * steps)

        widths = inputs.hidden[slot] if hidden is None else hidden
        settings = [kind, list(widths), steps, seed]
        net, bits = _fitted(
            known, inputs.terms[slot], widths, steps, seed, partial / f"{slot}.pt", settings, tell
        )
        network[str(slot)], more = export(net, known, inputs.terms[slot], str(slot))
        tensors |= more
        slots[slot] = len(known.targets), bits, _explained(net, known, inputs.terms[slot])
    if not slots:
        raise InvalidModelError.at(
            "training data",
            found=f"fewer than {_FEWEST} points for every network",
            expected="more or larger arrays",
        )
    return {**inputs.network, "slots": network}, tensors, slots


def _check_found(variables: Sequence[str], found: Iterable[str]) -> None:
    if missing := set(variables) - set(found):
        raise InvalidConfigError.at(
            "variable",
            found=", ".join(sorted(missing)),
            expected="variables of the data, floating-point, two axes or more",
        )


def _variables(
    source: Source, wanted: Sequence[str], axes: int | None = None
) -> Iterator[tuple[str, Array, Array | None, tuple[dict[str, Any], str | None]]]:
    """Read the variables of a source as frames of their last two axes, with times, attributes and the hash of the grid."""
    with open_source(source) as dataset:
        for name, variable in dataset.data_vars.items():
            if wanted and name not in wanted:
                continue
            if (
                variable.ndim >= 2
                and axes in (None, variable.ndim)
                and variable.dtype.kind == "f"
                and min(variable.shape) >= 1
                and min(variable.shape[-2:]) >= 2
            ):
                about = properties_of(dataset, name), grid_of(dataset, name)
                time = variable.dims[0]
                times = _days(dataset[time]) if variable.ndim == 3 and time in dataset.coords else None
                yield str(name), variable.to_numpy().reshape(-1, *variable.shape[-2:]), times, about


def _chunks(source: Source, variables: Sequence[str]) -> Iterator[tuple[str, list[Array]]]:
    """Read chunks of some frames, evenly spread over every variable."""
    for name, values, *_ in _variables(source, variables):
        size = values[0].size
        frames = min(10 if size > _LARGE else 48 if size > _SMALL else 128, len(values))
        number = max(1, min(len(values) // frames, -(-_BUDGET // (frames * size))))
        starts = np.linspace(0, len(values) - frames, number).astype(int)
        chunks = [np.array(values[start : start + frames], np.float32) for start in starts]
        yield name, [chunk[0] if frames == 1 else chunk for chunk in chunks]


def _fitted(
    samples: Samples,
    terms: int,
    hidden: Sequence[int],
    steps: int,
    seed: int,
    kept: Path,
    settings: Any,
    progress: Callable[[int], None],
) -> tuple[Any, float]:
    """Train a network, or take that of an interrupted run on the same samples with the same settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(samples.inputs.tobytes())
    digest.update(samples.targets.tobytes())
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        if state["digest"] == digest.hexdigest():
            net, _ = fit(samples, terms, hidden=hidden, steps=0)
            net.load_state_dict(state["net"])
            return net, state["bits"]
    net, bits = fit(samples, terms, hidden=hidden, steps=steps, seed=seed, progress=progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".writing")
    torch.save({"digest": digest.hexdigest(), "net": net.state_dict(), "bits": bits}, temporary)
    temporary.replace(kept)
    return net, bits


def _explained(net: Any, samples: Samples, terms: int) -> float:
    inputs, targets = samples.inputs[-50_000:], samples.targets[-50_000:]
    with torch.no_grad():
        correction = (
            net(torch.tensor(inputs, dtype=torch.float32) / 64)[:, 0].numpy() * targets[:, 1] / (8 * terms)
        )
    before, after = (np.clip(r, -4, 4) for r in (targets[:, 0], targets[:, 0] - correction))
    return float(1 - (after**2).sum() / max((before**2).sum(), 1e-30))


def _judged(
    pack: Pack,
    unseen: Sequence[tuple[str, str, Array]],
    bounds: Sequence[ErrorBound],
    progress: Progress,
) -> Iterator[Judgement]:
    for number, (source, name, chunk) in enumerate(unseen):
        for bound in bounds:
            if not np.isfinite(chunk).any():
                continue
            without = len(pipeline.encode(chunk, bound))
            with_model = len(pipeline.encode(chunk, bound, models=(pack,)))
            yield Judgement(source, name, f"{bound.mode} {bound.value!r}", chunk.size, without, with_model)
        progress("judging", number + 1, len(unseen))
