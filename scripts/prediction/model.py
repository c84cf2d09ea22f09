"""The model of a config on a device, with its weights, for predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.datasets.wrappers import leaf_configs
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import CheckpointInfo, load_weights
from scripts.runtime.errors import ConfigError


class Predictor:
    """A model that predicts packed samples.

    Args:
        cfg: A resolved config.
        weights: Checkpoint; None keeps the initial weights.
        device: Name of a torch device; None uses the GPU if there is one.

    Attributes:
        model: In eval mode, on the device.
        device: Device of the model.
        checkpoint: The loaded checkpoint, or None.

    Raises:
        ConfigError: The config has no model, a part has an unknown key, or there is no such device.
        CheckpointError: The weights cannot be read or are another model's.
    """

    def __init__(
        self, cfg: Config, weights: str | None, device: str | torch.device | None = None
    ) -> None:
        if cfg.get("model") is None:
            raise ConfigError("the config has no model, which predictions need: choose another one")
        self.device = choose_device(device)
        init_default_scope(cfg.get("default_scope", "mmengine"))
        with named_config_keys(cfg):
            model: nn.Module = MODELS.build(cfg.model)
        self.checkpoint: CheckpointInfo | None = None
        if weights is not None:
            self.checkpoint = load_weights(model, weights)
        self.model: Any = model.to(self.device).eval()

    def predict(
        self, items: Sequence[Mapping[str, Any]], *, streaming: bool | None = None
    ) -> list[BaseDataElement]:
        """Predict packed samples, in one batch.

        Args:
            items: Samples of `PackOccSample`.
            streaming: Whether the model caches the features of frames, if it supports this; None
                uses the setting in the config.

        Returns:
            The data samples with `pred_coords`, `pred_labels` and `pred_scores`.
        """
        if streaming is not None and hasattr(self.model, "streaming"):
            self.model.streaming = streaming
        return predict_items(self.model, items)


@torch.no_grad()
def predict_items(model: Any, items: Sequence[Mapping[str, Any]]) -> list[BaseDataElement]:
    """Predict packed samples in one batch, as `val.py` does; see `Predictor.predict`."""
    samples: list[BaseDataElement] = model.test_step(pseudo_collate(list(items)))
    return samples


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return a device by its name; for None the GPU, if there is one.

    Raises:
        ConfigError: The device does not exist.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device '{device}' is unknown: give cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{device}' does not exist ({torch.cuda.device_count()} GPUs): give cpu, or "
            "one of the GPUs"
        )
    return chosen


def test_dataset_config(cfg: Config) -> dict[str, Any]:
    """Return the config of the test split, else of the validation split.

    Raises:
        ConfigError: The config has neither.
    """
    for name in ("test_dataloader", "val_dataloader"):
        loader = cfg.get(name)
        if loader is not None and loader.get("dataset") is not None:
            return dict(loader["dataset"])
    raise ConfigError(
        "the config has neither a test_dataloader nor a val_dataloader with a dataset"
    )


def unread_dataset(cfg: Config) -> OccupancyDataset:
    """Build the data set of a config's test split without reading anything from the disk.

    It has the grid, the classes, the cameras, the rule of the history, and the transforms.

    Raises:
        ConfigError: The data set is not an `OccupancyDataset`.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    leaf = leaf_configs(test_dataset_config(cfg))[0]
    kind = DATASETS.get(str(leaf.get("type")))
    if not (isinstance(kind, type) and issubclass(kind, OccupancyDataset)):
        raise ConfigError(
            f"the data set of the config is a {leaf.get('type')}: frames are predicted with the "
            "grid and the transforms of an OccupancyDataset"
        )
    with named_config_keys(cfg):
        dataset: OccupancyDataset = DATASETS.build({**leaf, "lazy_init": True, "test_mode": True})
    return dataset
