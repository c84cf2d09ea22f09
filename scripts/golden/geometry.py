"""Check of the image and grid geometry."""

from __future__ import annotations

import json
from collections.abc import Iterator

from loaders.transforms.geometry import (
    ImageAugParams,
    apply_image_aug,
    ego2img_from_poses,
    flip_bev,
    image_aug_matrix,
)
from scripts.golden.report import Check, GoldenFile, absolute, relative


def check_geometry(golden: GoldenFile) -> Iterator[Check]:
    """Compare projections, image augmentation and BEV flips with a `geometry` file."""
    for name in _names(golden, "ego2img/", ".ego2img"):
        ego2img = ego2img_from_poses(
            golden[f"{name}.ego2global_rotation"],
            golden[f"{name}.ego2global_translation"],
            golden[f"{name}.sensor2global_rotation"],
            golden[f"{name}.sensor2global_translation"],
            golden[f"{name}.cam_intrinsic"],
        )
        yield relative(f"{name}.ego2img", ego2img, golden[f"{name}.ego2img"], 1e-6)
    for name in _names(golden, "ida/", ".params"):
        params = ImageAugParams.from_dict(json.loads(golden[f"{name}.params"].tobytes()))
        yield absolute(f"{name}.matrix", image_aug_matrix(params), golden[f"{name}.matrix"], 0)
        if f"{name}.image" in golden:
            image = apply_image_aug(golden["ida/image"], params)
            yield absolute(f"{name}.image", image, golden[f"{name}.image"], 0)
    for name in _names(golden, "bda/", ".flip"):
        flip_x, flip_y = (bool(value) for value in golden[f"{name}.flip"])
        (semantics,), ego2occ = flip_bev([golden["bda/semantics"]], flip_x, flip_y)
        yield absolute(f"{name}.semantics", semantics, golden[f"{name}.semantics"], 0)
        yield absolute(f"{name}.ego2occ", ego2occ, golden[f"{name}.ego2occ"], 0)


def _names(golden: GoldenFile, prefix: str, suffix: str) -> list[str]:
    """Return the keys with a prefix and a suffix, without the suffix."""
    return [
        key.removesuffix(suffix)
        for key in golden
        if key.startswith(prefix) and key.endswith(suffix)
    ]
