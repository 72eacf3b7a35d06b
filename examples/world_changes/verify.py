"""Check the world-changes lesson set: its format, and its answers against data packages.

Usage: python examples/world_changes/verify.py [--file lessons.jsonl]

A lesson's ``verified_by`` is null ("source only") or ``package:check:key`` or
``package:check:key=value``. The named package then has to give the lesson's answer for ``key``
(and ``value`` as well where one is written). ``lesson_packages.py`` holds the checks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lesson_packages import VERIFIERS
from lesson_text import contains, content_words, fold

FIELDS = (
    *("id", "question", "answer", "previous", "date", "paraphrases", "neighbours", "neighbour_answers"),
    *("source", "subject", "relation", "part", "verified_by"),
)
MAX_SHARED = 0.5
MAX_RELATION_SHARE = 0.3
MIN_RELATIONS = 12
MAX_ANSWER_WORDS = 5
SOURCE_ONLY = (None, "source only")

Lesson = dict[str, Any]


def field_problems(lesson: Lesson) -> Iterator[str]:
    """Missing, empty or surplus fields and wrong list lengths."""
    fields = set(lesson) - {"held_out"}  # stands in some lines of part "fit" alone
    if fields != set(FIELDS):
        yield f"fields differ: {sorted(fields ^ set(FIELDS))}"
        return
    if "held_out" in lesson and (lesson["held_out"] is not True or lesson["part"] != "fit"):
        yield "held_out is for lines of part fit, and true"
    for name in FIELDS[:-1]:
        if not lesson[name]:
            yield f"{name} is empty"
    for name, size in (("paraphrases", 3), ("neighbours", 2), ("neighbour_answers", 2)):
        if len(lesson[name]) != size:
            yield f"{name} has {len(lesson[name])} entries, not {size}"


def answer_problems(lesson: Lesson) -> Iterator[str]:
    """An answer that is long, ends in a period, or is given away by a question."""
    answer = lesson["answer"]
    if len(answer.split()) > MAX_ANSWER_WORDS or answer.endswith("."):
        yield f"answer is not short and bare: {answer!r}"
    if answer.casefold() == lesson["previous"].casefold():
        yield "answer equals the previous answer"
    for text in (lesson["question"], *lesson["paraphrases"]):
        if contains(text, answer):
            yield f"answer {answer!r} occurs in {text!r}"
    for text, known in zip(lesson["neighbours"], lesson["neighbour_answers"], strict=True):
        if contains(text, known):
            yield f"neighbour answer {known!r} occurs in {text!r}"


def wording_problems(lesson: Lesson) -> Iterator[str]:
    """Texts that are not questions, repeat one another, or all share the question's words."""
    texts = [lesson["question"], *lesson["paraphrases"], *lesson["neighbours"]]
    for text in texts:
        if not text.endswith("?") or not text[0].isupper():
            yield f"not an ordinary question: {text!r}"
    if len({fold(text) for text in texts}) < len(texts):
        yield "two texts of the lesson are the same"
    subject = lesson["subject"]
    words = content_words(lesson["question"], subject)
    if not words:
        yield "question has no content word outside its subject"
        return
    shared = [len(words & content_words(text, subject)) / len(words) for text in lesson["paraphrases"]]
    if min(shared) >= MAX_SHARED:
        yield f"no paraphrase shares less than half of {sorted(words)}"
    for text in lesson["neighbours"]:
        alike = fold(text).split()[:2] == fold(lesson["question"]).split()[:2]
        if alike and words <= content_words(text, subject):
            yield f"neighbour is worded like the question: {text!r}"


def package_problems(lesson: Lesson) -> Iterator[str]:
    """A verified_by that cannot be carried out, or whose package says something else."""
    spec = lesson["verified_by"]
    if spec in SOURCE_ONLY:
        return
    package, check, rest = [*spec.split(":", 2), "", ""][:3]
    verifier = VERIFIERS.get(f"{package}:{check}")
    if verifier is None:
        yield f"unknown verifier in {spec!r}"
        return
    key, _, value = rest.partition("=")
    try:
        forms = {fold(form) for form in verifier(key)}
    except (AttributeError, KeyError, LookupError, ValueError) as error:
        yield f"{spec}: {type(error).__name__}: {error}"
        return
    for wanted in filter(None, (lesson["answer"], value)):
        if fold(wanted) not in forms:
            yield f"{spec}: package gives {sorted(forms)[:6]}, not {wanted!r}"


def set_problems(lessons: list[Lesson]) -> Iterator[str]:
    """What only the whole set shows: duplicates, taught neighbours, and too little variety."""
    for what, names in (
        ("id", [x["id"] for x in lessons]),
        (
            "question or paraphrase",
            [fold(t) for x in lessons for t in (x["question"], *x["paraphrases"])],
        ),
        ("(subject, relation)", [(fold(x["subject"]), x["relation"]) for x in lessons]),
    ):
        yield from (f"set: {what} twice: {name}" for name, n in Counter(names).items() if n > 1)
    taught = defaultdict(list)
    for lesson in lessons:
        taught[lesson["relation"]].append(lesson["subject"])
    asked = {fold(t) for x in lessons for t in (x["question"], *x["paraphrases"])}
    for lesson in lessons:
        for text in lesson["neighbours"]:
            hits = [s for s in taught[lesson["relation"]] if contains(text, s)]
            if hits or fold(text) in asked:
                yield f"{lesson['id']}: neighbour is in the stream {hits}: {text!r}"
    if len(taught) < MIN_RELATIONS:
        yield f"set: only {len(taught)} relations"
    for relation, subjects in taught.items():
        if len(subjects) > MAX_RELATION_SHARE * len(lessons):
            yield f"set: relation {relation} has {len(subjects)} lessons"


def problems(lessons: list[Lesson]) -> Iterator[str]:
    """All problems of the set, one line each."""
    whole = True
    for number, lesson in enumerate(lessons, 1):
        found = list(field_problems(lesson))
        whole = whole and not found
        if not found:
            for check in (answer_problems, wording_problems, package_problems):
                found += check(lesson)
        yield from (f"{lesson.get('id', f'line {number}')}: {problem}" for problem in found)
    if whole:
        yield from set_problems(lessons)


def main() -> int:
    """Check the file, print the summary, and give the exit status."""
    parser = argparse.ArgumentParser(description="Check the world-changes lesson set.")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("lessons.jsonl"))
    path: Path = parser.parse_args().file
    lessons = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = list(problems(lessons))
    for problem in found:
        print(problem)
    verified = sum(lesson.get("verified_by") not in SOURCE_ONLY for lesson in lessons)
    print(
        f"{len(lessons)} lessons, {verified} verified against a package "
        f"({100 * verified / max(1, len(lessons)):.0f} %), {len(lessons) - verified} source only"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
