"""Logging of curves and pictures that does not stop a training if the disk is full."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any


def tolerate_write_errors(visualizer: Any, logger: logging.Logger) -> None:
    """Make the backends of a visualizer log the first disk error and continue.

    Args:
        visualizer: mmengine's visualizer.
        logger: Logger of the run.
    """
    for name, backend in getattr(visualizer, "_vis_backends", {}).items():
        warned: list[str] = []
        for method in dir(type(backend)):
            if method.startswith("add_"):
                guarded = _guarded(getattr(backend, method), name, warned, logger)
                setattr(backend, method, guarded)


def _guarded(
    method: Callable[..., Any], name: str, warned: list[str], logger: logging.Logger
) -> Callable[..., Any]:
    @functools.wraps(method)
    def write(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            if not warned:
                warned.append(name)
                logger.warning(f"{name} cannot write ({error}): the training continues without it")
            return None

    return write
