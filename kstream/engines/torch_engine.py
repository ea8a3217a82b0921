"""The default engine: eager PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ModelError, ShapeError
from .engine import MAX_BATCH, Batch
from .stages import lower, split


class TorchEngine:
    """A network, run eagerly; one run at a time, any size of patch.

    Parameters
    ----------
    network : takes ``(batch, n_channels, z, y, x)``; in ``fp32`` it is moved to the device and put into evaluation mode
        as it is, for other precisions a copy is made whose convolutions have that type and the channels last.
    provenance : what `describe` adds to the engine's own: model name and weights hash.
    n_channels : of the input.
    n_axes : of the input, the batch among them.

    Raises
    ------
    ModelError : if the device cannot be had.
    """

    def __init__(
        self,
        network: nn.Module,
        provenance: Mapping[str, str],
        device: str = "cpu",
        precision: str = "fp32",
        n_channels: int = 2,
        n_axes: int = 5,
    ) -> None:
        self.precision = precision
        self._provenance = dict(provenance)
        self._n_channels, self._n_axes = n_channels, n_axes
        self._device = find_device(device)
        if precision != "fp32":
            network = lower(split(network), precision, "eager" if self._device.type == "cpu" else "plain")
        self._network = network.to(self._device).eval()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"torch-{self._device.type}"

    def run(self, batch: Batch) -> Batch:
        """Logits ``(batch, classes, z, y, x)`` of k-space ``(batch, 2, z, y, x)``.

        Raises
        ------
        ShapeError : if the batch has other axes.
        """
        if batch.ndim != self._n_axes or batch.shape[1] != self._n_channels:
            axes = ("z, y, x" if self._n_axes == 5 else "y, x") if self._n_axes in (4, 5) else "..."
            raise ShapeError(f"an engine takes (batch, {self._n_channels}, {axes}), not {batch.shape}")
        with self._lock, torch.inference_mode():
            patches = torch.from_numpy(batch)
            parts = [patches[i : i + MAX_BATCH] for i in range(0, len(batch), MAX_BATCH)]
            logits = [self._network(part.to(self._device)).float().cpu() for part in parts]
            joined: Batch = (torch.cat(logits) if len(logits) > 1 else logits[0]).numpy()
        return joined

    def describe(self) -> dict[str, str]:
        return {
            **self._provenance,
            "engine": self.name,
            "precision": self.precision,
            "torch": torch.__version__,
        }


def find_device(name: str) -> torch.device:
    """A device by torch's name for it.

    Raises
    ------
    ModelError : it does not exist, or not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device {name!r}", hint="cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {name!r} is not available", likely="no GPU here, or a CPU build of torch", hint="use cpu"
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ModelError(
            f"device {name!r} is not available",
            likely=f"this machine has {torch.cuda.device_count()} GPUs, counted from 0",
            hint="cuda:0, or cpu",
        )
    return device
