// SPDX-License-Identifier: GPL-2.0-only
/*
 * hostile - opens cowfiles that may be anything, and changes them while they are open
 *
 *	hostile [COUNT [SEED]] RDO COW
 *
 * RDO and COW are block devices, RDO at least as large as the largest of sizes[] below, COW
 * somewhat larger. COUNT cowfiles of both formats are made, mutated, opened by the target,
 * read, written, discarded, synced, reloaded and closed. During half of that a thread writes
 * over their head, their bitmap and their data.
 *
 * The target may refuse a cowfile, and fail I/O with the errors that a disk has. It must not
 * write rdo, nor outside the cow device. For the rest, the kernel says itself what is wrong
 * with it. The same seed makes the same cowfiles.
 */
#include <endian.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/stat.h>

#include "dm.h"
#include "../dm-cowloop.h"

#define IMAGE		(128 * 1024)	/* head and bitmap of any of them */
#define MAX_IO		(256 * 1024)
#define BEHIND		4096		/* bytes behind the cow device that are watched */

/* Of rdo, in sectors: less than a unit, a short last unit, two regions of the bitmap and three */
static const uint64_t sizes[] = { 3, 2051, 9216, 81920, 614400 };

static struct {
	uint64_t sectors;
	char dev[16];
	uint64_t print[3];	/* by format */
} rdo[ARRAY_SIZE(sizes)];

static int cow_fd;
static uint64_t cow_base_sectors;
static char cow_path[256];
static unsigned long nr_opened, nr_refused, nr_ios, nr_errors;

/* ---- Numbers ---- */

static int chance(unsigned int percent)
{
	return rnd(100) < percent;
}

static void randomize(void *to, size_t size)
{
	unsigned char *p = to;

	while (size--)
		*p++ = next_random(&random_state);
}

static uint32_t crc32c(uint32_t crc, const void *data, size_t size)
{
	static uint32_t table[256];
	const unsigned char *p = data;
	unsigned int i, j;

	for (i = 1; i < 256 && !table[255]; i++) {
		table[i] = i;
		for (j = 0; j < 8; j++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78 : 0);
	}
	while (size--)
		crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
	return crc;
}

/* ---- Device-mapper ---- */

static int dm_suspend(const char *name, bool suspend)
{
	return dm_try(DM_DEV_SUSPEND, name, suspend ? DM_SUSPEND_FLAG : 0);
}

static void dm_status(const char *name, bool table)
{
	dm_simple(DM_TABLE_STATUS, name, table ? DM_STATUS_TABLE_FLAG : 0);
}

static void dm_number(const char *name, char *to, size_t size)
{
	const dev_t dev = dm_device(name);

	snprintf(to, size, "%u:%u", major(dev), minor(dev));
}

static void linear(const char *name, uint64_t sectors, const char *base)
{
	char params[300];
	int err;

	snprintf(params, sizeof(params), "%s 0", base);
	err = dm_try_load(name, sectors, "linear", params);
	if (!err)
		err = dm_suspend(name, false);
	if (err)
		die_errno(err, "%s of %" PRIu64 " sectors", name, sectors);
}

/* ---- The devices below ---- */

static void raw_write(const void *data, size_t size, uint64_t at)
{
	if (at + size <= cow_base_sectors * SECTOR)
		write_exactly(cow_fd, cow_path, data, size, at);
}

static uint64_t checksum(int fd, uint64_t sectors)
{
	static uint64_t *buf;
	uint64_t sum = 0, at, n, i;

	if (!buf)
		buf = allocate(1 << 20);
	for (at = 0; at < sectors * SECTOR; at += n) {
		n = sectors * SECTOR - at;
		n = n < 1 << 20 ? n : 1 << 20;
		read_exactly(fd, "a device", buf, n, at);
		for (i = 0; i < n / 8; i++)
			sum = (sum ^ buf[i]) * 0x100000001b3ULL;
	}
	return sum;
}

static uint64_t print_v1(int fd, uint64_t sectors)
{
	unsigned char *buf = allocate(4096);
	unsigned int found = 0, i;
	uint64_t at, print = 0;
	unsigned char sum;

	for (at = 0; at + 1024 <= sectors * SECTOR && found < 4; at += 1024) {
		read_exactly(fd, "a device", buf, 1024, at);
		for (i = 0, sum = 0; i < 1024; i++)
			sum += buf[i];
		if (sum)
			print |= (int64_t)(int32_t)((uint32_t)sum << 8 * found++);
	}
	free(buf);
	return print;
}

static uint64_t print_v2(int fd, uint64_t sectors)
{
	unsigned char *buf = allocate(4096);
	uint64_t nr = sectors / 8 ? sectors / 8 : 1;
	uint32_t crc = ~0U;
	unsigned int i;

	for (i = 0; i < 64; i++) {
		read_exactly(fd, "a device", buf, sectors < 8 ? sectors * SECTOR : 4096, (nr - 1) * i / 63 * 4096);
		crc = crc32c(crc, buf, 4096);
	}
	free(buf);
	return (uint32_t)~crc;
}

static void make_rdos(const char *base, int fd)
{
	char name[16];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		snprintf(name, sizeof(name), "hostile-rdo%u", i);
		dm_simple(DM_DEV_CREATE, name, 0);
		linear(name, sizes[i], base);
		dm_number(name, rdo[i].dev, sizeof(rdo[i].dev));
		rdo[i].sectors = sizes[i];
		rdo[i].print[1] = print_v1(fd, sizes[i]);
		rdo[i].print[2] = print_v2(fd, sizes[i]);
	}
}

/* ---- Cowfiles ---- */

static unsigned char *image;	/* IMAGE bytes: head and bitmap */
static struct cow_geometry geo;	/* as it should be */
static unsigned int which;	/* of rdo[] */

static struct cow_head *head(void)
{
	return (struct cow_head *)image;
}

static void fix_head(void)
{
	head()->csum = htole32(~crc32c(~0U, image, offsetof(struct cow_head, csum)));
}

static unsigned char *map_sector(uint64_t sector)
{
	return image + geo.moffset + sector * COW_MAP_SECTOR;
}

static uint64_t nr_map_sectors(void)
{
	return geo.mapsize / COW_MAP_SECTOR;
}

static void fix_map_sector(uint64_t sector)
{
	struct cow_map_sector *s = (struct cow_map_sector *)map_sector(sector);
	const uint64_t index = htole64(sector);

	if (geo.format == 2)
		s->csum = htole32(~crc32c(crc32c(~0U, s->bits, sizeof(s->bits)), &index, 8));
}

/* Bits of the units, in one of several patterns; returns how many. */
static uint64_t fill_bitmap(void)
{
	const unsigned int bytes = geo.format == 2 ? COW_V2_SECTOR_BYTES : COW_V1_SECTOR_BYTES;
	const unsigned int pattern = rnd(5);
	uint64_t unit, used = 0;

	for (unit = 0; unit < geo.nr_units; unit++) {
		unsigned char *byte = map_sector(unit / 8 / bytes) + unit / 8 % bytes;
		int set = pattern == 1 || (pattern == 2 && unit % 97 == 5) ||
			  (pattern == 3 && next_random(&random_state) & 1) || (pattern == 4 && unit >> 12 & 1);

		if (set)
			*byte |= 1 << unit % 8;
		used += set;
	}
	for (unit = 0; unit < nr_map_sectors(); unit++)
		fix_map_sector(unit);
	return used;
}

/* A cowfile as it should be. */
static void make_cowfile(void)
{
	const unsigned int format = 1 + chance(60);
	const unsigned int mapunit = format == 1 ? 1024 : 4096U << (chance(30) ? rnd(9) : 0);
	struct cow_head *h = head();

	which = rnd(ARRAY_SIZE(sizes));
	/* Repair reads all of them. */
	if (format == 1 && which == ARRAY_SIZE(sizes) - 1)
		which--;
	memset(image, 0, IMAGE);
	cow_geometry_init(&geo, format, mapunit, rdo[which].sectors);
	h->magic = htole32(COW_MAGIC);
	h->version = htole16(format);
	h->flags = htole16(chance(30) ? COW_FLAG_DIRTY : 0);
	h->mapunit = htole64(mapunit);
	h->mapsize = htole64(geo.mapsize);
	h->doffset = htole64(geo.doffset);
	h->rdoblocks = htole64(geo.nr_units);
	h->rdofingerprint = htole64(rdo[which].print[format]);
	h->cowused = htole64(fill_bitmap());
	if (format == 2) {
		h->rdosectors = htole64(geo.rdo_sectors);
		h->moffset = htole64(geo.moffset);
		randomize(h->uuid, sizeof(h->uuid));
		fix_head();
	}
}

static uint64_t odd_number(uint64_t was)
{
	switch (rnd(12)) {
	case 0: return 0;
	case 1: return ~0ULL;
	case 2: return 1ULL << rnd(64);
	case 3: return (1ULL << rnd(64)) - 1;
	case 4: return was + 1;
	case 5: return was - 1;
	case 6: return was * 2;
	case 7: return was / 2;
	case 8: return was + (4096 << rnd(20));
	case 9: return -was;
	case 10: return cow_base_sectors * SECTOR - rnd(3) * 4096;
	default: return next_random(&random_state);
	}
}

static void mutate_field(void)
{
	static const struct {
		unsigned char at, size;
	} fields[] = {
		{ 0, 4 }, { 4, 2 }, { 6, 2 }, { 8, 8 }, { 16, 8 }, { 24, 8 }, { 32, 8 },
		{ 40, 8 }, { 48, 8 }, { 56, 8 }, { 64, 8 }, { 72, 4 }, { 76, 4 },
	};
	const unsigned int i = rnd(ARRAY_SIZE(fields));
	uint64_t n = 0;

	memcpy(&n, image + fields[i].at, fields[i].size);
	n = htole64(odd_number(le64toh(n)));
	memcpy(image + fields[i].at, &n, fields[i].size);
}

static void mutate_bitmap(void)
{
	const uint64_t sector = rnd(nr_map_sectors());

	switch (rnd(4)) {
	case 0:
		memset(map_sector(sector), chance(50) ? 0xff : 0, COW_MAP_SECTOR);
		break;
	case 1:
		memcpy(map_sector(sector), map_sector(rnd(nr_map_sectors())), COW_MAP_SECTOR);
		break;
	default:
		randomize(map_sector(sector), COW_MAP_SECTOR);
	}
	if (chance(70))
		fix_map_sector(sector);
}

/* What a cowfile goes on being opened with. */
static void mutate_gently(void)
{
	struct cow_head *h = head();

	if (chance(70))
		mutate_bitmap();
	if (geo.format == 2 && chance(50))
		h->cowused = htole64(rnd(geo.nr_units + 1));
	if (geo.format == 2 && chance(30))
		h->doffset = htole64(geo.doffset + ((uint64_t)geo.mapunit << rnd(36)));
	if (geo.format == 2 && chance(10))
		h->compat_ro = htole32(next_random(&random_state));
	if (geo.format == 1 && chance(80))
		h->flags = htole16(COW_FLAG_DIRTY);
	randomize(h->label, sizeof(h->label));
	fix_head();
}

static void mutate(void)
{
	unsigned int n = 1 + rnd(3);

	if (chance(45)) {
		mutate_gently();
		return;
	}
	while (n--) {
		switch (rnd(6)) {
		case 0:
			image[rnd(COW_V2_HEAD_SIZE)] ^= 1 << rnd(8);
			break;
		case 1:
			mutate_bitmap();
			break;
		case 2:
			if (chance(20))
				randomize(image, chance(50) ? 4096 : IMAGE);
			else if (chance(20))
				memset(image, 0, 4096);
			break;
		default:
			mutate_field();
		}
	}
	if (le16toh(head()->version) == 2 && chance(90))
		fix_head();
}

/* How large the cow device is, in sectors: sometimes it ends where it hurts. */
static uint64_t cow_sectors(void)
{
	const uint64_t all = cow_base_sectors - BEHIND / SECTOR;
	const uint64_t ends[] = {
		1 + rnd(16), geo.moffset / SECTOR, (geo.moffset + geo.mapsize) / SECTOR,
		geo.doffset / SECTOR, geo.doffset / SECTOR + rnd(geo.rdo_sectors),
		(geo.doffset + geo.nr_units * geo.mapunit) / SECTOR,
	};
	uint64_t n = ends[rnd(ARRAY_SIZE(ends))] + rnd(3) - 1;

	if (chance(75))
		return all;
	return n && n < all ? n : all;
}

/* ---- While they are open ---- */

/* Head, bitmap or data of a live cowfile is written over, here or by a thread of its own. */
static void scribble(uint64_t *s, unsigned char *buf)
{
	const uint64_t map = geo.moffset / SECTOR, map_end = map + nr_map_sectors();
	uint64_t sector, i;

	switch (next_random(s) % 4) {
	case 0:
		sector = next_random(s) % 16;
		break;
	case 1:
		sector = geo.doffset / SECTOR + next_random(s) % (geo.rdo_sectors + 1);
		break;
	default:
		sector = map + next_random(s) % (map_end - map);
	}
	switch (next_random(s) % 4) {
	case 0:
		memset(buf, next_random(s) % 2 ? 0xff : 0, SECTOR);
		break;
	case 1:
		memcpy(buf, image + sector % (IMAGE / SECTOR) * SECTOR, SECTOR);
		break;
	default:
		for (i = 0; i < SECTOR; i++)
			buf[i] = next_random(s);
		/* As a sector of the bitmap, one that may be right. */
		if (sector >= map && next_random(s) % 2) {
			const uint64_t index = htole64(sector - map);
			uint32_t crc = crc32c(~0U, buf, COW_V2_SECTOR_BYTES);

			crc = htole32(~crc32c(crc, &index, 8));
			memcpy(buf + COW_V2_SECTOR_BYTES, &crc, 4);
		}
	}
	raw_write(buf, SECTOR, sector * SECTOR);
}

static pthread_mutex_t scribbling = PTHREAD_MUTEX_INITIALIZER;
static volatile int scribbler_runs;
static uint64_t scribbler_state;

static void *scribbler(void *arg)
{
	unsigned char *buf = allocate(4096);

	for (;;) {
		pthread_mutex_lock(&scribbling);
		if (scribbler_runs)
			scribble(&scribbler_state, buf);
		pthread_mutex_unlock(&scribbling);
		usleep(scribbler_runs ? 200 : 2000);
	}
	return arg;
}

static void set_scribbler(int runs)
{
	pthread_mutex_lock(&scribbling);
	scribbler_runs = runs;
	scribbler_state = next_random(&random_state);
	pthread_mutex_unlock(&scribbling);
}

/* The errors that a disk may have, and a cowloop device. */
static void io_ended(const char *what, int failed)
{
	nr_ios++;
	if (!failed)
		return;
	nr_errors++;
	switch (errno) {
	case EIO: case ENOSPC: case EOPNOTSUPP: case EROFS: case EPERM: case EBADF:
		return;
	}
	die_errno(errno, "%s", what);
}

/* Clean memory is given back, and with it parts of the bitmap: they are read again. */
static void drop_caches(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	if (fd < 0 || write(fd, "2", 1) != 1)
		die_errno(errno, "cannot drop caches");
	close(fd);
}

static void do_io(int fd, unsigned char *buf)
{
	const uint64_t size = geo.rdo_sectors * SECTOR;
	uint64_t range[2], at, length;

	at = rnd(geo.rdo_sectors) * SECTOR;
	length = (1 + rnd(chance(30) ? MAX_IO / SECTOR : 16)) * SECTOR;
	if (length > size - at)
		length = size - at;
	range[0] = at;
	range[1] = chance(50) ? length : size - at;
	switch (rnd(8)) {
	case 0: case 1:
		io_ended("read", pread(fd, buf, length, at) != (ssize_t)length);
		break;
	case 2: case 3: case 4:
		if (chance(50))
			buf[rnd(length)] ^= 0x55;
		io_ended("write", pwrite(fd, buf, length, at) != (ssize_t)length);
		break;
	case 5:
		io_ended("discard", ioctl(fd, BLKDISCARD, range));
		break;
	case 6:
		range[1] = length;
		io_ended("write zeroes", ioctl(fd, BLKZEROOUT, range));
		break;
	default:
		io_ended("fsync", fsync(fd));
	}
}

static void do_control(const char *name, const char *params, unsigned char *buf)
{
	char message[64];
	int err;

	switch (rnd(8)) {
	case 0: case 1:
		dm_try_message(name, "sync");
		break;
	case 2:
		snprintf(message, sizeof(message), "%s %llu", chance(50) ? "limit" : "low_water",
			 (unsigned long long)(chance(50) ? rnd(geo.nr_units + 1) : odd_number(9)));
		dm_try_message(name, message);
		break;
	case 3:
		dm_status(name, chance(30));
		break;
	case 4:
		if (chance(30))
			dm_try_message(name, chance(50) ? "read_only" : "close");
		break;
	case 5:
		if (chance(50))
			dm_try_load(name, geo.rdo_sectors, "cowloop", params);
		err = dm_suspend(name, true);
		if (!err)
			err = dm_suspend(name, false);
		if (err)
			die_errno(err, "cannot suspend and resume");
		break;
	case 6:
		if (chance(30))
			drop_caches();
		break;
	default:
		scribble(&random_state, buf);
	}
}

static void use_device(const char *name, const char *params)
{
	static unsigned char *buf;
	const dev_t dev = dm_device(name);
	unsigned int n = 8 + rnd(24);
	char node[64];
	int fd;

	if (!buf)
		buf = allocate(MAX_IO);
	snprintf(node, sizeof(node), "/dev/hostile-%u-%u", major(dev), minor(dev));
	if (mknod(node, S_IFBLK | 0600, dev) && errno != EEXIST)
		die_errno(errno, "%s", node);
	fd = open(node, O_RDWR | O_DIRECT);
	if (fd < 0)
		fd = open_path(node, O_RDONLY | O_DIRECT);
	set_scribbler(chance(50));
	while (n--) {
		if (chance(75))
			do_io(fd, buf);
		else
			do_control(name, params, buf);
	}
	set_scribbler(0);
	close(fd);
	unlink(node);
}

/* ---- One of them ---- */

static void choose_options(char *to, size_t size)
{
	static const char *const options[] = {
		"", " 1 repair", " 1 repair", " 1 read_only", " 2 limit:100 low_water:5",
		" 1 no_discard_passdown", " 2 repair limit:1", " 3 limit:1000 reserve:10 repair",
	};

	snprintf(to, size, "%s", options[rnd(ARRAY_SIZE(options))]);
}

static void attempt(int remake)
{
	static uint64_t sectors;
	unsigned char *behind = allocate(BEHIND);
	char params[512], options[64], cow[16];
	unsigned int i;

	/* Else what the last one has left is opened again. */
	if (remake) {
		make_cowfile();
		if (chance(95))
			mutate();
		raw_write(image, IMAGE, 0);
		sectors = cow_sectors();
		linear("hostile-cow", sectors, cow_path);
	}
	memset(behind, 0x5a, BEHIND);
	raw_write(behind, BEHIND, sectors * SECTOR);

	dm_simple(DM_DEV_CREATE, "hostile", 0);
	dm_number("hostile-cow", cow, sizeof(cow));
	choose_options(options, sizeof(options));
	snprintf(params, sizeof(params), "%s %s%s", rdo[which].dev, cow, options);
	if (dm_try_load("hostile", geo.rdo_sectors, "cowloop", params)) {
		nr_refused++;
	} else {
		nr_opened++;
		dm_simple(DM_DEV_SUSPEND, "hostile", 0);	/* resumes */
		use_device("hostile", params);
	}
	dm_simple(DM_DEV_REMOVE, "hostile", 0);

	read_exactly(cow_fd, "a device", behind, BEHIND, sectors * SECTOR);
	for (i = 0; i < BEHIND && sectors == cow_base_sectors - BEHIND / SECTOR; i++)
		if (behind[i] != 0x5a)
			die(EXIT_MISMATCH, "byte %u behind the cow device was written", i);
	free(behind);
}

int main(int argc, char **argv)
{
	const unsigned long count = argc > 3 ? strtoul(argv[1], NULL, 10) : 100;
	const uint64_t seed = argc > 4 ? strtoull(argv[2], NULL, 0) : 1;
	const uint64_t rdo_sectors = sizes[ARRAY_SIZE(sizes) - 1];
	pthread_t thread;
	unsigned long i;
	char name[16];
	uint64_t sum;
	int rdo_fd;

	if (argc < 3)
		die(EXIT_USAGE, "hostile [COUNT [SEED]] RDO COW");
	rdo_fd = open_path(argv[argc - 2], O_RDONLY | O_DIRECT);
	snprintf(cow_path, sizeof(cow_path), "%s", argv[argc - 1]);
	cow_fd = open_path(cow_path, O_RDWR | O_DIRECT);
	cow_base_sectors = device_sectors(cow_path);
	if (device_sectors(argv[argc - 2]) < rdo_sectors || cow_base_sectors < rdo_sectors + 4096)
		die(EXIT_USAGE, "the devices are too small");

	image = allocate(IMAGE);
	make_rdos(argv[argc - 2], rdo_fd);
	sum = checksum(rdo_fd, rdo_sectors);
	dm_simple(DM_DEV_CREATE, "hostile-cow", 0);
	if (pthread_create(&thread, NULL, scribbler, NULL))
		die(EXIT_SYSTEM, "cannot start a thread");
	for (i = 0; i < count; i++) {
		/* So that one of them can be had alone. */
		random_state = seed << 32 | i;
		if (getenv("HOSTILE_TRACE"))
			fprintf(stderr, "%lu\n", i);
		attempt(!i || chance(75));
	}

	dm_simple(DM_DEV_REMOVE, "hostile-cow", 0);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		snprintf(name, sizeof(name), "hostile-rdo%lu", i);
		dm_simple(DM_DEV_REMOVE, name, 0);
	}
	if (checksum(rdo_fd, rdo_sectors) != sum)
		die(EXIT_MISMATCH, "rdo was written");
	printf("opened=%lu refused=%lu ios=%lu errors=%lu\n", nr_opened, nr_refused, nr_ios,
	       nr_errors);
	return 0;
}
