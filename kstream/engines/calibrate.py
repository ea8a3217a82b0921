"""The default engine, eager torch, in the precision that is fastest on this machine within the gate.

One patch tells: bfloat16 must beat float32 clearly, and pass the gate at every batch size. What was found is remembered
for these weights, this machine, this torch and this number of threads, so the next start only proves the engine once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError
from ..models.bundle import Bundle
from ..models.registry import architecture
from . import machine
from .array_engine import LibraryArrayEngine, ServedArrayEngine, torch_array_engine
from .array_gate import ArrayReference, ProvenArrayEngine, examine_arrays, examine_size, sizes_up_to
from .array_stages import FAMILIES, family, stretched, takes_arrays
from .artifact import example_arrays, write_text
from .engine import MAX_BATCH, PRECISIONS, Batch, Engine
from .gate import ProvenEngine, Reference, Verdict, examine, examine_one
from .profile import Space
from .size_gate import GatedArrayEngine, GatedEngine, SizeGate
from .torch_engine import TorchEngine, find_device

log = logging.getLogger("kstream.engines")

FORMAT = 3
"""Changes when the engine's numbers or its gate do: what was remembered before is found out again."""

CLEARLY = 0.8
"""Of float32's time, at most, for bfloat16 to be worth its error."""

PLANE = 128
"""In-plane size of the patch that is timed."""

TOKENS = 512
"""Of networks with several inputs: samples or lines that are timed."""

ROUNDS = 3


def load_torch(bundle: Bundle, device: str, precision: str) -> GatedEngine:
    """Eager torch in a precision, or (``auto``) in the fastest one that passes the gate.

    Sizes of patches other than the example's are held to the gate when they come. One at which the precision that was
    found (``auto``) does not pass is run in float32.

    Raises
    ------
    ModelError : the device cannot be had, or the precision does not pass.
    """
    find_device(device)
    return _load(bundle, device, precision, _read_notes(bundle, device))


def calibrate_again(
    bundle: Bundle, device: str, precision: str = "auto", shapes: tuple[Space, ...] = ()
) -> dict[str, Any]:
    """Find out, now, what earlier starts have noted; gives what ``kstream compile --engine torch`` prints.

    Parameters
    ----------
    shapes : of patches that are held to the gate now, so that no frame waits for it.

    Raises
    ------
    ModelError : as `load_torch`; or a shape was given for a network with several inputs, which has none.
    ShapeError : a shape with other axes than the network's.
    """
    find_device(device)
    if shapes and takes_arrays(bundle):
        raise ModelError(f"{bundle.info.name} has no patches whose shape could be proved", hint="leave --shape away")
    notes: dict[str, Any] = {}
    engine = (_load_arrays if takes_arrays(bundle) else _load)(bundle, device, precision, notes)
    if isinstance(engine, GatedEngine):
        for shape in shapes:
            engine.run(np.zeros((1, input_of(bundle)[0], *shape), np.float32))
    verdict = Verdict.from_json(notes[f"gate {engine.precision}"])
    return {
        "engine": "torch",
        "precision": engine.precision,
        "device": device,
        "model": bundle.info.name,
        "weights": bundle.info.sha256[:12],
        "gate": "passed",
        "checked": len(verdict.findings),
        "worst_rms": verdict.rms,
        "worst_dice": verdict.dice,
        "patch_s": notes.get("seconds", {}),
    }


def _load(bundle: Bundle, device: str, precision: str, notes: dict[str, Any]) -> GatedEngine:
    """See `load_torch`; what was found out beyond `notes` is added to them, and kept."""
    known, wanted = len(notes), precision
    reference = Reference(bundle)
    if precision == "auto":
        precision = notes.get("fastest") or _fastest(bundle, device, reference, notes)
    engine = make_torch(bundle, device, precision)
    _verdict(engine, reference, notes).demand(f"{engine.name} ({precision})")
    if len(notes) > known:
        _write_notes(bundle, device, notes)
    has_spare = wanted == "auto" and precision != "fp32"
    return GatedEngine(
        ProvenEngine(engine, reference.example, reference.stored),
        SizeGate(
            lambda engine, size: examine_one(engine, Reference(bundle), size),
            notes,
            partial(_write_notes, bundle, device),
            partial(_load, bundle, device, "fp32", notes) if has_spare else None,
        ),
        *input_of(bundle),
    )


def make_torch(bundle: Bundle, device: str, precision: str) -> TorchEngine:
    """Eager torch with a bundle's weights, as it comes: nothing has been proved yet."""
    n_channels, n_axes = input_of(bundle)
    provenance = {"model": bundle.info.name, "sha256": bundle.info.sha256}
    return TorchEngine(bundle.build(), provenance, device, precision, n_channels, n_axes)


def input_of(bundle: Bundle) -> tuple[int, int]:
    """Channels and axes of a network's input.

    Raises
    ------
    ModelError : it has several inputs.
    """
    name = bundle.info.architecture
    inputs = architecture(name).inputs
    if len(inputs) != 1:
        raise ModelError(
            f"this engine runs networks of one input, and {name} has {len(inputs)}",
            where=bundle.info.name,
            likely="a model of cine scans where one of volumes is meant",
            hint="kstream models list; presets cine-disk and cine-kmtr",
        )
    return inputs[0][1], len(inputs[0])


def load_torch_arrays(bundle: Bundle, device: str, precision: str) -> ServedArrayEngine:
    """`load_torch` for a network with several inputs.

    One of an architecture of which it is not known what varies runs in float32, proved with its example.

    Raises
    ------
    ModelError : the device cannot be had, or the precision does not pass.
    """
    find_device(device)
    if bundle.info.architecture not in FAMILIES:
        if precision not in ("auto", "fp32"):
            family(bundle)
        return ProvenArrayEngine(torch_array_engine(bundle, device), *bundle.tensors())
    return _load_arrays(bundle, device, precision, _read_notes(bundle, device))


def _load_arrays(bundle: Bundle, device: str, precision: str, notes: dict[str, Any]) -> ServedArrayEngine:
    """See `load_torch_arrays`, and `_load`."""
    known, wanted = len(notes), precision
    reference = ArrayReference(bundle)
    if precision == "auto":
        precision = notes.get("fastest") or _fastest_for_arrays(bundle, device, reference, notes)
    engine = torch_array_engine(bundle, device, precision)
    _array_verdict(engine, reference, notes).demand(f"{engine.name} ({precision})")
    if len(notes) > known:
        _write_notes(bundle, device, notes)
    proven = ProvenArrayEngine(engine, reference.example, reference.stored)
    if precision == "fp32" and device.startswith("cpu"):
        return proven  # eager float32 is what would be compared with
    gate: SizeGate[ServedArrayEngine] = SizeGate(
        lambda engine, size: examine_size(engine, bundle, size),
        notes,
        partial(_write_notes, bundle, device),
        partial(_load_arrays, bundle, device, "fp32", notes) if wanted == "auto" and precision != "fp32" else None,
    )
    return GatedArrayEngine(proven, gate, reference.family.counted[0])


def _fastest_for_arrays(bundle: Bundle, device: str, reference: ArrayReference, notes: dict[str, Any]) -> str:
    """`_fastest`, judged by as many tokens as a scan has after its first readouts."""
    fastest = "fp32"
    if machine.has_fast_bf16(device):
        engines = {name: torch_array_engine(bundle, device, name) for name in ("fp32", "bf16")}
        inputs = stretched(reference.example, reference.family.counted, TOKENS)
        try:
            seconds = best_times({name: partial(engine.run_arrays, inputs) for name, engine in engines.items()})
        except (ModelError, MemoryError) as error:
            log.info("%s stays in fp32: %s", bundle.info.name, str(error).splitlines()[0])
            return fastest
        notes["seconds"] = seconds
        is_faster = seconds["bf16"] < CLEARLY * seconds["fp32"]
        if is_faster and _array_verdict(engines["bf16"], reference, notes).has_passed:
            fastest = "bf16"
        log.info("%s: %d %s take %s; chosen: %s", bundle.info.name, TOKENS, reference.family.unit, seconds, fastest)
    notes["fastest"] = fastest
    return fastest


def _array_verdict(engine: LibraryArrayEngine, reference: ArrayReference, notes: dict[str, Any]) -> Verdict:
    """`_verdict` for a network with several inputs."""
    key = f"gate {engine.precision}"
    if key not in notes:
        reference.check_stored()
        sizes = sizes_up_to(reference, max(257, reference.n_tokens))
        notes[key] = examine_arrays(engine, engine.precision, reference, sizes).to_json()
    return Verdict.from_json(notes[key])


def _fastest(bundle: Bundle, device: str, reference: Reference, notes: dict[str, Any]) -> str:
    """``bf16`` where it is clearly faster on one patch and passes the gate; else ``fp32``.

    Noted once it is known: a trial that broke off (no memory, say) may succeed at the next start.
    """
    fastest = "fp32"
    if machine.has_fast_bf16(device):
        engines = {name: make_torch(bundle, device, name) for name in ("fp32", "bf16")}
        patch = _patch(bundle, reference)
        try:
            seconds = time_engines(engines, patch)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:  # no memory; a layer of float32 only
            log.info("%s stays in fp32: %s", bundle.info.name, str(error).splitlines()[0])
            return fastest
        notes["seconds"] = seconds
        is_faster = seconds["bf16"] < CLEARLY * seconds["fp32"]
        if is_faster and _verdict(engines["bf16"], reference, notes).has_passed:
            fastest = "bf16"
        log.info("%s: one patch takes %s; chosen: %s", bundle.info.name, seconds, fastest)
    notes["fastest"] = fastest
    return fastest


def _verdict(engine: TorchEngine, reference: Reference, notes: dict[str, Any]) -> Verdict:
    """What the gate says, now or in the notes."""
    key = f"gate {engine.precision}"
    if key not in notes:
        reference.check_stored()
        notes[key] = examine(engine, reference, range(1, MAX_BATCH + 1)).to_json()
    return Verdict.from_json(notes[key])


def _patch(bundle: Bundle, reference: Reference) -> Batch:
    """A patch of the size that frames have, as far as a bundle says."""
    n_channels, n_axes = input_of(bundle)
    space: Space = (bundle.info.patch_depth, PLANE, PLANE) if n_axes == 5 else reference.shape
    return np.random.default_rng(0).standard_normal((1, n_channels, *space), np.float32)


def time_engines(engines: Mapping[str, Engine], patch: Batch) -> dict[str, float]:
    """Seconds of each engine for a patch, the best of a few rounds that alternate."""
    return best_times({name: partial(engine.run, patch) for name, engine in engines.items()})


def best_times(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each run, the best of a few rounds that alternate."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: round(seconds, 4) for name, seconds in best.items()}


def _notes_path(bundle: Bundle, device: str) -> Path:
    said = (FORMAT, bundle.info.sha256, bundle.info.architecture, str(bundle.info.arguments), bundle.info.patch_depth)
    here = (machine.capability(device), torch.__version__, torch.get_num_threads())
    example = b"".join(array.tobytes() for array in example_arrays(bundle))
    digest = hashlib.sha256(repr((said, here)).encode() + example).hexdigest()
    return machine.cache_folder() / "calibrations" / f"{digest[:24]}.json"


def _read_notes(bundle: Bundle, device: str) -> dict[str, Any]:
    """What was found out before; nothing, if that cannot be read."""
    path = _notes_path(bundle, device)
    try:
        notes: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for key in notes:
            if key.startswith("gate "):
                Verdict.from_json(notes[key])
                if " at " in key and not isinstance(notes[key]["against"], str):
                    raise ValueError(key)
        if notes.get("fastest", "fp32") not in PRECISIONS:
            raise ValueError(notes["fastest"])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
        log.warning("the calibration in %s cannot be read (%s) and is made again", path, error)
        return {}
    return notes


def _write_notes(bundle: Bundle, device: str, notes: Mapping[str, Any]) -> None:
    """Add what was found out to what others noted; a cache that cannot be written costs the next start some seconds."""
    path = _notes_path(bundle, device)
    try:
        with machine.locked(path.parent):
            together = {**_read_notes(bundle, device), **notes}
            write_text(path, json.dumps(together, indent=1) + "\n")
    except OSError as error:
        _tell_once(str(path.parent), str(error))


@cache
def _tell_once(folder: str, reason: str) -> None:
    """Of a cache that cannot be written, once in a process: engines run all the same."""
    log.warning("calibrations are not kept, every start makes them again (%s): see KSTREAM_CACHE; %s", folder, reason)
