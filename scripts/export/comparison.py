"""Compare predictions of exported files with the project's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.errors import MissingPackageError
from scripts.export.graphs import Voxels
from scripts.export.interface import geometry_tensors
from scripts.export.source import Frame


class Runner(Protocol):
    """Predicts voxels of a frame."""

    def __call__(self, frame: Frame) -> Voxels:
        """Predict."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two predictions of one sample.

    Attributes:
        expected: Number of voxels in the project's prediction.
        found: Number of voxels in the other prediction.
        common: Number of voxels in both.
        relabelled: Number of common voxels with different labels.
        score_error: Largest difference of the scores of common voxels.
        label_error: The same for voxels with different labels. If it is small, two classes have
            nearly equal scores.
        lone_margin: Largest distance from the threshold of the score of a voxel that is in only one
            of the predictions.
    """

    expected: int
    found: int
    common: int
    relabelled: int
    score_error: float
    label_error: float = 0.0
    lone_margin: float = 0.0

    @property
    def share(self) -> float:
        """Return the share of all voxels that have the same label in both; 1 without any."""
        either = self.expected + self.found - self.common
        return (self.common - self.relabelled) / either if either else 1.0

    def __str__(self) -> str:
        """Return one line."""
        text = (
            f"{self.expected} voxels, {self.found} in the file's prediction, {self.share:.4%} the "
            f"same, scores within {self.score_error:.1e}"
        )
        missing, added = self.expected - self.common, self.found - self.common
        if missing or added:
            text += (
                f"; {missing} missing and {added} added, their scores within "
                f"{self.lone_margin:.1e} of the threshold"
            )
        if self.relabelled:
            text += (
                f"; {self.relabelled} of another label, their scores within {self.label_error:.1e}"
            )
        return text


def compare(expected: Voxels, found: Voxels, threshold: float = 0.0) -> Agreement:
    """Compare two predictions; the order of voxels does not matter.

    Args:
        expected: The project's prediction.
        found: The other prediction.
        threshold: Score above which voxels are predicted.
    """
    index = {tuple(row): i for i, row in enumerate(expected.coords.tolist())}
    pairs = [
        (index[tuple(row)], j) for j, row in enumerate(found.coords.tolist()) if tuple(row) in index
    ]
    ours, theirs = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    is_relabelled = expected.labels[ours] != found.labels[theirs]
    error = (expected.scores[ours] - found.scores[theirs]).abs()
    lone = torch.cat([_without(expected.scores, ours), _without(found.scores, theirs)])
    return Agreement(
        len(expected.coords),
        len(found.coords),
        len(ours),
        int(is_relabelled.sum()),
        _largest(error),
        _largest(error[is_relabelled]),
        _largest((lone - threshold).abs()),
    )


def _without(values: Tensor, rows: Tensor) -> Tensor:
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[rows] = False
    return values[kept]


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else 0.0


class OnnxRunner:
    """Run ONNX files on the CPU, in onnxruntime.

    Args:
        files: The file, or the files of the image network and of the decoder.
        num_cams: Cameras of a frame.
        threads: Threads of an operator; None for the default of onnxruntime.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """

    def __init__(self, files: Sequence[Path], num_cams: int, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError(
                "running ONNX files needs onnxruntime: pip install -r requirements/onnx.txt"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self.sessions = [
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for file in files
        ]
        self.num_cams = num_cams

    def __call__(self, frame: Frame) -> Voxels:
        """Predict; with two files the frames go through the image network one by one."""
        geometry = [tensor.numpy() for tensor in geometry_tensors(frame)]
        if len(self.sessions) == 1:
            first = [frame.images.numpy()]
        else:
            frames = [self.features(images) for images in frame.images.split(self.num_cams)]
            first = [np.concatenate(level) for level in zip(*frames, strict=True)]
        return self.decode([*first, *geometry])

    def features(self, images: Tensor) -> list[Any]:
        """Return the maps of one frame's images."""
        session = self.sessions[0]
        outputs: list[Any] = session.run(None, {"images": images.numpy()})
        return outputs

    def decode(self, arrays: Sequence[Any]) -> Voxels:
        """Run the last file with arrays in the order of its inputs."""
        session = self.sessions[-1]
        names = [port.name for port in session.get_inputs()]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return Voxels(*map(torch.from_numpy, outputs))
