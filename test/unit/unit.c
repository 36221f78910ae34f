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
 * The module outside httpd: its static functions are called directly, hence
 * one translation unit.  run.sh builds it plainly, for ThreadSanitizer and
 * for AddressSanitizer with UBSan.
 *
 *     unit [PATTERN]      runs the tests whose names match (cmocka's filter)
 *
 * UNIT_MSEC says how long each hammer runs (150), UNIT_KILLS how many
 * processes each kind of kill costs (300).  Neither decides a test.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "mod_slotmem_shm.c"

#include "standin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PREGRAB AP_SLOTMEM_TYPE_PREGRAB
#define LIMIT   apr_time_from_sec(120) /* far beyond any wait that is bounded */

static apr_pool_t *pool;
static apr_interval_time_t hammer_time = 150000;
static unsigned int kills = 300;

/* ------------------------------------------------------------------------
 * Segments
 */

/* A segment of zeros in memory that children share. */
static ap_slotmem_instance_t *segment_new(apr_size_t size, unsigned int num,
                                          ap_slotmem_type_t type)
{
    ap_slotmem_instance_t *s = calloc(1, sizeof(*s));
    void *memory;

    assert_non_null(s);
    assert_int_equal(layout_make(&s->layout, size, num), APR_SUCCESS);
    s->type = type;
    s->name = "unit";
    memory = mmap(NULL, s->layout.total, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    s->memory.base = memory;
    segment_lay(s);
    return s;
}

static void segment_free(ap_slotmem_instance_t *s)
{
    munmap(s->header, s->layout.total);
    free(s);
}

/* What every level says must follow from the leaves: no hint of "full" hides
 * a word that is not. */
static void assert_hints_true(const ap_slotmem_instance_t *s)
{
    unsigned int k;
    apr_size_t w;

    for (k = 0; k + 1 < s->table.levels; k++) {
        for (w = 0; w < s->table.words[k]; w++) {
            if (s->table.level[k + 1][w / 64] & slotmem_bit(w)) {
                assert_true(slotmem_table_word(&s->table, k, w)
                            == SLOTMEM_WORD_FULL);
            }
        }
    }
}

/* Grabs everything: each slot once, in order, and then no more. */
static void assert_all_grabbable(ap_slotmem_instance_t *s)
{
    unsigned int id, i;

    assert_int_equal(slotmem_num_free_slots(s), s->layout.item_num);
    for (i = 0; i < s->layout.item_num; i++) {
        assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
        assert_int_equal(id, i);
    }
    id = 77;
    assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
    assert_int_equal(id, 77);
    assert_int_equal(slotmem_num_free_slots(s), 0);
}

/* ------------------------------------------------------------------------
 * Threads and processes
 */

static _Atomic int hammer_over;
static _Atomic apr_uint64_t *wrong_anywhere; /* shared with children */

typedef struct {
    ap_slotmem_instance_t *s;
    unsigned int number; /* of the thread */
    apr_uint64_t random;
    unsigned int first, count; /* slots */
    apr_size_t len;
    /* counted */
    apr_uint64_t done, full, refused, timeup, wrong;
} hammer_t;

static void wrong_if(hammer_t *h, int wrong)
{
    if (wrong) {
        h->wrong++;
        ++*wrong_anywhere;
    }
}

static apr_uint64_t random_next(apr_uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void random_start(hammer_t *h)
{
    h->random = 0x9e3779b97f4a7c15u * (apr_uint64_t)(getpid() + 1)
                + 0xbf58476d1ce4e5b9u * (h->number + 1);
    h->random |= 1;
}

#define THREADS 4

/* Runs even(h) and odd(h) in THREADS threads for a while; their counts are
 * added up in *sum, which also says what they begin with. */
static void hammer_run(ap_slotmem_instance_t *s, void *(*even)(void *),
                       void *(*odd)(void *), hammer_t *sum,
                       apr_interval_time_t duration)
{
    hammer_t h[THREADS];
    pthread_t id[THREADS];
    unsigned int i;

    hammer_over = 0;
    for (i = 0; i < THREADS; i++) {
        h[i] = *sum;
        h[i].s = s;
        h[i].number = i;
        random_start(&h[i]);
        assert_int_equal(
            pthread_create(&id[i], NULL, i & 1 ? odd : even, &h[i]), 0);
    }
    apr_sleep(duration);
    hammer_over = 1;
    for (i = 0; i < THREADS; i++) {
        pthread_join(id[i], NULL);
        assert_true(h[i].done + h[i].full + h[i].refused > 0);
        sum->done += h[i].done;
        sum->full += h[i].full;
        sum->refused += h[i].refused;
        sum->timeup += h[i].timeup;
        sum->wrong += h[i].wrong;
    }
}

/* A child that runs fn(data) as a child of httpd would, and ends. */
static pid_t child_start(void (*fn)(void *), void *data)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        process_note_self();
        fn(data);
        _exit(0);
    }
    return pid;
}

static int child_reap(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0) {
        assert_int_equal(errno, EINTR);
    }
    return status;
}

static void child_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    child_reap(pid);
}

/* Ends a wait for what a child does. */
static void wait_for_state(pid_t pid, char state)
{
    apr_time_t end = apr_time_now() + LIMIT;
    char path[64], text[512], *at;

    apr_snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    for (;;) {
        FILE *file = fopen(path, "r");
        size_t len = file ? fread(text, 1, sizeof(text) - 1, file) : 0;

        if (file) {
            fclose(file);
        }
        text[len] = '\0';
        at = strrchr(text, ')');
        if (at && at[2] == state) {
            return;
        }
        assert_true(apr_time_now() < end);
        apr_sleep(1000);
    }
}

#include "layout_tests.c"
#include "table_tests.c"
#include "lock_tests.c"
#include "mutex_tests.c"
#include "header_tests.c"
#include "search_tests.c"

static int unit_start(void **state)
{
    (void)state;
    apr_initialize();
    apr_pool_create(&pool, NULL);
    ap_pglobal = pool;
    process_note_self();
    wrong_anywhere = mmap(NULL, sizeof(*wrong_anywhere), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(wrong_anywhere, MAP_FAILED);
    if (getenv("UNIT_MSEC")) {
        hammer_time = apr_time_from_msec(atoi(getenv("UNIT_MSEC")));
    }
    if (getenv("UNIT_KILLS")) {
        kills = (unsigned int)atoi(getenv("UNIT_KILLS"));
    }
    return 0;
}

static int unit_end(void **state)
{
    (void)state;
    apr_pool_destroy(pool);
    apr_terminate();
    return 0;
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        LAYOUT_TESTS, TABLE_TESTS,  LOCK_TESTS,
        MUTEX_TESTS,  HEADER_TESTS, SEARCH_TESTS,
    };

    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, unit_start, unit_end);
}
