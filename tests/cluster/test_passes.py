"""Where engines can be, and what one run of Ray Data tells while it waits."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from florence_daemon.cluster import passes, pool
from florence_daemon.cluster.passes import Pass, Places
from florence_daemon.cluster.pool import Cluster
from florence_daemon.errors import ClusterError, UsageError

PLACES = Places(1, 2, 0)


@pytest.mark.parametrize(("engines", "said"), [([], 1), (["an engine"], 0)])
def test_engines_that_find_no_place_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, engines: list[str], said: int
) -> None:
    roll = SimpleNamespace(all=SimpleNamespace(remote=lambda: engines))
    monkeypatch.setattr(passes, "open_roll", lambda ray: roll)
    monkeypatch.setattr(passes, "BEGIN_S", 0.0)
    monkeypatch.setattr(passes, "LOOK_S", 0.01)
    monkeypatch.setattr(Pass, "_read", lambda self: None)
    ray: Any = SimpleNamespace(get=lambda found: found)
    with caplog.at_level(logging.WARNING):
        run = Pass(ray, None, PLACES, {0: object()}, lambda: PLACES).run()  # type: ignore[arg-type]
        for _ in range(3):
            assert next(run) == (-1, [])
    assert caplog.text.count("no engine has begun yet") == said


def cluster_of(*machines: dict[str, float], engine_cpus: int | None = None) -> Cluster:
    cluster = Cluster.__new__(Cluster)
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    vars(cluster).update(_ray=SimpleNamespace(nodes=lambda: nodes), _engine_cpus=engine_cpus)
    return cluster


def test_each_gpu_has_an_engine_or_else_each_machine_or_so_many_cores() -> None:
    assert cluster_of({"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}).places() == Places(2, 0, 1)
    assert cluster_of({"CPU": 16.0}, {"CPU": 8.0}, {"memory": 1.0}).places() == Places(3, 8, 0)
    assert cluster_of({"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, engine_cpus=6).places() == Places(3, 6, 0)


def test_cluster_without_a_place_for_an_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="--engine-cpus 16: the largest machine of the cluster has 8 cores"):
        cluster_of({"CPU": 8.0}, engine_cpus=16).check()
    with pytest.raises(ClusterError, match="no machine of the cluster has a core"):
        cluster_of({"memory": 1.0}).check()


def test_loss_of_all_machines_with_enough_cores_is_told_as_such() -> None:
    """It is no wrong use: when the run began, they were there."""
    with pytest.raises(ClusterError, match="has lost its machines"):
        next(cluster_of({"CPU": 4.0}, engine_cpus=8).run(None, [object()]))  # type: ignore[arg-type]


def test_head_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "HEAD_S", 0.0)
    cluster = cluster_of({"CPU": 8.0})
    with socket.create_server(("127.0.0.1", 0)) as head:
        vars(cluster)["_head"] = f"127.0.0.1:{head.getsockname()[1]}"
        assert cluster.places_now() == Places(1, 8, 0)
    with pytest.raises(ClusterError, match=r"the head of the cluster, 127.0.0.1:\d+, is gone"):
        cluster.places_now()
