"""The endpoint's own metrics, exported by Ray beside Serve's."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

LATENCY_MS = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0]


class Meters:
    """Made inside a replica: creating a metric registers it with the process."""

    def __init__(self) -> None:
        self.answers = Counter("agm_answers", "answers given", tag_keys=("strategy",))
        self.answer_ms = Histogram("agm_answer_ms", "request to reply", boundaries=LATENCY_MS, tag_keys=("strategy",))
        self.feedback = Counter("agm_feedback", "feedback accepted", tag_keys=("kind",))
        self.swaps = Counter("agm_bundle_swaps", "champions taken over")
        self.refused_bundles = Counter("agm_bundle_refused", "champions that failed their check here: an alarm")
        self.background_failures = Counter("agm_background_failures", "failed rounds of a background task: an alarm")
