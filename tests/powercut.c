// SPDX-License-Identifier: GPL-2.0-only
/*
 * What tests/host/powercut.t runs in the VM that it kills.
 *
 *	powercut fill	makes the contents of rdo, and a model of them
 *	powercut work	writes to a device, many writes at a time, until it is killed,
 *			and prints what is durable each time when more of it is
 *	powercut check	compares a device with the model and with what was printed, and
 *			makes what it finds the model for the next round
 *
 * The work is the same for the same seed and round, so nothing has to be written
 * down of it: check makes all its operations again. They are numbered, and each
 * written sector carries its number and a stamp made of the round and the
 * number of the operation. Writes that overlap are never in flight together,
 * so that the one with the higher number is the later one.
 *
 * Two things are printed. "NAME flushed N." says that all operations up to N are
 * durable: they had completed when a flush (or a sync message) was begun, and
 * that has completed. "NAME fua N." says that of the one write N. The dot shows
 * that the line is whole. For each sector the last write that is durable must
 * be there, or any later one. The model has a stamp for each sector. Rounds count
 * from 1: 0 is what fill has made.
 */

#include "crash.h"

#include <getopt.h>
#include <linux/aio_abi.h>

#define MAX_OPS		(1U << 22)	/* of a round */
#define MAX_WRITE	128	/* sectors */
#define DEPTH		24
#define WINDOW		256	/* see check() */

enum kind { WRITE, FUA, FLUSH, SYNC };

struct op {
	uint64_t nr;
	enum kind kind;
	uint64_t sector, stamp;
	uint32_t count;
};

struct options {
	const char *cowloop;
	uint64_t seed, round;
};

/* ---- The operations of a round ---- */

static uint64_t hot;		/* where half of them go, so that they meet */

static void first_op(struct op *op, const struct options *opt, uint64_t sectors)
{
	random_state = mix(opt->seed << 32 ^ opt->round);
	hot = rnd(sectors);
	op->nr = 0;
}

static void next_op(struct op *op, const struct options *opt, uint64_t sectors)
{
	static const uint32_t sizes[] = { 1, 1, 2, 3, 7, 8, 8, 8, 8, 16, 24, 64, MAX_WRITE };
	const unsigned int what = rnd(64);

	op->nr++;
	op->kind = what < 3 ? FLUSH : what < 5 ? FUA : what == 5 && !rnd(8) ? SYNC : WRITE;
	op->count = sizes[rnd(sizeof(sizes) / sizeof(*sizes))];
	op->sector = rnd(2) ? rnd(sectors) : (hot + rnd(2048)) % sectors;
	if (rnd(2))
		op->sector -= op->sector % 8;
	if (op->sector + op->count > sectors)
		op->count = sectors - op->sector;
	op->stamp = rnd(12) ? opt->round << 32 | op->nr : 0;
}

static bool is_write(const struct op *op)
{
	return op->kind == WRITE || op->kind == FUA;
}

/* ---- work ---- */

struct slot {
	struct iocb iocb;
	struct op op;			/* of a flush: nr is the last that it covers */
	bool busy;
	void *buf;
};

struct work {
	const struct options *opt;
	int fd;
	aio_context_t aio;
	struct slot slots[DEPTH];
	bool done[MAX_OPS + 1];
	uint64_t prefix;		/* all up to this one have completed */
};

static void report(const struct work *work, const char *what, uint64_t nr)
{
	printf("%s %s %" PRIu64 ".\n", work->opt->cowloop, what, nr);
	fflush(stdout);
}

static void complete(struct work *work, uint64_t nr)
{
	work->done[nr] = true;
	while (work->prefix < MAX_OPS && work->done[work->prefix + 1])
		work->prefix++;
}

/* Wait until something has completed. */
static void reap(struct work *work)
{
	struct io_event events[DEPTH];
	long got = syscall(SYS_io_getevents, work->aio, 1, DEPTH, events, NULL);

	if (got < 1)
		die_errno(errno, "io_getevents");
	for (long i = 0; i < got; i++) {
		struct slot *slot = (void *)(uintptr_t)events[i].data;
		const bool flush = slot->op.kind == FLUSH;

		if (events[i].res != (flush ? 0 : (long)slot->iocb.aio_nbytes))
			die(EXIT_SYSTEM, "%s failed: %lld", flush ? "a flush" : "a write", (long long)events[i].res);
		slot->busy = false;
		if (!flush)
			complete(work, slot->op.nr);
		if (slot->op.kind != WRITE)
			report(work, flush ? "flushed" : "fua", slot->op.nr);
	}
}

/* A slot for @op, when nothing is in flight that must not be together with it. */
static struct slot *find_slot(struct work *work, const struct op *op)
{
	struct slot *free = NULL;

	for (int i = 0; i < DEPTH; i++) {
		struct slot *slot = &work->slots[i];

		if (!slot->busy)
			free = slot;
		else if (op->kind == FLUSH ? slot->op.kind == FLUSH :
			 slot->op.kind != FLUSH && op->sector < slot->op.sector + slot->op.count &&
			 slot->op.sector < op->sector + op->count)
			return NULL;
	}
	return free;
}

static void submit(struct work *work, const struct op *op)
{
	struct slot *slot;
	struct iocb *iocb;

	while (!(slot = find_slot(work, op)))
		reap(work);
	slot->op = *op;
	slot->busy = true;
	iocb = &slot->iocb;
	*iocb = (struct iocb) { .aio_data = (uintptr_t)slot, .aio_fildes = work->fd };
	if (op->kind == FLUSH) {
		slot->op.nr = work->prefix;
		iocb->aio_lio_opcode = IOCB_CMD_FDSYNC;
	} else {
		for (uint32_t i = 0; i < op->count; i++)
			make_sector((uint64_t *)((char *)slot->buf + i * SECTOR), op->sector + i, op->stamp);
		iocb->aio_lio_opcode = IOCB_CMD_PWRITE;
		iocb->aio_rw_flags = op->kind == FUA ? RWF_DSYNC : 0;
		iocb->aio_buf = (uintptr_t)slot->buf;
		iocb->aio_nbytes = (uint64_t)op->count * SECTOR;
		iocb->aio_offset = op->sector * SECTOR;
	}
	if (syscall(SYS_io_submit, work->aio, 1, &iocb) != 1)
		die_errno(errno, "io_submit");
}

static int work(const char *device, const struct options *opt)
{
	static struct work work;
	const uint64_t sectors = device_sectors(device);
	struct op op;
	uint64_t prefix;

	work.opt = opt;
	work.fd = open_path(device, O_RDWR | O_DIRECT);
	for (int i = 0; i < DEPTH; i++)
		work.slots[i].buf = allocate(MAX_WRITE * SECTOR);
	if (syscall(SYS_io_setup, DEPTH, &work.aio))
		die_errno(errno, "io_setup");

	first_op(&op, opt, sectors);
	while (op.nr < MAX_OPS) {
		next_op(&op, opt, sectors);
		if (op.kind != SYNC)
			submit(&work, &op);
		if (is_write(&op))
			continue;
		complete(&work, op.nr);
		if (op.kind == SYNC) {
			prefix = work.prefix;
			dm_message(opt->cowloop, "sync");
			report(&work, "flushed", prefix);
		}
	}
	die(EXIT_SYSTEM, "all has been written, and nobody has killed us");
}

/* ---- check ---- */

/*
 * Take from the reports up to which operation all is durable, and which others are, in @fua;
 * @end is the last of them all.
 */
static uint64_t read_reports(const char *path, const char *name, bool *fua, uint64_t *end)
{
	FILE *file = fopen(path, "r");
	char line[128], who[32], what[16], dot;
	uint64_t nr, flushed = 0;

	if (!file)
		die_errno(errno, "%s", path);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%31s %15s %" SCNu64 "%c", who, what, &nr, &dot) != 4 || dot != '.' ||
		    nr > MAX_OPS || strcmp(who, name))
			continue;
		if (!strcmp(what, "flushed"))
			flushed = nr > flushed ? nr : flushed;
		else if (!strcmp(what, "fua"))
			fua[nr] = true;
		*end = nr > *end ? nr : *end;
	}
	fclose(file);
	return flushed;
}

/* The stamp of a sector that was found; ~0 if it is nothing that was ever written. */
static uint64_t found_stamp(const char *found, uint64_t sector)
{
	static const uint64_t zeroes[WORDS];
	uint64_t want[WORDS], word[3];

	if (!memcmp(found, zeroes, SECTOR))
		return 0;
	memcpy(word, found, sizeof(word));
	make_sector(want, sector, word[2]);
	return memcmp(found, want, SECTOR) ? ~0ULL : word[2];
}

static void complain(const char *found, uint64_t sector, uint64_t durable, uint64_t stamp)
{
	uint64_t word[2];

	memcpy(word, found, sizeof(word));
	fprintf(stderr, "powercut: sector %" PRIu64 ": expected stamp %" PRIx64 " or a later one, found ", sector,
		durable);
	if (stamp != ~0ULL)
		fprintf(stderr, "stamp %" PRIx64 "\n", stamp);
	else
		fprintf(stderr, "%016" PRIx64 " %016" PRIx64 "...\n", word[0], word[1]);
}

static int check(const char *device, const char *model_path, const char *reports, const struct options *opt)
{
	static bool fua[MAX_OPS + 1];
	const uint64_t sectors = device_sectors(device);
	int fd = open_path(device, O_RDONLY | O_DIRECT), model_fd = open_path(model_path, O_RDWR);
	const size_t model_size = sectors * sizeof(uint64_t);
	uint64_t *model = allocate(model_size), *stamps = allocate(model_size);
	uint64_t *last = allocate(model_size);	/* durable write; 0: of an earlier round */
	bool *good = allocate(sectors * sizeof(*good));
	char *found = allocate(sectors * SECTOR);
	uint64_t flushed, end = 0, promised = 0, more = 0, bad = 0;
	struct op op;

	read_exactly(fd, device, found, sectors * SECTOR, 0);
	read_exactly(model_fd, model_path, model, model_size, 0);
	flushed = read_reports(reports, opt->cowloop, fua, &end);

	for (first_op(&op, opt, sectors); op.nr < end;) {
		next_op(&op, opt, sectors);
		if (!is_write(&op) || (op.nr > flushed && !fua[op.nr]))
			continue;
		for (uint64_t s = op.sector; s < op.sector + op.count; s++) {
			promised += !last[s];
			last[s] = op.nr;
			model[s] = op.stamp;
		}
	}
	/*
	 * A stamp shows that its operation was issued, zeroes do not. They are taken for an
	 * operation that is not far behind the last one found: with a flush for every 20
	 * operations, and never two in flight, all that is older is on disk.
	 */
	for (uint64_t s = 0; s < sectors; s++) {
		stamps[s] = found_stamp(found + s * SECTOR, s);
		good[s] = stamps[s] == model[s];
		if (stamps[s] >> 32 == opt->round && (uint32_t)stamps[s] > end)
			end = (uint32_t)stamps[s];
	}
	end = end + WINDOW < MAX_OPS ? end + WINDOW : MAX_OPS;
	for (first_op(&op, opt, sectors); op.nr < end;) {
		next_op(&op, opt, sectors);
		if (!is_write(&op))
			continue;
		for (uint64_t s = op.sector; s < op.sector + op.count; s++) {
			if (op.nr > last[s] && stamps[s] == op.stamp && !good[s]) {
				good[s] = true;
				more++;
			}
		}
	}
	for (uint64_t s = 0; s < sectors; s++)
		if (!good[s] && bad++ < 10)
			complain(found + s * SECTOR, s, model[s], stamps[s]);
	write_exactly(model_fd, model_path, stamps, model_size, 0);
	if (fsync(model_fd))
		die_errno(errno, "%s: fsync", model_path);
	printf("# %s: flushed up to operation %" PRIu64 ": %" PRIu64 " sectors promised, %" PRIu64
	       " later ones found, %" PRIu64 " bad\n", opt->cowloop, flushed, promised, more, bad);
	return bad ? 1 : 0;
}

/* ---- fill ---- */

static int fill(const char *rdo, const char *model, uint64_t sectors)
{
	FILE *contents = fopen(rdo, "w"), *stamps = fopen(model, "w");
	const uint64_t base = BASE;
	uint64_t sector[WORDS];

	if (!contents || !stamps)
		die_errno(errno, "%s, %s", rdo, model);
	for (uint64_t s = 0; s < sectors; s++) {
		make_sector(sector, s, base);
		if (fwrite(sector, SECTOR, 1, contents) != 1 || fwrite(&base, sizeof(base), 1, stamps) != 1)
			die_errno(errno, "%s, %s", rdo, model);
	}
	if (fclose(contents) || fclose(stamps))
		die_errno(errno, "%s, %s", rdo, model);
	return 0;
}

static void usage(void)
{
	fputs("Usage: powercut fill RDO MODEL SECTORS\n"
	      "       powercut work DEVICE --cowloop NAME --round N [--seed N]\n"
	      "       powercut check DEVICE MODEL REPORTS --cowloop NAME --round N [--seed N]\n"
	      "\n"
	      "  --cowloop NAME   of the device, to send it messages and to print\n"
	      "  --round N        of the work: that to be done, or that to be checked\n"
	      "\n"
	      "Exit status: 0 all right, 1 a wrong sector was found, 2 usage, 3 something failed\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "cowloop", required_argument, NULL, 'c' },
		{ "round", required_argument, NULL, 'r' },
		{ "seed", required_argument, NULL, 's' },
		{ }
	};
	struct options opt = { .seed = 1 };
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'c': opt.cowloop = optarg; break;
		case 'r': opt.round = number("round", optarg, 0, UINT32_MAX); break;
		case 's': opt.seed = number("seed", optarg, 0, UINT64_MAX); break;
		default: usage();
		}
	}
	argc -= optind;
	argv += optind;

	if (argc == 4 && !strcmp(argv[0], "fill"))
		return fill(argv[1], argv[2], strtoull(argv[3], NULL, 0));
	if (argc == 2 && !strcmp(argv[0], "work") && opt.cowloop)
		return work(argv[1], &opt);
	if (argc == 4 && !strcmp(argv[0], "check") && opt.cowloop)
		return check(argv[1], argv[2], argv[3], &opt);
	usage();
}
