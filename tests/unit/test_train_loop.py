"""The loop of the train function: steps that do not depend on how they are cut up, and states that go on exactly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from pipeline.config import ConfigError, Recipe, TrainSettings
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle, whole
from pipeline.train.checkpoints import load_state, save_state
from pipeline.train.dataset import TrainingSet
from pipeline.train.distributed import Sharing, gathered
from pipeline.train.loop import Loop, learning_rate
from pipeline.train.methods import build_method
from pipeline.train.slot_adam import BETAS, SlotAdam
from tests.tiny import tiny_training_set

STEPS = {"learning_rate": 0.01, "epochs": 3, "batch_size": 5, "target_loss": 0.0, "schedule": "cosine", "decay": 0.1}
STEPS |= {"warmup": 0.25}


def changed(recipe: Recipe, **values: Any) -> Recipe:
    return recipe.with_changes({f"train.{name}": value for name, value in {**STEPS, **values}.items()})


def a_loop(recipe: Recipe, sharing: Sharing | None = None, data: TrainingSet | None = None) -> Loop:
    """A fresh process's loop: champion, method and all."""
    torch.manual_seed(recipe.train.seed)
    sharing = sharing or Sharing()
    method = build_method(Answerer.load(Bundle.initial(recipe)), data or tiny_training_set(), recipe.train, sharing)
    return Loop(method, recipe.train, parallel=recipe.scaling.parallel, sharing=sharing)


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: whole(p) for name, p in loop.method.learner.named_parameters() if p.requires_grad}


def noisy(loop: Loop) -> Loop:
    """With a step that draws from the generator, as dropout does."""
    learner = loop.learner
    learner.register_forward_hook(lambda _module, _inputs, loss: loss * (0.5 + torch.rand(())))
    return loop


# resuming


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("memory", "sgd"), ("memory", "slot_adam"), ("memory", "adam"), ("upper:2", "adam"), ("full", "rmsprop")],
)
def test_a_saved_state_goes_on_bit_by_bit(recipe: Recipe, tmp_path: Path, method: str, optimizer: str) -> None:
    """Inside an epoch and between two; every step of the interrupted run is the uninterrupted one's."""
    run = changed(recipe, method=method, optimizer=optimizer)
    whole_run = noisy(a_loop(run))
    steps = list(whole_run.run())
    for stop in (3, len(steps) - 2):
        first = noisy(a_loop(run))
        list(islice(first.run(), stop))
        torch.save(first.state(), tmp_path / "state.pt")
        torch.manual_seed(99)  # another process
        kept = torch.load(tmp_path / "state.pt", weights_only=True)
        second = noisy(a_loop(run, Sharing(kept["shared"])))
        second.load(kept)
        assert list(second.run()) == steps[stop:]
        assert weights(second).keys() == weights(whole_run).keys()
        assert all(torch.equal(a, weights(whole_run)[name]) for name, a in weights(second).items())


def test_a_state_that_lacks_a_part_is_noticed_by_that_test(recipe: Recipe) -> None:
    """Without the optimiser's moments, the cursor or the generator the run ends elsewhere: each part counts."""
    run = changed(recipe, method="upper:2")
    end = noisy(a_loop(run))
    list(end.run())
    for part in ("optimizer", "cursor", "generators"):
        first = noisy(a_loop(run))
        list(islice(first.run(), 4))
        state = first.state()
        if part == "optimizer":
            state["optimizer"]["state"] = {}
        elif part == "cursor":
            state["cursor"]["batch"] = 0
        else:
            state["ranks"][0]["generators"]["cpu"] = torch.Generator().manual_seed(1).get_state()
        second = noisy(a_loop(run))
        second.load(state)
        list(second.run())
        assert any(not torch.equal(a, weights(end)[name]) for name, a in weights(second).items()), part


def test_what_was_shared_is_not_worked_out_again(recipe: Recipe) -> None:
    asked: list[str] = []

    def length(texts: Sequence[str]) -> list[int]:
        asked.extend(texts)
        return [len(text) for text in texts]

    first = Sharing()
    assert first(length, ["a", "bb"]) == [1, 2]
    again = Sharing(first.kept)
    assert again(length, ["a", "bb"]) == [1, 2]
    assert again(length, ["ccc"]) == [3]
    assert asked == ["a", "bb", "ccc"]
    assert again.kept == [[1, 2], [3]]


def test_a_finished_run_has_nothing_left(recipe: Recipe) -> None:
    run = changed(recipe, method="memory", target_loss=100.0)
    first = a_loop(run)
    assert len(list(first.run())) == 2  # one epoch of eight tasks
    second = a_loop(run)
    second.load(first.state())
    assert list(second.run()) == []


# what a step is


def test_parts_of_a_batch_add_up_to_it(recipe: Recipe) -> None:
    """A batch of 5 in parts of 2, 2 and 1, with targets of different lengths."""
    run = changed(recipe, method="full", optimizer="sgd", learning_rate=0.1)
    at_once, in_parts = a_loop(run), a_loop(run.with_changes({"train.micro_batch": 2}))
    first, second = list(at_once.run()), list(in_parts.run())
    assert [step.tokens for step in first] == [step.tokens for step in second]
    for name, expected in weights(at_once).items():
        torch.testing.assert_close(weights(in_parts)[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "upper:2"])
def test_recomputed_activations_change_nothing(recipe: Recipe, method: str) -> None:
    """Nor does it that what prompts share is run once, and what lies below trained layers once for all epochs."""
    run = changed(recipe, method=method, optimizer="sgd", epochs=2)
    plain, lean = a_loop(run), a_loop(run.with_changes({"train.activation_checkpointing": True}))
    list(plain.run())
    list(lean.run())
    for name, expected in weights(plain).items():
        torch.testing.assert_close(weights(lean)[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own tracing
def test_compiled_layers_learn_the_same(recipe: Recipe) -> None:
    """``aot_eager`` traces forward and backward as every backend does, and needs no compiler."""
    run = changed(recipe, method="full", optimizer="sgd", epochs=1)
    plain, compiled = a_loop(run), a_loop(run.with_changes({"train.compile": "aot_eager"}))
    list(plain.run())
    list(compiled.run())
    for name, expected in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast_learns_into_float32_weights(recipe: Recipe) -> None:
    run = changed(recipe, method="full", precision="bfloat16", epochs=8)
    loop = a_loop(run)
    losses = [step.epoch_loss for step in loop.run() if step.epoch_loss is not None]
    assert losses[-1] < 0.8 * losses[0]
    assert {p.dtype for p in weights(loop).values()} == {torch.float32}


def test_the_learning_rate_warms_up_and_falls() -> None:
    straight = TrainSettings(learning_rate=1.0, decay=0.5)
    assert [learning_rate(straight, step, 3) for step in range(3)] == [1.0, 0.75, 0.5]
    assert learning_rate(TrainSettings(learning_rate=0.2), 7, 20) == 0.2
    wave = TrainSettings(learning_rate=1.0, decay=0.0, warmup=0.25, schedule="cosine")
    rates = [learning_rate(wave, step, 8) for step in range(8)]
    assert rates[:3] == [0.5, 1.0, 1.0]  # two warm steps, then the wave begins at its top
    assert rates[7] == pytest.approx(0.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[2] - rates[3] < rates[4] - rates[5]  # a wave, not a line


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"train.compile": "inductor"}, "does not go with train.method = 'memory'"),
        ({"train.activation_checkpointing": True, "train.method": "recall"}, "one of full, upper, lora, text"),
        ({"train.penalty": "ewc"}, "one of full, upper, lora"),
        ({"scaling.workers": 3, "scaling.max_workers": 2}, "is below scaling.workers = 3"),
    ],
)
def test_a_setting_without_effect_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Recipe().with_changes(changes)


# several ranks

CASES = {
    "memory": {"train.method": "memory", "train.learning_rate": 30.0},
    "memory-fsdp": {"train.method": "memory", "train.learning_rate": 30.0, "scaling.parallel": "fsdp"},
    "ddp": {"train.method": "full", "train.micro_batch": 1},
    "fsdp": {"train.method": "full", "scaling.parallel": "fsdp", "train.micro_batch": 2},
    "fsdp-upper": {"train.method": "upper:2", "scaling.parallel": "fsdp", "train.activation_checkpointing": True},
}
MOMENTS = {"adam": "full", "slot_adam": "memory"}  # optimisers, and what they train here
MOMENTS_KEPT = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "slot_adam": {"steps", "mean", "square"}}


def several(recipe: Recipe, name: str) -> Recipe:
    """The bare delta rule: Adam divides by the gradient, and where that is almost zero, so are its last bits."""
    return changed(recipe, optimizer="sgd", learning_rate=0.5, epochs=2).with_changes(CASES[name])


def lessons_of(name: str) -> TrainingSet:
    """Three lessons' slots do not divide by two ranks."""
    return tiny_training_set(3 if name == "memory-fsdp" else 4)


def moving(recipe: Recipe, name: str) -> Recipe:
    return changed(recipe, method=MOMENTS[name], optimizer=name)


def written(bundle: Bundle) -> dict[str, torch.Tensor]:
    """What a bundle says that was learned, by the names of the learner's parameters."""
    if bundle.memory is not None:
        return {"new_values": bundle.memory.values.transpose(0, 1)}  # all of its slots are new
    return {f"model.{name}": value for name, value in bundle.tensors.items()}


def ranks(rank: int, world: int, folder: str, recipe: Recipe) -> None:
    """One rank: every case to its end, with a state on the way; and Adam's state loaded onto shards and saved again."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for name in CASES:
        loop = a_loop(several(recipe, name), data=lessons_of(name))
        list(islice(loop.run(), 2))
        # As on two machines: each rank has a folder of its own, and what lies in them is brought together.
        save_state(loop.state(), Path(folder) / f"{name} of rank {rank}")
        list(loop.run())
        held = [p.to_local().numel() for p in loop.learner.parameters() if isinstance(p, DTensor) and p.requires_grad]
        found[f"{name} held"] = gathered(sum(held))
        found[name] = {"end": weights(loop), "bundle": written(loop.method.result())}
    for name in MOMENTS:
        sharded = a_loop(moving(recipe, name).with_changes({"scaling.parallel": "fsdp"}))
        sharded.load(load_state(Path(folder) / name), Path(folder) / name)
        both = Path(folder) / f"{name} of both"
        both.mkdir(exist_ok=True)
        save_state(sharded.state(), both)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_two(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    for name in (*MOMENTS, *(f"{name} of rank {rank}" for name in CASES for rank in range(2))):
        (folder / name).mkdir()
    for name in MOMENTS:
        alone = a_loop(moving(recipe, name))
        list(islice(alone.run(), 2))
        assert not save_state(alone.state(), folder / name)
    mp.spawn(ranks, (2, str(folder), recipe), nprocs=2)
    for name in CASES:
        for rank in range(2):
            shutil.copytree(folder / f"{name} of rank {rank}", folder / f"{name} of both", dirs_exist_ok=True)
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found | {"folder": folder}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_at_the_same_global_batch(recipe: Recipe, by_two: dict[str, Any], name: str) -> None:
    """Batches of 5 do not divide by two: the ranks have 3 and 2 tasks, in parts of 1, 2 or all, and one idles."""
    alone = a_loop(several(recipe, name), data=lessons_of(name))
    start = weights(alone)
    list(alone.run())
    for key, expected in weights(alone).items():
        torch.testing.assert_close(by_two[name]["end"][key], expected, rtol=1e-5, atol=1e-6)
        assert (expected - start[key]).abs().max() > 1e-4
    assert by_two[name]["bundle"]
    for key, value in by_two[name]["bundle"].items():
        assert torch.equal(by_two[name]["end"][key], value)


@pytest.mark.parametrize("name", CASES)
def test_a_state_of_two_ranks_goes_on_with_one(recipe: Recipe, by_two: dict[str, Any], name: str) -> None:
    folder = by_two["folder"] / f"{name} of both"
    state = load_state(folder)
    alone = a_loop(several(recipe, name), Sharing(state["shared"]), lessons_of(name))
    alone.load(state, folder)
    list(alone.run())
    for key, expected in by_two[name]["end"].items():
        torch.testing.assert_close(weights(alone)[key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if "fsdp" in name])
def test_each_rank_holds_a_part_of_what_is_trained(by_two: dict[str, Any], name: str) -> None:
    held, everything = by_two[f"{name} held"], sum(value.numel() for value in by_two[name]["end"].values())
    assert sum(held) == everything
    assert max(held) <= (2 / 3 if name == "memory-fsdp" else 0.55) * everything


@pytest.mark.parametrize("name", CASES)
def test_only_shards_are_written_by_every_rank(by_two: dict[str, Any], name: str) -> None:
    first, second = (by_two["folder"] / f"{name} of rank {rank}" for rank in range(2))
    assert (first / "trainer.pt").exists()
    assert not (second / "trainer.pt").exists()
    sharded = "fsdp" in name
    assert [len(list(folder.glob("shards/*.distcp"))) for folder in (first, second)] == [int(sharded)] * 2
    weights = load_state(first)["learner"].values()
    assert {value.is_meta for value in weights} == {sharded}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_state_is_the_same_bits_from_one_rank_over_two_shards_to_one(
    recipe: Recipe, by_two: dict[str, Any], name: str
) -> None:
    """A run of one rank, saved, loaded onto two shards, saved in parts, loaded by one again: moments and all."""
    folder = by_two["folder"]
    before, between = load_state(folder / name), load_state(folder / f"{name} of both")
    alone = a_loop(moving(recipe, name))
    alone.load(between, folder / f"{name} of both")
    after = alone.state()
    assert after["cursor"] == before["cursor"]
    assert all(torch.equal(after["learner"][key], value) for key, value in before["learner"].items())
    moments = before["optimizer"]["state"]
    assert after["optimizer"]["state"].keys() == moments.keys()
    for index, entries in moments.items():
        assert after["optimizer"]["state"][index].keys() == entries.keys() == MOMENTS_KEPT[name]
        assert all(torch.equal(after["optimizer"]["state"][index][key], value) for key, value in entries.items())


# Adam, slot by slot


def test_slot_adam_moves_a_slot_alone_as_adam_would_and_leaves_the_others() -> None:
    """Two slots with the same gradients learn the same, however often the other one had its turn."""
    torch.manual_seed(0)
    gradients = torch.randn(3, 2, 4)  # (steps, L, d)
    alone = torch.nn.Parameter(torch.zeros(1, 2, 4))
    adam = torch.optim.Adam([alone], lr=0.1, betas=BETAS)
    together = torch.nn.Parameter(torch.zeros(3, 2, 4))
    slots = SlotAdam([together], lr=0.1)
    for step, gradient in enumerate(gradients):
        alone.grad = gradient[None].clone()
        adam.step()
        for slot in (0, 1) if step == 0 else (0,):
            together.grad = torch.zeros_like(together)
            together.grad[slot] = gradient
            slots.step()
    torch.testing.assert_close(together[0], alone[0])
    assert together[2].abs().max() == 0
    for gradient in gradients[1:]:
        together.grad = torch.zeros_like(together)
        together.grad[1] = gradient
        slots.step()
    torch.testing.assert_close(together[1], together[0])


def test_slot_adam_decays_the_weights_of_the_slots_that_it_moves() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 2, 4), torch.zeros(2, 2, 4)  # (slots, L, d)
    gradient[0] = torch.randn(2, 4)
    alone, both = torch.nn.Parameter(start[:1].clone()), torch.nn.Parameter(start.clone())
    alone.grad, both.grad = gradient[:1].clone(), gradient.clone()
    torch.optim.AdamW([alone], lr=0.1, betas=BETAS, weight_decay=0.5).step()
    SlotAdam([both], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(both[:1], alone)
    assert torch.equal(both[1], start[1])
