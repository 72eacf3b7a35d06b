"""The replica's metrics, twice: in Prometheus's form at ``/metrics``, which reaches one replica, and through Ray's own
exporter, which has those of all replicas beside Serve's, each with its ``replica``.

Ray's are told of it now and then (:meth:`Meters.export`): telling them costs a quarter of a millisecond, and a request
would wait for that. Everything here is called from the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import prometheus_client as prometheus
import ray
from ray.serve.metrics import Counter, Gauge, Histogram

LATENCY_MS = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0]


class Count:
    """One counter in both places."""

    def __init__(
        self, registry: prometheus.CollectorRegistry, name: str, about: str, tags: tuple[str, ...] = ()
    ) -> None:
        self._here = prometheus.Counter(name, about, tags, registry=registry)
        self._ray = Counter(name, about, tag_keys=tags)  # type: ignore[arg-type]  # Ray means any number
        self._tags = tags
        self._untold: dict[tuple[str, ...], float] = {}  # amounts by the tags' values

    def inc(self, amount: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        (self._here.labels(**tags) if tags else self._here).inc(amount)
        values = tuple((tags or {})[name] for name in self._tags)
        self._untold[values] = self._untold.get(values, 0.0) + amount

    def export(self) -> None:
        for values, amount in self._untold.items():
            self._ray.inc(amount, tags=dict(zip(self._tags, values, strict=True)))
        self._untold.clear()


class Meters:
    """Made inside a replica: creating a metric registers it with the process."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        self._counts: list[Count] = []
        self._took: list[tuple[str, float]] = []  # strategy and milliseconds of the answers that Ray is not told of yet
        self.answers = self._count("agm_answers", "answers given", "strategy", "model_version")
        self.tokens = self._count("agm_tokens", "tokens decoded")
        self.feedback = self._count("agm_feedback", "feedback accepted", "kind")
        self.ratings = self._count(
            "agm_ratings", "sum of ratings, by the version that was rated", "model_version", "sign"
        )
        self.swaps = self._count("agm_bundle_swaps", "champions taken over")
        self.refused_bundles = self._count("agm_bundle_refused", "champions that failed their check here: an alarm")
        self.background_failures = self._count(
            "agm_background_failures", "failed rounds of a background task: an alarm"
        )
        self._answer_ms = prometheus.Histogram(
            "agm_answer_ms", "request to reply", ("strategy",), registry=self.registry, buckets=LATENCY_MS
        )
        self._ray_answer_ms = Histogram(
            "agm_answer_ms", "request to reply", boundaries=LATENCY_MS, tag_keys=("strategy",)
        )

    def _count(self, name: str, about: str, *tags: str) -> Count:
        count = Count(self.registry, name, about, tags)
        self._counts.append(count)
        return count

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks, and at each :meth:`export`."""
        prometheus.Gauge(name, about, registry=self.registry).set_function(value)
        self._watched.append((Gauge(name, about), value))

    def export(self) -> None:
        """Tell Ray's exporter what the gauges say now, and what has been counted and timed since it was last told."""
        for gauge, value in self._watched:
            gauge.set(value())
        for count in self._counts:
            count.export()
        for strategy, milliseconds in self._took:
            self._ray_answer_ms.observe(milliseconds, tags={"strategy": strategy})
        self._took.clear()

    def answered(self, strategy: str, model_version: int, tokens: int, milliseconds: float) -> None:
        self.answers.inc(tags={"strategy": strategy, "model_version": str(model_version)})
        self._answer_ms.labels(strategy=strategy).observe(milliseconds)
        self._took.append((strategy, milliseconds))
        if tokens:
            self.tokens.inc(tokens)

    def rated(self, model_version: int, value: float) -> None:
        if value:
            self.ratings.inc(abs(value), {"model_version": str(model_version), "sign": "+" if value > 0 else "-"})

    def text(self) -> str:
        """The exposition format; each line says which replica it is of, because a scrape reaches one of them."""
        return f"# replica {replica_name()}\n" + prometheus.generate_latest(self.registry).decode()


def replica_name() -> str:
    return ray.get_runtime_context().get_actor_id() or "local" if ray.is_initialized() else "local"
