"""Starts Ray quietly unless it is already running, and tells what it offers."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from pipelines.cluster.resources import Resources

# Ray's loggers that report at each start or execution what the run's own report says better.
_CHATTY = ("ray.data", "ray._private.authentication.authentication_token_setup", "ray.data._internal.execution")

# Ray's own setting, read when a node starts: milliseconds after which idle workers beyond the free cores end.
IDLE_VARIABLE, IDLE_MS = "RAY_idle_worker_killing_time_threshold_ms", 30_000


def ensure_ray() -> None:
    """Connect to the Ray of this process, of RAY_ADDRESS, or of a running cluster's job; else start one here."""
    # Ray forks and then executes another program; Lance is not used in between.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    # A small corpus has fewer blocks than the pool has actors, which is fine.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ray.is_initialized():
        # Ray Data's actors make its C++ side print an error although nothing is wrong.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # When a staging task fails, the run ends with its error; the errors of its siblings would only repeat it.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        # Actors hold all cores, so Ray would end each worker that waits a second for its next group to stage, and then
        # start another, which takes a second of a core.
        os.environ.setdefault(IDLE_VARIABLE, str(IDLE_MS))
        with quietly():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def quietly() -> Iterator[None]:
    """Capture both standard streams while Ray starts or ends; show them, on standard error, only on failure."""
    _flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
        try:
            yield
        except BaseException:
            _flush()
            said.seek(0)
            os.write(kept[1], said.read())
            raise
        finally:
            _flush()
            for stream, copy in enumerate(kept, start=1):
                os.dup2(copy, stream)
                os.close(copy)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise a store's error as the task raised it, in one line; Ray appends lines of its own advice to the message.

    Raises:
        OSError: the task's error, with its exact type.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while isinstance(inner := getattr(cause, "cause", None), BaseException) and inner is not cause:
            cause = inner
        if cause is error or type(cause) not in (OSError, PermissionError, ConnectionError, FileNotFoundError):
            raise
        raise type(cause)(str(cause).partition("\n")[0]) from error


def cluster_resources() -> Resources:
    """CPUs and GPUs of all nodes."""
    found = ray.cluster_resources()
    return Resources(cpus=found.get("CPU", 1.0), gpus=found.get("GPU", 0.0))


def configure_data_context(*, progress: bool) -> None:
    """Set the options of Ray Data that the pipeline relies on.

    The read stage cuts the blocks, and they travel in envelopes, one at a time. A row that fails is a reject, never an
    errored block. Ray's own checkpointing would skip rows that no commit holds.

    Args:
        progress: whether Ray Data shows progress bars.

    Raises:
        RuntimeError: Ray Data's checkpointing is on.
    """
    context = DataContext.get_current()
    if getattr(context, "checkpoint_config", None) is not None:
        raise RuntimeError(
            "Ray Data's CheckpointConfig loses rows with a Lance table; unset it: isthmus keeps a ledger"
        )
    # An envelope is a row: with a target of one byte, Ray makes each its own block and never waits for another.
    context.target_max_block_size = 1
    context.max_errored_blocks = 0
    context.enable_progress_bars = progress
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
