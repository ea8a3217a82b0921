"""Model bundles: a folder with weights, a description in JSON, a card and a tiny example; no pickles, no code.

::

    NAME/
      weights.safetensors   the state dict
      model.json            everything else that is needed to run and to judge it (see `BundleInfo`)
      README.md             the model card
      example.safetensors   `kspace` (1, 2, z, y, x) and the `logits` (1, classes, z, y, x) that belong to it

Reading a bundle's description imports no torch and reads the weights only to check their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import ModelError, did_you_mean
from ..types import LabelTable
from .registry import architecture, build

if TYPE_CHECKING:
    from torch import nn

SHIPPED = Path(__file__).parent.parent / "bundles"
FORMAT = 1
WEIGHTS, DESCRIPTION, CARD, EXAMPLE = "weights.safetensors", "model.json", "README.md", "example.safetensors"
INTENDED_USE = "Research use only: not a medical device, not for diagnosis or treatment."

Array = NDArray[np.float32]


@dataclass(frozen=True)
class TensorSpec:
    """Axes and unit of an input or output; `dtype` in numpy's words."""

    name: str
    axes: tuple[str, ...]
    dtype: str
    unit: str
    description: str


INPUT = TensorSpec(
    "kspace",
    ("batch", "real_imag", "z", "y", "x"),
    "float32",
    "1 (pre-contrast RMS)",
    "post minus pre k-space over the RMS of the pre-contrast k-space; y and x centred Fourier axes, z slices",
)
OUTPUT = TensorSpec(
    "logits", ("batch", "class", "z", "y", "x"), "float32", "1", "class scores in image space; argmax is the label"
)


@dataclass(frozen=True)
class BundleInfo:
    """What ``model.json`` says.

    Parameters
    ----------
    name, description : of the trained model.
    architecture, arguments : key of the registry and the arguments of its class.
    labels : names and colours of the classes.
    patch_depth, patch_stride : slices of a patch, and between the starts of neighbouring patches.
    training : experiment file, seeds, command, steps, hardware: whatever reproduces the weights.
    metrics : results by name, with the data that they were measured on.
    sha256 : of the weights file; `save_bundle` fills it in.
    """

    name: str
    description: str
    architecture: str
    arguments: Mapping[str, Any]
    labels: LabelTable
    patch_depth: int
    patch_stride: int
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    intended_use: str = INTENDED_USE
    inputs: tuple[TensorSpec, ...] = (INPUT,)
    outputs: tuple[TensorSpec, ...] = (OUTPUT,)
    sha256: str = ""

    def to_json(self) -> str:
        """The text of ``model.json``."""
        plain = {
            "format": FORMAT,
            "name": self.name,
            "description": self.description,
            "architecture": {"name": self.architecture, "arguments": dict(self.arguments)},
            "inputs": [vars(spec) for spec in self.inputs],
            "outputs": [vars(spec) for spec in self.outputs],
            "labels": [
                {"name": name, "colour": colour}
                for name, colour in zip(self.labels.names, self.labels.colours, strict=True)
            ],
            "patch": {"depth": self.patch_depth, "stride": self.patch_stride},
            "training": dict(self.training),
            "metrics": dict(self.metrics),
            "licence": self.licence,
            "intended_use": self.intended_use,
            "sha256": self.sha256,
        }
        return json.dumps(plain, indent=2) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, checked: `info` is its description, `folder` holds the files."""

    folder: Path
    info: BundleInfo

    @classmethod
    def load(cls, source: str | Path) -> Bundle:
        """Open the bundle in a folder, or the shipped bundle of a name; torch is not imported.

        Raises
        ------
        ModelError : if it is missing, unreadable, damaged (hash), or of an unknown architecture or format.
        """
        folder = _find(source)
        info = _parse(folder / DESCRIPTION)
        architecture(info.architecture)
        found = _sha256(folder / WEIGHTS)
        if found != info.sha256:
            raise ModelError(
                f"weights of bundle {info.name} are damaged: sha256 {found[:12]}, expected {info.sha256[:12]}",
                where=str(folder / WEIGHTS),
                likely="an interrupted copy, or weights that do not belong to this model.json",
                hint="fetch or train the bundle again",
            )
        return cls(folder, info)

    def build(self) -> nn.Module:
        """The trained network in evaluation mode, on the CPU.

        Raises
        ------
        ModelError : if the weights do not fit the architecture.
        """
        from safetensors.torch import load_file as load_tensors

        network = build(self.info.architecture, self.info.arguments)
        try:
            network.load_state_dict(load_tensors(self.folder / WEIGHTS))
        except (RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"weights of bundle {self.info.name} do not fit architecture {self.info.architecture}",
                where=str(self.folder / WEIGHTS),
                likely=str(error).splitlines()[0],
                hint="compare the arguments in model.json with those of the training",
            ) from error
        return network.eval()

    def example(self) -> tuple[Array, Array]:
        """Input k-space and the logits that the network gave for it when the bundle was saved."""
        try:
            tensors = load_file(self.folder / EXAMPLE)
            return tensors["kspace"], tensors["logits"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"bundle {self.info.name} has no readable example", where=str(self.folder)) from error

    def tensors(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Example inputs and outputs of a network with any number of them, in the order of the description.

        Raises
        ------
        ModelError : if they cannot be read.
        """
        try:
            found = load_file(self.folder / EXAMPLE)
            return tuple(found[spec.name] for spec in self.info.inputs), tuple(
                found[spec.name] for spec in self.info.outputs
            )
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"bundle {self.info.name} has no readable example", where=str(self.folder)) from error


def shipped() -> tuple[str, ...]:
    """Names of the bundles that come with kstream."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{DESCRIPTION}")))


def save_bundle(
    folder: Path, info: BundleInfo, state: Mapping[str, NDArray[Any]], example: tuple[Array, Array], card: str
) -> Bundle:
    """Write a bundle and open it again.

    Parameters
    ----------
    state : the network's state dict as numpy arrays.
    example : input ``(1, 2, z, y, x)`` and its logits ``(1, classes, z, y, x)``; keep it to some tens of kilobytes.
    card : text of the model card (Markdown).
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, folder / WEIGHTS)
    kspace, logits = (np.ascontiguousarray(array, dtype=np.float32) for array in example)
    save_file({"kspace": kspace, "logits": logits}, folder / EXAMPLE)
    described = BundleInfo(**{**vars(info), "sha256": _sha256(folder / WEIGHTS)})
    (folder / DESCRIPTION).write_text(described.to_json(), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    return Bundle.load(folder)


def save_array_bundle(
    folder: Path, info: BundleInfo, state: Mapping[str, NDArray[Any]], example: Mapping[str, Array], card: str
) -> Bundle:
    """Write a bundle of a network with any inputs and outputs, and open it again.

    Parameters
    ----------
    example : arrays by the names of `info.inputs` and `info.outputs`; keep it to some tens of kilobytes.

    Raises
    ------
    ModelError : the example lacks an input or an output.
    """
    wanted = {spec.name for spec in (*info.inputs, *info.outputs)}
    if wanted != set(example):
        raise ModelError(f"the example holds {sorted(example)}, the description names {sorted(wanted)}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, folder / WEIGHTS)
    save_file({key: np.ascontiguousarray(value, np.float32) for key, value in example.items()}, folder / EXAMPLE)
    described = BundleInfo(**{**vars(info), "sha256": _sha256(folder / WEIGHTS)})
    (folder / DESCRIPTION).write_text(described.to_json(), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    return Bundle.load(folder)


def _find(source: str | Path) -> Path:
    for folder in (Path(source), SHIPPED / str(source)):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise ModelError(
        f"no model bundle {str(source)!r}",
        likely=f"no shipped bundle has that name, and no folder with a {DESCRIPTION}",
        hint=did_you_mean(str(source), shipped(), "kstream models list"),
    )


def _parse(path: Path) -> BundleInfo:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ModelError(f"bundle format {plain['format']}, this kstream reads {FORMAT}", where=str(path))
        return BundleInfo(
            name=plain["name"],
            description=plain["description"],
            architecture=plain["architecture"]["name"],
            arguments=plain["architecture"]["arguments"],
            labels=_labels(plain["labels"]),
            patch_depth=int(plain["patch"]["depth"]),
            patch_stride=int(plain["patch"]["stride"]),
            training=plain["training"],
            metrics=plain["metrics"],
            licence=plain["licence"],
            intended_use=plain["intended_use"],
            inputs=tuple(_spec(spec) for spec in plain["inputs"]),
            outputs=tuple(_spec(spec) for spec in plain["outputs"]),
            sha256=plain["sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model description cannot be read: {error!r}",
            where=str(path),
            likely="a file that was edited by hand, or cut short",
        ) from error


def _labels(entries: list[dict[str, Any]]) -> LabelTable:
    names = tuple(str(entry["name"]) for entry in entries)
    colours = tuple((int(r), int(g), int(b)) for r, g, b in (entry["colour"] for entry in entries))
    return LabelTable(names, colours)


def _spec(entry: dict[str, Any]) -> TensorSpec:
    return TensorSpec(entry["name"], tuple(entry["axes"]), entry["dtype"], entry["unit"], entry["description"])


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError("a bundle without weights", where=str(path), likely="an incomplete copy") from error
