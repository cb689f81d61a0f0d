/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All that differs between the kernels that dm-cowloop builds for. Test
 * for the feature where there is something to test, for the version only where
 * there is not. COWLOOP_HAVE_* come from Kbuild, which looks at the headers.
 */

#ifndef DM_COWLOOP_COMPAT_H
#define DM_COWLOOP_COMPAT_H

#include <linux/blkdev.h>
#include <linux/dm-io.h>
#include <linux/major.h>
#include <linux/shrinker.h>
#include <linux/slab.h>

/* Block devices were opened with file modes up to 6.4. */
#ifndef BLK_OPEN_READ
#define blk_mode_t	fmode_t
#define BLK_OPEN_READ	FMODE_READ
#define BLK_OPEN_WRITE	FMODE_WRITE
#endif

/*
 * Workqueues are for each CPU unless told otherwise; newer kernels know a flag
 * for that, and later ones warn where there is none.
 */
#ifndef COWLOOP_HAVE_WQ_PERCPU
#define WQ_PERCPU	0
#endif

/*
 * dm_io() takes an I/O priority since 6.8, and in the stable kernels that got it
 * too; and one more set of bits, see COW_DM_IO_NOTIFY(), in newer ones.
 */
static inline int cow_dm_io(struct dm_io_request *req, unsigned int num_regions,
			    struct dm_io_region *where, unsigned long *sync_error_bits)
{
#if defined(COWLOOP_HAVE_DM_IO_UNSUP)
	return dm_io(req, num_regions, where, sync_error_bits, NULL, IOPRIO_DEFAULT);
#elif defined(COWLOOP_HAVE_DM_IO_IOPRIO)
	return dm_io(req, num_regions, where, sync_error_bits, IOPRIO_DEFAULT);
#else
	return dm_io(req, num_regions, where, sync_error_bits);
#endif
}

/*
 * Makes a callback for dm_io(), @fn_notify, of @fn(error, context). In newer
 * kernels it is told two kinds of errors: those where the device did not support
 * what was asked for, or said that it was invalid, come apart from the others.
 */
#ifdef COWLOOP_HAVE_DM_IO_UNSUP
#define COW_DM_IO_NOTIFY(fn)							\
static void fn##_notify(unsigned long error, unsigned long unsup, void *context)	\
{										\
	fn(error | unsup, context);						\
}
#else
#define COW_DM_IO_NOTIFY(fn)							\
static void fn##_notify(unsigned long error, void *context)			\
{										\
	fn(error, context);							\
}
#endif

/*
 * Shrinkers are allocated, and know whose they are, since 6.7. Before that, whose
 * it is stands behind it.
 */
static inline struct shrinker *cow_shrinker_alloc(const char *name, void *owner)
{
#ifdef COWLOOP_HAVE_SHRINKER_ALLOC
	struct shrinker *shrinker = shrinker_alloc(0, "%s", name);

	if (shrinker)
		shrinker->private_data = owner;
#else
	struct shrinker *shrinker = kzalloc(sizeof(*shrinker) + sizeof(owner), GFP_KERNEL);

	if (shrinker)
		*(void **)(shrinker + 1) = owner;
#endif
	return shrinker;
}

static inline void *cow_shrinker_owner(struct shrinker *shrinker)
{
#ifdef COWLOOP_HAVE_SHRINKER_ALLOC
	return shrinker->private_data;
#else
	return *(void **)(shrinker + 1);
#endif
}

/* Returns 0 or -ENOMEM. */
static inline int cow_shrinker_register(struct shrinker *shrinker, const char *name)
{
#ifdef COWLOOP_HAVE_SHRINKER_ALLOC
	shrinker_register(shrinker);
	return 0;
#else
	return register_shrinker(shrinker, "%s", name);
#endif
}

/* Whether it was registered or not, or is NULL. */
static inline void cow_shrinker_free(struct shrinker *shrinker)
{
#ifdef COWLOOP_HAVE_SHRINKER_ALLOC
	shrinker_free(shrinker);
#else
	if (shrinker)
		unregister_shrinker(shrinker);
	kfree(shrinker);
#endif
}

/* Whether discards are aligned had a flag of its own up to 6.10. */
static inline void cow_discards_are_aligned(struct queue_limits *limits)
{
	limits->discard_alignment = 0;
#ifdef COWLOOP_HAVE_DISCARD_MISALIGNED
	limits->discard_misaligned = 0;
#endif
}

/*
 * Loop devices without direct I/O reported a full filesystem like any other error
 * up to 6.14, and nothing tells them from those with direct I/O.
 */
static inline bool cow_hides_no_space(struct block_device *bdev)
{
#ifdef COWLOOP_LOOP_HIDES_NO_SPACE
	return bdev->bd_disk->major == LOOP_MAJOR;
#else
	return false;
#endif
}

#endif /* DM_COWLOOP_COMPAT_H */
