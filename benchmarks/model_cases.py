"""Build the models of the benchmarks: published sizes with random weights, and their input."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config

from benchmarks.common import ROOT
from models.detectors import OPUS
from scripts.runtime.config import load_config
from scripts.timings.command import build_model
from scripts.timings.inputs import InputSizes, SyntheticDrive

CONFIGS = {
    "t": ("V2-T", "opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_100e.py"),
    "s": ("V2-S", "opusv2_nusc-occ3d/opusv2-s_r50_704x256_8f_nusc-occ3d_100e.py"),
    "m": ("V2-M", "opusv2_nusc-occ3d/opusv2-m_r50_704x256_8f_nusc-occ3d_100e.py"),
    "l": ("V2-L", "opusv2_nusc-occ3d/opusv2-l_r50_704x256_8f_nusc-occ3d_100e.py"),
    "v1t": ("V1-T", "opusv1_nusc-occ3d/opusv1-t_r50_704x256_8f_nusc-occ3d_100e.py"),
    "fusion": (
        "V2-Fusion-T",
        "opusv2-fusion_nusc-occ3d/opusv2-fusion-t_r50_704x256_8f_nusc-occ3d_100e.py",
    ),
    "nano": ("V2-nano", "toy/opusv2-nano_toy.py"),
    "v1nano": ("V1-nano", "toy/opusv1-nano_toy.py"),
    "fusionnano": ("V2-Fusion-nano", "toy/opusv2-fusion-nano_toy.py"),
}


def name_of(size: str) -> str:
    return CONFIGS[size][0]


def config_of(size: str, **options: Any) -> Config:
    """Return the resolved config of a model, with settings changed."""
    return load_config(ROOT / "configs" / CONFIGS[size][1], options)


def model_and_drive(size: str, device: str) -> tuple[OPUS, SyntheticDrive]:
    """Return a streaming model in eval mode, and samples for it."""
    cfg = config_of(size)
    cfg.model.streaming = True
    model = build_model(cfg, torch.device(device), None)
    return model, SyntheticDrive(InputSizes.of(cfg))
