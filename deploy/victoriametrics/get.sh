#!/bin/sh
# Get VictoriaMetrics as its tests need it: where Debian's packages are at hand, unpacked into a folder of yours.
# Nothing is installed, no service is started, root is not needed.
# Usage: deploy/victoriametrics/get.sh [FOLDER]   (default: ~/.cache/pricing/victoriametrics)
set -eu
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/pricing/victoriametrics}

if ! command -v victoria-metrics >/dev/null; then
  if [ ! -x "$folder/victoria-metrics" ]; then
    command -v apt-get >/dev/null || { echo "Install VictoriaMetrics (https://docs.victoriametrics.com)" >&2; exit 1; }
    package=$(mktemp -d)
    trap 'rm -rf "$package"' EXIT
    chmod 755 "$package" # apt's own user writes here
    name=victoria-metrics
    (cd "$package" && { apt-get download -qq $name || { apt-get update -qq && apt-get download -qq $name; }; }) >&2
    dpkg-deb --extract "$package"/victoria-metrics_*.deb "$package"
    mkdir -p "$folder"
    cp "$package/usr/bin/victoria-metrics" "$folder/victoria-metrics.new"
    mv "$folder/victoria-metrics.new" "$folder/victoria-metrics"
  fi
  echo "$folder has victoria-metrics."
fi
