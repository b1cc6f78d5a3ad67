#!/usr/bin/env bash
# Installs what the tests need and runs everything that CI runs; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/venv.sh
. tools/packages.sh
install_packages
prepare_venv "dev,formats,quantize,ray,benchmarks"
tools/windows_bench.sh || echo "The tests under Wine will be skipped" >&2
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two files at a time: most tests wait, for a daemon, a browser or a clock.
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile "$@"
