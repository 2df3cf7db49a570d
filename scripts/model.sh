#!/usr/bin/env bash
# Checks the model of the coherence protocol (docs/model/coherence.pml) with spin. Builds under build/model.
#   npm run model                every configuration, then progress under weak fairness
#   npm run model -- --quick     the short ones, less than a minute
#   npm run model -- --mutants   each deliberate bug, alone: all have to be caught
# The result is 0 only if every search was complete (those by bitstate: or came to the end of their time) and found nothing (--mutants: if every search found something).
set -uo pipefail
cd "$(dirname "$0")/.."

say() { printf 'model: %s\n' "$*" >&2; }
mode=full
case "${1:-}" in
  '') ;;
  --quick) mode=quick ;;
  --mutants) mode=mutants ;;
  *) say "unknown option $1; usage: npm run model -- [--quick | --mutants]"; exit 2 ;;
esac
command -v spin >/dev/null 2>&1 || { say 'spin is missing (Debian, Ubuntu: apt-get install spin; elsewhere: https://spinroot.com)'; exit 3; }
compiler="${CC:-cc}"
command -v "$compiler" >/dev/null 2>&1 || { say 'a C compiler is missing (Debian, Ubuntu: apt-get install gcc)'; exit 3; }

source_file=$PWD/docs/model/coherence.pml
mkdir -p build/model
# A folder of its own for each run, so that none can take the verifier that another has built.
work=$(mktemp -d "$PWD/build/model/run-XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=0

# build KIND SWITCH...: the verifier is $work/pan. The graph of steps is small; what is reduced is only its storage.
build() {
  local kind=$1 options
  shift
  rm -f "$work"/pan*
  case "$kind" in
    safety) options=(-DSAFETY -DCOLLAPSE) ;;
    bitstate) options=(-DSAFETY -DBITSTATE) ;;
    progress) options=(-DCOLLAPSE -DNFAIR=3); set -- "$@" -DPROGRESS ;;
  esac
  (cd "$work" && spin -a "$@" "$source_file" && "$compiler" -O1 -w -DNOREDUCE -DMEMLIM=3900 "${options[@]}" -o pan pan.c) >"$work/build.log" 2>&1 && [ -x "$work/pan" ]
}

# search SECONDS OPTION...: runs it; the result of the search is in $verdict (clean, error or incomplete).
search() {
  local limit=$1 started result
  shift
  started=$(date +%s%N)
  # Interrupted, the verifier says how far it has come.
  (cd "$work" && exec timeout -s INT -k 5 "$limit" ./pan -m400000 "$@") >"$work/out" 2>&1
  result=$?
  elapsed=$(awk -v from="$started" -v to="$(date +%s%N)" 'BEGIN { printf "%.1f", (to - from) / 1e9 }')
  states=$(awk '/states, stored/ { print $1; exit }' "$work/out")
  depth=$(sed -n 's/.*depth reached \([0-9]*\), errors.*/\1/p' "$work/out")
  errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$work/out")
  assertion=$(sed -n 's/^pan:1: assertion violated (\([a-z_]*\)&&.*/\1/p; s/^pan:1: acceptance cycle.*/progress/p; s/^pan:1: invalid end state.*/end state/p' "$work/out" | tr '_' '-' | head -n 1)
  verdict=incomplete
  if [ "${errors:-0}" != 0 ]; then verdict=error
  elif [ "$result" = 0 ] && [ "${errors:-x}" = 0 ] && ! grep -Eq 'max search depth|Search not completed|out of memory' "$work/out"; then verdict=clean
  fi
}

row() { printf '| %-47s | %-10s | %10s | %6s | %7s | %-28s |\n' "$@"; }

# check QUICK KIND SECONDS NAME SWITCH...
check() {
  local quick=$1 kind=$2 limit=$3 name=$4
  shift 4
  if [ "$mode" = quick ] && [ "$quick" = no ]; then return; fi
  if ! build "$kind" "$@"; then failed=1; row "$name" "$kind" - - - 'does not build'; cat "$work/build.log" >&2; return; fi
  case "$kind" in
    safety) search "$limit" ;;
    bitstate) search "$limit" -w30 ;;
    progress) search "$limit" -a -f ;;
  esac
  case "$verdict" in
    clean) row "$name" "$kind" "$states" "$depth" "$elapsed" none ;;
    error) row "$name" "$kind" "$states" "$depth" "$elapsed" "${assertion:-error}" ;;
    incomplete)
      # A bitstate search is a sample anyway: it is to find nothing within its time.
      if [ "$kind" = bitstate ] && [ "${errors:-x}" = 0 ]; then
        row "$name" "$kind" "$states" "$depth" "$elapsed" "none in $limit s (a part)"
        return
      fi
      row "$name" "$kind" "${states:--}" "${depth:--}" "$elapsed" "INCOMPLETE (limit $limit s)" ;;
  esac
  if [ "$verdict" = clean ]; then return; fi
  failed=1
  if [ "$verdict" = error ] && ls "$work"/*.trail >/dev/null 2>&1; then
    (cd "$work" && ./pan -r) >"build/model/trace.txt" 2>&1
    say "the steps that lead there are in build/model/trace.txt"
  fi
}

# mutant KIND NAME SWITCH...: the configuration in which it shows.
mutant() {
  local kind=$1 name=$2 options=()
  shift 2
  if [ "$kind" = progress ]; then options=(-a -f); fi
  if ! build "$kind" -D"MUTANT_$name" "$@"; then failed=1; row "$name" "$*" - - - 'does not build'; cat "$work/build.log" >&2; return; fi
  if ! grep -q "MUTANT_$name\b" "$source_file"; then failed=1; row "$name" "$*" - - - 'no such switch'; return; fi
  search 120 "${options[@]}"
  if [ "$verdict" = error ] && [ -n "$assertion" ] && [ "$assertion" != room ]; then row "$name" "$*" "$states" "$depth" "$elapsed" "$assertion"
  else failed=1; row "$name" "$*" "${states:--}" "${depth:--}" "$elapsed" "SURVIVES (${assertion:-$verdict})"
  fi
}

if [ "$mode" = mutants ]; then
  row mutant switches states depth seconds 'caught by'
  row --- --- ---: ---: ---: ---
  mutant safety INVALIDATION_NOT_AWAITED -DN=3 -DACCESSES=2
  mutant safety ACKNOWLEDGED_BEFORE_CLOSED -DN=3 -DACCESSES=2
  mutant safety COPYSET_FORGETS_ONE -DN=3 -DACCESSES=2
  mutant safety HOME_COPY_STAYS_OPEN -DN=2 -DACCESSES=2
  mutant safety RECALL_KEEPS_EXCLUSIVE -DN=2 -DACCESSES=2
  mutant safety RECALL_LEAVES_SHARED -DN=3 -DDEATH
  mutant safety UPGRADE_OF_INVALIDATED -DN=3 -DACCESSES=2
  mutant safety NO_HELD_VERSION -DN=2 -DACCESSES=2 -DDROP=1
  mutant safety NO_UNACKED -DN=2 -DACCESSES=2
  mutant safety RETURNED_BYTES_DROPPED -DN=2 -DACCESSES=2
  mutant safety DEFERRED_FORGOTTEN -DN=2 -DACCESSES=2
  mutant safety STALE_SENDER_ACCEPTED -DN=3 -DDEATH
  mutant safety SERVES_BEFORE_HOLDINGS -DN=3 -DDEATH
  mutant safety REBUILD_FORGETS_ONE -DN=4 -DDEATH
  mutant safety EARLY_MESSAGE_DROPPED -DN=3 -DJOIN
  mutant safety NO_POISON -DN=2 -DACCESSES=3 -DBUSY=2 -DDROP=1 -DEARLY=1
  mutant safety DISCARDED_NOT_ASKED_AGAIN -DN=2 -DACCESSES=3 -DBUSY=2 -DDROP=1 -DEARLY=1
  mutant safety VERSION_NOT_RAISED -DN=2 -DACCESSES=3 -DBUSY=2 -DDROP=1 -DEARLY=1
  mutant safety LANE_IGNORES_TXN -DN=3 -DLANES -DACCESSES=2
  mutant safety LANE_IGNORES_COPIES -DN=3 -DLANES -DACCESSES=2
  mutant safety LANE_HOME_STAYS_OPEN -DN=2 -DLANES -DACCESSES=2
  mutant safety LANE_SAME_UNCHECKED -DN=2 -DLANES -DACCESSES=2 -DDROP=1
  mutant safety LANE_NO_POISON -DN=2 -DLANES -DACCESSES=3 -DBREAKS=1
  mutant safety LANE_NO_UNACKED -DN=2 -DLANES -DACCESSES=2 -DBREAKS=1
  mutant safety HOP_FORGETS_THE_OWNER -DN=2 -DLANES -DACCESSES=2
  mutant safety RETIRED_COPY_STAYS_OPEN -DN=2 -DLANES -DACCESSES=2
  mutant safety RETIRED_BESIDE_A_CLAIM -DN=3 -DLANES -DACCESSES=2
  mutant safety RETIRED_BY_HALVES -DN=3 -DLANES -DACCESSES=2
  mutant safety LANE_STAYS_OPEN -DN=3 -DLANES -DDEATH
  mutant safety LANE_NOT_DRAINED -DN=3 -DLANES -DDEATH
  mutant progress DEFERRED_FORGOTTEN -DN=2 -DACCESSES=2
  # What is caught must be the bug, not the configuration: without a bug each of them is clean.
  row 'without a bug' switches states depth seconds errors
  check yes safety 60 '2 members' -DN=2 -DACCESSES=2
  check yes safety 60 '2 members, dropped' -DN=2 -DACCESSES=2 -DDROP=1
  check yes safety 120 '2 members, everything' -DN=2 -DACCESSES=3 -DBUSY=2 -DDROP=1 -DEARLY=1
  check yes safety 60 '3 members' -DN=3 -DACCESSES=2
  check yes safety 60 '3 members, a death' -DN=3 -DDEATH
  check yes safety 120 '4 members, a death' -DN=4 -DDEATH
  check yes safety 60 '3 members, a join' -DN=3 -DJOIN
  check yes safety 60 '2 members, lanes' -DN=2 -DLANES -DACCESSES=2
  check yes safety 60 '2 members, lanes, dropped' -DN=2 -DLANES -DACCESSES=2 -DDROP=1
  check yes safety 60 '2 members, 3 accesses, lanes that break' -DN=2 -DLANES -DACCESSES=3 -DBREAKS=1
  check yes safety 120 '3 members, 2 accesses, lanes' -DN=3 -DLANES -DACCESSES=2
  check yes safety 60 '3 members, lanes, a death' -DN=3 -DLANES -DDEATH
  check yes progress 60 '2 members' -DN=2 -DACCESSES=2
else
  row configuration search states depth seconds errors
  row --- --- ---: ---: ---: ---
  check yes safety 60 '3 members, 2 accesses' -DN=3 -DACCESSES=2
  check yes safety 60 '3 members, busy, dropped, given back' -DN=3 -DBUSY=1 -DDROP=1 -DGIVE=1
  check yes safety 60 '3 members, a join' -DN=3 -DACCESSES=2 -DJOIN
  check yes safety 60 '3 members, a death' -DN=3 -DDEATH
  check yes safety 60 '3 members, a join, a death' -DN=3 -DJOIN -DDEATH
  check yes safety 60 '2 members, 2 pages and homes' -DN=2 -DP=2 -DSPREAD -DACCESSES=2
  check yes safety 60 '2 members, both pages at once' -DN=2 -DP=2 -DSPREAD -DSTRADDLE -DACCESSES=2 -DEARLY=2
  check yes progress 60 '2 members, 2 accesses' -DN=2 -DACCESSES=2
  check yes safety 60 '2 members, lanes that break' -DN=2 -DLANES -DACCESSES=2 -DBREAKS=1
  check yes safety 60 '3 members, lanes that break' -DN=3 -DLANES -DBREAKS=1
  check yes safety 60 '3 members, lanes, busy, dropped, given back' -DN=3 -DLANES -DBUSY=1 -DDROP=1 -DGIVE=1
  check yes safety 60 '3 members, lanes, a death' -DN=3 -DLANES -DDEATH
  check yes safety 60 '3 members, lanes that break, a join' -DN=3 -DLANES -DJOIN -DBREAKS=1
  check yes safety 60 '2 members, 2 pages and homes, lanes that break' -DN=2 -DP=2 -DSPREAD -DLANES -DACCESSES=2 -DBREAKS=1
  check yes progress 60 '2 members, 2 accesses, lanes that break' -DN=2 -DLANES -DACCESSES=2 -DBREAKS=1
  check no safety 120 '2 members, 3 accesses, lanes that break' -DN=2 -DLANES -DACCESSES=3 -DBREAKS=1
  check no safety 120 '3 members, lanes, a join, a death' -DN=3 -DLANES -DJOIN -DDEATH
  check no safety 120 '3 members, 2 accesses, lanes' -DN=3 -DLANES -DACCESSES=2
  check no safety 300 '3 members, lanes that break, a death' -DN=3 -DLANES -DDEATH -DBREAKS=1
  check no progress 120 '3 members, lanes, a death' -DN=3 -DLANES -DDEATH
  check no progress 120 '3 members, a death' -DN=3 -DDEATH
  check no safety 120 '2 members, 3 accesses, everything' -DN=2 -DACCESSES=3 -DBUSY=2 -DDROP=1 -DEARLY=1
  check no safety 300 '3 members, 2 accesses, a death' -DN=3 -DDEATH -DACCESSES=2
  check no safety 300 '3 members, 2 accesses, copies that go early' -DN=3 -DACCESSES=2 -DEARLY=1
  # Beyond what can be searched as a whole: a table of bits in place of the states.
  check no bitstate 90 '3 members, 2 pages and homes, 2 accesses' -DN=3 -DP=2 -DSPREAD -DACCESSES=2
  check no bitstate 90 '3 members, 2 pages and homes, lanes' -DN=3 -DP=2 -DSPREAD -DLANES -DACCESSES=2
fi
exit "$failed"
