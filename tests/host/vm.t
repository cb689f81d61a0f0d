#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# scripts/vm itself: what a script in the VM says arrives here, whatever goes wrong there does not go unnoticed,
# and nothing of it stays behind.

set -u

top=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

count=0 failed=0
ok() { # STATUS NAME [CASE]: what CASE printed is shown when STATUS is not 0
	count=$((count + 1))
	if [ "$1" = 0 ]; then
		echo "ok $count - $2"
	else
		echo "not ok $count - $2"
		failed=1
		[ -z "${3:-}" ] || tail -n 20 "$3.rc" "$3.out" "$3.err" | sed 's/^/# /'
	fi
}
is() { [ "$1" = "$2" ]; ok $? "$3" "${4:-}"; [ "$1" = "$2" ] || printf '# got:  %s\n# want: %s\n' "$1" "$2"; }

# script NAME: a script for the VM, from stdin
script() { { echo '#!/bin/sh'; cat; } >"$1" && chmod +x "$1"; }

# vm CASE [ARG...]: scripts/vm in the background, never more than two of them; leaves CASE.out, .err, .rc and,
# where scripts/vm makes its temporary files, CASE.tmp
vm() {
	local case=$1
	shift
	[ "$(jobs -pr | wc -l)" -lt 2 ] || wait -n
	mkdir "$case.tmp"
	{
		TMPDIR=$work/$case.tmp "$top/scripts/vm" "$@" >"$case.out" 2>"$case.err"
		echo $? >"$case.rc"
	} &
}

# left CASE: prints the processes and files that are left of it
left() { { grep -las "$work/$1.tmp" /proc/[0-9]*/cmdline; ls -A "$1.tmp"; } | grep -v "^/proc/$$/"; }

# shellcheck disable=SC2317 # it is called, by await
gone() { [ -z "$(left "$1")" ]; }

# await COMMAND...: until COMMAND succeeds, some minutes at most
await() {
	local tries=3000
	until "$@"; do
		[ $((tries -= 1)) -gt 0 ] || return 1
		sleep 0.1
	done
}

# --- A module that misbehaves on demand ---------------------------------------------------------------------

eval "$("$top/scripts/kernel" ${KERNEL:+"$KERNEL"})"
mkdir module
cat >module/splat.c <<'END'
#include <linux/module.h>

static char *how = "";
module_param(how, charp, 0);

static int __init splat_init(void)
{
	WARN_ON(!strcmp(how, "warn"));
	return strcmp(how, "fail") ? 0 : -ERANGE;
}

static void __exit splat_exit(void)
{
}

module_init(splat_init);
module_exit(splat_exit);
MODULE_LICENSE("GPL");
END
echo 'obj-m := splat.o' >module/Kbuild
# shellcheck disable=SC2154 # scripts/kernel says what kdir is
"$top/scripts/kernels/kbuild" "$kdir" "$work/module" -s modules >make.log 2>&1
ok $? "a module builds for the stock kernel" || sed 's/^/# /' make.log
splat=$work/module/splat.ko

# --- The VMs ------------------------------------------------------------------------------------------------

script relay <<'END'
perl -e 'print pack("C*", 0..255) x 64'
printf '%s|' "$@" "$(nproc)" "$PWD"
echo "to stderr" >&2
exit 42
END
vm relay --module "$splat" --smp 3 "$work/relay" $'a  b\n' '' "it's" "\$x\\" '*'

truncate -s 1M data blocks
echo "from the host" | dd of=data conv=notrunc status=none
script disks <<'END'
set -e
head -c 13 /dev/vda; echo
echo "from the guest" | dd of=/dev/vda bs=512 seek=8 conv=fsync 2>/dev/null
blockdev --getro --getss --getpbsz --getsize64 /dev/vda /dev/vdb
! dd if=/dev/zero of=/dev/vdb count=8 2>/dev/null
cat /etc/extra
. /cowloop/tests/lib.sh
modprobe splat how=quiet
END
echo "extra file" >extra
vm disks --no-load --module "$splat" --disk data --file extra:/etc/extra \
	--disk "$work/blocks,readonly=on,logical_block_size=4096,physical_block_size=4096" disks

script uptime <<'END'
perl -e '$sum += $_ for 1 .. 100000'
cat /proc/uptime
END
vm icount1 --no-load --module "$splat" --icount --smp 4 uptime
vm icount2 --no-load --module "$splat" --icount uptime

script panic <<'END'
echo "1..1"
echo c >/proc/sysrq-trigger
sleep 100
END
vm panic --no-load --module "$splat" --log panic.log panic

script warn <<'END'
modprobe splat how=warn
END
vm warn --no-load --module "$splat" warn

script late <<'END'
echo "ok 1"
echo "BUG: unable to be believed" >/dev/kmsg
END
vm late --no-load --module "$splat" late

script hang <<'END'
echo started
sleep 1000
END
vm hang --no-load --module "$splat" --timeout 60 hang

script true <<'END'
true
END
vm load --module "$splat" --append splat.how=fail true
# no time at all for the boot, but for that of the last try
BOOT_SECONDS=0 vm again --no-load --module "$splat" true
# an early end
vm early --no-load --module "$splat" --append rdinit=/none true

# background jobs ignore SIGINT unless told not to
mkdir int.tmp
TMPDIR=$work/int.tmp env --default-signal=INT "$top/scripts/vm" --no-load --module "$splat" hang >int.out 2>int.err &
int=$!
await grep -qs started int.out
ok $? "output arrives while the script runs" int
kill -INT $int
wait $int
echo $? >int.rc

mkdir orphan.tmp
TMPDIR=$work/orphan.tmp sh -c '"$1/scripts/vm" --no-load --module "$2" hang >orphan.out 2>orphan.err; true' sh "$top" "$splat" &
orphan=$!
await grep -qs started orphan.out
{ kill -KILL $orphan && wait $orphan; } 2>/dev/null # the shell would tell
wait

# --- What came of them --------------------------------------------------------------------------------------

is "$(cat relay.rc)" 42 "the script's exit status is relayed" relay
{
	perl -e 'print pack("C*", 0..255) x 64'
	printf '%s|' $'a  b\n' '' "it's" "\$x\\" '*' 3 /cowloop
	echo "to stderr"
} | cmp - relay.out
ok $? "output, arguments, CPUs and directory are as they should be" relay
is "$(cat relay.err)" "" "nothing else is said"

is "$(cat disks.rc)" 0 "so is 0" disks
is "$(tr '\n' ' ' <disks.out)" "from the host 0 512 512 1048576 1 4096 4096 1048576 extra file " "disks and files as asked for" disks
is "$(dd if=data bs=512 skip=8 count=1 status=none | tr -d '\0')" "from the guest" "what was written to a disk is there"

is "$(cat icount1.rc icount1.out)" "$(cat icount2.rc icount2.out)" "--icount makes guest time repeatable" icount1

is "$(cat panic.rc)" 125 "a panic is a failure" panic
grep -q '^# .*Kernel panic - not syncing: sysrq' panic.err
ok $? "it is shown" panic
! grep -v '^#' panic.err
ok $? "as a comment" panic
grep -q 'Linux version' panic.log && grep -q 'Kernel panic' panic.log
ok $? "--log keeps the whole log"

is "$(cat warn.rc)" 125 "a warning with a trace is a failure" warn
grep -q '^# .*splat_init' warn.err
ok $? "it is shown" warn
is "$(cat late.rc)" 125 "so is one after all output" late

is "$(cat hang.rc)" 125 "a hung script is a failure" hang
grep -q '^# vm: hung' hang.err
ok $? "it is said" hang

is "$(cat again.rc) $(grep -c 'started again' again.err)" '0 2' "what does not come up is started again" again
is "$(cat early.rc) $(grep -c 'started again' early.err)" '125 2' "so is what ends before that, but not for ever" early
grep -q '^# .*Unable to mount root fs' early.err
ok $? "its end is shown" early

is "$(cat load.rc)" 125 "a module that does not load is a failure" load
grep -q '^# vm: .*does not load: splat' load.err && grep -q 'Numerical result out of range' load.err
ok $? "it is said, with the reason" load

is "$(cat int.rc)" 130 "SIGINT ends it" int
is "$(left int)" "" "and leaves nothing"
await gone orphan
ok $? "nothing is left when the parent dies" || left orphan | sed 's/^/# /'
is "$(for case in relay panic hang load again; do left "$case"; done)" "" "nothing is left in any other case"

for arguments in '--no-such-option' '--smp x true' 'no-such-script' '--kernel 0.1 true' '--disk no-such-disk true'; do
	# shellcheck disable=SC2086 # several words
	said=$("$top/scripts/vm" --no-load --module "$splat" $arguments 2>&1)
	is "$?" 125 "refused: $arguments"
	[[ $said == *vm:* || $said == *kernel:* ]]
	ok $? "with a reason: ${said##*$'\n'}"
done

echo "1..$count"
exit $failed
