"""An evaluation: every system plays every order of the lessons; what is finished is kept, so that it can be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.data.lines import LessonLine, ProbeLine, read_lines
from pipeline.evaluate.answers import CachedGenerator
from pipeline.evaluate.harder import Workshop
from pipeline.evaluate.load import circumstances
from pipeline.evaluate.result import Result
from pipeline.evaluate.stream import Course, Played, Timing, Told, noise_floor, order, play
from pipeline.evaluate.summary import summarise
from pipeline.evaluate.systems import LIMITED, SYSTEMS, Bench
from pipeline.files import write_whole
from pipeline.model.assets import file_digest

Progress = Callable[[str, int, int], None]  # what is being done, total, done


class StudyError(ValueError):
    """The evaluation cannot be made as it was asked for; the message says what to change."""


@dataclass(frozen=True)
class Lines:
    """The lessons of one evaluation, and where they come from."""

    lessons: tuple[LessonLine, ...]
    probes: tuple[ProbeLine, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()  # (file name, sha256)
    part: str | None = None
    cut: list[int] | None = None  # start and stop

    @classmethod
    def read(
        cls, files: Sequence[Path], probes: Path | None = None, part: str | None = None, cut: str | None = None
    ) -> Lines:
        """Lines of all ``files`` in order, of one ``part`` (the lines' own field) or one ``cut`` (START:STOP)."""
        lessons = [line for file in files for line in read_lines(file, LessonLine)]
        parts = {line.extra("part") for line in lessons}
        if part is not None and part not in parts:
            known = ", ".join(sorted(str(name) for name in parts if name)) or "none: the lines carry no field 'part'"
            raise StudyError(f"part = {part}: the files' parts are {known}; use slice START:STOP to divide such files")
        if part is not None:
            lessons = [line for line in lessons if line.extra("part") == part]
        bounds = _bounds(cut, len(lessons)) if cut is not None else None
        if bounds is not None:
            lessons = lessons[slice(*bounds)]
        if not lessons:
            raise StudyError(f"no lesson is left of {', '.join(map(str, files))}")
        everything = [*files, *([probes] if probes else [])]
        sources = tuple((file.name, file_digest(file)) for file in everything)
        extra = tuple(read_lines(probes, ProbeLine)) if probes else ()
        return cls(tuple(lessons), extra, sources, part, bounds)


@dataclass(frozen=True)
class Study:
    """What is measured. ``shuffles`` orders are drawn from ``seed``; 0 of them means the files' own order, once."""

    lines: Lines
    systems: tuple[str, ...]
    lengths: tuple[int, ...]
    shuffles: int = 3
    seed: int = 0
    subtests: int = 300  # lessons that each sub-test is made of; 0 leaves them out

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown or not self.systems:
            raise StudyError(f"systems = {', '.join(unknown) or 'none'}: known systems are {', '.join(SYSTEMS)}")
        available = len(self.lines.lessons)
        if not self.lengths or min(self.lengths) < 1 or max(self.lengths) > available:
            given = ", ".join(map(str, self.lengths)) or "none"
            raise StudyError(f"lengths = {given}: give numbers from 1 to {available}, the number of lessons")
        for name in self.systems:
            if min(self.lengths) > LIMITED.get(name, available):
                raise StudyError(f"system {name} is measured up to length {LIMITED[name]}: add such a length")

    def courses(self) -> list[Course]:
        lessons = self.lines.lessons
        workshop = Workshop(lessons, self.seed, self.subtests) if self.subtests else None
        seeds: Sequence[int | None] = [self.seed + n for n in range(self.shuffles)] or [None]
        lengths = tuple(sorted(set(self.lengths)))
        return [Course(lessons, order(len(lessons), seed), lengths, self.lines.probes, workshop) for seed in seeds]

    def described(self) -> dict[str, Any]:
        """For whoever reads the result."""
        lines = self.lines
        counted = {"lessons": len(lines.lessons), "probes": len(lines.probes), "files": dict(lines.sources)}
        chosen = {"part": lines.part, "slice": lines.cut}
        return {**counted, **chosen, "shuffles": self.shuffles, "seed": self.seed, "subtests": self.subtests}

    def asked_for(self) -> dict[str, Any]:
        """Everything that decides an outcome, the system, the model and the code aside."""
        lines = [line.model_dump(mode="json") for line in (*self.lines.lessons, *self.lines.probes)]
        return {"lines": lines, "lengths": sorted(set(self.lengths)), "seed": self.seed, "subtests": self.subtests}


def run(
    study: Study,
    bench: Bench,
    *,
    kept: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Play what is not in ``kept`` yet, and sum up. Reused is what the same model, code and request have left there."""
    began = circumstances()
    folder = kept / _digest({**study.asked_for(), "model": bench.identity, "code": began["code"]}) if kept else None
    courses = study.courses()
    steps = list(_steps(study, courses))
    bar = _Bar(sum(course.work for _, _, course in steps), progress)
    played: dict[str, list[Played]] = {name: [] for name in study.systems}
    for name, number, course in steps:
        bar.doing(f"{name}, order {number + 1} of {len(courses)}" if len(courses) > 1 else name)
        file = folder / f"{name}-{number if study.shuffles else 'file'}.json" if folder else None
        found = _read(file)
        if found is None:
            found = _play(course, name, bench, study.seed, timed=number == 0, told=bar.told)
            _write(file, found)
        bar.finished(course.work)
        played[name].append(found)
    bar.doing("noise floor")
    measured = {"model": bench.identity, "noise_floor": _floor(folder, bench, study)}
    return summarise(played, {**study.described(), **began, **measured})


def _play(course: Course, name: str, bench: Bench, seed: int, *, timed: bool, told: Told) -> Played:
    """Times are taken in one order only: decoding one question at a time is slow."""
    generator = bench.answerer
    bypassed = generator.bypassed if isinstance(generator, CachedGenerator) else nullcontext
    timing = Timing(bypassed, seed) if timed and isinstance(generator, CachedGenerator) else None
    system = SYSTEMS[name](bench)
    return play(
        course, system, bench.uncorrected,
        first_token=bench.first_token, timing=timing, told=told, bypassed=bypassed,
    )  # fmt: skip


def forget(kept: Path) -> None:
    """Remove what is kept of earlier evaluations."""
    if kept.is_dir():
        shutil.rmtree(kept)


def _steps(study: Study, courses: Sequence[Course]) -> Iterator[tuple[str, int, Course]]:
    """(system, order's number, course); systems that train are played in one order, as far as they are bearable."""
    for number, course in enumerate(courses):
        for name in study.systems:
            shorter = course.until(LIMITED.get(name))
            if shorter and (name not in LIMITED or number == 0):
                yield name, number, shorter


class _Bar:
    """One bar over everything; work of a step that was not foreseen does not count."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._what = max(total, 1), progress, ""
        self._before = self._now = 0

    def doing(self, what: str) -> None:
        self._what = what
        self._show()

    def told(self, count: int) -> None:
        self._now += count
        self._show()

    def finished(self, work: int) -> None:
        self._before, self._now = self._before + work, 0
        self._show()

    def _show(self) -> None:
        if self._progress:
            self._progress(self._what, self._total, min(self._before + self._now, self._total))


def _floor(folder: Path | None, bench: Bench, study: Study) -> dict[str, float]:
    file = folder / "noise_floor.json" if folder else None
    if file and file.exists():
        saved: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        return saved
    answerer = bench.answerer.answerer if isinstance(bench.answerer, CachedGenerator) else bench.answerer
    questions = list(dict.fromkeys(line.question for line in study.lines.lessons))
    found = asdict(noise_floor(answerer, questions))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def _read(file: Path | None) -> Played | None:
    return Played.model_validate_json(file.read_text(encoding="utf-8")) if file and file.exists() else None


def _write(file: Path | None, played: Played) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, played.model_dump_json())


def _digest(named: Mapping[str, Any]) -> str:
    return sha256(json.dumps(named, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _bounds(cut: str, available: int) -> list[int]:
    start, colon, stop = cut.partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (start, stop)):
        raise StudyError(f"slice = {cut}: write START:STOP, as in 0:3000; either may be left out")
    bounds = [int(start or 0), min(int(stop or available), available)]
    if bounds[0] >= bounds[1]:
        raise StudyError(f"slice = {cut}: it is empty, there are {available} lessons")
    return bounds
