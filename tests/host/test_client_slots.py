"""Places of a server among its clients: who comes has one, and a crowd costs only itself."""

from __future__ import annotations

from kumadp.host.net.client_slots import ClientSlots, client_of


class Holder:
    def __init__(self, *, busy: bool = False) -> None:
        self.busy = busy
        self.gone = False

    def may_be_displaced(self) -> bool:
        return not self.busy

    def displace(self) -> None:
        self.gone = True


def fill(slots: ClientSlots[Holder], client: str, count: int, *, busy: bool = False) -> list[Holder]:
    created = [Holder(busy=busy) for _ in range(count)]
    for holder in created:
        assert slots.make_room(client, local=False)
        slots.add(client, holder)
    return created


def test_a_client_at_its_own_bound_displaces_its_oldest() -> None:
    slots: ClientSlots[Holder] = ClientSlots(10, 3)
    first, second, _ = fill(slots, "a", 3)
    assert slots.make_room("a", local=False)
    assert (first.gone, second.gone, slots.displaced, len(slots)) == (True, False, 1, 2)


def test_who_has_less_displaces_who_has_most_and_never_the_other_way() -> None:
    slots: ClientSlots[Holder] = ClientSlots(6, 6)
    crowd, few = fill(slots, "crowd", 4), fill(slots, "few", 2)
    assert slots.make_room("new", local=False)
    slots.add("new", Holder())
    assert crowd[0].gone
    assert not any(holder.gone for holder in few)
    assert slots.make_room("crowd", local=False)
    assert crowd[1].gone
    assert not any(holder.gone for holder in few)


def test_what_is_busy_stays_and_the_newcomer_does_not_come_in() -> None:
    slots: ClientSlots[Holder] = ClientSlots(2, 2)
    busy = fill(slots, "a", 2, busy=True)
    assert not slots.make_room("a", local=False)
    assert not slots.make_room("b", local=False)
    assert not any(holder.gone for holder in busy)
    slots.remove("a", busy[0])
    slots.remove("a", busy[0])
    assert len(slots) == 1
    assert slots.make_room("b", local=False)


def test_the_reserve_is_for_this_host() -> None:
    slots: ClientSlots[Holder] = ClientSlots(4, 4, 2)
    fill(slots, "a", 2, busy=True)
    assert not slots.make_room("b", local=False)
    assert slots.make_room("127.0.0.1", local=True)


def test_own_members_stay_if_requested() -> None:
    slots: ClientSlots[Holder] = ClientSlots(2, 2)
    fill(slots, "a", 2)
    assert not slots.make_room("a", local=False, own_too=False)
    assert slots.make_room("b", local=False, own_too=False)


def test_a_client_is_its_address_or_its_network_of_64_bits() -> None:
    assert client_of(("127.0.0.9", 1)) == ("127.0.0.9", True)
    assert client_of(("::1", 1, 0, 0)) == ("::1", True)
    assert client_of(("::ffff:192.0.2.1", 1, 0, 0)) == ("192.0.2.1", False)
    assert client_of(("192.0.2.1", 1), ("192.0.2.1", 2)) == ("192.0.2.1", True)
    assert client_of(("2001:db8::5", 1, 0, 0)) == client_of(("2001:db8::6", 1, 0, 0)) == ("2001:db8::/64", False)
    assert client_of(("fe80::1%eth0", 1, 0, 2)) == ("fe80::/64", False)
    assert client_of("") == ("", True)
