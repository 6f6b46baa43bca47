"""A request counts once, for one instance, within its minute, as its author signed it: nothing else does."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsync.auth.keys import SigningKey
from nsync.authority.charter import AuthorId, Charter, FederationId, Incarnation, Instance, Place
from nsync.errors import NotAuthorised
from nsync.transport import requests
from nsync.transport.requests import NONCES_PER_PEER_MAX, WINDOW_MS, Verifier, authorization, body_digest

KEYS = {name: SigningKey(bytes([i]) * 32) for i, name in enumerate("abx", 1)}
A, B, STRANGER = (Instance(n, n, k.public, bytes(16), f"http://{n}", (f"{n}.",), (), {}) for n, k in KEYS.items())
CHARTER = Charter("test", 1, FederationId(b"f" * 16), (A, B))
NOW_MS = 1_700_000_000_000
PATH = "/nsync/v1/pull"
BODY = b"body"


def header(**changes: Any) -> str:
    """A request of a to b, with something else in it."""
    fields: dict[str, Any] = {
        "signer": KEYS["a"],
        "federation": CHARTER.federation,
        "author": A.author,
        "audience": B.author,
        "method": "POST",
        "path": PATH,
        "body": BODY,
        "now_ms": NOW_MS,
        "nonce": bytes(16),
    }
    return authorization(**{**fields, **changes})


def check(value: str, verifier: Verifier | None = None, method: str = "POST", path: str = PATH, now_ms: int = NOW_MS) -> requests.Caller:
    return (verifier or Verifier(CHARTER, B.author)).check(value, method, path, now_ms)


def refuse(text: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(NotAuthorised, match=text):
        check(*args, **kwargs)


def test_a_good_request_names_its_caller() -> None:
    caller = check(header())
    assert caller == (A, body_digest(BODY))
    assert caller.body_digest != body_digest(BODY + b"x")
    assert len(header()) < requests.HEADER_LENGTH_MAX


def test_who_retired_asks_nothing_nor_does_an_incarnation_that_ended() -> None:
    end = Place(7, b"h" * 16)
    gone = replace(CHARTER, instances=(replace(A, retired=end), B))
    refuse("whose log has ended by the charter", header(), Verifier(gone, B.author))
    ended = Incarnation(A.author, A.key, end)
    anew = replace(A, incarnation=b"n" * 16, past=(ended,))
    follows = Verifier(replace(CHARTER, instances=(anew, B)), B.author)
    refuse("whose log has ended by the charter", header(), follows)
    assert check(header(author=anew.author), follows).instance == anew


def test_the_header_is_pinned() -> None:
    digest = "0" * 32
    assert re.sub(r"signature=[0-9a-f]{128}$", "signature=…", header()) == (
        f"nsync author={A.author.hex()}, audience={B.author.hex()}, created={NOW_MS}, "
        f"nonce={digest}, body={body_digest(BODY).hex()}, signature=…"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"author": STRANGER.author, "signer": KEYS["x"]}, "is not in the charter"),
        ({"signer": KEYS["x"]}, "signature does not fit"),
        ({"signer": KEYS["b"]}, "signature does not fit"),
        ({"author": B.author}, "signature does not fit"),
        ({"audience": A.author}, "this is"),
        ({"federation": FederationId(b"g" * 16)}, "signature does not fit"),
        ({"method": "GET"}, "signature does not fit"),
        ({"path": "/nsync/v1/push"}, "signature does not fit"),
        ({"now_ms": NOW_MS - WINDOW_MS - 1}, "60001 ms ago"),
        ({"now_ms": NOW_MS + WINDOW_MS + 1}, "-60001 ms ago"),
    ],
)
def test_a_request_signed_for_something_else_is_refused(changes: dict[str, Any], text: str) -> None:
    refuse(text, header(**changes))


@pytest.mark.parametrize("now_ms", [NOW_MS - WINDOW_MS, NOW_MS + WINDOW_MS])
def test_the_edges_of_the_window_belong_to_it(now_ms: int) -> None:
    check(header(now_ms=now_ms))


@pytest.mark.parametrize(
    "other",
    [
        lambda: header(author=B.author, signer=KEYS["b"]),
        lambda: header(audience=A.author),
        lambda: header(now_ms=NOW_MS + 1),
        lambda: header(nonce=b"\1" * 16),
        lambda: header(body=b"other"),
    ],
)
def test_no_field_can_be_replaced_after_signing(other: Callable[[], str]) -> None:
    """All fields of another good request, with this one's signature."""
    fields, signature = other().rsplit(" ", 1)[0], header().rsplit(" ", 1)[1]
    refuse(".", f"{fields} {signature}")


@given(st.integers(0, 10_000), st.sampled_from("0123456789abcdef, =xZ\n\0é"))
def test_no_character_can_be_replaced(position: int, character: str) -> None:
    good = header()
    position %= len(good)
    changed = good[:position] + character + good[position + 1 :]
    if changed != good:
        refuse(".", changed)


@given(st.text() | st.from_regex(r"nsync author=[0-9a-f]{32}, .*"))
def test_anything_else_is_refused(text: str) -> None:
    refuse(".", text)


@pytest.mark.parametrize("text", ["", "Bearer x", header() + " ", " " + header(), header() + "\n", header().upper(), header() * 2])
def test_malformed_headers_are_refused(text: str) -> None:
    refuse("no nsync Authorization header", text)


def test_method_and_path_are_the_servers() -> None:
    refuse("signature", header(), method="PUT")
    refuse("signature", header(), path="/nsync/v1/push")


def test_a_replay_is_refused_for_as_long_as_it_is_in_the_window() -> None:
    """Signed a minute ahead, sent a minute ahead of that: two minutes."""
    verifier = Verifier(CHARTER, B.author)
    late = header(now_ms=NOW_MS + WINDOW_MS)
    check(late, verifier, now_ms=NOW_MS)
    for later_ms in (0, 1, WINDOW_MS, 2 * WINDOW_MS):
        refuse("twice", late, verifier, now_ms=NOW_MS + later_ms)
    refuse("ms ago", late, verifier, now_ms=NOW_MS + 2 * WINDOW_MS + 1)


def test_nonces_are_one_peers_own() -> None:
    verifier = Verifier(CHARTER, A.author)
    check(header(audience=A.author, author=B.author, signer=KEYS["b"]), verifier)
    check(header(audience=A.author, author=A.author, signer=KEYS["a"]), verifier)


def test_a_refused_request_leaves_no_trace() -> None:
    verifier = Verifier(CHARTER, B.author)
    refuse("signature", header(signer=KEYS["x"]), verifier)
    check(header(), verifier)


def test_the_nonces_of_a_peer_are_bounded_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "verify", lambda *_: True)  # 10 000 signatures would take a second
    verifier = Verifier(CHARTER, B.author)
    signer = Unsigned()
    for n in range(NONCES_PER_PEER_MAX):
        check(header(nonce=n.to_bytes(16, "big"), signer=signer), verifier)
    one_more = NONCES_PER_PEER_MAX.to_bytes(16, "big")
    refuse("more than 10000 requests", header(nonce=one_more, signer=signer), verifier)
    later_ms = NOW_MS + 2 * WINDOW_MS + 1
    check(header(nonce=one_more, signer=signer, now_ms=later_ms), verifier, now_ms=later_ms)


class Unsigned:
    def sign(self, purpose: str, message: bytes) -> bytes:
        return bytes(64)


def test_a_new_incarnation_is_another_author() -> None:
    reborn = replace(B, incarnation=b"2" * 16)
    assert reborn.author != B.author
    refuse("this is", header(), Verifier(replace_instance(reborn), AuthorId(reborn.author)))


def replace_instance(instance: Instance) -> Charter:
    return Charter("test", 1, CHARTER.federation, (A, instance))
