// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowtest - check a block device against a model of what it must hold
 *
 * Every 512-byte sector that this program writes is made from three numbers:
 * where it belongs (its sector number), which write made it (its stamp) and
 * the seed of the whole image.  Stamp 0 is a sector of zeroes.  Any other
 * sector is 64 words of 64 bits, in the byte order of the machine:
 *
 *	 0	magic, "cowtest!"
 *	 1	sector number
 *	 2	stamp
 *	 3	seed
 *	 4..60	fill: key + index * GOLDEN, key being a hash of words 1 to 3
 *	61	sector number, again
 *	62	stamp, again
 *	63	a hash of key
 *
 * So each sector read back says what it is.  A sector that isn't the one
 * expected can be told to be stale, foreign (belonging elsewhere), torn (the
 * beginning of one write and the end of another) or damaged, and the message
 * says so.
 *
 * "cowtest fill" writes the base contents, whose stamps have BASE_STAMP set
 * and are a hash of sector and seed.  "cowtest run" does random I/O; each of
 * its writes has a stamp of its own, counted up from 1.  The model is a file
 * with one stamp per sector: what the device must hold now.
 *
 * A discard takes the sectors of the whole units that it covers, and leaves all
 * others as they are.  A sector that it has taken holds the base contents or
 * zeroes: its stamp is DISCARDED, until it has been read, and must stay what it
 * was read as.  The model also says of each sector whether it was written since
 * it was discarded: a cowfile holds the units in which one was, and no others.
 *
 * Threads.  A sector has one owner, who alone writes it and knows exactly what
 * it must hold.  The device is divided into areas of 1 MiB.  In areas with an
 * even number, logical blocks belong to the threads in turn, so that they
 * write neighbouring blocks of one unit at the same time.  An area with an odd
 * number belongs to one thread, which writes ranges of all sizes there.
 * Everyone reads everywhere.  For a sector of somebody else, see check_foreign().
 */
#include <getopt.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "util.h"

#define MAGIC		0x2174736574776f63ULL	/* "cowtest!" */
#define BASE_STAMP	(1ULL << 63)
#define DISCARDED	(BASE_STAMP - 1)	/* base contents or zeroes */

#define CHUNK		(1U << 20)		/* I/O size of fill and verify */
#define AREA		(1U << 20)		/* see "Threads" above */
#define MAX_SEGMENTS	8
#define MAX_THREADS	64
#define MAX_DETAILS	20			/* mismatches described in full */
#define RECENT		32			/* written places remembered */
#define MAX_REREADS	1000

/* ---------- Sectors: making, checking, explaining ---------- */

static uint64_t content_seed = 1;
static unsigned int zero_permille = 100;

static uint64_t sector_key(uint64_t sector, uint64_t stamp, uint64_t seed)
{
	return mix(sector ^ mix(stamp ^ mix(seed)));
}

static void make_sector(uint64_t *w, uint64_t sector, uint64_t stamp,
			uint64_t seed)
{
	if (stamp)
		stamp_sector(w, MAGIC, sector, stamp, seed);
	else
		memset(w, 0, SECTOR);
}

/* Is this exactly the sector that make_sector() makes? */
static bool sector_is_made(const uint64_t *w, uint64_t sector, uint64_t stamp)
{
	uint64_t key, differ;
	unsigned int i;

	if (!stamp)
		return is_zero(w);
	key = sector_key(sector, stamp, content_seed);
	differ = (w[0] ^ MAGIC) | (w[1] ^ sector) | (w[2] ^ stamp) |
		 (w[3] ^ content_seed) | (w[61] ^ sector) | (w[62] ^ stamp) |
		 (w[63] ^ mix(key));
	for (i = 4; i < 61; i++)
		differ |= w[i] ^ (key + i * GOLDEN);
	return !differ;
}

/* The stamp of a sector in the base contents, were it not left zero */
static uint64_t base_mark(uint64_t sector)
{
	return BASE_STAMP | (mix(sector ^ mix(content_seed)) >> 16);
}

/*
 * The stamp of a sector in the base contents.  Of the groups of eight sectors,
 * and then of the sectors in the other groups, zero_permille are left zero.
 */
static uint64_t base_stamp(uint64_t sector)
{
	uint64_t group = mix((sector / 8) ^ mix(content_seed + 1));
	uint64_t mark = base_mark(sector);

	if (group % 1000 < zero_permille || mark % 1000 < zero_permille)
		return 0;
	return mark;
}

/* May the sector be this, when its stamp in the model is @stamp? */
static bool sector_is(const uint64_t *w, uint64_t sector, uint64_t stamp)
{
	if (stamp == DISCARDED)
		return is_zero(w) || sector_is_made(w, sector, base_stamp(sector));
	return sector_is_made(w, sector, stamp);
}

enum kind { ZERO, INTACT, TORN, DAMAGED, GARBAGE };

struct claim {
	uint64_t sector;
	uint64_t stamp;
	uint64_t seed;
};

struct decoded {
	enum kind kind;
	struct claim a;		/* INTACT, DAMAGED; TORN: the beginning */
	struct claim b;		/* TORN: the end */
	unsigned int from, to;	/* TORN: first byte of b; DAMAGED: the bytes */
};

/* Which sector is this?  Slow, for sectors known not to be the right one. */
static struct decoded decode(const uint64_t *w)
{
	/* what it may be, or be made of: zeroes, what its head or tail says */
	const struct claim candidates[4] = {
		{ 0, 0, 0 },
		{ w[1], w[2], w[3] },
		{ w[61], w[62], content_seed },
		{ w[61], w[62], w[3] },
	};
	const unsigned char *bytes = (const unsigned char *)w;
	unsigned int prefix[4], suffix[4], best = 0, i, j;
	struct decoded d = { .kind = GARBAGE };

	/* how many bytes from the start fit each, and from where to the end */
	for (i = 0; i < 4; i++) {
		uint64_t image[WORDS];
		const unsigned char *b = (const unsigned char *)image;

		make_sector(image, candidates[i].sector, candidates[i].stamp,
			    candidates[i].seed);
		for (j = 0; j < SECTOR && bytes[j] == b[j]; j++)
			;
		prefix[i] = j;
		for (j = SECTOR; j > 0 && bytes[j - 1] == b[j - 1]; j--)
			;
		suffix[i] = j;
	}

	for (i = 0; i < 4; i++) {
		if (prefix[i] == SECTOR) {
			d.kind = i ? INTACT : ZERO;
			d.a = candidates[i];
			return d;
		}
	}
	for (i = 0; i < 4; i++) {
		for (j = 0; j < 4; j++) {
			/* the joint must lie in the fill, or it proves nothing */
			if (suffix[j] > prefix[i] || prefix[i] < 8 ||
			    suffix[j] > SECTOR - 8)
				continue;
			d.kind = TORN;
			d.a = candidates[i];
			d.b = candidates[j];
			d.from = prefix[i];
			return d;
		}
	}
	/* damaged in one place: what is right before or behind it is the most */
	for (i = 1; i < 4; i++)
		if (prefix[i] + SECTOR - suffix[i] >
		    prefix[best] + SECTOR - suffix[best])
			best = i;
	if (best && prefix[best] + SECTOR - suffix[best] >= 64) {
		d.kind = DAMAGED;
		d.a = candidates[best];
		d.from = prefix[best];
		d.to = suffix[best];
	}
	return d;
}

/* "stamp 17", "zeroes", "base contents" and so on, for people */
static void describe_claim(char *out, size_t size, const struct claim *c,
			   uint64_t sector)
{
	char where[40] = "", whose[40] = "";

	if (!c->stamp) {
		snprintf(out, size, "zeroes");
		return;
	}
	if (c->stamp == DISCARDED) {
		snprintf(out, size, "base contents or zeroes (discarded)");
		return;
	}
	if (c->sector != sector)
		snprintf(where, sizeof(where), " of sector %" PRIu64, c->sector);
	if (c->seed != content_seed)
		snprintf(whose, sizeof(whose), " with seed %" PRIu64, c->seed);
	if (c->stamp & BASE_STAMP)
		snprintf(out, size, "base contents%s%s", where, whose);
	else
		snprintf(out, size, "stamp %" PRIu64 "%s%s", c->stamp, where, whose);
}

static void describe(char *out, size_t size, const uint64_t *w, uint64_t sector,
		     uint64_t expected)
{
	struct decoded d = decode(w);
	const char *verdict = "";
	char a[120], b[120];

	describe_claim(a, sizeof(a), &d.a, sector);
	describe_claim(b, sizeof(b), &d.b, sector);
	switch (d.kind) {
	case ZERO:
		snprintf(out, size, "zeroes");
		break;
	case INTACT:
		if (d.a.sector != sector)
			verdict = " (foreign: it belongs elsewhere)";
		else if (d.a.seed != content_seed)
			verdict = " (of another image)";
		else if (d.a.stamp & BASE_STAMP && !expected)
			verdict = " (what was there before any write, or after a discard)";
		else if (d.a.stamp & BASE_STAMP)
			verdict = " (what was there before any write)";
		else if (!expected)
			verdict = " (some write)";
		else if (expected & BASE_STAMP)
			verdict = " (never written here, says the model)";
		else if (d.a.stamp < expected)
			verdict = " (stale: an earlier write)";
		else
			verdict = " (a later write)";
		snprintf(out, size, "%s%s", a, verdict);
		break;
	case TORN:
		snprintf(out, size, "torn at byte %u: %s before it, %s after it",
			 d.from, a, b);
		break;
	case DAMAGED:
		snprintf(out, size, "%s, damaged between bytes %u and %u", a,
			 d.from, d.to - 1);
		break;
	case GARBAGE:
		snprintf(out, size, "garbage, beginning %016" PRIx64 " %016" PRIx64,
			 w[0], w[1]);
		break;
	}
}

static uint64_t mismatches;
static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;

/* Reports one sector that isn't what it must be.  when says what was going on. */
static void mismatch(const char *when, const uint64_t *w, uint64_t sector,
		     uint64_t expected)
{
	struct claim c = { sector, expected, content_seed };
	char want[120], found[400];

	pthread_mutex_lock(&report_lock);
	if (mismatches++ < MAX_DETAILS) {
		describe_claim(want, sizeof(want), &c, sector);
		describe(found, sizeof(found), w, sector, expected);
		fprintf(stderr,
			"cowtest: %s: sector %" PRIu64 " (byte %" PRIu64
			"): expected %s, found %s\n",
			when, sector, sector * SECTOR, want, found);
	}
	pthread_mutex_unlock(&report_lock);
}

/* ---------- The device ---------- */

static struct {
	const char *path;
	int fd;
	uint64_t bytes;
	uint64_t sectors;
	unsigned int lbs;	/* logical block size */
	bool is_block;
} dev;

/* Without O_DIRECT where a filesystem (tmpfs, say) has none */
static void device_open(const char *path, int flags, uint64_t create_size,
			unsigned int lbs)
{
	struct stat st;

	dev.path = path;
	dev.fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0666);
	if (dev.fd < 0 && errno == EINVAL)
		dev.fd = open(path, flags | O_CLOEXEC, 0666);
	if (dev.fd < 0)
		die_errno(errno, "%s: open", path);
	if (fstat(dev.fd, &st))
		die_errno(errno, "%s: stat", path);
	dev.is_block = S_ISBLK(st.st_mode);
	dev.lbs = SECTOR;
	if (dev.is_block) {
		dev.bytes = device_bytes(dev.fd, path, &dev.lbs);
	} else if (S_ISREG(st.st_mode)) {
		if (create_size && ftruncate(dev.fd, create_size))
			die_errno(errno, "%s: ftruncate", path);
		dev.bytes = create_size ? create_size : (uint64_t)st.st_size;
	} else {
		die(EXIT_USAGE, "%s: neither a block device nor a file", path);
	}
	if (lbs) {
		if (lbs < dev.lbs)
			die(EXIT_USAGE, "%s: its logical blocks have %u bytes",
			    path, dev.lbs);
		dev.lbs = lbs;
	}
	dev.sectors = dev.bytes / SECTOR;
}

/* Moves all of iov, going on after short transfers; 0 or an errno. */
static int transfer(bool write, const struct iovec *iov, unsigned int count,
		    uint64_t offset, int flags)
{
	struct iovec rest[MAX_SEGMENTS];
	struct iovec *v = rest;

	memcpy(rest, iov, count * sizeof(*iov));
	while (count) {
		ssize_t n = write ? pwritev2(dev.fd, v, count, offset, flags) :
				    preadv2(dev.fd, v, count, offset, flags);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (!n)
			return write ? EIO : ENODATA;
		offset += n;
		while (count && (size_t)n >= v->iov_len) {
			n -= v->iov_len;
			v++;
			count--;
		}
		if (n) {
			v->iov_base = (char *)v->iov_base + n;
			v->iov_len -= n;
		}
	}
	return 0;
}

static void __attribute__((noreturn))
die_io(int err, const char *what, uint64_t offset, uint64_t length)
{
	die_errno(err, "%s: %s of %" PRIu64 " bytes at %" PRIu64, dev.path, what, length, offset);
}

/* ---------- The model ---------- */

#define MODEL_MAGIC	"cowmodel"

struct model_head {
	char magic[8];
	uint64_t sectors;
	uint64_t seed;
	uint64_t zero_permille;
	uint64_t next_stamp;
	char pad[4096 - 40];
};

static struct {
	const char *path;
	struct model_head *head;
	uint64_t *stamp;
	uint8_t *written;	/* since it was discarded */
	size_t size;
	bool writable;
} model;

/* What the user asked for on the command line, to compare with a model's head */
static struct {
	bool seed;
	bool zero_permille;
} given;

static void model_check_head(void)
{
	const struct model_head *h = model.head;

	if (memcmp(h->magic, MODEL_MAGIC, sizeof(h->magic)))
		die(EXIT_USAGE, "%s: not a model", model.path);
	if (h->sectors != dev.sectors)
		die(EXIT_USAGE, "%s: made for %" PRIu64 " sectors, but %s has %" PRIu64,
		    model.path, h->sectors, dev.path, dev.sectors);
	if ((given.seed && h->seed != content_seed) ||
	    (given.zero_permille && h->zero_permille != zero_permille))
		die(EXIT_USAGE, "%s: made with seed %" PRIu64 " and zero-permille %" PRIu64,
		    model.path, h->seed, h->zero_permille);
	content_seed = h->seed;
	zero_permille = h->zero_permille;
}

/* Maps the model of the open device.  create: make it if there is none. */
static void model_open(const char *path, bool create, bool writable)
{
	uint64_t i, size = sizeof(struct model_head) + dev.sectors * (8 + 1);
	bool fresh = false;
	struct stat st;
	int fd;

	model.path = path;
	model.size = size;
	model.writable = writable;
	fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && create) {
		fresh = true;
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	}
	if (fd < 0)
		die_errno(errno, "%s: open", path);
	if (fresh) {
		int err = posix_fallocate(fd, 0, size);

		if (err)
			die_errno(err, "%s: fallocate", path);
	}
	if (fstat(fd, &st))
		die_errno(errno, "%s: stat", path);
	if ((uint64_t)st.st_size < sizeof(struct model_head))
		die(EXIT_USAGE, "%s: not a model", path);
	if ((uint64_t)st.st_size < size)
		die(EXIT_USAGE, "%s: too short a model for %s", path, dev.path);
	model.head = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0),
			  MAP_SHARED, fd, 0);
	if (model.head == MAP_FAILED)
		die_errno(errno, "%s: mmap", path);
	close(fd);
	model.stamp = (uint64_t *)(model.head + 1);
	model.written = (uint8_t *)(model.stamp + dev.sectors);
	if (!fresh) {
		model_check_head();
		return;
	}
	model.head->sectors = dev.sectors;
	model.head->seed = content_seed;
	model.head->zero_permille = zero_permille;
	model.head->next_stamp = 1;
	for (i = 0; i < dev.sectors; i++)
		model.stamp[i] = base_stamp(i);
	memcpy(model.head->magic, MODEL_MAGIC, sizeof(model.head->magic));
}

static void model_close(void)
{
	if (msync(model.head, model.size, MS_SYNC))
		die_errno(errno, "%s: msync", model.path);
	if (munmap(model.head, model.size))
		die_errno(errno, "%s: munmap", model.path);
}

/* A sector that was discarded stays what it was found to be. */
static void narrow(uint64_t sector, const uint64_t *w)
{
	if (model.stamp[sector] == DISCARDED)
		__atomic_store_n(&model.stamp[sector], is_zero(w) ? 0 : base_stamp(sector),
				 __ATOMIC_RELAXED);
}

/* The whole units in sectors [*first, *end); the device's last one may be short. */
static void whole_units(uint64_t unit, uint64_t *first, uint64_t *end)
{
	if (!unit) {
		*end = *first;
		return;
	}
	*first = (*first + unit - 1) / unit * unit;
	if (*end != dev.sectors)
		*end = *end / unit * unit;
	if (*end < *first)
		*end = *first;
}

/* ---------- verify ---------- */

/*
 * Compares sectors [first, end) with the model, or with the base contents when
 * there is no model.  Returns the number that differ, having reported them.
 */
static uint64_t compare(const char *when, uint64_t first, uint64_t end)
{
	uint64_t before = mismatches, sector, i;
	void *buf = allocate(CHUNK);

	for (sector = first; sector < end; sector += CHUNK / SECTOR) {
		uint64_t n = end - sector;
		struct iovec iov;
		int err;

		if (n > CHUNK / SECTOR)
			n = CHUNK / SECTOR;
		iov = (struct iovec){ buf, n * SECTOR };
		err = transfer(false, &iov, 1, sector * SECTOR, 0);
		if (err)
			die_io(err, "read", sector * SECTOR, n * SECTOR);
		for (i = 0; i < n; i++) {
			uint64_t s = sector + i;
			uint64_t stamp = model.stamp ? model.stamp[s] : base_stamp(s);
			const uint64_t *w = (const uint64_t *)buf + i * WORDS;

			if (!sector_is(w, s, stamp))
				mismatch(when, w, s, stamp);
			else if (model.writable)
				narrow(s, w);
		}
	}
	free(buf);
	if (mismatches > before + MAX_DETAILS)
		fprintf(stderr, "cowtest: %s: ... and so on\n", when);
	return mismatches - before;
}

/* ---------- fill ---------- */

static int cmd_fill(uint64_t size)
{
	uint64_t *buf = allocate(CHUNK);
	uint64_t sector, i, zeroes = 0;
	unsigned int tail = dev.bytes % SECTOR;
	uint64_t total = dev.sectors + (tail ? 1 : 0);

	if (!dev.bytes)
		die(EXIT_USAGE, "%s: empty; give --size", dev.path);
	if (size && dev.is_block)
		die(EXIT_USAGE, "%s: --size is for files", dev.path);

	for (sector = 0; sector < total; sector += CHUNK / SECTOR) {
		uint64_t n = total - sector;
		struct iovec iov;
		int err;

		if (n > CHUNK / SECTOR)
			n = CHUNK / SECTOR;
		iov = (struct iovec){ buf, n * SECTOR };
		for (i = 0; i < n; i++) {
			uint64_t stamp = base_stamp(sector + i);

			zeroes += !stamp;
			make_sector(buf + i * WORDS, sector + i, stamp, content_seed);
		}
		/* the last bytes of a file may be no whole sector */
		if (sector + n == total && tail) {
			iov.iov_len -= SECTOR - tail;
			if (fcntl(dev.fd, F_SETFL, 0))
				die_errno(errno, "%s: fcntl", dev.path);
		}
		err = transfer(true, &iov, 1, sector * SECTOR, 0);
		if (err)
			die_io(err, "write", sector * SECTOR, iov.iov_len);
	}
	if (fdatasync(dev.fd))
		die_errno(errno, "%s: fdatasync", dev.path);
	free(buf);
	printf("cowtest: fill: %s: %" PRIu64 " sectors, %" PRIu64
	       " of them zero, seed %" PRIu64 "\n",
	       dev.path, total, zeroes, content_seed);
	return EXIT_OK;
}

/* ---------- run ---------- */

static struct {
	uint64_t seed;
	uint64_t ops;
	uint64_t seconds;
	unsigned int threads;
	unsigned int sync_permille;
	unsigned int discard_permille;
	uint64_t unit;			/* what discards take, in sectors; 0: nothing */
	uint64_t max_blocks;		/* of one read or write */
	uint64_t first, end;		/* the region, in logical blocks */
	unsigned int block_sectors;
	uint64_t area_blocks;
	struct timespec deadline;
} run;

/* State that the threads share; all but "hot" unused when there is only one */
static struct {
	bool stop;
	uint64_t hot;		/* block around which the threads now meet */
	/* per sector: the last write to it that was begun, and completed */
	uint64_t *begun;
	uint64_t *done;
	uint64_t *discarded;	/* the last of them that was a discard, and begun */
} shared;

struct range {
	uint64_t block;
	uint64_t count;
};

struct counters {
	uint64_t ops, reads, writes, fua, zero, zeroouts, discards, segmented, syncs, rereads;
	uint64_t read_bytes, written_bytes, discarded_bytes;
};

struct worker {
	pthread_t thread;
	unsigned int id;
	uint64_t ops;			/* to do; ignored with --seconds */
	uint64_t random;
	char *buf;
	struct iovec iov[MAX_SEGMENTS];
	unsigned int segments;
	struct range recent[RECENT];
	unsigned int nr_recent;
	struct range streak;		/* the next of it */
	unsigned int streak_left;
	bool streak_write;
	uint64_t *was_done;		/* what check_foreign() needs to know */
	uint64_t *was_stamp;
	struct counters count;
};

static bool stopping(void)
{
	return __atomic_load_n(&shared.stop, __ATOMIC_RELAXED);
}

static void stop_all(void)
{
	__atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
}

static unsigned int owner_of(uint64_t block)
{
	uint64_t area = block / run.area_blocks;

	return (area % 2 ? area / 2 : block) % run.threads;
}

/* How many blocks; *align is where such a piece likes to begin */
static uint64_t pick_size(struct worker *w, uint64_t *align)
{
	static const struct {
		unsigned int percent;
		uint64_t bytes;
	} pieces[] = { { 15, 4 << 10 }, { 10, 64 << 10 }, { 3, 1 << 20 } };
	unsigned int roll = below(&w->random, 100), log = 0, i;

	*align = 1;
	if (roll < 40)
		return 1;
	roll -= 40;
	for (i = 0; i < 3; i++) {
		uint64_t blocks = pieces[i].bytes / dev.lbs;

		if (roll < pieces[i].percent && blocks && blocks <= run.max_blocks) {
			*align = blocks;
			return blocks;
		}
		roll -= min_u64(roll, pieces[i].percent);
	}
	/* any size, the small ones as likely as the large ones */
	while (2ULL << log <= run.max_blocks)
		log++;
	return min_u64(1 + below(&w->random, 2ULL << below(&w->random, log + 1)),
		       run.max_blocks);
}

static struct range pick_recent(struct worker *w, uint64_t size)
{
	struct range old = w->recent[below(&w->random,
					   min_u64(w->nr_recent, RECENT))];

	switch (below(&w->random, 4)) {
	case 0:		/* the same again */
		return old;
	case 1:		/* from its start, but another size */
		return (struct range){ old.block, size };
	case 2:		/* from somewhere within */
		return (struct range){ old.block + below(&w->random, old.count), size };
	default:	/* just behind */
		return (struct range){ old.block + old.count, size };
	}
}

static struct range pick_anywhere(struct worker *w, bool *write)
{
	uint64_t blocks = run.end - run.first, align;
	struct range r;
	unsigned int roll;

	if (w->streak_left) {
		w->streak_left--;
		*write = w->streak_write;
		r = w->streak;
		w->streak.block += r.count;
		return r;
	}
	r.count = pick_size(w, &align);
	r.block = run.first + below(&w->random, blocks);
	r.block -= r.block % align;
	roll = below(&w->random, 16);
	if (roll < 3 && w->nr_recent)
		return pick_recent(w, r.count);
	if (roll == 3) {
		/* begin a streak, of pieces that are not too large */
		r.count = min_u64(r.count, 1 + (64 << 10) / dev.lbs);
		w->streak = (struct range){ r.block + r.count, r.count };
		w->streak_left = 4 + below(&w->random, 32);
		w->streak_write = *write;
	} else if (roll < 10 && run.threads > 1) {
		/* meet the other threads */
		if (!below(&w->random, 64))
			__atomic_store_n(&shared.hot, r.block, __ATOMIC_RELAXED);
		r.block = __atomic_load_n(&shared.hot, __ATOMIC_RELAXED) +
			  below(&w->random, 16384 / dev.lbs);
	}
	return r;
}

/* To the same place in an area of our own: 2 * (k * threads + id) + 1 */
static bool move_to_own_area(struct worker *w, struct range *r)
{
	uint64_t last_area = (run.end - 1) / run.area_blocks;
	uint64_t k = below(&w->random, last_area / (2 * run.threads) + 1);
	uint64_t own = 2 * (k * run.threads + w->id) + 1;

	r->block = own * run.area_blocks + r->block % run.area_blocks;
	return r->block >= run.first && r->block < run.end;
}

/*
 * Moves a range for writing to where this thread may write.  Returns false if
 * that was too hard, and another range should be tried.
 */
static bool keep_to_own(struct worker *w, struct range *r)
{
	uint64_t area = r->block / run.area_blocks;
	uint64_t T = run.threads;

	if (T == 1)
		return true;
	if (area % 2 && owner_of(r->block) != w->id) {
		if (!move_to_own_area(w, r))
			return false;
		area = r->block / run.area_blocks;
	}
	if (area % 2) {
		r->count = min_u64(r->count, (area + 1) * run.area_blocks - r->block);
		return true;
	}
	r->block += w->id + T - r->block % T;
	if (r->block / run.area_blocks != area || r->block >= run.end)
		r->block -= min_u64(r->block, T);
	if (r->block >= run.end || r->block < run.first ||
	    r->block / run.area_blocks != area || owner_of(r->block) != w->id)
		return false;
	r->count = 1;
	return true;
}

static struct range pick(struct worker *w, bool *write)
{
	unsigned int tries = 0;
	struct range r;

	for (;;) {
		/* a small --region may have nothing that this thread may write */
		if (++tries > 1000) {
			*write = false;
			w->streak_left = 0;
		}
		r = pick_anywhere(w, write);
		if (r.block < run.first || r.block >= run.end) {
			w->streak_left = 0;
			continue;
		}
		if (!*write || keep_to_own(w, &r))
			break;
	}
	r.count = min_u64(r.count, run.end - r.block);
	return r;
}

/* Lays out the buffer for the range: mostly in one piece, sometimes in several */
static void make_segments(struct worker *w, uint64_t blocks)
{
	uint64_t at = 0, left = blocks;

	w->segments = 0;
	if (blocks > 1 && !below(&w->random, 4)) {
		/* odd numbers of blocks, with odd gaps in memory between them */
		while (left && w->segments < MAX_SEGMENTS - 1) {
			uint64_t n = 1 + 2 * below(&w->random, 1 + left / 4);

			n = min_u64(n, left);
			w->iov[w->segments].iov_base = w->buf + at * dev.lbs;
			w->iov[w->segments++].iov_len = n * dev.lbs;
			at += n + 1 + 2 * below(&w->random, 3);
			left -= n;
		}
		w->count.segmented++;
	}
	if (left) {
		w->iov[w->segments].iov_base = w->buf + at * dev.lbs;
		w->iov[w->segments++].iov_len = left * dev.lbs;
	}
}

/* Before sectors [first, end) are written or discarded: tell the other threads */
static void begin_change(uint64_t op, uint64_t first, uint64_t end, bool discard)
{
	uint64_t s;

	if (run.threads == 1)
		return;
	for (s = first; s < end; s++) {
		if (discard)
			__atomic_store_n(&shared.discarded[s], op, __ATOMIC_RELAXED);
		__atomic_store_n(&shared.begun[s], op, __ATOMIC_RELEASE);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void end_change(uint64_t op, uint64_t first, uint64_t end, uint64_t stamp)
{
	uint64_t s;

	for (s = first; s < end; s++) {
		__atomic_store_n(&model.stamp[s], stamp, __ATOMIC_RELAXED);
		model.written[s] = stamp != DISCARDED;
		if (run.threads > 1)
			__atomic_store_n(&shared.done[s], op, __ATOMIC_RELEASE);
	}
}

static int zero_out(uint64_t first, uint64_t end, bool by_fallocate)
{
	uint64_t bytes[2] = { first * SECTOR, (end - first) * SECTOR };

	if (by_fallocate)
		return fallocate(dev.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, bytes[0],
				 bytes[1]) ? errno : 0;
	return ioctl(dev.fd, BLKZEROOUT, bytes) ? errno : 0;
}

static int discard(uint64_t first, uint64_t end)
{
	uint64_t bytes[2] = { first * SECTOR, (end - first) * SECTOR };

	return ioctl(dev.fd, BLKDISCARD, bytes) ? errno : 0;
}

static void do_write(struct worker *w, const struct range *r)
{
	uint64_t first = r->block * run.block_sectors;
	uint64_t end = first + r->count * run.block_sectors;
	uint64_t op = __atomic_fetch_add(&model.head->next_stamp, 1, __ATOMIC_RELAXED);
	bool fua = !below(&w->random, 16), zero = !below(&w->random, 16);
	/* zeroes without data: a third each by ioctl and by fallocate */
	unsigned int how = zero && !fua && dev.is_block ? below(&w->random, 3) : 0;
	uint64_t stamp = zero ? 0 : op, s;
	unsigned int i;
	int err;

	begin_change(op, first, end, false);
	if (how) {
		err = zero_out(first, end, how == 1);
	} else {
		make_segments(w, r->count);
		for (s = first, i = 0; i < w->segments; i++) {
			uint64_t *p = w->iov[i].iov_base;
			uint64_t n = w->iov[i].iov_len / SECTOR;

			for (; n; n--, s++, p += WORDS)
				make_sector(p, s, stamp, content_seed);
		}
		err = transfer(true, w->iov, w->segments, first * SECTOR, fua ? RWF_DSYNC : 0);
	}
	if (err)
		die_io(err, how ? "zero-out" : fua ? "FUA write" : "write", first * SECTOR,
		       (end - first) * SECTOR);
	end_change(op, first, end, stamp);
	w->count.zeroouts += !!how;
	w->recent[w->nr_recent++ % RECENT] = *r;
	w->count.writes++;
	w->count.fua += fua;
	w->count.zero += zero;
	w->count.written_bytes += (end - first) * SECTOR;
}

/*
 * A range to discard: as a write's, or one that begins or ends with a unit, or
 * more than any write, up to the whole device when nobody else is there.
 */
static struct range pick_discard(struct worker *w)
{
	uint64_t unit = (run.unit + run.block_sectors - 1) / run.block_sectors, align;
	bool write = true;
	struct range r = pick(w, &write), moved = r;

	/* where blocks belong to the threads in turn, hardly a discard has a whole unit */
	if (run.threads > 1 && write && r.block / run.area_blocks % 2 == 0 && below(&w->random, 4) &&
	    move_to_own_area(w, &moved)) {
		r.block = moved.block;
		r.count = min_u64(pick_size(w, &align), run.area_blocks - r.block % run.area_blocks);
	}
	if (run.threads == 1 && !below(&w->random, 20))
		return (struct range){ run.first, run.end - run.first };
	if (run.threads == 1 && !below(&w->random, 10))
		r.count = 1 + below(&w->random, run.end - r.block);
	if (run.threads == 1 && unit && below(&w->random, 2)) {
		r.count += r.block % unit;
		r.block -= r.block % unit;
		if (below(&w->random, 2))
			r.count = (r.count + unit - 1) / unit * unit;
	} else if (r.block / run.area_blocks % 2 && below(&w->random, 2)) {
		/* an area is a thread's own, or its units are */
		r.count += r.block % run.area_blocks;
		r.block -= r.block % run.area_blocks;
		if (unit && below(&w->random, 2))
			r.count = min_u64(r.count + unit - 1, run.area_blocks) / unit * unit;
	}
	if (r.block < run.first) {
		r.count -= min_u64(r.count - 1, run.first - r.block);
		r.block = run.first;
	}
	r.count = min_u64(r.count, run.end - r.block);
	return write ? r : (struct range){ r.block, 0 };
}

static void do_discard(struct worker *w)
{
	struct range r = pick_discard(w);
	uint64_t first = r.block * run.block_sectors;
	uint64_t end = first + r.count * run.block_sectors;
	uint64_t op = __atomic_fetch_add(&model.head->next_stamp, 1, __ATOMIC_RELAXED);
	uint64_t units_first = first, units_end = end;
	int err;

	if (first == end)
		return;
	whole_units(run.unit, &units_first, &units_end);
	begin_change(op, units_first, units_end, true);
	err = discard(first, end);
	if (err)
		die_io(err, "discard", first * SECTOR, (end - first) * SECTOR);
	end_change(op, units_first, units_end, DISCARDED);
	/* it may have been larger than a write is */
	r.count = min_u64(r.count, run.max_blocks);
	w->recent[w->nr_recent++ % RECENT] = r;
	w->count.discards++;
	w->count.discarded_bytes += (units_end - units_first) * SECTOR;
}

/* Before a read of a sector of another thread: note what is known about it */
static void note_foreign(struct worker *w, uint64_t sector, uint64_t index)
{
	w->was_done[index] = __atomic_load_n(&shared.done[sector], __ATOMIC_ACQUIRE);
	w->was_stamp[index] = __atomic_load_n(&model.stamp[sector], __ATOMIC_ACQUIRE);
	/* a write is under way already: nothing is sure (no write is number ~0) */
	if (__atomic_load_n(&shared.begun[sector], __ATOMIC_ACQUIRE) !=
	    w->was_done[index])
		w->was_done[index] |= BASE_STAMP;
}

/*
 * After a read of a sector of another thread.  If the owner had no write to it
 * under way at any time during the read, it must be what the model said.
 * Otherwise it must be an intact sector, as it was before or of a later write;
 * not an older one.  *again is set if it is no intact sector: then it may have
 * been read in the middle of a write, and has to be read again to know.
 */
static bool check_foreign(struct worker *w, const uint64_t *p, uint64_t sector,
			  uint64_t index, bool *again)
{
	uint64_t done = w->was_done[index], stamp = w->was_stamp[index], next;
	bool quiet;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	quiet = done == __atomic_load_n(&shared.begun[sector], __ATOMIC_ACQUIRE);
	if (sector_is(p, sector, stamp))
		return true;
	if (quiet)
		return false;
	if (is_zero(p))
		return true;
	next = __atomic_load_n(&model.head->next_stamp, __ATOMIC_ACQUIRE);
	if (!sector_is_made(p, sector, p[2])) {
		*again = true;
		return false;
	}
	if (p[2] == base_stamp(sector))
		return __atomic_load_n(&shared.discarded[sector], __ATOMIC_ACQUIRE) >
		       (done & ~BASE_STAMP);
	return p[2] > (done & ~BASE_STAMP) && p[2] < next;
}

/* Reads one sector of another thread again and again, until it can be judged */
static bool reread_foreign(struct worker *w, uint64_t sector)
{
	uint64_t block = sector / run.block_sectors;
	uint64_t first = block * run.block_sectors;
	struct iovec iov = { w->buf, dev.lbs };
	unsigned int try;

	for (try = 0; try < MAX_REREADS; try++) {
		bool again = false, ok;
		int err;

		note_foreign(w, sector, 0);
		err = transfer(false, &iov, 1, first * SECTOR, 0);
		if (err)
			die_io(err, "read", first * SECTOR, dev.lbs);
		w->count.rereads++;
		ok = check_foreign(w, (uint64_t *)w->buf + (sector - first) * WORDS,
				   sector, 0, &again);
		if (!again)
			return ok;
	}
	return false;
}

static void do_read(struct worker *w, const struct range *r)
{
	uint64_t first = r->block * run.block_sectors;
	uint64_t end = first + r->count * run.block_sectors, s;
	uint64_t unsure[16];
	unsigned int nr_unsure = 0, i, bad = 0;
	char when[160];
	int err;

	snprintf(when, sizeof(when),
		 "run: thread %u, op %" PRIu64 ", read of %" PRIu64 " sectors at %" PRIu64,
		 w->id, w->count.ops, end - first, first);
	make_segments(w, r->count);
	for (s = first; run.threads > 1 && s < end; s++)
		if (owner_of(s / run.block_sectors) != w->id)
			note_foreign(w, s, s - first);
	err = transfer(false, w->iov, w->segments, first * SECTOR, 0);
	if (err)
		die_io(err, "read", first * SECTOR, (end - first) * SECTOR);
	for (s = first, i = 0; i < w->segments; i++) {
		const uint64_t *p = w->iov[i].iov_base;
		uint64_t n = w->iov[i].iov_len / SECTOR;

		for (; n; n--, s++, p += WORDS) {
			uint64_t expected = w->was_stamp[s - first];
			bool again = false;

			if (run.threads == 1 ||
			    owner_of(s / run.block_sectors) == w->id) {
				expected = model.stamp[s];
				if (sector_is(p, s, expected)) {
					narrow(s, p);
					continue;
				}
			} else if (check_foreign(w, p, s, s - first, &again)) {
				continue;
			}
			if (again && nr_unsure < 16) {
				unsure[nr_unsure++] = s;
				continue;
			}
			mismatch(when, p, s, expected);
			bad++;
		}
	}
	/* this uses the buffer again, so it comes last */
	for (i = 0; i < nr_unsure; i++) {
		s = unsure[i];
		if (!reread_foreign(w, s)) {
			mismatch(when, (uint64_t *)w->buf + s % run.block_sectors * WORDS,
				 s, w->was_stamp[0]);
			bad++;
		}
	}
	if (bad)
		stop_all();
	w->count.reads++;
	w->count.read_bytes += (end - first) * SECTOR;
}

static bool time_is_up(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > run.deadline.tv_sec ||
	       (now.tv_sec == run.deadline.tv_sec &&
		now.tv_nsec >= run.deadline.tv_nsec);
}

static void *work(void *arg)
{
	struct worker *w = arg;

	while (!stopping()) {
		if (run.seconds ? time_is_up() : w->count.ops >= w->ops)
			break;
		if (below(&w->random, 1000) < run.sync_permille) {
			if (fdatasync(dev.fd))
				die_errno(errno, "%s: fdatasync", dev.path);
			w->count.syncs++;
		} else if (run.discard_permille &&
			   below(&w->random, 1000) < run.discard_permille) {
			do_discard(w);
		} else {
			bool write = below(&w->random, 100) < 55;
			struct range r = pick(w, &write);

			if (write)
				do_write(w, &r);
			else
				do_read(w, &r);
		}
		w->count.ops++;
	}
	return NULL;
}

static void worker_init(struct worker *w, unsigned int id)
{
	uint64_t sectors = run.max_blocks * run.block_sectors;

	memset(w, 0, sizeof(*w));
	w->id = id;
	w->ops = run.ops / run.threads + (id < run.ops % run.threads);
	w->random = mix(run.seed ^ mix(id));
	/* the gaps of make_segments() take room too */
	w->buf = allocate((run.max_blocks + 6 * MAX_SEGMENTS) * dev.lbs);
	w->was_done = allocate(sectors * 8);
	w->was_stamp = allocate(sectors * 8);
}

static void run_threads(struct counters *sum)
{
	struct worker *workers = allocate(run.threads * sizeof(*workers));
	unsigned int i, j;

	for (i = 0; i < run.threads; i++) {
		int err;

		worker_init(&workers[i], i);
		if (run.threads == 1) {
			work(&workers[i]);
			continue;
		}
		err = pthread_create(&workers[i].thread, NULL, work, &workers[i]);
		if (err)
			die_errno(err, "pthread_create");
	}
	for (i = 0; i < run.threads; i++) {
		const uint64_t *from = (const uint64_t *)&workers[i].count;
		uint64_t *to = (uint64_t *)sum;
		int err = 0;

		if (run.threads > 1)
			err = pthread_join(workers[i].thread, NULL);
		if (err)
			die_errno(err, "pthread_join");
		for (j = 0; j < sizeof(*sum) / sizeof(uint64_t); j++)
			to[j] += from[j];
		free(workers[i].buf);
		free(workers[i].was_done);
		free(workers[i].was_stamp);
	}
	free(workers);
}

static int cmd_run(uint64_t max_bytes, uint64_t offset, uint64_t length)
{
	struct counters sum = { 0 };
	uint64_t bad;

	if (offset % dev.lbs || length % dev.lbs || offset + length > dev.bytes ||
	    offset + length < offset)
		die(EXIT_USAGE, "--region: must be whole logical blocks of %s", dev.path);
	run.first = offset / dev.lbs;
	run.end = length ? run.first + length / dev.lbs : dev.bytes / dev.lbs;
	run.max_blocks = max_bytes / dev.lbs;
	run.block_sectors = dev.lbs / SECTOR;
	run.area_blocks = AREA / dev.lbs;
	if (!run.max_blocks)
		die(EXIT_USAGE, "--max-bytes: less than a logical block");
	if (run.end - run.first < 4 * run.threads)
		die(EXIT_USAGE, "%s: too small for %u threads", dev.path, run.threads);
	if (run.threads > 1) {
		shared.begun = allocate(dev.sectors * 8);
		shared.done = allocate(dev.sectors * 8);
		shared.discarded = allocate(dev.sectors * 8);
	}
	shared.hot = run.first;
	clock_gettime(CLOCK_MONOTONIC, &run.deadline);
	run.deadline.tv_sec += run.seconds;

	run_threads(&sum);
	bad = mismatches;
	if (!bad)
		bad = compare("run: at the end", 0, dev.sectors);
	printf("cowtest: run: %s: %" PRIu64 " ops: %" PRIu64 " reads (%" PRIu64
	       " KiB), %" PRIu64 " writes (%" PRIu64 " KiB; %" PRIu64 " FUA, %" PRIu64
	       " zero, %" PRIu64 " of them without data), %" PRIu64 " discards (%" PRIu64
	       " KiB in whole units), %" PRIu64 " syncs, %" PRIu64 " segmented, %" PRIu64
	       " re-reads: %" PRIu64 " bad sectors\n",
	       dev.path, sum.ops, sum.reads, sum.read_bytes >> 10, sum.writes,
	       sum.written_bytes >> 10, sum.fua, sum.zero, sum.zeroouts, sum.discards,
	       sum.discarded_bytes >> 10, sum.syncs, sum.segmented, sum.rereads, bad);
	free(shared.begun);
	free(shared.done);
	free(shared.discarded);
	return bad ? EXIT_MISMATCH : EXIT_OK;
}

/* ---------- io ---------- */

/* One word for what a sector holds: a stamp, "base", or what is wrong with it */
static void sector_word(char *out, size_t size, const uint64_t *w, uint64_t sector)
{
	struct decoded d = decode(w);

	switch (d.kind) {
	case ZERO:
		snprintf(out, size, "0");
		break;
	case INTACT:
		if (d.a.sector != sector)
			snprintf(out, size, "foreign:sector=%" PRIu64 ",stamp=%" PRIu64,
				 d.a.sector, d.a.stamp);
		else if (d.a.seed != content_seed)
			snprintf(out, size, "foreign:seed=%" PRIu64 ",stamp=%" PRIu64,
				 d.a.seed, d.a.stamp);
		else if (d.a.stamp == base_mark(sector))
			snprintf(out, size, "base");
		else
			snprintf(out, size, "%" PRIu64, d.a.stamp);
		break;
	case TORN:
		snprintf(out, size, "torn:%" PRIu64 "|%" PRIu64 "@%u", d.a.stamp,
			 d.b.stamp, d.from);
		break;
	case DAMAGED:
		snprintf(out, size, "damaged:%" PRIu64 "@%u-%u", d.a.stamp, d.from,
			 d.to - 1);
		break;
	case GARBAGE:
		snprintf(out, size, "garbage");
		break;
	}
}

static void print_runs(const uint64_t *buf, uint64_t first, uint64_t count)
{
	char word[120], last[120] = "";
	uint64_t i, start = 0;

	for (i = 0; i <= count; i++) {
		if (i < count)
			sector_word(word, sizeof(word), buf + i * WORDS, first + i);
		if (i && (i == count || strcmp(word, last))) {
			printf("%" PRIu64 " %" PRIu64 " %s\n", first + start,
			       i - start, last);
			start = i;
		}
		memcpy(last, word, sizeof(last));
	}
}

struct io_request {
	bool read, write, discard, zeroout, flush, fua, zero, has_stamp;
	uint64_t stamp;
};

/* The model after a write or a discard of sectors [first, end) */
static void update_model(uint64_t first, uint64_t end, uint64_t stamp)
{
	if (!model.stamp)
		return;
	end_change(0, first, end, stamp);
	if (stamp < DISCARDED && model.head->next_stamp <= stamp)
		model.head->next_stamp = stamp + 1;
}

static int cmd_io(const struct io_request *io, uint64_t offset, uint64_t length)
{
	uint64_t first = offset / SECTOR, count = length / SECTOR, i;
	uint64_t *buf = io->read || io->write ? allocate(length) : NULL;
	struct iovec iov = { buf, length };
	int err;

	if (io->discard) {
		uint64_t units_first = first, units_end = first + count;

		err = discard(first, first + count);
		if (err)
			die_io(err, "discard", offset, length);
		whole_units(run.unit, &units_first, &units_end);
		update_model(units_first, units_end, DISCARDED);
	}
	if (io->zeroout) {
		err = zero_out(first, first + count, false);
		if (err)
			die_io(err, "zero-out", offset, length);
		update_model(first, first + count, 0);
	}
	if (io->write) {
		for (i = 0; i < count; i++)
			make_sector(buf + i * WORDS, first + i, io->stamp, content_seed);
		err = transfer(true, &iov, 1, offset, io->fua ? RWF_DSYNC : 0);
		if (err)
			die_io(err, io->fua ? "FUA write" : "write", offset, length);
		update_model(first, first + count, io->stamp);
	}
	if (io->flush && fdatasync(dev.fd))
		die_errno(errno, "%s: flush", dev.path);
	if (io->read) {
		err = transfer(false, &iov, 1, offset, 0);
		if (err)
			die_io(err, "read", offset, length);
		print_runs(buf, first, count);
	}
	free(buf);
	return EXIT_OK;
}

/* ---------- units ---------- */

/* How many units the cowfile must hold */
static int cmd_units(void)
{
	uint64_t units = 0, s, last = UINT64_MAX;

	for (s = 0; s < dev.sectors; s++) {
		if (!model.written[s] || s / run.unit == last)
			continue;
		last = s / run.unit;
		units++;
	}
	printf("%" PRIu64 "\n", units);
	return EXIT_OK;
}

/* ---------- The command line ---------- */

static const char help[] =
"Usage: cowtest fill DEV|FILE [--seed N] [--zero-permille N] [--size BYTES]\n"
"       cowtest run DEV --model FILE [--seed N] [--ops N | --seconds N] [options]\n"
"       cowtest verify DEV [--model FILE] [--region OFFSET:LENGTH]\n"
"       cowtest io DEV OFFSET LENGTH --read | --write [--stamp N | --zero] [options]\n"
"       cowtest io DEV OFFSET LENGTH --discard | --zero-out [--model FILE]\n"
"       cowtest io DEV --flush\n"
"       cowtest units DEV --model FILE --unit N\n"
"\n"
"fill    writes the base contents, as a read-only image for later use\n"
"run     does random I/O, compares every read with the model, then everything;\n"
"        the model is made from the base contents if there is none, and goes on\n"
"        from where it was if there is\n"
"verify  compares every sector with the model, or with the base contents\n"
"units   prints in how many units something was written and not discarded since\n"
"io      does one read, write, discard or flush; a read prints its sectors as lines of\n"
"        \"sector count stamp\", the stamp being 0 for zeroes, \"base\" for base\n"
"        contents, or a word (foreign:..., torn:..., damaged:..., garbage)\n"
"\n"
"Base contents:\n"
"  --base-seed N      seed of the image (default 1; fill, io: --seed is the same)\n"
"  --zero-permille N  how much of it is left zero (default 100)\n"
"  --size BYTES       fill: make the file this long\n"
"run:\n"
"  --model FILE       the model (io: has the seed; a good write updates it)\n"
"  --seed N           seed of the random I/O (default 1)\n"
"  --ops N            so many operations in all (default 1000), or\n"
"  --seconds N        for so long\n"
"  --threads N        so many threads (default 1)\n"
"  --lbs N            logical block size (default: that of the device)\n"
"  --max-bytes N      largest read or write (default 1M)\n"
"  --sync-permille N  so many of 1000 operations are flushes (default 10)\n"
"  --discard-permille N  so many of 1000 are discards (default 0)\n"
"  --unit N           whole units of so many bytes are what a discard takes, or 0:\n"
"                     nothing (default 4K; io, units: too)\n"
"  --region O:L       stay within L bytes at offset O\n"
"io:\n"
"  --read, --write    which\n"
"  --stamp N          write sectors of this stamp (default 1), or\n"
"  --zero             zeroes\n"
"  --fua              write with FUA\n"
"  --discard          discard: of whole units\n"
"  --zero-out         write zeroes, without data\n"
"  --flush            flush; with --write, after it\n"
"\n"
"Numbers may end in K, M, G or T. Exit status: 0 all right, 1 wrong contents,\n"
"2 usage, 3 an I/O or other error, whose name (ENOSPC, EIO...) is printed.\n";

struct arguments {
	const char *model;
	uint64_t size, max_bytes, seed;
	uint64_t offset, length;
	unsigned int lbs;
	bool has_seed, has_region;
	struct io_request io;
};

enum {
	OPT_HELP = 256, OPT_SEED, OPT_BASE_SEED, OPT_ZERO_PERMILLE, OPT_SIZE,
	OPT_MODEL, OPT_OPS, OPT_SECONDS, OPT_THREADS, OPT_LBS, OPT_MAX_BYTES,
	OPT_SYNC_PERMILLE, OPT_REGION, OPT_READ, OPT_WRITE, OPT_STAMP, OPT_ZERO,
	OPT_FUA, OPT_FLUSH, OPT_DISCARD, OPT_ZERO_OUT, OPT_DISCARD_PERMILLE, OPT_UNIT,
};

static const struct option options[] = {
	{ "help", no_argument, NULL, OPT_HELP },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "base-seed", required_argument, NULL, OPT_BASE_SEED },
	{ "zero-permille", required_argument, NULL, OPT_ZERO_PERMILLE },
	{ "size", required_argument, NULL, OPT_SIZE },
	{ "model", required_argument, NULL, OPT_MODEL },
	{ "ops", required_argument, NULL, OPT_OPS },
	{ "seconds", required_argument, NULL, OPT_SECONDS },
	{ "threads", required_argument, NULL, OPT_THREADS },
	{ "lbs", required_argument, NULL, OPT_LBS },
	{ "max-bytes", required_argument, NULL, OPT_MAX_BYTES },
	{ "sync-permille", required_argument, NULL, OPT_SYNC_PERMILLE },
	{ "region", required_argument, NULL, OPT_REGION },
	{ "read", no_argument, NULL, OPT_READ },
	{ "write", no_argument, NULL, OPT_WRITE },
	{ "stamp", required_argument, NULL, OPT_STAMP },
	{ "zero", no_argument, NULL, OPT_ZERO },
	{ "fua", no_argument, NULL, OPT_FUA },
	{ "flush", no_argument, NULL, OPT_FLUSH },
	{ "discard", no_argument, NULL, OPT_DISCARD },
	{ "zero-out", no_argument, NULL, OPT_ZERO_OUT },
	{ "discard-permille", required_argument, NULL, OPT_DISCARD_PERMILLE },
	{ "unit", required_argument, NULL, OPT_UNIT },
	{ NULL, 0, NULL, 0 }
};

static void parse_region(const char *text, struct arguments *a)
{
	const char *rest;

	a->offset = parse_number("region", text, &rest);
	if (*rest != ':')
		die(EXIT_USAGE, "--region: '%s' is not OFFSET:LENGTH", text);
	a->length = parse_number("region", rest + 1, NULL);
	if (!a->length)
		die(EXIT_USAGE, "--region: empty");
	a->has_region = true;
}

/* One of the options that say what "cowtest io" does; false if it is none. */
static bool parse_io_option(int opt, const char *name, struct io_request *io)
{
	switch (opt) {
	case OPT_READ:
		io->read = true;
		return true;
	case OPT_WRITE:
		io->write = true;
		return true;
	case OPT_STAMP:
		io->stamp = number(name, optarg, 0, BASE_STAMP - 2);
		io->has_stamp = true;
		return true;
	case OPT_ZERO:
		io->zero = true;
		return true;
	case OPT_FUA:
		io->fua = true;
		return true;
	case OPT_FLUSH:
		io->flush = true;
		return true;
	case OPT_DISCARD:
		io->discard = true;
		return true;
	case OPT_ZERO_OUT:
		io->zeroout = true;
		return true;
	}
	return false;
}

/* One of those that say what "cowtest run" does; false if it is none. */
static bool parse_run_option(int opt, const char *name)
{
	switch (opt) {
	case OPT_OPS:
		run.ops = parse_number(name, optarg, NULL);
		return true;
	case OPT_SECONDS:
		run.seconds = number(name, optarg, 1, 1000000);
		return true;
	case OPT_THREADS:
		run.threads = number(name, optarg, 1, MAX_THREADS);
		return true;
	case OPT_SYNC_PERMILLE:
		run.sync_permille = number(name, optarg, 0, 1000);
		return true;
	case OPT_DISCARD_PERMILLE:
		run.discard_permille = number(name, optarg, 0, 1000);
		return true;
	case OPT_UNIT:
		run.unit = number(name, optarg, 0, AREA) / SECTOR;
		return true;
	}
	return false;
}

static void parse_option(int opt, const char *name, struct arguments *a)
{
	switch (opt) {
	case OPT_HELP:
		fputs(help, stdout);
		exit(EXIT_OK);
	case OPT_SEED:
		a->seed = parse_number(name, optarg, NULL);
		a->has_seed = true;
		break;
	case OPT_BASE_SEED:
		content_seed = parse_number(name, optarg, NULL);
		given.seed = true;
		break;
	case OPT_ZERO_PERMILLE:
		zero_permille = number(name, optarg, 0, 1000);
		given.zero_permille = true;
		break;
	case OPT_SIZE:
		a->size = number(name, optarg, 1, INT64_MAX);
		break;
	case OPT_MODEL:
		a->model = optarg;
		break;
	case OPT_LBS:
		a->lbs = number(name, optarg, 512, 4096);
		if (a->lbs != 512 && a->lbs != 4096)
			die(EXIT_USAGE, "--lbs: must be 512 or 4096");
		break;
	case OPT_MAX_BYTES:
		a->max_bytes = number(name, optarg, 512, 64 << 20);
		break;
	case OPT_REGION:
		parse_region(optarg, a);
		break;
	default:
		die(EXIT_USAGE, "try --help");
	}
}

static void parse_options(int argc, char **argv, struct arguments *a)
{
	int opt, index;

	while ((opt = getopt_long(argc, argv, "", options, &index)) != -1) {
		const char *name = opt == '?' ? "" : options[index].name;

		if (!parse_io_option(opt, name, &a->io) && !parse_run_option(opt, name))
			parse_option(opt, name, a);
	}
}

static int main_fill(struct arguments *a, int argc)
{
	if (argc != 1)
		die(EXIT_USAGE, "what to fill? try --help");
	if (a->has_seed)
		content_seed = a->seed;
	/* O_TRUNC does nothing to a device */
	device_open(dev.path, a->size ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR, a->size, 0);
	return cmd_fill(a->size);
}

static int main_run(struct arguments *a, int argc)
{
	int status;

	if (argc != 1 || !a->model)
		die(EXIT_USAGE, "needs a device and --model; try --help");
	run.seed = a->has_seed ? a->seed : 1;
	device_open(dev.path, O_RDWR, 0, a->lbs);
	model_open(a->model, true, true);
	status = cmd_run(a->max_bytes, a->offset, a->length);
	model_close();
	return status;
}

static int main_verify(struct arguments *a, int argc)
{
	uint64_t first = 0, end, bad;

	if (argc != 1)
		die(EXIT_USAGE, "needs a device; try --help");
	device_open(dev.path, O_RDONLY, 0, 0);
	if (a->model)
		model_open(a->model, false, false);
	end = dev.sectors;
	if (a->has_region) {
		if (a->offset % dev.lbs || a->length % dev.lbs ||
		    a->offset > dev.bytes || a->length > dev.bytes - a->offset)
			die(EXIT_USAGE, "--region: must be whole logical blocks of %s",
			    dev.path);
		first = a->offset / SECTOR;
		end = first + a->length / SECTOR;
	}
	bad = compare("verify", first, end);
	printf("cowtest: verify: %s: %" PRIu64 " sectors compared with %s: %" PRIu64
	       " bad sectors\n",
	       dev.path, end - first, a->model ? a->model : "the base contents", bad);
	return bad ? EXIT_MISMATCH : EXIT_OK;
}

static int main_units(struct arguments *a, int argc)
{
	if (argc != 1 || !a->model || !run.unit)
		die(EXIT_USAGE, "needs a device, --model and --unit; try --help");
	device_open(dev.path, O_RDONLY, 0, 0);
	model_open(a->model, false, false);
	return cmd_units();
}

static int main_io(struct arguments *a, int argc, char **argv)
{
	uint64_t offset = 0, length = 0;
	struct io_request *io = &a->io;
	const bool change = io->write || io->discard || io->zeroout;
	int status;

	if (io->read + io->write + io->discard + io->zeroout > 1 || !(io->read || change || io->flush))
		die(EXIT_USAGE, "needs one of --read, --write, --discard, --zero-out or --flush");
	if (!io->write && (io->fua || io->zero || io->has_stamp))
		die(EXIT_USAGE, "--fua, --stamp and --zero go with --write");
	if (a->has_seed && a->model)
		die(EXIT_USAGE, "--seed or --model, which has a seed, not both");
	if (io->zero && io->has_stamp)
		die(EXIT_USAGE, "--stamp or --zero, not both");
	if (argc != 3 && (argc != 1 || io->read || change))
		die(EXIT_USAGE, "needs a device, an offset and a length; try --help");
	if (a->has_seed)
		content_seed = a->seed;
	if (!io->zero && !io->has_stamp)
		io->stamp = 1;
	if (argc == 3) {
		offset = parse_number("offset", argv[1], NULL);
		length = parse_number("length", argv[2], NULL);
	}
	if (offset % SECTOR || length % SECTOR || ((io->read || io->write) && length > 1 << 30))
		die(EXIT_USAGE, "offset and length must be whole sectors, up to 1 GiB");
	if ((io->read || change) && !length)
		die(EXIT_USAGE, "the length must not be 0");
	device_open(dev.path, change ? O_RDWR : O_RDONLY, 0, 0);
	if (offset > dev.bytes || length > dev.bytes - offset)
		die(EXIT_USAGE, "%s: has only %" PRIu64 " bytes", dev.path, dev.bytes);
	if (a->model)
		model_open(a->model, change, change);
	status = cmd_io(io, offset, length);
	if (a->model)
		model_close();
	return status;
}

int main(int argc, char **argv)
{
	struct arguments a = { .max_bytes = 1 << 20 };
	int status;

	run.ops = 1000;
	run.threads = 1;
	run.sync_permille = 10;
	run.unit = 4096 / SECTOR;
	parse_options(argc, argv, &a);
	argv += optind;
	argc -= optind;
	if (argc < 2)
		die(EXIT_USAGE, "needs a command and a device; try --help");
	command = argv[0];
	dev.path = argv[1];
	argv++;
	argc--;
	if (!strcmp(command, "fill"))
		status = main_fill(&a, argc);
	else if (!strcmp(command, "run"))
		status = main_run(&a, argc);
	else if (!strcmp(command, "verify"))
		status = main_verify(&a, argc);
	else if (!strcmp(command, "units"))
		status = main_units(&a, argc);
	else if (!strcmp(command, "io"))
		status = main_io(&a, argc, argv);
	else
		die(EXIT_USAGE, "no such command; try --help");
	if (close(dev.fd))
		die_errno(errno, "%s: close", dev.path);
	if (fflush(stdout) || ferror(stdout))
		die(EXIT_SYSTEM, "can't write to stdout");
	return status;
}
