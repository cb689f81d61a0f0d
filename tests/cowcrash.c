// SPDX-License-Identifier: GPL-2.0-only
/*
 * The crash checker: a cowloop device must show what was flushed, whenever the
 * machine dies.
 *
 *	cowcrash work	writes to a cowloop device whose cow device is recorded by
 *			dm-log-writes, and keeps a journal of what it did
 *	cowcrash check	replays the recording: for every prefix of it, and for
 *			samples of the writes that a cache may have lost since the
 *			last flush, it opens the cowfile and compares every sector
 *
 * Every sector that is written carries its number and a stamp, which is the
 * number of the write, so that whatever is found can be told apart. A sector
 * must be as it was when the last flush completed that is in the replayed part,
 * or as any later write in the journal, up to the next flush, has left it. A
 * discard is a write of whole units, after which a sector is rdo's or zeroes.
 *
 * What the cow device holds where it was told to discard is up to it, for each
 * sector: zeroes, what was there before, or what was never there.
 *
 * Flushes are tied to the recording by marks: after each flush (or sync, or
 * suspend), a mark with its number goes into the log. What the log has between
 * two marks was written by what the journal has between the same two.
 */

#include "crash.h"

#include <getopt.h>
#include <limits.h>
#include <linux/aio_abi.h>

#define MAX_SECTORS	65536
#define MAX_BATCH	8
#define DISCARDED	(BASE | 1)	/* the stamp of what was discarded */

/* ---- The journal ---- */

enum { JOURNAL_WRITE, JOURNAL_MARK };

struct record {
	uint32_t type;
	uint32_t count;
	uint64_t sector;
	uint64_t stamp;		/* of the write; or the number of the mark */
};

struct options {
	const char *log, *journal, *cowloop, *target_options, *rdo;
	uint64_t seed, ops, unit;
	unsigned int samples, every, workers;
	bool repair, quiet;
};

/* ---- work ---- */

struct work {
	const struct options *opt;
	FILE *journal;
	int fd;
	uint64_t sectors, stamp, mark, zeroouts, discards;
	unsigned int lbs;
	void *buf[MAX_BATCH];
	aio_context_t aio;
};

static void put_record(struct work *work, const struct record *record)
{
	if (fwrite(record, sizeof(*record), 1, work->journal) != 1)
		die_errno(errno, "%s", work->opt->journal);
}

/* All that was done so far is durable. */
static void put_mark(struct work *work)
{
	const struct record record = { .type = JOURNAL_MARK, .stamp = ++work->mark };

	dm_message(work->opt->log, "mark m%" PRIu64, work->mark);
	put_record(work, &record);
}

/* A size and a place, of the kinds that matter. */
static void choose_range(struct work *work, uint64_t *sector, uint32_t *count)
{
	static const uint32_t sizes[] = { 1, 1, 2, 3, 7, 8, 8, 8, 16, 24, 64, 128, 129, 200 };
	const uint32_t grain = work->lbs / SECTOR;
	uint64_t size = sizes[rnd(sizeof(sizes) / sizeof(*sizes))];

	size = (size + grain - 1) / grain * grain;
	/* Half of it in a small part of the device, so that things meet. */
	*sector = rnd(2) ? rnd(work->sectors) : rnd(256 < work->sectors ? 256 : work->sectors);
	if (rnd(2))
		*sector -= *sector % 8;
	*sector -= *sector % grain;
	if (*sector + size > work->sectors)
		size = work->sectors - *sector;
	*count = size;
}

static bool clash(const struct record *r, const struct record *others, unsigned int nr)
{
	for (unsigned int i = 0; i < nr; i++)
		if (r->sector < others[i].sector + others[i].count &&
		    others[i].sector < r->sector + r->count)
			return true;
	return false;
}

/*
 * A discard or a zero-out, which goes with writes that it does not overlap, as a
 * request; and as a record, which of a discard has the whole units. False if
 * there is none.
 */
static bool choose_other(struct work *work, const struct record *writes, unsigned int nr,
			 struct record *r, uint64_t bytes[2])
{
	const uint64_t unit = work->opt->unit / SECTOR;
	const bool discard = rnd(3);

	choose_range(work, &r->sector, &r->count);
	/* Larger than writes, so that they meet something that was written. */
	if (discard && rnd(4))
		r->count *= 1 + rnd(32);
	if (discard && unit && rnd(2)) {
		r->sector -= r->sector % unit;
		r->count = (r->count + unit - 1) / unit * unit;
	}
	if (discard && !rnd(20)) {
		r->sector = 0;
		r->count = work->sectors;
	}
	if (r->count > work->sectors - r->sector)
		r->count = work->sectors - r->sector;
	r->type = JOURNAL_WRITE;
	r->stamp = discard ? DISCARDED : 0;
	if (clash(r, writes, nr))
		return false;

	bytes[0] = r->sector * SECTOR;
	bytes[1] = (uint64_t)r->count * SECTOR;
	if (discard) {
		uint64_t end = r->sector + r->count;

		/* The last unit may be short. */
		if (unit && end < work->sectors)
			end -= end % unit;
		if (unit)
			r->sector = (r->sector + unit - 1) / unit * unit;
		r->count = unit && end > r->sector ? end - r->sector : 0;
	}
	return true;
}

/*
 * Some writes at once, which do not overlap but may well share units, and perhaps
 * a discard or a zero-out while they are under way.
 */
static void write_batch(struct work *work)
{
	struct iocb iocbs[MAX_BATCH] = { }, *list[MAX_BATCH];
	struct record records[MAX_BATCH] = { };
	struct io_event events[MAX_BATCH];
	unsigned int n = 0, want = rnd(2) ? 1 : 1 + rnd(MAX_BATCH);
	struct record other;
	uint64_t bytes[2];
	bool has_other;

	while (n < want) {
		struct record *r = &records[n];
		if (n && rnd(2)) {
			/* right behind the last one */
			r->sector = records[n - 1].sector + records[n - 1].count;
			r->count = work->lbs / SECTOR;
			if (r->sector + r->count > work->sectors)
				break;
		} else {
			choose_range(work, &r->sector, &r->count);
		}
		if (clash(r, records, n))
			break;
		r->type = JOURNAL_WRITE;
		r->stamp = rnd(12) ? ++work->stamp : 0;
		for (uint32_t i = 0; i < r->count; i++)
			make_sector((uint64_t *)((char *)work->buf[n] + i * SECTOR),
				    r->sector + i, r->stamp);
		iocbs[n].aio_lio_opcode = IOCB_CMD_PWRITE;
		iocbs[n].aio_fildes = work->fd;
		iocbs[n].aio_buf = (uintptr_t)work->buf[n];
		iocbs[n].aio_nbytes = (uint64_t)r->count * SECTOR;
		iocbs[n].aio_offset = r->sector * SECTOR;
		list[n] = &iocbs[n];
		n++;
	}

	has_other = rnd(2) && choose_other(work, records, n, &other, bytes);

	/* In the journal before they can be in the log. */
	for (unsigned int i = 0; i < n; i++)
		put_record(work, &records[i]);
	if (has_other)
		put_record(work, &other);
	if (syscall(SYS_io_submit, work->aio, n, list) != n)
		die_errno(errno, "io_submit");
	if (has_other) {
		if (ioctl(work->fd, other.stamp ? BLKDISCARD : BLKZEROOUT, bytes))
			die_errno(errno, "a %s of the work failed", other.stamp ? "discard" : "zero-out");
		*(other.stamp ? &work->discards : &work->zeroouts) += 1;
	}
	for (unsigned int done = 0; done < n;) {
		long got = syscall(SYS_io_getevents, work->aio, 1, n - done, events, NULL);

		if (got < 1)
			die_errno(errno, "io_getevents");
		for (long i = 0; i < got; i++)
			if (events[i].res != (long)((struct iocb *)(uintptr_t)events[i].obj)->aio_nbytes)
				die(EXIT_SYSTEM, "a write of the work failed: %lld", (long long)events[i].res);
		done += got;
	}
}

static void flush(struct work *work)
{
	if (fdatasync(work->fd))
		die_errno(errno, "fdatasync");
}

static int work(const char *device, const struct options *opt)
{
	struct work work = { .opt = opt };
	uint64_t flushes = 0, syncs = 0, suspends = 0;

	random_state = opt->seed;
	work.journal = fopen(opt->journal, "w");
	if (!work.journal)
		die_errno(errno, "%s", opt->journal);
	work.fd = open_path(device, O_RDWR | O_DIRECT);
	work.sectors = device_bytes(work.fd, device, &work.lbs) / SECTOR;
	for (int i = 0; i < MAX_BATCH; i++)
		work.buf[i] = allocate(256 * SECTOR);
	if (syscall(SYS_io_setup, MAX_BATCH, &work.aio))
		die_errno(errno, "io_setup");

	put_mark(&work);
	for (uint64_t op = 0; op < opt->ops; op++) {
		write_batch(&work);
		switch (rnd(24)) {
		case 0 ... 4:
			flush(&work);
			flushes++;
			break;
		case 5:
			dm_message(opt->cowloop, "sync");
			syncs++;
			break;
		case 6:
			if (rnd(3))
				continue;
			dm_simple(DM_DEV_SUSPEND, opt->cowloop, DM_SUSPEND_FLAG);
			dm_simple(DM_DEV_SUSPEND, opt->cowloop, 0);
			suspends++;
			break;
		default:
			continue;
		}
		put_mark(&work);
	}
	close(work.fd);
	dm_simple(DM_DEV_REMOVE, opt->cowloop, 0);
	put_mark(&work);
	if (fclose(work.journal))
		die_errno(errno, "%s", opt->journal);

	printf("cowcrash: work: %" PRIu64 " batches, %" PRIu64 " writes, %" PRIu64 " zero-outs, %" PRIu64
	       " discards, %" PRIu64 " flushes, %" PRIu64 " syncs, %" PRIu64 " suspends, and the removal\n",
	       opt->ops, work.stamp, work.zeroouts, work.discards, flushes, syncs, suspends);
	return 0;
}

/* ---- check ---- */

struct check {
	const struct options *opt;
	const char *replay;
	char name[32];
	int worker;

	const char *log;		/* mapped */
	struct record *records;
	size_t nr_records, next;	/* the first after the marks that were passed */

	uint64_t rdo_sectors, cow_sectors;
	char *image;			/* of the cow device, at the present point of the log */
	char *state;			/* the same after a crash */
	char *found;			/* what the device shows */
	int replay_fd;

	/* What is allowed: what was durable, and all that may have been written since. */
	uint64_t *durable;
	uint64_t (*recent)[32];
	uint8_t *nr_recent;
	uint64_t *reached;		/* latest contents, journal-wise */

	uint64_t states, prefixes, discards, lost, torn, bad;
};

/* Pass mark number @mark: what is in the journal before it is durable. */
static void pass_mark(struct check *check, uint64_t mark)
{
	size_t i;

	for (i = check->next; i < check->nr_records; i++) {
		const struct record *r = &check->records[i];

		if (r->type == JOURNAL_MARK) {
			if (r->stamp == mark)
				break;
			continue;
		}
		for (uint32_t s = 0; s < r->count; s++)
			check->durable[r->sector + s] = r->stamp;
	}
	if (i == check->nr_records) {
		die(EXIT_SYSTEM, "mark %" PRIu64 " is not in the journal", mark);
	}
	check->next = i + 1;

	memset(check->nr_recent, 0, check->rdo_sectors);
	for (i = check->next; i < check->nr_records && check->records[i].type == JOURNAL_WRITE; i++) {
		const struct record *r = &check->records[i];

		for (uint32_t s = 0; s < r->count; s++) {
			uint8_t *nr = &check->nr_recent[r->sector + s];

			if (*nr == 32) {
				die(EXIT_SYSTEM, "too many writes to a sector without a flush");
			}
			check->recent[r->sector + s][(*nr)++] = r->stamp;
		}
	}
}

static bool sector_is(const char *found, uint64_t sector, uint64_t stamp)
{
	uint64_t want[WORDS];

	if (stamp == DISCARDED)
		return sector_is(found, sector, BASE) || sector_is(found, sector, 0);
	make_sector(want, sector, stamp);
	return !memcmp(found, want, SECTOR);
}

static bool sector_allowed(struct check *check, uint64_t sector)
{
	const char *found = check->found + sector * SECTOR;

	if (sector_is(found, sector, check->durable[sector]))
		return true;
	for (unsigned int i = 0; i < check->nr_recent[sector]; i++)
		if (sector_is(found, sector, check->recent[sector][i]))
			return true;
	return false;
}

/*
 * In format 1 repair takes a unit for written that has been written in part, by a
 * first write that was torn, and what is missing of it are zeroes.
 */
static bool sector_missing(struct check *check, uint64_t sector)
{
	return check->opt->repair &&
	       (check->nr_recent[sector & ~1ULL] || check->nr_recent[sector | 1]) &&
	       sector_is(check->found + sector * SECTOR, sector, 0);
}

static void complain(struct check *check, uint64_t sector, const char *what)
{
	uint64_t word[3];

	memcpy(word, check->found + sector * SECTOR, sizeof(word));
	fprintf(stderr, "cowcrash: %s: sector %" PRIu64 ": expected stamp %" PRIx64, what, sector,
		check->durable[sector]);
	for (unsigned int i = 0; i < check->nr_recent[sector]; i++)
		fprintf(stderr, " or %" PRIx64, check->recent[sector][i]);
	if (word[0] == MAGIC)
		fprintf(stderr, ", found stamp %" PRIx64 " of sector %" PRIu64 "\n", word[2], word[1]);
	else
		fprintf(stderr, ", found %016" PRIx64 "...\n", word[0]);
}

/* Open the cowfile in @image as the machine would find it, and compare. */
static void check_state(struct check *check, const char *image, const char *what)
{
	char params[256], path[64];
	int fd, minor, bad = 0;

	if (check->states++ % (check->opt->every * check->opt->workers) !=
	    (unsigned int)check->worker * check->opt->every)
		return;

	write_exactly(check->replay_fd, check->replay, image, check->cow_sectors * SECTOR, 0);
	snprintf(params, sizeof(params), "%s %s %s", check->opt->rdo, check->replay,
		 check->opt->target_options);
	minor = dm_create(check->name, check->rdo_sectors, "cowloop", params);
	if (minor < 0) {
		fprintf(stderr, "cowcrash: %s: the cowfile does not open: %s\n", what, strerror(errno));
		check->bad++;
		return;
	}
	snprintf(path, sizeof(path), "/dev/dm-%d", minor);
	command = what;
	fd = open_path(path, O_RDONLY | O_DIRECT);
	read_exactly(fd, path, check->found, check->rdo_sectors * SECTOR, 0);
	close(fd);
	command = "";
	for (uint64_t s = 0; s < check->rdo_sectors; s++)
		if (!sector_allowed(check, s) && !sector_missing(check, s) && bad++ < 5)
			complain(check, s, what);
	check->bad += !!bad;
	dm_simple(DM_DEV_REMOVE, check->name, 0);
}

/* Do sectors @from to @to, exclusive, of an entry. */
static void apply(char *image, const struct log_entry *entry, const char *data, uint64_t from,
		  uint64_t to)
{
	char *at = image + entry->sector * SECTOR;

	if (!(entry->flags & LOG_DISCARD)) {
		memcpy(at + from * SECTOR, data + from * SECTOR, (to - from) * SECTOR);
		return;
	}
	for (; from < to; from++)
		switch (rnd(3)) {
		case 0:
			memset(at + from * SECTOR, 0, SECTOR);
			break;
		case 1:
			memset(at + from * SECTOR, 0xdc, SECTOR);
			break;
		}
}

struct pending {
	struct log_entry entry;
	const char *data;
};

/* States in which some of the writes since the last flush are lost or torn. */
static void check_lost(struct check *check, const char *before, const struct pending *pending,
		       size_t nr)
{
	char what[96];

	for (unsigned int sample = 0; nr && sample < check->opt->samples; sample++) {
		uint64_t odds = 1 + rnd(4);
		unsigned int lost = 0, torn = 0;

		memcpy(check->state, before, check->cow_sectors * SECTOR);
		for (size_t i = 0; i < nr; i++) {
			const struct log_entry *entry = &pending[i].entry;

			if (rnd(odds + 1)) {
				apply(check->state, entry, pending[i].data, 0, entry->nr_sectors);
			} else if (rnd(2) || entry->nr_sectors < 2) {
				lost++;
			} else {
				for (uint64_t s = 0; s < entry->nr_sectors; s++)
					if (rnd(2))
						apply(check->state, entry, pending[i].data, s, s + 1);
				torn++;
			}
		}
		check->lost += !torn;
		check->torn += !!torn;
		snprintf(what, sizeof(what), "worker %d, at journal record %zu, %zu writes, %u lost, %u torn",
			 check->worker, check->next, nr, lost, torn);
		check_state(check, check->state, what);
	}
}

static void replay(struct check *check)
{
	const struct log_super *super = (const void *)check->log;
	const struct log_entry *entry = log_first(super);
	char *flushed = allocate(check->cow_sectors * SECTOR);
	struct pending *pending = allocate((super->nr_entries + 1) * sizeof(*pending));
	size_t nr = 0;
	char what[96];

	memset(check->image, 0, check->cow_sectors * SECTOR);

	for (uint64_t i = 0; i < super->nr_entries; i++, entry = log_next(entry)) {
		const char *data = log_data(entry);

		if (entry->flags & LOG_MARK) {
			if (log_mark(entry))
				pass_mark(check, log_mark(entry));
			continue;
		}
		if (entry->sector + entry->nr_sectors > check->cow_sectors)
			die(EXIT_SYSTEM, "a write behind the end in the log");
		if (entry->flags & LOG_FLUSH) {
			/* before it has completed: what was written may be lost */
			check_lost(check, flushed, pending, nr);
			memcpy(flushed, check->image, check->cow_sectors * SECTOR);
			nr = 0;
		}
		if (entry->nr_sectors) {
			apply(check->image, entry, data, 0, entry->nr_sectors);
			if (entry->flags & LOG_FUA)
				apply(flushed, entry, data, 0, entry->nr_sectors);
			else
				pending[nr++] = (struct pending) { *entry, data };
			check->prefixes++;
			check->discards += !!(entry->flags & LOG_DISCARD);
			snprintf(what, sizeof(what), "worker %d, after entry %" PRIu64 " of the log",
				 check->worker, i);
			check_state(check, check->image, what);
		}
	}
	free(pending);
	free(flushed);
}

/* Worker @worker checks its share of the states, on its own replay device. */
static int check_share(int worker, const char *log, const char *replay_dev, const struct options *opt)
{
	struct check check = { .opt = opt, .worker = worker, .replay = replay_dev };
	size_t size;

	random_state = opt->seed;	/* the same states in all workers */
	snprintf(check.name, sizeof(check.name), "crash%d", worker);
	check.log = map_file(log, &size);
	check.records = map_file(opt->journal, &size);
	check.nr_records = size / sizeof(*check.records);
	check.rdo_sectors = device_sectors(opt->rdo);
	check.cow_sectors = device_sectors(replay_dev);
	if (check.rdo_sectors > MAX_SECTORS || check.cow_sectors > 2 * MAX_SECTORS)
		die(EXIT_SYSTEM, "these devices are too large to be checked so often");
	check.durable = allocate(check.rdo_sectors * sizeof(*check.durable));
	check.recent = allocate(check.rdo_sectors * sizeof(*check.recent));
	check.nr_recent = allocate(check.rdo_sectors);
	check.image = allocate(check.cow_sectors * SECTOR);
	check.state = allocate(check.cow_sectors * SECTOR);
	check.found = allocate(check.rdo_sectors * SECTOR);
	for (uint64_t s = 0; s < check.rdo_sectors; s++)
		check.durable[s] = BASE;
	check.replay_fd = open_path(replay_dev, O_RDWR | O_DIRECT);

	replay(&check);

	if (!worker)
		printf("cowcrash: check: %" PRIu64 " states: %" PRIu64 " prefixes, %" PRIu64
		       " of them end with a discard, %" PRIu64 " with writes lost, %" PRIu64 " with writes torn; one in %u looked at\n",
		       check.states, check.prefixes, check.discards, check.lost, check.torn, opt->every);
	if (check.bad)
		fprintf(stderr, "cowcrash: worker %d: %" PRIu64 " bad states\n", worker, check.bad);
	return check.bad ? 1 : 0;
}

struct job {
	const char *log;
	char **replay_devs;	/* one for each worker */
	const struct options *opt;
};

static int check_job(unsigned int worker, void *context)
{
	const struct job *job = context;

	return check_share(worker, job->log, job->replay_devs[worker], job->opt);
}

static int check(const char *log, char **replay_devs, unsigned int nr, struct options *opt)
{
	struct job job = { log, replay_devs, opt };

	opt->workers = nr;
	return share_out(nr, check_job, &job);
}

/* ---- fill ---- */

static int fill(const char *path)
{
	uint64_t sectors = device_sectors(path), sector[WORDS];
	int fd = open_path(path, O_WRONLY);

	for (uint64_t s = 0; s < sectors; s++) {
		make_sector(sector, s, BASE);
		write_exactly(fd, path, sector, SECTOR, s * SECTOR);
	}
	if (fsync(fd) || close(fd))
		die_errno(errno, "%s", path);
	return 0;
}

static void usage(void)
{
	fputs("Usage: cowcrash fill RDO\n"
	      "       cowcrash work DEVICE --cowloop NAME --log NAME --journal FILE [--seed N] [--ops N]\n"
	      "                [--unit BYTES]\n"
	      "       cowcrash check LOGDEV REPLAYDEV... --rdo RDO --journal FILE [--options 'N OPTION...']\n"
	      "                [--samples N] [--every N] [--seed N] [--repair]\n"
	      "\n"
	      "  --cowloop NAME   the cowloop device, --log NAME: the log-writes device below it\n"
	      "  --unit BYTES     what discards take (default 4096), or 0: nothing\n"
	      "  --samples N      states with lost writes for each flush (default 8)\n"
	      "  --every N        look at every Nth state only\n"
	      "  --repair         only what was flushed is promised: format 1\n"
	      "\n"
	      "Exit status: 0 all right, 1 a wrong sector was found, 2 usage, 3 something failed\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "log", required_argument, NULL, 'l' },
		{ "journal", required_argument, NULL, 'j' },
		{ "cowloop", required_argument, NULL, 'c' },
		{ "options", required_argument, NULL, 'o' },
		{ "rdo", required_argument, NULL, 'r' },
		{ "seed", required_argument, NULL, 's' },
		{ "ops", required_argument, NULL, 'n' },
		{ "unit", required_argument, NULL, 'u' },
		{ "samples", required_argument, NULL, 'm' },
		{ "every", required_argument, NULL, 'e' },
		{ "repair", no_argument, NULL, 'R' },
		{ }
	};
	struct options opt = { .seed = 1, .ops = 100, .unit = 4096, .samples = 8, .every = 1, .target_options = "" };
	int c;

	setvbuf(stderr, NULL, _IOLBF, 0);
	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'l': opt.log = optarg; break;
		case 'j': opt.journal = optarg; break;
		case 'c': opt.cowloop = optarg; break;
		case 'o': opt.target_options = optarg; break;
		case 'r': opt.rdo = optarg; break;
		case 's': opt.seed = number("seed", optarg, 0, UINT64_MAX); break;
		case 'n': opt.ops = number("ops", optarg, 0, UINT64_MAX); break;
		case 'u': opt.unit = number("unit", optarg, 0, UINT64_MAX); break;
		case 'm': opt.samples = number("samples", optarg, 0, UINT_MAX); break;
		case 'e': opt.every = number("every", optarg, 1, UINT_MAX); break;
		case 'R': opt.repair = true; break;
		default: usage();
		}
	}
	argc -= optind;
	argv += optind;

	if (argc == 2 && !strcmp(argv[0], "fill"))
		return fill(argv[1]);
	if (argc == 2 && !strcmp(argv[0], "work") && opt.cowloop && opt.log && opt.journal)
		return work(argv[1], &opt);
	if (argc >= 3 && !strcmp(argv[0], "check") && opt.rdo && opt.journal && opt.every)
		return check(argv[1], argv + 2, argc - 2, &opt);
	usage();
}
