"""Draws a graph without cycles as boxes in layers, from the top down, with lines between them.

      ┌──────────┐
      │ extract  │
      └─────┬────┘
        ┌───┴─────┐
        ▼         ▼
    ┌──────┐  ┌──────┐
    │ one  │  │ many │
    └──────┘  └──────┘

A layer is as deep as the longest way to it. All edges that leave a box are one *net*: a line that leaves it at one
place and branches. Nets never touch: each enters a box at a place of its own, and where two cross, the one that goes
down is drawn through, `─│─`. What goes further than to the next layer passes those between as a line.

That nets do not run into each other is held by columns. They leave at even ones; where one enters, no other has left
above. So a line that is read from its box ends where its edges end, as `tests/unit/test_cli_graph.py` reads drawings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from cli.canvas import Canvas

SWEEPS = 4
SPACE = 2  # between boxes; even, as columns are counted in twos

Edge = tuple[str, str]


@dataclass(slots=True)
class Slot:
    """A box with `lines` of text, or without any a place where the net of `name` passes. `left` and `width` are even.
    `entries` are the columns where nets come to it."""

    name: str
    lines: Sequence[str] = ()
    width: int = 2
    left: int = 0
    entries: dict[str, int] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        return not self.lines

    @property
    def exit(self) -> int:
        """The column where its net leaves."""
        return self.left if self.passes else self.left + self.width // 4 * 2

    @property
    def middle(self) -> float:
        return self.left + self.width / 2


Layer = Sequence[Slot]


def draw(boxes: Mapping[str, Sequence[str]], edges: Sequence[Edge]) -> list[str]:
    """Lines of text, without spaces at their ends. `boxes` have what is in them, one line at least each."""
    layers = _layers(boxes, edges)
    _order(layers, edges)
    _place(layers, edges)
    canvas = Canvas()
    row = 0
    for upper, lower in zip_longest(layers, layers[1:], fillvalue=()):
        height = 2 + max(len(slot.lines) for slot in upper)
        for slot in upper:
            _draw_slot(canvas, slot, row, height, leaves=bool(_below(slot, lower, edges)))
        row += height
        if lower:
            row = _draw_nets(canvas, upper, lower, edges, row)
    return canvas.lines()


def _layers(boxes: Mapping[str, Sequence[str]], edges: Sequence[Edge]) -> list[list[Slot]]:
    depth = _depths(boxes, edges)
    layers: list[list[Slot]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    entering = {name: sum(target == name for _, target in edges) for name in boxes}
    for name, lines in boxes.items():
        width = max(4 + max(map(len, lines)), 4 * entering[name])
        layers[depth[name]].append(Slot(name, lines, width + width % 2))
    for name in boxes:
        furthest = max((depth[target] for source, target in edges if source == name), default=0)
        for between in range(depth[name] + 1, furthest):
            layers[between].append(Slot(name))
    return layers


def _depths(boxes: Mapping[str, Sequence[str]], edges: Sequence[Edge]) -> dict[str, int]:
    depth = dict.fromkeys(boxes, 0)
    for _ in boxes:
        for source, target in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    return depth


def _below(slot: Slot, lower: Layer, edges: Sequence[Edge]) -> Layer:
    """Where its net goes."""
    wanted = {target for source, target in edges if source == slot.name}
    return [each for each in lower if (each.name == slot.name if each.passes else each.name in wanted)]


def _order(layers: Sequence[list[Slot]], edges: Sequence[Edge]) -> None:
    """Each slot goes near the middle of those that it is joined to, down and up again, while that saves crossings."""
    best = [list(layer) for layer in layers]
    fewest = _crossings(layers, edges)
    for _ in range(SWEEPS):
        for upper, lower in pairwise(layers):
            _sort(lower, _joined(upper, lower, edges))
        for upper, lower in reversed(list(pairwise(layers))):
            _sort(upper, [(below, above) for above, below in _joined(upper, lower, edges)])
        if (count := _crossings(layers, edges)) < fewest:
            best, fewest = [list(layer) for layer in layers], count
    for layer, order in zip(layers, best, strict=True):
        layer[:] = order


def _joined(upper: Layer, lower: Layer, edges: Sequence[Edge]) -> list[tuple[int, int]]:
    """Pairs of places in both."""
    at = {id(slot): place for place, slot in enumerate(lower)}
    return [(place, at[id(below)]) for place, slot in enumerate(upper) for below in _below(slot, lower, edges)]


def _sort(layer: list[Slot], joined: Sequence[tuple[int, int]]) -> None:
    """`joined` are pairs of a place in the neighbour, and one in this layer."""
    neighbours = [[there for there, here in joined if here == place] for place in range(len(layer))]
    means = [sum(places) / len(places) if places else float(own) for own, places in enumerate(neighbours)]
    layer[:] = [layer[place] for place in sorted(range(len(layer)), key=means.__getitem__)]


def _crossings(layers: Sequence[Layer], edges: Sequence[Edge]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        pairs = _joined(upper, lower, edges)
        count += sum(a < c and b > d for a, b in pairs for c, d in pairs)
    return count


def _place(layers: Sequence[Layer], edges: Sequence[Edge]) -> None:
    """Boxes go below the middle of those above them, then above that of those below, and so on."""
    for layer in layers:
        _spread(layer, [[] for _ in layer])
    pairs = list(pairwise(layers))
    for _ in range(SWEEPS):
        for upper, lower in pairs:
            _spread(lower, _above(upper, lower, edges))
        for upper, lower in reversed(pairs):
            _spread(upper, [_below(slot, lower, edges) for slot in upper])
    leftmost = min((slot.left for layer in layers for slot in layer), default=0)
    for slot in (slot for layer in layers for slot in layer):
        slot.left -= leftmost


def _above(upper: Layer, lower: Layer, edges: Sequence[Edge]) -> list[Layer]:
    joined = _joined(upper, lower, edges)
    return [[upper[there] for there, here in joined if here == place] for place in range(len(lower))]


def _spread(layer: Layer, neighbours: Sequence[Layer]) -> None:
    """As near as can be to where they want to be, in their order and without touching."""
    wanted = []
    for slot, near in zip(layer, neighbours, strict=True):
        middle = sum(each.middle for each in near) / len(near) if near else slot.middle
        wanted.append(_even(middle - slot.width / 2))
    right = None
    for slot, left in zip(layer, wanted, strict=True):
        slot.left = left if right is None else max(left, right + SPACE)
        right = slot.left + slot.width
    # Those that were pushed were pushed to the right: have all share it.
    off = [slot.left - left for slot, left in zip(layer, wanted, strict=True)]
    shift = _even(sum(off) / len(off)) if off else 0
    for slot in layer:
        slot.left -= shift


def _even(column: float) -> int:
    return round(column / 2) * 2


def _draw_slot(canvas: Canvas, slot: Slot, row: int, height: int, leaves: bool) -> None:
    if slot.passes:
        (entry,) = slot.entries.values()
        canvas.line(slot.name, (row - 1, entry), (row, entry), (row, slot.exit), (row + height, slot.exit))
    else:
        canvas.box(slot.left, row, slot.width, height, slot.lines)
        if leaves:
            canvas.put(row + height - 1, slot.exit, "┬")


def _draw_nets(canvas: Canvas, upper: Layer, lower: Layer, edges: Sequence[Edge], row: int) -> int:
    """Returns the row below them."""
    nets = [(slot, below) for slot in upper if (below := _below(slot, lower, edges))]
    exits = {slot.exit for slot, _ in nets}
    for each in lower:
        _enter(each, {slot.name: slot.exit for slot, below in nets if any(each is target for target in below)}, exits)
    tracks: list[list[tuple[int, int]]] = []
    chosen: dict[str, int] = {}
    for slot, below in nets:
        columns = [slot.exit, *(each.entries[slot.name] for each in below)]
        if len(set(columns)) > 1:
            chosen[slot.name] = _track(tracks, (min(columns), max(columns)))
    bottom = row + len(tracks)
    for slot, below in nets:
        at = row + chosen.get(slot.name, 0)
        for each in below:
            entry = each.entries[slot.name]
            canvas.line(slot.name, (row - 1, slot.exit), (at, slot.exit), (at, entry), (bottom, entry))
            if not each.passes:
                canvas.put(bottom, entry, "▼")
    return bottom + 1


def _enter(slot: Slot, exits: Mapping[str, int], taken: Collection[int]) -> None:
    """Choose where nets that leave at `exits` enter: straight down if it is wide enough, else in the middle. Nets leave
    above at the columns that are `taken`."""
    inside = range(slot.left + 1, slot.left + slot.width - 1)
    straight = {
        name: column for name, column in exits.items() if column in inside or (slot.passes and column == slot.left)
    }
    others = sorted(exits.keys() - straight.keys(), key=exits.__getitem__)
    slot.entries.update(straight)
    if len(exits) == 1 and slot.exit not in taken:
        slot.entries.update(dict.fromkeys(others, slot.exit))
        return
    if slot.passes:
        slot.entries.update(dict.fromkeys(others, slot.left + 1))
        return
    odd = [column for column in inside if column % 2 and not {column - 1, column + 1} & set(straight.values())]
    first = (len(odd) - len(others)) // 2
    slot.entries.update(zip(others, odd[first:], strict=False))


def _track(tracks: list[list[tuple[int, int]]], span: tuple[int, int]) -> int:
    """The first row that is free there."""
    for number, taken in enumerate(tracks):
        if all(span[1] + 1 < left or right + 1 < span[0] for left, right in taken):
            taken.append(span)
            return number
    tracks.append([span])
    return len(tracks) - 1
