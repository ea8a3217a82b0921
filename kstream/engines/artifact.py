"""Compiled engines on disk: a folder with what a library wrote, and ``engine.json``, which says for what it is good.

::

    CACHE/engines/MODEL/ENGINE-PRECISION-DIGEST/
      engine.json         key, verdict of the gate, times, hash of every file
      proof.safetensors   inputs, and what the reference gives for them, of the smallest size, by the bundle's names
      ...                 the library's files

An engine belongs to the bundle, the library versions and the instruction sets (or the GPU) that its key names. Where
one of them differs it is refused, and the message says which. The manifest and its folder list the same files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import ModelError
from ..models.bundle import Bundle
from . import backends, machine
from .array_engine import Array, LibraryArrayEngine, ServedArrayEngine
from .array_gate import ArrayReference, ProvenArrayEngine, examine_arrays, sizes_up_to
from .array_stages import ArrayNetwork, family, takes_arrays
from .by_shape import EnginesByShape
from .engine import MAX_BATCH, PRECISIONS, ServedEngine
from .gate import ProvenEngine, Reference, Verdict, examine
from .profile import Plan, Profile, ProfiledEngine, Space

log = logging.getLogger("kstream.engines")

FORMAT = 3
MANIFEST, PROOF = "engine.json", "proof.safetensors"
E = TypeVar("E")


@dataclass(frozen=True)
class Key:
    """What an engine belongs to.

    Parameters
    ----------
    model, sha256 : name of the bundle, hash of its weights.
    description : hash of the rest of the bundle that results depend on (`description_of`).
    kstream : version of this package, which lowers networks and runs the stages.
    machine : see `machine.capability`.
    versions : of the libraries, by name.
    """

    model: str
    sha256: str
    description: str
    kstream: str
    machine: str
    versions: Mapping[str, str]

    @classmethod
    def here(cls, bundle: Bundle, plan: Plan) -> Key:
        """The key of an engine that would be built now.

        Raises
        ------
        ModelError : its library or device cannot be had, or the bundle has no readable example.
        """
        return cls(
            bundle.info.name,
            bundle.info.sha256,
            description_of(bundle),
            version("kstream"),
            machine.capability(plan.device),
            backends.backend(plan.engine).versions(),
        )

    def differences(self, here: Key) -> list[str]:
        """What keeps an engine of this key from running here, one line each."""
        pairs = [
            ("weights", self.sha256[:12], here.sha256[:12]),
            ("architecture, arguments or example", self.description[:12], here.description[:12]),
            ("kstream", self.kstream, here.kstream),
            ("machine", self.machine, here.machine),
        ]
        pairs += [(name, self.versions.get(name, "none"), value) for name, value in here.versions.items()]
        return [f"{what}: built for {built}, here {found}" for what, built, found in pairs if built != found]


@dataclass(frozen=True)
class Manifest:
    """The text of ``engine.json``.

    Parameters
    ----------
    command : that builds it again.
    files : hash of every file by name.
    build_s : seconds that building took.
    times_ms : per run, by ``batch x shape``.
    """

    key: Key
    plan: Plan
    verdict: Verdict
    command: str
    files: Mapping[str, str] = field(default_factory=dict)
    build_s: float = 0.0
    times_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def slot(self) -> str:
        """Of key and plan: the name of the folder, which the same command fills again."""
        return _digest([FORMAT, asdict(self.key), asdict(self.plan)])

    @property
    def digest(self) -> str:
        """Of key, plan, verdict and files: the hash that images carry."""
        return _digest([self.slot, self.verdict.to_json(), dict(self.files)])

    def summary(self, folder: Path) -> dict[str, Any]:
        """What ``kstream compile`` prints."""
        plan = self.plan
        return {
            "engine": plan.engine,
            "precision": plan.precision,
            "device": plan.device,
            "model": self.key.model,
            "weights": self.key.sha256[:12],
            "hash": self.digest,
            "folder": str(folder),
            "build_s": self.build_s,
            "gate": "passed" if self.verdict.has_passed else "failed",
            "checked": len(self.verdict.findings),
            "worst_rms": self.verdict.rms,
            "worst_dice": self.verdict.dice,
            "times_ms": dict(self.times_ms),
        }

    def to_json(self) -> str:
        plain = {**asdict(self), "verdict": self.verdict.to_json()}
        return json.dumps({"format": FORMAT, "digest": self.digest, **plain}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Open a folder's manifest, and hold it to its hash and the folder's files to theirs.

        Raises
        ------
        ModelError : it cannot be read, is of another format, or a file is damaged, missing or not one of its own; says
            how to build it again.
        """
        try:
            plain = json.loads((folder / MANIFEST).read_text("utf-8"))
            if plain["format"] != FORMAT:
                what = f"format {plain['format']}, this kstream reads {FORMAT}"
                raise _broken(folder, what, plain.get("command", ""))
            manifest = cls.from_json(plain)
            for fault in manifest.faults(folder, plain["digest"]):
                raise _broken(folder, fault, manifest.command)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(folder, f"{type(error).__name__}: {error}"[:300], "") from error
        return manifest

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Manifest:
        """The inverse of `to_json`; `ValueError`, `KeyError`, `TypeError` or `AttributeError` for other values."""
        sizes = plain["plan"]["profile"]
        shapes = tuple(tuple(shape) for shape in sizes["shapes"])
        profile = Profile(tuple(sizes["batches"]), shapes, sizes["n_channels"])
        try:
            verdict = Verdict.from_json(plain["verdict"])
        except ModelError as error:
            raise ValueError(error.what) from error
        manifest = cls(
            Key(**plain["key"]),
            Plan(**{**plain["plan"], "profile": profile}),
            verdict,
            str(plain["command"]),
            dict(plain["files"]),
            float(plain["build_s"]),
            dict(plain["times_ms"]),
        )
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise `ValueError` for a plan that nobody makes, or a verdict that is not on all of the plan."""
        plan, profile = self.plan, self.plan.profile
        if plan.engine not in backends.names() or plan.precision not in PRECISIONS:
            raise ValueError(f"engine {plan.engine!r} in {plan.precision!r}")
        if not profile.batches or not all(type(n) is int and 0 < n <= MAX_BATCH for n in profile.batches):
            raise ValueError(f"batches {profile.batches!r}")
        looked_at = {(finding.shape, finding.batch) for finding in self.verdict.findings}
        sizes = {(shape, n) for shape in profile.shapes for n in range(1, profile.batches[-1] + 1)}
        if self.verdict.precision != plan.precision or not sizes <= looked_at:
            raise ValueError("the verdict of the gate is on another precision, or leaves sizes out")

    def faults(self, folder: Path, digest: str) -> Iterator[str]:
        """What is wrong with the files of a folder; `digest` is what ``engine.json`` says of itself."""
        if any(Path(name).name != name or name == MANIFEST for name in self.files):
            yield "it lists files that are not in its folder"
            return
        if digest != self.digest:
            yield f"{MANIFEST} was edited"
        found = {path.name for path in folder.iterdir()} - {MANIFEST}
        for name in sorted(found ^ set(self.files)):
            yield f"{name} is missing" if name in self.files else f"{name} is not one of its files"
        for name in sorted(found & set(self.files)):
            if hash_file(folder / name) != self.files[name]:
                yield f"{name} is damaged"


def description_of(bundle: Bundle) -> str:
    """Hash of what a network's results depend on beside its weights: architecture, arguments, and the example."""
    made = hashlib.sha256(json.dumps([bundle.info.architecture, dict(bundle.info.arguments)], sort_keys=True).encode())
    for array in example_arrays(bundle):
        made.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return made.hexdigest()


def example_arrays(bundle: Bundle) -> tuple[Array, ...]:
    """Inputs and outputs of a bundle's example.

    Raises
    ------
    ModelError : they cannot be read.
    """
    inputs, outputs = bundle.tensors() if takes_arrays(bundle) else ((bundle.example()[0],), (bundle.example()[1],))
    return (*inputs, *outputs)


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _broken(folder: Path, what: str, command: str) -> ModelError:
    return ModelError(
        f"the compiled engine cannot be used: {what}",
        where=str(folder),
        likely="a file that was cut short, edited, or only partly copied",
        hint=f"build it again: {command or 'kstream compile MODEL --engine ...'}",
        code="engine_damaged",
    )


def folder_of(bundle: Bundle) -> Path:
    """Where the engines of a model are kept."""
    return machine.cache_folder() / "engines" / f"{_safe(bundle.info.name)}-{bundle.info.sha256[:12]}"


def load(bundle: Bundle, engine: str, device: str, precision: str) -> ServedEngine:
    """A compiled engine from a folder, or all that suit from the cache by the name of their library.

    Of two for the same sizes the newer one is taken; one that is damaged or stale is passed over.

    Raises
    ------
    ModelError : none was compiled, none is good for this bundle, these versions and this machine, or it is damaged.
    """
    ready = _usable(bundle, engine, device, precision, open_folder)
    return EnginesByShape(ready) if len(set(ready.values())) > 1 else next(iter(ready.values()))


def load_arrays(bundle: Bundle, engine: str, device: str, precision: str) -> ServedArrayEngine:
    """The same for a network with several inputs: of those in the cache, the one for the most tokens.

    Raises
    ------
    ModelError : as `load`; or the library does not hold such networks.
    """
    family(bundle)
    if engine in backends.names():
        backends.demand_arrays(engine, bundle.info.name)
    ready = _usable(bundle, engine, device, precision, open_array_folder)
    return ready[max(ready)]


def _usable(
    bundle: Bundle, engine: str, device: str, precision: str, open_one: Callable[[Bundle, Path, Manifest], E]
) -> dict[Space, E]:
    """Engines that may run here, by size."""
    is_folder = Path(engine).is_dir() and engine not in backends.names()
    folders = [Path(engine)] if is_folder else _candidates(bundle, engine, precision)
    wanted = engine if precision == "auto" else f"{engine} in {precision}"
    command = f"kstream compile {bundle.info.name} --engine {'ENGINE' if is_folder else engine}"
    ready: dict[Space, E] = {}
    refusals: list[ModelError] = []
    for folder in folders:
        try:
            manifest = Manifest.read(folder)
            _demand(manifest, bundle, device, precision, folder, wanted, command)
            if missing := [shape for shape in manifest.plan.profile.shapes if shape not in ready]:
                ready |= dict.fromkeys(missing, open_one(bundle, folder, manifest))
        except ModelError as error:
            log.info("%s is passed over: %s", folder, error.what)
            refusals.append(error)
    if ready:
        return ready
    if refusals:
        raise refusals[0]
    raise ModelError(
        f"no engine {wanted} was compiled for {bundle.info.name}",
        where=str(folder_of(bundle).parent),
        hint=command,
        code="engine_absent",
    )


def open_folder(bundle: Bundle, folder: Path, manifest: Manifest) -> ProvenEngine:
    """The engine in a folder, proved; of what belongs to the key nothing is checked.

    An engine whose code is in its files is run once on its proof, and on the bundle's example if it takes its size; one
    whose library makes the code when it loads is examined again at every batch and shape.

    Raises
    ------
    ModelError : its verdict is bad, its library cannot read it, or it does not give what the bundle's network gives.
    """
    plan = manifest.plan
    manifest.verdict.demand(name_of(plan))
    try:
        proof = load_file(folder / PROOF)
        engine = open_engine(bundle, folder, manifest)
        proven = ProvenEngine(engine, proof["kspace"], proof["logits"])
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise _broken(folder, f"{type(error).__name__}: {error}"[:300], manifest.command) from error
    if backends.backend(plan.engine).COMPILES_AT_LOAD:
        examine(engine, Reference(bundle), plan.profile.batches, plan.profile.shapes).demand(name_of(plan))
    example, logits = bundle.example()
    return ProvenEngine(engine, example, logits) if example.shape[2:] in plan.profile.shapes else proven


def open_array_folder(bundle: Bundle, folder: Path, manifest: Manifest) -> ProvenArrayEngine:
    """`open_folder` for a network with several inputs."""
    plan = manifest.plan
    manifest.verdict.demand(name_of(plan))
    try:
        proof = load_file(folder / PROOF)
        inputs, outputs = ([proof[spec.name] for spec in specs] for specs in (bundle.info.inputs, bundle.info.outputs))
        engine = open_array_engine(bundle, folder, manifest)
        ProvenArrayEngine(engine, inputs, tuple(outputs))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise _broken(folder, f"{type(error).__name__}: {error}"[:300], manifest.command) from error
    if backends.backend(plan.engine).COMPILES_AT_LOAD:
        reference = ArrayReference(bundle)
        sizes = sizes_up_to(reference, plan.profile.shapes[0][0])
        examine_arrays(engine, plan.precision, reference, sizes).demand(name_of(plan))
    return ProvenArrayEngine(engine, *bundle.tensors())


def open_engine(bundle: Bundle, folder: Path, manifest: Manifest) -> ProfiledEngine:
    """The engine in a folder as its library opens it: for the gate, and for `open_folder`."""
    plan = manifest.plan
    forward = backends.backend(plan.engine).open_engine(bundle.build(), plan, folder)
    return ProfiledEngine(name_of(plan), plan.precision, plan.profile, forward, _provenance(bundle, manifest))


def open_array_engine(bundle: Bundle, folder: Path, manifest: Manifest) -> LibraryArrayEngine:
    """The same of a network with several inputs."""
    plan = manifest.plan
    forward = backends.array_backend(plan.engine).open_arrays(ArrayNetwork.of(bundle, plan.precision), plan, folder)
    counted, most = family(bundle).counted[0], plan.profile.shapes[0][0]
    return LibraryArrayEngine(name_of(plan), plan.precision, forward, _provenance(bundle, manifest), counted, most)


def _provenance(bundle: Bundle, manifest: Manifest) -> dict[str, str]:
    return {
        "model": bundle.info.name,
        "sha256": bundle.info.sha256,
        "engine_sha256": manifest.digest,
        **manifest.key.versions,
    }


def name_of(plan: Plan) -> str:
    """``aot-cpu`` and the like."""
    return f"{plan.engine}-{plan.device.partition(':')[0]}"


def _candidates(bundle: Bundle, engine: str, precision: str) -> list[Path]:
    """Folders of compiled engines of a name, the newest first; those of other weights at the end."""
    wanted = f"{engine}-{'*' if precision == 'auto' else precision}-*"
    own = folder_of(bundle)
    others = sorted(own.parent.glob(f"{_safe(bundle.info.name)}-????????????"))
    ordered = [own, *(folder for folder in others if folder != own)]
    return [
        found.parent
        for folder in ordered
        for found in sorted(folder.glob(f"{wanted}/{MANIFEST}"), key=lambda path: -path.stat().st_mtime)
    ]


def _demand(
    manifest: Manifest, bundle: Bundle, device: str, precision: str, folder: Path, wanted: str, command: str
) -> None:
    """Raise `ModelError` if an engine must not run here."""
    if refusal := _refusal(manifest, bundle, device, precision):
        raise ModelError(
            f"the compiled engine {wanted} is refused: {refusal}",
            where=str(folder),
            likely="a library was updated, or it was compiled for another bundle or another machine",
            hint=f"compile it here: {command}",
            code="engine_stale",
        )


def _refusal(manifest: Manifest, bundle: Bundle, device: str, precision: str) -> str:
    """Why an engine must not run here; empty if it may."""
    plan = manifest.plan
    if plan.device.partition(":")[0] != device.partition(":")[0]:
        return f"device: built for {plan.device}, asked for {device}"
    reasons = manifest.key.differences(Key.here(bundle, plan))
    if precision not in ("auto", plan.precision):
        reasons.append(f"precision: built for {plan.precision}, asked for {precision}")
    return "; ".join(reasons)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80] or "model"
