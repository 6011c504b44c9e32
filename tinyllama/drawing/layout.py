"""Where the boxes of a graph go: a layered drawing, data flowing from top to bottom.             Sugiyama et al. 1981

Boxes get ranks (below everything they need), an order within their rank (few crossings) and columns (chains run
straight down), and edges run through lanes of their own. A lane is a place in every rank between the two ends, kept
free like a box is, so no edge can pass through a foreign box; between two ranks there is nothing but edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean

Point = tuple[float, float]
Link = tuple[int, int]  # from a cell (box or lane) to one in the next rank
GAP = 28.0  # between two neighbours of a rank
LANE = 4.0  # half the width of an edge's lane
PORT = 24.0  # between two edges that enter one box
SWEEPS = 24  # ordering and columns settle in fewer for graphs that fit on a page


@dataclass(frozen=True)
class Extent:
    """A box before it has a place: what it takes to the left and to the right of its axis, where edges come and go."""

    left: float
    right: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Axis and middle of every box; for every edge its points, joined straight where x stays and by an S elsewhere."""

    x: list[float]
    y: list[float]
    paths: list[list[Point]]
    width: float
    height: float


def arrange(extents: Sequence[Extent], edges: Sequence[Link], spine: Sequence[int] = ()) -> Layout:
    """Lay out boxes, in an order where each edge (u, v) has u < v. The boxes of `spine` form a straight left edge."""
    rank = _ranks(len(extents), edges)
    cells = list(extents)
    chains = []  # per edge: its box, its lanes, its box
    for u, v in edges:
        between = range(rank[u] + 1, rank[v])
        chains.append([u, *range(len(cells), len(cells) + len(between)), v])
        cells += [Extent(LANE, LANE, 0.0)] * len(between)
        rank += between
    links = [link for chain in chains for link in pairwise(chain)]
    backbone = {cell for pair in pairwise(spine) if pair in edges for cell in chains[list(edges).index(pair)]}
    rows: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for cell, r in enumerate(rank):
        rows[r].append(cell)

    rows = _order(rows, links, backbone)
    x = _columns(cells, rows, links, backbone, len(extents))
    left = min((x[c] - cells[c].left for c in range(len(cells))), default=0.0)
    x = [round(at - left) for at in x]
    width = max((x[c] + cells[c].right for c in range(len(cells))), default=0.0)

    top: list[float] = []
    middle: list[float] = []
    bottom: list[float] = []
    y = 0.0
    for row in rows:
        height = max(cells[c].height for c in row)
        reach = max((abs(x[a] - x[b]) for a, b in links if b in row), default=0.0)
        y += (34 + min(26.0, reach / 12)) if top else 0.0  # far apart: more room to bend
        top.append(y)
        middle.append(y + height / 2)
        bottom.append(y := y + height)

    entry = _ports(chains, x, cells)
    paths = []
    for i, chain in enumerate(chains):
        u, *lanes, v = chain
        points = [(x[u], middle[rank[u]] + cells[u].height / 2), (x[u], bottom[rank[u]])]
        for lane in lanes:
            points += [(x[lane], top[rank[lane]]), (x[lane], bottom[rank[lane]])]
        points += [(entry[i], top[rank[v]]), (entry[i], middle[rank[v]] - cells[v].height / 2)]
        paths.append(points)
    n = len(extents)
    return Layout(x[:n], [middle[r] for r in rank[:n]], paths, width, y)


def _ranks(n: int, edges: Sequence[Link]) -> list[int]:
    """Each box one below the lowest it needs; one that needs nothing stands just above the first that needs it."""
    rank = [0] * n
    for u, v in sorted(edges, key=lambda edge: edge[1]):
        rank[v] = max(rank[v], rank[u] + 1)
    for source in set(range(n)) - {v for _, v in edges}:
        rank[source] = min((rank[v] for u, v in edges if u == source), default=1) - 1
    return rank


def _order(rows: list[list[int]], links: Sequence[Link], backbone: set[int]) -> list[list[int]]:
    """Sort every rank by the mean place of its neighbours above, then below, and so on; the best order seen wins."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    best, fewest = rows, inf
    for sweep in range(SWEEPS):
        neighbours = below if sweep % 2 else above
        new: list[list[int]] = []
        for row in reversed(rows) if sweep % 2 else rows:
            beside = {cell: i for i, cell in enumerate(new[-1])} if new else {}
            place = {
                cell: fmean(beside[n] for n in neighbours[cell]) if new and cell in neighbours else float(i)
                for i, cell in enumerate(row)
            }
            new.append(sorted(row, key=lambda cell: (cell not in backbone, place[cell])))
        rows = new[::-1] if sweep % 2 else new
        if (crossings := _crossings(rows, links)) < fewest:
            best, fewest = rows, crossings
    return best


def _crossings(rows: list[list[int]], links: Sequence[Link]) -> int:
    at = {cell: i for row in rows for i, cell in enumerate(row)}
    rank = {cell: r for r, row in enumerate(rows) for cell in row}
    return sum(
        rank[a] == rank[c] and (at[a] - at[c]) * (at[b] - at[d]) < 0
        for i, (a, b) in enumerate(links) for c, d in links[:i]
    )  # fmt: skip


def _columns(
    cells: Sequence[Extent], rows: list[list[int]], links: Sequence[Link], backbone: set[int], n_boxes: int
) -> list[float]:
    """An x for every cell. Cells joined by a straight link move as one column; columns keep the order of every rank."""
    column = _straighten(rows, links, backbone, n_boxes)
    distance: dict[Link, float] = {}  # (column, its right neighbour): how far apart at least
    for row in rows:
        for a, b in pairwise(row):
            pair = column[a], column[b]
            distance[pair] = max(distance.get(pair, 0.0), cells[a].right + GAP + cells[b].left)
    x = dict.fromkeys(column.values(), 0.0)
    moved = True
    while moved:  # everything as far left as it can stand; columns never cross, so this ends
        moved = False
        for (a, b), least in distance.items():
            if x[b] < x[a] + least:
                x[b], moved = x[a] + least, True
    pulls: dict[int, list[tuple[int, float]]] = {c: [] for c in x}
    for a, b in links:
        weight = 1.0 if (a in backbone) == (b in backbone) else 0.05  # a branch hangs together more than on the spine
        pulls[column[a]].append((column[b], weight))
        pulls[column[b]].append((column[a], weight))
    fixed = {column[c] for c in backbone}
    for sweep in range(SWEEPS):
        for c in sorted(x, key=lambda c: x[c], reverse=sweep % 2 == 0):
            others = [(x[d], w) for d, w in pulls[c] if d != c]
            if others and c not in fixed:
                wanted = sum(at * w for at, w in others) / sum(w for _, w in others)
                low = max((x[a] + least for (a, b), least in distance.items() if b == c), default=-inf)
                high = min((x[b] - least for (a, b), least in distance.items() if a == c), default=inf)
                x[c] = max(low, min(wanted, high))
    return [x[column[c]] for c in range(len(cells))]


def _straighten(rows: list[list[int]], links: Sequence[Link], backbone: set[int], n_boxes: int) -> dict[int, int]:
    """Which cells share a column, as the topmost cell of each: links chosen so that no two of them meet or cross."""
    at = {cell: i for row in rows for i, cell in enumerate(row)}
    outs: dict[int, list[int]] = {}
    ins: dict[int, list[int]] = {}
    for a, b in links:
        outs.setdefault(a, []).append(at[b])
        ins.setdefault(b, []).append(at[a])

    def importance(link: Link) -> tuple[int, float]:
        a, b = link
        if a in backbone and b in backbone:
            return 0, 0.0
        if min(a, b) >= n_boxes:  # lane to lane
            return 1, 0.0
        off_middle = abs(at[b] - fmean(outs[a])) + abs(at[a] - fmean(ins[b]))
        return 2 + (len(outs[a]) + len(ins[b]) > 2), off_middle

    chosen: dict[int, int] = {}  # lower cell -> upper cell
    for row in rows:
        upper: dict[int, int] = {}
        for a, b in sorted((link for link in links if link[1] in row), key=importance):
            if b not in chosen and all((at[a] - at[c]) * (at[b] - at[d]) > 0 for c, d in upper.items()):
                chosen[b], upper[a] = a, b
    column: dict[int, int] = {}
    for row in rows:
        for cell in row:
            column[cell] = column[chosen[cell]] if cell in chosen else cell
    return column


def _ports(chains: list[list[int]], x: Sequence[float], cells: Sequence[Extent]) -> list[float]:
    """Where each edge enters its box: from left to right as they come; one from straight above stays straight."""
    entry = [0.0] * len(chains)
    for v in {chain[-1] for chain in chains}:
        coming = sorted((i for i, chain in enumerate(chains) if chain[-1] == v), key=lambda i: x[chains[i][-2]])
        straight = [k for k, i in enumerate(coming) if x[chains[i][-2]] == x[v]]
        centre = float(straight[0]) if straight else (len(coming) - 1) / 2
        step = min(PORT, min(cells[v].left, cells[v].right) / len(coming))
        for k, i in enumerate(coming):
            entry[i] = x[v] + (k - centre) * step
    return entry
