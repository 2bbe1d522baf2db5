"""Who a request came from: the address at the other end, or what proxies that are trusted say of it."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from app.domain.api_key import redacted

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

LONGEST_USER_ID = 128

LONGEST_HEADER = 1_024
"""Bytes of a header that are looked at, and remembered: it may be as long as its sender likes."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks or single addresses, separated by commas. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def last_of(forwarded: bytes) -> bytes:
    """The end of an X-Forwarded-For, from a whole address on: nobody is behind more proxies than it names."""
    return forwarded if len(forwarded) <= LONGEST_HEADER else forwarded[-LONGEST_HEADER:].partition(b",")[2]


def client_address(peer: str, forwarded: bytes | None, trusted: Sequence[Network]) -> str:
    """The client of a request that came from `peer` with this X-Forwarded-For. Each proxy appends whom it was asked by,
    so the list is read from its end, for as long as it was a trusted proxy that wrote it. Whatever is no address ends
    it. Empty where the peer has none, as on a Unix socket."""
    at = _parse(peer)
    if at is None:
        return ""
    if forwarded is not None and trusted:
        for said in reversed(forwarded.decode("latin-1").split(",")):
            if not _is_in(at, trusted):
                break
            before = _parse(said.strip())
            if before is None:
                break
            at = before
    return str(at)


def clean_user_id(said: bytes | None) -> str:
    """What a client says in X-User-ID, without what is not printable, and not longer than `LONGEST_USER_ID`."""
    if said is None:
        return ""
    try:
        text = said.decode()
    except UnicodeDecodeError:
        text = said.decode("latin-1")
    printable = "".join(character for character in text if character.isprintable()).strip()
    return redacted(printable)[:LONGEST_USER_ID]  # somebody may take it for the place of their key


def _parse(text: str) -> Address | None:
    """An address with or without a port; IPv4 within IPv6 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
