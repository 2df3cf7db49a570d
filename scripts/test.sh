#!/usr/bin/env bash
# The project's tests: sets itself up, runs the native tests and then mocha. The last line counts all of them.
# Arguments go to mocha (for example: npm test -- --grep locks).
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh || exit 1

native=$(make -s -C test/native check 2>&1)
native_status=$?
printf '%s\n' "$native"
counts=$(printf '%s\n' "$native" | awk '/^([A-Za-z_-]+: )?[0-9]+ passed, [0-9]+ failed/ { sub(/^[A-Za-z_-]+: /, ""); p += $1; f += $3 } END { printf "%d %d", p, f }')
# A native test that crashed printed no count of its own.
if [ "$native_status" -ne 0 ] && [ "${counts#* }" = 0 ]; then counts="${counts% *} 1"; fi

FAULTLINE_NATIVE_COUNTS="$counts" npx mocha --reporter test/support/reporter.cjs "$@"
status=$?
[ "$native_status" -eq 0 ] && [ "$status" -eq 0 ]
