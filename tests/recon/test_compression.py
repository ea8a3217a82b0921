import numpy as np
import pytest

from kstream.recon.compression import CompressCoils, compression_matrix
from kstream.types import Complex, FrameEnd, Geometry, Notice, Readout

GEOMETRY = Geometry((5, 7, 3), (1.0, 1.0, 1.0))


def readouts(n: int, n_coils: int = 7, rank: int = 3) -> list[Readout]:
    """Readouts of coils that see only `rank` different things, and a little noise."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((n_coils, rank)) + 1j * rng.standard_normal((n_coils, rank))
    out = []
    for i in range(n):
        data = mix @ (rng.standard_normal((rank, 11)) + 1j * rng.standard_normal((rank, 11)))
        data += 1e-3 * rng.standard_normal((n_coils, 11))
        out.append(Readout(data.astype(np.complex64), np.zeros((11, 3), np.float32), 0, 0, 0, (i, 0), 0))
    return out


def energy(data: Complex) -> float:
    return float(np.linalg.norm(data))


def test_rows_are_orthonormal_and_keep_the_energy_that_there_is() -> None:
    data = [r.data for r in readouts(9)]
    matrix, kept = compression_matrix(data, 3)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(3), atol=1e-5)
    assert kept > 0.9999
    assert energy(matrix @ data[4]) == pytest.approx(energy(data[4]), rel=1e-4)
    assert compression_matrix(data, 2)[1] < 0.99


def test_first_readouts_are_held_then_all_have_the_same_virtual_coils() -> None:
    items = readouts(8)
    stage = CompressCoils(3, 5)
    counts = [len(stage.push(item)) for item in items[:4]]
    released = stage.push(items[4])
    assert counts == [0, 0, 0, 0]
    assert isinstance(released[0], Notice)
    assert "7 coils compressed to 3, 100.00 %" in released[0].text
    later = [made for item in items[5:] for made in stage.push(item)]
    assert [r.data.shape for r in [*released[1:], *later]] == [(3, 11)] * 8
    assert [r.key for r in [*released[1:], *later]] == [r.key for r in items]
    products = [items[0].data.conj().T @ items[7].data, released[1].data.conj().T @ later[2].data]
    np.testing.assert_allclose(products[1], products[0], atol=0.05)


def test_end_of_a_frame_or_of_the_scan_ends_the_holding() -> None:
    end = FrameEnd(0, 0, 2, 2, 0, GEOMETRY)
    stage = CompressCoils(3, 50)
    out = [made for item in [*readouts(2), end] for made in stage.push(item)]
    assert [type(item) for item in out] == [Notice, Readout, Readout, FrameEnd]
    stage = CompressCoils(3, 50)
    assert stage.push(readouts(1)[0]) == []
    assert [type(item) for item in stage.finish()] == [Notice, Readout]


def test_scans_with_no_more_coils_pass_untouched() -> None:
    stage, items = CompressCoils(7, 3), readouts(4)
    assert [stage.push(item)[0] is item for item in items] == [True] * 4
