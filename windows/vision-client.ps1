<#
.SYNOPSIS
Asks a Florence Daemon, or another server with the same vision API, about one picture.

.DESCRIPTION
    vision-client.ps1 PROMPT IMAGE    prints what the server says of the picture
    vision-client.ps1 prompts         prints the prompts it knows
    vision-client.ps1 model           prints the name of its model

The picture is sent as it is, neither scaled nor turned. The script stands alone: copy it wherever you like.

    VISION_HOST       the server, http://127.0.0.1:54880 without it
    VISION_TIMEOUT    seconds to wait for an answer, 120 without it
    FLORENCE_DAEMON_TOKEN, VISION_TOKEN    the server's token; the first one that is set is sent

Exit codes: 0 answered; 1 this picture has no answer; 2 wrong use; 69 the server answers nobody (or is none).

.EXAMPLE
.\windows\vision-client.ps1 CAPTION cat.jpg
#>
#Requires -Version 5.1
[CmdletBinding()]
param(
    [Parameter(Position = 0)][string]$prompt,
    [Parameter(Position = 1)][string]$image_file
)
Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'
Add-Type -AssemblyName System.Net.Http

$ExitFailed = 1
$ExitUsage = 2
$ExitServer = 69
# Seconds to ask a busy server again and again, and the longest pause in between, whatever it wants.
$PatienceSeconds = 600
$LongestPauseSeconds = 30

# What a server or a file's name says must not steer the console.
function Write-Trouble([string]$Text) {
    [Console]::Error.WriteLine('vision-client.ps1: ' + ($Text -replace '[\x00-\x1f\x7f]', '?'))
}

function Stop-Client([int]$Code, [string]$Text) {
    Write-Trouble "$about$Text"
    exit $Code
}

function Show-Usage {
    [Console]::Error.WriteLine('Usage: vision-client.ps1 PROMPT IMAGE    for example: vision-client.ps1 CAPTION cat.jpg')
    [Console]::Error.WriteLine('       vision-client.ps1 prompts|model')
    exit $ExitUsage
}

function Get-Base {
    $address = 'http://127.0.0.1:54880'
    if ($env:VISION_HOST) { $address = $env:VISION_HOST }
    if ($address -notmatch '://') { $address = "http://$address" }
    $uri = $null
    if (-not [Uri]::TryCreate($address, [UriKind]::Absolute, [ref]$uri) -or $uri.Scheme -notmatch '^https?$') {
        Stop-Client $ExitUsage "VISION_HOST: $address is no address such as http://127.0.0.1:54880"
    }
    return $address.TrimEnd('/')
}

function Open-Client {
    $handler = New-Object System.Net.Http.HttpClientHandler
    $handler.AllowAutoRedirect = $false
    # No proxy could reach this machine's own server.
    if (([Uri]$base).IsLoopback) { $handler.UseProxy = $false }
    $http = New-Object System.Net.Http.HttpClient($handler)
    $http.Timeout = [TimeSpan]::FromSeconds($timeout)
    $token = $env:FLORENCE_DAEMON_TOKEN
    if (-not $token) { $token = $env:VISION_TOKEN }
    if ($token) {
        if ($token -notmatch '^[A-Za-z0-9._~+/=-]+$') { Stop-Client $ExitUsage 'the token holds what a header cannot carry' }
        $http.DefaultRequestHeaders.Authorization = New-Object System.Net.Http.Headers.AuthenticationHeaderValue('Bearer', $token)
    }
    return $http
}

# caption, <CAPTION> and "<OD> a cat" as <CAPTION> and <OD> a cat.
function Format-Prompt([string]$Text) {
    if ($Text -match '^\s*(?:<(?<name>[^>]*)>|(?<name>\S*))(?<rest>[\s\S]*)$') {
        return '<' + $Matches['name'].ToUpperInvariant() + '>' + $Matches['rest']
    }
    return $Text
}

function Format-Question([string]$Prompt, [string]$Path) {
    try {
        $bytes = [IO.File]::ReadAllBytes($Path)
    } catch {
        Stop-Client $ExitFailed "it cannot be read: $($_.Exception.GetBaseException().Message)"
    }
    if ($bytes.Length -eq 0) { Stop-Client $ExitFailed 'it is empty' }
    $spelled = ConvertTo-Json -InputObject (Format-Prompt $Prompt) -Compress
    return '{"prompt":' + $spelled + ',"image":"' + [Convert]::ToBase64String($bytes) + '"}'
}

# One request: its status, its Retry-After in seconds (or null), and its body as text; JSON is UTF-8, said or not.
function Send-Once([string]$Path, [string]$Question) {
    $request = New-Object System.Net.Http.HttpRequestMessage
    $request.RequestUri = [Uri]($base + $Path)
    if ($Question) {
        $request.Method = [System.Net.Http.HttpMethod]::Post
        $request.Content = New-Object System.Net.Http.StringContent($Question, [Text.Encoding]::UTF8, 'application/json')
    }
    try {
        $response = $http.SendAsync($request).GetAwaiter().GetResult()
        $bytes = $response.Content.ReadAsByteArrayAsync().GetAwaiter().GetResult()
    } catch {
        for ($reason = $_.Exception; $null -ne $reason; $reason = $reason.InnerException) {
            if ($reason -is [OperationCanceledException]) {
                Stop-Client $ExitFailed "no answer from $base within $timeout s. The server may be downloading its model; VISION_TIMEOUT=600 waits longer"
            }
        }
        Stop-Client $ExitServer "no server answers at ${base}: $($_.Exception.GetBaseException().Message)"
    }
    return @{
        Status = [int]$response.StatusCode
        Pause  = Read-Pause $response.Headers.RetryAfter
        Body   = [Text.Encoding]::UTF8.GetString($bytes)
    }
}

# The seconds that Retry-After asks for; a date is not reckoned with.
function Read-Pause($Header) {
    if ($null -eq $Header) { return $null }
    if ($null -eq $Header.Delta) { return 5 }
    return [int][Math]::Min($LongestPauseSeconds, [Math]::Max(1, $Header.Delta.TotalSeconds))
}

# The same, asked again while the server is busy.
function Send-Request([string]$Path, [string]$Question) {
    $waited = 0
    while ($true) {
        $answer = Send-Once $Path $Question
        $pause = $answer.Pause
        $isBusy = ($answer.Status -eq 429 -or $answer.Status -eq 503) -and $null -ne $pause
        if (-not $isBusy -or $waited + $pause -gt $PatienceSeconds) { return $answer }
        Write-Trouble "$(Get-Reason $answer); asked again in $pause s"
        Start-Sleep -Seconds $pause
        $waited += $pause
    }
}

# The value that a text of JSON holds, in a list of one; an empty list where it is none, such as a proxy's page.
function Read-Json([string]$Body) {
    try {
        return , @(, (ConvertFrom-Json -InputObject $Body))
    } catch {
        return , @()
    }
}

function Select-Member([string]$Body, [string]$Name) {
    $values = Read-Json $Body
    if ($values.Count -eq 0 -or $null -eq $values[0]) { return $null }
    $property = $values[0].PSObject.Properties[$Name]
    if ($null -eq $property) { return $null }
    return , $property.Value
}

# A string as its text, a list of strings one to a line, boxes and the like as JSON; null, true and numbers are no text.
function Get-Text($Value) {
    if ($null -eq $Value -or $Value -is [ValueType]) { return '' }
    if ($Value -is [string]) {
        $text = $Value
    } elseif ($Value -is [array] -and @($Value | Where-Object { $_ -isnot [string] }).Count -eq 0) {
        $text = $Value -join "`n"
    } else {
        $text = ConvertTo-Json -InputObject $Value -Depth 20 -Compress
    }
    return ($text -replace '[\x00-\x08\x0b-\x1f\x7f]', '').Trim()
}

# What the server says of its error; a proxy's page is not worth showing.
function Get-Reason($Answer) {
    foreach ($name in 'detail', 'error') {
        $text = Get-Text (Select-Member $Answer.Body $name)
        if ($text) { return $text }
    }
    return "$($Answer.Status), and no reason that can be read"
}

# Ends with what an answer that is no success means: for this picture alone, for this prompt, or for everybody.
function Stop-Refused($Answer) {
    $told = Get-Reason $Answer
    if ($Answer.Status -eq 400 -and $told -like 'Invalid prompt*') { Stop-Client $ExitUsage $told }
    if ($Answer.Status -eq 401) { Stop-Client $ExitServer "$base wants its token; set FLORENCE_DAEMON_TOKEN or VISION_TOKEN" }
    if ($Answer.Status -eq 413) { Stop-Client $ExitFailed "the picture is too large for ${base}: $told" }
    if (400, 415, 422, 500, 504 -contains $Answer.Status) { Stop-Client $ExitFailed $told }
    Stop-Client $ExitServer "${base}: $($Answer.Status): $told"
}

# The title is for a person's eyes, so it stays out of pipes and variables.
function Write-List([string]$Path, [string]$Title) {
    $answer = Send-Request $Path ''
    if ($answer.Status -ne 200) { Stop-Refused $answer }
    $values = Read-Json $answer.Body
    $text = ''
    if ($values.Count -gt 0) { $text = Get-Text $values[0] }
    if (-not $text) { Stop-Client $ExitServer "what answers at $base is not a vision server" }
    if (-not [Console]::IsOutputRedirected) { [Console]::Error.WriteLine($Title) }
    ($text -replace '[<>]', '') -split "`n"
}

function Write-Answer([string]$Question) {
    $answer = Send-Request '/process_image' $Question
    if ($answer.Status -ne 200) { Stop-Refused $answer }
    if ((Read-Json $answer.Body).Count -eq 0) { Stop-Client $ExitServer "what answers at $base is not a vision server" }
    $flaw = Get-Text (Select-Member $answer.Body 'flaw')
    if ($flaw) { Stop-Client $ExitFailed "the server does not trust its own answer: $flaw" }
    $text = Get-Text (Select-Member $answer.Body 'result')
    if (-not $text) { Stop-Client $ExitFailed 'the server sent no result, or an empty one' }
    $text
}

$about = ''
$timeout = 120
if ($env:VISION_TIMEOUT) {
    if ($env:VISION_TIMEOUT -notmatch '^[1-9][0-9]{0,6}$') { Stop-Client $ExitUsage "VISION_TIMEOUT: $($env:VISION_TIMEOUT) is no number of seconds" }
    $timeout = [int]$env:VISION_TIMEOUT
}
$base = Get-Base
$http = Open-Client
if ($prompt -eq 'prompts' -and -not $image_file) {
    Write-List '/prompts' 'Available prompts:'
} elseif ($prompt -eq 'model' -and -not $image_file) {
    Write-List '/model' 'Model name:'
} elseif ($prompt -and $image_file) {
    $about = "${image_file}: "
    # A name with brackets is no pattern, and .NET knows nothing of PowerShell's current directory.
    $path = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($image_file)
    if (-not [IO.File]::Exists($path)) { Stop-Client $ExitFailed 'there is no such file' }
    Write-Answer (Format-Question $prompt $path)
} else {
    Show-Usage
}
exit 0
