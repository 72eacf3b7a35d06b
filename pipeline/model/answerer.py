"""The answerer: one bundle on its backbone, ready to generate and to score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluate.protocol import Message, prompt_messages
from pipeline.memory.mixture import CopyMixture, Mixture
from pipeline.model.backbone import Backbone, Batch, Opening, Prompt
from pipeline.model.bundle import Bundle, BundleError
from pipeline.model.greedy import Rows, greedy
from pipeline.model.memory_layer import MemoryPass, attached, spoken
from pipeline.model.native_layer import Session, remembering


@dataclass(frozen=True)
class Generation:
    """One greedy answer. ``slots`` are the lessons whose memory-layer slots spoke, strongest first."""

    text: str
    tokens: int
    prompt_tokens: int
    finished: bool  # the end token was generated
    slots: tuple[str, ...] = ()
    copied: float = 0.0  # posterior that the text was copied from a lesson, where it was decoded from a mixture


class Answerer:
    """Blocking and batched; call it from one worker thread."""

    max_batch = 32

    def __init__(self, bundle: Bundle, backbone: Backbone) -> None:
        self.bundle = bundle
        self.backbone = backbone
        dtype = next(backbone.model.parameters()).dtype
        self.memory = bundle.memory.to(backbone.device, dtype) if bundle.memory else None

    @classmethod
    def load(cls, bundle: Bundle, *, share: Answerer | None = None) -> Answerer:
        """``share`` lends its base weights where the bundle rests on the same, so that a swap loads almost nothing."""
        if share is not None and share.backbone.digest == bundle.base_digest:
            backbone = share.backbone
            if bundle.tensors or share.bundle.tensors:
                backbone = Backbone.load(bundle.recipe.model)
        else:
            backbone = Backbone.load(bundle.recipe.model)
        if backbone.digest != bundle.base_digest:
            raise BundleError(f"the bundle rests on weights {bundle.base_digest[:12]}, found {backbone.digest[:12]}")
        if bundle.tensors:
            load_changed(backbone, bundle.tensors)
        return cls(bundle, backbone)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | None = None,
        mixtures: Sequence[Mixture | None] | None = None,
        guesses: Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """Greedy answers in the order of ``prompts``; lengths are grouped so that little is padded.

        Where ``mixtures`` has one for a prompt, its answer is decoded from the mixture with the lessons' answers.
        ``guesses`` say what the answers probably are. One pass along a guess tells whether greedy decoding would
        write it, to the end; where it would not, the answer is decoded. So a guess changes the time and nothing else.
        """
        mixed = mixtures or [None] * len(prompts)
        limit = max_new_tokens or self.bundle.recipe.model.max_new_tokens
        rendered = [self.backbone.prompt(messages) for messages in prompts]
        order = sorted(range(len(rendered)), key=lambda i: len(rendered[i].ids))
        answers: dict[int, Generation] = {}
        if guesses is not None:
            guessed = [i for i in order if guesses[i] is not None and mixed[i] is None]
            for chosen in self._batches(guessed):
                found = self._guessed([rendered[i] for i in chosen], [guesses[i] or "" for i in chosen], limit)
                answers |= {i: answer for i, answer in zip(chosen, found, strict=True) if answer is not None}
        for chosen in self._batches([i for i in order if i not in answers]):
            decoded = self._generate([rendered[i] for i in chosen], [mixed[i] for i in chosen], limit)
            answers |= zip(chosen, decoded, strict=True)
        return [answers[i] for i in range(len(rendered))]

    @torch.inference_mode()
    def readings(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """What the memory layers add to each prompt, by name: empty where no slot speaks.

        Answerers of the same ordinary weights answer a prompt alike where they read the same. Only the layers up to
        the key layer run, so asking for it costs a fraction of an answer.
        """
        if self.memory is None:
            return [""] * len(prompts)
        rendered = [self.backbone.prompt(messages) for messages in prompts]
        names: dict[int, str] = {}
        for chosen in self._batches(sorted(range(len(rendered)), key=lambda i: len(rendered[i].ids))):
            with self.backbone.lock:
                opening, batch = self._opened([rendered[i] for i in chosen])
                with self._remembering(batch):
                    hidden = self.backbone.states(batch, self.memory.key_layer, opening)
            names |= zip(chosen, self.memory.names(self.memory.address(hidden, batch.span)), strict=True)
        return [names[i] for i in range(len(rendered))]

    def _batches(self, numbers: Sequence[int]) -> list[Sequence[int]]:
        return [numbers[start : start + self.max_batch] for start in range(0, len(numbers), self.max_batch)]

    @contextmanager
    def _begun(self, prompts: Sequence[Prompt], mixture: CopyMixture | None = None) -> Iterator[tuple[Rows, Tensor]]:
        """The rows of a batch after their prompts, and the logits there (batch, vocabulary)."""
        backbone = self.backbone
        with backbone.lock:
            opening, batch = self._opened(prompts)
            memory = self.memory_pass(batch)
            with attached(backbone.layers, memory), self._remembering(batch) as session:
                rows = Rows(backbone, memory, session, mixture)
                yield rows, rows.begin(batch, opening)

    def _opened(self, prompts: Sequence[Prompt]) -> tuple[Opening, Batch]:
        # A native memory layer reads a prompt as a whole: what came right before a token is part of its address.
        return self.backbone.opened(prompts, share=not self.bundle.written)

    def _generate(self, prompts: Sequence[Prompt], mixtures: Sequence[Mixture | None], limit: int) -> list[Generation]:
        backbone = self.backbone
        mixture = CopyMixture(mixtures, backbone.answer_ids, backbone.end_token, backbone.device)
        with self._begun(prompts, mixture if any(mixtures) else None) as (rows, logits):
            slots = self._slots(rows.memory, len(prompts))
            written = greedy(rows, logits, limit, backbone.end_token)
        parts = zip(written, prompts, slots, strict=True)
        return [self._generation(row.ids, prompt, spoke, row.copied) for row, prompt, spoke in parts]

    def _guessed(self, prompts: Sequence[Prompt], guesses: Sequence[str], limit: int) -> list[Generation | None]:
        """The generation where the guess is what greedy decoding writes, up to its end or to ``limit`` tokens."""
        end = self.backbone.end_token
        ids = [[*self.backbone.answer_ids(guess), end][:limit] for guess in guesses]
        tokens, valid = self._padded(ids)
        with self._begun(prompts) as (rows, logits):
            slots = self._slots(rows.memory, len(ids))
            right = logits.argmax(-1) == tokens[:, 0]
            going = (right & valid[:, 1:].any(-1)).nonzero()[:, 0]
            if len(going):
                rows.select(going)
                likeliest = rows.along(tokens[going, :-1]).argmax(-1)
                right[going] = ((likeliest == tokens[going, 1:]) | ~valid[going, 1:]).all(-1)
        parts = zip(ids, prompts, slots, right.tolist(), strict=True)
        return [self._generation(row, prompt, spoke, 0.0) if same else None for row, prompt, spoke, same in parts]

    def _generation(self, ids: list[int], prompt: Prompt, slots: tuple[str, ...], copied: float) -> Generation:
        finished = self.backbone.end_token in ids
        written = ids[: ids.index(self.backbone.end_token)] if finished else ids
        text = self.backbone.tokenizer.decode(written, skip_special_tokens=True).strip()
        return Generation(text, len(written) + finished, len(prompt.ids), finished, slots, copied)

    def memory_pass(self, batch: Batch) -> MemoryPass | None:
        if self.memory is None:
            return None
        return MemoryPass(self.memory, self.memory.values, span=batch.span)

    def _remembering(self, batch: Batch) -> AbstractContextManager[Session | None]:
        """With what the bundle's native memory layers were told; answering writes nothing."""
        if not self.bundle.written:
            return nullcontext()
        session = Session.of(self.bundle.written, len(batch.ids), self.backbone.device)
        return remembering(self.backbone.model, session.segment(writes=False, mask=batch.mask))

    def _slots(self, memory: MemoryPass | None, count: int) -> list[tuple[str, ...]]:
        if memory is None or memory.weights is None:
            return [()] * count
        return [tuple(memory.state.slots[slot] for slot, _ in spoken(row)) for row in memory.weights]

    @torch.inference_mode()
    def score(self, questions: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Mean log-likelihood per answer token of each option as the answer to its question (end token excluded)."""
        prompts = [self.backbone.prompt(prompt_messages(question)) for question in questions]
        answers = [[self.backbone.answer_ids(text) for text in texts] for texts in options]
        order = sorted(range(len(prompts)), key=lambda i: (max(map(len, answers[i])), len(prompts[i].ids)))
        scores: dict[int, list[float]] = {}
        for chosen in self._batches(order):
            rows = self._score([prompts[i] for i in chosen], [answers[i] for i in chosen])
            scores |= zip(chosen, rows, strict=True)
        return [scores[i] for i in range(len(prompts))]

    def _score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """A prompt is run once; an answer's first token is read off there, and only longer ones go on."""
        tokens, valid = self._padded([ids for options in answers for ids in options])
        owner = torch.tensor([row for row, options in enumerate(answers) for _ in options], device=tokens.device)
        with self._begun(prompts) as (rows, logits):
            totals = _log_likelihood(logits[owner], tokens[:, 0])
            going = valid[:, 1:].any(-1).nonzero()[:, 0]
            if len(going):
                rows.select(owner[going])
                rest = _log_likelihood(rows.along(tokens[going, :-1]), tokens[going, 1:])
                totals[going] += (rest * valid[going, 1:]).sum(-1)
        means = (totals / valid.sum(-1)).tolist()
        return [[means.pop(0) for _ in options] for options in answers]

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token rows (n, width), filled up with the end token, and which of them are a row's own."""
        width = max(map(len, ids))
        tokens = torch.tensor([[*row, *[self.backbone.end_token] * (width - len(row))] for row in ids])
        valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
        return tokens.to(self.backbone.device), valid.to(self.backbone.device)


def _log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """(..., vocabulary), (...) -> (...), in float32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def load_changed(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    """Put changed weights over the base's, in place; unknown names and shapes are refused."""
    own = dict(backbone.model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise BundleError(f"changed tensor {name!r} {tuple(tensor.shape)} does not fit the base model")
        own[name].data.copy_(tensor)
