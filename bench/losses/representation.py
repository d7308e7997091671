"""What a teacher sees in an image, predicted from the codes: FQGAN's representation loss (arXiv:2411.16681, Sec. 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import BadInput
from bench.interfaces import Incompatible, Loss, Tokenizer
from bench.pretrained import Frozen, tensors
from bench.registry import register
from bench.types import Batch, TokenizerOutput

SIDE = 224          # pixels that a teacher sees
HEAD_DIM = 64       # width of an attention head of the teachers


@register("loss", "representation")
class Representation(Loss):
    """Mean over images i of -log(exp(f_i . g_i) / sum_j exp(f_i . g_j)), over the images j of a micro-batch and process.

    g [B, W] is the class token that a frozen teacher gives the *image*, f the one that a head of three transformer blocks
    gives the quantized latents; both of length 1, so the loss lies between log(1 + (B - 1) e^-2) and log(1 + (B - 1) e^2).
    As in the released code there is no temperature, one direction only, and no other process's images: accumulation and
    processes change the loss. The image is resized to 224 pixels by its nearest pixels. The head learns with the
    tokenizer and belongs to neither its parameters nor its weight file: 39.1 M (1024 wide, 257 tokens), 22.1 M (768),
    5.6 M (384).

    teacher: `clip_vitl14` and `clip_vitb16`, before the last norm and the projection; `dinov2_vits14`, after the last norm;
        `random`, a small transformer that knows nothing, always the same, for tests. Null: no teacher, no head, and a loss
        of 0. FQGAN-Dual: clip_vitl14 for group 1; Triple: dinov2_vits14 for 1, clip_vitb16 for 2; each of weight 0.5.
    group: which of the quantizer's groups of channels, from 0; null: all channels.
    layers, heads: of the head.
    Raises BadInput where the teacher's weights are not on this machine or another network's, Incompatible for a
    quantizer without such groups or with several grids, and ValueError for a group that there is not and heads that do
    not divide the teacher's width.
    """

    needs = ("{teacher}",)

    def __init__(
        self,
        *,
        teacher: Literal["clip_vitl14", "clip_vitb16", "dinov2_vits14", "random"] | None = "clip_vitl14",
        group: int | None = None,
        layers: int = 3,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.group, self.groups, self.layers, self.heads = group, 1, layers, heads
        self.kind = None if teacher is None else TEACHERS[teacher]
        if self.kind is None:
            return
        if layers < 1 or heads < 1 or self.kind.width % heads:
            raise ValueError(f"layers must be at least 1 and heads divide the width {self.kind.width} of {teacher}, got "
                             f"{layers} and {heads}")
        self.teacher = Frozen(_network(teacher, self.kind))
        self.register_buffer("mean", torch.tensor(self.kind.mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(self.kind.deviation)[:, None, None], persistent=False)

    def begin(self, model: Tokenizer) -> None:
        """Builds the head for the latents of this tokenizer."""
        if self.kind is None:
            return
        quantizer, layout, width = model.quantizer, model.layout, self.kind.width
        if len(layout.grids) > 1:
            raise Incompatible(f"representation sees one vector per token, and the latents have {len(layout.grids)} grids")
        if self.group is not None:
            stages = quantizer.stages
            if stages is None or stages.name != "group":
                raise Incompatible(f"representation of group {self.group} needs a quantizer made of groups of channels")
            if not 0 <= self.group < stages.count:
                raise ValueError(f"group must be one of the quantizer's {stages.count}, from 0, got {self.group}")
            self.groups = stages.count
        self.head = nn.Sequential(
            nn.Linear(quantizer.output_dim // self.groups, width), nn.ReLU(), nn.Linear(width, width),
            ClassToken(layout.num_tokens, width, self.layers, self.heads))

    def forward(self, batch: Batch, output: TokenizerOutput) -> Tensor:
        if self.kind is None:
            return output.reconstruction.new_zeros(())
        with torch.no_grad():
            wanted = self.teacher(self._seen(batch.images))
        predicted = self.head(output.quantized.chunk(self.groups, -1)[self.group or 0])
        with torch.autocast("cpu" if predicted.is_meta else predicted.device.type, enabled=False):
            similar = F.normalize(predicted.float(), dim=-1) @ F.normalize(wanted.float(), dim=-1).T
            return F.cross_entropy(similar, torch.arange(len(similar), device=similar.device))

    def _seen(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 3, 224, 224] with the teacher's mean and deviation."""
        return ((F.interpolate(images.float(), size=(SIDE, SIDE)) + 1) / 2 - self.mean) / self.deviation


class ClassToken(nn.Module):
    """Vectors [B, P, width] -> [B, width]: what a class token before them has become after all blocks."""

    def __init__(
        self, positions: int, width: int, layers: int, heads: int, *, norm_in: bool = True, norm_out: bool = True,
        eps: float = 1e-5, activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.token = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(positions + 1, width))
        self.norm_in = nn.LayerNorm(width, eps) if norm_in else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, eps, activation) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width, eps) if norm_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_in(torch.cat([self.token.expand(len(x), 1, -1), x], 1) + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x[:, 0])


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each behind a LayerNorm, each added."""

    def __init__(self, width: int, heads: int, eps: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.xavier_uniform_(self.qkv.weight)        # as torch's MultiheadAttention, of which the released heads are
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


# -- teachers ----------------------------------------------------------------------------------------------------------


class Patches(nn.Conv2d):
    """Images [B, 3, H, W] -> a vector for each square of `patch` pixels, [B, P, width]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(2).mT


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True, slots=True)
class Names:
    """How tensors are called in the files of the hub's `transformers`; within a block, without the block's own name."""

    patches: str
    token: str
    positions: str
    norm: str
    block: str
    parts: dict[str, str]                       # norms, `out` and perceptron of a block, by our names
    qkv: tuple[str, str, str]
    scales: dict[str, str] = field(default_factory=dict)    # what multiplies a part's result


CLIP = Names(
    "vision_model.embeddings.patch_embedding", "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.position_embedding.weight", "vision_model.pre_layrnorm", "vision_model.encoder.layers",
    {"norm1": "layer_norm1", "out": "self_attn.out_proj", "norm2": "layer_norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
DINO = Names(
    "embeddings.patch_embeddings.projection", "embeddings.cls_token", "embeddings.position_embeddings", "layernorm",
    "encoder.layer",
    {"norm1": "norm1", "out": "attention.output.dense", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    {"out": "layer_scale1.lambda1", "fc2": "layer_scale2.lambda1"})


@dataclass(frozen=True, slots=True)
class Teacher:
    """Size of a transformer and what its images are normalised with."""

    width: int
    layers: int
    patch: int
    names: Names
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def build(self) -> nn.Module:
        """Images [B, 3, 224, 224] -> [B, width]."""
        clip = self.names is CLIP
        tokens = ClassToken(
            (SIDE // self.patch) ** 2, self.width, self.layers, max(1, self.width // HEAD_DIM), norm_in=clip,
            norm_out=not clip, eps=1e-5 if clip else 1e-6, activation=quick_gelu if clip else F.gelu)
        return nn.Sequential(Patches(self.width, self.patch), tokens)


OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEACHERS = {
    "clip_vitl14": Teacher(1024, 24, 14, CLIP, *OPENAI),
    "clip_vitb16": Teacher(768, 12, 16, CLIP, *OPENAI),
    "dinov2_vits14": Teacher(384, 12, 14, DINO),
    "random": Teacher(64, 2, 32, DINO),
}


def _network(name: str, teacher: Teacher) -> nn.Module:
    """With its weights, which nothing is drawn for; without them on the meta device, where only shapes are checked."""
    if torch.get_default_device().type == "meta":
        return teacher.build()
    if name == "random":
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            return teacher.build()
    state = tensors(name)
    with torch.device("meta"):
        network = teacher.build()
    try:
        network.load_state_dict(_converted(state, teacher), strict=True, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"the weight file found for {name} is another network's ({reason}); remove it and run "
                       "`bench prepare`, or set teacher to null") from error
    return network


def _converted(state: Mapping[str, Tensor], teacher: Teacher) -> dict[str, Tensor]:
    """A file's tensors by our names, in float32. Raises KeyError for one that is not there."""
    names, state = teacher.names, {key: value.float() for key, value in state.items() if value.is_floating_point()}
    found = {
        "0.weight": state[f"{names.patches}.weight"],
        "0.bias": state.get(f"{names.patches}.bias", torch.zeros(teacher.width)),
        "1.token": state[names.token].flatten(),
        "1.positions": _resized(state[names.positions].view(-1, teacher.width), SIDE // teacher.patch),
    }
    for kind in ("weight", "bias"):
        found[f"1.{'norm_in' if names is CLIP else 'norm_out'}.{kind}"] = state[f"{names.norm}.{kind}"]
        for i in range(teacher.layers):
            block, own = f"{names.block}.{i}", f"1.blocks.{i}"
            found[f"{own}.qkv.{kind}"] = torch.cat([state[f"{block}.{part}.{kind}"] for part in names.qkv])
            for part, theirs in names.parts.items():
                tensor = state[f"{block}.{theirs}.{kind}"]
                if part in names.scales:
                    scale = state[f"{block}.{names.scales[part]}"]
                    tensor = tensor * (scale[:, None] if kind == "weight" else scale)
                found[f"{own}.{part}.{kind}"] = tensor
    return found


def _resized(positions: Tensor, side: int) -> Tensor:
    """[1 + s * s, width] -> [1 + side * side, width], bicubic: of DINOv2's 37 x 37 positions those of an image of 224
    pixels, with the offset of 0.1 that the authors and the `transformers` of FQGAN have."""
    old = math.isqrt(len(positions) - 1)
    if old == side:
        return positions
    grid = positions[1:].view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    return torch.cat([positions[:1], grid[0].flatten(1).T])
