"""State of a process's random generators: torch, numpy and Python."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """Return the state of the global generators as tensors and plain values."""
    generator: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = generator
    state: dict[str, Any] = dict(
        torch=torch.get_rng_state(),
        numpy=(str(name), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        python=random.getstate(),
    )
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: Mapping[str, Any]) -> None:
    """Set the global generators.

    Args:
        state: Return value of `capture`, but read from a checkpoint and therefore not trusted.

    Raises:
        ValueError: It is not a state of these generators.
    """
    try:
        name, keys, position, has_gauss, gauss = state["numpy"]
        random.setstate(state["python"])
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"not a state of random generators: {error}") from error
