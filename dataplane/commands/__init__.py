"""What each command of the control socket answers: the engine's state as the rows of contract sections 3 and 4.

Every handler takes the request's arguments as they came over the wire, so it validates them; it yields rows.
"""

from dataplane.commands import commit, complete, counters, diagnosis, log, policy, resources, sessions, top
from dataplane.commit import Committer
from dataplane.control import Handler
from dataplane.engine import Engine


def handlers(engine: Engine, committer: Committer) -> dict[str, Handler]:
    """Command -> handler."""
    found: dict[str, Handler] = {}
    for room in (sessions, policy, counters, top, resources, complete, diagnosis, log):
        found |= room.handlers(engine)
    return found | commit.handlers(engine, committer)
