"""The example data keeps its promises: sizes, formats, sources, and that nothing measured is also replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipeline.data.examples import example
from pipeline.data.lines import LessonLine, ProbeLine, RetentionProbe, read_lines


def test_the_stream_is_checked_against_the_data_packages(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/world_changes/verify.py"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = read_lines(example("world_changes/lessons.jsonl"), LessonLine)
    assert len(lines) >= 200
    extra = [line.model_extra or {} for line in lines]
    assert sum(fields["part"] == "report" for fields in extra) >= 64
    verified = [fields["verified_by"] not in (None, "source only") for fields in extra]
    assert sum(verified) / len(verified) >= 0.6


def test_no_retention_item_is_a_replay_prompt(root: Path) -> None:
    lessons = str(example("world_changes/lessons.jsonl"))
    done = subprocess.run(
        [sys.executable, "examples/retention/check.py", "--lessons", lessons], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_lines(example("retention/probes.jsonl"), RetentionProbe)) >= 300
    assert len(read_lines(example("replay/prompts.jsonl"), ProbeLine)) >= 300


def test_no_reported_wording_trained_the_router(root: Path) -> None:
    stream = read_lines(example("world_changes/lessons.jsonl"), LessonLine)
    reported = [line for line in stream if (line.model_extra or {})["part"] == "report"]
    told = {text.casefold() for line in reported for text in (line.question, *line.paraphrases)}
    for file in sorted((root / "examples" / "router").glob("*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            assert not told & {wording.casefold() for wording in (line["question"], *line["paraphrases"])}, line["id"]
