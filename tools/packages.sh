# Installs the Debian packages that some tests need, where that is possible: as root, with apt. Sourced by run-tests.sh.
# Elsewhere those tests skip, and each says what it lacks.

install_packages() {
  local command package missing=()
  while read -r command package; do
    command -v "$command" >/dev/null || missing+=($package)
  done <<'COMMANDS'
bindfs bindfs
chromium chromium
curl curl
debootstrap debootstrap
exiftool libimage-exiftool-perl
exiv2 exiv2
faketime faketime
haproxy haproxy
jq jq
mkfs.exfat exfatprogs
mount.exfat-fuse exfat-fuse
rsync rsync
shellcheck shellcheck
strace strace
systemd-analyze systemd
systemd-nspawn systemd-container
wine wine wine64
COMMANDS
  if [ ${#missing[@]} = 0 ]; then
    return
  fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Some tests will be skipped for want of: ${missing[*]}" >&2
    return
  fi
  echo "Installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update && apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" >/dev/null ||
    echo "They could not be installed; the tests that need them will be skipped" >&2
}
