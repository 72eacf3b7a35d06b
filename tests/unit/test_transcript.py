"""A demo's figures on transcripts small enough to work out by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import report, report_page
from pipeline.data.lines import LineError
from pipeline.evaluate.metrics import wilson
from pipeline.evaluate.transcript import answers, cited, measures, parse, percentile, read_transcript

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: float) -> str:
    return (START + timedelta(seconds=second)).isoformat()


def request(phase: str, second: float, raw: str, **fields: Any) -> dict[str, Any]:
    usual = {
        "kind": "question",
        "lesson": "l1",
        "question": "Q?",
        "expected": ["the euro"],
        "memory": "on",
        "status": 200,
    }
    return {"phase": phase, "time": at(second), "raw": raw, "ms": 10.0, **usual, **fields}


def cycle(event: str, second: float) -> dict[str, Any]:
    return {"phase": "cycle", "event": event, "time": at(second)}


def correction(second: float, milliseconds: float | None, status: int = 200) -> dict[str, Any]:
    return {"phase": "correction", "time": at(second), "lesson": "l1", "ms_to_answer": milliseconds, "status": status}


def shares(successes: int, n: int) -> dict[str, float]:
    interval = wilson(successes, n)
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": n}


def test_the_keys_are_those_of_the_table() -> None:
    assert set(measures([])) == {
        "corrected", "paraphrase", "neighbour", "weights_learned", "weights_paraphrase", "retention_kept",
        "requests_during_swap", "failed_requests", "correction_to_answer_p95_ms", "gate",
    }  # fmt: skip
    assert set(report.GOALS) == set(measures([])) - {"gate"}


def test_corrected_counts_whole_strings_with_memory_on_right_after() -> None:
    found = measures(
        [
            request("before", 0, "the kuna"),
            request("adjust", 1, "The Euro."),  # right: case, article and punctuation do not count
            request("adjust", 2, "the euro, since 2023"),  # not the whole string
            request("adjust", 3, "the euro", status=500),  # an error is no answer
            request("adjust", 4, "the euro", memory="off"),  # another measure's
            request("adjust", 5, "euro", kind="paraphrase"),
        ]
    )
    assert found["corrected"] == shares(1, 3)
    assert found["paraphrase"] == shares(1, 1)


def test_a_neighbour_counts_only_when_its_raw_string_stays() -> None:
    def asked(phase: str, second: float, raw: str, question: str, **fields: Any) -> dict[str, Any]:
        return request(phase, second, raw, kind="neighbour", question=question, **fields)

    records = [
        asked("before", 0, "forint", "same?"),
        asked("before", 0, "zloty", "changed?"),
        asked("before", 0, "leu", "case?"),
        asked("before", 0, "lev", "failed?", status=503),
        asked("adjust", 5, "forint", "same?"),
        asked("adjust", 5, "euro", "changed?"),
        asked("adjust", 5, "Leu", "case?"),
        asked("adjust", 5, "lev", "failed?"),
        asked("adjust", 5, "krona", "never asked before?"),
    ]
    assert measures(records)["neighbour"] == shares(1, 5)


def test_a_neighbour_is_compared_with_its_last_answer_before() -> None:
    records = [
        request("before", 0, "early", kind="neighbour"),
        request("before", 4, "late", kind="neighbour"),
        request("adjust", 5, "late", kind="neighbour"),
        request("before", 6, "early", kind="neighbour"),  # afterwards: not its baseline
    ]
    assert measures(records)["neighbour"]["value"] == 1.0
    assert measures(list(reversed(records)))["neighbour"]["value"] == 1.0  # times count, not lines


def test_weights_are_asked_with_memory_off_after_the_cycle() -> None:
    after = [request("after", 9, raw, memory="off") for raw in ("the euro", "euro", "kuna")]
    after += [request("after", 9, "kuna", memory="off", kind="paraphrase"), request("after", 9, "euro")]
    found = measures(after)
    assert found["weights_learned"] == shares(2, 3)
    assert found["weights_paraphrase"] == shares(0, 1)
    assert answers(parse(after))["after"]["on"]["question"] == shares(1, 1)


def test_retention_is_kept_among_what_was_right_before() -> None:
    probes = [(True, True), (True, False), (True, True), (False, True), (False, False)]
    lines = [
        {"phase": "retention", "probe": str(n), "champion": champion, "challenger": challenger}
        for n, (champion, challenger) in enumerate(probes)
    ]
    assert measures(lines)["retention_kept"] == shares(2, 3)


def test_load_counts_from_cycle_start_to_thirty_seconds_after_the_swap() -> None:
    load = [request("load", second, "x") for second in (9, 10, 50, 90, 91)] + [request("load", 60, "", status=0)]
    found = measures([cycle("start", 10), cycle("swap", 60), cycle("end", 61), *load])
    assert found["requests_during_swap"] == 4
    assert found["failed_requests"] == 1


def test_without_a_swap_load_counts_to_the_cycles_end() -> None:
    load = [request("load", second, "x") for second in (5, 10, 61, 62)]
    assert measures([cycle("start", 10), cycle("end", 61), *load])["requests_during_swap"] == 2
    assert measures(load)["requests_during_swap"] == 0


def test_the_95th_percentile_is_by_nearest_rank() -> None:
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert percentile([7.0], 0.95) == 7.0
    assert measures([correction(n, float(n)) for n in range(1, 21)])["correction_to_answer_p95_ms"] == 19.0


def test_a_failed_correction_was_never_answered() -> None:
    twenty = [correction(n, 10.0) for n in range(19)]
    assert measures([*twenty, correction(20, None, 500)])["correction_to_answer_p95_ms"] == 10.0
    assert (
        measures([*twenty[1:], correction(20, 5.0, 500), correction(21, None)])["correction_to_answer_p95_ms"] is None
    )
    assert measures([correction(1, 12.0, 201)])["correction_to_answer_p95_ms"] == 12.0


def test_the_last_verdict_is_the_gates() -> None:
    lines = [{"phase": "gate", "verdict": {"promoted": promoted, "reasons": []}} for promoted in (False, True)]
    assert measures(lines)["gate"] == {"promoted": True, "reasons": []}


def test_citations_count_where_one_is_expected() -> None:
    lines = [
        request("adjust", 1, "x", lesson_id="les_1", lessons=["les_2", "les_1"]),
        request("adjust", 2, "x", lesson_id="les_1", lessons=[]),
        request("adjust", 3, "x", lesson_id=None, lessons=["les_9"]),
    ]
    assert cited(parse(lines)) == shares(1, 2)


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "transcript.jsonl"
    file.write_text(json.dumps(request("adjust", 1, "x")) + "\n" + json.dumps({"phase": "lunch"}) + "\n")
    with pytest.raises(LineError, match="line 2"):
        read_transcript(file)


@pytest.fixture
def transcript(tmp_path: Path) -> Path:
    """One lesson through a whole demo, with an answer that tries to break the page."""
    lines = [
        request("before", 0, "<script>alert(1)</script>"),
        request("before", 0, "kuna", memory="off"),
        request("before", 0, "forint", kind="neighbour"),
        correction(1, 41.0),
        request("adjust", 2, "the euro", lessons=["les_1"], lesson_id="les_1", strategy="copy", model_version=1),
        request("adjust", 2, "the euro", kind="paraphrase"),
        request("adjust", 2, "forint", kind="neighbour"),
        cycle("start", 3),
        *(request("load", 3 + second / 4, "x", model_version=1 + second // 20) for second in range(40)),
        cycle("swap", 8),
        cycle("end", 9),
        {"phase": "retention", "probe": "p1", "champion": True, "challenger": True},
        {
            "phase": "gate",
            "verdict": {"promoted": True, "reasons": ["retention kept 1.000"], "checks": [{"name": "r", "n": 1}]},
        },
        request("after", 20, "the euro", memory="off"),
    ]
    file = tmp_path / "transcript.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_agm_report_recomputes_everything_from_the_transcript(transcript: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report.main(["--from", str(transcript), "--out", str(out)])
    found = json.loads((out / "report.json").read_text())
    assert found["measures"] == measures(read_transcript(transcript))
    assert found["measures"]["requests_during_swap"] == 40
    assert found["goals_met"]["corrected"] is True
    assert found["goals_met"]["weights_paraphrase"] is None  # reported, without a goal


def test_the_page_is_one_safe_file(transcript: Path, tmp_path: Path) -> None:
    report.write(read_transcript(transcript), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<svg") == 5  # four plots, and one correction's way
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert report_page.INK not in page  # plots take the page's own text colour
    assert "color-scheme: light dark" in page


def test_an_empty_transcript_still_gives_a_page(tmp_path: Path) -> None:
    content = report.write([], tmp_path)
    assert content["goals_met"]["corrected"] is False
    assert "No cycle was judged" in (tmp_path / "report.html").read_text()


def test_goals() -> None:
    assert report.GOALS["failed_requests"].met(0)
    assert not report.GOALS["failed_requests"].met(1)
    assert not report.GOALS["correction_to_answer_p95_ms"].met(None)
    assert str(report.GOALS["corrected"]) == "≥ 0.99"
