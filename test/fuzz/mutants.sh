#!/usr/bin/env bash
# Shows that the fuzz targets find bugs: makes each of the bugs below, alone, in a copy of the file it belongs to, and
# fuzzes until it is found. The last column is the first line that the target printed.
#   npm run fuzz -- --mutants
# The result is 0 only if every bug was found, and the unchanged code by the same inputs was not.
set -uo pipefail
cd "$(dirname "$0")/../.."

# Seconds that each may take to be found.
LIMIT=60
work=$(mktemp -d "${TMPDIR:-/tmp}/faultline-fuzz-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/native" "$work/test/fuzz" "$work/corpus"
cp native/*.h native/directory.cc native/operand.cc "$work/native/"
cp test/fuzz/*.cc test/fuzz/Makefile "$work/test/fuzz/"
failed=0
printf '| bug | target | runs | found as |\n| --- | --- | ---: | --- |\n'

# hunt TARGET NAME FILE FIND REPLACE: FIND has to stand in FILE exactly once; none: the code as it is.
hunt() {
  local target=$1 name=$2 file=$3 log="$work/log" runs message
  cp "$file" "$work/$file"
  if [ $# -eq 5 ] && ! FIND=$4 REPLACE=$5 perl -0pi -e '$n = s/\Q$ENV{FIND}\E/$ENV{REPLACE}/g; END { exit($n != 1) }' "$work/$file"; then
    printf '| %s | %s | - | its text does not stand in %s exactly once |\n' "$name" "$target" "$file"
    failed=1
    return
  fi
  if ! make -s -C "$work/test/fuzz" OUT="$work/out" "$work/out/$target" >"$log" 2>&1; then
    cat "$log" >&2
    printf '| %s | %s | - | does not build |\n' "$name" "$target"
    failed=1
    return
  fi
  cp "$file" "$work/$file"
  rm -rf "$work/corpus" && mkdir "$work/corpus"
  timeout -k 10 $((LIMIT + 60)) "$work/out/$target" -seed=1 -max_total_time=$LIMIT -max_len=600 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="$work/found-" "$work/corpus" "test/fuzz/corpus/$target" >"$log" 2>&1
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  message=$(sed -n "s/^$target: \(.*\): page word.*/\1/p; s/^$target: //p; s/^==[0-9]*==ERROR: AddressSanitizer: \([^ ]*\).*/\1/p; s/.*runtime error: //p" "$log" | head -n 1)
  if [ $# -eq 3 ]; then
    grep -q '^Done ' "$log" || { failed=1; message=${message:-died}; }
    message=${message:-nothing, as it should be}
  elif [ -z "$message" ]; then
    failed=1
    message='SURVIVES'
  fi
  printf '| %s | %s | %s | %s |\n' "$name" "$target" "${runs:--}" "$message"
}

words=native/directory.cc
hunt transitions 'the end of a BUSY stretch wakes nobody' $words 'after.wake = after.wake || (word & kSleepers) != 0;' ''
hunt transitions 'a sleeper does not say so' $words 'by_lane ? word : word | kSleepers;' 'word;'
hunt transitions 'an abandoned claim wakes nobody' $words '      result.wake = (word & kSleepers) != 0;
' ''
hunt transitions 'a poisoned answer is installed' $words 'if ((word & kPoison) && !after(version, page.poison.load())) return InstallStep::kDiscarded;' ''
hunt transitions 'a recall does not poison' $words 'if (step == CloseStep::kClose) poison(page, version);' ''
hunt transitions 'the poison is the last one, not the highest' $words 'if (!(word & kPoison) || after(version, page.poison.load())) page.poison.store(version);' 'page.poison.store(version);'
hunt transitions 'the version outlives its last copy' $words 'const uint32_t version = left == 0 ? next_version(version_of(entry)) : version_of(entry);' 'const uint32_t version = version_of(entry);'
hunt transitions 'a home is alone beside another copy' $words 'if (locks && left == 0) {' 'if (locks) {'
hunt transitions 'a copy goes although an answer is under way' $words 'if ((word & (kBusy | kPendMask | kUnacked)) || (held(word) != kInvalid && held(word) != kShared)) return false;
    closes' 'if ((word & (kBusy | kUnacked)) || (held(word) != kInvalid && held(word) != kShared)) return false;
    closes'
hunt transitions 'a read pin does not keep a copy' $words 'if (!to_shared && (word & kReadPinMask)) return true;' ''
hunt transitions 'a write pin does not keep a copy' $words 'if (word & kWritePinMask) return true;' ''
hunt transitions 'the last pin takes the mark away and tells nobody' $words 'result.ring = !(next & (kReadPinMask | kWritePinMask)) && (word & kDefer);
    if (result.ring)' 'if (!(next & (kReadPinMask | kWritePinMask)))'
hunt transitions 'the last thread that resumes takes the mark away and tells nobody' $words 'after.ring = last && (word & kDefer) != 0;' ''
hunt transitions 'an invalidation leaves the mapping open' $words 'with_held(with_open(settled(word, result), opened), to_shared ? kShared : kInvalid)' 'with_held(with_open(settled(word, result), to_shared ? opened : uint32_t{kAsItWas}), to_shared ? kShared : kInvalid)'
hunt transitions 'a closed copy is taken for one that is closing' $words 'if (!page.word.compare_exchange_weak(word, word | kBusy)) return false;
  step = CloseStep::kClose;' 'step = CloseStep::kClose;'
hunt transitions 'a recall says "unchanged" of bytes that the home may not have' $words ' || (word & kUnacked) ||' ' ||'
hunt transitions 'a dropped copy may be the only one' $words '(kBusy | kPendMask | kUnacked | kReadPinMask | kWritePinMask)' '(kBusy | kPendMask | kReadPinMask | kWritePinMask)'
hunt transitions 'returned does not look at the version' $words 'if (page.version.load() != version) return;' ''
hunt transitions 'a handler opens during a transaction' $words '(entry & kDirectoryFlags)) return HomeLock::kRefused;' '(entry & kLock)) return HomeLock::kRefused;'
hunt transitions 'a transaction begins under the lock' $words 'if (word & (kLock | kHop)) {' 'if (word & kHop) {'
hunt transitions 'a transaction begins twice' $words 'if (word & kTxn) return Begun::kRunning;' ''
hunt transitions 'a thread is counted twice' $words 'if (!registered && (word & kUnresumedMask) != kUnresumedMask) registered = true;' ''
hunt transitions 'nothing' $words
decoder=native/operand.cc
hunt operand 'the longest instruction has sixteen bytes' $decoder 'at_ + ahead < kInstructionBytes' 'at_ + ahead <= kInstructionBytes'
hunt operand 'the bit that extends the base is forgotten' $decoder '  base |= base_high;
' ''
hunt operand 'a register that is added twice counts' $decoder 'base == 4 || base == index' 'base == 4'
hunt operand 'the stack pointer counts' $decoder 'base == 4 || base == index' 'base == index'
hunt operand 'the displacement is not extended by its sign' $decoder 'static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(displacement)))' 'displacement'
hunt operand 'nothing' $decoder
exit "$failed"
