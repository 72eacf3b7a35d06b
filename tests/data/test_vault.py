"""Encryption at rest: nothing to read without the key, rotation without a rewrite, a destroyed key for good."""

from __future__ import annotations

import stat
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update

from pipeline.feedback.database import open_database, write_transaction
from pipeline.feedback.events import EventLog
from pipeline.feedback.master_keys import FileKeyService, key_file
from pipeline.feedback.records import NewEvent
from pipeline.feedback.sealer import Sealer, read_events
from pipeline.feedback.tables import events, subject_keys
from pipeline.feedback.vault import KeyUnavailable, Vault

SECRET = "the colour of the door is mauve"


def say(log: EventLog, source: str, text: str = SECRET, tenant: str = "default") -> None:
    log.append([NewEvent(kind="answer", body={"answer": text, "lessons": []}, source=source, tenant=tenant)])


def service(log: EventLog) -> FileKeyService:
    assert isinstance(log.vault.service, FileKeyService)
    return log.vault.service


def fresh(log: EventLog) -> EventLog:
    """As another process sees the log: no key is remembered."""
    return EventLog(log.engine)


def test_no_word_is_on_disk_anywhere(log: EventLog, tmp_path: Path) -> None:
    say(log, "eva")
    Sealer(log, tmp_path / "feedback").drain()
    assert fresh(log).after(0)[0].body["answer"] == SECRET
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_each_source_has_one_key_of_its_own(log: EventLog) -> None:
    for source, tenant in (("eva", "default"), ("eva", "default"), ("bob", "default"), ("eva", "acme")):
        say(log, source, tenant=tenant)
    with log.engine.connect() as connection:
        bodies = connection.scalars(select(events.c.body).order_by(events.c.seq)).all()
        keys = connection.scalars(select(subject_keys.c.key_id)).all()
    used = [body.split(":")[1] for body in bodies]
    assert used[0] == used[1]
    assert len(set(used)) == 3
    assert set(used) == set(keys)
    assert len({body.split(":")[2] for body in bodies}) == 4  # the same words never look the same


def test_reading_without_the_master_key_fails(log: EventLog, tmp_path: Path) -> None:
    say(log, "eva")
    table = tmp_path / "feedback"
    Sealer(log, table).drain()
    service(log).path.rename(tmp_path / "elsewhere.json")
    for read in (lambda: fresh(log).after(0), lambda: read_events(table, fresh(log), 0, 9)):
        with pytest.raises(KeyUnavailable, match="AGM_MASTER_KEYS"):
            read()
    other = Vault(log.engine, FileKeyService(tmp_path / "other.json"))
    with pytest.raises(KeyUnavailable):
        EventLog(log.engine, vault=other).after(0)


def test_only_the_owner_may_read_the_master_keys(log: EventLog) -> None:
    say(log, "eva")
    assert stat.S_IMODE(service(log).path.stat().st_mode) == 0o600


def test_a_destroyed_key_shreds_every_copy_and_nobody_elses_words(log: EventLog, tmp_path: Path) -> None:
    say(log, "eva")
    say(log, "bob", "hello")
    table = tmp_path / "feedback"
    Sealer(log, table).drain()
    with write_transaction(log.engine) as connection:
        assert log.vault.destroy(connection, [("default", "eva")]) == 1
    for reader in (log, fresh(log)):
        with pytest.raises(KeyUnavailable, match="destroyed"):
            reader.after(0, through=1)
        with pytest.raises(KeyUnavailable, match="destroyed"):
            read_events(table, reader, 0, 1)
        assert reader.after(1)[0].body["answer"] == "hello"
    say(log, "eva", "I am back")  # under a new key
    assert fresh(log).after(2)[0].body["answer"] == "I am back"


def test_a_writer_that_remembers_a_destroyed_key_does_not_use_it(log: EventLog) -> None:
    say(log, "eva")
    with write_transaction(log.engine) as connection:
        fresh(log).vault.destroy(connection, [("default", "eva")])
    say(log, "eva", "still readable")
    assert fresh(log).after(1)[0].body["answer"] == "still readable"


def test_rotation_rewraps_keys_and_old_wrappings_open_no_more(log: EventLog, tmp_path: Path) -> None:
    say(log, "eva")
    with log.engine.connect() as connection:
        before = connection.execute(select(subject_keys)).mappings().one()
    assert log.rotate_master_key() == 1
    assert fresh(log).after(0)[0].body["answer"] == SECRET
    with log.engine.connect() as connection:
        after = connection.execute(select(subject_keys)).mappings().one()
    assert after["key_id"] == before["key_id"]
    assert after["wrapped"] != before["wrapped"]
    with write_transaction(log.engine) as connection:  # a backup of the database from before the rotation
        connection.execute(update(subject_keys).values(master_id=before["master_id"], wrapped=before["wrapped"]))
    with pytest.raises(KeyUnavailable, match=before["master_id"]):
        fresh(log).after(0)


def test_a_rotation_that_another_one_overtakes_and_that_fails_loses_no_key(log: EventLog) -> None:
    """The other's new master key is active already, and its rewrapping is rolled back: ours is still in use."""
    say(log, "eva")

    class Overtaken(FileKeyService):
        def forget_old(self, used: Collection[str] = ()) -> int:
            FileKeyService(self.path).rotate()
            return super().forget_old(used)

    vault = Vault(log.engine, Overtaken(service(log).path))
    assert EventLog(log.engine, vault=vault).rotate_master_key() == 1
    assert fresh(log).after(0)[0].body["answer"] == SECRET


def test_new_sources_and_fingerprints_at_the_same_time(log: EventLog) -> None:
    """The file is read anew for every new source, and whoever needs a fingerprint meanwhile finds it."""
    keys = service(log)
    with ThreadPoolExecutor(4) as pool:
        wrapped = [pool.submit(keys.wrap, b"k" * 32, b"name") for _ in range(200)]
        prints = {done.result() for done in [pool.submit(keys.fingerprint, "text") for _ in range(200)]}
    assert len(prints) == 1
    assert {keys.unwrap(*done.result(), b"name") for done in wrapped} == {b"k" * 32}


def test_a_body_cannot_be_moved_to_another_event(log: EventLog) -> None:
    say(log, "eva", "one")
    say(log, "eva", "two")
    with write_transaction(log.engine) as connection:
        first = connection.scalars(select(events.c.body).where(events.c.seq == 1)).one()
        connection.execute(update(events).where(events.c.seq == 2).values(body=first))
    with pytest.raises(KeyUnavailable, match="damaged"):
        fresh(log).after(1)


def test_rows_from_before_encryption_stay_readable(log: EventLog, engine: Engine) -> None:
    say(log, "eva")
    with write_transaction(engine) as connection:
        connection.execute(update(events).values(body='{"answer":"plain"}'))
    assert fresh(log).after(0)[0].body == {"answer": "plain"}


def test_the_file_lies_beside_the_database_or_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sqlite_url: str
) -> None:
    engine = open_database(sqlite_url)
    assert key_file(engine.url) == tmp_path / "master_keys.json"
    monkeypatch.setenv("AGM_MASTER_KEYS", str(tmp_path / "vault" / "k.json"))
    assert key_file(engine.url) == tmp_path / "vault" / "k.json"
    engine.dispose()
