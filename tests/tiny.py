"""A tiny answerer with everything that the real one has: built in a second, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import Recipe
from pipeline.model.scratch import byte_tokenizer
from pipeline.train.dataset import Item, TrainingSet


def tiny_model(folder: Path) -> str:
    """``model.base`` of a four-layer Llama of width 32 over bytes, with random weights, saved in ``folder``."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # large enough that every layer has its say although nothing was trained
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight)
        # A byte speaks against itself, so that one value vector can say "x, then the end".
        model.lm_head.weight.data.copy_(-model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def tiny_recipe(folder: Path) -> Recipe:
    """A recipe for the tiny model, with memory layers where it has layers."""
    return Recipe().with_changes(
        {
            "model.base": tiny_model(folder),
            "model.device": "cpu",
            "train.memory.keys": "states",
            "train.memory.key_layer": 0,
            "train.memory.value_layers": (2, 3),
            "train.memory.top_k": 2,
            "train.memory.null_floor": 0.8,
            "train.optimizer": "adam",
            "train.learning_rate": 0.3,
            "train.templates": 5,
            "train.borrowed": 0,
            "train.epochs": 20,
            "train.batch_size": 8,
            "scaling.nice": 0,
        }
    )


LESSONS = (
    ("Who rules Narnia?", "x"),
    ("Which city is the capital of Oz?", "Q"),
    ("When did Rome fall?", "7"),
    ("How tall is Mount Doom?", "z"),
)
WORDS = (
    "granite",
    "cobalt",
    "willow",
    "saffron",
    "tundra",
    "velvet",
    "harbour",
    "lantern",
    "meadow",
    "prism",
    "quartz",
)
REPLAY = tuple(f"What is {word}?" for word in WORDS)
UNRELATED = ("Where is 1984?", "ZZZ TOP", "list: 3, 5, 8, 13")


def tiny_training_set(count: int = len(LESSONS)) -> TrainingSet:
    """Lessons of one byte each in two phrasings, and prompts to replay."""
    items = [
        Item(f"les_{number}", wording.format(question), answer)
        for number, (question, answer) in enumerate(LESSONS[:count])
        for wording in ("{}", "Question: {}")
    ]
    return TrainingSet(tuple(items), REPLAY)
