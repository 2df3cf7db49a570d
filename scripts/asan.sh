#!/usr/bin/env bash
# The tests with the native part under AddressSanitizer and UndefinedBehaviorSanitizer. The package is copied to
# build/asan and its addons are built there, so build/Release stays as it is; node itself is not instrumented.
#   npm run test:asan                                    the whole suite, but for what is left out below
#   npm run test:asan -- --quick                         those in which pages fault, are lost, and end with their process
#   npm run test:asan -- dist/test/memory/*.test.js      these (--grep and its like go to mocha)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

say() { printf 'test:asan: %s\n' "$*" >&2; }
command -v g++ >/dev/null 2>&1 || { say 'g++ is missing (Debian, Ubuntu: apt-get install g++)'; exit 1; }
runtime() {
  local found
  found=$(g++ -print-file-name="$1")
  if [ "$found" = "$1" ]; then say "$1 is missing: it comes with g++ (Debian, Ubuntu: apt-get install libgcc-12-dev)"; exit 1; fi
  readlink -f "$found"
}
asan=$(runtime libasan.so)
runtime libubsan.so >/dev/null

# ---- the copy: only what is newer than it is copied, so that make builds only what changed.
copy=build/asan
mkdir -p "$copy"
cp -ru package.json package-lock.json binding.gyp native lib dist scripts examples benchmarks docs tsconfig.json "$copy/"
# Without what was built there before: the copy builds its own, with the sanitizers.
find test -name build -prune -o -type f -print0 | xargs -0 cp -u --parents -t "$copy"
[ -e "$copy/node_modules" ] || ln -s ../../node_modules "$copy/node_modules"
built="$copy/.built"
now="$(node -p 'process.version') $(g++ -dumpfullversion)"
if [ ! -f "$built" ] || [ "$(cat "$built")" != "$now" ] || [ -n "$(find "$copy/binding.gyp" "$copy/native" "$copy/test/simulation/native" "$copy/test/native-addon" -name build -prune -o -type f -newer "$built" -print -quit)" ]; then
  say 'building the addons with the sanitizers (about two minutes)'
  log=$(mktemp)
  headers=()
  root="$(node -p 'require("path").resolve(process.execPath, "../..")')"
  if [ -f "$root/include/node/node_version.h" ]; then headers=("--nodedir=$root"); fi
  # vptr needs run-time type information, which addons are built without. The checks go on after a finding, and the
  # process ends by halt_on_error, so that one place decides.
  for folder in . test/simulation/native test/native-addon; do
    if ! (cd "$copy/$folder" && CXXFLAGS='-fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g' \
          LDFLAGS='-fsanitize=address,undefined' "$OLDPWD/node_modules/.bin/node-gyp" configure build -j 2 "${headers[@]}") >"$log" 2>&1; then
      cat "$log" >&2
      rm -f "$log"
      say "the build in $folder failed: see above"
      exit 1
    fi
  done
  # So that scripts/simulation.sh leaves it as it is.
  node -p 'process.version + " " + process.arch' >"$copy/test/simulation/native/build/.built"
  rm -f "$log"
  printf '%s\n' "$now" >"$built"
fi

# (Not grep -q: it ends before nm does, which is a failure of the pipe then.)
nm -D "$copy/build/Release/faultline.node" | grep __asan_report_load >/dev/null || { say 'the addon was built without the sanitizer'; exit 1; }

# ---- which files. Left out of the whole: what limits the address space, of which the sanitizer alone reserves 16 TiB;
# other versions of Node.js, which bring a C++ library of their own; what has no native code of this project in it, or
# builds its own without sanitizers. The programs of test/native have sanitizers of their own.
left_out='hazards/address-space|lifecycle/node-versions|model/model|simulation/mutants/mutants|benchmarks/(report|settings|statistics)'
# Single tests: a limit of the address space again; all mappings of the process, of which the sanitizer's allocator has more
# each time; and gdb, which does not start with the sanitizer's runtime in it.
left_out_tests='killed, or gets an error \(rlimit\)|no descriptor, mapping or thread in [0-9]+ cycles|gdb, attached'
quick=no
files=()
options=()
for argument in "$@"; do
  case "$argument" in
    --quick) quick=yes ;;
    *.test.js) files+=("$argument") ;;
    *) options+=("$argument") ;;
  esac
done
if [ ${#files[@]} -eq 0 ]; then
  if [ "$quick" = yes ]; then
    mapfile -t files < <(cd "$copy" && ls dist/test/memory/{lanes,region,sharing,threads}.test.js dist/test/lifecycle/{dying,exits,leaving}.test.js)
  else
    options+=(--grep "$left_out_tests" --invert)
    mapfile -t files < <(cd "$copy" && find dist/test -name '*.test.js' | grep -Ev "/($left_out)\.test\.js$" | sort)
  fi
fi

# The runtime has to be there before node, which does not know of it.
#  handle_segv=0, handle_sigbus=0, allow_user_segv_handler=1: SIGSEGV is how a page is asked for, and SIGBUS how the
#    process says that one is lost; both belong to the package and to node.
#  use_sigaltstack=0: the handler runs on the thread's own stack, or the one that its owner gave it, as without sanitizers.
#  detect_stack_use_after_return=0: it would allocate inside the handler.
#  detect_leaks=0: V8 ends with its heap in place; npm run leaks counts instead.
# (zeromq lives with an allocation that fails, of the size that a stranger names.)
export ASAN_OPTIONS="allocator_may_return_null=1:handle_segv=0:handle_sigbus=0:handle_abort=0:allow_user_segv_handler=1:use_sigaltstack=0:detect_stack_use_after_return=0:detect_leaks=0:detect_odr_violation=1:halt_on_error=1:exitcode=99:log_path=$PWD/$copy/report"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:exitcode=99:suppressions=$PWD/test/sanitizers/ubsan.supp:log_path=$PWD/$copy/report"
rm -f "$copy"/report.*
status=0
(cd "$copy" && FAULTLINE_SETUP=skip LD_PRELOAD="$asan" scripts/test.sh "${options[@]}" "${files[@]}") || status=$?
reports=$(find "$copy" -maxdepth 1 -name 'report.*' -size +0)
if [ -n "$reports" ]; then
  # shellcheck disable=SC2086
  cat $reports
  say "$(printf '%s\n' "$reports" | wc -l) processes reported a finding: see above"
  exit 1
fi
say 'no finding of AddressSanitizer or UndefinedBehaviorSanitizer'
exit "$status"
