"""Adaptation of a resolved config to the processes and the device of a run."""

from __future__ import annotations

import torch
from mmengine.config import Config, ConfigDict

from models.detectors.evaluation_network import multiplies_bfloat16
from scripts.runtime.batch_norm_sync import refuse_sync_bn
from scripts.runtime.errors import ConfigError
from scripts.runtime.launch import Launch
from scripts.runtime.parts import LOADERS


def fit_config(cfg: Config, launch: Launch, *, trains: bool = True) -> list[str]:
    """Adapt a config to the processes and the device of this run, in place.

    - `batch_size` at the top of the config is the total over all processes and is divided among
      them. A batch size of the training loader itself applies to one process, as in MMEngine.
    - Worker settings are removed from data loaders without workers (torch rejects them).
    - Mixed precision is bfloat16 without a loss scale if the config selects it, or if it has
      `dtype='auto'` and the device multiplies bfloat16. Otherwise it is float16 on a GPU and off on
      the CPU (MMEngine's AmpOptimWrapper does not support the CPU).
    - On the CPU the data-parallel wrapper gets no device number.

    Args:
        cfg: The resolved config.
        launch: Rank and number of processes.
        trains: Whether the run trains.

    Returns:
        Sentences for the log about the changes.

    Raises:
        ConfigError: The batch size is not divisible by the number of processes, or the precision is
            unknown.
    """
    notes: list[str] = []
    if trains:
        _divide_batch(cfg, launch)
    _drop_worker_settings(cfg)
    on_cpu = not torch.cuda.is_available()
    wrapper = cfg.get("optim_wrapper")
    if wrapper is not None and wrapper.get("type") == "AmpOptimWrapper":
        notes += _fit_precision(wrapper, torch.device("cpu" if on_cpu else "cuda"))
    if launch.is_distributed:
        cfg.launcher = "pytorch"
        if on_cpu:
            _wrap_on_cpu(cfg)
    return notes


def _fit_precision(wrapper: ConfigDict, device: torch.device) -> list[str]:
    """Select the wrapper for mixed precision on a device; return sentences for the log."""
    dtype = wrapper.get("dtype")
    if dtype not in (None, "auto", "float16", "bfloat16", torch.float16, torch.bfloat16):
        raise ConfigError(f"optim_wrapper.dtype is {dtype!r}: use 'auto', 'float16' or 'bfloat16'")
    if dtype == "auto":
        wrapper.pop("dtype")  # the default on a GPU is float16
        dtype = "bfloat16" if multiplies_bfloat16(device) else None
    is_bfloat16 = dtype in ("bfloat16", torch.bfloat16)
    if device.type == "cuda" and not is_bfloat16:
        return []
    wrapper.type = "Bfloat16OptimWrapper" if is_bfloat16 else "OptimWrapper"
    for key in ("loss_scale", "dtype", "use_fsdp"):
        wrapper.pop(key, None)
    if not is_bfloat16:
        return [
            "no GPU: mixed precision is off, training runs in float32 (CPUs that multiply bfloat16 "
            "support optim_wrapper.dtype=bfloat16)"
        ]
    if not multiplies_bfloat16(device):
        return [
            "this device does not multiply bfloat16, training is slower than in float32: set "
            "optim_wrapper.dtype=auto"
        ]
    return []


def _wrap_on_cpu(cfg: Config) -> None:
    """Configure the data-parallel wrapper without a device; keep the config's other settings."""
    refuse_sync_bn(cfg)
    wrapper = dict(cfg.get("model_wrapper_cfg") or {})
    wrapper.setdefault("type", "MMDistributedDataParallel")
    if wrapper["type"] == "MMDistributedDataParallel":
        wrapper["device_ids"] = None
        wrapper.setdefault("broadcast_buffers", False)
        wrapper.setdefault("find_unused_parameters", cfg.get("find_unused_parameters", False))
    cfg.model_wrapper_cfg = wrapper


def _divide_batch(cfg: Config, launch: Launch) -> None:
    loader = cfg.get("train_dataloader")
    if loader is None:
        return
    share = loader.get("batch_size")
    if share is None:
        total = cfg.get("batch_size")
        if total is None:
            raise ConfigError(
                "the config has no batch size: set batch_size, the total over all processes"
            )
        share = _share(total, launch.world_size)
    if not isinstance(share, int) or isinstance(share, bool) or share < 1:
        raise ConfigError(f"train_dataloader.batch_size is {share!r}: it must be at least 1")
    loader.batch_size = share


def _share(total: object, processes: int) -> int:
    if not isinstance(total, int) or isinstance(total, bool) or total < 1:
        raise ConfigError(f"batch_size is {total!r}: it must be a whole number of at least 1")
    if total % processes:
        raise ConfigError(
            f"batch_size {total} (the total over all processes) is not divisible by "
            f"{processes} processes: change one of them"
        )
    return total // processes


def _drop_worker_settings(cfg: Config) -> None:
    for name in LOADERS:
        loader = cfg.get(name)
        if loader is not None and not loader.get("num_workers", 0):
            loader.pop("persistent_workers", None)
            loader.pop("prefetch_factor", None)
