<#
.SYNOPSIS
Stops Florence Daemon's service and removes it. Settings, state, models, logs and captions stay.

.DESCRIPTION
Run it in a PowerShell that was started with "Run as administrator".

.PARAMETER Service
The service's name.

.PARAMETER Nssm
The path of nssm.exe, where it is not on the PATH.

.PARAMETER Python
An interpreter that has florence-daemon; without it, the one of .venv beside this directory.

.EXAMPLE
.\windows\uninstall-service.ps1
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding()]
param(
    [string]$Service = 'florence-daemon',
    [string]$Nssm,
    [string]$Python = (Join-Path $PSScriptRoot '..\.venv\Scripts\python.exe')
)
$ErrorActionPreference = 'Stop'

if (-not (Test-Path -LiteralPath $Python -PathType Leaf)) {
    throw "$Python is not there: name a Python that has florence-daemon with -Python, or remove the service with: nssm remove $Service confirm"
}
$arguments = @('-m', 'florence_daemon', 'service', 'uninstall', '--name', $Service)
if ($Nssm) { $arguments += @('--nssm', $Nssm) }
& $Python $arguments
exit $LASTEXITCODE
