"""Writes systemd/, the units for those who install by hand, from the template that `service install` uses."""

from __future__ import annotations

from pathlib import Path

from florence_daemon.config import Config, FolderConfig, StateConfig
from florence_daemon.service_plan import Machine, plan_service
from florence_daemon.service_unit import UNIT, gpu_drop_in, unit

DIRECTORY = Path(__file__).parents[1] / "systemd"
PYTHON = "/opt/florence-daemon/.venv/bin/python"


def example_units() -> dict[Path, str]:
    """The units by file, for a program in /opt and pictures in /srv, or in your home."""
    machine = Machine(
        python=PYTHON,
        program=("/opt/florence-daemon",),
        hub="/home/you/.cache/huggingface",
        groups=("render",),
        exists=lambda path: True,
        real=lambda path: path,
    )
    system = plan_service(
        Config(folders=(FolderConfig(path=Path("/srv/pictures")),)),
        Path("/etc/florence-daemon/florence-daemon.yaml"),
        machine,
        is_system=True,
    )
    person = plan_service(
        Config(
            folders=(FolderConfig(path=Path("/home/you/Pictures/inbox")),),
            state=StateConfig(dir=Path("/home/you/.local/state/florence-daemon")),
        ),
        Path("/home/you/.config/florence-daemon.yaml"),
        machine,
        is_system=False,
    )
    return {
        DIRECTORY / UNIT: unit(system),
        DIRECTORY / f"{UNIT}.d" / "gpu.conf": gpu_drop_in(system),
        DIRECTORY / "user" / UNIT: unit(person),
    }


if __name__ == "__main__":
    for file, text in example_units().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file)
