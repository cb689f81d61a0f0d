#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The patches for a kernel tree: checkpatch has nothing to say of them, they apply, and what they add builds without a
# warning of the compiler or sparse, built in and as a module. A kernel that has it built in is booted, and passes
# tests/smoke.t. The tree is that of the distribution's kernel.
#
#   tests/slow/patch.t [KTREE]      (another one)

set -u

top=$(realpath "$(dirname "$0")/../..")
[ $# = 0 ] || ktree=$(realpath "$1")
cd "$top" || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
tmp=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$tmp"' EXIT

scripts/setup build vm flex bison bc libelf-dev sparse perl patch git
if [ $# = 0 ]; then
	source=''
	eval "$(scripts/kernels/source all)"
	ktree=$source
fi
[ -d "${ktree:-}" ] || plan skip_all 'no kernel tree'

export GIT_AUTHOR_NAME='An Author' GIT_AUTHOR_EMAIL=author@dm-cowloop.invalid GIT_COMMITTER_NAME=Committer
export GIT_COMMITTER_EMAIL=committer@dm-cowloop.invalid
scripts/package/patch "$ktree" >"$tmp/out" 2>&1
said $? "patches are made"
[ $tap_failed = 0 ] || exit
patches=("$top"/build/patch/*.patch)

(cd "$ktree" && perl scripts/checkpatch.pl --strict --terse --show-types "${patches[@]}") >"$tmp/out" 2>&1 &&
	! grep -v '^total: 0 errors, 0 warnings, 0 checks' "$tmp/out" | grep -v '^ *$'
said $? "checkpatch finds nothing"

! grep -nE '^\+.*(-compat|COWLOOP_HAVE|__KERNEL__|LINUX_VERSION|KERNEL_VERSION)' "${patches[0]}" >"$tmp/out"
said $? "there is nothing for other kernels in them"

scripts/package/patch --format2 "$ktree" >"$tmp/out" 2>&1 &&
	! grep -nE '^\+.*(-format1|COWLOOP_FORMAT1)' build/patch/0001-* >"$tmp/out" &&
	scripts/package/patch "$ktree" >"$tmp/out" 2>&1
said $? "they can do without format 1"

help=$(sed -n '/^+config DM_COWLOOP/,/^ /p' "${patches[0]}" | sed -n '/^+\thelp/,/^+$/p' | sed '1d; $d')
[ "$(wc -l <<<"$help")" = 5 ]
said $? "Kconfig says in five lines when to choose it" || printf '%s\n' "$help" | sed 's/^/# /'

# what git am needs of the tree
mkdir "$tmp/git"
sed -n 's,^--- a/,,p' "${patches[@]}" | sort -u | while read -r file; do
	install -D -m 644 "$ktree/$file" "$tmp/git/$file"
done
{
	git -C "$tmp/git" init -q && git -C "$tmp/git" add -A && git -C "$tmp/git" commit -q -m base &&
		git -C "$tmp/git" am "${patches[@]}"
} >"$tmp/out" 2>&1
said $? "git am applies them"

# the same files, but for those that are patched: patch(1) makes those anew
cp -rl "$ktree" "$tmp/tree" 2>"$tmp/out" || cp -r "$ktree" "$tmp/tree" >"$tmp/out" 2>&1
cat "${patches[@]}" | patch -d "$tmp/tree" -p1 --no-backup-if-mismatch >"$tmp/out" 2>&1
said $? "patch applies them"
! grep -iE 'fuzz|offset' "$tmp/out"
said $? "as they are"
cmp "$tmp/tree/drivers/md/Kconfig" "$tmp/git/drivers/md/Kconfig" >"$tmp/out" 2>&1 &&
	! cmp -s "$ktree/drivers/md/Kconfig" "$tmp/tree/drivers/md/Kconfig"
said $? "and the tree they came from is as it was"

make=(make -s -C "$tmp/tree" "O=$tmp/build" "-j$(nproc)")
for how in y m; do
	rm -rf "$tmp/build"
	mkdir "$tmp/build"
	{
		printf 'CONFIG_%s\n' 64BIT=y MODULES=y BLOCK=y MD=y BLK_DEV_DM=$how DM_COWLOOP=$how >"$tmp/build/mini.config"
		"${make[@]}" KCONFIG_ALLCONFIG="$tmp/build/mini.config" allnoconfig && "${make[@]}" prepare
	} >"$tmp/out" 2>&1
	said $? "a configuration with CONFIG_DM_COWLOOP=$how"
	grep -qx "CONFIG_DM_COWLOOP=$how" "$tmp/build/.config"
	said $? "it is in it"
	"${make[@]}" W=1 C=1 drivers/md/ >"$tmp/out" 2>&1
	said $? "it builds: $how"
	! grep -n 'dm-cowloop.*\(warning\|error\)' "$tmp/out"
	said $? "without a warning: $how"
	(cd "$tmp/build/drivers/md" && if [ $how = y ]; then ar t built-in.a; else cat modules.order; fi) >"$tmp/out" 2>&1
	grep -q 'dm-cowloop' "$tmp/out"
	said $? "it is a part of the kernel: $how"
done

# other kernels, of which there are the headers: their source, as a module
while read -r version; do
	release='' kdir=''
	eval "$(scripts/kernel "$version" 2>"$tmp/out")"
	if [ ! "$release" ]; then
		skip "Linux $version is not to be had here"
		continue
	fi
	# what is for all kinds of machines is in a directory of its own, which the Makefile names
	headers=$(sed -n 's,^include \(/.*\)/Makefile$,\1,p' "$kdir/Makefile")
	headers=${kdir%%/usr/src/*}${headers:-$kdir}
	for format2 in '' --format2; do
		rm -rf "$tmp/module"
		mkdir "$tmp/module"
		# shellcheck disable=SC2086 # an option, or none
		scripts/package/in-tree $format2 "$headers" "$tmp/module" >"$tmp/out" 2>&1 &&
			{ echo 'obj-m := dm-cowloop.o' && grep '^dm-cowloop-y ' Kbuild | sed "${format2:+/-format1\.o/d}"; } \
				>"$tmp/module/Kbuild" &&
			scripts/kernels/kbuild "$kdir" "$tmp/module" -s W=1 modules >"$tmp/out" 2>&1 && [ ! -s "$tmp/out" ]
		said $? "what it becomes for $release builds, too, without a warning${format2:+: $format2}"
	done
done < <(scripts/kernel --all)

# a whole kernel, no more than tests/smoke.t needs
rm -rf "$tmp/build"
mkdir "$tmp/build"
{
	"${make[@]}" allnoconfig && {
		grep -vE 'SCSI|BLK_DEV_SD|NBD|NULL_BLK|XFS|INET|BLK_DEV_DM|CONFIG_DM_' scripts/kernels/configs/base
		printf 'CONFIG_%s\n' BLK_DEV_DM=y DM_COWLOOP=y
	} >>"$tmp/build/.config" && "${make[@]}" olddefconfig && "${make[@]}" bzImage modules &&
		"${make[@]}" INSTALL_MOD_PATH="$tmp/build" modules_install
} >"$tmp/out" 2>&1
said $? "a kernel with it builds"
scripts/vm --kernel "$tmp/build" tests/smoke.t >"$tmp/out" 2>&1
said $? "it boots, and works: tests/smoke.t, $(grep -c '^ok' "$tmp/out") tests"

if command -v rst2xml >/dev/null; then
	rst2xml --halt=2 "$tmp/tree/Documentation/admin-guide/device-mapper/dm-cowloop.rst" /dev/null >"$tmp/out" 2>&1 &&
		grep -qx '    dm-cowloop' "$tmp/tree/Documentation/admin-guide/device-mapper/index.rst"
	said $? "its page is in order, and in the index"
fi

echo "1..$tap_count"
[ $tap_failed = 0 ]
