"""Goldens of FVQ's bridge: yfChang-cv/FVQ at commit 577b848c44e0, its released transformer form.

    python tests/parity/make_fvq.py CHECKOUT

The bridge is drawn anew with weights of its own, since the published first values make every code zero.
"""

import torch
from codebook_recording import checkout, load, save, table
from torch import nn

published = load(checkout() / "tokenizer/tokenizer_image/qbridge_ViT.py").VQBridge
torch.manual_seed(5)
SIDE, PATCH, WIDTH, HEADS, DIM = 4, 2, 8, 2, 4
bridge = published(input_size=SIDE, patch_size=PATCH, in_channels=DIM, head_hidden_size=WIDTH // HEADS, depth=2,
                   num_heads=HEADS)
for parameter in bridge.parameters():
    nn.init.normal_(parameter, std=0.3)
rows = table(1, size=SIDE * SIDE, dim=DIM).requires_grad_()
codes = bridge(rows.T.reshape(1, DIM, SIDE, SIDE)).reshape(DIM, SIDE * SIDE).T
toward = torch.randn(codes.shape, generator=torch.Generator().manual_seed(2))
(grad,) = torch.autograd.grad((codes * toward).sum(), rows)
weights = {f"weights.{name}": value for name, value in bridge.named_parameters()}
save("fvq", {"bridge": {"rows": rows, "codes": codes, "toward": toward, "rows_grad": grad, **weights}})
