"""Compiled engines on disk: a folder with what a library wrote, and ``engine.json``, which says for what it is good.

::

    CACHE/engines/MODEL/ENGINE-PRECISION-DIGEST/
      engine.json         key, verdict of the gate, times, hash of every file
      proof.safetensors   `kspace` and the `logits` that the reference gives for it, of the smallest size
      ...                 the library's files

An engine belongs to the weights, the library versions and the instruction sets (or the GPU) that its key names. Where
one of them differs it is refused, and the message says which.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import ModelError
from ..models.bundle import Bundle
from . import backends, machine
from .gate import ProvenEngine, Verdict
from .profile import Plan, Profile, ProfiledEngine

FORMAT = 1
MANIFEST, PROOF = "engine.json", "proof.safetensors"


@dataclass(frozen=True)
class Key:
    """What an engine belongs to.

    Parameters
    ----------
    model, sha256 : name of the bundle, hash of its weights.
    machine : see `machine.capability`.
    versions : of the libraries, by name.
    """

    model: str
    sha256: str
    machine: str
    versions: Mapping[str, str]

    @classmethod
    def here(cls, bundle: Bundle, plan: Plan) -> Key:
        """The key of an engine that would be built now.

        Raises
        ------
        ModelError : its library cannot be had.
        """
        versions = backends.backend(plan.engine).versions()
        return cls(bundle.info.name, bundle.info.sha256, machine.capability(plan.device), versions)

    def differences(self, here: Key) -> list[str]:
        """What keeps an engine of this key from running here, one line each."""
        pairs = [("weights", self.sha256[:12], here.sha256[:12]), ("machine", self.machine, here.machine)]
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
    def digest(self) -> str:
        """Of key and plan: the name of the folder, and the hash that images carry."""
        text = json.dumps([FORMAT, asdict(self.key), asdict(self.plan)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

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
        """Open a folder's manifest and hold its files to their hashes.

        Raises
        ------
        ModelError : it cannot be read, is of another format, or a file is damaged; says how to build it again.
        """
        try:
            plain = json.loads((folder / MANIFEST).read_text("utf-8"))
            if plain["format"] != FORMAT:
                raise _broken(
                    folder, f"format {plain['format']}, this kstream reads {FORMAT}", plain.get("command", "")
                )
            plan = plain["plan"]
            sizes = plan["profile"]
            profile = Profile(
                tuple(sizes["batches"]), tuple(tuple(shape) for shape in sizes["shapes"]), sizes["n_channels"]
            )
            manifest = cls(
                Key(**plain["key"]),
                Plan(**{**plan, "profile": profile}),
                Verdict.from_json(plain["verdict"]),
                plain["command"],
                plain["files"],
                plain["build_s"],
                plain["times_ms"],
            )
            for name, expected in manifest.files.items():
                if hash_file(folder / name) != expected:
                    raise _broken(folder, f"{name} is damaged", manifest.command)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(folder, f"{type(error).__name__}: {error}", "") from error
        return manifest


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


def load(bundle: Bundle, engine: str, device: str, precision: str) -> ProvenEngine:
    """A compiled engine from the cache by the name of its library, or from a folder.

    Raises
    ------
    ModelError : none was compiled, none is good for these weights, versions and this machine, or it is damaged.
    """
    is_folder = Path(engine).is_dir() and engine not in backends.names()
    folders = [Path(engine)] if is_folder else _candidates(bundle, engine, precision)
    refusals: list[str] = []
    for folder in folders:
        manifest = Manifest.read(folder)
        refusal = _refusal(manifest, bundle, device, precision)
        if not refusal:
            return open_folder(bundle, folder, manifest)
        refusals.append(refusal)
    wanted = engine if precision == "auto" else f"{engine} in {precision}"
    command = f"kstream compile {bundle.info.name} --engine {'ENGINE' if is_folder else engine}"
    if not refusals:
        raise ModelError(
            f"no engine {wanted} was compiled for {bundle.info.name}",
            where=str(folder_of(bundle).parent),
            hint=command,
            code="engine_absent",
        )
    raise ModelError(
        f"the compiled engine {wanted} is refused: {refusals[0]}",
        where=str(folders[0]),
        likely="a library was updated, or it was compiled for other weights or another machine",
        hint=f"compile it here: {command}",
        code="engine_stale",
    )


def open_folder(bundle: Bundle, folder: Path, manifest: Manifest) -> ProvenEngine:
    """The engine in a folder, proved once; nothing but its verdict is checked.

    Raises
    ------
    ModelError : its verdict is bad, its library cannot read it, or it does not give what it once gave.
    """
    manifest.verdict.demand(name_of(manifest.plan))
    try:
        proof = load_file(folder / PROOF)
        return ProvenEngine(open_engine(bundle, folder, manifest), proof["kspace"], proof["logits"])
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise _broken(folder, f"{type(error).__name__}: {error}"[:300], manifest.command) from error


def open_engine(bundle: Bundle, folder: Path, manifest: Manifest) -> ProfiledEngine:
    """The engine in a folder as its library opens it: for the gate, and for `open_folder`."""
    plan = manifest.plan
    forward = backends.backend(plan.engine).open_engine(bundle.build(), plan, folder)
    provenance = {
        "model": bundle.info.name,
        "sha256": bundle.info.sha256,
        "engine_sha256": manifest.digest,
        **manifest.key.versions,
    }
    return ProfiledEngine(name_of(plan), plan.precision, plan.profile, forward, provenance)


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
