#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup on active devices: open, close, list, status, sync, readonly, detach, watch. What they make and what they
# leave behind, which should be nothing: every refusal and every interruption is followed by a look at the loop
# devices, the dm devices and the files.
#
# vm: --smp 2 --mem 1G --timeout 1800

# JSON is asked in Perl, whose variables are not the shell's
# shellcheck disable=SC2016 source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

# built with the compiler's checks
export ASAN_OPTIONS=detect_leaks=1:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
cowsetup() { /usr/local/bin/cowsetup-asan "$@"; }

# loops: the loop devices there are, and the files they are made of
loops() { losetup --list --noheadings --output NAME,BACK-FILE | sort; }

# clean NAME: passes when there is nothing but what was there to begin with
clean() {
	is "$(loops; dmsetup ls | grep -v '^No devices')" "$before" "leaves nothing behind: $1"
}
before=$(loops)
out='' # what exits() leaves

# refuses CODE REGEX NAME COMMAND...: exits with CODE, says REGEX, leaves nothing behind
refuses() {
	ref_code=$1 ref_regex=$2 ref_name=$3
	shift 3
	exits "$ref_code" "refuses $ref_name" "$@" && says "$ref_regex" "and says so: $ref_name" && clean "$ref_name"
}

# json KEY: its value in what was printed, if that is JSON
json() {
	printf '%s\n' "$out" | perl -e 'local $/; my $t = <STDIN>;
		my $v = qr/(?(DEFINE)(?<v>\s*(?:(?&o)|(?&a)|(?&s)|-?\d+(?:\.\d+)?|true|false|null)\s*)
			(?<s>"(?:[^"\\\x00-\x1f]|\\.)*")
			(?<o>\{(?:\s*|\s*(?&s)\s*:(?&v)(?:,\s*(?&s)\s*:(?&v))*)\})
			(?<a>\[(?:\s*|(?&v)(?:,(?&v))*)\]))/x;
		$t =~ /$v\A(?&v)\z/ or die "not JSON: $t\n";
		print $t =~ /"$ARGV[0]": (".*?"|[^\s,]+)/ ? $1 : "no $ARGV[0]", "\n"' "$1" 2>&1
}

# waits REGEX COMMAND...: until what it prints is like that
prints() { "$@" 2>&1 | grep -Eq -- "$wait_regex"; }
waits() {
	wait_regex=$1
	shift
	await prints "$@" && return 0
	diag "$* did not come to print $wait_regex"
	return 1
}

# write DEV OFFSET LENGTH STAMP: to the device, and to the file "want"
write() {
	for write_to in "$1" want; do
		cowtest io "$write_to" "$2" "$3" --write --stamp "$4" >/dev/null || ok 1 "write to $write_to"
	done
}

# anybody COMMAND...: not as root
anybody() { perl -e '$) = $( = 1000; $> = $< = 1000; exec @ARGV' "$@"; }

size=$((4883 * 1024 + 512)) # 9767 sectors: whole units of neither size
truncate -s $size golden.img
cowtest fill golden.img >/dev/null
sum=$(sha256sum golden.img)
cp golden.img want

# --- versions -----------------------------------------------------------------------------------------------

exits 0 "--version" cowsetup --version
says '^cowsetup [0-9.]+$' "says the tool's"
says "^target cowloop: $(dmsetup targets | sed -n 's/^cowloop *v//p')\$" "and the target's, as dmsetup does"
exits 0 "--version, as anybody" anybody cowsetup-asan --version
says '^target cowloop: loaded' "says that it is loaded"
rmmod dm-cowloop
exits 0 "--version without the module" cowsetup --version
is "$(echo "$out" | wc -l)" 1 "says no more than the tool's"
[ ! -e /sys/module/dm_cowloop ]
ok $? "and has not loaded it"
modprobe dm-cowloop

# --- open, close --------------------------------------------------------------------------------------------

exits 0 "open" cowsetup open golden.img mine.cow
is "$out" /dev/mapper/mine "prints the device, which has the cowfile's name"
is "$(blockdev --getsize64 /dev/mapper/mine)" $size "it is as large as the image"
runs "and has the image's contents" cmp golden.img /dev/mapper/mine
losetup --list --noheadings --raw --output AUTOCLEAR,RO,BACK-FILE | sort >got
is "$(cat got)" "1 0 /tmp/mine.cow
1 1 /tmp/golden.img" "the loop devices go by themselves, the image's is read-only"
is "$(stat -c %s mine.cow)" $((8192 + 1221 * 4096)) "the new cowfile has room for every unit"
[ "$(stat -c %b mine.cow)" -le 64 ]
ok $? "and takes no space"
like "$(dmsetup info -c --noheadings -o uuid mine)" '^COWLOOP-[0-9a-f]{32}-mine$' "the device has a UUID"
uuid=$(dmsetup info -c --noheadings -o uuid mine)
is "$(echo "$uuid" | cut -c 9-40)" "$(cowhead mine.cow uuid | tr -d -)" "with that of the cowfile in it"
write /dev/mapper/mine 8192 70144 1
runs "takes writes" cmp want /dev/mapper/mine
exits 0 "close" cowsetup close mine
is "$out" "" "says nothing"
clean "close"
[ ! -e /dev/mapper/mine ]
ok $? "the node is gone"
runs "the cowfile is in order" cowfile dump --rdo golden.img mine.cow
is "$(cowhead mine.cow dirty)" 0 "and clean"
exits 0 "open again, by another name" cowsetup open golden.img mine.cow other
is "$out" /dev/mapper/other "which is printed"
runs "and the changes are there" cmp want /dev/mapper/other
exits 0 "close by the path" cowsetup close /dev/mapper/other
is "$(sha256sum golden.img)" "$sum" "the image is what it was"
for name in one two three; do
	cowsetup open golden.img $name.cow >/dev/null
done
exec 4</dev/mapper/two
exits 4 "close several" cowsetup close one nix two /dev/mapper/three
is "$(echo "$out" | wc -l)" 2 "says what is wrong with each"
says 'nix: there is no device of this name' "with the first, whose exit status it is"
says 'two: in use: process' "and with the second"
is "$(dmsetup ls | cut -f 1)" two "the others are closed all the same"
exec 4<&-
exits 0 "close all there are" cowsetup close two
rm one.cow two.cow three.cow
clean "close several"

: >empty.cow
exits 0 "open an empty file" cowsetup open --label Test --rdo-spec /tmp/golden.img --mapunit 64K golden.img empty.cow
is "$(cowhead empty.cow label rdospec mapunit)" "Test /tmp/golden.img 65536" "with the options of a new cowfile"
cowsetup close empty
exits 0 "with the same options" cowsetup open --mapunit 64K golden.img empty.cow
cowsetup close empty
refuses 4 'has units of 64 KiB' "another unit" cowsetup open --mapunit 4K golden.img empty.cow
refuses 4 'a cowfile of format 2; --format 1 is for new' "another format" cowsetup open --format 1 golden.img empty.cow

# format 1 ends with its bitmap, and has no room for data
exits 0 "open, format 1" cowsetup open --format 1 golden.img one.cow
like "$out" '/dev/mapper/one$' "prints the device after a warning"
like "$(dmsetup info -c --noheadings -o uuid one)" '^COWLOOP-[0-9a-f]{32}-one$' "has a UUID, too"
is "$(blockdev --getsz /dev/mapper/one)" 9766 "in whole units"
cowsetup close one
is "$(cowhead one.cow format dirty cowused)" "1 0 0" "a cowfile of format 1"
truncate -s 2048 one.cow
exits 0 "open one that ends with its bitmap" cowsetup open golden.img one.cow
is "$(stat -c %s one.cow)" $((4096 + 4883 * 1024)) "it has become longer"
runs "takes writes up to the end" dd if=want of=/dev/mapper/one bs=1024 count=4883 status=none conv=fsync
cowsetup close one
runs "which are there" cowfile dump --rdo golden.img one.cow
is "$(cowhead one.cow cowused)" 4883 "all of them"

# --- names --------------------------------------------------------------------------------------------------

mkdir sub
truncate -s 3M 'sub/my image.cow'
cowsetup open golden.img mine.cow >/dev/null
exits 0 "a name that is taken" cowsetup open golden.img sub/mine.cow
is "$out" /dev/mapper/mine-2 "gets a number"
exits 0 "a name with a blank" cowsetup open golden.img 'sub/my image.cow'
is "$out" /dev/mapper/my_image "becomes one without"
exits 5 "refuses a name in use" cowsetup open golden.img new.cow mine
says 'there is a device of this name already' "and says so: name in use"
[ ! -e new.cow ]
ok $? "before it has made anything"
for name in a/b '' . .. control 'a b' "$(printf %0101d 0)"; do
	exits 1 "refuses the name '$name'" cowsetup open golden.img new.cow "$name"
done
# a node of this name would replace device-mapper's own, and that would be the last that is heard of it
for name in control . ..; do
	exits 0 "a cowfile called $name.cow" cowsetup open golden.img "sub/$name.cow"
	is "$out" "/dev/mapper/$name-2" "becomes a device called otherwise"
	cowsetup close "$name-2"
	rm -f "sub/$name.cow"
done
[ -c /dev/mapper/control ]
ok $? "device-mapper's node is what it was"

# --- list, status -------------------------------------------------------------------------------------------

# advice NAME: the commands that status gives, to be pasted
advice() { cowsetup status "$1" | sed -n 's/^What to do .*: //p'; }

long=/tmp/sub/an-image-that-has-a-longer-name-than-others.img
cp golden.img $long
cowsetup open $long sub/long.cow a-device-that-has-a-longer-name-than-others >/dev/null
exits 0 "list" cowsetup list
is "$(echo "$out" | wc -l)" 5 "a line for each, and the titles"
like "$(echo "$out" | head -n 1)" '^NAME +SIZE +USED +FREE +FULL% STATE MODE RDO +COW$' "the titles"
says '^mine +4\.8 MiB +72 KiB +[0-9.]+ [MG]iB +[0-9.]+% clean rw +/tmp/golden\.img +/tmp/mine\.cow$' "with all that counts"
is "$(echo "$out" | awk '!at { at = index($0, "COW") } { print substr($0, at - 1, 2) }' | sort | uniq -c | tr -s ' ')" \
	' 4 /
 1 C' "in columns as wide as what is in them"
cowsetup close a-device-that-has-a-longer-name-than-others
rm $long sub/long.cow
exits 0 "list --json" cowsetup list --json
is "$(json name)" '"mine"' "is JSON"
is "$(printf '%s\n' "$out" | grep -c '"name":')" 3 "with all three"
exits 0 "status" cowsetup status mine
says '^Modified +72 KiB, 1\.5% \(18 of 1221 units\)$' "in sizes for people"
says '^Cowfile +/tmp/mine.cow \(/dev/loop[0-9]+\)$' "with the file"
says '^Free for changes +[0-9.]+ MiB of [0-9.]+ MiB \(filesystem' "and what is free"
says '^Full +[0-9.]+%$' "and how full that is"
says "^UUID of the cowfile +$(cowhead mine.cow uuid)\$" "with the cowfile's own UUID"
says "^UUID of the device +COWLOOP-" "and the device's"
says '^Queues if no space +no$' "with the options: queue_if_no_space"
says '^Passes discards down +yes$' "with the options: no_discard_passdown"
is "$(echo "$out" | awk '!at { at = match($0, / [^ ]*$/) } substr($0, at, 2) !~ /^ [^ ]/')" '' "in two columns"
echo "$out" | grep -q '^What to do'
is $? 1 "there is nothing to do"
exits 0 "status --json" cowsetup status --json mine
is "$(json name) $(json mode) $(json state) $(json units_used) $(json units_total) $(json cow_file) $(json errors)" \
	'"mine" "rw" "clean" 18 1221 "/tmp/mine.cow" 0' "is JSON"
is "$(json device_bytes) $(json used_bytes) $(json unit_bytes)" "$size $((18 * 4096)) 4096" "with sizes in bytes"
is "$(json cow_uuid) $(json reserve_bytes) $(json queue_if_no_space) $(json discard_passdown) $(json advice)" \
	"\"$(cowhead mine.cow uuid)\" 0 false true null" "with the cowfile's UUID and the options"
is "$(json full_percent)" "$(perl -e 'printf "%.1f", 100 * $ARGV[0] / ($ARGV[0] + $ARGV[1])' $((18 * 4096)) "$(json free_bytes)")" \
	"and how much of what can be used is"
name=$(printf 'sub/na\357ve')
exits 0 "a name that is not UTF-8" cowsetup open golden.img "$name.cow"
is "$out" /dev/mapper/na_ve "becomes one that is"
exits 0 "status --json of it" cowsetup status --json na_ve
is "$(json cow_file)" '"/tmp/sub/na?ve.cow"' "is JSON, too"
for name in mine-2 my_image na_ve; do
	cowsetup close "$name" || diag "close $name failed"
done

# --- sync ---------------------------------------------------------------------------------------------------

write /dev/mapper/mine 499712 4096 2
sync /dev/mapper/mine
is "$(cowhead mine.cow dirty)" 1 "dirty after a write"
exits 0 "sync NAME" cowsetup sync mine
is "$(cowhead mine.cow dirty cowused)" "0 19" "clean after a sync"

truncate -s 16M bad.cow
badloop=$(loopdev bad.cow)
dmsetup create badcow --table "0 $(sectors "$badloop") linear $badloop 0"
cowsetup open golden.img /dev/mapper/badcow bad >/dev/null
cowtest io /dev/mapper/bad 0 4096 --write --stamp 3 >/dev/null || diag 'write bad failed'
sync /dev/mapper/bad
write /dev/mapper/mine 602112 4096 3
sync /dev/mapper/mine
dmsetup suspend badcow && dmsetup load badcow --table "0 $(sectors "$badloop") error" && dmsetup resume badcow
exits 4 "sync fails when one fails" cowsetup sync
says 'cowsetup: bad: cannot be synced' "says which"
is "$(cowhead mine.cow dirty cowused)" "0 20" "and the others are synced all the same"
exits 0 "status, mode fail" cowsetup status bad
says '^Mode +fail$' "shows the mode"
says '^What to do +the cow device has failed' "says what to do"
is "$(advice bad)" \
	"cowsetup close --force bad && cowsetup check /dev/mapper/badcow && cowsetup open /tmp/golden.img /dev/mapper/badcow bad" \
	"in commands"
exits 4 "watch has nothing to wait for" cowsetup watch bad
says 'mode fail' "and says so: watch, fail"
exits 4 "sync of several" cowsetup sync nix mine
says 'nix: there is no device of this name' "goes on after the first"
exits 4 "is not closed, since it cannot be synced" cowsetup close bad
says 'bad: not closed, since it cannot be synced, as its cow device has failed: .* would be lost.*close --force' \
	"says what would be lost, and what to do"
like "$(cowsetup list)" '^bad .* fail +.* /dev/mapper/badcow$' "it is there still, with a device known by its name"
exits 0 "unless forced" cowsetup close --force bad
says 'bad: closed without being synced .*may be lost' "which has a warning"
fails "then it is gone" dmsetup info bad
# the failure is noticed by the sync that closing it takes
dmsetup suspend badcow && dmsetup load badcow --table "0 $(sectors "$badloop") linear $badloop 0" && dmsetup resume badcow
cowsetup open golden.img /dev/mapper/badcow bad >/dev/null
cowtest io /dev/mapper/bad 8192 4096 --write --stamp 3 >/dev/null || diag 'write bad failed'
dmsetup suspend badcow && dmsetup load badcow --table "0 $(sectors "$badloop") error" && dmsetup resume badcow
exits 4 "what fails when it is closed stays, too" cowsetup close bad
says 'bad: not closed, since it cannot be synced' "and says so: close"
cowsetup close -f bad
dmsetup remove badcow
losetup --detach "$badloop"

# --- busy ---------------------------------------------------------------------------------------------------

exits 5 "refuses the cowfile of another" cowsetup open golden.img mine.cow twice
says 'mine\.cow: in use: it is the cowfile of /dev/mapper/mine' "and says whose it is"
exits 5 "refuses it as the image, too" cowsetup open mine.cow twice.cow
says 'mine\.cow: in use: it is the cowfile of /dev/mapper/mine' "and says whose it is: as the image"
exits 5 "refuses the image as a cowfile" cowsetup open want golden.img
says 'golden\.img: in use: it is the read-only device of /dev/mapper/mine' "and says whose it is: image"
exits 5 "format refuses the cowfile" cowsetup format --force golden.img mine.cow
ln mine.cow link.cow
exits 5 "refuses it by another name" cowsetup open golden.img link.cow
rm link.cow

exec 4</dev/mapper/mine
exits 5 "refuses to close what a process has open" cowsetup close mine
says 'mine: in use: process [0-9]+ \(.*\) has it open' "and says which"
exits 0 "unless deferred" cowsetup close --deferred mine
like "$(cowsetup status mine)" '^Closes when unused +yes$' "status shows that"
exec 4<&-
waits '^No devices' dmsetup ls
clean "a deferred close"

truncate -s 32M fs.img
mkfs.ext4 -q -F fs.img
cowsetup open fs.img fs.cow >/dev/null
mount /dev/mapper/fs /mnt
exits 5 "refuses to close what is mounted" cowsetup close fs
says 'fs: in use: mounted on /mnt' "and says where"
umount /mnt
dmsetup create above --table '0 8 linear /dev/mapper/fs 0'
exits 5 "refuses to close what is below another device" cowsetup close fs
says 'fs: in use: part of /dev/mapper/above' "and says which: below"
exits 4 "a device that is not a cowloop device" cowsetup status above
says 'not a cowloop device' "and says so: not a cowloop device"
dmsetup remove above
exits 0 "then it closes" cowsetup close fs
exits 4 "once" cowsetup close fs
says 'fs: there is no device of this name' "and says so: no such device"
clean "busy devices"

# whoever mounts something chooses the text that says what: it names no device, and may be longer than any path
mkdir liar
cowsetup open fs.img fs.cow >/dev/null
mount -t tmpfs /dev/mapper/fs liar
exits 0 "detach, and another filesystem says that it is on the device" cowsetup detach fs
is "$(echo "$out" | grep -c 'mounted on')" 0 "does not believe it"
exec 4</dev/mapper/fs
exits 5 "close, while a process has it open" cowsetup close fs
says 'fs: in use: process [0-9]+ \(.*\) has it open' "does not believe it either"
exec 4<&-
exits 0 "and closes it" cowsetup close fs
umount liar
mount -t tmpfs "$(perl -e 'print "a" x 4093, " "')" liar
cowsetup open fs.img fs.cow >/dev/null
exits 0 "detach, and a mount that is too long to be one of a device" cowsetup detach fs
is "$(echo "$out" | grep -c 'mounted on')" 0 "says nothing of it"
exits 0 "nor does close" cowsetup close fs
umount liar

# a btrfs has a number of its own, and shows one of its devices
truncate -s 120M btrfs1.img btrfs2.img
mkfs.btrfs -q -d single -m single btrfs1.img btrfs2.img >/dev/null
for n in 1 2; do
	cowsetup open btrfs$n.img btrfs$n.cow >/dev/null
done
mount -o device=/dev/mapper/btrfs2 /dev/mapper/btrfs1 /mnt
for n in 1 2; do
	exits 5 "refuses to close what is mounted, btrfs, $n of 2" cowsetup close btrfs$n
	says "btrfs$n: in use: mounted on /mnt" "and says where, btrfs, $n of 2"
done
umount /mnt
exits 0 "then they close" cowsetup close btrfs1 btrfs2
rm btrfs*
clean "mounts"

# --- block devices ------------------------------------------------------------------------------------------

rdo=$(loopdev golden.img -r)
truncate -s 6M dev.cow
cow=$(loopdev dev.cow)
exits 0 "open devices" cowsetup open "$rdo" "$cow" dev
like "$(dmsetup table dev)" "^0 9767 cowloop 7:${rdo#/dev/loop} 7:${cow#/dev/loop}\$" "uses them as they are"
exits 5 "refuses a cow device in use" cowsetup open "$rdo" "$cow" dev2
says "$cow: in use: it is the cowfile of /dev/mapper/dev" "and says whose it is: device"
exits 0 "another over the same device" cowsetup open "$rdo" share.cow
cowsetup close share
cowsetup close dev
is "$(loops | grep -c "^\($rdo\|$cow\) ")" 2 "they stay when it is closed"
exits 0 "open a device for reading" cowsetup open --read-only "$rdo" "$cow" dev
cowsetup close dev
mkfs.ext4 -q -F "$cow"
exits 4 "refuses a cow device with a filesystem" cowsetup open "$rdo" "$cow" dev
says 'not a cowfile: found a filesystem or the like \(ext4\)' "and says which: filesystem"
mount -o ro "$cow" /mnt
exits 5 "refuses a device that is mounted" cowsetup open "$cow" new.cow dev
says 'in use: mounted on /mnt' "and says where: image"
[ ! -e new.cow ]
ok $? "what was missing is missing"
: >blank.cow
exits 5 "the same, with a file that is blank" cowsetup open "$cow" blank.cow dev
is "$(stat -c %s blank.cow)" 0 "what was blank is blank"
umount /mnt
losetup --detach "$rdo" "$cow"
clean "block devices"

# --- read-only ----------------------------------------------------------------------------------------------

truncate -s 320M xfs.img
mkfs.xfs -q xfs.img
cowsetup open xfs.img xfs.cow >/dev/null
mount /dev/mapper/xfs /mnt && echo hello >/mnt/file && umount /mnt
cowsetup close xfs
xfs=$(sha256sum xfs.cow)
exits 0 "open --read-only" cowsetup open --read-only xfs.img xfs.cow
is "$(blockdev --getro /dev/mapper/xfs)" 1 "the device is read-only"
is "$(losetup --list --noheadings --raw --output RO | sort -u)" 1 "the loop devices are, too"
runs "xfs can be mounted" mount -o ro /dev/mapper/xfs /mnt
is "$(cat /mnt/file)" hello "and has what was written"
umount /mnt
like "$(cowsetup status xfs)" '^Mode +ro$' "mode ro"
cowsetup close xfs
is "$(sha256sum xfs.cow)" "$xfs" "nothing was written to the cowfile"
refuses 4 'with --read-only none is made' "to make a cowfile for reading only" cowsetup open --read-only xfs.img new.cow
[ ! -e new.cow ]
ok $? "there is none"
: >blank.cow
refuses 4 'with --read-only no cowfile is made of it' "a blank one" cowsetup open --read-only xfs.img blank.cow
is "$(stat -c %s blank.cow)" 0 "it is as it was: blank"
truncate -s 2048 one.cow
rm -f xfs.*

# --- what it refuses ----------------------------------------------------------------------------------------

refuses 2 'Only root' "anybody but root" anybody /usr/local/bin/cowsetup-asan open golden.img new.cow
refuses 1 'requires <rdo> <cow> \[<name>\]' "one argument" cowsetup open golden.img
refuses 1 'not allowed with action open' "an option of others" cowsetup open --gone golden.img new.cow
refuses 1 '--limit much: it must be a size' "a limit that is no size" cowsetup open --limit much golden.img new.cow
refuses 4 'nix: No such file' "an image that is missing" cowsetup open nix new.cow
refuses 4 'nix/new.cow: cannot be created: No such file' "a directory that is missing" cowsetup open golden.img nix/new.cow
refuses 4 'sub: neither a file nor a block device' "a directory" cowsetup open golden.img sub
refuses 4 'golden.img: cannot be the read-only device and the cowfile|same time' "one file as both" \
	cowsetup open golden.img golden.img
refuses 4 'mine.cow: this is a cowfile; the read-only device comes first' "the wrong order" \
	cowsetup open mine.cow golden.img
head -c 1M golden.img >short.img
tr '\0' '\1' <golden.img >other.img
refuses 4 'belongs to a read-only device of 9767 sectors, and short.img has 2048' "an image of another size" \
	cowsetup open short.img mine.cow
refuses 4 'belongs to another read-only device, or other.img has changed: the cowfile was made for fingerprint 0x[0-9a-f]{16}, and other.img has 0x' "another image" cowsetup open other.img mine.cow
echo hello >text.cow
refuses 4 'shorter than a head' "a cowfile that is something else" cowsetup open golden.img text.cow
is "$(cat text.cow)" hello "it is as it was: something else"
[ ! -e new.cow ]
ok $? "none of these has made a cowfile"

cowfile make --rdo golden.img --cow dirty.cow --format 1 --dirty --units 5-9
cp dirty.cow keep
refuses 4 'dirty: it was in use in a crash; --repair opens it' "a dirty one of format 1" cowsetup open golden.img dirty.cow
runs "it is as it was: dirty" cmp keep dirty.cow
refuses 4 'cannot be repaired with --read-only' "to repair it for reading only" \
	cowsetup open --repair --read-only golden.img dirty.cow
refuses 4 'belongs to another read-only device' "to repair it for another image" \
	cowsetup open --repair other.img dirty.cow
runs "it is as it was: not repaired" cmp keep dirty.cow
is "$(cowsetup open --repair golden.img dirty.cow 2>said)" /dev/mapper/dirty "but it opens with --repair"
like "$(cat said)" 'dirty.cow: mended: dirty: 0 units with data that the bitmap did not have' "says on stderr what it did"
like "$(dmsetup table dirty)" '^0 9766 cowloop 7:[0-9]+ 7:[0-9]+$' "and the kernel has nothing to repair"
cowsetup close dirty
is "$(cowhead dirty.cow dirty cowused)" "0 5" "it is clean then"

# what only the kernel finds: the count is not what the bitmap has
cowfile make --rdo golden.img --cow count.cow --format 1 --units 5-9
perl -e 'open my $f, "+<", "count.cow" or die; seek $f, 48, 0; print $f pack("Q<", 7)'
truncate -s 14336 count.cow
cp count.cow keep
refuses 4 'the kernel refuses it: .*found .*7.*expected 5|found cowused 7, expected 5' "what the kernel refuses" \
	cowsetup open golden.img count.cow
runs "it is as it was, and no longer" cmp keep count.cow

# the reason is that device's, whatever the log has about others meanwhile
cowfile make --rdo golden.img --cow chatty.cow
cowsetup open golden.img chatty.cow >/dev/null
chatty=$(dmsetup info -c --noheadings -o major,minor --separator : chatty)
for n in 1 2; do
	while [ ! -e enough ]; do dmsetup message chatty 0 nonsense 2>/dev/null; done &
done
waits 'unrecognised message' dmesg
for round in 1 2 3 4 5; do
	exits 4 "refused by the kernel while another device is in the log, $round" cowsetup open golden.img count.cow
	says 'the kernel refuses it: .*found .*7.*expected 5|found cowused 7, expected 5' "says why, $round"
done
dmesg | tail -n 20 | grep -q "cowloop: $chatty: unrecognised"
ok $? "the log is full of the other"
: >enough
wait
rm enough
cowsetup close chatty
for format in 1 2; do
	cowfile make --rdo golden.img --cow cut.cow --format $format --units 5-9,500
	truncate -s 40000 cut.cow
	cp cut.cow keep
	refuses 4 'cut.cow: ends at 40000, but should have data up to [0-9]+: .*check and cowsetup repair' \
		"a cowfile that was cut off, format $format" cowsetup open golden.img cut.cow
	cmp keep cut.cow && [ "$(stat -c %s cut.cow)" -eq 40000 ]
	ok $? "it is as it was, format $format"
	cowsetup repair --force cut.cow >/dev/null
	exits 0 "repaired it opens, format $format" cowsetup open golden.img cut.cow cut
	cowsetup close cut
done
truncate -s 1M behind.cow
printf x | dd of=behind.cow bs=1 seek=500000 conv=notrunc status=none
cp behind.cow keep
refuses 5 'holds data from 500000 on; cowsetup format --force golden.img behind.cow overwrites it' \
	"a file with data behind zeroes" cowsetup open golden.img behind.cow
runs "it is as it was: behind" cmp behind.cow keep

ko=$(modinfo --field filename dm-cowloop)
rmmod dm_cowloop
mv "$ko" hidden.ko
refuses 4 'has no target "cowloop": modprobe dm-cowloop' "to do without the module" cowsetup open golden.img new.cow
exits 4 "list without the module" cowsetup list
mv hidden.ko "$ko"
exits 0 "loads the module" cowsetup list
is "$out" "" "and lists nothing"

mkdir full
mount -t tmpfs -o size=64k full full
head -c 1M /dev/zero >full/fill 2>/dev/null
refuses 4 'full/new.cow: .*No space left' "a full disk" cowsetup open golden.img full/new.cow
[ ! -e full/new.cow ]
ok $? "there is no cowfile: full disk"
umount full

# --- several at a time --------------------------------------------------------------------------------------

# whoever loses must not take back what the winner uses, nor keep it from winning; others keep the CPUs busy
busy() { while :; do :; done; }
busy &
busy=$!
busy &
busy="$busy $!"
for round in 1 2 3 4 5 6 7 8; do
	racers=''
	for n in 1 2 3; do
		/usr/local/bin/cowsetup open golden.img race.cow "race$n" >"said$n" 2>&1 &
		racers="$racers $!"
	done
	# shellcheck disable=SC2086 # several words
	wait $racers
	is "$(cat said[123] | grep -c '^/dev/mapper/')" 1 "one of three opens it, round $round"
	winner=$(sed -n 's,^/dev/mapper/,,p' said[123])
	runs "and has it, round $round" cmp golden.img "/dev/mapper/$winner"
	exits 0 "and closes it, round $round" cowsetup close "$winner"
	runs "it is in order, round $round" cowfile dump --rdo golden.img race.cow
	clean "round $round"
	rm -f race.cow
done
# shellcheck disable=SC2086 # several words
kill $busy

# --- interrupted --------------------------------------------------------------------------------------------

# every read of the image takes a while, so that it can be interrupted anywhere
rdo=$(loopdev golden.img -r)
dmsetup create slow --readonly --table "0 9767 delay $rdo 0 10"
before=$(loops; dmsetup ls)
opened=0 stopped=0 signal=''
for delay in 0.2 0.5 0.8 1.2 1.6 2 2.4 2.8 3.2 3.6 4 never; do
	/usr/local/bin/cowsetup open /dev/mapper/slow slow.cow t >/dev/null 2>&1 &
	waits '[2367abef]$' grep SigCgt /proc/$!/status # it listens
	[ "$signal" = INT ] && signal=TERM || signal=INT
	[ $delay = never ] || { sleep $delay; kill -$signal $! 2>/dev/null; }
	wait $!
	code=$?
	case $code in
	0) opened=$((opened + 1)); cowsetup close t; rm slow.cow ;;
	1) stopped=$((stopped + 1)) ;;
	*) ok 1 "interrupted after $delay s: exit status $code" ;;
	esac
	[ ! -e slow.cow ] || ok 1 "no cowfile, interrupted after $delay s"
	clean "SIG$signal after $delay s, status $code"
done
diag "$stopped interrupted, $opened opened"
[ $stopped -gt 3 ] && [ $opened -gt 0 ]
ok $? "some were interrupted, and some not"

# interrupted as the device is made, which somebody opens at once: it stays, or all of it goes
held=0
for round in 1 2 3 4 5; do
	perl -e 'for (1 .. 200000) { exit !sleep 60 if open F, "<", "/dev/mapper/t"; select undef, undef, undef, 0.001 }' &
	holder=$!
	/usr/local/bin/cowsetup open /dev/mapper/slow slow.cow t >said 2>&1 &
	opener=$!
	waits t dmsetup ls
	kill -INT $opener 2>/dev/null
	wait $opener
	code=$?
	if [ $code -eq 5 ]; then
		held=$((held + 1))
		grep -q 't: interrupted, but in use by then' said && [ -e slow.cow ] && cmp golden.img /dev/mapper/t
		ok $? "held and interrupted, round $round: it is there, and its cowfile" || cat said
	elif [ $code -eq 1 ]; then
		[ ! -e slow.cow ]
		ok $? "interrupted, round $round: there is no cowfile"
	fi
	kill $holder
	wait $holder
	[ ! -e slow.cow ] || cowsetup close t
	rm -f slow.cow
	clean "interrupted and held, round $round, status $code"
done
diag "$held of 5 were held"

# a repair that takes half a minute can be interrupted, too, and says what it has changed by then; most of the bits are
# missing here, and most data is zeroes, which is what the bits that are there must not be lost for
truncate -s 64M long.img
cowfile make --rdo long.img --cow long.cow --format 1 --dirty --units 0-99 --hidden-units 8192-8999,30000-30009,65535
cp long.cow keep
cow=$(loopdev long.cow)
dmsetup create slowcow --table "0 $(sectors "$cow") delay $cow 0 50"
for signal in INT TERM; do
	/usr/local/bin/cowsetup-asan open --repair --progress-frequency 1 long.img /dev/mapper/slowcow long >out 2>said &
	opener=$!
	waits '( 1[2-9]|[2-6][0-9])[.0-9]* MiB read' cat said
	kill -$signal $opener
	wait $opener
	is $? 1 "SIG$signal ends a repair"
	is "$(grep -c '^Finished' said)" 0 "before it has come to its end"
	like "$(cat said)" 'slowcow: interrupted' "says so: SIG$signal"
	[ $signal = TERM ] ||
		like "$(cat said)" 'still dirty, and as it was, but for [0-9]+ units with data that have been added' "says what has changed"
	is "$(grep -c 'everything is as it was' said)" 0 "and nothing that is not so"
	is "$(dmsetup ls | grep -c '^long')" 0 "there is no device: SIG$signal"
	like "$(cat said)" '^Progress: .* read, speed' "it was seen how far it had got"
	is "$(cat out)" "" "on stderr: stdout is for the device's path"
	sync "$cow"
	is "$(cowhead long.cow dirty)" 1 "it is still dirty"
done
dmsetup remove slowcow
exits 0 "and can be repaired to the end" cowsetup open --repair long.img "$cow" long
says 'mended: dirty: [0-9]+ units? with data' "says the rest"
cowsetup close long
sync "$cow"
is "$(cowhead long.cow units dirty cowused)" "0-99,8192-8999,30000-30009,65535 0 919" "all units are there"
losetup --detach "$cow"
# a device of zeroes is read from end to end for a fingerprint of format 1
zeroes=$(loopdev long.img -r)
dmsetup create slowrdo --readonly --table "0 131072 delay $zeroes 0 20"
exits 0 "format 1 for a device of zeroes" cowsetup format --format 1 --progress-frequency 1 /dev/mapper/slowrdo zero.cow
says '^Progress: .* of fingerprint read, speed' "shows how far it has got"
dmsetup remove slowrdo
losetup --detach "$zeroes"
rm -f long.img long.cow zero.cow keep

# killed, it can't clean up; but it is said what is there, and what to do
half=0
for round in 1 2 3 4 5; do
	/usr/local/bin/cowsetup open /dev/mapper/slow slow.cow t >/dev/null 2>&1 &
	opener=$!
	until dmsetup ls | grep -q '^t'; do :; done
	kill -KILL $opener
	wait $opener
	exits 5 "open again after SIGKILL, round $round" cowsetup open golden.img other.cow t
	if echo "$out" | grep -q 'without a table, .* dmsetup remove t removes it'; then
		half=$((half + 1))
		exits 4 "it can't be closed, round $round" cowsetup close t
		says 'this device has no table.*dmsetup remove t removes it' "and it is said, too, what to do"
		runs "which does it, round $round" dmsetup remove t
	else
		says 'cowsetup close t first' "says how to close it, round $round"
		exits 0 "which does it, round $round" cowsetup close t
	fi
	waits '^$' sh -c 'losetup --list --noheadings | grep slow.cow; echo'
	rm -f slow.cow
	clean "killed, round $round"
done
diag "$half of 5 were killed half way"

# the same, for certain: with a table that is loaded and not in use
dmsetup create t --notable
exits 5 "a device without a table" cowsetup open golden.img other.cow t
says 'without a table.* dmsetup remove t removes it' "and it is said what to do: no table"
[ ! -e other.cow ]
ok $? "before anything is made"
cowfile make --rdo golden.img --cow half.cow
cow=$(loopdev half.cow)
dmsetup load t --table "0 9767 cowloop $rdo $cow"
exits 5 "its cowfile" cowsetup open golden.img half.cow
says "half.cow: in use: attached to $cow, which is part of /dev/mapper/t" "and it is said whose it is: no table"
runs "what was said" dmsetup remove t
losetup --detach "$cow"
clean "a device without a table"
dmsetup remove slow
losetup --detach "$rdo"
before=$(loops)

# --- udev ---------------------------------------------------------------------------------------------------

# for the library it runs; but it is stopped, or sees other semaphores
mkdir -p /run/udev
: >/run/udev/control
unset DM_DISABLE_UDEV
cookies() { dmsetup udevcookies | grep -o '0x[0-9a-f]*'; }

(until cookies >cookie; do sleep 0.1; done; dmsetup udevcomplete "$(cat cookie)" >/dev/null) &
exits 0 "open, and udev answers" cowsetup open golden.img udev.cow
is "$out" /dev/mapper/udev "has nothing to complain of"
is "$(cookies)" '' "no cookie is left"
wait
exits 0 "close, and udev never answers" timeout 600 cowsetup-asan close udev
says 'udev: waiting for udev, which has not answered so far; \^C ends that' "says what it waits for"
says 'udev: udev does not answer, and is not waited for any more' "and that it goes on without it"
is "$(cookies)" '' "no cookie is left: close"
[ ! -e /dev/mapper/udev ]
ok $? "the node is gone all the same"
clean "udev does not answer"
exits 0 "open, and udev never answers" timeout 600 cowsetup-asan open golden.img udev.cow
says '^/dev/mapper/udev$' "makes the device"
runs "which is there" cmp golden.img /dev/mapper/udev
is "$(cookies)" '' "no cookie is left: open"
/usr/local/bin/cowsetup-asan close udev >said 2>&1 &
waits 0x cookies
kill -TERM $!
wait $!
is $? 0 "close, interrupted when the device has gone"
like "$(cat said)" 'udev: udev does not answer' "does not wait"
is "$(cookies)" '' "no cookie is left: close, interrupted"
[ ! -e /dev/mapper/udev ]
ok $? "nor the node"
rm udev.cow
/usr/local/bin/cowsetup-asan open golden.img udev.cow >said 2>&1 &
waits '[2367abef]$' grep SigCgt /proc/$!/status
waits 0x cookies
kill -INT $!
wait $!
is $? 1 "open, interrupted while it waits for udev"
like "$(cat said)" 'Interrupted; everything is as it was' "says so: udev"
[ ! -e udev.cow ] && [ ! -e /dev/mapper/udev ]
ok $? "neither cowfile nor device is left"
is "$(cookies)" '' "no cookie is left: open, interrupted"
clean "interrupted while it waits for udev"
rm -r /run/udev
export DM_DISABLE_UDEV=1

# --- readonly, detach ---------------------------------------------------------------------------------------

truncate -s 64M disk.img
mkfs.ext4 -q -F disk.img
mkdir disk
disk=$(loopdev disk.img)
mount "$disk" disk
before=$(loops)

cp golden.img want
cowsetup open golden.img disk/a.cow >/dev/null
is "$(losetup --list --noheadings --raw --output DIO,BACK-FILE | grep a.cow)" "1 /tmp/disk/a.cow" "direct I/O where it can be"
write /dev/mapper/a 102400 299008 4
fails "what holds the cowfile cannot be remounted read-only" mount -o remount,ro disk
chmod 666 disk/a.cow
exits 5 "anybody sees that it is in use" anybody cowsetup repair disk/a.cow
exits 0 "readonly" cowsetup readonly a
exits 5 "anybody still sees that" anybody cowsetup repair disk/a.cow
says 'a.cow: in use: attached to /dev/loop[0-9]+, which is part of /dev/mapper/a' "and by whom"
chmod go-w disk/a.cow
fails "and cannot have the lock" perl -e 'open my $f, "+<", "disk/a.cow" or exit; exit !flock $f, 6'
runs "then it can" mount -o remount,ro disk
runs "the device is there, with its changes" cmp want /dev/mapper/a
fails "and takes no writes" dd if=/dev/zero of=/dev/mapper/a bs=4096 count=1 oflag=direct conv=notrunc
exits 0 "status, mode ro" cowsetup status --json a
is "$(json mode) $(json state) $(json cow_file) $(json read_only)" '"ro" "clean" "/tmp/disk/a.cow" true' "shows it"
exits 0 "readonly once more" cowsetup readonly a
exits 4 "watch has nothing to wait for: ro" cowsetup watch a
cowsetup close a
clean "readonly"
runs "the cowfile is in order: readonly" cowfile dump --rdo golden.img disk/a.cow
is "$(cowhead disk/a.cow dirty)" 0 "and clean: readonly"
mount -o remount,rw disk
exits 0 "it can be opened again" cowsetup open golden.img disk/a.cow
runs "and has its changes" cmp want /dev/mapper/a
cowsetup close a

# the mount that it was opened by is none any more, as one from the initramfs may be
mkdir 'now here'
mount --bind disk 'now here'
cowsetup open golden.img disk/a.cow >/dev/null
umount -l disk
like "$(losetup --list --noheadings --raw --output BACK-FILE)" '^/a\.cow$' "the kernel has but a part of the path"
exits 0 "status, with another mount" cowsetup status --json a
is "$(json cow_file)" '"/tmp/now here/a.cow"' "has the path that there is now"
exits 5 "it is in use by any" cowsetup open golden.img 'now here/a.cow' again
exits 0 "readonly, with another mount" cowsetup readonly a
runs "and the filesystem can be remounted" mount -o remount,ro 'now here'
mount -o remount,rw 'now here'
eval "$(advice a)" >/dev/null
is "$(cowstat a mode) $(loops | sed -n 's/.* \(\/.*a.cow\)$/\1/p')" "rw /tmp/now here/a.cow" "status says how it is writable again"
cowsetup close a
mount --bind 'now here' disk
umount 'now here'
rmdir 'now here'
clean "another mount"

# mounted: what the filesystem has not written yet is not lost
cowsetup open fs.img disk/m.cow >/dev/null
mount /dev/mapper/m /mnt
echo kept >/mnt/file
exits 0 "readonly, mounted" cowsetup readonly m
says 'mounted on /mnt for writing: what is written there from now on is lost' "warns of it"
umount /mnt
cowsetup close m
cowsetup open fs.img disk/m.cow >/dev/null
runs "mount it again" mount /dev/mapper/m /mnt
is "$(cat /mnt/file)" kept "what was written before is there"
umount /mnt
cowsetup close m

# mounted twice, and first to be read only
cowsetup open fs.img disk/m.cow >/dev/null
mkdir 'once more'
mount /dev/mapper/m /mnt
mount --bind /mnt 'once more'
mount -o remount,bind,ro /mnt
exits 0 "readonly, mounted for reading and for writing" cowsetup readonly m
says 'mounted on /tmp/once more for writing' "warns of what is for writing"
is "$(echo "$out" | grep 'cannot be')" '' "which is synced, whatever its name"
umount 'once more' /mnt
cowsetup close m

# mounted, and its cowfile gone
cowsetup open fs.img disk/m.cow >/dev/null
mount -o ro /dev/mapper/m /mnt
exits 0 "detach, mounted for reading" cowsetup detach m
says 'm: mounted on /mnt: what has been modified cannot be read there from now on' "warns of it: detach"
is "$(echo "$out" | grep -c 'for writing')" 0 "and of nothing else"
umount /mnt
cowsetup close m

# mounted in a namespace of its own, as in a container: nobody sees that here, and nothing of it is lost
mkfifo go
cowsetup_mounted() { # COMMAND...: while /dev/mapper/m is mounted there, with a file that has not been written out
	rm -f mounted
	unshare --mount sh -c 'mount /dev/mapper/m /mnt && echo kept >/mnt/file && : >mounted; read -r _ <go; umount /mnt' &
	waits . ls mounted
	rm -f disk/out
	"$@"
	echo >go
	wait $!
}
inside() {
	is "$(grep -c ' /mnt ' /proc/self/mountinfo)" 0 "$1: not mounted here"
	exits 5 "$1: close, mounted in another namespace" cowsetup close m
	says 'm: in use: .*mounted on /mnt in the mount namespace of process [0-9]+ \(sh\)' "$1: says where"
	exits 0 "$1, mounted in another namespace" cowsetup "$1" m
	says 'm: mounted on /mnt in the mount namespace of process [0-9]+ \(sh\) for writing: .* from now on is lost' \
		"$1: warns of it"
}
for command in readonly detach; do
	rm -f disk/m.cow
	cowsetup open fs.img disk/m.cow >/dev/null
	cowsetup_mounted inside $command
	cowsetup close m
	cowsetup open fs.img disk/m.cow >/dev/null
	runs "$command: mount it again" mount /dev/mapper/m /mnt
	is "$(cat /mnt/file)" kept "$command: what was written in the other namespace is there"
	umount /mnt
	cowsetup close m
done

# and on a device that is made of it, at any depth
rm disk/m.cow
cowsetup open fs.img disk/m.cow >/dev/null
above=$(loopdev /dev/mapper/m)
dmsetup create above --table "0 $(sectors "$above") linear $above 0"
mount /dev/mapper/above /mnt
echo kept >/mnt/file
exits 0 "detach, with devices above it" cowsetup detach m
umount /mnt
dmsetup remove above
losetup --detach "$above"
cowsetup close m
cowsetup open fs.img disk/m.cow >/dev/null
runs "mount it once more" mount /dev/mapper/m /mnt
is "$(cat /mnt/file)" kept "what was written above is there"
umount /mnt
cowsetup close m
clean "mounted elsewhere"

# removed while in use: the file lives as long as the device does
# the commands that it prints to keep what is there, but for the one that closes it; other names are put in by sed
copies() { echo "$out" | sed -n "s/.*To keep it[^:]*: \(.*\) && cowsetup close --force.*/\1/p" | sed "$1"; }
cp golden.img want
cowsetup open golden.img disk/r.cow >/dev/null
rm disk/r.cow
exits 0 "close, its cowfile removed, and nothing written" cowsetup close r
cowsetup open golden.img disk/r.cow >/dev/null
write /dev/mapper/r 102400 299008 6
rm disk/r.cow
removed='its cowfile was removed while in use: all that was modified is lost when it is closed\. To keep it'
exits 0 "list, the cowfile removed" cowsetup list
says "^cowsetup: Warning: r: $removed" "warns of it: list"
exits 0 "status, the cowfile removed" cowsetup status r
says "^cowsetup: Warning: r: $removed" "warns of it: status"
exits 0 "status --json, the cowfile removed" cowsetup status --json r
is "$(json cow_file_removed) $(json rdo_file_removed)" 'true false' "says so: JSON"
exits 4 "detach, the cowfile removed" cowsetup detach r
says "r: not detached: $removed" "says why: detach"
exits 4 "close, the cowfile removed" cowsetup close r
says "r: not closed: $removed" "says why: close"
keep=$(copies 's,NEW.cow,disk/new.cow,')
like "$keep" '^dmsetup message r 0 read_only && dd ' "and how to keep it"
runs "which works" sh -c "$keep"
exits 0 "close it by force then" cowsetup close --force r
is "$(cowhead disk/new.cow dirty)" 0 "the copy is clean"
cowsetup open golden.img disk/new.cow >/dev/null
runs "the copy has it all" cmp want /dev/mapper/new
cowsetup close new
runs "and is in order" cowfile dump --rdo golden.img disk/new.cow
rm disk/new.cow
cp golden.img disk/gone.img
cowsetup open disk/gone.img disk/r.cow >/dev/null
rm disk/gone.img
exits 4 "close, the image removed" cowsetup close r
says 'r: not closed: the file of its read-only device was removed' "says why: the image"
runs "and how to keep that" sh -c "$(copies 's,NEW ,disk/new.img ,')"
runs "it is what it was" cmp golden.img disk/new.img
exits 0 "close that by force, too" cowsetup close --force r
rm disk/new.img disk/r.cow
clean "removed files"

# cut off while in use: what was there is lost, but nobody finds that out later, or never
truncate -s 8M disk/cut.img
exits 0 "open, to be cut off" cowsetup open disk/cut.img disk/cut.cow
says '^/dev/mapper/cut$' "and says nothing"
exits 0 "list, nothing cut off" cowsetup list
is "$(echo "$out" | grep -c Warning)" 0 "warns of nothing"
dd if=/dev/urandom of=/dev/mapper/cut bs=1M count=4 oflag=direct 2>/dev/null
truncate -s 1M disk/cut.cow
truncate -s 6M disk/cut.img
exits 0 "list, cut off" cowsetup list
says 'Warning: cut: its cowfile, /tmp/disk/cut.cow, was cut off while in use: its last .* are lost' "warns of it: list"
says 'Warning: cut: its image, /tmp/disk/cut.img, was cut off while in use: its last 2 MiB are lost' "and of the image"
exits 0 "status, cut off" cowsetup status cut
says 'Warning: cut: its cowfile, /tmp/disk/cut.cow, was cut off' "warns of it: status"
exits 0 "close, cut off" cowsetup close cut
says 'Warning: cut: its cowfile, /tmp/disk/cut.cow, was cut off' "warns of it: close"
rm disk/cut.img disk/cut.cow
clean "cut off"

# an attribute that keeps root out
chattr +i disk/m.cow
refuses 2 'disk/m.cow: cannot be written: it has the attribute immutable or append-only' "immutable" \
	cowsetup open fs.img disk/m.cow
chattr -i disk/m.cow

# nothing to look for devices in
exits 4 "without /proc" unshare -m sh -c 'umount -l /proc; cowsetup list'
says 'Devices cannot be looked for: /proc is not mounted here' "says why: /proc"

# what there is no space for: neither closed nor given up, unless forced
modprobe dm-nth
truncate -s 16M full.cow
full=$(loopdev full.cow)
dmsetup create fullcow --table "0 $(sectors "$full") nth $full"
cowsetup open golden.img /dev/mapper/fullcow full >/dev/null
cp golden.img want
write /dev/mapper/full 8192 4096 7
dmsetup message fullcow 0 arm write 1 enospc 0
for command in readonly detach; do
	exits 4 "$command, and no space for what was written" cowsetup $command full
	says "full: not everything can be written.* would be lost: make room in what the cow device, /dev/mapper/fullcow, is made of, as a thin pool; $command --force does it" "says what to do: $command"
done
exits 4 "close, and no space for what was written" cowsetup close full
says 'full: not closed.* would be lost: make room in what the cow device, /dev/mapper/fullcow, is made of' "says what to do: close, no space"
like "$(cowstat full mode)" '^(rw|out_of_space)$' "it still takes writes"
dmsetup message fullcow 0 disarm
exits 0 "with space it closes" cowsetup close full
cowsetup open golden.img /dev/mapper/fullcow full >/dev/null
runs "and nothing is lost" cmp want /dev/mapper/full
cowsetup close full
dmsetup remove fullcow
losetup --detach "$full"
rm full.cow
clean "no space"

# with a loop device of the user's own
cow=$(loopdev disk/a.cow)
cowsetup open golden.img "$cow" own >/dev/null
exits 0 "readonly, another's loop device" cowsetup readonly own
says "still held by $cow, which was not attached by cowsetup: losetup --detach $cow" "says what to do about it"
losetup --detach "$cow"
runs "then the filesystem can be remounted" mount -o remount,ro disk
mount -o remount,rw disk
cowsetup close own

cowsetup open golden.img disk/a.cow >/dev/null
write /dev/mapper/a 999424 4096 5
out=$(cowsetup detach a 2>&1)
code=$?
if echo "$out" | grep -q 'cannot let go of a cowfile; a newer one can'; then
	is $code 4 "detach is refused when the module cannot do it"
	runs "the device is as it was" cmp want /dev/mapper/a
	skip "the module cannot let go of a cowfile"
	cowsetup close a
else
	is "$code $out" "0 " "detach"
	is "$(loops)" "$(printf '%s\n%s' "$before" "$(loops | grep golden.img)" | sort)" "the loop device is gone"
	runs "what holds the cowfile can be unmounted" umount disk
	exits 0 "status, mode closed" cowsetup status a
	says '^Mode +closed$' "shows it: closed"
	says '^Cowfile +- \(let go of\)$' "and that there is no cowfile"
	says '^What to do +it has let go of its cowfile' "and what to do: closed"
	runs "what is not modified can be read" dd if=/dev/mapper/a of=/dev/null bs=4096 count=1 iflag=direct
	fails "what is cannot" dd if=/dev/mapper/a of=/dev/null bs=4096 count=1 skip=244 iflag=direct
	exits 0 "detach once more" cowsetup detach a
	says '^a: it has let go of its cowfile already' "says that there was nothing to do"
	exits 4 "readonly after it" cowsetup readonly a
	exits 4 "watch has nothing to wait for: closed" cowsetup watch a
	like "$(cowsetup list)" '^a .* - +- clean closed +/tmp/golden.img +-$' "list shows it, too"
	is "$(advice a)" "cowsetup close a && cowsetup open /tmp/golden.img COW a" "in commands: closed"
	# the number of the loop device that it had is free for another
	cowfile make --rdo golden.img --cow next.cow
	next=$(loopdev next.cow)
	exits 0 "what has its cowfile's number now is not its cowfile" cowsetup open golden.img "$next" next
	cowsetup close next
	losetup --detach "$next"
	exits 0 "close after it" cowsetup close a
	mount "$disk" disk
	clean "detach"
	is "$(cowhead disk/a.cow dirty)" 0 "the cowfile is clean: detach"
	# the image is a file there, too
	cp golden.img disk/golden.img
	cowsetup open disk/golden.img disk/a.cow >/dev/null
	exits 0 "detach, with the image on the same filesystem" cowsetup detach a
	says 'a: its read-only device, /tmp/disk/golden.img, is on the same filesystem' "says that this stays in use"
	fails "which it does" umount disk
	cowsetup close a
	rm disk/golden.img
	clean "detach, with the image on the same filesystem"
fi

# --- watch --------------------------------------------------------------------------------------------------

avail() { stat -f -c '%a %S' disk | awk '{ print $1 * $2 }'; }

truncate -s 512M big.img
cowsetup open big.img disk/big.cow >/dev/null
exits 0 "watch, when there is less already" cowsetup watch --threshold 1G big
says '^big: [0-9.]+ MiB free of [0-9.]+ MiB \(filesystem\); the threshold is 1 GiB\.$' "says how much there is"
exits 0 "watch --json" cowsetup watch --threshold 1G --json big
is "$(json name) $(json free_of) $(json threshold_bytes) $(json mode)" '"big" "filesystem" 1073741824 "rw"' "is JSON"
is "$(json free_bytes)" "$(avail)" "with what df says"

cowsetup watch --threshold $(($(avail) - 8 * 1024 * 1024)) big >watched 2>&1 &
watch=$!
sleep 2
kill -0 $watch
ok $? "watch waits"
dd if=/dev/urandom of=/dev/mapper/big bs=1M count=12 oflag=direct status=none
wait $watch
is $? 0 "and ends when there is less"
like "$(cat watched)" '^big: .*\(filesystem\); the threshold is' "having said so"

# armed again when there is more; told what it wants to know; ends with the device
limit=$(($(avail) - 4 * 1024 * 1024))
cowsetup watch --threshold $limit --exec 'grep SigIgn /proc/self/status >ignored; echo "$NAME $FREE $TOTAL" >>called' \
	big >/dev/null 2>&1 &
watch=$!
sleep 1
dd if=/dev/zero of=disk/fill bs=1M count=8 status=none && sync disk/fill
waits '^big [0-9]+ [0-9]+$' cat called
is "$(wc -l <called)" 1 "--exec runs the command"
ignored=$(awk '{ print $2 }' ignored)
is $((0x$ignored & (1 << 12 | 1 << 24))) 0 "which has SIGPIPE and SIGXFSZ as anybody has them"
read -r _ free total <called
[ "$free" -le $limit ]
ok $? "with what is free"
is "$total" "$(stat -f -c '%b %S' disk | awk '{ print $1 * $2 }')" "and with how much there is"
sleep 3
is "$(wc -l <called)" 1 "once"
# watch has to look while there is more, which it does every other second
for _ in 1 2 3 4 5 6 7 8 9 10; do
	rm disk/fill && sync disk
	sleep 3
	dd if=/dev/zero of=disk/fill bs=1M count=8 status=none && sync disk/fill
	! waits '^2$' sh -c 'wc -l <called' || break
done
is "$(wc -l <called)" 2 "and again when there was more in between"
kill -0 $watch
ok $? "it still watches"
cowsetup close big
wait $watch
is $? 0 "until the device is closed"
rm disk/fill

cowsetup open big.img disk/big.cow >/dev/null
/usr/local/bin/cowsetup-asan watch --threshold 1 big >watched 2>&1 &
watch=$!
waits poll cat /proc/$watch/wchan
cowsetup close big
wait $watch
is $? 4 "without --exec this is not what it waited for"
like "$(cat watched)" 'big: has been closed' "and it says so: closed"
cowsetup open big.img disk/big.cow >/dev/null
/usr/local/bin/cowsetup-asan watch --threshold 1 big >watched 2>&1 &
watch=$!
# what a shell has in the background ignores it, until it says otherwise
waits '[2367abef]$' grep SigCgt /proc/$watch/status
kill -INT $watch
wait $watch
is $? 1 "watch can be interrupted"
like "$(cat watched)" 'big: interrupted' "and says so: interrupted"
exits 4 "watch of what is not there" cowsetup watch nix
cowsetup close big

# what the device tells by events: low water, out of space
truncate -s 8M space.img
written() { dd if=/dev/urandom of="/dev/mapper/$1" bs=4096 seek="$2" count="$3" oflag=direct status=none 2>/dev/null; }

for options in '--limit 4000K' ''; do
	# shellcheck disable=SC2086
	cowsetup open $options --low-water 800K space.img space.cow >/dev/null
	last=$([ "$options" ] && echo 800 || echo $((2048 - 200)))
	cowsetup watch space >watched 2>&1 &
	watch=$!
	written space 0 $((last - 1))
	sleep 2
	kill -0 $watch
	ok $? "watch waits for low water${options:+, $options}"
	written space $((last - 1)) 1
	wait $watch
	is $? 0 "and wakes up"
	like "$(cat watched)" '^space: 800 KiB free of (3\.9|8) MiB \((limit|device)\); the threshold is 800 KiB' "having said so"
	cowsetup close space
	rm space.cow
done

# free, but not where it is wanted: the cow device ends early
truncate -s $((8192 + 1000 * 4096)) space.cow
cow=$(loopdev space.cow)
short='has room for changes in the first 3\.9 MiB of the device only; in the other 4\.1 MiB writes will get ENOSPC'
exits 0 "open with a cow device that is too short" cowsetup open space.img "$cow" space
is "$(echo "$out" | grep -Ec "$short")" 1 "says so once"
cowsetup close space
exits 0 "open it again" cowsetup open space.img "$cow" space
says "$short" "says so again"
rm -f called
cowsetup watch --threshold 1 --exec 'echo "$NAME $MODE $FREE $TOTAL" >>called' space >watched 2>&1 &
watch=$!
sleep 1
for units in 1000 999; do
	written space 1500 1
	waits "space out_of_space $((units * 4096)) $((1000 * 4096))" cat called
	ok $? "watch wakes up when it is out of space"
	sleep 1.2
	written space $((1000 - units)) 1
	is "$(cowstat space mode)" rw "there is space again"
	sleep 1.2
done
is "$(wc -l <called)" 2 "--exec is told each time"
like "$(cat watched)" '^space: 3\.9 MiB free of 3\.9 MiB \(device, out of space\)' "it says so"
written space 1500 1
exits 0 "watch, when it is out of space already" cowsetup watch --threshold 1 space
says 'out of space' "says so"
like "$(cowsetup list)" '^space +8 MiB +8 KiB +3\.9 MiB +100\.0% (clean|dirty) out_of_space +/tmp/space\.img +/tmp/space\.cow$' \
	"list says so, too"
like "$(cowsetup status space)" "^What to do .*make the cow device, $cow, larger\$" "status says what to do"
cowsetup close space
wait $watch
losetup --detach "$cow"
rm space.cow

# a reserve is not for data
refuses 1 '--reserve: 4 KiB of a limit of 4 KiB: it must be a part' "a reserve that is all" \
	cowsetup open --limit 4K --reserve 4K space.img new.cow
exits 0 "open with a reserve" cowsetup open --limit 4000K --reserve 798K space.img space.cow
like "$(dmsetup table space)" ' 2 limit:1000 reserve:200$' "which is what the device has"
written space 0 500
exits 0 "status, with a reserve" cowsetup status --json space
is "$(json free_bytes) $(json free_total_bytes) $(json free_of)" "$((300 * 4096)) $((800 * 4096)) \"limit\"" \
	"leaves it out of what is free"
is "$(json reserve_bytes) $(json full_percent)" "$((200 * 4096)) 62.5" "and has it, and how full the rest is"
like "$(cowsetup list)" '^space +8 MiB +2\.0 MiB +1\.2 MiB +62\.5% ' "list has it, too"
cowsetup readonly space
eval "$(advice space)" >/dev/null
like "$(cowstat space mode) $(dmsetup table space)" '^rw .* 2 limit:1000 reserve:200$' "status says how it is writable again, with its limit"
written space 500 300
like "$(cowsetup list)" '^space .* 0 bytes +100\.0% [a-z]+ +rw ' "full is all but the reserve"
cowsetup close space
rm space.cow

# writes that wait
exits 0 "open with --queue-if-no-space" cowsetup open --limit 4K --queue-if-no-space --no-discard-passdown space.img wait.cow space
like "$(dmsetup table space)" ' 3 limit:1 queue_if_no_space no_discard_passdown$' "which is what the device has"
written space 0 2 &
writer=$!
exits 0 "watch, when writes wait for space" cowsetup watch --threshold 1 space
says '^space: 0 bytes free of 4 KiB \(limit' "wakes up"
waits out_of_space dmsetup status space
exits 0 "status, when writes wait for space" cowsetup status space
says '^What to do +new changes wait for space' "says that they wait"
says '^What to do .*; to double the limit, to 8 KiB: dmsetup message space 0 limit 2$' "and what to do, with the units"
says '^Queues if no space +yes$' "why they wait"
says '^Passes discards down +no$' "and what becomes of discards"
like "$(cowsetup list)" '^space +8 MiB +4 KiB +0 bytes +100\.0% [a-z]+ +out_of_space ' "list shows that it is full"
for command in readonly detach; do
	exits 4 "$command, when writes wait for space" cowsetup $command space
	says "space: not everything can be written.*: to double the limit, to 8 KiB: dmsetup message space 0 limit 2; $command --force" "says what to do, and does not wait with them: $command"
done
is "$(cowstat space mode)" out_of_space "it is as it was"
eval "$(advice space)"
wait $writer
is $? 0 "and they go on with a higher limit, as status gives it"
cowsetup close space

umount disk
losetup --detach "$disk"
before=''
clean "all of it"
is "$(sha256sum golden.img)" "$sum" "the image is what it was, after all this"

done_testing
