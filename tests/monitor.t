#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# dmeventd and its plugin: what gets into syslog as devices fill up, go out of space and fail; the program that is run
# then; and how devices are registered and let go of. Who has to wait for dmeventd's next look has to wait for ten
# seconds at most, so the devices fill up side by side.
#
# vm: --smp 2 --mem 1G

# shellcheck disable=SC2016 source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

# built with the compiler's checks
export ASAN_OPTIONS=detect_leaks=1:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
cowsetup() { /usr/local/bin/cowsetup-asan "$@"; }
out='' # what exits() leaves

syslogd -n -O /tmp/log &

# logs REGEX NAME: passes when syslog has it, now or later
logs() {
	await grep -Eq -- "$1" log
	ok $? "$2" || { diag "not logged: $1"; diag "$(tail -n 20 log)"; return 1; }
}

# counts REGEX COUNT NAME: passes when syslog has it so often
counts() { is "$(grep -Ec -- "$1" log)" "$2" "$3" || { diag "$(tail -n 20 log)"; return 1; }; }

# program COMMAND...: from now on this is run as well
program() {
	mkdir -p /etc/cowsetup
	printf '#!/bin/sh\n%s\n' "$*" >/etc/cowsetup/low-space
	chmod 755 /etc/cowsetup/low-space
}

running() { pidof dmeventd >/dev/null; }
not_running() { ! running; }
stop() {
	kill "$(cat /run/dmeventd.pid)"
	await not_running
}

# --- Registering --------------------------------------------------------------------------------------------

truncate -s 4M reg.img
cowsetup open reg.img reg.cow >/dev/null
exits 0 "open without --monitor" cowsetup status reg
says '^Monitored +no$' "is not monitored"
exits 0 "monitor --off, when it is not" cowsetup monitor --off reg
! running
ok $? "none of that starts dmeventd"
cowsetup close reg
! running
ok $? "nor does close"

mv /usr/sbin/dmeventd dmeventd
exits 0 "open --monitor without dmeventd" cowsetup open --monitor reg.img reg.cow
says '^/dev/mapper/reg$' "works"
says 'reg: cannot be monitored, .*/sbin/dmeventd: .*No such file' "says what is missing"
says 'Warning: reg: open, but nobody will warn' "and warns"
exits 4 "monitor without dmeventd" cowsetup monitor reg
says 'Is it installed' "says what is missing: monitor"
mv dmeventd /usr/sbin

mv /usr/lib/libdevmapper-event-cowloop.so .
exits 4 "monitor without the plugin" cowsetup monitor reg
says 'not monitored: .*does it find its plugin' "and says so: plugin"
mv libdevmapper-event-cowloop.so /usr/lib

dmsetup create bare --notable
exits 4 "monitor what is no cowloop device" cowsetup monitor bare
dmsetup remove bare
cowsetup close reg
cowopen bare "$(loopdev reg.img -r)" "$(loopdev reg.cow)"
exits 4 "monitor a device without a UUID" cowsetup monitor bare
says 'bare: .*no UUID' "and says so: UUID"
dmsetup remove bare
losetup --detach-all

exits 0 "open --monitor" cowsetup open --monitor reg.img reg.cow
is "$out" /dev/mapper/reg "prints nothing but the device"
logs 'Monitoring cowloop device reg\.' "dmeventd has it"
exits 0 "status" cowsetup status --json reg
says '"monitored": true' "shows that"
exits 0 "monitor, when it is" cowsetup monitor /dev/mapper/reg
exits 0 "monitor --off" cowsetup monitor --off reg
logs 'No longer monitoring cowloop device reg\.' "dmeventd has it no more"
exits 0 "status, no longer" cowsetup status --json reg
says '"monitored": false' "shows that, too"
exits 0 "monitor" cowsetup monitor reg
exits 0 "status, again" cowsetup status reg
says '^Monitored +yes$' "it is monitored again"

exec 7</dev/mapper/reg
exits 5 "close, in use" cowsetup close reg
exits 0 "status, in use" cowsetup status reg
says '^Monitored +yes$' "it is still monitored"
exits 0 "close --deferred, in use" cowsetup close --deferred reg
exits 0 "status, to be closed" cowsetup status reg
says '^Monitored +yes$' "it is monitored until then"
exec 7<&-
logs 'reg disappeared, detaching' "and not any longer"
: >log
cowsetup open --monitor reg.img reg.cow >/dev/null
exits 0 "close" cowsetup close reg
logs 'No longer monitoring cowloop device reg\.' "ends it"
counts disappeared 0 "in good order"
stop
ok $? "dmeventd has nothing to do any more"

# --- Filling up ---------------------------------------------------------------------------------------------

# where writes fail and succeed in turn
truncate -s 8M flap.img
truncate -s $((8192 + 1000 * 4096)) flap.cow # room for 1000 units of 2048
cowsetup open --monitor flap.img "$(loopdev flap.cow)" flap >/dev/null 2>&1 # it warns of the cow device
for unit in 1 2 3; do
	dd if=/dev/zero of=/dev/mapper/flap bs=4096 seek=1500 count=1 oflag=direct status=none 2>/dev/null
	[ $unit != 1 ] ||
		logs 'WARNING: Cowloop device flap is in mode out_of_space: new changes fail' "out of space, at once"
	sleep 1.2
	dd if=/dev/zero of=/dev/mapper/flap bs=4096 seek=$unit count=1 oflag=direct status=none
	is "$(cowstat flap mode)" rw "it finds space again"
done

# a limit; a file on a filesystem that fills up, whoever fills it; a cow device that is too small, and one that is not
truncate -s 8M limit.img
truncate -s 100M fs.img
mkfs.ext4 -q -m 0 fs.img
mkdir fs
mount -o loop fs.img fs
truncate -s 1M file.img
truncate -s 8M small.img
truncate -s 4M large.img
truncate -s $((8192 + 1000 * 4096)) small.cow
truncate -s 5M large.cow
small=$(loopdev small.cow)
dmsetup create below --table "0 10240 linear $(loopdev large.cow) 0"
program 'echo "$NAME $MODE $FREE $TOTAL" >>/tmp/ran'
cowsetup open --monitor --limit 4000K limit.img limit.cow >/dev/null
esc=$(printf '\033')
cowsetup open --monitor file.img "fs/fi${esc}le.cow" file >/dev/null
cowsetup open --monitor small.img "$small" small >/dev/null 2>&1
cowsetup open --monitor large.img /dev/mapper/below large >/dev/null

# has_run COUNT: the program, so often at least
has_run() { [ "$(wc -l <ran)" -ge "$1" ]; }
# has_logged REGEX COUNT: syslog has it so often at least
has_logged() { [ "$(grep -Ec -- "$1" log)" -ge "$2" ]; }

# fill PERMILLE
fill() {
	filled=$(stat -f -c '%b %a %S' fs | awk -v p="$1" '{ printf "%d", $3 * ($2 - $1 * (1000 - p) / 1000) }')
	fallocate -l $(($(stat -c %s fs/fill) + filled)) fs/fill
	for fill_name in limit small; do
		dd if=/dev/urandom of=/dev/mapper/$fill_name bs=4096 count="$1" oflag=direct status=none
	done
	dd if=/dev/urandom of=/dev/mapper/large bs=4096 count=$((($1 * 1024 + 999) / 1000)) oflag=direct status=none
}
: >fs/fill

fill 798
sleep 12
counts 'Cowloop device .* full' 0 "nothing is said of 79 percent"

fill 801
warning=' dmeventd\[[0-9]+\]: WARNING: Cowloop device'
logs "$warning file is now 80\.[0-9]% full: .* free \(filesystem\); make room where /tmp/fs/fi\\\\x1ble\.cow is\.\$" \
	"80 percent: filesystem"
logs "$warning small is now 80\.1% full: 796 KiB of 3\.9 MiB free \(device\); make the cow device, $small, larger\.\$" \
	"80 percent: device"
logs "$warning limit is now 80\.1% full: 796 KiB of 3\.9 MiB free \(limit\); .* dmsetup message limit 0 limit 2000\.\$" \
	"80 percent: limit"
logs "$warning large is now 80\.[0-9]% full: [0-9]+ KiB of 4 MiB free \(device\); .* room for every unit" \
	"80 percent: device that has room for everything"
await has_run 4
is "$(sort ran | sed 's/^file rw [0-9]* /file rw FREE /;s/^large rw [0-9]* /large rw FREE /')" \
	"file rw FREE $(stat -f -c '%b %S' fs | awk '{ print $1 * $2 }')
large rw FREE 4194304
limit rw $((199 * 4096)) $((1000 * 4096))
small rw $((199 * 4096)) $((1000 * 4096))" "the program is told what is free"

fill 851
for name in file limit small large; do
	logs "device $name is now 85\.[0-9]% full" "85 percent: $name"
done
fill 961
for name in file limit small large; do
	logs "device $name is now 96\.[0-9]% full" "96 percent: $name"
done
counts 'Cowloop device .* is now' 12 "nothing is said twice, nor of 90 percent"
# dmeventd has to look at the device, which it does every ten seconds, while there is more
for _ in 1 2 3 4 5 6 7 8 9 10; do
	truncate -s 0 fs/fill
	sync -f fs
	sleep 12
	fill 851
	! await has_logged 'device file is now 85' 2 || break
done
counts 'device file is now 85' 2 "85 percent, again, since there was more in between"
fill 1000
logs 'device small is now 100\.0% full: 0 bytes of 3\.9 MiB free' "100 percent"
logs 'device file is now 100\.0% full' "likewise: filesystem"
logs 'device large is now 100\.0% full' "likewise: device that has room for everything"
logs 'device limit is now 100\.0% full' "likewise: limit"
counts 'Cowloop device .* is now' 17 "and that is all"
await has_run 17
is "$(wc -l <ran)" 17 "the program was run as often"
dd if=/dev/zero of=/dev/mapper/limit bs=4096 seek=1000 count=1 oflag=direct status=none 2>/dev/null
logs 'WARNING: Cowloop device limit is in mode out_of_space' "out of space at the limit, at once"
await has_run 18
is "$(tail -n 1 ran)" "limit out_of_space 0 $((1000 * 4096))" "the program is told"
dmsetup message limit 0 limit 2000
counts 'device flap is in mode out_of_space' 1 "what goes out of space and back is told of once"
logs 'Cowloop device flap has space again' "until it has had space for a minute"
dd if=/dev/zero of=/dev/mapper/flap bs=4096 seek=1500 count=1 oflag=direct status=none 2>/dev/null
await has_logged 'device flap is in mode out_of_space' 2
counts 'device flap is in mode out_of_space' 2 "then it is told of again"
dd if=/dev/urandom of=/dev/mapper/limit bs=4096 count=1601 oflag=direct status=none
logs 'Cowloop device limit is now 80\.0% full: .* to have no limit instead of one of 7\.8 MiB: dmsetup message limit 0 limit 0\.$' "80 percent of what the limit is now"

# --- The program --------------------------------------------------------------------------------------------

# again: something else to be said
again() {
	: >log
	cowsetup open --monitor reg.img reg.cow >/dev/null
	cowsetup detach reg
	logs 'device reg is in mode closed' "it is said all the same: $1"
}

program 'exit 3'
again "a program that fails"
logs '/etc/cowsetup/low-space: ended with status 3, for reg\.' "its status is told"
cowsetup close reg
program 'kill -KILL $$'
again "a program that is killed"
logs '/etc/cowsetup/low-space: was ended by signal 9, for reg\.' "and its signal"
cowsetup close reg
program 'echo bad >>/tmp/ran'
chmod g+w /etc/cowsetup/low-space
again "a program that others may write to"
logs '/etc/cowsetup/low-space: not run, since others .* write to /etc/cowsetup/low-space' "it is not run"
cowsetup close reg
chmod 644 /etc/cowsetup/low-space
again "a program that is none"
logs '/etc/cowsetup/low-space: cannot be run: Permission denied' "and says so: not executable"
cowsetup close reg
chmod 755 /etc/cowsetup/low-space
chown 1000 /etc/cowsetup
again "a program in a directory of others"
logs '/etc/cowsetup/low-space: not run, since others .* write to /etc/cowsetup:' "and says so: directory"
cowsetup close reg
chown 0 /etc/cowsetup
is "$(grep -c bad ran)" 0 "neither was run"

# as a process of its own should be
cat >/etc/cowsetup/low-space <<'END'
#!/usr/bin/perl
open my $status, "<", "/proc/self/status";
open my $to, ">", "/tmp/process";
print $to grep(/^SigBlk/, <$status>), join(" ", sort keys %ENV), "\n";
close $status;
print $to map { "$_\n" } grep { defined && !/low-space|process/ } map { readlink "/proc/self/fd/$_" } 0 .. 99;
sleep 2;
END
again "a program that takes its time"
cowsetup close reg
logs 'No longer monitoring cowloop device reg' "dmeventd waits for it"
is "$(cat process)" "SigBlk:	0000000000000000
FREE MODE NAME PATH TOTAL
/dev/null
/dev/null
/dev/null" "it has signals, environment and descriptors of its own"

# --- Modes --------------------------------------------------------------------------------------------------

program 'echo "$NAME $MODE" >>/tmp/ran'
: >ran
: >log
cowsetup detach file
logs 'WARNING: Cowloop device file is in mode closed: it has let go' "closed, at once"
dmsetup suspend below
dmsetup load below --table "0 10240 error"
dmsetup resume below
dd if=/dev/zero of=/dev/mapper/large bs=4096 count=1 oflag=direct conv=fsync status=none 2>/dev/null
cowsetup sync large >/dev/null 2>&1
logs 'WARNING: Cowloop device large is in mode fail: the cow device has failed' "failed, at once"
await has_run 2
is "$(cat ran)" "file closed
large fail" "the program is told"
sleep 12
counts 'WARNING: Cowloop device' 2 "once"

# --- The end ------------------------------------------------------------------------------------------------

running
ok $? "dmeventd has lived through it"
for name in file small limit flap; do
	cowsetup close $name
done
cowsetup close --force large 2>/dev/null
logs 'No longer monitoring cowloop device large' "all are let go of"
stop
ok $? "it has nothing to do any more"
dmsetup remove below
umount fs
losetup --detach-all

done_testing
