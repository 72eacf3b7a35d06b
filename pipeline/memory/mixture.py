"""Copying as a mixture of sequences: p(y) = (1 - g) p_LM(y) + g sum_a b_a [y = a EOS], decoded token by token.

Every component says how likely its next token is; the components are weighed by how well they have predicted what is
written so far. After the prefix y_<t,

    p(y_t | y_<t) = c_LM p_LM(y_t | y_<t) + sum_a c_a [y_t is the next token of a EOS],
    c_LM  proportional to  (1 - g) p_LM(y_<t),     c_a  proportional to  g b_a [a EOS begins with y_<t].

The product of these conditionals is p(y) exactly, so nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.memory.types import Reading

_NEVER = -1  # no token: the answer is over
_RULED_OUT = float("-inf")


@dataclass(frozen=True)
class Mixture:
    """``shares``: the probability g b_a of each answer as a whole; what is left to 1 is the model's."""

    shares: dict[str, float]

    @property
    def gate(self) -> float:
        """g, the probability that a lesson's answer is copied."""
        return min(1.0, sum(self.shares.values()))

    @property
    def best(self) -> str:
        return max(self.shares, key=self.shares.__getitem__)


def mixture_of(reading: Reading) -> Mixture:
    """Each answer's share is its beliefs times its slots' weights. Belief that no lesson is right goes to the model."""
    shares: dict[str, float] = {}
    for slot in reading.slots:
        for answer, belief in slot.answers.items():
            shares[answer] = shares.get(answer, 0.0) + slot.weight * belief
    return Mixture({answer: share for answer, share in shares.items() if share > 0})


class CopyMixture:
    """Log-probabilities of the mixture in place of the model's logits, for one batch that decodes together.

    ``mixtures`` has one entry per row of the batch; a row with ``None`` or g = 0 keeps its logits bit for bit. Written
    tokens must be chosen one at a time for the same row (greedy or sampled; not beams, which swap rows).
    """

    def __init__(
        self,
        mixtures: Sequence[Mixture | None],
        answer_ids: Callable[[str], Sequence[int]],
        end_token: int,
        device: torch.device | str = "cpu",
    ) -> None:
        listed = [list(mixture.shares.items()) if mixture else [] for mixture in mixtures]
        written = [[[*answer_ids(answer), end_token] for answer, _ in row] for row in listed]
        answers = max((len(row) for row in listed), default=0) or 1
        width = max((len(ids) for row in written for ids in row), default=0) or 1
        tokens = torch.full((len(listed), answers, width), _NEVER)
        shares = torch.zeros(len(listed), answers, dtype=torch.float64)
        for row, (items, sequences) in enumerate(zip(listed, written, strict=True)):
            for place, ((_, share), ids) in enumerate(zip(items, sequences, strict=True)):
                tokens[row, place, : len(ids)] = torch.tensor(ids)
                shares[row, place] = share
        gate = shares.sum(-1).clamp(max=1.0)
        self._end_token = end_token
        self._tokens = tokens.to(device)  # (batch, answers, width)
        self._mixed = (gate > 0).to(device)  # (batch,)
        self._log_model = (1 - gate).log().to(device)  # (batch,): log of (1 - g) p_LM(y_<t)
        self._log_copied = shares.log().to(device)  # (batch, answers): log of g b_a while a EOS begins with y_<t
        self._ended = torch.zeros(len(listed), dtype=torch.bool, device=device)
        self._prompt: int | None = None
        self._seen = 0  # written tokens that the components have been weighed by
        self._last: Tensor | None = None  # (batch, vocabulary): the model's log-probabilities of the next token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, tokens) and (batch, vocabulary) to (batch, vocabulary)."""
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        self._weigh(input_ids)
        exact = scores if scores.dtype == torch.float64 else scores.float()
        self._last = exact.log_softmax(-1)
        log_model, log_copied = self._posterior()
        spoken = self._spoken(log_copied.exp().to(exact.dtype), exact)
        mixed = torch.logaddexp(self._last + log_model[:, None].to(exact.dtype), spoken.log())
        use = self._mixed & ~self._ended & torch.isfinite(mixed.amax(-1))
        return torch.where(use[:, None], mixed.to(scores.dtype), scores)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch: (new batch,) indices."""
        self._tokens, self._mixed, self._ended = self._tokens[rows], self._mixed[rows], self._ended[rows]
        self._log_model, self._log_copied = self._log_model[rows], self._log_copied[rows]
        self._last = self._last[rows] if self._last is not None else None

    def copied(self, output_ids: Tensor) -> list[float]:
        """The posterior that each row's whole output was copied, once it has been written: (batch, tokens)."""
        if self._prompt is not None:
            self._weigh(output_ids)
        return self._posterior()[1].exp().sum(-1).tolist()

    def _weigh(self, input_ids: Tensor) -> None:
        """Take the token written since the last call into account, in rows that had not ended."""
        written = input_ids[:, self._prompt :]
        if written.shape[1] == self._seen or self._last is None:
            return
        new = written[:, -1:]  # (batch, 1)
        going = ~self._ended
        said = self._last.gather(1, new)[:, 0].double()
        self._log_model = torch.where(going, self._log_model + said, self._log_model)
        wrong = self._next_tokens() != new  # (batch, answers)
        self._log_copied = self._log_copied.masked_fill(wrong & going[:, None], _RULED_OUT)
        self._ended |= new[:, 0] == self._end_token
        self._seen = written.shape[1]

    def _next_tokens(self) -> Tensor:
        """(batch, answers): what each answer says next."""
        if self._seen < self._tokens.shape[2]:
            return self._tokens[:, :, self._seen]
        return torch.full_like(self._tokens[:, :, 0], _NEVER)

    def _posterior(self) -> tuple[Tensor, Tensor]:
        """log c_LM (batch,) and log c_a (batch, answers)."""
        total = torch.logaddexp(self._log_model, self._log_copied.logsumexp(-1))
        total = torch.where(torch.isfinite(total), total, torch.zeros_like(total))
        return self._log_model - total, self._log_copied - total[:, None]

    def _spoken(self, copied: Tensor, like: Tensor) -> Tensor:
        """(batch, vocabulary): sum of c_a over the answers whose next token this is."""
        tokens = self._next_tokens()
        spoken = torch.zeros_like(like)
        return spoken.scatter_add_(1, tokens.clamp(min=0), copied.masked_fill(tokens == _NEVER, 0.0))
