/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * As much of the kernel as files of the target need that are tested in userspace,
 * each compiled as it is. Locks are real and so are grace periods, so that threads
 * can be at them; lockdep_assert_held() asserts.
 */

#ifndef UNIT_KERNEL_H
#define UNIT_KERNEL_H

#include <assert.h>
#include <errno.h>
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;
typedef u64 sector_t;
typedef unsigned int blk_opf_t;

/* ---- The compiler ---- */

#define __rcu
#define __must_check
#define __aligned(n)		__attribute__((aligned(n)))
#define __printf(a, b)		__attribute__((format(printf, a, b)))
#define ____cacheline_aligned_in_smp	__aligned(64)
#undef __always_inline
#define __always_inline		inline __attribute__((always_inline))
#define noinline		__attribute__((noinline))
#define likely(x)		__builtin_expect(!!(x), 1)
#define unlikely(x)		__builtin_expect(!!(x), 0)

#define BUILD_BUG_ON(x)		static_assert(!(x), #x)
#define sizeof_field(type, member)	sizeof(((type *)NULL)->member)

#define READ_ONCE(x)		__atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_RELAXED)
#define data_race(x)		(x)
#define smp_rmb()		__atomic_thread_fence(__ATOMIC_ACQUIRE)
#define smp_mb()		__atomic_thread_fence(__ATOMIC_SEQ_CST)
#define smp_store_release(p, value)	__atomic_store_n(p, value, __ATOMIC_RELEASE)

#define min(a, b)		({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); _a < _b ? _a : _b; })
#define max(a, b)		({ __typeof__(a) _c = (a); __typeof__(b) _d = (b); _c > _d ? _c : _d; })
#define min_t(type, a, b)	min((type)(a), (type)(b))
#define clamp_t(type, x, low, high)	max((type)(low), min_t(type, x, high))

#define DIV_ROUND_UP_ULL(a, b)	(((u64)(a) + (b) - 1) / (b))
#define round_down(n, power_of_two)	((n) & ~((power_of_two) - 1))

/* ---- Memory ---- */

typedef unsigned int gfp_t;

#define GFP_KERNEL		0
#define GFP_NOIO		0
#define __GFP_NORETRY		0
#define __GFP_NOMEMALLOC	0
#define __GFP_NOWARN		0
#define kmalloc(size, gfp)	((void)(gfp), malloc(size))
#define kvcalloc(n, size, gfp)	((void)(gfp), calloc(n, size))
#define kfree(p)		free(p)
#define kvfree(p)		free(p)

/* ---- Bits ---- */

#define BITS_PER_BYTE		8
#define BIT(n)			(1UL << (n))
#define BIT_ULL(n)		(1ULL << (n))
#define GENMASK(high, low)	((~0UL << (low)) & (~0UL >> (63 - (high))))
#define SECTOR_SHIFT		9

static inline bool test_bit_le(u32 bit, const void *bits)
{
	return ((const u8 *)bits)[bit / 8] >> bit % 8 & 1;
}

static inline bool __test_and_set_bit_le(u32 bit, void *bits)
{
	const bool was = test_bit_le(bit, bits);

	((u8 *)bits)[bit / 8] |= 1 << bit % 8;
	return was;
}

static inline bool __test_and_clear_bit_le(u32 bit, void *bits)
{
	const bool was = test_bit_le(bit, bits);

	((u8 *)bits)[bit / 8] &= ~(1 << bit % 8);
	return was;
}

static inline void __set_bit_le(u32 bit, void *bits)
{
	__test_and_set_bit_le(bit, bits);
}

static inline u32 find_next_bit_le(const void *bits, u32 size, u32 bit)
{
	while (bit < size && !test_bit_le(bit, bits))
		bit++;
	return min(bit, size);
}

static inline u32 find_next_zero_bit_le(const void *bits, u32 size, u32 bit)
{
	while (bit < size && test_bit_le(bit, bits))
		bit++;
	return min(bit, size);
}

#define for_each_set_bit(bit, word, size) \
	for ((bit) = 0; (bit) < (size); (bit)++) \
		if (*(word) & BIT(bit))

static inline unsigned long __ffs(unsigned long word)
{
	return __builtin_ctzl(word);
}

/* The first byte that is not @c, or NULL. */
static inline const void *memchr_inv(const void *bytes, u8 c, size_t size)
{
	for (const u8 *p = bytes; size--; p++)
		if (*p != c)
			return p;
	return NULL;
}

/* ---- Atomic numbers and lists ---- */

typedef struct { int counter; } atomic_t;
typedef struct { s64 counter; } atomic64_t;

#define atomic_read(v)		READ_ONCE((v)->counter)
#define atomic_inc(v)		((void)__atomic_add_fetch(&(v)->counter, 1, __ATOMIC_SEQ_CST))
#define atomic_dec(v)		((void)__atomic_sub_fetch(&(v)->counter, 1, __ATOMIC_SEQ_CST))
#define atomic64_read(v)	READ_ONCE((v)->counter)
#define atomic64_add(n, v)	((void)__atomic_add_fetch(&(v)->counter, n, __ATOMIC_SEQ_CST))
#define atomic64_sub(n, v)	((void)__atomic_sub_fetch(&(v)->counter, n, __ATOMIC_SEQ_CST))

static inline int atomic_cmpxchg(atomic_t *v, int old, int new)
{
	__atomic_compare_exchange_n(&v->counter, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return old;
}

static inline bool atomic_inc_unless_negative(atomic_t *v)
{
	int old = atomic_read(v);

	while (old >= 0)
		if (__atomic_compare_exchange_n(&v->counter, &old, old + 1, false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST))
			return true;
	return false;
}

struct llist_node { struct llist_node *next; };
struct llist_head { struct llist_node *first; };

#define llist_entry(node, type, member)	((type *)((char *)(node) - offsetof(type, member)))

static inline void init_llist_head(struct llist_head *head)
{
	head->first = NULL;
}

static inline bool llist_empty(const struct llist_head *head)
{
	return !READ_ONCE(head->first);
}

/* True if it was empty. */
static inline bool llist_add(struct llist_node *node, struct llist_head *head)
{
	struct llist_node *first = READ_ONCE(head->first);

	do
		node->next = first;
	while (!__atomic_compare_exchange_n(&head->first, &first, node, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	return !first;
}

static inline struct llist_node *llist_del_all(struct llist_head *head)
{
	return __atomic_exchange_n(&head->first, NULL, __ATOMIC_SEQ_CST);
}

/* ---- Locks ---- */

typedef struct { char taken; } spinlock_t;

static inline void spin_lock(spinlock_t *lock)
{
	while (__atomic_test_and_set(&lock->taken, __ATOMIC_ACQUIRE))
		sched_yield();
}

static inline void spin_unlock(spinlock_t *lock)
{
	__atomic_clear(&lock->taken, __ATOMIC_RELEASE);
}

static inline void spin_lock_init(spinlock_t *lock)
{
	lock->taken = 0;
}

#define spin_lock_irq(lock)			spin_lock(lock)
#define spin_unlock_irq(lock)			spin_unlock(lock)
#define spin_lock_irqsave(lock, flags)		((void)(flags = 0), spin_lock(lock))
#define spin_unlock_irqrestore(lock, flags)	((void)flags, spin_unlock(lock))

struct mutex {
	pthread_mutex_t lock;
	bool held;
};

static inline void mutex_init(struct mutex *mutex)
{
	pthread_mutex_init(&mutex->lock, NULL);
	mutex->held = false;
}

static inline void mutex_lock(struct mutex *mutex)
{
	pthread_mutex_lock(&mutex->lock);
	mutex->held = true;
}

static inline void mutex_unlock(struct mutex *mutex)
{
	mutex->held = false;
	pthread_mutex_unlock(&mutex->lock);
}

#define lockdep_assert_held(mutex)	assert((mutex)->held)
#define cond_resched()			sched_yield()

/* ---- Grace periods: whoever waits for one waits for all readers ---- */

struct rcu_head { void *unused; };

extern pthread_rwlock_t unit_rcu;

static inline void rcu_read_lock(void)
{
	pthread_rwlock_rdlock(&unit_rcu);
}

static inline void rcu_read_unlock(void)
{
	pthread_rwlock_unlock(&unit_rcu);
}

static inline void synchronize_rcu(void)
{
	pthread_rwlock_wrlock(&unit_rcu);
	pthread_rwlock_unlock(&unit_rcu);
}

#define rcu_read_lock_sched()		rcu_read_lock()
#define rcu_read_unlock_sched()		rcu_read_unlock()
#define rcu_dereference(p)		__atomic_load_n(&(p), __ATOMIC_ACQUIRE)
#define rcu_dereference_sched(p)	rcu_dereference(p)
#define rcu_access_pointer(p)		READ_ONCE(p)
#define rcu_assign_pointer(p, value)	__atomic_store_n(&(p), value, __ATOMIC_RELEASE)
#define RCU_INIT_POINTER(p, value)	WRITE_ONCE(p, value)
#define kfree_rcu(p, member)		(synchronize_rcu(), free(p))

/* ---- What structures have in them ---- */

struct bio;
struct block_device;
struct dm_buffer;
struct dm_bufio_client;
struct shrinker;
struct bio_vec { void *unused; };
struct completion { bool done; };

sector_t bdev_nr_sectors(struct block_device *bdev);

#endif /* UNIT_KERNEL_H */
