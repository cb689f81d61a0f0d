/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: messages, questions, and the signals that end it.
 */

#ifndef COWSETUP_OUTPUT_H
#define COWSETUP_OUTPUT_H

#include "options.h"

/*
 * The context of all that cowsetup does: messages go to stderr, as "cowsetup: ...",
 * results to stdout, one line each, and what a terminal would take for something
 * else is made visible in them.
 */
struct cowloop_ctx *output_context(void);

/* Once stdout carries data, results and progress go to stderr. */
void output_to_stderr(void);

/* Have SIGINT, SIGTERM and SIGHUP end system calls, and what is being done. */
void catch_signals(void);

/* Has one of them come? */
extern volatile int interrupted;

#endif /* COWSETUP_OUTPUT_H */
