// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: a writable device made of a read-only device (rdo), which is never written,
 * and a sparse cowfile, which takes every changed unit.
 *
 * The house. Each room is a file, and has a struct that no other file looks into. A room
 * calls those below it; what goes back is a function that was given when the room was made.
 *
 *	dm-cowloop.c		what users touch: table line, messages, status
 *	dm-cowloop-sync.c	a clean cowfile: sync, suspend, read_only, close
 *	dm-cowloop-io.c		map and end_io: all that most bios see
 *	dm-cowloop-discard.c	discards
 *	dm-cowloop-write.c	first writes, and rewrites that have state
 *	dm-cowloop-copyup.c	units of which only a part is written
 *	dm-cowloop-table.[ch]	first writes in flight, the gate, ranges of discards
 *	dm-cowloop-devices.c	rdo and cow device, and who uses which cowfile
 *	dm-cowloop-commit.c	commits, flushes, and who waits for them
 *	dm-cowloop-space.c	modes, limits, writes that wait for space
 *	dm-cowloop-send.c	queues: who waits for whom; deferred bios, pieces
 *	dm-cowloop-metadata.c	the cowfile's head and bitmap, and the order on disk; its
 *				own rooms are listed there
 *
 * The way of a bio. It comes in by cowloop_map(), and ends in cowloop_end_io().
 *
 *	read		io: cow_lookup(), and on to rdo or to the cow device; where the
 *			bitmap is not in memory: send (queue load), commit: cow_load(), send
 *	rewrite		io: cow_lookup(), and on to the cow device; with FUA: write, commit
 *	first write	io, write: cow_accept_whole(), table: enter; to the cow device; write:
 *			cow_end_write(), table: end_first_write() sets the bits; with FUA: commit
 *	copy-up		io, write: write_part(), table: enter; copyup: read from rdo, lay over,
 *			store; table: cow_end_copyup() sets the bit
 *	flush		commit: down as it is if no bit has changed, else cow_commit() first
 *	discard		io, discard: publish; table: wait for first writes; clear bits, commit,
 *			give the space back
 *	no space	write: write_failed(), space: kept and tried again, or ENOSPC
 *	deferred	send (queue deferred), write: cow_deferred_write(): load, open the gate,
 *			map again
 *
 * Locks, each with its room; outer ones first, those of one line are never taken together:
 *
 *	message_lock (dm-cowloop.c)		messages, suspend
 *	gate_lock (table), cowfiles_lock (devices), caches_lock (copyup)
 *	load_lock, then commit_lock (metadata)	see dm-cowloop-metadata.c
 *	bucket locks (table)			spinlocks, interrupts off, from here on
 *	lock of commit, lock of discard
 *	lock of space, lock of send, ranges_lock (table), the metadata's spinlocks
 *
 * A mutex is held over I/O, which spinlocks are not; so gate_lock is outside the metadata's.
 * A bucket's lock is held while a bit is tested, units are held, or a bit is set, hence the
 * metadata's spinlocks, ranges_lock, and the lock of send are inside. A commit asks the space
 * room, with its own lock held, whether to wait.
 */

#include "dm-cowloop-internal.h"

#include <linux/init.h>
#include <linux/module.h>

static const char * const cow_mode_names[] = {
	[COW_MODE_RW] = "rw",
	[COW_MODE_OUT_OF_SPACE] = "out_of_space",
	[COW_MODE_RO] = "ro",
	[COW_MODE_FAIL] = "fail",
	[COW_MODE_CLOSED] = "closed",
};

/* ---- Optional parameters ---- */

enum cow_option_kind {
	COW_OPTION_NUMBER,	/* name:<unsigned int> */
	COW_OPTION_UNITS,	/* name:<u64> */
	COW_OPTION_FLAG,
};

static bool format_valid(unsigned int format)
{
	return format == 1 || format == 2;
}

static bool mapunit_valid(unsigned int mapunit)
{
	return mapunit == COW_V1_MAPUNIT || cow_v2_mapunit_valid(mapunit);
}

/* All of them, in the order in which the table is told; the error is of an invalid value. */
static const struct cow_option {
	const char *name;
	enum cow_option_kind kind;
	size_t offset;			/* in struct cow_options */
	bool (*valid)(unsigned int number);
	char *error;
} cow_option_list[] = {
	{ "format:", COW_OPTION_NUMBER, offsetof(struct cow_options, format), format_valid,
	  "Invalid format, must be 1 or 2" },
	{ "mapunit:", COW_OPTION_NUMBER, offsetof(struct cow_options, mapunit), mapunit_valid,
	  "Invalid mapunit, must be 1024, or a power of two from 4096 to 1048576" },
	{ "repair", COW_OPTION_FLAG, offsetof(struct cow_options, repair) },
	{ "read_only", COW_OPTION_FLAG, offsetof(struct cow_options, read_only) },
	{ "limit:", COW_OPTION_UNITS, offsetof(struct cow_options, limit), NULL,
	  "Invalid limit, must be a number of units" },
	{ "low_water:", COW_OPTION_UNITS, offsetof(struct cow_options, low_water), NULL,
	  "Invalid low_water, must be a number of units" },
	{ "reserve:", COW_OPTION_UNITS, offsetof(struct cow_options, reserve), NULL,
	  "Invalid reserve, must be a number of units" },
	{ "queue_if_no_space", COW_OPTION_FLAG,
	  offsetof(struct cow_options, queue_if_no_space) },
	{ "no_discard_passdown", COW_OPTION_FLAG,
	  offsetof(struct cow_options, no_discard_passdown) },
	{ "whole_writes", COW_OPTION_FLAG, offsetof(struct cow_options, whole_writes) },
};

/* Set the option that @arg is about, if it is this one: 1 if so, 0 if not, else -EINVAL. */
static int set_option(const struct cow_option *option, const char *arg, struct cow_options *opt)
{
	void *to = (void *)opt + option->offset;
	const size_t len = str_has_prefix(arg, option->name);

	if (!len)
		return 0;
	switch (option->kind) {
	case COW_OPTION_NUMBER:
		return kstrtouint(arg + len, 10, to) ||
		       !option->valid(*(unsigned int *)to) ? -EINVAL : 1;
	case COW_OPTION_UNITS:
		return kstrtou64(arg + len, 10, to) ? -EINVAL : 1;
	case COW_OPTION_FLAG:
		if (arg[len])
			return 0;
		*(bool *)to = true;
		return 1;
	}
	return 0;
}

static int parse_option(const char *arg, struct cow_options *opt, char **error)
{
	unsigned int i;
	int r;

	for (i = 0; i < ARRAY_SIZE(cow_option_list); i++) {
		r = set_option(&cow_option_list[i], arg, opt);
		if (r < 0)
			*error = cow_option_list[i].error;
		if (r)
			return min(r, 0);
	}
	*error = "Unrecognised optional parameter";
	return -EINVAL;
}

static int parse_options(struct dm_target *ti, struct dm_arg_set *as, struct cow_options *opt)
{
	static const struct dm_arg args[] = {
		{0, ARRAY_SIZE(cow_option_list), "Invalid number of optional parameters"},
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

/* The value of an option; 0 if it is not given. */
static u64 option_value(const struct cow_option *option, const struct cow_options *opt)
{
	const void *from = (const void *)opt + option->offset;

	switch (option->kind) {
	case COW_OPTION_NUMBER:
		return READ_ONCE(*(const unsigned int *)from);
	case COW_OPTION_UNITS:
		return READ_ONCE(*(const u64 *)from);
	case COW_OPTION_FLAG:
		return READ_ONCE(*(const bool *)from);
	}
	return 0;
}

/* ---- Constructor, destructor ---- */

/* All rooms but that of the devices, which opens the cowfile, and that of copy-ups. */
static int create_rooms(struct cowloop *cow)
{
	int r;

	cow->stats = alloc_percpu(struct cow_stats);
	if (!cow->stats)
		return -ENOMEM;
	r = cow_queues_create(&cow->queues);
	if (!r)
		r = cow_sender_create(cow, cow_deferred_write);
	if (!r)
		r = cow_space_create(cow, cow_deferred_write, cow_end_waiting_commits);
	if (!r)
		r = cow_commits_create(cow);
	if (!r)
		r = cow_table_create(cow, cow_discards_ready);
	if (!r)
		r = cow_discards_create(cow);
	return r;
}

/* The part that depends on the cowfile. */
static int set_up(struct cowloop *cow)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);

	cow->map = *cow_md_map(cow->md);
	cow->layout = (struct cow_layout) {
		.unit_shift = ilog2(geo->mapunit) - SECTOR_SHIFT,
		.data_sector = cow_md_data_sector(cow->md),
		.units_end = geo->rdo_sectors,
	};
	cow->ways = (struct cow_ways) {
		.in_pieces = cow_takes_parts(cow->cow_bdev),
		.whole_blocks = cow->opt.whole_writes && cow_takes_parts(cow->cow_bdev) &&
				IS_ALIGNED(get_start_sect(cow->cow_bdev), COW_PIECE_SECTORS),
		.zero_needs_commit = geo->format == 1,
	};
	if (!cow->opt.read_only && cow_md_must_be_read_only(cow->md)) {
		DMWARN("%s: cow device %pg: unknown compat_ro features: writes will fail",
		       cow_name(cow), cow->cow_bdev);
		cow->opt.read_only = true;
	}
	cow_update_map_state(cow);
	/* No event is raised: the table is not live yet. */
	if (cow->opt.read_only)
		cow_change_mode(cow, COW_MODE_RO);

	return cow_copyups_create(cow, geo->mapunit);
}

static void free_cowloop(struct cowloop *cow)
{
	/* The queues first: they may still be running the work that was completed last. */
	cow_queues_destroy(&cow->queues);
	cow_devices_destroy(cow);
	cow_copyups_destroy(cow);
	cow_discards_destroy(cow);
	cow_table_destroy(cow);
	cow_commits_destroy(cow);
	cow_space_destroy(cow);
	cow_sender_destroy(cow);
	free_percpu(cow->stats);
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
 * whole_writes      the cow device, a loop device, takes a write of whole 4096-byte blocks
 *                   as a whole, or fails it: such writes are not cut
 */
static int cowloop_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	struct cowloop *cow;
	int r;

	if (argc < 2) {
		ti->error = "Requires <rdo_dev> <cow_dev>";
		return -EINVAL;
	}
	ti->error = "Cannot allocate memory for the target";
	cow = kzalloc(sizeof(*cow), GFP_KERNEL);
	if (!cow)
		return -ENOMEM;
	cow->ti = ti;
	mutex_init(&cow->message_lock);

	dm_consume_args(&as, 2);
	r = parse_options(ti, &as, &cow->opt);
	if (r)
		goto bad;
	if (!(dm_table_get_mode(ti->table) & BLK_OPEN_WRITE))
		cow->opt.read_only = true;

	ti->error = "Cannot allocate memory for the target";
	r = create_rooms(cow);
	if (!r)
		r = cow_devices_create(cow, argv);
	if (!r)
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
	cow_cancel_commits(cow);
	cow_space_quiesce(cow);
	free_cowloop(cow);
}

/* ---- Suspend and resume ---- */

/*
 * Writes that are kept would be waited for. They end; without a flush they come
 * again after the suspension, see write_failed() in dm-cowloop-write.c.
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
	cow_start_commits(ti->private);
	cow_start_queueing(ti->private);
}

/* No bio is in flight any more, deferred ones included. */
static void cowloop_postsuspend(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;
	int r;

	/* A message may still be at work, and about to let go of the cow device. */
	mutex_lock(&cow->message_lock);
	cow_cancel_counting(cow);
	/* Its last bio has ended, but not the run. */
	cow_flush_discards(cow);
	if (READ_ONCE(cow->opt.read_only))
		r = cow_all_durable(cow);
	else
		r = cow_commit_and_clean(cow, cow_md_counted(cow->md) ? 0 : -EAGAIN);
	/* All other errors were met before, or are told where they are met. */
	if (r == -ENOSPC)
		cow_log_unsaved(cow, false);
	cow_cancel_commits(cow);
	cow_space_quiesce(cow);
	mutex_unlock(&cow->message_lock);
}

static void cowloop_resume(struct dm_target *ti)
{
	struct cowloop *cow = ti->private;

	cow_devices_are_live(cow);
	/* The table that was live until now may have met an error. */
	if (cow_md_failed(cow->md))
		cow_set_mode(cow, COW_MODE_FAIL);
	/* There was no space for them before. */
	else if (!READ_ONCE(cow->opt.read_only) && cow_md_changed(cow->md))
		cow_commit_later(cow);

	cow_start_commits(cow);
	cow_space_resume(cow);
}

/* ---- Messages ---- */

/* A message that sets the limit or low water, by @set. */
static int change_units(struct cowloop *cow, char **argv, void (*set)(struct cowloop *, u64))
{
	u64 units;

	if (kstrtou64(argv[1], 10, &units)) {
		DMERR("%s: message '%s': found '%s', expected a number of units",
		      cow_name(cow), argv[0], argv[1]);
		return -EINVAL;
	}
	set(cow, units);

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
		r = change_units(cow, argv, cow_set_limit);
	else if (argc == 2 && !strcasecmp(argv[0], "low_water"))
		r = change_units(cow, argv, cow_set_low_water);
	else
		DMERR("%s: unrecognised message '%s' with %u arguments", cow_name(cow), argv[0],
		      argc - 1);
	mutex_unlock(&cow->message_lock);

	return r;
}

/* ---- Status ---- */

static struct cow_stats sum_stats(struct cowloop *cow)
{
	struct cow_stats sum = { };
	int cpu, flight;

	/* A discard is counted as begun first, maybe on another CPU. */
	for_each_possible_cpu(cpu)
		sum.discards += READ_ONCE(per_cpu_ptr(cow->stats, cpu)->discards);
	/* Pairs with cow_map_discard(). */
	smp_rmb();
	for_each_possible_cpu(cpu) {
		const struct cow_stats *stats = per_cpu_ptr(cow->stats, cpu);

		for (flight = 0; flight < COW_NR_FLIGHTS; flight++)
			sum.begun[flight] += READ_ONCE(stats->begun[flight]);
		sum.rdo_reads += READ_ONCE(stats->rdo_reads);
		sum.cow_reads += READ_ONCE(stats->cow_reads);
		sum.copyups += READ_ONCE(stats->copyups);
		sum.commits += READ_ONCE(stats->commits);
		sum.errors += READ_ONCE(stats->errors);
		sum.discarded_units += READ_ONCE(stats->discarded_units);
		sum.no_space += READ_ONCE(stats->no_space);
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
	       stats.begun[COW_FLIGHT_REWRITES] + stats.begun[COW_FLIGHT_WRITES] - stats.discards,
	       stats.copyups, stats.commits, stats.errors);
	DMEMIT(" discards %lu discarded_units %lu no_space %lu queued %u",
	       stats.discards, stats.discarded_units, stats.no_space,
	       cow_nr_kept(cow) + cow_nr_held_back(cow));
}

static void emit_table(struct cowloop *cow, char *result, unsigned int maxlen)
{
	u64 values[ARRAY_SIZE(cow_option_list)];
	unsigned int i, nr = 0, sz = 0;

	for (i = 0; i < ARRAY_SIZE(cow_option_list); i++) {
		values[i] = option_value(&cow_option_list[i], &cow->opt);
		nr += !!values[i];
	}
	DMEMIT("%s %s", cow_rdo_name(cow), cow_cow_name(cow));
	if (nr)
		DMEMIT(" %u", nr);
	for (i = 0; i < ARRAY_SIZE(cow_option_list); i++) {
		if (values[i])
			DMEMIT(" %s", cow_option_list[i].name);
		if (values[i] && cow_option_list[i].kind != COW_OPTION_FLAG)
			DMEMIT("%llu", values[i]);
	}
}

static void emit_ima(struct cowloop *cow, char *result, unsigned int maxlen)
{
	const struct cow_geometry *geo = cow_md_geometry(cow->md);
	unsigned int sz = 0;

	DMEMIT_TARGET_NAME_VERSION(cow->ti->type);
	DMEMIT(",rdo_device_name=%s,cow_device_name=%s,format=%u,mapunit=%u,read_only=%c;",
	       cow_rdo_name(cow), cow_cow_name(cow), geo->format, geo->mapunit,
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
	limits->max_discard_sectors = round_down(UINT_MAX >> SECTOR_SHIFT,
						 1U << cow->layout.unit_shift);
	limits->max_hw_discard_sectors = limits->max_discard_sectors;
	cow_discards_are_aligned(limits);
}

static struct target_type cowloop_target = {
	.name = "cowloop",
	.version = {1, 1, 3},
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
