#!/bin/sh
# Build Jaeger v2 from source, for machines without a container engine: Go 1.25 or newer, 5 to 10 minutes, once.
# Usage: deploy/jaeger/build.sh [FOLDER]   (default: ~/.cache/pricing/jaeger)
# Prints where the program is.
set -eu
version=v1.76.0 # of the module; the Jaeger v2 in it is 2.13
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/pricing/jaeger}
program=$folder/jaeger-$version

if [ ! -x "$program" ]; then
  command -v go >/dev/null || { echo "Go 1.25 or newer is needed to build Jaeger (https://go.dev/dl)" >&2; exit 1; }
  echo "Building Jaeger $version: 5 to 10 minutes, once" >&2
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  # `go install …@version` refuses modules with replace directives, so build in a copy of the module.
  module=$(cd "$source" && go mod download -json "github.com/jaegertracing/jaeger@$version" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
  [ -n "$module" ] || { echo "Jaeger $version could not be downloaded" >&2; exit 1; }
  cp -r "$module/." "$source"
  chmod -R u+w "$source"
  mkdir -p "$folder"
  (cd "$source" && CGO_ENABLED=0 go build -trimpath -o "$program.new" ./cmd/jaeger)
  mv "$program.new" "$program"
fi
ln -sf "jaeger-$version" "$folder/jaeger"
echo "$program"
