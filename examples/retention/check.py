"""Check the retention probes, the replay prompts and the unrelated probes.

Prints the counts; exits 1 with one line per problem. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1]
FUNCTION_WORDS = (
    "a an and are as at be by can could did do does for from give has have how i in is it its "
    "many me most much my name of on or s should tell that the their there they this to was we "
    "were what when where which who whom whose why will with would you your"
)
STOP = frozenset(FUNCTION_WORDS.split())
Row = dict[str, Any]
Asked = tuple[str, str]  # an id and its question


def words(text: str) -> list[str]:
    """The lower-cased words, numbers and operators of a text, without accents."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return re.findall(r"[a-z0-9]+|[+*/=-](?=\s)", plain.replace("'", " ").replace("\u2019", " "))


def content(text: str) -> frozenset[str]:
    return frozenset(w for w in words(text) if w not in STOP)


def load(path: Path, keys: set[str], prefix: str, problems: list[str]) -> list[Row]:
    """Read one file; report lines of the wrong shape and repeated ids and questions."""
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or set(row) != keys or not isinstance(row.get("distractors", []), list):
            problems.append(f"{where}: must be a JSON object with {', '.join(sorted(keys))}")
            continue
        texts = [*(row[key] for key in keys - {"distractors"}), *row.get("distractors", [])]
        if not all(isinstance(text, str) and text == text.strip() and text for text in texts):
            problems.append(f"{where}: a text is empty, padded or not a string")
            continue
        if not re.fullmatch(rf"{prefix}-\d{{3}}", row["id"]):
            problems.append(f"{where}: id {row['id']!r} is not {prefix}-NNN")
        for key in (row["id"], " ".join(words(row["question"]))):
            if key in seen:
                problems.append(f"{where}: {key!r} was already at {seen[key]}")
            seen[key] = where
        rows.append(row)
    return rows


def check_near(some: list[Asked], others: list[Asked], limit: float, problems: list[str]) -> None:
    """Report pairs of questions whose content words have a Jaccard index of limit or more."""
    known = [(row_id, content(text)) for row_id, text in others]
    for row_id, text in some:
        mine = content(text)
        near = [other for other, theirs in known if len(mine & theirs) >= limit * len(mine | theirs)]
        problems.extend(f"{row_id} and {other}: content words too similar" for other in near)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=Path, default=EXAMPLES, help="the folder with retention/ and replay/")
    parser.add_argument("--lessons", type=Path, help="also keep all three files away from these lessons")
    parser.add_argument("--max-jaccard", type=float, default=0.8)
    args = parser.parse_args(argv)

    problems: list[str] = []
    probe_keys = {"id", "question", "answer", "distractors", "topic"}
    files = {
        "retention": load(args.examples / "retention" / "probes.jsonl", probe_keys, "ret", problems),
        "replay": load(args.examples / "replay" / "prompts.jsonl", {"id", "question"}, "rep", problems),
        "unrelated": load(args.examples / "replay" / "unrelated.jsonl", {"id", "question"}, "unr", problems),
    }
    problems.extend(
        f"{row['id']}: needs three distractors unlike each other and the answer"
        for row in files["retention"]
        if len(row["distractors"]) != 3 or len({row["answer"], *row["distractors"]}) != 4
    )
    topics = Counter(row["topic"] for row in files["retention"])
    sizes = {name: len(rows) for name, rows in files.items()} | {"topics": len(topics)}
    for name, least in (("retention", 420), ("replay", 500), ("unrelated", 300), ("topics", 15)):
        if sizes[name] < least:
            problems.append(f"{name}: {sizes[name]}, at least {least} are needed")

    texts = {n: {" ".join(words(r["question"])): r["id"] for r in rows} for n, rows in files.items()}
    for one, other in (("retention", "replay"), ("retention", "unrelated"), ("replay", "unrelated")):
        shared = sorted(texts[one].keys() & texts[other].keys())
        problems.extend(f"{texts[one][text]} and {texts[other][text]}: the same text" for text in shared)
    asked = {name: [(row["id"], row["question"]) for row in rows] for name, rows in files.items()}
    check_near(asked["retention"], asked["replay"] + asked["unrelated"], args.max_jaccard, problems)
    if args.lessons:
        lessons = [json.loads(line) for line in args.lessons.read_text(encoding="utf-8").splitlines()]
        taught = [(x["id"], q) for x in lessons for q in (x["question"], *x["paraphrases"], *x["neighbours"])]
        for questions in asked.values():
            check_near(questions, taught, args.max_jaccard, problems)

    print(", ".join(f"{name} {size}" for name, size in sizes.items()))
    print(", ".join(f"{topic} {n}" for topic, n in sorted(topics.items())))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
