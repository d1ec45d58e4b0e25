"""Images as they come from the wild, each kind written by a few lines: what cannot be read, and what only looks so."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pictures import make_picture
from PIL import Image

Writer = Callable[[Path], None]


def encoded(form: str, size: int = 48, **options: object) -> bytes:
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    make_picture(7, size, size).save(stream, form, **options)
    return stream.getvalue()


def content(data: bytes | Callable[[], bytes]) -> Writer:
    """Writes bytes that are made when they are needed."""
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data()) and None


def cut(form: str, share: float = 0.6, size: int = 96, **options: object) -> Writer:
    """The beginning of a file."""
    return content(lambda: (data := encoded(form, size, **options))[: int(len(data) * share)])


def png(width: int, height: int, rows: bytes = b"", *, depth: int = 1, colour: int = 0) -> bytes:
    """A PNG put together by hand: small, whatever it claims to be."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def black_png(width: int, height: int) -> bytes:
    """A complete one-bit PNG; a few kilobytes for any size."""
    return png(width, height, bytes((1 + (width + 7) // 8) * height))


def zipped() -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


def damaged_png() -> bytes:
    """A PNG with a wrong checksum in its pixels."""
    data = bytearray(encoded("PNG", 64))
    place = data.index(b"IDAT") + 40
    data[place : place + 20] = bytes(20)
    return bytes(data)


def broken_tiff() -> bytes:
    """A TIFF whose directory is its own successor and whose strips lie beyond its end."""
    entries = [(256, 3, 1, 50), (257, 3, 1, 50), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 10**8)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", 8)


def large_bmp() -> bytes:
    """A BMP of 54 bytes that claims 2 thousand million rows."""
    head = struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def linked(target: str) -> Writer:
    """A symbolic link."""
    return lambda path: os.symlink(target, path)


UNREADABLE: dict[str, tuple[Writer, str]] = {
    "zero bytes.jpg": (content(b""), "is empty (0 bytes)"),
    "cut off.jpg": (cut("JPEG"), "is cut off"),
    "cut off, progressive.jpg": (cut("JPEG", progressive=True), "is cut off"),
    "cut off.png": (cut("PNG"), "is cut off"),
    "cut off.webp": (cut("WEBP"), "is"),
    "cut off.gif": (cut("GIF", 0.95), "is cut off"),
    "cut off.tif": (cut("TIFF"), "is"),
    "cut off.bmp": (cut("BMP"), "is cut off"),
    "cut off.ppm": (cut("PPM"), "is cut off"),
    "only the first bytes.jpg": (content(b"\xff\xd8\xff\xe0"), "is"),
    "wrong checksum.png": (content(damaged_png), "is"),
    "page.jpg": (content(b"\n<!DOCTYPE html><html>404</html>"), "is an HTML page"),
    "answer.png": (content(b'{"error": "quota"}'), "is text (JSON?)"),
    "notes.jpg": (content(b"a picture of a bird\n" * 9), "is not an image"),
    "drawing.png": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is an SVG"),
    "tree.jpg": (content(b"<?xml version='1.0'?><a/>"), "is an XML"),
    "paper.jpg": (content(b"%PDF-1.4\n"), "is a PDF"),
    "print.jpg": (content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is a PostScript"),
    "archive.png": (content(zipped), "is a zip"),
    "archive.jpg": (content(lambda: gzip.compress(b"a")), "is a gzip"),
    "pointer.jpg": (content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git LFS"),
    "phone.heic": (content(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), "HEIC"),
    "film.jpg": (content(b"\0\0\0\x18ftypisom\0\0\0\0isommp42"), "is a video"),
    "interrupted copy.jpg": (content(bytes(5000)), "only zero bytes"),
    "noise.png": (content(lambda: np.random.default_rng(0).bytes(4000)), "is not an image"),
    "bomb.png": (content(lambda: black_png(20000, 20000)), "larger than 178 megapixels"),
    "claims to be large.png": (content(png(2**31 - 1, 2**31 - 1)), "larger than 178 megapixels"),
    "claims to be large.bmp": (content(large_bmp), "is"),
    "no pixels.png": (content(png(0, 0)), "is"),
    "loop in its directory.tif": (content(broken_tiff), "is"),
    "icon.jpg": (content(lambda: encoded("ICO")), "is not an image"),
    "broken link.jpg": (linked("nowhere.jpg"), "link to a file that does not exist"),
    "link to itself.jpg": (linked("link to itself.jpg"), "cannot be read"),
    "[red]ma[bold]\x1b[31mrkup\x07<b>.jpg": (content(b"x"), "is not an image"),
}
"""File name -> how it is written, and part of the reason why it cannot be read."""


def saved(form: str, mode: str = "RGB", **options: object) -> Writer:
    """A picture in some mode and format."""
    return lambda path: make_picture(3, 60, 50).convert(mode).save(path, form, **options)


def array(values: np.ndarray, form: str) -> Writer:
    """An array as a picture."""
    return lambda path: Image.fromarray(values).save(path, form)


def frames(form: str) -> Writer:
    """Three frames, of different pictures."""
    pictures = [make_picture(seed, 40, 40) for seed in range(3)]
    return lambda path: pictures[0].save(path, form, save_all=True, append_images=pictures[1:], duration=50)


def rotated(path: Path) -> None:
    """A JPEG whose EXIF says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    make_picture(5, 60, 40).save(path, "JPEG", exif=exif)


def see_through(path: Path) -> None:
    """A palette with a transparent entry."""
    make_picture(5, 60, 40).quantize(16).save(path, "PNG", transparency=3)


def of_size(width: int, height: int) -> Writer:
    """An image of one colour."""
    return lambda path: Image.new("RGB", (width, height), (200, 30, 30)).save(path, "PNG")


READABLE: dict[str | bytes, Writer] = {
    "png inside.jpg": saved("PNG"),
    "jpeg inside.png": saved("JPEG"),
    "cmyk.jpg": saved("JPEG", "CMYK"),
    "grey.jpg": saved("JPEG", "L"),
    "bilevel.png": saved("PNG", "1"),
    "grey and alpha.png": saved("PNG", "LA"),
    "alpha.webp": saved("WEBP", "RGBA"),
    "lab.tif": saved("TIFF", "LAB"),
    "16 bit.png": array(np.arange(2500, dtype=np.uint16).reshape(50, 50) * 26, "PNG"),
    "16 bit.tif": array(np.arange(2500, dtype=np.uint16).reshape(50, 50) * 26, "TIFF"),
    "floats.tif": array(np.linspace(0, 1, 2500, dtype=np.float32).reshape(50, 50), "TIFF"),
    "floats with NaN.tif": array(np.where(np.eye(50, dtype=bool), np.nan, 0.5).astype(np.float32), "TIFF"),
    "see-through palette.png": see_through,
    "animated.gif": frames("GIF"),
    "animated.webp": frames("WEBP"),
    "animated.png": frames("PNG"),
    "two pictures.mpo": frames("MPO"),
    "rotated.jpg": rotated,
    "progressive, junk behind.jpg": content(lambda: encoded("JPEG", progressive=True) + b"junk" * 500),
    "UPPER CASE.JPG": saved("JPEG"),
    "1 x 1.png": of_size(1, 1),
    "1 x 4000.png": of_size(1, 4000),
    "4000 x 1.png": of_size(4000, 1),
    "100 x 1000000.png": content(lambda: black_png(100, 1_000_000)),
    "  spaces  .png": saved("PNG"),
    "new\nline.png": saved("PNG"),
    "🐦‍⬛ emoji.png": saved("PNG"),
    "-rf.png": saved("PNG"),
    b"not utf-8 \xff\xfe.png": saved("PNG"),
    ("long " * 60)[:240] + ".png": saved("PNG"),
}
"""File name -> how it is written: unusual, but images all the same."""


def write_unreadable(folder: Path) -> dict[str, str]:
    """All of `UNREADABLE` into a folder; returns name -> part of the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (write, _) in UNREADABLE.items():
        write(folder / name)
    return {name: reason for name, (_, reason) in UNREADABLE.items()}


def write_readable(folder: Path) -> list[str | bytes]:
    """All of `READABLE` into a folder, and a folder that is called like an image, with one image in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in READABLE.items():
        write(Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name)))))
    (folder / "folder.jpg").mkdir()
    saved("PNG")(folder / "folder.jpg" / "inside.png")
    return [*READABLE, "folder.jpg/inside.png"]
