"""What one end of a conversation takes from the other, and from anybody who is in between."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_runtime.link import secure
from sm_runtime.link.secure import Conversation, PeerError, SecretError

SECRET = b"a secret of thirty-two bytes 1234"
LEADER, WORKER = {"host": "algo-1", "job": "j"}, {"host": "algo-2", "job": "j"}
PRIME = secure._PRIME
PAIRS = (secure.new_pair(), secure.new_pair())
TEXTS = st.dictionaries(st.text(max_size=9), st.text(max_size=99), max_size=4)


def ends(
    leaders: bytes = SECRET, workers: bytes = SECRET, **more: Any
) -> tuple[Conversation, Conversation]:
    leader = Conversation(LEADER, leaders, leads=True, pair=PAIRS[0], **more)
    return leader, Conversation(WORKER, workers, leads=False, pair=PAIRS[1])


def greeted(leaders: bytes = SECRET, workers: bytes = SECRET) -> tuple[Conversation, Conversation]:
    leader, worker = ends(leaders, workers)
    assert leader.read(worker.greet()) == worker.read(leader.greet()) == []
    return leader, worker


def greeting(**changes: Any) -> bytes:
    """Return a worker's greeting with other values; None: without the key."""
    found = json.loads(Conversation(WORKER, SECRET, leads=False, pair=PAIRS[1]).opening)
    body = json.dumps({k: v for k, v in {**found, **changes}.items() if v is not None}).encode()
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize("secret", [b"", SECRET], ids=["without a secret", "with one"])
def test_both_ends_hear_what_the_other_says(secret: bytes) -> None:
    leader, worker = greeted(secret, secret)
    assert worker.peer and worker.peer["host"] == "algo-1"
    assert leader.peer and leader.peer["host"] == "algo-2"
    for number in range(3):
        assert leader.read(worker.write({"to": "leader", "n": number})) == [
            {"to": "leader", "n": number}
        ]
        assert worker.read(leader.write({"to": "worker", "n": number})) == [
            {"to": "worker", "n": number}
        ]


@given(messages=st.lists(TEXTS, max_size=4), cuts=st.lists(st.integers(1, 60), min_size=1))
@settings(max_examples=30)
def test_bytes_may_come_in_any_pieces(messages: list[dict[str, str]], cuts: list[int]) -> None:
    leader, worker = ends()
    worker.read(leader.greet())
    stream = worker.greet() + b"".join(map(worker.write, messages))
    heard, at = [], 0
    for size in cuts * len(stream):
        heard += leader.read(stream[at : at + size])
        at += size
    assert heard == messages


def test_bytes_may_come_one_at_a_time() -> None:
    leader, worker = ends()
    worker.read(leader.greet())
    stream = worker.greet() + worker.write({"type": "hello"})
    heard = [message for byte in stream for message in leader.read(bytes([byte]))]
    assert heard == [{"type": "hello"}]


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_a_message_that_was_altered_anywhere_is_refused(at: int, bit: int) -> None:
    leader, worker = greeted()
    genuine = worker.write({"type": "finished", "n": 1})
    altered = bytearray(genuine)
    altered[at % len(genuine)] ^= 1 << bit
    try:
        assert leader.read(bytes(altered)) == []  # a greater length: it waits for the rest
    except PeerError:
        return
    assert altered[:4] > genuine[:4]


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_greetings_that_were_altered_give_no_common_key(at: int, bit: int) -> None:
    leader, worker = ends()
    worker.read(leader.greet())
    altered = bytearray(worker.greet())
    altered[4 + at % (len(altered) - 4)] ^= 1 << bit
    with pytest.raises(PeerError):
        leader.read(bytes(altered) + worker.write({"type": "hello"}))
        raise AssertionError("it was heard")


def test_without_a_secret_an_altered_greeting_is_found_out_as_well() -> None:
    leader, worker = ends(b"", b"")
    worker.read(leader.greet())
    with pytest.raises(PeerError, match="not genuine"):
        leader.read(worker.greet().replace(b"algo-2", b"algo-3") + worker.write({"type": "hello"}))


def test_messages_cannot_be_replayed_reordered_left_out_or_sent_back() -> None:
    _, worker = greeted()
    one, two = worker.write({"n": 1}), worker.write({"n": 2})
    for stream in (one + one, two + one, two, one + two + one):
        leader, _ = ends()
        again = Conversation(WORKER, SECRET, leads=False, pair=PAIRS[1])
        again.read(leader.greet())
        leader.read(again.greet())
        messages = {one: again.write({"n": 1}), two: again.write({"n": 2})}
        for old, new in messages.items():
            stream = stream.replace(old, new)
        with pytest.raises(PeerError):
            leader.read(stream)
    leader, worker = greeted()
    with pytest.raises(PeerError):
        leader.read(leader.write({"type": "beat"}))


def test_a_session_that_was_recorded_is_worth_nothing() -> None:
    leader, worker = ends()
    worker.read(leader.greet())
    recorded = worker.greet() + worker.write({"type": "hello"})
    assert leader.read(recorded) == [{"type": "hello"}]
    another = Conversation(
        LEADER, SECRET, leads=True, pair=PAIRS[0]
    )  # the same Diffie-Hellman pair
    with pytest.raises(SecretError):
        another.read(recorded)


def test_a_greeting_that_is_sent_back_makes_no_leader() -> None:
    leader, _ = ends()
    leader.read(leader.greet())
    with pytest.raises(PeerError):
        leader.read(leader.write({"type": "hello"}))


@pytest.mark.parametrize("other", [b"another secret of thirty bytes", SECRET + b"x", SECRET[:-1]])
def test_another_secret_is_named_as_the_reason(other: bytes) -> None:
    leader, worker = greeted(SECRET, other)
    with pytest.raises(SecretError, match="not have the same SM_RUNTIME_CLUSTER_SECRET"):
        leader.read(worker.write({"type": "hello"}))


@pytest.mark.parametrize(
    ("leaders", "workers", "text"),
    [(SECRET, b"", "this host has"), (b"", SECRET, "the other has")],
)
def test_a_secret_on_one_side_only_is_named(leaders: bytes, workers: bytes, text: str) -> None:
    leader, worker = ends(leaders, workers)
    with pytest.raises(SecretError, match=f"{text} an SM_RUNTIME_CLUSTER_SECRET"):
        leader.read(worker.greet())


def test_to_say_that_there_is_a_secret_is_not_to_have_it() -> None:
    leader, _ = ends()
    with pytest.raises(SecretError):
        leader.read(greeting(secret=True) + struct.pack(">I", 2) + bytes(32) + b"{}")


@pytest.mark.parametrize("public", [0, 1, PRIME - 1, PRIME, PRIME + 1, -2, 2**8000])
def test_a_key_that_gives_itself_away_is_none(public: int) -> None:
    leader, _ = ends()
    with pytest.raises(PeerError, match="its key is none"):
        leader.read(greeting(key=f"{public:x}"))


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\xff\xff\xff\xff",
        struct.pack(">I", secure.GREETING_BYTES + 1),
        struct.pack(">I", 0),
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 4) + b"null",
        struct.pack(">I", 4) + b"\x00\xff\xfe\x80",
        struct.pack(">I", 4096) + b"[" * 4096,
        greeting(key=None),
        greeting(key="xyz"),
        greeting(key=[1]),
        greeting(protocol=None),
        greeting(protocol="sm-runtime/0"),
        greeting(secret=None),
        greeting(secret="true"),
    ],
    ids=lambda _: "greeting",  # not the bytes: nonces differ from process to process
)
def test_what_is_no_greeting_is_refused(stream: bytes) -> None:
    leader, _ = ends()
    with pytest.raises(PeerError):
        leader.read(stream)
    with pytest.raises(PeerError, match="before the greetings"):
        leader.write({"type": "beat"})


@given(st.binary(min_size=4, max_size=9999))
@settings(max_examples=100)
def test_noise_raises_nothing_else_and_is_not_kept(noise: bytes) -> None:
    leader, _ = ends()
    try:
        assert leader.read(noise) == []
    except PeerError:
        return
    assert len(leader._received) <= secure.GREETING_BYTES + 4


def test_nothing_is_computed_for_a_greeting_that_is_not_expected() -> None:
    def examine(found: dict[str, Any]) -> None:
        raise PeerError(f"{found['host']} is not expected")

    leader, worker = ends(examine=examine)
    with pytest.raises(PeerError, match="algo-2 is not expected"):
        leader.read(worker.greet())
    assert not leader.agreed


def test_who_is_not_known_yet_may_not_say_much() -> None:
    leader, worker = greeted()
    long = {"text": "x" * secure.GREETING_BYTES}
    with pytest.raises(PeerError, match="no message"):
        leader.read(worker.write(long)[:4])
    leader, worker = greeted()
    leader.limit = secure.MESSAGE_BYTES
    assert leader.read(worker.write(long)) == [long]
    with pytest.raises(PeerError, match="too long"):
        worker.write({"text": "x" * secure.MESSAGE_BYTES})


def test_every_conversation_has_keys_of_its_own() -> None:
    streams = set()
    for _ in range(3):
        _, worker = greeted()
        streams.add(worker.write({"n": 1}))
    assert len(streams) == 3


def test_the_group_is_number_14_of_rfc_3526() -> None:
    # 2^2048 - 2^1984 - 1 + 2^64 * ([2^1918 pi] + 124476): its ends, and that it is a safe prime.
    assert PRIME.bit_length() == 2048 and PRIME % 2**64 == 2**64 - 1
    assert PRIME >> 1984 == 2**64 - 1
    half = (PRIME - 1) // 2
    assert pow(3, PRIME - 1, PRIME) == pow(3, half - 1, half) == 1
    assert pow(2, half, PRIME) == 1  # 2 generates the group of that order
