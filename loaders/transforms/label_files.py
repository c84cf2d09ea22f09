"""Shared parts of the transforms that load labels: file names and label maps."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import LoaderConfigError, MissingDataError, UnknownClassError
from loaders.sample import UNKNOWN_LABEL, OccSample

_FIELDS = ("scene_name", "scene_token", "sample_token", "lidar_token", "lidar_file")
# Names for free voxels in a label map.
_FREE = "free"
_NOT_MAPPED = -1
_MAX_LABEL = 65535

MappedLabels = Mapping[Any, int | str | None] | Sequence[int | str | None]


class LabelFiles:
    """Paths of the label files of samples.

    Args:
        label_dir: Folder within the data root, or an absolute path.
        label_file: Path within that folder, with the fields `{scene_name}`, `{scene_token}`,
            `{sample_token}`, `{lidar_token}` and `{lidar_file}` (name of the key frame's
            LiDAR file, with its suffix).

    Raises:
        LoaderConfigError: If `label_file` has another field.
    """

    def __init__(self, label_dir: str, label_file: str) -> None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(label_file) if field]
        except ValueError:
            fields = [label_file]
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown or not fields:
            raise LoaderConfigError(
                f"label_file is '{label_file}': use the fields "
                f"{', '.join(f'{{{name}}}' for name in _FIELDS)}"
            )
        self.label_dir = label_dir
        self.label_file = label_file
        self._fields = fields

    def path(self, sample: OccSample) -> str:
        """Return the path of a sample's label file.

        Raises:
            MissingDataError: If the info file lacks a key that the file name contains.
        """
        values = {name: getattr(sample, name) for name in self._fields}
        lacking = [name for name, value in values.items() if not value]
        if lacking:
            raise MissingDataError(
                f"key frame {sample.sample_token} has no {lacking[0]} in the info file, but the "
                "name of its label file contains it: complete the info file with python "
                "scripts/gen_sweep_info.py --from FILE"
            )
        return os.path.join(sample.data_root, self.label_dir, self.label_file.format(**values))


class LabelMap:
    """Map from the labels of files to the classes of the config.

    Args:
        label_map: Target of each label of the files: the name of a class, its label, 'free', or
            None for ignored voxels. A dict, or a list indexed by the label of the files.

    Raises:
        LoaderConfigError: If a key is not a label, or a value is of another type.
    """

    def __init__(self, label_map: MappedLabels) -> None:
        items: Any = enumerate(label_map)
        if isinstance(label_map, Mapping):
            items = label_map.items()
        self._targets: dict[int, int | str | None] = {}
        for key, target in items:
            # Dumped configs hold keys as strings.
            label = int(key) if str(key).isdigit() else -1
            is_valid = target is None or isinstance(target, (int, str))
            if not 0 <= label <= _MAX_LABEL or isinstance(target, bool) or not is_valid:
                raise LoaderConfigError(
                    f"label_map has {key!r}: {target!r}, use labels of the files as keys, and "
                    "names of classes, labels, 'free' or None as values"
                )
            self._targets[label] = target
        if not self._targets:
            raise LoaderConfigError("label_map is empty: leave it out, or list all labels")

    def table(self, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the new label of each label of the files, -1 for labels without one.

        Args:
            class_names: Classes of the config; the label after the last is free.

        Raises:
            LoaderConfigError: If a class or a label does not exist.
        """
        labels = {name: label for label, name in enumerate(class_names)}
        labels.setdefault(_FREE, len(class_names))
        table = np.full(max(self._targets) + 1, _NOT_MAPPED, dtype=np.int64)
        for label, target in self._targets.items():
            new = labels.get(target, -1) if isinstance(target, str) else target
            if new is None:
                new = UNKNOWN_LABEL
            elif not 0 <= new <= len(class_names):
                raise LoaderConfigError(
                    f"label_map maps {label} to {target!r}, which is neither a class of the "
                    f"config, nor a label from 0 to {len(class_names)}: correct label_map or "
                    "class_names"
                )
            table[label] = new
        return table


def mapped_labels(
    labels: npt.NDArray[np.integer[Any]], table: npt.NDArray[np.int64], path: str
) -> npt.NDArray[np.int64]:
    """Return labels in the order of the config; `UNKNOWN_LABEL` for ignored ones.

    Args:
        labels: Labels of a file, any shape.
        table: See `LabelMap.table`.
        path: Path of the file, for the error.

    Raises:
        UnknownClassError: If a label is not in the map.
    """
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    bad = [label for label in (low, high) if not 0 <= label < len(table)]
    if not bad:
        mapped = table[labels]
        if mapped.min(initial=0) >= 0:
            return mapped
        bad = [int(labels[mapped < 0].flat[0])]
    raise UnknownClassError(
        f"label file {path} has the label {bad[0]}, which label_map does not have: add it, with "
        "None if its voxels are to be ignored"
    )
