from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from kstream.engines import calibrate, load_engine, machine
from kstream.engines.gate import Reference, relative_rms
from kstream.engines.torch_engine import TorchEngine
from kstream.errors import ModelError
from kstream.models.bundle import Bundle
from tests.engines.toys import toy


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibrations"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return toy(tmp_path / "toy")


def choose(monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float, has_bf16: bool = True) -> None:
    monkeypatch.setattr(calibrate, "time_engines", lambda engines, patch: {"fp32": fp32_s, "bf16": bf16_s})
    monkeypatch.setattr(machine, "has_fast_bf16", lambda device: has_bf16)


@pytest.mark.parametrize(
    ("fp32_s", "bf16_s", "has_bf16", "chosen"),
    [(1.0, 0.5, True, "bf16"), (1.0, 0.9, True, "fp32"), (1.0, 1.5, True, "fp32"), (1.0, 0.1, False, "fp32")],
)
def test_bf16_is_chosen_where_it_is_clearly_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float, has_bf16: bool, chosen: str
) -> None:
    choose(monkeypatch, fp32_s, bf16_s, has_bf16)
    assert load_engine(Bundle.load("breast-hybrid-small")).precision == chosen


def test_bf16_is_not_chosen_where_it_fails_the_gate(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choose(monkeypatch, 1.0, 0.1)
    empty = toy(tmp_path / "empty", bias=1e3)  # without foreground, labels in low precision cannot be proved
    assert load_engine(empty).precision == "fp32"
    with pytest.raises(ModelError, match="no foreground"):
        load_engine(empty, precision="bf16")


def test_what_was_found_out_is_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    choose(monkeypatch, 1.0, 0.9)
    first = load_engine(bundle)
    (notes,) = cache.iterdir()
    assert json.loads(notes.read_text())["fastest"] == first.precision == "fp32"
    monkeypatch.setattr(calibrate, "time_engines", None)
    monkeypatch.setattr(calibrate, "examine", None)
    assert load_engine(bundle).precision == "fp32"


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError("out of memory")])
def test_a_trial_that_broke_off_is_made_again_at_the_next_start(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(engines: object, patch: object) -> dict[str, float]:
        raise error

    shipped = Bundle.load("breast-hybrid-small")
    choose(monkeypatch, 1.0, 0.5)
    monkeypatch.setattr(calibrate, "time_engines", fails)
    assert load_engine(shipped).precision == "fp32"
    choose(monkeypatch, 1.0, 0.5)
    assert load_engine(shipped).precision == "bf16"


def test_two_starts_at_once_keep_what_both_found_out(cache: Path, bundle: Bundle) -> None:
    calibrate._write_notes(bundle, "cpu", {"seconds": {"fp32": 1.0}})
    calibrate._write_notes(bundle, "cpu", {"fastest": "fp32"})
    assert calibrate._read_notes(bundle, "cpu") == {"seconds": {"fp32": 1.0}, "fastest": "fp32"}
    with machine.locked(cache):
        thread = threading.Thread(target=calibrate._write_notes, args=(bundle, "cpu", {"fastest": "bf16"}))
        thread.start()
        thread.join(0.05)
        assert calibrate._read_notes(bundle, "cpu")["fastest"] == "fp32"
    thread.join(20)
    assert calibrate._read_notes(bundle, "cpu")["fastest"] == "bf16"


def test_the_default_engine_can_be_timed_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Bundle.load("breast-gate-small")
    choose(monkeypatch, 1.0, 0.9)
    assert load_engine(shipped).precision == "fp32"
    choose(monkeypatch, 1.0, 0.5)
    assert load_engine(shipped).precision == "fp32", "remembered"
    said = calibrate.calibrate_again(shipped, "cpu")
    assert (said["precision"], said["gate"], said["patch_s"]) == ("bf16", "passed", {"fp32": 1.0, "bf16": 0.5})
    assert load_engine(shipped).precision == "bf16"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fastest": "int4"}', '{"gate fp32": {}}', "\x00\xff"])
def test_notes_that_cannot_be_read_are_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, text: str
) -> None:
    choose(monkeypatch, 1.0, 0.9)
    load_engine(bundle)
    (notes,) = cache.iterdir()
    notes.write_text(text)
    assert load_engine(bundle).precision == "fp32"
    assert json.loads(notes.read_text())["gate fp32"]["findings"]


def test_a_cache_that_cannot_be_written_is_no_error_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSTREAM_CACHE", str(tmp_path / "file"))
    choose(monkeypatch, 1.0, 0.9)
    engine = load_engine(bundle)
    assert engine.precision == "fp32"
    engine.run(np.zeros((1, 2, 3, 8, 6), np.float32))
    load_engine(bundle)
    (told,) = [record for record in caplog.records if "calibrations are not kept" in record.message]
    assert str(tmp_path / "file") in told.message


def test_another_example_or_machine_is_calibrated_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    choose(monkeypatch, 1.0, 0.9)
    load_engine(bundle)
    monkeypatch.setattr(machine, "capability", lambda device: "another CPU")
    load_engine(bundle)
    assert len(list(cache.iterdir())) == 2


def test_this_machine_can_be_timed(bundle: Bundle) -> None:
    engines = {name: calibrate.make_torch(bundle, "cpu", name) for name in ("fp32", "bf16")}
    seconds = calibrate.time_engines(engines, np.zeros((1, 2, 4, 12, 10), np.float32))
    assert set(seconds) == set(engines)
    assert all(0 < s < 60 for s in seconds.values())


def test_the_machine_says_its_instruction_sets() -> None:
    said = machine.capability("cpu")
    assert said == machine.capability("cpu")
    assert len(said.split()) >= 2
    assert machine.has_fast_bf16("cpu") == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(said.split()))


FRAME = (1, 2, 5, 20, 14)
"""A patch of a size that is not the example's."""


def test_a_size_of_patch_is_held_to_the_gate_before_it_is_served_and_once_for_a_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    engine = load_engine(bundle, precision="fp32")
    batch = np.random.default_rng(0).standard_normal(FRAME, np.float32)
    engine.run(batch)
    assert engine.describe()["gate"].startswith("5x20x14 against float64: relative rms")
    (notes,) = cache.iterdir()
    noted = json.loads(notes.read_text())["gate fp32 at 5x20x14"]
    assert noted["findings"][0]["shape"] == [5, 20, 14]
    assert noted["seconds"] < 60
    monkeypatch.setattr(calibrate, "examine_one", None)
    engine.run(batch)
    again = load_engine(bundle, precision="fp32")
    again.run(batch)
    assert again.describe()["gate"] == engine.describe()["gate"]


class WrongBeyond(TorchEngine):
    """Right for the example, wrong for larger planes, as a library may be."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        logits = super().run(batch)
        return logits if batch.shape[-2] <= 12 or self.precision == "fp32" else logits * np.float32(1.1)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_size_that_does_not_pass_runs_in_float32_or_not_at_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    bundle = toy(tmp_path / "toy", "breast-magnitude", {"channels": [4, 6]}, bias=-0.3)
    monkeypatch.setattr(calibrate, "TorchEngine", WrongBeyond)
    choose(monkeypatch, 1.0, 0.5)
    engine = load_engine(bundle, precision=precision)
    assert engine.precision == "bf16"
    batch = np.random.default_rng(0).standard_normal(FRAME, np.float32)
    if precision == "bf16":
        for _ in range(2):
            with pytest.raises(ModelError, match=r"relative error 0\.\d+ with 1 patches of 5x20x14") as caught:
                engine.run(batch)
            assert caught.value.code == "gate"
        return
    np.testing.assert_allclose(engine.run(batch), TorchEngine(bundle.build(), {}).run(batch), atol=1e-5)
    told = engine.describe()
    assert told["precision"] == "fp32"
    assert told["fallback"] == "torch-cpu (bf16) does not pass the gate at 5x20x14"
    engine.run(bundle.example()[0])
    assert engine.describe()["precision"] == "bf16"
    assert "fallback" not in engine.describe()


def test_the_reference_of_a_size_stays_within_its_seconds(bundle: Bundle) -> None:
    reference = Reference(bundle)
    patch, exact, against = reference.one((5, 20, 14))
    assert (patch.shape, against) == (FRAME, "float64")
    _, single, said = reference.one((5, 20, 14), within_s=0.0)
    assert said == "float32"
    assert 0 < relative_rms(single, exact) < 1e-5


def test_networks_of_several_inputs_are_refused() -> None:
    from kstream.models.registry import ARCHITECTURES

    several = [name for name, entry in ARCHITECTURES.items() if len(entry.inputs) > 1]
    if not several:
        pytest.skip("no such network")
    bundle = Bundle.load("breast-hybrid-small")
    info = type(bundle.info)(**{**vars(bundle.info), "architecture": several[0]})
    with pytest.raises(ModelError, match="networks of one input"):
        calibrate.input_of(Bundle(bundle.folder, info))
