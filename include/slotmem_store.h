/* Licensed to the Apache Software Foundation (ASF) under one or more
 * contributor license agreements.  See the NOTICE file distributed with
 * this work for additional information regarding copyright ownership.
 * The ASF licenses this file to You under the Apache License, Version 2.0
 * (the "License"); you may not use this file except in compliance with
 * the License.  You may obtain a copy of the License at
 *
 *     http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 */

/**
 * @file  slotmem_store.h
 * @brief Makes the image of a segment: writes it, compares it with a file, or
 *        asks whether it is the one that was stored last.
 *
 * The format is drawn in mod_slotmem_shm.h; slotmem_image.h reads it.  Knows
 * APR's files and MD5, nothing of httpd.
 *
 * A stored image is made by one function, image_emit(), into a sink that
 * hashes it and, if asked to, writes it or compares it with a file.  Hashed
 * are the very bytes that are written: hashing live memory and then writing
 * live memory is how a store under load ends in a file that nobody believes.
 *
 *     image_begin(&i, &of, &sink)
 *     image_write(&i, file, stamp)            or one of the other two
 *     image_end(&i)
 *
 * The stamp of an image is the MD5 of its tail, which has the MD5 of the rest.
 *
 * Children may write the segment meanwhile: the table is read once, each slot
 * is copied whole where its lock allows, and all of it is read under the guard
 * of slotmem_memory.h, so memory that is gone is APR_ENOMEM.  Called by the
 * only thread of the parent or of its helper.
 */
#ifndef SLOTMEM_STORE_H
#define SLOTMEM_STORE_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "apr.h"
#include "apr_errno.h"
#include "apr_file_io.h"
#include "apr_md5.h"
#include "apr_portable.h"

#include "mod_slotmem_shm.h"
#include "slotmem_image.h"
#include "slotmem_layout.h"
#include "slotmem_locks.h"
#include "slotmem_memory.h"
#include "slotmem_platform.h"
#include "slotmem_search.h"
#include "slotmem_table.h"

#define SINK_SIZE 65536u

enum sink_mode { SINK_WRITE, SINK_COMPARE, SINK_HASH };

typedef struct {
    enum sink_mode mode;
    apr_file_t *file;
    apr_md5_ctx_t md5;
    apr_size_t fill;
    unsigned char *buffer; /* SINK_SIZE */
    unsigned char *other;  /* SINK_SIZE: what the file has */
    unsigned int patience; /* left, with slots being written */
} sink_t;

/** The segment that an image is made of.  Its table, locks and slots are
 *  shared memory; everything else is private. */
typedef struct {
    const layout_t *layout;
    unsigned int type;      /* AP_SLOTMEM_TYPE_* bits, for the descriptor     */
    int cleared;            /* the file's table is empty (CLEARINUSE)         */
    int unlocked;           /* nobody uses the locks (NOTMPSAFE)              */
    int with_kinds;         /* a trailer says whose its slots were            */
    const uint64_t *claims; /* of the configuration; NULL: none             */
    const slotmem_table_t *table;
    const slotmem_locks_t *locks;
    const slotmem_byte_t *slots;
} image_source_t;

/** An image in the making. */
typedef struct {
    image_source_t of;
    uint64_t *used; /* the table, bit by bit, as it was when it began */
    size_t words;
    sink_t *sink;
} image_t;

static inline apr_status_t sink_flush(sink_t *k)
{
    apr_status_t rv = APR_SUCCESS;

    apr_md5_update(&k->md5, k->buffer, k->fill);
    if (k->mode == SINK_WRITE) {
        rv = apr_file_write_full(k->file, k->buffer, k->fill, NULL);
    }
    else if (k->mode == SINK_COMPARE) {
        rv = apr_file_read_full(k->file, k->other, k->fill, NULL);
        if (rv == APR_SUCCESS && memcmp(k->buffer, k->other, k->fill) != 0) {
            rv = APR_EMISMATCH;
        }
    }
    k->fill = 0;
    return rv;
}

/** Space for `len` bytes, at most SINK_SIZE, that the caller fills in. */
static inline apr_status_t sink_room(sink_t *k, size_t len, unsigned char **at)
{
    if (k->fill + len > SINK_SIZE) {
        apr_status_t rv = sink_flush(k);
        if (rv != APR_SUCCESS) {
            return rv;
        }
    }
    *at = k->buffer + k->fill;
    k->fill += len;
    return APR_SUCCESS;
}

static inline apr_status_t used_read_unguarded(void *ctx)
{
    image_t *i = ctx;
    size_t w;

    for (w = 0; w < i->words; w++) {
        i->used[w] = slotmem_table_leaf(i->of.table, w);
    }
    return APR_SUCCESS;
}

/** Begins an image: reads the table, once for all that is made of it.  To be
 *  ended, whatever this answers. */
static inline apr_status_t image_begin(image_t *i, const image_source_t *of,
                                       sink_t *k)
{
    i->of = *of;
    i->sink = k;
    i->words = slotmem_table_leaves(of->table);
    i->used = calloc(i->words + 1, sizeof(*i->used));
    return i->used ? guarded(used_read_unguarded, i) : APR_ENOMEM;
}

static inline void image_end(image_t *i)
{
    free(i->used);
    i->used = NULL;
}

/** The table as the file has it: with CLEARINUSE empty.  The children's own
 *  table stays as it is. */
static inline int image_used(const image_t *i, unsigned int id)
{
    return !i->of.cleared && slotmem_set_has(i->used, id);
}

/** Slots that the file's table has free. */
static inline unsigned int image_free_slots(const image_t *i)
{
    unsigned int used = 0;
    size_t w;

    for (w = 0; w < i->words && !i->of.cleared; w++) {
        used += slotmem_bits_count(i->used[w]);
    }
    return i->of.layout->item_num - used;
}

static inline apr_status_t emit_slots(const image_source_t *s, sink_t *k)
{
    const layout_t *l = s->layout;
    unsigned int id;
    unsigned char *at;
    apr_status_t rv;
    size_t off;

    if (l->item_size <= SINK_SIZE && !s->unlocked) {
        for (id = 0; id < l->item_num; id++) {
            rv = sink_room(k, l->item_size, &at);
            if (rv != APR_SUCCESS) {
                return rv;
            }
            slotmem_locks_snapshot(s->locks, id, at, &k->patience);
        }
        return APR_SUCCESS;
    }
    for (off = 0; off < l->slots_len; off += SINK_SIZE) {
        size_t len =
            l->slots_len - off < SINK_SIZE ? l->slots_len - off : SINK_SIZE;

        rv = sink_room(k, len, &at);
        if (rv != APR_SUCCESS) {
            return rv;
        }
        slotmem_copy_out(at, s->slots + off, len);
    }
    return APR_SUCCESS;
}

static inline apr_status_t image_emit_unguarded(void *ctx)
{
    const image_t *i = ctx;
    const unsigned int free_slots = image_free_slots(i);
    unsigned char *at;
    apr_status_t rv;
    unsigned int id;

    rv = sink_room(i->sink, SLOTMEM_SHM_FILE_COUNT_SIZE, &at);
    if (rv == APR_SUCCESS) {
        memset(at, 0, SLOTMEM_SHM_FILE_COUNT_SIZE);
        memcpy(at, &free_slots, sizeof(free_slots));
        rv = emit_slots(&i->of, i->sink);
    }
    for (id = 0; id < i->of.layout->item_num && rv == APR_SUCCESS; id++) {
        rv = sink_room(i->sink, 1, &at);
        if (rv == APR_SUCCESS) {
            *at = (unsigned char)image_used(i, id);
        }
    }
    return rv == APR_SUCCESS ? sink_flush(i->sink) : rv;
}

/** Everything up to the digest. */
static inline apr_status_t image_emit(image_t *i, enum sink_mode mode,
                                      apr_file_t *file)
{
    i->sink->mode = mode;
    i->sink->file = file;
    i->sink->fill = 0;
    apr_md5_init(&i->sink->md5);
    return guarded(image_emit_unguarded, i);
}

/** Everything from the digest on, once all before it was emitted: that, the
 *  descriptor, and whose the slots of a table that is cleared were.
 *  malloc'ed; NULL when there is no memory. */
static inline unsigned char *image_tail(const image_t *i, size_t *len)
{
    const unsigned int num = i->of.layout->item_num;
    unsigned char *tail, *kinds;
    unsigned int id;

    *len = SLOTMEM_SHM_FILE_DIGEST_SIZE + SLOTMEM_SHM_FILE_DESC_SIZE;
    tail = malloc(*len + (size_t)slotmem_shm_trailer_size(num));
    if (!tail) {
        return NULL;
    }
    apr_md5_final(tail, &i->sink->md5);
    slotmem_image_desc(tail + SLOTMEM_SHM_FILE_DIGEST_SIZE,
                       i->of.layout->item_size, num, i->of.type);
    if (i->of.with_kinds) {
        kinds = tail + *len;
        for (id = 0; id < num; id++) {
            kinds[id] =
                slotmem_kind_of(i->of.claims, id, slotmem_set_has(i->used, id));
        }
        slotmem_image_trailer_end(kinds, num, tail);
        *len += (size_t)slotmem_shm_trailer_size(num);
    }
    return tail;
}

/** Writes the whole image to a file, and its stamp (MD5) to `stamp`. */
static inline apr_status_t image_write(image_t *i, apr_file_t *file,
                                       unsigned char *stamp)
{
    apr_status_t rv = image_emit(i, SINK_WRITE, file);
    unsigned char *tail = NULL;
    size_t len;

    if (rv == APR_SUCCESS && (tail = image_tail(i, &len)) == NULL) {
        rv = APR_ENOMEM;
    }
    if (rv == APR_SUCCESS) {
        apr_md5(stamp, tail, len);
        rv = apr_file_write_full(file, tail, len, NULL);
    }
    free(tail);
    return rv;
}

/** Is that the stamp of what memory holds now? */
static inline int image_bears(image_t *i, const unsigned char *stamp)
{
    unsigned char now[APR_MD5_DIGESTSIZE], *tail;
    size_t len;

    if (image_emit(i, SINK_HASH, NULL) != APR_SUCCESS
        || (tail = image_tail(i, &len)) == NULL) {
        return 0;
    }
    apr_md5(now, tail, len);
    free(tail);
    return memcmp(now, stamp, sizeof(now)) == 0;
}

/** Does a file of `size` bytes hold just what memory holds, under a digest
 *  that is right?  Then *stamp is its stamp. */
static inline int image_is_in(image_t *i, apr_file_t *file, uint64_t size,
                              unsigned char *stamp)
{
    const layout_t *l = i->of.layout;
    const uint64_t before = slotmem_shm_file_size(l->item_size, l->item_num)
                            - SLOTMEM_SHM_FILE_DIGEST_SIZE
                            - SLOTMEM_SHM_FILE_DESC_SIZE;
    unsigned char *tail, *found;
    size_t len;
    int same;

    if (image_emit(i, SINK_COMPARE, file) != APR_SUCCESS
        || (tail = image_tail(i, &len)) == NULL) {
        return 0;
    }
    found = malloc(len + 1);
    same = found && size == before + len
           && apr_file_read_full(file, found, len, NULL) == APR_SUCCESS
           && memcmp(found, tail, len) == 0;
    if (same) {
        apr_md5(stamp, tail, len);
    }
    free(found);
    free(tail);
    return same;
}

/* ==================== stored files ==================== */

/**
 * Opens a stored file for reading: anybody may have put something there.  No
 * pipe is waited for and no link followed, and what it is is asked of the
 * descriptor.  A file of another user is not believed, unless it is `user`,
 * as whom the children run, who write what is stored anyway.  How many names
 * it has does not matter, since it is only read.  APR_EINVAL: it is no such
 * file.
 */
static inline apr_status_t stored_open(apr_file_t **file, const char *path,
                                       struct stat *st, uid_t user,
                                       apr_pool_t *p)
{
    apr_os_file_t fd =
        open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

    if (fd < 0) { /* ENXIO: a socket */
        return platform_is_symlink_error(errno) || errno == ENXIO ? APR_EINVAL
                                                                  : errno;
    }
    if (fstat(fd, st) != 0 || !S_ISREG(st->st_mode)
        || (st->st_uid != geteuid() && st->st_uid != 0 && st->st_uid != user)) {
        close(fd);
        return APR_EINVAL;
    }
    return apr_os_file_put(file, &fd, APR_FOPEN_READ, p);
}

/** What tells the file that was stored from any other, whatever the clock did
 *  since. */
static inline uint64_t file_mark(const struct stat *st)
{
    return ((uint64_t)st->st_mtim.tv_sec * 1000000000u
            + (uint64_t)st->st_mtim.tv_nsec)
               * 31
           + (uint64_t)st->st_ino;
}

#endif /* SLOTMEM_STORE_H */
