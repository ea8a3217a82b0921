"""What is logged, and how: text or JSON lines with session and frame, without names of patients."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, MutableMapping
from contextvars import ContextVar
from typing import Any, Literal, TextIO

SESSION: ContextVar[str] = ContextVar("session", default="-")
"""Session that the current thread works for, for records of modules that know no sessions."""

REDACTED = "[redacted]"


class Redaction:
    """Words that no log line may hold while the scan of their patient is in the house."""

    def __init__(self) -> None:
        self._words: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, words: Iterable[str]) -> None:
        with self._lock:
            self._words.update(words)

    def remove(self, words: Iterable[str]) -> None:
        with self._lock:
            self._words.subtract(words)
            self._words = +self._words

    def clean(self, text: str) -> str:
        """Replace the words, and escape control characters; our own line breaks before an indent stay."""
        with self._lock:
            words = sorted(self._words, key=len, reverse=True)
        for word in words:  # short ones only where they stand alone: a weight of 70 kg is not in "170 readouts"
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)" if len(word) <= 3 else re.escape(word), REDACTED, text)
        return "\n  ".join(_escape(line) for line in text.split("\n  "))


def _escape(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


REDACTION = Redaction()


class SessionLog(logging.LoggerAdapter[logging.Logger]):
    """Names the session in every record; what a call says of itself (``extra``) is kept beside it."""

    def __init__(self, logger: logging.Logger, session: int | str) -> None:
        super().__init__(logger, {"session": session})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class CleanRecords(logging.Filter):
    """The last thing before a record is written."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = REDACTION.clean(record.getMessage()), ()
        for name, default in (("session", SESSION.get()), ("frame", "-"), ("code", "-")):
            if not hasattr(record, name):
                setattr(record, name, default)
        return True


def set_up(form: Literal["text", "json"], level: int, stream: TextIO | None = None) -> None:
    """Write the records of kstream to standard error.

    Parameters
    ----------
    form : ``text`` for people; ``json`` for machines, one object a line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(CleanRecords())
    handler.setFormatter(_json_formatter() if form == "json" else _text_formatter())
    root = logging.getLogger("kstream")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


def _text_formatter() -> logging.Formatter:
    return logging.Formatter("%(asctime)s %(levelname)-7s session %(session)s  %(message)s")


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    names = "%(asctime)s %(levelname)s %(name)s %(session)s %(frame)s %(code)s %(message)s"
    return JsonFormatter(names, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"})
