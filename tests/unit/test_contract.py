"""The worker repeats the contract's names, because it may import nothing of ours."""

from __future__ import annotations

from pathlib import Path

from clustrix_containers.worker import contract, deliver, worker


def test_the_worker_agrees_with_the_contract() -> None:
    repeated = {
        name: value
        for name, value in vars(worker).items()
        if name.isupper() and hasattr(contract, name)
    }
    assert {"ROOT", "ENTRY", "FUNCTION", "MAIN", "RESULT_MAGIC", "RESULT_ALIGN"} <= set(repeated)
    assert {name for name in vars(contract) if name.startswith("ENV_")} <= set(repeated)
    for name, value in repeated.items():
        assert value == getattr(contract, name), name
    assert f"{contract.ROOT}/results" == contract.RESULTS
    assert f"{contract.ROOT}/run/key" == contract.KEY
    assert f"{contract.ROOT}/run/deliver" == contract.DELIVER


def test_what_delivers_agrees_with_the_contract() -> None:
    for name in ("INLINE", "STORED", "FAILED", "NO_OUTCOME", "MESSAGE_LIMIT", "PACKED_LIMIT"):
        assert getattr(deliver, name) == getattr(contract, name), name
    assert deliver.ARTIFACT == contract.RESULT_ARTIFACT
    assert Path(contract.DELIVER_SCRIPT).name == Path(deliver.__file__).name
