"""libfixbuf: the IPFIX library of CERT NetSA, as far as an exporter needs it. It only encodes, into memory.

Loaded when IPFIX is configured, by cffi's ABI mode: a firewall that exports nothing needs neither the library nor
GLib to be installed. Debian's library does not name GLib, whose functions it calls; so GLib is loaded first, for all.
The library's own sockets are not used: they know no time limit.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from cffi import FFI

from dataplane.errors import DataplaneError

MESSAGE = 1400  # bytes of one IPFIX message: a datagram that is not fragmented
END_OF_MESSAGE = 2  # FB_ERROR_EOM

_DECLARATIONS = """
typedef int gboolean;
typedef struct { uint32_t domain; int code; char *message; } GError;
typedef struct fbInfoModel_st fbInfoModel_t;
typedef struct fbTemplate_st fbTemplate_t;
typedef struct fbSession_st fbSession_t;
typedef struct fbExporter_st fbExporter_t;
typedef struct fBuf_st fBuf_t;
typedef struct { char *name; uint16_t len_override; uint32_t flags; } fbInfoElementSpec_t;
void g_error_free(GError *error);
fbInfoModel_t *fbInfoModelAlloc(void);
void fbInfoModelFree(fbInfoModel_t *model);
fbTemplate_t *fbTemplateAlloc(fbInfoModel_t *model);
gboolean fbTemplateAppendSpecArray(fbTemplate_t *tmpl, fbInfoElementSpec_t *spec, uint32_t flags, GError **err);
fbSession_t *fbSessionAlloc(fbInfoModel_t *model);
void fbSessionSetDomain(fbSession_t *session, uint32_t domain);
uint16_t fbSessionAddTemplate(fbSession_t *session, gboolean internal, uint16_t tid, fbTemplate_t *tmpl, GError **err);
gboolean fbSessionExportTemplates(fbSession_t *session, GError **err);
fbExporter_t *fbExporterAllocBuffer(uint8_t *buf, uint16_t bufsize);
size_t fbExporterGetMsgLen(fbExporter_t *exporter);
fBuf_t *fBufAllocForExport(fbSession_t *session, fbExporter_t *exporter);
void fBufSetAutomaticMode(fBuf_t *fbuf, gboolean automatic);
gboolean fBufSetInternalTemplate(fBuf_t *fbuf, uint16_t tid, GError **err);
gboolean fBufSetExportTemplate(fBuf_t *fbuf, uint16_t tid, GError **err);
gboolean fBufAppend(fBuf_t *fbuf, uint8_t *recbase, size_t recsize, GError **err);
gboolean fBufEmit(fBuf_t *fbuf, GError **err);
void fBufFree(fBuf_t *fbuf);
"""

Fields = Sequence[tuple[str, int]]
"""Names of information elements and their lengths in bytes, in the order of a packed record."""


class FixbufError(Exception):
    """What the library says, with its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Encoder:
    """One observation domain: records to messages. One thread's. Raises DataplaneError if the library is not there."""

    def __init__(self, templates: dict[int, Fields], domain: int) -> None:
        self._ffi = FFI()
        self._ffi.cdef(_DECLARATIONS)
        try:
            self._glib = self._ffi.dlopen("libglib-2.0.so.0", self._ffi.RTLD_GLOBAL | self._ffi.RTLD_NOW)
            self._lib = self._ffi.dlopen("libfixbuf.so.9")
        except OSError:
            raise DataplaneError("IPFIX needs libfixbuf (Debian: libfixbuf9)") from None
        self._error = self._ffi.new("GError **")
        self._buffer = self._ffi.new("uint8_t[]", MESSAGE)
        self._template = 0
        model = self._lib.fbInfoModelAlloc()
        session = self._session = self._lib.fbSessionAlloc(model)
        self._lib.fbSessionSetDomain(session, domain)
        for number, fields in templates.items():
            for internal in (True, False):
                template = self._made(model, fields)
                self._check(self._lib.fbSessionAddTemplate(session, internal, number, template, self._error))
        self._exporter = self._lib.fbExporterAllocBuffer(self._buffer, MESSAGE)
        fbuf = self._lib.fBufAllocForExport(session, self._exporter)
        self._fbuf = self._ffi.gc(fbuf, partial(_free, self._lib, model))

    def templates(self) -> bytes:
        """A message that holds every template and no record. Not while records wait for flush()."""
        self._lib.fBufSetAutomaticMode(self._fbuf, True)
        self._check(self._lib.fbSessionExportTemplates(self._session, self._error))
        self._lib.fBufSetAutomaticMode(self._fbuf, False)
        return self._emitted()

    def messages(self, records: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, int]]:
        """(message, how many records): of (template, packed record)."""
        held = 0
        for template, record in records:
            if not self._append(template, record):
                full = self._emitted()
                if held:  # else the library has only repeated its templates
                    yield full, held
                held = 0
                if not self._append(template, record):
                    raise FixbufError(END_OF_MESSAGE, "a record is longer than a message")
            held += 1
        if held:
            yield self._emitted(), held

    def _append(self, template: int, record: bytes) -> bool:
        """False if the message is full."""
        try:
            if template != self._template:
                self._check(self._lib.fBufSetInternalTemplate(self._fbuf, template, self._error))
                self._check(self._lib.fBufSetExportTemplate(self._fbuf, template, self._error))
                self._template = template
            self._check(self._lib.fBufAppend(self._fbuf, record, len(record), self._error))
        except FixbufError as error:
            if error.code != END_OF_MESSAGE:
                raise
            self._template = 0
            return False
        return True

    def _emitted(self) -> bytes:
        self._check(self._lib.fBufEmit(self._fbuf, self._error))
        return bytes(self._ffi.buffer(self._buffer, self._lib.fbExporterGetMsgLen(self._exporter)))

    def _made(self, model: Any, fields: Fields) -> Any:
        names = [self._ffi.new("char[]", name.encode()) for name, _ in fields]
        specs = self._ffi.new("fbInfoElementSpec_t[]", len(fields) + 1)  # the last one is the end
        for spec, name, (_, length) in zip(specs, names, fields, strict=False):
            spec.name, spec.len_override = name, length
        template = self._lib.fbTemplateAlloc(model)
        self._check(self._lib.fbTemplateAppendSpecArray(template, specs, 0, self._error))
        return template

    def _check(self, done: Any) -> None:
        if done:
            return
        error = self._error[0]
        code, message = error.code, self._ffi.string(error.message).decode(errors="replace")
        self._glib.g_error_free(error)
        self._error[0] = self._ffi.NULL
        raise FixbufError(code, message)


def _free(lib: Any, model: Any, fbuf: Any) -> None:
    """What was encoded with, its session, exporter and templates included, and then what those are made from."""
    lib.fBufFree(fbuf)
    lib.fbInfoModelFree(model)
