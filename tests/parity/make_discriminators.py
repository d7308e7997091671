"""Goldens of discriminators: logits and image gradients (every third pixel) of public code, small, with seeded weights.

    python tests/parity/make_discriminators.py TAMING MASKBIT ENHANCING IMAGEFOLDER

Checkouts of CompVis/taming-transformers (3ba01b241669), markweberdev/maskbit, thuanz123/enhancing-transformers and
lxa9867/ImageFolder (whose file is VAR's). enhancing-transformers' compiled operators are replaced by its own CPU branches.
"""

from __future__ import annotations

import ast
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from codebook_recording import Absent, load, save
from torch import Tensor, nn


def seeded(module: nn.Module) -> nn.Module:
    """Parameter i, in order, from the generator with seed i; scales around 1."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return module.train()


def images(batch: int, side: int) -> Tensor:
    return (torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(7)) * 2 - 1).requires_grad_()


def case(module: nn.Module, batch: int, side: int) -> dict[str, Tensor]:
    x = images(batch, side)
    logits = module(x).flatten()
    toward = torch.randn(logits.shape, generator=torch.Generator().manual_seed(8))
    return {"logits": logits, "image_grad": torch.autograd.grad(logits @ toward, x)[0][..., ::3, ::3]}


def only(file: Path, *names: str) -> dict[str, object]:
    """Some functions and classes of a file, without running the rest of it."""
    text = file.read_text()
    body = [n for n in ast.parse(text).body if getattr(n, "name", "") in names]
    space: dict[str, object] = {"torch": torch, "F": F, "nn": nn, "math": __import__("math"),
                                "abc": __import__("collections.abc").abc, "List": list, "Tuple": tuple}
    exec(compile(ast.Module(body, []), str(file), "exec"), space)
    return space


if __name__ == "__main__":
    torch.set_num_threads(1)
    taming, maskbit, enhancing, folder = map(Path, sys.argv[1:])
    cases = {}
    published = load(taming / "taming/modules/discriminator/model.py", "taming.modules.util")
    for layers in (2, 3):
        cases[f"patch{layers}"] = case(seeded(published.NLayerDiscriminator(ndf=4, n_layers=layers)), 2, 32)

    stand_in = Absent("modeling.modules.autoencoder")
    stand_in.Conv2dSame = only(maskbit / "modeling/modules/autoencoder.py", "Conv2dSame")["Conv2dSame"]
    sys.modules["modeling"], sys.modules["modeling.modules"] = Absent("modeling"), Absent("modeling.modules")
    sys.modules["modeling.modules.autoencoder"] = stand_in
    blurred = load(maskbit / "modeling/modules/discriminator.py").NLayerDiscriminatorv2
    cases["blur"] = case(seeded(blurred(hidden_channels=32, num_stages=2, blur_resample=True)), 2, 25)

    operators = enhancing / "enhancing/losses/op"
    fused = only(operators / "fused_act.py", "FusedLeakyReLU", "fused_leaky_relu")
    space = only(operators / "upfirdn2d.py", "upfirdn2d", "upfirdn2d_native") | fused
    space["conv2d_gradfix"] = type("conv2d_gradfix", (), {"conv2d": staticmethod(F.conv2d)})
    names = ("Blur", "EqualConv2d", "EqualLinear", "ConvLayer", "StyleBlock", "StyleDiscriminator")
    space |= {"log2": __import__("math").log2, "sqrt": __import__("math").sqrt}
    text = (enhancing / "enhancing/losses/layers.py").read_text().replace("512,", "8,").replace("256 *", "4 *")
    body = [n for n in ast.parse(text).body if getattr(n, "name", "") in names]
    exec(compile(ast.Module(body, []), "layers.py", "exec"), space)
    cases["stylegan2"] = case(seeded(space["StyleDiscriminator"](size=32)), 4, 32)

    sys.modules["dist"] = Absent("dist")
    dino = load(folder / "tokenizer/tokenizer_image/discriminator_dino.py")
    random.random = lambda: 1.0                 # shrink, never crop
    trunk = seeded(dino.FrozenDINOSmallNoDrop(embed_dim=64, num_heads=1, depth=3)).eval()
    heads = nn.ModuleList([nn.Sequential(
        dino.make_block(64, 1, "bn", 1e-6, True),
        dino.ResidualBlock(dino.make_block(64, 9, "bn", 1e-6, True)),
        dino.SpectralConv1d(64, 1, kernel_size=1)) for _ in range(2)])
    seeded(heads)
    for i, (name, buffer) in enumerate(sorted(heads.named_buffers())):
        if name.endswith(("weight_u", "weight_v")):
            drawn = torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1000 + i))
            buffer.copy_(F.normalize(drawn, dim=0))
    whole = lambda x: torch.cat([h(t).flatten(1) for h, t in zip(heads, trunk(x), strict=True)], 1)  # noqa: E731
    found = case(whole, 2, 16)
    found["u"] = torch.cat([b.flatten() for n, b in sorted(heads.named_buffers()) if n.endswith("weight_u")])
    cases["dino"] = found
    save("discriminators", cases)
