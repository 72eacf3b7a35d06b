from __future__ import annotations

import pytest
from sqlalchemy import Engine, select

from pipeline.feedback.database import write_transaction
from pipeline.feedback.keys import ROLES, Key, KeyRing
from pipeline.feedback.records import Role
from pipeline.feedback.tables import api_keys


def test_a_key_opens_what_it_was_made_for(engine: Engine) -> None:
    ring = KeyRing(engine)
    plain = ring.create("eva", "teach", tenant="acme")
    assert plain.startswith("agm_")
    assert len(plain) > 40
    assert ring.find(plain) == Key("eva", "teach", "acme")


@pytest.mark.parametrize("plain", ["", "agm_", "agm_wrong", "sha256:0", "\udcff"])
def test_any_other_key_opens_nothing(engine: Engine, plain: str) -> None:
    ring = KeyRing(engine)
    ring.create("eva", "teach")
    assert ring.find(plain) is None


def test_a_revoked_key_opens_nothing_and_others_stay(engine: Engine) -> None:
    ring = KeyRing(engine)
    first, second = ring.create("eva", "teach"), ring.create("eva", "ask")
    elsewhere, other = ring.create("eva", "teach", tenant="acme"), ring.create("ada", "teach")
    assert ring.revoke("eva") == 2
    assert [ring.find(key) for key in (first, second)] == [None, None]
    assert ring.find(elsewhere) == Key("eva", "teach", "acme")
    assert ring.find(other) == Key("ada", "teach")
    assert ring.revoke("eva") == 0


def test_only_the_digest_is_kept(engine: Engine) -> None:
    plain = KeyRing(engine).create("eva", "admin")
    with write_transaction(engine) as connection:
        row = connection.execute(select(api_keys)).mappings().one()
    assert row["key_hash"].startswith("sha256:")
    assert plain not in str(row)
    assert plain.removeprefix("agm_") not in str(row)


def test_a_stolen_digest_is_not_a_key(engine: Engine) -> None:
    ring = KeyRing(engine)
    ring.create("eva", "admin")
    with engine.connect() as connection:
        stolen = connection.execute(select(api_keys.c.key_hash)).scalar_one()
    assert ring.find(stolen) is None


@pytest.mark.parametrize(("role", "may"), [("ask", "ask"), ("teach", "ask teach"), ("admin", "ask teach admin")])
def test_roles_include_the_lesser_ones(role: Role, may: str) -> None:
    assert [other for other in ROLES if Key("n", role).may(other)] == may.split()


def test_an_unknown_role_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="ask, teach, admin"):
        KeyRing(engine).create("eva", "root")  # type: ignore[arg-type]
