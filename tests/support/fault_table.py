"""The table of faults in tests/README.md, from the records of `make faults` (``KUMADP_FAULTS=1`` has a run store them).

``python -m tests.support.fault_table`` writes it there again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.file_lock import file_lock
from tests.support.readme_tables import write_in_readme

if TYPE_CHECKING:
    from tests.support.fault_record import FaultRecord

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "tests" / "data" / "faults.json"
# In this order; each is the constant GROUP of a file of tests/faults.
GROUPS = ("Envoy", "CoreDNS", "kumadp", "Control plane", "Around it")
_MODES = ("plain", "mtls")
_LONGEST = 150
# A shorter outage may as well be a pause of a busy host (seconds).
_NOTICEABLE = 0.3

# Time, thread, level and source file of a line of Envoy's.
_PREFIX = re.compile(r"\[\d{4}-\d\d-\d\d [\d:.]+\](?:\[\w+\])* (?:\[\S+\] )?")

# Folders of a program or of a test.
_PATH = re.compile(r"(?<![\w.])/(?:\S*/_bin|tmp/k\w+)(?=/)")

# By group, fault and mode.
Stored = dict[str, dict[str, dict[str, dict[str, Any]]]]


def stored() -> Stored:
    """The records of the last run of each fault."""
    found: Stored = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    return found


def store(group: str, records: list[FaultRecord]) -> None:
    """Put the records of a test into the file."""
    with file_lock("faults-store"):
        _store(group, records)


def _store(group: str, records: list[FaultRecord]) -> None:
    found = stored()
    for record in records:
        of_fault = found.setdefault(group, {}).setdefault(record.name, {})
        of_fault["mtls" if record.mtls else "plain"] = {
            "sent": {kind: report.sent for kind, report in record.traffic.items()},
            "lost": {kind: report.lost for kind, report in record.traffic.items()},
            "outage": round(record.outage, 1),
            "reported": _PATH.sub("", record.expected or next(iter(record.log), "")),
            "states": [_PATH.sub("", state) for state in record.states],
            "afterwards": record.afterwards,
        }
    STORE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _both(modes: dict[str, dict[str, Any]], of: Any) -> str:
    """What ``of`` returns of both modes, once if it is the same."""
    texts = [of(modes[mode]) for mode in _MODES if mode in modes]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _lost(record: dict[str, Any], kinds: tuple[str, ...]) -> str:
    counts = [record["lost"][kind] for kind in kinds if kind in record["lost"]]
    return str(sum(counts)) if counts else "-"


def _outage(record: dict[str, Any]) -> str:
    if not record["sent"]:
        return "-"
    return f"{record['outage']:.1f} s" if record["outage"] >= _NOTICEABLE else "none"


def _reported(record: dict[str, Any]) -> str:
    text = _PREFIX.sub("", record["reported"]).replace("|", "/").replace("<", "&lt;")
    shown = f"{text[:_LONGEST]}..." if len(text) > _LONGEST else text
    other = [state for state in record["states"] if state != "READY"]
    return f"{shown or '-'}; {other[0][:60]}" if other and other[0] not in shown else shown or "-"


def _line(name: str, modes: dict[str, dict[str, Any]]) -> str:
    lost = [
        _both(modes, lambda record, kinds=kinds: _lost(record, kinds))
        for kinds in (("inbound",), ("outbound",), ("names",), ("readiness", "probes"))
    ]
    first = next(modes[mode] for mode in _MODES if mode in modes)
    after = _both(modes, lambda record: record["afterwards"])
    cells = [name, *lost, _both(modes, _outage), _reported(first), after]
    return f"| {' | '.join(cells)} |"


def table(records: Stored) -> str:
    """The table of tests/README.md, with its heading."""
    lines = [
        "| fault | inbound | outbound | names | probes | longest outage | reported: log; state | afterwards |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        if group in records:
            lines.append(f"| **{group}** | | | | | | | |")
            lines += [_line(name, modes) for name, modes in records[group].items()]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write the table into tests/README.md."""
    write_in_readme("faults", table(stored()))


if __name__ == "__main__":
    write()
