"""``agm pretrain``: a decoder on text; or on lessons of one's own the router, the slots' address, or an answerer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs import entry
from jobs.address_training import train_address
from jobs.instruction_training import train_instruction
from jobs.router_training import RouterTraining, train_router
from jobs.text_training import pretrain_text, text_recipe
from pipeline.config import load_recipe
from pipeline.home import submitter_home

TEXT, ROUTER, INSTRUCT = "A decoder, on text", "The router, on lessons", "An answerer, on lessons in its prompt"


def _file(panel: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(exists=True, dir_okay=False, help=text, rich_help_panel=panel)
    return option


def command(
    out: Annotated[
        Path, typer.Option(help="a new folder for the decoder or the answerer's bundle, or the file of the tensors")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            help="plain text, JSONL, Parquet, Arrow, or a folder such as a Hugging Face dataset's; may be repeated",
            rich_help_panel=TEXT,
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="scratch:<tiny|small|base>[:<slots|fast_weights|none>]", rich_help_panel=TEXT)
    ] = "scratch:small",
    column: Annotated[str, typer.Option(help="the field that holds the text", rich_help_panel=TEXT)] = "text",
    name: Annotated[
        str, typer.Option(help="of --text and --instruct: the same name resumes an interrupted run")
    ] = "pretrain",
    lessons: Annotated[Path | None, _file(ROUTER, "JSONL, with paraphrases and neighbours")] = None,
    address: Annotated[
        bool,
        typer.Option("--address", help="not the router: the head that addresses memory slots", rich_help_panel=ROUTER),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="of --address; each takes 32 facts", rich_help_panel=ROUTER)] = 800,
    register: Annotated[
        bool,
        typer.Option("--register", help="the champion with this router, or so instructed, as a new version"),
    ] = False,
    questions: Annotated[Path | None, _file(ROUTER, "JSONL: questions people asked, with answers")] = None,
    check: Annotated[Path | None, _file(ROUTER, "lessons to measure on (default: a held-out tenth)")] = None,
    pairs: Annotated[
        int, typer.Option(min=100, help="generated pairs beside those of the lessons", rich_help_panel=ROUTER)
    ] = 12_000,
    lesson_pairs: Annotated[
        int, typer.Option(min=100, help="at most so many pairs of the lessons in a pass", rich_help_panel=ROUTER)
    ] = 50_000,
    style: Annotated[
        Literal["both", "question", "statement"],
        typer.Option(
            help="with --start-from: question or statement, to train that style's adapter alone", rich_help_panel=ROUTER
        ),
    ] = "both",
    instruct: Annotated[Path | None, _file(INSTRUCT, "JSONL of lessons, with paraphrases where there are some")] = None,
    otherwise: Annotated[
        Literal["own", "unknown"],
        typer.Option(
            help="said under another fact's lesson: what it says without one, or \"I don't know\"",
            rich_help_panel=INSTRUCT,
        ),
    ] = "own",
    start_from: Annotated[
        Path | None,
        typer.Option(exists=True, help="weights to train further: a model's folder, or a router (default: none)"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the text or the pairs (default: 1)")] = None,
    seed: Annotated[int | None, typer.Option(help="of the order of training (default: the recipe's)")] = None,
    recipe: entry.RecipePath = None,
) -> None:
    """Train a decoder on text, tokenizer included (`--text`), the router on lessons (`--lessons`), or the answerer to
    use a lesson in its prompt (`--instruct`).

    A decoder is trained by Ray Train as `scaling` of the recipe says: workers, DDP or FSDP. `--name` resumes an
    interrupted run exactly; `--start-from` starts a new run from weights that there are. The figures at the end are of
    text, or of lessons, that it did not learn from.

    The router decides whether a question is a lesson in other words or a neighbour of it. `--register` adds a version
    of the champion with it to the registry; it does not serve until it is promoted. `--start-from` with the shipped
    one (pipeline/memory/router.safetensors) takes fewer lessons.

    With `--address` it is the head that addresses the memory layers' slots token by token (`train.memory.head`).

    With `--instruct` the champion, or the recipe's model, learns to answer from a lesson in its prompt, to end its
    answer, and to say what it says without one where the lesson is about another fact (`--otherwise unknown`: "I don't
    know"), by `train.method` lora, upper or full; lora where the recipe says none of these. Withheld paraphrases are
    not trained. The figures are of a tenth of the facts, asked in them, before and after. `--out` is a bundle.

    Example: `agm pretrain --text books/ --base scratch:small --out models/books` or
    `agm pretrain --lessons examples/world_changes/lessons.jsonl --out router.safetensors`
    """
    if sum(given is not None for given in (text, lessons, instruct)) != 1:
        raise entry.UserError("give --text for a decoder, --lessons for the router or --instruct for the answerer")
    if text is not None:
        settings = text_recipe(load_recipe(recipe), base, epochs, seed)
        pretrain_text(submitter_home(), settings, text, out, name=name, column=column, start_from=start_from)
        return
    if instruct is not None:
        train_instruction(
            submitter_home(), instruct, out, name=name, unknown=otherwise == "unknown", register=register,
            recipe=recipe, epochs=epochs, seed=seed,
        )  # fmt: skip
        return
    assert lessons is not None
    if address:
        train_address(lessons, out, pairs=pairs, steps=steps, seed=seed or 0, recipe=recipe)
        return
    asked = RouterTraining(
        lessons, out, register, questions, start_from, check, epochs or 1, pairs, lesson_pairs, style, seed or 0, recipe
    )
    train_router(asked)


main = entry.main(command)

if __name__ == "__main__":
    main()
