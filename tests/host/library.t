#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# libcowloop, as a program of somebody else's uses it: installed, with its header alone, by way of pkg-config.

top=$(realpath "${0%/*}/../..")
# shellcheck source=tests/lib.sh
. "$top/tests/lib.sh"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp" || exit 1

runs "make install-lib" env -u MAKEFLAGS -u MAKELEVEL make -C "$top" install-lib DESTDIR="$tmp/root" PREFIX=/usr
is "$(cd root && find . ! -type d | sort | paste -sd ' ')" \
	"./usr/include/libcowloop.h ./usr/lib/libcowloop.so ./usr/lib/libcowloop.so.0 ./usr/lib/pkgconfig/libcowloop.pc" "is there"
export PKG_CONFIG_LIBDIR=$tmp/root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$tmp/root
is "$(pkg-config --modversion libcowloop)" "$(sed -n '1s/^dm-cowloop \([^ ]*\).*/\1/p' "$top/CHANGELOG")" "pkg-config knows it"
# shellcheck disable=SC2046 # several words
runs "a program is linked with it" "${CC:-cc}" -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -pedantic -o library "$top/tests/host/library.c" \
	$(pkg-config --cflags --libs libcowloop)
export LD_LIBRARY_PATH=$tmp/root/usr/lib
like "$(ldd library)" "libcowloop.so.0 => $tmp/root/" "by its soname"

# the steps of library.c, and what it is told
head -c 64K /dev/zero | tr '\0' r >rdo
exits 0 "it runs" ./library rdo new.cow
while read -r what said; do
	like "$(grep -n . <<<"$out")" "^[0-9]*:$said" "$what"
done <<'END'
error_text error: --label and --rdo-spec need format 2
code_of_it format: 1$
no_unit_of_ours error: --mapunit: found 100, expected
its_code no unit: 1$
no_format_of_ours error: --format: found 3, expected 1 or 2
its_code_too no format: 1$
format format: 0$
said_on_the_way verbose: new.cow: new cowfile of format 1
not_overwritten error: new.cow: holds a cowfile already, of format 1 with 0 units used
and_a_code_of_its_own format: 5$
without_callbacks format, silent: 5$
what_is_no_cowfile error: rdo: not a cowfile: found magic 0x72727272
head info: 0, format 1, unit 1024, 0 of 64 units, 64 KiB$
check check: 0, format 1, clean, 0 of 64 units, 0 faults$
progress progress: to the end$
cancelled error: new.cow: interrupted.$
and_its_code check: 1$
and_its_progress progress: stopped$
repair result: new.cow: repaired: 1 of 64 units used.$
asked_first question: This will overwrite 1 units
no error: Not confirmed; nothing was changed.$
yes result: new.cow: merged
no_such_device look: none$
visible visible: a.x1b.31m.x0ab$
END
is "$(grep -c changed rdo)" 1 "the merge has written what was in the cowfile"
unset LD_LIBRARY_PATH
fails "without the library there is no program" ./library rdo other.cow
done_testing
