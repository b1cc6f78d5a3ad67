"""From a configuration and a machine to the service that fits both: what it may see, write, reach and use."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import florence_daemon
from florence_daemon import service_paths
from florence_daemon.config import Config, ModelConfig
from florence_daemon.config_checks import is_loopback
from florence_daemon.config_file import state_directory
from florence_daemon.service_unit import CACHE, LOCAL_NETWORKS, Service


@dataclass(frozen=True)
class Machine:
    """What a unit depends on beside the configuration.

    program: the directories that Python and this program are in. hub: where a person's downloaded models are. groups:
    own the GPU's device files. exists and real look at the file system.
    """

    python: str
    program: tuple[str, ...]
    hub: str
    mounts: frozenset[str] = frozenset()
    has_gpu: bool = False
    groups: tuple[str, ...] = ()
    exists: Callable[[str], bool] = os.path.exists
    real: Callable[[str], str] = os.path.realpath


def this_machine(environ: Mapping[str, str]) -> Machine:
    """Look at the machine this runs on."""
    places = (sys.prefix, sys.base_prefix, str(Path(florence_daemon.__file__).parents[1]))
    caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Machine(
        python=sys.executable,
        program=tuple({path for place in places for path in (place, os.path.realpath(place))}),
        hub=str(Path(environ.get("HF_HOME") or caches / "huggingface").expanduser().absolute()),
        mounts=service_paths.mount_points(),
        has_gpu=any(os.path.exists(f"/dev/{name}") for name in ("nvidiactl", "kfd")),
        groups=tuple(sorted(set(_device_groups()))),
    )


def plan_service(config: Config, path: Path, machine: Machine, *, is_system: bool) -> Service:
    """Decide what the service of this configuration file, which holds `config`, is given on that machine."""
    folders = {
        held
        for folder in config.folders
        for held in service_paths.holders(str(folder.path), machine.mounts, machine.exists, machine.real)
    }
    own = _own_directories(config, machine, is_system=is_system)
    writable = service_paths.outermost((*folders, *own))
    model = config.model.name if is_system else os.path.expanduser(config.model.name)
    seen = (*machine.program, str(path), *([model] if os.path.isabs(model) else []))
    return Service(
        is_system=is_system,
        python=machine.python,
        config=str(path),
        hub=CACHE if is_system else machine.hub,
        own=own,
        writable=tuple(each for each in writable if not service_paths.is_hidden(each)),
        shown_writable=tuple(each for each in writable if service_paths.is_hidden(each)),
        shown=tuple(each for each in service_paths.outermost(seen) if service_paths.is_hidden(each)),
        networks=_networks(config),
        has_gpu=_wants_gpu(config.model, machine),
        groups=machine.groups,
    )


def _own_directories(config: Config, machine: Machine, *, is_system: bool) -> tuple[str, ...]:
    """Where the program keeps what it makes; the usual places of a system's service are systemd's to make and give."""
    state = str(state_directory(config.state, {}))
    if is_system:
        return (state,) if config.state.dir is not None else ()
    return (state, machine.hub)


def _networks(config: Config) -> tuple[str, ...]:
    """Whom it may reach, or be asked by. A server's name may mean another address tomorrow: it is at home, or allowed
    in a drop-in."""
    hosts = [urlsplit(server).hostname or "" for server in config.model.server]
    is_alone = is_loopback(config.server.host) and all(map(is_loopback, hosts))
    elsewhere = dict.fromkeys(host for host in hosts if _is_address(host) and not is_loopback(host))
    return () if is_alone else (*LOCAL_NETWORKS, *(host for host in elsewhere if not _is_local(host)))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return any(address in ipaddress.ip_network(network) for network in LOCAL_NETWORKS)


def _wants_gpu(model: ModelConfig, machine: Machine) -> bool:
    if model.server:
        return False
    names = (model.device,) if isinstance(model.device, str) else model.device
    return any(name.startswith("cuda") or (name in ("auto", "all") and machine.has_gpu) for name in names)


def _device_groups() -> Iterator[str]:
    """The groups to which GPUs' device files belong; NVIDIA's are open to all."""
    if sys.platform == "win32":
        return
    import grp

    for file in (Path("/dev/kfd"), *Path("/dev/dri").glob("render*")):
        with contextlib.suppress(OSError, KeyError):
            group = grp.getgrgid(file.stat().st_gid).gr_name
            if group != "root":
                yield group
