"""The systemd unit as text: one template for the system's service and for a person's, and the drop-in for a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

UNIT = "florence-daemon.service"
# User and group of the system's service, and the name of its directories.
ACCOUNT = "florence-daemon"
STATE = f"/var/lib/{ACCOUNT}"
CACHE = f"/var/cache/{ACCOUNT}"
# What is written carries this line; a file without it is somebody else's, and left alone.
MARK = "# Made by `florence-daemon service install`, which makes it anew: put changes into a drop-in, `systemctl"
# Who may ask a service that listens on the network, and whom alone it can reach.
LOCAL_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")


@dataclass(frozen=True)
class Service:
    """What differs between one installation and the next; every path is absolute.

    writable: directories outside of homes that it may write to. shown, shown_writable: what it sees of the homes and
    temporary directories, which are empty for it otherwise. networks: who may be reached, beside this machine.
    hub: where downloaded models are. own: what a person's service makes for itself and finds made. groups: own the
    GPU's device files. may_unshare: whether a person's service manager may make namespaces on this machine.
    """

    is_system: bool
    python: str
    config: str
    hub: str
    own: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    shown_writable: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    has_gpu: bool = False
    groups: tuple[str, ...] = ()
    may_unshare: bool = True

    def without_namespaces(self) -> Service:
        """The same with what needs no namespace, for machines that forbid them to people."""
        return replace(self, may_unshare=False)


def word(text: str) -> str:
    """Write a path as systemd reads it back, whatever is in its name: a bare colon would end it in BindPaths."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if any(letter in text for letter in " \t'\"\\;#:") else text


def unit(service: Service) -> str:
    """Write the unit."""
    blocks = [_head(service), _process(service), _endings()]
    if service.is_system:
        blocks.append(_account())
    return "\n".join([*blocks, _sandbox(service), _network(service), _install(service)]).replace("\n\n\n", "\n\n")


def gpu_drop_in(service: Service) -> str:
    """Write the drop-in that lets the service use a GPU."""
    groups = f"SupplementaryGroups={' '.join(service.groups)}\n" if service.groups and service.is_system else ""
    return f"""\
{_mark(service)}
# A GPU: NVIDIA's and AMD's device files and no others.
[Service]
PrivateDevices=no
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-drm rw
DeviceAllow=char-kfd rw
{groups}"""


def sandbox_properties(service: Service, runtime_directory: str) -> list[str]:
    """The lines by which `systemd-run` runs a command as the service would be, apart from its fence: it may download.

    There, unlike in a unit, a percent sign is one.
    """
    text = _sandbox(service) + (_account() if service.is_system else "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    meant = {"%t": runtime_directory, "%%": "%"}
    return [re.sub("%[t%]", lambda found: meant[found[0]], line) for line in lines]


def _mark(service: Service) -> str:
    return f"{MARK} {'' if service.is_system else '--user '}edit florence-daemon`."


def _head(service: Service) -> str:
    after = "After=network.target remote-fs.target\n" if service.is_system else ""
    return f"""\
{_mark(service)}
[Unit]
Description=Florence Daemon, which captions the pictures in your folders
{after}"""


def _process(service: Service) -> str:
    python, config = (word(path).replace("$", "$$") for path in (service.python, service.config))
    offline = " HF_HUB_OFFLINE=1" if service.is_system else ""
    return f"""\
[Service]
Type=notify
NotifyAccess=main
ExecStart={python} -X faulthandler -m florence_daemon run --config {config}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory=/
SyslogIdentifier={ACCOUNT}
Environment={word(f"HF_HOME={service.hub}")}{offline}
"""


def _endings() -> str:
    return """\
# A wrong configuration (78) is not tried again. What runs at a stop is finished, within 60 s. One that shows no life is
# ended with a traceback of every thread in the journal. A model that the kernel kills for its memory is not the end.
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=78
WatchdogSec=60
TimeoutStopSec=90
TimeoutAbortSec=15
KillMode=mixed
OOMPolicy=continue
LimitCORE=0
"""


def _account() -> str:
    return f"""\
# An account of its own, which gets at nothing that it was not given. Its sidecars can be read by all and edited by its
# group.
User={ACCOUNT}
Group={ACCOUNT}
UMask=0002
StateDirectory={ACCOUNT}
StateDirectoryMode=0750
CacheDirectory={ACCOUNT}
CacheDirectoryMode=0750
"""


def _sandbox(service: Service) -> str:
    return "\n".join(([_namespaces(service)] if service.may_unshare else []) + [_filters(service)])


def _namespaces(service: Service) -> str:
    """What is done with mounts and namespaces, and the directories that are let through."""
    logs = "ProtectKernelLogs=yes\n" if service.is_system else ""
    # Its service manager listens in /run/user, where nothing else is seen.
    bus = "" if service.is_system else "BindReadOnlyPaths=%t/systemd/notify\n"
    seen = "".join(
        f"{setting}={word('-' + path)}\n"  # with -, one that is missing does not keep the service from starting
        for setting, paths in (
            ("ReadWritePaths", service.writable),
            ("BindPaths", service.shown_writable),
            ("BindReadOnlyPaths", service.shown),
        )
        for path in paths
    )
    return f"""\
# It sees the system read-only, homes and temporary directories empty, and beside that what is named here: where it can
# be, the parent of a folder, so that one that is unmounted and mounted, or removed and made again, stays writable.
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
{bus}{seen}PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
{logs}ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
CapabilityBoundingSet=
"""


def _filters(service: Service) -> str:
    ipc = "RemoveIPC=yes\n" if service.is_system else ""
    return f"""\
# MemoryDenyWriteExecute is missing on purpose: torch and OpenVINO write the machine code they run.
NoNewPrivileges=yes
KeyringMode=private
LockPersonality=yes
{ipc}RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
"""


def _network(service: Service) -> str:
    if not service.is_system:  # a person's service manager cannot enforce it
        return ""
    return f"""\
# No other network is reached, so no picture leaves; `service install` has downloaded the model. (systemd needs control
# groups of version 2 for it, and BPF; it does without where the kernel has none.)
IPAddressDeny=any
IPAddressAllow={" ".join(("localhost", *service.networks))}
"""


def _install(service: Service) -> str:
    return f"[Install]\nWantedBy={'multi-user' if service.is_system else 'default'}.target\n"
