"""What is announced to the control plane."""

from __future__ import annotations

from msgspec.structs import replace

from kumadp.controlplane.features import announced_features
from kumadp.settings.model import Settings

EVERYTHING = Settings(
    bind_outbounds=True,
    unified_resource_naming=True,
    spire_supported=True,
    strict_inbound_ports=True,
    reuse_port_enabled=True,
    # What none of it works with yet.
    xds_transport_variant="DELTA_GRPC",
)


def test_the_default_is_kuma_2_14_s_if_it_works() -> None:
    assert announced_features(Settings(), transparent=False) == (
        "feature-tcp-accesslog-via-named-pipe",
        "feature-readiness-unix-socket",
        "feature-strict-inbound-ports",
        "feature-reuse-port",
    )


def test_all_that_works_in_kuma_s_order() -> None:
    assert announced_features(EVERYTHING, transparent=True, resolves=True, pipe=True) == (
        "feature-tcp-accesslog-via-named-pipe",
        "feature-otel-via-kuma-dp",
        "feature-embedded-dns",
        "feature-transparent-proxy-in-dataplane-metadata",
        "feature-bind-outbounds",
        "feature-unified-resource-naming",
        "feature-spire",
        "feature-readiness-unix-socket",
        "feature-strict-inbound-ports",
        "feature-reuse-port",
    )


def test_delta_is_never_announced() -> None:
    """A control plane of 2.x would name it in the bootstrap; without, the bootstrap shows what it speaks itself."""
    settings = replace(EVERYTHING, xds_transport_variant="DELTA_GRPC")
    features = announced_features(settings, transparent=True, resolves=True, pipe=True)
    assert not any("delta" in feature for feature in features)


def test_disabled_features_are_not_announced() -> None:
    off = Settings(readiness_unix_socket_disabled=True, strict_inbound_ports=False, reuse_port_enabled=False)
    assert announced_features(off, transparent=False) == ("feature-tcp-accesslog-via-named-pipe",)


def test_the_embedded_resolver_is_announced_where_it_answers() -> None:
    features = announced_features(Settings(), transparent=False, resolves=True)
    assert features[:2] == ("feature-tcp-accesslog-via-named-pipe", "feature-embedded-dns")
