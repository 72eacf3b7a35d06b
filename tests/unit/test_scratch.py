"""Decoders from nothing: they load like any other, and their memory is written while they read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import ModelSettings, Recipe
from pipeline.evaluate.protocol import prompt_messages
from pipeline.model.answerer import Answerer
from pipeline.model.backbone import Backbone
from pipeline.model.bundle import Bundle
from pipeline.model.native_layer import Session, native_layers, remembering
from pipeline.model.scratch import ScratchError, build, scratch_folder

KINDS = ("slots", "fast_weights")
TOLD = tuple(b"the king of Oz is Ozma; the king of Narnia is Caspian")
ASKED = tuple(b"the king of Oz is ")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)


def recipe(kind: str) -> Recipe:
    return Recipe().with_changes({"model.base": f"scratch:tiny:{kind}", "model.device": "cpu"})


def loud(model: torch.nn.Module) -> None:
    """An untrained memory whispers; here it shall be heard."""
    for layer in native_layers(model):
        layer.scale.data.fill_(100.0)


@torch.no_grad()
def told(model, texts: tuple[tuple[int, ...], ...] = (TOLD,)) -> Session:  # type: ignore[no-untyped-def]
    session = Session()
    with remembering(model, session):
        for text in texts:
            session.segment()
            model(input_ids=torch.tensor([text]))
    return session


@torch.no_grad()
def logits(model, session: Session, ids: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    with remembering(model, session.segment(writes=False)):
        return model(input_ids=ids).logits


def test_the_same_weights_every_time_and_through_every_door() -> None:
    first, loaded = build("scratch:tiny"), Backbone.load(ModelSettings(base="scratch:tiny", device="cpu"))
    again = Backbone.load(ModelSettings(base=f"hf:{scratch_folder('scratch:tiny')}", device="cpu"))
    assert loaded.digest == again.digest
    for other in (loaded.model, again.model):
        assert len(native_layers(other)) == 1
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("base", ["scratch:huge", "scratch:tiny:rnn"])
def test_an_unknown_size_or_kind_is_refused_with_the_known_ones(base: str) -> None:
    with pytest.raises(ScratchError, match=r"scratch:.*tiny, small, base.*slots, fast_weights, none"):
        Backbone.load(ModelSettings(base=base))


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_told_a_memory_adds_exactly_nothing(kind: str) -> None:
    model = build(f"scratch:tiny:{kind}").eval()
    loud(model)
    ids = torch.tensor([ASKED])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    assert torch.equal(logits(model, Session(), ids), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_told_in_another_segment_is_heard(kind: str) -> None:
    model = build(f"scratch:tiny:{kind}").eval()
    loud(model)
    ids = torch.tensor([ASKED])
    plain, found = logits(model, Session(), ids), logits(model, told(model), ids)
    assert not torch.allclose(found[:, -1], plain[:, -1])


def test_below_the_null_slot_the_output_is_bit_identical() -> None:
    """Bytes that were never told reach no slot, although the memory is full."""
    model = build("scratch:tiny").eval()
    loud(model)
    ids, session = torch.tensor([tuple(b"0123456789")]), told(model)
    plain = logits(model, Session(), ids)
    assert session.states[0].used.sum() > 10  # type: ignore[union-attr]
    assert torch.equal(logits(model, session, ids), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_is_the_whole_at_once(kind: str) -> None:
    """With the key-value cache of generation, reading and writing."""
    model = build(f"scratch:tiny:{kind}").eval()
    loud(model)
    whole, stepwise = told(model), Session()
    with torch.no_grad(), remembering(model, stepwise):
        cache = None
        for token in TOLD:
            cache = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(stepwise.tensors()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_keeps_what_was_told_bit_by_bit_and_answers_with_it(kind: str, tmp_path: Path) -> None:
    base = Answerer.load(Bundle.initial(recipe(kind)))
    loud(base.backbone.model)
    prompt = base.backbone.prompt(prompt_messages("the king of Oz is "))
    text = (*prompt.ids, *base.backbone.answer_ids("Ozma"))
    bundle = replace(base.bundle, written=told(base.backbone.model, (TOLD, text)).tensors())
    bundle.save(tmp_path)
    found = Bundle.load(tmp_path)
    assert found.digest() == bundle.digest() != base.bundle.digest()
    assert {name: x.dtype for name, x in found.written.items()} == {n: x.dtype for n, x in bundle.written.items()}
    assert all(torch.equal(found.written[name], tensor) for name, tensor in bundle.written.items())
    asked = [prompt_messages("the king of Oz is "), prompt_messages("2 + 2")]
    knowing = Answerer.load(found, share=base)
    together = knowing.generate(asked, max_new_tokens=4)
    alone = [knowing.generate([messages], max_new_tokens=4)[0] for messages in asked]
    assert [g.text for g in together] == [g.text for g in alone]  # padding changes nothing
    options = [["Ozma", "Caspian"], ["4", "5"]]
    scores = knowing.score(["the king of Oz is ", "2 + 2"], options)
    plain = base.score(["the king of Oz is ", "2 + 2"], options)
    assert scores[0] != plain[0]
    assert found.digest() == bundle.digest()  # answering writes nothing


def test_autocast_runs_through(recwarn: pytest.WarningsRecorder) -> None:
    for kind in KINDS:
        model = build(f"scratch:tiny:{kind}").eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            session = told(model)
            out = logits(model, session, torch.tensor([ASKED]))
        assert bool(out.isfinite().all())
        assert all(t.dtype in (torch.float32, torch.bool) for t in session.tensors().values())
