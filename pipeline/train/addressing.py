"""Placing the keys of memory layers: addresses of questions, and thresholds against near-misses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import MemoryLayerSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.address import AddressHead, last_tokens, load_head, shipped_head, untrained_head
from pipeline.model.backbone import Backbone
from pipeline.model.memory_layer import MemoryState, span_mean
from pipeline.model.product_keys import product_key, product_topk

CODEBOOK_SEED = 0
NEAREST = 0.9  # of what a key's own phrasing reaches: a key's threshold is never above it
UNTRAINED_RANK = 64
STATES_FLOOR = 0.5  # mean states of different questions lie less close together
KEYS_AT_ONCE = 512  # whose similarities to everything are in memory together


@torch.no_grad()
def question_states(backbone: Backbone, questions: Sequence[str], layer: int, batch_size: int = 32) -> Tensor:
    """Mean state of each question's tokens after decoder layer ``layer``: (questions, d), float32 on the CPU."""
    states = torch.zeros(len(questions), backbone.model.config.hidden_size)
    for chosen, hidden, span in _key_layer_states(backbone, questions, layer, batch_size):
        states[chosen] = span_mean(hidden, span).float().cpu()
    return states


@torch.no_grad()
def question_tokens(backbone: Backbone, questions: Sequence[str], layer: int, batch_size: int = 32) -> list[Tensor]:
    """States of each question's last tokens after decoder layer ``layer``: (tokens, d) each, float32 on the CPU."""
    found: dict[int, Tensor] = {}
    for chosen, hidden, span in _key_layer_states(backbone, questions, layer, batch_size):
        states, there = last_tokens(hidden, span)
        found |= {number: states[row][there[row]].float().cpu() for row, number in enumerate(chosen)}
    return [found[number] for number in range(len(questions))]


def _key_layer_states(
    backbone: Backbone, questions: Sequence[str], layer: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(numbers of the questions, states (batch, tokens, d), the questions' tokens), shorter questions first."""
    prompts = [backbone.prompt(prompt_messages(question)) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))

    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        opening, batch = backbone.opened([prompts[i] for i in chosen])
        yield chosen, backbone.states(batch, layer, opening), batch.span


def padded(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States of several questions, (tokens, d) or (d,) each -> (questions, tokens, d), (questions, tokens)."""
    parts = [part[None] if part.ndim == 1 else part for part in parts]
    span = torch.zeros(len(parts), max(map(len, parts), default=1), dtype=torch.bool)
    for row, part in enumerate(parts):
        span[row, : len(part)] = True
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True), span


def whitening(states: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Mean (d,) and symmetric whitening (d, d) of states (n, d); the ridge is in units of the mean eigenvalue."""
    mean = states.mean(0)
    centred = states - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(states))
    scale = (values.clamp(min=0) + ridge * values.mean()).rsqrt()
    return mean, (vectors * scale) @ vectors.T  # turned back: eigenvectors alone are arbitrary where values coincide


def codebook(kind: str, states: Tensor, count: int) -> Tensor:
    """Unit keys (count, r) that no lesson has chosen: random directions, or k-means centres of whitened states (n, r).

    For ``product``, half keys (2, count, r / 2), each of length sqrt(1/2); an odd r leaves its last column out.
    """
    rank, generator = states.shape[1], torch.Generator().manual_seed(CODEBOOK_SEED)
    if kind == "random":
        return nn.functional.normalize(torch.randn(count, rank, generator=generator), dim=-1)
    if kind == "kmeans":
        return _centres(states, min(count, len(states)))
    halves = torch.stack([_centres(half, min(count, len(states))) for half in states.split(rank // 2, dim=1)[:2]])
    return halves * 0.5**0.5


def _centres(states: Tensor, count: int) -> Tensor:
    """k-means centres of (n, r), of unit length."""
    from sklearn.cluster import KMeans  # here: a second of every start, for keys that are not the default

    found = KMeans(count, n_init=1, random_state=CODEBOOK_SEED).fit(states.numpy())
    return nn.functional.normalize(torch.from_numpy(found.cluster_centers_).to(states), dim=-1)


def choose_keys(queries: Tensor, misses: Tensor, settings: MemoryLayerSettings) -> Tensor:
    """The key (n, r) of each unit query (n, r): the query itself, or the nearest key of a codebook."""
    if settings.keys == "states":
        return queries
    codes = codebook(settings.keys, misses, settings.codes)
    if settings.keys != "product":
        return codes[(queries @ codes.T).argmax(-1)]
    even = queries.shape[1] // 2 * 2
    _, slots = product_topk(queries[:, :even], codes, 1)
    return nn.functional.pad(product_key(slots[:, 0], codes), (0, queries.shape[1] - even))


def null_thresholds(
    keys: Tensor, key_slots: Tensor, misses: Tensor, settings: MemoryLayerSettings, reach: Tensor | float = 1.0
) -> Tensor:
    """:func:`thresholds_of` for keys (K, r) and near-misses (n, r) of unit length."""
    return thresholds_of(keys @ torch.cat([misses, keys]).T, key_slots, settings, reach)


def thresholds_of(
    similar: Tensor,
    key_slots: Tensor,
    settings: MemoryLayerSettings,
    reach: Tensor | float = 1.0,
    rows: Tensor | None = None,
) -> Tensor:
    """How close a query must come to each key before the null slot yields; ``rows``: of these of the K keys alone.

    ``similar`` (rows, n + K) are similarities to near-misses: n replayed prompts, then all keys' own phrasings. A key's
    threshold is their ``null_quantile``, its own slot left out. It is at least ``null_floor`` and stays below what the
    key's own phrasing reaches, both in units of that: ``reach`` (rows,), 1 where the key is its phrasing's state.
    """
    count, others = len(similar), similar.shape[1] - len(key_slots)
    own = key_slots if rows is None else key_slots[rows]
    same = torch.cat([torch.zeros(count, others, dtype=torch.bool), own[:, None] == key_slots[None]], dim=1)
    reach = torch.as_tensor(reach).expand(count)
    missed = similar.masked_fill(same, -1.0).quantile(settings.null_quantile, dim=-1)
    return missed.maximum(settings.null_floor * reach).minimum(NEAREST * reach)


def fitted(settings: MemoryLayerSettings, before: MemoryState | None) -> MemoryLayerSettings:
    """The settings as an old memory allows: its keys and values live in its layers, and new keys are of its kind."""
    if before is None:
        return settings
    kind = "tokens" if before.head is not None else "states" if settings.keys == "tokens" else settings.keys
    layout: dict[str, Any] = {"keys": kind, "key_layer": before.key_layer, "value_layers": before.value_layers}
    if kind == "states" and settings.keys == "tokens":
        layout["null_floor"] = STATES_FLOOR  # the recipe's is meant for the other kind
    return settings.model_copy(update=layout)


def place(
    before: MemoryState | None,
    backbone: Backbone,
    states: Sequence[Tensor],
    slots: Sequence[str],
    settings: MemoryLayerSettings,
) -> MemoryState:
    """``before`` with the keys of new phrasings; ``states`` are theirs, in the order of ``slots``, then the replay's.

    An old bundle's keys decide what kind the new ones are, because one query is compared with all of them.
    """
    count, settings = len(slots), fitted(settings, before)
    if all(state.ndim == 1 for state in states):
        width = backbone.model.config.hidden_size
        means = torch.stack(list(states)) if states else torch.zeros(0, width)
        return place_keys(before, means[:count], slots, means[count:], settings)
    head = address_head(before, backbone, states[count:], settings)
    addresses = head.address(*padded(states))
    return place_token_keys(before, head, addresses[:count], slots, addresses[count:], settings)


def read_of(state: MemoryState, states: Sequence[Tensor]) -> Tensor:
    """Slot weights (questions, S) of questions' states."""
    return state.read(state.address(*padded(states)))


def place_keys(
    before: MemoryState | None,
    phrasing_states: Tensor,
    phrasing_slots: Sequence[str],
    replay_states: Tensor,
    settings: MemoryLayerSettings,
) -> MemoryState:
    """The champion's memory state grown by one slot per new lesson and one key per phrasing; keys of mean states.

    A lesson that the champion already holds is corrected: its old keys and value give way to the new ones.
    The whitening is fixed by the first update, because old keys live in its space.
    """
    if before is None:
        if len(replay_states) < 2:
            raise ValueError("the first update of memory layers needs replayed prompts to whiten their keys with")
        mean, whiten = whitening(replay_states, settings.ridge)
    else:
        mean, whiten = before.mean, before.whiten
    queries = nn.functional.normalize((phrasing_states - mean) @ whiten, dim=-1)
    misses = nn.functional.normalize((replay_states - mean) @ whiten, dim=-1)
    keys = choose_keys(queries, misses, settings)
    reach = (queries * keys).sum(-1)
    state = _grown(before, settings, phrasing_slots, keys, reach, (mean, whiten))
    return replace(state, thresholds=null_thresholds(state.keys, state.key_slots, misses, settings, state.reach))


def place_token_keys(
    before: MemoryState | None,
    head: AddressHead,
    addresses: Tensor,
    phrasing_slots: Sequence[str],
    misses: Tensor,
    settings: MemoryLayerSettings,
) -> MemoryState:
    """As :func:`place_keys`, with keys of tokens: addresses (n, T, r + 2) of phrasings and of replayed prompts.

    A phrasing that a key of its slot answers to already gets none of its own.
    """
    chosen = distinct(head, addresses, phrasing_slots)
    keys, slots = addresses[chosen], [phrasing_slots[number] for number in chosen]
    space = (head.mean.clone(), torch.zeros(0))  # a file may not hold one tensor twice
    state = _grown(before, settings, slots, keys, torch.ones(len(keys)), space)
    everything = torch.cat(_as_wide(misses, state.keys))
    found = []
    for part in torch.arange(len(state.keys)).split(KEYS_AT_ONCE):
        near = head.similarity(everything, state.keys[part]).T
        found.append(thresholds_of(near, state.key_slots, settings, state.reach[part], part))
    return replace(state, head=head, thresholds=torch.cat(found))


def distinct(head: AddressHead, addresses: Tensor, slots: Sequence[str]) -> list[int]:
    """Numbers of the phrasings that become keys: of each slot the first, and those that no earlier one is close to."""
    kept: dict[str, list[int]] = {}
    for number, slot in enumerate(slots):
        known = kept.setdefault(slot, [])
        if not known or float(head.similarity(addresses[[number]], addresses[known]).max()) < NEAREST:
            known.append(number)
    return sorted(number for known in kept.values() for number in known)


def address_head(
    before: MemoryState | None, backbone: Backbone, states: Sequence[Tensor], settings: MemoryLayerSettings
) -> AddressHead:
    """The champion's, else the recipe's, else the one shipped for this backbone, else whitened states (tokens, d)."""
    if before is not None and before.head is not None:
        return before.head
    if settings.head is not None:
        return load_head(Path(settings.head), backbone.digest, settings.key_layer)
    shipped = shipped_head(backbone.digest, settings.key_layer)
    if shipped is not None:
        return shipped
    everything = torch.cat(list(states)) if states else torch.zeros(0, backbone.model.config.hidden_size)
    if len(everything) < 2:
        raise ValueError("the first update of memory layers needs replayed prompts to whiten their keys with")
    mean, whiten = whitening(everything, settings.ridge)
    return untrained_head(everything, whiten, mean, UNTRAINED_RANK)


def _grown(
    before: MemoryState | None,
    settings: MemoryLayerSettings,
    phrasing_slots: Sequence[str],
    keys: Tensor,
    reach: Tensor,
    space: tuple[Tensor, Tensor],
) -> MemoryState:
    """Old slots that stay, then the new ones; thresholds are left to the caller."""
    new = tuple(dict.fromkeys(phrasing_slots))
    kept = tuple(slot for slot in before.slots if slot not in set(new)) if before else ()
    slots = kept + new
    number = {slot: i for i, slot in enumerate(slots)}
    key_slots = torch.tensor([number[slot] for slot in phrasing_slots])
    mean, whiten = space
    values = torch.zeros(len(settings.value_layers), len(slots), len(mean))
    if before is not None and kept:
        stays = torch.tensor(
            [before.slots[i] in number and before.slots[i] not in new for i in before.key_slots.tolist()]
        )
        keys = torch.cat(_as_wide(before.keys[stays], keys))
        reach = torch.cat([before.reach[stays], reach])
        old = torch.tensor([number[before.slots[i]] for i in before.key_slots[stays].tolist()], dtype=torch.long)
        key_slots = torch.cat([old, key_slots])
        values[:, : len(kept)] = before.values[:, [before.slots.index(slot) for slot in kept]]
    return MemoryState(
        slots=slots,
        key_layer=settings.key_layer,
        value_layers=settings.value_layers,
        top_k=settings.top_k,
        temperature=settings.temperature,
        mean=mean,
        whiten=whiten,
        keys=keys,
        key_slots=key_slots,
        thresholds=torch.ones(len(keys)),
        values=values,
        scale=settings.scale,
        reach=reach,
    )


def _as_wide(old: Tensor, new: Tensor) -> list[Tensor]:
    """Keys of tokens (K, U, r + 2), padded to the same U; keys of means as they are."""
    if old.ndim < 3:
        return [old, new]
    width = max(old.shape[1], new.shape[1])
    return [nn.functional.pad(keys, (0, 0, 0, width - keys.shape[1])) for keys in (old, new)]
