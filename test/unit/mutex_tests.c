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

/* The mutex between processes, by every mechanism that APR has here.  Part of
 * unit.c. */

typedef struct {
    const char *name;
    apr_lockmech_e mech;
    int survives; /* the death of its owner */
} mechanism_t;

static const mechanism_t mechanisms[] = {
    { "default", APR_LOCK_DEFAULT, -1 },
#if APR_HAS_FCNTL_SERIALIZE
    { "fcntl", APR_LOCK_FCNTL, 1 },
#endif
#if APR_HAS_FLOCK_SERIALIZE
    { "flock", APR_LOCK_FLOCK, 1 },
#endif
#if APR_HAS_SYSVSEM_SERIALIZE
    { "sysvsem", APR_LOCK_SYSVSEM, 1 },
#endif
#if APR_HAS_POSIXSEM_SERIALIZE
    { "posixsem", APR_LOCK_POSIXSEM, 0 },
#endif
#if APR_HAS_PROC_PTHREAD_SERIALIZE
    { "pthread", APR_LOCK_PROC_PTHREAD, 1 },
#endif
};

typedef struct {
    unsigned int plain; /* changed under the mutex, and only there */
    _Atomic unsigned int total;
    _Atomic int over;
    char lockfile[64];
} guarded_t;

static void mutex_reopen(const guarded_t *g)
{
    if (apr_global_mutex_child_init(&self.mutex,
                                    *g->lockfile ? g->lockfile : NULL, pool)
        != APR_SUCCESS) {
        _exit(1);
    }
}

/* Many may be refused, since the wait is bounded; none may lose a count. */
static void count_child(void *data)
{
    guarded_t *g = data;
    unsigned int i;

    mutex_reopen(g);
    for (i = 0; i < 50; i++) {
        if (mutex_lock() == APR_SUCCESS) {
            volatile unsigned int *plain = &g->plain;
            unsigned int seen = *plain;

            if (i % 8 == 0) {
                sched_yield();
            }
            *plain = seen + 1;
            g->total++;
            mutex_unlock();
        }
    }
}

static void hold_mutex_child(void *data)
{
    mutex_reopen(data);
    if (mutex_lock() != APR_SUCCESS) {
        _exit(1);
    }
    raise(SIGSTOP);
}

static void assert_mutex(const mechanism_t *m, guarded_t *g)
{
    apr_pool_t *own;
    apr_status_t rv;
    pid_t pid[3];
    unsigned int i;

    apr_pool_create(&own, pool);
    memset(g, 0, sizeof(*g));
    apr_snprintf(g->lockfile, sizeof(g->lockfile), "/tmp/slotmem-unit-%d.lock",
                 (int)getpid());
    assert_int_equal(
        apr_global_mutex_create(&self.mutex, g->lockfile, m->mech, own),
        APR_SUCCESS);
    for (i = 0; i < 3; i++) {
        pid[i] = child_start(count_child, g);
    }
    for (i = 0; i < 3; i++) {
        assert_int_equal(child_reap(pid[i]), 0);
    }
    assert_int_equal(g->plain, g->total);
    assert_true(g->total > 0);

    /* Held by one that has stopped: the wait ends. */
    pid[0] = child_start(hold_mutex_child, g);
    wait_for_state(pid[0], 'T');
    alarm((unsigned int)apr_time_sec(LIMIT));
    assert_int_equal(mutex_lock(), APR_TIMEUP);
    /* And then dies. */
    child_kill(pid[0]);
    rv = mutex_lock();
    alarm(0);
    if (m->survives >= 0) {
        assert_int_equal(rv, m->survives ? APR_SUCCESS : APR_TIMEUP);
    }
    if (rv == APR_SUCCESS) {
        mutex_unlock();
    }

    /* Mending needs no mutex, so it goes on in either case. */
    {
        ap_slotmem_instance_t *s = segment_of_elevens();
        death_t d = { .s = s, .id = 5, .last = HALF_WRITTEN };

        after_death(&d, die_during_put, 1);
        assert_torn_until_whole(s, 5);
        segment_free(s);
    }
    self.mutex = NULL;
    apr_pool_destroy(own);
    unlink(g->lockfile);
}

static void test_every_mechanism_excludes_and_ends(void **state)
{
    guarded_t *g = mmap(NULL, sizeof(*g), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    size_t i;

    (void)state;
    assert_ptr_not_equal(g, MAP_FAILED);
    for (i = 0; i < sizeof(mechanisms) / sizeof(mechanisms[0]); i++) {
        assert_mutex(&mechanisms[i], g);
    }
    munmap(g, sizeof(*g));
}

#define MUTEX_TESTS cmocka_unit_test(test_every_mechanism_excludes_and_ends)
