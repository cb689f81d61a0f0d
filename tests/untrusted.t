#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 1800 --file "$(dirname "$test")/../systemd:/systemd" --file "$(dirname "$test")/../udev:/udev"
#
# cowsetup on active devices, and other users of the machine, played by user 1000: what he has made in a directory that all may
# write, what he mounts, what he locks, and what he may read. tests/host/cowsetup-others.t has it for files, tests/holders.t for
# locks, and tests/assemble.t for what is plugged in. And servers that are gone, which no user needs to be in league with.

# shellcheck source=tests/lib.sh
. /cowloop/tests/lib.sh
cd /tmp || exit 1

# built with the compiler's checks
export ASAN_OPTIONS=detect_leaks=1:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
cowsetup() { /usr/local/bin/cowsetup-asan "$@"; }
# by COMMAND...: as user 1000
by() { perl -e '$) = $( = 1000; $> = $< = 1000; exec @ARGV or die "$ARGV[0]: $!\n"' "$@"; }
devices() { dmsetup ls --target cowloop | grep -v '^No devices' | cut -f 1 | sort | paste -sd ' '; }
mode() { stat -c %a "$1"; }
umask 022
# what the kernel may keep users from is up to the machine: here it is cowsetup that has to
for protected in symlinks hardlinks fifos regular; do
	echo 0 >/proc/sys/fs/protected_$protected
done

out='' # what exits() leaves
truncate -s 8M img
mke2fs -q -t ext4 -O ^has_journal img
mkdir -m 1777 shared
mkdir mnt
: >/etc/cowtab

# --- A cowfile is as secret as its device ---------------------------------------------------------------------

echo "mine /tmp/img /tmp/mine.cow create" >cowtab
exits 0 "a cowfile that a line of cowtab has made" cowsetup assemble --cowtab cowtab mine
is "$(mode mine.cow)" 600 "is for root alone"
fails "a user reads nothing of it" by cat mine.cow
fails "and locks nothing of it" by flock --nonblock mine.cow true
fails "nor what keeps two assembles apart" by flock --nonblock /run/cowsetup/lock true
fails "nor makes names that links lead to" by sh -c ': >/run/cowsetup/named/x'
cowsetup close mine
exits 0 "and one that open has made" cowsetup open img opened.cow
is "$(mode opened.cow)" 600 "likewise"
cowsetup close opened

# --- What somebody else has made first ------------------------------------------------------------------------

# refuses REGEX NAME COMMAND...: exits with 2, says REGEX, opens nothing
refuses() {
	ref_regex=$1 ref_name=$2
	shift 2
	exits 2 "$ref_name" "$@"
	says "$ref_regex" "and says so: $ref_name"
	is "$(devices)$(losetup --list --noheadings)" '' "and nothing is opened: $ref_name"
}
by sh -c ': >shared/blank.cow; chmod 666 shared/blank.cow'
refuses 'shared/blank.cow: belongs to .*UID 1000' "a blank file of another user" cowsetup open img shared/blank.cow
is "$(stat -c %s shared/blank.cow)" 0 "it is as it was"
cp mine.cow shared/whole.cow
chown 1000 shared/whole.cow
refuses 'shared/whole.cow: belongs to .*UID 1000' "a cowfile of another user" cowsetup open img shared/whole.cow
refuses 'shared/whole.cow: belongs to .*UID 1000' "read-only, too" cowsetup open --read-only img shared/whole.cow
by ln -s /tmp/mine.cow shared/link.cow
refuses 'shared/link.cow is a symbolic link that .* has made' "a link of another user" cowsetup open img shared/link.cow
by ln -s /tmp/none.cow shared/dangling.cow
fails "a link to what is not there" cowsetup open img shared/dangling.cow
[ ! -e none.cow ]
ok $? "which is not made"
for file in blank whole link; do
	echo "mine /tmp/img /tmp/shared/$file.cow create" >cowtab
	refuses "shared/$file.cow" "by a line of cowtab: $file" cowsetup assemble --cowtab cowtab --all
done
echo "mine /tmp/img /tmp/shared/dangling.cow create" >cowtab
fails "by a line of cowtab: dangling" cowsetup assemble --cowtab cowtab --all
[ ! -e none.cow ]
ok $? "nor by such a line"
cp img shared/img
chown 1000 shared/img
exits 0 "another user's image, which is only read" cowsetup open shared/img image.cow
cowsetup close image

# on NFS root's files may be somebody else's
echo "mine /tmp/img /tmp/shared/whole.cow" >cowtab
refuses '--force \(in cowtab and cowroot=: force\)' "a line without the option force" cowsetup assemble --cowtab cowtab mine
echo "mine /tmp/img /tmp/shared/whole.cow force" >cowtab
exits 0 "a line with it" cowsetup assemble --cowtab cowtab mine
is "$(devices)" mine "is opened"
cowsetup close mine
echo '* - - force' >cowtab
exits 4 "a line for what no line names" cowsetup assemble --cowtab cowtab --all
says 'cowtab:1: \*: force' "cannot have it"

# --- A path that changes while it is looked at ----------------------------------------------------------------

# a file for whoever examines the path, and by then a pipe, as a device would be: whoever opens that lets the writer go on
mkfifo pipe
(echo opened >pipe; echo opened >touched) &
writer=$!
cat >swap.pl <<'EOS'
$) = $( = 1000;
$> = $< = 1000;
chdir "shared" or die;
open my $f, ">", "file" or die;
symlink "/tmp/pipe", "to-pipe" or die;
symlink "/tmp/shared/file", "to-file" or die;
for (my $i = 0; ; $i++) {
	unlink "next";
	link $i % 2 ? "to-pipe" : "to-file", "next" or die "$!";
	rename "next", "swapped" or die "$!";
}
EOS
perl swap.pl &
swapper=$!
await test -L shared/swapped
files=0 pipes=0
for _ in $(seq 100); do
	out=$(/usr/local/bin/cowsetup dump shared/swapped 2>&1)
	case $out in
	*'neither a file nor a block device'*) pipes=$((pipes + 1)) ;;
	*) files=$((files + 1)) ;;
	esac
done
kill $swapper
wait $swapper 2>/dev/null
diag "$files files, $pipes pipes"
[ $files -gt 0 ] && [ $pipes -gt 0 ]
ok $? "a path that is a file and a pipe in turn is seen as either"
[ ! -e touched ]
ok $? "and what is no file is never opened"
kill $writer
wait $writer 2>/dev/null

# --- What somebody else mounts --------------------------------------------------------------------------------

# A mount of FUSE that nobody answers for, by a user in namespaces of his own: its source is any text. As udev has it, all may
# open /dev/fuse.
modprobe fuse 2>/dev/null
cowsetup open img m.cow >/dev/null
if chmod 666 /dev/fuse 2>/dev/null && by unshare --user --map-root-user --mount true 2>/dev/null; then
	mkfifo go
	cat >liar.sh <<'EOS'
exec 3<>/dev/fuse
mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 "$(printf '/dev/mapper/m')" /tmp/mnt &&
	mount -t tmpfs "$(printf '/dev/mapper/m\n1 1 253:0 / /x\033]0;x\a rw - ext4 /dev/mapper/m rw')" /mnt &&
	echo $$ >/tmp/shared/mounted
read -r _ </tmp/go
EOS
	by unshare --user --map-root-user --mount sh liar.sh >liar.out 2>&1 &
	liar=$!
	await test -s shared/mounted || diag "$(cat liar.out)"
	is "$(grep -c ' /dev/mapper/m' "/proc/$(cat shared/mounted)/mountinfo")" 2 "a user has two mounts that say that they are the device"
	exits 0 "readonly" timeout -s KILL 300 /usr/local/bin/cowsetup-asan readonly m
	is "$(echo "$out" | grep -c 'mounted on')" 0 "believes neither"
	exits 0 "detach" timeout -s KILL 300 /usr/local/bin/cowsetup-asan detach m
	is "$(echo "$out" | grep -c 'mounted on')" 0 "nor does detach"
	exits 0 "close" timeout -s KILL 300 /usr/local/bin/cowsetup-asan close m
	is "$out" '' "nor does close"
	echo >go
	wait $liar
else
	skip "no FUSE, or users have no namespaces"
	cowsetup close m
fi

# --- What somebody else has locked ----------------------------------------------------------------------------

# and what he calls himself: a title for the terminal's window
chmod 644 img
perl -e 'use Fcntl qw(:flock); $) = $( = 1000; $> = $< = 1000; open my $f, "<", "img" or die "$!";
	flock $f, LOCK_EX or die "$!"; $0 = "\e]0;x\a\n"; sleep 1000' &
holder=$!
settles 5 "a user has locked an image" sh -c 'flock --nonblock --exclusive --conflict-exit-code 5 img true; echo $?'
exits 5 "open" cowsetup open img locked.cow
says "^cowsetup: img: in use: process $holder \\(.*user 1000\\) has it locked" "says who it is"
says '\\x1b\]0;x\\x07' "by the name he has, whose controls are visible"
kill $holder
wait $holder 2>/dev/null

# --- Servers that are gone ------------------------------------------------------------------------------------

# a filesystem whose every path waits for an answer that never comes
exec 3<>/dev/fuse
if mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 gone mnt; then
	cat >cowtab <<-END
		rdo /tmp/mnt/img /tmp/rdo.cow create
		cow /tmp/img /tmp/mnt/cow.cow create
		here /tmp/img /tmp/here.cow create
	END
	exits 4 "a line whose server is gone" timeout -s KILL 300 /usr/local/bin/cowsetup-asan assemble --cowtab cowtab --all
	says 'rdo: not opened: /tmp/mnt/img has not answered .*cowsetup assemble rdo tries again \(cowtab:1\)' "is told"
	says 'cow: not opened: /tmp/mnt/cow.cow has not answered .*\(cowtab:2\)' "and another"
	is "$(devices)" here "the others are opened"
	exits 4 "by its name" timeout -s KILL 300 /usr/local/bin/cowsetup-asan assemble --cowtab cowtab cow
	says 'cow: not opened: /tmp/mnt/cow.cow has not answered' "likewise"
	cowsetup close here
	disk=$(loopdev img -r)
	exits 0 "a device that is a part of none" timeout -s KILL 300 /usr/local/bin/cowsetup-asan assemble --cowtab cowtab "$disk"
	losetup --detach "$disk"
	settles 0 "nobody is left who waits" sh -c "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cx [a]ssemble; :"
	exec 3<&-
	umount mnt
else
	skip "no FUSE"
fi

# --- udev's rules ---------------------------------------------------------------------------------------------

# links by UUID and label: only a name that a line has takes them from others
rule() { grep "$1" /udev/65-cowsetup.rules | grep -c "link_priority=$2\""; }
is "$(rule 'DM_UUID}=="COWLOOP' -50)" 1 "a device is last for links"
# shellcheck disable=SC2016 # udev's
is "$(rule 'TEST=="/run/cowsetup/named/$env{DM_NAME}".*' 60)" 1 "unless it is named"
is "$(grep -c 'link_priority=[^-]' /udev/65-cowsetup.rules)" 1 "and in no other case"

# --- At shutdown ----------------------------------------------------------------------------------------------

# The cowfile's filesystem has been unmounted with its namespace, as that of an initramfs: it is mounted again, for root alone.
modprobe brd rd_nr=1 rd_size=32768
mke2fs -q -t ext4 /dev/ram0
ln -s /usr/local/bin/cowsetup-asan /usr/local/sbin/cowsetup 2>/dev/null ||
	{ mkdir -p /usr/local/sbin && ln -s /usr/local/bin/cowsetup-asan /usr/local/sbin/cowsetup; }
unshare --mount sh -c 'mount /dev/ram0 /mnt && cowsetup-asan open /tmp/img /mnt/last.cow last' >out 2>&1 || diag "$(cat out)"
is "$(grep -c '/dev/ram0' /proc/mounts)" 0 "a cowfile whose filesystem is mounted nowhere"
dd if=/dev/urandom of=/dev/mapper/last bs=4k count=8 conv=nocreat oflag=direct status=none
runs "the last program of a shutdown" sh /systemd/cowsetup-shutdown
is "$(mode /run/cowsetup-shutdown)" 700 "mounts it for root alone"
like "$(grep ' /run/cowsetup-shutdown/1:0 ' /proc/mounts)" '^/dev/ram0 .* ro,.*nosuid,nodev' \
	"without set-uid programs and devices, and read-only in the end"
fails "a user reads nothing there" by ls /run/cowsetup-shutdown/1:0
is "$(cowhead /run/cowsetup-shutdown/1:0/last.cow dirty)" 0 "and the cowfile is clean"
cowsetup close last
umount /run/cowsetup-shutdown/1:0

done_testing
