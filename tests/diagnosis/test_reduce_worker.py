from __future__ import annotations

import json
import socket

import pytest
import torch
import torch.distributed as dist

from llmcls.diagnosis import reduce_worker


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_the_first_process_prints_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    reduce_worker.main(["gloo", "0", "1", free_port()])
    assert json.loads(capsys.readouterr().out)["gb_per_second"] > 0
    assert not dist.is_initialized()


def test_a_wrong_sum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda numbers: numbers.add_(torch.tensor(1.0)))
    try:
        with pytest.raises(RuntimeError, match="the sum over all processes is wrong"):
            reduce_worker.main(["gloo", "0", "1", free_port()])
    finally:
        dist.destroy_process_group()
