/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Random numbers for the fuzzers: xorshift64*, the same everywhere. A seed that
 * is printed makes the same ones come again.
 */

#ifndef FUZZ_RANDOM_H
#define FUZZ_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

static uint64_t random_state = 88172645463325252ULL;

static uint64_t rnd(uint64_t below)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * 2685821657736338717ULL >> 11) % below;
}

/* Take the seed that the environment variable @name has, or any, and print it as @program's. */
static void seed_random(const char *program, const char *name)
{
	const char *given = getenv(name);
	uint32_t seed;

	if (given)
		seed = strtoul(given, NULL, 10);
	else if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		abort();
	random_state ^= (uint64_t)seed << 1;
	printf("%s: %s=%u\n", program, name, seed);
	fflush(stdout);
}

#endif /* FUZZ_RANDOM_H */
