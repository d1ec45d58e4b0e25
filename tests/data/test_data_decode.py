"""Decoding: every pixel format and every broken file, made on the fly, against closed forms and Pillow's own steps."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from fgssl.data.decoding import decode_image
from fgssl.errors import UnreadableImage

# pytest puts its own filters in place of the one that decode.py sets; test_nothing_is_printed checks that one
pytestmark = pytest.mark.filterwarnings(
    r"ignore:(Corrupt EXIF|Truncated File|Tag data|Possibly corrupt|Metadata):UserWarning"
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(*shape: int, high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def pixels(data: bytes | str | Path, min_side: int | None = None) -> np.ndarray:
    image = decode_image(data, min_side)
    assert image.mode == "RGB" and type(image) is Image.Image
    return np.asarray(image)


# what each orientation tag means: the stored array must be turned like this to be upright
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("tag", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied_once(tag: int, kind: str) -> None:
    stored = noise(10, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = encoded(Image.fromarray(stored), kind, exif=exif, **options)
    plain = stored if kind != "JPEG" else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(data), UPRIGHT[tag](plain))


def test_orientation_in_xmp_and_broken_exif() -> None:
    image = Image.fromarray(noise(8, 12, 3))
    for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        assert pixels(encoded(image, "JPEG", exif=exif)).shape == (8, 12, 3)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert pixels(encoded(image, "JPEG", xmp=xmp)).shape == (12, 8, 3)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(kind: str) -> None:
    data = noise(9, 7, 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    result = pixels(encoded(Image.fromarray(data, "RGBA"), kind, **options))
    assert np.abs(result - on_white(data[..., :3], data[..., 3])).max() <= 1


def test_grey_alpha_and_premultiplied() -> None:
    from fgssl.data.decoding import to_rgb

    data = noise(9, 7, 2)
    expected = on_white(np.repeat(data[..., :1], 3, axis=2), data[..., 1])
    grey = Image.merge("LA", [Image.fromarray(data[..., 0]), Image.fromarray(data[..., 1])])
    assert np.abs(pixels(encoded(grey, "PNG")) - expected).max() <= 1
    data[..., 1] = np.where(data[..., 1] < 128, 0, 255)  # no rounding of premultiplied colours at these
    expected = on_white(np.repeat(data[..., :1], 3, axis=2), data[..., 1])
    grey = Image.merge("LA", [Image.fromarray(data[..., 0]), Image.fromarray(data[..., 1])])
    assert np.abs(np.asarray(to_rgb(grey.convert("La"))) - expected).max() <= 1
    colour = Image.merge("RGBA", [Image.fromarray(data[..., 0])] * 3 + [Image.fromarray(data[..., 1])])
    assert np.abs(np.asarray(to_rgb(colour.convert("RGBa"))) - expected).max() <= 1


def test_transparent_palette_and_colour_keys() -> None:
    indices = noise(6, 6, high=3)
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), palette[indices])
    keyed = np.where(indices[..., None] == 1, 255, palette[indices])
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", transparency=1)), keyed)
    np.testing.assert_array_equal(pixels(encoded(image, "GIF", transparency=1)), keyed)
    expected = on_white(palette[indices], np.array([0, 128, 255])[indices])
    assert np.abs(pixels(encoded(image, "PNG", transparency=bytes([0, 128, 255]))) - expected).max() <= 1
    rgb = Image.fromarray(palette[indices])
    np.testing.assert_array_equal(pixels(encoded(rgb, "PNG", transparency=(0, 255, 0))), keyed)


def test_sixteen_bit_and_wide_numbers() -> None:
    values = noise(8, 8, high=65536, dtype=np.uint16)
    expected = np.rint(values / 65535 * 255)
    for kind in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), kind))[..., 1], expected)
    big_endian = Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(encoded(big_endian, "TIFF"))[..., 0], expected)
    wide = noise(8, 8, high=10**9, dtype=np.int32) - 10**6
    stretched = np.rint((wide - wide.min()) / (wide.max() - wide.min()) * 255)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(wide), "TIFF"))[..., 2], stretched)
    constant = np.full((4, 4), -7, dtype=np.int32)
    assert (pixels(encoded(Image.fromarray(constant), "TIFF")) == 0).all()


def packed_png(samples: np.ndarray, depth: int, kind: int, key: bytes | None) -> bytes:
    """A PNG written by hand: kind 0 is grey, 2 RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    bits = ((samples.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1).reshape(height, -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    transparent = b"" if key is None else chunk(b"tRNS", key)
    return b"\x89PNG\r\n\x1a\n" + header + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_any_depth_with_a_transparent_value(depth: int, keyed: bool) -> None:
    top = 2**depth - 1
    samples = noise(12, 16, high=top + 1, dtype=np.int64)
    key = int(samples[3, 3])
    samples[0, 0] = key ^ 1  # the nearest other value is opaque
    expected = np.rint(samples * 255 / top)
    if keyed:
        expected[samples == key] = 255
    found = pixels(packed_png(samples, depth, 0, struct.pack(">H", key) if keyed else None))
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("depth", [8, 16])
def test_rgb_with_a_transparent_colour(depth: int) -> None:
    top = 2**depth - 1
    samples = noise(12, 16, 3, high=top + 1, dtype=np.int64)
    samples[0, :3] = samples[3, 3]
    samples[0, 1, 2] ^= 1
    key = samples[3, 3]
    expected = samples * 255 / top
    expected[(samples == key).all(-1)] = 255
    found = pixels(packed_png(samples, depth, 2, struct.pack(">HHH", *key.tolist())))
    assert np.abs(found - expected).max() <= 1  # Pillow cuts 16 bits to 8, where rounding may give one more


def tiff(values: np.ndarray, bits: int, *, photometric: int = 1, order: str = "<") -> bytes:
    """A grey TIFF of unsigned numbers written by hand; 12 bits are two numbers in three bytes."""
    if bits == 12:
        first, second = values.reshape(-1, 2).T
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    else:
        data = values.astype(f"{order}u{bits // 8}").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return start + entries + struct.pack(f"{order}I", 0) + data


def test_tiff_of_12_16_and_32_bits_without_sign_and_with_white_as_zero() -> None:
    twelve, sixteen = (noise(8, 8, high=2**bits, dtype=np.int64) for bits in (12, 16))
    wide = noise(8, 8, high=2**32, dtype=np.int64)
    stretched = (wide - wide.min()) / (wide.max() - wide.min()) * 255
    for data, expected in (
        (tiff(twelve, 12), twelve / 4095 * 255),
        (tiff(sixteen, 16, order=">"), sixteen / 65535 * 255),
        (tiff(sixteen, 16, photometric=0), (65535 - sixteen) / 65535 * 255),
        (tiff(wide, 32), stretched),
    ):
        np.testing.assert_array_equal(pixels(data)[..., 0], np.rint(expected))


def test_a_sheet_that_fgssl_drew_is_no_photograph(tmp_path: Path) -> None:
    from fgssl.drawing import save_png

    for name in ("sheet.png", "sheet.jpg", "sheet.webp"):
        save_png(Image.fromarray(noise(20, 20, 3)), tmp_path / name)
        with pytest.raises(UnreadableImage, match=f"{name}: is a sheet that fgssl drew"):
            decode_image(tmp_path / name)


def test_floats() -> None:
    unit = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(unit), "TIFF"))[..., 0], np.rint(unit * 255.0))
    np.testing.assert_array_equal(
        pixels(encoded(Image.fromarray(unit * np.float32(200)), "TIFF"))[..., 0], np.rint(unit * np.float32(200))
    )
    signed = unit * 8 - 4
    signed[0, 0], signed[0, 1], signed[0, 2] = np.nan, np.inf, -np.inf
    finite = signed[np.isfinite(signed)].astype(np.float64)
    expected = (signed.astype(np.float64) - finite.min()) / (finite.max() - finite.min()) * 255
    expected[0, :3] = 0
    np.testing.assert_allclose(pixels(encoded(Image.fromarray(signed), "TIFF"))[..., 0], np.rint(expected), atol=1)
    assert (pixels(encoded(Image.fromarray(np.full((3, 3), np.nan, np.float32)), "TIFF")) == 0).all()


def test_colour_spaces() -> None:
    rgb = Image.fromarray(noise(12, 12, 3))
    cmyk = encoded(rgb.convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(pixels(cmyk), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))
    white = np.asarray(decode_image(encoded(Image.new("CMYK", (8, 8)), "JPEG")))  # no ink is white, Adobe's way too
    assert white.min() >= 254
    tiff = encoded(rgb.convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(pixels(tiff), np.asarray(rgb.convert("CMYK").convert("RGB")))
    ycbcr = encoded(rgb.convert("YCbCr"), "TIFF")
    assert np.abs(pixels(ycbcr).astype(int) - np.asarray(rgb)).max() <= 3
    lab = ImageCms.applyTransform(
        rgb, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    assert np.abs(pixels(encoded(lab, "TIFF")).astype(int) - np.asarray(rgb)).mean() < 3
    bits = Image.fromarray((noise(9, 9, high=2) * 255).astype(np.uint8)).convert("1")
    np.testing.assert_array_equal(pixels(encoded(bits, "PNG"))[..., 0], np.asarray(bits.convert("L")))
    grey = noise(9, 9)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, axis=2))
    from fgssl.data.decoding import to_rgb

    assert np.abs(np.asarray(to_rgb(rgb.convert("HSV"))).astype(int) - np.asarray(rgb)).max() <= 12
    assert to_rgb(rgb.convert("RGBX")).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame(kind: str) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    result = pixels(encoded(red, kind, save_all=True, append_images=[blue], **options))
    assert np.abs(result.astype(int) - np.array([255, 0, 0])).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        assert decode_image(encoded(Image.new("RGB", size), kind), 64).size == size


@pytest.mark.parametrize("min_side", [1, 50, 64, 99, 100, 101, 250, 799, 800, 5000])
def test_smaller_decode_keeps_the_short_side(min_side: int) -> None:
    data = encoded(Image.fromarray(noise(800, 1003, 3)), "JPEG")
    width, height = decode_image(data, min_side).size
    assert height >= min(min_side, 800)
    assert height == 800 or height < 2 * min_side or height == 100  # as small as the format's 1/2, 1/4, 1/8 allow
    assert abs(width / height - 1003 / 800) < 0.02
    assert decode_image(encoded(Image.new("RGB", (800, 800)), "PNG"), min_side).size == (800, 800)


def test_smaller_decode_of_a_rotated_photograph() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(Image.new("RGB", (640, 320)), "JPEG", exif=exif), 100).size == (160, 320)


def test_wrong_extension_junk_at_the_end_and_path_kinds(tmp_path: Path) -> None:
    image = Image.fromarray(noise(20, 20, 3))
    path = tmp_path / "really a png.jpg"
    path.write_bytes(encoded(image, "PNG") + b"junk" * 99)
    for given_path in (path, str(path)):
        np.testing.assert_array_equal(pixels(given_path), np.asarray(image))
    progressive = encoded(image, "JPEG", progressive=True)
    np.testing.assert_array_equal(pixels(progressive + os.urandom(500)), pixels(progressive))
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n name \xf0\x9f\x90\xa6.jpg")
    Path(odd).write_bytes(progressive)
    np.testing.assert_array_equal(pixels(odd), pixels(progressive))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "y" * 80_000_000, zip=True)
    return encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=info)


PHOTO = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
PICTURE = encoded(Image.fromarray(noise(64, 64, 3)), "PNG")
BROKEN = {
    "zero bytes": (b"", "is empty"),
    "cut JPEG": (PHOTO[: len(PHOTO) // 2], "is cut off"),
    "cut PNG": (PICTURE[: len(PICTURE) // 2], "is cut off"),
    "header only": (PHOTO[:30], ""),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
    "SVG": (b"<svg xmlns='x'/>", "is an SVG drawing"),
    "PDF": (b"%PDF-1.7 ...", "is a PDF"),
    "PostScript is never run": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is a PostScript file"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git LFS pointer"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC photograph"),
    "video": (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "is a zip archive"),
    "zero-filled": (bytes(5000), "only zero bytes"),
    "random": (bytes(noise(5000)), "is not an image"),
    "bomb by header": (png_header(20000, 20000), "megapixels"),
    "bomb just over the limit": (png_header(13400, 13400), "megapixels"),
    "bomb in a text chunk": (None, "is damaged"),
    "no pixels": (png_header(0, 5), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_a_reason(name: str, tmp_path: Path) -> None:
    data, reason = BROKEN[name]
    path = tmp_path / "bird 1.jpg"
    path.write_bytes(text_bomb() if data is None else data)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(path)
    assert "bird 1.jpg" in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.remedy
    with pytest.raises(UnreadableImage, match=r"cub\[train\]#3"):
        decode_image(path.read_bytes(), 32, name="cub[train]#3")


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would never return
    cases = {
        "absent.jpg": "does not exist",
        "broken.jpg": "is a link to a file that does not exist",
        "loop.jpg": "cannot be read",
        "folder.jpg": "is a folder",
        "pipe.jpg": "is not a regular file",
        "nul\0byte.jpg": "is damaged",
    }
    for name, reason in cases.items():
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(os.path.join(tmp_path, name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(PHOTO)
    path.chmod(0)
    with pytest.raises(UnreadableImage, match="no permission"):
        decode_image(path)


def test_nothing_is_printed_or_warned(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(png_header(12000, 12000))  # Pillow warns from 89 megapixels on
    (tmp_path / "exif.jpg").write_bytes(
        encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    )
    (tmp_path / "cut.tif").write_bytes(encoded(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_lzw")[:-40])
    code = (
        "import sys\nfrom fgssl.data.decoding import decode_image\nfrom fgssl.errors import UnreadableImage\n"
        "for path in sys.argv[1:]:\n    try:\n        decode_image(path)\n    except UnreadableImage:\n        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, *map(str, tmp_path.iterdir())], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SAMPLES = [
    encoded(Image.fromarray(noise(24, 24, 3)), "JPEG"),
    encoded(Image.fromarray(noise(24, 24, 3)), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    encoded(Image.fromarray(noise(24, 24, 4)), "PNG"),
    encoded(Image.fromarray(noise(24, 24, 3)), "GIF"),
    encoded(Image.fromarray(noise(24, 24, 3)), "WEBP"),
    encoded(Image.fromarray(noise(24, 24, 3)), "TIFF", compression="tiff_deflate"),
    encoded(Image.fromarray(noise(24, 24, 3)), "BMP"),
    encoded(Image.fromarray(noise(24, 24, 3)), "PPM"),
]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SAMPLES) - 1), st.data())
def test_any_damage_gives_an_image_or_one_clear_line(sample: int, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[sample])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    try:
        assert decode_image(bytes(damaged), 16).mode == "RGB"
    except UnreadableImage as error:
        assert "\n" not in str(error)
