// SPDX-License-Identifier: GPL-2.0-only
/*
 * libcowloop: CRC-32C, the checksum of cowfiles.
 */

#include "crc32c.h"

#include <endian.h>
#include <string.h>

/* Table k is for the byte that has k more behind it. */
static u32 crc_table[8][256];

/* Before main(), so that no thread finds half of it. */
static __attribute__((constructor))
void crc32c_init(void)
{
	for (u32 i = 0; i < 256; i++) {
		u32 c = i;

		for (int bit = 0; bit < 8; bit++)
			c = c & 1 ? c >> 1 ^ 0x82f63b78 : c >> 1;
		crc_table[0][i] = c;
	}
	for (int k = 1; k < 8; k++)
		for (u32 i = 0; i < 256; i++)
			crc_table[k][i] = crc_table[k - 1][i] >> 8 ^
					  crc_table[0][crc_table[k - 1][i] & 255];
}

u32 crc32c(u32 crc, const void *data, size_t length)
{
	const u8 *p = data;
	u64 word;

	crc = ~crc;
	for (; length >= 8; length -= 8, p += 8) {
		memcpy(&word, p, 8);
		word = le64toh(word) ^ crc;
		crc = 0;
		for (int k = 0; k < 8; k++)
			crc ^= crc_table[7 - k][word >> 8 * k & 255];
	}
	for (; length; length--)
		crc = crc >> 8 ^ crc_table[0][(crc ^ *p++) & 255];
	return ~crc;
}
