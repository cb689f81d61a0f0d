// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowstress - many threads at the same few units of a block device
 *
 * The threads write the same sectors at the same time, on purpose: parts of a
 * unit, whole units and several, with and without FUA, zeroes, while others
 * read, discard and flush.  Most of what they do is in one unit, the hot one, and which
 * one that is changes all the time, so that on a new cowfile they meet in one
 * first write after the other.
 *
 * What a read may find is decided for each sector by itself.  Every call has a
 * start and an end on a clock that counts calls.  A sector behaves as if a write
 * took effect at one moment between its start and its end.  So a read may find
 * what write W has written if
 *
 *  - W started before the read ended, and
 *  - no other write to the sector started after W had ended, and ended (or was
 *    seen by another read, which had ended) before the read started.
 *
 * The base contents, which "cowstress fill" makes, are a write that ended at
 * time 0.  A write that has failed never ends: it may show at any time, or not.
 * A discard is a write of "the base contents or zeroes" to the whole units that
 * it covers, and nothing to any other sector.
 *
 * For the second rule it is enough to know, for each sector, the latest start
 * of all the writes to it that have ended, or have been seen: the sector's
 * "since".  It is noted before a read; what the read finds must not have ended
 * before that.  The clock's order is that of the calls, so nothing that is
 * right is ever reported; and no lock is taken, so that nothing is held up.
 *
 * Each sector written says which sector it is, which write and which run has
 * made it, and is filled with a hash of that: one that is torn, stale, lost or
 * foreign shows.  The device at the bottom must write a sector as a whole, in
 * one piece, as disks do.  So do loop devices and null_blk, but not brd.
 *
 * The journal is a file that keeps all this, so that "cowstress verify" can
 * check the device again after it was closed.  With --flushed it was not closed
 * well, and only what flushes and FUA cover must be there: then since is made of
 * those writes alone.
 */
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <sys/uio.h>
#include <time.h>

#include "util.h"

#define MAGIC		0x2173727473776f63ULL	/* "cowstrs!" */

#define CHUNK_SECTORS	2048		/* I/O size of fill and verify */
#define MAX_UNITS	4		/* of one read or write */
#define MAX_THREADS	256
#define MAX_SECTORS	(1U << 20)
#define MAX_WRITES	(4U << 20)	/* of one run */
#define MAX_DETAILS	10		/* mismatches described in full */
#define MAX_ALLOWED	8		/* writes named in a message */
#define DWELL		3		/* operations of each thread in a hot unit */

#define FOREVER		UINT64_MAX

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* ---------- The device ---------- */

static struct {
	const char *path;
	int fd;
	uint64_t sectors;
	unsigned int lbs;	/* logical block size, in sectors */
} dev;

static void device_open(const char *path, int flags)
{
	dev.path = path;
	dev.fd = open_path(path, flags | O_DIRECT);
	dev.sectors = device_bytes(dev.fd, path, &dev.lbs) / SECTOR;
	dev.lbs /= SECTOR;
	if (dev.sectors > MAX_SECTORS)
		die(EXIT_USAGE, "%s: has %" PRIu64 " sectors, this is for at most %u", path, dev.sectors,
		    MAX_SECTORS);
}

/* 0 or an errno */
static int transfer(bool write, void *buf, uint64_t first, uint64_t count, int flags)
{
	struct iovec iov = { buf, count * SECTOR };
	ssize_t n = write ? pwritev2(dev.fd, &iov, 1, first * SECTOR, flags) :
			    preadv2(dev.fd, &iov, 1, first * SECTOR, flags);

	if (n < 0)
		return errno;
	return (size_t)n == iov.iov_len ? 0 : EIO;
}

/* ---------- The journal ---------- */

enum kind { DATA, ZEROES, DISCARD };
static const char *const kinds[] = { "write", "zero-out", "discard" };

/* A write of any kind; its number is its place in the journal, from 1 on */
struct write {
	uint64_t start, end;	/* on the clock; end: FOREVER while in flight, and if failed */
	uint32_t first, count;	/* sectors */
	uint16_t thread;
	uint8_t kind;
	uint8_t fua;
	uint32_t error;
};

/* What is known of a sector; times are on the clock */
struct sector {
	uint64_t since;		/* the latest start of writes that have ended or were seen */
	uint64_t zero_end;	/* the latest end of zero-outs and discards */
	uint64_t base_end;	/* the latest end of discards */
	uint32_t zeroing;	/* zero-outs and discards in flight, or failed */
	uint32_t discarding;
	uint32_t writing;	/* writes of any kind in flight */
	uint32_t unused;
};

#define JOURNAL_MAGIC	"cowstres"

struct journal {
	char magic[8];
	uint64_t seed, base_seed;
	uint64_t sectors;
	uint64_t unit_sectors;
	uint64_t clock;
	uint64_t next_write;
	uint64_t flushed;	/* the latest start of a flush that has succeeded */
	char pad[4096 - 64];
	struct write writes[MAX_WRITES];
	struct sector sector[MAX_SECTORS];
};

static struct journal *journal;

static void journal_open(const char *path, bool create)
{
	int fd = -1;

	if (path) {
		fd = open_path(path, create ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR);
		if (create && ftruncate(fd, sizeof(*journal)))
			die_errno(errno, "%s: ftruncate", path);
		if (!create && lseek(fd, 0, SEEK_END) != sizeof(*journal))
			die(EXIT_USAGE, "%s: not a journal", path);
	}
	/* verify may change what it knows, but not the file */
	journal = mmap(NULL, sizeof(*journal), PROT_READ | PROT_WRITE,
		       !path ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE :
		       create ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE, fd, 0);
	if (journal == MAP_FAILED)
		die_errno(errno, "%s: mmap", path ? path : "memory");
	if (fd >= 0)
		close(fd);
	if (create) {
		memcpy(journal->magic, JOURNAL_MAGIC, sizeof(journal->magic));
		journal->sectors = dev.sectors;
		journal->next_write = 1;
		journal->clock = 1;
		return;
	}
	if (memcmp(journal->magic, JOURNAL_MAGIC, sizeof(journal->magic)))
		die(EXIT_USAGE, "%s: not a journal", path);
	if (journal->sectors != dev.sectors)
		die(EXIT_USAGE, "%s: of a device of %" PRIu64 " sectors, but %s has %" PRIu64, path,
		    journal->sectors, dev.path, dev.sectors);
}

static uint64_t tick(void)
{
	return __atomic_fetch_add(&journal->clock, 1, __ATOMIC_SEQ_CST);
}

static uint64_t get(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void raise_to(uint64_t *p, uint64_t value)
{
	uint64_t old = get(p);

	while (old < value &&
	       !__atomic_compare_exchange_n(p, &old, value, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static void add(uint32_t *p, int n)
{
	__atomic_fetch_add(p, n, __ATOMIC_SEQ_CST);
}

/* Before a write. Returns its number, or 0 when the journal is full. */
static uint64_t begin_write(enum kind kind, bool fua, unsigned int thread, uint64_t first, uint64_t count,
			    bool *met)
{
	uint64_t id = __atomic_fetch_add(&journal->next_write, 1, __ATOMIC_SEQ_CST), s;
	struct write *w;

	if (id >= MAX_WRITES)
		return 0;
	w = &journal->writes[id];
	*w = (struct write){ .end = FOREVER, .first = first, .count = count, .thread = thread,
			     .kind = kind, .fua = fua };
	for (s = first; s < first + count; s++) {
		struct sector *sector = &journal->sector[s];

		if (kind != DATA)
			add(&sector->zeroing, 1);
		if (kind == DISCARD)
			add(&sector->discarding, 1);
		*met |= __atomic_fetch_add(&sector->writing, 1, __ATOMIC_SEQ_CST);
	}
	w->start = tick();
	return id;
}

static void end_write(uint64_t id, int err)
{
	struct write *w = &journal->writes[id];
	uint64_t end = tick(), s;

	w->error = err;
	if (!err)
		__atomic_store_n(&w->end, end, __ATOMIC_SEQ_CST);
	for (s = w->first; s < w->first + w->count; s++) {
		struct sector *sector = &journal->sector[s];

		add(&sector->writing, -1);
		if (err)
			continue;
		/* The time before the count: who finds none in flight must find when the last one ended. */
		raise_to(&sector->since, w->start);
		if (w->kind != DATA) {
			raise_to(&sector->zero_end, end);
			add(&sector->zeroing, -1);
		}
		if (w->kind == DISCARD) {
			raise_to(&sector->base_end, end);
			add(&sector->discarding, -1);
		}
	}
}

/* ---------- Sectors ---------- */

static void make_sector(uint64_t *w, uint64_t sector, uint64_t id, uint64_t seed)
{
	stamp_sector(w, MAGIC, sector, id, seed);
}

/* The base contents are write 0, of another seed. */
static uint64_t seed_of(uint64_t id)
{
	return id ? journal->seed : journal->base_seed;
}

static bool sector_is(const uint64_t *w, uint64_t sector, uint64_t id, uint64_t seed)
{
	uint64_t image[WORDS];

	make_sector(image, sector, id, seed);
	return !memcmp(w, image, SECTOR);
}

static bool covers(const struct write *w, uint64_t sector)
{
	return sector >= w->first && sector - w->first < w->count;
}

/* Is @w, which read the sector when since was @since, something it may hold? */
static bool allowed(const uint64_t *w, uint64_t sector, uint64_t since)
{
	struct sector *known = &journal->sector[sector];
	const uint64_t id = w[2];
	const struct write *found;

	if (is_zero(w)) {
		uint64_t end;

		if (__atomic_load_n(&known->zeroing, __ATOMIC_SEQ_CST))
			return true;
		end = get(&known->zero_end);
		return end && end >= since;
	}
	if (id >= min_u64(get(&journal->next_write), MAX_WRITES) || !sector_is(w, sector, id, seed_of(id)))
		return false;
	if (!id)
		return !since || __atomic_load_n(&known->discarding, __ATOMIC_SEQ_CST) ||
		       get(&known->base_end) >= since;
	found = &journal->writes[id];
	if (found->kind != DATA || !covers(found, sector) || get(&found->end) < since)
		return false;
	return true;
}

/* ---------- Mismatches ---------- */

static uint64_t mismatches;
static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;

/* A read as a message needs it; started on the clock, and 0 for verify */
struct reading {
	const char *who;
	uint64_t start, first, count;
};

static void describe_write(FILE *out, uint64_t id)
{
	const struct write *w = &journal->writes[id];

	fprintf(out, "%s%s %" PRIu64 " (thread %u, %u sectors at %u, from %" PRIu64, w->fua ? "FUA " : "",
		kinds[w->kind], id, w->thread, w->count, w->first, w->start);
	if (w->end != FOREVER)
		fprintf(out, " to %" PRIu64 ")", w->end);
	else if (w->error)
		fprintf(out, ", failed with %s)", strerrorname_np(w->error));
	else
		fprintf(out, " on)");
}

/* What the first words of a sector claim, or the last ones */
static void describe_claim(FILE *out, uint64_t sector, uint64_t at, uint64_t id, uint64_t seed)
{
	const bool known = seed == seed_of(id) && id < min_u64(journal->next_write, MAX_WRITES);

	if (known && id)
		describe_write(out, id);
	else if (known)
		fprintf(out, "the base contents");
	else
		fprintf(out, "write %" PRIu64 " of seed %" PRIu64 ", not of this run", id, seed);
	if (at != sector)
		fprintf(out, ", of sector %" PRIu64, at);
	else if (known && id && !covers(&journal->writes[id], sector))
		fprintf(out, ", which did not write this sector");
}

static void describe_found(FILE *out, const uint64_t *w, uint64_t sector, uint64_t since)
{
	const uint64_t id = w[2];

	if (is_zero(w)) {
		fprintf(out, "zeroes");
		return;
	}
	if (w[0] == MAGIC && sector_is(w, w[1], id, w[3])) {
		describe_claim(out, sector, w[1], id, w[3]);
		if (w[1] == sector && since)
			fprintf(out, ", overwritten by then");
		return;
	}
	if (w[0] != MAGIC && w[61] != sector) {
		fprintf(out, "garbage, beginning %016" PRIx64 " %016" PRIx64, w[0], w[1]);
		return;
	}
	fprintf(out, "a torn or damaged sector, beginning as ");
	if (w[0] == MAGIC)
		describe_claim(out, sector, w[1], id, w[3]);
	else
		fprintf(out, "%016" PRIx64, w[0]);
	fprintf(out, " and ending as ");
	describe_claim(out, sector, w[61], w[62], seed_of(w[62]));
}

static void describe_allowed(FILE *out, uint64_t sector, uint64_t since)
{
	uint64_t id = min_u64(journal->next_write, MAX_WRITES), last = 0;
	unsigned int n = 0;

	while (--id) {
		const struct write *w = &journal->writes[id];

		if (!covers(w, sector) || w->end < since)
			continue;
		if (w->start == since)
			last = id;
		if (++n > MAX_ALLOWED)
			continue;
		fprintf(out, "%s", n > 1 ? "; " : "");
		describe_write(out, id);
	}
	if (n > MAX_ALLOWED)
		fprintf(out, "; %u older ones", n - MAX_ALLOWED);
	if (!since) {
		fprintf(out, "%sthe base contents", n ? "; " : "");
		return;
	}
	fprintf(out, "; what it held before was overwritten by ");
	describe_write(out, last);
}

static void mismatch(const struct reading *r, const uint64_t *w, uint64_t sector, uint64_t since)
{
	pthread_mutex_lock(&report_lock);
	if (__atomic_add_fetch(&mismatches, 1, __ATOMIC_SEQ_CST) <= MAX_DETAILS) {
		fprintf(stderr, "cowstress: %s: %s: read of %" PRIu64 " sectors at %" PRIu64, command,
			r->who, r->count, r->first);
		if (r->start)
			fprintf(stderr, ", from %" PRIu64 " to %" PRIu64, r->start, get(&journal->clock));
		fprintf(stderr, ": sector %" PRIu64 " (unit %" PRIu64 " + %" PRIu64 "): found ", sector,
			sector / journal->unit_sectors, sector % journal->unit_sectors);
		describe_found(stderr, w, sector, since);
		fprintf(stderr, ". Allowed: ");
		describe_allowed(stderr, sector, since);
		fprintf(stderr, "\n");
	}
	pthread_mutex_unlock(&report_lock);
}

/* Read and check; since is for as many sectors. 0 or an errno. */
static int check_read(const char *who, uint64_t *buf, uint64_t *since, uint64_t first, uint64_t count)
{
	struct reading r = { who, tick(), first, count };
	uint64_t i;
	int err;

	for (i = 0; i < count; i++)
		since[i] = get(&journal->sector[first + i].since);
	err = transfer(false, buf, first, count, 0);
	if (err)
		return err;
	for (i = 0; i < count; i++) {
		const uint64_t *w = buf + i * WORDS;
		const uint64_t id = w[2];

		if (!allowed(w, first + i, since[i]))
			mismatch(&r, w, first + i, since[i]);
		else if (!is_zero(w) && id)
			raise_to(&journal->sector[first + i].since, journal->writes[id].start);
	}
	return 0;
}

/* Everything. Errors are counted, or fatal. */
static void check_all(const char *who, bool allow_errors, uint64_t *errors)
{
	uint64_t *buf = allocate(CHUNK_SECTORS * SECTOR), since[CHUNK_SECTORS], first, n;
	int err;

	for (first = 0; first < dev.sectors; first += n) {
		n = min_u64(CHUNK_SECTORS, dev.sectors - first);
		err = check_read(who, buf, since, first, n);
		if (err && !allow_errors)
			die(EXIT_SYSTEM, "%s: %s: read of %" PRIu64 " sectors at %" PRIu64 ": %s", dev.path,
			    who, n, first, strerrorname_np(err));
		*errors += !!err;
	}
	free(buf);
}

/* ---------- run ---------- */

static struct {
	double seconds;
	double deadline;
	unsigned int threads;
	uint64_t units, unit_sectors, stride;
	bool allow_errors, discard;
	bool stop;
	uint64_t ops;		/* of all threads */
} run;

struct counters {
	uint64_t parts, wholes, fua, zeroes, discards, reads, flushes, errors, met;
};

struct worker {
	pthread_t thread;
	unsigned int id;
	char name[20];
	uint64_t random;
	uint64_t *buf;
	uint64_t *since;
	struct counters count;
};

static void stop_all(void)
{
	__atomic_store_n(&run.stop, true, __ATOMIC_SEQ_CST);
}

/* SIGTERM ends a run early, but as well as the end of its time does. */
static void on_sigterm(int sig)
{
	(void)sig;
	stop_all();
}

static void failed(struct worker *w, const char *what, uint64_t first, uint64_t count, int err)
{
	w->count.errors++;
	if (!run.allow_errors)
		die(EXIT_SYSTEM, "%s: %s: %s of %" PRIu64 " sectors at %" PRIu64 ": %s (%s)", dev.path, w->name,
		    what, count, first, strerrorname_np(err), strerror(err));
	usleep(1000);	/* when everything fails at once, others have something to do */
}

/*
 * The units take turns at being hot, in an order in which neighbours come long
 * after each other: they step by a stride that has no factor in common with
 * their number.
 */
static uint64_t choose_stride(uint64_t n)
{
	uint64_t stride = n * 5 / 8 | 1, a, b, rest;

	for (;; stride++) {
		for (a = stride, b = n; b; a = b, b = rest)
			rest = a % b;
		if (a == 1)
			return stride;
	}
}

static uint64_t hot_unit(void)
{
	const uint64_t op = __atomic_fetch_add(&run.ops, 1, __ATOMIC_RELAXED);

	return op / (DWELL * run.threads) % run.units * run.stride % run.units;
}

struct range {
	uint64_t first, count;
};

/* A place for one of 100: parts of a unit, of two, whole units; all in logical blocks */
static struct range pick(struct worker *w, unsigned int roll)
{
	const uint64_t size = run.unit_sectors, blocks = size / dev.lbs, end = dev.sectors;
	uint64_t unit = hot_unit(), from, count;
	struct range r;

	if (!below(&w->random, 6))
		unit = below(&w->random, run.units);
	/* in large units they would miss each other */
	from = below(&w->random, below(&w->random, 2) ? blocks : min_u64(blocks, 8)) * dev.lbs;
	if (roll < 35)
		count = dev.lbs;
	else if (roll < 60)
		count = (1 + below(&w->random, min_u64(blocks, 8))) * dev.lbs;
	else if (roll < 75)
		count = size - from + (1 + below(&w->random, blocks)) * dev.lbs;
	else {
		from = 0;
		count = size * (roll < 93 ? 1 : 2 + below(&w->random, MAX_UNITS - 1));
	}
	r.first = unit * size + from;
	if (r.first >= end)
		r.first = unit * size;
	if (roll < 60)
		count = min_u64(count, (unit + 1) * size - r.first);
	r.count = min_u64(count, end - r.first);
	return r;
}

/* The whole units in a range; the device's last one may be short. */
static struct range whole_units(struct range r)
{
	const uint64_t size = run.unit_sectors, end = r.first + r.count;
	const uint64_t units_end = end == dev.sectors ? end : end / size * size;
	const uint64_t first = (r.first + size - 1) / size * size;

	return (struct range){ first, units_end > first ? units_end - first : 0 };
}

static int do_write(struct worker *w, enum kind kind, struct range r, bool fua)
{
	const struct range changed = kind == DISCARD ? whole_units(r) : r;
	uint64_t bytes[2] = { r.first * SECTOR, r.count * SECTOR }, id, i;
	bool met = false;
	int err;

	id = begin_write(kind, fua, w->id, changed.first, changed.count, &met);
	if (!id) {
		stop_all();
		return 0;
	}
	if (kind == DATA) {
		for (i = 0; i < r.count; i++)
			make_sector(w->buf + i * WORDS, r.first + i, id, journal->seed);
		err = transfer(true, w->buf, r.first, r.count, fua ? RWF_DSYNC : 0);
	} else {
		err = ioctl(dev.fd, kind == ZEROES ? BLKZEROOUT : BLKDISCARD, bytes) ? errno : 0;
	}
	end_write(id, err);
	w->count.met += met;
	return err;
}

static int do_flush(void)
{
	const uint64_t start = tick();

	if (fdatasync(dev.fd))
		return errno;
	raise_to(&journal->flushed, start);
	return 0;
}

static bool whole(struct range r)
{
	return r.first % run.unit_sectors == 0 &&
	       (r.count % run.unit_sectors == 0 || r.first + r.count == dev.sectors);
}

static void do_one(struct worker *w)
{
	struct range r = pick(w, below(&w->random, 100));
	const unsigned int roll = below(&w->random, 100);
	enum kind kind = DATA;
	const char *what;
	int err;

	if (roll < 3) {
		what = "flush";
		w->count.flushes++;
		err = do_flush();
	} else if (roll < 25) {
		what = "read";
		w->count.reads++;
		err = check_read(w->name, w->buf, w->since, r.first, r.count);
		if (get(&mismatches))
			stop_all();
	} else {
		const bool fua = roll < 33;

		if (roll >= 96)
			kind = ZEROES;
		else if (run.discard && roll >= 86)
			kind = DISCARD;
		/* mostly of whole units: nothing else changes anything */
		if (kind == DISCARD && below(&w->random, 4))
			r = pick(w, 75 + below(&w->random, 25));
		what = kinds[kind];
		if (kind == ZEROES)
			w->count.zeroes++;
		else if (kind == DISCARD)
			w->count.discards++;
		else if (whole(r))
			w->count.wholes++;
		else
			w->count.parts++;
		w->count.fua += fua;
		err = do_write(w, kind, r, fua);
	}
	if (err)
		failed(w, what, r.first, r.count, err);
}

static void *work(void *arg)
{
	struct worker *w = arg;

	while (!__atomic_load_n(&run.stop, __ATOMIC_SEQ_CST) && now() < run.deadline)
		do_one(w);
	return NULL;
}

static int cmd_run(void)
{
	struct worker *workers = allocate(run.threads * sizeof(*workers));
	const uint64_t most = MAX_UNITS * run.unit_sectors;
	const struct sigaction on_term = { .sa_handler = on_sigterm, .sa_flags = SA_RESTART };
	struct counters sum = { 0 };
	unsigned int i, j;
	int err;

	if (run.unit_sectors % dev.lbs)
		die(EXIT_USAGE, "--unit-size: %s has logical blocks of %u bytes", dev.path, dev.lbs * SECTOR);
	i = (dev.sectors + run.unit_sectors - 1) / run.unit_sectors;
	if (!run.units)
		run.units = i;
	if (run.units > i)
		die(EXIT_USAGE, "--units: %s has %u", dev.path, i);
	run.stride = choose_stride(run.units);
	run.deadline = now() + run.seconds;
	sigaction(SIGTERM, &on_term, NULL);
	for (i = 0; i < run.threads; i++) {
		struct worker *w = &workers[i];

		w->id = i;
		snprintf(w->name, sizeof(w->name), "thread %u", i);
		w->random = mix(journal->seed ^ mix(i));
		w->buf = allocate(most * SECTOR);
		w->since = allocate(most * sizeof(uint64_t));
		err = pthread_create(&w->thread, NULL, work, w);
		if (err)
			die_errno(err, "pthread_create");
	}
	for (i = 0; i < run.threads; i++) {
		const uint64_t *from = (const uint64_t *)&workers[i].count;

		err = pthread_join(workers[i].thread, NULL);
		if (err)
			die_errno(err, "pthread_join");
		for (j = 0; j < sizeof(sum) / sizeof(uint64_t); j++)
			((uint64_t *)&sum)[j] += from[j];
		free(workers[i].buf);
		free(workers[i].since);
	}
	free(workers);
	if (!mismatches)
		check_all("at the end", run.allow_errors, &sum.errors);
	printf("cowstress: run: %s: writes of parts %" PRIu64 ", of whole units %" PRIu64 " (FUA %" PRIu64
	       "), zero-outs %" PRIu64 ", discards %" PRIu64 ", of these %" PRIu64 " met another in its sectors;"
	       " reads %" PRIu64 ", flushes %" PRIu64 "; errors %" PRIu64 "; bad sectors %" PRIu64 "\n",
	       dev.path, sum.parts, sum.wholes, sum.fua, sum.zeroes, sum.discards, sum.met, sum.reads,
	       sum.flushes, sum.errors, mismatches);
	return mismatches ? EXIT_MISMATCH : EXIT_OK;
}

/* ---------- fill, verify ---------- */

static int cmd_fill(uint64_t base_seed)
{
	uint64_t *buf = allocate(CHUNK_SECTORS * SECTOR), first, n, i;
	int err;

	for (first = 0; first < dev.sectors; first += n) {
		n = min_u64(CHUNK_SECTORS, dev.sectors - first);
		for (i = 0; i < n; i++)
			make_sector(buf + i * WORDS, first + i, 0, base_seed);
		err = transfer(true, buf, first, n, 0);
		if (err)
			die_errno(err, "%s: write", dev.path);
	}
	if (fdatasync(dev.fd))
		die_errno(errno, "%s: fdatasync", dev.path);
	free(buf);
	return EXIT_OK;
}

/* Only what was flushed counts as ended; a sector never written has since 0. */
static void keep_flushed(void)
{
	const uint64_t n = min_u64(journal->next_write, MAX_WRITES);
	uint64_t id, s;

	for (s = 0; s < dev.sectors; s++)
		journal->sector[s].since = 0;
	for (id = 1; id < n; id++) {
		const struct write *w = &journal->writes[id];

		if (w->end == FOREVER || !(w->fua || w->end < journal->flushed))
			continue;
		for (s = w->first; s < w->first + w->count; s++)
			raise_to(&journal->sector[s].since, w->start);
	}
}

static int cmd_verify(bool flushed)
{
	uint64_t errors = 0;

	if (flushed)
		keep_flushed();
	check_all(flushed ? "what was flushed" : "everything", false, &errors);
	printf("cowstress: verify: %s: %" PRIu64 " sectors, %" PRIu64 " writes: bad sectors %" PRIu64 "\n",
	       dev.path, dev.sectors, min_u64(journal->next_write, MAX_WRITES) - 1, mismatches);
	return mismatches ? EXIT_MISMATCH : EXIT_OK;
}

/* ---------- The command line ---------- */

static const char help[] =
"Usage: cowstress fill DEV [--base-seed N]\n"
"       cowstress run DEV [--journal FILE] [--seconds N] [--threads N] [options]\n"
"       cowstress verify DEV --journal FILE [--flushed]\n"
"\n"
"fill    writes the base contents, to what is to be the read-only device\n"
"run     many threads at the same units of a device that holds the base contents:\n"
"        every read, and then everything, must be what some order of the writes\n"
"        explains\n"
"verify  everything once more, on a device that was closed and opened since\n"
"\n"
"  --base-seed N      of the base contents (default 1)\n"
"  --seed N           of the run (default 1); must differ from run to run, so that\n"
"                     what is left of another is known for it\n"
"  --journal FILE     run: what verify needs\n"
"  --seconds N        how long, may be a fraction (default 2); SIGTERM ends it earlier\n"
"  --threads N        default 16\n"
"  --unit-size BYTES  default 4096\n"
"  --units N          only the first N (default: all)\n"
"  --discard          discards too, which take whole units of that size\n"
"  --allow-errors     I/O errors are counted and go on\n"
"  --flushed          only what flushes and FUA cover must be there\n"
"\n"
"Exit status: 0 all right, 1 wrong contents, 2 usage, 3 an I/O or other error,\n"
"whose name (ENOSPC, EIO...) is printed.\n";

enum {
	OPT_HELP = 256, OPT_SEED, OPT_BASE_SEED, OPT_JOURNAL, OPT_SECONDS, OPT_THREADS, OPT_UNIT_SIZE,
	OPT_UNITS, OPT_DISCARD, OPT_ALLOW_ERRORS, OPT_FLUSHED,
};

static const struct option options[] = {
	{ "help", no_argument, NULL, OPT_HELP },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "base-seed", required_argument, NULL, OPT_BASE_SEED },
	{ "journal", required_argument, NULL, OPT_JOURNAL },
	{ "seconds", required_argument, NULL, OPT_SECONDS },
	{ "threads", required_argument, NULL, OPT_THREADS },
	{ "unit-size", required_argument, NULL, OPT_UNIT_SIZE },
	{ "units", required_argument, NULL, OPT_UNITS },
	{ "discard", no_argument, NULL, OPT_DISCARD },
	{ "allow-errors", no_argument, NULL, OPT_ALLOW_ERRORS },
	{ "flushed", no_argument, NULL, OPT_FLUSHED },
	{ NULL, 0, NULL, 0 }
};

static double seconds(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value > 0 && value < 1e6))
		die(EXIT_USAGE, "--seconds: '%s' is not a number of seconds", text);
	return value;
}

struct arguments {
	const char *journal;
	uint64_t seed, base_seed;
	bool flushed;
};

static void parse_options(int argc, char **argv, struct arguments *a)
{
	int opt, index;

	while ((opt = getopt_long(argc, argv, "", options, &index)) != -1) {
		const char *name = opt == '?' ? "" : options[index].name;

		switch (opt) {
		case OPT_HELP:
			fputs(help, stdout);
			exit(EXIT_OK);
		case OPT_SEED:
			a->seed = number(name, optarg, 0, UINT64_MAX);
			break;
		case OPT_BASE_SEED:
			a->base_seed = number(name, optarg, 0, UINT64_MAX);
			break;
		case OPT_JOURNAL:
			a->journal = optarg;
			break;
		case OPT_SECONDS:
			run.seconds = seconds(optarg);
			break;
		case OPT_THREADS:
			run.threads = number(name, optarg, 1, MAX_THREADS);
			break;
		case OPT_UNIT_SIZE:
			run.unit_sectors = number(name, optarg, SECTOR, 1 << 20) / SECTOR;
			break;
		case OPT_UNITS:
			run.units = number(name, optarg, 1, MAX_SECTORS);
			break;
		case OPT_DISCARD:
			run.discard = true;
			break;
		case OPT_ALLOW_ERRORS:
			run.allow_errors = true;
			break;
		case OPT_FLUSHED:
			a->flushed = true;
			break;
		default:
			die(EXIT_USAGE, "try --help");
		}
	}
}

int main(int argc, char **argv)
{
	struct arguments a = { .seed = 1, .base_seed = 1 };
	int status;

	run.seconds = 2;
	run.threads = 16;
	run.unit_sectors = 8;
	parse_options(argc, argv, &a);
	if (argc - optind != 2)
		die(EXIT_USAGE, "needs a command and a device; try --help");
	command = argv[optind];
	device_open(argv[optind + 1], strcmp(command, "verify") ? O_RDWR : O_RDONLY);
	if (!strcmp(command, "fill")) {
		status = cmd_fill(a.base_seed);
	} else if (!strcmp(command, "run")) {
		journal_open(a.journal, true);
		journal->seed = a.seed;
		journal->base_seed = a.base_seed;
		journal->unit_sectors = run.unit_sectors;
		status = cmd_run();
	} else if (!strcmp(command, "verify")) {
		if (!a.journal)
			die(EXIT_USAGE, "needs --journal; try --help");
		journal_open(a.journal, false);
		status = cmd_verify(a.flushed);
	} else {
		die(EXIT_USAGE, "no such command; try --help");
	}
	if (close(dev.fd))
		die_errno(errno, "%s: close", dev.path);
	if (fflush(stdout) || ferror(stdout))
		die(EXIT_SYSTEM, "can't write to stdout");
	return status;
}
