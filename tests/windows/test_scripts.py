"""The PowerShell scripts are PowerShell, say which settings are made, and call commands that there are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import pytest
import tree_sitter
import tree_sitter_powershell

from florence_daemon.config import Config, FolderConfig
from florence_daemon.errors import ConfigError, ServiceError
from florence_daemon.folders.mounts import DRIVE_REMOTE, is_share
from florence_daemon.nssm import Nssm, WindowsService, commands, configuration, mapped_folders, settings
from tests.test_documentation import help_of

SCRIPTS = sorted((Path(__file__).parents[2] / "windows").glob("*-service.ps1"))
CLIENTS = sorted((Path(__file__).parents[2] / "windows").glob("vision-*.ps1"))
SERVICE = WindowsService(
    "florence-daemon",
    PureWindowsPath(r"C:\florence\.venv\Scripts\python.exe"),  # type: ignore[arg-type]
    PureWindowsPath(r"C:\ProgramData\florence-daemon\florence-daemon.yaml"),  # type: ignore[arg-type]
    PureWindowsPath(r"C:\ProgramData\florence-daemon"),  # type: ignore[arg-type]
)


def parse(code: bytes) -> tree_sitter.Node:
    language = tree_sitter.Language(tree_sitter_powershell.language())
    return tree_sitter.Parser(language).parse(code).root_node


def test_there_is_a_script_for_each_task() -> None:
    assert [script.name for script in CLIENTS] == ["vision-caption-folder-images.ps1", "vision-client.ps1"]
    assert [script.name for script in SCRIPTS] == ["install-service.ps1", "uninstall-service.ps1", "update-service.ps1"]


@pytest.mark.parametrize("script", SCRIPTS + CLIENTS, ids=lambda script: script.name)
def test_script_is_powershell(script: Path) -> None:
    assert not parse(script.read_bytes()).has_error
    assert parse(re.sub(rb"exit (\$LASTEXITCODE|0)", b"exit )", script.read_bytes())).has_error


@pytest.mark.parametrize("script", SCRIPTS + CLIENTS, ids=lambda script: script.name)
def test_script_is_ascii_which_powershell_5_reads_rightly(script: Path) -> None:
    assert script.read_bytes().isascii()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_refuses_to_run_without_an_administrators_rights(script: Path) -> None:
    assert "#Requires -RunAsAdministrator" in script.read_text().splitlines()


def test_scripts_use_options_that_the_service_command_has() -> None:
    used = {option for script in SCRIPTS for option in re.findall(r"'(--[a-z-]+)'", script.read_text())}
    assert used == {"--name", "--config", "--nssm"}
    assert [option for option in used if option not in help_of("service")] == []


@pytest.mark.parametrize("setting", settings(SERVICE), ids=lambda setting: "-".join(setting[:2])[:40])
def test_install_script_says_each_setting_that_is_made(setting: tuple[str, ...]) -> None:
    name, *values = setting
    lines = [line for line in SCRIPTS[0].read_text().splitlines() if re.match(rf" {{4}}([\w, ]*\b)?{name}\b", line)]
    assert lines
    wanted = " ".join(values) if name == "AppExit" else values[0].removeprefix(r"C:\florence" + "\\")
    wanted = wanted.replace(r"C:\ProgramData\florence-daemon\logs", "logs").replace(r"C:\ProgramData", "%ProgramData%")
    assert any(wanted in line for line in lines)


def test_settings_hold_what_a_service_of_years_needs() -> None:
    made = {setting[:-1]: setting[-1] for setting in settings(SERVICE)}
    assert made[("AppStopMethodConsole",)] == "90000"
    assert made[("AppExit", "Default")] == "Restart"
    assert made[("AppExit", "78")] == "Exit"
    assert made[("Start",)] == "SERVICE_DELAYED_AUTO_START"
    assert made[("AppRotateFiles",)] == made[("AppRotateOnline",)] == "1"
    assert int(made[("AppRotateBytes",)]) == 10 * 2**20
    assert int(made[("AppThrottle",)]) >= 1500
    assert made[("AppStdout",)] == made[("AppStderr",)]
    environment = next(setting for setting in settings(SERVICE) if setting[0] == "AppEnvironmentExtra")
    assert "PYTHONUTF8=1" in environment


def test_variables_that_somebody_added_stay() -> None:
    service = WindowsService(
        "x", Path("python"), Path("config"), Path("home"), {"FLORENCE_DAEMON_SERVER__TOKEN": "t", "PYTHONUTF8": "0"}
    )
    environment = next(setting for setting in settings(service) if setting[0] == "AppEnvironmentExtra")
    assert "FLORENCE_DAEMON_SERVER__TOKEN=t" in environment
    assert "PYTHONUTF8=1" in environment
    assert "PYTHONUTF8=0" not in environment


def test_token_of_the_services_environment_is_enough_to_set_it_anew(tmp_path: Path) -> None:
    file = tmp_path / "florence-daemon.yaml"
    file.write_text("server: {host: 0.0.0.0}\n")
    environment = {"FLORENCE_DAEMON_SERVER__TOKEN": "t", "FLORENCE_DAEMON_CONFIG": str(file), "PYTHONUTF8": "1"}
    service = WindowsService("x", Path("python"), file, tmp_path, environment)
    assert configuration(service).server.required_token == "t"
    with pytest.raises(ConfigError, match=r"server\.token"):
        configuration(replace(service, environment={}))


def test_error_of_nssm_does_not_tell_the_token(tmp_path: Path) -> None:
    program = tmp_path / "nssm"
    program.write_text("#!/bin/sh\necho Access is denied. >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ServiceError, match=r"nssm set x AppEnvironmentExtra: Access is denied\.") as refused:
        Nssm(program).ask("set", "x", "AppEnvironmentExtra", "FLORENCE_DAEMON_SERVER__TOKEN=secret")
    assert "secret" not in str(refused.value)


def test_installing_anew_sets_everything_and_makes_nothing() -> None:
    first, again = commands(SERVICE, is_new=True), commands(SERVICE, is_new=False)
    assert first[0][:2] == ["install", "florence-daemon"]
    assert first[1:] == again
    assert {words[0] for words in again} == {"set"}


def test_account_is_the_persons_choice() -> None:
    assert "ObjectName" not in {setting[0] for setting in settings(SERVICE)}


def test_mapped_drives_are_found() -> None:
    config = Config(
        folders=tuple(
            FolderConfig(path=PureWindowsPath(path)) for path in (r"C:\in", r"Z:\photos", r"\\server\share\in")
        )
    )
    types = {"C:\\": 3, "Z:\\": DRIVE_REMOTE}
    found = mapped_folders(config, lambda path: is_share(path, types.__getitem__))
    assert found == [r"Z:\photos"]
    assert is_share(r"\\server\share\in", types.__getitem__)
