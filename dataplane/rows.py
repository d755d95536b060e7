"""Sessions as rows of the control socket, made in C (row.c) out of copies: a hundred thousand in a tenth of a second.

A batch is copied, then written. C does both without Python's lock, and holds a session's own lock only while it copies
that one session.
"""

from collections.abc import Iterator
from typing import Any

from dataplane.ffi import ffi, lib
from dataplane.offload import Refusals
from dataplane.records import Records
from dataplane.sessions import SessionTable

BATCH = 256  # sessions copied at once
ROOM = 1 << 18  # bytes of rows at once, and one more


class Rows:
    """Writes rows, whole ones or columns, for one request."""

    def __init__(self, table: SessionTable, records: Records, refusals: Refusals, columns: bool = False) -> None:
        self._table = table
        self._records = records
        self._refusals = refusals
        self._columns = columns
        self._memory = ffi.new("char[]", 0)

    def all(self, session_filter: Any, start_at: int) -> Iterator[bytes]:
        """Lines of the sessions that pass the filter, in the order of their ids."""
        for batch, n in self._table.copies(session_filter, start_at, BATCH):
            yield from self.of(batch, n)

    def of(self, copies: Any, n: int) -> Iterator[bytes]:
        """Lines of n copies, by names that are not older."""
        known, refusals, done = self._records.known, self._refusals.pointer, 0
        names = known.copy()
        names.now = lib.table_now()
        room = ROOM + lib.ROW_ROOM + lib.ROW_NAMES * names.longest
        out = ffi.new("struct record_text *", {"text": self._text(room), "size": room})
        while done < n:
            done += lib.row_write(copies + done, n - done, self._columns, names, refusals, out)
            yield ffi.buffer(out.text, out.used)[:]

    def _text(self, room: int) -> Any:
        """Memory for so many bytes, the same as before if it is enough."""
        if len(self._memory) < room:
            self._memory = ffi.new("char[]", room)
        return self._memory
