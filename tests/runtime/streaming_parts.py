"""A small OPUS detector in double precision, for evaluations that must agree voxel by voxel.

In single precision, convolutions over different numbers of images may differ in the last bit and
move a point into another voxel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from models.detectors import OPUS

FRAMES = 3


@MODELS.register_module()
class DoubleOPUS(OPUS):
    """Detector with all parameters and inputs in double precision."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.double()

    def forward(
        self, inputs: dict[str, Any], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> Any:
        for sample in data_samples:
            sample.ego2img, sample.ego2occ = sample.ego2img.double(), sample.ego2occ.double()
        return super().forward(dict(inputs, img=inputs["img"].double()), data_samples, mode)


CONFIG = """
_base_ = [{runtime!r}]
custom_imports = dict(
    imports=['streaming_parts', 'models.register', 'loaders.register', 'scripts.runtime.register'],
    allow_failed_imports=False)
pc_range, voxel_size = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4], [0.4, 0.4, 0.4]
model = dict(
    type='DoubleOPUS', streaming=False, cached_frames=4,
    data_preprocessor=dict(type='OPUSDataPreprocessor'),
    img_backbone=dict(
        type='mmdet.ResNet', depth=18, base_channels=8, num_stages=3, strides=(1, 2, 2),
        dilations=(1, 1, 1), out_indices=(0, 1, 2), frozen_stages=-1, norm_eval=True),
    img_neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32], out_channels=16, num_outs=3),
    pts_bbox_head=dict(
        type='CPDHead', pc_range=pc_range, voxel_size=voxel_size, num_classes=17, empty_label=17,
        embed_dims=16, num_query=60, num_frames={frames}, num_cams=6, num_levels=3,
        point_channels=4, score_thr=0.02,
        decoder=dict(
            type='OPUSDecoder', num_refines=[2, 8], num_points=2, ffn_dims=32, dropout=0.0),
        densifier=dict(type='CPDDensifier', pfn_channels=[8, 8]),
        loss_pts=dict(type='ChamferLoss'),
        loss_cls=dict(type='SigmoidFocalLoss', loss_weight=2.0, class_weights=[1] * 17)))
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='NuScenesOcc3DDataset', data_root={root!r}, test_mode=True,
        ann_file='nuscenes_infos_train_mini_sweep.pkl', num_frames={frames},
        pc_range=pc_range, voxel_size=voxel_size, with_ray_origins=True,
        pipeline=[
            dict(type='DrawImageAug', raw_hw=(90, 160), final_hw=(32, 96)),
            dict(type='LoadMultiViewImages', raw_hw=(90, 160), image_mode='fast', image_cache_mb=1),
            dict(type='LoadOcc3DLabels'), dict(type='PackOccSample')]))
test_evaluator = [dict(type='OccupancyMetric', mask='camera'), dict(type='RayIoUMetric')]
test_cfg = dict()
"""


def write_config(folder: Path, root: Path, data_root: Path) -> Path:
    """Write a config of the detector on a data set in nuScenes' format."""
    path = folder / "detector.py"
    runtime = str(root / "configs/_base_/default_runtime.py")
    path.write_text(CONFIG.format(runtime=runtime, root=str(data_root), frames=FRAMES))
    return path


def disturb(model: torch.nn.Module) -> None:
    """Randomise the weights; with initial weights images hardly matter."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "bias" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.2 * noise
