#!/usr/bin/env bash
# Sets everything up beside this file and runs the daemon:
#   ./vision-server.sh --demo     tries it with the small model that comes along
#   ./vision-server.sh --set-up   only sets up
#   ./vision-server.sh [OPTIONS]  is `florence-daemon run [OPTIONS]`
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command=run
if [ "${1:-}" = --demo ]; then
  command=demo
  shift
fi
started_in=$PWD
cd "$here"
. tools/venv.sh
prepare_venv "${FLORENCE_EXTRAS:-formats,openvino}"
[ "${1:-}" != --set-up ] || exit 0
cd "$started_in"
exec "$here/.venv/bin/florence-daemon" "$command" "$@"
