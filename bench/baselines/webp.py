"""Lossy WebP (VP8, RFC 6386) as Pillow and libwebp write it, at the tokenizers' bits."""

from __future__ import annotations

import io

from PIL import Image

from bench.baselines._codec import Codec
from bench.registry import register

#: RIFF header, chunk header, and of the frame's header the start code and the size of the image
FIXED = 12 + 8 + 3 + 4


@register("baseline", "webp")
class WebP(Codec):
    """A VP8 key frame. Its tables of probabilities are coded for each image, so they count.

    `bits` is the mean per image that must not be exceeded: the highest quality that does not is taken. Left null, it
    is the tokenizers'. `quality` instead takes that one. `effort` is libwebp's method: 0 is quick, 6 the smallest.
    """

    title = "WebP"
    revision = 1
    matched = ("bits",)
    qualities = (0, 100)
    uncounted = "the container and the size of the image"

    def __init__(self, *, bits: float | None = None, quality: int | None = None, effort: int = 4) -> None:
        super().__init__(bits=bits, quality=quality)
        self.effort = effort

    def encode(self, image: Image.Image, quality: int) -> bytes:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=self.effort, exact=False)
        return file.getvalue()

    def payload(self, file: bytes) -> int:
        return len(file) - FIXED
