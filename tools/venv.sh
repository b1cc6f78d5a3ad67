# Makes .venv beside this project and installs it there, with the pinned constraints; sourced by the scripts at the top.
# prepare_venv EXTRAS: does nothing when what it would install is installed already.

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.10 or later is needed and was not found; set PYTHON to its path" >&2
  return 1
}

prepare_venv() {
  local extras=$1 python wanted stamp=.venv/installed
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version)" >&2
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 1
    fi
  fi
  wanted="$extras $(cat pyproject.toml constraints.txt | cksum)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing what is needed; the first time this downloads PyTorch" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
    echo "$wanted" >"$stamp"
  fi
}
