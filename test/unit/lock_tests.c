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

/* put and get: against each other, after deaths, beside those that have
 * stopped, after mischief.  Part of unit.c. */

#define NUM_OF_2_A_STRIPE (2 * SLOTMEM_STRIPES_MAX)

static apr_uint64_t mine(apr_uint64_t seen)
{
    slotmem_locks_t k = { .env = &locks_env };

    return slotmem_lock_mine(&k, seen);
}

static enum process_state state_of(pid_t pid, unsigned int birth)
{
    slotmem_process_t process = { (apr_uint32_t)pid, birth };

    return process_state(process);
}

static enum process_state process_state_of(apr_uint64_t word)
{
    return process_state(slotmem_lock_owner(word));
}

static int is_uniform(const unsigned char *bytes, apr_size_t len)
{
    return len < 2 || memcmp(bytes, bytes + 1, len - 1) == 0;
}

static apr_status_t put_byte(ap_slotmem_instance_t *s, unsigned int id,
                             int byte, apr_size_t len)
{
    unsigned char *bytes = malloc(len + 1);
    apr_status_t rv;

    assert_non_null(bytes);
    memset(bytes, byte, len);
    rv = slotmem_put(s, id, bytes, len);
    free(bytes);
    return rv;
}

/* The byte that all of them are; -1 if they differ, else minus the status. */
static int get_byte(ap_slotmem_instance_t *s, unsigned int id, apr_size_t len)
{
    unsigned char *bytes = malloc(len + 1);
    apr_status_t rv;
    int found;

    assert_non_null(bytes);
    rv = slotmem_get(s, id, bytes, len);
    found = rv != APR_SUCCESS ? -rv : is_uniform(bytes, len) ? bytes[0] : -1;
    free(bytes);
    return found;
}

static void test_put_and_get(void **state)
{
    static const apr_size_t sizes[] = { 0, 1, 7, 64, 200, 16384 };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const apr_size_t size = sizes[i];
        ap_slotmem_instance_t *s = segment_new(size, 5, 0);
        unsigned char bytes[1];

        assert_int_equal(put_byte(s, 1, 1, size), APR_SUCCESS);
        assert_int_equal(put_byte(s, 3, 3, size), APR_SUCCESS);
        if (size == 0) {
            assert_int_equal(slotmem_put(s, 1, bytes, 1), APR_EINVAL);
            segment_free(s);
            continue;
        }
        assert_int_equal(get_byte(s, 1, size), 1);
        assert_int_equal(get_byte(s, 2, size), 0);
        assert_int_equal(get_byte(s, 3, size), 3);
        assert_int_equal(get_byte(s, 4, size), 0);
        /* Over several slots, to the very end and not beyond. */
        assert_int_equal(put_byte(s, 2, 9, 3 * size), APR_SUCCESS);
        assert_int_equal(get_byte(s, 1, size), 1);
        assert_int_equal(get_byte(s, 2, 3 * size), 9);
        assert_int_equal(put_byte(s, 2, 8, 3 * size + 1), APR_EINVAL);
        assert_int_equal(get_byte(s, 2, 3 * size), 9);
        assert_int_equal(get_byte(s, 2, 3 * size + 1), -APR_EINVAL);
        assert_int_equal(put_byte(s, 5, 8, size), APR_EINVAL);
        segment_free(s);
    }
}

/* ------------------------------------------------------------------------
 * Tears
 */

static void *put_thread(void *data)
{
    hammer_t *h = data;
    unsigned char *bytes = malloc(h->len);

    do {
        apr_uint64_t random = random_next(&h->random);
        apr_status_t rv;

        memset(bytes, (int)(random & 0xff), h->len);
        rv =
            slotmem_put(h->s, h->first + (unsigned int)(random >> 8) % h->count,
                        bytes, h->len);
        h->done += rv == APR_SUCCESS;
        h->timeup += rv == APR_TIMEUP;
        wrong_if(h, rv != APR_SUCCESS && rv != APR_TIMEUP);
    } while (!hammer_over);
    free(bytes);
    return NULL;
}

static void *get_thread(void *data)
{
    hammer_t *h = data;
    unsigned char *bytes = malloc(h->len);

    do {
        apr_uint64_t random = random_next(&h->random);
        apr_status_t rv =
            slotmem_get(h->s, h->first + (unsigned int)(random >> 8) % h->count,
                        bytes, h->len);

        wrong_if(h, rv == APR_SUCCESS && !is_uniform(bytes, h->len));
        h->done += rv == APR_SUCCESS;
        h->timeup += rv == APR_TIMEUP;
        h->refused += rv == APR_EINCOMPLETE;
        wrong_if(h, rv != APR_SUCCESS && rv != APR_TIMEUP
                        && rv != APR_EINCOMPLETE);
    } while (!hammer_over);
    free(bytes);
    return NULL;
}

static void hammer_tears(apr_size_t size, unsigned int num, apr_size_t len,
                         unsigned int first, unsigned int count,
                         void *(*even)(void *))
{
    ap_slotmem_instance_t *s = segment_new(size, num, 0);
    hammer_t sum = { .first = first, .count = count, .len = len };
    unsigned int i;

    hammer_run(s, even, get_thread, &sum, hammer_time);
    assert_int_equal(sum.wrong, 0);
    assert_int_equal(sum.refused, 0);
    assert_true(sum.done > 0);
    for (i = 0; i < s->locks.stripes; i++) {
        assert_false(s->locks.lock[i].word & SLOTMEM_LOCK_HELD);
        assert_int_equal((uint32_t)s->locks.lock[i].writing, 0);
    }
    segment_free(s);
}

static void test_get_never_sees_half_of_a_put(void **state)
{
    static const apr_size_t sizes[] = { 8, 64, 200, 16384 };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        hammer_tears(sizes[i], 2, sizes[i], 0, 2, put_thread);
    }
    /* Two slots of one stripe. */
    hammer_tears(64, SLOTMEM_STRIPES_MAX + 1, 64, 0, SLOTMEM_STRIPES_MAX + 1,
                 put_thread);
}

/* In a segment with fewer slots than stripes, with an end inside of a slot,
 * and where a span comes to a stripe twice. */
static void test_spans_do_not_tear(void **state)
{
    (void)state;
    hammer_tears(16, 8, 5 * 16, 2, 1, put_thread);
    hammer_tears(16, 8, 5 * 16 - 3, 3, 1, put_thread);
    hammer_tears(8, NUM_OF_2_A_STRIPE, 8 * (SLOTMEM_STRIPES_MAX + 100), 900, 1,
                 put_thread);
}

/* Spans that overlap in every way, over the end of the stripes too.  That they
 * end is the test. */
static void test_spans_do_not_wait_for_each_other(void **state)
{
    ap_slotmem_instance_t *s = segment_new(8, NUM_OF_2_A_STRIPE, 0);
    /* More than half of the stripes: shorter ones meet in one place only. */
    hammer_t sum = { .count = SLOTMEM_STRIPES_MAX,
                     .len = 8 * (SLOTMEM_STRIPES_MAX / 2 + 3) };
    unsigned int i;

    (void)state;
    hammer_run(s, put_thread, put_thread, &sum, hammer_time);
    assert_int_equal(sum.wrong, 0);
    /* Two that hold what the other wants give up when their patience ends. */
    assert_int_equal(sum.timeup, 0);
    assert_true(sum.done > 0);
    for (i = 0; i < s->locks.stripes; i++) {
        assert_false(s->locks.lock[i].word & SLOTMEM_LOCK_HELD);
    }
    segment_free(s);
}

/* Writers of a whole span beside writers of single slots. */
static void *put_one_or_all_thread(void *data)
{
    hammer_t *h = data, one = *h;

    one.len = h->s->layout.item_size;
    one.count = 8;
    do {
        apr_uint64_t random = random_next(&h->random);
        apr_status_t rv =
            put_byte(h->s, (unsigned int)(random % 4), (int)(random & 0xff),
                     random % 3 ? one.len : h->len);

        h->done += rv == APR_SUCCESS;
        h->timeup += rv == APR_TIMEUP;
        wrong_if(h, rv != APR_SUCCESS && rv != APR_TIMEUP);
    } while (!hammer_over);
    return NULL;
}

static void *get_slot_thread(void *data)
{
    hammer_t *h = data;

    h->len = h->s->layout.item_size;
    h->count = 8;
    return get_thread(h);
}

static void test_spans_beside_single_slots(void **state)
{
    ap_slotmem_instance_t *s = segment_new(200, 8, 0);
    hammer_t sum = { .len = 5 * 200, .count = 4 };

    (void)state;
    hammer_run(s, put_one_or_all_thread, get_slot_thread, &sum, hammer_time);
    assert_int_equal(sum.wrong, 0);
    assert_int_equal(sum.refused, 0);
    segment_free(s);
}

/* Nothing that a process notes in a lock is lost on the way back. */
static void test_lock_word_tells_its_owner(void **state)
{
    apr_uint64_t word =
        mine(SLOTMEM_WORD_FULL & ~SLOTMEM_LOCK_HELD & ~SLOTMEM_LOCK_TORN);

    (void)state;
    assert_true(word & SLOTMEM_LOCK_HELD);
    assert_false(word & SLOTMEM_LOCK_TORN);
    assert_int_equal(word >> 32, getpid());
    assert_int_equal((word >> SLOTMEM_LOCK_LOW_BITS) & SLOTMEM_LOCK_BIRTH_MASK,
                     self.process.birth);
    assert_int_equal(word & SLOTMEM_LOCK_LOW_MASK, SLOTMEM_LOCK_LOW_MASK);
    assert_int_equal(process_state_of(word), PROCESS_ALIVE);
    assert_true(mine(SLOTMEM_LOCK_TORN) & SLOTMEM_LOCK_TORN);
}

#ifndef SLOTMEM_COPY_STORE
/* Does the hammer see what it is there to see?  And NOTMPSAFE is honoured: the
 * caller said that it locks for itself, so nobody else does. */
static void test_the_hammer_sees_tears_with_notmpsafe(void **state)
{
    ap_slotmem_instance_t *s = segment_new(16384, 1, AP_SLOTMEM_TYPE_NOTMPSAFE);
    apr_time_t end = apr_time_now() + LIMIT;
    hammer_t sum = { .count = 1, .len = 16384 };

    (void)state;
    do {
        hammer_run(s, put_thread, get_thread, &sum, hammer_time / 4);
        assert_true(apr_time_now() < end);
    } while (sum.wrong == 0);
    assert_int_equal(s->locks.lock[0].word, 0);
    *wrong_anywhere = 0;
    segment_free(s);
}
#endif

/* With NOTMPSAFE the caller's own lock is enough. */
static pthread_mutex_t callers_lock = PTHREAD_MUTEX_INITIALIZER;

static void *locking_thread(void *data)
{
    hammer_t *h = data;

    do {
        int byte = (int)(random_next(&h->random) & 0xff);

        pthread_mutex_lock(&callers_lock);
        wrong_if(h, put_byte(h->s, 0, byte, h->len) != APR_SUCCESS);
        wrong_if(h, get_byte(h->s, 0, h->len) != byte);
        pthread_mutex_unlock(&callers_lock);
        h->done++;
    } while (!hammer_over);
    return NULL;
}

static void test_notmpsafe_with_the_callers_lock(void **state)
{
    ap_slotmem_instance_t *s = segment_new(200, 1, AP_SLOTMEM_TYPE_NOTMPSAFE);
    hammer_t sum = { .len = 200 };

    (void)state;
    hammer_run(s, locking_thread, locking_thread, &sum, hammer_time);
    assert_int_equal(sum.wrong, 0);
    segment_free(s);
}

/* ------------------------------------------------------------------------
 * Deaths
 *
 * A child takes the steps of slot_write up to one of them, and ends there.
 */

enum step { LOCKED, HALF_WRITTEN, WRITTEN, NOTE_CLEARED };

typedef struct {
    ap_slotmem_instance_t *s;
    unsigned int id;
    enum step last;
    apr_uint64_t word;
} death_t;

static void die_during_put(void *data)
{
    const death_t *d = data;
    unsigned char bytes[64];
    apr_uint64_t was;

    memset(bytes, 0xdd, sizeof(bytes));
    if (slotmem_lock_take(&d->s->locks, slotmem_locks_stripe(d->id),
                          slotmem_writing(d->id, 64), &was,
                          &(slotmem_wait_t){ 0 })
        != APR_SUCCESS) {
        _exit(1);
    }
    if (d->last >= HALF_WRITTEN) {
        slotmem_copy_in((slotmem_byte_t *)slot_at(d->s, d->id), bytes,
                        d->last == HALF_WRITTEN ? 32 : 64);
    }
    if (d->last >= NOTE_CLEARED) {
        atomic_store(&d->s->locks.lock[slotmem_locks_stripe(d->id)].writing, 0);
    }
    raise(SIGKILL);
}

static void die_during_get(void *data)
{
    const death_t *d = data;
    apr_uint64_t was;

    if (slotmem_lock_take(&d->s->locks, slotmem_locks_stripe(d->id), 0, &was,
                          &(slotmem_wait_t){ 0 })
        != APR_SUCCESS) {
        _exit(1);
    }
    raise(SIGKILL);
}

/* A mender takes the lock over from the dead, marks its slots, and dies. */
static void die_during_mend(void *data)
{
    const death_t *d = data;
    slotmem_lock_t *lock = &d->s->locks.lock[slotmem_locks_stripe(d->id)];
    apr_uint64_t found = d->word;

    if (!atomic_compare_exchange_strong(&lock->word, &found, mine(found))) {
        _exit(1);
    }
    slotmem_torn_set(&d->s->locks, d->id);
    raise(SIGKILL);
}

static void after_death(death_t *d, void (*die)(void *), int reaped)
{
    pid_t pid = child_start(die, d);

    wait_for_state(pid, 'Z');
    if (reaped) {
        assert_int_equal(child_reap(pid), SIGKILL);
    }
    d->word = d->s->locks.lock[slotmem_locks_stripe(d->id)].word;
    assert_true(d->word & SLOTMEM_LOCK_HELD);
    assert_int_equal(d->word >> 32, pid);
    assert_int_equal(process_state_of(d->word), PROCESS_GONE);
}

/* id's content is lost: it is refused, alone, until it is put whole. */
static void assert_torn_until_whole(ap_slotmem_instance_t *s, unsigned int id)
{
    unsigned int other = (id + SLOTMEM_STRIPES_MAX) % NUM_OF_2_A_STRIPE;

    assert_int_equal(get_byte(s, id, 64), -APR_EINCOMPLETE);
    assert_int_equal(get_byte(s, id, 1), -APR_EINCOMPLETE);
    assert_int_equal(get_byte(s, id, 65), -APR_EINCOMPLETE);
    assert_int_equal(get_byte(s, other, 64), 0x11);
    assert_int_equal(put_byte(s, id, 0x22, 63), APR_SUCCESS);
    assert_int_equal(get_byte(s, id, 63), -APR_EINCOMPLETE);
    assert_int_equal(put_byte(s, other, 0x11, 64), APR_SUCCESS);
    assert_int_equal(get_byte(s, id, 64), -APR_EINCOMPLETE);
    assert_int_equal(put_byte(s, id, 0x33, 64), APR_SUCCESS);
    assert_int_equal(get_byte(s, id, 64), 0x33);
    assert_int_equal(get_byte(s, id, 32), 0x33);
}

static ap_slotmem_instance_t *segment_of_elevens(void)
{
    ap_slotmem_instance_t *s = segment_new(64, NUM_OF_2_A_STRIPE, 0);
    unsigned int id;

    for (id = 0; id < NUM_OF_2_A_STRIPE; id++) {
        assert_int_equal(put_byte(s, id, 0x11, 64), APR_SUCCESS);
    }
    return s;
}

static void test_a_put_that_died(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s };
    unsigned int warnings;
    int reaped;

    (void)state;
    for (reaped = 0; reaped < 2; reaped++) {
        /* Noted, and perhaps begun: nobody can tell. */
        for (d.last = LOCKED; d.last <= WRITTEN; d.last++) {
            warnings = standin_warnings;
            d.id = 7 + (d.last & 1) * SLOTMEM_STRIPES_MAX;
            assert_int_equal(put_byte(s, d.id, 0x11, 64), APR_SUCCESS);
            after_death(&d, die_during_put, reaped);
            assert_torn_until_whole(s, d.id);
            assert_int_equal(put_byte(s, d.id, 0x11, 64), APR_SUCCESS);
            assert_int_equal(standin_warnings, warnings + 1);
            assert_non_null(strstr(standin_warning, "unit"));
        }
        /* Done, but for the lock: nothing is lost, and none is told. */
        d.id = 8;
        d.last = NOTE_CLEARED;
        after_death(&d, die_during_put, reaped);
        warnings = standin_warnings;
        assert_int_equal(get_byte(s, 8, 64), 0xdd);
        assert_int_equal(standin_warnings, warnings);
        /* The first to come may be one who puts, the slot or its neighbour. */
        d.id = 9;
        d.last = HALF_WRITTEN;
        after_death(&d, die_during_put, reaped);
        assert_int_equal(put_byte(s, 9, 0x44, 64), APR_SUCCESS);
        assert_int_equal(get_byte(s, 9, 64), 0x44);
        after_death(&d, die_during_put, reaped);
        assert_int_equal(put_byte(s, 9 + SLOTMEM_STRIPES_MAX, 0x11, 64),
                         APR_SUCCESS);
        assert_torn_until_whole(s, 9);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
    segment_free(s);
}

/* The next run has what lies there copied before anybody waited for the dead:
 * nobody has marked the slot by then. */
static void test_what_a_killed_put_left_is_carried_on_as_torn(void **state)
{
    ap_slotmem_instance_t *old = segment_of_elevens();
    ap_slotmem_instance_t *fresh = segment_new(64, NUM_OF_2_A_STRIPE, 0);
    death_t d = { .s = old, .id = 5, .last = HALF_WRITTEN };
    const unsigned int other = 5 + SLOTMEM_STRIPES_MAX;
    unsigned int patience = 100;

    (void)state;
    after_death(&d, die_during_put, 1);
    slotmem_locks_carry(&fresh->locks, 5, &old->locks, 5, &patience);
    slotmem_locks_carry(&fresh->locks, other, &old->locks, other, &patience);
    assert_int_equal(get_byte(fresh, 5, 64), -APR_EINCOMPLETE);
    assert_int_equal(get_byte(fresh, other, 64), 0x11);
    segment_free(fresh);
    segment_free(old);
}

/* A module that always puts 8 of 64 bytes heals its slot by doing so: its
 * torn put got no farther.  And a stripe without torn slots is as new. */
static void test_a_put_as_long_as_the_torn_one_heals(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    slotmem_lock_t *lock = &s->locks.lock[5];

    (void)state;
    lock->writing = slotmem_writing(5, 8);
    lock->word = mine(0) ^ (UINT64_C(1) << SLOTMEM_LOCK_LOW_BITS);
    assert_int_equal(get_byte(s, 5, 8), -APR_EINCOMPLETE);
    assert_int_equal(put_byte(s, 5, 0x22, 7), APR_SUCCESS);
    assert_int_equal(get_byte(s, 5, 8), -APR_EINCOMPLETE);
    assert_int_equal(put_byte(s, 5, 0x22, 8), APR_SUCCESS);
    assert_int_equal(get_byte(s, 5, 8), 0x22);
    assert_false(lock->word & SLOTMEM_LOCK_TORN);
    assert_int_equal(s->locks.reach[5], 0);

    /* Two of one stripe: the farther one counts for both, while it is torn. */
    slotmem_locks_tear(&s->locks, 5, 8);
    slotmem_locks_tear(&s->locks, 5 + SLOTMEM_STRIPES_MAX, 16);
    assert_int_equal(slotmem_locks_torn(&s->locks, 5), 16);
    assert_int_equal(put_byte(s, 5, 0x22, 8), APR_SUCCESS);
    assert_int_equal(get_byte(s, 5, 8), -APR_EINCOMPLETE);
    assert_int_equal(put_byte(s, 5, 0x22, 16), APR_SUCCESS);
    assert_int_equal(get_byte(s, 5, 16), 0x22);
    assert_true(lock->word & SLOTMEM_LOCK_TORN);
    assert_int_equal(get_byte(s, 5 + SLOTMEM_STRIPES_MAX, 8), -APR_EINCOMPLETE);
    assert_int_equal(put_byte(s, 5 + SLOTMEM_STRIPES_MAX, 0x22, 16),
                     APR_SUCCESS);
    assert_false(lock->word & SLOTMEM_LOCK_TORN);

    /* In whichever order they came. */
    slotmem_locks_tear(&s->locks, 5, 16);
    slotmem_locks_tear(&s->locks, 5 + SLOTMEM_STRIPES_MAX, 8);
    assert_int_equal(put_byte(s, 5, 0x22, 8), APR_SUCCESS);
    assert_int_equal(get_byte(s, 5, 8), -APR_EINCOMPLETE);
    segment_free(s);
}

static void test_a_get_that_died_tears_nothing(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s, .id = 5 };
    const unsigned int warnings = standin_warnings;

    (void)state;
    after_death(&d, die_during_get, 1);
    assert_int_equal(get_byte(s, 5, 64), 0x11);
    assert_int_equal(get_byte(s, 5 + SLOTMEM_STRIPES_MAX, 64), 0x11);
    assert_int_equal(standin_warnings, warnings);
    /* Nor does it make whole what another death has torn. */
    slotmem_locks_tear(&s->locks, 5, 64);
    after_death(&d, die_during_get, 1);
    assert_int_equal(get_byte(s, 5, 64), -APR_EINCOMPLETE);
    assert_int_equal(get_byte(s, 5 + SLOTMEM_STRIPES_MAX, 64), 0x11);
    segment_free(s);
}

/* What the dead writer left torn stays torn, though its mender died too. */
static void test_a_mender_that_died(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s, .id = 5, .last = HALF_WRITTEN };

    (void)state;
    after_death(&d, die_during_put, 1);
    after_death(&d, die_during_mend, 1);
    after_death(&d, die_during_mend, 1);
    assert_torn_until_whole(s, 5);
    segment_free(s);
}

/* A mender that comes too late, with a word that was somebody's long ago,
 * changes nothing. */
static void test_a_late_mender_changes_nothing(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s, .id = 5, .last = HALF_WRITTEN };
    apr_uint64_t word;

    (void)state;
    after_death(&d, die_during_put, 1);
    assert_int_equal(put_byte(s, 5, 0x55, 64), APR_SUCCESS);
    word = s->locks.lock[5].word;
    slotmem_lock_mend(&s->locks, 5, d.word);
    assert_true(s->locks.lock[5].word == word);
    assert_int_equal(get_byte(s, 5, 64), 0x55);
    segment_free(s);
}

/* A word never comes back: else a slow reader would take it for the one that
 * it began with. */
static void test_mending_makes_a_word_that_never_was(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s, .id = 5, .last = NOTE_CLEARED };
    apr_uint64_t seen[40];
    unsigned int i, j;

    (void)state;
    for (i = 0; i < 40; i++) {
        seen[i] = s->locks.lock[5].word;
        for (j = 0; j < i; j++) {
            assert_true(seen[j] != seen[i]);
        }
        after_death(&d, die_during_put, 1);
        slotmem_lock_mend(&s->locks, 5, d.word);
        assert_false(s->locks.lock[5].word & SLOTMEM_LOCK_HELD);
    }
    /* A held word has no room for all of a long sequence: what is left of it
     * would be the word after one of the first writes. */
    s->locks.lock[5].word =
        (UINT64_C(1) << SLOTMEM_LOCK_LOW_BITS) + SLOTMEM_LOCK_STEP;
    after_death(&d, die_during_put, 1);
    slotmem_lock_mend(&s->locks, 5, d.word);
    assert_true(s->locks.lock[5].word >> SLOTMEM_LOCK_LOW_BITS);
    segment_free(s);
}

/* A span: while it waits for a stripe it has written nothing. */
static void wait_in_span(void *data)
{
    unsigned char bytes[3 * 64];
    const death_t *d = data;

    memset(bytes, 0xdd, sizeof(bytes));
    slotmem_put(d->s, d->id, bytes, sizeof(bytes));
}

static void hold_until_killed(void *data)
{
    const death_t *d = data;
    apr_uint64_t was;

    if (slotmem_lock_take(&d->s->locks, slotmem_locks_stripe(d->id), 0, &was,
                          &(slotmem_wait_t){ 0 })
        != APR_SUCCESS) {
        _exit(1);
    }
    raise(SIGSTOP);
}

static void test_a_span_that_died_waiting_tears_nothing(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t holder = { .s = s, .id = 22 }, waiter = { .s = s, .id = 20 };
    apr_time_t end = apr_time_now() + LIMIT;
    pid_t held = child_start(hold_until_killed, &holder), pid;

    (void)state;
    wait_for_state(held, 'T');
    pid = child_start(wait_in_span, &waiter);
    while (!(s->locks.lock[21].word & SLOTMEM_LOCK_HELD)) {
        assert_true(apr_time_now() < end);
        sched_yield();
    }
    kill(pid, SIGKILL);
    child_reap(pid);
    child_kill(held);
    assert_int_equal(get_byte(s, 20, 3 * 64), 0x11);
    segment_free(s);
}

static void die_in_span(void *data)
{
    const death_t *d = data;
    slotmem_span_t span;
    unsigned char bytes[64] = { 0 };

    slotmem_span_init(&d->s->locks, &span, d->id, 3 * 64 - 1);
    if (slotmem_span_take(&d->s->locks, &span) != APR_SUCCESS) {
        _exit(1);
    }
    slotmem_span_note(&d->s->locks, &span);
    slotmem_copy_in((slotmem_byte_t *)slot_at(d->s, d->id), bytes,
                    sizeof(bytes));
    raise(SIGKILL);
}

static void test_a_span_that_died_writing(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s };
    unsigned int i;

    (void)state;
    for (i = 0; i < 2; i++) {
        /* The second one goes over the end of the stripes. */
        d.id = i ? SLOTMEM_STRIPES_MAX - 1 : 30;
        after_death(&d, die_in_span, 1);
        assert_int_equal(get_byte(s, d.id - 1, 64), 0x11);
        assert_int_equal(get_byte(s, d.id, 64), -APR_EINCOMPLETE);
        assert_int_equal(get_byte(s, d.id + 1, 64), -APR_EINCOMPLETE);
        assert_int_equal(get_byte(s, d.id + 2, 64), -APR_EINCOMPLETE);
        assert_int_equal(get_byte(s, d.id + 3, 64), 0x11);
        /* Whole slots are healed, the last one is not: one byte less was put
         * than the torn write may have changed. */
        assert_int_equal(put_byte(s, d.id, 0x22, 3 * 64 - 2), APR_SUCCESS);
        assert_int_equal(get_byte(s, d.id, 2 * 64), 0x22);
        assert_int_equal(get_byte(s, d.id + 2, 64), -APR_EINCOMPLETE);
        assert_int_equal(put_byte(s, d.id, 0x23, 3 * 64 - 1), APR_SUCCESS);
        assert_int_equal(get_byte(s, d.id, 3 * 64 - 1), 0x23);
        assert_int_equal(put_byte(s, d.id, 0x11, 3 * 64), APR_SUCCESS);
    }
    segment_free(s);
}

/* Writers and readers that are killed at any moment. */
static void put_child(void *data)
{
    hammer_t h = { .s = data, .number = 1, .count = 2, .len = 64 };

    hammer_over = 0;
    random_start(&h);
    put_thread(&h);
}

static void get_child(void *data)
{
    hammer_t h = { .s = data, .number = 2, .count = 2, .len = 64 };

    hammer_over = 0;
    random_start(&h);
    get_thread(&h);
}

static void span_child(void *data)
{
    hammer_t h = { .s = data, .number = 3, .count = 1, .len = 2 * 64 };

    hammer_over = 0;
    random_start(&h);
    put_thread(&h);
}

static void test_no_kill_blocks_or_tears(void **state)
{
    static void (*const kinds[])(void *) = { put_child, put_child, get_child,
                                             span_child };
    ap_slotmem_instance_t *s = segment_new(64, 2, 0);
    apr_uint64_t random = 4711;
    pid_t pid[4];
    unsigned int i, id;

    (void)state;
    for (i = 0; i < 4; i++) {
        pid[i] = child_start(kinds[i], s);
    }
    for (i = 0; i < kills; i++) {
        unsigned int who = (unsigned int)(random_next(&random) % 4);

        apr_sleep(random_next(&random) % 2000);
        child_kill(pid[who]);
        pid[who] = child_start(kinds[who], s);
    }
    for (i = 0; i < 4; i++) {
        child_kill(pid[i]);
    }
    assert_int_equal(*wrong_anywhere, 0);
    for (id = 0; id < 2; id++) {
        int found = get_byte(s, id, 64);

        assert_true(found >= 0 || found == -APR_EINCOMPLETE);
        assert_int_equal(put_byte(s, id, 0x66, 64), APR_SUCCESS);
        assert_int_equal(get_byte(s, id, 64), 0x66);
    }
    segment_free(s);
}

/* ------------------------------------------------------------------------
 * Owners that live and do not move
 */

static void stop_during_put(void *data)
{
    const death_t *d = data;
    unsigned char bytes[64];
    apr_uint64_t was;

    memset(bytes, 0xee, sizeof(bytes));
    if (slotmem_lock_take(&d->s->locks, slotmem_locks_stripe(d->id),
                          slotmem_writing(d->id, 64), &was,
                          &(slotmem_wait_t){ 0 })
        != APR_SUCCESS) {
        _exit(1);
    }
    slotmem_copy_in((slotmem_byte_t *)slot_at(d->s, d->id), bytes, 32);
    raise(SIGSTOP);
    slotmem_copy_in((slotmem_byte_t *)slot_at(d->s, d->id) + 32, bytes, 32);
    slotmem_lock_free(&d->s->locks, slotmem_locks_stripe(d->id), was);
}

static void test_a_stopped_owner_costs_a_bounded_wait(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s, .id = 5 };
    pid_t pid = child_start(stop_during_put, &d);
    unsigned int patience = 100;
    unsigned char bytes[64];

    (void)state;
    wait_for_state(pid, 'T');
    /* The calls end: that they do is the test.  Nothing else is held up. */
    assert_int_equal(put_byte(s, 5, 0x22, 64), APR_TIMEUP);
    assert_int_equal(get_byte(s, 5, 64), -APR_TIMEUP);
    assert_int_equal(put_byte(s, 4, 0x22, 3 * 64), APR_TIMEUP);
    assert_int_equal(get_byte(s, 4, 3 * 64), -APR_TIMEUP);
    /* Nor do those that gave up hold what they had got by then. */
    assert_int_equal(s->locks.lock[4].word & SLOTMEM_LOCK_HELD, 0);
    assert_int_equal(put_byte(s, 4, 0x22, 64), APR_SUCCESS);
    assert_int_equal(get_byte(s, 6, 64), 0x11);
    /* The parent takes what is there. */
    slotmem_locks_snapshot(&s->locks, 5, bytes, &patience);
    assert_int_equal(patience, 0);
    assert_int_equal(bytes[0], 0xee);
    assert_int_equal(bytes[63], 0x11);

    kill(pid, SIGCONT);
    assert_int_equal(child_reap(pid), 0);
    assert_int_equal(get_byte(s, 5, 64), 0xee);
    assert_int_equal(get_byte(s, 4, 64), 0x22);
    segment_free(s);
}

/* A number that the kernel has handed to somebody else. */
static void test_a_reused_pid_is_not_its_former_owner(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    slotmem_lock_t *lock = &s->locks.lock[5];
    apr_uint64_t own = mine(0);
    unsigned int other = self.process.birth == 1 ? 2 : self.process.birth - 1;

    (void)state;
    lock->writing = slotmem_writing(5, 64);
    lock->word =
        (own
         & ~((apr_uint64_t)SLOTMEM_LOCK_BIRTH_MASK << SLOTMEM_LOCK_LOW_BITS))
        | ((apr_uint64_t)other << SLOTMEM_LOCK_LOW_BITS);
    assert_torn_until_whole(s, 5);

    /* It is we: alive.  And so is one of whom nothing more is known. */
    lock->word = own;
    assert_int_equal(get_byte(s, 5, 64), -APR_TIMEUP);
    lock->word =
        own & ~((apr_uint64_t)SLOTMEM_LOCK_BIRTH_MASK << SLOTMEM_LOCK_LOW_BITS);
    assert_int_equal(put_byte(s, 5, 1, 64), APR_TIMEUP);
    segment_free(s);
}

/* After a slot of a stripe was torn, its neighbours are still copied whole. */
static void test_a_snapshot_waits_for_a_writer_beside_a_torn_slot(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    death_t d = { .s = s, .id = 5, .last = HALF_WRITTEN };
    unsigned int patience = 50;
    unsigned char bytes[64];

    (void)state;
    after_death(&d, die_during_put, 1);
    assert_int_equal(get_byte(s, 5, 64), -APR_EINCOMPLETE);
    assert_true(s->locks.lock[5].word & SLOTMEM_LOCK_TORN);
    slotmem_locks_snapshot(&s->locks, 5, bytes,
                           &patience); /* torn: as it stands */
    assert_int_equal(patience, 50);
    s->locks.lock[5].word |= SLOTMEM_LOCK_HELD;
    slotmem_locks_snapshot(&s->locks, 5 + SLOTMEM_STRIPES_MAX, bytes,
                           &patience);
    assert_int_equal(patience, 0);
    segment_free(s);
}

/* ------------------------------------------------------------------------
 * Mischief
 */

static void test_no_lock_word_leads_out_of_bounds(void **state)
{
    ap_slotmem_instance_t *s = segment_of_elevens();
    apr_uint64_t random = 12345;
    unsigned int i;

    (void)state;
    for (i = 0; i < 3000; i++) {
        unsigned int stripe =
            (unsigned int)(random_next(&random) % SLOTMEM_STRIPES_MAX);
        apr_uint64_t writing = random_next(&random), id;
        apr_uint64_t word = random_next(&random) | SLOTMEM_LOCK_HELD;

        if (i % 3 == 0) {
            writing &= UINT64_C(0xfff00000fff);
        }
        id = slotmem_writing_first(&s->locks, stripe, writing);
        assert_int_equal(id % SLOTMEM_STRIPES_MAX, stripe);
        if (id < NUM_OF_2_A_STRIPE) {
            assert_true(
                slotmem_writing_covers(&s->locks, writing, (unsigned int)id)
                <= 64);
        }

        s->locks.lock[stripe].writing = writing;
        s->locks.lock[stripe].word = word;
        slotmem_lock_mend(&s->locks, stripe, word);
        assert_false(s->locks.lock[stripe].word & SLOTMEM_LOCK_HELD);
        assert_int_equal(put_byte(s, stripe, 1, 64), APR_SUCCESS);
        assert_int_equal(get_byte(s, stripe, 64), 1);
    }
    segment_free(s);
}

static void test_whether_a_process_lives(void **state)
{
    death_t d = { .s = segment_of_elevens(), .id = 1 };
    unsigned int birth = process_birth(getpid());
    pid_t pid;

    (void)state;
    assert_true(birth != BIRTH_UNKNOWN && birth <= SLOTMEM_LOCK_BIRTH_MASK);
    assert_int_equal(state_of(getpid(), birth), PROCESS_ALIVE);
    assert_int_equal(state_of(getpid(), BIRTH_UNKNOWN), PROCESS_ALIVE);
    assert_int_equal(state_of(getpid(), birth ^ 1), PROCESS_GONE);
    assert_int_equal(state_of(0, birth), PROCESS_GONE);
    assert_int_equal(state_of(-1, birth), PROCESS_GONE);

    /* A name made to be misread. */
    assert_int_equal(prctl(PR_SET_NAME, "a) Z 1 1 (b) Z"), 0);
    assert_int_equal(process_birth(getpid()), birth);
    assert_int_equal(prctl(PR_SET_NAME, "unit"), 0);

    pid = child_start(die_during_get, &d);
    wait_for_state(pid, 'Z');
    assert_int_equal(process_birth(pid), BIRTH_NONE);
    assert_int_equal(state_of(pid, 1), PROCESS_GONE);
    child_reap(pid);
    assert_int_equal(process_birth(pid), BIRTH_NONE);
    assert_int_equal(state_of(pid, 1), PROCESS_GONE);
    segment_free(d.s);
}

#ifdef SLOTMEM_COPY_STORE
#define TEARS_TEST
#else
#define TEARS_TEST cmocka_unit_test(test_the_hammer_sees_tears_with_notmpsafe),
#endif

#define LOCK_TESTS                                                             \
    cmocka_unit_test(test_put_and_get),                                        \
        cmocka_unit_test(test_get_never_sees_half_of_a_put),                   \
        cmocka_unit_test(test_spans_do_not_tear),                              \
        cmocka_unit_test(test_spans_do_not_wait_for_each_other),               \
        cmocka_unit_test(test_spans_beside_single_slots),                      \
        cmocka_unit_test(test_lock_word_tells_its_owner),                      \
        TEARS_TEST cmocka_unit_test(test_notmpsafe_with_the_callers_lock),     \
        cmocka_unit_test(test_a_put_that_died),                                \
        cmocka_unit_test(test_what_a_killed_put_left_is_carried_on_as_torn),   \
        cmocka_unit_test(test_a_put_as_long_as_the_torn_one_heals),            \
        cmocka_unit_test(test_a_get_that_died_tears_nothing),                  \
        cmocka_unit_test(test_a_mender_that_died),                             \
        cmocka_unit_test(test_a_late_mender_changes_nothing),                  \
        cmocka_unit_test(test_mending_makes_a_word_that_never_was),            \
        cmocka_unit_test(test_a_span_that_died_waiting_tears_nothing),         \
        cmocka_unit_test(test_a_span_that_died_writing),                       \
        cmocka_unit_test(test_no_kill_blocks_or_tears),                        \
        cmocka_unit_test(test_a_stopped_owner_costs_a_bounded_wait),           \
        cmocka_unit_test(test_a_reused_pid_is_not_its_former_owner),           \
        cmocka_unit_test(                                                      \
            test_a_snapshot_waits_for_a_writer_beside_a_torn_slot),            \
        cmocka_unit_test(test_no_lock_word_leads_out_of_bounds),               \
        cmocka_unit_test(test_whether_a_process_lives)
