// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-cowloop: copy-up, when only a part of a unit is written that is not in the cowfile.
 *
 * The unit is read from rdo, the new data is laid over it, and the whole is stored in the
 * cowfile. Other writes to parts of the unit that come in before it is stored are folded
 * into the same copy-up.
 *
 * kcopyd is not used, though it copies, too: it would write the unit before the new data is
 * laid over it, and then once more, and it does not tell ENOSPC from other errors.
 */

#include "dm-cowloop-internal.h"

#include <linux/dm-io.h>
#include <linux/mempool.h>

/* Copy-ups that can always go on at the same time, however short memory is. */
#define COW_MIN_COPYUPS		2

/*
 * Memory for units up to this size comes from caches, since it need not be cleared each time:
 * all of it is written before it is used.
 */
#define COW_MAX_CACHED		(64 * 1024)

/*
 * A unit that is copied up. The bio that stores it is in here, since bio_alloc_bioset() would
 * cost as much as dm-io does for the read.
 */
struct cow_unit {
	void *data;
	struct cowloop *cow;
	struct cow_io *io;		/* in the table; goes away with the last of its bios */
	sector_t sectors;		/* the last unit may be short */
	struct work_struct work;
	struct bio store;
	struct bio_vec vec;
};

struct cow_copyups {
	mempool_t units;
	unsigned int size;		/* of a unit, in bytes */
	struct kmem_cache *cache;	/* of units with their data; NULL: there is none */
	struct dm_io_client *rdo_reads;
};

/* ---- Memory ---- */

/*
 * A cache with a constructor is never cleared. It keeps what it needs to know of a unit behind
 * it, and so takes twice the memory of small units, but only of those that are in flight:
 * devices share the caches, one for each size of a unit, from 1 KiB on.
 */
static struct unit_cache {
	struct kmem_cache *cache;
	unsigned int users;
} caches[ilog2(COW_MAX_CACHED) - 10 + 1];

static DEFINE_MUTEX(caches_lock);

static void construct_unit(void *data)
{
}

static struct cow_unit *alloc_large(gfp_t gfp, unsigned int size)
{
	struct cow_unit *unit = kmalloc(sizeof(*unit), gfp);

	if (!unit)
		return NULL;
	unit->data = kmalloc(size, gfp);
	if (unit->data)
		return unit;
	kfree(unit);

	return NULL;
}

/* For the mempool. In a cache, the struct lies behind the data. */
static void *alloc_unit(gfp_t gfp, void *pool_data)
{
	struct cow_copyups *c = pool_data;
	struct cow_unit *unit;
	void *data;

	if (unlikely(!c->cache))
		return alloc_large(gfp, c->size);
	data = kmem_cache_alloc(c->cache, gfp);
	if (!data)
		return NULL;
	unit = data + c->size;
	unit->data = data;

	return unit;
}

static void free_unit(void *element, void *pool_data)
{
	struct cow_copyups *c = pool_data;
	struct cow_unit *unit = element;

	if (c->cache) {
		kmem_cache_free(c->cache, unit->data);
		return;
	}
	kfree(unit->data);
	kfree(unit);
}

static struct kmem_cache *get_cache(unsigned int size)
{
	struct unit_cache *u = &caches[ilog2(size) - 10];
	struct kmem_cache *cache;
	char name[32];

	mutex_lock(&caches_lock);
	if (!u->users) {
		snprintf(name, sizeof(name), "dm_cowloop_unit_%u", size);
		/*
		 * Some filesystems do direct I/O with nothing less than whole pages. Drivers
		 * in userspace may have a unit copied from and to them.
		 */
		u->cache = kmem_cache_create_usercopy(name, size + sizeof(struct cow_unit),
						      min_t(unsigned int, size, PAGE_SIZE),
						      0, 0, size, construct_unit);
	}
	cache = u->cache;
	if (cache)
		u->users++;
	mutex_unlock(&caches_lock);

	return cache;
}

static void put_cache(unsigned int size)
{
	struct unit_cache *u = &caches[ilog2(size) - 10];

	mutex_lock(&caches_lock);
	if (!--u->users)
		kmem_cache_destroy(u->cache);
	mutex_unlock(&caches_lock);
}

struct cow_unit *cow_alloc_unit(struct cowloop *cow, gfp_t gfp)
{
	struct cow_copyups *c = cow->copyups;

	/* The pool's reserve is for those who wait. */
	if (!gfpflags_allow_blocking(gfp))
		return alloc_unit(gfp | __GFP_NOWARN | __GFP_NOMEMALLOC, c);
	return mempool_alloc(&c->units, gfp);
}

void cow_free_unit(struct cowloop *cow, struct cow_unit *unit)
{
	mempool_free(unit, &cow->copyups->units);
}

/* ---- Reading and storing ---- */

static void end_copyup(struct cow_unit *unit, blk_status_t status, bool unsure)
{
	struct bio_list bios = unit->io->copyup.folded;
	struct cowloop *cow = unit->cow;
	struct cow_io *io = unit->io;
	struct bio *bio;

	cow_free_unit(cow, unit);
	cow_end_copyup(cow, io, status);

	while ((bio = bio_list_pop(&bios))) {
		cow_bio_to_io(bio)->for_units = status;
		cow_bio_to_io(bio)->unsure = unsure;
		cow_end_bio(bio, status);
	}
}

/* Lay the data of @bio over the unit at @data, which begins at sector @start. */
static void lay_over(void *data, sector_t start, struct bio *bio)
{
	void *to = data + ((bio->bi_iter.bi_sector - start) << SECTOR_SHIFT);
	struct bvec_iter iter;
	struct bio_vec bv;

	if (bio_op(bio) == REQ_OP_WRITE_ZEROES) {
		memset(to, 0, bio->bi_iter.bi_size);
		return;
	}
	bio_for_each_segment(bv, bio, iter) {
		memcpy_from_bvec(to, &bv);
		to += bv.bv_len;
	}
}

static void unit_stored(struct bio *store)
{
	struct cow_unit *unit = container_of(store, struct cow_unit, store);
	const blk_status_t status = store->bi_status;

	bio_uninit(store);
	end_copyup(unit, status, cow_may_lack_space(unit->cow, status));
}

/* Send the unit, of @size bytes, to the cow device, with flags of the bios it is for. */
static void send_store(struct cow_unit *unit, size_t size, blk_opf_t flags)
{
	struct cowloop *cow = unit->cow;
	struct bio *store = &unit->store;

	/* dm-io, which reads the unit, would not tell when the cow device is out of space. */
	bio_init(store, cow->cow_bdev, &unit->vec, 1,
		 REQ_OP_WRITE | (flags & (REQ_SYNC | REQ_META | REQ_PRIO)));
	store->bi_iter.bi_sector = cow->layout.data_sector +
				   cow_unit_start(cow, unit->io->entry.unit);
	store->bi_iter.bi_size = size;
	store->bi_end_io = unit_stored;
	/* The memory is contiguous, and so one vector, however large. */
	unit->vec = (struct bio_vec) {
		.bv_page = virt_to_page(unit->data),
		.bv_len = size,
		.bv_offset = offset_in_page(unit->data),
	};
	store->bi_vcnt = 1;
	if (likely(!cow->ways.in_pieces))
		submit_bio_noacct(store);
	else
		cow_submit_write(cow, store);
}

/* Store the unit, with the data of all the bios laid over it. */
static void store_unit(struct work_struct *work)
{
	struct cow_unit *unit = container_of(work, struct cow_unit, work);
	struct cowloop *cow = unit->cow;
	struct bio_list *folded = &unit->io->copyup.folded;
	const sector_t start = cow_unit_start(cow, unit->io->entry.unit);
	const size_t length = unit->sectors << SECTOR_SHIFT;
	size_t size = cow->copyups->size;
	blk_opf_t flags = 0;
	struct bio *bio;

	cow_end_folding(cow, unit->io);
	if (unit->io->read_failed) {
		end_copyup(unit, BLK_STS_IOERR, false);
		return;
	}

	/* The last unit may end within a block of the cow device. */
	if (unlikely(length < size)) {
		size = min_t(size_t, round_up(length, bdev_logical_block_size(cow->cow_bdev)),
			     size);
		memset(unit->data + length, 0, size - length);
	}
	bio_list_for_each(bio, folded) {
		lay_over(unit->data, start, bio);
		flags |= bio->bi_opf;
	}
	if (cow->ways.zero_needs_commit && !memchr_inv(unit->data, 0, size))
		bio_list_for_each(bio, folded)
			cow_bio_to_io(bio)->commit = true;
	send_store(unit, size, flags);
}

static void unit_read(unsigned long error, void *context)
{
	struct cow_unit *unit = context;

	unit->io->read_failed = error;
	INIT_WORK(&unit->work, store_unit);
	queue_work(unit->cow->queues.io, &unit->work);
}

COW_DM_IO_NOTIFY(unit_read)

/* Sleeps, if there is no memory, until another such read has ended. */
static void read_unit(struct cow_unit *unit)
{
	struct cowloop *cow = unit->cow;
	struct dm_io_request req = {
		.bi_opf = REQ_OP_READ,
		.mem.type = DM_IO_KMEM,
		.mem.ptr.addr = unit->data,
		.notify.fn = unit_read_notify,
		.notify.context = unit,
		.client = cow->copyups->rdo_reads,
	};
	struct dm_io_region where = {
		.bdev = cow->rdo_bdev,
		.sector = cow_unit_start(cow, unit->io->entry.unit),
		.count = unit->sectors,
	};

	this_cpu_inc(cow->stats->copyups);
	if (cow_dm_io(&req, 1, &where, NULL))
		unit_read(1, unit);
}

static void read_unit_later(struct work_struct *work)
{
	read_unit(container_of(work, struct cow_unit, work));
}

void cow_begin_copyup(struct cowloop *cow, struct cow_io *io, bool may_wait)
{
	struct cow_unit *unit = io->copyup.unit;

	unit->cow = cow;
	unit->io = io;
	unit->sectors = cow_unit_end(cow, io->entry.unit) - cow_unit_start(cow, io->entry.unit);
	if (may_wait) {
		read_unit(unit);
		return;
	}
	INIT_WORK(&unit->work, read_unit_later);
	queue_work(cow->queues.rdo, &unit->work);
}

/* ---- Making and destroying ---- */

int cow_copyups_create(struct cowloop *cow, unsigned int size)
{
	struct cow_copyups *c = kzalloc(sizeof(*c), GFP_KERNEL);
	int r;

	if (!c)
		return -ENOMEM;
	cow->copyups = c;
	c->rdo_reads = dm_io_client_create();
	if (IS_ERR(c->rdo_reads)) {
		r = PTR_ERR(c->rdo_reads);
		c->rdo_reads = NULL;
		return r;
	}
	c->size = size;
	if (size <= COW_MAX_CACHED) {
		c->cache = get_cache(size);
		if (!c->cache)
			return -ENOMEM;
	}
	/* mempool_init_slab_pool() refuses caches with constructors. */
	return mempool_init(&c->units, COW_MIN_COPYUPS, alloc_unit, free_unit, c);
}

void cow_copyups_destroy(struct cowloop *cow)
{
	struct cow_copyups *c = cow->copyups;

	if (!c)
		return;
	mempool_exit(&c->units);
	if (c->cache)
		put_cache(c->size);
	if (c->rdo_reads)
		dm_io_client_destroy(c->rdo_reads);
	kfree(c);
}
