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
 * @file  slotmem_layout.h
 * @brief What lies where in a segment, in bytes from its header.
 *
 *     0        128      locks_off     slots_off              total
 *     +--------+-----------+------------+-------------------+-------+
 *     | header | table     | locks      | slot 0, 1, 2, ... | slack |
 *     +--------+-----------+------------+-------------------+-------+
 *                                       |<--- slots_len --->|
 *
 * Nothing of httpd, nothing of APR.  Any thread may call both functions.
 */
#ifndef SLOTMEM_LAYOUT_H
#define SLOTMEM_LAYOUT_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mod_slotmem_shm.h"
#include "slotmem_locks.h"
#include "slotmem_table.h"

_Static_assert(sizeof(struct slotmem_shm_header) == 128
                   && SLOTMEM_SHM_ALIGN == SLOTMEM_PART_ALIGN,
               "the header is part of the published layout");

/** Where everything lies, from the header; computed from what the caller
 *  asked for, kept in private memory, never read back from the segment. */
typedef struct {
    size_t item_size;
    unsigned int item_num;
    size_t locks_off;
    size_t slots_off;
    size_t slots_len;
    size_t total;
} layout_t;

/**
 * The only place where sizes are added and multiplied.  Half of the address
 * space is more than any machine maps, so with the slots below that nothing
 * that follows can wrap.
 */
static inline int layout_make(layout_t *l, size_t item_size,
                              unsigned int item_num)
{
    const size_t limit = ~(size_t)0 / 2;
    const size_t table = sizeof(struct slotmem_shm_header);

    memset(l, 0, sizeof(*l));
    if (item_num && item_size > limit / item_num) {
        return EINVAL;
    }
    l->item_size = item_size;
    l->item_num = item_num;
    l->slots_len = item_size * item_num;
    l->locks_off = table + slotmem_table_size(item_num);
    l->slots_off = l->locks_off + slotmem_locks_size(item_num);
    if (l->slots_len > limit - l->slots_off - (size_t)2 * SLOTMEM_SHM_SLACK) {
        return EINVAL;
    }
    l->total =
        slotmem_part_end(l->slots_off + l->slots_len + SLOTMEM_SHM_SLACK);
    return 0;
}

/** Does the header, read and private, describe a segment of that run that
 *  takes just `len` bytes?  Fills in the layout that it describes. */
static inline int layout_of_header(const struct slotmem_shm_header *h,
                                   uint64_t len, const unsigned char *run,
                                   layout_t *l)
{
    return h->magic == SLOTMEM_SHM_MAGIC && h->version == SLOTMEM_SHM_VERSION
           && memcmp(h->run, run, sizeof(h->run)) == 0
           && h->item_num <= UINT32_MAX && h->item_size <= ~(size_t)0
           && layout_make(l, (size_t)h->item_size, (unsigned int)h->item_num)
                  == 0
           && l->slots_off == h->slots_offset && l->total == h->total_size
           && l->total == len;
}

#endif /* SLOTMEM_LAYOUT_H */
