// SPDX-License-Identifier: GPL-2.0-only
/* Begins, and the next time ends, what scripts/profile counts. */

int main(void)
{
#ifdef __x86_64__
	/* What scripts/measure/profile.c looks for. */
	__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0xc0, 0x0c, 0x10, 0x09");
#endif
	return 0;
}
