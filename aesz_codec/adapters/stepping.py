"""Functions as foundation models: ``state -> next state``, and codecs of single states.

`Stepping` takes what GraphCast and its like are once their weights are bound: a function from the last state (or states) to the
next one, NumPy in, NumPy out, with JAX, torch or anything else inside::

    model = Stepping(
        lambda states: numpy.asarray(run_jitted(states)),
        name="graphcast-small", version="graphcast 0.1, jax 0.7", files=["params.npz"],
        channels=("2t", "t", "z"), history=2, timestep=21600,
    )
    foundation.register(model)

`StateCodec` takes what CRA5's VAEformer is: a state goes to a few integers, these go back to an approximate state.  It has the
shape of the zoo's side predictions (`aesz_codec.predictors.side.Side`: ``describe`` and ``predict``), but may compute in
floats.

The digest of such a model covers the files, the text `version` and the configuration; it cannot see into the function.  Change
`version` whenever the function computes something else: a decoder with the old digest and new numbers fails, with
`PredictionMismatchError`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coordinates import Coordinates
from ..errors import InvalidConfigError, ModelInputError
from ..foundation import check_channels, digest_of
from ..packs import is_digest

__all__ = ["StateCodec", "Stepping", "load"]

Array = npt.NDArray[Any]


class _Function:
    """What both have in common: names, digest, checks."""

    def __init__(
        self,
        kind: str,
        name: str,
        version: str,
        files: Sequence[str | os.PathLike[str]],
        digest: str | None,
        channels: Sequence[str],
        levels: Sequence[float],
        timestep: int | None,
        grid: Sequence[int] | None,
        **decisive: Any,
    ) -> None:
        if digest is None and not (isinstance(version, str) and version):
            raise InvalidConfigError.at(
                f"foundation model {name!r}: version",
                found=repr(version),
                expected="a text that names what computes, such as 'graphcast 0.1.1, jax 0.7'",
                remedy="it is part of the digest, as the function itself cannot be",
            )
        if digest is not None and not is_digest(digest):
            raise InvalidConfigError.at(
                f"foundation model {name!r}: digest",
                found=repr(digest)[:100],
                expected="64 hexadecimal digits",
            )
        self.name = name
        self.channels = tuple(channels)
        self.levels = tuple(float(level) for level in levels)
        self._timestep = timestep
        self._grid = None if grid is None else tuple(grid)
        self.digest = digest or digest_of(
            kind,
            files=files,
            version=version,
            channels=list(channels),
            levels=list(self.levels),
            timestep=timestep,
            grid=self._grid,
            **decisive,
        )

    def check(self, coordinates: Coordinates, grid: tuple[int, int]) -> None:
        """See `FoundationModel`."""
        check_channels(self, coordinates)  # type: ignore[arg-type]
        if self._timestep not in (None, coordinates.step):
            raise ModelInputError.at(
                f"time step for {self.name}", found=f"{coordinates.step} s", expected=f"{self._timestep} s"
            )
        if self._grid not in (None, tuple(grid)):
            raise ModelInputError.at(f"grid for {self.name}", found=str(grid), expected=str(self._grid))


class Stepping(_Function):
    """A function that makes the next state of the last ones.

    Parameters
    ----------
    step : callable
        From float32, shape (channel, latitude, longitude), or (history, channel, latitude, longitude) if `history` is not 1, to
        the next state; with `with_coordinates` the `Coordinates` of the state that is asked for are its second argument.
    name, version : str
        See `aesz_codec.adapters.stepping`.
    files : sequence of path
        Checkpoints; their content is part of the digest.
    digest : str, optional
        Instead of one of `version`, `files` and the rest.
    channels, levels : sequence, optional
        What a channel may be called; any, if left out.
    history : int
        States that it needs, 1 or more.
    timestep : int, optional
        Seconds of a step; others are refused.
    grid : (int, int), optional
        Latitudes and longitudes; others are refused.
    normalisation : mapping, optional
        From the name of a channel, or name@level, to (mean, scale): the function sees ``(x - mean) / scale`` and its result is
        put back. Channels that are not named are refused then.
    other : callable, optional
        The same function in other numerics (float64, other kernels). Without, the same one is run on inputs that are off by one
        rounding, which says less.
    with_coordinates : bool

    Raises
    ------
    InvalidConfigError
        If `version` is missing, or a value is none that it can have.
    ModelNotFoundError
        If a file is not there.
    """

    latents = 0

    def __init__(
        self,
        step: Callable[..., Any],
        *,
        name: str,
        version: str = "",
        files: Sequence[str | os.PathLike[str]] = (),
        digest: str | None = None,
        channels: Sequence[str] = (),
        levels: Sequence[float] = (),
        history: int = 1,
        timestep: int | None = None,
        grid: Sequence[int] | None = None,
        normalisation: Mapping[str, tuple[float, float]] | None = None,
        other: Callable[..., Any] | None = None,
        with_coordinates: bool = False,
    ) -> None:
        if type(history) is not int or history < 1:
            raise InvalidConfigError.at(
                f"foundation model {name!r}: history", found=repr(history), expected="1 or more"
            )
        normal = {key: [float(mean), float(scale)] for key, (mean, scale) in (normalisation or {}).items()}
        if not all(np.isfinite(pair).all() and pair[1] > 0 for pair in normal.values()):
            raise InvalidConfigError.at(
                f"foundation model {name!r}: normalisation",
                found=repr(normal)[:100],
                expected="finite means, scales > 0",
            )
        super().__init__(
            *("stepping", name, version, files, digest, channels, levels, timestep, grid),
            history=history,
            normalisation=normal,
        )
        self.history = history
        self._step, self._other = step, other
        self._normalisation, self._with_coordinates = normal, with_coordinates

    def check(self, coordinates: Coordinates, grid: tuple[int, int]) -> None:
        """See `FoundationModel`."""
        super().check(coordinates, grid)
        if self._normalisation:
            self._means_and_scales(coordinates)

    def step(
        self, states: Array, coordinates: Coordinates, *, other: bool = False
    ) -> npt.NDArray[np.float32]:
        """See `FoundationModel`."""
        mean, scale = self._means_and_scales(coordinates)
        inputs = ((states - mean) / scale).astype(np.float32)
        function = self._step
        if other and self._other is not None:
            function = self._other
        elif other:
            up = np.random.default_rng(len(inputs)).integers(0, 2, inputs.shape, np.int8)
            inputs = np.nextafter(inputs, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
        given = inputs[0] if self.history == 1 else inputs
        result = function(given, coordinates) if self._with_coordinates else function(given)
        return np.asarray(np.asarray(result) * scale + mean, np.float32)

    def describe(self, state: npt.NDArray[np.float32], coordinates: Coordinates) -> npt.NDArray[np.int32]:
        """See `FoundationModel`: there are no latents."""
        return np.empty(0, np.int32)

    def _means_and_scales(self, coordinates: Coordinates) -> tuple[Any, Any]:
        if not self._normalisation:
            return np.float32(0), np.float32(1)
        pairs = []
        for channel in coordinates.channels:
            pair = self._normalisation.get(channel) or self._normalisation.get(channel.partition("@")[0])
            if pair is None:
                raise ModelInputError.at(
                    f"channels of {self.name}",
                    found=repr(channel),
                    expected=f"one with a normalisation: {', '.join(self._normalisation)}",
                )
            pairs.append(pair)
        mean, scale = np.array(pairs, np.float32).T[:, :, None, None]
        return mean, scale


class StateCodec(_Function):
    """A codec of single states: ``describe`` makes a few integers of a state, ``predict`` an approximate state of these.

    Parameters
    ----------
    describe : callable
        From float32, shape (channel, latitude, longitude), to `latents` integers. Encoder only; need not be reproducible.
    predict : callable
        From int32, shape (latents,), to a state.
    latents : int
    other : callable, optional
        `predict` in other numerics. Without, a decoder is trusted to differ by no more than 2^-20 of the largest magnitude.

    The rest and the errors are those of `Stepping`.
    """

    history = 0

    def __init__(
        self,
        describe: Callable[[Array], Any],
        predict: Callable[[Array], Any],
        *,
        latents: int,
        name: str,
        version: str = "",
        files: Sequence[str | os.PathLike[str]] = (),
        digest: str | None = None,
        channels: Sequence[str] = (),
        levels: Sequence[float] = (),
        grid: Sequence[int] | None = None,
        other: Callable[[Array], Any] | None = None,
    ) -> None:
        if type(latents) is not int or not 1 <= latents <= 1 << 16:
            raise InvalidConfigError.at(
                f"foundation model {name!r}: latents", found=repr(latents), expected="1 to 65536"
            )
        super().__init__(
            *("state codec", name, version, files, digest, channels, levels, None, grid), latents=latents
        )
        self.latents = latents
        self._describe, self._predict, self._other = describe, predict, other

    def step(
        self, states: Array, coordinates: Coordinates, *, other: bool = False
    ) -> npt.NDArray[np.float32]:
        """See `FoundationModel`: the state of some latents."""
        if other and self._other is not None:
            return np.asarray(self._other(states), np.float32)
        state = np.asarray(self._predict(states), np.float32)
        if not other:
            return state
        off = np.float32(2.0**-20) * np.abs(state).max(axis=(-2, -1), keepdims=True)
        return np.asarray(state + off * np.random.default_rng(0).choice([-1, 1], state.shape), np.float32)

    def describe(self, state: npt.NDArray[np.float32], coordinates: Coordinates) -> npt.NDArray[np.int32]:
        """See `FoundationModel`."""
        return np.asarray(self._describe(state), np.int32).reshape(self.latents)


def load(
    *, name: str, function: str, normalisation: Mapping[str, Sequence[float]] | None = None, **arguments: Any
) -> Stepping:
    """Build a `Stepping` from a table of the user's TOML file; `function` is ``"module:function"``, the rest are its arguments.

    Raises
    ------
    InvalidConfigError
        If there is no such function.
    """
    module, _, attribute = function.partition(":")
    try:
        step = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidConfigError.at(
            f"foundation model {name!r}: function",
            found=f"{function!r} ({error})",
            expected="'module:function' that can be imported",
        ) from error
    pairs = (
        None if normalisation is None else {key: (pair[0], pair[1]) for key, pair in normalisation.items()}
    )
    return Stepping(step, name=name, normalisation=pairs, **arguments)
