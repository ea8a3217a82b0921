"""A frame of 192 x 320 x 320 from its last readout to its labels, with the time of every stage: ``full_frame.py``."""

from __future__ import annotations

from functools import partial

from kstream.benchmarks.full_frame import run, table
from kstream.benchmarks.scans import Size
from kstream.benchmarks.turns import Turns


def test_whole_frame(turns: Turns) -> None:
    """One round: it takes a minute, and its parts are told in the JSON."""
    size = turns.pick(Size(), Size(matrix=16, n_slices=16, n_partitions=5, n_coils=4, n_spokes=13))
    found = run(size)
    print(table(found))
    by = {key: found["labels_by"][key] for key in ("model", "engine", "precision")}
    parts = {name: f"{found['parts_s'][name]:.2f} s" for name in ("CombineSpokes", "SubtractContrast", "Segment")}
    memory = {f"{who} peak": f"{found[f'{who}_peak_gib']:.1f} GiB" for who in ("server", "worker")}
    turns(
        f"last readout to first label byte, {size.n_slices} x {size.matrix} x {size.matrix}, {size.n_coils} coils, "
        f"{size.n_spokes} spokes a frame",
        partial(float, found["first_label_byte_s"]),
        rounds=1,
        warm=False,
        shown=by | parts | memory,
        readme=True,
        found={key: value for key, value in found.items() if key != "texts"},
    )
