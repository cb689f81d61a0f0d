#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Who has a file or a device in use: what others may write is refused as a read-only device, whoever that is, and cowsetup
# says who, and how it ends. What does not write is no hindrance. Likewise what is said when a cowfile or a device is in use,
# and that nothing is left behind.
#
# vm: --smp 2 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

export ASAN_OPTIONS=detect_leaks=1:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
cowsetup() { /usr/local/bin/cowsetup-asan "$@"; }
anybody() { perl -e '$) = $( = 1000; $> = $< = 1000; exec @ARGV' "$@"; }

# what there is: loop devices, dm devices, cowfiles
there() { losetup --list --noheadings --output NAME,BACK-FILE; dmsetup ls; ls ./*.cow 2>&1; }

# written RDO REGEX NAME: is refused as a read-only device, by open and by format, and what it says
written() {
	there >before
	exits 5 "open refuses an rdo: $3" cowsetup open "$1" x.cow
	says "^cowsetup: $1: in use by what may write it: $2" "and says who: $3"
	exits 5 "format refuses it: $3" cowsetup format "$1" x.cow
	says "^cowsetup: $1: in use by what may write it: $2" "and says who: format, $3"
	there >after
	runs "nothing is left behind: $3" cmp before after
}

# taken RDO NAME: it can be a read-only device
taken() {
	exits 0 "format takes it: $2" cowsetup format "$1" x.cow
	exits 0 "open takes it: $2" cowsetup open "$1" x.cow
	cowsetup close x
	rm -f x.cow
}

# holding MODE FILE: a process that has it open, in $holder: MODE is what perl's sysopen() is told
holding() {
	rm -f ready
	perl -e 'use Fcntl qw(:DEFAULT :flock); sysopen my $f, $ARGV[1], eval $ARGV[0] or die "$!";
		if ($ARGV[2]) { flock $f, LOCK_EX or die "$!"; }
		open my $ready, ">", "ready"; close $ready; sleep 1000' "$@" &
	holder=$!
	while [ ! -e ready ]; do sleep 0.1; done
}
let_go() { kill "$holder"; wait "$holder" 2>/dev/null; }

truncate -s 32M img
mkfs.ext4 -q -F img
mkdir -p mnt

# --- images -------------------------------------------------------------------------------------------------

taken img "an image that nobody has"
rw=$(loopdev img)
written img "attached to $rw \\(to end that: losetup --detach $rw\\)" "attached read-write"
mount "$rw" mnt
written img "attached to $rw, which is mounted on /tmp/mnt \\(to end that: umount /tmp/mnt && losetup --detach $rw\\)" "mounted"
exits 0 "open --force takes it" cowsetup open --force img x.cow
says 'img: may be written by others: attached to /dev/loop.*mounted on /tmp/mnt' "with a warning"
cowsetup close x
exits 0 "format --force takes it" cowsetup format --force img x.cow
says 'img: may be written by others: attached to /dev/loop.*mounted on /tmp/mnt' "with a warning, too"
umount mnt
head -c 8192 /dev/zero >behind.cow
echo something >>behind.cow
cp behind.cow keep
exits 5 "open --force overwrites nothing" cowsetup open --force img behind.cow
says 'behind.cow: .*holds data from 8192 on; cowsetup format --force' "and says what does"
runs "it is what it was" cmp behind.cow keep
rm -f x.cow behind.cow
losetup --detach "$rw"

ro=$(loopdev img -r)
taken img "attached read-only"
mount -o ro "$ro" mnt
taken img "mounted read-only"
umount mnt
losetup --detach "$ro"

holding O_RDWR img
written img "process $holder \\(perl\\) has it open for writing" "open for writing"
exits 5 "one that is not to be seen" unshare --pid --fork --mount-proc /usr/local/bin/cowsetup-asan open img x.cow
says 'img: in use by what may write it: open for writing by a program that cannot be seen from here' "is noticed all the same"
there >after
runs "nothing is left behind: not to be seen" cmp before after
let_go
holding O_RDONLY img
taken img "open for reading"
let_go

# --- devices ------------------------------------------------------------------------------------------------

modprobe brd rd_nr=1 rd_size=65536 max_part=8
disk=/dev/ram0
taken $disk "a disk that nobody has"
dmsetup create above --table "0 65536 linear $disk 0"
written $disk 'part of /dev/mapper/above, which is active \(to end that: dmsetup remove above\)' "below another device"
mkfs.ext4 -q -F /dev/mapper/above
mount /dev/mapper/above mnt
written $disk 'part of /dev/mapper/above, which is mounted on /tmp/mnt \(to end that: umount /tmp/mnt && dmsetup remove above\)' \
	"below one that is mounted"
umount mnt
dmsetup remove above
dmsetup create --readonly above --table "0 65536 linear $disk 0"
taken $disk "below a read-only device"
dmsetup remove above
dmsetup create vg-my--lv --uuid LVM-xyz --table "0 65536 linear $disk 0"
written $disk 'part of /dev/mapper/vg-my--lv, which is active \(to end that: vgchange --activate n vg\)' "below a logical volume"
dmsetup remove vg-my--lv
dmsetup create secret --uuid CRYPT-LUKS2-xyz-secret \
	--table "0 65536 crypt aes-xts-plain64 $(printf %064d 1) 0 $disk 0" 2>out &&
	written $disk 'part of /dev/mapper/secret, which is active \(to end that: cryptsetup close secret\)' "below LUKS"
dmsetup remove secret
cowsetup open $disk y.cow >/dev/null
taken $disk "below another cowloop device"
cowsetup close y
rm y.cow

rw=$(loopdev $disk)
written $disk "attached to $rw \\(to end that" "a device below a loop device"
losetup --detach "$rw"
ro=$(loopdev $disk -r)
taken "$ro" "a read-only loop device"
rw=$(loopdev $disk)
written "$ro" "attached to $rw \\(to end that" "a loop device, what it is made of being written by another one"
losetup --detach "$rw"
rw=$(loopdev img)
taken "$rw" "a loop device that could be written"
ro2=$(loopdev img -r)
written "$ro2" "attached to $rw \\(to end that" "a loop device of a file that another one has"
losetup --detach "$rw" "$ro2"

holding O_RDWR $disk
written $disk "process $holder \\(perl\\) has it open for writing" "open for writing"
let_go
mount $disk mnt
written $disk 'mounted on /tmp/mnt \(to end that: umount /tmp/mnt\)' "a disk that is mounted"
umount mnt
mount -o ro $disk mnt
exits 5 "a disk that is mounted read-only cannot be shared" cowsetup open $disk x.cow
says "^cowsetup: $disk: in use: mounted on /tmp/mnt .*losetup --find --show --read-only $disk prints a loop device" \
	"which says what can be done"
taken "$ro" "a loop device of it, which that says"
umount mnt
holding 'O_RDONLY | O_EXCL' $disk
exits 5 "a disk that a program has for itself alone" cowsetup open $disk x.cow
says "^cowsetup: $disk: in use: process $holder \\(perl\\) has it open" "and says which"
let_go
losetup --detach "$ro"
[ ! -e x.cow ]
ok $? "no cowfile is left"

mkswap $disk >/dev/null
swapon $disk
written $disk "used as swap \\(to end that: swapoff $disk\\)" "swap"
swapoff $disk
dd if=/dev/zero of=$disk bs=4096 count=1 status=none

# --- partitions ---------------------------------------------------------------------------------------------

truncate -s 64M disk.img
printf 'label: dos\nsize=16M\n-\n' | sfdisk -q disk.img
rw=$(loopdev disk.img -P)
mkfs.ext4 -q -F "${rw}p1"
taken "${rw}p2" "a partition"
mount "${rw}p1" mnt
taken "${rw}p2" "a partition, and another one is mounted"
written "$rw" "its partition ${rw}p1 is mounted on /tmp/mnt \\(to end that: umount /tmp/mnt\\)" "a disk with a partition that is mounted"
written disk.img "attached to $rw, whose partition ${rw}p1 is mounted on /tmp/mnt \\(to end that: umount /tmp/mnt && losetup" \
	"an image with one"
umount mnt
mount -o ro "${rw}p1" mnt
exits 5 "a disk with a partition that is mounted read-only" cowsetup open "$rw" x.cow
says "^cowsetup: $rw: in use: its partition ${rw}p1 is mounted on /tmp/mnt" "and says which"
umount mnt
dmsetup create part --table "0 8 linear ${rw}p1 0"
written "$rw" "its partition ${rw}p1 is part of /dev/mapper/part, which is active" "a disk with a partition below another device"
dmsetup remove part
dmsetup create whole --table "0 65536 linear $rw 0"
written "${rw}p1" "its disk $rw is part of /dev/mapper/whole" "a partition of a disk below another device"
dmsetup remove whole
holding O_RDWR "${rw}p1"
written "$rw" "process $holder \\(perl\\) has its partition ${rw}p1 open for writing" "a disk with a partition that a program writes"
let_go
holding O_RDWR "$rw"
written "${rw}p1" "process $holder \\(perl\\) has its disk $rw open for writing" "a partition of a disk that a program writes"
let_go
losetup --detach "$rw"
[ ! -e x.cow ]
ok $? "no cowfile is left: partitions"

# --- cow devices, close -------------------------------------------------------------------------------------

rw=$(loopdev $disk)
exits 5 "a cow device that a loop device is made of" cowsetup format --force img $disk
says "^cowsetup: $disk: in use: attached to $rw \\(to end that: losetup --detach $rw\\)" "and says which: cow"
losetup --detach "$rw"
holding 'O_RDONLY | O_EXCL' $disk
exits 5 "a cow device that a program has for itself alone" cowsetup format --force img $disk
says "^cowsetup: $disk: in use: process $holder \\(perl\\) has it open" "and says which: cow, program"
let_go

cowsetup open img mine.cow >/dev/null
rw=$(loopdev /dev/mapper/mine)
exits 5 "close, with a loop device on top" cowsetup close mine
says "^cowsetup: mine: in use: attached to $rw \\(to end that: losetup --detach $rw\\)" "says which: close"
mount "$rw" mnt
exits 5 "close, and that is mounted" cowsetup close mine
says "^cowsetup: mine: in use: attached to $rw, which is mounted on /tmp/mnt \\(to end that: umount /tmp/mnt &&" "says where"
umount mnt
losetup --detach "$rw"

# as LVM does with what it finds in an image
loop=$(losetup --noheadings --output NAME --associated img)
dmsetup create vg-lv --uuid LVM-abc --readonly --table "0 1024 linear $loop 0"
exits 5 "close, with a volume on the image's loop device" cowsetup close mine
says "^cowsetup: mine: not closed, since its loop device $loop is in use by others: part of /dev/mapper/vg-lv, which is active \\(to end that: vgchange --activate n vg\\)" \
	"says which, and what to do"
exits 5 "once more" cowsetup close mine
says 'vg-lv' "says the same"
dmsetup remove vg-lv
exits 0 "then it closes" cowsetup close mine
cowsetup open img mine.cow >/dev/null
dmsetup create vg-lv --uuid LVM-abc --readonly --table "0 1024 linear $loop 0"
exits 5 "close --force" cowsetup close --force mine
says "^cowsetup: /tmp/img: still attached to $loop, which is in use: part of /dev/mapper/vg-lv" "says what stays"
fails "the device is gone" dmsetup info mine
dmsetup remove vg-lv
is "$(losetup --noheadings --associated img)" '' "and then the loop device, by itself"

# --- locks --------------------------------------------------------------------------------------------------

chmod 644 img
holding O_RDONLY img lock
exits 5 "an image that a reader has locked" cowsetup open img mine.cow
says "^cowsetup: img: in use: process $holder \\(perl\\) has it locked" "and says who"
let_go
perl -e 'use Fcntl qw(:DEFAULT :flock); $) = $( = 1000; $> = $< = 1000; open my $f, "<", "img" or die "$!";
	flock $f, LOCK_EX or die "$!"; $SIG{ALRM} = "IGNORE"; open STDOUT, ">&", 1; print "\n"; sleep 1000' >locked &
holder=$!
settles 5 "a user has locked it" sh -c 'flock --nonblock --exclusive --conflict-exit-code 5 img true; echo $?'
exits 5 "an image that another user has locked" cowsetup open img mine.cow
says "^cowsetup: img: in use: process $holder \\(perl, user 1000\\) has it locked" "and says whose it is"
kill $holder
wait $holder 2>/dev/null
mkdir -m 777 home
anybody cp img home/img
anybody /usr/local/bin/cowsetup-asan format home/img home/c.cow
holding O_RDONLY home/c.cow lock
exits 5 "a user's cowfile that root has locked" anybody /usr/local/bin/cowsetup-asan format --force home/img home/c.cow
says "^cowsetup: home/c.cow: in use: process $holder \\(perl, user root\\) has it locked" "and the user is told"
let_go

# --- nodes --------------------------------------------------------------------------------------------------

free=$(losetup --find)
mv "$free" node
exits 4 "no node of a loop device" cowsetup open img mine.cow
says "^cowsetup: img: needs a loop device, and the kernel has ${free#/dev/loop} for it, but the node $free is missing: .*mknod $free b 7 ${free#/dev/loop};" \
	"says what is missing"
mv node "$free"
exits 0 "and with it" cowsetup open img mine.cow
cowsetup close mine

done_testing
