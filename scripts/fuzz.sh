#!/usr/bin/env bash
# Fuzzes what takes bytes from elsewhere: the native targets of test/fuzz with libFuzzer, and the wire formats with
# fast-check. Everything that libFuzzer finds worth keeping stays in build/fuzz, so the next run goes on from there.
#   npm run fuzz -- --seconds N    N seconds altogether (default 60)
#   npm run fuzz -- --mutants      deliberate bugs in the native code, each alone: all have to be found
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'fuzz: %s\n' "$*" >&2; }
seconds=60
mutants=no
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) seconds="${2:-}"; shift 2 || true ;;
    --mutants) mutants=yes; shift ;;
    *) say "unknown option $1; usage: npm run fuzz -- [--seconds N | --mutants]"; exit 2 ;;
  esac
done
if ! [[ "$seconds" =~ ^[1-9][0-9]*$ ]]; then say '--seconds takes a positive integer'; exit 2; fi

install='Debian, Ubuntu: apt-get install clang libclang-rt-dev (on Debian 12 libclang-rt-14-dev)'
command -v "${CLANGXX:-clang++}" >/dev/null 2>&1 || { say "clang++ is missing ($install)"; exit 1; }
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' \
  | "${CLANGXX:-clang++}" -x c++ -fsanitize=fuzzer,address,undefined -o "$probe/probe" - >/dev/null 2>&1; then
  say "clang++ can't link libFuzzer and the sanitizers ($install)"
  exit 1
fi
if [ "$mutants" = yes ]; then
  rm -rf "$probe"
  exec test/fuzz/mutants.sh
fi
scripts/setup.sh
make -s -C test/fuzz all

share=$(( seconds / 4 > 0 ? seconds / 4 : 1 ))
status=0
for target in operand transitions lane; do
  mkdir -p "build/fuzz/corpus-$target" "test/fuzz/corpus/$target"
  log="build/fuzz/$target.log"
  # The limit for one input is far beyond what any takes, and the whole run has one, too.
  if timeout -k 10 $((share + 120)) "build/fuzz/$target" -max_total_time="$share" -max_len=1200 -timeout=10 -rss_limit_mb=1024 \
      -artifact_prefix="build/fuzz/found-$target-" "build/fuzz/corpus-$target" "test/fuzz/corpus/$target" >"$log" 2>&1; then
    printf '%s: %s, no finding\n' "$target" "$(sed -n 's/^Done \([0-9]* runs\).*/\1/p' "$log")"
  else
    status=1
    sed '/^#/d; /^INFO/d; /NEW_FUNC/d' "$log" >&2
    say "$target: a finding; the input is build/fuzz/found-$target-*, and the log $log"
  fi
done

# fast-check counts cases and not seconds: rounds, with a new seed each, until the time is over.
until=$(( $(date +%s) + share ))
rounds=0
while :; do
  if ! FUZZ_RUNS=5000 timeout -k 10 300 node node_modules/mocha/bin/mocha.js --no-config --timeout 120000 --reporter dot dist/test/unit/wire-properties.test.js >build/fuzz/wire.log 2>&1; then
    status=1
    cat build/fuzz/wire.log >&2
    say 'wire formats: a finding; fast-check printed its seed and path'
    break
  fi
  rounds=$((rounds + 1))
  [ "$(date +%s)" -ge "$until" ] && break
done
printf 'wire formats: %d rounds of 5000 cases for each property\n' "$rounds"
exit "$status"
