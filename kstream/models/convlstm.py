"""Takes feature maps one after the other, gives feature maps that remember those before: a convolutional LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class ConvLSTM(nn.Module):
    """One convolutional LSTM cell (Shi et al., NeurIPS 2015, equation 3, without peephole weights).

    With the input x, the hidden map h and the cell map c of the step before, and ``*`` a 3x3 convolution::

        i, f, o, g = W * [x, h] + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')

    Parameters
    ----------
    n_in : channels of the input.
    n_hidden : channels of h and c.
    """

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.gates = nn.Conv2d(n_in + n_hidden, 4 * n_hidden, 3, padding=1)

    def forward(self, x: Tensor, state: State | None) -> State:
        """``(h', c')``, ``(batch, n_hidden, y, x)`` each; without a state, h and c are zero."""
        if state is None:
            empty = x.new_zeros(x.shape[0], self.n_hidden, *x.shape[-2:])
            state = (empty, empty)
        hidden, cell = state
        i, f, o, g = self.gates(torch.cat((x, hidden), dim=1)).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
