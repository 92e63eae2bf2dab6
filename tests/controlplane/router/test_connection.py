import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.router.questions import Question, Whole, read_notify, read_question, read_route
from controlplane.router.spop.connection import MAX_FRAME_BYTES, AgentConnection, State, no_shortcut
from controlplane.router.spop.errors import ProtocolError, Status
from controlplane.router.spop.frames import (
    AgentHello,
    Disconnect,
    HaproxyHello,
    Message,
    Notify,
    decode,
    encode,
)
from controlplane.router.spop.values import Kind, Typed
from controlplane.routing.admission.settings import DEFAULT_PRIORITY
from tests.controlplane.router import recorded
from tests.controlplane.router.test_values import RUNS


def new_connection() -> AgentConnection[Question | Whole]:
    return AgentConnection(read_question)


def ready_connection() -> AgentConnection[Question | Whole]:
    connection = new_connection()
    assert connection.receive(recorded.HELLO) == []
    assert decode(connection.data_to_send()[4:]) == AgentHello(b"2.0", 1_048_572, b"pipelining")
    return connection


def farewell(connection: AgentConnection[Question | Whole]) -> Disconnect:
    frame = decode(connection.data_to_send()[4:])
    assert isinstance(frame, Disconnect)
    assert frame.from_agent
    return frame


def test_handshake_takes_the_smaller_frame() -> None:
    connection = new_connection()
    connection.receive(encode(HaproxyHello(b"1.0, 2.0", 16_380, b"pipelining,async,fragmentation")))
    assert decode(connection.data_to_send()[4:]) == AgentHello(b"2.0", 16_380, b"pipelining")
    with pytest.raises(ProtocolError) as caught:
        connection.receive((16_381).to_bytes(4, "big"))
    assert caught.value.status is Status.TOO_BIG


def test_handshake_never_exceeds_our_own_frame() -> None:
    connection = new_connection()
    connection.receive(encode(HaproxyHello(b"2.0", 1 << 30, b"")))
    assert decode(connection.data_to_send()[4:]) == AgentHello(b"2.0", MAX_FRAME_BYTES, b"pipelining")


def test_healthcheck_is_answered_and_closed() -> None:
    connection = new_connection()
    assert connection.receive(recorded.HEALTHCHECK) == []
    assert isinstance(decode(connection.data_to_send()[4:]), AgentHello)
    assert connection.state is State.CLOSED
    assert connection.receive(recorded.ROUTE) == []


@pytest.mark.parametrize(
    ("hello", "status"),
    [
        (HaproxyHello(b"1.9, 3.0", 1 << 20, b""), Status.BAD_VERSION),
        (HaproxyHello(b"2.0", 255, b""), Status.BAD_FRAME_SIZE),
    ],
)
def test_handshake_refused(hello: HaproxyHello, status: Status) -> None:
    connection = new_connection()
    with pytest.raises(ProtocolError):
        connection.receive(encode(hello))
    assert farewell(connection).status == status
    assert connection.state is State.CLOSED


@pytest.mark.parametrize(
    "data", [recorded.ROUTE, encode(AgentHello(b"2.0", 1 << 20, b"")), b"\0\0\0\x07\x63\0\0\0\x01\0\0"]
)
def test_only_a_hello_opens_a_connection(data: bytes) -> None:
    connection = new_connection()
    with pytest.raises(ProtocolError):
        connection.receive(data)
    assert farewell(connection).status == Status.INVALID


def test_second_hello_is_refused() -> None:
    connection = ready_connection()
    with pytest.raises(ProtocolError, match="not allowed while ready"):
        connection.receive(recorded.HELLO)


def test_unknown_frames_are_skipped_once_ready() -> None:
    connection = ready_connection()
    assert len(connection.receive(b"\0\0\0\x07\x63\0\0\0\x01\0\0" + recorded.ROUTE)) == 1


def test_disconnect_is_answered() -> None:
    connection = ready_connection()
    assert connection.receive(encode(Disconnect(0, b"normal", from_agent=False))) == []
    assert farewell(connection).status == Status.NORMAL
    assert connection.state is State.CLOSED


def test_an_agents_disconnect_is_refused() -> None:
    connection = ready_connection()
    with pytest.raises(ProtocolError):
        connection.receive(encode(Disconnect(0, b"", from_agent=True)))


@RUNS
@given(st.lists(st.integers(1, 400), max_size=60))
def test_any_cut_of_the_stream_gives_the_same_questions(cuts: list[int]) -> None:
    stream = recorded.HELLO + recorded.ROUTE + recorded.FULL + recorded.LONG_ROUTE + recorded.ROUTE
    connection = new_connection()
    events: list[Notify | Question | Whole] = []
    at = 0
    for cut in [*cuts, len(stream)]:
        events += connection.receive(stream[at : at + cut])
        at += cut
    assert [type(event) for event in events] == [Question, Notify, Question, Question]
    assert connection.pending_bytes == 0


@RUNS
@given(
    st.lists(st.sampled_from((0, 1, 300, 8191, 8192, 30_000)), min_size=1, max_size=5),
    st.lists(st.integers(1, 40_000), max_size=30),
)
def test_questions_are_read_where_they_arrived(sizes: list[int], cuts: list[int]) -> None:
    bodies = [bytes((65 + at,)) * size for at, size in enumerate(sizes)]
    stream = recorded.HELLO + b"".join(
        whole_frame(
            7,
            (b"id", Typed.string(b"7F:1_2")),
            (b"kind", Typed(Kind.INT64, 1)),
            (b"tenant", Typed(Kind.NULL, None)),
            (b"size", Typed(Kind.INT64, len(body))),
            (b"model", Typed(Kind.NULL, None)),
            (b"body", Typed(Kind.BINARY, body)),
        )
        for body in bodies
    )
    connection = new_connection()
    shared = bytearray(len(stream))
    found: list[bytes] = []
    at = 0
    for cut in [*cuts, len(stream)]:
        piece = stream[at : at + cut]
        at += cut
        shared[: len(piece)] = piece
        for event in connection.receive(shared, len(piece)):
            assert isinstance(event, Whole)
            found.append(bytes(event.body))
        shared[:] = b"\xff" * len(shared)  # as the next read of any connection would
    assert found == bodies
    assert connection.pending_bytes == 0


@RUNS
@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans())
def test_arbitrary_bytes_raise_only_protocol_errors(chunks: list[bytes], ready: bool) -> None:
    connection = ready_connection() if ready else new_connection()
    try:
        for chunk in chunks:
            connection.receive(chunk)
    except ProtocolError as error:
        assert farewell(connection).status == error.status
        assert connection.state is State.CLOSED
        assert connection.receive(recorded.ROUTE) == []


def test_an_announced_frame_is_not_allocated_before_it_arrives() -> None:
    connection = ready_connection()
    connection.receive((1 << 19).to_bytes(4, "big")[:3])
    connection.receive(b"\x00\x03")
    assert connection.pending_bytes == 5


ID_NUMBER = st.one_of(st.integers(0, 5000), st.integers(0, (1 << 64) - 1))
ARGUMENT = st.one_of(st.just(Typed(Kind.NULL, None)), st.binary(max_size=300).map(Typed.string))


@RUNS
@given(ID_NUMBER, ID_NUMBER, ARGUMENT, ARGUMENT, ARGUMENT)
def test_the_shortcut_agrees_with_the_general_decoder(
    stream_id: int, frame_id: int, request_id: Typed, record: Typed, tenant: Typed
) -> None:
    arguments = ((b"id", request_id), (b"f", record), (b"tenant", tenant))
    data = encode(Notify(stream_id, frame_id, (Message(b"route", arguments),)))
    general = decode(data[4:])
    assert isinstance(general, Notify)
    ids, expected = read_notify(general)
    quick = read_route(b"before" + data[4:] + b"after", 6, len(data) + 2)
    assert quick is None or quick == expected
    if quick is not None:
        assert quick.ids == ids


@RUNS
@given(
    st.sampled_from((recorded.ROUTE, recorded.LONG_ROUTE)),
    st.integers(0, 500),
    st.integers(0, 255),
    st.integers(0, 500),
)
def test_the_shortcut_never_accepts_what_the_decoder_refuses(data: bytes, at: int, byte: int, cut: int) -> None:
    mutated = bytearray(data[4:])
    mutated[at % len(mutated)] = byte
    for frame in (bytes(mutated), bytes(mutated[: cut % len(mutated)])):
        quick = read_route(frame, 0, len(frame))
        if quick is None:
            continue
        notify = decode(frame)
        assert isinstance(notify, Notify)
        assert read_notify(notify) == (quick.ids, quick)


@pytest.mark.parametrize("size", [0, 1, 239, 240, 2287, 2288, 30_000])
def test_the_shortcut_reads_records_of_every_size(size: int) -> None:
    arguments = ((b"id", Typed.string(b"i")), (b"f", Typed.string(b"r" * size)), (b"tenant", Typed.string(b"t")))
    data = encode(Notify(1 << 40, 1, (Message(b"route", arguments),)))
    quick = read_route(data, 4, len(data))
    assert quick is not None
    assert quick[1:] == (b"i", b"r" * size, b"t", None, DEFAULT_PRIORITY)


def test_messages_of_others_have_no_question() -> None:
    assert read_notify(Notify(1, 2, (Message(b"other", ()),))) == (b"\x01\x02", None)
    assert read_notify(Notify(1, 2, (Message(b"route", ()),))) == (b"\x01\x02", None)
    assert read_notify(Notify(1, 2, ())) == (b"\x01\x02", None)


def test_without_a_shortcut_everything_is_a_notify() -> None:
    connection: AgentConnection[Question | Whole] = AgentConnection(no_shortcut)
    connection.receive(recorded.HELLO)
    assert len(connection.receive(recorded.ROUTE)) == 1


INTEGER = st.builds(Typed, st.sampled_from((Kind.INT32, Kind.UINT32, Kind.INT64, Kind.UINT64)), st.integers(0, 1 << 30))
OPTIONS = st.lists(
    st.tuples(
        st.sampled_from((b"model", b"h.x-session-id", b"h.user-agent", b"type", b"other")),
        st.one_of(st.just(Typed(Kind.NULL, None)), st.binary(max_size=12).map(Typed.string), INTEGER),
    ),
    max_size=4,
)
NAME = st.one_of(ARGUMENT, st.from_regex(rb"[!-~]{1,60}", fullmatch=True).map(Typed.string))


def whole_frame(stream_id: int, *arguments: tuple[bytes, Typed]) -> bytes:
    return encode(Notify(stream_id, 1, (Message(b"whole", arguments),)))


@RUNS
@given(
    ID_NUMBER, NAME, INTEGER, NAME, INTEGER, OPTIONS, st.integers(0, 9000), st.sampled_from((Kind.STRING, Kind.BINARY))
)
def test_the_shortcut_of_a_whole_body_agrees_with_the_general_decoder(
    stream_id: int,
    request_id: Typed,
    kind: Typed,
    tenant: Typed,
    size: Typed,
    options: list[tuple[bytes, Typed]],
    length: int,
    body: Kind,
) -> None:
    fixed = ((b"id", request_id), (b"kind", kind), (b"tenant", tenant), (b"size", size))
    data = whole_frame(stream_id, *fixed, *options, (b"body", Typed(body, b"\x04body" * (length // 5))))
    general = decode(data[4:])
    assert isinstance(general, Notify)
    expected = read_notify(general)
    for frame in (data, bytearray(data)):
        quick = read_question(frame, 4, len(frame))
        assert quick is None or (quick.ids, quick) == expected


def test_whole_bodies_take_the_shortcut_and_any_order_is_read() -> None:
    arguments = (
        (b"id", Typed.string(b"7F:1_2")),
        (b"kind", Typed(Kind.INT64, 1)),
        (b"tenant", Typed(Kind.NULL, None)),
        (b"size", Typed(Kind.INT64, 300)),
        (b"model", Typed(Kind.NULL, None)),
        (b"h.x-session-id", Typed.string(b"s")),
        (b"body", Typed(Kind.BINARY, b"b" * 300)),
    )
    data = whole_frame(300, *arguments)
    quick = read_question(data, 4, len(data))
    assert isinstance(quick, Whole)
    assert quick[1:5] == (b"7F:1_2", 1, b"", 300)
    assert quick.options.headers == ((b"x-session-id", b"s"),)
    assert bytes(quick.body) == b"b" * 300
    turned = whole_frame(300, *reversed(arguments))
    assert read_question(turned, 4, len(turned)) is None
    general = decode(turned[4:])
    assert isinstance(general, Notify)
    assert read_notify(general) == (quick.ids, quick)


@RUNS
@given(st.integers(0, 500), st.integers(0, 255), st.integers(0, 500))
def test_the_shortcut_of_a_whole_body_never_accepts_what_the_decoder_refuses(at: int, byte: int, cut: int) -> None:
    fixed = ((b"id", Typed.string(b"7F:1_2")), (b"kind", Typed(Kind.INT64, 1)), (b"tenant", Typed.string(b"t")))
    data = whole_frame(
        300,
        *fixed,
        (b"size", Typed(Kind.INT64, 3000)),
        (b"h.x-session-id", Typed(Kind.NULL, None)),
        (b"body", Typed(Kind.BINARY, b"b" * 300)),
    )[4:]
    mutated = bytearray(data)
    mutated[at % len(mutated)] = byte
    for frame in (bytes(mutated), bytes(mutated[: cut % len(mutated)])):
        quick = read_question(frame, 0, len(frame))
        if quick is not None:
            notify = decode(frame)
            assert isinstance(notify, Notify)
            assert read_notify(notify) == (quick.ids, quick)
