"""The option ``results`` of a target, and the store that it names."""

from __future__ import annotations

import re

import pytest

from clustrix_containers.errors import ClusterError
from clustrix_containers.results.stores import parse_results
from clustrix_containers.results.stores.registry import RegistryStore
from clustrix_containers.results.stores.s3 import S3Store
from clustrix_containers.results.stores.volume import VolumeStore

HELD = ("auto", "hold")


@pytest.mark.parametrize(
    ("option", "store"),
    [
        ("auto", None),
        ({"hold": None}, None),
        ("registry", RegistryStore()),
        (
            {"registry": {"repository": "r.example.org/a", "expires": "2h"}},
            RegistryStore("r.example.org/a", 7200.0),
        ),
        ({"s3": {"bucket": "b", "prefix": "p"}}, S3Store("b", "p")),
        ({"volume": {"claim": "c", "mount": "/mnt"}}, VolumeStore("c", mount="/mnt")),
    ],
)
def test_an_option_names_a_store(option: object, store: object) -> None:
    made = parse_results(option, own=HELD)
    assert made == store
    if made is not None:
        assert made.kind in str(option)
        assert made.describe().startswith("larger ones ")


@pytest.mark.parametrize(
    "option", ["s4", {"s3": {}, "registry": {}}, {"s3": 3}, 7, None, {"hold": {"x": 1}}, ["s3"]]
)
def test_what_is_not_a_store_is_refused(option: object) -> None:
    with pytest.raises(ClusterError, match="is not a result store") as caught:
        parse_results(option, own=HELD)
    assert caught.value.option == "results"
    assert "auto, hold, s3, registry, volume" in str(caught.value)


def test_what_a_target_cannot_do_itself_is_not_offered() -> None:
    with pytest.raises(ClusterError, match="one of s3, registry, volume"):
        parse_results("hold")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("volume", "volume: option 'claim' is missing"),
        ({"s3": {}}, "s3: option 'bucket' is missing"),
        ({"s3": {"bucket": "b", "acl": "x"}}, "s3: unknown option 'acl'"),
        ({"s3": {"bucket": "b", "kind": "x"}}, "s3: unknown option 'kind'"),
        ({"s3": {"bucket": "b", "expires": "soon"}}, "s3: expires: "),
        ({"registry": {"_remotes": {}}}, "registry: unknown option '_remotes'"),
        ({"volume": {"claim": "a", "mode": 1}}, "volume: unknown option 'mode'"),
        ({"volume": {"claim": "A b"}}, "claim 'A b' is not a valid name of a volume claim"),
        ({"volume": {"claim": None}}, "is not a valid name of a volume claim"),
        ({"volume": {"claim": 12}}, "is not a valid name of a volume claim"),
        ({"volume": {"claim": "a", "path": "a/../.."}}, "path 'a/../..' is not valid"),
        ({"volume": {"claim": "a", "mount": "here"}}, "mount 'here' is not an absolute path"),
    ],
)
def test_options_of_a_store_that_are_not_valid_are_refused(option: object, message: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(message)) as caught:
        parse_results(option, own=HELD)
    assert caught.value.option == "results"
