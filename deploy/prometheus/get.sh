#!/bin/sh
# Get Prometheus and promtool as the tests of dashboards and alerts need them: where Debian's packages are at hand,
# unpacked into a folder of yours. Nothing is installed, no service is started, root is not needed.
# Usage: deploy/prometheus/get.sh [FOLDER]   (default: ~/.cache/pricing/prometheus)
set -eu
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/pricing/prometheus}

if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then
  if [ ! -x "$folder/promtool" ]; then
    command -v apt-get >/dev/null || { echo "Install prometheus and promtool (https://prometheus.io/download)" >&2; exit 1; }
    package=$(mktemp -d)
    trap 'rm -rf "$package"' EXIT
    chmod 755 "$package" # apt's own user writes here
    (cd "$package" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }) >&2
    dpkg-deb --extract "$package"/prometheus_*.deb "$package"
    mkdir -p "$folder"
    for program in prometheus promtool; do
      cp "$package/usr/bin/$program" "$folder/$program.new"
      mv "$folder/$program.new" "$folder/$program"
    done
  fi
  echo "$folder has prometheus and promtool."
fi
