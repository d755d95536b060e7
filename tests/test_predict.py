"""Expected flows: who is recognised by his first packet, and who has to go."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.flow import Decision, FlowKey
from dataplane.predict import PER_PARENT, Prediction, Predictions

SERVER, CLIENT, STRANGER = 1, 2, 3
PARENT, OTHER = 100, 200
DECISION = Decision(discard=False, egress_zone=1, application=5, rule=1, ingress=1, egress=2)
FIRST = FlowKey(SERVER, CLIENT, 20, 5000, 6, 2, 4)  # the packet that comes
IDS = count(1)


def expected(src=SERVER, sport=20, *, parent=PARENT, again=False, **other):
    """A prediction; 0 for what is not known."""
    key = FIRST._replace(src=src, sport=sport, **other)
    return Prediction(next(IDS), 1, parent, 1, key, DECISION, "ftp-data", again)


def holding(*predictions):
    table = Predictions()
    for prediction in predictions:
        assert table.add(prediction) == []
    return table


@pytest.mark.parametrize(("src", "sport"), [(SERVER, 20), (SERVER, 0), (0, 20), (0, 0)])
def test_what_is_not_known_may_be_anything(src, sport):
    """Exact, from any port, from any address, both: the packet itself matches, and others where they may differ."""
    for key in (FIRST, FIRST._replace(src=STRANGER), FIRST._replace(sport=21), FIRST._replace(src=STRANGER, sport=21)):
        wanted = expected(src, sport)
        matches = src in (0, key.src) and sport in (0, key.sport)
        assert holding(wanted).match(key) is (wanted if matches else None)


@pytest.mark.parametrize(
    "field",
    [{"dst": STRANGER}, {"dport": 5001}, {"proto": 17}, {"zone": 3}, {"family": 6}],
    ids=lambda field: next(iter(field)),
)
def test_the_rest_is_always_known(field):
    """Where a flow goes, how, and where it comes in."""
    assert holding(expected(0, 0)).match(FIRST._replace(**field)) is None


def test_the_most_certain_first():
    """An exact prediction before one for any port, before one for any address, before one for anybody."""
    shapes = [(SERVER, 20), (SERVER, 0), (0, 20), (0, 0)]
    table = holding(*(expected(*shape) for shape in reversed(shapes)))
    assert [table.match(FIRST).key[0:4:2] for _ in shapes] == shapes
    assert table.match(FIRST) is None


def test_a_match_uses_it_up():
    """The second flow is nobody's."""
    wanted = expected()
    table = holding(wanted)
    assert table.match(FIRST) is wanted
    assert table.match(FIRST) is None
    assert table.remove(wanted.id) is None
    assert len(table) == 0


def test_what_may_be_called_again():
    """It stays until it is removed."""
    wanted = expected(again=True)
    table = holding(wanted)
    assert [table.match(FIRST), table.match(FIRST)] == [wanted, wanted]
    assert table.remove(wanted.id) is wanted
    assert table.match(FIRST) is None


def test_the_same_key_replaces():
    """The newer announcement counts, whoever has made it."""
    first, second, third = expected(), expected(), expected(parent=OTHER)
    table = holding(first)
    assert table.add(second) == [first]
    assert table.add(third) == [second]
    assert table.of_parent(PARENT) == []
    assert table.match(FIRST) is third


def test_the_newest_of_a_parent_win():
    """With too many the oldest one goes; other parents keep theirs."""
    older = expected(parent=OTHER, dport=4000)
    many = [expected(dport=5000 + at) for at in range(PER_PARENT)]
    table = holding(older, *many)
    assert table.add(expected(dport=6000)) == [many[0]]
    assert table.match(FIRST) is None
    assert table.add(expected(dport=6001)) == [many[1]]
    assert table.of_parent(PARENT)[:-2] == many[2:]
    assert table.of_parent(OTHER) == [older]


def test_one_that_replaces_makes_no_room():
    """With the most that a parent may have, its own key goes, and only that."""
    many = [expected(dport=5000 + at) for at in range(PER_PARENT)]
    table = holding(*many)
    assert table.add(expected(dport=5003)) == [many[3]]
    assert len(table) == PER_PARENT


def test_another_parents_key_is_no_room_of_ones_own():
    """Whoever replaces it and has too many loses his oldest as well."""
    foreign = expected(parent=OTHER, dport=7000)
    many = [expected(dport=5000 + at) for at in range(PER_PARENT)]
    table = holding(foreign, *many)
    assert table.add(expected(dport=7000)) == [foreign, many[0]]
    assert len(table.of_parent(PARENT)) == PER_PARENT


def test_removed_by_the_id_of_its_session():
    """Whoever has ended is not waited for, and is told of once."""
    wanted, another = expected(), expected(dport=5001)
    table = holding(wanted, another)
    assert table.remove(wanted.id) is wanted
    assert table.remove(wanted.id) is None
    assert table.match(FIRST) is None
    assert table.of_parent(PARENT) == [another]


class Counted(Predictions):
    """Counts the keys that are looked up."""

    lookups = 0

    def _find(self, key):
        self.lookups += 1
        return super()._find(key)


def test_ten_thousand_cost_what_one_costs():
    """One look per shape that exists, none where nothing waits; a shape that is gone is not looked for."""
    table = Counted()
    assert table.match(FIRST) is None
    assert table.lookups == 0
    for at in range(10_000):
        table.add(expected(SERVER, 0, parent=at // PER_PARENT, dport=at + 1024, zone=7))
    assert (table.match(FIRST), table.lookups) == (None, 1)
    anybody, exact = expected(0, 0, zone=7), expected(zone=7)
    for prediction in (anybody, exact):
        table.add(prediction)
    assert (table.match(FIRST), table.lookups) == (None, 4)
    table.remove(anybody.id)
    assert (table.match(FIRST), table.lookups) == (None, 6)
    assert (table.match(exact.key), table.lookups) == (exact, 7)
    assert (table.match(FIRST), table.lookups) == (None, 8)


class Naive:
    """A list, the newest last."""

    def __init__(self, most):
        self.most, self.waiting = most, []

    def add(self, prediction):
        gone = [p for p in self.waiting if p.key == prediction.key]
        left = [p for p in self.waiting if p not in gone]
        siblings = [p for p in left if p.parent == prediction.parent]
        gone += siblings[: max(len(siblings) + 1 - self.most, 0)]
        self.waiting = [p for p in left if p not in gone] + [prediction]
        return gone

    def match(self, key):
        found = [p for p in self.waiting if self._fits(p.key, key)]
        best = max(found, key=lambda p: (p.key.src != 0, p.key.sport != 0), default=None)
        if best is not None and not best.again:
            self.waiting.remove(best)
        return best

    def remove(self, session_id):
        found = next((p for p in self.waiting if p.id == session_id), None)
        self.waiting = [p for p in self.waiting if p is not found]
        return found

    def _fits(self, wanted, key):
        return wanted == key._replace(src=wanted.src and key.src, sport=wanted.sport and key.sport)


ANNOUNCED = st.builds(
    expected,
    st.sampled_from([0, SERVER, STRANGER]),
    st.sampled_from([0, 20, 21]),
    parent=st.sampled_from([PARENT, OTHER]),
    again=st.booleans(),
    dport=st.integers(5000, 5002),
)
PACKETS = st.builds(
    lambda src, sport, dport: FIRST._replace(src=src, sport=sport, dport=dport),
    st.sampled_from([SERVER, STRANGER]),
    st.sampled_from([20, 21]),
    st.integers(5000, 5002),
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.just("add"), ANNOUNCED)
        | st.tuples(st.just("match"), PACKETS)
        | st.tuples(st.just("remove"), st.integers(0, 9)),
        max_size=60,
    )
)
def test_equals_a_list(steps):
    """The same is matched, replaced and removed as in a list that is searched from end to end."""
    table, naive, ids = Predictions(), Naive(4), [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataplane.predict.PER_PARENT", 4)
        for verb, what in steps:
            if verb == "add":
                ids.append(what.id)
            if verb == "remove":
                what = ids[-1 - what % len(ids)]
            assert getattr(table, verb)(what) == getattr(naive, verb)(what)
            assert len(table) == len(naive.waiting)
            for parent in (PARENT, OTHER):
                assert table.of_parent(parent) == [p for p in naive.waiting if p.parent == parent]
