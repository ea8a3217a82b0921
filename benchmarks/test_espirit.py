"""Coil sensitivity maps by ESPIRiT, beside SigPy and, where it is installed, BART."""

from __future__ import annotations

from functools import partial

import pytest

from kstream.benchmarks.turns import Turns, installed


def test_espirit(turns: Turns) -> None:
    """Maps of a head phantom: the same as SigPy's, as near to the truth, in a fraction of the processor time."""
    if not installed("sigpy", "ducc0"):
        pytest.skip("sigpy and ducc0 are not installed: pip install 'kstream[test,peers]'")
    from kstream.benchmarks.recon_peers import compare_espirit

    matrix, n_coils, n_slices, calibration = turns.pick((320, 16, 4, 32), (32, 4, 1, 16))
    found = compare_espirit(matrix, n_coils, n_slices, calibration)
    peers = [peer for peer in ("sigpy", "bart") if f"{peer}_s" in found]
    turns(
        f"ESPIRiT maps, processor time per slice of {matrix} x {matrix}, {n_coils} coils",
        partial(float, found["ours_s"]),
        {peer: partial(float, found[f"{peer}_s"]) for peer in peers},
        rounds=1,
        warm=False,
        budgets={peer: {"sigpy": 50, "bart": 8}[peer] for peer in peers},
        found=found,
        readme=True,
    )
    if not turns.is_quick:
        for peer in peers:
            assert found[f"ours_from_{peer}"] < 1e-3
            assert found["ours_from_truth"] <= 1.01 * found[f"{peer}_from_truth"]
            assert found["residual"]["ours"] < 1.01 * found["residual"][peer]
