#!/usr/bin/env bash
# Gets a fresh clone ready to run: npm packages, the native addons, the compiled TypeScript. Does only what is missing or
# older than its sources, so it costs a fraction of a second when nothing changed. On stdout it is silent.
#   scripts/setup.sh            all of it
#   FAULTLINE_SETUP=skip        nothing: for whoever has just built by hand
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${FAULTLINE_SETUP:-}" = skip ] && exit 0

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

command -v node >/dev/null 2>&1 || fail 'Node.js is missing: install version 20.19 or later, from https://nodejs.org'
command -v npm >/dev/null 2>&1 || fail 'npm is missing: it comes with Node.js, or as a package of its own'
[ "$(uname -s)" = Linux ] || fail "this works on Linux only, and this is $(uname -s)"
node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' \
  || fail "Node.js 20.19 or later is needed, and this is $(node -v)"

# Two setups at once, of two terminals for example, would build into each other's files.
if [ -z "${FAULTLINE_SETUP_LOCKED:-}" ] && command -v flock >/dev/null 2>&1; then
  FAULTLINE_SETUP_LOCKED=1 exec flock "$PWD/scripts" "$PWD/scripts/setup.sh"
fi

# Runs a command whose output nobody wants to see unless it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then cat "$log" >&2; fi
  rm -f "$log"
  return "$status"
}

# ---- npm packages: their own install scripts stay off; zeromq brings its binary along for the usual platforms.
installed=node_modules/.package-lock.json
if [ ! -f "$installed" ] || [ package-lock.json -nt "$installed" ] || [ package.json -nt "$installed" ]; then
  # package.json is also newer after an edit that has nothing to do with packages: npm ls tells the two apart.
  if [ -f "$installed" ] && npm ls --all >/dev/null 2>&1; then
    touch "$installed"
  else
    say 'installing npm packages'
    quietly npm ci --ignore-scripts --no-audit --no-fund || fail 'npm ci failed: see above (is the registry reachable?)'
    touch "$installed"
  fi
fi
if ! node -e 'require("zeromq")' >/dev/null 2>&1; then
  say 'building zeromq: it has no binary for this platform'
  quietly npm rebuild zeromq || fail 'zeromq could not be built: see above'
fi

# ---- native addons: one build for each Node.js version, since the V8 bridge belongs to one.
built=build/.built
node_now="$(node -p 'process.version + " " + process.arch')"
if [ ! -f "$built" ] || [ "$(cat "$built")" != "$node_now" ] || [ -n "$(find binding.gyp native -newer "$built" -print -quit)" ]; then
  missing=''
  command -v python3 >/dev/null 2>&1 || missing="$missing python3"
  command -v make >/dev/null 2>&1 || missing="$missing make"
  command -v "${CXX:-g++}" >/dev/null 2>&1 || missing="$missing ${CXX:-g++}"
  if [ -n "$missing" ]; then
    fail "the native part can't be built; missing:$missing (Debian, Ubuntu: apt-get install build-essential python3; Fedora: dnf install gcc-c++ make python3; Alpine: apk add build-base python3)"
  fi
  say 'building the native part (about half a minute)'
  headers=()
  # Headers that came with this Node.js save a download, and fit exactly.
  root="$(node -p 'require("path").resolve(process.execPath, "../..")')"
  if [ -f "$root/include/node/node_version.h" ] && [ "$(node -e '
    const text = require("fs").readFileSync(process.argv[1], "utf8");
    const part = (name) => new RegExp("#define NODE_" + name + "_VERSION (\\d+)").exec(text)?.[1];
    console.log("v" + ["MAJOR", "MINOR", "PATCH"].map(part).join("."));' "$root/include/node/node_version.h")" = "$(node -v)" ]; then
    headers=("--nodedir=$root")
  fi
  quietly node_modules/.bin/node-gyp configure build -j 2 "${headers[@]}" || fail 'the native build failed: see above'
  printf '%s\n' "$node_now" >"$built"
fi

# ---- TypeScript
compiled=dist/.compiled
sources=()
for folder in lib test benchmarks examples tsconfig.json package.json; do if [ -e "$folder" ]; then sources+=("$folder"); fi; done
if [ ! -f "$compiled" ] || [ -n "$(find "${sources[@]}" -newer "$compiled" -print -quit)" ]; then
  say 'compiling TypeScript'
  # The stamp has the time of the start: what is saved while the compiler runs is newer.
  mkdir -p dist
  touch dist/.compiling
  quietly node_modules/.bin/tsc -p . || fail 'the TypeScript does not compile: see above'
  mv dist/.compiling "$compiled"
fi
