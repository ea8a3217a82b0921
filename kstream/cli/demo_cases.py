"""What `kstream demo` scans: one simulated person of each case, as the case's model was trained."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..config import resolve
from ..errors import ConfigError, ModelError
from ..models.bundle import Bundle
from ..segment.cine import CINE_KINDS
from ..simulate.brain.protocol import BrainProtocol
from ..simulate.heart.protocol import CineProtocol
from .simulate import Case

Given = Mapping[str, Any]

UNSEEN_SEED = 9007
"""Beyond the seeds of the experiments in ``training/experiments``."""


@dataclass(frozen=True)
class Scene:
    """One demo.

    Parameters
    ----------
    what, title : for the spinner, and for the report.
    preset, speed : of the replay.
    server_options : for `kstream serve`.
    simulate : writes the recording, and its truth beside it.
    waits : the replay begins when the model is loaded, so that latencies are those of a server that runs already.
    """

    what: str
    title: str
    preset: str
    speed: float
    server_options: tuple[str, ...]
    simulate: Callable[[Path], None]
    waits: bool


def breast(given: Given, model: str) -> Scene:
    """Breast DCE, golden-angle stack of stars."""
    options = _options("breast", given, preset="breast-dce", seed=7, matrix=128, spokes=55)

    def simulate(recording: Path) -> None:
        from ..simulate.breast.exam import save_exam, simulate_breast_exam
        from ..simulate.breast.protocol import BreastProtocol

        protocol = BreastProtocol(matrix=options["matrix"], n_spokes=options["spokes"], n_lesions=2)
        save_exam(simulate_breast_exam(protocol, options["seed"]), recording)

    title = f"Simulated breast DCE scan, seed {options['seed']}"
    own = _server_options("segment.model", model, options["preset"])
    return Scene("one breast DCE scan", title, options["preset"], 12.0, own, simulate, waits=False)


def heart(given: Given, model: str) -> Scene:
    """Cardiac cine of one coil, its lines drawn as those of the model's training.

    Raises
    ------
    ModelError : there is no such bundle.
    ConfigError : an option that a heart does not have, or a bundle that takes no cine scans.
    """
    known = {"preset": _cine_preset(model), **given}
    options = _options("heart", known, preset="", seed=UNSEEN_SEED, matrix=0, acceleration=0.0)
    bundle = _bundle(options["preset"], model, "heart")
    if bundle.info.architecture not in CINE_KINDS:
        raise _wrong_kind(bundle, "cine scans", "heart")
    fields = cine_fields(bundle)
    protocol = CineProtocol(**fields | {name: options[name] for name in ("matrix", "acceleration") if options[name]})

    def simulate(recording: Path) -> None:
        from ..simulate.heart.exam import save_cine_exam, simulate_cine_exam

        save_cine_exam(simulate_cine_exam(protocol, options["seed"]), recording)

    title = f"Simulated heart, cine, {protocol.acceleration:g}x undersampled, {_person(bundle, options['seed'])}"
    own = _server_options("cine.model", model, options["preset"])
    return Scene("one heart", title, options["preset"], 4.0, own, simulate, waits=True)


def brain(given: Given, model: str) -> Scene:
    """Spin echo of the head, slice after slice, its lines and noise drawn as those of the model's training.

    Raises
    ------
    ModelError : there is no such bundle.
    ConfigError : an option that a head does not have, or a bundle that takes no spin echoes.
    """
    options = _options("brain", given, preset="brain-seranet", seed=UNSEEN_SEED)
    bundle = _bundle(options["preset"], model, "brain")
    if not bundle.info.architecture.startswith("brain-"):
        raise _wrong_kind(bundle, "scans of the head", "brain")
    protocol = BrainProtocol(**head_fields(bundle))
    one_by_one = replace(protocol, concatenations=protocol.n_slices)

    def simulate(recording: Path) -> None:
        from ..simulate.brain.exam import save_brain_exam, simulate_brain_exam

        save_brain_exam(simulate_brain_exam(one_by_one, options["seed"]), recording)

    title = f"Simulated head, spin echo, {_person(bundle, options['seed'])}"
    own = _server_options("segment.model", model, options["preset"])
    return Scene("one head", title, options["preset"], 150.0, own, simulate, waits=True)


SCENES: Mapping[Case, Callable[[Given, str], Scene]] = MappingProxyType(
    {Case.breast: breast, Case.brain: brain, Case.heart: heart}
)


def _cine_preset(model: str) -> str:
    """The preset for a bundle that was named: k-MTR's, which tells phenotypes, unless it is a DiSK."""
    try:
        architecture = Bundle.load(model).info.architecture if model else ""
    except ModelError:  # told when the scene is made
        architecture = ""
    return "cine-disk" if CINE_KINDS.get(architecture) == "points" else "cine-kmtr"


def cine_fields(bundle: Bundle) -> dict[str, Any]:
    """Fields of `CineProtocol` as the bundle was trained: sizes, first acceleration, density, one coil.

    Noise is the simulator's own. A bundle that does not say how it was trained is scanned at the sizes that its network
    was built for, where it was built for some.
    """
    data = _experiment(bundle).get("data") or {}
    arguments = bundle.info.arguments
    fields: dict[str, Any] = {}
    if "n_slices" in arguments:
        n_long = int(arguments["n_long_axis"])
        sizes = {"n_long_axis": n_long, "n_short_axis": int(arguments["n_slices"]) - n_long}
        fields |= {"matrix": int(arguments["plane"][0]), "n_frames": int(arguments["n_frames"]), **sizes}
    fields |= data.get("protocol") or {}
    if accelerations := data.get("accelerations"):
        fields["acceleration"] = float(accelerations[0])
    density = str(data.get("density", "vista"))
    fields["density"] = "normal" if density == "disk" else density  # that draws as a scanner can: equally many a frame
    return fields | {"n_coils": 1}


def head_fields(bundle: Bundle) -> dict[str, Any]:
    """Fields of `BrainProtocol` as the bundle was trained: stack, lines, first level of noise; else the paper's."""
    data = _experiment(bundle).get("data") or {}
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in (data.get("protocol") or {}).items()}
    fields |= {name: data[name] for name in ("fraction", "n_centre") if name in data}
    if noise := data.get("noise"):
        fields["noise"] = float(noise[0])
    return fields


def _experiment(bundle: Bundle) -> dict[str, Any]:
    """The experiment that a bundle was trained by: in its description, or the file beside it; empty if unknown."""
    told = bundle.info.training.get("experiment")
    if isinstance(told, Mapping):
        return dict(told)
    path = bundle.folder / Path(str(told)).name if told else bundle.folder / "experiment.toml"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # a bundle without one runs as well
        return {}


def _person(bundle: Bundle, seed: int) -> str:
    """Who is scanned, with a remark on a person that the model was trained or chosen on."""
    for name in ("train", "validation"):
        seeds = (_experiment(bundle).get("cohorts") or {}).get(name, {}).get("seeds", ())
        if seed in _numbers(seeds):
            return f"seed {seed} (this person is in the model's own {name} cohort)"
    return f"seed {seed}"


def _numbers(seeds: Any) -> set[int]:
    """Seeds as numbers, or as an experiment file writes them: ``"1-17, 20"``."""
    if not isinstance(seeds, str):
        return set(seeds)
    found: set[int] = set()
    for part in seeds.split(","):
        low, _, high = part.strip().partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def _options(case: str, given: Given, **defaults: Any) -> dict[str, Any]:
    """The options of a case: those that were given over the defaults; others are refused."""
    if foreign := sorted(set(given) - set(defaults)):
        names = ", ".join(f"--{name}" for name in foreign)
        raise ConfigError(f"a demo of the {case} has no option {names}", hint="kstream demo --help")
    return {**defaults, **given}


def _bundle(preset: str, model: str, case: str) -> Bundle:
    """The bundle that is named, or that of the preset."""
    config = resolve(preset).config
    name = model or config.cine.model or config.segment.model
    if not name:
        raise ConfigError(f"the preset {preset} names no model", where="--preset", hint=f"--case {case} --model FOLDER")
    try:
        return Bundle.load(name)
    except ModelError as error:
        raise ModelError(
            f"the demo of the {case} needs the model {name}: {error.what}",
            where=error.where or "--model",
            likely=error.likely or "this installation came without it",
            hint="train and export one (kstream train, kstream export), then --model FOLDER",
        ) from error


def _wrong_kind(bundle: Bundle, scans: str, case: str) -> ConfigError:
    return ConfigError(
        f"the model {bundle.info.name} is a {bundle.info.architecture}, which does not take {scans}",
        where="--model",
        hint=f"a bundle of the {case}: kstream models list",
    )


def _server_options(setting: str, model: str, preset: str) -> tuple[str, ...]:
    """Options of `kstream serve` that load the model before the scan comes; a folder is named as seen from anywhere."""
    named = str(Path(model).absolute()) if Path(model).is_dir() else model
    return ("--warm-up", preset, *(("--set", f"{setting}={named}") if model else ()))
