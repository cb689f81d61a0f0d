// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: a writable device made of a read-only device (rdo), which is
 * never written, and a sparse cowfile, which takes every changed unit.
 *
 * Reads go to the cowfile for units whose bit is set, to rdo for all others; a
 * bio is cut where the answer changes. Rewrites of units whose bits are set go
 * to the cowfile. All of this is decided in map by cow_lookup(), without a lock
 * and without state to be kept.
 *
 * First writes are those to units whose bit is not set. Whole units go straight
 * to the cowfile, and their bits are set when the write has completed, not
 * before: a read that races the write finds rdo's data, the old contents. When
 * only a part of a unit is written it is copied up: the unit is read from rdo,
 * the new data is laid over it, and the whole is stored in the cowfile. Other
 * writes to parts of the unit that come in before it is stored are folded into
 * the same copy-up.
 *
 * A copy-up must not store stale data of rdo over another write to its unit.
 * Hence the table of first writes in flight, and this invariant:
 *
 *	While a copy-up of a unit is in the table, its bit is clear, and nothing
 *	else in the table covers the unit.
 *
 * It holds because a bit is tested and an entry made under one lock, that of
 * the entry's bucket, and because a bit is set before the entry that has set it
 * goes away. A write that finds a copy-up in its way is folded or waits; a part
 * of a unit that finds a write of the whole unit in its way waits. What waited
 * is mapped again, and then usually is a rewrite. Whole units need not wait for
 * each other: such writes race like two writes to any disk.
 *
 * Nothing in the table waits for memory that others hold (what it takes comes
 * from mempools), nor for the worker that handles deferred bios: so that worker
 * may wait for memory, for the bitmap to be read, or for a sync, and a sync may
 * wait for the table to empty.
 *
 * Who waits for whom. Either device may hang, or take long. I/O that needs neither goes on;
 * and I/O that needs the cow device does not wait for rdo, but where memory is so short
 * that there is none but what others will give back. Each queue waits for nothing but
 * what is said here, so that there is no circle:
 *
 *	queue     runs                        and waits for
 *	--------  --------------------------  ------------------------------------------
 *	rdo       begins reads of rdo         rdo; memory for these reads: others of them
 *	io        commits, stores of copy-    the cow device; memory for stores: others
 *	          ups, writes in pieces,      of them
 *	          events
 *	load      reads, and writes, whose    the cow device; memory for the bitmap:
 *	          part of the bitmap is not   commits (its own), first writes in the table;
 *	          in memory, some of them at  memory for parts of reads: other such reads
 *	          the same time
 *	deferred  other deferred writes       as load does; the gate: a sync, for a bounded
 *	                                      time; memory for a unit: copy-ups in the table
 *	          discards                    the cow device, memory for the bitmap, the gate
 *	          counting                    the cow device
 *
 *	first writes in the table wait for the device they are sent to: a copy-up for rdo,
 *	          and then for the cow device; and for the queues rdo and io
 *	flushes, and FUA, wait for commits: the queue io
 *	a message sync waits for the table, and for discards at work; with the gate shut for
 *	          a short time only; read_only and close for all writes, and close for reads
 *	          of the cow device: until a signal comes
 *
 * A message, and the load and deferred queues, are waited for by the sender of the bio
 * that is in them, and by a suspend; by nobody else.
 *
 * The gate. DIRTY must be on disk before any first write is (see
 * dm-cowloop-metadata.c), and must not be cleared while one is in flight. The
 * gate is open while DIRTY is known to be set. A first write enters the table
 * only with the gate open, which is tested under the bucket's lock; otherwise
 * it is deferred, and the worker sets DIRTY and opens the gate. A sync shuts
 * the gate, waits until every bucket is empty and no discard at work, and then
 * cleans the head. So that nobody else waits for a write that hangs, it first
 * waits, with the gate open, for the end of what is in flight when it begins;
 * and it shuts the gate for a short time only, at first, to open it and begin anew
 * if what has come meanwhile takes longer.
 *
 * Flushes. If no bit has changed since the last commit a flush goes down as it
 * is. Otherwise it waits for a commit; one commit serves all that wait. A write
 * with FUA is completed by a commit if bits have to be committed for it. A
 * timer commits what nobody has asked for.
 *
 * A flush whose commit finds no space fails. Device-mapper drops this error where
 * the flush is a part of a write, and sends the write all the same, which then looks
 * like any other. Hence a commit is owed from before somebody is told that there was
 * no space for one until a commit has succeeded, and:
 *
 *	While a commit is owed, no write is sent to the cow device that map is given.
 *
 * Each is held back, a worker tries the commit again, and then the write goes on or
 * fails, too. That a commit is owed is kept with the cowfile, for a table that is
 * loaded meanwhile. A commit that only the timer has asked for, and that finds no
 * space, is not owed: nobody takes anything for durable, and rewrites go on. All
 * other errors of a flush or a commit end in mode fail, before anybody is told.
 *
 * Discards. Those of whole units clear their bits; then the bits are committed,
 * and only then is the space in the cow device given back. Until it has been, a
 * first write to one of the units would be lost with it, so:
 *
 *	While a discard is at work, nothing in the table covers any of its units.
 *
 * This holds because the range of a discard is published before it looks at the table,
 * and is withdrawn when it has done its work. A write looks for ranges under the lock
 * of its bucket, before it enters. One that finds a range in its way waits for that
 * discard's end, and then looks again: others may overlap. The discard goes through
 * the buckets, by their locks, after it has been published. So whatever it does not
 * find there comes later, and finds the range. What it does find, and overlaps, was
 * there before; it is marked, and the discard waits for its end, and looks again. All
 * else goes on, other discards too. A write that is folded into a copy-up meanwhile
 * makes no entry, and ends with the copy-up, before the discard has begun to work.
 * Discards are at work with the gate open, as first writes are, since they change
 * bits, too.
 *
 * Rewrites that found their bit set before it was cleared are in flight when the
 * discard is: they race it as they would on any disk, and may be lost with what they
 * have overwritten.
 *
 * Space. A write that finds none ends with ENOSPC: one beyond the limit, one that
 * the cow device has no room for, one whose part of the bitmap it has no room
 * for. All the rest goes on, and nothing is decided for those that follow: each
 * is tried. Mode out_of_space only tells of it, until a first write succeeds that was
 * begun in this mode, or room was made by a discard or a message; where none but
 * rewrites have lacked space, until a rewrite succeeds; and where none but commits
 * have, until a commit does. With
 * queue_if_no_space such writes are kept, in the order in which they came, and
 * those that come later queue behind them; the first is tried again every
 * second, and when it succeeds then the next. Those for which units are reserved are
 * before all others, and queue behind none of these.
 *
 * A cow device that has gone has the size 0. That is an error, not a lack of space,
 * and ends in mode fail, in which nothing is kept: all that was ends with an error. A
 * loop device may not tell one from the other (cow_hides_no_space()). Its errors are
 * taken for want of space, but a commit is tried soon, whose flush fails if it is the
 * device; and from COW_UNSURE_DELAY after the first in a row of such errors on, no
 * write is kept for one.
 */

#include "dm-cowloop-internal.h"

#define DM_MSG_PREFIX "cowloop"

static const char * const cow_mode_names[] = {
	[COW_MODE_RW] = "rw",
	[COW_MODE_OUT_OF_SPACE] = "out_of_space",
	[COW_MODE_RO] = "ro",
	[COW_MODE_FAIL] = "fail",
	[COW_MODE_CLOSED] = "closed",
};

/* ---- Constructor, destructor ---- */

/* True if @arg is @name and a value; *@value is 0 if that is not a number. */
static bool option_value(const char *arg, const char *name, unsigned int *value)
{
	const size_t len = str_has_prefix(arg, name);

	if (len && kstrtouint(arg + len, 10, value))
		*value = 0;
	return len;
}

/* 1 if @arg is @name and a number of units, 0 if it is not @name, else -EINVAL. */
static int option_units(const char *arg, const char *name, u64 *units)
{
	const size_t len = str_has_prefix(arg, name);

	if (!len)
		return 0;
	return kstrtou64(arg + len, 10, units) ? -EINVAL : 1;
}

static int parse_option(const char *arg, struct cow_options *opt, char **error)
{
	const struct {
		const char *name;
		u64 *units;
		char *error;
	} units[] = {
		{"limit:", &opt->limit, "Invalid limit, must be a number of units"},
		{"low_water:", &opt->low_water, "Invalid low_water, must be a number of units"},
		{"reserve:", &opt->reserve, "Invalid reserve, must be a number of units"},
	};
	const struct {
		const char *name;
		bool *flag;
	} flags[] = {
		{"repair", &opt->repair},
		{"read_only", &opt->read_only},
		{"queue_if_no_space", &opt->queue_if_no_space},
		{"no_discard_passdown", &opt->no_discard_passdown},
	};
	unsigned int i;
	int r;

	if (option_value(arg, "format:", &opt->format)) {
		*error = "Invalid format, must be 1 or 2";
		return opt->format == 1 || opt->format == 2 ? 0 : -EINVAL;
	}
	if (option_value(arg, "mapunit:", &opt->mapunit)) {
		*error = "Invalid mapunit, must be 1024, or a power of two from 4096 to 1048576";
		return opt->mapunit == COW_V1_MAPUNIT || cow_v2_mapunit_valid(opt->mapunit) ?
			0 : -EINVAL;
	}
	for (i = 0; i < ARRAY_SIZE(units); i++) {
		*error = units[i].error;
		r = option_units(arg, units[i].name, units[i].units);
		if (r)
			return min(r, 0);
	}
	for (i = 0; i < ARRAY_SIZE(flags); i++)
		if (!strcmp(arg, flags[i].name)) {
			*flags[i].flag = true;
			return 0;
		}
	*error = "Unrecognised optional parameter";
	return -EINVAL;
}

static int parse_options(struct dm_target *ti, struct dm_arg_set *as, struct cow_options *opt)
{
	static const struct dm_arg args[] = {
		{0, 9, "Invalid number of optional parameters"},
	};
	unsigned int argc;
	int r;

	/* No optional parameters at all need not be counted. */
	if (!as->argc)
		return 0;
	r = dm_read_arg_group(args, as, &argc, &ti->error);
	if (r)
		return r;
	if (as->argc != argc) {
		ti->error = "Number of optional parameters is not what follows";
		return -EINVAL;
	}

	while (argc--) {
		const char *arg = dm_shift_arg(as);

		r = parse_option(arg, opt, &ti->error);
		if (r) {
			DMERR("%s: optional parameter '%s': %s",
			      dm_device_name(dm_table_get_md(ti->table)), arg, ti->error);
			return r;
		}
	}
	return 0;
}

/* Everything that does not depend on the cowfile. */
static int alloc_resources(struct cowloop *cow)
{
	unsigned int i;
	int r;

	cow->buckets = kvcalloc(1U << COW_BUCKET_BITS, sizeof(*cow->buckets), GFP_KERNEL);
	cow->stats = alloc_percpu(struct cow_stats);
	cow->rdo_wq = alloc_workqueue("dm-cowloop-rdo", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	cow->io_wq = alloc_workqueue("dm-cowloop-io", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	cow->load_wq = alloc_workqueue("dm-cowloop-load", WQ_MEM_RECLAIM | WQ_UNBOUND,
				       COW_MAX_LOADS);
	cow->deferred_wq = alloc_workqueue("dm-cowloop-deferred", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	if (!cow->buckets || !cow->stats || !cow->rdo_wq || !cow->io_wq || !cow->load_wq ||
	    !cow->deferred_wq)
		return -ENOMEM;

	cow->io = dm_io_client_create();
	if (IS_ERR(cow->io)) {
		r = PTR_ERR(cow->io);
		cow->io = NULL;
		return r;
	}

	for (i = 0; i < 1U << COW_BUCKET_BITS; i++) {
		spin_lock_init(&cow->buckets[i].lock);
		INIT_HLIST_HEAD(&cow->buckets[i].writes);
	}
	mutex_init(&cow->gate_lock);
	mutex_init(&cow->message_lock);
	init_waitqueue_head(&cow->drained);
	spin_lock_init(&cow->lock);
	bio_list_init(&cow->deferred);
	bio_list_init(&cow->rdo_bios);
	bio_list_init(&cow->commit_bios);
	bio_list_init(&cow->held_back);
	bio_list_init(&cow->discards);
	bio_list_init(&cow->blocked_discards);
	cow->ranges = RB_ROOT_CACHED;
	bio_list_init(&cow->no_space_bios);
	bio_list_init(&cow->reserved_bios);
	ratelimit_state_init(&cow->space_log, HZ, 1);
	ratelimit_set_flags(&cow->space_log, RATELIMIT_MSG_ON_RELEASE);
	INIT_WORK(&cow->rdo_work, cow_do_rdo);
	INIT_WORK(&cow->deferred_work, cow_do_deferred);
	INIT_WORK(&cow->discard_work, cow_do_discards);
	INIT_WORK(&cow->count_work, cow_do_count);
	INIT_WORK(&cow->event_work, cow_do_event);
	INIT_DELAYED_WORK(&cow->retry_work, cow_do_retry);
	INIT_DELAYED_WORK(&cow->leave_work, cow_do_leave);
	INIT_WORK(&cow->commit_work, cow_do_commit);
	INIT_DELAYED_WORK(&cow->commit_timer, cow_do_commit_timer);

	r = bioset_init(&cow->bios, BIO_POOL_SIZE, 0, BIOSET_NEED_BVECS);
	if (!r)
		r = bioset_init(&cow->rdo_reads, BIO_POOL_SIZE, 0, BIOSET_NEED_BVECS);
	if (!r)
		r = bioset_init(&cow->splits, BIO_POOL_SIZE, 0, 0);
	return r;
}

/* What depends on the cowfile. */
static int set_up(struct cowloop *cow)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);

	strscpy(cow->rdo_name, cow->rdo->name, sizeof(cow->rdo_name));
	strscpy(cow->cow_name, cow->cow->name, sizeof(cow->cow_name));
	cow->map = *cow_md_map(cow->md);
	cow->unit_shift = ilog2(geo->mapunit) - SECTOR_SHIFT;
	cow->data_sector = cow_md_data_sector(cow->md);
	cow->units_end = geo->rdo_sectors;
	cow->zero_needs_commit = geo->format == 1;
	cow->write_flags = cow_write_flags(cow->cow->bdev);
	cow->write_sectors = cow_write_sectors(cow->cow->bdev);
	if (cow->write_sectors) {
		const int r = bioset_init(&cow->pieces, BIO_POOL_SIZE, 0, 0);

		if (r)
			return r;
	}

	if (!cow->opt.read_only && cow_md_must_be_read_only(cow->md)) {
		DMWARN("%s: cow device %pg: unknown compat_ro features: writes will fail",
		       cow_name(cow), cow->cow->bdev);
		cow->opt.read_only = true;
	}
	cow->mode = cow->opt.read_only ? COW_MODE_RO : COW_MODE_RW;
	cow_set_map_state(cow, cow->mode);

	cow->max_spares = min(COW_SPARE_BYTES / geo->mapunit, (unsigned int)COW_MAX_SPARES);
	return mempool_init_kmalloc_pool(&cow->units, COW_MIN_COPYUPS, geo->mapunit);
}

static void free_cowloop(struct cowloop *cow)
{
	/* The queues first: they may still be running what was completed last. */
	if (cow->load_wq)
		destroy_workqueue(cow->load_wq);
	if (cow->deferred_wq)
		destroy_workqueue(cow->deferred_wq);
	if (cow->rdo_wq)
		destroy_workqueue(cow->rdo_wq);
	if (cow->io_wq)
		destroy_workqueue(cow->io_wq);
	if (cow->cowfile)
		cow_put_cowfile(cow);
	while (cow->nr_spares)
		mempool_free(cow->spares[--cow->nr_spares], &cow->units);
	mempool_exit(&cow->units);
	bioset_exit(&cow->pieces);
	bioset_exit(&cow->splits);
	bioset_exit(&cow->rdo_reads);
	bioset_exit(&cow->bios);
	if (cow->io)
		dm_io_client_destroy(cow->io);
	if (cow->cow)
		dm_put_device(cow->ti, cow->cow);
	if (cow->rdo)
		dm_put_device(cow->ti, cow->rdo);
	free_percpu(cow->stats);
	kvfree(cow->buckets);
	kfree(cow);
}

/*
 * <rdo_dev> <cow_dev> [<#opt_params> <opt_param>...]
 *
 * rdo_dev: the read-only device
 * cow_dev: the device that holds the cowfile, or is blank
 *
 * format:<1|2>      what to write to a blank cow device
 * mapunit:<bytes>   the unit; must agree with an existing cowfile's
 * repair            accept and repair a DIRTY format 1 cowfile
 * read_only         write nothing to the cow device; writes fail
 * limit:<units>     how many units may be in the cowfile
 * low_water:<units> raise an event when only so many more may be
 * reserve:<units>   how many of the limit are for filesystems' own blocks only
 * queue_if_no_space keep writes that find no space until there is some
 * no_discard_passdown  keep the space of discarded units in the cow device
 */
static int cowloop_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	struct cow_md_args args;
	struct cowloop *cow;
	int r;

	if (argc < 2) {
		ti->error = "Requires <rdo_dev> <cow_dev>";
		return -EINVAL;
	}
	cow = kzalloc(sizeof(*cow), GFP_KERNEL);
	if (!cow) {
		ti->error = "Cannot allocate memory for the target";
		return -ENOMEM;
	}
	cow->ti = ti;

	dm_consume_args(&as, 2);
	r = parse_options(ti, &as, &cow->opt);
	if (r)
		goto bad;
	if (!(dm_table_get_mode(ti->table) & BLK_OPEN_WRITE))
		cow->opt.read_only = true;

	ti->error = "Cannot allocate memory for the target";
	r = alloc_resources(cow);
	if (r)
		goto bad;
	r = cow_get_devices(cow, ti, argv);
	if (r)
		goto bad;

	args = (struct cow_md_args) {
		.name = cow_name(cow),
		.rdo = cow->rdo->bdev,
		.cow = cow->cow->bdev,
		.io = cow->io,
		.length = ti->len,
		.format = cow->opt.format,
		.mapunit = cow->opt.mapunit,
		.repair = cow->opt.repair,
		.read_only = cow->opt.read_only,
	};
	r = cow_get_cowfile(cow, &args);
	if (r)
		goto bad;
	r = set_up(cow);
	if (r)
		goto bad;

	ti->private = cow;
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	/* Whether or not the cow device has discards, units can be given up. */
	ti->discards_supported = true;
	ti->num_write_zeroes_bios = 1;
	/* A flush commits bits, whether or not the cow device needs flushes. */
	ti->flush_supported = true;
	ti->per_io_data_size = sizeof(struct cow_io);

	return 0;

bad:
	free_cowloop(cow);
	return r;
}

static void cowloop_dtr(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	cow_renew_devices(cow);
	/* A message to the suspended device may have begun them; queues wait for no timers. */
	cancel_delayed_work_sync(&cow->leave_work);
	cancel_delayed_work_sync(&cow->retry_work);
	cancel_delayed_work_sync(&cow->commit_timer);
	free_cowloop(cow);
}

/* ---- Target interface ---- */

/*
 * Writes that are kept would be waited for. They end; without a flush they come
 * again after the suspension, see cow_end_write().
 *
 * Units that have not been counted yet after a crash are counted now, since that may take
 * long, and I/O still goes on. If a signal ends that, the head stays DIRTY.
 */
static void cowloop_presuspend(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	if (!mutex_lock_interruptible(&cow->message_lock)) {
		if (!READ_ONCE(cow->opt.read_only))
			cow_count_all(cow);
		mutex_unlock(&cow->message_lock);
	}
	/* Last: until then, writes that find no space are still kept. */
	cow_stop_queueing(cow);
}

static void cowloop_presuspend_undo(struct dm_target *ti)
{
	cow_start_queueing(ti->private);
}

/* No bio is in flight any more, deferred ones included. */
static void cowloop_postsuspend(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;
	int r;

	/* A message may still be at work, and about to let go of the cow device. */
	mutex_lock(&cow->message_lock);
	cancel_work_sync(&cow->count_work);
	/* Its last bio has ended, but not the run. */
	flush_work(&cow->discard_work);
	if (READ_ONCE(cow->opt.read_only))
		r = cow_all_durable(cow);
	else
		r = cow_commit_and_clean(cow, cow_md_counted(cow->md) ? 0 : -EAGAIN);
	/* All else has failed before, or says so itself. */
	if (r == -ENOSPC)
		cow_log_unsaved(cow, false);
	cow_cancel_commits(cow);
	cancel_delayed_work_sync(&cow->leave_work);
	flush_work(&cow->event_work);
	mutex_unlock(&cow->message_lock);
}

static void cowloop_resume(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	cow_renew_devices(cow);
	WRITE_ONCE(cow->has_resumed, true);
	/* The table that was live until now may have met an error. */
	if (cow_md_failed(cow->md))
		cow_set_mode(cow, COW_MODE_FAIL);
	/* There was no space for them before. */
	else if (!READ_ONCE(cow->opt.read_only) && cow_md_changed(cow->md))
		queue_delayed_work(cow->io_wq, &cow->commit_timer, COW_COMMIT_DELAY);

	/* It may owe a commit, too. */
	cow_update_map_state(cow);
	cow_start_queueing(cow);
	if (READ_ONCE(cow->found_space))
		queue_delayed_work(cow->io_wq, &cow->leave_work, COW_SPACE_DELAY);
	cow_md_set_limit(cow->md, READ_ONCE(cow->opt.limit), cow->opt.reserve);
	/* In the background. */
	if (cow_md_counting(cow->md) && READ_ONCE(cow->mode) != COW_MODE_CLOSED)
		queue_work(cow->deferred_wq, &cow->count_work);
	cow_check_low_water(cow);
}

/* A message that sets the limit or low water. */
static int change_units(struct cowloop *cow, char **argv, u64 *option)
{
	u64 units;

	if (kstrtou64(argv[1], 10, &units)) {
		DMERR("%s: message '%s': found '%s', expected a number of units",
		      cow_name(cow), argv[0], argv[1]);
		return -EINVAL;
	}
	WRITE_ONCE(*option, units);
	/* Low water is told again where it is set. */
	if (option == &cow->opt.low_water) {
		spin_lock_irq(&cow->lock);
		WRITE_ONCE(cow->low, false);
		spin_unlock_irq(&cow->lock);
	}

	cow_md_set_limit(cow->md, cow->opt.limit, cow->opt.reserve);
	if (cow->mode <= COW_MODE_OUT_OF_SPACE) {
		cow_check_low_water(cow);
		if (option == &cow->opt.limit && cow_space_limit(cow) > cow_md_used(cow->md))
			cow_space_made(cow);
	}
	flush_work(&cow->event_work);

	return 0;
}

static int cowloop_message(struct dm_target *ti, unsigned int argc, char **argv,
			   char *result, unsigned int maxlen)
{
	struct cowloop *cow = ti->private;
	int r = -EINVAL;

	if (mutex_lock_interruptible(&cow->message_lock))
		return -EINTR;
	if (argc == 1 && !strcasecmp(argv[0], "sync"))
		r = cow_sync(cow);
	else if (argc == 1 && !strcasecmp(argv[0], "read_only"))
		r = cow_make_read_only(cow);
	else if (argc == 1 && !strcasecmp(argv[0], "close"))
		r = cow_close(cow);
	else if (argc == 2 && !strcasecmp(argv[0], "limit"))
		r = change_units(cow, argv, &cow->opt.limit);
	else if (argc == 2 && !strcasecmp(argv[0], "low_water"))
		r = change_units(cow, argv, &cow->opt.low_water);
	else
		DMERR("%s: unrecognised message '%s' with %u arguments", cow_name(cow), argv[0],
		      argc - 1);
	mutex_unlock(&cow->message_lock);

	return r;
}

static struct cow_stats sum_stats(struct cowloop *cow)
{
	struct cow_stats sum = { };
	int cpu, flight;

	for_each_possible_cpu(cpu) {
		const struct cow_stats *stats = per_cpu_ptr(cow->stats, cpu);

		for (flight = 0; flight < COW_NR_FLIGHTS; flight++)
			sum.begun[flight] += READ_ONCE(stats->begun[flight]);
		sum.rdo_reads += READ_ONCE(stats->rdo_reads);
		sum.cow_reads += READ_ONCE(stats->cow_reads);
		sum.copyups += READ_ONCE(stats->copyups);
	}
	return sum;
}

/*
 * <format> <mapunit> <used>/<total> <limit> <low_water> <clean|dirty> <mode>
 * <#counters> [<name> <value>]...
 */
static void emit_info(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);
	/* In this order: a discard is counted as begun first. */
	const unsigned long discards = atomic_long_read(&cow->nr_discards);
	const struct cow_stats stats = sum_stats(cow);
	unsigned int sz = 0;

	DMEMIT("%u %u %llu/%llu %llu %llu %s %s 10", geo->format, geo->mapunit,
	       cow_md_used(cow->md), geo->nr_units,
	       READ_ONCE(cow->opt.limit), READ_ONCE(cow->opt.low_water),
	       cow_md_is_dirty(cow->md) ? "dirty" : "clean",
	       cow_mode_names[READ_ONCE(cow->mode)]);
	DMEMIT(" rdo_reads %lu cow_reads %lu cow_writes %lu copyups %lu commits %lu errors %lu",
	       stats.begun[COW_FLIGHT_NONE] + stats.rdo_reads,
	       stats.begun[COW_FLIGHT_READS] + stats.cow_reads,
	       stats.begun[COW_FLIGHT_REWRITES] + stats.begun[COW_FLIGHT_WRITES] - discards,
	       stats.copyups, atomic_long_read(&cow->commits), atomic_long_read(&cow->errors));
	DMEMIT(" discards %lu discarded_units %lu no_space %lu queued %u",
	       discards, atomic_long_read(&cow->discarded_units),
	       atomic_long_read(&cow->no_space), cow_nr_waiting(cow));
}

static void emit_table(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_options *opt = &cow->opt;
	const bool read_only = READ_ONCE(opt->read_only);
	const u64 limit = READ_ONCE(opt->limit), low_water = READ_ONCE(opt->low_water);
	const unsigned int nr = !!opt->format + !!opt->mapunit + opt->repair + read_only +
				!!limit + !!low_water + !!opt->reserve + opt->queue_if_no_space +
				opt->no_discard_passdown;
	unsigned int sz = 0;

	DMEMIT("%s %s", cow->rdo_name, cow->cow_name);
	if (nr)
		DMEMIT(" %u", nr);
	if (opt->format)
		DMEMIT(" format:%u", opt->format);
	if (opt->mapunit)
		DMEMIT(" mapunit:%u", opt->mapunit);
	if (opt->repair)
		DMEMIT(" repair");
	if (read_only)
		DMEMIT(" read_only");
	if (limit)
		DMEMIT(" limit:%llu", limit);
	if (low_water)
		DMEMIT(" low_water:%llu", low_water);
	if (opt->reserve)
		DMEMIT(" reserve:%llu", opt->reserve);
	if (opt->queue_if_no_space)
		DMEMIT(" queue_if_no_space");
	if (opt->no_discard_passdown)
		DMEMIT(" no_discard_passdown");
}

static void emit_ima(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);
	unsigned int sz = 0;

	DMEMIT_TARGET_NAME_VERSION(cow->ti->type);
	DMEMIT(",rdo_device_name=%s,cow_device_name=%s,format=%u,mapunit=%u,read_only=%c;",
	       cow->rdo_name, cow->cow_name, geo->format, geo->mapunit,
	       READ_ONCE(cow->opt.read_only) ? 'y' : 'n');
}

static void cowloop_status(struct dm_target *ti, status_type_t type,
			   unsigned int status_flags, char *result, unsigned int maxlen)
{
	struct cowloop *cow = ti->private;

	switch (type) {
	case STATUSTYPE_INFO:
		emit_info(cow, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		emit_table(cow, result, maxlen);
		break;
	case STATUSTYPE_IMA:
		emit_ima(cow, result, maxlen);
		break;
	}
}

static void cowloop_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct cowloop *cow = ti->private;
	const unsigned int mapunit = cow_md_geometry(cow->md)->mapunit;

	/* Smaller writes may cost a copy-up. Filesystems use 4 KiB as it is. */
	if (mapunit > COW_V2_MAPUNIT) {
		limits->io_min = max(limits->io_min, mapunit);
		limits->io_opt = max(limits->io_opt, mapunit);
	}
	/* Nothing of the devices' own: what is discarded is units. */
	limits->discard_granularity = max(mapunit, limits->logical_block_size);
	limits->max_discard_sectors = round_down(UINT_MAX >> SECTOR_SHIFT, 1U << cow->unit_shift);
	limits->max_hw_discard_sectors = limits->max_discard_sectors;
	cow_discards_are_aligned(limits);
}

static struct target_type cowloop_target = {
	.name = "cowloop",
	.version = {1, 1, 1},
	.features = DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = cowloop_ctr,
	.dtr = cowloop_dtr,
	.map = cowloop_map,
	.end_io = cowloop_end_io,
	.presuspend = cowloop_presuspend,
	.presuspend_undo = cowloop_presuspend_undo,
	.postsuspend = cowloop_postsuspend,
	.resume = cowloop_resume,
	.message = cowloop_message,
	.status = cowloop_status,
	.iterate_devices = cowloop_iterate_devices,
	.io_hints = cowloop_io_hints,
};

static int __init dm_cowloop_init(void)
{
	return dm_register_target(&cowloop_target);
}

static void __exit dm_cowloop_exit(void)
{
	dm_unregister_target(&cowloop_target);
}

module_init(dm_cowloop_init);
module_exit(dm_cowloop_exit);

MODULE_DESCRIPTION(DM_NAME " copy-on-write target with a sparse cowfile");
MODULE_AUTHOR("The dm-cowloop developers");
MODULE_LICENSE("GPL");
