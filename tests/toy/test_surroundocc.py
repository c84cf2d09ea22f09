"""The toy data's SurroundOcc labels agree with OpenOccupancy's; train, score and draw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import train
import val
import visualize
from scripts.sweep_infos.generator import main as gen_sweep_info

CONFIG = Path(__file__).resolve().parents[2] / "configs/toy/opusv2-nano_toy-surroundocc.py"


@pytest.fixture(scope="module")
def options(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return options of the toy config for the small data set."""
    infos = tmp_path_factory.mktemp("infos")
    words = ["--data-root", str(small_root), "--version", "v1.0-mini", "--no-progress"]
    assert gen_sweep_info([*words, "--out-dir", str(infos)]) == 0
    files = [
        f"{split}_dataloader.dataset.ann_file={infos}/nuscenes_infos_{split}_mini_sweep.pkl"
        for split in ("train", "val")
    ]
    sizes = ["raw_hw=[54,96]", "final_hw=[32,96]", "resize_range=[1.0,1.1]"]
    loading = ["num_workers=0", "persistent_workers=False", "max_epochs=1"]
    return ["--cfg-options", f"data_root={small_root}", *files, *sizes, *loading]


def test_labels_lie_where_openoccupancy_s_do(small_root: Path) -> None:
    """Most fine surface voxels lie in a coarse one of the same class."""
    tables = json.loads((small_root / "v1.0-mini" / "sample_data.json").read_text())
    checked = 0
    for record in tables:
        if not (record["is_key_frame"] and "LIDAR_TOP" in record["filename"]):
            continue
        coarse = np.load(small_root / "surroundocc" / f"{Path(record['filename']).name}.npy")
        assert coarse.dtype.kind == "i" and (coarse[:, :3] < [200, 200, 16]).all()
        assert coarse.min() >= 0 and coarse[:, 3].max() <= 16
        assert len(np.unique(coarse[:, :3], axis=0)) == len(coarse)
        (path,) = (small_root / "occupancy").glob(f"*/occupancy/{record['token']}.npy")
        fine = np.load(path)
        centre = (fine[:, 2::-1] + 0.5) * 0.2 + [-51.2, -51.2, -5.0]
        voxel = np.floor((centre - [-50, -50, -5]) / 0.5).astype(int)
        inside = ((voxel >= 0) & (voxel < [200, 200, 16])).all(axis=1)
        grid = np.full((200, 200, 16), -1)
        grid[tuple(coarse[:, :3].T)] = coarse[:, 3]
        found = grid[tuple(voxel[inside].T)]
        assert (found >= 0).mean() > 0.85
        assert (found == fine[inside, 3])[found >= 0].mean() > 0.8
        checked += 1
    assert checked == 4


def test_trains_scores_and_draws(options: list[str], tmp_path: Path) -> None:
    common = ["--config", str(CONFIG), "--work-dir", str(tmp_path / "run")]
    assert train.main([*common, *options]) == 0
    weights, out = str(tmp_path / "run" / "epoch_1.pth"), tmp_path / "scores.json"
    assert val.main([*common, "--weights", weights, "--out", str(out), *options]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert 0 <= metrics["surroundocc/IoU"] <= 100 and "surroundocc/mIoU" in metrics
    words = ["--config", str(CONFIG), "--weights", weights, "--vis-gt", "--vis-input"]
    words += ["--num", "1", "--out", str(tmp_path / "pictures")]
    assert visualize.main([*words, *options]) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
