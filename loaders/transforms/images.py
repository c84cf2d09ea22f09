"""Loading and augmentation of the images of a sample, with one draw for all.

Legend: F images of a sample, H W raw height and width, h w those of the network input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.registry import TRANSFORMS

from loaders.errors import LoaderConfigError
from loaders.packed import PackedImages, StoredSize, extreme_augs
from loaders.sample import OccSample
from loaders.shared_memory import shared_empty
from loaders.transforms.cache import ArrayCache
from loaders.transforms.decode import (
    REDUCTIONS,
    Backend,
    Image,
    decode_crop,
    decode_image,
    decode_image_part,
    image_size,
    notice_slow_backend,
    read_image,
    read_image_file,
    reduced_size,
)
from loaders.transforms.geometry import (
    ImageAugParams,
    aug_for_size,
    draw_image_aug,
    image_aug_matrix,
    test_image_aug,
)
from models.ops import resize_crop, resize_window
from models.ops.jpeg_crop import QUICK_METHODS
from models.ops.resize_crop import Method

# Largest enlargement of a reduced fast decode: OPUS trains with ratios of 0.38 ... 0.55 of the raw
# size, which can then all use the half-size decode.
_MAX_ENLARGEMENT = 1.1


@TRANSFORMS.register_module()
class DrawImageAug:
    """Draw one image augmentation for the whole sample, or take the fixed one of evaluation.

    A sample with a generator is augmented randomly. One without (test mode) gets the fixed
    augmentation, and the three ranges and probabilities are ignored.

    Args:
        raw_hw: Height and width of the images on disk.
        final_hw: Height and width of the network input.
        resize_range: Range of the ratio resized / raw in training; for 1600 x 900 images OPUS
            takes 0.38 ... 0.55. None uses the ratio of evaluation.
        flip_prob: Probability of a left-right flip in training.
        rotate_range_deg: Range of the rotation in training, degrees counter-clockwise.
        camera_hw: Height and width by camera, for cameras whose images do not have `raw_hw`.
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
        """Set `image_aug` and `camera_augs`, and multiply the matrices into `ego2img`."""
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
        # Images are in frame-major order: those of a camera are N apart.
        repeated = np.resize(np.array(matrices, dtype=np.float64), sample.ego2img.shape)
        sample.ego2img = repeated @ sample.ego2img
        return sample

    def extreme_augs(
        self, image_hw: tuple[int, int], is_training: bool = True
    ) -> list[ImageAugParams]:
        """Return the augmentations that bound all others for images of a size."""
        ratios = self.resize_range if is_training else None
        return extreme_augs(self.raw_hw, self.final_hw, ratios, image_hw)

    def image_sizes(self) -> list[tuple[int, int]]:
        """Return the sizes of the images on disk over all cameras."""
        return sorted({self.raw_hw, *self.camera_hw.values()})

    def check_packed(self, packed: PackedImages, is_training: bool) -> None:
        """Raise BadDataError if packed images lack pixels that an augmentation reaches."""
        for size in self.image_sizes():
            packed.check(self.extreme_augs(size, is_training), size)

    def fixed_for(self, raw_hw: tuple[int, int] | None = None) -> ImageAugParams:
        """Return the augmentation of evaluation for images of a size, by default `raw_hw`."""
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
    """Load and augment the images of all frames and cameras: uint8 [F, h, w, 3], BGR.

    Args:
        raw_hw: Height and width that the images must have.
        camera_hw: Height and width by camera, for cameras whose images have another size.
        image_mode: 'exact' decodes fully; the result equals Pillow's bicubic resize, with which the
            published models are trained and evaluated. 'fast' decodes at the smallest sufficient
            DCT scale and resizes linearly from there; if none is sufficient, it equals 'exact'.
            Packed images are small enough that both modes do the same.
        backend: Decoding library, see `loaders.transforms.decode.read_image`. With 'auto', fast and
            packed images are decoded and resized in one pass by a native operation.
        image_cache_mb: Size of the image cache of each process in training, MiB (use persistent
            workers), for data sets that fit into it. It stores decoded images, or the content of
            files if decoding and resizing are one pass. 0 disables it.
        test_cache_mb: The same in evaluation, where augmented images are cached: successive samples
            of a scene share most of their history, and 26 MiB hold 8 frames of 6 cameras at
            704 x 256. None uses `image_cache_mb`.
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
        """Set `images`."""
        if sample.image_aug is None:
            raise LoaderConfigError(
                "LoadMultiViewImages needs DrawImageAug before it in the pipeline"
            )
        params, paths = sample.image_aug, sample.img_paths
        images = shared_empty((len(paths), *params.size_hw, 3), np.uint8)
        done: dict[str, int] = {}  # frames are repeated if the history is short
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
                            "LoadMultiViewImages only: set it at the top of the config, "
                            "DrawImageAug needs it too"
                        )
                stored = StoredSize(raw_hw, raw_hw)
                if sample.packed is not None:
                    stored = sample.packed.of(raw_hw) or stored
                self._load(path, aug, stored, images[i], is_fixed=sample.rng is None)
                done[path] = i
        sample.images = images
        return sample

    def _load(
        self, path: str, params: ImageAugParams, stored: StoredSize, out: Image, is_fixed: bool
    ) -> None:
        """Write an image to `out`; `is_fixed` if all samples share the augmentation."""
        reduction = self._reduction(params, stored)
        whole = _reduced(stored, reduction)

        method, is_smooth = self._method(stored, reduction), self.image_mode == "fast"

        def augment_content(data: bytes | bytearray, to: Image) -> Image:
            self._augment(data, path, params, stored, reduction, to)
            return to

        if not is_fixed and self._train_cache.limit and self._is_quick(method):
            (content,) = self._train_cache.get(
                (path, 0), lambda: [np.frombuffer(read_image_file(path), np.uint8)]
            )
            augment_content(bytearray(content), out)
        elif not is_fixed and self._train_cache.limit:
            (image,) = self._train_cache.get(
                (path, reduction),
                lambda: [read_image(path, self.backend, reduction, stored.stored_hw)],
            )
            augment_image(image, params, out, whole.full_hw, (whole.top, 0), method, is_smooth)
        elif is_fixed and self._test_cache.limit:
            (out[...],) = self._test_cache.get(
                (path, params),
                lambda: [augment_content(read_image_file(path), np.empty_like(out))],
            )
        else:
            augment_content(read_image_file(path), out)

    def _reduction(self, params: ImageAugParams, stored: StoredSize) -> int:
        if self.image_mode != "fast":
            return 1
        return choose_reduction(params.resize_dims[0] / stored.full_hw[1])

    def _method(self, stored: StoredSize, reduction: int) -> Method:
        if stored.full_hw != stored.raw_hw:
            return "cubic"
        return "linear" if reduction > 1 else "exact"

    def _is_quick(self, method: Method) -> bool:
        """Return whether images are decoded and resized in one pass."""
        return self.backend == "auto" and method in QUICK_METHODS

    def _augment(
        self,
        data: bytes | bytearray,
        name: str,
        params: ImageAugParams,
        stored: StoredSize,
        reduction: int,
        out: Image,
    ) -> None:
        """Write the content of an image file to `out`, augmented."""
        method, is_smooth = self._method(stored, reduction), self.image_mode == "fast"
        resized_hw, crop = params.resize_dims[::-1], params.crop[1::-1]
        sizes = (stored.full_hw, stored.top, resized_hw, crop)
        if self._is_quick(method) and decode_crop(
            data, name, out, *sizes, params.flip, method, reduction
        ):
            rotate_image(out, params.rotate_deg, is_smooth)
            return
        image, offset = self._decode_needed(data, name, params, stored, reduction)
        full_hw = _reduced(stored, reduction).full_hw
        augment_image(image, params, out, full_hw, offset, method, is_smooth)

    def _decode_needed(
        self,
        data: bytes | bytearray,
        name: str,
        params: ImageAugParams,
        stored: StoredSize,
        reduction: int,
    ) -> tuple[Image, tuple[int, int]]:
        """Return the part of an image that an augmentation needs, and its first row and column."""
        whole = _reduced(stored, reduction)
        rows, columns = needed_window(whole.full_hw, params)
        if rows[0] == rows[1] or columns[0] == columns[1]:  # entirely black
            image = decode_image(data, name, self.backend, reduction, stored.stored_hw)
            return image, (whole.top, 0)
        below = (max(0, rows[0] - whole.top), max(0, rows[1] - whole.top))
        image, (row, column) = decode_image_part(
            data, name, below, columns, self.backend, reduction, stored.stored_hw
        )
        return image, (whole.top + row, column)

    def finish(self, source: bytes | bytearray | Image, params: ImageAugParams, name: str) -> Image:
        """Return one image as input of the network, without file and cache.

        Args:
            source: Content of an image file, or uint8 [H, W, 3] BGR.
            params: Augmentation for images of this size.
            name: Name of the image in errors.

        Returns:
            uint8 [h, w, 3], BGR.

        Raises:
            BadDataError: If the content cannot be decoded.
        """
        out = np.empty((*params.size_hw, 3), dtype=np.uint8)
        if isinstance(source, np.ndarray):
            augment_image(source, params, out, is_smooth=self.image_mode == "fast")
            return out
        size = image_size(source, name)
        stored = StoredSize(size, size)
        self._augment(source, name, params, stored, self._reduction(params, stored), out)
        return out


def _reduced(stored: StoredSize, reduction: int) -> StoredSize:
    """Return the mode of decoding at reduced size."""
    height, width = reduced_size(stored.stored_hw, reduction)
    top = stored.top // reduction
    return StoredSize(stored.raw_hw, (top + height, width), top)


def needed_window(
    full_hw: tuple[int, int], params: ImageAugParams
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and the columns of an image that an augmentation depends on.

    Args:
        full_hw: Size of the image.
        params: The augmentation.
    """
    (height, width), (left, top) = params.size_hw, params.crop[:2]
    rows = resize_window(full_hw[0], params.resize_dims[1], top, height)
    return rows, resize_window(full_hw[1], params.resize_dims[0], left, width)


def choose_reduction(ratio: float) -> int:
    """Return the largest reduction (1, 2, 4, 8) of decoding that a ratio of sizes allows.

    Args:
        ratio: Resized to stored size.
    """
    return next(r for r in REDUCTIONS if r == 1 or ratio * r <= _MAX_ENLARGEMENT)


def augment_image(
    image: Image,
    params: ImageAugParams,
    out: Image,
    full_hw: tuple[int, int] | None = None,
    offset: tuple[int, int] = (0, 0),
    method: Method = "exact",
    is_smooth: bool = False,
) -> None:
    """Augment one image as `loaders.transforms.geometry.apply_image_aug` does.

    Args:
        image: uint8 [H, W, 3], the whole image at any size, or the part that is needed.
        params: The augmentation.
        out: uint8 [h, w, 3], written.
        full_hw: Size of the whole image; None: that of `image`.
        offset: First row and column of `image` in the whole image.
        method: Filter of the resize, see `models.ops.resize_crop`.
        is_smooth: Whether a rotation interpolates instead of taking the nearest pixel.
    """
    resize_crop(
        torch.from_numpy(out),
        torch.from_numpy(np.ascontiguousarray(image)),
        full_hw or (image.shape[0], image.shape[1]),
        offset,
        params.resize_dims[::-1],
        params.crop[1::-1],
        params.flip,
        method,
    )
    rotate_image(out, params.rotate_deg, is_smooth)


def rotate_image(out: Image, degrees: float, is_smooth: bool) -> None:
    """Rotate an image about its centre, in place.

    Args:
        out: uint8 [h, w, 3].
        degrees: Counter-clockwise.
        is_smooth: Whether to interpolate instead of taking the nearest pixel.
    """
    if degrees and is_smooth:
        import cv2

        h, w = out.shape[:2]
        turn = cv2.getRotationMatrix2D((w / 2 - 0.5, h / 2 - 0.5), degrees, 1.0)
        out[...] = cv2.warpAffine(out, turn, (w, h), flags=cv2.INTER_LINEAR)
    elif degrees:
        from PIL import Image as PilImage

        out[...] = np.asarray(PilImage.fromarray(out).rotate(degrees))


def read_whole_image(path: str, packed: PackedImages | None) -> Image:
    """Read an image at its raw size, for pictures.

    Args:
        path: Image file.
        packed: Index of packed images, see `loaders.sample.OccSample`.

    Returns:
        uint8 [H, W, 3] BGR. Packed images are enlarged, and rows that they lack are black.
    """
    import cv2

    image = read_image(path)
    stored = None
    for size in packed.sizes if packed is not None else ():
        stored = size if image.shape[:2] == size.stored_hw else stored
    if stored is None:
        return image
    height, width = stored.raw_hw
    lower = height - round(stored.top * height / stored.full_hw[0])
    whole = np.zeros((height, width, 3), np.uint8)
    whole[height - lower :] = cv2.resize(image, (width, lower), interpolation=cv2.INTER_CUBIC)
    return whole
