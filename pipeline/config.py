"""The configuration tree: frozen, strict, each part named after the component that it configures.

A recipe is a YAML file with any subset of the tree; what is left out keeps its default. Unknown keys are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DENSE = ("full", "upper", "lora", "text")  # methods that train ordinary weights, or maps beside them
ON_LESSONS = ("full", "upper", "lora")


class ConfigError(ValueError):
    """A recipe does not fit the tree; the message names the field, the value and the fix."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Settings):
    """Which answerer, which encoder, and how they run."""

    base: str = Field("package:smollm2", pattern=r"^(hf|package|scratch):.+")
    encoder: str = Field("package:minilm", pattern=r"^(hf|package):.+")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on a CPU
    max_new_tokens: int = Field(24, ge=1, le=1024)
    max_prompt_tokens: int = Field(1024, ge=32)


class MemorySettings(Settings):
    """Reading: softmax(memory . x / sqrt(d)) over the lessons and a null slot."""

    strategy: str = Field(
        "adaptive",
        pattern=r"^(adaptive|copy|context|infer|weights|[\w.]+:\w+)$",
        description="adaptive, copy, context, infer, weights, or a class of your own as package.module:Class",
    )
    explore: float = Field(
        0.0, ge=0, le=1, description="chance that 'adaptive' draws a strategy; never over a confident lesson"
    )
    policy_rate: float = Field(0.05, ge=0, le=1, description="step size of a rating on the choice of strategies")
    candidates: int = Field(16, ge=1, le=1024, description="lessons that the first stage hands to the router")
    gate: float = Field(0.65, gt=0, lt=1, description="copy when the weight on lessons (1 - null) exceeds this")
    alpha_min: float = Field(0.02, gt=0, le=1, description="floor of the belief's step size")
    trust: dict[str, float] = Field(default_factory=lambda: {"ask": 1.0, "teach": 1.0, "admin": 1.0})
    trust_prior: float = Field(
        2.0, gt=0, description="how slowly an asker's trust follows what became of earlier votes; very large: never"
    )


class MemoryLayerSettings(Settings):
    """The slots inside the transformer. Layer numbers count from 0 and name the decoder layer."""

    key_layer: int = Field(6, ge=0, description="layer whose states of the question address the slots")
    value_layers: tuple[int, ...] = Field((12, 18, 24), min_length=1)
    keys: Literal["tokens", "states", "random", "kmeans", "product"] = Field(
        "tokens",
        description="where keys lie: on the lessons' own questions, token by token through a trained head or as "
        "whitened mean states; or, as ablations, on the nearest of `codes` random directions, k-means centres of "
        "replayed prompts, or products of half keys",
    )
    head: str | None = Field(
        None, description="with keys: tokens, a file of `agm pretrain --address`; none: the shipped one, where it fits"
    )
    codes: int = Field(1024, ge=2, description="keys to choose from; for product keys, half keys: codes x codes keys")
    scale: float = Field(1.0, gt=0, description="lambda: what the slots add is scaled by it")
    top_k: int = Field(4, ge=1)
    temperature: float = Field(0.02, gt=0, description="softmax temperature on cosine similarity")
    ridge: float = Field(0.1, gt=0, description="added to the whitening's eigenvalues, in units of their mean")
    null_quantile: float = Field(0.99, gt=0, le=1, description="near-misses that each key must leave to the null slot")
    null_floor: float = Field(
        0.65, ge=0, lt=1, description="similarity below which no key speaks, whatever was replayed"
    )

    @model_validator(mode="after")
    def _keys_below_values(self) -> Self:
        if self.key_layer >= min(self.value_layers):
            raise ValueError(
                f"key_layer {self.key_layer} must lie below every value layer {self.value_layers}: lower key_layer"
            )
        return self


class RecallSettings(Settings):
    """Episodes that teach a ``scratch:`` decoder to use its memory."""

    pairs: tuple[int, ...] = Field((16, 64, 128), min_length=1, description="of an episode; epochs take turns")
    overwritten: float = Field(0.25, ge=0, le=1, description="share of the keys that is told twice")
    questions: int = Field(64, ge=1, description="asked of an episode, at most")
    episodes: int = Field(320, ge=1, description="in an epoch, each drawn afresh")
    write_cost: float = Field(0.03, ge=0, description="of a token's write rate: slots and their noise are not free")


class LoraSettings(Settings):
    """Low-rank maps beside every linear map of the decoder layers."""

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="the maps' product is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)


class TextSettings(Settings):
    """Pretraining on text."""

    context: int = Field(256, ge=8, description="tokens that a block predicts, each from those before it")
    vocabulary: int = Field(4096, ge=258, description="of the tokenizer that is trained: 256 bytes, 2 marks, merges")


class TrainSettings(Settings):
    """One cycle of writing into the weights: theta <- theta + alpha * (error * input)."""

    method: str = Field("memory", pattern=r"^(memory|full|upper:\d+|lora|recall|text)$")
    optimizer: Literal["auto", "sgd", "rmsprop", "adam", "slot_adam"] = Field(
        "auto",
        description="slot_adam: Adam for each memory slot alone, so that its rate means the same for any number of "
        "lessons; auto: slot_adam for memory slots, adam for other weights",
    )
    learning_rate: float = Field(1.0, gt=0)
    epochs: int = Field(24, ge=1, description="at most; training stops earlier at target_loss")
    target_loss: float = Field(
        0.02, ge=0, description="mean loss per token of an epoch at which the lessons are learned"
    )
    batch_size: int = Field(16, ge=1, description="global batch, split over the workers")
    replay_ratio: float = Field(0.5, ge=0, description="replayed prompts per lesson phrasing; 0 is naive training")
    templates: int = Field(
        1,
        ge=1,
        le=5,
        description="study wordings of a lesson, the question itself first; posted wordings always count",
    )
    borrowed: int = Field(
        1, ge=0, description="other prompts at which a memory slot is made to speak, so that it needs no own wording"
    )
    replay_weight: float = Field(1.0, ge=0, description="weight of KL(champion || challenger) on replayed prompts")
    replay_lessons: int = Field(
        0, ge=0, description="lessons of earlier cycles that a cycle on feedback trains again, at most"
    )
    replay_choice: Literal["uniform", "balanced", "forgetting"] = Field(
        "uniform", description="all of them alike, all earlier cycles alike, or rather what was seen to be forgotten"
    )
    penalty: Literal["none", "l2", "ewc"] = Field(
        "none", description="holds trained weights near their start: all alike, or by how much the champion needs them"
    )
    penalty_weight: float = Field(1.0, ge=0)
    fisher_prompts: int = Field(64, ge=1, description="replayed prompts that tell which weights the champion needs")
    merge: float = Field(1.0, gt=0, le=1, description="of the way from the old weights to the trained ones")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    seed: int = 0
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    decay: float = Field(1.0, ge=0, le=1, description="the last step's learning rate in units of the highest")
    micro_batch: int = Field(
        0, ge=0, description="of a global batch, what a worker runs at a time; gradients add up; 0: its whole part"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast on CUDA
    activation_checkpointing: bool = Field(
        False, description="compute a decoder layer's activations again in the backward pass instead of keeping them"
    )
    compile: str | None = Field(None, description="a backend of torch.compile for the decoder layers, e.g. inductor")
    checkpoint_steps: int = Field(0, ge=0, description="steps between checkpoints; 0: four in a run, between epochs")
    memory: MemoryLayerSettings = MemoryLayerSettings()
    recall: RecallSettings = RecallSettings()
    text: TextSettings = TextSettings()
    lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _slots_for_slot_adam(self) -> Self:
        if self.optimizer == "slot_adam" and self.method != "memory":
            raise ValueError(
                f"optimizer 'slot_adam' trains memory slots; method {self.method!r} has none: use 'adam', or method "
                "'memory'"
            )
        return self


class ScalingSettings(Settings):
    """How Ray places the training; threads are explicit because Ray ties OMP_NUM_THREADS to num_cpus."""

    workers: int = Field(2, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(1.0, gt=0)
    threads_per_worker: int = Field(1, ge=1)
    nice: int = Field(10, ge=0, le=19)
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="each worker holds all weights, or a shard of weights, gradients and optimiser (FSDP2)"
    )
    max_workers: int | None = Field(
        None, ge=1, description="elastic: from `workers` up to so many, as the cluster has room; the batch stays"
    )
    resize_interval_s: float = Field(60.0, ge=0, description="how often an elastic run looks for more room")
    placement_timeout_s: float = Field(60.0, gt=0)


class GateSettings(Settings):
    """Non-inferiority margins and floors; a challenger that misses one is refused with the reason."""

    retention_margin: float = Field(0.02, ge=0, le=1)
    unrelated_margin: float = Field(0.05, ge=0, le=1)
    earlier_margin: float = Field(0.05, ge=0, le=1)
    new_lessons_margin: float = Field(0.02, ge=0, le=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    unrelated_probes: int = Field(100, ge=1)
    retention_probes: int = Field(300, ge=1)


class ServeSettings(Settings):
    """The endpoint. CPU shares are fractional so that serving and training fit on two cores."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1, description="scale from serve.replicas up to this; none: never")
    target_ongoing_requests: float | None = Field(
        None, gt=0, description="of a replica, above which another one starts; default: serve.max_batch, a full batch"
    )
    upscale_delay_s: float = Field(30.0, ge=0, description="the load lasts so long before another replica starts")
    downscale_delay_s: float = Field(600.0, ge=0, description="and its absence so long before one is taken away")
    cpus_per_replica: float = Field(0.5, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    threads_per_replica: int = Field(2, ge=1)
    max_batch: int = Field(32, ge=1, description="rows that decode together; requests join and leave between steps")
    kv_tokens: int = Field(32_768, ge=1_024, description="bound on the running rows' keys and values, in tokens")
    prefix_tokens: int = Field(2_048, ge=0, description="prompt beginnings kept for reuse, in tokens; 0: none")
    weights: Literal["full", "int8"] = Field(
        "full", description="int8: faster on a CPU, but long answers come out in other words"
    )
    batch_invariant: bool = Field(False, description="an answer never depends on its company; slower, for evaluation")
    max_ongoing_requests: int = Field(64, ge=1, description="of a replica")
    max_queued_requests: int = Field(
        64, ge=1, description="of all replicas, an equal share each; what waits longer than the time-out is lost work"
    )
    request_timeout_s: float = Field(60.0, gt=0)
    poll_ms: float = Field(50.0, gt=0, description="how often a replica looks for new events and a new champion")
    max_question_chars: int = Field(4000, ge=1)
    requests_per_minute: int = Field(
        0, ge=0, description="of one key, an equal share from each of the replicas that there may be; 0: no limit"
    )

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.replicas

    @property
    def full_batch(self) -> float:
        """Requests of a replica above which another one would answer sooner."""
        return self.target_ongoing_requests or min(self.max_batch, self.max_ongoing_requests)

    @model_validator(mode="after")
    def _scales(self) -> Self:
        target = self.target_ongoing_requests
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas = {self.max_replicas} is below replicas = {self.replicas}: raise it")
        if target is not None and self.max_replicas is None:
            raise ValueError("target_ongoing_requests has no effect without max_replicas: set that too, or drop it")
        if target is not None and target > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests = {target:g} is above max_ongoing_requests = {self.max_ongoing_requests}, "
                "where a replica refuses: lower it"
            )
        return self


class CurationSettings(Settings):
    """When what an asker says is held back from everybody else until ``agm feedback review`` accepts it."""

    junk: bool = Field(True, description="hold back answers that look like none: links, markup, repetition, no word")
    per_source_hour: int = Field(120, ge=0, description="corrections and ratings of one source in an hour; 0: no limit")
    per_key_hour: int = Field(
        10_000, ge=0, description="the same of one 'ask' key, whatever sources it speaks for; 0: no limit"
    )
    repeats: int = Field(5, ge=0, description="other questions with nearly the same answer in an hour; 0: no limit")
    near: float = Field(0.9, gt=0, le=1, description="similarity from which two answers are nearly the same")
    least_trust: float = Field(0.25, ge=0, le=1, description="trust below which a source is held back; 1: unknown yet")


class FeedbackSettings(Settings):
    """From an acknowledgement to a cycle's manifest: privacy, how long things are kept, what may be trained."""

    redact: tuple[Literal["email", "phone", "card", "account", "address"], ...] = (
        "email", "phone", "card", "account", "address",
    )  # fmt: skip
    redact_names: tuple[str, ...] = Field((), description="names to redact; none by default: answers often are names")
    keep_answers_days: int = Field(90, ge=0, description="answers that nobody said anything about")
    replay_served: int = Field(
        256, ge=0, description="questions asked with `store` that a cycle replays, at most; 0: none"
    )
    keep_versions_hours: int = Field(168, ge=0, description="old versions of the feedback table")
    curation: CurationSettings = CurationSettings()


class Recipe(Settings):
    """The whole tree."""

    model: ModelSettings = ModelSettings()
    memory: MemorySettings = MemorySettings()
    train: TrainSettings = TrainSettings()
    scaling: ScalingSettings = ScalingSettings()
    gate: GateSettings = GateSettings()
    serve: ServeSettings = ServeSettings()
    feedback: FeedbackSettings = FeedbackSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.train.replay_ratio == 0 and self.train.replay_weight not in (0.0, 1.0):
            raise ValueError(
                "train.replay_weight has no effect while train.replay_ratio is 0: raise the ratio or drop the weight"
            )
        if self.train.replay_lessons == 0 and self.train.replay_choice != "uniform":
            raise ValueError(
                f"train.replay_choice = {self.train.replay_choice!r} has no effect while train.replay_lessons is 0: "
                "say how many lessons, or drop the choice"
            )
        self._fits_the_workers()
        return self

    def _fits_the_workers(self) -> None:
        train, scaling = self.train, self.scaling
        for field, value, idle, methods in (
            ("train.compile", train.compile, None, (*DENSE, "recall")),
            ("train.activation_checkpointing", train.activation_checkpointing, False, DENSE),
            ("train.penalty", train.penalty, "none", ON_LESSONS),
            ("train.merge", train.merge, 1.0, ON_LESSONS),
        ):
            if value != idle and train.method.partition(":")[0] not in methods:
                raise ValueError(
                    f"{field} = {value!r} does not go with train.method = {train.method!r}: leave it out, or train "
                    f"one of {', '.join(methods)}"
                )
        if scaling.max_workers is not None and scaling.max_workers < scaling.workers:
            raise ValueError(
                f"scaling.max_workers = {scaling.max_workers} is below scaling.workers = {scaling.workers}: raise it"
            )
        if self.scaling.use_gpu and self.scaling.backend == "gloo":
            raise ValueError("scaling.backend is 'gloo' while scaling.use_gpu is true: use 'nccl' or 'auto'")

    def with_changes(self, changes: dict[str, Any]) -> Recipe:
        """A new recipe with dotted fields replaced, checked again: ``{"train.learning_rate": 0.1}``."""
        tree = self.model_dump()
        for dotted, value in changes.items():
            *parents, leaf = dotted.split(".")
            node: Any = tree
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
                if node is None:
                    raise ConfigError(f"unknown field {dotted!r}: the recipe has {', '.join(tree)}")
            node[leaf] = value
        return parse_recipe(tree, origin="the changed recipe")

    def write(self, path: str | Path) -> None:
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def parse_recipe(tree: Any, *, origin: str) -> Recipe:
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{origin}: expected a mapping with {', '.join(Recipe.model_fields)}, got {type(tree).__name__}"
        )
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {_explain(item)}" for item in error.errors())) from None


def _explain(item: Any) -> str:
    field = ".".join(map(str, item["loc"])) or "the recipe"
    if item["type"] != "extra_forbidden":
        return f"{field} = {item['input']!r:.80}: {item['msg']}"
    node: Any = Recipe
    for part in item["loc"][:-1]:
        node = node.model_fields[part].annotation
    return f"{field} = {item['input']!r:.80}: unknown field; known here: {', '.join(node.model_fields)}"


def load_recipe(path: str | Path | None) -> Recipe:
    """The recipe in a YAML file, or the default one for ``None``."""
    if path is None:
        return Recipe()
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; examples stand in examples/*.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    return parse_recipe(tree or {}, origin=str(path))
