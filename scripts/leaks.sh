#!/usr/bin/env bash
# Joins and leaves many times, and shows what is left: descriptors, mappings, threads, heap, resident memory.
#   npm run leaks -- --cycles N    (default 1000; memory is judged from 300 on)
set -euo pipefail
cd "$(dirname "$0")/.."

cycles=1000
while [ $# -gt 0 ]; do
  case "$1" in
    --cycles) cycles="${2:-}"; shift 2 || true ;;
    *) printf 'leaks: unknown option %s; usage: npm run leaks -- --cycles N\n' "$1" >&2; exit 2 ;;
  esac
done
if ! [[ "$cycles" =~ ^[1-9][0-9]*$ ]]; then printf 'leaks: --cycles takes a positive integer\n' >&2; exit 2; fi
scripts/setup.sh
LEAK_CYCLES="$cycles" exec node node_modules/mocha/bin/mocha.js --no-config dist/test/leaks/many-cycles.js
