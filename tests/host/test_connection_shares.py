"""Places of a server among its clients: who comes has one, and a crowd costs only itself."""

from __future__ import annotations

from kumadp.host.net.connection_shares import Shares, client_of


class Guest:
    def __init__(self, *, busy: bool = False) -> None:
        self.busy = busy
        self.gone = False

    def may_go(self) -> bool:
        return not self.busy

    def go(self) -> None:
        self.gone = True


def fill(shares: Shares[Guest], client: str, count: int, *, busy: bool = False) -> list[Guest]:
    made = [Guest(busy=busy) for _ in range(count)]
    for guest in made:
        assert shares.make_room(client, local=False)
        shares.add(client, guest)
    return made


def test_a_client_at_its_own_bound_displaces_its_oldest() -> None:
    shares: Shares[Guest] = Shares(10, 3)
    first, second, _ = fill(shares, "a", 3)
    assert shares.make_room("a", local=False)
    assert (first.gone, second.gone, shares.displaced, len(shares)) == (True, False, 1, 2)


def test_who_has_less_displaces_who_has_most_and_never_the_other_way() -> None:
    shares: Shares[Guest] = Shares(6, 6)
    crowd, few = fill(shares, "crowd", 4), fill(shares, "few", 2)
    assert shares.make_room("new", local=False)
    shares.add("new", Guest())
    assert crowd[0].gone
    assert not any(guest.gone for guest in few)
    assert shares.make_room("crowd", local=False)
    assert crowd[1].gone
    assert not any(guest.gone for guest in few)


def test_what_is_busy_stays_and_the_newcomer_does_not_come_in() -> None:
    shares: Shares[Guest] = Shares(2, 2)
    busy = fill(shares, "a", 2, busy=True)
    assert not shares.make_room("a", local=False)
    assert not shares.make_room("b", local=False)
    assert not any(guest.gone for guest in busy)
    shares.remove("a", busy[0])
    shares.remove("a", busy[0])
    assert len(shares) == 1
    assert shares.make_room("b", local=False)


def test_the_reserve_is_for_this_host() -> None:
    shares: Shares[Guest] = Shares(4, 4, 2)
    fill(shares, "a", 2, busy=True)
    assert not shares.make_room("b", local=False)
    assert shares.make_room("127.0.0.1", local=True)


def test_own_members_stay_where_that_is_asked_for() -> None:
    shares: Shares[Guest] = Shares(2, 2)
    fill(shares, "a", 2)
    assert not shares.make_room("a", local=False, own_too=False)
    assert shares.make_room("b", local=False, own_too=False)


def test_a_client_is_its_address_or_its_network_of_64_bits() -> None:
    assert client_of(("127.0.0.9", 1)) == ("127.0.0.9", True)
    assert client_of(("::1", 1, 0, 0)) == ("::1", True)
    assert client_of(("::ffff:192.0.2.1", 1, 0, 0)) == ("192.0.2.1", False)
    assert client_of(("192.0.2.1", 1), ("192.0.2.1", 2)) == ("192.0.2.1", True)
    assert client_of(("2001:db8::5", 1, 0, 0)) == client_of(("2001:db8::6", 1, 0, 0)) == ("2001:db8::/64", False)
    assert client_of(("fe80::1%eth0", 1, 0, 2)) == ("fe80::/64", False)
    assert client_of("") == ("", True)
