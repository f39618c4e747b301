#!/bin/sh
# Installs the Debian or Ubuntu packages that are named as arguments, or one a line in a file given as @FILE, and are
# not there yet. Does nothing, and needs no root, when all of them are.
set -eu
wanted=
for word; do
	case $word in
	@*) wanted="$wanted $(cat "${word#@}")" ;;
	*) wanted="$wanted $word" ;;
	esac
done
if ! command -v cargo >/dev/null; then
	echo "No Rust toolchain here; install one first (https://rustup.rs), 1.95 or newer." >&2
	exit 1
fi
if ! command -v dpkg-query >/dev/null; then
	echo "This is no Debian or Ubuntu; going on in the hope that these are installed:$(echo $wanted)" >&2
	exit 0
fi
missing=
for package in $wanted; do
	case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
	*" installed") ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0
as_root=
if [ "$(id -u)" != 0 ]; then
	if sudo -n true 2>/dev/null; then
		as_root="sudo -n env DEBIAN_FRONTEND=noninteractive"
	else
		echo "Some packages are missing, and installing them needs root. Please run:" >&2
		echo "    sudo apt-get install --no-install-recommends$missing" >&2
		exit 1
	fi
fi
export DEBIAN_FRONTEND=noninteractive
echo "Installing:$missing"
$as_root apt-get -qq update || echo "apt-get update failed; trying with the lists that are there" >&2
# Another release may not have one of them; what needs it says so.
known=
for package in $missing; do
	if apt-cache show "$package" >/dev/null 2>&1; then
		known="$known $package"
	else
		echo "This release has no package $package; going on without it" >&2
	fi
done
[ -n "$known" ] || exit 0
# A mirror that fails half-way is usual enough to be asked again.
for attempt in 1 2 3; do
	if $as_root apt-get -qq -y install --no-install-recommends $known >/dev/null; then
		exit 0
	fi
done
echo "apt-get could not install:$known" >&2
exit 1
