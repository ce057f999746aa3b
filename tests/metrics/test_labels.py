"""Labels of a policy are added to samples; names are written as OpenTelemetry's exporter for Prometheus does."""

from __future__ import annotations

import pytest

from kumadp.exposition.reader import Family, Piece
from kumadp.metrics.labels import Labels, label_name


@pytest.mark.parametrize(
    ("name", "written"),
    [("kuma_io_zone", "kuma_io_zone"), ("k8s.kuma.io/namespace", "k8s_kuma_io_namespace"), ("1x", "_1x"), ("ä", "_")],
)
def test_names_of_labels(name: str, written: str) -> None:
    assert label_name(name) == written


def test_pieces_without_samples_and_without_labels_are_unchanged() -> None:
    empty, full = Piece(Family(b"a"), b""), Piece(Family(b"a"), b"a 1\n")
    assert Labels({"x": "y"}).add(empty) is empty
    assert Labels({}).add(full) is full


def test_existing_labels_are_replaced() -> None:
    piece = Piece(Family(b"a"), b'a{mesh="other",zone="z"} 1\na{zone="z"} 2\na 3\n')
    assert (
        Labels({"mesh": "m"}).add(piece).samples == b'a{zone="z",mesh="m"} 1\na{zone="z",mesh="m"} 2\na{mesh="m"} 3\n'
    )
