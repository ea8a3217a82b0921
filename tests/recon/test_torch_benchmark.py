"""What a GPU would be measured with runs on the processor, and finds that both ways give the same."""

import pytest

pytest.importorskip("sigpy")
pytest.importorskip("ducc0")


def test_torch_path_is_measured_and_right() -> None:
    from kstream.benchmarks.recon_gpu import SMOKE, adjoint, espirit

    found = adjoint(SMOKE, "cpu")
    assert found["difference_from_compiled"] < 1e-5
    assert 0 < found["fraction_of_bandwidth"] < 2
    assert espirit(SMOKE, "cpu")["disagreement"] < 1e-6
