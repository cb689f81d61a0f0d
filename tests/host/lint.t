#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# What checkers say of the source: nothing.
#
#   tests/host/lint.t [CHECK...]     (default: all of them, as named below)

# shellcheck disable=SC2317 # the checks are called by name

set -u

top=$(realpath "$(dirname "$0")/../..")
cd "$top" || exit 1
PATH=$PATH:/usr/sbin:/sbin
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export LC_ALL=C.UTF-8
unset V MAKEFLAGS # make lint V=1 is not about these makes

if ! said=$(scripts/setup build lint 2>&1 && scripts/kernels/source scripts 2>&1 && scripts/kernel "${KERNEL:-}" 2>&1); then
	printf '%s\n' "$said" | sed 's/^/# /'
	echo "1..0 # SKIP what it takes is not to be had here"
	exit
fi
source='' kdir='' # for these to say
eval "$(grep -E '^(source|kdir)=' <<<"$said")"

files() { scripts/package/files "$@"; }
# scripts REGEX: those whose first line is like that
# shellcheck disable=SC2016 # awk's variables
scripts() { files '*' | xargs -d '\n' awk -v regex="$1" 'FNR == 1 && $0 ~ regex { print FILENAME } FNR == 2 { nextfile }'; }

mapfile -t kernel < <(files 'dm-cowloop*.[ch]' 'tests/kmod/*.[ch]')
mapfile -t user < <(files 'lib/*.[ch]' 'boot/*.[ch]' 'cowsetup/*.[ch]' 'dmeventd/*.[ch]')
mapfile -t programs < <(files 'lib/*.c' 'boot/*.c' 'cowsetup/*.c' 'dmeventd/*.c' 'tests/*.c' | grep -v '^tests/kmod/')
mapfile -t man < <(files 'man/*')

# --- The checks: each says what it finds, and when there is nothing, nothing ----------------------------------

# checkpatch OPTION... -- FILE...; it leaves a file where it runs
checkpatch() {
	local options=()
	while [ "$1" != -- ]; do options+=("$1"); shift; done
	shift
	(cd "$tmp" && perl "$source/scripts/checkpatch.pl" --root="$source" --no-tree --strict --terse --show-types \
		"${options[@]}" --file "${@/#/$top/}" 2>&1) | sed "s,^$top/,,; /^total: /d; /^find: .*No such file/d"
}
# but for where dm-cowloop.h makes up for what userspace has not
checkpatch_kernel() { checkpatch -- "${kernel[@]}" | grep -v '^dm-cowloop\.h:.*: Prefer __packed over __attribute__'; }

# but for what only the kernel has, what other libraries call things, and what it takes for mistakes
USER_IGNORES=PREFER_KERNEL_TYPES,PREFER_DEFINED_ATTRIBUTE_MACRO,BIT_MACRO,ARRAY_SIZE,VOLATILE,CAMELCASE,USE_NEGATIVE_ERRNO
USER_IGNORES+=,ENOSYS,EMBEDDED_FUNCTION_NAME,SYMBOLIC_PERMS,LONG_LINE_STRING,LONG_LINE,MULTIPLE_ASSIGNMENTS,STATIC_CONST_CHAR_ARRAY
USER_IGNORES+=,UNSPECIFIED_INT,REPEATED_WORD
checkpatch_user() { checkpatch --max-line-length=120 --ignore "$USER_IGNORES" -- "${user[@]}"; }

# module NAME FILE...: builds that with all that the compiler warns of, and has sparse read what is compiled
module() {
	local dir=$tmp/$1
	shift
	mkdir "$dir" && ln -s "${@/#/$top/}" "$dir"
	if ! make -C "$kdir" M="$dir" CONFIG_DEBUG_INFO_BTF_MODULES= CONFIG_MODULE_SIG_ALL= W=1 C=1 modules >"$dir.log" 2>&1 ||
		! grep -q '^  CHECK ' "$dir.log" || grep -qE 'warning:|error:|WARNING|ERROR' "$dir.log"; then
		cat "$dir.log"
	fi
}
sparse_module() { module module Kbuild dm-cowloop*.[ch]; }
sparse_kmod() { module kmod tests/kmod/*; }

# the kernel's own rules, but for the few that need an OCaml compiler
coccinelle() {
	local dir=$tmp/cocci include rule
	mkdir "$dir" && ln -s "${kernel[@]/#/$top/}" "$dir"
	# shellcheck disable=SC2016 # make's variable
	printf 'include Makefile\nlinuxinclude:\n\t@echo $(LINUXINCLUDE)\n' >"$tmp/include.mk"
	# with M, or kbuild would make the headers' configuration anew, and spoil the headers
	include=$(make -s -C "$kdir" M="$dir" -f "$tmp/include.mk" linuxinclude 2>/dev/null)
	find "$source/scripts/coccinelle" -name '*.cocci' -exec grep -L ':ocaml' {} + | sort >"$tmp/rules"
	[ -s "$tmp/rules" ] || echo "no rules in $source"
	while read -r rule; do
		MODE=report V=0 J=1 COCCI=$rule KBUILD_EXTMOD=$dir srctree=$source LINUXINCLUDE=$include \
			bash "$source/scripts/coccicheck" >"$tmp/cocci.log" 2>&1 </dev/null || cat "$tmp/cocci.log"
		grep "^$dir/" "$tmp/cocci.log"
	done <"$tmp/rules"
}

# the compiler, with its analyzer, which follows each function to its ends
WARNINGS='-Wshadow -Wundef -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith -Wvla -Wformat=2
	-Wno-format-nonliteral -Wduplicated-cond -Wlogical-op -Wnull-dereference -Wcast-align -Wunused-macros
	-Wdeclaration-after-statement'
analyzer() {
	cat >"$tmp/analyzer.mk" <<-END
		include Makefile
		analyze: $(printf '%s.lint ' "${programs[@]}")
		%.c.lint: %.c; @\$(CC) \$(STRICT) -DCOWSETUP_VERSION='""' -I. -Ilib -Itests/unit \$(LIBS_CFLAGS) \$(CFLAGS) -pthread -fanalyzer $(tr -d '\n' <<<"$WARNINGS") -c -o /dev/null \$<
	END
	make --no-print-directory -k -f "$tmp/analyzer.mk" analyze 2>&1
}

# shellcheck disable=SC2016 # a regular expression
shell() { { scripts '^#!.*/(env )?(sh|dash|bash)' && scripts '^# shellcheck shell=' && files '*/lib.sh'; } | sort -u | xargs shellcheck --format=gcc; }
perl_syntax() { files '*.pl' | xargs -n 1 perl -wc 2>&1 | grep -v ' syntax OK$'; }

man_mandoc() { mandoc -T lint -W warning "${man[@]}"; }
# on a terminal of 80 columns
man_groff() { for page in "${man[@]}"; do groff -t -man -ww -z -Tutf8 -K utf8 -rLL=78n "$page" 2>&1; done; }

rst() { for page in $(files 'Documentation/*.rst'); do rst2xml --report=1 "$page" /dev/null 2>&1; done; }

text() { files '*' | grep -vE '^(LICENSE$|tests/fuzz/corpus/|tests/fixtures/)'; }
# but for the requests that man pages are made of
spelling() { text | xargs codespell -L te,bu,fro,inflight; }

# every link to a file is to one that is there; in the package that has README.md, too
links() {
	local page link packaged
	packaged=$(<debian/cowsetup.docs)
	for page in $(files '*.md'); do
		while read -r link; do
			[ -e "$(dirname "$page")/$link" ] || echo "$page: there is no $link"
			[ "$page" != README.md ] || grep -qxF "${link%%/*}" <<<"$packaged" || echo "debian/cowsetup.docs: lacks $link"
		done < <(grep -oE '\]\([^)#]+' "$page" | sed 's/^](//' | grep -vE '^[a-z]+:')
	done
}

licence() {
	text | grep -vE '^(tests/broken/|Documentation/upstream/|debian/|CHANGELOG$)|\.md$' | xargs grep -L 'SPDX-License-Identifier: GPL-2.0-only' |
		sed 's/$/: no SPDX line/'
}

# what of lib/, boot/ and cowsetup/ needs what: no file needs one that needs it in turn, lib nothing of the others, and
# boot nothing of cowsetup; lib neither prints nor exits, but for children of its own, by _exit(); and its header, its list of
# symbols and what it exports are the same functions
layers() {
	local source object
	make --no-print-directory cowsetup build/lib/libcowloop.so.0 >"$tmp/make.log" 2>&1 || { cat "$tmp/make.log"; return; }
	for source in $(files 'lib/*.c' 'boot/*.c' 'cowsetup/*.c'); do
		object=build/${source%.c}.o
		nm -f posix "$object" | sed "s,^,$source ,"
	done >"$tmp/symbols"
	awk '$3 ~ /^[TDBRCVW]$/ { where[$2] = $1 } $3 == "U" { user[NR] = $1; needs[NR] = $2 }
		END { for (i in user) if (needs[i] in where && where[needs[i]] != user[i]) print user[i], where[needs[i]] }' \
		"$tmp/symbols" | sort -u >"$tmp/needs"
	[ -s "$tmp/needs" ] || echo "no file needs another one?"
	tsort "$tmp/needs" 2>&1 >/dev/null | sed 's/^tsort: //'
	grep -E '^lib/.* (boot|cowsetup)/|^boot/.* cowsetup/' "$tmp/needs" | sed 's/ / needs /'
	files 'lib/*.[ch]' | xargs grep -nE '^#include "\.\./(boot|cowsetup)/'
	files 'boot/*.[ch]' | xargs grep -nE '^#include "\.\./cowsetup/'
	awk '$1 ~ /^lib\// && $3 == "U" && $2 ~ /^(__)?(v?f?printf|puts|putchar|f?putc|fputs|fwrite|perror|stdin|stdout|stderr|exit|quick_exit|abort)(_chk)?$/ {
		print $1 ": needs " $2 }' "$tmp/symbols"
	sed -nE 's/^[a-z0-9_ ]*[ *](cowloop_[a-z_]+)\(.*/\1/p' lib/libcowloop.h | sort >"$tmp/header"
	sed -nE 's/^\t(cowloop_[a-z_]+);$/\1/p' lib/libcowloop.sym | sort >"$tmp/list"
	nm -D --defined-only build/lib/libcowloop.so.0 | sed -nE 's/.* T ([a-z_]+)(@@.*)?$/\1/p' | sort >"$tmp/exported"
	diff "$tmp/header" "$tmp/list"
	diff "$tmp/header" "$tmp/exported"
}

# no file of over 900 lines, no function of over 70, no struct of over 25 members: what is larger has more than one subject
# shellcheck disable=SC2016 # awk's
sizes() {
	awk '
	function end_file() { if (lines > 900) print name ": " lines " lines, expected at most 900" }
	FNR == 1 { end_file(); name = FILENAME; depth = 0; kind = "" }
	{
		lines = FNR
		gsub(/"(\\.|[^"\\])*"|\047(\\.|[^\047\\])*\047/, "0")
		gsub(/\/\*([^*]|\*[^\/])*\*\/|\/\/.*/, "")
	}
	comment { if (!/\*\//) next; sub(/.*\*\//, ""); comment = 0 }
	/\/\*/ { comment = 1; sub(/\/\*.*/, "") }
	/^#/ { next }
	!depth && /^(static |typedef )?(const )?struct [a-z0-9_]* *\{$/ { kind = "struct"; begin = FNR; members = 0 }
	!depth && $0 == "{" { kind = "function"; begin = FNR }
	kind == "struct" && /;/ && !/^\}/ { member = $0; gsub(/\([^()]*\)/, "", member); members += gsub(/,/, "", member) + !/^\t*\}[^a-z]*$/ }
	{
		opened = gsub(/\{/, ""); closed = gsub(/\}/, "")
		depth += opened - closed
		if (depth || !closed) next
		if (kind == "function" && FNR - begin - 1 > 70)
			print name ":" begin ": a function of " FNR - begin - 1 " lines, expected at most 70"
		if (kind == "struct" && members > 25)
			print name ":" begin ": a struct of " members " members, expected at most 25"
		kind = ""
	}
	END { end_file() }' "${kernel[@]}" "${user[@]}"
}

# tests/host/broken.t takes long; this does not
broken_patches() {
	local patch
	for patch in tests/broken/*.patch; do
		GIT_DIR=/dev/null git apply --check "$patch" 2>&1 || echo "$patch: does not apply"
	done
}

# what says which version this is agrees with CHANGELOG
versions() {
	local version target
	read -r version target < <(sed -n '1s/^dm-cowloop \([^ ]*\) (target version \([^)]*\))$/\1 \2/p' CHANGELOG)
	[ "$target" ] || echo "CHANGELOG: its first line is not like \"dm-cowloop VERSION (target version VERSION)\""
	grep -qF ".version = {${target//./, }}," dm-cowloop.c || echo "dm-cowloop.c: the target is not $target"
	grep -qx "PACKAGE_VERSION=\"$version\"" dkms.conf || echo "dkms.conf: not $version"
	grep -qx "Version: *$version" rpm/dm-cowloop.spec || echo "rpm/dm-cowloop.spec: not $version"
	head -n 1 debian/changelog | grep -qF "($version)" || echo "debian/changelog: not $version"
}

# --- TAP ------------------------------------------------------------------------------------------------------

all='checkpatch_kernel checkpatch_user sparse_module sparse_kmod coccinelle analyzer shell perl_syntax man_mandoc man_groff
	rst spelling links licence versions layers sizes broken_patches'
# shellcheck disable=SC2086 # several words
[ $# -gt 0 ] || set -- $all
echo "1..$#"
n=0 failed=0
for check; do
	n=$((n + 1))
	"$check" >"$tmp/out" 2>&1
	if [ ! -s "$tmp/out" ]; then
		echo "ok $n - $check"
	else
		echo "not ok $n - $check"
		sed 's/^/# /' "$tmp/out"
		failed=1
	fi
done
exit $failed
