// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowfuzz: feeds cowsetup's commands with cowfiles and packed files that may be
 * anything. They may refuse them, but not crash, hang or eat memory.
 *
 * An input is ten bytes and then a file:
 *
 *	0	the command, modulo how many there are
 *	1	bit 0: make the head's checksum right
 *		bit 1: make those of the bitmap sectors right
 *		bit 2: make the file as long as is said below
 *		bit 3, 4, 5: --force, --dry-run, --json
 *		bit 6: make the sizes in the head agree with the device's
 *		bit 7: make the checksum and fingerprint of a merge's record right
 *	2..9	how long; a hole is added, or some of it is cut off
 *
 * With clang's -fsanitize=fuzzer this is a target for libFuzzer. Otherwise it is
 * a program: cowfuzz COUNT FILE... runs the files, and COUNT mutations of them,
 * other ones each time; it prints the seed by which they come again.
 */

#include <endian.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../boot/memory.h"
#include "../../lib/crc32c.h"
#include "../../cowsetup/cowsetup.h"
#include "../../cowsetup/output.h"
#include "../../lib/cowfile.h"

#ifndef LIBFUZZER
#include "fuzz.h"
#endif

#define PREFIX		10
#define MAX_INPUT	(256 * 1024)

static struct cowloop_ctx *ctx;
static char *target;		/* what is written by pack and unpack */

static int run_unpack(int argc, char **argv)
{
	char *args[] = { argv[0], target };
	int r = cmd_unpack(ctx, argc + 1, args);

	unlink(target);
	return r;
}

static int run_pack(int argc, char **argv)
{
	char *args[] = { argv[0], target };
	int r = cmd_pack(ctx, argc + 1, args);

	unlink(target);
	return r;
}

/* A device of the size that the head has, almost all zeroes: see the seeds. */
static int run_check(int argc, char **argv)
{
	struct cow_head head = { 0 };
	char rdo[32];
	int r, fd = open(argv[0], O_RDONLY | O_CLOEXEC);
	u64 size;

	if (fd < 0 || pread(fd, &head, sizeof(head), 0) < 0)
		abort();
	close(fd);
	size = le16(head.version) == 2 ? le64(head.rdosectors) * 512 :
					 le64(head.rdoblocks) * COW_V1_MAPUNIT;
	fd = memfd_create("cowfuzz-rdo", MFD_CLOEXEC);
	if (fd < 0 || pwrite(fd, "x", 1, 5000) != 1)
		abort();
	if (size <= COW_MAX_BYTES && !ftruncate(fd, size)) {
		snprintf(rdo, sizeof(rdo), "/proc/self/fd/%d", fd);
		opt.rdo = rdo;
	}
	r = cmd_check(ctx, argc, argv);
	opt.rdo = NULL;
	close(fd);
	return r;
}

/*
 * May udev take this into its environment? Each property once, and nothing in it
 * that a terminal takes for something else; names of links as udev makes them,
 * which leave all of UTF-8 as it is.
 */
static void check_properties(char *text)
{
	static const char *const keys[] = {
		"ID_FS_TYPE", "ID_FS_USAGE", "ID_FS_VERSION", "ID_FS_UUID", "ID_FS_UUID_ENC", "ID_FS_LABEL",
		"ID_FS_LABEL_ENC",
	};
	unsigned int seen = 0, key;
	char *save, *value;
	bool link;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		value = strchr(line, '=');
		if (!value)
			abort();
		*value++ = 0;
		for (key = 0; key < sizeof(keys) / sizeof(keys[0]) && strcmp(line, keys[key]); key++)
			;
		if (key == sizeof(keys) / sizeof(keys[0]) || seen & 1 << key)
			abort();
		seen |= 1 << key;
		link = strstr(line, "_ENC");
		for (const unsigned char *p = (unsigned char *)value; *p; p++)
			if (*p < ' ' || *p == 127 || (*p == 0xc2 && p[1] < 0xa0 && !link))
				abort();
		if (link && strpbrk(value, "/ \"'$`;&|<>*?"))
			abort();
	}
}

static int run_probe(int argc, char **argv)
{
	FILE *was = stdout;
	char *text = NULL;
	size_t size = 0;
	int r;

	stdout = open_memstream(&text, &size);
	if (!stdout)
		abort();
	r = cmd_probe(ctx, argc, argv);
	fclose(stdout);
	stdout = was;
	check_properties(text);
	free(text);
	return r;
}

static int run_dump(int argc, char **argv)
{
	return cmd_dump(ctx, argc, argv);
}

static int run_map(int argc, char **argv)
{
	return cmd_map(ctx, argc, argv);
}

static int run_repair(int argc, char **argv)
{
	return cmd_repair(ctx, argc, argv);
}

#define UNPACK	5

static int (*const commands[])(int argc, char **argv) = {
	run_dump, run_map, run_check, run_repair, run_pack, [UNPACK] = run_unpack,
	run_probe,
};

/* A cowfile for a device as large as the head has it. */
static void fix_sizes(struct cow_head *head)
{
	const unsigned int format = le16(head->version) == COW_V1_MERGING ? 1 : le16(head->version);
	const uint64_t sectors = format == 1 ? le64(head->rdoblocks) * 2 : le64(head->rdosectors);
	const uint64_t mapunit = format == 1 ? COW_V1_MAPUNIT : le64(head->mapunit);
	struct cow_geometry geo;

	if ((format != 1 && format != 2) || sectors > COW_MAX_BYTES / 512)
		return;
	if (format == 2 && !cow_v2_mapunit_valid(mapunit))
		return;
	cow_geometry_init(&geo, format, mapunit, sectors);
	head->mapsize = htole64(geo.mapsize);
	head->doffset = htole64(geo.doffset);
	head->rdoblocks = htole64(geo.nr_units);
}

static void fix_record(uint8_t *file, size_t size)
{
	const struct cow_head *head = (struct cow_head *)file;
	struct cow_merge_record *record = (struct cow_merge_record *)(file + COW_RECORD_OFFSET);
	const size_t length = le16(head->version) == 2 ? COW_V2_RECORD_SIZE : COW_V1_RECORD_SIZE;
	const size_t from = offsetof(struct cow_merge_record, rdofingerprint);

	if (size < COW_RECORD_OFFSET + length)
		return;
	record->magic = htole32(COW_RECORD_MAGIC);
	record->rdofingerprint = head->rdofingerprint;
	record->csum = htole32(crc32c(0, (uint8_t *)record + from, length - from));
}

/* Make right what is asked for, as far as the file goes. */
static void fix(uint8_t *file, size_t size, unsigned int what)
{
	struct cow_head *head = (struct cow_head *)file;
	struct cowfile c = { .format = 2 };

	if (size < sizeof(*head))
		return;
	if (what & 64)
		fix_sizes(head);
	if (what & 128)
		fix_record(file, size);
	if (le16(head->version) != 2)
		return;
	if (what & 1)
		head->csum = htole32(crc32c(0, head, offsetof(struct cow_head, csum)));
	if (!(what & 2))
		return;
	c.sector_bytes = COW_V2_SECTOR_BYTES;
	for (uint64_t sector = 0; sector < le64(head->mapsize) / COW_MAP_SECTOR; sector++) {
		const uint64_t at = COW_V2_MOFFSET + sector * COW_MAP_SECTOR;
		uint8_t data[COW_MAP_SECTOR];

		if (at + COW_MAP_SECTOR > size)
			break;
		cow_encode_bits(&c, sector, file + at, data);
		memcpy(file + at, data, sizeof(data));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t file[MAX_INPUT];
	char path[32], *argv[] = { path };
	unsigned int which;
	uint64_t length;
	int fd;

	if (!ctx)
		ctx = output_context();
	if (!target)
		target = xasprintf("/dev/shm/cowfuzz.%d", getpid());
	if (size < PREFIX || size > MAX_INPUT)
		return 0;
	which = data[0] % (sizeof(commands) / sizeof(commands[0]));
	opt = (struct options){
		.batch_mode = true,
		.force = data[1] & 8,
		.dry_run = data[1] & 16,
		.json = data[1] & 32,
	};
	memcpy(file, data + PREFIX, size - PREFIX);
	fix(file, size - PREFIX, data[1]);

	fd = memfd_create("cowfuzz", MFD_CLOEXEC);
	if (fd < 0 || write(fd, file, size - PREFIX) != (ssize_t)(size - PREFIX))
		abort();
	memcpy(&length, data + 2, sizeof(length));
	length = le64toh(length) & INT64_MAX;
	/* A stream is read to its end, and takes the time that this takes. */
	if (which == UNPACK && length > MAX_INPUT)
		length = MAX_INPUT;
	if (data[1] & 4 && ftruncate(fd, length))
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	commands[which](1, argv);
	close(fd);
	return 0;
}

#ifndef LIBFUZZER

/* Numbers at which things go wrong. */
static uint64_t odd_number(void)
{
	static const int64_t near[] = {
		0, 1, -1, 511, 512, 4096, 65536, INT32_MAX, UINT32_MAX, INT64_MAX,
	};

	switch (rnd(3)) {
	case 0:
		return near[rnd(sizeof(near) / sizeof(near[0]))] + rnd(3) - 1;
	case 1:
		return 1ULL << rnd(64);
	default:
		return rnd(UINT64_MAX) >> rnd(64);
	}
}

/* Most of what decides is in the head, a bit in the bitmap. */
static size_t place(size_t size)
{
	const size_t n = size - PREFIX;

	switch (rnd(4)) {
	case 0:
		return PREFIX + rnd(n);
	case 1:
		return n > 4096 + 512 ? PREFIX + 4096 + rnd(512) : PREFIX + rnd(n);
	default:
		return PREFIX + rnd(n < 96 ? n : 96);
	}
}

/* A label, or a place of rdo, with what a terminal, a line or udev might do something with. */
static void put_text(struct cow_head *head)
{
	static const char *const pieces[] = {
		"a", " ", "/", "\n", "\nID_FS_TYPE=ext4", "\\", "\\x2f", "..", "\033[31m", "\xc2\x9b", "\xff", "$(x)", "%s", "\x7f",
	};
	const bool label = rnd(3);
	char *to = label ? (char *)head->label : (char *)head->rdospec;
	char *const end = to + (label ? sizeof(head->label) : sizeof(head->rdospec));

	for (unsigned int i = rnd(8) + 1; i && to < end; i--)
		to = stpncpy(to, pieces[rnd(sizeof(pieces) / sizeof(pieces[0]))], end - to);
}

static size_t mutate(uint8_t *data, size_t size)
{
	uint64_t number;

	data[0] = rnd(256);
	data[1] = rnd(256);
	for (unsigned int i = rnd(6) + 1; i && size > PREFIX + 8; i--) {
		const size_t at = place(size);

		switch (rnd(7)) {
		case 0:
			data[at] ^= 1 << rnd(8);
			break;
		case 1:
			data[at] = rnd(256);
			break;
		case 2:
		case 3:
			number = htole64(odd_number());
			/* Where the numbers are. */
			memcpy(data + PREFIX + rnd(10) * 8, &number, size > PREFIX + 88 ? 8 : 0);
			break;
		case 4:
			number = htole64(odd_number());
			memcpy(data + 2, &number, 8);
			break;
		case 5:
			if (!rnd(4))
				size = PREFIX + rnd(size - PREFIX);
			break;
		case 6:
			if (size >= PREFIX + sizeof(struct cow_head))
				put_text((struct cow_head *)(data + PREFIX));
			break;
		}
	}
	return size;
}

static uint8_t *load(const char *path, size_t *size)
{
	struct stat st;
	uint8_t *data;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st) || st.st_size > MAX_INPUT) {
		perror(path);
		exit(1);
	}
	data = xmalloc(st.st_size + 1);
	*size = read(fd, data, st.st_size);
	close(fd);
	return data;
}

int main(int argc, char **argv)
{
	static uint8_t data[MAX_INPUT];
	const int nr_files = argc - 2;
	const unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	static uint8_t **files;
	static size_t *sizes;

	if (nr_files < 1) {
		fprintf(stderr, "usage: cowfuzz COUNT FILE...\n");
		return 1;
	}
	files = xmalloc(nr_files * sizeof(*files));
	sizes = xmalloc(nr_files * sizeof(*sizes));
	for (int i = 0; i < nr_files; i++)
		files[i] = load(argv[i + 2], &sizes[i]);

	seed_random("cowfuzz", "COWFUZZ_SEED");
	/* The commands' messages are of no interest here; those of the compiler's checks, to 2, are. */
	stdout = stderr = fopen("/dev/null", "w");
	if (!stderr)
		return 1;

	for (int i = 0; i < nr_files; i++)
		LLVMFuzzerTestOneInput(files[i], sizes[i]);
	for (unsigned long n = 0; n < count; n++) {
		const int i = rnd(nr_files);

		memcpy(data, files[i], sizes[i]);
		limit_time();
		LLVMFuzzerTestOneInput(data, mutate(data, sizes[i]));
	}
	dprintf(STDOUT_FILENO, "%d files, %lu mutations\n", nr_files, count);
	return 0;
}

#endif
