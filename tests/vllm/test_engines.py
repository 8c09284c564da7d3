"""An engine's share of a host: devices, cores and memory."""

from __future__ import annotations

import pytest

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.engines import Share


@pytest.mark.parametrize(
    ("share", "visible", "mine"),
    [
        (Share(0, 2), "", "0"),
        (Share(1, 2), "", "1"),
        (Share(1, 2), "4,6", "6"),
        (Share(1, 2, devices=2), "", "2,3"),
        (Share(0, 2, devices=2), "7,5,3,1", "7,5"),
    ],
)
def test_each_engine_has_devices_of_its_own(share: Share, visible: str, mine: str) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    share.take_devices("cuda", environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": mine}


def test_libtpu_is_told_the_grid_of_the_chips() -> None:
    environment: dict[str, str] = {}
    Share(1, 2, devices=4).take_devices("tpu", environment)
    assert environment == {
        "TPU_VISIBLE_CHIPS": "4,5,6,7", "TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
    }  # fmt: skip


def test_more_engines_than_devices_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="2 engines need 2 devices, and CUDA_VISIBLE_DEVICES names 1"):
        Share(1, 2).take_devices("cuda", {"CUDA_VISIBLE_DEVICES": "3"})


@pytest.mark.parametrize(("cores", "engines"), [(2, 2), (8, 2), (7, 3), (1, 2)])
def test_cores_are_split_where_there_are_enough(cores: int, engines: int) -> None:
    available = {3 + 2 * number for number in range(cores)}
    shares = [Share(index, engines).cores(available) for index in range(engines)]
    if cores < engines:
        assert shares == [available] * engines
        return
    assert set().union(*shares) == available
    assert sum(map(len, shares)) == cores
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
