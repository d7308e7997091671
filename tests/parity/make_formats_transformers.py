"""Goldens of published networks at a small width, those on transformers and the small convolutional ones: as make_formats.py.

    python tests/parity/make_formats_transformers.py FOLDER     that holds checkouts called like their repositories

1d-tokenizer 942a96fbdd87, bsq-vit 37d212d2b43f, enhancing-transformers e1c185da5cc0, DALL-E 5be4b236bc3a (which needs attrs),
vq-vae-2-pytorch ef5f67c46f93, vqvae (hoanhle's) abf0f98ff159. TiTok's widths, layers and heads are numbers in its source: these
are replaced in its text, nothing else. The layer that writes pixels is scaled so that they span the image's range, as in
networks that were trained. Nothing of the networks is stored but names, shapes and such factors. Prints the largest
differences of ours.
"""

import importlib
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformer_states import filled, patchwork

ROOT, HERE = Path(sys.argv[1]), Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
K, D = 64, 8                                    # codes and their width
COLUMNS = 8                                     # of each reconstruction that are kept
Ran = tuple[Tensor | None, Tensor, Tensor]      # codes [1, ...], quantized [1, P, D], image as the network writes it


class Case(NamedTuple):
    name: str
    format: str
    size: int                                   # of the image
    model: nn.Module
    run: Callable[[Tensor], Ran]                # of an image as the network reads it
    last: str                                   # layer that writes pixels
    changes: dict[str, float] = {}              # factors of tensors, so that codes lie among the latents
    keep: tuple[str, ...] = ()                  # tensors that stay as the public code makes them


class Settings(dict):
    """Read by attribute, as OmegaConf's."""

    __getattr__ = dict.__getitem__

    @classmethod
    def create(cls, given: dict) -> "Settings":
        return cls({k: cls.create(v) if isinstance(v, dict) else v for k, v in given.items()})


def module(name: str, **attributes: object) -> types.ModuleType:
    """A stand-in for what a file imports and does not need here, or for a package whose __init__ imports more."""
    made = types.ModuleType(name)
    vars(made).update(attributes)
    return sys.modules.setdefault(name, made)


def load(path: str, name: str | None = None, numbers: dict[str, str] | None = None) -> Any:
    """A file of public code, with `numbers` replaced in its text."""
    text = (ROOT / path).read_text()
    for published, small in (numbers or {}).items():
        assert published in text, published
        text = text.replace(published, small)
    made = module(name or path.replace("/", "_"), __file__=str(ROOT / path))
    exec(compile(text, str(ROOT / path), "exec"), vars(made))
    return made


def rows(grid: Tensor) -> Tensor:
    return grid.flatten(2).transpose(1, 2)


def titok() -> Iterator[Case]:
    root = ROOT / "1d-tokenizer/modeling"
    for name in ("modeling", "modeling.modules", "modeling.quantizer"):
        module(name, __path__=[str(root.joinpath(*name.split(".")[1:]))])
    module("omegaconf", OmegaConf=Settings)
    load("1d-tokenizer/modeling/modules/blocks.py", "modeling.modules.blocks", {
        '"small": 512': '"small": 128', '"base": 768': '"base": 64', '"large": 1024': '"large": 128',
        '"small": 8': '"small": 2', '"base": 12': '"base": 1', '"large": 24': '"large": 3', '"large": 16': '"large": 2'})
    source = load("1d-tokenizer/modeling/titok.py", "modeling.titok", {'"hidden_channels": 128': '"hidden_channels": 32'})
    older = {"use_l2_norm": True, "is_legacy": True, "finetune_decoder": True}
    newer = {"use_l2_norm": False, "is_legacy": False, "finetune_decoder": False}
    for name, sides, settings in (("titok_s", "small small", older), ("titok_bl", "base large", newer),
                                  ("titok_bl_vae", "base large", newer | {"quantize_mode": "vae"})):
        settings = settings | {
            "codebook_size": K, "token_size": D, "commitment_cost": 0.25, "num_latent_tokens": 16, "vit_enc_patch_size": 16,
            "vit_dec_patch_size": 16, "vit_enc_model_size": sides.split()[0], "vit_dec_model_size": sides.split()[1]}
        model = source.TiTok({"model": {"vq_model": settings}, "dataset": {"preprocessing": {"crop_size": 32}}})

        def run(x: Tensor, model: Any = model) -> Ran:
            z, info = model.encode(x)
            if model.quantize_mode == "vae":
                return None, rows(info.mode()), model.decode(info.mode())
            return info["min_encoding_indices"], rows(z), model.decode(z)

        yield Case(name, "titok", 32, model, run, "pixel_decoder.conv_out" if settings["is_legacy"] else "decoder.conv_out")


def bsq_vit() -> Iterator[Case]:
    for name in ("", ".losses", ".models", ".models.quantizer"):
        module(f"transcoder{name}", __path__=[str(ROOT.joinpath("bsq-vit/transcoder", *name.split(".")[1:]))])
    timm = importlib.import_module("timm.layers")
    module("timm.models.layers", to_2tuple=timm.to_2tuple, trunc_normal_=timm.trunc_normal_, DropPath=timm.DropPath)
    source = importlib.import_module("transcoder.models.bsqvit")
    vit = {"image_size": 16, "patch_size": 4, "width": 128, "layers": 2, "heads": 2, "mlp_ratio": 4}
    for name, bits in (("bsq_vit", 12), ("bsq_vit_36", 36), ("bsq_vit_table", 0)):
        if bits:
            model = source.VITBSQModel(vit, bits, 1, l2_norm=True, persample_entropy_compute="analytical", post_q_l2_norm=True)
        else:
            model = source.VITVQModel(vit, K, D, l2_norm=True)

        def run(x: Tensor, model: Any = model, bits: int = bits) -> Ran:
            z, _, info = model.encode(x)
            if not bits:
                return info["indices"], z, model.decode(z)
            base = 2 ** torch.arange(min(bits, 18) - 1, -1, -1)
            codes = ((z > 0).long().unflatten(-1, (-1, len(base))) * base).sum(-1)
            if bits <= 18:              # it makes them in floats, of z + (sign - z), and cuts off what is behind the point
                print(f"    {int((info['indices'] != codes[..., 0]).sum())} of its {codes.numel()} indices are not of its signs")
            return codes, z, model.decode(z)

        yield Case(name, "bsq_vit", 16, model, run, "decoder.conv_out")


def vit_vqgan() -> Iterator[Case]:
    np.float = float                                                                # as older versions of numpy had it
    layers = load("enhancing-transformers/enhancing/modules/stage1/layers.py")
    quantizers = load("enhancing-transformers/enhancing/modules/stage1/quantizers.py")

    class ViTVQ(nn.Module):
        """What its trainer puts together: same names. Heads have 64 channels whatever the width."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = layers.ViTEncoder(16, 4, dim=64, depth=2, heads=2, mlp_dim=256)
            self.decoder = layers.ViTDecoder(16, 4, dim=128, depth=1, heads=1, mlp_dim=512)
            self.quantizer, self.pre_quant, self.post_quant = quantizers.VectorQuantizer(D, K), nn.Linear(64, D), nn.Linear(D, 128)

    model = ViTVQ()

    def run(x: Tensor) -> Ran:
        z, _, codes = model.quantizer(model.pre_quant(model.encoder(x)))
        return codes, z, model.decoder(model.post_quant(z))

    yield Case("vit_vqgan", "vit_vqgan", 16, model, run, "decoder.to_pixel.1", {"encoder.to_patch_embedding.0.weight": 40.0, "pre_quant.bias": 0.0},
               ("encoder.en_pos_embedding", "decoder.de_pos_embedding"))


def dalle_dvae() -> Iterator[Case]:
    sys.path.insert(0, str(ROOT / "DALL-E"))
    from dall_e.decoder import Decoder
    from dall_e.encoder import Encoder
    from dall_e.utils import map_pixels

    model = nn.Module()
    model.encoder, model.decoder = Encoder(n_hid=64, vocab_size=512), Decoder(n_hid=64, vocab_size=512, n_init=D)

    def run(x: Tensor) -> Ran:
        codes = model.encoder(map_pixels(x)).argmax(1)
        one_hot = nn.functional.one_hot(codes, 512).permute(0, 3, 1, 2).float()
        pixels = (torch.sigmoid(model.decoder(one_hot)[:, :3]) - 0.1) / 0.8         # its unmap_pixels clamps besides
        return codes, rows(model.decoder.blocks.input(one_hot)), pixels

    yield Case("dalle_dvae", "dalle_dvae", 32, model, run, "", {"decoder.blocks.input.w": 20.0, "encoder.blocks.input.w": 40.0})


def vqvae2() -> Iterator[Case]:
    module("distributed", all_reduce=None)
    model = load("vq-vae-2-pytorch/vqvae.py").VQVAE(channel=32, n_res_channel=16, embed_dim=D, n_embed=K)

    def run(x: Tensor) -> Ran:
        coarse, fine, _, codes_t, codes_b = model.encode(x)
        codes = torch.cat([codes_t.flatten(1), codes_b.flatten(1) + K], 1)
        return codes, torch.cat([rows(coarse), rows(fine)], 1), model.decode(coarse, fine)

    yield Case("vqvae2", "vqvae2", 32, model, run, "dec.blocks.6",
               {"quantize_t.embed": 2.0, "quantize_b.embed": 2.0, "enc_b.blocks.0.weight": 4.0})


def hoanhle() -> Iterator[Case]:
    module("utils", __path__=[])
    module("utils.torch_utils", export_to_netron=None)
    source = load("vqvae/models/vqvae.py")
    for name, averages in (("hoanhle_ema", True), ("hoanhle_loss", False)):
        model = source.VQVAE(3, 32, 2, 2, 16, D, K, averages, 0.99, 1e-5, False, "random")

        def run(x: Tensor, model: Any = model) -> Ran:
            z = model.quantize(x)
            return model.encoding_indices, rows(z), model.decoder(z)

        unmoved = {} if averages else {f"vq.{part}_i_ts.{kind}": 0.0 for part in "Nm" for kind in ("hidden", "average")}
        yield Case(name, "hoanhle", 16, model, run, "decoder.upconv.up1",
                   {"vq.e_i_ts": 2.0, "encoder.conv.down0.weight": 6.0} | unmoved)


def opened(case: Case, folder: Path) -> Any:
    from bench.load import load_tokenizer

    if case.format == "dalle_dvae":                     # as published: whole modules
        for side in ("encoder", "decoder"):
            torch.save(getattr(case.model, side), folder / f"{side}.pkl")
        return load_tokenizer(folder, format=case.format, image_size=case.size)
    torch.save({"state_dict": case.model.state_dict()}, folder / "published.pt")
    return load_tokenizer(folder / "published.pt", format=case.format, image_size=case.size)


def main() -> None:
    from bench.registry import resolve

    told: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for case in (case for make in (titok, bsq_vit, vit_vqgan, dalle_dvae, vqvae2, hoanhle) for case in make()):
        state = case.model.eval().state_dict()
        shapes = {k: list(v.shape) for k, v in state.items() if v.is_floating_point() and k not in case.keep}
        changes = {key: [factor, 0.0] for key, factor in case.changes.items()}
        black, white = resolve("format", case.format).pixels
        images = (patchwork(case.size) + 1) / 2 * (white - black) + black
        case.model.load_state_dict(state | filled(shapes, changes))
        if case.last:                                   # is linear, so that the pixels' range can be set
            raw = case.run(images)[2]
            factor = round(float((white - black) / (raw.max() - raw.min())), 4)
            changes |= {f"{case.last}.weight": [factor, 0.0], f"{case.last}.bias": [factor, round(float(black - factor * raw.min()), 4)]}
            case.model.load_state_dict(state | filled(shapes, changes))
        codes, quantized, raw = case.run(images)
        reconstruction = (raw - black) / (white - black) * 2 - 1
        with tempfile.TemporaryDirectory() as folder:
            ours = opened(case, Path(folder))
        out = ours(patchwork(case.size))
        said = ""
        if codes is not None:
            codes = codes.reshape(out.codes.shape)
            said = f"{int((out.codes != codes).sum())} of {codes.numel()} codes differ, {len(codes.unique())} used, "
            arrays[f"{case.name}.codes"] = codes.numpy().astype(np.int32)
        print(f"{case.name}: {said}quantized {(out.quantized - quantized).abs().max():.1e}, reconstruction "
              f"{(out.reconstruction - reconstruction).abs().max():.1e} of {reconstruction.abs().max():.2f}", flush=True)
        told[case.name] = {"format": case.format, "size": case.size, "changes": changes, "shapes": shapes,
                           "others": {k: list(v.shape) for k, v in state.items() if k not in shapes}}
        arrays |= {f"{case.name}.quantized": quantized.numpy(),
                   f"{case.name}.reconstruction": reconstruction.numpy()[..., :: case.size // COLUMNS]}
    arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    np.savez_compressed(HERE / "formats_transformers.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
