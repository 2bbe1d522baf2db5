#!/bin/sh
# Get VictoriaMetrics and start it on this machine alone: `pricing up` finds it, and records of requests go there.
# Usage: deploy/victoriametrics/run.sh [FOLDER FOR ITS DATA]   (default: .pricing/victoriametrics)
set -eu
sh "$(dirname "$0")/get.sh"
program=$(command -v victoria-metrics || echo "${XDG_CACHE_HOME:-$HOME/.cache}/pricing/victoriametrics/victoria-metrics")
# A batch that comes again consists of the same points: of each, one is kept.
exec "$program" -storageDataPath="${1:-.pricing/victoriametrics}" -httpListenAddr=127.0.0.1:8428 \
  -dedup.minScrapeInterval=1ms -retentionPeriod=90d
