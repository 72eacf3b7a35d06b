"""The registry on a real MLflow database, a real event database and a real bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from jobs import promote
from pipeline.config import Recipe
from pipeline.evaluate.gate import Check, Verdict
from pipeline.evaluate.protocol import prompt_messages
from pipeline.feedback.database import open_database
from pipeline.feedback.events import EventLog
from pipeline.feedback.records import NewEvent
from pipeline.feedback.tables import promotions, verdicts
from pipeline.home import Home
from pipeline.model.answerer import Answerer
from pipeline.model.bundle import Bundle
from pipeline.tracking import promotions as record
from pipeline.tracking.client import client, fluent
from pipeline.tracking.logging import run
from pipeline.tracking.promotions import NothingToRollBackError, Promotion, PromotionConflictError
from pipeline.tracking.registry import MODEL_NAME, REFUSED_KEPT, Registry, UnknownVersionError, champion_version

PASSED = Verdict(promoted=True, reasons=("nothing was lost",), checks=())
CHECK = Check(name="retention", value=-0.5, low=-0.6, margin=0.02, n=40, passed=False)
REFUSED = Verdict(promoted=False, reasons=("retention: 20 of 40",), checks=(CHECK,))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database after its migrations, which take seconds: made once, copied by every test."""
    home = Home(tmp_path_factory.mktemp("migrated")).create()
    client(home).search_experiments()
    return home.root / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("AGM_MLFLOW_URI", "AGM_EVENTS_URL"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return Home(tmp_path)


@pytest.fixture
def engine(home: Home) -> Iterator[Engine]:
    opened = open_database(home.events_url)
    yield opened
    opened.dispose()


@pytest.fixture
def registry(home: Home, engine: Engine) -> Registry:
    made = Registry(home, engine)
    made.initialise()
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The registry does not look inside a bundle; one file will do."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "bundle.json").write_text("{}")
    return folder


def add(registry: Registry, bundle: Path, cycle: int = 0) -> int:
    return registry.register(bundle, cycle=cycle, metrics={"kept": 1.0}, params={"lr": 0.1}, tags={"by": "test"})


def aliases(registry: Registry) -> dict[str, int]:
    (model,) = client(registry.home).search_registered_models(f"name='{MODEL_NAME}'")
    return {alias: int(version) for alias, version in dict(model.aliases).items()}


def test_initialise_is_idempotent_and_empty(registry: Registry, engine: Engine) -> None:
    registry.initialise()
    assert registry.champion() is None
    assert champion_version(engine) is None
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert client(registry.home).get_experiment_by_name("agm").artifact_location == registry.home.artifacts.as_uri()


def test_a_registered_bundle_is_found_and_holds_no_pickle(registry: Registry, bundle: Path) -> None:
    version = add(registry, bundle, cycle=3)
    folder = registry.folder(version)
    assert (folder / "bundle.json").read_text() == "{}"
    assert folder.is_relative_to(registry.home.artifacts)
    assert not [path for path in registry.home.artifacts.rglob("*") if path.suffix in (".pkl", ".pickle")]
    found = client(registry.home).get_model_version(MODEL_NAME, str(version))
    assert found.tags == {"by": "test", "cycle": "3"}
    logged = client(registry.home).get_run(found.run_id)
    assert logged.data.metrics == {"kept": 1.0}
    assert logged.data.params == {"lr": "0.1"}
    assert aliases(registry) == {"challenger": version}


def test_the_folder_survives_a_lost_note(registry: Registry, bundle: Path) -> None:
    version = add(registry, bundle)
    before = registry.folder(version)
    shutil.rmtree(registry.home.artifacts / "versions")
    assert registry.folder(version) == before


def test_an_unknown_version_cannot_be_promoted(registry: Registry, engine: Engine, bundle: Path) -> None:
    add(registry, bundle)
    with pytest.raises(UnknownVersionError, match="version 7"):
        registry.promote(7, PASSED, 1)
    assert champion_version(engine) is None


def test_promote_moves_champion_and_previous(registry: Registry, engine: Engine, bundle: Path) -> None:
    first, second = add(registry, bundle), add(registry, bundle, cycle=1)
    registry.promote(first)
    promotion_id = registry.promote(second, PASSED, cycle=1)
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.promotion_id) == (second, promotion_id)
    assert champion.folder == registry.folder(second)
    assert champion_version(engine) == (promotion_id, second)
    assert aliases(registry) == {"champion": second, "previous": first}
    with engine.connect() as connection:
        rows = connection.execute(select(promotions.c.kind, promotions.c.previous).order_by(promotions.c.id)).all()
        stored = connection.scalars(select(verdicts.c.verdict).order_by(verdicts.c.id.desc())).first()
    assert [tuple(row) for row in rows] == [("initial", None), ("promote", first)]
    assert stored == PASSED.model_dump(mode="json")


def test_promoting_the_champion_again_adds_nothing(registry: Registry, bundle: Path) -> None:
    version = add(registry, bundle)
    assert registry.promote(version) == registry.promote(version)
    assert len(record.record(registry.engine)) == 1


def test_a_refusing_verdict_does_not_promote(registry: Registry, bundle: Path) -> None:
    version = add(registry, bundle)
    with pytest.raises(ValueError, match="gate refused"):
        registry.promote(version, REFUSED, 1)


def test_rollback_returns_step_by_step_and_leaves_lessons(registry: Registry, engine: Engine, bundle: Path) -> None:
    log = EventLog(engine)
    body = {"op": "correct", "lesson_id": "les_1", "question": "q", "answer": "a"}
    log.append([NewEvent("lesson", body, source="teacher", role="teach")])
    lessons = log.after(0)
    versions = [add(registry, bundle, cycle) for cycle in range(3)]
    for version in versions:
        registry.promote(version, PASSED)
    assert registry.rollback() == versions[1]
    assert aliases(registry) == {"champion": versions[1], "previous": versions[0]}
    assert registry.rollback() == versions[0]
    assert aliases(registry) == {"champion": versions[0]}
    with pytest.raises(NothingToRollBackError):
        registry.rollback()
    assert registry.folder(versions[2]).is_dir()
    assert log.after(0) == lessons


def test_what_no_gate_has_passed_is_promoted_by_hand_alone(
    registry: Registry, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGM_HOME", str(registry.home.root))
    first, registered, refused = (add(registry, bundle, cycle) for cycle in range(3))
    registry.promote(first, PASSED)
    registry.refuse(refused, REFUSED)
    for version, why in ((registered, "no gate has judged it"), (refused, "retention: 20 of 40"), (first, "already")):
        with pytest.raises(SystemExit):
            promote.main([str(version)])
        assert why in " ".join(capsys.readouterr().err.split())
    promote.main([str(registered), "--by-hand"])
    champion = registry.champion()
    assert champion is not None
    assert champion.version == registered
    assert registry.rollback() == first


def test_aliases_are_repaired_from_the_record(registry: Registry, bundle: Path) -> None:
    first, second, third = (add(registry, bundle, cycle) for cycle in range(3))
    registry.promote(first, PASSED)
    registry.promote(second, PASSED)
    right = {"champion": second, "previous": first, "challenger": third}
    tracking = client(registry.home)
    tracking.set_registered_model_alias(MODEL_NAME, "champion", str(third))
    tracking.delete_registered_model_alias(MODEL_NAME, "previous")
    Registry(registry.home, registry.engine).initialise()
    assert aliases(registry) == right
    assert registry.repair_aliases() == {}


def test_only_the_last_refused_challengers_keep_their_files(registry: Registry, bundle: Path) -> None:
    champion = add(registry, bundle)
    registry.refuse(champion, REFUSED, 0)
    registry.promote(champion)  # overruled by a person: what has served is never pruned
    tried = [add(registry, bundle, cycle) for cycle in range(1, REFUSED_KEPT + 3)]
    for version in tried:
        registry.refuse(version, REFUSED, cycle=version)
    assert registry.versions() == [champion, *tried[-REFUSED_KEPT:]]
    assert aliases(registry) == {"champion": champion, "challenger": tried[-1]}
    files = list(registry.home.artifacts.rglob("bundle.json"))
    assert len(files) == 1 + REFUSED_KEPT
    with pytest.raises(UnknownVersionError):
        registry.folder(tried[0])


def test_two_drivers_cannot_write_the_same_promotion(registry: Registry, engine: Engine) -> None:
    seen: list[Promotion] = []
    with engine.begin() as connection:
        record._append(connection, seen, 1, None, "initial", None, {})
    with pytest.raises(PromotionConflictError), engine.begin() as connection:
        record._append(connection, seen, 2, None, "initial", None, {})
    assert champion_version(engine) == (1, 1)


def test_verdict_and_promotion_commit_together(registry: Registry, engine: Engine) -> None:
    with engine.begin() as connection:
        full = "CREATE TRIGGER full BEFORE INSERT ON promotions BEGIN SELECT RAISE(FAIL, 'full'); END"
        connection.exec_driver_sql(full)
    with pytest.raises((SQLAlchemyError, PromotionConflictError)):
        record.commit_promotion(engine, 1, PASSED.model_dump(mode="json"), 1)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(verdicts)) == 0


def test_a_failing_run_is_marked_failed(registry: Registry) -> None:
    opened: list[str] = []

    def broken() -> None:
        with run(registry.home, "child", parent=opened[0]) as child:
            opened.append(child.id)
            child.metrics({"loss": 2.0}, step=1)
            raise KeyError

    with run(registry.home, "parent") as parent:
        opened.append(parent.id)
        with pytest.raises(KeyError):
            broken()
    tracking = client(registry.home)
    assert tracking.get_run(parent.id).info.status == "FINISHED"
    failed = tracking.get_run(opened[1])
    assert failed.info.status == "FAILED"
    assert failed.data.metrics == {"loss": 2.0}
    assert failed.data.tags["mlflow.parentRunId"] == opened[0]


def test_mlflow_loads_the_champion_and_asks_it(registry: Registry, tmp_path: Path) -> None:
    """The one test with the default model: ``models:/answerer@champion`` answers as the answerer itself does."""
    bundle = Bundle.initial(Recipe().with_changes({"model.dtype": "float32"}))
    bundle.save(tmp_path / "initial")
    registry.promote(add(registry, tmp_path / "initial"))
    questions = ["What is the capital of France?", "What is the currency of Japan?"]
    loaded = fluent(registry.home).pyfunc.load_model(f"models:/{MODEL_NAME}@champion")
    expected = Answerer.load(bundle).generate([prompt_messages(question) for question in questions])
    assert loaded.predict(questions) == [generation.text for generation in expected]
    assert Bundle.load(registry.folder(1)).digest() == bundle.digest()
