"""The default engine: eager PyTorch."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Mapping
from functools import cache

import torch
from torch import nn

from ..errors import ModelError, ShapeError
from .engine import Batch

# glibc's malloc.h: parameters of mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


@cache
def keep_large_blocks() -> bool:
    """Let glibc reuse large blocks instead of returning them to the system at every free; True where it did.

    Activations of tens of megabytes are otherwise mapped, page-faulted and unmapped at every layer: the paper-size
    hybrid on 24 x 160 x 160 took 1.37 s by default and 0.80 s with this on two cores, for up to 70 % more resident
    memory. A setting of the whole process; elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_ARENA_MAX, 1),  # arenas of other threads hold no block over 64 MB and would map it anew each time
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 256 << 20),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


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
