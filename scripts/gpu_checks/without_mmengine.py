"""Import of the decoder on machines with torch but without MMEngine.

Decoder and discretization use only MMEngine's base class of modules and the registry's decorator.
Neither computes anything.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn


class _BaseModule(nn.Module):
    """A module with an argument `init_cfg`, which must be None."""

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__()
        assert init_cfg is None


class _Registry:
    """A registry without names; its decorator leaves classes unchanged."""

    def register_module(self, *args: Any, **kwargs: Any) -> Callable[[type], type]:
        return lambda kind: kind


def provide_mmengine() -> bool:
    """Provide a substitute for MMEngine if it is not installed; return whether it is used."""
    if "mmengine" in sys.modules or importlib.util.find_spec("mmengine") is not None:
        return False
    contents: dict[str, dict[str, Any]] = {
        "mmengine": {},
        "mmengine.model": dict(BaseModule=_BaseModule),
        "mmengine.registry": dict(MODELS=_Registry()),
        "mmengine.structures": dict(BaseDataElement=object),
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module
    return True
