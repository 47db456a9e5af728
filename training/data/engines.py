"""Work spread over processes or a cluster."""

from __future__ import annotations

import functools
import json
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from imprint.errors import ImprintError, from_extra

from .items import Source
from .settings import Prepare
from .writing import ShardJob, write_shard

T, R = TypeVar("T"), TypeVar("R")
PATIENCE = 5.0
"""Seconds that interrupted jobs have to clean up."""


def _in_processes(jobs: list[ShardJob], source: Source, options: Prepare) -> Iterator[dict]:
    return in_processes(functools.partial(write_shard, source=source, options=options), jobs, options.workers, "shards")


def in_processes(work: Callable[[T], R], jobs: list[T], workers: int, made: str) -> Iterator[R]:
    """What `work` makes of each job, as it is ready; with one worker, in this process. Ctrl-C ends the workers quietly.

    made: what is written by a job, for the `ImprintError` that a worker's death raises.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    others = multiprocessing.active_children()
    pool, running = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")), []
    try:
        with _ignoring_interrupts():  # as the workers then do, but for their jobs
            running = [pool.submit(_interruptible, work, job) for job in jobs]
        for done in as_completed(running):
            yield done.result()
    except KeyboardInterrupt:
        wait([each for each in running if not each.cancel()], PATIENCE)
        for worker in set(multiprocessing.active_children()).difference(others):
            worker.terminate()  # a signal to this process alone has not reached it
        raise
    except BrokenProcessPool as error:  # multiprocessing.Pool would wait for the lost job for ever
        raise ImprintError(
            "a worker process has died, perhaps for want of memory (any error of its own stands above); finished "
            f"{made} are kept: run the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _interruptible(work: Callable[[T], R], job: T) -> R:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work(job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes that are started within do so too.

    In another thread than the main one, which alone gets them: nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_ray(jobs: list[ShardJob], source: Source, options: Prepare) -> Iterator[dict]:
    """The same work as Ray Data's tasks, one per shard, on the cluster of RAY_ADDRESS or else on this machine.

    Every node needs this checkout, and input and output at the same URL.
    """
    ray = from_extra("ray", "ray", "--engine ray")
    from_extra("ray.data", "ray", "--engine ray")
    if not jobs:
        return
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    rows = [{"job": pickle.dumps((job, source, options))} for job in jobs]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_ray_task)
    for row in done.iter_rows():
        yield json.loads(row["report"])


def _ray_task(row: dict) -> dict:
    return {"report": json.dumps(write_shard(*pickle.loads(row["job"])))}


ENGINES = {"processes": _in_processes, "ray": _on_ray}
