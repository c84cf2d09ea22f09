"""Key frames of nuScenes: six cameras, history frames, LiDAR sweeps, ray origins.

Legend: M samples, T frames, N cameras, F = T * N images (frame-major), O ray origins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from loaders.datasets.frames import FrameTable, build_frame_table, history_offsets
from loaders.errors import BadDataError, LoaderConfigError, MissingDataError
from loaders.info_io import CAMERAS, DataPaths, info_file_name, load_infos
from loaders.lidar.frames import LidarTable, build_lidar_table
from loaders.packed import PackedImages, read_packed_index
from loaders.sample import OccSample
from loaders.shared_memory import share
from loaders.transforms.geometry import (
    ego2img_from_poses,
    lidar_ray_origins,
    quaternion_to_matrix,
)
from loaders.transforms.labels import loads_labels
from models.errors import does_not_exist

# Maximum number of broken samples in a row with on_error='skip'; after them the run stops.
_MAX_TRIES = 100


class OccupancyDataset(BaseDataset):
    """Key frames of nuScenes with camera history and, optionally, LiDAR sweeps.

    An item is the pipeline's output for an :class:`loaders.sample.OccSample`. In training, the
    sample's generator is seeded with (seed, epoch, index) if the sampler is an
    :class:`EpochSampler`; the index is the position in the outermost wrapper. With other samplers
    it is seeded from numpy's global state, which MMEngine seeds in every worker.

    Subclasses define the classes, the grid and the frame of the grid of their labels.

    Args:
        data_root: nuScenes folder, with ``samples``, ``sweeps`` and the labels.
        pipeline: Transforms (configs or callables).
        num_frames: T, the current frame included.
        ann_file: Info file, relative to ``data_root``. None uses the default name of
            ``scripts/gen_sweep_info.py`` for (``version``, ``split``).
        split: 'train', 'val' or 'test'; used only without ``ann_file``.
        pc_range: (x0, y0, z0, x1, y1, z1) of the grid in its own frame, metres. None uses the
            value of the published labels, also for the next two arguments.
        voxel_size: (dx, dy, dz) metres.
        class_names: Semantic classes in label order; the label after the last is free.
        test_mode: Evaluation: fixed frame interval, no randomness.
        with_ray_origins: Whether samples hold RayIoU's ray origins.
        use_lidar: Whether samples hold the names and poses of their LiDAR files.
        on_error: Handling of missing or broken files: 'raise' stops the run. 'skip' logs and counts
            the sample (``skipped``) and replaces it by the next valid one, which metrics do not
            count.
        require_labels: Whether a missing label file is an error. If not (evaluation only), samples
            without one have no labels and are not scored.
        version: Required nuScenes version of the info file; None accepts any.
        cameras: Cameras in the order in which the images are stacked.
        train_interval: Range of the frame interval in training, in camera frames (12 Hz).
        test_interval: Frame interval in evaluation.
        seed: Seed of the samples' randomness; None uses torch's initial seed, which the runner
            sets from ``randomness.seed``.
        indices: Use only the first samples up to this number (the last, if negative), or the
            samples of this list.
        scenes: Use only samples of these scenes: names, or a slice of the scenes in the order of
            the info file, as ``':-2'`` for all but the last two. This can keep a part of the
            training scenes for validation.
        lazy_init: Do not read the info file yet (see ``BaseDataset``).

    Attributes:
        frames: Camera frames of all scenes.
        packed: Storage of the images, if the data root is packed.
        lidar: LiDAR files, with ``use_lidar``.
        timestamps: int64 [M], microseconds, of the key frames (their LiDAR).
        ego2global: float64 [M, 4, 4].
        lidar2ego: float64 [M, 4, 4].

    Raises:
        MissingDataError: If the data root, the info file, or the first or last image in it is
            missing.
        BadDataError: If the info file is broken or of another version, or packed images lack
            pixels that the augmentation of the pipeline reaches.
        LoaderConfigError: If an argument is out of range, or the info file is not specified.
    """

    default_classes: ClassVar[tuple[str, ...]]
    default_pc_range: ClassVar[tuple[float, ...]]
    default_voxel_size: ClassVar[tuple[float, ...]]
    occ_frame: ClassVar[Literal["ego", "lidar"]]
    _indices: int | Sequence[int] | None

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence[dict[str, Any] | Callable[..., Any]],
        num_frames: int,
        ann_file: str | None = None,
        split: str | None = None,
        pc_range: Sequence[float] | None = None,
        voxel_size: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        test_mode: bool = False,
        with_ray_origins: bool = False,
        use_lidar: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        require_labels: bool = True,
        version: str | None = None,
        cameras: Sequence[str] = CAMERAS,
        train_interval: tuple[int, int] = (4, 8),
        test_interval: int = 6,
        seed: int | None = None,
        indices: int | Sequence[int] | None = None,
        scenes: str | Sequence[str] | None = None,
        lazy_init: bool = False,
    ) -> None:
        if indices is not None and scenes is not None:
            raise LoaderConfigError("indices and scenes exclude each other: leave one of them out")
        self.scenes = scenes
        if num_frames < 1:
            raise LoaderConfigError(
                f"num_frames is {num_frames}, it counts the current frame: use >= 1"
            )
        self.num_frames = num_frames
        if on_error not in ("raise", "skip"):
            raise LoaderConfigError(f"on_error is '{on_error}', use 'raise' or 'skip'")
        self.pc_range = tuple(map(float, pc_range or self.default_pc_range))
        self.voxel_size = tuple(map(float, voxel_size or self.default_voxel_size))
        self.class_names = tuple(class_names or self.default_classes)
        self.with_ray_origins = with_ray_origins
        self.use_lidar = use_lidar
        self.on_error = on_error
        self.require_labels = require_labels
        if not (require_labels or test_mode):
            raise LoaderConfigError("require_labels=False needs test_mode=True: labels are learnt")
        self.version = version
        if ann_file is None:
            if version is None or split is None:
                raise LoaderConfigError(
                    f"{type(self).__name__} has no ann_file: set it, or both version and split"
                )
            ann_file = info_file_name(version, split)
        self.cameras = tuple(cameras)
        self.train_interval = (int(train_interval[0]), int(train_interval[1]))
        self.test_interval = test_interval
        self.seed = torch.initial_seed() if seed is None else seed
        self._categories: dict[int, list[int]] = {}
        # In shared memory: persistent workers read the values that the main process sets.
        self._epoch = share(torch.full((1,), -1, dtype=torch.int64))
        self._in_sequence = share(torch.zeros(1, dtype=torch.bool))
        super().__init__(
            ann_file=ann_file,
            metainfo={
                "class_names": self.class_names,
                "pc_range": self.pc_range,
                "voxel_size": self.voxel_size,
                "empty_label": len(self.class_names),
            },
            data_root=data_root,
            indices=indices,
            pipeline=list(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    @property
    def skipped(self) -> list[int]:
        """Indices of the samples that were skipped so far, by all workers."""
        return [int(idx) for idx in torch.nonzero(self._skipped)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds the samples' randomness, in all workers."""
        self._epoch.fill_(epoch)

    def set_in_sequence(self, in_sequence: bool) -> None:
        """Set whether the sampler serves scenes frame by frame, in all workers."""
        self._in_sequence.fill_(in_sequence)

    def frame_index(self, idx: int) -> int:
        """Return the index of a sample's key frame in its scene."""
        row = self.get_data_info(idx)["row"]
        return int(np.flatnonzero(self.frames.scene_samples[row] == row)[0])

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the info file: poses into shared arrays, names into a list (one per sample)."""
        if not Path(self.data_root).is_dir():
            raise MissingDataError(
                f"data root {does_not_exist(self.data_root)}: put (or link) nuScenes there, make a "
                "toy data set with scripts/make_toy_nuscenes.py, or set data_root in the config"
            )
        self.packed: PackedImages | None = read_packed_index(self.data_root)
        if self.packed is not None:
            for step in self.pipeline.transforms:
                if hasattr(step, "check_packed"):
                    step.check_packed(self.packed, not self.test_mode)
        if not Path(self.ann_file).is_file():
            raise MissingDataError(
                f"info file {does_not_exist(self.ann_file)}: write it with python "
                f"scripts/gen_sweep_info.py --data-root {self.data_root} "
                f"--version {self.version or 'VERSION'}"
            )
        content = load_infos(self.ann_file)
        self._check_version(content.metadata)
        infos = content.infos
        self.frames: FrameTable = build_frame_table(infos, self.cameras, self.data_root)
        self._check_images()
        self.lidar: LidarTable | None = (
            build_lidar_table(infos, self.data_root) if self.use_lidar else None
        )
        self.timestamps = np.array([int(info["timestamp"]) for info in infos], dtype=np.int64)
        self.ego2global = _poses(infos, "ego2global")
        self.lidar2ego = _poses(infos, "lidar2ego")
        if self.scenes is None:
            self._indices = _chosen_indices(self._indices, len(infos))
        else:
            self._indices = _samples_of_scenes(self.scenes, [info["scene_name"] for info in infos])
        # In shared memory: workers mark the samples that they skip.
        self._skipped = share(torch.zeros(len(infos), dtype=torch.bool))
        names = ("token", "scene_name", "scene_token", "lidar_token")
        data_path = DataPaths(self.data_root)
        return [
            {
                "row": i,
                "lidar_path": data_path(info["lidar_path"]),
                **{key: info[key] for key in names},
            }
            for i, info in enumerate(infos)
        ]

    def get_sample(self, idx: int, position: int | None = None) -> OccSample:
        """Return sample ``idx`` as the pipeline receives it (no images or labels yet).

        Args:
            idx: Index within this data set.
            position: Index within the outermost wrapper; it seeds the sample's randomness and is
                its ``sample_idx``. None uses ``idx``.
        """
        info = self.get_data_info(idx)
        row = info["row"]
        position = info["sample_idx"] if position is None else position
        rng = None if self.test_mode else self._sample_rng(position)
        rows = self.frames.key_frame[row] - np.array(
            history_offsets(
                self.frames.available_history(row),
                self.num_frames,
                rng,
                self.train_interval,
                self.test_interval,
            )
        )
        ego2img = ego2img_from_poses(
            self.ego2global[row, :3, :3],
            self.ego2global[row, :3, 3],
            self.frames.sensor2global_rotation[rows],
            self.frames.sensor2global_translation[rows],
            self.frames.cam_intrinsic[rows],
        )
        root = Path(self.data_root)
        return OccSample(
            sample_idx=position,
            sample_token=info["token"],
            scene_name=info["scene_name"],
            scene_token=info["scene_token"],
            lidar_token=info["lidar_token"],
            lidar_file=PurePosixPath(info["lidar_path"].replace("\\", "/")).name,
            cameras=self.cameras,
            data_root=str(self.data_root),
            img_paths=[str(root / path.decode()) for path in self.frames.paths[rows].ravel()],
            img_timestamps=self.frames.timestamps[rows].ravel(),
            ego2img=ego2img.reshape(-1, 4, 4),
            pc_range=self.pc_range,
            voxel_size=self.voxel_size,
            class_names=self.class_names,
            rng=rng,
            scene_rng=self._scene_rng(info["scene_token"]),
            frame_index=self.frame_index(idx),
            sequence_id=self._sequence_id(),
            timestamp=int(self.timestamps[row]),
            ego2global=self.ego2global[row].copy(),
            ray_origins=self.ray_origins(row) if self.with_ray_origins else None,
            ego2occ=self.ego2occ(row),
            lidar2ego=self.lidar2ego[row].copy(),
            packed=self.packed,
            lidar=None if self.lidar is None else self.lidar.frames(row, str(self.data_root)),
        )

    def __getitem__(self, idx: int) -> Any:
        return self.item(idx)

    def item(self, idx: int, position: int | None = None) -> Any:
        """Return ``self[idx]`` for a position in wrappers (see :meth:`get_sample`)."""
        self.full_init()
        return self.prepare_data(idx, position)

    def prepare_data(self, idx: int, position: int | None = None) -> Any:
        """Return sample ``idx`` after the pipeline, or its replacement (``on_error``)."""
        try:
            return self._run_pipeline(self.get_sample(idx, position))
        except (MissingDataError, BadDataError) as error:
            if self.on_error == "raise":
                raise
            self._note_skipped(idx, error)
        for step in range(1, min(_MAX_TRIES, len(self))):
            other = (idx + step) % len(self)
            try:
                sample = self.get_sample(other, position)
                sample.replaces = idx if position is None else position
                return self._run_pipeline(sample)
            except (MissingDataError, BadDataError) as error:
                self._note_skipped(other, error)
                last = error
        raise BadDataError(
            f"sample {idx} and the following ones cannot be loaded; error of the last: {last}; "
            "check the data with scripts/check_data.py"
        )

    def _run_pipeline(self, sample: OccSample) -> Any:
        item: Any = sample
        for step in self.pipeline.transforms:
            try:
                item = step(item)
            except MissingDataError:
                if self.require_labels or not loads_labels(type(step).__name__):
                    raise
                item.is_unlabelled = True
            if item is None:
                break
        if item is None:
            raise BadDataError(
                f"a transform returned None for sample {sample.sample_token}: set on_error='skip' "
                "for the data set to skip such samples"
            )
        return item

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the semantic classes that occur in a sample's labels, in increasing order.

        The label file is read at the first call. A sample that cannot be loaded has no classes if
        ``on_error`` is 'skip'.

        Raises:
            LoaderConfigError: If the pipeline loads no labels.
        """
        if idx not in self._categories:
            self._categories[idx] = self._read_categories(idx)
        return self._categories[idx]

    def _read_categories(self, idx: int) -> list[int]:
        steps = [step for step in self.pipeline.transforms if loads_labels(type(step).__name__)]
        if not steps:
            raise LoaderConfigError(
                f"the pipeline of {type(self).__name__} loads no labels, so its classes cannot be "
                "balanced: put LoadOcc3DLabels or LoadOccupancyLabels into it"
            )
        sample = self.get_sample(idx)
        try:
            for step in steps:
                sample = step(sample)
        except (MissingDataError, BadDataError) as error:
            if self.on_error == "raise":
                raise
            self._note_skipped(idx, error)
            return []
        labels = np.unique(np.asarray(sample.voxel_semantics))
        return [int(label) for label in labels if label < len(self.class_names)]

    def _note_skipped(self, idx: int, error: Exception) -> None:
        """Count a skipped sample and log it once."""
        if not self._skipped[idx]:
            self._skipped[idx] = True
            text = (
                f"skipped sample {idx} ({int(self._skipped.sum())} of {len(self)} so far): {error}"
            )
            print_log(text, logger="current", level=logging.WARNING)

    def lidar_path(self, idx: int) -> str | None:
        """Return the LiDAR file of sample ``idx``, None if the info file has none."""
        path = self.get_data_info(idx)["lidar_path"]
        return str(Path(self.data_root) / path) if path else None

    def ego2occ(self, row: int) -> npt.NDArray[np.float64]:
        """Return the matrix [4, 4] from a sample's ego frame to the frame of its grid."""
        return np.eye(4) if self.occ_frame == "ego" else np.linalg.inv(self.lidar2ego[row])

    def ray_origins(self, row: int) -> npt.NDArray[np.float64]:
        """Return RayIoU's ray origins [O, 3] of a sample, metres in the frame of its grid."""
        scene = self.frames.scene_samples[row]
        in_ego = lidar_ray_origins(
            self.ego2global[scene, :3, :3],
            self.ego2global[scene, :3, 3],
            self.lidar2ego[scene, :3, 3],
            current=int(np.flatnonzero(scene == row)[0]),
        )
        ego2occ = self.ego2occ(row)
        return in_ego @ ego2occ[:3, :3].T + ego2occ[:3, 3]

    def _sequence_id(self) -> int | None:
        if self.test_mode:
            return 0
        return int(self._epoch) if bool(self._in_sequence) else None

    def _scene_rng(self, scene: str) -> np.random.Generator | None:
        sequence = None if self.test_mode else self._sequence_id()
        if sequence is None:
            return None
        return np.random.default_rng([self.seed, sequence, *scene.encode()])

    def _sample_rng(self, idx: int) -> np.random.Generator:
        epoch = int(self._epoch)
        if epoch < 0:
            return np.random.default_rng(np.random.randint(0, 2**63))
        return np.random.default_rng([self.seed, epoch, idx])

    def _check_version(self, metadata: dict[str, Any]) -> None:
        file_version = metadata.get("version")
        if self.version is not None and file_version not in (None, self.version):
            raise BadDataError(
                f"info file {self.ann_file} was made for {file_version}, but the config needs "
                f"{self.version}: write it again with python scripts/gen_sweep_info.py "
                f"--data-root {self.data_root} --version {self.version}"
            )

    def _check_images(self) -> None:
        if not len(self.frames.paths):
            raise BadDataError(
                f"info file {self.ann_file} has no samples: write it again with "
                "scripts/gen_sweep_info.py"
            )
        for path in (self.frames.paths[0, 0], self.frames.paths[-1, -1]):
            if not (Path(self.data_root) / path.decode()).is_file():
                raise MissingDataError(
                    f"info file {self.ann_file} names image {path.decode()}, which is not under "
                    f"{self.data_root}: the file was made for another data root, write it again "
                    f"with python scripts/gen_sweep_info.py --data-root {self.data_root} "
                    f"--version {self.version or 'VERSION'}"
                )


def _chosen_indices(indices: int | Sequence[int] | None, number: int) -> list[int] | None:
    """Return the samples selected by the argument ``indices``, None for all.

    Raises:
        LoaderConfigError: If it selects none, or some that do not exist.
    """
    if indices is None:
        return None
    if isinstance(indices, int):
        first, last = range(indices), range(number + indices, number)
        chosen = [*(first if indices > 0 else last)]
    else:
        chosen = [number + index if index < 0 else index for index in indices]
    if not chosen or min(chosen) < 0 or max(chosen) >= number:
        raise LoaderConfigError(
            f"indices is {indices}, but the data set has {number} samples: use a number from 1 to "
            f"{number}, or a list of indices from 0 to {number - 1}"
        )
    return chosen


def _samples_of_scenes(scenes: str | Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the samples selected by the argument ``scenes``.

    Args:
        scenes: See :class:`OccupancyDataset`.
        names: Scene of every sample.

    Raises:
        LoaderConfigError: If it selects none, or is neither a slice nor names of scenes.
    """
    known = list(dict.fromkeys(names))
    if isinstance(scenes, str):
        try:
            start, end = (int(part) if part else None for part in scenes.split(":"))
        except ValueError:
            raise LoaderConfigError(
                f"scenes is '{scenes}': use a slice such as ':-2' or '-2:', or a list of names"
            ) from None
        chosen = set(known[start:end])
    else:
        chosen = set(scenes)
        if unknown := chosen - set(known):
            raise LoaderConfigError(
                f"scenes names '{min(unknown)}', but the info file has {len(known)} others, "
                f"such as '{known[0]}': correct the name"
            )
    if not chosen:
        raise LoaderConfigError(
            f"scenes is {scenes!r}, but there are {len(known)} scenes: none is left"
        )
    return [i for i, name in enumerate(names) if name in chosen]


def _poses(infos: Sequence[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    """Return pose ``name`` of all infos as matrices float64 [M, 4, 4]."""
    poses = np.tile(np.eye(4), (len(infos), 1, 1))
    for pose, info in zip(poses, infos, strict=True):
        pose[:3, :3] = quaternion_to_matrix(info[f"{name}_rotation"])
        pose[:3, 3] = np.reshape(info[f"{name}_translation"], 3)
    return poses
