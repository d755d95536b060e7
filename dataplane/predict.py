"""What an ALG has announced: sessions that are expected, found by their first packet before any rule is asked.

A prediction is a PREDICT session in the table, where it is seen and ages, and an entry here, where it is found: by its
key with 0 for what was not known. Which fields those are makes its shape; a packet is looked for once per shape that
exists, so ten thousand predictions cost what one costs, and none costs nothing.

Whoever matches a prediction has used it up, unless it may be called again. Of one parent the newest PER_PARENT are
kept. The slow path adds and matches, the ager's thread tells what has ended.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field

from dataplane.flow import Decision, FlowKey

PER_PARENT = 64
Shape = tuple[bool, bool]
"""Whether the source address is known, and whether the source port is."""


@dataclass(slots=True)
class Lease:
    """A port of a translated address, lent for as long as a prediction or a session holds it."""

    address: int
    proto: int
    port: int
    holders: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One expected flow and what becomes of it; `key` has 0 for what is not known."""

    id: int
    generation: int
    parent: int
    parent_generation: int
    key: FlowKey
    decision: Decision
    application: str
    again: bool = False
    lease: Lease | None = None
    announced: tuple[int, int, int] = field(default=(0, 0, 0))
    """Side, protocol and port as the ALG has named them."""


class Predictions:
    """Every prediction that waits for its first packet, by the id of its PREDICT session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[int, Prediction] = {}
        self._by_key: dict[FlowKey, int] = {}
        self._shapes: Counter[Shape] = Counter()
        self._children: dict[int, dict[int, None]] = {}  # parent -> ids, the oldest first

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, prediction: Prediction) -> list[Prediction]:
        """Enter it; what has to go instead: one with the same key, and the oldest of a parent that has too many."""
        with self._lock:
            gone = [self._drop(i) for i in self._in_the_way(prediction)]
            self._by_id[prediction.id] = prediction
            self._by_key[prediction.key] = prediction.id
            self._shapes[_shape(prediction.key)] += 1
            self._children.setdefault(prediction.parent, {})[prediction.id] = None
        return gone

    def match(self, key: FlowKey) -> Prediction | None:
        """The prediction that a first packet fulfils. It is used up by that, unless it may be called again."""
        if not self._by_id:
            return None
        with self._lock:
            found = next((self._by_id[i] for i in map(self._find, self._wanted(key)) if i is not None), None)
            return found if found is None or found.again else self._drop(found.id)

    def remove(self, session_id: int) -> Prediction | None:
        """It has ended; None if it is not waiting any more."""
        with self._lock:
            return self._drop(session_id) if session_id in self._by_id else None

    def of_parent(self, parent: int) -> list[Prediction]:
        """What still waits for a session's children, the oldest first."""
        with self._lock:
            return [self._by_id[i] for i in self._children.get(parent, ())]

    def _in_the_way(self, prediction: Prediction) -> list[int]:
        same = self._by_key.get(prediction.key)
        gone = [] if same is None else [same]
        siblings = self._children.get(prediction.parent, {})
        if same not in siblings and len(siblings) >= PER_PARENT:
            gone.append(next(iter(siblings)))
        return gone

    def _wanted(self, key: FlowKey) -> list[FlowKey]:
        """The key as a prediction of each shape would have it, the most certain first."""
        return [
            key._replace(src=key.src if source else 0, sport=key.sport if port else 0)
            for source, port in sorted(self._shapes, reverse=True)
        ]

    def _find(self, key: FlowKey) -> int | None:
        return self._by_key.get(key)

    def _drop(self, session_id: int) -> Prediction:
        prediction = self._by_id.pop(session_id)
        del self._by_key[prediction.key]
        shape = _shape(prediction.key)
        self._shapes[shape] -= 1
        if not self._shapes[shape]:
            del self._shapes[shape]
        siblings = self._children[prediction.parent]
        del siblings[session_id]
        if not siblings:
            del self._children[prediction.parent]
        return prediction


def _shape(key: FlowKey) -> Shape:
    return bool(key.src), bool(key.sport)
