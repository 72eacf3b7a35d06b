"""What a search may change: dotted fields of the recipe, each with its values or its range, and named methods.

A space file is YAML:

    memory.strategy: [adaptive, copy, context]      # one of these
    train.learning_rate: {times: [0.1, 10]}         # times what the recipe, or the method, says; drawn logarithmically
    train.merge: {linear: [0.5, 1.0]}               # any number between
    train.weight_decay: {log: [0.0001, 0.1]}        # any number between, drawn logarithmically
    methods:                                        # what is trained and what holds the rest: fields that go together
      memory: {train.method: memory}
      lora: {train.method: lora, train.learning_rate: 0.001, train.optimizer: adam}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from ray import tune

from pipeline.config import ConfigError, Recipe

METHOD, METHODS = "method", "methods"
IDLE = {"train.replay_lessons", "train.replay_choice"}  # what cycles on feedback alone look at
Scale = Literal["times", "log", "linear"]
SCALES: tuple[Scale, ...] = get_args(Scale)
GRID_POINTS = 3  # that a grid takes from a range: its ends and its middle
TRIED = 2000  # combinations that are validated before anything runs
TIMES = (0.1, 10.0)


@dataclass(frozen=True)
class Range:
    """Numbers between ``low`` and ``high``; ``times`` are logarithmic factors on what the recipe says."""

    scale: Scale
    low: float
    high: float

    def domain(self) -> Any:
        return (tune.uniform if self.scale == "linear" else tune.loguniform)(self.low, self.high)

    def points(self, count: int = GRID_POINTS) -> list[float]:
        steps = [n / (count - 1) for n in range(count)]
        if self.scale == "linear":
            return [self.low + step * (self.high - self.low) for step in steps]
        return [float(self.low * (self.high / self.low) ** step) for step in steps]


Values = tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """``fields``: dotted names with their values or range; ``methods``: dotted changes that go together, by name."""

    fields: Mapping[str, Values | Range]
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def domains(self) -> dict[str, Any]:
        """For a searcher that draws."""
        drawn = {name: d.domain() if isinstance(d, Range) else tune.choice(list(d)) for name, d in self.fields.items()}
        return drawn | ({METHOD: tune.choice(list(self.methods))} if self.methods else {})

    def grid(self) -> dict[str, Any]:
        """Every combination; a range gives ``GRID_POINTS`` values."""
        return {name: tune.grid_search(list(values)) for name, values in self._listed().items()}

    def size(self) -> int:
        """Combinations of the grid."""
        return prod(len(values) for values in self._listed().values())

    def changes(self, point: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
        """A point as dotted changes of the recipe."""
        changes = dict(self.methods[point[METHOD]]) if METHOD in point else {}
        for name, value in point.items():
            domain = self.fields.get(name)
            if isinstance(domain, Range) and domain.scale == "times":
                changes[name] = value * changes.get(name, value_in(recipe, name))
            elif name != METHOD:
                changes[name] = value
        return changes

    def check(self, recipe: Recipe) -> None:
        """Raise :class:`ConfigError` at the first combination that no recipe may have."""
        for point in islice(self._points(), TRIED):
            try:
                recipe.with_changes(self.changes(point, recipe))
            except ConfigError as error:
                shown = ", ".join(f"{name} = {value}" for name, value in point.items())
                raise ConfigError(f"the search space has a point that is no recipe ({shown}): {error}") from None

    def described(self) -> dict[str, Any]:
        """As a space file says it."""
        fields = {n: {d.scale: [d.low, d.high]} if isinstance(d, Range) else list(d) for n, d in self.fields.items()}
        return fields | (
            {METHODS: {name: dict(changes) for name, changes in self.methods.items()}} if self.methods else {}
        )

    def _listed(self) -> dict[str, list[Any]]:
        listed = {name: d.points() if isinstance(d, Range) else list(d) for name, d in self.fields.items()}
        return listed | ({METHOD: list(self.methods)} if self.methods else {})

    def _points(self) -> Iterator[dict[str, Any]]:
        listed = self._listed()
        return (dict(zip(listed, values, strict=True)) for values in product(*listed.values()))


def default_space(recipe: Recipe) -> Space:
    """Memory strategy and step size; how much is replayed; and for memory layers how many slots a token reads."""
    fields: dict[str, Values | Range] = {
        "memory.strategy": ("adaptive", "copy", "context", "weights"),
        "train.learning_rate": Range("times", *TIMES),
        "train.replay_ratio": (0.25, 0.5, 1.0),
    }
    if recipe.train.method == "memory":
        fields["train.memory.top_k"] = (1, 4, 8)
    return Space(fields)


def load_space(path: Path, recipe: Recipe) -> Space:
    """The space in a YAML file, each of its points checked against ``recipe``."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{path}: expected a mapping of dotted fields, such as 'train.learning_rate', to values")
    methods = tree.pop(METHODS, {})
    if not isinstance(methods, dict) or not all(isinstance(changes, dict) for changes in methods.values()):
        raise ConfigError(f"{path}: {METHODS} = {methods!r:.80}: expected names, each with the fields that it sets")
    space = Space({str(name): _domain(path, name, given) for name, given in tree.items()}, methods)
    if idle := IDLE & {*space.fields}.union(*methods.values()):
        why = "its trials replay no earlier lessons"
        raise ConfigError(f"{path}: {min(idle)} changes nothing in a search: {why}; leave it out")
    for name, domain in space.fields.items():
        value_in(recipe, name)
        scaled = isinstance(domain, Range) and domain.scale == "times"
        if not scaled and any(name in changes for changes in methods.values()):
            raise ConfigError(f"{path}: {name} is set by a method as well: leave one of them out, or search 'times'")
    space.check(recipe)
    return space


def value_in(recipe: Recipe, dotted: str) -> Any:
    """What the recipe has in a dotted field."""
    node: Any = recipe
    for part in dotted.split("."):
        if part not in getattr(type(node), "model_fields", {}):
            known = ", ".join(getattr(type(node), "model_fields", {})) or "nothing below it"
            raise ConfigError(f"unknown field {dotted!r}: {part!r} is not among {known}")
        node = getattr(node, part)
    return node


def _domain(path: Path, name: Any, given: Any) -> Values | Range:
    if isinstance(given, list) and given:
        return tuple(given)
    if isinstance(given, dict) and len(given) == 1:
        scale, ends = next(iter(given.items()))
        numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
        if scale in SCALES and numbers and ends[0] < ends[1] and (scale == "linear" or ends[0] > 0):
            return Range(cast(Scale, scale), float(ends[0]), float(ends[1]))
    raise ConfigError(
        f"{path}: {name} = {given!r:.80}: give a list of values, or a range as {{{' | '.join(SCALES)}: [low, high]}} "
        "with low < high, above 0 unless linear"
    )
