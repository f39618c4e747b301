#!/bin/bash
# Hunts at every door, or at those named: `tests/fuzz/run.sh dns lease` (`--lint` looks at the package only). A door is a
# folder of a corpus; what is found grows in copies under `target/fuzz/corpus`, so that the repository stays as it is.
# SECONDS_EACH=20 is how long for each.
#
# Needs no other toolchain: the compiler instruments on request, and RUSTC_BOOTSTRAP=1 lets it add AddressSanitizer.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
work=$target/fuzz
mkdir -p "$work"

# The dependencies of what is shipped, in their versions.
cp Cargo.lock tests/fuzz/Cargo.lock
if [ "${1:-}" = --lint ]; then
	exec cargo clippy --quiet --manifest-path tests/fuzz/Cargo.toml --target-dir "$target" -- -D warnings
fi
for door in "$@"; do
	compgen -G "*/corpus/$door" >/dev/null || {
		echo "no door \`$door\`: they are the folders of" */corpus >&2
		exit 2
	}
done
RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Ccodegen-units=1 \
	-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
	cargo build --quiet --release --manifest-path tests/fuzz/Cargo.toml --features link \
	--target x86_64-unknown-linux-gnu --target-dir "$work"
program=$work/x86_64-unknown-linux-gnu/release/fuzz

broken=0
for stored in */corpus/*; do
	door=${stored##*/}
	[ $# = 0 ] || [[ " $* " == *" $door "* ]] || continue
	mkdir -p "$work/corpus/$door" "$work/found/$door"
	log=$work/$door.log
	if FUZZ_DOOR=$door "$program" "$work/corpus/$door" "$stored" -artifact_prefix="$work/found/$door/" \
		-max_total_time="${SECONDS_EACH:-20}" -timeout=10 -rss_limit_mb=4096 -max_len=16384 -print_final_stats=1 >"$log" 2>&1; then
		runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
		covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
		printf '%-12s %10s runs  %s\n' "$door" "$runs" "$covered"
	else
		broken=1
		printf '%-12s BROKEN: %s\n' "$door" "$log"
		grep -m 3 -e 'panicked at' -e '^SUMMARY' -e 'Test unit written' "$log" || true
	fi
done
exit $broken
