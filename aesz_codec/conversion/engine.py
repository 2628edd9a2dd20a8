"""Run independent tasks with Dask: threads of this process, processes of this machine, or a cluster.

`Engine.run` hands tasks to workers and their results, as they come, to a callback in the calling thread.  All
scheduling is Dask's; where Dask is not installed tasks run one after another, in this process.  Few tasks are on
their way at any time, so that in-memory sources are shipped as they are needed.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import zarr

from .._source import one_line
from ..errors import ConversionError, InvalidConfigError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Engine", "open_engine"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_AHEAD = 2  # tasks on their way for each thread of a cluster
_PATIENCE = 2.0  # seconds between looks at whether the cluster still lives
_CONNECT = "10s"
_LONELY = 60.0  # seconds that a cluster may be without workers
_SERIAL = {"async.concurrency": 1}  # a task codes one chunk at a time: tasks are what runs in parallel


class Engine(Protocol):
    """Runs tasks; `workers` is how many at the same time."""

    workers: int
    memory_limit: int | None

    def run(
        self,
        function: Callable[[_Task], _Result],
        tasks: Iterable[_Task],
        done: Callable[[_Result], None],
    ) -> None:
        """Call a function with every task, and `done` with each result.

        Parameters
        ----------
        function : callable
            Importable where the workers are; raises for bugs only.
        tasks : iterable
            Taken one by one.
        done : callable
            Called in this thread, in any order. What it raises ends the run, after the tasks that are under way.

        Raises
        ------
        ConversionError
            If workers or their cluster die.
        """
        ...


@contextmanager
def open_engine(
    scheduler: str | None = None, workers: int | None = None, client: Client | None = None
) -> Iterator[Engine]:
    """Start, or connect to, what runs the tasks.

    Parameters
    ----------
    scheduler : {None, "synchronous", "threads", "processes"} or address
        ``"tcp://..."`` is that of a Dask scheduler. None: the client that is given, else processes if more than one
        worker is asked for, else threads, one a core.
    workers : int, optional
    client : distributed.Client, optional

    Raises
    ------
    InvalidConfigError
        If options exclude each other or a package is missing.
    ConversionError
        If there is no cluster at the address.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise InvalidConfigError.at("workers", found=repr(workers), expected="an integer > 0")
    if client is not None:
        if scheduler is not None or workers is not None:
            raise InvalidConfigError.at(
                "client",
                found="a client beside scheduler or workers",
                expected="one of them",
                remedy="drop the others",
            )
        yield _Cluster(client)
        return
    if scheduler is None:
        scheduler = "threads" if workers is None else "processes" if workers > 1 else "synchronous"
        if scheduler == "threads" and find_spec("dask") is None:
            scheduler = "synchronous"
    if scheduler == "synchronous":
        with zarr.config.set(_SERIAL):
            yield _Synchronous()
    elif scheduler == "threads":
        _require("dask")
        with zarr.config.set(_SERIAL):
            yield _Threads(workers or os.cpu_count() or 1)
    elif scheduler == "processes":
        _require("distributed")
        with _local_cluster(workers or os.cpu_count() or 1) as own:
            yield _Cluster(own, own=True)
    elif "://" in scheduler:
        _require("distributed")
        if workers is not None:
            raise InvalidConfigError.at(
                "workers",
                found=f"{workers} for a cluster",
                expected="those that it has",
                remedy="drop workers",
            )
        with _connected(scheduler) as connected:
            yield _Cluster(connected)
    else:
        raise InvalidConfigError.at(
            "scheduler",
            found=repr(scheduler),
            expected="'synchronous', 'threads', 'processes' or an address such as tcp://host:8786",
        )


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise InvalidConfigError.at(
            "scheduler",
            found=f"no package {package}",
            expected="it installed",
            remedy="pip install 'aesz-codec[dask]', or run with scheduler='synchronous'",
        )


class _Synchronous:
    workers = 1
    memory_limit: int | None = None

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any], done: Callable[[Any], None]) -> None:
        for task in tasks:
            done(function(task))


class _Threads:
    memory_limit: int | None = None

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any], done: Callable[[Any], None]) -> None:
        import dask.threaded
        from dask.callbacks import Callback

        listed = list(tasks)
        if not listed:
            return
        stopped = False

        def run_one(number: int) -> Any:
            return None if stopped else function(listed[number])

        def finished(key: Any, result: Any, *ignored: Any) -> None:
            done(result)

        # Dask begins with the last name.
        graph = {f"task-{len(listed) - number:09}": (run_one, number) for number in range(len(listed))}
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="aesz-convert")
        try:
            with Callback(posttask=finished):
                dask.threaded.get(graph, list(graph), pool=pool)
        finally:  # an error or an interrupt waits for what is under way, so that nothing is written after it
            stopped = True
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _local_cluster(workers: int) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    # Workers keep to the plan's memory; Dask's own limits would pause them for what the allocator has not returned.
    how: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,
    }
    with (
        dask.config.set(_OF_WORKERS),
        LocalCluster(**how) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run(_set_serial)
        yield client


# Nobody looks at profiles. Dask's trim threshold for malloc, which is left out here, makes every array of above 128 kB a
# mapping of its own: four times the page faults, and half of the throughput on a busy machine.
_OF_WORKERS: dict[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    ),
}


def _set_serial() -> None:
    zarr.config.set(_SERIAL)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConversionError.at(
            "scheduler",
            found=f"no Dask scheduler at {address} ({one_line(error)})",
            expected="one that answers",
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=5)


class _Cluster:
    def __init__(self, client: Client, *, own: bool = False) -> None:
        self.client = client
        found = client.scheduler_info(n_workers=-1)["workers"].values()
        self.workers = max(1, sum(worker["nthreads"] for worker in found))
        limits = [w["memory_limit"] // max(1, w["nthreads"]) for w in found if w.get("memory_limit")]
        self.memory_limit = min(limits) if limits and not own else None

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any], done: Callable[[Any], None]) -> None:
        finished: queue.Queue[Future] = queue.Queue()
        under_way: set[Future] = set()
        waiting = iter(tasks)

        def submit() -> bool:
            for task in waiting:
                future = self.client.submit(function, task, pure=False)
                under_way.add(future)
                future.add_done_callback(finished.put)
                return True
            return False

        try:
            while len(under_way) < _AHEAD * self.workers and submit():
                pass
            while under_way:
                future = self._next(finished)
                under_way.discard(future)
                done(self._result(future))
                future.release()
                submit()
        except BaseException:
            self._cancel(under_way)
            raise

    def _next(self, finished: queue.Queue[Future]) -> Future:
        lonely = 0.0
        while True:
            try:
                return finished.get(timeout=_PATIENCE)
            except queue.Empty:
                if self.client.status not in ("running", "connecting"):
                    raise self._died("the client has lost it") from None
                try:
                    alone = not self.client.scheduler_info(n_workers=-1)["workers"]
                except Exception as error:
                    raise self._died(one_line(error)) from error
                lonely = lonely + _PATIENCE if alone or self.client.status == "connecting" else 0.0
                if lonely >= _LONELY:
                    raise self._died(f"it has had no workers for {lonely:.0f} seconds") from None

    def _result(self, future: Future) -> Any:
        from distributed import KilledWorker

        try:
            return future.result(timeout=60)
        except KilledWorker as error:
            raise self._died(f"a task has killed its workers: {one_line(error)}") from error
        except Exception as error:
            if future.status in ("cancelled", "lost") or "Cancelled" in type(error).__name__:
                raise self._died(one_line(error)) from error
            raise

    def _cancel(self, futures: set[Future]) -> None:
        from distributed import wait

        try:
            if self.client.status == "running":
                self.client.cancel(list(futures), force=True)
                wait(list(futures), timeout=10)
        except Exception:  # what could not be stopped writes the same bytes as whoever goes on
            return

    def _died(self, why: str) -> ConversionError:
        return ConversionError.at(
            "cluster", found=f"that it has died ({why})", expected="workers that answer"
        )
