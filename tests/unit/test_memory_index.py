"""Partitions of vectors: exact, approximate, and from one to the other beside readers and writers."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.memory.approximate import ApproximatePartition, rounded
from pipeline.memory.index import Audience, ExactPartition, Partition, PartitionedIndex, Vectors, ranked

ALL: Audience = ("acme", "", "")
BEN: Audience = ("acme", "user", "ben")
DIMENSION = 64


def unit(count: int, seed: int = 0) -> Vectors:
    """Vectors in clusters, as sentences are."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(12, DIMENSION))
    vectors = centres[random.integers(0, 12, count)] + 0.5 * random.normal(size=(count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def numbered(start: int, end: int) -> np.ndarray:
    return np.arange(start, end, dtype=np.int64)


def brute(vectors: Vectors, rows: np.ndarray, query: Vectors, count: int) -> list[int]:
    return rows[np.argsort(-(rounded(vectors) @ query), kind="stable")[:count]].tolist()


def approximate(rows: np.ndarray, vectors: Vectors) -> ApproximatePartition:
    partition = ApproximatePartition.trained(vectors, len(rows))
    partition.add(rows, vectors)
    return partition


@pytest.fixture(params=["exact", "approximate"])
def partition(request: pytest.FixtureRequest) -> Partition:
    vectors = unit(600)
    if request.param == "approximate":
        return approximate(numbered(0, 600), vectors)
    exact = ExactPartition(DIMENSION)
    exact.add(numbered(0, 600), vectors)
    return exact


def test_a_partition_finds_what_it_holds(partition: Partition) -> None:
    assert len(partition) == 600
    found = ranked(partition, unit(600)[:50], 8)
    assert [rows[0] for rows, _ in found] == list(range(50))
    for _, cosines in found:
        assert cosines[0] == pytest.approx(1.0, abs=1e-3)
        assert sorted(cosines.tolist(), reverse=True) == cosines.tolist()


def test_a_removed_row_is_gone_and_its_number_may_come_again(partition: Partition) -> None:
    partition.remove(numbered(100, 300))
    assert len(partition) == 400
    assert sorted(partition.rows().tolist()) == [*range(100), *range(300, 600)]
    (rows, _), *_ = ranked(partition, unit(600)[150:151], 400)
    assert not set(rows.tolist()) & set(range(100, 300))
    other = unit(200, seed=5)
    partition.add(numbered(100, 300), other)
    np.testing.assert_array_equal(partition.vectors(numbered(100, 300)), rounded(other))
    (rows, _), *_ = ranked(partition, other[:1], 3)
    assert rows[0] == 100


def test_cosines_are_the_same_in_every_kind_of_partition() -> None:
    vectors = unit(600)
    exact = ExactPartition(DIMENSION)
    exact.add(numbered(0, 600), vectors)
    for query in unit(20, seed=3):
        (few, _), *_ = ranked(exact, query[None], 5)
        (rows, cosines), *_ = ranked(approximate(numbered(0, 600), vectors), query[None], 600)
        told = dict(zip(rows.tolist(), cosines.tolist(), strict=True))
        (all_rows, all_cosines), *_ = ranked(exact, query[None], 600)
        held = dict(zip(all_rows.tolist(), all_cosines.tolist(), strict=True))
        assert {row: held[row] for row in told} == told
        assert few.tolist() == brute(vectors, numbered(0, 600), query, 5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 39)), max_size=60))
@settings(deadline=None, max_examples=40)
def test_an_exact_partition_is_a_dictionary(changes: list[tuple[bool, int]]) -> None:
    vectors, held, partition = unit(40), set(), ExactPartition(DIMENSION)
    for add, row in changes:
        if add and row not in held:
            partition.add(numbered(row, row + 1), vectors[row : row + 1])
            held.add(row)
        elif not add and row in held:
            partition.remove(numbered(row, row + 1))
            held.remove(row)
    rows = np.array(sorted(held), dtype=np.int64)
    assert sorted(partition.rows().tolist()) == rows.tolist()
    (found, _), *_ = ranked(partition, unit(1, seed=7), 5)
    assert found.tolist() == brute(vectors[rows], rows, unit(1, seed=7)[0], 5)


def test_audiences_never_mix_and_empty_ones_leave_nothing() -> None:
    index = PartitionedIndex(DIMENSION)
    vectors = unit(30)
    index.add(ALL, numbered(0, 20), vectors[:20])
    index.add(BEN, numbered(20, 30), vectors[20:])
    (rows, _), *_ = index.search(ALL, vectors[25:26], 30)
    assert set(rows.tolist()) == set(range(20))
    assert index.search(("other", "", ""), vectors[:2], 3)[1][0].tolist() == []
    index.remove(BEN, numbered(20, 30))
    assert list(index.partitions) == [ALL]


def test_a_partition_that_outgrows_exact_search_becomes_approximate() -> None:
    index = PartitionedIndex(DIMENSION, exact_below=500)
    vectors = unit(3000)
    index.add(ALL, numbered(0, 500), vectors[:500])
    assert isinstance(index.partitions[ALL], ExactPartition)
    index.add(ALL, numbered(500, 600), vectors[500:600])
    index.wait()
    small = index.partitions[ALL]
    assert isinstance(small, ApproximatePartition)
    assert len(small) == 600
    index.add(ALL, numbered(600, 3000), vectors[600:])  # more than it was made for
    index.wait()
    assert index.partitions[ALL] is not small
    assert len(index) == 3000
    found = index.search(ALL, vectors[::50], 1)
    assert [rows[0] for rows, _ in found] == list(range(0, 3000, 50))


def test_what_changes_while_a_partition_is_rebuilt_is_in_the_new_one() -> None:
    index = PartitionedIndex(DIMENSION, exact_below=2000)
    vectors, other = unit(6000), unit(6000, seed=1)
    index.add(ALL, numbered(0, 2001), vectors[:2001])
    index.remove(ALL, numbered(0, 300))
    index.add(ALL, numbered(0, 100), other[:100])  # overwritten under the same row number
    index.add(ALL, numbered(2001, 6000), vectors[2001:])
    index.remove(ALL, numbered(5000, 5500))
    index.wait()
    partition = index.partitions[ALL]
    assert isinstance(partition, ApproximatePartition)
    expected = [*range(100), *range(300, 5000), *range(5500, 6000)]
    assert sorted(partition.rows().tolist()) == expected
    np.testing.assert_array_equal(partition.vectors(numbered(0, 100)), rounded(other[:100]))
    np.testing.assert_array_equal(partition.vectors(numbered(300, 400)), rounded(vectors[300:400]))


def test_what_comes_while_a_partition_is_rebuilt_does_not_leave_the_new_one_outgrown() -> None:
    index = PartitionedIndex(DIMENSION, exact_below=100)
    vectors = unit(4_000)
    for start in range(0, 4_000, 101):
        end = min(4_000, start + 101)
        index.add(ALL, numbered(start, end), vectors[start:end])
    index.wait()
    partition = index.partitions[ALL]
    assert isinstance(partition, ApproximatePartition)
    assert len(partition) == 4_000 <= partition.room


def test_readers_go_on_while_a_partition_is_rebuilt() -> None:
    index = PartitionedIndex(DIMENSION, exact_below=4000)
    vectors = unit(4001)
    index.add(ALL, numbered(0, 10), vectors[:10])
    wrong: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            wrong.extend(n for n in range(10) if index.search(ALL, vectors[n : n + 1], 1)[0][0][0] != n)

    reader = threading.Thread(target=read)
    reader.start()
    index.add(ALL, numbered(10, 4001), vectors[10:])
    index.wait()
    done.set()
    reader.join()
    assert wrong == []
    assert isinstance(index.partitions[ALL], ApproximatePartition)


def test_a_saved_index_finds_bit_for_bit_the_same(tmp_path: Path) -> None:
    index = PartitionedIndex(DIMENSION, exact_below=500)
    vectors = unit(900)
    index.add(ALL, numbered(0, 800), vectors[:800])
    index.add(BEN, numbered(800, 900), vectors[800:])
    index.wait()
    index.remove(ALL, numbered(5, 60))
    loaded = PartitionedIndex(DIMENSION, exact_below=500)
    loaded.load(tmp_path, index.save(tmp_path))
    for each in (index, loaded):
        each.add(ALL, numbered(5, 10), unit(5, seed=8))
        each.remove(BEN, numbered(800, 810))
    assert isinstance(loaded.partitions[ALL], ApproximatePartition)
    for audience in (ALL, BEN):
        for (rows, cosines), (again, the_same) in zip(
            index.search(audience, unit(40, seed=4), 32), loaded.search(audience, unit(40, seed=4), 32), strict=True
        ):
            assert rows.tolist() == again.tolist()
            assert cosines.tobytes() == the_same.tobytes()
