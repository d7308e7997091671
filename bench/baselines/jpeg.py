"""JPEG (ITU-T T.81) as Pillow and libjpeg write it, at the tokenizers' bits."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image

from bench.baselines._codec import Codec
from bench.registry import register

START_OF_SCAN, END_BYTES = 0xDA, 2


@register("baseline", "jpeg")
class JPEG(Codec):
    """Baseline JPEG with the standard's own Huffman tables; a quality only scales its quantization tables.

    `bits` is the mean of the entropy-coded data per image that must not be exceeded: the highest quality that does
    not is taken. Left null, it is the tokenizers'. `quality` instead takes that one.
    """

    title = "JPEG"
    revision = 1
    matched = ("bits",)
    qualities = (1, 100)
    uncounted = "headers and tables"

    def __init__(
        self, *, bits: float | None = None, quality: int | None = None,
        subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0",
    ) -> None:
        super().__init__(bits=bits, quality=quality)
        self.subsampling = subsampling

    def encode(self, image: Image.Image, quality: int) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=self.subsampling)
        return file.getvalue()

    def payload(self, file: bytes) -> int:
        """Bytes between the header of the one scan and the end of the image."""
        position = 2                                                    # after the start of the image
        while file[position + 1] != START_OF_SCAN:
            position += 2 + int.from_bytes(file[position + 2 : position + 4], "big")
        position += 2 + int.from_bytes(file[position + 2 : position + 4], "big")
        return len(file) - position - END_BYTES
