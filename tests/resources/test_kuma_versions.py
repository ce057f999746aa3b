"""`kumadp validate --kuma` judges as the API of real control planes did, row by row of tests/data/dataplanes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.errors import ResourceError
from kumadp.resources.kuma_versions import ALL, EVERY, KUMA_3, listed
from kumadp.resources.load import load_resource
from kumadp.resources.validate import fields_without_effect
from tests.support.dataplane_verdicts import Verdict, release, table, verdicts
from tests.support.readmes import rows_after

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource

ROWS = table()
SEEN = verdicts()
# Accepted by these control planes, refused by kumadp: it would not work, or kumadp itself serves it.
STRICTER = {
    "advertised address that is none": EVERY,
    "advertised address everywhere": EVERY,
    "two inbounds on one port": EVERY,
    "two outbounds on one port": EVERY,
    "listener on an inbound's port": EVERY - {"2.14", "3.0"},
    "admin on a listener's port": EVERY - {"2.8", "2.13"},
    "transparent proxying with a port too large": EVERY,
    "probes of no inbound": EVERY,
    "probes with a path that is none": KUMA_3,
    "probes without an inbound's port": KUMA_3,
    # kumadp sends the name of the type, which 3.0 refuses.
    "gateway of type 1": KUMA_3,
}
# Whether kumadp accepts what it does not send as it is written: it serves probes itself, and corrects values.
ACCEPTED_BY_KUMADP = {
    "name in capitals": False,
    "probes without a port": True,
    "inbound with state in lower case": True,
    "gateway of type in lower case": True,
}
# The control plane compares it with its own zone, which no file has.
UNKNOWABLE = "label of the zone that differs"


def load(resource: dict[str, Any], version: str = "") -> Resource:
    return load_resource(json.dumps(resource), "dp.yaml", version=version)


def problems(resource: dict[str, Any], version: str = "") -> list[str]:
    try:
        load(resource, version)
    except ResourceError as error:
        return [str(problem) for problem in error.problems]
    return []


def problem_paths(resource: dict[str, Any], version: str) -> list[str]:
    with pytest.raises(ResourceError) as refused:
        load(resource, version)
    return [problem.path for problem in refused.value.problems]


def notes(resource: dict[str, Any], version: str = "") -> list[str]:
    return [str(note).removeprefix("dp.yaml:1: ") for note in load(resource, version).notes]


def test_every_version_is_in_the_table() -> None:
    assert [release(version) for version in sorted(SEEN, key=lambda version: ALL.index(release(version)))] == [*ALL]


@pytest.mark.parametrize("version", SEEN)
def test_each_row_is_judged_as_the_control_plane_did(version: str) -> None:
    assert SEEN[version].keys() == ROWS.keys()
    wrong = {}
    for title, verdict in SEEN[version].items():
        expected = verdict.accepted and release(version) not in STRICTER.get(title, ())
        accepted = not problems(ROWS[title], release(version))
        if accepted != (expected or title == UNKNOWABLE):
            wrong[title] = (verdict, problems(ROWS[title], release(version)))
    assert wrong == {}


@pytest.mark.parametrize("title", STRICTER)
def test_what_only_kumadp_refuses(title: str) -> None:
    accepted_by = {release(version) for version in SEEN if SEEN[version][title].accepted}
    assert accepted_by >= STRICTER[title]
    assert problems(ROWS[title], min(STRICTER[title]))


@pytest.mark.parametrize("title", ROWS)
def test_without_a_version_a_problem_is_what_none_accepts_in_a_bootstrap_request(title: str) -> None:
    accepted = any(
        rows[title].accepted_by_bootstrap and release(version) not in STRICTER.get(title, ())
        for version, rows in SEEN.items()
    )
    assert bool(problems(ROWS[title])) is not ACCEPTED_BY_KUMADP.get(title, accepted)


def field_of(verdict: Verdict) -> str:
    """The field of the control plane's first reason, as kumadp spells it; empty if it names none."""
    field, colon, _ = verdict.text.removeprefix("bad request: ").partition(": ")
    if verdict.accepted or verdict.status == 404 or not colon or " object" in field:
        return ""
    field = field.replace("transparentProxing", "transparentProxying").replace("networking.probes", "probes")
    return re.sub(r'\["([a-z_]+)"\]', r".\1", field)


@pytest.mark.parametrize("version", SEEN)
def test_the_field_is_the_one_that_the_control_plane_named(version: str) -> None:
    """Or one beside it: an inbound that leads to itself has a wrong serviceAddress, or a wrong servicePort."""
    wrong = {}
    for title, verdict in SEEN[version].items():
        field = field_of(verdict)
        if field and title != UNKNOWABLE:
            beside = field[: max(field.rfind("."), field.rfind("["))] or field
            paths = problem_paths(ROWS[title], release(version))
            if not any(path.startswith(beside) or field.startswith(path) for path in paths):
                wrong[title] = (field, paths)
    assert wrong == {}


def test_a_note_names_the_versions_that_refuse() -> None:
    assert notes(ROWS["inbound without tags"]) == [
        "networking.inbound[0].tags: are missing; Kuma 2.8 and 2.13 refuse that "
        "(add kuma.io/service, for control planes before 2.14)",
    ]
    assert notes(ROWS["outbound by tags"]) == [
        "networking.outbound[0].backendRef: is missing: the service is named by tags; Kuma 3.0 refuses that "
        "(write a backendRef to a MeshService)"
    ]
    assert notes(ROWS["gateway of type BUILTIN"]) == [
        "networking.gateway.type: BUILTIN gateways are not supported; Kuma 3.0 refuses that "
        "(run your own proxy as a DELEGATED gateway)"
    ]
    assert notes(ROWS["name with an underscore"]) == [
        "name: 'web_1' has an underscore; the API of Kuma 2.8, 2.13, 2.14 and 3.0 refuses that "
        "(lower-case letters, digits, - and .)"
    ]


def test_one_note_for_all_items_of_a_list() -> None:
    outbound = [{"port": 20000 + index, "tags": {"kuma.io/service": "a"}} for index in range(3)]
    row = {**ROWS["inbound with tags"], "networking": {**ROWS["inbound with tags"]["networking"], "outbound": outbound}}
    (note,) = notes(row)
    assert note.startswith("networking.outbound[0].backendRef: is missing: ")
    assert "Kuma 3.0 refuses that (and 2 more)" in note


def test_each_version_refuses_something_else() -> None:
    """Then nothing accepts the whole, and each problem names who refuses it."""
    assert problems(ROWS["no inbound, an outbound by tags"]) == []
    tree = {**ROWS["no inbound, an outbound by tags"], "metrics": {"type": "graphite"}}
    assert problems(tree) == [
        "dp.yaml:1: networking.inbound: there is no inbound and no gateway; Kuma 2.8 and 2.13 refuse that "
        "(add one, for control planes before 2.14)",
        "dp.yaml:1: networking.outbound[0].backendRef: is missing: the service is named by tags; Kuma 3.0 refuses that "
        "(write a backendRef to a MeshService)",
        "dp.yaml:1: metrics.type: 'graphite' is not known; Kuma 2.8, 2.13 and 2.14 refuse that (write prometheus)",
    ]


def test_what_the_newest_refuses_does_not_distract_from_what_all_refuse() -> None:
    tree = {**ROWS["outbound by tags"], "name": "Web 1"}
    assert problems(tree) == ["dp.yaml:1: name: 'Web 1' is not a name (lower-case letters, digits, - and .)"]


IGNORED = {
    "inbound with tags": ["networking.inbound[0].tags: has no effect (policies and services select by labels)"],
    "inbound with tags, name and protocol": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)"
    ],
    "inbound with protocol tag tcp": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)"
    ],
    "inbound with protocol tag kafka": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
    ],
    "inbound with a protocol tag, service by labels": [
        'networking.inbound[0].tags["kuma.io/protocol"]: has no effect: without the field protocol this inbound is '
        "plain TCP (add protocol: http beside the tags)",
    ],
    "one inbound with tags and one without": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)"
    ],
    "two inbounds with one name": [
        "networking.inbound[0].tags: has no effect (and 1 more) (policies and services select by labels)"
    ],
    "outbound by backendRef and tags": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "networking.outbound[0].tags: has no effect (remove it)",
    ],
    "advertised address": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "networking.advertisedAddress: has no effect (networking.address must be one that others reach)",
    ],
    "metrics": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "metrics: has no effect (use a MeshMetric policy)",
    ],
    "probes": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "probes: has no effect: only kumadp itself serves them (nothing to do, unless --virtual-probes=off)",
    ],
    "reachable services": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "networking.transparentProxying.reachableServices: has no effect (use reachableBackends)",
    ],
    "transparent proxying with IPv6": [
        "networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "networking.transparentProxying.redirectPortInboundV6: has no effect "
        "(remove it: redirectPortInbound is for IPv6 too)",
    ],
    "inbound without tags": [],
    "gateway with tags": [],
    "zone ingress listener": [],
}


@pytest.mark.parametrize("title", IGNORED)
def test_what_kuma_3_ignores(title: str) -> None:
    ignored = fields_without_effect(load(ROWS[title]), "3.0")
    assert [str(problem).removeprefix("dp.yaml:1: ") for problem in ignored] == IGNORED[title]
    assert [note for note in notes(ROWS[title], "3.0") if "kuma.io/workload" not in note] == IGNORED[title]


NO_WORKLOAD = "is missing: the control plane makes no MeshService, and metrics have no service"


@pytest.mark.parametrize(
    ("title", "label", "expected"),
    [
        ("inbound with tags", {}, [NO_WORKLOAD]),
        (
            "inbound without tags",
            {},
            [NO_WORKLOAD],
        ),
        ("inbound without tags", {"kuma.io/workload": "web"}, []),
        ("inbound with tags", {"kuma.io/workload": "web"}, []),
        (
            "inbound with tags",
            {"kuma.io/workload": "shop"},
            ["is shop: the MeshService has this name, and not that of the tag, web, as in Kuma 2"],
        ),
        ("gateway without tags", {}, []),
        ("zone ingress listener", {}, []),
    ],
)
def test_the_label_that_kuma_3_makes_a_mesh_service_by(title: str, label: dict[str, str], expected: list[str]) -> None:
    row = {**ROWS[title], "labels": label}
    remarks = [note for note in load(row, "3.0").notes if note.path == 'labels["kuma.io/workload"]']
    assert [note.message for note in remarks] == expected
    assert [note for note in load(row).notes if note.path.startswith("labels")] == []


def test_what_older_versions_ignore() -> None:
    assert notes(ROWS["inbound with protocol http2"], "2.13") == [
        "networking.inbound[0].protocol: has no effect: this inbound is tcp (add the tag kuma.io/protocol too)"
    ]
    assert notes(ROWS["inbound with protocol http2"], "2.14") == []
    assert notes(ROWS["listener beside an inbound"], "2.8") == [
        "networking.listeners: has no effect (write a ZoneIngress or a ZoneEgress)"
    ]
    assert notes(ROWS["reachable backend by name"], "2.8") == [
        "networking.transparentProxying.reachableBackends: has no effect (use reachableServices)"
    ]


def test_without_a_version_the_loss_of_a_protocol_is_noted_but_not_that_of_tags() -> None:
    assert notes(ROWS["inbound with protocol tag HTTP"]) == [
        'networking.inbound[0].tags["kuma.io/protocol"]: has no effect with Kuma 3.0: without the field protocol this '
        "inbound is plain TCP (add protocol: http beside the tags)"
    ]
    assert notes(ROWS["inbound with protocol tag tcp"]) == []


def test_the_dataplane_for_2_13_to_3_0_has_no_note() -> None:
    assert notes(ROWS["the Dataplane for 2.13 to 3.0"]) == []
    assert all(not problems(ROWS["the Dataplane for 2.13 to 3.0"], version) for version in ALL)


@pytest.mark.parametrize(
    ("versions", "text"),
    [
        (["3.0"], "Kuma 3.0"),
        (["2.13", "2.8"], "Kuma 2.8 and 2.13"),
        (EVERY, "Kuma 2.8, 2.13, 2.14 and 3.0"),
    ],
)
def test_versions_in_a_text(versions: list[str], text: str) -> None:
    assert listed(versions) == text


# Rows of the table in configs/README.md, and the Dataplanes that show the same.
IN_README = {
    "inbound without `tags`": ["inbound without tags"],
    "`protocol` of an inbound": ["inbound with protocol http2"],
    "outbound by `tags`": ["outbound by tags"],
    "outbound by `backendRef` with `name`": ["outbound by backendRef"],
    "outbound by `backendRef` with `labels` alone": ["outbound by backendRef with labels"],
    "`backendRef` beside `tags`": ["outbound by backendRef and tags"],
    "neither inbound nor gateway; `networking.listeners` alone": ["no inbound", "both listeners"],
    "delegated gateway without `tags`": ["gateway without tags"],
    "gateway of type `BUILTIN`; ZoneIngress, ZoneEgress": ["gateway of type BUILTIN", "a ZoneIngress", "a ZoneEgress"],
    "`advertisedAddress`, `metrics`, `reachableServices`": ["advertised address", "metrics", "reachable services"],
    "`probes` (served by kumadp itself with each version)": ["probes"],
    "`reachableBackends`": ["reachable backend by name"],
}


def test_the_table_of_the_readme() -> None:
    rows = rows_after("dataplanes by version")
    assert [row[0] for row in rows] == [*IN_README]
    for title, *cells in rows:
        for version, cell in zip(ALL, cells, strict=True):
            verdict = next(verdict for seen, verdict in SEEN.items() if release(seen) == version)
            accepted = [verdict[row].accepted for row in IN_README[title]]
            assert accepted == [cell != "refused"] * len(accepted), (title, version)
            if cell.startswith("ignored"):
                assert all(fields_without_effect(load(ROWS[row]), version) for row in IN_README[title])
