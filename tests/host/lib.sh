# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the tests of cowsetup on files share. They run on the host, as anybody, in a directory of their own, with a
# cowsetup that was built with the compiler's checks.  To be sourced first:  . "${0%/*}/lib.sh"

top=$(realpath "${0%/*}/../..")
# shellcheck source=tests/lib.sh
. "$top/tests/lib.sh"

# in memory, where fsync() takes no time; TMPDIR=/tmp for a real filesystem
tmp=$(mktemp -d -p "${TMPDIR:-/dev/shm}" 2>/dev/null || mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp" || exit 1

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
export LC_ALL=C.UTF-8
tool=${COWSETUP:-$top/build/tools-asan/cowsetup}
[ -x "$tool" ] || plan skip_all "there is no $tool; make check builds it"

cowsetup() { "$tool" "$@"; }
cowfile() { perl "$top/tests/cowfile.pl" "$@"; }

# image FILE SIZE: a read-only device whose every sector is different
image() {
	truncate -s "$2" "$1"
	perl -e 'my $n = int((-s $ARGV[0]) / 512);
		open my $f, "+<", $ARGV[0] or die;
		print $f pack("Q<*", map { $_ * 2654435761 + 1 } $_ * 64 .. $_ * 64 + 63) for 0 .. $n - 1' "$1"
}

# makecow FILE OPTION...: a cowfile over ./rdo, by the other implementation
makecow() {
	tap_file=$1
	shift
	rm -f "$tap_file"
	cowfile make --rdo rdo --cow "$tap_file" "$@"
}

# json EXPRESSION: what Perl makes of the JSON on stdin, as $_
json() { perl -MJSON::PP -e 'local $/; local $_ = decode_json(<STDIN>); my $r = eval $ARGV[0]; die $@ if $@; print $r // "", "\n"' "$1"; }
