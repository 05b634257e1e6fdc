"""Lines and boxes of characters, at rows and columns. Lines that cross are told from lines that branch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[int, int]  # row, column

UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
SHAPES = {
    UP: "│",
    DOWN: "│",
    UP | DOWN: "│",
    LEFT: "─",
    RIGHT: "─",
    LEFT | RIGHT: "─",
    DOWN | RIGHT: "┌",
    DOWN | LEFT: "┐",
    UP | RIGHT: "└",
    UP | LEFT: "┘",
    UP | DOWN | RIGHT: "├",
    UP | DOWN | LEFT: "┤",
    DOWN | LEFT | RIGHT: "┬",
    UP | LEFT | RIGHT: "┴",
    UP | DOWN | LEFT | RIGHT: "┼",
}


class Canvas:
    def __init__(self) -> None:
        self._text: dict[Point, str] = {}
        self._ways: dict[Point, dict[str, int]] = {}

    def put(self, row: int, column: int, text: str) -> None:
        self._text.update({(row, column + number): letter for number, letter in enumerate(text)})

    def box(self, left: int, top: int, width: int, height: int, lines: Sequence[str]) -> None:
        self.put(top, left, "┌" + "─" * (width - 2) + "┐")
        for number in range(height - 2):
            text = lines[number] if number < len(lines) else ""
            self.put(top + 1 + number, left, f"│ {text:<{width - 4}} │")
        self.put(top + height - 1, left, "└" + "─" * (width - 2) + "┘")

    def line(self, net: str, *points: Point) -> None:
        """From point to point, each in the same row or column as the one before. Lines of one net branch."""
        for (row, column), (to_row, to_column) in pairwise(points):
            for each in range(min(row, to_row), max(row, to_row)):
                self._join(net, (each, column), DOWN, (each + 1, column), UP)
            for each in range(min(column, to_column), max(column, to_column)):
                self._join(net, (to_row, each), RIGHT, (to_row, each + 1), LEFT)

    def lines(self) -> list[str]:
        cells = {point: _shape(list(ways.values())) for point, ways in self._ways.items()} | self._text
        rows: dict[int, dict[int, str]] = {}
        for (row, column), letter in cells.items():
            rows.setdefault(row, {})[column] = letter
        return [_row(rows.get(row, {})) for row in range(max(rows, default=-1) + 1)]

    def _join(self, net: str, one: Point, way: int, other: Point, back: int) -> None:
        for point, direction in ((one, way), (other, back)):
            ways = self._ways.setdefault(point, {})
            ways[net] = ways.get(net, 0) | direction


def _shape(ways: Sequence[int]) -> str:
    """Of those that cross, the one that goes up and down."""
    return SHAPES[next((way for way in ways if way == UP | DOWN), ways[0])]


def _row(letters: dict[int, str]) -> str:
    return "".join(letters.get(column, " ") for column in range(max(letters, default=-1) + 1)).rstrip()
