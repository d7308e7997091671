"""bench view: a page on a trained tokenizer, for this machine alone.

It listens on the loopback address only. The path begins with a secret that is printed and nowhere else, so no other page or
user can drive it; a request under another host name (a name that was made to point here) is refused; the page may load
nothing from anywhere else. Through `ssh -L PORT:127.0.0.1:PORT` it is reached from another machine.

    GET  /SECRET/               the page;  view.css, view.js, about (JSON)
    GET  /SECRET/pick?index=    an image of the test split -> an opened image
    POST /SECRET/upload         bytes of a picture -> an opened image
    POST /SECRET/decode         {image, codes, erased, stages} -> {picture, psnr, ssim}
    POST /SECRET/stages         {image, codes, erased} -> pictures of each stage alone, and up to each

An opened image is {image: its number, original, picture, psnr, ssim, codes}; pictures are PNG as data: URLs; codes are
N x L numbers, row by row; errors are {error: one sentence} with status 400 and above.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.catalogue import locate
from bench.errors import BadInput, Incompatible
from bench.image_cache import open_split
from bench.image_dataset import ImageDataset, UnreadableImage
from bench.image_files import adm_centre_crop, decode, pixels
from bench.interfaces import Tokenizer
from bench.load import open_checkpoint
from bench.places import Places
from bench.registry import did_you_mean, resolve
from bench.report.page import data_url
from bench.runs import RunFolder, run_folders
from bench.spec import ComponentSpec

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
FILES = {                           # path below the secret -> (content type, files that are joined)
    "": ("text/html", ("view_page/view.html",)),
    "view.css": ("text/css", ("report/page.css", "view_page/view.css")),
    "view.js": ("text/javascript", ("report/common.js", "view_page/view.js")),
}
MOST_BYTES = 64 * 2**20             # of a request
KEPT = 16                           # opened images, for their PSNR after an edit
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}


# -- what is looked at ---------------------------------------------------------------------------------------------------


def open_viewer(given: str, places: Places, *, run: bool, format: str | None = None, device: torch.device) -> Viewer:
    """A run (`run`: its id, the beginning of it, its label or its folder) or a checkpoint, as `load_tokenizer` takes it.

    Raises BadInput for whatever cannot be found or opened.
    """
    if run:
        folder = find_run(given, places)
        record = RunFolder(folder.parent, folder.name).record()
        title, where = folder.name if record is None else record.label, str(folder)
    else:
        title, where = given, given
    found = locate(where, places)
    try:
        opened = open_checkpoint(found, places, format=format)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error
    home = found.path if found.path.is_dir() else found.path.parent.parent
    test, why = _test_split(home, places)
    return Viewer(opened.tokenizer.to(device), opened.image_size, title, test, why)


def find_run(given: str, places: Places) -> Path:
    """The folder of one run. Raises BadInput where none or several are meant."""
    if (Path(given) / "spec.json").is_file():
        return Path(given).absolute()
    folders = list(run_folders(places.runs))
    found = [f for f in folders if given and f.train_id.startswith(given)]
    if not found:
        labels = {f.path: record.label for f in folders if (record := f.record()) is not None}
        found = [f for f in folders if labels.get(f.path) == given] or [f for f in folders if given in labels.get(f.path, "")]
        if not found:
            raise BadInput(f"{given!r}: no run in {places.runs} has this id or label{did_you_mean(given, labels.values())}")
    if len(found) > 1:
        raise BadInput(f"{given!r}: {len(found)} runs match ({', '.join(f.train_id for f in found[:6])}); give an id")
    return found[0].path


def _test_split(home: Path, places: Places) -> tuple[ImageDataset | None, str]:
    """The test images of a run, or why there are none."""
    try:
        said = json.loads((home / "spec.json").read_text())
        return open_split(ComponentSpec(**said["dataset"]).partial(), "test", places).dataset, ""
    except FileNotFoundError as error:
        of_run = (home / "spec.json").is_file()
        return None, str(error) if of_run else "this checkpoint is not of a run, so it names no test images"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"its test images cannot be opened ({error})"


class Viewer:
    """A tokenizer and the images that were opened lately. Methods may be called by several threads."""

    def __init__(self, tokenizer: Tokenizer, image_size: int, title: str, test: ImageDataset | None = None, why: str = "") -> None:
        self.tokenizer, self.image_size, self.title = tokenizer.eval(), image_size, title
        self.test, self.why = test, why
        self.layout, self.stages = tokenizer.layout, tokenizer.quantizer.stages
        self.device = next(tokenizer.parameters()).device
        self.metrics = {name: resolve("metric", name)() for name in ("psnr", "ssim")}
        self.opened: OrderedDict[int, Tensor] = OrderedDict()
        self.number = 0
        self.lock = threading.Lock()
        layout = self.layout
        self.grids = layout.grids if sum(h * w for h, w in layout.grids) == layout.num_tokens else (_map_of(layout.num_tokens),)
        with torch.inference_mode():
            grey = tokenizer(torch.zeros(1, 3, image_size, image_size, device=self.device))
        self.positions = grey.quantized.shape[1]

    def about(self) -> dict[str, Any]:
        stages, layout = self.stages, self.layout
        return {
            "title": self.title, "tokenizer": type(self.tokenizer).__name__, "size": self.image_size,
            "images": 0 if self.test is None else len(self.test), "why": self.why, "tokens": layout.num_tokens,
            "vocabulary": layout.vocab_sizes, "grids": self.grids, "tables": layout.tables, "bits": layout.bits_per_image,
            "erase": self._by_grid or self.positions == layout.num_tokens,
            "stages": None if stages is None or stages.count < 2 else {
                "count": stages.count, "name": stages.name, "refine": stages.refine, "grids": stages.grids},
        }

    def pick(self, index: int) -> dict[str, Any]:
        if self.test is None:
            raise BadInput(f"there are no test images: {self.why}")
        if not 0 <= index < len(self.test):
            raise BadInput(f"image {index}: the test split has {len(self.test):,} images, counted from 0")
        try:
            return self._open(torch.from_numpy(self.test.load(index)))
        except UnreadableImage as error:
            raise BadInput(f"image {index} cannot be read: {error}") from error

    def upload(self, data: bytes) -> dict[str, Any]:
        """A picture of any size: its centre square, as ADM crops it."""
        try:
            picture = decode(data, "the file", "the file")
        except UnreadableImage as error:
            raise BadInput(f"this is no picture that can be read: {error}") from error
        if max(picture.size) > 64 * min(picture.size):
            raise BadInput(f"a picture of {picture.width} x {picture.height} pixels is too narrow for its centre square")
        return self._open(torch.from_numpy(pixels(adm_centre_crop(picture, self.image_size))))

    def decode(self, image: int, codes: Sequence[int], erased: Sequence[Sequence[int]], stages: Sequence[int] | None) -> dict[str, Any]:
        """What the decoder makes of these codes. erased: (token, level) for which zero stands; of quantizers without stages
        the whole token. stages: these alone; None: all."""
        with self.lock, torch.inference_mode():
            table = self._codes(codes)
            chosen = self._chosen(stages)
            return self._shown(self._original(image), self._pixels(self._quantized(table, erased, chosen))[0])

    def strips(self, image: int, codes: Sequence[int], erased: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Each stage alone and, where stages refine, all up to each."""
        if self.stages is None:
            raise BadInput(f"{type(self.tokenizer).__name__} is not made of levels, scales or groups")
        sets = [[i] for i in range(self.stages.count)]
        if self.stages.refine:
            sets += [list(range(i + 1)) for i in range(self.stages.count)]
        with self.lock, torch.inference_mode():
            table, original = self._codes(codes), self._original(image)
            shown = [self._shown(original, picture) for picture in
                     self._pixels(torch.cat([self._quantized(table, erased, chosen) for chosen in sets]))]
        return {"alone": shown[: self.stages.count], "upto": shown[self.stages.count :]}

    # -- inside

    @property
    def _by_grid(self) -> bool:
        return self.stages is not None and self.stages.grids

    def _open(self, image: Tensor) -> dict[str, Any]:
        """uint8 [3, H, W] -> an opened image."""
        with self.lock, torch.inference_mode():
            output = self.tokenizer((image[None].float() / 127.5 - 1).to(self.device))
            self.number += 1
            self.opened[self.number] = image
            while len(self.opened) > KEPT:
                self.opened.popitem(last=False)
            codes = None if output.codes is None else output.codes.flatten().tolist()
            shown = self._shown(image, _eight_bits(output.reconstruction)[0])
        return {"image": self.number, "original": _png(image), "codes": codes, **shown}

    def _original(self, image: int) -> Tensor:
        if type(image) is not int or image not in self.opened:
            raise BadInput("this image was opened too long ago; open it again")
        return self.opened[image]

    def _shown(self, original: Tensor, picture: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {"picture": _png(picture)}
        for name, metric in self.metrics.items():
            try:
                found[name] = float(metric.per_image(original[None], picture[None]))
            except Incompatible:                # SSIM of an image smaller than its window
                found[name] = None
        return found

    def _codes(self, codes: Sequence[int]) -> Tensor:
        """[1, N, L]. Raises BadInput for what is not one code of its table for each token and level."""
        layout = self.layout
        count, levels = layout.num_tokens, len(layout.vocab_sizes)
        if not levels:
            raise BadInput(f"{type(self.tokenizer).__name__} is continuous and has no codes")
        if not isinstance(codes, list) or len(codes) != count * levels or not all(type(c) is int and 0 <= c < 2**62 for c in codes):
            raise BadInput(f"expected {count} x {levels} codes")
        table = torch.tensor(codes).view(count, levels)
        sizes = torch.tensor(layout.vocab_sizes) // layout.tables
        low = torch.cat([torch.full((h * w, 1), i if layout.separate else 0) for i, (h, w) in enumerate(self.grids)]) * sizes
        wrong = ((table < low) | (table >= low + sizes)).nonzero()
        if len(wrong):
            n, level = wrong[0].tolist()
            raise BadInput(f"code {int(table[n, level]):,} of token {n}: expected {int(low[n, level]):,} to {int((low + sizes)[n, level]) - 1:,}")
        return table[None].to(self.device)

    def _chosen(self, stages: Sequence[int] | None) -> list[int]:
        count = 1 if self.stages is None else self.stages.count
        if stages is None:
            return list(range(count))
        if not isinstance(stages, list) or not stages or not all(type(s) is int and 0 <= s < count for s in stages):
            raise BadInput(f"expected at least one of the stages 0 to {count - 1}")
        return sorted(set(stages))

    def _quantized(self, codes: Tensor, erased: Sequence[Sequence[int]], chosen: list[int]) -> Tensor:
        """[1, P, D]."""
        quantizer = self.tokenizer.quantizer
        if not erased:
            whole = self.stages is None or len(chosen) == self.stages.count
            return quantizer.lookup(codes) if whole else quantizer.lookup_stages(codes, chosen)
        kept = self._kept(erased)
        if self.stages is None:
            return quantizer.lookup(codes) * kept[0][:, None]
        return torch.stack([quantizer.lookup_stages(codes, [s]) * kept[s][:, None] for s in chosen]).sum(0)

    def _kept(self, erased: Sequence[Sequence[int]]) -> Tensor:
        """[stages, P] of zeros and ones; a coarse token covers the positions below it."""
        layout, count = self.layout, 1 if self.stages is None else self.stages.count
        levels = len(layout.vocab_sizes)
        if not self._by_grid and self.positions != layout.num_tokens:
            raise BadInput("tokens of this tokenizer have no place of their own in its latents, so none can be erased")
        mask = torch.ones(layout.num_tokens, count, device=self.device)
        for pair in erased if isinstance(erased, list) else [erased]:
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(x) is int for x in pair)
                    and 0 <= pair[0] < layout.num_tokens and 0 <= pair[1] < levels):
                raise BadInput("erased: expected pairs of a token and a level")
            mask[pair[0], slice(None) if self._by_grid else pair[1] * count // levels] = 0
        if not self._by_grid:
            return mask.T
        parts = mask[:, 0].split([h * w for h, w in layout.grids])
        return torch.cat([F.interpolate(part.view(1, 1, *grid), size=layout.grids[-1], mode="nearest").flatten(1)
                          for part, grid in zip(parts, layout.grids, strict=True)])

    def _pixels(self, quantized: Tensor) -> Tensor:
        """uint8 [B, 3, H, W]."""
        return _eight_bits(torch.cat([self.tokenizer.decode(part) for part in quantized.split(8)]))


def _eight_bits(reconstruction: Tensor) -> Tensor:
    return reconstruction.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def _map_of(tokens: int) -> tuple[int, int]:
    """How tokens without a grid are shown."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (-(-tokens // 32), 32) if not tokens % 32 else (1, tokens)


def _png(picture: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return data_url(file.getvalue(), "image/png")


# -- the server ----------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves one viewer on 127.0.0.1; port 0: a free one."""

    daemon_threads = True

    def __init__(self, viewer: Viewer, port: int = 0) -> None:
        self.viewer, self.secret = viewer, secrets.token_urlsafe(16)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise BadInput(f"port {port} cannot be used ({error.strerror}); leave out --port and a free one is taken") from error

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.secret}/"


class Refused(Exception):
    """A request that is not answered. `args`: status, sentence."""


class Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "bench", ""
    timeout = 60                    # seconds of silence in a request

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, answer: Callable[[str, str], tuple[str, bytes]]) -> None:
        status = 200
        try:
            kind, content = answer(*self._checked())
        except Refused as error:
            status, sentence = error.args
        except BadInput as error:
            status, sentence = 400, str(error)
        except Exception as error:              # the page tells it; the traceback is for the terminal
            log.exception("%s", self.path.partition("?")[0].rpartition("/")[2])
            status, sentence = 500, f"{type(error).__name__}: {error}"
        if status != 200:
            kind, content = "application/json", json.dumps({"error": sentence}).encode()
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _checked(self) -> tuple[str, str]:
        """(path below the secret, query). Raises Refused for a request that is not our page's."""
        host = self.headers.get("Host", "")
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host):      # any port: an ssh tunnel may have another
            raise Refused(403, "this page is served under 127.0.0.1 and localhost alone")
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise Refused(403, "another page asked for this")
        parts = urlsplit(self.path)
        secret, _, path = parts.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(secret.encode(), self._server.secret.encode()):
            raise Refused(403, "the address lacks the secret that `bench view` has printed")
        return path, parts.query

    @property
    def _server(self) -> Server:
        return cast(Server, self.server)

    def _get(self, path: str, query: str) -> tuple[str, bytes]:
        if path in FILES:
            kind, files = FILES[path]
            return kind, b"".join((HERE / file).read_bytes() for file in files)
        if path == "about":
            return _json(self._server.viewer.about())
        if path == "pick":
            index = parse_qs(query).get("index", [""])[0]
            if not re.fullmatch(r"\d{1,12}", index, re.ASCII):
                raise BadInput("pick: expected ?index= and a number")
            return _json(self._server.viewer.pick(int(index)))
        raise Refused(404, "there is no such page")

    def _post(self, path: str, query: str) -> tuple[str, bytes]:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length, re.ASCII):
            raise Refused(411, "the request does not say how long it is")
        if int(length) > MOST_BYTES:
            raise Refused(413, f"{int(length):,} bytes are too many; at most {MOST_BYTES:,} are taken")
        body, viewer = self.rfile.read(int(length)), self._server.viewer
        if path == "upload":
            return _json(viewer.upload(body))
        if path not in ("decode", "stages"):
            raise Refused(404, "there is no such page")
        try:
            said = json.loads(body)
            image, codes, erased = said["image"], said["codes"], said["erased"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadInput(f"{path}: expected JSON with image, codes and erased") from error
        return _json(viewer.decode(image, codes, erased, said.get("stages")) if path == "decode" else viewer.strips(image, codes, erased))

    def log_message(self, *arguments: Any) -> None:
        """Nothing: the address is a secret."""


def _json(data: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(data, allow_nan=False).encode()
