/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Random numbers for the test programs: splitmix64, the same everywhere. A seed
 * makes the same ones come again.
 */

#ifndef TESTS_RANDOM_H
#define TESTS_RANDOM_H

#include <stdint.h>

#define GOLDEN		0x9e3779b97f4a7c15ULL

/* A hash, which differs for any two numbers. */
static inline uint64_t mix(uint64_t x)
{
	x += GOLDEN;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* The next random number of a state of one's own. */
static inline uint64_t next_random(uint64_t *state)
{
	const uint64_t number = mix(*state);

	*state += GOLDEN;
	return number;
}

/* A random number below @n, which must not be 0. */
static inline uint64_t below(uint64_t *state, uint64_t n)
{
	return next_random(state) % n;
}

/* The same for programs that have one state, for all that they do. */
static uint64_t random_state;

static inline uint64_t rnd(uint64_t n)
{
	return below(&random_state, n);
}

#endif /* TESTS_RANDOM_H */
