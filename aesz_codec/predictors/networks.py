"""From a pack to what a predictor of the native core takes.

A predictor that can use models names the `kind` of pack that it takes, has a field ``model``, and gets its networks with
`mlps` in a function that is `built_once`::

    pack --manifest["network"], tensors--> mlps --> object of the native core, once per process and digest
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from .. import _core
from ..errors import InvalidModelError
from ..nets import Network
from ..packs import Pack, plain

__all__ = ["built_once", "mlps"]

_MOST_KEPT = 16
_MOST_PRODUCTS = 65536  # for a point; more would make a small stream slow to decode

_T = TypeVar("_T")


def built_once(build: Callable[[Pack], _T]) -> Callable[[Pack], _T]:
    """Remember what `build` makes of a pack, by its digest; threads that ask at once wait for the first."""
    lock = threading.Lock()
    kept = functools.lru_cache(_MOST_KEPT)(build)

    @functools.wraps(build)
    def get(pack: Pack) -> _T:
        with lock:
            return kept(pack)

    return get


def mlps(pack: Pack, slots: int, others: Collection[str] = ()) -> dict[int, _core.Mlp]:
    """Load the networks of a pack: ``manifest["network"]`` is ``{"slots": {"0": <description>, ...}}``.

    Parameters
    ----------
    pack : Pack
    slots : int
        How many there are; a pack need not have a network for each.
    others : collection of str
        Keys that there may be beside ``slots``; they are the caller's.

    Returns
    -------
    dict of int to Mlp
        By slot, rising; at least one.

    Raises
    ------
    InvalidModelError, UnsupportedModelError
        If ``network`` is anything else, or a network is not sound (`aesz_codec.nets`) or has above 65536 multiplications for
        a point.
    """
    field = f"pack {pack.id!r}: network"
    network = pack.manifest["network"]
    sound = isinstance(network, Mapping) and {"slots"} <= set(network) <= {"slots", *others}
    entries = network["slots"] if sound else None
    if not isinstance(entries, Mapping) or not entries:
        raise InvalidModelError.at(field, found=repr(plain(network))[:80], expected='{"slots": {"0": ...}}')
    known = {str(slot): slot for slot in range(slots)}
    for key in entries:
        if key not in known:
            raise InvalidModelError.at(
                f"{field}.slots", found=repr(key)[:80], expected=f"a number from 0 to {slots - 1}"
            )
    found = {}
    for key, slot in known.items():
        if key in entries:
            try:
                found[slot] = Network.load(plain(entries[key]), pack.tensors).mlp()
            except InvalidModelError as error:
                raise InvalidModelError(f"{field}.slots.{key}: {error}") from None
            if found[slot].products > _MOST_PRODUCTS:
                raise InvalidModelError.at(
                    f"{field}.slots.{key}",
                    found=f"{found[slot].products} multiplications for a point",
                    expected=f"at most {_MOST_PRODUCTS}",
                    remedy="train a network with smaller layers",
                )
    return found
