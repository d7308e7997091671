"""Goldens of published networks at a small width: codes, quantized latents and reconstruction of one image.

    python tests/parity/make_formats.py FOLDER      that holds checkouts called like their repositories

taming-transformers 3ba01b241669, latent-diffusion a506df575647, LlamaGen ce98ec41803a, FQGAN dc34256b36af, OptVQ b71895cc931b,
SEED-Voken b9a17eac8e2c, VAR 78b95394fc58, MoVQGAN f3976d875282, maskbit 5ea3d733c626,
rq-vae-transformer 341395e562ac. Weights are filled by
format_states.py; nothing of the networks is stored but the names and shapes of their tensors. Further words are names of
functions below: only these are made anew. Prints the largest difference of ours.
"""

import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from format_states import filled, pictures
from torch import Tensor, nn

ROOT, HERE = Path(sys.argv[1]), Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
K, D, Z = 64, 8, 16                             # codes, their width, the width before the projection
SIZE, FACTOR = 16, 2
TAMING = {"double_z": False, "z_channels": Z, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": (1, 2),
          "num_res_blocks": 1, "attn_resolutions": [SIZE // FACTOR], "dropout": 0.0}
Case = tuple[str, str, dict[str, Tensor], Tensor | None, Tensor, Tensor, dict]


def module(name: str, **attributes: object) -> types.ModuleType:
    """A stand-in for what a file imports and does not need here."""
    made = types.ModuleType(name)
    vars(made).update(attributes)
    return sys.modules.setdefault(name, made)


def load(path: str, name: str | None = None) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name or path.replace("/", "_"), ROOT / path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def ready(model: nn.Module) -> nn.Module:
    state = model.state_dict()
    numbers = filled({k: v.shape for k, v in state.items() if v.is_floating_point()})
    model.load_state_dict(state | numbers)
    return model.eval()


class Autoencoder(nn.Module):
    """What these repositories put together in a training module of their own: same names, no trainer."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, quantize: nn.Module | None, width: int = D, moments: int = 1,
                 kernel: int = 1) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        if quantize is not None:
            self.quantize = quantize
        if width:
            pad = {"padding": kernel // 2}
            self.quant_conv = nn.Conv2d(moments * Z, moments * width, kernel, **pad)
            self.post_quant_conv = nn.Conv2d(width, Z, kernel, **pad)

    def latents(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.quant_conv(h) if hasattr(self, "quant_conv") else h

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z) if hasattr(self, "post_quant_conv") else z)


def taming() -> Iterator[Case]:
    network = load("taming-transformers/taming/modules/diffusionmodules/model.py")
    quantize = load("taming-transformers/taming/modules/vqvae/quantize.py").VectorQuantizer2(K, D, beta=0.25)
    model = ready(Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING), quantize))
    z, _, (_, _, codes) = model.quantize(model.latents(pictures(SIZE)))
    yield "taming", "taming", model.state_dict(), codes, z, model.decode(z), {}


def ldm() -> Iterator[Case]:
    module("ldm")
    module("ldm.modules")
    module("ldm.modules.attention", LinearAttention=nn.Identity)
    module("ldm.util", instantiate_from_config=None)
    network = load("latent-diffusion/ldm/modules/diffusionmodules/model.py")
    quantizers = load("taming-transformers/taming/modules/vqvae/quantize.py")         # which it imports
    for kind in ("vq", "noattn", "kl"):
        settings = TAMING | {"attn_resolutions": [], "double_z": kind == "kl",
                             "attn_type": "none" if kind == "noattn" else "vanilla"}
        quantize = None if kind == "kl" else quantizers.VectorQuantizer2(K, D, beta=0.25)
        model = ready(Autoencoder(network.Encoder(**settings), network.Decoder(**settings), quantize,
                                  moments=2 if kind == "kl" else 1))
        h, codes = model.latents(pictures(SIZE)), None
        if kind == "kl":
            z = h.chunk(2, 1)[0]
        else:
            z, _, (_, _, codes) = model.quantize(h)
        yield f"ldm_{kind}", "ldm", model.state_dict(), codes, z, model.decode(z), {}


def llamagen() -> Iterator[Case]:
    source = load("LlamaGen/tokenizer/tokenizer_image/vq_model.py")
    sides = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": Z}
    model = ready(Autoencoder(source.Encoder(**sides), source.Decoder(**sides),
                              source.VectorQuantizer(K, D, 0.25, 0.0, True, True)))
    z, _, (_, _, codes) = model.quantize(model.latents(pictures(SIZE)))
    yield "llamagen", "llamagen", model.state_dict(), codes, z, model.decode(z), {}


def fqgan() -> Iterator[Case]:
    for kind in ("dual", "triple"):
        source = load(f"FQGAN/tokenizer/vq_model_{kind}.py")
        width = {"encoder_ch_mult": [1, 1, 1, 1, 16], "decoder_ch_mult": [1, 1, 1, 1, 16]}
        model = source.VQModel(source.ModelArgs(codebook_size=K, codebook_embed_dim=D, z_channels=Z, **width))
        sides = {"ch": 32, "ch_mult": [1, 1, 1, 1, 16], "z_channels": Z, "num_res_blocks": 1}
        model.encoder, model.decoder = source.Encoder(**sides), source.Decoder(**sides)
        for part in model.modules():
            if type(part).__name__ == "FactorizedAdapter":      # 512 wide; one layer on 4 x 4 positions
                part.positional_embedding = nn.Parameter(torch.zeros(16, 512))
                part.grid_size, part.num_layers, part.transformer = 4, 1, part.transformer[:1]
        ready(model)
        found = model.encode(pictures(64))
        branches = [found[1], found[0]] if kind == "dual" else found[:3]
        infos = [found[3], found[2]] if kind == "dual" else found[3:]
        z = torch.cat(branches, 1)
        codes = torch.stack([info[2].flatten() for info in infos], -1)
        reconstruction = model.decoder(model.post_quant_conv(z))
        yield f"fqgan_{kind}", "fqgan", model.state_dict(), codes, z, reconstruction, {"image_size": 64}


def optvq() -> Iterator[Case]:
    logger = module("optvq.utils.logger", GET_STATS=False, log=types.SimpleNamespace(add_scalar=lambda *given: None))
    module("optvq", utils=module("optvq.utils", logger=logger))
    network = load("OptVQ/src/optvq/models/backbone/diffusion.py")
    source = load("OptVQ/src/optvq/models/quantizer.py")
    quantize = source.VectorQuantizer(n_e=K, e_dim=D, num_head=4, use_proj=True, loss_q_type="l2")
    model = ready(Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING), quantize))
    z, _, codes = model.quantize(model.latents(pictures(SIZE)))                         # nearest ones, [B, heads, h, w]
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    yield "optvq", "optvq", state, codes.permute(0, 2, 3, 1), z, model.decode(z), {}


def seed_voken() -> Iterator[Case]:
    network = load("SEED-Voken/src/IBQ/modules/diffusionmodules/model.py")
    source = load("SEED-Voken/src/IBQ/modules/vqvae/quantize.py")
    quantize = source.IndexPropagationQuantize(K, D, beta=0.25, use_entropy_loss=False)
    model = ready(Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING), quantize))
    z, _, (_, _, codes) = model.quantize(model.latents(pictures(SIZE)))
    yield "ibq", "seed_voken", model.state_dict(), codes, z, model.decode(z), {}

    network = load("SEED-Voken/src/Open_MAGVIT2/modules/diffusionmodules/improved_model.py")
    lfq = load("SEED-Voken/src/Open_MAGVIT2/modules/vqvae/lookup_free_quantize.py").LFQ
    settings = {k: v for k, v in TAMING.items() if k not in ("attn_resolutions", "dropout")} | {"z_channels": 6}
    quantize = lfq(dim=6, codebook_size=K, sample_minimization_weight=1.0, batch_maximization_weight=1.0)
    model = ready(Autoencoder(network.Encoder(**settings), network.Decoder(**settings), quantize, width=0))
    found = model.quantize(model.latents(pictures(SIZE)), return_loss=False)
    z, codes = found[0], next(f for f in found if isinstance(f, Tensor) and f.dtype in (torch.int64, torch.int32))
    yield "open_magvit2", "seed_voken", model.state_dict(), codes, z, model.decode(z), {}


def var() -> Iterator[Case]:
    module("dist", initialized=lambda: False, get_world_size=lambda: 1)
    module("varmodels", __path__=[str(ROOT / "VAR/models")])
    network, quant = load("VAR/models/basic_vae.py"), load("VAR/models/quant.py")
    scales = [1, 2, 3, 5, 8]
    settings = {"dropout": 0.0, "ch": 32, "z_channels": Z, "in_channels": 3, "ch_mult": (1, 2), "num_res_blocks": 1,
                "using_sa": True, "using_mid_sa": True}
    model = ready(Autoencoder(network.Encoder(double_z=False, **settings), network.Decoder(**settings),
                              quant.VectorQuantizer2(vocab_size=K, Cvae=Z, using_znorm=False, v_patch_nums=scales),
                              width=Z, kernel=3))
    f = model.latents(pictures(SIZE))
    codes = torch.cat(model.quantize.f_to_idxBl_or_fhat(f.clone(), to_fhat=False), 1)
    z = model.quantize.f_to_idxBl_or_fhat(f.clone(), to_fhat=True)[-1]
    yield "var", "var", model.state_dict(), codes, z, model.decode(z), {"quantizer": {"scales": scales}}


def movq() -> Iterator[Case]:
    network = load("MoVQGAN/movqgan/modules/vqvae/movq_modules.py")
    blocks = load("MoVQGAN/movqgan/modules/vqvae/vqvae_blocks.py")
    quantize = load("MoVQGAN/movqgan/modules/vqvae/quantize.py").VectorQuantizer2(K, D, beta=0.25)
    model = ready(Autoencoder(blocks.Encoder(**TAMING), network.MOVQDecoder(zq_ch=D, **TAMING), quantize))
    z, _, (_, _, codes) = model.quantize(model.latents(pictures(SIZE)))
    yield "movq", "movq", model.state_dict(), codes, z, model.decoder(model.post_quant_conv(z), z), {}


def rqvae() -> Iterator[Case]:
    module("rqmodels", __path__=[str(ROOT / "rq-vae-transformer/rqvae/models/rqvae")])
    load("rq-vae-transformer/rqvae/models/rqvae/layers.py", "rqmodels.layers")
    network = load("rq-vae-transformer/rqvae/models/rqvae/modules.py", "rqmodels.modules")
    source = load("rq-vae-transformer/rqvae/models/rqvae/quantizations.py")
    side = SIZE // FACTOR
    model = Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING), None)
    model.quantizer = source.RQBottleneck((side, side, D), (side, side, 3), K, shared_codebook=False)
    ready(model)
    z, _, codes = model.quantizer(model.latents(pictures(SIZE)).permute(0, 2, 3, 1).contiguous())
    z = z.permute(0, 3, 1, 2)
    yield "rqvae", "rqvae", model.state_dict(), codes, z, model.decode(z), {}


def maskbit() -> Iterator[Case]:
    module("modeling")
    module("modeling.quantizer")
    module("modeling.quantizer.quantizer_utils", entropy_loss_fn=None)
    network, lookup = load("maskbit/modeling/modules/autoencoder.py"), load("maskbit/modeling/quantizer/lookup_free.py")
    config = types.SimpleNamespace(num_channels=3, hidden_channels=32, channel_mult=(1, 2), num_resolutions=2,
                                   num_res_blocks=1, token_size=6, sample_with_conv=True, quantizer_type="lookup-free",
                                   get=lambda key, default: default)
    model = ready(Autoencoder(network.ConvEncoder(config), network.ConvDecoder(config), None, width=0))
    quantize = lookup.LookupFreeQuantizer(6, 0.25, 0.0, 0.01, 1.0)
    z, found = quantize(model.latents((pictures(SIZE) + 1) / 2))
    codes = next(v for v in found.values() if v.dtype in (torch.int64, torch.int32))
    yield "maskbit", "maskbit", model.state_dict(), codes, z, model.decode(z) * 2 - 1, {}


def main() -> None:
    from bench.load import load_tokenizer

    arrays: dict[str, np.ndarray] = {}
    makers: list[Callable[[], Iterator[Case]]] = [
        taming, ldm, llamagen, optvq, seed_voken, var, movq, rqvae, maskbit, fqgan]
    chosen = [m for m in makers if not sys.argv[2:] or m.__name__ in sys.argv[2:]]
    if sys.argv[2:] and (HERE / "formats.npz").is_file():
        arrays = dict(np.load(HERE / "formats.npz"))
    for name, format, state, codes, z, reconstruction, keywords in (case for make in chosen for case in make()):
        keywords = {"image_size": SIZE} | keywords
        z = z.flatten(2).transpose(1, 2)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"state_dict": state}, Path(folder) / "published.pt")
            ours = load_tokenizer(Path(folder) / "published.pt", format=format, **keywords)
        out = ours(pictures(keywords["image_size"]))
        differ = 0 if codes is None else int((out.codes.flatten() != codes.flatten()).sum())
        print(f"{name}: {differ} codes differ, {0 if codes is None else len(codes.unique())} used, quantized "
              f"{(out.quantized - z).abs().max():.1e}, reconstruction {(out.reconstruction - reconstruction).abs().max():.1e} of "
              f"{reconstruction.abs().max():.2f}", flush=True)
        shapes = {k: list(v.shape) for k, v in state.items() if v.is_floating_point()}
        told = {"format": format, "keywords": keywords, "shapes": shapes}
        arrays |= {f"{name}.told": np.frombuffer(json.dumps(told).encode(), np.uint8), f"{name}.quantized": z.numpy().astype(np.float32),
                   f"{name}.reconstruction": reconstruction.numpy()[..., :: keywords["image_size"] // SIZE]}
        if codes is not None:
            arrays[f"{name}.codes"] = codes.reshape(out.codes.shape).numpy().astype(np.int32)
        np.savez_compressed(HERE / "formats.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
