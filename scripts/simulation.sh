#!/usr/bin/env bash
# Builds the simulator's addon where it is missing or older than its sources. Silent on stdout.
#   scripts/simulation.sh [FOLDER]   FOLDER: where its binding.gyp is (test/simulation/native)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-test/simulation/native}
built=$folder/build/.built
node_now="$(node -p 'process.version + " " + process.arch')"
if [ -f "$built" ] && [ "$(cat "$built")" = "$node_now" ] && [ -z "$(find native "$folder" -path "$folder/build" -prune -o -newer "$built" -type f -print -quit)" ]; then exit 0; fi
printf 'simulation: building the addon\n' >&2
headers=()
root="$(node -p 'require("path").resolve(process.execPath, "../..")')"
if [ -f "$root/include/node/node_version.h" ]; then headers=("--nodedir=$root"); fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! (cd "$folder" && "$OLDPWD/node_modules/.bin/node-gyp" configure build -j 2 "${headers[@]}") >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
printf '%s\n' "$node_now" >"$built"
