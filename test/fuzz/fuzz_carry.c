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
 * libFuzzer: whatever children left in a segment's words, the root parent
 * carries it over, after a kill or at a restart, and stores it.
 *
 * The input chooses how many slots there were and are now, and every word of
 * the old segment's table, locks and torn marks, and what its slots hold:
 *
 *     byte 0   slots of the old segment, by a table
 *     byte 1   slots of the fresh one, likewise
 *     byte 2   bits 0 to 3: the type; 4 and 5: what all words begin with
 *              (zero, all ones, a held lock, the next 8 bytes); 6: every third
 *              slot was the configuration's
 *     rest     of 9 bytes each: which word (2 bytes), and 7 bytes of it, or,
 *              with the top bit of the first set, of which slot the content
 *
 * Then an oracle, written from include/ and not from the module, says of each
 * slot of the fresh segment whether it must be in use, what it holds, and
 * whether it must be marked as torn.  AddressSanitizer watches both segments'
 * ends; time is made up.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "apr.h"
#include "apr_time.h"
#include "httpd.h"
#include "http_config.h"
#include "http_log.h"

static apr_time_t standin_clock;

static apr_time_t standin_time_now(void)
{
    return standin_clock++;
}

static int standin_gettime(clockid_t which, struct timespec *ts)
{
    (void)which;
    ts->tv_sec = (time_t)(standin_clock++ / 1000000);
    ts->tv_nsec = (long)(standin_clock % 1000000) * 1000;
    return 0;
}

static void standin_sleep(apr_interval_time_t t)
{
    standin_clock += t;
}

static int standin_yield(void)
{
    return 0;
}

/* Nobody may be signalled, and a lock's owner lives or not by its number. */
static int standin_kill(pid_t pid, int sig)
{
    if (sig != 0) {
        abort();
    }
    errno = ESRCH;
    return pid % 2 ? -1 : 0;
}

/* What runs past memory is not for guarded() to catch here. */
static int standin_sigaction(int sig, const struct sigaction *act,
                             struct sigaction *old)
{
    (void)sig, (void)act, (void)old;
    return 0;
}

#define apr_time_now       standin_time_now
#define apr_sleep          standin_sleep
#define clock_gettime      standin_gettime
#define sched_yield        standin_yield
#define kill               standin_kill
#define sigaction(s, a, o) standin_sigaction(s, a, o)

/* Nothing is caught here, and to save the mask of signals is a system call. */
#include <setjmp.h>
#undef sigsetjmp
#define sigsetjmp(env, mask) __sigsetjmp(env, 0)

#include "mod_slotmem_shm.c"

#undef sigaction
#undef kill

#include "standin_httpd.h"

/* ------------------------------------------------------------------------
 * The segments: made once, in memory whose ends are watched
 */

#define SIZE 24u /* bytes in a slot */

static const unsigned int nums[] = {
    0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 63, 64, 65, 66, 70, 99, 128, 129, 200, 4097
};
#define NUMS   (sizeof(nums) / sizeof(nums[0]))
#define SMALL  10u /* of them, which are fast */
#define MEDIUM (NUMS - 1)

/* Large ones seldom.  By all of the input (the sum of its bytes), or what is
 * found with a large one would be tried again and again with it. */
static unsigned int nums_index(uint64_t byte, unsigned int sum)
{
    return (unsigned int)(byte
                          % (sum % 256 == 0 ? NUMS
                             : sum % 8 == 0 ? MEDIUM
                                            : SMALL));
}

static ap_slotmem_instance_t old_segments[NUMS], fresh_segments[NUMS];

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "does not hold: %s\n", what);
        abort();
    }
}

static void segment_prepare(ap_slotmem_instance_t *s, unsigned int num)
{
    s->name = "fuzz";
    check(layout_make(&s->layout, SIZE, num) == APR_SUCCESS, "a layout");
    s->memory.base = aligned_alloc(SLOTMEM_SHM_ALIGN, s->layout.total);
    segment_lay(s);
}

/* ------------------------------------------------------------------------
 * The input
 */

typedef struct {
    const uint8_t *at;
    size_t left;
} input_t;

static uint64_t take(input_t *in, size_t bytes)
{
    uint64_t value = 0;

    bytes = bytes < in->left ? bytes : in->left;
    memcpy(&value, in->at, bytes);
    in->at += bytes;
    in->left -= bytes;
    return value;
}

static void words_begin(input_t *in, ap_slotmem_instance_t *s, unsigned int how)
{
    const size_t len = s->layout.slots_off - sizeof(*s->header);
    uint64_t *word = (uint64_t *)(void *)(s->header + 1);
    const uint64_t held = (uint64_t)4242 << 32 | 1;
    const uint64_t with[] = { 0, ~(uint64_t)0, held,
                              how == 3 ? take(in, 8) : 0 };
    size_t i;

    memset(s->header, 0, s->layout.total);
    for (i = 0; with[how] && i < len / sizeof(*word); i++) {
        word[i] = with[how];
    }
}

static void words_change(input_t *in, ap_slotmem_instance_t *s)
{
    const size_t words = (s->layout.slots_off - sizeof(*s->header)) / 8;
    uint64_t *word = (uint64_t *)(void *)(s->header + 1);

    while (in->left) {
        unsigned int which = (unsigned int)take(in, 2);
        uint64_t value = take(in, 7);

        if (!words) {
            return;
        }
        if (!(which & 0x8000)) {
            /* The top byte is the pid's in a held word: a little of it. */
            word[which % words] = value | (value & 3) << 62;
        }
        else {
            char *slot =
                s->slots + (which & 0x7fff) % s->layout.item_num * SIZE;

            memcpy(slot, &value, 7);
            slot[SIZE - 1] = (char)value;
        }
    }
}

/* ------------------------------------------------------------------------
 * The oracle
 */

static int old_used(const ap_slotmem_instance_t *s, unsigned int id)
{
    const uint64_t *leaf = (const uint64_t *)(const void *)(s->header + 1);

    return (int)(leaf[id / 64] >> (id % 64) & 1);
}

static int old_is_zero(const ap_slotmem_instance_t *s, unsigned int id)
{
    static const char zero[SIZE];

    return memcmp(s->slots + id * SIZE, zero, SIZE) == 0;
}

/* How much of the slot may be half of one write and half of another?
 * slotmem_locks.h: a pair of words a stripe, a torn bit a slot, and how far
 * the torn slots of a stripe reach. */
static uint64_t old_torn(const ap_slotmem_instance_t *s, unsigned int id)
{
    const unsigned int num = s->layout.item_num;
    const unsigned int most = SLOTMEM_STRIPES_MAX; /* run.sh: a few */
    const unsigned int stripes = num < most ? num : most, stripe = id % most;
    const char *at = (const char *)s->header + s->layout.locks_off;
    const uint64_t *lock = (const uint64_t *)(const void *)at;
    const uint64_t *torn = lock + (2 * (size_t)stripes + 7) / 8 * 8;
    const uint64_t *reach = torn + ((num + 63) / 64 + 7) / 8 * 8;
    const uint64_t word = lock[2 * stripe], writing = lock[2 * stripe + 1];
    const uint64_t first = writing >> 32, bytes = writing & 0xffffffff;
    uint64_t far = 0;

    if ((word & 1) && id >= first && (id - first) * (uint64_t)SIZE < bytes) {
        far = bytes - (id - first) * (uint64_t)SIZE;
    }
    if ((word & 2) && (torn[id / 64] >> (id % 64) & 1)) {
        far = reach[stripe] == 0    ? SIZE
              : reach[stripe] > far ? reach[stripe]
                                    : far;
    }
    return far < SIZE ? far : SIZE;
}

/* Does the old segment hold something that has no place in `num` slots? */
static int old_is_cut(const ap_slotmem_instance_t *s, unsigned int num)
{
    /* What the configuration had, it may look for: see slotmem_search.h. */
    const int kept =
        (s->type & 9) == 9 && s->claims && s->layout.item_num > 1 && num > 0;
    unsigned int id;

    for (id = num; id < s->layout.item_num; id++) {
        if ((!kept && !old_is_zero(s, id))
            || (!(s->type & AP_SLOTMEM_TYPE_CLEARINUSE) && old_used(s, id))) {
            return 1;
        }
    }
    return 0;
}

static void check_slot(const ap_slotmem_instance_t *s,
                       const ap_slotmem_instance_t *old, unsigned int id)
{
    const int was = id < old->layout.item_num;
    const char *slot = s->slots + id * SIZE;
    const int used =
        was && !(s->type & AP_SLOTMEM_TYPE_CLEARINUSE) && old_used(old, id);
    const uint64_t torn = slotmem_locks_torn(&s->locks, id);
    const uint64_t old_may = was ? old_torn(old, id) : 0;

    check(slotmem_table_used(&s->table, id) == used,
          "a slot is in use as it was");
    check(was ? memcmp(slot, old->slots + id * SIZE, SIZE) == 0
              : slotmem_all_zero(slot, SIZE),
          "a slot holds what it held");
    check((torn != 0) == (old_may != 0),
          "a slot that may be torn is marked, and no other");
    check(torn >= old_may, "and as far as it may be");
}

/* Nobody holds a lock of it, and its hints hide nothing: each free slot can be
 * had once, the lowest first, and those that are torn can be healed. */
static void check_usable(ap_slotmem_instance_t *s)
{
    static unsigned char bytes[SIZE];
    unsigned int left = slotmem_num_free_slots(s), id, last = 0, i;

    for (i = 0; i < s->layout.item_num; i++) {
        const apr_status_t rv = slotmem_get(s, i, bytes, SIZE);

        check(rv == APR_SUCCESS || rv == APR_EINCOMPLETE || rv == APR_NOTFOUND,
              "nobody holds a lock of a fresh segment");
        if (rv == APR_EINCOMPLETE) {
            check(slotmem_put(s, i, bytes, SIZE) == APR_SUCCESS
                      && slotmem_get(s, i, bytes, SIZE) == APR_SUCCESS,
                  "a torn slot can be healed");
        }
    }
    left = slotmem_num_free_slots(s);
    for (i = 0; i < left; i++) {
        check(slotmem_table_grab(&s->table, &id) && (i == 0 || id > last)
                  && id < s->layout.item_num,
              "free slots are had in ascending order");
        last = id;
    }
    check(!slotmem_table_grab(&s->table, &id), "and no more than there are");
}

static void emit(const ap_slotmem_instance_t *s)
{
    static unsigned char buffers[2 * SINK_SIZE];
    unsigned char *tail;
    apr_size_t len = 0;
    image_t i;
    sink_t k;

    memset(&k, 0, sizeof(k));
    k.buffer = buffers;
    k.other = buffers + SINK_SIZE;
    k.patience = SLOTMEM_SNAPSHOT_TRIES;
    check(segment_image(&i, s, &k) == APR_SUCCESS, "the table is read");
    check(image_free_slots(&i) <= s->layout.item_num,
          "no more used than there are");
    check(image_emit(&i, SINK_HASH, NULL) == APR_SUCCESS, "an image is made");
    tail = image_tail(&i, &len);
    check(tail && len >= 32, "and its end");
    free(tail);
    image_end(&i);
}

/* Ends the search for what a cleared table no longer shows. */
static void settle(ap_slotmem_instance_t *s)
{
    if (s->search) {
        (void)slotmem_search_end(s->search);
        s->search = NULL;
    }
    if (s->claims) {
        memset(s->claims, 0,
               slotmem_words_for(s->layout.item_num) * sizeof(*s->claims));
    }
}

/* ------------------------------------------------------------------------
 */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    size_t i;

    (void)argc, (void)argv;
    apr_initialize();
    check(registry_open() == APR_SUCCESS, "a registry");
    self.role = ROLE_CHILD; /* no consumer is configuring */
    retained = calloc(1, sizeof(*retained));
    for (i = 0; i < NUMS; i++) {
        segment_prepare(&old_segments[i], nums[i]);
        segment_prepare(&fresh_segments[i], nums[i]);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static apr_uint64_t claims[4200 / 64 + 1];
    static char before[1 << 18];
    input_t in = { data, size };
    ap_slotmem_instance_t *old, *s;
    unsigned int id, how, sum = 0;

    for (id = 0; id < size; id++) {
        sum += data[id];
    }
    old = &old_segments[nums_index(take(&in, 1), sum)];
    s = &fresh_segments[nums_index(take(&in, 1), sum)];
    how = (unsigned int)take(&in, 1);
    standin_clock = apr_time_from_sec(1700000000);
    old->type = s->type = how & 15;
    memset(claims, 0x92, sizeof(claims)); /* not slot 0 */
    old->claims = how & 64 ? claims : NULL;
    memset(s->header, 0, s->layout.total);
    words_begin(&in, old, how >> 4 & 3);
    words_change(&in, old);
    check(old->layout.total <= sizeof(before), "room");
    memcpy(before, old->header, old->layout.total);

    emit(old);
    if (inherit_memory(s, old, ORIGIN_MEMORY)) {
        check(!old_is_cut(old, s->layout.item_num), "nothing was cut off");
        for (id = 0; id < s->layout.item_num; id++) {
            check_slot(s, old, id);
        }
        settle(s);
    }
    else {
        check(old_is_cut(old, s->layout.item_num),
              "nothing is lost needlessly");
        check(slotmem_all_zero(s->header + 1,
                               s->layout.total - sizeof(*s->header)),
              "nothing is left of what was refused");
    }
    check(memcmp(before, old->header, old->layout.total) == 0,
          "the old segment stays as it is, for another try");
    emit(s);
    check_usable(s);
    return 0;
}
