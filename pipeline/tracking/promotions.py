"""Who serves: the ``promotions`` table is the one record that commits; aliases elsewhere are copies of it.

The rows are a history of pushes and pops: ``initial`` and ``promote`` put a version on top, ``rollback`` takes the top
away. What lies beneath the champion is what a rollback returns to, so two rollbacks go two steps back instead of
returning to the model that was just rejected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import IntegrityError

from pipeline.feedback.database import write_transaction
from pipeline.feedback.records import utc_now
from pipeline.feedback.tables import promotions, verdicts


class NothingToRollBackError(RuntimeError):
    """The champion has no predecessor."""


class PromotionConflictError(RuntimeError):
    """Another driver promoted or rolled back at the same moment; look again and decide again."""


@dataclass(frozen=True)
class Promotion:
    """One row of the record."""

    id: int
    version: int
    previous: int | None
    kind: str


def champion_version(engine: Engine) -> tuple[int, int] | None:
    """(promotion id, version) of the champion, or ``None``: one indexed row, cheap enough to poll."""
    newest = select(promotions.c.id, promotions.c.version).order_by(promotions.c.id.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(newest).first()
    return None if row is None else (int(row.id), int(row.version))


def record(engine: Engine) -> list[Promotion]:
    with engine.connect() as connection:
        return _record(connection)


def line(rows: Iterable[Promotion]) -> list[int]:
    """The champion's line of descent, oldest first: the last is the champion, the one before it ``previous``."""
    stack: list[int] = []
    for row in rows:
        if row.kind == "rollback":
            stack.pop()
        else:
            stack.append(row.version)
    return stack


def commit_promotion(engine: Engine, version: int, verdict: dict[str, Any], cycle: int | None) -> Promotion:
    """Make ``version`` champion, verdict and promotion in one transaction; nothing to do when it already is."""
    with write_transaction(engine) as connection:
        rows = _record(connection)
        stack = line(rows)
        if stack and stack[-1] == version:
            return rows[-1]
        _insert_verdict(connection, version, verdict, cycle)
        previous = stack[-1] if stack else None
        return _append(connection, rows, version, previous, "promote" if stack else "initial", cycle, verdict)


def commit_rollback(engine: Engine) -> Promotion:
    """Take the champion off the top; the lessons are in another table and stay as they are."""
    with write_transaction(engine) as connection:
        rows = _record(connection)
        stack = line(rows)
        if len(stack) < 2:
            raise NothingToRollBackError("no earlier champion to return to")
        previous = stack[-3] if len(stack) > 2 else None
        verdict = {"promoted": True, "reasons": [f"rolled back from version {stack[-1]}"], "checks": []}
        return _append(connection, rows, stack[-2], previous, "rollback", None, verdict)


def commit_refusal(engine: Engine, version: int, verdict: dict[str, Any], cycle: int | None) -> None:
    with write_transaction(engine) as connection:
        _insert_verdict(connection, version, verdict, cycle)


def versions_by_cycle(engine: Engine) -> dict[int, int]:
    """The version that each cycle made, promoted or refused."""
    with engine.connect() as connection:
        rows = connection.execute(select(verdicts.c.cycle, verdicts.c.version).order_by(verdicts.c.id)).all()
    return {row.cycle: row.version for row in rows if row.cycle is not None}


def verdict_on(engine: Engine, version: int) -> dict[str, Any] | None:
    """The gate's last verdict on a version."""
    query = select(verdicts.c.verdict).where(verdicts.c.version == version).order_by(verdicts.c.id.desc()).limit(1)
    with engine.connect() as connection:
        found: dict[str, Any] | None = connection.scalar(query)
    return found


def versions(engine: Engine) -> list[int]:
    """Every version that was ever decided about, oldest first; its files may be gone."""
    with engine.connect() as connection:
        found = {*connection.scalars(select(promotions.c.version)), *connection.scalars(select(verdicts.c.version))}
    return sorted(found)


def refused(engine: Engine) -> list[int]:
    """Versions that were refused and never served, most recently refused first."""
    promoted = select(promotions.c.version)
    query = (
        select(verdicts.c.version)
        .where(verdicts.c.promoted.is_(False), verdicts.c.version.not_in(promoted))
        .order_by(verdicts.c.id.desc())
    )
    with engine.connect() as connection:
        return list(dict.fromkeys(int(version) for version in connection.scalars(query)))


def _record(connection: Connection) -> list[Promotion]:
    columns = (promotions.c.id, promotions.c.version, promotions.c.previous, promotions.c.kind)
    return [Promotion(*row) for row in connection.execute(select(*columns).order_by(promotions.c.id))]


def _insert_verdict(connection: Connection, version: int, verdict: dict[str, Any], cycle: int | None) -> None:
    row = {"version": version, "cycle": cycle, "promoted": verdict["promoted"], "verdict": verdict, "time": utc_now()}
    connection.execute(insert(verdicts).values(row))


def _append(
    connection: Connection,
    rows: list[Promotion],
    version: int,
    previous: int | None,
    kind: str,
    cycle: int | None,
    verdict: dict[str, Any],
) -> Promotion:
    """The next row. Its primary key is the lock: two drivers that saw the same record cannot both write it."""
    promotion = Promotion(rows[-1].id + 1 if rows else 1, version, previous, kind)
    row = {**vars(promotion), "cycle": cycle, "verdict": verdict, "time": utc_now()}
    try:
        connection.execute(insert(promotions).values(row))
    except IntegrityError:
        taken = f"promotion {promotion.id} was taken while version {version} was decided"
        raise PromotionConflictError(taken) from None
    return promotion
