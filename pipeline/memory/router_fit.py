"""Training the router's second stage: the pair encoder's adapter first, then two small heads over held-out lessons.

Three kinds of pairs: the user's lesson lines, generated ones (many relations, few wordings), and *natural* lines,
written by hand, which show how freely people rephrase a question; those name near-misses of their own, ``neighbours``
(other subject) and ``others`` (same subject, other relation).

Four fifths of the lessons train the adapter, the last fifth trains the heads, so that a head sees the pair encoder as
it behaves on lessons that it does not know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.lines import LessonLine
from pipeline.memory.features import Pair, WordTable, features
from pipeline.memory.pair_encoder import (
    PairEncoder,
    adapter_tensors,
    base_pair_encoder,
    load_pair_encoder,
    make_trainable,
)
from pipeline.memory.router import Head, close_rows
from pipeline.memory.router_data import Fact, Generator
from pipeline.model.encoder import TextEncoder

RANK = 16
BATCH = 32
GENERATED_PAIRS = 10_000
LINE_PAIRS = 6_000
NATURAL_PASSES = 2  # each pass draws other wordings, other noise
MEMORIES = (1, 30, 400)  # sizes of the memories that the heads are trained on
HEAD_LESSONS = 400  # lessons per size
CANDIDATES = 16
OPEN_RECALL = 0.999  # share of right candidates that the first head must let through

Progress = Callable[[int, int, float], None]  # step, steps, loss
Example = tuple[str, str, float]  # question, phrasing, 1 if they ask the same


def fit_router(
    lines: Sequence[LessonLine],
    encoder: TextEncoder,
    seed: int = 0,
    *,
    natural: Sequence[LessonLine] = (),
    epochs: int = 1,
    generated: int = GENERATED_PAIRS,
    head_lessons: int = HEAD_LESSONS,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The tensors that :func:`pipeline.memory.router.load_router` takes.

    Deterministic for one machine and number of threads.
    """
    torch.manual_seed(seed)
    (known, held_out), (written, held_written) = (
        _split(lines),
        _split(random.Random(seed).sample(natural, len(natural))),
    )
    examples = line_examples(known, encoder, seed) + generated_examples(known, seed, generated)
    for repeat in range(NATURAL_PASSES):
        examples += natural_examples(written, encoder, seed + repeat)
    pair_encoder = base_pair_encoder(encoder.name)
    train_pair_encoder(pair_encoder, examples, seed, epochs, progress=progress)
    tensors = adapter_tensors(pair_encoder)
    adapted = load_pair_encoder(tensors, encoder.name)
    return {**tensors, **fit_heads(held_out, held_written, encoder, adapted, seed + 1, head_lessons)}


def _split(lines: Sequence[LessonLine]) -> tuple[Sequence[LessonLine], Sequence[LessonLine]]:
    """Four fifths for the adapter, one for the heads."""
    return lines[: len(lines) * 4 // 5], lines[len(lines) * 4 // 5 :]


# examples


def natural_examples(lines: Sequence[LessonLine], encoder: TextEncoder, seed: int) -> list[Example]:
    """Every wording against the question and against one other wording, because a lesson may come in any wording."""
    generator = Generator([], seed)
    colour, draw = generator.noise, generator.random
    examples: list[Example] = []
    for line, near in zip(lines, _nearest_others(lines, encoder), strict=True):
        wordings = [line.question, *line.paraphrases]
        misses = [*line.neighbours, *others_of(line)]
        for text in wordings:
            known = draw.choice([w for w in wordings if w != text] or wordings)
            examples += [(colour(text), line.question, 1.0), (colour(text), known, 1.0)]
        for text in misses:
            examples += [(colour(text), line.question, 0.0), (colour(text), draw.choice(wordings), 0.0)]
        examples += [(colour(draw.choice(wordings)), lines[other].question, 0.0) for other in near]
    return examples


def others_of(line: LessonLine) -> list[str]:
    """Questions about the same subject that the lesson does not answer (a field of natural lines)."""
    return list((line.model_extra or {}).get("others", ()))


def line_examples(lines: Sequence[LessonLine], encoder: TextEncoder, seed: int) -> list[Example]:
    """Each lesson against its paraphrases, its neighbours, and the nearest other lessons of the file."""
    colour = Generator([], seed).noise
    examples: list[Example] = []
    for line, near in zip(lines, _nearest_others(lines, encoder), strict=True):
        asked = [line.question, *line.paraphrases]
        examples += [(colour(text), line.question, 1.0) for text in asked]
        examples += [(colour(text), line.question, 0.0) for text in line.neighbours]
        examples += [(colour(asked[-1]), lines[other].question, 0.0) for other in near]
    return random.Random(seed).sample(examples, min(len(examples), LINE_PAIRS))


def _nearest_others(lines: Sequence[LessonLine], encoder: TextEncoder, count: int = 2) -> list[list[int]]:
    if len(lines) <= count:
        return [[] for _ in lines]
    keys = encoder.encode([line.question for line in lines])
    asked = encoder.encode([line.paraphrases[0] if line.paraphrases else line.question for line in lines])
    cosines = asked @ keys.T
    np.fill_diagonal(cosines, -1)
    nearest: list[list[int]] = np.argpartition(-cosines, count, axis=1)[:, :count].tolist()
    return nearest


def generated_examples(lines: Sequence[LessonLine], seed: int, count: int) -> list[Example]:
    """About 48 % the same question in other words, 40 % another subject, 12 % another relation of the subject.

    People ask about the same subject in words that no template foresees; many relation negatives made the router
    refuse those.
    """
    draw = random.Random(seed).random
    generator = Generator(lines, seed)
    examples: list[Example] = []
    while len(examples) < count:
        fact = generator.fact()
        asked, known = generator.wordings(fact, 2)
        examples.append((asked, known, 1.0))
        if draw() < 0.5:
            examples.append((known, asked, 1.0))
        others = [generator.other_subject(fact)] * (2 if draw() < 0.25 else 1)
        examples += [(generator.wordings(other, 1)[0], known, 0.0) for other in others]
        if draw() < 0.4:
            examples.append((generator.wordings(generator.other_relation(fact), 1)[0], known, 0.0))
    return examples[:count]


# the pair encoder


def train_pair_encoder(
    encoder: PairEncoder,
    examples: list[Example],
    seed: int,
    epochs: int,
    rate: float = 1e-3,
    progress: Progress | None = None,
) -> None:
    """One pass or more over the examples: AdamW, linear warm-up and decay, bfloat16 where it is safe."""
    parameters = make_trainable(encoder, RANK)
    batches = [batch for epoch in range(epochs) for batch in _batches(examples, seed + epoch)]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=len(batches)))
    encoder.train()
    for step, batch in enumerate(batches, 1):
        loss = _loss(encoder, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, len(batches), float(loss.detach()))
    encoder.eval()


def _loss(encoder: PairEncoder, batch: list[Example]) -> Tensor:
    """Binary cross-entropy on the log-odds."""
    tokens = encoder.tokens([(left, right) for left, right, _ in batch])
    with torch.autocast(encoder.head.weight.device.type, dtype=torch.bfloat16):
        logits = encoder(tokens).float()
    wanted = torch.tensor([label for *_, label in batch], device=logits.device)
    return nn.functional.binary_cross_entropy_with_logits(logits, wanted)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (0.06 * steps + 1)) * (1 - step / steps)


def _batches(examples: list[Example], seed: int) -> list[list[Example]]:
    """Shuffled, then sorted by length within runs of 20 batches: little padding, still random."""
    shuffler = random.Random(seed)
    mixed = shuffler.sample(examples, len(examples))
    run = 20 * BATCH
    chunks = [sorted(mixed[i : i + run], key=lambda e: len(e[0]) + len(e[1])) for i in range(0, len(mixed), run)]
    batches = [chunk[i : i + BATCH] for chunk in chunks for i in range(0, len(chunk), BATCH)]
    return shuffler.sample(batches, len(batches))


# the heads


@dataclass(frozen=True)
class Asked:
    """A question near one lesson of a memory, and whether that lesson answers it."""

    question: str
    lesson: int
    applies: bool


def fit_heads(
    lines: Sequence[LessonLine],
    natural: Sequence[LessonLine],
    encoder: TextEncoder,
    pair_encoder: PairEncoder,
    seed: int,
    count: int = HEAD_LESSONS,
) -> dict[str, Tensor]:
    """The first head on every candidate, its floor, and the final head on what the pair encoder has read."""
    tokenizer = pair_encoder.tokenizer
    table = WordTable(lambda word: tokenizer.encode(word, add_special_tokens=False) or [0])
    groups = [candidates(*simulated_memory(lines, natural, count, seed + size), size, encoder) for size in MEMORIES]
    pairs = [
        replace(pair, asking=pair.asking + number * 1_000_000)
        for number, group in enumerate(groups)
        for pair, _ in group
    ]
    labels = np.array([label for group in groups for _, label in group], dtype=np.float32)
    inputs = features(pairs, table)
    first = fit_head("first", inputs, labels, seed)
    odds = Head(first, "first")(inputs)
    floor = float(np.quantile(odds[labels > 0], 1 - OPEN_RECALL))
    rows = close_rows(pairs, odds, floor)
    read = np.array(pair_encoder.score([(pairs[row].question, pairs[row].phrasing) for row in rows]), dtype=np.float32)
    final = fit_head("final", np.column_stack([inputs[rows], read]), labels[rows], seed)
    return {**first, **final, "open": torch.tensor([floor])}


def simulated_memory(
    lines: Sequence[LessonLine], natural: Sequence[LessonLine], count: int, seed: int
) -> tuple[list[str], list[Asked]]:
    """Lessons, half from the lines (natural ones first) and half generated, and what is asked about them."""
    generator = Generator(lines, seed)
    written = generator.random.sample(list(natural), min(len(natural), count // 3))
    chosen = written + generator.random.sample(list(lines), min(len(lines), count // 2 - len(written)))
    facts: dict[Fact, None] = {}
    while len(facts) < count - len(chosen):
        facts[generator.fact()] = None
    known = [_asked_of_line(line, generator) for line in chosen]
    known += [_asked_of_fact(fact, facts, generator) for fact in facts]
    generator.random.shuffle(known)
    asked = [
        Asked(text, number, applies)
        for number, (_, right, wrong) in enumerate(known)
        for texts, applies in ((right, True), (wrong, False))
        for text in texts
    ]
    return [lesson for lesson, _, _ in known], asked


Known = tuple[str, list[str], list[str]]  # a lesson's question, questions that it answers, questions that it does not


def _asked_of_line(line: LessonLine, generator: Generator) -> Known:
    right = [generator.noise(text) for text in (line.question, *line.paraphrases)]
    return line.question, right, [generator.noise(text) for text in (*line.neighbours, *others_of(line))]


def _asked_of_fact(fact: Fact, facts: Mapping[Fact, None], generator: Generator) -> Known:
    known, *right = generator.wordings(fact, 3)
    others = [generator.other_subject(fact), generator.other_subject(fact)]
    if generator.random.random() < 0.5:
        others.append(generator.other_relation(fact))
    return known, right, [generator.wordings(other, 1)[0] for other in others if other not in facts]


def candidates(lessons: list[str], asked: list[Asked], size: int, encoder: TextEncoder) -> list[tuple[Pair, float]]:
    """The nearest lessons of each question with 1 for the one that applies.

    The lessons stand in memories of ``size``; a question is put to the memory of the lesson that it is near.
    """
    keys, queries = encoder.encode(lessons), encoder.encode([item.question for item in asked])
    found: list[tuple[Pair, float]] = []
    for number, (item, query) in enumerate(zip(asked, queries, strict=True)):
        start = item.lesson // size * size
        cosines = keys[start : start + size] @ query
        order = np.argsort(-cosines, kind="stable")[:CANDIDATES].tolist()
        for row in order:
            rival = max((float(cosines[other]) for other in order if other != row), default=0.0)
            pair = Pair(item.question, lessons[start + row], float(cosines[row]), float(cosines[row]) - rival, number)
            found.append((pair, float(start + row == item.lesson and item.applies)))
    return found


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
