// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin for QEMU's emulator that counts the instructions of the guest: how often each piece of code was run
 * between one mark and the next. A mark is an instruction that does nothing and that no compiler makes, see
 * profile_mark() in tests/profile-mark.c. scripts/profile turns what comes out into names.
 *
 * The plugin interface is declared here, as far as it is used, since not every distribution has the header.
 */

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, enum qemu_plugin_op op, void *to, uint64_t n);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned int, void *),
					    enum qemu_plugin_cb_flags flags, void *data);

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv);

/* A translated block: code that runs from its beginning to its end. */
struct block {
	uint64_t address;
	uint64_t instructions;
	uint64_t runs;
	struct block *next;
};

static const uint8_t mark[] = {0x0f, 0x1f, 0x84, 0x00, 0xc0, 0x0c, 0x10, 0x09};
static struct block *blocks[1 << 16];
static const char *output;
static bool running;

static void marked(unsigned int cpu, void *data)
{
	FILE *out = running ? fopen(output, "w") : NULL;

	(void)cpu;
	(void)data;
	for (size_t i = 0; i < sizeof(blocks) / sizeof(*blocks); i++)
		for (struct block *b = blocks[i]; b; b = b->next) {
			if (out && b->runs)
				fprintf(out, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", b->address, b->instructions,
					b->runs);
			b->runs = 0;
		}
	if (running && (!out || fclose(out)))
		perror(output);
	running = !running;
}

static struct block *get_block(uint64_t address, size_t instructions)
{
	struct block **head = &blocks[(address ^ address >> 16) % (sizeof(blocks) / sizeof(*blocks))], *b;

	/* The same code is translated more than once. */
	for (b = *head; b; b = b->next)
		if (b->address == address && b->instructions == instructions)
			return b;
	b = calloc(1, sizeof(*b));
	if (!b)
		abort();
	b->address = address;
	b->instructions = instructions;
	b->next = *head;
	*head = b;

	return b;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	const size_t n = qemu_plugin_tb_n_insns(tb);
	struct block *b = get_block(qemu_plugin_tb_vaddr(tb), n);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &b->runs, 1);
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (qemu_plugin_insn_size(insn) == sizeof(mark) &&
		    !memcmp(qemu_plugin_insn_data(insn), mark, sizeof(mark)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, QEMU_PLUGIN_CB_NO_REGS, NULL);
	}
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv)
{
	(void)info;
	if (argc != 1 || strncmp(argv[0], "output=", 7)) {
		fprintf(stderr, "profile: expected output=FILE\n");
		return -1;
	}
	output = argv[0] + 7;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);

	return 0;
}
