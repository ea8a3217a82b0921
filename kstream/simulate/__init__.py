"""Takes a protocol and a seed, gives a simulated exam: header, acquisitions and the truth.

One folder for each organ, each with an ``exam`` (the whole), a ``protocol`` (what is scanned and how) and a ``scanner``
(how it is sampled): `breast`, `brain`, `heart`. What they share lies here: `coils`, `encoding`, `fields`, `phase_map`,
`raster`, `tissue`.
"""

from .breast.anatomy import BreastPhantom
from .breast.exam import BreastExam, save_exam, simulate_breast_exam
from .breast.protocol import BreastProtocol

__all__ = ["BreastExam", "BreastPhantom", "BreastProtocol", "save_exam", "simulate_breast_exam"]
