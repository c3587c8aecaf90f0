"""The worker repeats the contract's names, because it may import nothing of ours."""

from __future__ import annotations

from clustrix_containers import contract, worker


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
