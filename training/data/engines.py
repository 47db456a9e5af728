"""Work spread over processes or a cluster."""

from __future__ import annotations

import functools
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from imprint.errors import ImprintError

from .items import Source
from .settings import Prepare
from .writing import Job, write_shard

T, R = TypeVar("T"), TypeVar("R")


def _in_processes(jobs: list[Job], source: Source, options: Prepare) -> Iterator[dict]:
    return in_processes(functools.partial(write_shard, source=source, options=options), jobs, options.workers, "shards")


def in_processes(work: Callable[[T], R], jobs: list[T], workers: int, made: str) -> Iterator[R]:
    """What `work` makes of each job, as it is ready; with one worker, in this process.

    made: what is written by a job, for the `ImprintError` that a worker's death raises.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(work, job) for job in jobs]):
            yield done.result()
    except BrokenProcessPool as error:  # multiprocessing.Pool would wait for the lost job for ever
        raise ImprintError(
            f"a worker process has died, perhaps for want of memory (any error of its own stands above); finished {made} are "
            "kept: run the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(jobs: list[Job], source: Source, options: Prepare) -> Iterator[dict]:
    """The same work as Ray Data's tasks, one a shard, on the cluster of RAY_ADDRESS or else on this machine.

    Every node needs this checkout, and input and output at the same URL.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImprintError(f'--engine ray cannot be used ({error}): pip install ".[ray]"') from error
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
