"""A world that a small function forecasts, for the tests of foundation models; they load it with `runpy`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from aesz_codec.adapters.stepping import StateCodec, Stepping
from aesz_codec.coordinates import Coordinates

ROWS, COLUMNS, STATES = 70, 150, 6
CHANNELS = ("2t", "t@850")
PLACE = Coordinates(CHANNELS, "2020-02-28T18:00", 21600, (90.0, -180 / (ROWS - 1)), (0.0, 360 / COLUMNS))


def flow(states: np.ndarray) -> np.ndarray:
    """Move everything seven and a half places to the east, and lose a little; in float32."""
    turned = np.fft.rfft(states, axis=-1) * np.exp(-15j * np.pi * np.arange(COLUMNS // 2 + 1) / COLUMNS)
    return (0.97 * np.fft.irfft(turned, COLUMNS, axis=-1)).astype(np.float32)


def weather(states: int = STATES, seed: int = 0) -> np.ndarray:
    """States that `flow` forecasts up to a little noise, shape (states, channel, latitude, longitude)."""
    rng = np.random.default_rng(seed)

    def smooth(scale: float) -> np.ndarray:
        field = rng.normal(size=(len(CHANNELS), ROWS, COLUMNS))
        spectrum = np.fft.rfft2(field) * np.exp(
            -0.02 * (np.arange(COLUMNS // 2 + 1) ** 2 + np.fft.fftfreq(ROWS, 1 / ROWS)[:, None] ** 2)
        )
        field = np.fft.irfft2(spectrum, (ROWS, COLUMNS))
        return scale * field / field.std()

    fields = [smooth(4.0)]
    for _ in range(states - 1):
        fields.append(flow(fields[-1]) + smooth(0.25))
    return np.stack(fields).astype(np.float32)


def model(step: Callable = flow, **options: object) -> Stepping:
    return Stepping(
        step, **{"name": "flow", "version": "1", "channels": ("2t", "t"), "timestep": 21600, **options}
    )


def noisy(size: float, seed: int = 0) -> Callable:
    """A machine on which the same function gives slightly other numbers."""
    rng = np.random.default_rng(seed)
    return lambda states: flow(states) + (size * rng.normal(size=states.shape)).astype(np.float32)


@functools.cache
def _modes() -> np.ndarray:
    states = weather(100, 7).reshape(-1, ROWS * COLUMNS)
    return np.ascontiguousarray(np.linalg.svd(states, full_matrices=False)[2][:150])


def state_codec(**options: object) -> StateCodec:
    """Of the shape of CRA5's: a state goes to a few integers, which a float decoder turns back."""
    modes = _modes()
    unit = np.float32(2.0)

    def describe(state: np.ndarray) -> np.ndarray:
        return np.rint(state.reshape(2, -1) @ modes.T / unit).astype(np.int32)

    def predict(latents: np.ndarray) -> np.ndarray:
        return (np.tanh(latents.reshape(2, 150) * unit / 1e4) * np.float32(1e4) @ modes).reshape(
            2, ROWS, COLUMNS
        )

    return StateCodec(describe, predict, **{"latents": 300, "name": "states", "version": "1", **options})
