/* SPDX-License-Identifier: GPL-2.0-only */
/* What the fuzzers share: a seed by which the same inputs come again, and an end of patience. */

#ifndef FUZZ_H
#define FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/time.h>
#include <unistd.h>

#include "../random.h"

/* Take the seed that the environment variable @name has, or any, and print it as @program's. */
static inline void seed_random(const char *program, const char *name)
{
	const char *given = getenv(name);
	uint32_t seed;

	if (given)
		seed = strtoul(given, NULL, 10);
	else if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		abort();
	random_state = seed;
	printf("%s: %s=%u\n", program, name, seed);
	fflush(stdout);
}

/* For one input: some of the CPU's time, which is not all this one's; and for what sleeps, minutes. */
static inline void limit_time(void)
{
	static const struct itimerval patience = { .it_value.tv_sec = 20 };

	setitimer(ITIMER_PROF, &patience, NULL);
	alarm(600);
}

#endif /* FUZZ_H */
