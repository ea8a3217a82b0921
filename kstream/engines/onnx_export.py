"""The learnt stages, or the whole network, as ONNX files: one for each shape, with a batch that may vary."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from .array_stages import ArrayNetwork
from .profile import Plan, Space, times
from .stages import split

OPSET = 20


def need(*packages: str, extra: str) -> None:
    """Raise `ModelError` if a package of an extra is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"this engine needs {' and '.join(missing)}",
            likely="kstream was installed without this extra",
            hint=f"pip install 'kstream[{extra}]'",
        )


def export_stages(network: nn.Module, plan: Plan, folder: Path) -> None:
    """Write ``STAGE-24x320x320.onnx`` files in float32; a runtime lowers the precision itself, if at all.

    With the transform ``gemm`` there is one stage, ``network``.

    Raises
    ------
    ModelError : the network holds operations that ONNX lacks.
    """
    for shape in plan.profile.shapes:
        patches = torch.zeros((2, plan.profile.n_channels, *shape))
        for name, stage in stages_of(network, plan, shape).named_children():
            if name != "transform":
                export(stage, patches, folder / file_name(name, shape))
            with torch.inference_mode():
                patches = stage(patches)


def stages_of(network: nn.Module, plan: Plan, shape: Space) -> nn.Sequential:
    """Stages of a network as a plan wants them: three, or one that holds everything."""
    if plan.transform == "fft":
        return split(network)
    return nn.Sequential(OrderedDict(network=split(network, (shape[-2], shape[-1]))))


def file_name(stage: str, shape: Space) -> str:
    return f"{stage}-{times(shape)}.onnx"


def export(stage: nn.Module, patches: torch.Tensor, path: Path) -> None:
    """Write one module as ONNX; its first axis may vary.

    Raises
    ------
    ModelError : it holds operations that ONNX lacks.
    """
    batch = torch.export.Dim("batch", min=1, max=64)
    _write(stage, (patches,), path, ("patches",), ("features",), ({0: batch},))


def export_arrays(network: ArrayNetwork, plan: Plan, folder: Path) -> None:
    """Write a ``STAGE.onnx`` for each stage of a network with several inputs; the number of tokens may vary.

    Raises
    ------
    ModelError : the network holds operations that ONNX lacks.
    """
    for stage, inputs, sizes in network.exports(plan.profile.shapes[0][0], torch.device("cpu")):
        _write(stage.module, inputs, folder / f"{stage.name}.onnx", stage.takes, stage.gives, (sizes,))


def _write(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    varying: Any,
) -> None:
    need("onnx", "onnxscript", extra="onnx")
    spoken = io.StringIO()
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # of packages we lack
    try:
        with torch.no_grad(), contextlib.redirect_stdout(spoken), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            torch.onnx.export(
                module.eval(),
                inputs,
                path,
                input_names=list(names),
                output_names=list(outputs),
                dynamic_shapes=varying,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ModelError(
            f"this network cannot be written as ONNX: {error}"[:400],
            where=path.stem,
            likely="operations that ONNX lacks, such as complex numbers",
            hint="--engine torch, compiled or aot",
        ) from error
