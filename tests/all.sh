#!/bin/bash
# Everything that must be true before a change is kept: format, lints, the core without an OS, unit tests, and the
# tests with namespaces, daemons and guests. Ends with the skips and the line `N passed, N failed, N skipped`.
set -u
cd "$(dirname "$0")/.."
export RUST_LIB_BACKTRACE=0 CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
target=${CARGO_TARGET_DIR:-$PWD/target}
log=$(mktemp)
export VNET_SKIPS=$log.skips
: >"$VNET_SKIPS"
trap 'rm -f "$log" "$VNET_SKIPS"' EXIT
passed=0 failed=0
broken=()

check() { # check NAME COMMAND...: one check that passes or fails as a whole
	local name=$1 begun=$SECONDS
	shift
	echo "== $name"
	if "$@"; then
		passed=$((passed + 1))
		echo "   $((SECONDS - begun)) s"
	else
		failed=$((failed + 1))
		broken+=("$name")
	fi
}

tests() { # tests CARGO-TEST-ARGUMENTS...: many tests, counted one by one
	local status
	echo "== cargo test $*"
	cargo test "$@" --no-fail-fast 2>&1 | tee "$log"
	status=${PIPESTATUS[0]}
	local counted
	counted=$(awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$log")
	passed=$((passed + ${counted% *}))
	failed=$((failed + ${counted#* }))
	mapfile -t -O "${#broken[@]}" broken < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
	if [ "$status" != 0 ] && [ "${counted#* }" = 0 ]; then
		failed=$((failed + 1))
		broken+=("cargo test $*: ended with $status")
	fi
}

check "format" cargo fmt --all --check
check "format of the fuzzer" cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
check "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
check "the core without an OS" cargo clippy --quiet -p vnet-core --no-default-features -- -D warnings
check "lints of the fuzzer" tests/fuzz/run.sh --lint
check "release build" cargo build --quiet --release -p netd -p virtio-net-backend -p examples
export VNET_BIN_DIR=$target/release
tests --workspace

skipped=$(wc -l <"$VNET_SKIPS")
passed=$((passed - skipped)) # a skipped test ends well for cargo
echo
cat "$VNET_SKIPS"
[ "${#broken[@]}" = 0 ] || printf 'FAILED %s\n' "${broken[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
