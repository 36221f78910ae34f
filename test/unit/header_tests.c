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

/* The marker's text, the helper's pace, the guard, memory and images: headers
 * that know no server.  Part of unit.c. */

static marker_line_t marker_found[8];
static char marker_names[8][300];
static uint64_t marker_sets[8][4];
static unsigned int marker_count;

static void marker_note(void *ctx, const marker_line_t *line)
{
    unsigned int at = marker_count++;

    assert_ptr_equal(ctx, &marker_count);
    assert_true(at < 8);
    marker_found[at] = *line;
    snprintf(marker_names[at], sizeof(marker_names[at]), "%s", line->name);
    memset(marker_sets[at], 0, sizeof(marker_sets[at]));
    if (!marker_claims(line->claims, 130, marker_sets[at])) {
        memset(marker_sets[at], 0, sizeof(marker_sets[at]));
    }
}

/* Parses a copy of no more room than the text takes. */
static unsigned int marker_read_text(const char *text)
{
    char *copy = strdup(text);

    marker_count = 0;
    marker_parse(copy, marker_note, &marker_count);
    free(copy);
    return marker_count;
}

static void test_marker_reads_as_it_was_written(void **state)
{
    static const unsigned char runs[2][SLOTMEM_SHM_RUN_LEN] = {
        "0123456789abcde", { 0xff, 0, 0x7f, 0x80, 10 }
    };
    marker_line_t lines[3] = {
        { { 0 }, 0, 0, 5, 64, 130, "plain", NULL },
        { { 0 }, UINT_MAX, 1, 255, ~(size_t)0, UINT_MAX, NULL, NULL },
        { { 0 }, 16, 0, 1, 0, 1, "/a b\n\x01\xff", NULL },
    };
    uint64_t set[4] = { 0 };
    char every[256];
    marker_text_t t = { 0 };
    unsigned int i;

    (void)state;
    for (i = 0; i < 255; i++) {
        every[i] = (char)(i + 1);
    }
    every[255] = '\0';
    lines[1].name = every;
    for (i = 0; i < 130; i++) {
        slotmem_set_put(set, i, i < 3 || i == 5 || i >= 127);
    }
    marker_text_add(&t, MARKER_TITLE);
    marker_text_run(&t, runs[0], 77, 0x1234);
    marker_text_segment(&t, &lines[0], set);
    assert_non_null(strstr(t.bytes, " 0-2,5,127-129\n"));
    marker_text_segment(&t, &lines[1], NULL);
    marker_text_run(&t, runs[1], 1, 0);
    marker_text_segment(&t, &lines[2], NULL);

    assert_int_equal(marker_read_text(t.bytes), 3);
    for (i = 0; i < 3; i++) {
        assert_memory_equal(marker_found[i].run, runs[i / 2],
                            SLOTMEM_SHM_RUN_LEN);
        assert_string_equal(marker_names[i], lines[i].name);
        assert_int_equal(marker_found[i].generation, lines[i].generation);
        assert_int_equal(marker_found[i].by_run, lines[i].by_run);
        assert_int_equal(marker_found[i].type, lines[i].type);
        assert_true(marker_found[i].item_size == lines[i].item_size);
        assert_int_equal(marker_found[i].item_num, lines[i].item_num);
        assert_true(memcmp(marker_sets[i], set, sizeof(set)) == 0
                    || marker_sets[i][0] == 0);
    }
    assert_memory_equal(marker_sets[0], set, sizeof(set));

    /* Cut anywhere, it holds the lines that are whole and no other. */
    for (i = (unsigned int)t.len; i-- > 0;) {
        unsigned int whole = 0;
        const char *at = t.bytes;

        t.bytes[i] = '\0';
        while ((at = strstr(at, "segment ")) && strchr(at, '\n')) {
            whole++;
            at++;
        }
        assert_int_equal(marker_read_text(t.bytes), whole);
    }
    free(t.bytes);
}

#define RUN "run 000102030405060708090a0b0c0d0e0f 1 0\n"

static void test_marker_lines_that_are_none(void **state)
{
    static const char *const none[] = {
        "",
        "\n",
        "slotmem-shm 1\n" RUN "segment 0 0 1 1 1 61 -\n",
        MARKER_TITLE "segment 0 0 1 1 1 61 -\n", /* of no run */
        MARKER_TITLE "run 00 1 0\nsegment 0 0 1 1 1 61 -\n",
        MARKER_TITLE "run\nsegment 0 0 1 1 1 61 -\n",
        MARKER_TITLE RUN "run 0001020304050607 1 0\nsegment 0 0 1 1 1 61 -\n",
        MARKER_TITLE RUN "run 000102030405060708090a0b0c0d0e0g 1 0\n"
                         "segment 0 0 1 1 1 61 -\n",
        MARKER_TITLE RUN "segment 0 0 1 1 1 61\n", /* a word is missing */
        MARKER_TITLE RUN "segment 0 0 1 1 1 61 ",  /* the end is missing */
        MARKER_TITLE RUN "segment  \n",
        MARKER_TITLE RUN "segment 0 0 1 1 1 6 -\n", /* half a byte */
        MARKER_TITLE RUN "segment 0 0 1 1 1 610 -\n",
        MARKER_TITLE RUN "segment 0 0 1 1 1 6A -\n",
        MARKER_TITLE RUN "segment 0 0 1 1 1 610061 -\n", /* a zero in it */
        MARKER_TITLE RUN "segment 0 0 1 1 1 00 -\n",
        MARKER_TITLE RUN "segments 0 0 1 1 1 61 -\n",
    };
    size_t i;

    (void)state;
    assert_int_equal(
        marker_read_text(MARKER_TITLE RUN "segment 0 0 1 1 1 61 -\n"), 1);
    assert_int_equal(marker_read_text(MARKER_TITLE RUN
                                      "else\n segment 0 0 1 1 1 61 -\n"
                                      "segment 0 0 1 1 1 61 - more\n"),
                     1);
    for (i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
        assert_int_equal(marker_read_text(none[i]), 0);
    }
}

static void test_claims_that_are_none(void **state)
{
    static const char *const none[] = { "",
                                        "-",
                                        "x",
                                        ",1",
                                        "64",
                                        "3-1",
                                        "0-64",
                                        "1,64",
                                        "18446744073709551616",
                                        "0-18446744073709551616",
                                        "-1" };
    uint64_t guarded_set[3] = { 0, 0, 0x5a5a };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
        assert_int_equal(marker_claims(none[i], 64, guarded_set), 0);
        assert_true(guarded_set[1] == 0 && guarded_set[2] == 0x5a5a);
    }
    guarded_set[0] = 0;
    assert_int_equal(marker_claims("0-1,63", 64, guarded_set), 1);
    assert_true(guarded_set[0] == (UINT64_C(3) | UINT64_C(1) << 63));
}

static void test_pace_of_checkpoints(void **state)
{
    const uint64_t second = PACE_SECOND;
    pace_t pace = { .paid = 1000 * second };
    uint64_t now = pace.paid, written = 0, pause, i;

    (void)state;
    /* Quick looks: a second, and never less. */
    assert_true(pace_pause(&pace, 0, 0, now) == second);
    assert_true(pace_pause(&pace, 1000, 0, now) == second);
    /* One slow look changes nothing; two do: 50 times the shorter. */
    assert_true(pace_pause(&pace, 10 * second, 0, now) == second);
    assert_true(pace_pause(&pace, second / 10, 0, now) == 5 * second);
    assert_true(pace_pause(&pace, second, 0, now) == 5 * second);
    assert_true(pace_pause(&pace, second, 0, now) == 50 * second);
    /* Never later than five minutes. */
    assert_true(pace_pause(&pace, 3600 * second, 0, now) == 50 * second);
    assert_true(pace_pause(&pace, 3600 * second, 0, now) == 300 * second);
    /* What may be written at once is written at once. */
    (void)pace_pause(&pace, 0, 0, now);
    assert_true(pace_pause(&pace, 0, 300 * 65536, now) == second);
    /* Beyond that, 64 KiB a second, over any time. */
    assert_true(pace_pause(&pace, 0, 20 * 65536, now) == 20 * second);
    for (i = 0; i < 1000; i++) {
        pause = pace_pause(&pace, 0, 1000000, now);
        written += 1000000;
        now += pause;
    }
    now -= 1000 * second;
    assert_true(written / 65536 <= now / second + 320);
    assert_true(written / 65536 + 320 >= now / second);
}

/* ------------------------------------------------------------------------
 * Memory that is not there
 */

static _Atomic int guard_inside, guard_caught;
static char *guard_hole;

static apr_status_t guard_touch(void *ctx)
{
    return ctx ? *(volatile char *)guard_hole : APR_SUCCESS;
}

static apr_status_t guard_hold(void *ctx)
{
    (void)ctx;
    for (guard_inside = 1; guard_inside;) {
        apr_sleep(1000);
    }
    return APR_SUCCESS;
}

static void guard_count(int signum)
{
    (void)signum;
    guard_caught++;
}

static void *guard_other(void *ctx)
{
    while (!guard_inside) {
        apr_sleep(1000);
    }
    (void)guard_touch(ctx);
    return NULL;
}

static void guard_with_other(void *ctx)
{
    pthread_t id;

    pthread_create(&id, NULL, guard_other, ctx);
    (void)guarded(guard_hold, NULL);
}

/* Who asked gets an error, and the handlers of before are back, whether or not
 * anything was wrong: a crash of the parent is httpd's to tell. */
static void test_guard(void **state)
{
    static const int signals[] = { SIGBUS, SIGSEGV };
    struct sigaction mine, old[2], now;
    int i, turn, status;
    pid_t pid;

    (void)state;
    guard_hole =
        mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(guard_hole, MAP_FAILED);
    memset(&mine, 0, sizeof(mine));
    mine.sa_handler = guard_count;
    for (i = 0; i < 2; i++) {
        sigaction(signals[i], &mine, &old[i]);
    }
    for (turn = 0; turn < 4; turn++) {
        assert_int_equal(guarded(guard_touch, turn % 2 ? guard_hole : NULL),
                         turn % 2 ? APR_ENOMEM : APR_SUCCESS);
        for (i = 0; i < 2; i++) {
            sigaction(signals[i], NULL, &now);
            assert_ptr_equal(now.sa_handler, guard_count);
        }
    }
    assert_int_equal(guard_caught, 0);

    /* Another thread's fault goes where it would have gone. */
    for (i = 0; i < 2; i++) {
        signal(signals[i], SIG_DFL);
    }
    pid = child_start(guard_with_other, guard_hole);
    status = child_reap(pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSEGV);
    for (i = 0; i < 2; i++) {
        sigaction(signals[i], &old[i], NULL);
    }
    munmap(guard_hole, 4096);
}

#define HALF_KEY "/tmp/slotmem-unit-half"

static void half_mapped(void *data)
{
    int *result = data;
    const struct rlimit none = { 0, RLIM_INFINITY };
    const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
    memory_t m;

    setrlimit(RLIMIT_AS, &none);
    result[0] = memory_make_named(&m, 65536, HALF_KEY);
    setrlimit(RLIMIT_AS, &all);
    result[1] = memory_make_named(&m, 65536, HALF_KEY);
}

/* Memory that can be made and not mapped leaves the name free. */
static void test_memory_that_cannot_be_mapped(void **state)
{
    int *result = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    (void)state;
    assert_ptr_not_equal(result, MAP_FAILED);
    assert_int_equal(child_reap(child_start(half_mapped, result)), 0);
    object_remove(HALF_KEY);
    assert_int_equal(result[0], ENOMEM);
    assert_int_equal(result[1], 0);
    munmap(result, 4096);
}

/* Memory without a name is had when it is made, where the system can tell: a
 * machine that has none says so then, and not by a signal at a write. */
static void test_memory_is_had_when_it_is_made(void **state)
{
#ifdef MADV_POPULATE_WRITE
    const apr_size_t page = (apr_size_t)sysconf(_SC_PAGESIZE), len = 64 * page;
    unsigned char there[80];
    apr_size_t i, pages;
    apr_pool_t *p;
    memory_t m;
    char *start;

    apr_pool_create(&p, pool);
    assert_int_equal(memory_make_anonymous(&m, len, p), APR_SUCCESS);
    assert_true((apr_uintptr_t)m.base % SLOTMEM_SHM_ALIGN == 0);
    start = (char *)((apr_uintptr_t)m.base & ~(page - 1));
    if (madvise(start, page, MADV_POPULATE_WRITE) == 0) {
        pages = (apr_size_t)((char *)m.base + len - start + page - 1) / page;
        assert_int_equal(mincore(start, pages * page, there), 0);
        for (i = 0; i < pages; i++) {
            assert_true(there[i] & 1);
        }
    }
    memory_unmap(&m);
    assert_null(m.base);
    apr_pool_destroy(p);
#endif
    (void)state;
}

/* ------------------------------------------------------------------------
 * The image of a segment
 */

/* Children change the table while it is stored: the file has the count, the
 * table and the kinds of one moment. */
static void test_image_of_one_moment(void **state)
{
    static unsigned char buffers[2 * SINK_SIZE];
    ap_slotmem_instance_t *s = segment_new(4, 130, AP_SLOTMEM_TYPE_PERSIST);
    unsigned char file[8 + 130 * 5 + 32], stamp[APR_MD5_DIGESTSIZE],
        again[APR_MD5_DIGESTSIZE];
    char name[] = "/tmp/slotmem-unit-XXXXXX";
    apr_off_t start = 0;
    apr_size_t len = sizeof(file);
    unsigned int id, free_slots;
    apr_file_t *f;
    image_t image;
    sink_t sink;

    (void)state;
    memset(&sink, 0, sizeof(sink));
    sink.buffer = buffers;
    sink.other = buffers + SINK_SIZE;
    assert_int_equal(apr_file_mktemp(&f, name, 0, pool), APR_SUCCESS);
    for (id = 0; id < 100; id++) {
        slotmem_table_fgrab(&s->table, id);
    }
    assert_int_equal(segment_image(&image, s, &sink), APR_SUCCESS);
    for (id = 0; id < 130; id++) {
        if (id < 90) {
            slotmem_table_release(&s->table, id);
        }
        else {
            slotmem_table_fgrab(&s->table, id);
        }
    }
    assert_int_equal(image_write(&image, f, stamp), APR_SUCCESS);
    assert_true(image_bears(&image, stamp));
    apr_file_seek(f, APR_SET, &start);
    assert_int_equal(apr_file_read_full(f, file, sizeof(file), &len),
                     APR_SUCCESS);
    assert_int_equal(len, slotmem_shm_file_size(4, 130));
    memcpy(&free_slots, file, sizeof(free_slots));
    assert_int_equal(free_slots, 30);
    for (id = 0; id < 130; id++) {
        assert_int_equal(file[8 + 130 * 4 + id], id < 100);
    }

    /* It is in that file; not with another length, nor another byte. */
    apr_file_seek(f, APR_SET, &start);
    assert_true(image_is_in(&image, f, sizeof(file), again));
    assert_memory_equal(again, stamp, sizeof(stamp));
    apr_file_seek(f, APR_SET, &start);
    assert_false(image_is_in(&image, f, sizeof(file) + 1, again));
    s->slots[129 * 4 + 3] = 1;
    start = 0;
    apr_file_seek(f, APR_SET, &start);
    assert_false(image_is_in(&image, f, sizeof(file), again));
    assert_false(image_bears(&image, stamp));
    image_end(&image);

    /* And the table of now is another image. */
    s->slots[129 * 4 + 3] = 0;
    assert_int_equal(segment_image(&image, s, &sink), APR_SUCCESS);
    assert_false(image_bears(&image, stamp));
    start = 0;
    apr_file_seek(f, APR_SET, &start);
    assert_false(image_is_in(&image, f, sizeof(file), again));
    image_end(&image);
    apr_file_close(f);
    unlink(name);
    segment_free(s);
}

/* Its maker may be killed while it restores: what lies there then must not be
 * taken for a segment, however much of it is filled. */
static void test_segment_counts_when_it_is_published(void **state)
{
    static const unsigned char run[SLOTMEM_SHM_RUN_LEN] = "the run",
                               other[SLOTMEM_SHM_RUN_LEN] = "another",
                               directory[SLOTMEM_SHM_RUN_LEN] = "directory";
    ap_slotmem_instance_t *s = segment_new(64, 10, PREGRAB);
    layout_t found;

    (void)state;
    segment_format(s, 0, run, directory);
    assert_false(layout_of_header(s->header, s->layout.total, run, &found));
    segment_publish(s);
    assert_true(layout_of_header(s->header, s->layout.total, run, &found));
    assert_int_equal(found.item_size, 64);
    assert_int_equal(found.item_num, 10);
    assert_false(layout_of_header(s->header, s->layout.total, other, &found));
    assert_false(layout_of_header(s->header, s->layout.total + 1, run, &found));
    segment_free(s);
}

#define HEADER_TESTS                                                           \
    cmocka_unit_test(test_segment_counts_when_it_is_published),                \
        cmocka_unit_test(test_marker_reads_as_it_was_written),                 \
        cmocka_unit_test(test_marker_lines_that_are_none),                     \
        cmocka_unit_test(test_claims_that_are_none),                           \
        cmocka_unit_test(test_pace_of_checkpoints),                            \
        cmocka_unit_test(test_guard),                                          \
        cmocka_unit_test(test_memory_that_cannot_be_mapped),                   \
        cmocka_unit_test(test_memory_is_had_when_it_is_made),                  \
        cmocka_unit_test(test_image_of_one_moment)
