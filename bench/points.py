"""The two-dimensional example of vector quantization: a registry's quantizers on moving points, without images.

What index collapse is shows in seconds: codes that no point chooses get no gradient and stay behind. The plane stands
for the latents of an encoder; it moves because encoders learn (OptVQ's animated example, arXiv:2412.15195).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from bench.errors import BadInput
from bench.spec import Positive, Spec, bind
from bench.suite import find_suite
from bench.yaml_lines import load_yaml

if TYPE_CHECKING:
    from bench.interfaces import Quantizer


class Points(Spec):
    """A normal cloud of `count` points whose centre goes to centre + drift while its shape stays."""

    count: Positive = 100
    centre: tuple[float, float] = (0.0, 0.0)
    deviation: Annotated[float, Field(gt=0)] = 1.0
    drift: tuple[float, float] = (0.0, 0.0)
    seed: int = 0


class Training(Spec):
    """Adam on what the quantizer learns; all points in every step."""

    steps: Positive = 1000
    lr: Annotated[float, Field(gt=0)] = 5e-3
    frame_every: Positive = 10              # steps between two frames of the animation


class Entry(Spec):
    title: str
    quantizer: dict[str, Any]


class PointsSuite(Spec):
    """`task: points` of a suite file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_\-]*$")]
    task: Literal["points"]
    question: str
    points: Points = Points()
    train: Training = Training()
    quantizers: Annotated[tuple[Entry, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Trace:
    """One quantizer over time. F frames, N points, K codes."""

    title: str
    steps: np.ndarray                       # int [F]
    points: np.ndarray                      # [F, N, 2]
    codes: np.ndarray | None                # [F, K, 2]; None where codes are implicit
    chosen: np.ndarray                      # int [F, N]: the code of each point, as in eval
    size: int                               # K

    @property
    def used(self) -> np.ndarray:
        """Distinct codes at each frame, int [F]."""
        return np.array([len(np.unique(row)) for row in self.chosen])

    def centres(self, frame: int) -> np.ndarray:
        """[K, 2]: the codes; of implicit ones the mean of the points that chose them, NaN where none did."""
        if self.codes is not None:
            return self.codes[frame]
        counts = np.bincount(self.chosen[frame], minlength=self.size)
        sums = np.stack([np.bincount(self.chosen[frame], self.points[frame][:, i], self.size) for i in (0, 1)], 1)
        return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)

    @property
    def error(self) -> float:
        """Mean squared distance per coordinate between the points and what stands for them, at the end."""
        return float(np.mean((self.points[-1] - self.centres(-1)[self.chosen[-1]]) ** 2))


def points_suite(path: str | Path) -> PointsSuite | None:
    """The suite, where its file says `task: points`. Raises BadInput with file, line, key and value."""
    file = find_suite(path)
    try:
        data, lines = load_yaml(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError):
        return None                                 # whoever reads it as a usual suite says so
    if not isinstance(data, dict) or data.get("task") != "points":
        return None
    try:
        suite = PointsSuite.model_validate_json(json.dumps(data))        # where a list may be a tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = next((lines[first["loc"][:end]] for end in range(len(first["loc"]), -1, -1) if first["loc"][:end] in lines), 1)
        key = ".".join(map(str, first["loc"]))
        raise BadInput(f"{file}:{where}: {key} = {first.get('input')!r}: {first['msg']}") from error
    for i in range(len(suite.quantizers)):
        make(suite, i, file)
    return suite


def make(suite: PointsSuite, index: int, file: str | Path = "") -> Quantizer:
    """Quantizer number `index`, new. Raises BadInput where it cannot be had."""
    import torch

    from bench.types import LatentShape

    entry = suite.quantizers[index]

    def fail(path: tuple[Any, ...], value: Any, sentence: str) -> Exception:
        return BadInput(f"{file}: quantizers.{index}.{'.'.join(map(str, path))} = {value!r}: {sentence}")

    spec = bind("quantizer", entry.quantizer, ("quantizer",), fail)
    torch.manual_seed(suite.points.seed)
    try:
        quantizer = spec.partial()(LatentShape(positions=suite.points.count, dim=2))
    except ValueError as error:
        raise fail(("quantizer",), entry.title, str(error)) from error
    if quantizer.input_dim != 2 or len(quantizer.layout.vocab_sizes) != 1:
        raise fail(("quantizer",), entry.title, "the points have two coordinates and one code each")
    return quantizer


def run_points(suite: PointsSuite, progress: Callable[[str, int, int], None] | None = None) -> list[Trace]:
    """Train every quantizer of the suite on the same points. `progress(title, step, of)` at each frame."""
    return [_trace(suite, i, progress) for i in range(len(suite.quantizers))]


def _trace(suite: PointsSuite, index: int, progress: Callable[[str, int, int], None] | None) -> Trace:
    import torch

    entry, points, train = suite.quantizers[index], suite.points, suite.train
    generator = torch.Generator().manual_seed(points.seed)
    cloud = points.deviation * torch.randn(points.count, 2, generator=generator)
    centre, drift = torch.tensor(points.centre), torch.tensor(points.drift)
    quantizer = make(suite, index)
    learned = [p for p in quantizer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=train.lr) if learned else None
    implicit = not quantizer.codebooks()
    steps, places, codes, chosen = [], [], [], []
    for step in range(train.steps + 1):
        here = centre + drift * (step / train.steps) + cloud                            # [N, 2]
        # an implicit codebook has a place and a size of its own: its encoder would bring the points there
        latents = (here - here.mean(0)) / points.deviation if implicit else here
        if step % train.frame_every == 0 or step == train.steps:
            quantizer.eval()
            with torch.no_grad():
                chosen.append(quantizer(latents[None]).codes.flatten().numpy().copy())
            steps.append(step)
            places.append(here.numpy().copy())
            codes.append(None if implicit else quantizer.codebooks()[0].detach().numpy().copy())
            if progress is not None:
                progress(entry.title, step, train.steps)
        if step == train.steps:
            break
        quantizer.train()
        quantizer.before_step(step)
        out = quantizer(latents[None])
        loss = sum((quantizer.loss_weights[name] * value for name, value in out.losses.items()), torch.zeros(()))
        if optimizer is not None and loss.requires_grad:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        quantizer.after_step(step)
    return Trace(entry.title, np.array(steps), np.stack(places), None if implicit else np.stack(codes), np.stack(chosen),
                 quantizer.layout.vocab_sizes[0])
