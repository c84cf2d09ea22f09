"""Loading the images of a sample and augmenting them, all with one draw.

Legend: F images of a sample, H W raw height and width, h w those of the network input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import LoaderConfigError
from loaders.sample import OccSample
from loaders.transforms.cache import ArrayCache
from loaders.transforms.decode import (
    REDUCTIONS,
    Backend,
    Image,
    decode_image,
    notice_slow_backend,
    read_image,
)
from loaders.transforms.geometry import (
    ImageAugParams,
    apply_image_aug,
    aug_for_size,
    draw_image_aug,
    image_aug_matrix,
    test_image_aug,
)

# How far above the reduced size a fast decode may be enlarged: OPUS trains with ratios of
# 0.38 ... 0.55 of the raw size, all of which then come from the half-size decode.
_MAX_ENLARGEMENT = 1.1


@TRANSFORMS.register_module()
class DrawImageAug:
    """Draws one image augmentation for the whole sample (or takes the fixed one of evaluation).

    A sample with a generator is augmented randomly. One without (test mode) gets the fixed
    augmentation, and the three ranges and probabilities are ignored.

    Args:
        raw_hw: Height and width of the images on disk.
        final_hw: Height and width of the network input.
        resize_range: Range of the ratio resized / raw in training; for 1600 x 900 images OPUS
            takes 0.38 ... 0.55. None uses the ratio of evaluation.
        flip_prob: Probability of a left-right flip in training.
        rotate_range_deg: Range of the rotation in training, degrees counter-clockwise.
        camera_hw: Height and width by camera, of those whose images are not of ``raw_hw``.
    """

    def __init__(
        self,
        raw_hw: tuple[int, int],
        final_hw: tuple[int, int],
        resize_range: tuple[float, float] | None = None,
        flip_prob: float = 0.5,
        rotate_range_deg: tuple[float, float] = (0.0, 0.0),
        camera_hw: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.raw_hw = (int(raw_hw[0]), int(raw_hw[1]))
        self.final_hw = (int(final_hw[0]), int(final_hw[1]))
        if min(*self.raw_hw, *self.final_hw) < 1:
            raise LoaderConfigError(
                f"raw_hw {self.raw_hw} and final_hw {self.final_hw} must be positive pixels"
            )
        self._fixed = test_image_aug(self.raw_hw, self.final_hw)
        low, high = resize_range or (self._fixed.resize, self._fixed.resize)
        if not 0 < low <= high:
            raise LoaderConfigError(
                f"resize_range {resize_range} must be two rising positive ratios"
            )
        self.resize_range = (float(low), float(high))
        self.flip_prob = flip_prob
        self.camera_hw = _camera_sizes(camera_hw)
        self.rotate_range_deg = (float(rotate_range_deg[0]), float(rotate_range_deg[1]))

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``image_aug`` and ``camera_augs``, and multiplies the matrices into ``ego2img``."""
        params = self._fixed
        if sample.rng is not None:
            params = draw_image_aug(
                sample.rng,
                self.raw_hw,
                self.final_hw,
                self.resize_range,
                self.flip_prob,
                self.rotate_range_deg,
            )
        sizes = [self.camera_hw.get(name, self.raw_hw) for name in sample.cameras]
        sample.image_aug = params
        sample.camera_augs = tuple(aug_for_size(params, self.raw_hw, size) for size in sizes)
        matrices = [image_aug_matrix(aug) for aug in sample.camera_augs or (params,)]
        # Images stand frame by frame: those of a camera are N apart.
        repeated = np.resize(np.array(matrices, dtype=np.float64), sample.ego2img.shape)
        sample.ego2img = repeated @ sample.ego2img
        return sample

    def fixed_for(self, raw_hw: tuple[int, int] | None = None) -> ImageAugParams:
        """Returns the augmentation of evaluation for images of a size, by default ``raw_hw``."""
        return self._fixed if raw_hw is None else aug_for_size(self._fixed, self.raw_hw, raw_hw)


def _camera_sizes(camera_hw: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    for name, size in (camera_hw or {}).items():
        if len(size) != 2 or min(size) < 1:
            raise LoaderConfigError(
                f"camera_hw of {name} is {size}: give height and width, positive pixels"
            )
        sizes[name] = (int(size[0]), int(size[1]))
    return sizes


@TRANSFORMS.register_module()
class LoadMultiViewImages:
    """Loads and augments the images of all frames and cameras: uint8 [F, h, w, 3], BGR.

    Args:
        raw_hw: Height and width that the images must have.
        camera_hw: Height and width by camera, of those whose images are of another size.
        image_mode: 'exact' decodes fully and resizes with Pillow's bicubic filter, as the
            published models are trained and evaluated; 'fast' decodes at the smallest sufficient
            DCT scale and resizes linearly (4 times faster on 1600 x 900 images).
        backend: Decoding library, see :func:`loaders.transforms.decode.read_image`.
        image_cache_mb: Size of the image cache of each process in training, MiB (use persistent
            workers). It keeps decoded images and is meant for data sets that fit. 0 keeps nothing.
        test_cache_mb: The same in evaluation, where augmented images are kept: the next samples of
            a scene share most of their history with this one, and 26 MiB hold 8 frames of 6 cameras
            at 704 x 256. None takes ``image_cache_mb``.
    """

    def __init__(
        self,
        raw_hw: tuple[int, int],
        image_mode: str = "exact",
        backend: Backend = "auto",
        image_cache_mb: float = 0.0,
        test_cache_mb: float | None = None,
        camera_hw: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if image_mode not in ("exact", "fast"):
            raise LoaderConfigError(
                f"LoadMultiViewImages: image_mode is '{image_mode}', use 'exact' or 'fast'"
            )
        self.raw_hw = (int(raw_hw[0]), int(raw_hw[1]))
        self.camera_hw = _camera_sizes(camera_hw)
        self.image_mode = image_mode
        self.backend = backend
        self._train_cache = ArrayCache(image_cache_mb)
        self._test_cache = ArrayCache(image_cache_mb if test_cache_mb is None else test_cache_mb)
        notice_slow_backend(backend)

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``images``."""
        if sample.image_aug is None:
            raise LoaderConfigError(
                "LoadMultiViewImages needs DrawImageAug before it in the pipeline"
            )
        params, paths = sample.image_aug, sample.img_paths
        images = np.empty((len(paths), *params.size_hw, 3), dtype=np.uint8)
        done: dict[str, int] = {}  # frames repeat where the history is short
        for i, path in enumerate(paths):
            if path in done:
                images[i] = images[done[path]]
            else:
                aug, raw_hw = params, self.raw_hw
                if sample.camera_augs:
                    camera = i % len(sample.cameras)
                    aug = sample.camera_augs[camera]
                    raw_hw = self.camera_hw.get(sample.cameras[camera], raw_hw)
                    if raw_hw != self.raw_hw and aug == params:
                        raise LoaderConfigError(
                            f"camera_hw of {sample.cameras[camera]} is {raw_hw} in "
                            "LoadMultiViewImages alone: set it at the top of the config, "
                            "DrawImageAug needs it too"
                        )
                self._load(path, aug, raw_hw, images[i], is_fixed=sample.rng is None)
                done[path] = i
        sample.images = images
        return sample

    def _load(
        self,
        path: str,
        params: ImageAugParams,
        raw_hw: tuple[int, int],
        out: Image,
        is_fixed: bool,
    ) -> None:
        """Writes an image to ``out``; ``is_fixed`` if all samples share the augmentation."""

        def finish() -> Sequence[Image]:
            finished = np.empty_like(out)
            self._augment(self._read(path, reduction, raw_hw), params, finished)
            return [finished]

        reduction = choose_reduction(params) if self.image_mode == "fast" else 1
        if is_fixed:
            (out[...],) = self._test_cache.get((path, params), finish)
        else:
            (image,) = self._train_cache.get(
                (path, reduction), lambda: [self._read(path, reduction, raw_hw)]
            )
            self._augment(image, params, out)

    def finish(self, source: bytes | bytearray | Image, params: ImageAugParams, name: str) -> Image:
        """Returns one image as the network gets it, without a file and without a cache.

        Args:
            source: Content of an image file, or uint8 [H, W, 3] BGR.
            params: Augmentation for images of this size.
            name: What errors call the image.

        Returns:
            uint8 [h, w, 3], BGR.

        Raises:
            BadDataError: If the content cannot be decoded.
        """
        if isinstance(source, np.ndarray):
            image = source
        else:
            reduction = choose_reduction(params) if self.image_mode == "fast" else 1
            image = decode_image(source, name, self.backend, reduction)
        out = np.empty((*params.size_hw, 3), dtype=np.uint8)
        self._augment(image, params, out)
        return out

    def _augment(self, image: Image, params: ImageAugParams, out: Image) -> None:
        if self.image_mode == "exact":
            out[...] = apply_image_aug(image, params)
        else:
            apply_image_aug_fast(image, params, out)

    def _read(self, path: str, reduction: int, raw_hw: tuple[int, int]) -> Image:
        """Returns an image as stored, reduced."""
        return read_image(path, self.backend, reduction, raw_hw)


def choose_reduction(params: ImageAugParams) -> int:
    """Returns the largest reduction (1, 2, 4, 8) of decoding that the target size allows."""
    return next(r for r in REDUCTIONS if r == 1 or params.resize * r <= _MAX_ENLARGEMENT)


def apply_image_aug_fast(
    image: npt.NDArray[np.uint8], params: ImageAugParams, out: npt.NDArray[np.uint8]
) -> None:
    """Augments one image with OpenCV: same geometry as ``apply_image_aug``, linear filters.

    Args:
        image: uint8 [H, W, 3], or the same scene decoded at reduced size.
        params: What to do.
        out: uint8 [h, w, 3], written.
    """
    import cv2

    shrink = params.resize_dims[0] / image.shape[1]
    # A linear filter skips pixels when it shrinks below one half.
    method = cv2.INTER_AREA if shrink < 0.5 else cv2.INTER_LINEAR
    resized = image
    if params.resize_dims != (image.shape[1], image.shape[0]):
        resized = cv2.resize(image, params.resize_dims, interpolation=method)
    left, top, right, bottom = params.crop
    x0, x1 = max(left, 0), min(right, resized.shape[1])
    y0, y1 = max(top, 0), min(bottom, resized.shape[0])
    if (x0, y0, x1, y1) != params.crop:
        out[...] = 0
    if x1 > x0 and y1 > y0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = resized[y0:y1, x0:x1]
    if params.flip:
        out[...] = cv2.flip(out, 1)
    if params.rotate_deg:
        h, w = out.shape[:2]
        turn = cv2.getRotationMatrix2D((w / 2 - 0.5, h / 2 - 0.5), params.rotate_deg, 1.0)
        out[...] = cv2.warpAffine(out, turn, (w, h), flags=cv2.INTER_LINEAR)
