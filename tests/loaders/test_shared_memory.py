"""Arrays of workers are created in shared memory and sent without a copy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.shared_memory import as_tensor, shared_empty
from loaders.transforms.pack import OccDataElement


class _Arrays(Dataset):
    """Return for each item whether its tensor was in shared memory before it was sent."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        array = shared_empty((3, 5, 2), np.float32)
        array[...] = np.arange(30).reshape(3, 5, 2) + index
        whole, rows = as_tensor(array), as_tensor(array[:2])
        turned = as_tensor(np.ascontiguousarray(array[::-1]))
        return whole, rows, turned, whole.is_shared(), rows.is_shared(), turned.is_shared()


@pytest.mark.parametrize("workers", [0, 2])
def test_content_and_place(workers: int) -> None:
    loader = DataLoader(_Arrays(), batch_size=None, num_workers=workers)
    for index, (whole, rows, turned, *are_shared) in enumerate(loader):
        expected = torch.arange(30.0).view(3, 5, 2) + index
        assert torch.equal(whole, expected) and torch.equal(rows, expected[:2])
        assert torch.equal(turned, expected.flip(0))
        assert are_shared == [workers > 0, workers > 0, False]


def test_other_arrays_become_plain_tensors() -> None:
    for array in (np.arange(6).reshape(2, 3), np.zeros((0, 5), np.float32), np.ones(4)[1:]):
        assert torch.equal(as_tensor(array), torch.from_numpy(array))
    tensor = torch.arange(8.0)
    part = tensor.numpy()[2:]  # not at the start of its owner
    assert torch.equal(as_tensor(part), tensor[2:])


def test_pinning_keeps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace pinning by a copy, because it fails in torch without a GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    element = OccDataElement(metainfo=dict(token="a"), ego2img=torch.eye(4), grid=torch.ones(3))
    pinned = element.pin_memory()
    assert isinstance(pinned, OccDataElement) and pinned.token == "a"
    assert torch.equal(pinned.ego2img, element.ego2img)
    assert pinned.ego2img.data_ptr() != element.ego2img.data_ptr()
    assert set(pinned.keys()) == {"ego2img", "grid"}


class _NewModules(Dataset):
    """Return the modules that loading a sample imports."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> str:
        before = set(sys.modules)
        self.inner[index]
        new = sorted(set(sys.modules) - before)
        return " ".join(name for name in new if not name.startswith("encodings."))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_workers_import_nothing(mini: Any, mode: str) -> None:
    """Modules imported after the fork would take memory in every worker."""
    pipeline = [
        dict(type="DrawImageAug", raw_hw=(90, 160), final_hw=(32, 96)),
        dict(type="LoadMultiViewImages", raw_hw=(90, 160), image_mode=mode),
        dict(type="LoadOcc3DLabels"),
        dict(type="LoadLidarSweeps"),
        dict(type="RandomFlipBEV"),
        dict(type="FilterPoints"),
        dict(type="PackOccSample"),
    ]
    dataset = DATASETS.build(
        dict(
            type="NuScenesOcc3DDataset",
            data_root=str(mini.root),
            ann_file="nuscenes_infos_train_mini_sweep.pkl",
            num_frames=2,
            use_lidar=True,
            seed=0,
            pipeline=pipeline,
        )
    )
    assert list(DataLoader(_NewModules(dataset), num_workers=1, batch_size=None)) == [""] * 6
