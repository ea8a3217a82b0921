"""Every error that kstream raises on purpose, in one tree.

::

    KstreamError
    ├── ProtocolError     the byte stream or the order of messages is not MRD
    ├── ScanError         the scan contradicts its own header, or lacks what the pipeline needs
    │   └── ShapeError    an array has another shape than its neighbours promise
    ├── RecordingError    a file cannot be read or written as a recording
    ├── ConfigError       a setting, preset or option is unknown or out of range
    ├── ModelError        a model bundle or an engine is missing, damaged or of another kind
    └── PeerError         the other end of the socket failed, refused or went away

An error says what is wrong, where, what is likely and what to try; `str(error)` is the form that users see
in the terminal, in the server's log and in the TEXT message that the client receives.
"""

from __future__ import annotations


class KstreamError(Exception):
    """What went wrong, with the place, the likely cause and a way on.

    Parameters
    ----------
    what : one line; names expected and got.
    where : the place: message number, counters, file, option.
    likely : the most likely cause.
    hint : what to try.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", likely: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.likely, self.hint = what, where, likely, hint

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        lines += [
            f"  {label:<8} {text}"
            for label, text in (("where", self.where), ("likely", self.likely), ("try", self.hint))
            if text
        ]
        return "\n".join(lines)

    def at(self, where: str) -> KstreamError:
        """Add the place to an error that was raised where the place was not known."""
        self.where = f"{where}, {self.where}" if self.where else where
        return self


class ProtocolError(KstreamError):
    """The byte stream or the order of messages is not MRD."""

    exit_code = 3


class ScanError(KstreamError):
    """The scan contradicts its own header, or lacks what the pipeline needs."""

    exit_code = 4


class ShapeError(ScanError):
    """An array has another shape than its neighbours promise."""


class RecordingError(KstreamError):
    """A file cannot be read or written as a recording."""

    exit_code = 5


class ConfigError(KstreamError):
    """A setting, preset or option is unknown or out of range."""

    exit_code = 2


class ModelError(KstreamError):
    """A model bundle or an engine is missing, damaged or of another kind."""

    exit_code = 6


class PeerError(KstreamError):
    """The other end of the socket failed, refused or went away."""

    exit_code = 7
