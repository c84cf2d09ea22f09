"""The small models of `nano_parts` on samples that are frames of scenes, with a query memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from nano_parts import NanoDataset, write_config

LENGTHS = (4, 3, 3, 2)  # frames of each scene: 12 samples
MEMORY = dict(type="QueryMemory", num_kept=6)


@DATASETS.register_module()
class NanoScenes(NanoDataset):
    def __init__(self, num_samples: int = sum(LENGTHS), use_lidar: bool = False) -> None:
        self.places = [(scene, i) for scene, n in enumerate(LENGTHS) for i in range(n)]
        self.in_sequence = torch.zeros(1, dtype=torch.bool).share_memory_()
        super().__init__(num_samples, use_lidar)

    def set_in_sequence(self, in_sequence: bool) -> None:
        self.in_sequence.fill_(in_sequence)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        return dict(scene_token=f"scene{self.places[idx][0]}")

    def frame_index(self, idx: int) -> int:
        return self.places[idx][1]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        item = super().prepare_data(idx)
        scene, frame = self.places[idx]
        yaw = 0.05 * frame + scene
        pose = np.eye(4)
        pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
        pose[0, 3] = 0.5 * frame
        item["data_samples"].set_metainfo(
            dict(
                scene_token=f"scene{scene}",
                frame_index=frame,
                sequence_id=int(self.epoch) if bool(self.in_sequence) else None,
                timestamp=500_000 * frame,
                ego2global=pose,
            )
        )
        return item


EXTRA = """
custom_imports['imports'].append('memory_parts')
model['pts_bbox_head']['memory'] = {memory!r}
train_dataloader['dataset']['type'] = 'NanoScenes'
train_dataloader['sampler'] = dict(type='SceneSampler', single_epochs={single})
train_cfg = dict(val_interval=100)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
"""


def memory_config(folder: Path, root: Path, single: int = 1) -> Path:
    """Return a config of a small model with query memory; the first epochs have single frames."""
    return write_config(folder, root, "v2", extra=EXTRA.format(memory=MEMORY, single=single))
