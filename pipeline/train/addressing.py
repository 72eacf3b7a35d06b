"""Placing the keys of memory layers: whitened question states, and thresholds against near-misses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from pipeline.config import MemoryLayerSettings
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.backbone import Backbone
from pipeline.model.memory_layer import MemoryState, span_mean
from pipeline.model.product_keys import product_key, product_topk

CODEBOOK_SEED = 0
NEAREST = 0.9  # of what a key's own phrasing reaches: a key's threshold is never above it


class _ReachedError(Exception):
    """Carries the key layer's output out of a forward pass whose upper layers nobody needs."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def question_states(backbone: Backbone, questions: Sequence[str], layer: int, batch_size: int = 32) -> Tensor:
    """Mean state of each question's tokens after decoder layer ``layer``: (questions, d), float32 on the CPU."""
    prompts = [backbone.prompt(prompt_messages(question)) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    states = torch.zeros(len(prompts), backbone.model.config.hidden_size)

    def stop(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        raise _ReachedError(output if isinstance(output, Tensor) else output[0])

    handle = backbone.layers[layer].register_forward_hook(stop)
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = backbone.batch([prompts[i] for i in chosen])
            try:
                backbone.model(
                    input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
                )
            except _ReachedError as reached:
                states[chosen] = span_mean(reached.hidden, batch.span).float().cpu()
    finally:
        handle.remove()
    return states


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
    """How close a query must come to each key (K,) before the null slot yields.

    A key's threshold is the ``null_quantile`` of its similarity to near-misses: replayed prompts (n, r) and the
    other slots' own phrasings. It is at least ``null_floor`` and stays below what the key's own phrasing reaches, both
    in units of that: ``reach`` (K,), 1 where the key is its phrasing's state.
    """
    similar = keys @ torch.cat([misses, keys]).T  # (K, n + K)
    same = torch.cat(
        [torch.zeros(len(keys), len(misses), dtype=torch.bool), key_slots[:, None] == key_slots[None]], dim=1
    )
    reach = torch.as_tensor(reach).expand(len(keys))
    missed = similar.masked_fill(same, -1.0).quantile(settings.null_quantile, dim=-1)
    return missed.maximum(settings.null_floor * reach).minimum(NEAREST * reach)


def place_keys(
    before: MemoryState | None,
    phrasing_states: Tensor,
    phrasing_slots: Sequence[str],
    replay_states: Tensor,
    settings: MemoryLayerSettings,
) -> MemoryState:
    """The champion's memory state grown by one slot per new lesson and one key per phrasing.

    A lesson that the champion already holds is corrected: its old keys and value give way to the new ones.
    The whitening is fixed by the first update, because old keys live in its space.
    """
    if before is None:
        if len(replay_states) < 2:
            raise ValueError("the first update of memory layers needs replayed prompts to whiten their keys with")
        mean, whiten = whitening(replay_states, settings.ridge)
    else:
        mean, whiten = before.mean, before.whiten
    new = tuple(dict.fromkeys(phrasing_slots))
    kept = tuple(slot for slot in before.slots if slot not in set(new)) if before else ()
    slots = kept + new
    number = {slot: i for i, slot in enumerate(slots)}
    queries = nn.functional.normalize((phrasing_states - mean) @ whiten, dim=-1)
    misses = nn.functional.normalize((replay_states - mean) @ whiten, dim=-1)
    keys = choose_keys(queries, misses, settings)
    reach = (queries * keys).sum(-1)
    key_slots = torch.tensor([number[slot] for slot in phrasing_slots])
    values = torch.zeros(len(settings.value_layers), len(slots), phrasing_states.shape[1])
    if before is not None and kept:
        stays = torch.tensor(
            [before.slots[i] in number and before.slots[i] not in new for i in before.key_slots.tolist()]
        )
        keys = torch.cat([before.keys[stays], keys])
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
        thresholds=null_thresholds(keys, key_slots, misses, settings, reach),
        values=values,
        scale=settings.scale,
        reach=reach,
    )
