#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Every documented command works first, in any order: each in a clone and with a cache of its own, both new. What packages
# the machine has stays as it is; scripts/setup installs those that are missing.
#
#   tests/slow/fresh.t [COMMAND]...     (default: those below; each fetches up to 600 MB)

top=$(realpath "${0%/*}/../..")
# shellcheck source=tests/lib.sh
. "$top/tests/lib.sh"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp" || exit 1
unset V MAKEFLAGS MAKELEVEL KERNEL

[ $# -gt 0 ] || set -- \
	'make' \
	'make modules KERNEL=6.12' \
	'make modules KERNEL=7.3' \
	'make modules kmod KERNEL=7.3 W=1' \
	'make check T=tests/target.t' \
	'make check KERNEL=7.3 T=tests/target.t' \
	'make demo' \
	'make lint' \
	'make install DESTDIR=root' \
	'scripts/vm tests/target.t' \
	'scripts/vm --kernel 6.12 tests/target.t' \
	'make check-smoke' \
	'scripts/measure/cpus' \
	'make deb'

for command; do
	git clone -q "$top" clone || exit 1
	(cd clone && COWLOOP_CACHE=$tmp/cache eval "$command") >out 2>&1 </dev/null
	said $? "first of all: $command"
	rm -rf clone cache
done
done_testing
