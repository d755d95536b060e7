"""What each command of the control socket answers: the engine's state as the rows of contract sections 3 and 4.

Every handler takes the request's arguments as they came over the wire, so it validates them; it yields rows.
"""

from dataplane.commands import counters, log, policy, sessions
from dataplane.control import Handler
from dataplane.engine import Engine


def handlers(engine: Engine) -> dict[str, Handler]:
    """Command -> handler."""
    return {
        name: handler for room in (sessions, policy, counters, log) for name, handler in room.handlers(engine).items()
    }
