"""Bad files are rejected in one sentence, in bounded time and memory, before they are read."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loaders.errors import BadDataError, MissingDataError, WrongShapeError
from loaders.info_io import load_infos
from loaders.lidar.points import read_lidar_points
from loaders.predictions import load_prediction
from loaders.safe_reading import MIB, FileKind, limited_memory, open_arrays, read_file
from loaders.transforms.decode import read_image
from loaders.transforms.labels import read_occ3d_labels
from loaders.transforms.occupancy_labels import read_occupancy_rows
from models.errors import UserError
from scripts.runtime.checkpoint import read_checkpoint
from scripts.sweep_infos.json_stream import iter_records

ROOT = Path(__file__).resolve().parents[2]
GRID = (4, 4, 2)
KIND = FileKind("test file", "make it", "make it again", max_bytes=MIB)
READERS = {
    "image": read_image,
    "Occ3D labels": lambda path: read_occ3d_labels(path, GRID, 3),
    "OpenOccupancy labels": lambda path: read_occupancy_rows(path, GRID, 3),
    "LiDAR": read_lidar_points,
    "infos": load_infos,
    "prediction": lambda path: load_prediction(path, GRID, 2),
    "checkpoint": read_checkpoint,
    "table": lambda path: list(iter_records(Path(path), keys=("token",))),
}


def refused(name, path):
    """Return the sentence with which a reader rejects a file."""
    with pytest.raises(UserError) as caught:
        READERS[name](str(path))
    sentence = str(caught.value)
    assert str(path) in sentence and ": " in sentence and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", READERS)
class TestNoRegularFile:
    def test_missing(self, tmp_path, name):
        assert "does not exist" in refused(name, tmp_path / "none")

    def test_parent_is_a_file(self, tmp_path, name):
        (tmp_path / "a").write_bytes(b"")
        assert "does not exist" in refused(name, tmp_path / "a" / "b")

    def test_folder(self, tmp_path, name):
        sentence = refused(name, tmp_path)
        assert sentence.count("is a folder") == sentence.count(str(tmp_path)) == 1

    def test_named_pipe_is_not_waited_for(self, tmp_path, name):
        os.mkfifo(tmp_path / "pipe")
        start = time.monotonic()
        assert "pipe, socket or device" in refused(name, tmp_path / "pipe")
        assert time.monotonic() - start < 5

    def test_device(self, name):
        assert "pipe, socket or device" in refused(name, "/dev/zero")

    def test_empty(self, tmp_path, name):
        (tmp_path / "a").write_bytes(b"")
        refused(name, tmp_path / "a")

    def test_loop_of_links(self, tmp_path, name):
        os.symlink("a", tmp_path / "a")
        assert "cannot be read" in refused(name, tmp_path / "a")


def test_null_character_in_a_name():
    with pytest.raises(BadDataError, match="cannot be read"):
        read_file("a\0b", KIND)


def test_large_file_is_refused_unread(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 40)  # holds nothing on disk
    with pytest.raises(BadDataError, match=r"is not read \(1048576 MiB, the limit .* is 1\)"):
        read_file(tmp_path / "a", KIND)
    for name in ("image", "Occ3D labels", "OpenOccupancy labels", "LiDAR", "infos", "prediction"):
        assert "is not read" in refused(name, tmp_path / "a")


# ---------------------------------------------------------------- arrays


def test_arrays_are_those_of_numpy(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.random((3, 4)).astype(">f4"),
        "b": np.asfortranarray(rng.integers(0, 9, (2, 3, 4), np.int16)),
        "c": np.array(7),
        "d": np.zeros((0, 3), np.uint8),
        "e": rng.random(5) < 0.5,
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        with open_arrays(tmp_path / "a.npz", KIND, MIB) as file:
            assert file.names == tuple(arrays) and "z" not in file
            for name, array in arrays.items():
                assert file.header(name)[:2] == (array.shape, array.dtype)
                np.testing.assert_array_equal(file.read(name), array)
                assert file.read(name).flags.writeable
    for array in arrays.values():
        np.save(tmp_path / "a.npy", array)
        with open_arrays(tmp_path / "a.npy", KIND, MIB) as file:
            np.testing.assert_array_equal(file.read(""), array)


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


BROKEN_HEADERS = {
    "cut inside the shape": "{'descr': '<i4', 'fortran_order': False, 'shape': (5, 4, ",
    "unclosed text": "{'descr': '<i4",
    "no dict": "5",
    "negative": "{'descr': '<i4', 'fortran_order': False, 'shape': (-1, 4), }",
    "huge": "{'descr': '<i4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "huge product": f"{{'descr': '<i4', 'fortran_order': False, 'shape': {(2**40,) * 30}, }}",
    "truth as a number": "{'descr': '<i4', 'fortran_order': False, 'shape': (True, 4.0), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (0, 4), }",
    "no type": "{'descr': 'nonsense', 'fortran_order': False, 'shape': (0, 4), }",
    "call": "{'descr': print(1), 'fortran_order': False, 'shape': (0, 4), }",
    "deep": "(" * 3000,
    "long": " " * 60_000,
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", BROKEN_HEADERS)
def test_broken_header_of_an_array(tmp_path, name, version):
    data = npy(BROKEN_HEADERS[name], version=version)
    (tmp_path / "a.npy").write_bytes(data)
    assert "is broken" in refused("OpenOccupancy labels", tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("semantics.npy", data)
    assert "is broken" in refused("Occ3D labels", tmp_path / "a.npz")
    assert "is broken" in refused("prediction", tmp_path / "a.npz")


def archive(path: Path, change=lambda data: data, **options) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        stored = io.BytesIO()
        np.save(stored, np.zeros(GRID, np.uint8))
        for name in ("semantics", "mask_camera", "mask_lidar"):
            file.writestr(f"{name}.npy", stored.getvalue())
    path.write_bytes(change(buffer.getvalue()))
    return path


def test_broken_archives(tmp_path):
    path = tmp_path / "labels.npz"
    archive(path, compression=zipfile.ZIP_DEFLATED)
    assert read_occ3d_labels(str(path), GRID, 3)[0].shape == GRID
    start = archive(path).read_bytes().index(b"\x93NUMPY")

    def damaged(data):  # the sum no longer fits
        return data[: start + 130] + b"\x01" + data[start + 131 :]

    for broken in (
        archive(path, damaged),
        archive(path, compression=zipfile.ZIP_BZIP2),
        archive(path, compression=zipfile.ZIP_LZMA),
        archive(path, lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03")),
        # Encrypted, by the flag in the directory.
        archive(
            path,
            lambda d: d.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"),
        ),
        archive(path, lambda data: data[:-22] + data[-22:-10] + b"\xff" * 4 + data[-6:]),
    ):
        assert "is broken" in refused("Occ3D labels", broken)


def test_a_bool_array_of_other_bytes_is_counted_right(tmp_path):
    data = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (4,), }", b"\0\1\2\xff")
    (tmp_path / "a.npy").write_bytes(data)
    with open_arrays(tmp_path / "a.npy", KIND, MIB) as file:
        assert np.count_nonzero(file.read("")) == 3


# ---------------------------------------------------------------- memory


HOSTILE_PICKLES = {
    "memo": bytes.fromhex("80037d72ffffff0f2e"),
    "memo as text": b"(dp268435455\n.",
    "frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x0fN.",
    "long text": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"a.",
    "long bytes": b"\x80\x04B\xff\xff\xff\x7fa.",
    "byte array": b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b"a.",
    "call of bytearray": b"\x80\x04cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "call of ndarray": b"\x80\x04cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",
    "sets": b"\x80\x04(" + b"\x8f" * 1_000_000 + b"t.",
    "one text many times": b"\x80\x04c_codecs\nencode\n\x94X\x40\x42\x0f\0" + b"a" * 1_000_000
    + b"\x94" + b"h\x00h\x01\x85R" * 3000 + b"\x85.",
}  # fmt: skip


def bomb(path: Path, shape: tuple[int, ...], name: str) -> None:
    """Write an archive of one array of zeros."""
    header = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open(f"{name}.npy", "w") as member:
            member.write(header)
            for _ in range(int(np.prod(shape)) >> 24):
                member.write(bytes(1 << 24))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def many_members(path: Path) -> None:
    """Write a directory of 100,000 members that take a kilobyte each when read."""
    name = b"a.npy"
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name
    directory = entry * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    path.write_bytes(directory + end)


def large_jpeg() -> bytes:
    """Write a JPEG with the size 20000 x 20000 in its header."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "JPEG")
    size = struct.pack(">HH", 48, 64)
    assert buffer.getvalue().count(size) == 1
    return buffer.getvalue().replace(size, struct.pack(">HH", 20_000, 20_000))


def hostile_files(folder: Path) -> dict[str, tuple[str, Path]]:
    """Return reader and file of every case."""
    cases = {}
    for name, data in HOSTILE_PICKLES.items():
        (folder / f"{name}.pkl").write_bytes(data)
        cases[f"pickle: {name}"] = "infos", folder / f"{name}.pkl"
    bomb(folder / "labels.npz", (1024, 1024, 256), "semantics")
    cases["labels"] = "Occ3D labels", folder / "labels.npz"
    bomb(folder / "prediction.npz", (1024, 1024, 256), "arr_0")
    cases["prediction"] = "prediction", folder / "prediction.npz"
    many_members(folder / "members.npz")
    cases["members"] = "prediction", folder / "members.npz"
    rows = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (268435456, 4), }")
    with open(folder / "rows.npy", "wb") as file:
        file.write(rows)
        file.truncate(len(rows) + (1 << 30))
    cases["rows"] = "OpenOccupancy labels", folder / "rows.npy"
    (folder / "large.png").write_bytes(png_header(60_000, 60_000))
    cases["PNG"] = "image", folder / "large.png"
    (folder / "large.jpg").write_bytes(large_jpeg())
    cases["JPEG"] = "image", folder / "large.jpg"
    torch.save({"state_dict": {"a": torch.zeros(1 << 22)}}, folder / "plain.pth")
    with zipfile.ZipFile(folder / "plain.pth") as plain:
        with zipfile.ZipFile(
            folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as packed:
            for member in plain.infolist():
                packed.writestr(member.filename, plain.read(member))
    cases["checkpoint"] = "checkpoint", folder / "bomb.pth"
    (folder / "a.json").write_text("[" + "{}," * 4_000_000 + "{}]")
    cases["table of many records"] = "table", folder / "a.json"
    (folder / "b.json").write_text('[{"token": [' + "[]," * 5_000_000 + "[]]}]")
    cases["table of a long record"] = "table", folder / "b.json"
    for name in ("memo", "sets", "frame"):
        cases[f"checkpoint: {name}"] = "checkpoint", folder / f"{name}.pkl"
    return cases


MEASURE = """
    import json, resource, sys, time
    sys.path.insert(0, sys.argv[1])
    from tests.loaders.test_safe_reading import READERS, UserError

    reports = {}
    for name, (reader, path) in json.loads(sys.argv[2]).items():
        # Peak of this process, set back before every case.
        open("/proc/self/clear_refs", "w").write("5")
        status = lambda key: int(open("/proc/self/status").read().split(key)[1].split()[0]) / 1024
        before, start = status("VmRSS:"), time.monotonic()
        try:
            READERS[reader](path)
            sentence = None
        except UserError as error:
            sentence = str(error)
        reports[name] = sentence, status("VmHWM:") - before, time.monotonic() - start
    print(json.dumps(reports))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures with /proc")
def test_refused_files_take_little_memory_and_time(tmp_path):
    cases = {name: (kind, str(path)) for name, (kind, path) in hostile_files(tmp_path).items()}
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(ROOT), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    assert set(reports) == set(cases)
    for name, (sentence, megabytes, seconds) in reports.items():
        assert sentence is not None, name
        assert cases[name][1] in sentence and "\n" not in sentence
        assert megabytes < 200, (name, megabytes)
        assert seconds < 20, (name, seconds)


def test_limited_memory_holds_in_the_block_alone():
    with pytest.raises(MemoryError), limited_memory(64 * MIB):
        bytearray(256 * MIB)
    with limited_memory(64 * MIB):
        assert len(bytearray(16 * MIB)) == 16 * MIB
    assert len(bytearray(256 * MIB)) == 256 * MIB


def test_a_large_info_file_is_read_under_its_limit(tmp_path):
    infos = [{"a": np.zeros(3), "b": [float(i)], "c": {"d": str(i)}} for i in range(50_000)]
    (tmp_path / "i.pkl").write_bytes(pickle.dumps(infos))
    from loaders.info_io import load_pickle

    assert len(load_pickle(tmp_path / "i.pkl")) == len(infos)


# ---------------------------------------------------------------- images


def save_image(path: Path, h: int, w: int, kind: str) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    image = np.stack([x * 255 / w, y * 255 / h, np.full((h, w), 90)], -1).astype(np.uint8)
    Image.fromarray(image).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("backend", ["cv2", "pillow", "auto"])
def test_odd_sizes_of_every_format(tmp_path, kind, backend):
    for h, w in ((33, 61), (32, 61), (33, 64), (7, 9), (1, 1)):
        image = save_image(tmp_path / "a", h, w, kind)[:, :, ::-1].astype(float)
        for reduction in (1, 2, 4, 8):
            got = read_image(str(tmp_path / "a"), backend, reduction, (h, w))
            assert got.shape == (-(-h // reduction), -(-w // reduction), 3)
            if kind != "JPEG" or reduction == 1:  # a JPEG's last blocks reach beyond its edges
                assert np.abs(got.mean((0, 1)) - image.mean((0, 1))).max() < 12


def test_image_of_another_size_is_not_decoded(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", 33, 61, "PNG")
    from loaders.transforms import decode

    monkeypatch.setattr(decode, "_decoder", lambda backend: None)
    with pytest.raises(WrongShapeError, match=r"has 33 x 61 pixels, expected 34 x 61: set raw_hw"):
        read_image(str(tmp_path / "a.png"), raw_hw=(34, 61))


def test_jpeg_of_endless_scans(tmp_path):
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "JPEG", progressive=True)
    data = image.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + scan * 5000 + data[-2:])
    assert "cannot be decoded" in refused("image", tmp_path / "a.jpg")


# ---------------------------------------------------------------- checkpoints and tables


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {1: torch.zeros(1)}}, "is not a dict of named tensors"),
        ({"state_dict": {"a": [1]}}, "is not a dict of named tensors"),
        ({"state_dict": {"a": torch.zeros(1)}, "meta": 5}, "'meta' .* is not a dict"),
        ({5: torch.zeros(1)}, "holds no weights"),
        ([1], "holds no weights"),
    ],
)
def test_checkpoint_of_other_content(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"{message}.*: give the \.pth file"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "text",
    ['[{"a": ' + "[" * 100_000, '[{"a": ' + "9" * 10_000 + "}]", "[{]", "\ufeff[]", "[1]", "{}"],
)
def test_table_that_nothing_can_hold(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert "original archive" in refused("table", tmp_path / "a.json")


def test_record_that_lacks_a_key(tmp_path):
    (tmp_path / "a.json").write_text('[{"token": "a"}, {"name": "b"}]')
    assert "(record 1 lacks 'token')" in refused("table", tmp_path / "a.json")


def test_missing_data_error_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(str(tmp_path / "none"))
    with pytest.raises(MissingDataError):
        read_image(str(tmp_path / "none"))
