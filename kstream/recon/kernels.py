"""The inner loops of the reconstruction, compiled by numba; each has a slow reference in tests.

They run in one thread and release the interpreter lock, so that a crew can run several and the socket is read
meanwhile. Coils are the innermost axis, real and imaginary parts apart, and padded with zeros to a multiple of
`lanes`, so that one vector instruction serves all of them. Compiled code is kept on disk; `warm_up` loads it before
a scan comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from ..types import Float

F = TypeVar("F", bound=Callable[..., Any])
Index = NDArray[np.int32]
WIDTH = 6
"""Taps of the interpolation from the transform's grid to the fine grid."""


def _compiled(function: F) -> F:
    try:
        return _jit(function, cache=True)
    except RuntimeError:  # neither this folder nor the user's can be written: compile anew in every process
        return _jit(function, cache=False)


def _jit(function: F, cache: bool) -> F:
    wrap = numba.njit(cache=cache, nogil=True, fastmath=True, boundscheck=False, error_model="numpy")
    return cast(F, wrap(function))


def lanes(n_coils: int) -> int:
    """Coils that are worked on at a time."""
    return 8 if n_coils <= 8 else 16


def padded(n_coils: int) -> int:
    """Coils with the empty ones that fill the last vector."""
    step = lanes(n_coils)
    return -(-n_coils // step) * step


def _refine(profile: Float, taps: Float, n_lanes: int, split: Float, fine: Float) -> None:
    """Interpolate profiles ``(u, 2 x coils)``, re and im in turn, to ``(fine u, blocks, re/im, lanes)``, flat."""
    n_phases, n_coils = taps.shape[0], profile.shape[1] // 2
    for j in range(profile.shape[0]):
        for c in range(n_coils):
            at = c + c // n_lanes * n_lanes
            split[j, at] = profile[j, 2 * c]
            split[j, at + n_lanes] = profile[j, 2 * c + 1]
    for j in range(profile.shape[0] - WIDTH + 1):
        p0, p1, p2, p3, p4, p5 = split[j], split[j + 1], split[j + 2], split[j + 3], split[j + 4], split[j + 5]
        for phase in range(n_phases):
            t0, t1, t2, t3, t4, t5 = taps[phase]
            out = fine[j * n_phases + phase]
            for c in range(2 * n_coils):
                out[c] = t0 * p0[c] + t1 * p1[c] + t2 * p2[c] + t3 * p3[c] + t4 * p4[c] + t5 * p5[c]


refine = _compiled(_refine)


def _make_add(n_lanes: int) -> Callable[..., None]:
    """The addition of one angle, with the number of lanes as a constant of the compiled loop.

    Indices are unsigned, computed row by row before they are used, and arrays are cut to the row: otherwise half of
    the instructions would be numba's handling of negative indices.
    """

    def add(
        volume: Float,
        vectors: Float,
        spans: Index,
        profiles: Float,
        taps: Float,
        x_node: Index,
        x_part: Float,
        y_node: Index,
        y_part: Float,
        x_place: Float,
        y_place: Float,
        x_phase: Float,
        y_phase: Float,
        is_turned: bool,
    ) -> None:
        n_slices, n_y, n_x = volume.shape[:3]
        n_nodes, n_coils = vectors.shape[2], vectors.shape[4]
        n_blocks = n_coils // n_lanes
        split = np.empty((profiles.shape[1], 2 * n_coils), np.float32)
        flat = np.empty(((profiles.shape[1] - WIDTH + 1) * len(taps), 2 * n_coils), np.float32)
        fine = flat.reshape(len(flat), n_blocks, 2, n_lanes)
        vector = vectors.reshape(*vectors.shape[:4], n_blocks, n_lanes)
        row = np.empty((n_nodes, 2, n_lanes), np.float32)
        place, part = np.empty(n_x, np.uint32), np.empty(n_x, np.float32)
        line = np.empty((n_x, 2), np.float32)
        for z in range(n_slices):
            refine(profiles[z], taps, n_lanes, split, flat)
            for y in range(n_y):
                first, last = spans[z, y]
                n = last - first
                if n <= 0:
                    continue
                at = x_place[first:last]
                for x in range(n):
                    exact = y_place[y] + at[x]
                    whole = np.int32(exact)
                    place[x], part[x] = whole, exact - np.float32(whole)
                out = volume[z, y, first:last]
                if is_turned:  # what is turned must be apart from what is there
                    out = line[:n]
                    out[:] = 0
                node, h = x_node[first:last], x_part[first:last]
                for block in range(n_blocks):
                    low, high = vector[z, y_node[y]], vector[z, y_node[y] + 1]
                    for i in range(node[0], node[n - 1] + 2):
                        for k in range(2):
                            for c in range(n_lanes):
                                v = low[i, k, block, c]
                                row[i, k, c] = v + y_part[y] * (high[i, k, block, c] - v)
                    for x in range(n):
                        j, a, w, d = place[x], np.uint32(node[x]), part[x], h[x]
                        p, q = fine[j, block], fine[j + np.uint32(1), block]
                        v, u = row[a], row[a + np.uint32(1)]
                        re, im = np.float32(0), np.float32(0)
                        for c in range(n_lanes):
                            p_re = p[0, c] + w * (q[0, c] - p[0, c])
                            p_im = p[1, c] + w * (q[1, c] - p[1, c])
                            v_re = v[0, c] + d * (u[0, c] - v[0, c])
                            v_im = v[1, c] + d * (u[1, c] - v[1, c])
                            re += v_re * p_re + v_im * p_im
                            im += v_re * p_im - v_im * p_re
                        out[x, 0] += re
                        out[x, 1] += im
                if is_turned:
                    for x in range(n):
                        x_re, x_im = x_phase[first + x]
                        t_re = x_re * y_phase[y, 0] - x_im * y_phase[y, 1]
                        t_im = x_re * y_phase[y, 1] + x_im * y_phase[y, 0]
                        re, im = line[x]
                        volume[z, y, first + x, 0] += re * t_re - im * t_im
                        volume[z, y, first + x, 1] += re * t_im + im * t_re

    return _compiled(add)


_ADD = {8: _make_add(8), 16: _make_add(16)}


def add_angle(
    volume: Float,
    vectors: Float,
    spans: Index,
    profiles: Float,
    taps: Float,
    nodes: tuple[Index, Float, Index, Float],
    places: tuple[Float, Float],
    phases: tuple[Float, Float] | None,
) -> None:
    """``m(x, y) += sum_c conj(V_c(x, y)) p_c(x, y)`` for some slices: one angle's share of the combined image.

    Parameters
    ----------
    volume : float32 ``(z, y, x, re/im)``, added to.
    vectors : float32 ``(z, nodes y, nodes x, re/im, coils)``: coil vectors at coarse nodes, interpolated linearly.
    spans : int32 ``(z, y, 2)``: first and last + 1 column of each row that matters.
    profiles : float32 ``(z, u, 2 x coils)``: filtered projections on the transform's grid, re and im in turn.
    taps : float32 ``(phases, WIDTH)``: interpolation of profiles to a grid that is `phases` times finer.
    nodes : node below and distance from it, for every x, then for every y.
    places : position on the fine grid as a sum of a part for x and one for y.
    phases : unit numbers ``(x, re/im)`` and ``(y, re/im)`` to multiply with, if the spoke misses the centre.
    """
    turn = phases or (np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    add = _ADD[lanes(vectors.shape[4])]
    add(volume, vectors, spans, profiles, taps, *nodes, *places, *turn, phases is not None)


def _power(operators: Float, iterations: int, n_sets: int, vectors: Float, values: Float) -> None:
    """Dominant eigenvectors of Hermitian operators ``(points, coils, re/im, coils)`` by the power method.

    All iterations at once: the operator is squared, and multiplied where the binary number of iterations has a one. A
    power that has one eigenvector left is not squared further: three of four voxels of a head after 16 iterations.
    Further sets come from what is left when the found part is taken out; `operators` is overwritten by that.

    Parameters
    ----------
    vectors, values : results ``(sets, points, re/im, coils)`` of unit length, and ``(sets, points)``.
    """
    n_coils = operators.shape[1]
    a = np.empty((n_coils, 2, n_coils), np.float32)
    b = np.empty((n_coils, 2, n_coils), np.float32)
    v = np.empty((2, n_coils), np.float32)
    energy = np.empty(n_coils, np.float32)  # by column, so that one vector instruction serves all
    for point in range(operators.shape[0]):
        operator = operators[point]
        for number in range(n_sets):
            a[:] = operator
            for c in range(n_coils):  # another start for every set: the first found all that its own start has
                v[0, c] = np.float32(np.cos(2 * np.pi * number * c / n_coils))
                v[1, c] = np.float32(np.sin(2 * np.pi * number * c / n_coils))
            left = iterations
            while left > 0:
                trace = np.float32(0)
                for i in range(n_coils):
                    trace += a[i, 0, i]
                if trace < NOTHING:
                    v[:] = 0
                    break
                scale = np.float32(1) / trace
                energy[:] = 0
                for i in range(n_coils):
                    for c in range(n_coils):
                        a[i, 0, c] *= scale
                        a[i, 1, c] *= scale
                        energy[c] += a[i, 0, c] * a[i, 0, c] + a[i, 1, c] * a[i, 1, c]
                if np.sum(energy) > RANK_ONE:
                    _multiply(a, v)
                    break
                if left & 1:
                    _multiply(a, v)
                left >>= 1
                if left > 0:
                    _square(a, b)
                    a, b = b, a
            _normalise(v)
            vectors[number, point] = v
            _multiply(operator, v)
            value = np.sqrt(np.sum(v * v))
            values[number, point] = value
            if number + 1 < n_sets:
                found = vectors[number, point]
                for i in range(n_coils):
                    for c in range(n_coils):
                        operator[i, 0, c] -= value * (found[0, i] * found[0, c] + found[1, i] * found[1, c])
                        operator[i, 1, c] -= value * (found[1, i] * found[0, c] - found[0, i] * found[1, c])


def _square_matrix(a: Float, b: Float) -> None:
    """``b = a a`` for matrices ``(rows, re/im, columns)``."""
    n = a.shape[0]
    for i in range(n):
        b[i] = 0
        for k in range(n):
            re, im = a[i, 0, k], a[i, 1, k]
            for c in range(n):
                b[i, 0, c] += re * a[k, 0, c] - im * a[k, 1, c]
                b[i, 1, c] += re * a[k, 1, c] + im * a[k, 0, c]


def _normalise_vector(v: Float) -> None:
    """Unit length, or 0 if there is nothing."""
    scale = np.float32(1) / np.sqrt(max(np.sum(v * v), TINY))
    v *= scale


def _multiply_vector(a: Float, v: Float) -> None:
    """``v = a v / |v|`` for a Hermitian matrix ``(rows, re/im, columns)`` and a vector ``(re/im, columns)``."""
    _normalise(v)
    out = np.zeros_like(v)
    for k in range(a.shape[0]):  # column k is the conjugate of row k
        re, im = v[0, k], v[1, k]
        for c in range(a.shape[0]):
            out[0, c] += a[k, 0, c] * re + a[k, 1, c] * im
            out[1, c] += a[k, 0, c] * im - a[k, 1, c] * re
    v[:] = out


TINY = np.float32(1e-30)
NOTHING = np.float32(1e-6)
"""Sum of an operator's eigenvalues, of which the largest is at most 1, below which there is only rounding."""
RANK_ONE = np.float32(1 - 1e-6)
"""Sum of the squares of the eigenvalues of an operator whose sum of eigenvalues is 1: all but the largest are below
1e-6, which is the rounding of the vector."""

_square = _compiled(_square_matrix)
_normalise = _compiled(_normalise_vector)
_multiply = _compiled(_multiply_vector)
power = _compiled(_power)


def _interpolate(
    vectors: Float,
    values: Float,
    x_node: Index,
    x_part: Float,
    y_node: Index,
    y_part: Float,
    length: Float,
    value: Float,
) -> None:
    """Length of the interpolated vectors ``(nodes y, nodes x, re/im, coils)``, and interpolated values, ``(y, x)``."""
    n_nodes, n_coils = vectors.shape[1], vectors.shape[3]
    row = np.empty((n_nodes, 2, n_coils), np.float32)
    for y in range(length.shape[0]):
        g, part = y_node[y], y_part[y]
        for i in range(n_nodes):
            for k in range(2):
                for c in range(n_coils):
                    row[i, k, c] = vectors[g, i, k, c] + part * (vectors[g + 1, i, k, c] - vectors[g, i, k, c])
        for x in range(length.shape[1]):
            a, h = x_node[x], x_part[x]
            total = np.float32(0)
            for k in range(2):
                for c in range(n_coils):
                    v = row[a, k, c] + h * (row[a + 1, k, c] - row[a, k, c])
                    total += v * v
            length[y, x] = np.sqrt(total)
            low = values[g, a] + h * (values[g, a + 1] - values[g, a])
            high = values[g + 1, a] + h * (values[g + 1, a + 1] - values[g + 1, a])
            value[y, x] = low + part * (high - low)


interpolate = _compiled(_interpolate)


def warm_up() -> None:
    """Compile everything, or load it from the disk, so that no scan waits for it."""
    from .espirit import coil_maps
    from .zero_wait import SpokeSum

    for n_coils in (4, 12):
        rng = np.random.default_rng(0)
        centre = (rng.standard_normal((n_coils, 1, 9, 9)) + 0j).astype(np.complex64)
        maps = coil_maps(centre, (12, 12), kernel=3, map_size=8, iterations=3)
        total = SpokeSum(maps, np.ones((1, 1), np.complex64))
        for offset in (0, 0.3):
            k = np.stack([np.arange(-6, 6) * 0.5, np.full(12, offset), np.zeros(12)], 1).astype(np.float32)
            total.add(centre[:, :, 0, :1].repeat(12, 2).transpose(1, 0, 2), k, np.ones(12, np.float32))
