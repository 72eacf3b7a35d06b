"""The feedback table on S3-compatible storage: moto's server, which is a real HTTP server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.feedback.events import EventLog
from pipeline.feedback.records import NewEvent
from pipeline.feedback.sealer import Sealer, StorageAway, open_table, read_events, sealed_seq


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ThreadedMotoServer]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name = f"agm-{uuid4().hex}"  # every server of one process has the same buckets
    boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket=name)
    yield f"s3://{name}/feedback", server
    server.stop()


def fill(log: EventLog, count: int) -> None:
    log.append([NewEvent(kind="answer", body={"n": n}, source="eva") for n in range(count)])


def test_sealers_that_race_on_s3_write_every_row_once(log: EventLog, bucket: tuple[str, ThreadedMotoServer]) -> None:
    """Delta commits with a conditional put, so the store itself decides the race."""
    url, _ = bucket
    fill(log, 30)
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda _: Sealer(log, url, batch=10).drain(), range(2)))
    assert sum(written) == sealed_seq(url) == 30
    assert read_events(url, log, 0, 99) == log.after(0)
    table = open_table(url)
    assert table is not None
    assert sorted(table.to_pyarrow_table()["seq"].to_pylist()) == list(range(1, 31))


def test_storage_that_went_away_is_said_so_and_caught_up_with(
    log: EventLog, bucket: tuple[str, ThreadedMotoServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = bucket
    fill(log, 2)
    Sealer(log, url).drain()
    fill(log, 3)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
        away.setenv("AWS_MAX_RETRIES", "0")
        with pytest.raises(StorageAway, match="keeps what is not sealed"):
            Sealer(log, url).drain()
    assert (Sealer(log, url).drain(), sealed_seq(url)) == (3, 5)
