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

/*
 * libFuzzer: whatever a stored file holds, it is believed only if it is whole.
 *
 *     byte 0   the geometry of the segment that is to be filled
 *     byte 1   bit 0: the rest is the file, or a recipe for one (below)
 *              bit 1: the segment's table is cleared (CLEARINUSE), so the file
 *              may end in a trailer that is read
 *              bits 2 and 3: somebody cuts so many bytes off the file, after
 *              as many reads as bits 4 to 7 say
 *     rest
 *
 * A recipe: the number of slots of the image (2 bytes), the slots' bytes that
 * are repeated (1 byte says how many), the table's, likewise; whether there
 * is a trailer and its kinds; how many bytes are cut off, how many are appended,
 * and then changes, each of an offset (3 bytes) and a byte.  Every MD5 is right
 * before the changes, so that the code behind it is reached.
 *
 * What the module makes of the file is compared with an oracle, written from
 * include/mod_slotmem_shm.h and not from the module; AddressSanitizer watches
 * the segment's memory, the slack behind the slots included.  run.sh makes
 * the module's chunks of 256 bytes, so that small files have several.
 */
#include <sys/types.h>
#include <unistd.h>

/* The file is in memory: real ones would be most of the work. */
static ssize_t memory_read(int fd, void *to, size_t len, off_t off);
#define pread memory_read

#include "mod_slotmem_shm.c"

#undef pread

#include <sanitizer/asan_interface.h>
#include <stdio.h>

#include "standin_httpd.h"

#define TYPE      ((unsigned int)AP_SLOTMEM_TYPE_PERSIST)
#define FILE_MAX  8192
#define IMAGE_MAX 3000

static const struct {
    apr_size_t size;
    unsigned int num;
} geometries[] = {
    { 4, 3 },    { 1, 1 },   { 0, 5 },         { 64, 0 },
    { 200, 10 }, { 1, 130 }, { 7, 65 },        { 16, 64 },
    { 3, 420 },  { 700, 2 }, { SINK_SIZE, 1 }, { SINK_SIZE - 1, 3 },
};
#define GEOMETRIES (sizeof(geometries) / sizeof(geometries[0]))

static ap_slotmem_instance_t segments[GEOMETRIES];
static unsigned char file_bytes[FILE_MAX];
static size_t file_len, file_cut;
static unsigned int file_reads; /* left before it is cut */

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "broken: %s\n", what);
        abort();
    }
}

static void segment_prepare(ap_slotmem_instance_t *s, apr_size_t size,
                            unsigned int num)
{
    char *memory, *end;

    s->type = TYPE;
    s->name = "fuzz";
    check(layout_make(&s->layout, size, num) == APR_SUCCESS, "a layout");
    memory = aligned_alloc(SLOTMEM_SHM_ALIGN, s->layout.total);
    memset(memory, 0, s->layout.total);
    s->memory.base = memory;
    segment_lay(s);
    end = s->slots + s->layout.slots_len;
    __asan_poison_memory_region(end, (size_t)(memory + s->layout.total - end));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    size_t i;

    (void)argc;
    (void)argv;
    apr_initialize();
    check(registry_open() == APR_SUCCESS, "a registry");
    for (i = 0; i < GEOMETRIES; i++) {
        segment_prepare(&segments[i], geometries[i].size, geometries[i].num);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The file, from the input
 */

typedef struct {
    const uint8_t *at;
    size_t left;
} input_t;

static unsigned int take(input_t *in, unsigned int bytes)
{
    unsigned int value = 0;

    while (bytes-- && in->left) {
        value = value << 8 | *in->at++;
        in->left--;
    }
    return value;
}

static void fill(input_t *in, unsigned char *to, size_t len)
{
    size_t pattern = take(in, 1), i;

    pattern = pattern < in->left ? pattern : in->left;
    for (i = 0; i < len; i++) {
        to[i] = pattern ? in->at[i % pattern] : 0;
    }
    in->at += pattern;
    in->left -= pattern;
}

static void file_compose(input_t *in, apr_size_t size, unsigned int type)
{
    size_t num = take(in, 2), slots, cut, i;
    struct slotmem_shm_file_desc desc = { size, 0, type };
    unsigned char *end, *kinds;

    if (num > IMAGE_MAX / (size + 1)) {
        num = IMAGE_MAX / (size + 1);
    }
    slots = num * size;
    desc.item_num = (unsigned int)num;
    memset(file_bytes, 0, 8);
    fill(in, file_bytes + 8, slots);
    fill(in, file_bytes + 8 + slots, num);
    for (i = 0; i < num; i++) {
        file_bytes[8 + slots + i] &= 1;
    }
    end = file_bytes + 8 + slots + num;
    apr_md5(end, file_bytes, (apr_size_t)(end - file_bytes));
    memcpy(end + 16, &desc, sizeof(desc));
    file_len = (size_t)(end + 32 - file_bytes);
    if (take(in, 1) & 1) {
        kinds = end + 32;
        fill(in, kinds, num);
        for (i = 0; i < num; i++) {
            kinds[i] %= 4; /* one of them is none */
        }
        slotmem_image_trailer_end(kinds, (unsigned int)num, end);
        file_len += (size_t)slotmem_shm_trailer_size((unsigned int)num);
    }

    cut = take(in, 1);
    file_len -= cut < file_len ? cut : file_len;
    cut = take(in, 1);
    fill(in, file_bytes + file_len, cut);
    file_len += cut;
    while (in->left >= 4 && file_len) {
        unsigned int off = take(in, 3);
        file_bytes[off % file_len] = (unsigned char)take(in, 1);
    }
}

/* As pread(): what there is. */
static ssize_t memory_read(int fd, void *to, size_t len, off_t off)
{
    size_t end = file_len, left;

    (void)fd;
    if (file_reads) {
        file_reads--;
    }
    else {
        end -= file_cut;
    }
    left = (size_t)off < end ? end - (size_t)off : 0;
    left = left < len ? left : len;
    memcpy(to, file_bytes + off, left);
    return (ssize_t)left;
}

/* ------------------------------------------------------------------------
 * The oracle
 */

static uint64_t length_of(uint64_t size, uint64_t num)
{
    __uint128_t length = (__uint128_t)num * size + num + 40;

    return length > UINT64_MAX ? 0 : (uint64_t)length;
}

/* Is the MD5 before `end` that of all in front of it? */
static int is_hashed(uint64_t end)
{
    unsigned char digest[16];

    apr_md5(digest, file_bytes, (apr_size_t)end - 16);
    return memcmp(digest, file_bytes + end - 16, 16) == 0;
}

/* Is there a whole image of that geometry in the first `len` bytes? */
static int is_image(uint64_t len, uint64_t size, unsigned int num,
                    unsigned int type)
{
    struct slotmem_shm_file_desc desc;

    if (len != length_of(size, num) || len > file_len) {
        return 0;
    }
    memcpy(&desc, file_bytes + len - 16, sizeof(desc));
    return desc.item_size == size && desc.item_num == num && desc.type == type
           && is_hashed(len - 16);
}

/* Where the image ends in front of what looks like a trailer. */
static uint64_t end_of_image(void)
{
    uint64_t last[2];

    if (file_len < 48) {
        return file_len;
    }
    memcpy(last, file_bytes + file_len - 16, sizeof(last));
    return memcmp(&last[1], "slotkind", 8) == 0 && last[0] <= file_len
               ? file_len - last[0]
               : file_len;
}

/* How many slots of the file are to be believed; -1: it is not.  *cut: they
 * are whole, but do not fit. */
static long oracle(const ap_slotmem_instance_t *s, int *cut)
{
    const layout_t *l = &s->layout;
    const uint64_t length = length_of(l->item_size, l->item_num);
    const uint64_t end = end_of_image();
    struct slotmem_shm_file_desc desc = { 0, 0, 0 };
    long num = -1;
    unsigned int i;
    int bare = 1;

    *cut = 0;
    if (is_image(length, l->item_size, l->item_num, s->type)) {
        return l->item_num;
    }
    if (end >= 16) {
        memcpy(&desc, file_bytes + end - 16, sizeof(desc));
    }
    if (end >= 40 && desc.item_size == l->item_size
        && is_image(end, l->item_size, desc.item_num, s->type)) {
        num = desc.item_num;
    }
    for (i = l->item_num; num >= 0 && i < desc.item_num; i++) {
        const unsigned char *slots = file_bytes + 8;
        size_t size = l->item_size, b;

        *cut |= slots[size * desc.item_num + i] != 0;
        for (b = 0; b < size; b++) {
            *cut |= slots[i * size + b] != 0;
        }
    }
    if (num >= 0 && !*cut) {
        return num;
    }
    /* What httpd wrote before it had descriptors, and before it had MD5s. */
    for (i = 0; file_len == length - 32 && i < l->item_num; i++) {
        bare &= file_bytes[8 + l->slots_len + i] <= 1;
    }
    if ((file_len == length - 16 && is_hashed(file_len))
        || (file_len == length - 32 && bare)) {
        *cut = 0;
        return l->item_num;
    }
    return num;
}

static void check_filled(ap_slotmem_instance_t *s, unsigned int num)
{
    const unsigned char *slots = file_bytes + 8;
    const unsigned char *table = slots + s->layout.item_size * num;
    unsigned int i, used = 0, lowest = s->layout.item_num, id;
    size_t size = s->layout.item_size;

    for (i = 0; i < s->layout.item_num; i++) {
        const char *slot = s->slots + size * i;

        check(i < num ? memcmp(slot, slots + size * i, size) == 0
                      : slotmem_all_zero((const unsigned char *)slot, size),
              "a slot holds what the file holds");
        check((i < num && table[i] != 0) == slotmem_table_used(&s->table, i),
              "a slot is in use as the file says");
        used += slotmem_table_used(&s->table, i) != 0;
        if (!slotmem_table_used(&s->table, i) && lowest == s->layout.item_num) {
            lowest = i;
        }
    }
    check(slotmem_table_count(&s->table) == used, "the count of slots in use");
    check(slotmem_table_grab(&s->table, &id) == (lowest < s->layout.item_num)
              && (lowest == s->layout.item_num || id == lowest),
          "grab gives the lowest free slot");
}

static void check_empty(const ap_slotmem_instance_t *s)
{
    const unsigned char *memory = (const unsigned char *)s->header;

    check(slotmem_all_zero(memory,
                           (size_t)((const unsigned char *)s->slots - memory)
                               + s->layout.slots_len),
          "nothing of a file that is refused is left in the segment");
}

/* The table is empty, and the search for what the slots held can be ended;
 * slotmem_search.h has tests of its own. */
static void check_cleared(ap_slotmem_instance_t *s)
{
    check(slotmem_table_count(&s->table) == 0, "a cleared table is empty");
    if (s->search) {
        (void)slotmem_search_end(s->search);
        s->search = NULL;
    }
    memset(s->claims, 0,
           slotmem_words_for(s->layout.item_num) * sizeof(*s->claims));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t in = { data, size };
    ap_slotmem_instance_t *s = &segments[take(&in, 1) % GEOMETRIES];
    const unsigned int how = take(&in, 1);
    slotmem_image_source_t source = { 0, NULL, 0 };
    apr_status_t rv = APR_SUCCESS;
    enum restored result;
    long num;
    int cut;

    memset(s->header, 0, s->layout.slots_off);
    memset(s->slots, 0, s->layout.slots_len);
    s->type = how & 2 ? TYPE | AP_SLOTMEM_TYPE_CLEARINUSE
                      : TYPE | AP_SLOTMEM_TYPE_PREGRAB;
    if (how & 1) {
        file_compose(&in, s->layout.item_size, s->type);
    }
    else {
        file_len = in.left < FILE_MAX ? in.left : FILE_MAX;
        memcpy(file_bytes, in.at, file_len);
    }
    file_cut = (how >> 2 & 3) < file_len ? how >> 2 & 3 : file_len;
    file_reads = how >> 4;
    source.size = file_len;
    result = file_restore(s, &source, &rv);

    num = oracle(s, &cut);
    if (result == RESTORED) {
        check(num >= 0, "a file that is not whole is refused");
        if (claims_matter(s)) {
            check_cleared(s);
        }
        else {
            check(!cut, "what does not fit is refused");
            check_filled(s, (unsigned int)num);
        }
        return 0;
    }
    check_empty(s);
    if (!file_cut) {
        check(num < 0 || cut, "a whole file is believed");
        check(result != RESTORE_UNREADABLE, "nothing failed but the file");
        check(!cut || result == RESTORE_NOT_FIT, "what does not fit is told");
    }
    return 0;
}
