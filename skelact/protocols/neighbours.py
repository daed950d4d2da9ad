"""Exact nearest neighbours by cosine, fast without an index.

Sorting or partitioning every row of a 16,000 x 40,000 similarity matrix costs more than computing it. Here a row is
first reduced to the maxima of blocks of 64 entries: the k nearest neighbours can only lie in the k blocks with the
largest maxima, so the exact selection looks at 64 k entries instead of 40,000. For long features the matrix itself
is the cost; :func:`search` then bounds the similarities from their leading principal directions and computes in full
only those that can still matter, and falls back to the whole product where the bound does not bite.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 64
_SLACK = 1e-5  # rounding of a float32 dot product of unit vectors, with room


@dataclass(frozen=True)
class Neighbours:
    """`index (Q, k)` int64 rows of the gallery, nearest first, and `similarity (Q, k)` float32 cosines."""

    index: Tensor
    similarity: Tensor


def top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact k largest entries of each row, sorted, as `torch.topk` but by way of block maxima.

    Args:
        similarity: `(Q, N)`.
        k: at most N.

    Returns:
        values `(Q, k)` and columns `(Q, k)` int64.
    """
    rows, columns = similarity.shape
    if columns < 4 * k * _BLOCK:
        return similarity.topk(k, dim=1)
    whole = columns // _BLOCK * _BLOCK
    blocks = similarity[:, :whole].unflatten(1, (-1, _BLOCK))
    best = blocks.amax(2).topk(k, dim=1).indices
    value = blocks.gather(1, best[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    column = (best[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=similarity.device)).flatten(1)
    if whole < columns:
        value = torch.cat([value, similarity[:, whole:]], 1)
        rest = torch.arange(whole, columns, device=similarity.device)
        column = torch.cat([column, rest.expand(rows, -1)], 1)
    value, at = value.topk(k, dim=1)
    return value, column.gather(1, at)


def search(queries: Tensor, gallery: Tensor, k: int, chunk: int = 256, bounded: bool | None = None) -> Neighbours:
    """The k nearest gallery rows of every query by cosine, exact in float32.

    Args:
        queries: `(Q, D)`; normalised here, rows of zeros stay zero.
        gallery: `(N, D)`, on the same device.
        k: neighbours wanted, cut to N.
        chunk: queries at a time; 256 x N similarities stay in the cache of a CPU.
        bounded: compute bounds in the leading principal directions first; None tries it on long features and keeps
            it where it pays. The answer is the same either way.

    Raises:
        ValueError: the gallery is empty or the widths differ.
    """
    if len(gallery) == 0:
        raise ValueError("the gallery is empty")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} columns, the gallery {gallery.shape[1]}")
    queries, gallery = F.normalize(queries.float(), dim=1), F.normalize(gallery.float(), dim=1)
    k = min(k, len(gallery))
    index = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    value = torch.empty(len(queries), k, dtype=torch.float32, device=queries.device)
    if bounded is None:
        bounded = queries.device.type == "cpu" and queries.shape[1] >= 512 and min(len(queries), len(gallery)) >= 4096
    bound = _Bound(queries, gallery) if bounded else None
    transposed = gallery.T.contiguous() if bound is None else None  # the faster operand for the matrix product
    buffer = queries.new_empty(min(chunk, len(queries)), len(gallery))
    for first in range(0, len(queries), chunk):
        rows = slice(first, min(first + chunk, len(queries)))
        found = bound.top_k(rows, k) if bound is not None else None
        if found is None:
            if transposed is None:  # the bound did not bite here; it will not elsewhere
                bound, transposed = None, gallery.T.contiguous()
            out = torch.mm(queries[rows], transposed, out=buffer[: rows.stop - rows.start])
            found = top_k(out, k)
        value[rows], index[rows] = found
    return Neighbours(index, value)


class _Bound:
    """Upper bounds of cosines from P orthonormal directions and the length of what they leave out.

    q.g = q_P.g_P + q_R.g_R <= q_P.g_P + |q_R| |g_R| (Cauchy-Schwarz): with the remainder's length as one more
    coordinate the bound is itself a matrix product, of width P + 1 instead of D. Any orthonormal directions are
    valid; leading singular vectors of a sample of the gallery make the remainder small.
    """

    def __init__(self, queries: Tensor, gallery: Tensor, width: int = 256, sample: int = 4096) -> None:
        self.queries, self.gallery = queries, gallery
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(gallery), generator=generator)[:sample].to(gallery.device)
        part = gallery[rows]
        sketch = torch.randn(part.shape[1], width - 1, generator=generator).to(part)
        for _ in range(3):  # subspace iteration (Halko, Martinsson and Tropp, 2011)
            sketch = torch.linalg.qr(part.T @ (part @ sketch)).Q
        padding = -len(gallery) % _BLOCK  # columns that no query can want: bound -4
        low = torch.cat([self._project(gallery, sketch), gallery.new_zeros(len(gallery), 1)], 1)
        low = torch.cat([low, F.pad(low.new_full((padding, 1), -4.0), (low.shape[1] - 1, 0))])
        self.low_gallery = low.T.contiguous()
        self.low_queries = torch.cat([self._project(queries, sketch), queries.new_ones(len(queries), 1)], 1)
        self.buffer = queries.new_empty(0)

    @staticmethod
    def _project(x: Tensor, basis: Tensor) -> Tensor:
        low = x @ basis
        rest = (x.square().sum(1) - low.square().sum(1)).clamp_min(0).sqrt()
        return torch.cat([low, rest[:, None]], 1)

    def top_k(self, rows: slice, k: int) -> tuple[Tensor, Tensor] | None:
        """Exact top k of these queries, or None where so many candidates remain that the whole product is cheaper."""
        queries, count = self.queries[rows], rows.stop - rows.start
        if self.buffer.shape[0] < count:
            self.buffer = queries.new_empty(count, self.low_gallery.shape[1])
        upper = torch.mm(self.low_queries[rows], self.low_gallery, out=self.buffer[:count])
        blocks = upper.unflatten(1, (-1, _BLOCK))
        highest = blocks.amax(2)
        best = highest.topk(min(k, highest.shape[1]), dim=1).indices
        value, at = blocks.gather(1, best[:, :, None].expand(-1, -1, _BLOCK)).flatten(1).topk(k, dim=1)
        guess = best.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK
        per_query = torch.full((count,), k, device=guess.device)
        exact = self._dots(queries, guess.sort(1).values.flatten(), per_query).view(count, k)
        floor = exact.amin(1) - _SLACK  # k gallery rows reach this, so nothing that stays below it can be wanted
        query, block = (highest >= floor[:, None]).nonzero(as_tuple=True)
        if len(query) > count * highest.shape[1] // 4:
            return None
        pair, inside = (blocks[query, block] >= floor[query, None]).nonzero(as_tuple=True)
        query, column = query[pair], block[pair] * _BLOCK + inside
        if len(query) > count * len(self.gallery) // 64:
            return None
        number = query.bincount(minlength=count)
        place = torch.arange(len(query), device=query.device) - (number.cumsum(0) - number)[query]
        shape = (count, int(number.max()))
        values, columns = upper.new_full(shape, -2.0), column.new_zeros(shape)
        values[query, place], columns[query, place] = self._dots(queries, column, number), column
        value, at = values.topk(k, dim=1)
        return value, columns.gather(1, at)

    def _dots(self, queries: Tensor, column: Tensor, number: Tensor) -> Tensor:
        """Dot products of each query with its `number` gallery rows, listed in `column` query after query."""
        first = torch.cat([number.new_zeros(1), number.cumsum(0)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
            pattern = torch.sparse_csr_tensor(
                first, column, queries.new_zeros(len(column)), (len(queries), len(self.gallery)), check_invariants=False
            )
            return torch.sparse.sampled_addmm(pattern, queries, self.gallery.T, beta=0.0).values()
