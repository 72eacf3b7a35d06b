"""Text as token ids: a tokenizer trained on it, and blocks of one length, written to Parquet once.

A block has ``context`` + 1 ids, and the last id of one is the first of the next, so that every token but the very
first is predicted exactly once an epoch. Documents end with the tokenizer's end token and run on into each other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.text import TextError, documents, text_files
from pipeline.model.assets import file_digest

TOKENIZER_FOLDER, BLOCKS_FILE, ABOUT_FILE = "tokenizer", "blocks.parquet", "about.json"
ENCODED = 256  # documents that are encoded at a time
GROUP = 256  # blocks that are read at a time: a shuffled epoch asks for one here and one there
CACHED_GROUPS = 64
HELD_OUT = 32  # one block in so many, the last ones, is never trained

Thing = TypeVar("Thing")
Tell = Callable[[int], None]  # tokens so far


class Blocks:
    """Blocks of token ids in a Parquet file, read where they are asked for."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    @property
    def trained(self) -> range:
        """Rows to train on."""
        return range(len(self) - len(self.held_out))

    @property
    def held_out(self) -> range:
        """Rows that show how well text of the same kind is predicted: at least one, and never trained."""
        return range(len(self) - max(1, len(self) // HELD_OUT), len(self))

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        """(rows, context + 1) int64."""
        return np.stack([self._group(number // GROUP)[number % GROUP] for number in numbers])

    def _group(self, number: int) -> np.ndarray:
        cache = self._cache
        if number not in cache:
            column = self._file.read_row_group(number).column("ids").combine_chunks()
            width = column.type.list_size
            cache[number] = column.flatten().to_numpy().reshape(-1, width).astype(np.int64)
            if len(cache) > CACHED_GROUPS:
                cache.popitem(last=False)
        cache.move_to_end(number)
        return cache[number]


def tokenised(
    paths: Sequence[Path],
    into: Path,
    *,
    context: int,
    vocabulary: int,
    column: str = "text",
    tokenizer: Any = None,
    tell: Tell | None = None,
) -> Path:
    """The folder below ``into`` with the text of ``paths`` as blocks, and with its tokenizer; made on the first call.

    Without ``tokenizer`` one of ``vocabulary`` tokens is trained on the text.
    """
    from pipeline.model.scratch import trained_tokenizer

    files = text_files(paths)
    about = {
        "files": {str(file): file_digest(file) for file in files},
        "column": column,
        "context": context,
        "tokenizer": vocabulary if tokenizer is None else hashlib.sha256(_serialised(tokenizer)).hexdigest(),
    }
    folder = into / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    if folder.exists():
        return folder
    into.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=folder.name, dir=into))
    found = trained_tokenizer(documents(files, column), vocabulary) if tokenizer is None else tokenizer
    found.save_pretrained(partial / TOKENIZER_FOLDER)
    count = _write(_blocks(_encoded(documents(files, column), found, tell), context), context, partial / BLOCKS_FILE)
    if count < 2:
        shutil.rmtree(partial)
        raise TextError(f"the text is too short: {count} blocks of {context} tokens; give more, or lower the context")
    (partial / ABOUT_FILE).write_text(json.dumps({**about, "blocks": count}, indent=2), encoding="utf-8")
    partial.rename(folder)  # visible whole or not at all
    return folder


def _parts(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    left = iter(things)
    while part := list(islice(left, size)):
        yield part


def _serialised(tokenizer: Any) -> bytes:
    text: str = tokenizer.backend_tokenizer.to_str()
    return text.encode()


def _encoded(texts: Iterable[str], tokenizer: Any, tell: Tell | None) -> Iterator[np.ndarray]:
    """The ids of each document, its end token included."""
    done = 0
    for part in _parts(texts, ENCODED):
        for ids in tokenizer(list(part), add_special_tokens=False, verbose=False)["input_ids"]:
            yield np.array([*ids, tokenizer.eos_token_id], dtype=np.int32)
            done += len(ids) + 1
        if tell:
            tell(done)


def _blocks(ids: Iterable[np.ndarray], context: int) -> Iterator[np.ndarray]:
    """Whole blocks; what is left at the end of the text is dropped."""
    kept = np.empty(0, dtype=np.int32)
    for part in ids:
        kept = np.concatenate([kept, part])
        whole = (len(kept) - 1) // context
        yield from (kept[n * context : (n + 1) * context + 1] for n in range(whole))
        kept = kept[max(whole, 0) * context :]


def _write(blocks: Iterable[np.ndarray], context: int, path: Path) -> int:
    kind = pa.list_(pa.int32(), context + 1)
    count = 0
    with pq.ParquetWriter(path, pa.schema([("ids", kind)]), compression="none", use_dictionary=False) as writer:
        for group in _parts(blocks, GROUP):
            column = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(group)), context + 1)
            writer.write_table(pa.table({"ids": column}), row_group_size=GROUP)
            count += len(group)
    return count
