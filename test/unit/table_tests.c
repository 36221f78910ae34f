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

/* The slot table: alone, hammered by threads, after deaths, after mischief.
 * Part of unit.c. */

static const unsigned int table_sizes[] = { 1,    63,   64,   65,
                                            4095, 4096, 4097, 262145 };
#define TABLE_SIZES (sizeof(table_sizes) / sizeof(table_sizes[0]))

static void test_grab_gives_the_lowest_slot(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < TABLE_SIZES; i++) {
        unsigned int num = table_sizes[i], id, n, was = 0;
        ap_slotmem_instance_t *s = segment_new(8, num, PREGRAB);
        apr_uint64_t random = num;

        assert_all_grabbable(s);
        for (n = 0; n < 100; n++) {
            unsigned int a = (unsigned int)(random_next(&random) % num);
            unsigned int b = (unsigned int)(random_next(&random) % num);

            assert_int_equal(slotmem_release(s, a), APR_SUCCESS);
            assert_int_equal(slotmem_release(s, b),
                             a == b ? APR_NOTFOUND : APR_SUCCESS);
            assert_int_equal(slotmem_num_free_slots(s), a == b ? 1 : 2);
            assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
            assert_int_equal(id, a < b ? a : b);
            was = a < b ? b : a;
            if (a != b) {
                assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
                assert_int_equal(id, was);
            }
            assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
        }
        assert_false(slotmem_table_fgrab(&s->table, num - 1));
        assert_int_equal(slotmem_release(s, num - 1), APR_SUCCESS);
        assert_true(slotmem_table_fgrab(&s->table, num - 1));
        assert_false(slotmem_table_fgrab(&s->table, num - 1));
        /* Whatever a process writes past the end, there are no such slots. */
        for (id = 0; id < s->table.words[0]; id++) {
            s->table.level[0][id] = SLOTMEM_WORD_FULL;
        }
        for (id = n = 0; id < slotmem_table_leaves(&s->table); id++) {
            n += slotmem_bits_count(slotmem_table_leaf(&s->table, id));
        }
        assert_int_equal(n, num);
        assert_hints_true(s);
        segment_free(s);
    }
}

static void test_no_slots_at_all(void **state)
{
    ap_slotmem_instance_t *s = segment_new(8, 0, 0);
    unsigned int id = 77;
    void *mem = s;

    (void)state;
    assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
    assert_int_equal(id, 77);
    assert_int_equal(slotmem_fgrab(s, 0), APR_EINVAL);
    assert_int_equal(slotmem_release(s, 0), APR_EINVAL);
    assert_int_equal(slotmem_dptr(s, 0, &mem), APR_EINVAL);
    assert_int_equal(slotmem_num_free_slots(s), 0);
    segment_free(s);
}

/* ------------------------------------------------------------------------
 * Owners
 *
 * The first eight bytes of a slot say who owns it, 0 for nobody.  An owner
 * finds 0 when it comes, and its own stamp when it goes.
 */

static _Atomic apr_uint64_t *stamp_of(ap_slotmem_instance_t *s, unsigned int id)
{
    return (_Atomic apr_uint64_t *)(void *)slot_at(s, id);
}

static apr_uint64_t stamp_mine(const hammer_t *h)
{
    return ((apr_uint64_t)getpid() << 8) + h->number + 1;
}

static void own(hammer_t *h, unsigned int id)
{
    wrong_if(h, atomic_exchange_explicit(stamp_of(h->s, id), stamp_mine(h),
                                         memory_order_relaxed)
                    != 0);
}

static void disown(hammer_t *h, unsigned int id)
{
    wrong_if(
        h, atomic_exchange_explicit(stamp_of(h->s, id), 0, memory_order_relaxed)
               != stamp_mine(h));
}

#define HELD_MAX 5

/* Grabs up to HELD_MAX slots, gives them back, in no order. */
static void *owner_thread(void *data)
{
    hammer_t *h = data;
    unsigned int held[HELD_MAX], n = 0, i;

    do {
        apr_uint64_t random = random_next(&h->random);

        if (n < HELD_MAX && random % 8 < 4) {
            if (!slotmem_table_grab(&h->s->table, &held[n])) {
                h->full++;
                continue;
            }
            own(h, held[n++]);
        }
        else if (n > 0) {
            i = (unsigned int)(random >> 8) % n;
            disown(h, held[i]);
            wrong_if(h, !slotmem_table_release(&h->s->table, held[i]));
            held[i] = held[--n];
        }
        h->done++;
    } while (!hammer_over);
    while (n > 0) {
        disown(h, held[--n]);
        wrong_if(h, !slotmem_table_release(&h->s->table, held[n]));
    }
    return NULL;
}

/* Counts and looks through the table meanwhile. */
static void *counter_thread(void *data)
{
    hammer_t *h = data;

    do {
        unsigned int id, used = slotmem_table_count(&h->s->table);

        wrong_if(h, used > h->s->layout.item_num);
        for (id = 0; id < h->s->layout.item_num; id++) {
            h->done += (apr_uint64_t)slotmem_table_used(&h->s->table, id);
        }
        h->done++;
    } while (!hammer_over);
    return NULL;
}

static void fill(ap_slotmem_instance_t *s, unsigned int count)
{
    unsigned int id;

    while (count-- > 0) {
        assert_true(slotmem_table_grab(&s->table, &id));
    }
}

static void empty(ap_slotmem_instance_t *s)
{
    unsigned int id;

    for (id = 0; id < s->layout.item_num; id++) {
        slotmem_table_release(&s->table, id);
    }
}

static void hammer_owners(unsigned int num, unsigned int used)
{
    ap_slotmem_instance_t *s = segment_new(8, num, PREGRAB);
    hammer_t sum = { 0 };

    fill(s, used);
    hammer_run(s, owner_thread, owner_thread, &sum, hammer_time);
    assert_int_equal(sum.wrong, 0);
    assert_true(sum.done > 0);
    assert_int_equal(slotmem_table_count(&s->table), used);
    assert_hints_true(s);
    empty(s);
    assert_hints_true(s);
    assert_all_grabbable(s);
    segment_free(s);
}

static void test_threads_never_share_a_slot(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < TABLE_SIZES; i++) {
        hammer_owners(table_sizes[i], 0);
    }
}

/* At the brim hints are set and cleared all the time. */
static void test_threads_never_share_a_slot_at_the_brim(void **state)
{
    size_t i;

    (void)state;
    for (i = 1; i < TABLE_SIZES; i++) {
        hammer_owners(table_sizes[i], table_sizes[i] - 3);
        hammer_owners(table_sizes[i], table_sizes[i] - 3 * THREADS);
    }
}

static void test_counting_beside_owners(void **state)
{
    ap_slotmem_instance_t *s = segment_new(8, 4097, PREGRAB);
    hammer_t sum = { 0 };

    (void)state;
    hammer_run(s, owner_thread, counter_thread, &sum, hammer_time);
    assert_int_equal(sum.wrong, 0);
    assert_int_equal(slotmem_table_count(&s->table), 0);
    segment_free(s);
}

/* Does the hammer see what it is there to see?  A table whose owners are made
 * by a load and a store gives slots away twice, and soon. */
static void *careless_thread(void *data)
{
    hammer_t *h = data;

    do {
        slotmem_word_t *leaf = &h->s->table.level[0][0];
        apr_uint64_t seen = atomic_load(leaf);
        unsigned int id;

        if (seen == SLOTMEM_WORD_FULL) {
            atomic_store(leaf, 0);
            continue;
        }
        id = slotmem_bits_lowest(~seen);
        atomic_store(leaf, seen | slotmem_bit(id));
        own(h, id);
        disown(h, id);
        slotmem_table_release(&h->s->table, id);
        h->done++;
    } while (!hammer_over);
    return NULL;
}

static void test_the_hammer_sees_two_owners(void **state)
{
    ap_slotmem_instance_t *s = segment_new(8, 64, PREGRAB);
    apr_time_t end = apr_time_now() + LIMIT;
    hammer_t sum = { 0 };

    (void)state;
    do {
        hammer_run(s, careless_thread, careless_thread, &sum, hammer_time / 4);
        assert_true(apr_time_now() < end);
    } while (sum.wrong == 0);
    *wrong_anywhere = 0;
    segment_free(s);
}

/* While some free slots hold what somebody may still look for, others go
 * first, the lowest first, and then those. */
static void test_grab_gives_what_holds_nothing_first(void **state)
{
    static const unsigned int expected[] = { 1, 3, 4, 0, 2 };
    ap_slotmem_instance_t *s = segment_new(8, 5, PREGRAB);
    unsigned int id, i;

    (void)state;
    s->prefer_zero = 1;
    s->slots[7] = 1;
    s->slots[2 * 8] = 1;
    for (i = 0; i < 5; i++) {
        assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
        assert_int_equal(id, expected[i]);
    }
    assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
    segment_free(s);
}

/* ------------------------------------------------------------------------
 * Hints that the dead left wrong
 */

static void hints_set_all(ap_slotmem_instance_t *s)
{
    unsigned int k;
    apr_size_t w;

    for (k = 1; k < s->table.levels; k++) {
        for (w = 0; w < s->table.words[k]; w++) {
            s->table.level[k][w] = SLOTMEM_WORD_FULL;
        }
    }
}

static void test_no_hint_hides_a_free_slot_for_good(void **state)
{
    size_t i, j;

    (void)state;
    for (i = 0; i < TABLE_SIZES; i++) {
        const unsigned int num = table_sizes[i];
        const unsigned int places[] = { 0, num / 2, num - 1 };
        ap_slotmem_instance_t *s = segment_new(8, num, PREGRAB);
        unsigned int id, k;

        fill(s, num);
        for (j = 0; j < 3; j++) {
            /* As if whoever released it died before it saw the hint. */
            atomic_fetch_and(&s->table.level[0][places[j] / 64],
                             ~slotmem_bit(places[j]));
            hints_set_all(s);
            assert_int_equal(slotmem_num_free_slots(s), 1);
            assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
            assert_int_equal(id, places[j]);
            /* And the way to it is open again; to the first leaf there is
             * none, and its hints are right, since it is full. */
            for (k = 1; k < s->table.levels && places[j] >= 64; k++) {
                id /= 64;
                assert_false(s->table.level[k][id / 64] & slotmem_bit(id));
            }
            assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
        }
        /* Everything is hidden, and everything is found. */
        memset((void *)s->table.level[0], 0, s->table.words[0] * 8);
        hints_set_all(s);
        if (num <= 4097) {
            for (j = 0; j < num; j++) {
                assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
            }
            assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
        }
        segment_free(s);
    }
}

/* A release below a wrong hint mends it on its way, up to the top. */
static void test_release_clears_every_hint_above(void **state)
{
    ap_slotmem_instance_t *s = segment_new(8, 262145, PREGRAB);
    unsigned int id, k;

    (void)state;
    fill(s, 262145);
    hints_set_all(s);
    assert_int_equal(slotmem_release(s, 200000), APR_SUCCESS);
    for (k = 1, id = 200000 / 64; k < s->table.levels; k++, id /= 64) {
        assert_false(s->table.level[k][id / 64] & slotmem_bit(id));
    }
    assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
    assert_int_equal(id, 200000);
    segment_free(s);
}

static void test_hints_of_a_restored_table(void **state)
{
    ap_slotmem_instance_t *s = segment_new(8, 8192, PREGRAB);
    unsigned int id;

    (void)state;
    memset((void *)s->table.level[0], 0xff, s->table.words[0] * 8);
    s->table.level[0][100] = 0xff;
    slotmem_table_hint_all(&s->table);
    assert_hints_true(s);
    assert_true(s->table.level[1][0] == SLOTMEM_WORD_FULL);
    assert_true(s->table.level[1][1] == ~slotmem_bit(100));
    assert_true(s->table.level[2][0] == 1);
    assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
    assert_int_equal(id, 6408);
    segment_free(s);
}

/* ------------------------------------------------------------------------
 * Deaths
 */

static void owner_child(void *data)
{
    hammer_t h = { .s = data, .number = 0 };

    hammer_over = 0;
    random_start(&h);
    owner_thread(&h);
}

/* What an owner left behind is known by its stamp; releases it. */
static void release_for(ap_slotmem_instance_t *s, pid_t pid)
{
    unsigned int id;

    for (id = 0; id < s->layout.item_num; id++) {
        apr_uint64_t stamp = atomic_load(stamp_of(s, id));

        if (stamp >> 8 == (apr_uint64_t)pid) {
            atomic_store(stamp_of(s, id), 0);
            slotmem_table_release(&s->table, id);
        }
    }
}

/* Two processes on few slots, one killed at any moment, again and again.  Its
 * slots are released by their stamps; a slot that it had grabbed and not
 * stamped, or stamped no more and not released, stays in use until the end,
 * so the segment fills up and the survivors meet the brim. */
static void kill_owners(unsigned int num)
{
    ap_slotmem_instance_t *s = segment_new(8, num, PREGRAB);
    apr_uint64_t random = num;
    pid_t pid[2];
    unsigned int i, id;

    pid[0] = child_start(owner_child, s);
    pid[1] = child_start(owner_child, s);
    for (i = 0; i < kills / TABLE_SIZES + 1; i++) {
        apr_sleep(random_next(&random) % 2000);
        child_kill(pid[i & 1]);
        release_for(s, pid[i & 1]);
        if (slotmem_table_count(&s->table) == num) {
            child_kill(pid[(i + 1) & 1]);
            memset(s->slots, 0, s->layout.slots_len);
            empty(s);
            pid[(i + 1) & 1] = child_start(owner_child, s);
        }
        pid[i & 1] = child_start(owner_child, s);
    }
    child_kill(pid[0]);
    child_kill(pid[1]);
    assert_int_equal(*wrong_anywhere, 0);
    memset(s->slots, 0, s->layout.slots_len);
    for (id = 0; id < num; id++) {
        slotmem_table_release(&s->table, id);
    }
    /* Every slot is there, whatever the hints say. */
    assert_int_equal(slotmem_num_free_slots(s), num);
    for (i = 0; i < num; i++) {
        assert_int_equal(slotmem_grab(s, &id), APR_SUCCESS);
        assert_int_equal(atomic_exchange(stamp_of(s, id), 1), 0);
    }
    assert_int_equal(slotmem_grab(s, &id), APR_EINVAL);
    segment_free(s);
}

static void test_no_kill_loses_a_slot(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < TABLE_SIZES; i++) {
        kill_owners(table_sizes[i]);
    }
}

/* ------------------------------------------------------------------------
 * Mischief: every word is the children's to write
 */

static void *mischief_thread(void *data)
{
    hammer_t *h = data;
    const slotmem_table_t *l = &h->s->table;

    do {
        unsigned int k = (unsigned int)(random_next(&h->random) % l->levels);
        apr_size_t w = random_next(&h->random) % l->words[k];
        apr_uint64_t value = random_next(&h->random);

        atomic_store_explicit(&h->s->table.level[k][w],
                              value % 4 == 0   ? SLOTMEM_WORD_FULL
                              : value % 4 == 1 ? 0
                                               : value,
                              memory_order_relaxed);
        h->done++;
    } while (!hammer_over);
    return NULL;
}

static void *victim_thread(void *data)
{
    hammer_t *h = data;
    const unsigned int num = h->s->layout.item_num;

    do {
        unsigned int id = UINT_MAX;

        if (slotmem_table_grab(&h->s->table, &id)) {
            wrong_if(h, id >= num);
        }
        slotmem_table_release(&h->s->table,
                              (unsigned int)random_next(&h->random) % num);
        slotmem_table_fgrab(&h->s->table,
                            (unsigned int)random_next(&h->random) % num);
        wrong_if(h, slotmem_table_count(&h->s->table) > num);
        wrong_if(h, (slotmem_table_leaf(&h->s->table, (num - 1) / 64)
                     & slotmem_table_pad(&h->s->table, 0, (num - 1) / 64))
                        != 0);
        h->done++;
    } while (!hammer_over);
    return NULL;
}

static void test_no_word_leads_out_of_bounds(void **state)
{
    static const unsigned int sizes[] = { 1, 65, 4097, 20000 };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        ap_slotmem_instance_t *s = segment_new(8, sizes[i], PREGRAB);
        hammer_t sum = { 0 };

        hammer_run(s, victim_thread, mischief_thread, &sum, hammer_time);
        assert_int_equal(sum.wrong, 0);
        segment_free(s);
    }
}

/* ------------------------------------------------------------------------
 * doall, whose callback may call anything
 */

typedef struct {
    ap_slotmem_instance_t *s;
    apr_pool_t *pool;
    unsigned int visits;
    unsigned int last;
    unsigned int stop_at;
} visit_t;

static apr_status_t visit(void *mem, void *data, apr_pool_t *p)
{
    visit_t *v = data;
    unsigned int id = (unsigned int)(((char *)mem - v->s->slots) / 16), other;
    unsigned char bytes[16];

    assert_ptr_equal(p, v->pool);
    assert_true(v->visits == 0 || id > v->last);
    v->last = id;
    v->visits++;

    /* Every call, on the very slot and beside it. */
    memset(bytes, (int)id & 0xff, sizeof(bytes));
    assert_int_equal(slotmem_put(v->s, id, bytes, 16), APR_SUCCESS);
    assert_int_equal(slotmem_get(v->s, id, bytes, 16), APR_SUCCESS);
    assert_int_equal(slotmem_release(v->s, id), APR_SUCCESS);
    assert_int_equal(slotmem_grab(v->s, &other), APR_SUCCESS);
    assert_true(other <= id);
    assert_int_equal(slotmem_release(v->s, other), APR_SUCCESS);
    assert_int_equal(slotmem_fgrab(v->s, id), APR_SUCCESS);
    assert_true(slotmem_num_free_slots(v->s) <= v->s->layout.item_num);
    return id == v->stop_at ? APR_EOF : APR_SUCCESS;
}

static void test_doall_calls_back_into_the_provider(void **state)
{
    ap_slotmem_instance_t *s = segment_new(16, 4097, PREGRAB);
    visit_t v = { .s = s, .pool = (apr_pool_t *)0x5a5a, .stop_at = UINT_MAX };
    unsigned int id;

    (void)state;
    for (id = 0; id < 4097; id += 3) {
        assert_int_equal(slotmem_fgrab(s, id), APR_SUCCESS);
    }
    assert_int_equal(slotmem_doall(s, visit, &v, v.pool), APR_SUCCESS);
    assert_int_equal(v.visits, 1366);
    assert_int_equal(v.last, 4095);

    v.visits = 0;
    v.stop_at = 300;
    assert_int_equal(slotmem_doall(s, visit, &v, v.pool), APR_EOF);
    assert_int_equal(v.visits, 101);
    segment_free(s);
}

#define TABLE_TESTS                                                            \
    cmocka_unit_test(test_grab_gives_what_holds_nothing_first),                \
        cmocka_unit_test(test_grab_gives_the_lowest_slot),                     \
        cmocka_unit_test(test_no_slots_at_all),                                \
        cmocka_unit_test(test_threads_never_share_a_slot),                     \
        cmocka_unit_test(test_threads_never_share_a_slot_at_the_brim),         \
        cmocka_unit_test(test_counting_beside_owners),                         \
        cmocka_unit_test(test_the_hammer_sees_two_owners),                     \
        cmocka_unit_test(test_no_hint_hides_a_free_slot_for_good),             \
        cmocka_unit_test(test_release_clears_every_hint_above),                \
        cmocka_unit_test(test_hints_of_a_restored_table),                      \
        cmocka_unit_test(test_no_kill_loses_a_slot),                           \
        cmocka_unit_test(test_no_word_leads_out_of_bounds),                    \
        cmocka_unit_test(test_doall_calls_back_into_the_provider)
