"""Which engines a configuration asks for: the only place that decides how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable

from florence_daemon.config import Config
from florence_daemon.config_file import state_directory
from florence_daemon.engine.devices import count_gpus
from florence_daemon.engine.limits import Limits, memory_limit_bytes
from florence_daemon.engine.pool import Pool
from florence_daemon.engine.protocol import EngineSettings, Loaded


def engine_list(config: Config) -> tuple[EngineSettings, ...]:
    """The settings of each engine, at least one; one for each server where there are any."""
    if config.model.server:
        return tuple(_asking(config, server) for server in config.model.server)
    names = _devices(config)
    shares = names.count("cpu")
    seen = 0
    listed = []
    for name in names:
        is_share = name == "cpu"
        listed.append(_settings(config, name, part=seen if is_share else 0, parts=shares if is_share else 1))
        seen += is_share
    return tuple(listed)


def engine_settings(config: Config) -> EngineSettings:
    """The settings of the first engine alone, for what needs no more than one."""
    if config.model.server:
        return _asking(config, config.model.server[0])
    first = _devices_named(config)[0]
    return _settings(config, "auto" if first == "all" else first)


def engine_limits(config: Config) -> Limits:
    """What each engine process may take before it is ended."""
    model = config.model
    return Limits(model.load_limit_s, model.decode_limit_s, model.request_limit_s, _memory_limit_bytes(config))


def open_pool(
    config: Config,
    on_load: Callable[[float], None] = lambda seconds: None,
    admit: Callable[[Loaded], str | None] = lambda loaded: None,
) -> Pool:
    """The engines; none is started yet. on_load, admit: see `Pool`."""
    limits = engine_limits(config)
    return Pool(engine_list(config), config.model.idle_unload_s, limits=limits, on_load=on_load, admit=admit)


def renew_pool(pool: Pool, config: Config) -> None:
    """Let another configuration count: engines come, go and change, and nothing that they are at is lost."""
    pool.renew(engine_list(config), config.model.idle_unload_s, engine_limits(config))


def _devices(config: Config) -> tuple[str, ...]:
    if config.model.device == "all":
        return tuple(f"cuda:{number}" for number in range(count_gpus())) or ("auto",)
    return _devices_named(config)


def _devices_named(config: Config) -> tuple[str, ...]:
    device = config.model.device
    return (device,) if isinstance(device, str) else device


def _settings(config: Config, device: str, part: int = 0, parts: int = 1) -> EngineSettings:
    model = config.model
    return EngineSettings(
        model=model.name,
        revision=model.revision,
        device=device,
        precision=model.precision,
        engine=model.engine,
        image_size=model.image_size,
        fast_decode=model.fast_decode,
        num_beams=model.num_beams,
        max_new_tokens=model.max_new_tokens,
        max_batch=model.max_batch,
        memory_limit_bytes=_memory_limit_bytes(config),
        offline=model.offline,
        state_dir=str(state_directory(config.state, os.environ)),
        part=part,
        parts=parts,
    )


def _asking(config: Config, server: str) -> EngineSettings:
    """The settings of an engine that asks a server; of the model's own, those that go with each question."""
    model = config.model
    return EngineSettings(
        model=server,
        num_beams=model.num_beams,
        max_new_tokens=model.max_new_tokens,
        memory_limit_bytes=_memory_limit_bytes(config),
        server=server,
        server_token=model.server_token,
        sends_resized=model.send == "resized",
    )


def _memory_limit_bytes(config: Config) -> int | None:
    """Of what the machine has, engines on its processor may take a part each; a limit that is set is for each."""
    limit = memory_limit_bytes(config.model.memory_limit_mb)
    sharers = max(1, _devices_named(config).count("cpu")) if config.model.memory_limit_mb == 0 else 1
    return None if limit is None else limit // sharers
