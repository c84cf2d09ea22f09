from __future__ import annotations

import io
import sys
import types
import warnings

import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

from loaders.errors import BadDataError, LoaderConfigError, MissingDataError, WrongShapeError
from loaders.sample import OccSample
from loaders.transforms import decode
from loaders.transforms.cache import ArrayCache
from loaders.transforms.decode import decode_image_part, read_image, read_image_file
from loaders.transforms.geometry import ImageAugParams, apply_image_aug
from loaders.transforms.images import (
    DrawImageAug,
    LoadMultiViewImages,
    augment_image,
    choose_reduction,
)
from loaders.transforms.labels import LoadOcc3DLabels, RandomFlipBEV, read_occ3d_labels
from loaders.transforms.pack import PackOccSample


def works(backend):
    try:
        decode._decoder(backend)
    except RuntimeError:
        return False
    return True


TURBOJPEG = pytest.param(
    "turbojpeg", marks=pytest.mark.skipif(not works("turbojpeg"), reason="no libturbojpeg here")
)
LIBJPEG = pytest.param(
    "libjpeg", marks=pytest.mark.skipif(not works("libjpeg"), reason="no libjpeg-turbo here")
)
BACKENDS = ["cv2", "pillow", TURBOJPEG, LIBJPEG]


def smooth_image(h=90, w=160):
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 / w, y * 255 / h, 128 + 100 * np.sin(x / 25)], -1).astype(np.uint8)


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def make_sample(paths=(), root="", training=True, **changes):
    values = dict(
        sample_idx=0,
        sample_token="token",
        scene_name="scene",
        scene_token="s",
        lidar_token="l",
        data_root=str(root),
        img_paths=[str(p) for p in paths],
        img_timestamps=np.zeros(len(paths), dtype=np.int64),
        ego2img=np.tile(np.eye(4), (len(paths), 1, 1)),
        pc_range=(-4.0, -4.0, -1.0, 4.0, 4.0, 1.0),
        voxel_size=(0.4, 0.4, 0.4),
        class_names=("car", "bus"),
        rng=np.random.default_rng(0) if training else None,
    )
    return OccSample(**{**values, **changes})


def forget_decoders():
    for cached in (decode._decoder, decode.fastest_backend, decode.notice_slow_backend):
        cached.cache_clear()


class TestReadImage:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_reads_bgr(self, tmp_path, backend):
        image = np.zeros((32, 48, 3), dtype=np.uint8)
        image[..., 0] = 250  # red
        (tmp_path / "a.jpg").write_bytes(jpeg(image))
        got = read_image(str(tmp_path / "a.jpg"), backend)
        assert got.shape == (32, 48, 3) and got.dtype == np.uint8
        assert got[..., 2].min() > 240 and got[..., :2].max() < 15

    @pytest.mark.parametrize("subsampling", [0, 2])
    def test_backends_agree(self, tmp_path, subsampling):
        (tmp_path / "a.jpg").write_bytes(jpeg(smooth_image(), subsampling=subsampling))
        expected = read_image(str(tmp_path / "a.jpg"), "cv2").astype(int)
        for backend in filter(works, ("pillow", "turbojpeg", "libjpeg")):
            got = read_image(str(tmp_path / "a.jpg"), backend)
            assert np.abs(got - expected).max() <= 1

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("reduction", [2, 4, 8])
    def test_reduced_decoding_is_the_scene_at_smaller_size(self, tmp_path, backend, reduction):
        (tmp_path / "a.jpg").write_bytes(jpeg(smooth_image(91, 160)))
        got = read_image(str(tmp_path / "a.jpg"), backend, reduction)
        h, w = -(-91 // reduction), 160 // reduction
        assert got.shape == (h, w, 3)
        boxed = smooth_image(91, 160)[: h // 2 * reduction, :, ::-1].astype(float)
        boxed = boxed.reshape(h // 2, reduction, w, reduction, 3).mean((1, 3))
        assert np.abs(got[: h // 2] - boxed).mean() < 4

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("reduction", [1, 2, 4])
    @pytest.mark.parametrize("kind", ["jpeg", "progressive", "grey", "png", "damaged"])
    def test_part_is_a_part_of_the_whole(self, tmp_path, backend, reduction, kind):
        options = dict(progressive=True) if kind == "progressive" else {}
        image = smooth_image(190, 260)
        data = bytearray(jpeg(image[..., 0] if kind == "grey" else image, **options))
        if kind == "damaged":
            data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        path = str(tmp_path / "a")
        (tmp_path / "a").write_bytes(data)
        if kind == "png":
            Image.fromarray(image).save(path, "PNG")
        try:
            whole = read_image(path, backend, reduction)
        except BadDataError:  # Pillow refuses what others make up for
            with pytest.raises(BadDataError):
                decode_image_part(read_image_file(path), path, (9, 30), (5, 40), backend, reduction)
            return
        for rows, columns in (((9, 30), (5, 40)), ((0, 190), (0, 260)), ((47, 48), (64, 65))):
            part, (row, column) = decode_image_part(
                read_image_file(path), path, rows, columns, backend, reduction
            )
            h, w = part.shape[:2]
            assert row <= rows[0] and row + h >= min(rows[1], whole.shape[0])
            assert column <= columns[0] and column + w >= min(columns[1], whole.shape[1])
            first, last = columns[0] - column, columns[1] - column
            expected = whole[row : row + h, column : column + w]
            np.testing.assert_array_equal(part[:, first:last], expected[:, first:last])

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("kept", [0.99, 0.5, 0.1])
    def test_truncated_jpeg(self, tmp_path, backend, kept):
        data = jpeg(smooth_image())
        (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(BadDataError, match=r"cut\.jpg is truncated .*original archive"):
            read_image(str(tmp_path / "cut.jpg"), backend)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(
        "content", [b"", b"hello" * 100, b"\xff\xd8" + b"x" * 50 + b"\xff\xd9"]
    )
    def test_no_image(self, tmp_path, backend, content):
        (tmp_path / "no.jpg").write_bytes(content)
        with pytest.raises(BadDataError, match=r"no\.jpg cannot be decoded .*original archive"):
            read_image(str(tmp_path / "no.jpg"), backend)

    def test_padding_after_the_end_is_no_truncation(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(jpeg(smooth_image()) + bytes(100))
        assert read_image(str(tmp_path / "a.jpg")).shape == (90, 160, 3)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_truncated_png(self, tmp_path, backend):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
            buffer, "PNG"
        )
        (tmp_path / "a.png").write_bytes(buffer.getvalue()[:40])
        with pytest.raises(BadDataError, match=r"a\.png cannot be decoded"):
            read_image(str(tmp_path / "a.png"), backend)

    def test_missing(self, tmp_path):
        with pytest.raises(MissingDataError, match=r"none\.jpg does not exist: complete"):
            read_image(str(tmp_path / "none.jpg"))

    def test_unknown_or_unusable_backend(self, tmp_path, monkeypatch):
        (tmp_path / "a.jpg").write_bytes(jpeg(smooth_image()))
        with pytest.raises(ValueError, match="'gpu' is unknown"):
            read_image(str(tmp_path / "a.jpg"), "gpu")

        def absent():
            raise OSError("no libturbojpeg")

        monkeypatch.setattr(decode, "_turbojpeg_decoder", absent)
        forget_decoders()
        with pytest.raises(RuntimeError, match="'turbojpeg' does not work here"):
            read_image(str(tmp_path / "a.jpg"), "turbojpeg")
        monkeypatch.setattr(decode, "_cv2_decoder", absent)
        expected = read_image(str(tmp_path / "a.jpg"), "pillow")
        np.testing.assert_array_equal(read_image(str(tmp_path / "a.jpg"), "auto"), expected)
        forget_decoders()


class TestImages:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("rotate", [0.0, 6.0])
    @pytest.mark.parametrize("crop", [(8, 10, 72, 40), (-5, -6, 90, 50)])
    @pytest.mark.parametrize("resize", [0.5, 0.4])
    def test_equals_pillow(self, flip, rotate, crop, resize):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 2, (90, 160, 3), dtype=np.uint8) * 255
        params = ImageAugParams(resize, (int(160 * resize), int(90 * resize)), crop, flip, rotate)
        exact = apply_image_aug(image, params).astype(int)
        out = np.full(exact.shape, 7, dtype=np.uint8)
        augment_image(image, params, out)
        np.testing.assert_array_equal(out, exact)

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("rotate", [0.0, 6.0])
    @pytest.mark.parametrize("crop", [(8, 10, 72, 40), (-5, -6, 90, 50)])
    @pytest.mark.parametrize("resize", [0.5, 0.4])
    def test_fast_mode_is_close_to_exact(self, flip, rotate, crop, resize):
        image = smooth_image()
        params = ImageAugParams(resize, (int(160 * resize), int(90 * resize)), crop, flip, rotate)
        exact = apply_image_aug(image, params).astype(float)
        for source in (image, image[::2, ::2]):
            out = np.full(exact.shape, 7, dtype=np.uint8)
            augment_image(source, params, out, method="linear", is_smooth=True)
            assert np.abs(out - exact).mean() < 6
            # Black borders are where they should be.
            assert ((out.max(-1) == 0) != (exact.max(-1) == 0)).mean() < 0.03

    def test_reduction_fits_the_target(self):
        # All of the published training range comes from the half-size decode.
        assert {choose_reduction(r) for r in (0.38, 0.44, 0.55)} == {2}
        assert [choose_reduction(r) for r in (1.5, 0.64, 0.25, 0.1)] == [1, 1, 4, 8]

    def test_one_draw_for_all_images_and_matrix_into_ego2img(self, tmp_path):
        for i in range(3):
            (tmp_path / f"{i}.jpg").write_bytes(jpeg(smooth_image()))
        sample = make_sample([tmp_path / f"{i}.jpg" for i in range(3)])
        DrawImageAug((90, 160), (32, 96), (0.6, 0.8))(sample)
        LoadMultiViewImages((90, 160))(sample)
        assert sample.images.shape == (3, 32, 96, 3)
        np.testing.assert_array_equal(sample.images[0], sample.images[2])
        assert np.ptp(sample.ego2img, axis=0).max() == 0
        assert sample.ego2img[0, 0, 0] == pytest.approx(
            sample.image_aug.resize * (-1 if sample.image_aug.flip else 1)
        )

    def test_test_mode_does_not_draw(self, tmp_path):
        aug = DrawImageAug((90, 160), (32, 96), (0.6, 0.8), rotate_range_deg=(-5, 5))
        params = {aug(make_sample([], training=False)).image_aug for _ in range(3)}
        assert params == {ImageAugParams(0.6, (96, 54), (0, 22, 96, 54))}

    def test_repeated_frames_are_read_once(self, tmp_path, monkeypatch):
        (tmp_path / "a.jpg").write_bytes(jpeg(smooth_image()))
        reads = []
        monkeypatch.setattr(
            "loaders.transforms.images.read_image_file",
            lambda path: reads.append(path) or decode.read_image_file(path),
        )
        sample = make_sample([tmp_path / "a.jpg"] * 4)
        LoadMultiViewImages((90, 160))(DrawImageAug((90, 160), (32, 96))(sample))
        assert len(reads) == 1
        assert (sample.images == sample.images[0]).all()

    @pytest.mark.parametrize("mode", ["exact", "fast"])
    def test_cache_gives_the_same_images(self, tmp_path, mode):
        paths = [tmp_path / f"{i}.jpg" for i in range(2)]
        for i, path in enumerate(paths):
            path.write_bytes(jpeg(np.roll(smooth_image(), 20 * i, axis=1)))
        draw = DrawImageAug((90, 160), (32, 96), (0.3, 1.0), rotate_range_deg=(-3, 3))
        cached, plain = (LoadMultiViewImages((90, 160), mode, image_cache_mb=mb) for mb in (8, 0))
        for seed in range(6):
            got, expected = (
                load(draw(make_sample(paths, rng=np.random.default_rng(seed)))).images
                for load in (cached, plain)
            )
            np.testing.assert_array_equal(got, expected)
        for path in paths:
            path.unlink()
        cached(draw(make_sample(paths, rng=np.random.default_rng(5))))  # from memory

    @pytest.mark.parametrize("mode", ["exact", "fast"])
    def test_evaluation_keeps_finished_images(self, tmp_path, mode):
        paths = [tmp_path / f"{i}.jpg" for i in range(4)]
        for i, path in enumerate(paths):
            path.write_bytes(jpeg(np.roll(smooth_image(), 20 * i, axis=1)))
        draw = DrawImageAug((90, 160), (32, 96))
        # Three of 32 x 96 pixels fit, not one of 90 x 160.
        cached = LoadMultiViewImages((90, 160), mode, image_cache_mb=3.5 * 32 * 96 * 3 / 2**20)
        plain = LoadMultiViewImages((90, 160), mode)
        window = [cached(draw(make_sample(paths[i : i + 3], training=False))) for i in range(2)]
        for i, sample in enumerate(window):
            expected = plain(draw(make_sample(paths[i : i + 3], training=False))).images
            np.testing.assert_array_equal(sample.images, expected)
            sample.images[:] = 0  # must not reach the cache
        for path in paths:
            path.unlink()
        again = cached(draw(make_sample(paths[1:], training=False))).images
        np.testing.assert_array_equal(again, expected)
        with pytest.raises(MissingDataError):
            cached(draw(make_sample(paths[:1], training=False)))

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("rotate", [0.0, 4.0])
    def test_one_pass_is_close_to_two(self, tmp_path, training, rotate):
        """The native operation of 'auto' against a library that decodes and a resize."""
        path = tmp_path / "a.jpg"
        path.write_bytes(jpeg(smooth_image(), subsampling=2))
        draw = DrawImageAug((90, 160), (32, 72), (0.46, 0.5), rotate_range_deg=(-rotate, rotate))
        for seed in range(4):
            rng = np.random.default_rng(seed) if training else None
            sample = draw(make_sample([path], rng=rng))
            params = sample.image_aug
            one, two = (
                LoadMultiViewImages((90, 160), "fast", backend)(sample).images[0].astype(int)
                for backend in ("auto", "cv2")
            )
            finished = LoadMultiViewImages((90, 160), "fast").finish(path.read_bytes(), params, "a")
            np.testing.assert_array_equal(one, finished)
            assert np.abs(one - two).mean() < 3 and one.std() > 10

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("crop", [(-5, 20), (20, -9), (30, 12), (-4, -8)])
    def test_one_pass_is_black_outside_the_image(self, crop, flip):
        """A crop of 40 x 70 pixels of 45 x 80 is that of the image with black around it."""
        data, sizes = jpeg(smooth_image(), subsampling=2), ((90, 160), 0, (45, 80))
        whole, out = np.zeros((45, 80, 3), np.uint8), np.full((40, 70, 3), 255, np.uint8)
        assert decode.decode_crop(data, "a", whole, *sizes, (0, 0), False, "linear", 2)
        assert decode.decode_crop(data, "a", out, *sizes, crop, flip, "linear", 2)
        around = np.pad(whole, ((50, 50), (80, 80), (0, 0)))
        rows, columns = 50 + crop[0], 80 + crop[1]
        expected = around[rows : rows + 40, columns : columns + 70]
        np.testing.assert_array_equal(out, expected[:, ::-1] if flip else expected)
        assert (out == 0).all(axis=2).any() and (out > 0).any()

    def test_one_pass_of_nothing_is_refused(self):
        data, out = jpeg(smooth_image()), np.zeros((8, 8, 3), np.uint8)
        for crop in ((45, 0), (0, 80), (-8, 0), (0, -8)):
            args = (data, "a", out, (90, 160), 0, (45, 80), crop, False, "linear", 2)
            assert not decode.decode_crop(*args)

    def test_one_pass_checks_the_size(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(jpeg(smooth_image()))
        sample = make_sample([tmp_path / "a.jpg"])
        DrawImageAug((100, 160), (32, 72), (0.46, 0.5))(sample)
        with pytest.raises(WrongShapeError, match="has 90 x 160 pixels, expected 100 x 160"):
            LoadMultiViewImages((100, 160), "fast")(sample)

    def test_cache_sizes_of_training_and_evaluation(self, tmp_path):
        path = tmp_path / "a.jpg"
        draw = DrawImageAug((90, 160), (32, 96))

        def is_kept(training, **sizes):
            path.write_bytes(jpeg(smooth_image()))
            load = LoadMultiViewImages((90, 160), **sizes)
            load(draw(make_sample([path], training=training)))
            path.unlink()
            try:
                load(draw(make_sample([path], training=training)))
            except MissingDataError:
                return False
            return True

        sizes = dict(image_cache_mb=1, test_cache_mb=0)
        assert [is_kept(training, **sizes) for training in (True, False)] == [True, False]
        sizes = dict(image_cache_mb=0, test_cache_mb=1)
        assert [is_kept(training, **sizes) for training in (True, False)] == [False, True]
        sizes = dict(image_cache_mb=1, test_cache_mb=None)
        assert [is_kept(training, **sizes) for training in (True, False)] == [True, True]

    def test_slow_decoder_is_noticed_once(self, monkeypatch, caplog):
        def absent():
            raise OSError("no libturbojpeg")

        logger = MMLogger.get_instance("decode-test", log_level="INFO")
        logger.addHandler(caplog.handler)
        forget_decoders()
        for name in ("_libjpeg_decoder", "_turbojpeg_decoder"):
            monkeypatch.setattr(decode, name, absent)
        for _ in range(3):
            LoadMultiViewImages((90, 160))
        assert caplog.text.count("decoded with cv2: for faster loading install libjpeg") == 1
        LoadMultiViewImages((90, 160), backend="pillow")
        assert "pillow" not in caplog.text
        forget_decoders()

    def test_misuse(self):
        with pytest.raises(ValueError, match="mode is 'slow'"):
            LoadMultiViewImages((90, 160), image_mode="slow")
        with pytest.raises(ValueError, match="needs DrawImageAug"):
            LoadMultiViewImages((90, 160))(make_sample())
        with pytest.raises(ValueError, match="needs LoadMultiViewImages"):
            PackOccSample()(make_sample())
        with pytest.raises(ValueError, match="resize_range"):
            DrawImageAug((90, 160), (32, 96), (0.8, 0.6))


class TestCache:
    def test_is_bounded_and_forgets_the_oldest(self):
        cache = ArrayCache(max_mb=3)
        made = []

        def get(key):
            return cache.get(key, lambda: made.append(key) or [np.full(2**20, key, np.uint8)])

        for key in (1, 2, 3, 1, 4, 1, 3, 2):
            assert get(key)[0][0] == key
            assert cache.used <= 3 * 2**20
        assert made == [1, 2, 3, 4, 2]

    def test_too_large_or_switched_off(self):
        for cache in (ArrayCache(0), ArrayCache(0.5)):
            for _ in range(2):
                cache.get("a", lambda: [np.zeros(2**20, np.uint8)])
            assert cache.used == 0

    @pytest.mark.parametrize("size", [-1, float("inf"), float("nan"), "much"])
    def test_sizes_that_cannot_be(self, size):
        with pytest.raises(LoaderConfigError, match="the size of a cache is"):
            LoadOcc3DLabels(label_cache_mb=size)


GRID = (20, 20, 5)


def write_labels(path, **changes):
    rng = np.random.default_rng(0)
    arrays = dict(
        semantics=rng.integers(0, 3, GRID, dtype=np.uint8),
        mask_camera=rng.integers(0, 2, GRID, dtype=np.uint8),
        mask_lidar=rng.integers(0, 2, GRID, dtype=np.uint8),
    )
    arrays.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


class TestLabels:
    def test_reads_and_caches(self, tmp_path):
        path = tmp_path / "gts" / "scene" / "token" / "labels.npz"
        arrays = write_labels(path)
        load = LoadOcc3DLabels(label_cache_mb=1)
        first = load(make_sample(root=tmp_path))
        np.testing.assert_array_equal(first.voxel_semantics, arrays["semantics"])
        assert first.mask_camera.dtype == bool
        np.testing.assert_array_equal(first.mask_camera, arrays["mask_camera"])
        np.testing.assert_array_equal(first.mask_lidar, arrays["mask_lidar"])
        first.voxel_semantics[:] = 9
        path.unlink()
        again = load(make_sample(root=tmp_path))
        np.testing.assert_array_equal(again.voxel_semantics, arrays["semantics"])

    def test_missing_file(self, tmp_path):
        with pytest.raises(MissingDataError, match=r"token/labels\.npz does not exist: extract"):
            LoadOcc3DLabels()(make_sample(root=tmp_path))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(mask_camera=None), "has no 'mask_camera'"),
            (
                dict(semantics=np.zeros((20, 20, 4), np.uint8)),
                r"'semantics' has shape \(20, 20, 4\), but .* make \(20, 20, 5\)",
            ),
            (dict(mask_lidar=np.zeros((5, 20, 20), np.uint8)), "'mask_lidar' has shape"),
            (dict(mask_lidar=np.zeros((40, 40, 10), np.uint8)), "'mask_lidar' has shape"),
            (dict(semantics=np.zeros((40, 40, 9), np.uint8)), "'semantics' has shape"),
            (dict(semantics=np.full(GRID, 3, np.uint8)), "has class 3, but .* 0 to 2"),
            (dict(semantics=np.full(GRID, -1, np.int8)), "has class -1"),
            (dict(semantics=np.zeros(GRID)), "is float64, not integer"),
        ],
    )
    def test_wrong_content(self, tmp_path, changes, message):
        write_labels(tmp_path / "labels.npz", **changes)
        with pytest.raises(BadDataError, match=rf"labels\.npz.*{message}"):
            read_occ3d_labels(str(tmp_path / "labels.npz"), GRID, 3)

    @pytest.mark.parametrize("cropped", [False, True])
    def test_coarser_voxels_and_a_part_of_the_grid(self, tmp_path, cropped):
        rng = np.random.default_rng(1)
        fine = (40, 60, 10)
        semantics = np.where(rng.random(fine) < 0.4, rng.integers(0, 2, fine), 2).astype(np.uint8)
        masks = {f"mask_{name}": rng.random(fine) < 0.2 for name in ("camera", "lidar")}
        write_labels(tmp_path / "gts/scene/token/labels.npz", semantics=semantics, **masks)
        # Files of 0.2 x 0.2 x 0.2 m in a range of 8 x 12 x 2 m, wanted at 0.4 x 0.6 x 0.4 m.
        label_range, voxel = (-4.0, -6.0, -1.0, 4.0, 6.0, 1.0), (0.4, 0.6, 0.4)
        part = (-2.0, -6.0, -0.6, 3.2, 0.0, 1.0) if cropped else label_range
        sample = make_sample(root=tmp_path, pc_range=part, voxel_size=voxel)
        sample = LoadOcc3DLabels(label_range=label_range if cropped else None)(sample)
        shape = (13, 10, 4) if cropped else (20, 20, 5)
        start = np.array([10, 0, 2] if cropped else [0, 0, 0])
        assert sample.voxel_semantics.shape == sample.grid_shape == shape
        for index in np.ndindex(shape):
            low = start + np.array(index) * (2, 3, 2)
            block = tuple(slice(a, a + f) for a, f in zip(low, (2, 3, 2), strict=True))
            votes = np.bincount(semantics[block][semantics[block] < 2], minlength=2)
            expected = votes.argmax() if votes.any() else 2
            assert sample.voxel_semantics[index] == expected
            assert sample.mask_camera[index] == masks["mask_camera"][block].any()
            assert sample.mask_lidar[index] == masks["mask_lidar"][block].any()

    @pytest.mark.parametrize("kept", [0, 10, 200, -30])
    def test_truncated(self, tmp_path, kept):
        path = tmp_path / "labels.npz"
        write_labels(path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(BadDataError, match=r"labels\.npz is broken: extract"):
            read_occ3d_labels(str(path), GRID, 3)

    def test_corrupt_in_the_middle(self, tmp_path):
        path = tmp_path / "labels.npz"
        write_labels(path)
        data = bytearray(path.read_bytes())
        data[200:260] = bytes(60)
        path.write_bytes(data)
        with pytest.raises(BadDataError, match=r"labels\.npz is broken"):
            read_occ3d_labels(str(path), GRID, 3)

    def test_objects_are_not_unpickled(self, tmp_path):
        write_labels(tmp_path / "labels.npz", semantics=np.array([{}], dtype=object))
        with pytest.raises(BadDataError, match="is broken"):
            read_occ3d_labels(str(tmp_path / "labels.npz"), GRID, 3)


class TestFlip:
    def test_not_in_test_mode(self):
        sample = make_sample(training=False, voxel_semantics=np.arange(8).reshape(2, 2, 2))
        flipped = RandomFlipBEV((1.0, 1.0))(sample)
        np.testing.assert_array_equal(flipped.voxel_semantics, np.arange(8).reshape(2, 2, 2))
        np.testing.assert_array_equal(flipped.ego2occ, np.eye(4))

    def test_probabilities(self):
        sample = RandomFlipBEV((1.0, 0.0))(make_sample())
        np.testing.assert_array_equal(np.diag(sample.ego2occ), [-1, 1, 1, 1])
        sample = RandomFlipBEV((0.0, 1.0))(make_sample())
        np.testing.assert_array_equal(np.diag(sample.ego2occ), [1, -1, 1, 1])

    def test_one_probability_for_both_axes(self):
        np.testing.assert_array_equal(
            np.diag(RandomFlipBEV(1.0)(make_sample()).ego2occ), [-1, -1, 1, 1]
        )

    def test_draws_nothing_if_both_are_zero(self):
        sample, untouched = make_sample(), make_sample()
        RandomFlipBEV(0.0)(sample)
        assert sample.rng.uniform() == untouched.rng.uniform()
        np.testing.assert_array_equal(sample.ego2occ, np.eye(4))

    @pytest.mark.parametrize("value", [1.5, (0.5, -0.1), (0.5, 0.5, 0.5), "often", None])
    def test_probabilities_out_of_range(self, value):
        with pytest.raises(LoaderConfigError, match="bev_flip_prob is"):
            RandomFlipBEV(value)


def test_turbojpeg_hands_doubtful_files_to_the_other_decoder(tmp_path, monkeypatch):
    """A fake library warns where the real one returns grey or nothing."""
    calls = []

    class TurboJPEG:
        def decode(self, data, pixel_format, scaling_factor):
            calls.append((pixel_format, scaling_factor))
            if b"odd" in data:
                warnings.warn("extraneous bytes", UserWarning, stacklevel=1)
            return np.full((2, 2, 3), 5, dtype=np.uint8)

    module = types.SimpleNamespace(TurboJPEG=TurboJPEG, TJPF_BGR=1)
    monkeypatch.setitem(sys.modules, "turbojpeg", module)
    forget_decoders()
    good, odd, png = (tmp_path / name for name in ("good.jpg", "odd.jpg", "a.png"))
    good.write_bytes(jpeg(smooth_image()))
    odd.write_bytes(jpeg(smooth_image(), comment=b"odd"))
    Image.fromarray(smooth_image()).save(png)
    assert read_image(str(good), "turbojpeg", 2).shape == (2, 2, 3)
    assert calls == [(1, (1, 2))]
    assert read_image(str(odd), "turbojpeg").shape == (90, 160, 3)
    assert read_image(str(png), "turbojpeg").shape == (90, 160, 3)
    assert len(calls) == 2
    odd.write_bytes(b"\xff\xd8odd\xff\xd9")
    with pytest.raises(BadDataError, match="cannot be decoded"):
        read_image(str(odd), "turbojpeg")
    forget_decoders()
