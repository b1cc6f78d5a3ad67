"""Installs the daemon as a systemd service, the system's or a person's own, and removes it again."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from pathlib import Path

from florence_daemon import config_file
from florence_daemon.config import Config
from florence_daemon.errors import ServiceError, UsageError
from florence_daemon.service_plan import plan_service, this_machine
from florence_daemon.service_unit import (
    ACCOUNT,
    CACHE,
    MARK,
    STATE,
    UNIT,
    Service,
    gpu_drop_in,
    sandbox_properties,
    unit,
    word,
)
from florence_daemon.systemd import BOOTED, Scope, choose_scope, refuse_if_impossible, refuse_if_silent

SYSTEM_CONFIG = Path("/etc/florence-daemon/florence-daemon.yaml")
# Prints those of its arguments that are folders and cannot be written to.
_LIST_UNWRITABLE = 'for each; do if [ -d "$each" ] && ! [ -w "$each" ]; then printf "%s\\n" "$each"; fi; done'


def show(named: Path | None, is_system: bool | None) -> None:
    """Print what `install` would write, as `systemctl cat` does. Raises: ConfigError."""
    scope = choose_scope(is_system, os.geteuid())
    path, config = _read_config(named, scope)
    service = plan_service(config, path, this_machine(os.environ), is_system=scope.is_system)
    print("\n".join(f"# {file}\n{text}" for file, text in files_of(scope, service).items()), end="")


def install(named: Path | None, is_system: bool | None) -> None:
    """Write the unit, enable and start it; where it is installed already, write it anew and restart it.

    Raises: ConfigError, UsageError (it cannot be done here), ServiceError (systemd, the model or the daemon refused).
    """
    scope = _possible_scope(is_system)
    path, config = _read_config(named, scope)
    if not path.is_file():
        raise UsageError(
            f"there is no configuration {path}: write one (config/florence-daemon.yaml shows every setting), "
            "or name yours with --config FILE"
        )
    _refuse_foreign(scope)
    service = plan_service(config, path, this_machine(os.environ), is_system=scope.is_system)
    service = _prepare(scope, service)
    _pull(scope, service)
    _name_unwritable(scope, service, config)
    was_there = scope.unit.exists()
    _write(scope, service)
    scope.manage("daemon-reload")
    scope.manage("enable", UNIT)
    scope.restart()
    print(f"{scope.unit}: {'updated and restarted' if was_there else 'installed and started'}")
    if not scope.is_system and not Path("/var/lib/systemd/linger", getpass.getuser()).exists():
        print("It runs while you are logged in; from boot on, after `sudo loginctl enable-linger $USER`")


def uninstall(is_system: bool | None) -> None:
    """Stop and disable it, remove what `install` wrote, and say what stays. Raises: UsageError, ServiceError."""
    scope = _possible_scope(is_system)
    _refuse_foreign(scope)
    if not scope.unit.exists() and not scope.gpu.exists():
        print(f"{scope.unit}: is not there, so nothing is removed")
        return
    if scope.unit.exists():
        scope.manage("disable", "--now", UNIT)
    for file in (scope.unit, scope.gpu):
        if file.exists():
            file.unlink()
            print(f"{file}: removed")
    others = sorted(scope.gpu.parent.iterdir()) if scope.gpu.parent.is_dir() else None
    if others == []:
        scope.gpu.parent.rmdir()
    scope.manage("daemon-reload")
    scope.ask(
        "systemctl", "reset-failed", UNIT
    )  # one that had failed would be listed for ever; refused when it had not
    for path in (*(others or ()), *_what_stays(scope)):
        print(f"{path}: stays")


def files_of(scope: Scope, service: Service) -> dict[Path, str]:
    """What an installation consists of, by path."""
    files = {scope.unit: unit(service)}
    if service.has_gpu:
        files[scope.gpu] = gpu_drop_in(service)
    return files


def _possible_scope(is_system: bool | None) -> Scope:
    """The scope, once it is known that services can be installed there. Raises: UsageError."""
    euid = os.geteuid()
    scope = choose_scope(is_system, euid)
    refuse_if_impossible(scope, sys.platform, euid, is_booted=BOOTED.is_dir())
    if not scope.is_system:
        refuse_if_silent(scope, euid)
    return scope


def _read_config(named: Path | None, scope: Scope) -> tuple[Path, Config]:
    """What the service will read: this shell's environment does not count, nor, for the system, a file in a home."""
    path = named
    if path is None:
        path = SYSTEM_CONFIG if scope.is_system else config_file.find_file(None, os.environ)
    path = (path or config_file.default_paths(os.environ)[0]).expanduser().absolute()
    return path, config_file.load(path if named or path.is_file() else None, {})


def _refuse_foreign(scope: Scope) -> None:
    for file in (scope.unit, scope.gpu):
        if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            raise UsageError(f"{file}: was not written by this command and is left alone; move it away first")


def _prepare(scope: Scope, service: Service) -> Service:
    """Make what the sandbox expects, and find out whether there can be one. Raises: ServiceError."""
    if scope.is_system:
        made = scope.ask("systemd-sysusers", "--inline", f'u {ACCOUNT} - "Florence Daemon" {STATE}')
        if made.returncode:
            raise ServiceError(f"the account {ACCOUNT} could not be made: {made.stderr.strip()}")
        return service
    for directory in service.own:
        Path(directory).mkdir(parents=True, exist_ok=True)
    if scope.run(_sandbox(service), ["true"]).returncode == 0:
        return service
    print(
        "This machine does not let a person's service make namespaces, so this one is not kept from your other files; "
        "the kernel settings are user.max_user_namespaces and, on Ubuntu, kernel.apparmor_restrict_unprivileged_userns",
        file=sys.stderr,
    )
    return service.without_namespaces()


def _pull(scope: Scope, service: Service) -> None:
    """Download the model where the service will look for it, as the service: it must be able to run and to read it."""
    environment = f"Environment={word(f'HF_HOME={service.hub}')}"
    command = [service.python, "-m", "florence_daemon", "pull", "--config", service.config]
    if scope.run([*_sandbox(service), environment], command, shows=True).returncode:
        raise ServiceError(
            f"the service could not run {service.python}, read {service.config} or get its model (what it said is "
            "above); nothing was installed"
        )


def _name_unwritable(scope: Scope, service: Service, config: Config) -> None:
    folders = [str(folder.path) for folder in config.folders]
    command = ["/bin/sh", "-c", _LIST_UNWRITABLE, "sh", *folders]
    for folder in scope.run(_sandbox(service), command).stdout.splitlines():
        print(f"{folder}: {ACCOUNT if scope.is_system else 'you'} cannot write there", file=sys.stderr)
        if scope.is_system:
            print(f"    setfacl -R -m u:{ACCOUNT}:rwX,d:u:{ACCOUNT}:rwX {shlex.quote(folder)}", file=sys.stderr)


def _write(scope: Scope, service: Service) -> None:
    files = files_of(scope, service)
    if scope.gpu not in files:
        scope.gpu.unlink(missing_ok=True)
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _what_stays(scope: Scope) -> list[str]:
    """Everything that is not the unit: a person's settings, what was learnt, and what took long to download."""
    if scope.is_system:
        return [str(SYSTEM_CONFIG), STATE, CACHE, f"the account {ACCOUNT}"]
    config = config_file.find_file(None, os.environ)
    return [str(path) for path in (config, config_file.state_directory(config_file.load(None, {}).state, {})) if path]


def _sandbox(service: Service) -> list[str]:
    return sandbox_properties(service, os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
