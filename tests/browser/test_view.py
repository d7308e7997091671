"""The page of `bench view` in a real browser, and its server against requests that are not the page's."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import images, small, train_spec

from bench.build import build_model
from bench.image_dataset import ImageDataset
from bench.view import Server, Viewer

SIZE = 32
HOSTILE = ['<svg onload=document.title="owned">.png', "\"'><img src=x onerror=alert(1)>.png", "ü😀" * 20 + ".png",
           "x" * 300 + ".png", "..x; rm -rf ~.png"]


class Pictures(ImageDataset):
    """Five pictures in memory."""

    def __init__(self) -> None:
        self.pictures = images(5, SIZE)

    def listing(self) -> Any:
        return [("", 0)] * len(self.pictures)

    def load(self, index: int, generator: Any = None) -> np.ndarray:
        return self.pictures[index]

    def without(self, names: frozenset[str]) -> Any:
        raise NotImplementedError


def viewer(name: str, test: bool = True, **keywords: Any) -> Viewer:
    spec = train_spec(model=small("tokenizer", name, **keywords), dataset=small("dataset", "photos", image_size=SIZE))
    model = build_model(spec)[0]
    table = model.quantizer.tables()[0] if name == "vqvae" and model.layout.vocab_sizes else None
    if table is not None:                       # so that an untrained encoder chooses several codes
        with torch.no_grad():
            table.copy_(model.encode(torch.from_numpy(images(1, SIZE)).float() / 127.5 - 1)[0, ::4])
    return Viewer(model.eval().requires_grad_(False), SIZE, f"<b>{name}</b>", Pictures() if test else None, "none here")


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(looked_at: Viewer) -> Server:
        server = Server(looked_at)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def opened(browser: Any) -> Any:
    """Opens the page of a server; afterwards it must have said nothing and asked nobody else."""
    contexts, said = [], []

    def open_page(server: Server, width: int = 1280) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        own = ("data:", "blob:", server.address)
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(own) else None)
        page.goto(server.address)
        page.wait_for_selector("html[data-ready=true]", state="attached", timeout=30_000)     # evaluating strings is forbidden
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def settled(page: Any) -> None:
    page.wait_for_selector("body:not(.busy)", timeout=30_000)


def named(page: Any, name: str) -> None:
    """Waits until an image of this name is shown."""
    for _ in range(300):
        if page.text_content("#name") == name:
            break
        page.wait_for_timeout(50)
    assert page.text_content("#name") == name
    settled(page)


def shown(page: Any, element: str) -> np.ndarray:
    """Pixels [h, w, 3] of an <img> as it was sent."""
    import base64

    source = page.get_attribute(f"#{element}", "src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def decoded(looked_at: Viewer, codes: torch.Tensor, stages: list[int] | None = None) -> np.ndarray:
    quantizer = looked_at.tokenizer.quantizer
    with torch.no_grad():
        made = looked_at.tokenizer.decode(quantizer.lookup(codes) if stages is None else quantizer.lookup_stages(codes, stages))
    return ((made[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def tokens(looked_at: Viewer, picture: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return looked_at.tokenizer.tokenize(torch.from_numpy(picture)[None].float() / 127.5 - 1)


def click(page: Any, row: int, column: int, side: int) -> None:
    box = page.locator("#map").bounding_box()
    page.locator("#map").click(position={"x": (column + 0.5) * box["width"] / side, "y": (row + 0.5) * box["height"] / side})


def test_upload_reconstruct_save(serve: Any, opened: Any, tmp_path: Path) -> None:
    looked_at = viewer("vqvae")
    page = opened(serve(looked_at))
    assert page.inner_text("h1") == page.title() == "<b>vqvae</b>"
    own = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for i, name in enumerate(HOSTILE):
        file = io.BytesIO()
        Image.fromarray(own + np.uint8(i)).save(file, "PNG")
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": file.getvalue()})
        named(page, name)
        np.testing.assert_array_equal(shown(page, "original"), own + np.uint8(i))
    picture = (own + np.uint8(len(HOSTILE) - 1)).transpose(2, 0, 1)
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, tokens(looked_at, picture)))
    wanted = 10 * np.log10(255**2 / ((shown(page, "original").astype(float) - shown(page, "picture")) ** 2).mean())
    assert f"PSNR {wanted:.2f} dB, SSIM" in page.inner_text("#made")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "x-rm-rf.png"
    download.value.save_as(tmp_path / "saved.png")
    saved = np.asarray(Image.open(tmp_path / "saved.png").convert("RGB"))
    assert saved.shape == (256, 3 * 256 + 2 * 8, 3)
    np.testing.assert_array_equal(saved[4::8, 4:256:8], shown(page, "original"))
    np.testing.assert_array_equal(saved[4::8, 264 + 4 : 264 + 256 : 8], shown(page, "picture"))


def test_test_images_are_picked(serve: Any, opened: Any) -> None:
    looked_at = viewer("vqvae")
    page = opened(serve(looked_at))
    for button, index in (("#next", 1), ("#next", 2), ("#previous", 1)):
        page.click(button)
        named(page, f"image {index} of the test split")
        np.testing.assert_array_equal(shown(page, "original"), looked_at.test.load(index).transpose(1, 2, 0))
    page.fill("#index", "4")
    page.press("#index", "Enter")
    named(page, "image 4 of the test split")
    page.click("#random")
    settled(page)
    assert page.input_value("#index") in "01234"


def test_tokens_are_edited_and_the_effect_is_decoded(serve: Any, opened: Any) -> None:
    looked_at = viewer("vqvae")
    page = opened(serve(looked_at))
    codes = tokens(looked_at, looked_at.test.load(0))
    side = looked_at.grids[0][0]
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, codes))
    a, b = (0, next(n for n in range(1, side**2) if codes[0, n] != codes[0, 0]))
    assert page.is_disabled("#swap")
    for token in (a, b):
        click(page, token // side, token % side, side)
    assert f"code {int(codes[0, b, 0])} of 0 to 15" in page.inner_text("#line") and "2 chosen" in page.inner_text("#line")
    page.click("#swap")
    settled(page)
    swapped = codes.clone()
    swapped[0, [a, b]] = codes[0, [b, a]]
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, swapped))
    assert page.inner_text("#made").startswith("2 tokens edited: PSNR")
    page.fill("#code", "7")
    page.click("#set")
    settled(page)
    swapped[0, [a, b]] = 7
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, swapped))
    page.click("#undo")
    settled(page)
    page.click("#reset")
    settled(page)
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, codes))
    page.locator("#map").focus()
    page.keyboard.press("Delete")
    settled(page)
    with torch.no_grad():
        quantized = looked_at.tokenizer.quantizer.lookup(codes)
        quantized[0, [a, b]] = 0
        made = looked_at.tokenizer.decode(quantized)
    np.testing.assert_array_equal(shown(page, "picture"), ((made[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    page.click("#reset")
    settled(page)
    page.fill("#code", "99")
    page.click("#set")
    assert page.inner_text("#error") == "Codes of this map are 0 to 15."


def test_a_level_is_shuffled_and_levels_are_decoded_alone(serve: Any, opened: Any) -> None:
    looked_at = viewer("fqgan")
    page = opened(serve(looked_at))
    codes = tokens(looked_at, looked_at.test.load(0))
    assert page.locator("#strip button").count() == 2 and page.locator("#level option").count() == 2
    page.click("#strip button >> nth=1")
    settled(page)
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, codes, [1]))
    assert page.inner_text("#made").startswith("Group 2 alone")
    page.click("#chosen button")
    settled(page)
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, codes))
    page.select_option("#level", index=1)
    page.evaluate("Math.random = () => 0")      # every token goes one place on, the first to the end
    with page.expect_request("**/decode") as request:
        page.click("#shuffle")
    settled(page)
    sent = torch.tensor(json.loads(request.value.post_data)["codes"]).view(codes.shape)
    assert torch.equal(sent[..., 0], codes[..., 0])
    assert torch.equal(sent[..., 1], codes[..., 1].roll(-1, 1))
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, sent))


@pytest.mark.parametrize("name", ["rqvae", "var"])
def test_coarse_to_fine(serve: Any, opened: Any, name: str) -> None:
    looked_at = viewer(name)
    page = opened(serve(looked_at))
    count = looked_at.stages.count
    assert page.locator("#strip button").count() == 2 * count
    codes = tokens(looked_at, looked_at.test.load(0))
    page.click("#strip button >> nth=0")
    settled(page)
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, codes, [0]))
    page.click(f"#strip button >> nth={count - 1}")
    settled(page)
    np.testing.assert_array_equal(shown(page, "picture"), decoded(looked_at, codes))


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(serve: Any, opened: Any, width: int) -> None:
    page = opened(serve(viewer("rqvae")), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_continuous_tokenizer_has_no_map(serve: Any, opened: Any) -> None:
    page = opened(serve(viewer("vqvae", quantizer={"name": "gaussian_kl"})))
    assert not page.is_visible("#map") and not page.is_visible("#editing") and page.is_visible("#picture")


# -- the server, without a browser ---------------------------------------------------------------------------


def ask(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if "json" in (answer.getheader("Content-Type") or "") else content, answer


def test_only_the_page_itself_is_answered(serve: Any) -> None:
    server = serve(viewer("vqvae"))
    assert server.server_address[0] == "127.0.0.1"
    own = urlsplit(server.address).path
    status, _, answer = ask(server, own)
    policy = answer.getheader("Content-Security-Policy")
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for path in ("/", "/about", f"/{'x' * 22}/about", own[:-2] + "/", "//evil.example/about"):
        assert ask(server, path)[0] == 403, path
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", ""):
        assert ask(server, f"{own}about", Host=host)[0] == 403, host
    assert ask(server, f"{own}about", Host="localhost:9999")[0] == 200          # through a tunnel
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert ask(server, f"{own}decode", b"{}", Origin=origin)[0] == 403, origin
    for path in ("../view.py", "%2e%2e/view.py", "view.html", "x"):
        assert ask(server, own + path)[0] == 404, path
    assert ask(server, f"{own}upload", b"", **{"Content-Length": str(10**9)})[0] == 413


def test_bad_requests_are_one_sentence(serve: Any) -> None:
    looked_at = viewer("fqgan")
    server = serve(looked_at)
    own = urlsplit(server.address).path
    found = ask(server, f"{own}pick?index=0")[1]
    codes, count = found["codes"], len(found["codes"])
    whole = {"image": found["image"], "codes": codes, "erased": [], "stages": None}
    assert ask(server, f"{own}decode", json.dumps(whole).encode())[1]["picture"] == found["picture"]
    bad = [{"codes": codes[1:]}, {"codes": [16, *codes[1:]]}, {"codes": [-1, *codes[1:]]}, {"codes": [0.5, *codes[1:]]}, {"codes": "x" * count},
           {"codes": [True, *codes[1:]]}, {"codes": [10**40, *codes[1:]]}, {"erased": [[0, 9]]}, {"erased": [[10**6, 0]]},
           {"erased": 3}, {"stages": []}, {"stages": [2]}, {"stages": "all"}, {"image": 99}, {"image": [1]}]
    for change in bad:
        status, said, _ = ask(server, f"{own}decode", json.dumps(whole | change).encode())
        assert status == 400 and said["error"] and "\n" not in said["error"], change
    for path, body in (("decode", b"{"), ("decode", b"[]"), ("decode", b"[" * 100_000), ("upload", b"no picture"), ("upload", b"")):
        status, said, _ = ask(server, own + path, body)
        assert status == 400 and said["error"], (path, body[:10])
    for index in ("-1", "5", "x", "%D9%A3", "1" * 30, ""):
        assert ask(server, f"{own}pick?index={index}")[0] == 400, index


def test_an_erased_level_is_zero_where_it_stands() -> None:
    looked_at = viewer("fqgan")
    found = looked_at.pick(0)
    codes = torch.tensor(found["codes"]).view(1, looked_at.layout.num_tokens, 2)
    quantizer = looked_at.tokenizer.quantizer
    with torch.no_grad():
        got = looked_at._quantized(codes, [[3, 1]], [0, 1])
        wanted = quantizer.lookup(codes)
        wanted[0, 3, quantizer.output_dim // 2 :] = 0
    assert torch.equal(got, wanted)


def test_an_erased_coarse_token_takes_its_part_of_the_image() -> None:
    looked_at = viewer("var")
    found = looked_at.pick(0)
    codes = torch.tensor(found["codes"]).view(1, looked_at.layout.num_tokens, 1)
    quantizer, count = looked_at.tokenizer.quantizer, looked_at.stages.count
    with torch.no_grad():
        without_coarsest = looked_at._quantized(codes, [[0, 0]], list(range(count)))
        wanted = quantizer.lookup_stages(codes, range(1, count))
        second = looked_at._quantized(codes, [[1, 0]], list(range(count)))
        lost = (quantizer.lookup(codes) - second).abs().sum(-1).view(looked_at.layout.grids[-1])
    torch.testing.assert_close(without_coarsest, wanted, rtol=0, atol=1e-5)
    h, w = lost.shape
    assert looked_at.layout.grids[:2] == ((1, 1), (2, 2))
    assert (lost[: h // 2, : w // 2] > 1e-5).any() and (lost[h // 2 :] < 1e-5).all() and (lost[:, w // 2 :] < 1e-5).all()
