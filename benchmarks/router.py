"""The router alone: what it opens for, what it leaves alone and its calibration, at several sizes of the memory.

    python benchmarks/router.py --lessons FILE --slice 4000:6000 --sizes 100,1000,10000 --out router.json

Probes are the slice's lessons. A smaller memory holds them in turns; a larger one is filled up with the file's other
lessons, then with generated questions. Writes JSON (agm-result-v1) and a plot of reliability diagrams.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from safetensors.torch import load_file
from tqdm import tqdm

from benchmarks.record import circumstances
from pipeline.config import MemorySettings
from pipeline.data.lines import LessonLine, read_lines
from pipeline.evaluate.metrics import Interval, wilson
from pipeline.evaluate.result import Result
from pipeline.memory.belief import taught_event
from pipeline.memory.router import Router, load_router
from pipeline.memory.router_check import Routed, calibration, figures, route
from pipeline.memory.router_data import Generator
from pipeline.memory.store import LessonMemory
from pipeline.memory.types import Viewer
from pipeline.model.encoder import TextEncoder, load_encoder

TIMED = 200  # questions asked one at a time


def main() -> None:
    given = arguments()
    lines = read_lines(given.lessons, LessonLine)
    start, stop = (int(part) if part else None for part in given.slice.split(":"))
    probes = lines[start:stop]
    others = [line for number, line in enumerate(lines) if not (start or 0) <= number < (stop or len(lines))]
    encoder, settings = load_encoder(threads=given.threads), MemorySettings()
    router = load_router(load_file(given.router) if given.router else None)
    cells, details, found = {}, {}, {}
    for size in map(int, given.sizes.split(",")):
        filling = filled(others, size - len(probes), given.seed)
        routed = at_size(router, probes, filling, size, encoder, settings)
        found[size] = routed
        cells[str(size)] = figures(routed, settings.gate) | {"calibration_error": exact(calibration(routed), routed)}
        details[str(size)] = latency(router, [*probes, *filling][:size], encoder, settings)
        print(size, {name: round(cell.value, 4) for name, cell in cells[str(size)].items()}, details[str(size)])
    measures = {"circumstances": circumstances(), "gate": settings.gate, "probes": len(probes)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    Result(systems={"router": cells}, measures=measures | {"milliseconds": details}).write(given.out)
    diagram(found, given.out.with_suffix(".png"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", type=Path, required=True, help="JSONL, with paraphrases and neighbours")
    parser.add_argument("--slice", default=":", help="the lessons that are asked about (default: all)")
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--router", type=Path, help="tensors of another router than the shipped one")
    parser.add_argument("--seed", type=int, default=0, help="of the generated questions that fill a memory up")
    parser.add_argument("--threads", type=int, default=1, help="1 by default, as many as the endpoint reads with")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def at_size(
    router: Router,
    probes: Sequence[LessonLine],
    filling: list[LessonLine],
    size: int,
    encoder: TextEncoder,
    settings: MemorySettings,
) -> list[Routed]:
    """Every probe asked of a memory of ``size``."""
    step = min(size, len(probes))
    turns = tqdm(range(0, len(probes), step), desc=f"{size} lessons")
    parts = (probes[start : start + step] for start in turns)
    return [item for part in parts for item in route(router, [*part, *filling], part, encoder, settings)]


def filled(others: Sequence[LessonLine], count: int, seed: int) -> list[LessonLine]:
    """``count`` more lessons: the file's, then generated ones."""
    if count <= 0:
        return []
    generator, known = Generator([], seed), {line.question for line in others}
    lines = list(others[:count])
    while len(lines) < count:
        question = generator.wordings(generator.fact(), 1)[0]
        if question not in known:
            known.add(question)
            lines.append(LessonLine(question=question, answer=f"answer {len(lines)}"))
    return lines


def exact(value: float, routed: Sequence[Routed]) -> Interval:
    return Interval(value, value, value, len(routed))


def latency(router: Router, lines: Sequence[LessonLine], encoder: TextEncoder, settings: MemorySettings) -> dict:
    """Milliseconds of one reading, encoding included, one question at a time."""
    memory = LessonMemory(encoder, router, settings)
    memory.apply(taught_event(line, number) for number, line in enumerate(lines, 1))
    texts = [text for line in lines for text in line.paraphrases][:TIMED]
    times = []
    for text in texts:
        began = time.perf_counter()
        memory.read([text], [Viewer()])
        times.append((time.perf_counter() - began) * 1000)
    cuts = statistics.quantiles(times, n=20) if len(times) > 1 else [0.0] * 19
    return {"lessons": len(lines), "n": len(times), "p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}


def diagram(found: dict[int, list[Routed]], path: Path, bins: int = 10) -> None:
    """Share of right readings against the weight on lessons, one panel per size."""
    figure = Figure(figsize=(3.2 * len(found), 3.2), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (size, routed) in zip(panels, found.items(), strict=True):
        asked = [item for item in routed if item.kind != "question"]
        panel.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        for number in range(bins):
            group = [i for i in asked if number / bins <= i.gate < (number + 1) / bins + (number == bins - 1)]
            if group:
                got = wilson(sum(i.applies and i.right for i in group), len(group))
                mean = statistics.fmean(i.gate for i in group)
                panel.errorbar(
                    mean, got.value, [[got.value - got.low], [got.high - got.value]], fmt="o", color="#3b6fb6"
                )
        panel.set_title(f"{size:,} lessons, ECE {calibration(routed):.3f}", fontsize=10)
        panel.set_xlabel("weight on lessons")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("heaviest lesson is right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
