// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin for QEMU's emulator that counts the instructions of the guest: how often each piece of code was run
 * between one mark and the next. A mark is an instruction that does nothing and that no compiler makes, see
 * tests/profile-mark.c. scripts/profile turns what comes out into names.
 *
 * With shared=on it counts something else: the kernel's loads of what another CPU has written, and its stores where
 * another has loaded or stored, by cache lines. These are what goes from cache to cache on a machine that has some. A
 * CPU's cache never is full here, and a line that nobody has used comes from nowhere.
 *
 * The plugin interface is declared here, as far as it is used, since not every distribution has the header.
 */

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
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
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef uint32_t qemu_plugin_meminfo_t;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, enum qemu_plugin_op op, void *to, uint64_t n);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned int, void *),
					    enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
				      void (*cb)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void *),
				      enum qemu_plugin_cb_flags flags, enum qemu_plugin_mem_rw rw, void *data);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);
void qemu_plugin_reset(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t id));
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv);

/* A translated block, code that runs from its beginning to its end; or an instruction of which accesses are counted. */
struct block {
	uint64_t address;
	uint64_t instructions;
	atomic_ulong runs;
	struct block *next;
};

struct line {
	atomic_ulong number;	/* 0: none */
	atomic_ulong users;	/* CPUs, a bit each: that which has written it last, and those that have read it since */
};

#define WRITTEN (1UL << 63)	/* of users: by somebody */

#define NR_LINES (UINT64_C(1) << 22)
#define KERNEL UINT64_C(0xffff800000000000)

static const uint8_t mark[] = {0x0f, 0x1f, 0x84, 0x00, 0xc0, 0x0c, 0x10, 0x09};
static struct block *blocks[1 << 16];
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;
static struct line lines[NR_LINES];
static const char *output;
static bool shared;
static volatile bool running;
static qemu_plugin_id_t self;
static void start(qemu_plugin_id_t id);

static void write_blocks(FILE *out)
{
	for (size_t i = 0; i < sizeof(blocks) / sizeof(*blocks); i++)
		for (struct block *b = blocks[i]; b; b = b->next) {
			if (out && b->runs)
				fprintf(out, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", b->address, b->instructions,
					(uint64_t)b->runs);
			b->runs = 0;
		}
}

static void marked(unsigned int cpu, void *data)
{
	FILE *out = running ? fopen(output, "w") : NULL;

	(void)cpu;
	(void)data;
	running = !running;
	write_blocks(out);
	if (!running && (!out || fclose(out)))
		perror(output);
	/* What has been translated so far does not say what it accesses: that would take too long from boot on. */
	if (shared && running)
		qemu_plugin_reset(self, start);
}

static struct block *get_block(uint64_t address, size_t instructions)
{
	struct block **head = &blocks[(address ^ address >> 16) % (sizeof(blocks) / sizeof(*blocks))], *b;

	/* The same code is translated more than once, and by several CPUs at a time. */
	pthread_mutex_lock(&blocks_lock);
	for (b = *head; b; b = b->next)
		if (b->address == address && b->instructions == instructions)
			break;
	if (!b) {
		b = calloc(1, sizeof(*b));
		if (!b)
			abort();
		b->address = address;
		b->instructions = instructions;
		b->next = *head;
		*head = b;
	}
	pthread_mutex_unlock(&blocks_lock);

	return b;
}

static struct line *get_line(uint64_t number)
{
	uint64_t i = number * UINT64_C(0x9e3779b97f4a7c15) >> 42;

	for (unsigned int tries = 0; tries < 10000; tries++, i++) {
		struct line *l = &lines[i % NR_LINES];
		unsigned long old = 0;

		if (l->number == number || atomic_compare_exchange_strong(&l->number, &old, number) || old == number)
			return l;
	}
	fprintf(stderr, "profile: too many cache lines\n");
	abort();
}

static void accessed(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t at, void *data)
{
	const unsigned long me = 1UL << cpu % 63;
	struct block *b = data;
	unsigned long users;
	struct line *l;

	if (!running || at < KERNEL)
		return;
	l = get_line(at / 64);
	users = l->users;
	if (qemu_plugin_mem_is_store(info)) {
		if (users != (me | WRITTEN) && atomic_exchange(&l->users, me | WRITTEN) & ~me & ~WRITTEN)
			b->runs++;
	} else if (!(users & me) && atomic_fetch_or(&l->users, me) & WRITTEN) {
		b->runs++;
	}
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	const size_t n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	if (!shared)
		qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64,
							 &get_block(qemu_plugin_tb_vaddr(tb), n)->runs, 1);
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const uint64_t address = qemu_plugin_insn_vaddr(insn);

		if (qemu_plugin_insn_size(insn) == sizeof(mark) &&
		    !memcmp(qemu_plugin_insn_data(insn), mark, sizeof(mark)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, QEMU_PLUGIN_CB_NO_REGS, NULL);
		if (shared && running && address >= KERNEL)
			qemu_plugin_register_vcpu_mem_cb(insn, accessed, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW,
							 get_block(address, 1));
	}
}

static void start(qemu_plugin_id_t id)
{
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv)
{
	(void)info;
	if (argc < 1 || argc > 2 || strncmp(argv[0], "output=", 7) || (argc == 2 && strcmp(argv[1], "shared=on"))) {
		fprintf(stderr, "profile: expected output=FILE[,shared=on]\n");
		return -1;
	}
	output = argv[0] + 7;
	shared = argc == 2;
	self = id;
	start(id);

	return 0;
}
