<#
.SYNOPSIS
Brings a service to the version of this directory: stops it, sets .venv up anew, starts it again.

.DESCRIPTION
Get the new version first (git pull, or unpack it over this directory), then run this in a PowerShell that was started
with "Run as administrator". The set-up downloads the libraries whose versions have changed, and nothing else; with
-NoSetUp it is left out. The service keeps its configuration.

.PARAMETER Service
The service's name.

.PARAMETER Nssm
The path of nssm.exe, where it is not on the PATH.

.PARAMETER NoSetUp
Downloads and installs nothing.

.EXAMPLE
.\windows\update-service.ps1
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding()]
param(
    [string]$Service = 'florence-daemon',
    [string]$Nssm,
    [switch]$NoSetUp
)
$ErrorActionPreference = 'Stop'

if (-not (Get-Service -Name $Service -ErrorAction SilentlyContinue)) {
    throw "There is no service $Service; windows\install-service.ps1 installs it"
}
# Windows lets nobody replace files that a running program has open.
Stop-Service -Name $Service
if (-not $NoSetUp) {
    & (Join-Path $PSScriptRoot 'vision-server.bat') --set-up
    if ($LASTEXITCODE -ne 0) {
        Start-Service -Name $Service
        throw "The set-up failed, as said above; the service was started again as it is"
    }
}
& (Join-Path $PSScriptRoot 'install-service.ps1') -Service $Service -Nssm $Nssm
exit $LASTEXITCODE
