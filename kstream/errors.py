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
in the terminal, in the server's log and in the TEXT message that the client receives. Its `code` is one word for
machines: the label under which a server counts it, and what a test asks for.
"""

from __future__ import annotations

from collections.abc import Sequence


class KstreamError(Exception):
    """What went wrong, with the place, the likely cause and a way on.

    Parameters
    ----------
    what : one line; names expected and got.
    where : the place: message number, counters, file, option.
    likely : the most likely cause.
    hint : what to try.
    code : one word for machines, where the word of the class says too little.
    """

    exit_code = 1
    code = "error"

    def __init__(self, what: str, *, where: str = "", likely: str = "", hint: str = "", code: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.likely, self.hint = what, where, likely, hint
        self.code = code or type(self).code

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
    code = "protocol"


class ScanError(KstreamError):
    """The scan contradicts its own header, or lacks what the pipeline needs."""

    exit_code = 4
    code = "scan"


class ShapeError(ScanError):
    """An array has another shape than its neighbours promise."""

    code = "shape"


class RecordingError(KstreamError):
    """A file cannot be read or written as a recording."""

    exit_code = 5
    code = "recording"


class ConfigError(KstreamError):
    """A setting, preset or option is unknown or out of range."""

    exit_code = 2
    code = "config"


class ModelError(KstreamError):
    """A model bundle or an engine is missing, damaged or of another kind."""

    exit_code = 6
    code = "model"


class PeerError(KstreamError):
    """The other end of the socket failed, refused or went away."""

    exit_code = 7
    code = "peer"


def did_you_mean(name: str, known: Sequence[str], otherwise: str = "") -> str:
    """A hint for a name that does not exist: the closest ones, or all if there are few and none is close.

    `otherwise` says where to look if there are too many to list.
    """
    import difflib  # only who is wrong pays for it

    close = difflib.get_close_matches(name[:80].lower(), known, n=2, cutoff=0.75)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"one of: {', '.join(known)}" if known and len(known) <= 20 else otherwise
