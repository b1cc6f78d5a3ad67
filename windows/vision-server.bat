@echo off
rem Sets everything up beside this file and runs the daemon:
rem   windows\vision-server.bat --demo     tries it with the small model that comes along
rem   windows\vision-server.bat --set-up   only sets up
rem   windows\vision-server.bat [OPTIONS]  is florence-daemon run [OPTIONS]
setlocal
set "PYTHONUTF8=1"
for %%I in ("%~dp0..") do set "HERE=%%~fI"
set "VENV=%HERE%\.venv"
set "COMMAND=run"
set "EXTRAS=formats,openvino"
if defined FLORENCE_EXTRAS set "EXTRAS=%FLORENCE_EXTRAS%"

if exist "%VENV%\Scripts\python.exe" goto install
set "FOUND="
call :try py -3
call :try python3
call :try python
if not defined FOUND (
  echo Python 3.10 or later is needed and was not found: install it from python.org 1>&2
  exit /b 1
)
echo Making .venv 1>&2
%FOUND% -m venv "%VENV%" || exit /b 1

:install
if exist "%VENV%\installed" (
  fc /b "%HERE%\constraints.txt" "%VENV%\installed" >nul 2>&1 && goto start
)
echo Installing what is needed; the first time this downloads PyTorch 1>&2
"%VENV%\Scripts\python.exe" -m pip install --quiet --disable-pip-version-check --constraint "%HERE%\constraints.txt" --editable "%HERE%[%EXTRAS%]" || exit /b 1
copy /y "%HERE%\constraints.txt" "%VENV%\installed" >nul

:start
if "%~1"=="--set-up" exit /b 0
set "ARGS="
if not "%~1"=="--demo" goto collect
set "COMMAND=demo"
shift
:collect
if "%~1"=="" goto execute
set ARGS=%ARGS% "%~1"
shift
goto collect

:execute
"%VENV%\Scripts\python.exe" -m florence_daemon %COMMAND% %ARGS%
exit /b %ERRORLEVEL%

:try
rem Keeps the first command that is a Python of 3.10 or later.
if defined FOUND exit /b 0
%* -c "import sys; sys.exit(sys.version_info < (3, 10))" >nul 2>&1
if not errorlevel 1 set "FOUND=%*"
exit /b 0
