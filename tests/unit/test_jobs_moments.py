"""A heap of moments, against a plain dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frameworks.jobs.moments import SPARE, Moments

keys = st.sampled_from("abcde")
puts = st.tuples(st.just("put"), keys, st.none() | st.integers(0, 9))
takes = st.tuples(st.just("take"), st.integers(0, 9), st.integers(1, 3))


@given(st.lists(puts | takes))
def test_it_has_the_first_of_what_was_put_last(operations: list[tuple[str, str | int, int | None]]) -> None:
    moments, known = Moments(), dict[str, float]()
    for kind, first, second in operations:
        if kind == "put":
            moments.put(str(first), second)
            known.pop(str(first), None)
            if second is not None:
                known[str(first)] = second
        else:
            taken = moments.take(float(first), int(second or 1))
            due = sorted(at for at in known.values() if at <= float(first))
            assert [known.pop(key) for key in taken] == due[: int(second or 1)]
        assert moments.first() == min(known.values(), default=None)


def test_what_is_of_no_meaning_any_more_takes_no_room() -> None:
    moments = Moments()
    moments.put("kept", 5.0)
    for number in range(10_000):
        moments.put(str(number), float(number))
        moments.put(str(number), None)
    assert len(moments._heap) <= 2 + SPARE and moments.first() == 5.0
