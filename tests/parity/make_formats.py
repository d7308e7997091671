"""Goldens of published networks at a small width: codes, quantized latents and reconstruction of one image.

    python tests/parity/make_formats.py FOLDER [NAME ...]           that holds checkouts called like their repositories
    python tests/parity/make_formats.py FOLDER --wide [NAME ...]    as wide as published, 128 pixels: nothing is stored

taming-transformers 3ba01b241669, latent-diffusion a506df575647, LlamaGen ce98ec41803a, FQGAN dc34256b36af, OptVQ b71895cc931b,
SEED-Voken b9a17eac8e2c, VAR 78b95394fc58, MoVQGAN f3976d875282, maskbit 5ea3d733c626, rq-vae-transformer 341395e562ac,
SimVQ d8bd94d9ca30, VQGAN-LC 4708958f2257, 1d-tokenizer 942a96fbdd87, visual-tokenizer-pytorch 351d29ddf8f4,
vqgan (khanhvu207) 4cc10f40a31b, CVQ-VAE 04864b721665.

Weights are filled by format_states.py, and the last layer's scaled so that the largest pixel is about 1, as in networks that
were trained; nothing of the networks is stored but the names and shapes of their tensors. Names are those of functions below:
only these are made anew. Prints the largest differences of ours; in float64 those of the encoder's latents and of the decoder
on the same quantized map, and how far either code's fp32 reconstruction is from the public code's in float64.
"""

import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from format_states import filled, pictures, scaled
from torch import Tensor, nn

ROOT, HERE = Path(sys.argv[1]), Path(__file__).parent
CHOSEN = [word for word in sys.argv[2:] if word != "--wide"]
WIDE = "--wide" in sys.argv
sys.path.insert(0, str(HERE.parents[1]))
SIZE = 128 if WIDE else 16
DEEP = [1, 1, 2, 2, 4] if WIDE else [1, 2]              # multipliers of the networks that downsample by 16
HALF = [1, 2, 2, 4] if WIDE else [1, 2]                 # by 8
BLOCKS = 2 if WIDE else 1
CH = 128 if WIDE else 32


def pick(published: int, small: int) -> int:
    return published if WIDE else small


K, D, Z = pick(16384, 64), pick(256, 8), pick(256, 16)  # codes, their width, the width before the projection
TAMING = {"double_z": False, "z_channels": Z, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": CH, "ch_mult": DEEP,
          "num_res_blocks": BLOCKS, "attn_resolutions": [SIZE // 2 ** (len(DEEP) - 1)], "dropout": 0.0}


@dataclass
class Case:
    """latents: image -> map before the quantizer; quantize: that -> codes, quantized map; decode: that -> image."""

    name: str
    format: str
    model: nn.Module
    latents: Callable[[Tensor], Tensor]
    quantize: Callable[[Tensor], tuple[Tensor | None, Tensor]]
    decode: Callable[[Tensor], Tensor]
    last: str | None = "decoder.conv_out"               # the layer that writes pixels; None: bounded anyway
    unit: bool = False                                  # works in [0, 1]
    prefix: str = ""
    keywords: dict = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.keywords.get("image_size", SIZE)


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


class Autoencoder(nn.Module):
    """What these repositories put together in a training module of their own: same names, no trainer."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, quantize: nn.Module | None, width: int = D, moments: int = 1,
                 kernel: int = 1, z: int = Z) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        if quantize is not None:
            self.quantize = quantize
        if width:
            pad = {"padding": kernel // 2}
            self.quant_conv = nn.Conv2d(moments * z, moments * width, kernel, **pad)
            self.post_quant_conv = nn.Conv2d(width, z, kernel, **pad)

    def latents(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.quant_conv(h) if hasattr(self, "quant_conv") else h

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z) if hasattr(self, "post_quant_conv") else z)

    def usual(self, h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, (_, _, codes) = self.quantize(h)
        return codes, z

    def case(self, name: str, format: str, quantize: Callable | None = None, **more: object) -> Case:
        return Case(name, format, self, self.latents, quantize or self.usual, self.decode, **more)


def taming() -> Iterator[Case]:
    network = load("taming-transformers/taming/modules/diffusionmodules/model.py")
    source = load("taming-transformers/taming/modules/vqvae/quantize.py")
    yield Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING),
                      source.VectorQuantizer2(K, D, beta=0.25)).case("taming", "taming")

    source.num_tokens, source.codebook_dim = K, D       # which the constructor reads, but nowhere are set
    yield Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING),
                      source.EMAVectorQuantizer(K, D, beta=0.25)).case("taming_ema", "taming")

    settings = TAMING | {"ch_mult": [1, 1, 2, 4] if WIDE else DEEP, "attn_resolutions": [SIZE // pick(8, 2)]}
    codes, width = pick(8192, K), Z                     # it has no other width
    model = Autoencoder(network.Encoder(**settings), network.Decoder(**settings),
                        source.GumbelQuantize(Z, width, n_embed=codes), width=width)

    def likeliest(h: Tensor) -> tuple[Tensor, Tensor]:
        """Without the noise that the public model adds even when it is evaluated."""
        chosen = model.quantize(h, return_logits=True)[3].argmax(1)
        return chosen, model.quantize.get_codebook_entry(chosen.flatten(), (*chosen.shape, width))

    yield model.case("taming_gumbel", "taming", likeliest)


def khanhvu() -> Iterator[Case]:
    network, source = load("vqgan/src/modules/blocks.py"), load("vqgan/src/modules/quantization.py")
    width = pick(32, D)
    model = Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING), source.STQuantize(width, pick(1024, K)),
                        width=width)

    def quantize(h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, (codes, _) = model.quantize(h)
        return codes, z

    yield model.case("khanhvu", "taming", quantize)


def ldm() -> Iterator[Case]:
    module("ldm")
    module("ldm.modules")
    module("ldm.modules.attention", LinearAttention=nn.Identity)
    module("ldm.util", instantiate_from_config=None)
    network = load("latent-diffusion/ldm/modules/diffusionmodules/model.py")
    source = load("taming-transformers/taming/modules/vqvae/quantize.py")             # which it imports
    for kind, z, attention, multipliers in (("vq", 4, [SIZE // 8], HALF), ("noattn", 3, [], [1, 2, 4] if WIDE else HALF),
                                            ("kl", 4, [], [1, 2, 4, 4] if WIDE else HALF)):
        width, z = pick(z, D), pick(z, Z)
        settings = TAMING | {"attn_resolutions": attention if WIDE else [], "double_z": kind == "kl", "ch_mult": multipliers,
                             "z_channels": z, "attn_type": "none" if kind == "noattn" else "vanilla"}
        quantize = None if kind == "kl" else source.VectorQuantizer2(pick(16384, K), width, beta=0.25)
        model = Autoencoder(network.Encoder(**settings), network.Decoder(**settings), quantize, width=width, z=z,
                            moments=2 if kind == "kl" else 1)
        means = (lambda h: (None, h.chunk(2, 1)[0])) if kind == "kl" else None
        yield model.case(f"ldm_{kind}", "ldm", means)


def llamagen() -> Iterator[Case]:
    source = load("LlamaGen/tokenizer/tokenizer_image/vq_model.py")
    sides = {"ch": CH, "ch_mult": DEEP, "num_res_blocks": BLOCKS, "z_channels": Z}
    yield Autoencoder(source.Encoder(**sides), source.Decoder(**sides), source.VectorQuantizer(K, 8, 0.25, 0.0, True, True),
                      width=8).case("llamagen", "llamagen")


def fqgan() -> Iterator[Case]:
    for kind in ("dual", "triple"):
        source = load(f"FQGAN/tokenizer/vq_model_{kind}.py")
        multipliers = DEEP if WIDE else [1, 1, 1, 1, 16]        # its adapter is 512 wide
        model = source.VQModel(source.ModelArgs(codebook_size=K, codebook_embed_dim=8, z_channels=Z,
                                                encoder_ch_mult=multipliers, decoder_ch_mult=multipliers))
        if not WIDE:
            sides = {"ch": 32, "ch_mult": multipliers, "z_channels": Z, "num_res_blocks": 1}
            model.encoder, model.decoder = source.Encoder(**sides), source.Decoder(**sides)
            for part in model.modules():
                if type(part).__name__ == "FactorizedAdapter":      # one layer on 4 x 4 positions
                    part.positional_embedding = nn.Parameter(torch.zeros(16, 512))
                    part.grid_size, part.num_layers, part.transformer = 4, 1, part.transformer[:1]
        order = ("vis", "sem") if kind == "dual" else ("vis", "sem_mid", "sem_high")

        def latents(x: Tensor, model: nn.Module = model, order: tuple = order, kind: str = kind) -> Tensor:
            found = model.encoder(x)
            found = dict(zip(("sem", "vis") if kind == "dual" else order, found[: len(order)], strict=True))
            return torch.cat([getattr(model, f"quant_conv_{name}")(found[name]) for name in order], 1)

        def quantize(h: Tensor, model: nn.Module = model, order: tuple = order) -> tuple[Tensor, Tensor]:
            found = [getattr(model, f"quantize_{name}")(part) for name, part in zip(order, h.chunk(len(order), 1), strict=True)]
            return torch.stack([f[2][2].flatten() for f in found], -1), torch.cat([f[0] for f in found], 1)

        yield Case(f"fqgan_{kind}", "fqgan", model, latents, quantize,
                   lambda z, model=model: model.decoder(model.post_quant_conv(z)), keywords={"image_size": pick(256, 64)})


def optvq() -> Iterator[Case]:
    logger = module("optvq.utils.logger", GET_STATS=False, log=types.SimpleNamespace(add_scalar=lambda *given: None))
    module("optvq", utils=module("optvq.utils", logger=logger))
    network = load("OptVQ/src/optvq/models/backbone/diffusion.py")
    source = load("OptVQ/src/optvq/models/quantizer.py")
    quantize = source.VectorQuantizer(n_e=K, e_dim=D, num_head=4, use_proj=True, loss_q_type="l2")
    model = Autoencoder(network.Encoder(**TAMING), network.Decoder(**TAMING), quantize)

    def nearest(h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, codes = model.quantize(h)                                             # [B, heads, h, w]
        return codes.permute(0, 2, 3, 1), z

    yield model.case("optvq", "optvq", nearest, prefix="model.")


def seed_voken() -> Iterator[Case]:
    network = load("SEED-Voken/src/IBQ/modules/diffusionmodules/model.py")
    source = load("SEED-Voken/src/IBQ/modules/vqvae/quantize.py")
    settings = TAMING | {"num_res_blocks": pick(4, 1)}
    quantize = source.IndexPropagationQuantize(K, D, beta=0.25, use_entropy_loss=False)
    yield Autoencoder(network.Encoder(**settings), network.Decoder(**settings), quantize).case("ibq", "seed_voken")

    network = load("SEED-Voken/src/Open_MAGVIT2/modules/diffusionmodules/improved_model.py")
    lfq = load("SEED-Voken/src/Open_MAGVIT2/modules/vqvae/lookup_free_quantize.py").LFQ
    bits = pick(18, 6)
    settings = {k: v for k, v in settings.items() if k not in ("attn_resolutions", "dropout")} | {"z_channels": bits}
    quantize = lfq(dim=bits, codebook_size=2**bits, sample_minimization_weight=1.0, batch_maximization_weight=1.0)
    model = Autoencoder(network.Encoder(**settings), network.Decoder(**settings), quantize, width=0)

    def signs(h: Tensor) -> tuple[Tensor, Tensor]:
        found = model.quantize(h, return_loss=False)
        return next(f for f in found if isinstance(f, Tensor) and f.dtype in (torch.int64, torch.int32)), found[0]

    yield model.case("open_magvit2", "seed_voken", signs)


def var() -> Iterator[Case]:
    module("dist", initialized=lambda: False, get_world_size=lambda: 1)
    module("varmodels", __path__=[str(ROOT / "VAR/models")])
    network, quant = load("VAR/models/basic_vae.py"), load("VAR/models/quant.py")
    scales, z = [1, 2, 3, 4, 5, 6, 8] if WIDE else [1, 2, 3, 5, 8], pick(32, Z)
    settings = {"dropout": 0.0, "ch": pick(160, 32), "z_channels": z, "in_channels": 3, "ch_mult": DEEP,
                "num_res_blocks": BLOCKS, "using_sa": True, "using_mid_sa": True}
    model = Autoencoder(network.Encoder(double_z=False, **settings), network.Decoder(**settings),
                        quant.VectorQuantizer2(vocab_size=pick(4096, K), Cvae=z, using_znorm=False, v_patch_nums=scales),
                        width=z, kernel=3, z=z)

    def pyramid(f: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.cat(model.quantize.f_to_idxBl_or_fhat(f.clone(), to_fhat=False), 1),
                model.quantize.f_to_idxBl_or_fhat(f.clone(), to_fhat=True)[-1])

    yield model.case("var", "var", pyramid, keywords={"quantizer": {"scales": scales}})


def movq() -> Iterator[Case]:
    network = load("MoVQGAN/movqgan/modules/vqvae/movq_modules.py")
    blocks = load("MoVQGAN/movqgan/modules/vqvae/vqvae_blocks.py")
    source = load("MoVQGAN/movqgan/modules/vqvae/quantize.py")
    z, width = pick(4, Z), pick(4, D)
    settings = TAMING | {"z_channels": z, "ch_mult": HALF, "attn_resolutions": [SIZE // pick(8, 2)]}
    model = Autoencoder(blocks.Encoder(**settings), network.MOVQDecoder(zq_ch=width, **settings),
                        source.VectorQuantizer2(K, width, beta=0.25), width=width, z=z)
    yield Case("movq", "movq", model, model.latents, model.usual, lambda q: model.decoder(model.post_quant_conv(q), q))


def rqvae() -> Iterator[Case]:
    module("rqmodels", __path__=[str(ROOT / "rq-vae-transformer/rqvae/models/rqvae")])
    load("rq-vae-transformer/rqvae/models/rqvae/layers.py", "rqmodels.layers")
    network = load("rq-vae-transformer/rqvae/models/rqvae/modules.py", "rqmodels.modules")
    source = load("rq-vae-transformer/rqvae/models/rqvae/quantizations.py")
    side, levels = SIZE // pick(32, 2), pick(4, 3)
    settings = TAMING | {"ch_mult": [*DEEP, 4] if WIDE else DEEP, "attn_resolutions": [side]}
    model = Autoencoder(network.Encoder(**settings), network.Decoder(**settings), None)
    model.quantizer = source.RQBottleneck((side, side, D), (side, side, levels), K, shared_codebook=WIDE)

    def residual(h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, codes = model.quantizer(h.permute(0, 2, 3, 1).contiguous())
        return codes, z.permute(0, 3, 1, 2)

    yield model.case("rqvae", "rqvae", residual)


def maskbit() -> Iterator[Case]:
    module("modeling")
    module("modeling.quantizer")
    module("modeling.quantizer.quantizer_utils", entropy_loss_fn=lambda **given: (torch.zeros(()), torch.zeros(())))
    network, bits = load("maskbit/modeling/modules/autoencoder.py"), load("maskbit/modeling/quantizer/lookup_free.py")
    source = load("maskbit/modeling/quantizer/quantizer.py")
    for name, decoder, width, kind in (("maskbit", "ConvDecoder", pick(14, 6), "lookup-free"),
                                       ("vqgan_plus", "ConvDecoderLegacy", pick(256, 8), "lookup")):
        config = types.SimpleNamespace(num_channels=3, hidden_channels=CH, channel_mult=DEEP, num_resolutions=len(DEEP),
                                       num_res_blocks=BLOCKS, token_size=width, sample_with_conv=True, quantizer_type=kind,
                                       resolution=SIZE, get=lambda key, default: default)
        quantize = bits.LookupFreeQuantizer(width, 0.25, 0.0, 0.01, 1.0)
        if kind == "lookup":
            quantize = source.SimpleVectorizer(pick(4096, K), width)
        model = Autoencoder(network.ConvEncoder(config), getattr(network, decoder)(config), quantize, width=0)

        def found(h: Tensor, model: nn.Module = model) -> tuple[Tensor, Tensor]:
            z, told = model.quantize(h)
            return next(v for v in told.values() if v.dtype in (torch.int64, torch.int32)), z

        yield model.case(name, "maskbit", found, unit=True)


def maskgit() -> Iterator[Case]:
    source = load("1d-tokenizer/modeling/modules/maskgit_vqgan.py")
    config = types.SimpleNamespace(channel_mult=DEEP, num_resolutions=len(DEEP), dropout=0.0, hidden_channels=CH, num_channels=3,
                                   num_res_blocks=BLOCKS, resolution=SIZE, z_channels=D)
    model = Autoencoder(source.Encoder(config), source.Decoder(config), source.VectorQuantizer(pick(1024, K), D, 0.25), width=0)

    def quantize(h: Tensor) -> tuple[Tensor, Tensor]:
        z, codes, _ = model.quantize(h)
        return codes, z

    yield model.case("maskgit", "maskgit", quantize, unit=True)


def simvq() -> Iterator[Case]:
    network = load("SimVQ/taming/modules/diffusionmodules/improved_model.py")
    source = load("SimVQ/taming/modules/vqvae/quantize.py")
    width = pick(128, D)
    settings = {"double_z": False, "z_channels": width, "resolution": SIZE, "in_channels": 3, "out_ch": 3, "ch": CH,
                "ch_mult": HALF, "num_res_blocks": BLOCKS}
    model = Autoencoder(network.Encoder(**settings), network.Decoder(**settings),
                        source.SimVQ(pick(65536, 512), width, legacy=False), width=0)

    def quantize(h: Tensor) -> tuple[Tensor, Tensor]:
        (z, _, codes), _ = model.quantize(h)
        return codes, z

    yield model.case("simvq", "simvq", quantize)


def vqgan_lc() -> Iterator[Case]:
    module("models")
    module("models.discriminator", NLayerDiscriminator=lambda **given: nn.Identity(), weights_init=lambda layer: None)
    module("models.lpips", LPIPS=nn.Identity)
    load("VQGAN-LC/vqgan-gpt-lc/models/encoder_decoder.py", "models.encoder_decoder")
    source = load("VQGAN-LC/vqgan-gpt-lc/models/models_vq.py")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(torch.zeros(pick(100_000, K), pick(768, 24)), Path(folder) / "codebook.pth")
        args = types.SimpleNamespace(stage=1, embed_dim=8, rate_p=1.0, quantizer_type="org", tuning_codebook=0, use_cblinear=1,
                                     local_embedding_path=str(Path(folder) / "codebook.pth"), n_vision_words=0)
        model = source.VQModel(args, TAMING, 8)

    def quantize(h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, (_, _, codes) = model.quantize(h)
        return codes, z

    yield Case("vqgan_lc", "vqgan_lc", model, lambda x: model.quant_conv(model.encoder(x)), quantize, model.decode)


def xyfjason() -> Iterator[Case]:
    model_of = load("visual-tokenizer-pytorch/models/vqmodel.py").VQModel
    simple = load("visual-tokenizer-pytorch/models/autoencoder/simple_cnn.py")
    vqgan = load("visual-tokenizer-pytorch/models/autoencoder/vqgan_net.py")
    folder = "visual-tokenizer-pytorch/models/quantizer"
    vq = load(f"{folder}/quantizer.py").VectorQuantizer
    linear = load(f"{folder}/simvq_quantizer.py").SimVQQuantizer
    signs = load(f"{folder}/lookup_free_quantizer.py").LookupFreeQuantizer
    scalars = load(f"{folder}/finite_scalar_quantizer.py").FiniteScalarQuantizer
    index = load(f"{folder}/index_backpropagation_quantizer.py").IndexBackpropagationQuantizer
    codes, width = 512, pick(64, D)
    levels = [8, 5, 5, 5]
    for name, quantizer, keywords in (
            ("vq", vq(codes, width), {}), ("ema", vq(codes, width, use_ema_update=True), {}),
            ("unit", vq(codes, width, l2_norm=True), {"quantizer": {"normalize": "codes"}}),
            ("simvq", linear(codes, width), {}), ("lfq", signs(9), {}),
            ("fsq", scalars(levels), {"quantizer": {"name": "fsq", "levels": levels}}),
            ("ibq", index(codes, width), {"quantizer": {"name": "ibq", "codebook_size": codes, "codebook_dim": width}}),
            ("vqgan", vq(pick(1024, K), D), {})):
        if name == "vqgan":
            sides = {"z_channels": Z, "dim": CH, "dim_mults": DEEP, "num_res_blocks": BLOCKS}
            model, last = model_of(vqgan.Encoder(**sides), vqgan.Decoder(**sides), quantizer), "decoder.conv_out.2"
        else:
            hidden = pick(256, 16)
            model, last = model_of(simple.Encoder(hidden_dim=hidden), simple.Decoder(hidden_dim=hidden), quantizer), None
            keywords = keywords | {"image_size": pick(64, 32)}

        def quantize(h: Tensor, model: nn.Module = model) -> tuple[Tensor, Tensor]:
            found = model.quantizer(h)
            return found["indices"], found["quantized_z"]

        yield Case(f"xyfjason_{name}", "xyfjason", model, lambda x, model=model: model.enc2code(model.encoder(x)), quantize,
                   model.decode, last=last, keywords=keywords)


def cvq_vae() -> Iterator[Case]:
    load("CVQ-VAE/quantise.py", "quantise")
    source = load("CVQ-VAE/modules.py")
    model = source.Model(3, pick(128, 32), 2, pick(32, 8), 512, pick(64, D), distance="cos")

    def quantize(h: Tensor) -> tuple[Tensor, Tensor]:
        z, _, (_, _, codes) = model._vq_vae(h)
        return codes, z

    yield Case("cvq_vae", "cvq_vae", model, lambda x: model._pre_vq_conv(model._encoder(x)), quantize,
               lambda z: model._decoder(z), last="_decoder._conv_trans_2", keywords={"image_size": 32})


def measure(case: Case) -> dict[str, np.ndarray]:
    """Fill, scale, run both codes, print a row; gives the arrays of the golden."""
    from bench.load import load_tokenizer

    x, model = pictures(case.size), case.model.eval()
    given, back = ((x + 1) / 2, lambda r: r * 2 - 1) if case.unit else (x, lambda r: r)
    shapes = {k: list(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
    numbers, last = filled(shapes), {}
    model.load_state_dict(model.state_dict() | numbers)
    codes, z = case.quantize(case.latents(given))
    if case.last is not None:
        largest = float(case.decode(z).abs().max())
        last = {f"{case.last}.{key}": [(0.5 if case.unit else 1.0) / largest, 0.5 * (case.unit and key == "bias")]
                for key in ("weight", "bias")}
        numbers = scaled(numbers, last)
        model.load_state_dict(model.state_dict() | numbers)
    reconstruction = back(case.decode(z))
    keywords = {"image_size": SIZE} | case.keywords
    state = {case.prefix + key: value for key, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model" if case.format == "xyfjason" else "state_dict": state}, Path(folder) / "published.pt")
        ours = load_tokenizer(Path(folder) / "published.pt", format=case.format, **keywords)
    out = ours(x)
    rows = lambda grid: grid.flatten(2).transpose(1, 2)                 # noqa: E731
    differ = 0 if codes is None else int((out.codes.flatten() != codes.flatten()).sum())
    used = 0 if codes is None else len(codes.unique())
    dq, dr = (out.quantized - rows(z)).abs().max(), (out.reconstruction - reconstruction).abs().max()
    model.double()
    exact = back(case.decode(z.double()))
    latents, theirs = ours.double().tokenizer.encode(x.double()), rows(case.latents(given.double()))
    decoded = ours.tokenizer.decode(rows(z).double())
    print(f"{case.name}: {differ} of {0 if codes is None else codes.numel()} codes differ, {used} used, quantized {dq:.1e}, "
          f"reconstruction {dr:.1e} of {reconstruction.abs().max():.2f}; float64: encoder {(latents - theirs).abs().max():.1e}, "
          f"decoder {(decoded - exact).abs().max():.1e}; to float64 ours {(out.reconstruction - exact).abs().max():.1e}, "
          f"theirs {(reconstruction - exact).abs().max():.1e}", flush=True)
    stored = {"format": case.format, "keywords": keywords, "last": {case.prefix + key: by for key, by in last.items()},
              "shapes": {case.prefix + key: shape for key, shape in shapes.items()}}
    step = case.size // 8
    golden = {"told": np.frombuffer(json.dumps(stored).encode(), np.uint8), "quantized": rows(z).numpy()[..., ::2],
              "reconstruction": reconstruction.numpy()[..., ::step]}
    if codes is not None:
        golden["codes"] = codes.reshape(out.codes.shape).numpy().astype(np.int32)
    return {f"{case.name}.{key}": value.astype(np.float32) if value.dtype == np.float64 else value
            for key, value in golden.items()}


def main() -> None:
    makers: list[Callable[[], Iterator[Case]]] = [taming, khanhvu, ldm, llamagen, optvq, seed_voken, var, movq, rqvae, maskbit,
                                                  maskgit, simvq, vqgan_lc, xyfjason, cvq_vae, fqgan]
    path = HERE / "formats.npz"
    arrays = dict(np.load(path)) if CHOSEN and path.is_file() else {}
    for case in (case for make in makers if not CHOSEN or make.__name__ in CHOSEN for case in make()):
        arrays |= measure(case)
        if not WIDE:
            np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
