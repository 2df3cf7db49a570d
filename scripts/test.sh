#!/usr/bin/env bash
# The project's tests: sets itself up, runs the native tests, then each mocha file in a process of its own, so that one
# that hangs or dies costs that file only. The last line counts all of them.
#   npm test                              everything
#   npm test -- dist/test/unit/*.test.js  these files; what begins with a dash goes to mocha (--grep locks)
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh || exit 1

FILE_SECONDS=300
counts=$(mktemp)
failures=$(mktemp)
trap 'rm -f "$counts" "$failures"' EXIT
export FAULTLINE_COUNTS="$counts" FAULTLINE_FAILURES="$failures"
fail() { echo "$1"; echo "$1" >>"$failures"; add 1 failed; }
add() { for ((i = 0; i < $1; i++)); do echo "$2"; done >>"$counts"; }

files=()
options=()
for argument in "$@"; do
  case "$argument" in
    *.test.js) files+=("$argument") ;;
    *) options+=("$argument") ;;
  esac
done

if [ $# -eq 0 ]; then
  native=$(timeout -k 10 600 make -s -j"$(nproc)" -C test/native check 2>&1)
  native_status=$?
  printf '%s\n' "$native"
  read -r passed failed < <(printf '%s\n' "$native" | awk '/^([A-Za-z_-]+: )?[0-9]+ passed, [0-9]+ failed/ { sub(/^[A-Za-z_-]+: /, ""); p += $1; f += $3 } END { print p + 0, f + 0 }')
  # A native test that crashed or hung printed no count of its own.
  if [ "$native_status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
  if [ "$failed" -ne 0 ]; then printf 'native tests (status %d):\n%s\n' "$native_status" "$(tail -n 40 <<<"$native")" >>"$failures"; fi
  add "$passed" passed
  add "$failed" failed
fi
if [ ${#files[@]} -eq 0 ]; then mapfile -t files < <(find dist/test -name '*.test.js' | sort); fi

# What handles faults runs with the guard that is not chosen by itself, too.
run() {
  local file=$1 before status
  before=$(grep -c failed "$counts")
  timeout -k 10 "$FILE_SECONDS" node node_modules/mocha/bin/mocha.js --no-config --timeout 60000 --forbid-only --reporter test/support/reporter.cjs "${options[@]}" "$file"
  status=$?
  if [ "$status" -ge 124 ]; then
    fail "$file: the process did not end by itself within $FILE_SECONDS s, or died (status $status)"
  elif [ "$status" -ne 0 ] && [ "$(grep -c failed "$counts")" -eq "$before" ]; then
    fail "$file: ended with status $status"
  fi
}
for file in "${files[@]}"; do run "$file"; done
if [ $# -eq 0 ]; then
  echo 'Again with FAULTLINE_GUARD=mprotect:'
  for file in dist/test/memory/*.test.js dist/test/end-to-end/memory.test.js; do FAULTLINE_GUARD=mprotect run "$file"; done
  # And with faults that proxies serve, where this user may; but for what expects EFAULT.
  if node -e "process.exitCode = require('./dist/lib/native.js').native.userfaultfdLacks(true) === null ? 0 : 1"; then
    echo 'Again with FAULTLINE_SYSTEM_CALLS=1:'
    for file in dist/test/memory/{lanes,region,sharing}.test.js dist/test/lifecycle/dying.test.js; do FAULTLINE_SYSTEM_CALLS=1 run "$file"; done
  else
    echo 'Not again with FAULTLINE_SYSTEM_CALLS=1: this user may not watch faults of the kernel.'
  fi
fi

failed=$(grep -c failed "$counts")
if [ "$failed" -ne 0 ]; then
  echo "What failed:"
  cat "$failures"
fi
printf '%d passed, %d failed, %d skipped\n' "$(grep -c passed "$counts")" "$failed" "$(grep -c skipped "$counts")"
[ "$failed" -eq 0 ]
