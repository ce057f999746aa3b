"""A DNS query from the command line, for hosts without dig: ``python -m kumadp.cli.demo.dns PORT NAME``."""

from __future__ import annotations

import secrets
import socket
import struct
import sys

from msgspec import Struct

from kumadp.dns.message import HEADER, A, encode_query
from kumadp.errors import KumadpError

RECORD = struct.Struct("!HHIH")


class DnsAnswerError(KumadpError):
    """The message is not a valid answer to the query."""


class DnsAnswer(Struct, frozen=True):
    """Response code (RFC 1035 4.1.1) and the IPv4 addresses of the answer section."""

    code: int
    addresses: tuple[str, ...]


def decode_answer(identity: int, message: bytes) -> DnsAnswer:
    """Decode the answer to the query with that id; raises DnsAnswerError."""
    try:
        answered, flags, questions, answers, _, _ = HEADER.unpack_from(message)
        if answered != identity or not flags & 0x8000:
            raise DnsAnswerError("the message does not answer this query")
        offset = HEADER.size
        for _ in range(questions):
            offset = _skip_name(message, offset) + 4
        addresses = []
        for _ in range(answers):
            offset = _skip_name(message, offset)
            kind, _, _, length = RECORD.unpack_from(message, offset)
            offset += RECORD.size
            if kind == A and length == 4:
                addresses.append(socket.inet_ntoa(message[offset : offset + 4]))
            offset += length
    except (struct.error, IndexError, OSError) as error:
        raise DnsAnswerError(f"the answer cannot be decoded: {error}") from error
    return DnsAnswer(flags & 0xF, tuple(addresses))


def _skip_name(message: bytes, offset: int) -> int:
    while (length := message[offset]) != 0:
        if length & 0xC0:
            return offset + 2
        offset += 1 + length
    return offset + 1


def query(port: int, name: str, *, host: str = "127.0.0.1", timeout: float = 3.0) -> DnsAnswer:
    """Query the A records of ``name`` over UDP; ``timeout`` in seconds. Blocks. Raises OSError and DnsAnswerError."""
    identity = secrets.randbelow(0x10000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(timeout)
        udp.connect((host, port))
        udp.send(encode_query(name, number=identity))
        return decode_answer(identity, udp.recv(4096))


def main(port: str, name: str) -> int:
    """Print the addresses of ``name``; return 1 if there are none."""
    try:
        answer = query(int(port), name)
    except (OSError, ValueError, DnsAnswerError) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    print("\n".join(answer.addresses) or f"no address, response code {answer.code}")
    return 0 if answer.addresses else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
