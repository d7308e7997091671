"""images/levels.png of a run: the first test images as each stage of the quantizer's codes decodes.

A row per image; columns: the original, then the reconstruction and each group alone, or, where stages refine, one stage,
two, ... all of them. What the columns are is in the file, as the text `columns` (JSON); 2 black pixels around each picture.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bench.distributed import apart
from bench.evaluate import GRID_BORDER, eval_mode
from bench.files import write_atomic
from bench.interfaces import Tokenizer
from bench.types import Stages

IMAGES = 8
MOST_STAGES = 10            # columns of stages; of more, evenly chosen ones, the first and the last among them


def columns(stages: Stages) -> list[tuple[str, list[int]]]:
    """(heading, stages that are decoded) of every picture but the original."""
    shown = sorted({round(x) for x in np.linspace(0, stages.count - 1, MOST_STAGES)})
    if stages.refine:
        return [(f"{stages.name} 1" if not i else f"{stages.name}s 1–{i + 1}", list(range(i + 1))) for i in shown]
    return [("reconstruction", list(range(stages.count))), *((f"{stages.name} {i + 1} alone", [i]) for i in shown)]


@torch.inference_mode()
def write_levels(path: Path, tokenizer: Tokenizer, originals: Tensor, codes: Tensor) -> None:
    """originals uint8 [n, 3, H, W] and codes [n, N, L] of a tokenizer whose quantizer has several stages."""
    stages = tokenizer.quantizer.stages
    assert stages is not None
    device = next(tokenizer.parameters()).device
    codes, pictures = codes[:IMAGES].to(device), [originals[:IMAGES].cpu()]
    shown = columns(stages)
    with eval_mode(tokenizer), torch.autocast(device.type, enabled=False), apart():
        for _, chosen in shown:
            made = tokenizer.decode(tokenizer.quantizer.lookup_stages(codes, chosen))
            pictures.append(made.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    cells = torch.stack(pictures, 1).permute(0, 1, 3, 4, 2).numpy()                     # [n, columns, H, W, 3]
    cells = np.pad(cells, [(0, 0), (0, 0), (GRID_BORDER, 0), (GRID_BORDER, 0), (0, 0)])
    n, across, height, width, _ = cells.shape
    sheet = np.pad(cells.swapaxes(1, 2).reshape(n * height, across * width, 3), [(0, GRID_BORDER), (0, GRID_BORDER), (0, 0)])
    said, file = PngInfo(), io.BytesIO()
    said.add_itxt("columns", json.dumps(["original", *(heading for heading, _ in shown)]))
    Image.fromarray(sheet).save(file, "PNG", pnginfo=said)
    write_atomic(path, file.getvalue())
