"""Pictures as real folders hold them: every kind of file, and the pixels that it means."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

SIZE = 16
_PIXELS = np.zeros((SIZE, SIZE, 3), np.uint8)
_PIXELS[:8, :8], _PIXELS[:8, 8:] = (200, 40, 40), (40, 200, 40)
_PIXELS[8:, :8], _PIXELS[8:, 8:] = (40, 40, 200), (220, 220, 60)
_PIXELS[:4, :4] = 255
PICTURE = Image.fromarray(_PIXELS)
GREY = np.asarray(PICTURE.convert("L"))
_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""What each EXIF orientation does to the stored pixels (EXIF 2.32, tag 274)."""


class Odd(NamedTuple):
    """One file and the RGB pixels that it means, within ``tolerance``."""

    name: str
    content: bytes
    pixels: NDArray[np.uint8]
    tolerance: int = 0


def write_all(folder: Path) -> list[Odd]:
    """Write every odd picture into ``folder``."""
    odd = list(odd_pictures())
    for one in odd:
        (folder / one.name).write_bytes(one.content)
    return odd


def odd_pictures() -> Iterator[Odd]:
    """Yield every kind of picture."""
    yield from _turned()
    yield from _deep()
    yield from _transparent()
    yield from _animated()
    grey = np.stack([GREY] * 3, 2)
    black_white = np.stack([np.uint8(GREY >= 128) * 255] * 3, 2)
    cmyk = PICTURE.convert("CMYK")
    # Adobe's programs store ink inverted, and so does Pillow; the picture is the same.
    yield Odd("adobe cmyk.jpg", _saved(cmyk, "JPEG", quality=100), _PIXELS, 3)
    yield Odd("cmyk.tif", _saved(cmyk, "TIFF"), _PIXELS)
    yield Odd("one bit.png", _saved(Image.fromarray(GREY >= 128), "PNG"), black_white)
    yield Odd("one bit.bmp", _saved(Image.fromarray(GREY >= 128), "BMP"), black_white)
    bits = np.packbits(GREY < 128, axis=1)
    yield Odd("one bit, white 0.tif", tiff(bits, 1, 0), black_white)
    yield Odd("grey, white 0.tif", tiff(255 - GREY, 8, 0), grey)
    yield Odd("palette.png", _saved(PICTURE.quantize(8), "PNG"), _PIXELS)
    yield Odd("palette.GIF", _saved(PICTURE.quantize(8), "GIF"), _PIXELS)
    yield Odd(
        "jpeg inside.tif", _saved(PICTURE, "TIFF", compression="jpeg", quality=100), _PIXELS, 3
    )
    best: dict[str, Any] = {"quality": 100, "subsampling": 0}
    jpeg, png = _saved(PICTURE, "JPEG", **best), _saved(PICTURE, "PNG")
    for name in ("a.JPG", "a.JPEG", "a.jpe", "a.Jfif", "wrong.png"):
        yield Odd(name, jpeg, _PIXELS, 3)
    for name in ("wrong.jpg", "a b.png", "ü ñ 日本.png", "quote'\".png", "new\nline.png", "-x.png"):
        yield Odd(name, png, _PIXELS)
    for name, kind in (("a.BMP", "BMP"), ("a.TIFF", "TIFF"), ("a.DIB", "BMP"), ("a.PPM", "PPM")):
        yield Odd(name, _saved(PICTURE, kind), _PIXELS)


def _turned() -> Iterator[Odd]:
    best: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "PNG": {},
        "TIFF": {},
        "WEBP": {"lossless": True},
    }
    for kind, options in best.items():
        for orientation, turn in _TURNS.items():
            if kind == "WEBP" and not features.check("webp"):
                continue
            exif = Image.Exif()
            exif[0x0112] = orientation
            content = _saved(PICTURE, kind, exif=exif, **options)
            turned = np.ascontiguousarray(turn(_PIXELS))
            yield Odd(f"turned {orientation}.{kind.lower()}", content, turned, 3 * (kind == "JPEG"))


def _deep() -> Iterator[Odd]:
    deep, grey = _PIXELS.astype(np.uint16) * 257, GREY.astype(np.uint16)[..., None] * 257
    whole = np.full((SIZE, SIZE, 1), 65535, np.uint16)
    flat = np.stack([GREY] * 3, 2)
    yield Odd("16 bit colour.png", png16(deep, 2), _PIXELS)
    yield Odd("16 bit colour, alpha.png", png16(np.concatenate([deep, whole], 2), 6), _PIXELS)
    yield Odd("16 bit grey.png", png16(grey, 0), flat)
    yield Odd("16 bit grey, alpha.png", png16(np.concatenate([grey, whole], 2), 4), flat)
    for name, order in (("Intel", "<u2"), ("Motorola", ">u2")):
        yield Odd(f"16 bit colour {name}.tif", tiff(deep.astype(order), 16, 2), _PIXELS)
        yield Odd(f"16 bit grey {name}.tif", tiff(grey.astype(order), 16, 1), flat)


def _transparent() -> Iterator[Odd]:
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[:8, :8] = 0
    black = _PIXELS.copy()
    black[:8, :8] = 0
    rgba = np.dstack([_PIXELS, alpha])
    yield Odd("alpha.png", _saved(Image.fromarray(rgba), "PNG"), black)
    yield Odd("alpha.tif", tiff(rgba, 8, 2, {338: [2]}), black)
    if features.check("webp"):
        yield Odd("alpha.webp", _saved(Image.fromarray(rgba), "WEBP", lossless=True), black)
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    yield Odd("grey alpha.png", _saved(grey, "PNG"), np.stack([np.where(alpha, GREY, 0)] * 3, 2))
    corner = _PIXELS.copy()
    corner[:4, :4] = 0
    palette = PICTURE.quantize(8)
    white = int(np.asarray(palette)[0, 0])
    for kind in ("PNG", "GIF"):
        content = _saved(palette, kind, transparency=white)
        yield Odd(f"palette, transparent.{kind.lower()}", content, corner)
    colour = _saved(PICTURE, "PNG", transparency=(255, 255, 255))
    yield Odd("transparent colour.png", colour, corner)


def _animated() -> Iterator[Odd]:
    others = [Image.new("RGB", PICTURE.size, colour) for colour in ("red", "blue")]
    more: dict[str, Any] = {"save_all": True, "append_images": others}
    yield Odd("frames.gif", _saved(PICTURE.quantize(8), "GIF", **more), _PIXELS)
    yield Odd("frames.apng", _saved(PICTURE, "PNG", **more), _PIXELS)
    yield Odd("frames, default.png", _saved(PICTURE, "PNG", default_image=True, **more), _PIXELS)
    yield Odd("pages.tif", _saved(PICTURE, "TIFF", **more), _PIXELS)
    if features.check("webp"):
        yield Odd("frames.webp", _saved(PICTURE, "WEBP", lossless=True, **more), _PIXELS)
    best = {"quality": 100, "subsampling": 0}
    for name in ("camera.mpo", "camera.jpg"):
        yield Odd(name, _saved(PICTURE, "MPO", **best, **more), _PIXELS, 3)


FRAMES = ("frames.gif", "frames.apng", "frames, default.png", "pages.tif", "frames.webp")
"""Those with further frames or pages of their own rank."""

NOT_PICTURES = {
    "empty.jpg": b"",
    "page.jpg": b"<html>404 Not Found</html>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50,
    "letter.jpg": b"%PDF-1.4",
}


def cut_off() -> dict[str, bytes]:
    """Files whose end is missing, as after a broken transfer."""
    jpeg, png = _saved(PICTURE, "JPEG", quality=100), _saved(PICTURE, "PNG")
    return {"cut.jpg": jpeg[:-200], "cut.png": png[:-30]}


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(pixels: NDArray[np.uint16], colour_type: int) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow does not write in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


def tiff(
    pixels: NDArray[Any], bits: int, photometric: int, more: dict[int, list[int]] | None = None
) -> bytes:
    """Return an uncompressed TIFF of one strip, in the byte order of ``pixels``."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    data, height = pixels.tobytes(), pixels.shape[0]
    tags: dict[int, list[int]] = {
        256: [SIZE], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric],
        273: [0], 277: [channels], 278: [height], 279: [len(data)], **(more or {}),
    }  # fmt: skip
    outside_at = 8 + 2 + 12 * len(tags) + 4
    outside = b"".join(
        struct.pack(f"{order}{len(values)}H", *values)
        for values in tags.values()
        if len(values) > 2
    )
    tags[273] = [outside_at + len(outside)]
    content = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(f"{order}LH", 8, len(tags))
    for tag, values in sorted(tags.items()):
        place = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
        if len(values) > 2:
            place = struct.pack(f"{order}L", outside_at)
        content += struct.pack(f"{order}HHL", tag, 3, len(values)) + place
    return content + struct.pack(f"{order}L", 0) + outside + data
