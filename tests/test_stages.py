"""The contract of `lookup_stages`, for every registered quantizer and tokenizer; and what its pictures show."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_records import record
from tiny import images, small, train_spec
from torch import Tensor

from bench.build import build_model
from bench.interfaces import Incompatible, Quantizer
from bench.levels import columns, write_levels
from bench.registry import available
from bench.report.diagnostics import folder_of
from bench.report.level_figures import read_levels, render_levels
from bench.report.strips import GAP, MARGIN
from bench.types import LatentShape, Stages
from implementations.quantizers.fsq import FSQ
from implementations.quantizers.grouped import Grouped
from implementations.quantizers.multi_scale import MultiScale
from implementations.quantizers.residual import Residual
from implementations.quantizers.vq import VQ

SHAPE = LatentShape(positions=12, dim=6, grid=(3, 4))
vq = partial(VQ, codebook_size=16, init="normal")
MADE = {
    "residual": partial(Residual, quantizer=vq, levels=3, shared=False),
    "residual, shrinking": partial(Residual, quantizer=partial(FSQ, levels=(5,) * 6), levels=3, shrink=0.25),
    "residual of groups": partial(Residual, quantizer=partial(Grouped, quantizer=vq, groups=2), levels=2),
    "groups": partial(Grouped, quantizer=vq, groups=3),
    "groups that share": partial(Grouped, quantizer=vq, groups=2, shared=True),
    "groups of residuals": partial(Grouped, quantizer=partial(Residual, quantizer=vq, levels=2), groups=2),
    "scales": partial(MultiScale, quantizer=vq),
    "scales of residuals": partial(MultiScale, quantizer=partial(Residual, quantizer=vq, levels=2), phi="none"),
}
every = pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())


def coded(make: partial) -> tuple[Quantizer, Tensor]:
    torch.manual_seed(0)
    quantizer = make(SHAPE).eval()
    latents = torch.randn(2, SHAPE.positions, quantizer.input_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return quantizer, quantizer(latents).codes


@every
@torch.no_grad()
def test_all_stages_are_the_lookup_and_each_is_a_summand_of_it(make: partial) -> None:
    quantizer, codes = coded(make)
    whole, count = quantizer.lookup(codes), quantizer.stages.count
    assert torch.equal(quantizer.lookup_stages(codes, range(count)), whole)
    alone = [quantizer.lookup_stages(codes, [i]) for i in range(count)]
    torch.testing.assert_close(sum(alone), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(quantizer.lookup_stages(codes, {count - 1, 0}), alone[0] + alone[-1] if count > 1 else whole)
    assert all(part.any() for part in alone)


@every
@torch.no_grad()
def test_a_stage_depends_on_its_own_codes_alone(make: partial) -> None:
    quantizer, codes = coded(make)
    stages, layout = quantizer.stages, quantizer.layout
    assert stages.grids == (stages.count == len(layout.grids) > 1)
    for i in range(stages.count):
        others = (codes + 1) % torch.tensor(layout.vocab_sizes)
        if stages.grids:
            first = sum(h * w for h, w in layout.grids[:i])
            own = (slice(None), slice(first, first + layout.grids[i][0] * layout.grids[i][1]))
        else:
            width = len(layout.vocab_sizes) // stages.count
            own = (slice(None), slice(None), slice(i * width, (i + 1) * width))
        others[own] = codes[own]
        assert torch.equal(quantizer.lookup_stages(others, [i]), quantizer.lookup_stages(codes, [i]))


@pytest.mark.parametrize("name", ["residual", "residual, shrinking", "residual of groups", "scales", "scales of residuals"])
@torch.no_grad()
def test_the_first_stages_are_the_coarse_to_fine_sequence(name: str) -> None:
    quantizer, codes = coded(MADE[name])
    assert quantizer.stages.refine
    sums = quantizer.partial_sums(codes)
    assert len(sums) == quantizer.stages.count
    for i, wanted in enumerate(sums, start=1):
        assert torch.equal(quantizer.lookup_stages(codes, range(i)), wanted)


@torch.no_grad()
def test_other_groups_are_zero() -> None:
    quantizer, codes = coded(MADE["groups"])
    assert not quantizer.stages.refine
    found = quantizer.lookup_stages(codes, [1])
    width = quantizer.output_dim // 3
    assert torch.equal(found[..., width : 2 * width], quantizer.lookup(codes)[..., width : 2 * width])
    assert not found[..., :width].any() and not found[..., 2 * width :].any()


@pytest.mark.parametrize("name", available("quantizer"))
@torch.no_grad()
def test_whoever_has_no_stages_says_so(name: str) -> None:
    torch.manual_seed(0)
    try:
        quantizer = small("quantizer", name).partial()(LatentShape(positions=16, dim=8, grid=(4, 4))).eval()
    except Incompatible:
        pytest.skip(f"{name} does not fit into this shape")
    codes = quantizer(torch.randn(2, 16, quantizer.input_dim)).codes
    if quantizer.stages is None:
        with pytest.raises(Incompatible, match="not made of levels"):
            quantizer.lookup_stages(codes, [0])
    else:
        assert torch.equal(quantizer.lookup_stages(codes, range(quantizer.stages.count)), quantizer.lookup(codes))


@pytest.mark.parametrize("name", ["fqgan", "rqvae", "var"])
@torch.no_grad()
def test_tokenizers_decode_their_stages(name: str) -> None:
    spec = train_spec(model=small("tokenizer", name), dataset=small("dataset", "photos", image_size=32))
    model = build_model(spec)[0].eval()
    pixels = torch.from_numpy(images(2, 32)).float() / 127.5 - 1
    codes = model.tokenize(pixels)
    quantizer, whole = model.quantizer, model.detokenize(codes)
    count = quantizer.stages.count
    assert count == {"fqgan": 2}.get(name, count) > 1
    assert torch.equal(model.decode(quantizer.lookup_stages(codes, range(count))), whole)
    first, last = (model.decode(quantizer.lookup_stages(codes, [i])) for i in (0, count - 1))
    assert first.shape == whole.shape and not np.allclose(first, whole) and not np.allclose(first, last)


# -- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fqgan", "rqvae"])
@torch.no_grad()
def test_the_picture_of_a_run_holds_what_its_headings_say(name: str, tmp_path: Path) -> None:
    spec = train_spec(model=small("tokenizer", name), dataset=small("dataset", "photos", image_size=32))
    model = build_model(spec)[0].eval()
    pixels = torch.from_numpy(images(10, 32))
    codes = model.tokenize(pixels.float() / 127.5 - 1)
    write_levels(tmp_path / "levels.png", model.train(), pixels, codes)
    assert model.training
    model.eval()
    found = {c.heading: c.pictures for c in read_levels(tmp_path / "levels.png")}
    assert np.array_equal(found.pop("original"), pixels[:8].permute(0, 2, 3, 1))
    sets = {"reconstruction": [0, 1], "group 1 alone": [0], "group 2 alone": [1]} if name == "fqgan" else \
        {"level 1": [0], "levels 1–2": [0, 1], "levels 1–3": [0, 1, 2]}
    assert list(found) == list(sets)
    for heading, chosen in sets.items():
        made = model.decode(model.quantizer.lookup_stages(codes[:8], chosen))
        wanted = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(found[heading], wanted)


def test_of_many_stages_some_are_shown() -> None:
    shown = columns(Stages(32, "level", refine=True))
    assert len(shown) == 10 and shown[0] == ("level 1", [0]) and shown[-1] == ("levels 1–32", list(range(32)))


def test_reports_show_the_levels_of_runs_that_have_them(tmp_path: Path) -> None:
    run, other = record("a" * 12, {"psnr": 1.0}, label="residual"), record("b" * 12, {"psnr": 1.0}, label="plain")
    model = build_model(train_spec(model=small("tokenizer", "rqvae"), dataset=small("dataset", "photos", image_size=32)))[0].eval()
    pixels = torch.from_numpy(images(3, 32))
    with torch.no_grad():
        codes = model.tokenize(pixels.float() / 127.5 - 1)
    (tmp_path / "runs" / run.train_id / "images").mkdir(parents=True)
    write_levels(tmp_path / "runs" / run.train_id / "images" / "levels.png", model, pixels, codes)
    paths = render_levels("s", [run, other], tmp_path / "runs", tmp_path / "reports")
    assert paths == [tmp_path / "reports/s/diagnostics" / folder_of(run) / "levels.png"]
    figure = np.asarray(Image.open(paths[0]).convert("RGB"))
    tiles = pixels.permute(0, 2, 3, 1).repeat_interleave(3, 1).repeat_interleave(3, 2).numpy()         # 96 pixels at least
    top = next(y for y in range(60) if np.array_equal(figure[y : y + 96, MARGIN : MARGIN + 96], tiles[0]))
    assert np.array_equal(figure[top + 96 + GAP :][:96, MARGIN : MARGIN + 96], tiles[1])
