/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cowsetup: images that are packed in something, and are not images as they are.
 */

#ifndef COWSETUP_CONTAINER_H
#define COWSETUP_CONTAINER_H

#include "file.h"

/*
 * Is a file or device an image in another format than raw, or compressed? A text
 * for people, to be freed, that says what it is and what makes an image of it;
 * NULL: it is none that is known, or cannot be read.
 */
char *container_text(const struct file *f);

#endif /* COWSETUP_CONTAINER_H */
