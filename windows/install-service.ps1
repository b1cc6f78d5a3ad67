<#
.SYNOPSIS
Installs Florence Daemon as a Windows service with NSSM and starts it.

.DESCRIPTION
Run it in a PowerShell that was started with "Run as administrator". Nothing is downloaded: windows\vision-server.bat
--set-up makes the .venv beforehand, and `winget install NSSM.NSSM` installs NSSM. Run it again after a change: all is
set anew and the service is started again; variables that you added to its environment stay, and so does its account.

`florence-daemon service install` does the work; `florence-daemon service print` shows the very commands. It sets:

    Application            .venv\Scripts\python.exe
    AppParameters          -m florence_daemon run
    AppDirectory           %ProgramData%\florence-daemon, with state, models and logs in it
    AppEnvironmentExtra    PYTHONUTF8=1, FLORENCE_DAEMON_CONFIG, STATE_DIRECTORY, HF_HOME
    DisplayName            Florence Daemon
    Description            Captions the pictures people drop into folders, with Florence-2.
    Start                  SERVICE_DELAYED_AUTO_START
    AppStopMethodConsole   90000      what runs is finished first; NSSM's own 1500 ms would cut it off
    AppExit                Default Restart
    AppExit                78 Exit    a wrong configuration is not started again and again
    AppThrottle            5000       what ends sooner than this is started again ever later
    AppRestartDelay        5000
    AppStdout, AppStderr   logs\florence-daemon.log
    AppRotateFiles         1
    AppRotateOnline        1
    AppRotateBytes         10485760

.PARAMETER Config
The configuration file; without it, the one of the installed service, or %ProgramData%\florence-daemon\florence-daemon.yaml.

.PARAMETER Service
The service's name.

.PARAMETER Nssm
The path of nssm.exe, where it is not on the PATH.

.PARAMETER Python
The interpreter that runs the service; without it, the one of .venv beside this directory.

.EXAMPLE
.\windows\install-service.ps1 -Config D:\florence\florence-daemon.yaml
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding()]
param(
    [string]$Config,
    [string]$Service = 'florence-daemon',
    [string]$Nssm,
    [string]$Python = (Join-Path $PSScriptRoot '..\.venv\Scripts\python.exe')
)
$ErrorActionPreference = 'Stop'

if (-not (Test-Path -LiteralPath $Python -PathType Leaf)) {
    throw "$Python is not there: windows\vision-server.bat --set-up makes it (and downloads PyTorch), or name a Python that has florence-daemon with -Python"
}
$Python = (Resolve-Path -LiteralPath $Python).ProviderPath
$arguments = @('-m', 'florence_daemon', 'service', 'install', '--name', $Service)
if ($Config) { $arguments += @('--config', $Config) }
if ($Nssm) { $arguments += @('--nssm', $Nssm) }
& $Python $arguments
exit $LASTEXITCODE
