"""What an Envoy is given of a response."""

from __future__ import annotations

from kumadp.relay.messages import CLUSTER, Response, encode_response
from kumadp.relay.offer import Delivery, EnvoyOffer
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.resources import changed_names, endpoint_name, policies
from tests.relay.harness import any_of, contents


def delivery(serial: int, **bodies: str) -> Delivery:
    """Return a response with resources of these names and bodies."""
    resources = [any_of(name, body) for name, body in bodies.items()]
    return Delivery(serial, Response.parse(encode_response(CLUSTER, f"v{serial}", resources)))


OLD = delivery(2, a="1", b="1", c="1")
NEW = delivery(4, a="1", b="2", d="2")


def key(of: Delivery, name: str) -> tuple[str, bytes]:
    return of.response.by_name[name].key


def test_a_whole_response_is_passed_on_without_a_copy() -> None:
    offer = EnvoyOffer(NEW, OLD)
    assert offer.message(tuple(offer.resources)) is NEW.response.raw
    assert (offer.version, offer.delivery()) == ("v4", NEW)
    assert key(NEW, "b") in offer
    assert key(OLD, "b") not in offer


def test_the_accepted_resource_stays_in_the_place_of_a_withheld_one() -> None:
    offer = EnvoyOffer(NEW, OLD, [key(NEW, "b"), key(NEW, "d"), key(OLD, "c")])
    assert offer.withheld == {key(NEW, "b"), key(NEW, "d")}
    message = offer.message(tuple(offer.resources))
    assert contents(message) == {any_of("a", "1"), any_of("b", "1")}
    assert Response.parse(message).version == offer.version
    assert offer.version.startswith("v4+")
    accepted = offer.delivery()
    assert set(accepted.response.by_name) == {"a", "b"}
    assert OLD.serial < accepted.serial < NEW.serial
    assert offer.has_content_of(accepted)
    assert not offer.has_content_of(OLD)


def test_nothing_stays_if_the_accepted_resource_is_withheld_too() -> None:
    offer = EnvoyOffer(NEW, OLD, [key(NEW, "b"), key(OLD, "b")])
    assert set(offer.resources) == {"a", "d"}


def test_if_the_accepted_resources_are_left_they_are_sent_as_they_were() -> None:
    changed = delivery(4, a="1", b="2", c="1")
    offer = EnvoyOffer(changed, OLD, [key(changed, "b")])
    assert (offer.version, offer.digest) == ("v2", OLD.response.digest)
    assert offer.message(tuple(offer.resources)) is OLD.response.raw
    assert offer.delivery().response is OLD.response


def test_held_clusters_are_sent_and_not_accepted() -> None:
    offer = EnvoyOffer(NEW, OLD, held={"c": OLD.response.by_name["c"], "b": OLD.response.by_name["b"]})
    assert set(offer.held) == {"c"}
    assert contents(offer.message(tuple(offer.resources))) >= {any_of("c", "1"), any_of("b", "2")}
    assert offer.delivery() is NEW
    assert offer.has_content_of(NEW)
    assert offer.digest != NEW.response.digest


def test_resources_that_cannot_be_requested() -> None:
    odd = Response.parse(encode_response(CLUSTER, "v1", [any_of("a"), b"", any_of("a", "again")]))
    offer = EnvoyOffer(Delivery(2, odd))
    assert len(offer.resources) == 3
    assert len(offer.unnamed) == 2
    assert "a" not in offer.unnamed


def test_names_whose_resource_changed() -> None:
    assert changed_names(OLD.response.by_name, NEW.response.by_name) == ["b", "d"]


def cluster(*fields: bytes) -> Delivery:
    resource = field_bytes(2, field_bytes(1, b"a") + b"".join(fields))
    return Delivery(2, Response.parse(encode_response(CLUSTER, "v1", [resource])))


def test_the_endpoints_of_a_cluster_may_have_another_name() -> None:
    named = cluster(field_bytes(3, field_bytes(1, b"") + field_bytes(2, b"service")))
    unnamed, odd = cluster(field_bytes(3, field_bytes(1, b""))), cluster(field_bytes(3, b"\xff"))
    names = [endpoint_name(each.response.by_name["a"]) for each in (named, unnamed, odd)]
    assert names == ["service", "a", ""]


def test_policies_are_found_by_their_resource_identifiers() -> None:
    texts = (
        b"kri_msvc_default_z__backend_80",
        b"x kri_mhttpr_default_z_ns_route_rule0 y",
        b"kri_mt_default___timeout_",
    )
    (resource,) = cluster(field_bytes(9, b" ".join(texts))).response.by_name.values()
    assert policies(resource) == ("kri_mhttpr_default_z_ns_route_rule0", "kri_mt_default___timeout_")
