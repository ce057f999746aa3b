"""What the API of real control planes answers to the Dataplanes of ``tests/data/dataplanes/table.yaml``.

``KUMA_CP=.../kuma-cp python -m tests.support.dataplane_verdicts 2.14.3`` adds the answers of one version to
``verdicts.json``. ``3.0-dev`` there is the development snapshot of 2026-08-21.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import tempfile
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from kumadp.resources.types import PROXY_TYPES
from tests.support.kuma_control_plane import DATA_PLANE_SERVER, KumaControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).resolve().parent.parent / "data/dataplanes"
VERDICTS = FOLDER / "verdicts.json"
MAX_TEXT = 400


class Verdict(NamedTuple):
    """The status of the API's answer, its text (for a refused resource each field and what is wrong with it), and the
    status of the answer to a bootstrap request with the resource."""

    status: int
    text: str
    bootstrap: int

    @property
    def accepted(self) -> bool:
        return self.status < 300

    @property
    def accepted_by_bootstrap(self) -> bool:
        return self.bootstrap < 300


def table() -> dict[str, dict[str, Any]]:
    """Return the Dataplanes by what is particular about them."""
    rows: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "table.yaml").read_text(encoding="utf-8"))
    return {title: _complete(row) for title, row in rows.items()}


def _complete(row: dict[str, Any]) -> dict[str, Any]:
    resource = {"type": "Dataplane", "mesh": "default", "name": "dp-1", **row}
    if resource["networking"] is None:
        del resource["networking"]
    else:
        resource["networking"] = {"address": "192.0.2.1", **resource["networking"]}
    return resource


def verdicts() -> dict[str, dict[str, Verdict]]:
    """Return the stored answers by version, then by row."""
    stored = json.loads(VERDICTS.read_text(encoding="utf-8"))
    return {version: {title: Verdict(*verdict) for title, verdict in rows.items()} for version, rows in stored.items()}


def release(version: str) -> str:
    """Return the release of a version, as `kumadp validate` calls it: ``2.14`` for ``2.14.3``."""
    return ".".join(version.partition("-")[0].split(".")[:2])


def judge(plane: KumaControlPlane, rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Verdict]:
    """Send each resource to the API of a running control plane, delete it again, and request its bootstrap."""
    tokens = {"Dataplane": plane.token()}
    # Kuma 2.8 writes it with a hyphen.
    ingresses = "/zone-ingresses" if plane.knows("zone-ingresses") else "/zoneingresses"
    paths = {"Dataplane": "/meshes/default/dataplanes", "ZoneIngress": ingresses, "ZoneEgress": "/zoneegresses"}
    seen = {}
    for title, resource in rows:
        kind = resource["type"]
        if kind not in tokens:
            tokens[kind] = plane.zone_token()
        path = f"{paths[kind]}/{resource['name']}"
        status, reason = 200, ""
        try:
            plane.put(path, resource)
        except urllib.error.HTTPError as error:
            status, reason = error.code, _reason(error.__notes__[0])
        else:
            plane.delete(path)
        seen[title] = Verdict(status, reason, _bootstrap_status(plane, resource, tokens[kind]))
    return seen


def _bootstrap_status(plane: KumaControlPlane, resource: dict[str, Any], token: str) -> int:
    body = {
        "mesh": resource["mesh"],
        "name": resource["name"],
        "proxyType": PROXY_TYPES[resource["type"]],
        "dataplaneToken": token,
        "dataplaneResource": json.dumps(resource),
        "caCert": plane.ca,
        "version": {"kumaDp": {"version": "2.8.8"}, "envoy": {"version": "1.40.0", "kumaDpCompatible": True}},
    }
    request = urllib.request.Request(f"{DATA_PLANE_SERVER}/bootstrap", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cadata=plane.ca)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _reason(body: str) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return body.strip()[:MAX_TEXT]
    fields = answer.get("invalid_parameters") or ()
    reasons = [f"{field['field']}: {field['reason']}" for field in fields]
    return ("; ".join(reasons) or answer.get("detail") or answer.get("details") or answer.get("title", ""))[:MAX_TEXT]


def main(version: str) -> None:
    """Store the answers of the control plane of the variable KUMA_CP as those of ``version``."""
    with tempfile.TemporaryDirectory() as folder, KumaControlPlane(Path(os.environ["KUMA_CP"]), Path(folder)) as plane:
        seen = judge(plane, table().items())
    stored = json.loads(VERDICTS.read_text(encoding="utf-8")) if VERDICTS.exists() else {}
    stored[version] = seen
    VERDICTS.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
