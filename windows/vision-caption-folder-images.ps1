<#
.SYNOPSIS
Writes a caption beside every picture of a folder and all folders in it, with vision-client.ps1, which lies beside this.

.DESCRIPTION
    vision-caption-folder-images.ps1 PROMPT EXTENSION FOLDER

A picture that has its caption is left alone, whoever wrote it. One that failed has none, so the next run tries it again.
VISION_HOST and the other variables are vision-client.ps1's.

Exit codes: 0 done; 1 some pictures have no caption, each was named with its reason; 2 wrong use.

.EXAMPLE
.\windows\vision-caption-folder-images.ps1 DETAILED_CAPTION txt D:\training\my-style
#>
#Requires -Version 5.1
[CmdletBinding()]
param(
    [Parameter(Position = 0)][string]$prompt,
    [Parameter(Position = 1)][string]$caption_extension,
    [Parameter(Position = 2)][string]$folder_path
)
Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'

# What counts as a picture, in any case.
$Endings = '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif', '.heic', '.heif'
$ExitFailed = 1
$ExitUsage = 2
$ExitServer = 69 # vision-client.ps1's, when asking again makes no sense
$Client = Join-Path $PSScriptRoot 'vision-client.ps1'

function Write-Trouble([string]$Text) {
    [Console]::Error.WriteLine(($Text -replace '[\x00-\x1f\x7f]', '?'))
}

function Stop-Wrong([string]$Text) {
    Write-Trouble "vision-caption-folder-images.ps1: $Text"
    exit $ExitUsage
}

# One line, as trainers read no other: lines are joined by a comma, behind a full stop or the like by a space.
function Join-Lines([string[]]$Lines) {
    $joined = ''
    foreach ($line in ($Lines -join "`n") -split "`n") {
        $line = ($line -replace '\s+', ' ').Trim()
        if (-not $line) { continue }
        if ($joined -match '[.,;:!?]$') { $joined += ' ' } elseif ($joined) { $joined += ', ' }
        $joined += $line
    }
    return $joined
}

# Whole or not at all, UTF-8 without BOM; a move replaces no file that has appeared meanwhile. The hidden name is one that
# Florence Daemon removes, should this be killed before it does so itself.
function Write-Caption([string]$Text, [string]$Path) {
    $number = [Guid]::NewGuid().ToString('N').Substring(0, 12)
    $temporary = Join-Path ([IO.Path]::GetDirectoryName($Path)) ".florence-$number-$PID"
    try {
        [IO.File]::WriteAllText($temporary, "$Text`n", (New-Object System.Text.UTF8Encoding $false))
        [IO.File]::Move($temporary, $Path)
    } finally {
        [IO.File]::Delete($temporary)
    }
}

if (-not $prompt -or -not $caption_extension -or -not $folder_path) {
    Stop-Wrong 'Usage: vision-caption-folder-images.ps1 PROMPT EXTENSION FOLDER'
}
$extension = '.' + $caption_extension.TrimStart('.')
if ($extension -notmatch '^\.[A-Za-z0-9_.-]+$') { Stop-Wrong "$caption_extension is not a file name's ending; give letters and digits, as in txt" }
if ($Endings -contains [IO.Path]::GetExtension($extension)) {
    Stop-Wrong "$caption_extension is a picture's ending, and a caption must never replace a picture"
}
if (-not (Test-Path -LiteralPath $folder_path -PathType Container)) { Stop-Wrong "$folder_path is no folder" }
if (-not (Test-Path -LiteralPath $Client -PathType Leaf)) { Stop-Wrong "$Client is not there" }

$images = @(
    Get-ChildItem -LiteralPath $folder_path -Recurse -File -ErrorAction SilentlyContinue -ErrorVariable unreadable |
        Where-Object { $Endings -contains $_.Extension -and $_.Name -notmatch '^[.~]' } |
        Sort-Object -Property FullName
)
$saved = 0
$present = 0
$empty = 0
$failed = @($unreadable).Count
foreach ($each in $unreadable) { Write-Trouble "Error: $each" }
$owners = @{} # the picture that each caption belongs to, where two differ by their endings alone
$code = 0
$number = 0
foreach ($image in $images) {
    $number += 1
    $caption = Join-Path $image.DirectoryName ([IO.Path]::GetFileNameWithoutExtension($image.Name) + $extension)
    if ($owners.ContainsKey($caption)) {
        $failed += 1
        Write-Trouble "Error processing image: $($image.FullName): shares its caption with $($owners[$caption]); rename one of the two"
        continue
    }
    $owners[$caption] = $image.Name
    if (Test-Path -LiteralPath $caption) {
        $present += 1
        if ((Test-Path -LiteralPath $caption -PathType Leaf) -and (Get-Item -LiteralPath $caption -Force).Length -eq 0) { $empty += 1 }
        continue
    }
    "Processing image: $($image.FullName) ($number of $($images.Count))"
    $began = Get-Date
    $lines = & $Client $prompt $image.FullName
    $code = $LASTEXITCODE
    if ($code -eq $ExitServer -or $code -eq $ExitUsage) {
        $failed += 1
        Write-Trouble 'Stopped, as the other pictures would fare no better; the same command goes on here'
        break
    }
    $text = Join-Lines $lines
    if ($code -ne 0 -or -not $text) {
        $failed += 1 # the client has said why
        continue
    }
    try {
        Write-Caption $text $caption
        $saved += 1
        'Caption saved to: {0} ({1:N1} s)' -f $caption, ((Get-Date) - $began).TotalSeconds
    } catch {
        $failed += 1
        Write-Trouble "Error processing image: $($image.FullName): $($_.Exception.GetBaseException().Message)"
    }
}
Write-Trouble "$saved saved, $present were there already, $failed failed"
if ($empty) { Write-Trouble "$empty of those that were there are empty files, which stop some trainers; delete them, and they are made anew" }
if ($code -eq $ExitUsage) { exit $ExitUsage }
if ($failed) { exit $ExitFailed }
exit 0
