#!/usr/bin/perl
# SPDX-License-Identifier: GPL-2.0-only
#
# cowfile.pl - makes and reads cowfiles, formats 1 and 2
#
# A second implementation of the formats, written from their description alone
# and sharing nothing with the module and the tools, so that tests can hold one
# against the other.  Unlike those it is strict: a rule broken is an error.
# It needs nothing but Perl's core (Debian's perl-base) and a 64-bit machine.
#
# Perl takes long to start in an emulated machine, and so do fingerprints of
# format 2.  "serve" reads command lines, runs each in a process of its own,
# with what it prints going to a file, and prints its exit status; it takes the
# fingerprint of an rdo once, the first time it is named.
#
# Data pattern.  Unless told to take it from a file, "make" fills a unit with
# little-endian 64-bit words, each saying where it belongs:
#
#	bits 56..63	the fill seed, 1 to 255
#	bits 20..55	number of the unit
#	bits  0..19	offset of the word in its unit, in bytes

use strict;
use warnings;
no warnings 'portable';		# about 64-bit hexadecimal numbers
use Errno qw(EINTR);
use Fcntl qw(O_RDONLY O_RDWR O_CREAT O_TRUNC SEEK_SET SEEK_END);
use Getopt::Long qw(GetOptionsFromArray);

my $MAGIC = 0x574f437f;
my ($DIRTY, $PACKED) = (1, 2);
my $SECTOR = 512;
my $MIB = 1 << 20;

# The record of a merge: where, how long in either format, what it begins with
my $RECORD_AT = 512;
my @RECORD_SIZE = (undef, 512, 3584);
my $RECORD_MAGIC = 'MERG';
my $NO_BLOCK = 0xffffffffffffffff;

# Format 2's bitmap sectors: bytes of bits, and the units they describe
my $BITS_BYTES = 508;
my $BITS_UNITS = 4064;

# Where the numbers of the head are, and how they are packed
my %NUMBER = (
	magic		=> [0, 'V'],
	version		=> [4, 'v'],
	flags		=> [6, 'v'],
	mapunit		=> [8, 'Q<'],
	mapsize		=> [16, 'Q<'],
	doffset		=> [24, 'Q<'],
	rdoblocks	=> [32, 'Q<'],
	rdofingerprint	=> [40, 'Q<'],
	cowused		=> [48, 'Q<'],
	rdosectors	=> [56, 'Q<'],
	moffset		=> [64, 'Q<'],
	incompat	=> [72, 'V'],
	compat_ro	=> [76, 'V'],
	rdomtime	=> [448, 'Q<'],
	csum		=> [508, 'V'],
);
# The other fields: offset and size
my %BYTES = (
	uuid		=> [80, 16],
	label		=> [96, 64],
	rdospec		=> [160, 256],
	reserved	=> [416, 32],
	reserved2	=> [456, 52],
);

my $USAGE = <<'END';
Usage: cowfile.pl make --rdo RDO --cow COW [options]
       cowfile.pl image --rdo RDO --cow COW --out FILE
       cowfile.pl expect --rdo RDO --units LIST --out FILE [--format N]
                  [--mapunit N] [--zero-units LIST] [--fill-seed N | --data FILE]
       cowfile.pl dump COW [--rdo RDO]
       cowfile.pl fingerprint --format N RDO
       cowfile.pl selftest
       cowfile.pl serve FILE

make         makes a cowfile for RDO
image        reads a cowfile and writes what a device over it must show
expect       the same, without a cowfile, from a list of units
dump         checks a cowfile and prints its fields as name=value lines
fingerprint  prints a device's fingerprint
serve        runs the command lines that it reads, with output to FILE; prints
             an exit status for each

Files may be block devices. A LIST of units is like 0,3,10-20,40-80/4,last or
"all". Numbers may be hexadecimal (0x...), or end in K, M or G.

Options of make:
  --format 1|2            default 2
  --mapunit N             format 2: default 4096
  --doffset N             where the data goes (default: the least allowed)
  --label L, --rdospec S, --uuid HEX
  --units LIST            units in the bitmap, with data
  --zero-units LIST       in the bitmap, their data left a hole
  --hidden-units LIST     data, but not in the bitmap (as in a dirty file)
  --fill-seed N           for the data pattern (1 to 255, default 192)
  --data FILE             instead, take each unit from the same place in FILE,
                          an image of the device
  --dirty, --packed       set the flag; packed data goes without gaps (format 1)
  --merging               a merge of it into RDO, that is as it was still, has begun
  --no-record             without the record that belongs to it
  --stale-record          the record, but no merge
  --truncate N            length of the file; "full" for room for all units
                          (the default in format 2), "natural" for no more than
                          what was written (the default in format 1)
Then, to do damage, in this order:
  --set FIELD=VALUE             change a head field; also reservedN=, byteN=
  --set-after-csum FIELD=VALUE  the same, after the head's checksum is made
  --bad-sector N                spoil the checksum of bitmap sector N
  --flip OFFSET                 invert the byte at an offset of the file

Exit status: 0 all right, 1 a broken rule ("error: ..."), 2 usage or a failed
system call.
END

sub fail { print STDERR 'cowfile.pl: ', @_, "\n"; exit 2 }

# ---------- Numbers ----------

# Perl divides in floating point unless the result is whole
sub div { my ($a, $b) = @_; return ($a - $a % $b) / $b }
sub round_up { my ($n, $to) = @_; return $n % $to ? $n + $to - $n % $to : $n }
sub min { my ($a, $b) = @_; return $a < $b ? $a : $b }
sub max { my ($a, $b) = @_; return $a > $b ? $a : $b }

sub number {
	my ($text) = @_;

	return hex $1 if $text =~ /^0x([0-9a-f]{1,16})$/i;
	fail("'$text' is not a number") unless $text =~ /^(\d+)([KMG]?)$/i;
	return $1 << { '' => 0, K => 10, M => 20, G => 30 }->{uc $2};
}

# CRC-32C, four bytes at a time.  Table k is for the byte with k more behind it.
my @CRC_TABLE;

sub crc32c_init {
	for my $i (0 .. 255) {
		my $c = $i;
		$c = $c & 1 ? ($c >> 1) ^ 0x82f63b78 : $c >> 1 for 1 .. 8;
		$CRC_TABLE[0][$i] = $c;
	}
	for my $k (1 .. 3) {
		for my $i (0 .. 255) {
			my $c = $CRC_TABLE[$k - 1][$i];
			$CRC_TABLE[$k][$i] = ($c >> 8) ^ $CRC_TABLE[0][$c & 255];
		}
	}
}

# Goes on from $crc, the checksum of what came before, if there is one
sub crc32c {
	my ($data, $crc) = @_;
	crc32c_init() unless @CRC_TABLE;
	my ($t0, $t1, $t2, $t3) = @CRC_TABLE;
	my $whole = length($data) & ~3;

	$crc = ($crc // 0) ^ 0xffffffff;
	for (unpack 'V*', substr $data, 0, $whole) {
		$crc ^= $_;
		$crc = $t3->[$crc & 255] ^ $t2->[$crc >> 8 & 255] ^
		       $t1->[$crc >> 16 & 255] ^ $t0->[$crc >> 24];
	}
	for (unpack 'C*', substr $data, $whole) {
		$crc = $t0->[($crc ^ $_) & 255] ^ ($crc >> 8);
	}
	return $crc ^ 0xffffffff;
}

# ---------- Files ----------

sub open_file {
	my ($path, $mode) = @_;

	sysopen my $fh, $path, $mode, 0666 or fail("$path: open: $!");
	binmode $fh;
	my $size = sysseek $fh, 0, SEEK_END;
	defined $size or fail("$path: seek: $!");
	return { fh => $fh, path => $path, size => 0 + $size, block => -b $fh };
}

# A file is made or emptied; a device, which must be there, is taken as it is
sub open_output {
	my ($path) = @_;

	fail("$path: no such block device") if $path =~ m{^/dev/} && !-b $path;
	return open_file($path, O_RDWR | (-b $path ? 0 : O_CREAT | O_TRUNC));
}

# Reads from an offset; shorter than asked only at the end of the file.
sub read_at {
	my ($f, $offset, $length) = @_;
	my $data = '';

	defined sysseek $f->{fh}, $offset, SEEK_SET or fail("$f->{path}: seek: $!");
	while (length $data < $length) {
		my $n = sysread $f->{fh}, $data, $length - length $data, length $data;
		next if !defined $n && $! == EINTR;
		defined $n or fail("$f->{path}: read at $offset: $!");
		last unless $n;
	}
	return $data;
}

sub write_at {
	my ($f, $offset, $data) = @_;
	my $done = 0;

	defined sysseek $f->{fh}, $offset, SEEK_SET or fail("$f->{path}: seek: $!");
	while ($done < length $data) {
		my $n = syswrite $f->{fh}, $data, length($data) - $done, $done;
		next if !defined $n && $! == EINTR;
		defined $n or fail("$f->{path}: write at $offset: $!");
		$done += $n;
	}
	$f->{size} = max($f->{size}, $offset + length $data);
}

sub set_length {
	my ($f, $length) = @_;

	return if $f->{block};
	truncate $f->{fh}, $length or fail("$f->{path}: truncate: $!");
	$f->{size} = $length;
}

sub close_file {
	my ($f) = @_;
	close $f->{fh} or fail("$f->{path}: close: $!");
}

my $ZEROES = "\0" x $MIB;
sub is_zero { my ($data) = @_; return $data eq substr $ZEROES, 0, length $data }

# A device has whole sectors only; a loop device drops the rest of its file
sub open_rdo {
	my ($path) = @_;
	my $rdo = open_file($path, O_RDONLY);

	$rdo->{size} -= $rdo->{size} % $SECTOR;
	return $rdo;
}

# ---------- The rules ----------

sub mapsize {
	my ($format, $rdoblocks) = @_;

	if ($format == 1) {
		my $nb = $rdoblocks;
		$nb += 8 if $nb % 8;
		return round_up(div($nb, 8), 1024);
	}
	my $sectors = div($rdoblocks, $BITS_UNITS) + ($rdoblocks % $BITS_UNITS ? 1 : 0);
	return round_up($sectors * 512, 4096);
}

# Everything about the layout that follows from the device's size
sub geometry {
	my ($format, $rdosize, $mapunit) = @_;
	my %g = (version => $format, mapunit => $mapunit);

	if ($format == 1) {
		$g{moffset} = 1024;
		$g{rdoblocks} = div($rdosize, 1024);
		$g{devsize} = $g{rdoblocks} * 1024;
	} else {
		$g{moffset} = 4096;
		$g{rdoblocks} = div($rdosize + $mapunit - 1, $mapunit);
		$g{rdosectors} = div($rdosize, $SECTOR);
		$g{devsize} = $rdosize;
	}
	$g{mapsize} = mapsize($format, $g{rdoblocks});
	$g{doffset} = round_up($g{moffset} + $g{mapsize},
			       $format == 1 ? 4096 : max($mapunit, 4096));
	return \%g;
}

# The blocks that format 1's fingerprint is made of, and their sums. With $held, units
# whose bits are set there do not count.
sub counted_blocks {
	my ($rdo, $held) = @_;
	my $blocks = div($rdo->{size}, 1024);
	my @counted;

	for (my $block = 0; $block < $blocks; $block += 1024) {
		my $data = read_at($rdo, $block * 1024, min($blocks - $block, 1024) * 1024);
		next if is_zero($data);
		for (my $at = 0; $at < length $data; $at += 1024) {
			my $cs = unpack '%8C*', substr $data, $at, 1024;
			next if !$cs || defined $held && vec $held, $block + $at / 1024, 1;
			push @counted, [$block + $at / 1024, $cs];
			return @counted if @counted == 4;
		}
	}
	return @counted;
}

sub fingerprint_1 {
	my ($rdo, $held) = @_;
	my ($fingerprint, $kept) = (0, 0);

	for (counted_blocks($rdo, $held)) {
		# a signed 32-bit number, that then becomes a 64-bit one
		my $part = $_->[1] << 8 * $kept++ & 0xffffffff;
		$part |= 0xffffffff00000000 if $part & 0x80000000;
		$fingerprint |= $part;
	}
	return $fingerprint;
}

# The blocks that are samples, some more than once
sub samples_2 {
	my ($rdo) = @_;
	my $n = max(div($rdo->{size}, 4096), 1);

	return map { div($_ * ($n - 1), 63) } 0 .. 63;
}

# With $held, a string of bits for units of $mapunit, these count as zeroes.
sub fingerprint_2 {
	my ($rdo, $held, $mapunit) = @_;
	my ($crc, $last, $data) = (0, -1);

	for my $block (samples_2($rdo)) {
		if ($block != $last) {
			$data = read_at($rdo, $block * 4096, min($rdo->{size}, 4096));
			$data .= "\0" x (4096 - length $data);
			$data = "\0" x 4096 if defined $held && vec $held, div($block * 4096, $mapunit), 1;
			$last = $block;
		}
		$crc = crc32c($data, $crc);
	}
	return $crc;
}

sub fingerprint {
	my ($format, $rdo) = @_;
	return $format == 1 ? fingerprint_1($rdo) : fingerprint_2($rdo);
}

# The fingerprint of what a merge of these units leaves alone
sub masked_fingerprint {
	my ($g, $rdo, $held) = @_;
	return $g->{version} == 1 ? fingerprint_1($rdo, $held) :
				    fingerprint_2($rdo, $held, $g->{mapunit});
}

# The record of a merge into a device that is as it was, as it is on disk
sub merge_record {
	my ($format, $rdo, $masked) = @_;
	my (@blocks, @places) = (0) x 4;

	if ($format == 1) {
		@blocks = map { $_->[0] } counted_blocks($rdo);
		@places = map { [$_ * 1024, 1024] } @blocks;
		push @blocks, $NO_BLOCK while @blocks < 4;
	} else {
		@places = map { [$_ * 4096, 4096] } samples_2($rdo);
	}
	my $body = pack 'Q<Q<4', $masked, @blocks;
	for (@places) {
		my ($at, $length) = @$_;
		my $data = read_at($rdo, $at, min($length, $rdo->{size} - $at));
		for (my $in = 0; $in < $length; $in += 512) {
			$body .= pack 'V', $in < length $data ? crc32c(substr $data, $in, 512) : 0;
		}
	}
	$body .= "\0" x ($RECORD_SIZE[$format] - 8 - length $body);
	return $RECORD_MAGIC . pack('V', crc32c($body)) . $body;
}

# What is in the place of a record: none, valid, damaged
sub judge_record {
	my ($format, $start, $fingerprint) = @_;
	my $record = substr $start, $RECORD_AT, $RECORD_SIZE[$format];

	return 'none' if is_zero($record);
	my ($magic, $csum, $of) = unpack 'a4 V Q<', $record;
	return $magic eq $RECORD_MAGIC && $csum == crc32c(substr $record, 8) &&
	       $of == $fingerprint ? 'valid' : 'damaged';
}

sub bitmap_sector_csum {
	my ($bits, $index) = @_;
	return crc32c($bits . pack 'Q<', $index);
}

# ---------- Units and their data ----------

# A list of units, as a flat list of starts and lengths in ascending order
sub parse_units {
	my ($text, $rdoblocks) = @_;
	my $last = $rdoblocks - 1;
	my $bits = '';

	return () unless defined $text && length $text;
	for my $item (split /,/, $text eq 'all' ? '0-last' : $text) {
		$item =~ m{^(\d+|last)(?:-(\d+|last)(?:/([1-9]\d*))?)?$}
			or fail("'$item': not a list of units");
		my ($from, $to, $step) = ($1, $2 // $1, $3 // 1);
		$_ eq 'last' and $_ = $last for $from, $to;
		fail("unit $to: there are only $rdoblocks") if $to > $last || $from > $to;
		for (my $n = $from; $n <= $to; $n += $step) {
			vec($bits, $n, 1) = 1;
		}
	}
	return bits_to_runs($bits, 0);
}

# The runs of set bits in a string of bits, the first of which is unit $base
sub bits_to_runs {
	my ($bits, $base) = @_;
	my $text = unpack 'b*', $bits;
	my @runs;

	push @runs, $base + $-[0], $+[0] - $-[0] while $text =~ /1+/g;
	return @runs;
}

# Adds runs behind others, joining two that touch
sub append_runs {
	my ($runs, @more) = @_;

	if (@$runs && @more && $runs->[-2] + $runs->[-1] == $more[0]) {
		$runs->[-1] += $more[1];
		splice @more, 0, 2;
	}
	push @$runs, @more;
}

sub runs_to_text {
	my @runs = @_;
	my @items;

	while (my ($from, $count) = splice @runs, 0, 2) {
		push @items, $count == 1 ? $from : $from . '-' . ($from + $count - 1);
	}
	return join ',', @items;
}

sub set_bits {
	my ($bits, @runs) = @_;

	while (my ($from, $count) = splice @runs, 0, 2) {
		vec($$bits, $_, 1) = 1 for $from .. $from + $count - 1;
	}
}

# Calls $do->(first unit, device offset, length) for pieces of at most a
# megabyte.  The last unit of a device may be a partial one.
sub each_piece {
	my ($g, $runs, $do) = @_;
	my @runs = @$runs;
	my $most = max(div($MIB, $g->{mapunit}), 1);

	while (my ($from, $count) = splice @runs, 0, 2) {
		while ($count) {
			my $n = min($count, $most);
			my $at = $from * $g->{mapunit};
			$do->($from, $at, min($n * $g->{mapunit}, $g->{devsize} - $at));
			$from += $n;
			$count -= $n;
		}
	}
}

# Returns a function of (first unit, device offset, length) that gives the data
sub data_source {
	my ($g, $seed, $path) = @_;

	if (defined $path) {
		my $file = open_file($path, O_RDONLY);
		return sub {
			my ($unit, $at, $length) = @_;
			my $data = read_at($file, $at, $length);
			return $data . "\0" x ($length - length $data);
		};
	}
	fail('--fill-seed: must be 1 to 255') if $seed < 1 || $seed > 255;
	my $words = div($g->{mapunit}, 8);
	my $unit_0 = pack 'Q<*', map { $seed << 56 | 8 * $_ } 0 .. $words - 1;
	return sub {
		my ($unit, $at, $length) = @_;
		my $data = '';
		for (; length $data < $length; $unit++) {
			$data .= $unit_0 ^ (pack('Q<', $unit << 20) x $words);
		}
		return substr $data, 0, $length;
	};
}

# ---------- make ----------

sub check_format {
	my ($format, $mapunit) = @_;

	fail("--format: must be 1 or 2") unless $format =~ /^[12]$/;
	$mapunit = defined $mapunit ? number($mapunit) : $format == 1 ? 1024 : 4096;
	fail("--mapunit: in format 1 it is 1024") if $format == 1 && $mapunit != 1024;
	fail("--mapunit: must be a power of two, 4096 to 1M") if $format == 2 &&
		($mapunit < 4096 || $mapunit > $MIB || $mapunit & $mapunit - 1);
	return $mapunit;
}

sub parse_uuid {
	my ($text) = @_;

	$text =~ tr/-//d;
	fail("'$text': a uuid has 32 hexadecimal digits") unless $text =~ /^[0-9a-f]{32}$/i;
	return pack 'H*', $text;
}

sub random_uuid {
	my $uuid = read_at(open_file('/dev/urandom', O_RDONLY), 0, 16);

	vec($uuid, 6, 8) = vec($uuid, 6, 8) & 0x0f | 0x40;
	vec($uuid, 8, 8) = vec($uuid, 8, 8) & 0x3f | 0x80;
	return $uuid;
}

# Changes a field of the head, by name
sub set_field {
	my ($head, $name, $value) = @_;

	if (my $n = $NUMBER{$name}) {
		my $packed = pack $n->[1], number($value);
		substr $$head, $n->[0], length $packed, $packed;
	} elsif ($name =~ /^(reserved|byte)(\d+)$/) {
		my $at = $2 + ($1 eq 'byte' ? 0 : $BYTES{reserved}[0]);
		fail("$name: no such byte in the head") if $at >= length $$head;
		substr $$head, $at, 1, chr(number($value) & 255);
	} elsif (my $b = $BYTES{$name}) {
		$value = parse_uuid($value) if $name eq 'uuid';
		fail("$name: longer than $b->[1] bytes") if length $value > $b->[1];
		substr $$head, $b->[0], $b->[1], $value . "\0" x ($b->[1] - length $value);
	} else {
		fail("$name: no such field");
	}
}

sub set_fields {
	my ($head, $settings) = @_;

	for (@$settings) {
		/^(\w+)=(.*)$/s or fail("'$_' is not FIELD=VALUE");
		set_field($head, $1, $2);
	}
}

# The bitmap as it is on disk, from the plain bits
sub make_bitmap {
	my ($g, $bits, $bad_sectors) = @_;
	my $map = '';
	my %bad;

	if ($g->{version} == 1) {
		fail('--bad-sector: format 1 has no checksums') if @$bad_sectors;
		return $bits . "\0" x ($g->{mapsize} - length $bits);
	}
	for (map { number($_) } @$bad_sectors) {
		fail("--bad-sector: there is no sector $_") if $_ >= $g->{mapsize} / 512;
		$bad{$_} = 1;
	}
	for my $i (0 .. $g->{mapsize} / 512 - 1) {
		my $part = $i * $BITS_BYTES < length $bits ?
			   substr $bits, $i * $BITS_BYTES, $BITS_BYTES : '';
		$part .= "\0" x ($BITS_BYTES - length $part);
		if (is_zero($part) && !$bad{$i}) {
			$map .= "\0" x 512;
			next;
		}
		my $csum = bitmap_sector_csum($part, $i);
		$csum ^= 0xffffffff if $bad{$i};
		$map .= $part . pack 'V', $csum;
	}
	return $map;
}

sub make_head {
	my ($g, $o, $cowused, $fingerprint) = @_;
	my $head = "\0" x ($g->{version} == 1 ? 1024 : 512);
	my %value = (%$g, magic => $MAGIC, cowused => $cowused,
		     rdofingerprint => $fingerprint,
		     flags => ($o->{dirty} ? $DIRTY : 0) | ($o->{packed} ? $PACKED : 0));
	my @names = qw(magic version flags mapunit mapsize doffset rdoblocks
		       rdofingerprint cowused);

	push @names, qw(rdosectors moffset) if $g->{version} == 2;
	set_field(\$head, $_, $value{$_}) for @names;
	if ($g->{version} == 2) {
		my $uuid = $o->{uuid} // unpack 'H*', random_uuid();
		set_field(\$head, 'uuid', $uuid);
		set_field(\$head, 'label', $o->{label} // '');
		set_field(\$head, 'rdospec', $o->{rdospec} // '');
	}
	set_fields(\$head, $o->{set});
	set_field(\$head, 'csum', crc32c(substr $head, 0, 508)) if $g->{version} == 2;
	set_fields(\$head, $o->{'set-after-csum'});
	return $head;
}

sub cmd_make {
	my ($o) = @_;
	my $mapunit = check_format($o->{format}, $o->{mapunit});
	my $rdo = open_rdo($o->{rdo});
	my $g = geometry($o->{format}, $rdo->{size}, $mapunit);
	my $bits = '';

	fail('--packed: format 1 only') if $o->{packed} && $o->{format} != 1;
	fail('--uuid, --label, --rdospec: format 2 only') if $o->{format} == 1 &&
		grep { defined $o->{$_} } qw(uuid label rdospec);
	if (defined $o->{doffset}) {
		my $doffset = number($o->{doffset});
		fail("--doffset: must be $g->{doffset} or more") if $doffset < $g->{doffset};
		$g->{doffset} = $doffset;
	}
	my @units = parse_units($o->{units}, $g->{rdoblocks});
	my @zero = parse_units($o->{'zero-units'}, $g->{rdoblocks});
	my @hidden = parse_units($o->{'hidden-units'}, $g->{rdoblocks});
	set_bits(\$bits, @units, @zero);
	my $cowused = unpack '%32b*', $bits;
	my $fingerprint = fingerprint($o->{format}, $rdo);
	my $record = '';
	if ($o->{merging} || $o->{'stale-record'}) {
		my $masked = masked_fingerprint($g, $rdo, $bits);
		$record = merge_record($o->{format}, $rdo, $masked) unless $o->{'no-record'};
		if ($o->{merging}) {
			unshift @{$o->{set}}, $o->{format} == 1 ? 'version=0x4001' : 'incompat=1';
			$fingerprint = $masked;
		}
	}
	my $head = make_head($g, $o, $cowused, $fingerprint);
	my $map = make_bitmap($g, $bits, $o->{'bad-sector'});

	my $cow = open_output($o->{cow});
	my $source = data_source($g, number($o->{'fill-seed'}), $o->{data});
	my $natural = $g->{moffset} + $g->{mapsize};
	write_at($cow, 0, $head . "\0" x ($g->{moffset} - length $head));
	write_at($cow, $RECORD_AT, $record) if length $record;
	write_at($cow, $g->{moffset}, $map);
	if ($o->{packed}) {
		fail('--zero-units, --hidden-units: not with --packed') if @zero || @hidden;
		my $end = $g->{doffset};
		each_piece($g, \@units, sub {
			write_at($cow, $end, $source->(@_));
			$end += $_[2];
		});
	} else {
		for my $runs (\@units, \@hidden) {
			each_piece($g, $runs, sub {
				write_at($cow, $g->{doffset} + $_[1], $source->(@_));
			});
		}
		each_piece($g, \@zero, sub {
			$natural = max($natural, $g->{doffset} + $_[1] + $_[2]);
		});
		$natural = max($natural, $cow->{size});
		my $length = $o->{truncate} // ($o->{format} == 1 ? 'natural' : 'full');
		my $full = $g->{doffset} + $g->{rdoblocks} * $mapunit;
		set_length($cow, $length eq 'full' ? $full :
				 $length eq 'natural' ? $natural : number($length));
	}
	for (map { number($_) } @{$o->{flip}}) {
		my $byte = read_at($cow, $_, 1);
		fail("--flip: $_ is beyond the end") unless length $byte;
		write_at($cow, $_, ~$byte);
	}
	close_file($cow);
	return 0;
}

# ---------- Reading a cowfile ----------

# Returns a reference to what was found: fields, units (runs), errors (texts)
sub parse_cow {
	my ($cow, $rdo) = @_;
	my $c = { errors => [], units => [], popcount => 0 };
	my $head = read_at($cow, 0, 4096);

	parse_head($c, $cow, $head, $rdo) and
		parse_sizes($c, $cow) and
		parse_bitmap($c, $cow);
	return $c;
}

sub broken { my ($c, @text) = @_; push @{$c->{errors}}, join '', @text; return 0 }

# The head's fields.  False if they are of no use to go on with.
sub parse_head {
	my ($c, $cow, $head, $rdo) = @_;
	my $length = length $head;

	return broken($c, "the file has $length bytes, shorter than a head")
		if $length < 512;
	for my $name (keys %NUMBER) {
		my ($at, $how) = @{$NUMBER{$name}};
		$c->{$name} = unpack $how, substr $head, $at, 8;
	}
	return broken($c, sprintf 'magic is 0x%08x, not 0x%08x', $c->{magic}, $MAGIC)
		if $c->{magic} != $MAGIC;
	if ($c->{version} == 0x4001 || $c->{version} == 0x4002) {
		broken($c, 'a merge of it was interrupted');
		$c->{version} = 1;
	}
	return broken($c, "version is $c->{version}")
		unless $c->{version} == 1 || $c->{version} == 2;
	if ($c->{version} == 1) {
		return broken($c, "the file has $length bytes, shorter than a head")
			if $length < 1024;
		my $rest = substr $head, 56, 1024 - 56;
		# what a merge leaves that does not come to begin
		substr $rest, $RECORD_AT - 56, 512, '' if substr($rest, $RECORD_AT - 56, 4) eq $RECORD_MAGIC;
		broken($c, 'the rest of the head is not zero') unless is_zero($rest);
	} else {
		my $csum = crc32c(substr $head, 0, 508);
		return broken($c, sprintf 'head checksum is 0x%08x, should be 0x%08x',
			      $c->{csum}, $csum) if $csum != $c->{csum};
		parse_head_2($c, $head);
	}
	$c->{record} = judge_record($c->{version}, $head, $c->{rdofingerprint});
	$c->{dirty} = $c->{flags} & $DIRTY ? 1 : 0;
	$c->{packed} = $c->{flags} & $PACKED ? 1 : 0;
	broken($c, sprintf 'unknown flags 0x%x', $c->{flags})
		if $c->{flags} & ~($DIRTY | $PACKED);
	broken($c, 'packed, but format 2') if $c->{packed} && $c->{version} == 2;
	broken($c, 'packed and dirty') if $c->{packed} && $c->{dirty};
	parse_against_rdo($c, $rdo) if $rdo;
	return 1;
}

sub parse_head_2 {
	my ($c, $head) = @_;

	broken($c, sprintf 'unknown incompat features 0x%x', $c->{incompat})
		if $c->{incompat};
	my $uuid = substr $head, $BYTES{uuid}[0], 16;
	$c->{uuid} = join '-', unpack 'H8 H4 H4 H4 H12', $uuid;
	broken($c, "uuid $c->{uuid} is not a random one of RFC 4122")
		unless $c->{uuid} =~ /^.{14}4.{4}[89ab]/;
	for my $name ('label', 'rdospec') {
		my $text = substr $head, $BYTES{$name}[0], $BYTES{$name}[1];
		broken($c, "$name has something behind its NUL") if $text =~ /\0[^\0]/;
		$text =~ s/\0.*//s;
		$c->{$name} = $text;
		broken($c, "$name is not UTF-8") unless utf8::decode($text);
	}
	broken($c, 'reserved bytes are not zero')
		unless is_zero(join '', map { substr $head, $_->[0], $_->[1] } @BYTES{qw(reserved reserved2)});
}

sub parse_against_rdo {
	my ($c, $rdo) = @_;
	my $blocks = $c->{version} == 1 ? div($rdo->{size}, 1024) :
		     $c->{mapunit} ? div($rdo->{size} + $c->{mapunit} - 1, $c->{mapunit}) : 0;
	my $fingerprint = fingerprint($c->{version}, $rdo);

	broken($c, "rdoblocks is $c->{rdoblocks}, but the device has $blocks")
		if $c->{rdoblocks} != $blocks;
	broken($c, "rdosectors is $c->{rdosectors}, but the device has ",
	       div($rdo->{size}, $SECTOR))
		if $c->{version} == 2 && $c->{rdosectors} != div($rdo->{size}, $SECTOR);
	broken($c, sprintf 'fingerprint is 0x%016x, but that of the device is 0x%016x',
	       $c->{rdofingerprint}, $fingerprint) if $c->{rdofingerprint} != $fingerprint;
}

# Do the sizes in the head agree?  False if the bitmap can't be read by them.
sub parse_sizes {
	my ($c, $cow) = @_;
	my $unit = $c->{mapunit};
	my $ok = 1;

	if ($c->{version} == 1) {
		$c->{moffset} = 1024;
		$unit == 1024 or $ok = broken($c, "mapunit is $unit, not 1024");
	} else {
		$c->{moffset} == 4096 or $ok = broken($c, "moffset is $c->{moffset}, not 4096");
		$unit < 4096 || $unit > $MIB || $unit & $unit - 1 and
			return broken($c, "mapunit is $unit, not a power of two from 4096 to 1M");
		my $sectors = $c->{rdosectors};
		my $blocks = div($sectors, $unit / 512) + ($sectors % ($unit / 512) ? 1 : 0);
		$c->{rdoblocks} == $blocks or
			$ok = broken($c, "rdoblocks is $c->{rdoblocks}, but $sectors ",
				     "sectors are $blocks units");
	}
	my $mapsize = mapsize($c->{version}, $c->{rdoblocks});
	$c->{mapsize} == $mapsize or
		$ok = broken($c, "mapsize is $c->{mapsize}, should be $mapsize");
	my $least = $c->{moffset} + $mapsize;
	if ($c->{version} == 1) {
		my $doffset = round_up($least, 4096);
		$c->{doffset} == $doffset or
			$ok = broken($c, "doffset is $c->{doffset}, should be $doffset");
	} elsif ($c->{doffset} < $least || $c->{doffset} % max($unit, 4096)) {
		$ok = broken($c, "doffset is $c->{doffset}, should be a multiple of ",
			     max($unit, 4096), " not below $least");
	}
	$cow->{size} >= $least or
		$ok = broken($c, "the file has $cow->{size} bytes, its bitmap ends at $least");
	$c->{devsize} = $c->{version} == 1 ? $c->{rdoblocks} * 1024 : $c->{rdosectors} * 512;
	return $ok;
}

sub parse_bitmap {
	my ($c, $cow) = @_;

	for (my $at = 0; $at < $c->{mapsize}; $at += $MIB) {
		my $piece = read_at($cow, $c->{moffset} + $at, min($c->{mapsize} - $at, $MIB));
		next if is_zero($piece);
		if ($c->{version} == 1) {
			add_bits($c, $piece, $at * 8);
			next;
		}
		for (my $in = 0; $in < length $piece; $in += 512) {
			my $sector = substr $piece, $in, 512;
			next if is_zero($sector);
			my $index = div($at + $in, 512);
			my $bits = substr $sector, 0, $BITS_BYTES;
			my $stored = unpack 'V', substr $sector, $BITS_BYTES;
			my $csum = bitmap_sector_csum($bits, $index);
			if ($stored != $csum) {
				broken($c, sprintf 'bitmap sector %d, units %d to %d: ' .
				       'checksum is 0x%08x, should be 0x%08x', $index,
				       $index * $BITS_UNITS, ($index + 1) * $BITS_UNITS - 1,
				       $stored, $csum);
				next;
			}
			add_bits($c, $bits, $index * $BITS_UNITS);
		}
	}
	parse_units_found($c, $cow);
}

sub add_bits {
	my ($c, $bits, $base) = @_;

	$c->{popcount} += unpack '%32b*', $bits;
	append_runs($c->{units}, bits_to_runs($bits, $base));
}

sub parse_units_found {
	my ($c, $cow) = @_;
	my $units = $c->{units};
	my $end = 0;

	broken($c, "cowused is $c->{cowused}, but $c->{popcount} bits are set")
		if !$c->{dirty} && $c->{cowused} != $c->{popcount};
	return unless @$units;
	my $last = $units->[-2] + $units->[-1] - 1;
	return broken($c, "bit $last is set, but there are only $c->{rdoblocks} units")
		if $last >= $c->{rdoblocks};
	$end = $c->{packed} ? $c->{popcount} * 1024 :
	       min(($last + 1) * $c->{mapunit}, $c->{devsize});
	broken($c, "the file has $cow->{size} bytes, its data ends at ", $c->{doffset} + $end)
		if $cow->{size} < $c->{doffset} + $end;
}

sub print_errors {
	my ($c) = @_;

	print "error: $_\n" for @{$c->{errors}};
	return @{$c->{errors}} ? 1 : 0;
}

# ---------- dump, image, expect, fingerprint ----------

sub cmd_dump {
	my ($o, $path) = @_;
	my $rdo = $o->{rdo} && open_rdo($o->{rdo});
	my $c = parse_cow(open_file($path, O_RDONLY), $rdo);

	if (defined $c->{dirty}) {
		print "format=$c->{version}\n";
		printf "flags=0x%x\n", $c->{flags};
		print "$_=$c->{$_}\n" for qw(dirty packed mapunit mapsize doffset rdoblocks);
		printf "fingerprint=0x%016x\n", $c->{rdofingerprint};
		print "$_=$c->{$_}\n" for qw(cowused popcount record);
		if ($c->{version} == 2) {
			print "$_=$c->{$_}\n" for qw(rdosectors moffset);
			printf "$_=0x%x\n", $c->{$_} for qw(incompat compat_ro);
			print "$_=$c->{$_}\n" for qw(uuid label rdospec rdomtime);
		}
		print 'units=', runs_to_text(@{$c->{units}}), "\n";
	}
	return print_errors($c);
}

# Writes the device: rdo, with $source's data laid over it at the runs of units
sub write_image {
	my ($g, $rdo, $out_path, $layers) = @_;
	my $out = open_output($out_path);
	my $piece = 65536;

	set_length($out, $g->{devsize});
	for (my $at = 0; $at < $g->{devsize}; $at += $MIB) {
		my $data = read_at($rdo, $at, min($g->{devsize} - $at, $MIB));
		for (my $in = 0; $in < length $data; $in += $piece) {
			my $part = substr $data, $in, $piece;
			write_at($out, $at + $in, $part) if $out->{block} || !is_zero($part);
		}
	}
	for (@$layers) {
		my ($runs, $source) = @$_;
		each_piece($g, $runs, sub { write_at($out, $_[1], $source->(@_)) });
	}
	close_file($out);
}

sub cmd_image {
	my ($o) = @_;
	my $rdo = open_rdo($o->{rdo});
	my $cow = open_file($o->{cow}, O_RDONLY);
	my $c = parse_cow($cow, $rdo);
	my $packed_at = $c->{doffset};

	return 1 if print_errors($c);
	write_image($c, $rdo, $o->{out}, [[$c->{units}, sub {
		my ($unit, $at, $length) = @_;
		return read_at($cow, $c->{doffset} + $at, $length) unless $c->{packed};
		my $data = read_at($cow, $packed_at, $length);
		$packed_at += $length;
		return $data;
	}]]);
	return 0;
}

sub cmd_expect {
	my ($o) = @_;
	my $mapunit = check_format($o->{format}, $o->{mapunit});
	my $rdo = open_rdo($o->{rdo});
	my $g = geometry($o->{format}, $rdo->{size}, $mapunit);

	write_image($g, $rdo, $o->{out}, [
		[[parse_units($o->{units}, $g->{rdoblocks})],
		 data_source($g, number($o->{'fill-seed'}), $o->{data})],
		[[parse_units($o->{'zero-units'}, $g->{rdoblocks})],
		 sub { return "\0" x $_[2] }],
	]);
	return 0;
}

sub cmd_fingerprint {
	my ($o, $path) = @_;

	check_format($o->{format});
	printf "0x%016x\n", fingerprint($o->{format}, open_rdo($path));
	return 0;
}

# ---------- selftest ----------

my ($tests, $failed, $scratch) = (0, 0);

sub ok {
	my ($good, $name) = @_;

	$tests++;
	$failed++ unless $good;
	print $good ? 'ok' : 'not ok', " $tests - $name\n";
}

sub is {
	my ($got, $want, $name) = @_;

	ok($got eq $want, $name);
	print "#   got $got, expected $want\n" if $got ne $want;
}

sub is_hex {
	my ($got, $want, $name) = @_;
	is(sprintf('0x%x', $got), sprintf('0x%x', $want), $name);
}

sub scratch_file {
	my ($name, @contents) = @_;
	my $f = open_file("$scratch/$name", O_RDWR | O_CREAT | O_TRUNC);

	write_at($f, 0, join '', @contents);
	close_file($f);
	return $f->{path};
}

sub slurp { my $f = open_file($_[0], O_RDONLY); return read_at($f, 0, $f->{size}) }

# Makes a cowfile in the scratch directory; returns what the parser finds in it
sub made {
	my ($rdo, @arguments) = @_;
	my $cow = "$scratch/cow";

	cmd_make(make_options('--rdo', $rdo, '--cow', $cow, @arguments));
	return parse_cow(open_file($cow, O_RDONLY), open_rdo($rdo));
}

sub selftest_numbers {
	is_hex(crc32c('123456789'), 0xe3069283, 'CRC-32C: the check value');
	is_hex(crc32c(''), 0, 'CRC-32C: of nothing');
	is_hex(crc32c("\0" x 32), 0x8a9136aa, 'CRC-32C: RFC 3720, zeroes');
	is_hex(crc32c("\xff" x 32), 0x62a8ab43, 'CRC-32C: RFC 3720, ones');
	is_hex(crc32c(pack 'C*', 0 .. 31), 0x46dd794e, 'CRC-32C: RFC 3720, ascending');
	is_hex(crc32c(pack 'C*', reverse 0 .. 31), 0x113fdb5c, 'CRC-32C: RFC 3720, descending');
	is_hex(crc32c('6789', crc32c('12345')), 0xe3069283, 'CRC-32C: in two parts');

	my @cases = (
		[1, 1, 1024], [1, 7, 1024], [1, 8, 1024], [1, 9, 1024], [1, 8185, 1024],
		[1, 8191, 1024], [1, 8192, 1024], [1, 8193, 2048], [1, 16384, 2048],
		[1, 16385, 3072], [1, 32512, 4096], [1, 32768, 4096], [1, 32769, 5120],
		[1, 1 << 36, 1 << 33], [1, (1 << 36) + 1, (1 << 33) + 1024],
		[2, 1, 4096], [2, 4064, 4096], [2, 4065, 4096], [2, 32512, 4096],
		[2, 32513, 8192], [2, 65024, 8192], [2, 65025, 12288],
		# 64 TiB: 4227330 full bitmap sectors and 64 units in one more
		[2, 1 << 34, 528417 * 4096],
	);
	is(mapsize($_->[0], $_->[1]), $_->[2], "mapsize: format $_->[0], $_->[1] units")
		for @cases;

	my @layouts = (		# format, bytes, mapunit: rdoblocks, mapsize, doffset
		[1, 1024, 1024, '1 1024 4096'], [1, 2560, 1024, '2 1024 4096'],
		[1, 16 << 20, 1024, '16384 2048 4096'], [1, 24 << 20, 1024, '24576 3072 4096'],
		[1, 32 << 20, 1024, '32768 4096 8192'],
		[2, 512, 4096, '1 4096 8192'], [2, 4096, 4096, '1 4096 8192'],
		[2, 4608, 4096, '2 4096 8192'], [2, 1 << 20, 65536, '16 4096 65536'],
		[2, 128 << 20, 4096, '32768 8192 12288'],
		[2, (1 << 20) + 512, 1 << 20, '2 4096 1048576'],
	);
	for (@layouts) {
		my $g = geometry(@$_[0 .. 2]);
		is("$g->{rdoblocks} $g->{mapsize} $g->{doffset}", $_->[3],
		   "layout: format $_->[0], $_->[1] bytes, unit $_->[2]");
	}
}

sub selftest_fingerprints {
	# a block of 1024 bytes whose sum is the number, modulo 256
	my $block = sub { "\0" x 100 . chr($_[0]) . "\0" x 923 };
	my @cases = (
		['four', [1, 2, 3, 4, 5], 0x04030201],
		['sign', [1, 2, 3, 0x80], 0xffffffff80030201],
		['no sign', [0xff, 0xff, 0xff, 0x7f], 0x7fffffff],
		['all ones', [0xff, 0xff, 0xff, 0xff], 0xffffffffffffffff],
		['zeroes skipped', [0, 1, 0, 0, 2, 3, 0, 0x90, 7], 0xffffffff90030201],
		['three', [1, 0, 0x80, 0xff], 0xff8001],
		['one', [0, 0, 0x80], 0x80],
		['none', [0, 0, 0], 0],
	);

	for (@cases) {
		my ($name, $sums, $want) = @$_;
		my $path = scratch_file('rdo', map { $block->($_) } @$sums);
		is_hex(fingerprint_1(open_rdo($path)), $want, "fingerprint 1: $name");
	}
	my $path = scratch_file('rdo', "\x40" x 4, "\0" x 1020, $block->(5), "\1" x 512);
	is_hex(fingerprint_1(open_rdo($path)), 5, 'fingerprint 1: sums of 256, part of a block');
	$path = scratch_file('rdo', "\0" x ($MIB + 1024), $block->(9), $block->(0x81));
	is_hex(fingerprint_1(open_rdo($path)), 0x8109, 'fingerprint 1: behind a megabyte');

	$path = scratch_file('rdo', "\0" x 262144);
	is_hex(fingerprint_2(open_rdo($path)), crc32c("\0" x 262144), 'fingerprint 2: zeroes');
	my @blocks = map { chr($_) x 4096 } 0 .. 63;
	$path = scratch_file('rdo', @blocks);
	is_hex(fingerprint_2(open_rdo($path)), crc32c(join '', @blocks), 'fingerprint 2: 64 blocks');
	# of 127 blocks, sample i is block 2 * i; the last 512 bytes are in none
	$path = scratch_file('rdo', (map { chr($_) x 4096 } 0 .. 126), 'x' x 512);
	is_hex(fingerprint_2(open_rdo($path)),
	       crc32c(join '', map { chr(2 * $_) x 4096 } 0 .. 63), 'fingerprint 2: 127 blocks');
	# of two, the first 63 times
	$path = scratch_file('rdo', 'a' x 4096, 'b' x 4096);
	is_hex(fingerprint_2(open_rdo($path)),
	       crc32c('a' x (63 * 4096) . 'b' x 4096), 'fingerprint 2: two blocks');
	$path = scratch_file('rdo', 'a' x 1536);
	is_hex(fingerprint_2(open_rdo($path)),
	       crc32c(join '', map { 'a' x 1536 . "\0" x 2560 } 1 .. 64),
	       'fingerprint 2: less than a block');
}

# What is made must be read as it was meant, and give the right image
sub selftest_round_trips {
	my $rdo_data = join '', map { pack 'V*', map { $_ * 2654435761 & 0xffffffff }
				      $_ * 256 .. $_ * 256 + 255 } 1 .. 300;
	my $rdo = scratch_file('rdo', $rdo_data, 'tail' x 128);
	my @cases = (
		['--format', 1, '--units', '0,3,10-20,last'],
		['--format', 1, '--packed', '--units', '1,5-9,200'],
		['--format', 1, '--units', '2', '--zero-units', '4,last'],
		['--format', 2, '--units', '0,3,10-20,last'],
		['--format', 2, '--mapunit', '16K', '--units', '2,last', '--zero-units', '1'],
		['--format', 2, '--mapunit', '1M', '--units', 'all'],
		['--format', 2, '--units', '1-40/3', '--doffset', '64K', '--label', 'name'],
	);

	for my $arguments (@cases) {
		my $name = join ' ', @$arguments;
		my $c = made($rdo, @$arguments);
		is(join('; ', @{$c->{errors}}), '', "make and read: $name");
		my $o = make_options(@$arguments, '--rdo', $rdo, '--cow', "$scratch/cow");
		cmd_image({ %$o, out => "$scratch/image" });
		cmd_expect({ %$o, out => "$scratch/expect" });
		my $image = slurp("$scratch/image");
		ok($image eq slurp("$scratch/expect"), "image: $name");
		is(length $image, $c->{version} == 1 ? 307200 : 307712, "its size: $name");
	}
	my $c = made($rdo, '--format', 2, '--units', '3');
	cmd_image({ rdo => $rdo, cow => "$scratch/cow", out => "$scratch/image" });
	my $image = slurp("$scratch/image");
	my $unit = pack 'Q<*', map { 0xc0 << 56 | 3 << 20 | 8 * $_ } 0 .. 511;
	ok(substr($image, 12288, 4096) eq $unit, 'the pattern is as documented');
	substr $image, 12288, 4096, substr $rdo_data, 12288, 4096;
	ok($image eq $rdo_data . 'tail' x 128, 'everything else is from rdo');
}

# A cowfile written down byte by byte
sub selftest_bytes {
	my $rdo = scratch_file('rdo', "\1", "\0" x 8191);

	made($rdo, '--format', 1, '--units', '1,3');
	my $want = "\x7fCOW" . "\1\0" . "\0\0" . "\0\4\0\0\0\0\0\0" . "\0\4\0\0\0\0\0\0" .
		   "\0\x10\0\0\0\0\0\0" . "\x08\0\0\0\0\0\0\0" . "\1\0\0\0\0\0\0\0" .
		   "\2\0\0\0\0\0\0\0" . "\0" x 968 . "\x0a" . "\0" x 1023;
	my $got = slurp("$scratch/cow");
	ok(substr($got, 0, 2048) eq $want, 'format 1: head and bitmap');
	is(length $got, 8192, 'format 1: the file ends with its last unit');
	made($rdo, '--format', 1);
	is(length slurp("$scratch/cow"), 2048, 'format 1: a new file is head and bitmap');

	my $uuid = '00112233445546778899aabbccddeeff';
	made($rdo, '--format', 2, '--units', '1', '--uuid', $uuid, '--label', 'L', '--rdospec', '/r');
	# two blocks: the first 63 times, then the second
	my $fingerprint = crc32c(join '', map({ "\1" . "\0" x 4095 } 1 .. 63), "\0" x 4096);
	my $head = "\x7fCOW" . "\2\0" . "\0\0" . "\0\x10\0\0\0\0\0\0" . "\0\x10\0\0\0\0\0\0" .
		   "\0\x20\0\0\0\0\0\0" . "\2\0\0\0\0\0\0\0" . pack('V', $fingerprint) . "\0\0\0\0" .
		   "\1\0\0\0\0\0\0\0" . "\x10\0\0\0\0\0\0\0" . "\0\x10\0\0\0\0\0\0" .
		   "\0" x 8 . pack('H*', $uuid) . 'L' . "\0" x 63 . '/r' . "\0" x 254 . "\0" x 92;
	my $bits = "\2" . "\0" x 507;
	$got = slurp("$scratch/cow");
	is(length $head, 508, 'format 2: length of the head');
	ok(substr($got, 0, 512) eq $head . pack('V', crc32c($head)), 'format 2: head');
	ok(substr($got, 4096, 512) eq $bits . pack('V', crc32c($bits . "\0" x 8)),
	   'format 2: bitmap sector');
	is(length $got, 16384, 'format 2: size');
}

# Every rule, broken, must be noticed, and nothing else with it
sub selftest_damage {
	my $rdo = scratch_file('rdo', 'r' x 2048, "\0" x 8192, 'x' x 22528);
	my @cases = (
		['shorter than a head', '--format', 1, '--truncate', 511],
		['shorter than a head', '--format', 1, '--truncate', 1023],
		['its bitmap ends at 2048', '--format', 1, '--truncate', 2047],
		['its data ends at 5120', '--format', 1, '--units', 0, '--truncate', 5000],
		['magic', '--format', 1, '--set', 'magic=1'],
		['version is 0', '--format', 1, '--set', 'version=0'],
		['merge of it was', '--format', 1, '--merging'],
		['incompat', '--format', 2, '--merging'],
		['version is 3', '--format', 2, '--set', 'version=3'],
		['unknown flags', '--format', 1, '--set', 'flags=4'],
		['packed and dirty', '--format', 1, '--packed', '--dirty'],
		['packed, but format 2', '--format', 2, '--set', 'flags=2'],
		['mapunit', '--format', 1, '--set', 'mapunit=2048'],
		['mapunit', '--format', 2, '--set', 'mapunit=2048'],
		['mapsize', '--format', 1, '--set', 'mapsize=2048'],
		['mapsize', '--format', 2, '--set', 'mapsize=8192'],
		['doffset', '--format', 1, '--set', 'doffset=8192'],
		['doffset', '--format', 2, '--set', 'doffset=4096'],
		['doffset', '--format', 2, '--set', 'doffset=8704'],
		['moffset', '--format', 2, '--set', 'moffset=8192'],
		['fingerprint', '--format', 1, '--set', 'rdofingerprint=1'],
		['fingerprint', '--format', 2, '--set', 'rdofingerprint=1'],
		['rdoblocks', '--format', 1, '--set', 'rdoblocks=31'],
		['rdoblocks', '--format', 2, '--set', 'rdoblocks=9'],
		['rdosectors', '--format', 2, '--set', 'rdosectors=63'],
		['cowused', '--format', 1, '--units', '1,2', '--set', 'cowused=3'],
		['cowused', '--format', 2, '--units', '1,2', '--set', 'cowused=1'],
		['incompat', '--format', 2, '--set', 'incompat=1'],
		['uuid', '--format', 2, '--uuid', '0' x 32],
		['label has', '--format', 2, '--set', 'byte100=65'],
		['label is not UTF-8', '--format', 2, '--label', "\xff"],
		['reserved', '--format', 2, '--set', 'reserved91=1'],
		['rest of the head', '--format', 1, '--set', 'byte56=1'],
		['head checksum', '--format', 2, '--set-after-csum', 'cowused=1'],
		['head checksum', '--format', 2, '--flip', 511],
		['bitmap sector 0', '--format', 2, '--bad-sector', 0, '--set', 'cowused=0'],
		['bitmap sector 7', '--format', 2, '--bad-sector', 7],
		['bitmap sector 1', '--format', 2, '--flip', 4608],
		['bit 39 is set', '--format', 1, '--flip', 1028, '--set', 'cowused=8'],
	);

	for (@cases) {
		my ($want, @arguments) = @$_;
		my $c = made($rdo, @arguments);
		my $errors = join '; ', @{$c->{errors}};
		ok($errors =~ /\Q$want\E/, "damage noticed: @arguments");
		print "#   expected $want, got $errors\n" unless $errors =~ /\Q$want\E/;
	}
	my @harmless = (
		['--format', 1, '--dirty', '--units', '1', '--hidden-units', '2', '--set', 'cowused=7'],
		['--format', 2, '--dirty', '--units', '1', '--set', 'cowused=7'],
		['--format', 2, '--set', 'compat_ro=1'],
		['--format', 2, '--flip', 9000],
	);
	for (@harmless) {
		my $c = made($rdo, @$_);
		is(join('; ', @{$c->{errors}}), '', "no error: @$_");
	}
	# bitmap sectors that changed places are both wrong
	my $big = scratch_file('big', '');
	truncate $big, 5000 * 4096 or fail("$big: truncate: $!");
	made($big, '--format', 2, '--units', '0,4064');
	my $cow = open_file("$scratch/cow", O_RDWR);
	my $map = read_at($cow, 4096, 1024);
	write_at($cow, 4096, substr($map, 512) . substr($map, 0, 512));
	my $errors = join '; ', @{parse_cow($cow)->{errors}};
	ok($errors =~ /bitmap sector 0.*bitmap sector 1/, 'damage noticed: sectors swapped');
}

# A merge that has begun: what the record has, written down
sub selftest_record {
	my $rdo_data = join '', map { chr($_) x 1024 } 1 .. 12;
	my $rdo = scratch_file('rdo', $rdo_data);

	made($rdo, '--format', 1, '--units', '1,2', '--merging');
	my $got = slurp("$scratch/cow");
	my $masked = fingerprint_1(open_rdo(scratch_file('rest', substr($rdo_data, 0, 1024), substr $rdo_data, 3072)));
	my $csums = sub { join '', map { pack 'V', crc32c(substr $rdo_data, $_ * 512, 512) } @_ };
	# sums of 0 modulo 256, all of them but the fingerprint counts none: 1024 * n
	my $body = pack('Q<', $masked) . "\xff" x 32;
	$body .= "\0" x (504 - length $body);
	ok(substr($got, 512, 512) eq 'MERG' . pack('V', crc32c($body)) . $body, 'record: no block that counts');

	substr $rdo_data, $_ * 1024 + 9, 1, 'x' for 2, 3, 5, 6, 9;
	$rdo = scratch_file('rdo', $rdo_data);
	made($rdo, '--format', 1, '--units', '1,2,5', '--merging');
	$got = slurp("$scratch/cow");
	$masked = fingerprint_1(open_rdo(scratch_file('rest', map { substr $rdo_data, $_ * 1024, 1024 } 3, 6, 9)));
	$body = pack('Q<Q<4', $masked, 2, 3, 5, 6) . $csums->(4 .. 7, 10 .. 13);
	$body .= "\0" x (504 - length $body);
	ok(substr($got, 512, 512) eq 'MERG' . pack('V', crc32c($body)) . $body, 'record: four blocks');
	is(unpack('v', substr $got, 4, 2), 0x4001, 'record: format 1 is marked');

	# three blocks of 4096: samples 0 to 31 are the first, then the second, and one of the third
	made($rdo, '--units', '1', '--merging');
	$got = slurp("$scratch/cow");
	$masked = crc32c(substr($rdo_data, 0, 4096) x 32 . "\0" x (31 * 4096) . substr $rdo_data, 8192, 4096);
	$body = pack('Q<', $masked) . "\0" x 32 . $csums->(0 .. 7) x 32 . $csums->(8 .. 15) x 31 . $csums->(16 .. 23);
	$body .= "\0" x (3576 - length $body);
	ok(substr($got, 512, 3584) eq 'MERG' . pack('V', crc32c($body)) . $body, 'record: format 2');
	is(unpack('V', substr $got, 72, 4), 1, 'record: format 2 is marked');
	is_hex(unpack('Q<', substr $got, 40, 8), $masked, 'record: the head has its fingerprint');
	for (['valid', '--merging'], ['none', '--merging', '--no-record'], ['damaged', '--merging', '--flip', 600]) {
		my ($want, @arguments) = @$_;
		is(made($rdo, @arguments)->{record}, $want, "record: @arguments");
		is(made($rdo, '--format', 1, @arguments)->{record}, $want, "record: format 1 @arguments");
	}
	for my $format (1, 2) {
		my $c = made($rdo, '--format', $format, '--stale-record');
		is(join('; ', @{$c->{errors}}), '', "record: no error in one that is left, format $format");
	}
}

sub cmd_selftest {
	require File::Temp;
	$scratch = File::Temp::tempdir(CLEANUP => 1);
	selftest_numbers();
	selftest_fingerprints();
	selftest_bytes();
	selftest_round_trips();
	selftest_damage();
	selftest_record();
	print "1..$tests\n";
	return $failed ? 1 : 0;
}

# ---------- The command line ----------

# The options, as a hash, and the other arguments
sub options {
	my @rest = @_;
	my %o = (format => 2, 'fill-seed' => 192, set => [], 'set-after-csum' => [],
		 flip => [], 'bad-sector' => []);

	GetOptionsFromArray(\@rest, \%o, 'help', 'format=i', 'rdo=s', 'cow=s', 'out=s',
			    'mapunit=s', 'doffset=s', 'label=s', 'rdospec=s', 'uuid=s',
			    'units=s', 'zero-units=s', 'hidden-units=s', 'fill-seed=s',
			    'data=s', 'merging', 'no-record', 'stale-record', 'set=s@', 'set-after-csum=s@', 'flip=s@',
			    'bad-sector=s@', 'truncate=s', 'dirty', 'packed')
		or fail('try --help');
	return (\%o, @rest);
}

sub make_options { return (options(@_))[0] }

sub cmd_serve {
	my ($o, $output) = @_;
	my ($compute, %known) = \&fingerprint_2;

	no warnings 'redefine';
	local *fingerprint_2 = sub {
		return defined $_[1] ? $compute->(@_) : $known{$_[0]{path}} //= $compute->(@_);
	};
	$| = 1;
	while (my $line = <STDIN>) {
		fingerprint_2(open_rdo($1)) if $line !~ /--format 1/ && $line =~ /--rdo (\S+)/;
		my $pid = fork // fail("can't fork: $!");
		if (!$pid) {
			open STDOUT, '>', $output or fail("$output: $!");
			open STDERR, '>&', \*STDOUT or fail("$output: $!");
			exit main(grep { $_ ne '--units=' } split ' ', $line);
		}
		waitpid $pid, 0;
		print $? >> 8, "\n";
	}
	return 0;
}

sub main {
	my ($o, $command, @files) = options(@_);
	my %commands = (	# what to run, options it needs, files it needs
		make		=> [\&cmd_make, ['rdo', 'cow'], 0],
		image		=> [\&cmd_image, ['rdo', 'cow', 'out'], 0],
		expect		=> [\&cmd_expect, ['rdo', 'out'], 0],
		dump		=> [\&cmd_dump, [], 1],
		fingerprint	=> [\&cmd_fingerprint, [], 1],
		selftest	=> [\&cmd_selftest, [], 0],
		serve		=> [\&cmd_serve, [], 1],
	);

	if ($o->{help}) {
		print $USAGE;
		return 0;
	}
	fail('needs a command; try --help') unless defined $command;
	my $c = $commands{$command} or fail("$command: no such command; try --help");
	for (@{$c->[1]}) {
		defined $o->{$_} or fail("$command: needs --$_");
	}
	@files == $c->[2] or fail("$command: needs $c->[2] file arguments");
	my $status = $c->[0]->($o, @files);
	close STDOUT or fail("can't write to stdout: $!");
	return $status;
}

exit main(@ARGV);
