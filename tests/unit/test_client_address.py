"""Whose address is believed, and what is left of what clients say of their users."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.client_address import (
    LONGEST_HEADER,
    LONGEST_USER_ID,
    clean_user_id,
    client_address,
    last_of,
    parse_networks,
)

TRUSTED = parse_networks("10.0.0.0/8, 192.0.2.7,2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", b"198.51.100.1", "203.0.113.9"),  # anybody can say this
        ("10.1.1.1", b"198.51.100.1", "198.51.100.1"),
        ("10.1.1.1", b"1.1.1.1, 198.51.100.1", "198.51.100.1"),  # what the client said before the proxy did
        ("10.1.1.1", b"198.51.100.1, 10.2.2.2,192.0.2.7", "198.51.100.1"),
        ("10.1.1.1", b"10.9.9.9", "10.9.9.9"),
        ("10.1.1.1", b"unknown", "10.1.1.1"),
        ("10.1.1.1", b"198.51.100.1, unknown", "10.1.1.1"),
        ("10.1.1.1", b"", "10.1.1.1"),
        ("10.1.1.1", b"198.51.100.1:4711", "198.51.100.1"),
        ("2001:db8::1", b"[2001:DB8:0::5]:4711, ::ffff:10.0.0.1", "2001:db8::5"),
        ("::ffff:203.0.113.9", None, "203.0.113.9"),
        ("", b"198.51.100.1", ""),
        ("10.1.1.1", b"\xff\xfe", "10.1.1.1"),
    ],
)
def test_a_proxy_is_believed_only_where_it_is_trusted(peer: str, forwarded: bytes | None, client: str) -> None:
    assert client_address(peer, forwarded, TRUSTED) == client


def test_where_nobody_is_trusted_nothing_is_read() -> None:
    assert client_address("10.1.1.1", b"198.51.100.1", ()) == "10.1.1.1"


def test_what_is_no_network_is_refused() -> None:
    assert parse_networks("") == ()
    with pytest.raises(ValueError, match="host bits set"):
        parse_networks("10.0.0.1/8")


@given(st.none() | st.binary(max_size=300))
def test_a_user_id_is_printable_and_short_whatever_was_sent(said: bytes | None) -> None:
    cleaned = clean_user_id(said)
    assert len(cleaned) <= LONGEST_USER_ID
    assert cleaned.isprintable()
    cleaned.encode()


def test_what_is_fine_stays_as_it_is() -> None:
    assert clean_user_id("Zoë-42 ".encode()) == "Zoë-42"
    assert clean_user_id("Zoë".encode("latin-1")) == "Zoë"
    assert clean_user_id(b"a\r\nb\x00c") == "abc"


def test_of_a_long_list_of_proxies_the_end_is_read_from_a_whole_address_on() -> None:
    assert last_of(b"198.51.100.1, 10.0.0.1") == b"198.51.100.1, 10.0.0.1"
    long = b"9" * LONGEST_HEADER + b"212.51.100.1, 198.51.100.1, 10.0.0.1"
    end = last_of(long)
    assert len(end) <= LONGEST_HEADER
    assert client_address("10.1.1.1", end, TRUSTED) == "198.51.100.1"
    hops = b"1.2.3.4," + b"10.200.200.200," * 100
    assert {part for part in last_of(hops).split(b",") if part} == {b"10.200.200.200"}, "none of them is cut"
