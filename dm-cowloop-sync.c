// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: a clean cowfile, at a sync and at the end: read_only, close. All of this is
 * with the message lock, one at a time.
 */

#include "dm-cowloop-internal.h"

#include <linux/delay.h>
#include <linux/sched/signal.h>

int cow_commit_and_clean(struct cowloop *cow, int counted)
{
	int r;

	r = cow_shut_gate(cow);
	if (r)
		return r;
	r = cow_commit(cow);
	if (!r && !counted) {
		const bool writes = cow_md_is_dirty(cow->md);

		r = cow_md_clean(cow->md);
		if (r == -ENOSPC)
			cow_out_of_space(cow, COW_LACK_COMMIT);
		else if (r)
			cow_metadata_failed(cow, "marking the cowfile clean", r);
		else if (writes && READ_ONCE(cow->mode) == COW_MODE_OUT_OF_SPACE)
			cow_space_found(cow, COW_LACK_COMMIT);
	}
	cow_unlock_gate(cow);

	return r ? r : counted;
}

int cow_sync(struct cowloop *cow)
{
	int counted;

	lockdep_assert_held(&cow->message_lock);
	if (READ_ONCE(cow->opt.read_only))
		return cow_all_durable(cow);

	/* May take long: not while first writes are held up. */
	counted = cow_count_all(cow);

	return counted == -EINTR ? counted : cow_commit_and_clean(cow, counted);
}

/* ---- Waiting for bios in flight ---- */

static bool in_flight(struct cowloop *cow, enum cow_flight flight)
{
	unsigned long begun = 0, ended = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		ended += READ_ONCE(per_cpu_ptr(cow->stats, cpu)->ended[flight]);
	/* In this order, for none to be missed. */
	smp_rmb();
	for_each_possible_cpu(cpu)
		begun += READ_ONCE(per_cpu_ptr(cow->stats, cpu)->begun[flight]);

	return begun != ended;
}

/*
 * After the mode was changed to one in which no bios are begun any more that count as one
 * of @flights: wait for their end. Returns 0, or -EINTR after a signal. A percpu_ref for
 * each kind would have to be killed, and brought to life again, where a signal ends this,
 * and would cost reads and rewrites a call.
 */
static int drain(struct cowloop *cow, unsigned long flights)
{
	unsigned int flight;

	/* The mode is tested, and the bio counted, in one RCU section. */
	synchronize_rcu();
	for_each_set_bit(flight, &flights, COW_NR_FLIGHTS)
		while (in_flight(cow, flight)) {
			if (signal_pending(current))
				return -EINTR;
			fsleep(1000);
		}
	return 0;
}

int cow_make_read_only(struct cowloop *cow)
{
	bool change;
	int r;

	change = cow_change_mode(cow, COW_MODE_RO);
	/* Writes that are kept would be waited for. */
	cow_stop_queueing(cow);
	r = drain(cow, BIT(COW_FLIGHT_REWRITES) | BIT(COW_FLIGHT_WRITES));
	if (change)
		dm_table_event(cow->ti->table);
	if (!r)
		r = cow_sync(cow);
	if (!r)
		WRITE_ONCE(cow->opt.read_only, true);
	return r;
}

/* ---- Closing ---- */

/*
 * Which units are in rdo must be known without the cow device. In mode fail it is enough to
 * have tried: so much of the bitmap as can't be read is for reads to fail.
 */
static int load_all(struct cowloop *cow)
{
	const int r = cow_md_load_all(cow->md);

	return READ_ONCE(cow->mode) == COW_MODE_FAIL && r != -EINTR && r != -ENOMEM ? 0 : r;
}

/*
 * All that takes the cow device. Until the bitmap is in memory, which may take long, the
 * device is as it was, and stays so after an error.
 */
static int prepare_close(struct cowloop *cow)
{
	int r;

	r = load_all(cow);
	if (!r) {
		r = cow_make_read_only(cow);
		/* Data that can't be saved any more keeps nobody from unplugging the device. */
		if (r != -EINTR && READ_ONCE(cow->mode) == COW_MODE_FAIL)
			r = 0;
		/* Writes under way may have needed the memory. */
		if (!r)
			r = load_all(cow);
	}
	if (r)
		cow_md_may_evict(cow->md);

	return r;
}

/*
 * Sync, and let go of the cow device. What is in it can't be read any more. After a signal
 * the mode says how far it has come.
 */
int cow_close(struct cowloop *cow)
{
	int r;

	if (!READ_ONCE(cow->cow_bdev))
		return cow_all_durable(cow);
	r = cow_begin_closing(cow);
	if (r) {
		DMERR("%s: a table that was loaded uses cow device %pg too; see dmsetup clear",
		      cow_name(cow), cow->cow_bdev);
		return r;
	}

	/* In this mode it was ended by a signal, when it waited for the cow device's reads. */
	r = READ_ONCE(cow->mode) == COW_MODE_CLOSED ? 0 : prepare_close(cow);
	if (!r) {
		WRITE_ONCE(cow->opt.read_only, true);
		cow_change_mode(cow, COW_MODE_CLOSED);
		r = drain(cow, BIT(COW_FLIGHT_READS) | BIT(COW_FLIGHT_FLUSHES) |
			       BIT(COW_FLIGHT_OTHERS));
	}
	if (!r) {
		cow_cancel_counting(cow);
		cow_cancel_discards(cow);
		cow_cancel_commits(cow);
		cow_log_unsaved(cow, true);
		cow_md_let_go(cow->md);
	}
	cow_end_closing(cow, !r);
	/* Whoever hears of it may unmount what held the cow device. */
	if (!r)
		dm_table_event(cow->ti->table);

	return r ? r : cow_all_durable(cow);
}
