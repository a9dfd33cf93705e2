#!/usr/bin/env python3
"""Writes tests/fixtures/images/: one small picture in many encodings (Pillow), and scaled.safetensors (Pillow's Lanczos, numpy's areas).

The picture is 24x16: r = 10 x, g = 15 y, b = 5 (x + y); grey ones are 5 (x + y). The tests know the formula. Needs Pillow, numpy,
safetensors. Run from anywhere.
"""
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "images"
W, H = 24, 16
Y, X = np.mgrid[0:H, 0:W]
RGB = np.stack([10 * X, 15 * Y, 5 * (X + Y)], -1).astype(np.uint8)
GRAY = (5 * (X + Y)).astype(np.uint8)
ALPHA = (11 * X % 256).astype(np.uint8)

# What has to be done to the upright picture so that the EXIF orientation undoes it.
UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(orientation):
    picture = Image.fromarray(RGB)
    if UNDO[orientation] is not None:
        picture = picture.transpose(UNDO[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture, exif


def png_bytes(bits, color, rows):
    """A PNG that Pillow cannot write: `rows` are the scan lines without their filter byte."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    raw = b"".join(b"\0" + row for row in rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, color, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def encodings():
    rgb = Image.fromarray(RGB)
    rgb.save(FOLDER / "rgb.png")
    rgb.save(FOLDER / "rgb.bmp")
    Image.fromarray(GRAY).save(FOLDER / "gray.png")
    Image.fromarray(np.dstack([RGB, ALPHA])).save(FOLDER / "rgba.png")
    Image.fromarray(np.dstack([GRAY, ALPHA])).save(FOLDER / "gray_alpha.png")
    (FOLDER / "rgb16.png").write_bytes(png_bytes(16, 2, [(row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in RGB]))
    (FOLDER / "gray16.png").write_bytes(png_bytes(16, 0, [(row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in GRAY]))

    columns = Image.fromarray(X.astype(np.uint8), "P")  # palette: 24 entries (10 i, 0, 255 - 10 i)
    columns.putpalette([v for i in range(W) for v in (10 * i, 0, 255 - 10 * i)])
    columns.save(FOLDER / "palette.png")
    columns.save(FOLDER / "palette_clear.png", transparency=bytes([0] * 4 + [255] * 20))

    rgb.save(FOLDER / "rgb.jpg", quality=98, subsampling=0)
    rgb.save(FOLDER / "progressive.jpg", quality=98, subsampling=0, progressive=True)
    Image.fromarray(GRAY).save(FOLDER / "gray.jpg", quality=98)
    rgb.convert("CMYK").save(FOLDER / "cmyk.jpg", quality=98)
    rgb.save(FOLDER / "lossless.webp", lossless=True)
    rgb.save(FOLDER / "rgb.webp", quality=98)
    Image.fromarray(np.dstack([RGB, ALPHA])).save(FOLDER / "rgba.webp", lossless=True, exact=True)
    rgb.save(FOLDER / "animated.webp", lossless=True, save_all=True, append_images=[Image.fromarray(255 - RGB)], duration=100)

    for orientation in UNDO:
        picture, exif = turned(orientation)
        picture.save(FOLDER / f"orientation_{orientation}.jpg", quality=98, subsampling=0, exif=exif)
    picture, exif = turned(6)
    picture.save(FOLDER / "orientation_6.png", exif=exif)
    picture.save(FOLDER / "orientation_6.webp", lossless=True, exif=exif)

    rgb.save(FOLDER / "other.gif")
    rgb.save(FOLDER / "other.tif")


def area_matrix(size_in, size_out):
    matrix, scale = np.zeros((size_out, size_in)), size_in / size_out
    for i in range(size_out):
        for j in range(size_in):
            matrix[i, j] = max(0, min((i + 1) * scale, j + 1) - max(i * scale, j)) / scale
    return matrix


def scaled():
    rng = np.random.default_rng(3)
    source = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    tensors = {"source": source}
    cases = {"lanczos_up": (5, 3, 20, 15, 48, 32), "lanczos_mixed": (0, 0, 53, 10, 24, 24), "area": (2, 1, 50, 36, 16, 8), "area_odd": (0, 0, 53, 37, 52, 11), "same": (4, 4, 16, 8, 16, 8)}
    for name, (x, y, w, h, ow, oh) in cases.items():
        part = source[y : y + h, x : x + w].astype(np.float32)
        if name.startswith("lanczos"):
            planes = [np.asarray(Image.fromarray(part[..., c]).resize((ow, oh), Image.Resampling.LANCZOS)) for c in range(3)]
            out = np.stack(planes, -1)
        else:
            out = np.einsum("ij,jkc,lk->ilc", area_matrix(h, oh), part, area_matrix(w, ow))
        tensors[name] = (np.clip(out, 0, 255) / 127.5 - 1).astype(np.float32)
        tensors[name + ".area"] = np.array([x, y, w, h], np.int32)
    save_file(tensors, FOLDER / "scaled.safetensors")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    encodings()
    scaled()
