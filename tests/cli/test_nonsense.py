"""What import and simulate refuse, and that nothing is written then."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kstream.cli import app
from kstream.mrd.recording import Recording, write_recording
from tests.scans import StackOfStars

TINY = ("--matrix", "16", "--slices", "3", "--spokes", "5", "--coils", "2", "--quiet")


def kstream(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def said(done: Result) -> str:
    return f"{done.output} {done.exception}"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--delay-samples", "nan"), "delay"),
        (("--delay-samples", "1e30"), "delay"),
        (("--delay-samples", "inf"), "delay"),
        (("--matrix", "0"), "matrix"),
        (("--matrix", "100000"), "matrix"),
        (("--slices", "0"), "slices"),
        (("--coils", "-1"), "coils"),
        (("--partitions", "9"), "--partitions 3"),
        (("--snr", "nan"), "snr"),
        (("--frame-starts", ""), "--frame-starts"),
        (("--frame-starts", "0,nan"), "--frame-starts"),
        (("--frame-starts", "-1,3"), "--frame-starts"),
        (("--frame-starts", "0,0.001"), "a frame lasts"),
    ],
)
def test_simulate_refuses_nonsense(options: tuple[str, str], word: str, tmp_path: Path) -> None:
    done = kstream("simulate", str(tmp_path / "scan.h5"), *TINY, *options)
    assert done.exit_code != 0
    assert word in said(done) + getattr(done.exception, "hint", "")
    assert list(tmp_path.iterdir()) == []


def test_frames_begin_when_they_are_told_to(tmp_path: Path) -> None:
    done = kstream("simulate", str(tmp_path / "scan.h5"), *TINY, "--frame-starts", "0, 0.5", "--lesions", "1", "--json")
    made = json.loads(done.stdout)
    assert made["truth"]["protocol"]["frame_starts_s"] == [0.0, 0.5]
    with Recording(tmp_path / "scan.h5") as source:
        stamps = [int(a.header["acquisition_time_stamp"]) for a in source.acquisitions()]
        first = [a.header["idx"]["kspace_encode_step_1"] for a in source.acquisitions()].index(5)
        assert source.n_acquisitions == made["acquisitions"]
    assert stamps[first] - stamps[32] == 200  # ticks of 2.5 ms; 32 readouts of noise come first


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--fov-scale", "-1"), "fov-scale"),
        (("--fov-scale", "nan"), "fov-scale"),
        (("--fov-scale", "0"), "fov-scale"),
        (("--fov-scale", "1e30"), "fov-scale"),
        (("--trajectory-units", "cycle_per_fov"), "did you mean cycles_per_fov"),
        (("--trajectory", "radail"), "did you mean radial"),
    ],
)
def test_mending_refuses_nonsense(options: tuple[str, str], word: str, tmp_path: Path) -> None:
    stars = StackOfStars()
    write_recording(tmp_path / "in.h5", stars.scan().xml, stars.acquisitions(np.random.default_rng(0)))
    done = kstream("import", str(tmp_path / "in.h5"), str(tmp_path / "out.h5"), *options)
    assert done.exit_code != 0
    assert word in said(done)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("shape", "options", "word"),
    [
        ((0, 4, 2), ("--axes", "samples,lines,coils"), "0 samples"),
        ((8, 4, 2), ("--axes", "samples,lines,coils"), "every line is zero"),
        ((8, 4, 2), (), "--axes"),
        ((8, 4, 2), ("--axes", "samples,lines"), "do not fit"),
        ((8, 4, 2), ("--axes", "samples,lines,coils", "--oversampling", "0"), "oversampling"),
        ((8, 4, 2), ("--axes", "samples,lines,coils", "--fov-mm", "nan"), "field of view"),
        ((8, 4, 2), ("--axes", "samples,lines,coils", "--angles", "goldne"), "did you mean golden"),
    ],
)
def test_importing_an_array_refuses_nonsense(
    shape: tuple[int, ...], options: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    done = kstream("import", str(tmp_path / "a.npy"), str(tmp_path / "out.h5"), *options)
    assert done.exit_code != 0
    assert word in said(done)
    assert not (tmp_path / "out.h5").exists()


def test_import_tells_machines_what_it_wrote(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((8, 5, 2)))
    done = kstream(
        "import", str(tmp_path / "a.npy"), str(tmp_path / "out.h5"), "--axes", "samples,lines,coils", "--json"
    )
    told = json.loads(done.stdout)
    assert (told["acquisitions"], told["coils"], told["recon_matrix"]) == (5, 2, [8, 5, 1])


def test_inspect_and_models_tell_machines_what_they_tell_people(tmp_path: Path) -> None:
    stars = StackOfStars()
    write_recording(tmp_path / "scan.h5", stars.scan().xml, stars.acquisitions(np.random.default_rng(0), noise=2))
    told = json.loads(kstream("inspect", str(tmp_path / "scan.h5"), "--json").stdout)
    assert told["acquisitions"] == 158
    assert told["flags"]["IS_NOISE_MEASUREMENT"] == 2
    assert sum(row["n"] for row in told["readouts"]) == 158
    done = kstream("models", "show", "brest-hybrid")
    assert getattr(done.exception, "hint", "").startswith("did you mean breast-hybrid")
    assert getattr(done.exception, "exit_code", 0) == 6
