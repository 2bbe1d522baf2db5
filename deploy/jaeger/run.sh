#!/bin/sh
# Get Jaeger and run it until Ctrl-C: in a container where there is an engine, else built from source, once.
# It takes traces on port JAEGER_OTLP_PORT (4318) and shows them on port JAEGER_HTTP_PORT (16686), for this machine only.
set -eu
here=$(dirname "$0")
page=${JAEGER_HTTP_PORT:-16686} otlp=${JAEGER_OTLP_PORT:-4318}

if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
  echo "Traces: http://127.0.0.1:$page   (Ctrl-C stops Jaeger)"
  exec docker run --rm --name pricing-jaeger -e JAEGER_HOST=0.0.0.0 \
    -p "127.0.0.1:$page:16686" -p "127.0.0.1:$otlp:4318" \
    -v "$(cd "$here" && pwd)/config.yaml:/etc/jaeger/pricing.yaml:ro" \
    jaegertracing/jaeger:2.13.0 --config /etc/jaeger/pricing.yaml
fi
program=$(sh "$here/build.sh")
echo "Traces: http://127.0.0.1:$page   (Ctrl-C stops Jaeger)"
exec "$program" --config "$here/config.yaml"
