"""Takes a protocol and a seed, gives a simulated breast DCE exam: header, acquisitions and the truth.

Read in this order: `exam` (the whole), `protocol` (what is scanned and how), `breast`, `lesions`, `raster`, `tissue`,
`fields` (what lies in the scanner), `kinetics` (how it enhances), `coils`, `encoding`, `scanner` (how it is sampled),
`acquisitions` (what is written).
"""

from .breast import BreastPhantom
from .exam import BreastExam, save_exam, simulate_breast_exam
from .protocol import BreastProtocol

__all__ = ["BreastExam", "BreastPhantom", "BreastProtocol", "save_exam", "simulate_breast_exam"]
