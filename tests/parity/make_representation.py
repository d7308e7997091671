"""Golden vectors of FQGAN's representation loss: showlab/FQGAN at dc34256b36af7227f0916de8015c882fe8101b56.

Usage: python make_representation.py CHECKOUT, with transformers 4.41.1, which that repository asks for. The released teacher
towers and the released heads, both tiny and filled by format_states.py, on seeded images and latents; stored are the
names and shapes of their tensors, the teacher's feature, the loss, and its gradient at the latents and at two of the
head's tensors.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from format_states import filled
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

HERE = Path(__file__).parent
WIDTH, LAYERS, HEADS, COUNT = 128, 2, 2, 4
SIZE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
#: the teacher's positions are those of its 224 pixels, and of 364 pixels, which it has to interpolate
CLIP = CLIPVisionConfig(**SIZE, intermediate_size=4 * WIDTH, image_size=224, patch_size=32)
DINO = Dinov2Config(**SIZE, image_size=364, patch_size=28)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


def shapes(state: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()}


def main(checkout: Path) -> None:
    models = checkout / "tokenizer" / "models"
    make = load(checkout / "tokenizer" / "vq_model_triple.py").FeatPredHead
    made: dict[str, np.ndarray] = {}
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(COUNT, 3, 20, 20, generator=generator) * 2 - 1
    for name, network, tower in (("clip", CLIPVisionModel(CLIP), load(models / "clip_encoder.py").CLIPVisionTower),
                                 ("dinov2", Dinov2Model(DINO), load(models / "dino_encoder.py").DinoVisionTower)):
        teacher_shapes = shapes(network.state_dict())
        network.load_state_dict(filled(teacher_shapes), strict=False)
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            CLIPImageProcessor().save_pretrained(folder)
            teacher = tower(folder).eval()
        head = make(input_dim=8, out_dim=WIDTH, down_factor=64)
        head_shapes = shapes(head.state_dict())
        head.load_state_dict(filled(head_shapes, seed=12))
        latents = torch.randn(COUNT, 8, 4, 4, generator=generator).requires_grad_()
        loss = teacher(images, head(latents))
        wanted = [latents, head.class_embedding, head.transformer[0].attn.in_proj_weight]
        gradients = torch.autograd.grad(loss, wanted)
        feature = teacher.extract_image_cls_feature(images).reshape(COUNT, WIDTH)
        made |= {f"{name}.latents": latents.detach().numpy(), f"{name}.feature": feature.numpy(),
                 f"{name}.loss": loss.detach().numpy(), f"{name}.teacher": np.array(json.dumps(teacher_shapes)),
                 f"{name}.head": np.array(json.dumps(head_shapes)), f"{name}.grad_latents": gradients[0].numpy(),
                 f"{name}.grad_token": gradients[1].numpy(), f"{name}.grad_qkv": gradients[2][:, :16].numpy()}
    np.savez_compressed(HERE / "representation.npz", images=images.numpy(), **made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
