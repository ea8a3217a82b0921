"""One CUDA graph around all stages of a network: the cost of launching hundreds of kernels is paid once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .engine import Batch
from .profile import Forward, Profile, Space

WARM_UPS = 3
"""Runs before a capture: compilers and cuDNN make their choices in them."""


def zeros(profile: Profile, n_patches: int, shape: Space) -> Batch:
    """An input of one size of a profile."""
    return np.zeros((n_patches, profile.n_channels, *shape), np.float32)


def captured(network: Callable[[Tensor], Tensor], profile: Profile, device: torch.device) -> Forward:
    """Run a network on a GPU by graphs, one for each batch and shape of a profile, in one pool of memory.

    cuFFT can be captured like everything else, so the hybrid is one graph: k-space stage, transform, image stage.
    """
    replays: dict[tuple[int, ...], Callable[[Batch], Batch]] = {}
    pool = torch.cuda.graph_pool_handle()
    for shape in profile.shapes:
        for n_patches in sorted(profile.batches, reverse=True):  # the largest first: the others fit into its memory
            inputs = torch.from_numpy(zeros(profile, n_patches, shape)).to(device)
            replays[tuple(inputs.shape)] = _capture(network, inputs, pool)

    def forward(batch: Batch) -> Batch:
        return replays[batch.shape](batch)

    return forward


def _capture(network: Callable[[Tensor], Tensor], inputs: Tensor, pool: Any) -> Callable[[Batch], Batch]:
    stream: Any = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(inputs.device))
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            network(inputs)
    torch.cuda.current_stream(inputs.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, pool=pool):
        outputs = network(inputs)

    def replay(batch: Batch) -> Batch:
        inputs.copy_(torch.from_numpy(batch))
        graph.replay()
        logits: Batch = outputs.cpu().numpy()  # waits for the graph, and copies before the next one writes
        return logits

    return replay
