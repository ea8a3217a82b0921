"""The default engine: eager PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ModelError, ShapeError
from .engine import Batch


class TorchEngine:
    """A network, run eagerly; one run at a time.

    Parameters
    ----------
    network : takes ``(batch, 2, z, y, x)``; it is moved to the device and put into evaluation mode.
    provenance : what `describe` adds to the engine's own: model name and weights hash.

    Raises
    ------
    ModelError : if the device cannot be had.
    """

    def __init__(
        self, network: nn.Module, provenance: Mapping[str, str], device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self.precision = precision
        self._provenance = dict(provenance)
        self._device = _device(device)
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
        if batch.ndim != 5 or batch.shape[1] != 2:
            raise ShapeError(f"an engine takes (batch, 2, z, y, x), not {batch.shape}")
        bf16 = self.precision == "bf16"
        with self._lock, torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            logits: Batch = self._network(torch.from_numpy(batch).to(self._device)).float().cpu().numpy()
        return logits

    def describe(self) -> dict[str, str]:
        return {
            **self._provenance,
            "engine": self.name,
            "precision": self.precision,
            "torch": torch.__version__,
        }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device {name!r}", hint="cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {name!r} is not available", likely="no GPU here, or a CPU build of torch", hint="use cpu"
        )
    return device
