"""Training the router's second stage: each style's adapter first, then small heads over held-out lessons.

Four fifths of the lessons train the adapters, the last fifth trains the heads, so that a head sees the pair encoders as
they behave on lessons that they do not know. Natural lines say themselves which they are (``held_out``), so that a
router which is trained further, among more lines, still knows none that its heads are fitted on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.lines import LessonLine, ProbeLine
from pipeline.memory.features import WordTable, features
from pipeline.memory.pair_encoder import (
    STYLES,
    PairEncoder,
    PairEncoders,
    Style,
    adapter_tensors,
    base_pair_encoder,
    load_pair_encoders,
    make_trainable,
    of_style,
    restore_adapter,
    style,
)
from pipeline.memory.router import Head, close_rows, final_inputs
from pipeline.memory.router_examples import (
    Example,
    generated_examples,
    line_examples,
    natural_examples,
    question_examples,
)
from pipeline.memory.router_memories import labelled_pairs
from pipeline.model.encoder import TextEncoder

RANK = 64
BATCH = 32
RATE, RATE_FURTHER = 1e-3, 4e-4
GENERATED_PAIRS = 12_000
LESSON_PAIRS = 50_000
NATURAL_PASSES = 1  # each pass draws other wordings, other noise
HEAD_LESSONS = 400  # lessons per size of memory
OPEN_RECALL = 0.999  # share of right candidates that the first head must let through

Progress = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True)
class Material:
    """What a router learns from."""

    lines: Sequence[LessonLine]  # the user's lessons, with paraphrases and neighbours
    natural: Sequence[LessonLine] = ()
    questions: Sequence[ProbeLine] = ()
    generated: int = GENERATED_PAIRS
    most: int = LESSON_PAIRS  # pairs of the user's lessons in one pass

    def examples(self, encoder: TextEncoder, seed: int) -> list[Example]:
        """The pairs of one pass."""
        known, _ = split(self.lines)
        written, _ = by_field(self.natural)
        pairs = line_examples(known, encoder, seed)
        pairs = random.Random(seed).sample(pairs, min(len(pairs), self.most))
        pairs += generated_examples(known, seed, self.generated)
        pairs += question_examples(self.questions, encoder, seed) if self.questions else []
        for repeat in range(NATURAL_PASSES):
            pairs += natural_examples(written, encoder, seed + repeat)
        return pairs


def fit_router(
    material: Material,
    encoder: TextEncoder,
    seed: int = 0,
    *,
    start_from: Mapping[str, Tensor] | None = None,
    styles: Sequence[Style] = STYLES,
    epochs: int = 1,
    head_lessons: int = HEAD_LESSONS,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The tensors that :func:`pipeline.memory.router.load_router` takes.

    ``start_from``: another router's tensors, whose adapters are trained further, gently; without them the encoder's own
    weights are the start. ``styles``: which adapters are trained; where it is not all of them, the rest of
    ``start_from`` stays as it is, bit for bit. Deterministic for one machine and number of threads.
    """
    if start_from is None and set(styles) != set(STYLES):
        raise ValueError(f"styles = {list(styles)}: a router from nothing needs all of {list(STYLES)}, or start_from")
    torch.manual_seed(seed)
    examples = [pair for epoch in range(epochs) for pair in material.examples(encoder, seed + 100 * epoch)]
    batches = {name: _batches([pair for pair in examples if style(*pair[:2]) == name], seed) for name in styles}
    told = _counted(progress, sum(map(len, batches.values())))
    tensors = dict(start_from or {})
    for name, own in batches.items():
        pair_encoder = base_pair_encoder(encoder.name)
        make_trainable(pair_encoder, RANK)
        if start_from is not None:
            restore_adapter(pair_encoder, of_style(start_from, name))
        train_pair_encoder(pair_encoder, own, RATE if start_from is None else RATE_FURTHER, told)
        tensors |= {f"{name}.{key}": tensor for key, tensor in adapter_tensors(pair_encoder).items()}
    adapted = load_pair_encoders(tensors, encoder.name)
    return tensors | fit_heads(material, encoder, adapted, seed + 1, head_lessons, tensors, styles)


def _counted(progress: Progress | None, steps: int) -> Callable[[float], None]:
    """Steps of several trainings as one."""
    done = itertools.count(1)

    def told(loss: float) -> None:
        step = next(done)
        if progress is not None:
            progress(step, steps, loss)

    return told


def split(lines: Sequence[LessonLine]) -> tuple[Sequence[LessonLine], Sequence[LessonLine]]:
    """Four fifths for the adapter, one for the heads."""
    return lines[: len(lines) * 4 // 5], lines[len(lines) * 4 // 5 :]


def by_field(lines: Sequence[LessonLine]) -> tuple[list[LessonLine], list[LessonLine]]:
    """Natural lines for the adapter, and those that are marked ``held_out``, for the heads."""
    return [line for line in lines if not line.extra("held_out")], [line for line in lines if line.extra("held_out")]


# the pair encoder


def train_pair_encoder(
    encoder: PairEncoder, batches: list[list[Example]], rate: float, told: Callable[[float], None]
) -> None:
    """AdamW, linear warm-up and decay, bfloat16 autocast where the hardware has it."""
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=len(batches)))
    encoder.train()
    for batch in batches:
        loss = _loss(encoder, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        told(float(loss.detach()))
    encoder.eval()


def _loss(encoder: PairEncoder, batch: list[Example]) -> Tensor:
    """Binary cross-entropy on the log-odds."""
    tokens = encoder.tokens([(left, right) for left, right, _ in batch])
    device = encoder.head.weight.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=_bfloat16_pays(device)):
        logits = encoder(tokens).float()
    wanted = torch.tensor([label for *_, label in batch], device=logits.device)
    return nn.functional.binary_cross_entropy_with_logits(logits, wanted)


def _bfloat16_pays(device: str) -> bool:
    """A CPU without AVX-512 emulates it: all of a small training took 90 s on AVX2, and 16 s in float32."""
    return device != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (0.06 * steps + 1)) * (1 - step / steps)


def _batches(examples: list[Example], seed: int) -> list[list[Example]]:
    """Shuffled, then sorted by length within runs of 20 batches: little padding, still random."""
    shuffler = random.Random(seed)
    mixture = shuffler.sample(examples, len(examples))
    run = 20 * BATCH
    chunks = [sorted(mixture[i : i + run], key=lambda e: len(e[0]) + len(e[1])) for i in range(0, len(mixture), run)]
    batches = [chunk[i : i + BATCH] for chunk in chunks for i in range(0, len(chunk), BATCH)]
    return shuffler.sample(batches, len(batches))


# the heads


def fit_heads(
    material: Material,
    encoder: TextEncoder,
    pair_encoders: PairEncoders,
    seed: int,
    count: int,
    before: Mapping[str, Tensor],
    styles: Sequence[Style] = STYLES,
) -> dict[str, Tensor]:
    """The first head on every candidate, its floor, and each style's final head on what its pair encoder has read.

    The first head is shared: where not all styles are trained, it stays as it was ``before``.
    """
    tokenizer = pair_encoders.tokenizer
    table = WordTable(lambda word: tokenizer.encode(word, add_special_tokens=False) or [0])
    lines, natural = split(material.lines), by_field(material.natural)
    labelled = labelled_pairs(lines[1], natural[1], [*lines[0], *natural[0]], encoder, seed, count)
    pairs = [pair for pair, _ in labelled]
    labels = np.array([label for _, label in labelled], dtype=np.float32)
    inputs = features(pairs, table)
    fitted: dict[str, Tensor] = {}
    if set(styles) == set(STYLES):
        fitted = fit_head("first", inputs, labels, seed)
        odds = Head(fitted, "first")(inputs)
        fitted["open"] = torch.tensor([float(np.quantile(odds[labels > 0], 1 - OPEN_RECALL))])
    shared = {**before, **fitted}
    odds = Head(shared, "first")(inputs)
    rows = close_rows(pairs, odds, float(shared["open"][0]))
    close = [pairs[row] for row in rows]
    read = pair_encoders.score([(pair.question, pair.phrasing) for pair in close])
    judged, wanted = final_inputs(inputs[rows], close, read), labels[rows]
    for name in styles:
        own = np.array([style(pair.question, pair.phrasing) == name for pair in close])
        if len(set(wanted[own])) < 2:  # nothing of this style to tell apart: what holds for all has to do
            own = np.ones_like(own)
        fitted |= fit_head(f"{name}.final", judged[own], wanted[own], seed)
    return fitted


def fit_head(
    prefix: str, inputs: NDArray[np.float32], labels: NDArray[np.float32], seed: int, units: int = 16
) -> dict[str, Tensor]:
    """A one-layer network by full-batch L-BFGS on the log loss, with a small weight penalty."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(inputs).double(), torch.from_numpy(labels).double()
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-3)
    parts = [torch.randn(x.shape[1], units, generator=generator).double() * 0.3, torch.zeros(units).double()]
    parts += [torch.randn(units, generator=generator).double() * 0.3, torch.zeros(1).double()]
    for part in parts:
        part.requires_grad_()
    optimizer = torch.optim.LBFGS(parts, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        hidden, hidden_bias, out, out_bias = parts
        logits = torch.tanh((x - mean) / scale @ hidden + hidden_bias) @ out + out_bias
        penalty = 1e-4 * sum((part**2).sum() for part in (hidden, out))
        loss: Tensor = nn.functional.binary_cross_entropy_with_logits(logits, y) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    names = ("hidden", "hidden_bias", "out", "out_bias")
    learned = {f"{prefix}.{name}": part.detach().float() for name, part in zip(names, parts, strict=True)}
    return {**learned, f"{prefix}.mean": mean.float(), f"{prefix}.scale": scale.float()}
