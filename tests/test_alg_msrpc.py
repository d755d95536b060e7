"""The MSRPC gateway: ports that an endpoint mapper tells; scapy writes the messages, in every representation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dcerpc import (
    DceRpc5,
    DceRpc5AbstractSyntax,
    DceRpc5AlterContext,
    DceRpc5AlterContextResp,
    DceRpc5Bind,
    DceRpc5BindAck,
    DceRpc5Context,
    DceRpc5PortAny,
    DceRpc5Request,
    DceRpc5Response,
    DceRpc5Result,
    DceRpc5TransferSyntax,
)
from scapy.layers.msrpce.ept import prot_and_addr_t, protocol_tower_t
from scapy.layers.msrpce.raw.ept import ept_map_Response, twr_p_t

from dataplane.alg.base import CLIENT, SERVER, TCP, Expected
from dataplane.alg.msrpc import ENDPOINT_MAPPER, MAX_KEPT, MAX_MESSAGE, NDR, NDR64, Msrpc
from tests.conversation import Talk, pieces, with_wrong_bytes

SERVER_OWN, OUTSIDE, OTHER, ANY = "10.2.0.2", "10.9.9.9", "10.2.0.99", "0.0.0.0"
ACTIVATOR = "000001a0-0000-0000-c000-000000000046"
WHOLE = 3


def pdu(kind, body, call=1, order="little", flags=WHOLE):
    return bytes(DceRpc5(ptype=kind, pfc_flags=flags, endian=order, call_id=call) / body)


def contexts(interfaces, syntaxes):
    return [
        DceRpc5Context(
            cont_id=number,
            abstract_syntax=DceRpc5AbstractSyntax(if_uuid=interface, if_version=3),
            transfer_syntaxes=[DceRpc5TransferSyntax(if_uuid=syntax, if_version=2)],
        )
        for number, (interface, syntax) in enumerate(zip(interfaces, syntaxes, strict=True))
    ]


def bind(*interfaces, syntaxes=None, order="little"):
    elements = contexts(interfaces, syntaxes or [NDR] * len(interfaces))
    return pdu(11, DceRpc5Bind(context_elem=elements), order=order)


def results(*syntaxes):
    """None for a context that is refused."""
    return [
        DceRpc5Result(
            result=2 * (not syntax), transfer_syntax=DceRpc5TransferSyntax(if_uuid=syntax or NDR, if_version=2)
        )
        for syntax in syntaxes
    ]


def bound(*syntaxes, order="little", port=b"135\0"):
    name = DceRpc5PortAny(port_spec=port)
    return pdu(12, DceRpc5BindAck(sec_addr=name, results=results(*syntaxes)), order=order)


def ask(call=2, context=0, operation=3, **how):
    return pdu(0, DceRpc5Request(cont_id=context, opnum=operation) / bytes(100), call, **how)


def floor(protocol, rhs, **more):
    size = 19 if protocol == 0x0D else 1
    width = 4 if protocol == 0x09 else len(rhs) if isinstance(rhs, bytes) else 2
    return prot_and_addr_t(lhs_length=size, protocol_identifier=protocol, rhs_length=width, rhs=rhs, **more)


def tower(port, host=SERVER_OWN, transport=0x07):
    floors = [floor(0x0D, 0, version=1), floor(0x0D, 0, version=2), floor(0x0B, 0), floor(transport, port)]
    return bytes(protocol_tower_t(floors=[*floors, floor(0x09, host)]))


def pipe():
    floors = [floor(0x0D, 0), floor(0x0D, 0), floor(0x0B, 0), floor(0x0F, b"\\PIPE\\lsass\0"), floor(0x11, b"\\\\DC\0")]
    return bytes(protocol_tower_t(floors=floors))


def tell(*towers, call=2, order="little", wide=False, **how):
    entries = [twr_p_t(tower_octet_string=octets) for octets in towers]
    stub = bytes(ept_map_Response(ITowers=entries, num_towers=len(towers), ndr64=wide, ndrendian=order))
    return pdu(2, DceRpc5Response() / stub, call, order, **how)


def service(port):
    return Expected(SERVER, TCP, port, ("msrpc",), again=True)


def begun(**how):
    """A client that is bound to the endpoint mapper."""
    talk = Talk(Msrpc(), 135, **how)
    assert talk.say(CLIENT, bind(ENDPOINT_MAPPER)) == bind(ENDPOINT_MAPPER)
    assert talk.say(SERVER, bound(NDR)) == bound(NDR)
    return talk


def test_a_service_is_called_on_the_port_that_is_told():
    """More than once; without translation every byte goes on as it was."""
    talk = begun()
    assert talk.say(CLIENT, ask()) == ask()
    assert talk.say(SERVER, tell(tower(49152))) == tell(tower(49152))
    assert talk.expected == [service(49152)]


def test_destination_translation_changes_port_and_address():
    """In every tower that has them; a pipe has none, and stays."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask())
    said = tell(tower(49152), pipe(), tower(49153))
    assert talk.say(SERVER, said) == tell(tower(59152, OUTSIDE), pipe(), tower(59153, OUTSIDE))
    assert talk.expected == [service(49152), service(49153)]


def test_an_address_that_is_left_open_stays_open():
    """The client takes the one that it has asked."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask())
    assert talk.say(SERVER, tell(tower(49152, ANY))) == tell(tower(59152, ANY))


def test_ipv6_leaves_the_address_open():
    """A tower has no room for one."""
    talk = begun(dnat=True, ipv4=False)
    talk.say(CLIENT, ask(), ask(call=3))
    assert talk.say(SERVER, tell(tower(49152, ANY))) == tell(tower(59152, ANY))
    assert talk.say(SERVER, tell(tower(49153), call=3)) == tell(tower(49153), call=3)
    assert talk.expected == [service(49152)]


def test_source_translation_changes_nothing():
    """The client's address stands nowhere."""
    talk = begun(snat=True)
    talk.say(CLIENT, ask())
    assert talk.say(SERVER, tell(tower(49152))) == tell(tower(49152))
    assert talk.expected == [service(49152)]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("wide", [False, True])
def test_every_representation_is_read(order, wide):
    """Whatever the machines of the two are like."""
    talk = Talk(Msrpc(), 135, dnat=True)
    syntax = NDR64 if wide else NDR
    talk.say(CLIENT, bind(ENDPOINT_MAPPER, syntaxes=[syntax], order=order))
    talk.say(SERVER, bound(syntax, order=order))
    talk.say(CLIENT, ask(order=order))
    said = [tell(tower(p, h), tower(p, h), order=order, wide=wide) for p, h in ((49152, SERVER_OWN), (59152, OUTSIDE))]
    assert talk.say(SERVER, said[0]) == said[1]


@pytest.mark.parametrize("port", [b"135\0", b"", b"\\PIPE\\epmapper\0"])
def test_the_server_chooses_among_contexts(port):
    """Which stand behind a name that may have any length."""
    talk = Talk(Msrpc(), 135, dnat=True)
    talk.say(CLIENT, bind(ACTIVATOR, ENDPOINT_MAPPER, ENDPOINT_MAPPER, syntaxes=[NDR, NDR, NDR64]))
    talk.say(SERVER, bound(NDR, None, NDR64, port=port))
    talk.say(CLIENT, *(ask(call, context) for call, context in ((2, 0), (3, 1), (4, 2))))
    talk.say(SERVER, *(tell(tower(40000 + call), call=call, wide=call == 4) for call in (2, 3, 4)))
    assert talk.expected == [service(40004)]


def test_a_context_may_be_added_later():
    """The connection itself has to have begun with the mapper."""
    talk = Talk(Msrpc(), 135)
    talk.say(CLIENT, bind(ENDPOINT_MAPPER))
    talk.say(SERVER, bound(None))
    talk.say(CLIENT, pdu(14, DceRpc5AlterContext(context_elem=contexts([ENDPOINT_MAPPER], [NDR])), 2))
    talk.say(SERVER, pdu(15, DceRpc5AlterContextResp(sec_addr=DceRpc5PortAny(), results=results(NDR)), 2))
    talk.say(CLIENT, ask(call=3))
    talk.say(SERVER, tell(tower(49152), call=3))
    assert talk.expected == [service(49152)]


@pytest.mark.parametrize(
    "octets",
    [
        tower(49152, OTHER),
        tower(135),
        tower(0, ANY),
        tower(49152, transport=0x08),
        tower(49152, transport=0x1F),
        pipe(),
        tower(49152)[:-2],
        tower(49152).replace(b"\x05\0", b"\x06\0", 1),
        b"",
    ],
)
def test_what_is_forbidden_or_odd_opens_nothing(octets):
    """Foreign address, services' ports, UDP, HTTP, pipes, towers that end too early."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask())
    assert talk.say(SERVER, tell(octets)) == tell(octets)
    assert talk.expected == []


def test_a_refused_way_leaves_the_tower_alone():
    """Nobody reads an address where nothing waits."""
    talk = begun(dnat=True, refuse=True)
    talk.say(CLIENT, ask())
    assert talk.say(SERVER, tell(tower(49152))) == tell(tower(49152))


def test_only_an_answer_is_believed():
    """To ept_map, in a context of the mapper, once."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask(call=2, operation=2), ask(call=3, context=1), ask(call=4))
    for call in (1, 2, 3):
        assert talk.say(SERVER, tell(tower(49152), call=call)) == tell(tower(49152), call=call)
    assert talk.expected == []
    talk.say(SERVER, tell(tower(49152), call=4), tell(tower(49153), call=4))
    assert talk.expected == [service(49152)]


def test_only_whole_messages_are_read():
    """Not those in fragments, or sealed, or longer than any sender makes them; all of them go on."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask(), ask(call=3), ask(call=4), ask(call=5, flags=1))
    sealed = bytearray(tell(tower(49152), call=3))
    sealed[10:12] = b"\x10\0"
    long = tell(tower(49152) + bytes(MAX_MESSAGE), call=4)
    said = tell(tower(49152), flags=1) + bytes(sealed) + long + tell(tower(49152), call=5)
    assert talk.say(SERVER, said) == said
    assert talk.expected == []


def test_an_answer_that_is_cut_short_opens_nothing():
    """Not even what its first tower tells."""
    whole = tell(tower(49152), tower(49153))[:-5]  # padding and status are not missed
    for size in range(16, len(whole)):
        talk = begun(dnat=True)
        talk.say(CLIENT, ask())
        short = whole[:8] + size.to_bytes(2, "little") + whole[10:size]
        assert talk.say(SERVER, short) == short
        assert talk.expected == []


def test_a_message_waits_until_it_is_whole():
    """Others do not wait."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask()[:30])
    talk.say(CLIENT, ask()[30:])
    fault, said = pdu(3, bytes(16)), tell(tower(49152))
    assert talk.say(SERVER, fault + said[:-1]) == fault
    assert talk.say(SERVER, said[-1:]) == tell(tower(59152, OUTSIDE))


@pytest.mark.parametrize(
    "first",
    [
        bind(ACTIVATOR),
        ask(),
        b"POST / HTTP/1.1\r\n\r\n" + bind(ENDPOINT_MAPPER),
        b"\x05\x02",
        b"\x05\0\x0b\x03\x10\0\0\0\x0f" + bytes(7),
    ],
)
def test_what_does_not_begin_with_the_mapper_is_left_alone(first):
    """Another service of the same port, or another protocol."""
    talk = Talk(Msrpc(), 135, dnat=True)
    assert talk.say(CLIENT, first) == first
    assert talk.alg.done
    assert talk.say(CLIENT, bind(ENDPOINT_MAPPER)) == bind(ENDPOINT_MAPPER)


@pytest.mark.parametrize("first", [tell(tower(49152)), pdu(13, bytes(8)), b"HTTP/1.1 200 OK\r\n"])
def test_a_server_answers_the_bind(first):
    """Or it has refused, or is something else."""
    talk = Talk(Msrpc(), 135)
    talk.say(CLIENT, bind(ENDPOINT_MAPPER))
    assert talk.say(SERVER, first) == first
    assert talk.alg.done


def test_a_server_does_not_begin():
    """There is nothing yet that it could answer."""
    talk = Talk(Msrpc(), 135)
    talk.say(SERVER, bound(NDR))
    assert talk.alg.done


def test_a_flood_of_calls_keeps_the_newest():
    """Answers to older ones are not read."""
    talk = begun()
    talk.say(CLIENT, *(ask(call) for call in range(200)))
    talk.say(SERVER, *(tell(tower(30000 + call), call=call) for call in range(200)))
    assert talk.expected == [service(30000 + call) for call in range(200 - MAX_KEPT, 200)]


def test_a_flood_of_contexts_keeps_the_newest():
    """A client may add them for ever."""
    talk = begun()
    for context in range(200):
        (offered,) = contexts([ENDPOINT_MAPPER], [NDR])
        offered.cont_id = context
        talk.say(CLIENT, pdu(14, DceRpc5AlterContext(context_elem=[offered])))
        talk.say(SERVER, pdu(15, DceRpc5AlterContextResp(sec_addr=DceRpc5PortAny(), results=results(NDR))))
    talk.say(CLIENT, ask(2, context=199 - MAX_KEPT), ask(3, context=199))
    talk.say(SERVER, tell(tower(40002), call=2), tell(tower(40003), call=3))
    assert talk.expected == [service(40003)]


CONVERSATION = [
    (CLIENT, bind(ACTIVATOR, ENDPOINT_MAPPER), bind(ACTIVATOR, ENDPOINT_MAPPER)),
    (SERVER, bound(None, NDR), bound(None, NDR)),
    (CLIENT, ask(2, 1) + ask(3, 1) + ask(4, 1), ask(2, 1) + ask(3, 1) + ask(4, 1)),
    (
        SERVER,
        tell(tower(49152)) + tell(flags=1, call=3) + tell(pipe(), tower(49153, ANY), call=4),
        tell(tower(59152, OUTSIDE)) + tell(flags=1, call=3) + tell(pipe(), tower(59153, ANY), call=4),
    ),
]


@given(st.sets(st.integers(1, 500)))
def test_no_split_matters(cuts):
    """The same bytes and the same ways, wherever segments end."""
    talk = Talk(Msrpc(), 135, snat=True, dnat=True)
    for side, said, read in CONVERSATION:
        assert talk.say(side, *pieces(said, cuts)) == read
    assert talk.expected == [service(49152), service(49153)]


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(min_size=1, max_size=300)), max_size=20))
def test_no_bytes_do_harm(segments):
    """Nothing is raised, and a stream of nonsense goes on."""
    for talk in (Talk(Msrpc(), 135, dnat=True), begun(dnat=True)):
        for side, segment in segments:
            talk.say(side, segment)


@given(st.binary(max_size=200), st.booleans())
def test_no_answer_does_harm(stub, wide):
    """Nothing is raised, and no length is changed, whatever the mapper answers."""
    talk = begun(dnat=True)
    talk.say(CLIENT, ask())
    said = pdu(2, DceRpc5Response() / (tell(tower(49152))[24:80] + stub if wide else stub), 2)
    assert len(talk.say(SERVER, said)) == len(said)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 500), st.integers(0, 255)), max_size=8))
def test_no_wrong_byte_does_harm(changes):
    """Nothing becomes longer, and no more is opened than is told."""
    said = with_wrong_bytes((text for _, text, _ in CONVERSATION), changes)
    talk = Talk(Msrpc(), 135, dnat=True)
    read = [talk.say(side, text) for (side, _, _), text in zip(CONVERSATION, said, strict=True)]
    assert sum(map(len, read)) <= sum(map(len, said))
    assert len(talk.expected) <= 2
