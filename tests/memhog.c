// SPDX-License-Identifier: GPL-2.0-only
/*
 * memhog - uses more memory than there is, and checks that it keeps what was put there
 *
 *	memhog MIB PASSES
 *
 * Each pass reads all pages in an order of its own, compares them with what was written there last, and writes them
 * anew, so that all of them go to swap and come back.
 */
#include "util.h"

#define PAGE		4096UL
#define PAGE_WORDS	(PAGE / sizeof(uint64_t))

static uint64_t word(uint64_t page, uint64_t pass, uint64_t i)
{
	return (page * GOLDEN) ^ (pass << 56) ^ i;
}

int main(int argc, char **argv)
{
	const uint64_t nr = argc == 3 ? strtoul(argv[1], NULL, 10) * (1048576 / PAGE) : 0;
	const uint64_t passes = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	uint64_t *memory, pass, n, i;

	if (!nr || !passes) {
		fprintf(stderr, "Usage: memhog MIB PASSES\n");
		return EXIT_USAGE;
	}
	memory = mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		      -1, 0);
	if (memory == MAP_FAILED)
		die_errno(errno, "mmap");

	for (pass = 0; pass <= passes; pass++) {
		for (n = 0; n < nr; n++) {
			/* odd passes go backwards */
			const uint64_t page = pass & 1 ? nr - 1 - n : n;
			uint64_t *p = memory + page * PAGE_WORDS;

			for (i = 0; i < PAGE_WORDS && pass; i++) {
				if (p[i] != word(page, pass - 1, i))
					die(EXIT_MISMATCH, "page %" PRIu64 ", word %" PRIu64 ", pass %" PRIu64
					    ": found %" PRIx64 ", expected %" PRIx64, page, i, pass, p[i],
					    word(page, pass - 1, i));
			}
			for (i = 0; i < PAGE_WORDS; i++)
				p[i] = word(page, pass, i);
		}
	}
	printf("memhog: %" PRIu64 " pages, %" PRIu64 " times\n", nr, passes);

	return 0;
}
