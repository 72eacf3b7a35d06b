"""From token ids to text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """``push`` tokens; it gives the text that is safe to show. ``text`` is the answer, without blanks around it.

    Text that may turn out to be the beginning of a stop string, and blanks that may turn out to be the end, wait.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._raw = ""
        self._shown = 0
        self.stopped = False  # by a stop string

    def push(self, token: int) -> str:
        self._ids.append(token)
        self._raw += self._decoder.step(self._tokenizer.backend_tokenizer, token) or ""
        self._find_stop()
        return self._show(len(self._raw) if self.stopped else len(self._raw) - self._held())

    def finish(self) -> str:
        """The rest, once no token will follow; half a character at the end is shown as the tokenizer decodes it."""
        if not self.stopped:
            whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
            self._raw = whole if whole.startswith(self._raw) else self._raw
            self._find_stop()
        return self._show(len(self._raw))

    @property
    def text(self) -> str:
        return self._raw.strip()

    def _find_stop(self) -> None:
        places = [place for stop in self._stops if (place := self._raw.find(stop)) >= 0]
        if places:
            self._raw, self.stopped = self._raw[: min(places)], True

    def _held(self) -> int:
        """Characters at the end that may still become a stop string."""
        lengths = (n for stop in self._stops for n in range(1, len(stop)) if self._raw.endswith(stop[:n]))
        return max(lengths, default=0)

    def _show(self, end: int) -> str:
        begin = max(self._shown, len(self._raw) - len(self._raw.lstrip()))
        end = len(self._raw[:end].rstrip())
        if end <= begin:
            return ""
        self._shown = end
        return self._raw[begin:end]
