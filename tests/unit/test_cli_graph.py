"""Drawings of graphs are read again: what their lines join must be what the edges join."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cli.canvas import DOWN, LEFT, RIGHT, SHAPES, UP
from cli.graph import Edge, draw

BACK = {UP: DOWN, DOWN: UP, LEFT: RIGHT, RIGHT: LEFT}
STEPS = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
WAYS = {"┌": DOWN | RIGHT, "┐": DOWN | LEFT, "└": UP | RIGHT, "┘": UP | LEFT, "┼": UP | DOWN | LEFT | RIGHT}
WAYS |= {"├": UP | DOWN | RIGHT, "┤": UP | DOWN | LEFT, "┬": DOWN | LEFT | RIGHT, "┴": UP | LEFT | RIGHT}


@dataclass(frozen=True)
class Box:
    name: str
    top: int
    bottom: int
    left: int
    right: int


class Drawing:
    def __init__(self, lines: Sequence[str], names: Sequence[str]) -> None:
        self.lines = lines
        self.boxes = [self._find(name) for name in names]

    def at(self, row: int, column: int) -> str:
        line = self.lines[row] if 0 <= row < len(self.lines) else ""
        return line[column] if 0 <= column < len(line) else " "

    def _find(self, name: str) -> Box:
        ((row, left),) = [
            (row, line.index(f"│ {name} ")) for row, line in enumerate(self.lines) if f"│ {name} " in line
        ]
        assert self.at(row - 1, left) == "┌"
        right = self.lines[row - 1].index("┐", left)
        bottom = next(each for each in range(row, len(self.lines)) if self.at(each, left) == "└")
        assert self.at(bottom, right) == "┘"
        return Box(name, row - 1, bottom, left, right)

    def edges(self) -> Iterator[Edge]:
        for box in self.boxes:
            for exit in range(box.left + 1, box.right):
                if self.at(box.bottom, exit) == "┬":
                    yield from ((box.name, target) for target in self._follow(box.bottom + 1, exit, DOWN))

    def _follow(self, row: int, column: int, way: int) -> Iterator[str]:
        letter = self.at(row, column)
        if letter == "▼":
            assert way == DOWN
            (entered,) = [box for box in self.boxes if box.top == row + 1 and box.left < column < box.right]
            yield entered.name
            return
        if letter == "│":  # or another one's, which this one crosses
            ways = way
        elif letter == "─":
            assert way in (LEFT, RIGHT), f"a line ends at {row}, {column}"
            ways = way
        else:
            assert WAYS[letter] & BACK[way], f"a line ends at {row}, {column}"
            ways = WAYS[letter] & ~BACK[way]
        assert not ways & UP, f"a line runs into another at {row}, {column}"
        for each in (DOWN, LEFT, RIGHT):
            if ways & each:
                yield from self._follow(row + STEPS[each][0], column + STEPS[each][1], each)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, list[str]], list[Edge]]:
    names = [f"n{number}" * draw(st.integers(1, 3)) for number in range(draw(st.integers(1, 9)))]
    pairs = [(one, other) for number, other in enumerate(names) for one in names[:number]]
    edges = [pair for pair in pairs if draw(st.booleans())]
    return {name: [name, *draw(st.lists(st.just("x"), max_size=2))] for name in names}, edges


@given(graphs())
def test_what_is_joined_is_what_should_be(graph: tuple[dict[str, list[str]], list[Edge]]) -> None:
    boxes, edges = graph
    lines = draw(boxes, edges)
    assert sorted(Drawing(lines, list(boxes)).edges()) == sorted(edges), "\n".join(lines)
    assert all(line == line.rstrip() for line in lines)


def test_every_shape_can_be_read() -> None:
    assert {SHAPES[way]: way for way in SHAPES if bin(way).count("1") > 2} == {
        letter: way for letter, way in WAYS.items() if bin(way).count("1") > 2
    }


def test_a_diamond() -> None:
    boxes = {name: [name] for name in ("extract", "one", "many", "load")}
    edges = [("extract", "one"), ("extract", "many"), ("one", "load"), ("many", "load")]
    assert draw(boxes, edges) == DIAMOND.splitlines()[1:]


def test_what_passes_a_layer_is_a_line() -> None:
    boxes = {name: [name] for name in ("a", "b", "c")}
    assert draw(boxes, [("a", "b"), ("b", "c"), ("a", "c")]) == PASSING.splitlines()[1:]


def test_nothing_and_boxes_alone() -> None:
    assert draw({}, []) == []
    assert draw({"a": ["a", "x"], "b": ["b"]}, []) == [
        "┌────┐  ┌────┐",
        "│ a  │  │ b  │",
        "│ x  │  │    │",
        "└────┘  └────┘",
    ]


DIAMOND = """
    ┌──────────┐
    │ extract  │
    └─────┬────┘
    ┌─────┴───┐
    ▼         ▼
┌──────┐  ┌──────┐
│ one  │  │ many │
└───┬──┘  └───┬──┘
    └┐ ┌──────┘
     ▼ ▼
    ┌──────┐
    │ load │
    └──────┘
"""
PASSING = """
    ┌────┐
    │ a  │
    └─┬──┘
  ┌───┴─┐
  ▼     │
┌────┐  │
│ b  │  │
└─┬──┘  │
  └┐    │
   ▼    ▼
  ┌──────┐
  │ c    │
  └──────┘
"""
