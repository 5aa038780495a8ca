"""Recurrent layers: RNN, GRU and LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from converters.ops._values import beside
from converters.registry import op

Activation = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, State], State]

_ACTIVATIONS: dict[str, Activation] = {
    "Elu": F.elu,
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "LeakyRelu": F.leaky_relu,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Tanh": torch.tanh,
}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class Layer:
    """What RNN, GRU and LSTM have in common.

    Attributes:
        x: (length, N, size).
        lengths: of each sequence, (N,) on the CPU, or None if all have the full length.
        reversals: for each direction whether it runs from the end.
        batch_first: whether the outputs have the batch before the length and the directions.
    """

    x: torch.Tensor
    lengths: torch.Tensor | None
    reversals: tuple[bool, ...]
    batch_first: bool

    def run(self, cells: Sequence[Step], initial: Sequence[torch.Tensor]) -> State:
        """Y (length, directions, N, hidden) and the last states (directions, N, hidden).

        Args:
            cells: one for each direction.
            initial: the states (directions, N, hidden); the first one is the output too.
        """
        found = [
            self._direction(cell, tuple(part[i] for part in initial), self.reversals[i])
            for i, cell in enumerate(cells)
        ]
        y = torch.stack([outputs for outputs, _ in found], dim=1)
        last = [torch.stack(parts) for parts in zip(*(state for _, state in found), strict=True)]
        if self.batch_first:
            y, last = y.permute(2, 0, 1, 3), [part.transpose(0, 1) for part in last]
        return y, *last

    def _direction(self, cell: Step, state: State, backward: bool) -> tuple[torch.Tensor, State]:
        outputs: list[torch.Tensor] = []
        steps = range(len(self.x))
        for i in reversed(steps) if backward else steps:
            new = cell(self.x[i], state)
            shown = new[0]
            if self.lengths is not None:
                # A sequence that has ended keeps its state and gives zeros.
                runs = beside(i < self.lengths, self.x).reshape(-1, 1)
                new = tuple(torch.where(runs, n, s) for n, s in zip(new, state, strict=True))
                shown = torch.where(runs, shown, torch.zeros_like(shown))
            state = new
            outputs.append(shown)
        return torch.stack(outputs[::-1] if backward else outputs), state


def _layer(
    x: torch.Tensor, sequence_lens: torch.Tensor | None, direction: str, layout: int
) -> Layer:
    if direction not in _DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}")
    x = x.transpose(0, 1) if layout else x
    lengths = None if sequence_lens is None else sequence_lens.cpu().long()
    if len(x) == 0:
        raise ValueError("a sequence of length 0")
    return Layer(x, lengths, _DIRECTIONS[direction], bool(layout))


def _initial(
    layer: Layer, state: torch.Tensor | None, directions: int, hidden: int
) -> torch.Tensor:
    if state is None:
        return layer.x.new_zeros(directions, layer.x.shape[1], hidden)
    state = beside(state, layer.x)
    return state.transpose(0, 1) if layer.batch_first else state


def _chosen(
    names: Sequence[str] | None,
    default: Sequence[str],
    directions: int,
    parameters: Sequence[object],
) -> list[list[Activation]]:
    """The activations of each direction.

    Raises:
        NotImplementedError: one with parameters, or one that is not known here.
        ValueError: a wrong number of them.
    """
    names = list(names) if names else list(default) * directions
    if len(names) != len(default) * directions:
        raise ValueError(f"{len(names)} activations, not {len(default) * directions}")
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown or any(parameters):
        raise NotImplementedError(f"activations {', '.join(unknown) or 'with parameters'}")
    count = len(default)
    found = [_ACTIVATIONS[name] for name in names]
    return [found[i * count : (i + 1) * count] for i in range(directions)]


def _clipped(x: torch.Tensor, clip: float | None) -> torch.Tensor:
    return torch.clamp(x, -clip, clip) if clip else x


@dataclass(frozen=True)
class Weights:
    """One direction's: w (gates * hidden, size), r (gates * hidden, hidden), two biases."""

    w: torch.Tensor
    r: torch.Tensor
    wb: torch.Tensor
    rb: torch.Tensor


def _weights(
    x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor | None, directions: int
) -> list[Weights]:
    if not len(w) == len(r) == directions:
        raise ValueError(f"weights for {len(w)} directions, not {directions}")
    rows = w.shape[1]
    b = x.new_zeros(directions, 2 * rows) if b is None else beside(b, x)
    w, r = beside(w, x), beside(r, x)
    return [Weights(w[i], r[i], b[i, :rows], b[i, rows:]) for i in range(directions)]


@op("RNN", since=7)
def rnn(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> State:
    """h = f(x @ W^T + h @ R^T + biases) at each step of x (length, N, size); outputs: Y, Y_h."""
    layer = _layer(x, sequence_lens, direction, layout)
    count = len(layer.reversals)
    chosen = _chosen(activations, ("Tanh",), count, (activation_alpha, activation_beta))

    def cell(p: Weights, f: Activation) -> Step:
        def step(xt: torch.Tensor, state: State) -> State:
            return (f(_clipped(F.linear(xt, p.w, p.wb) + F.linear(state[0], p.r, p.rb), clip)),)

        return step

    parts = zip(_weights(x, w, r, b, count), chosen, strict=True)
    cells = [cell(p, *functions) for p, functions in parts]
    return layer.run(cells, [_initial(layer, initial_h, count, r.shape[2])])


@op("GRU", since=7)
def gru(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> State:
    """Gated recurrent units; the rows of W and R are update, reset and hidden; outputs: Y, Y_h."""
    layer = _layer(x, sequence_lens, direction, layout)
    count, hidden = len(layer.reversals), r.shape[2]
    chosen = _chosen(activations, ("Sigmoid", "Tanh"), count, (activation_alpha, activation_beta))

    def cell(p: Weights, f: Activation, g: Activation) -> Step:
        def step(xt: torch.Tensor, state: State) -> State:
            (h,) = state
            xz, xr, xh = torch.split(F.linear(xt, p.w, p.wb), hidden, dim=-1)
            recurrent = F.linear(h, p.r[: 2 * hidden], p.rb[: 2 * hidden])
            hz, hr = torch.split(recurrent, hidden, dim=-1)
            z, reset = f(_clipped(xz + hz, clip)), f(_clipped(xr + hr, clip))
            rh, rbh = p.r[2 * hidden :], p.rb[2 * hidden :]
            if linear_before_reset:
                carried = reset * F.linear(h, rh, rbh)
            else:
                carried = F.linear(reset * h, rh, rbh)
            candidate = g(_clipped(xh + carried, clip))
            return ((1 - z) * candidate + z * h,)

        return step

    parts = zip(_weights(x, w, r, b, count), chosen, strict=True)
    cells = [cell(p, *functions) for p, functions in parts]
    return layer.run(cells, [_initial(layer, initial_h, count, hidden)])


@op("LSTM", since=7)
def lstm(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    initial_c: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> State:
    """Long short-term memory; the rows of W and R are input, output, forget and cell.

    `p` holds peepholes (directions, 3 * hidden) for input, output and forget. Outputs: Y, Y_h, Y_c.
    """
    layer = _layer(x, sequence_lens, direction, layout)
    count, hidden = len(layer.reversals), r.shape[2]
    parameters = (activation_alpha, activation_beta)
    chosen = _chosen(activations, ("Sigmoid", "Tanh", "Tanh"), count, parameters)
    peepholes = x.new_zeros(count, 3 * hidden) if p is None else beside(p, x)

    def cell(q: Weights, peep: torch.Tensor, functions: Sequence[Activation]) -> Step:
        f, g, last = functions
        peep_i, peep_o, peep_f = torch.split(peep, hidden)

        def step(xt: torch.Tensor, state: State) -> State:
            h, c = state
            gates = F.linear(xt, q.w, q.wb) + F.linear(h, q.r, q.rb)
            i, o, forget, new = torch.split(gates, hidden, dim=-1)
            i = f(_clipped(i + peep_i * c, clip))
            keep = 1 - i if input_forget else f(_clipped(forget + peep_f * c, clip))
            c = keep * c + i * g(_clipped(new, clip))
            return f(_clipped(o + peep_o * c, clip)) * last(c), c

        return step

    weights = _weights(x, w, r, b, count)
    cells = [cell(weights[i], peepholes[i], chosen[i]) for i in range(count)]
    initial = [_initial(layer, state, count, hidden) for state in (initial_h, initial_c)]
    return layer.run(cells, initial)
