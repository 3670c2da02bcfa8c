"""Ray Data as everything here uses it: results in the order of their inputs, and nothing said on the way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

import ray.data

_LOCK = threading.Lock()
"""Held while Ray Data's context, which all threads share, is ours."""


@contextmanager
def in_order(*, block_bytes: int | None = None) -> Generator[None]:
    """Data sets that are made in here keep order. block_bytes: about how large their blocks are."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    if block_bytes is not None:
        context.target_max_block_size = block_bytes
    # The console alone: Ray's own log files keep everything, and what fails is raised.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
    with _LOCK, ray.data.DataContext.current(context):
        yield
