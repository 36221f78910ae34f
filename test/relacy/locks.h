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
 * The slot locks under Relacy: include/slotmem_locks.h itself, with two
 * stripes and slots of a few bytes.  Part of core.cc.
 */

/* The world of a process, as slotmem_locks_env_t wants it.  A thread stands
 * for a process; `gone` is the kernel, who answers for the dead, and whose
 * answer comes after all that they did. */
struct World {
    slotmem_word_t gone[THREADS_MAX];
    uint64_t time;
    unsigned mended;

    static World *current;

    void begin()
    {
        int i;

        for (i = 0; i < THREADS_MAX; i++) {
            gone[i].store(0, rl::mo_relaxed, $);
            Doom::all[i].live();
        }
        time = 0;
        mended = 0;
        current = this;
    }

    void died(unsigned i)
    {
        gone[i].store(1, rl::mo_release, $);
    }

    static int lives(slotmem_process_t process)
    {
        RL_ASSERT(process.birth == 1);
        RL_ASSERT(process.pid >= 1 && process.pid <= (unsigned)THREADS_MAX);
        return !current->gone[process.pid - 1].load(rl::mo_acquire, $);
    }

    /* Two looks are so far apart that the second finds it time to ask. */
    static uint64_t now()
    {
        return current->time += SLOTMEM_WAIT_SUSPECT + 1;
    }

    static void nap(unsigned)
    {
        rl::yield(1, $);
    }

    static void note(const slotmem_locks_t *, slotmem_process_t, unsigned)
    {
        current->mended++;
    }
};

World *World::current;

static const slotmem_process_t selves[THREADS_MAX] = {
    { 1, 1 }, { 2, 1 }, { 3, 1 }, { 4, 1 }
};

static const slotmem_locks_env_t envs[THREADS_MAX] = {
    { &selves[0], World::lives, World::now, World::nap, World::note },
    { &selves[1], World::lives, World::now, World::nap, World::note },
    { &selves[2], World::lives, World::now, World::nap, World::note },
    { &selves[3], World::lives, World::now, World::nap, World::note },
};

/* Shared memory for NUM slots of SIZE bytes, and each process's private view
 * of it. */
template <unsigned NUM, unsigned SIZE> struct LockMemory {
    slotmem_word_t words[2 * NUM + NUM + NUM];
    slotmem_byte_t slots[NUM * SIZE];
    slotmem_locks_t locks[THREADS_MAX];
    World world;
    bool died_writing; /* a write began and did not end */

    void lay()
    {
        unsigned i;

        RL_ASSERT(slotmem_locks_size(NUM) <= 4 * NUM * sizeof(uint64_t));
        for (i = 0; i < 4 * NUM; i++) {
            words[i].store(0, rl::mo_relaxed, $);
        }
        for (i = 0; i < NUM * SIZE; i++) {
            slots[i].store(0, rl::mo_relaxed, $);
        }
        for (i = 0; i < (unsigned)THREADS_MAX; i++) {
            slotmem_locks_lay(&locks[i], NUM, SIZE, words, slots, &envs[i]);
        }
        world.begin();
        died_writing = false;
    }

    slotmem_locks_t *mine()
    {
        return &locks[rl::thread_index()];
    }

    slotmem_locks_result_t write(unsigned id, unsigned char value, size_t len)
    {
        unsigned char bytes[NUM * SIZE];
        slotmem_locks_result_t rv;

        memset(bytes, value, sizeof(bytes));
        RL_ASSERT(slotmem_locks_fit(mine(), id, len));
        rv = slotmem_locks_write(mine(), id, bytes, len);
        RL_ASSERT(rv == SLOTMEM_LOCKS_OK || rv == SLOTMEM_LOCKS_TIMEUP);
        return rv;
    }

    /* The value that all bytes have; -1 torn, -2 time is up. */
    int read(unsigned id, size_t len)
    {
        unsigned char bytes[NUM * SIZE];
        slotmem_locks_result_t rv = slotmem_locks_read(mine(), id, bytes, len);

        if (rv == SLOTMEM_LOCKS_TORN) {
            return -1;
        }
        if (rv == SLOTMEM_LOCKS_TIMEUP) {
            return -2;
        }
        RL_ASSERT(rv == SLOTMEM_LOCKS_OK);
        assert_uniform(bytes, len);
        return bytes[0];
    }

    static void assert_uniform(const unsigned char *bytes, size_t len)
    {
        size_t i;

        for (i = 1; i < len; i++) {
            RL_ASSERT(bytes[i] == bytes[0]);
        }
    }

    /* A thread that is doomed to end before one of its first `steps`. */
    template <typename F> void mortal(unsigned steps, F life)
    {
        if (!Doom::of().survives(rl::rand(steps), life)) {
            died_writing = true;
            world.died(rl::thread_index());
        }
    }

    /* At rest: each slot can be read, or was torn by a death; and it can be
     * written, and then holds that. */
    void assert_rest()
    {
        unsigned id;

        for (id = 0; id < NUM; id++) {
            int found = read(id, SIZE);

            RL_ASSERT(found >= 0 || (found == -1 && died_writing));
        }
        assert_works();
    }

    void assert_works()
    {
        unsigned id;

        for (id = 0; id < NUM; id++) {
            RL_ASSERT(write(id, 99, SIZE) == SLOTMEM_LOCKS_OK);
            RL_ASSERT(read(id, SIZE) == 99);
        }
        for (id = 0; id < mine()->stripes; id++) {
            uint64_t word = slotmem_relaxed(mine()->lock[id].word);

            RL_ASSERT(!(word & SLOTMEM_LOCK_HELD));
            RL_ASSERT(!(word & SLOTMEM_LOCK_TORN) || died_writing);
            RL_ASSERT(slotmem_relaxed(mine()->reach[id]) == 0);
        }
    }

    static uint64_t slotmem_relaxed(const slotmem_word_t &word)
    {
        return word.load(rl::mo_relaxed, $);
    }
};

/* Writers against readers. */
template <unsigned WRITERS, unsigned READERS, unsigned TURNS>
struct LockTear
    : rl::test_suite<LockTear<WRITERS, READERS, TURNS>, WRITERS + READERS>,
      LockMemory<1, 2> {
    void before()
    {
        lay();
    }

    void thread(unsigned i)
    {
        unsigned turn;
        int last = 0, found;

        for (turn = 1; turn <= TURNS; turn++) {
            if (i < WRITERS) {
                write(0, (unsigned char)(WRITERS * turn + i), 2);
                continue;
            }
            found = read(0, 2);
            RL_ASSERT(found != -1);
            /* One writer counts up: what was read is not taken back. */
            RL_ASSERT(WRITERS > 1 || found == -2 || found >= last);
            last = found > last ? found : last;
        }
    }

    void after()
    {
        assert_rest();
    }
};

/* A read of what one wrote, or of what somebody wrote since. */
struct LockOwn : rl::test_suite<LockOwn, 2>, LockMemory<1, 2> {
    void before()
    {
        lay();
    }

    void thread(unsigned i)
    {
        int found;

        if (write(0, (unsigned char)(i + 1), 2) == SLOTMEM_LOCKS_OK) {
            found = read(0, 2);
            RL_ASSERT(found == 1 || found == 2 || found == -2);
        }
    }

    void after()
    {
        assert_rest();
    }
};

/* Writes and reads over two slots and beside them, of one stripe each or, of
 * four slots, of a stripe that comes twice. */
template <unsigned NUM>
struct LockSpan : rl::test_suite<LockSpan<NUM>, 3>, LockMemory<NUM, 1> {
    void before()
    {
        this->lay();
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            this->write(0, 1, NUM);
        }
        else if (i == 1) {
            this->write(0, 2, NUM);
        }
        else if (rl::rand(2)) {
            RL_ASSERT(this->read(0, NUM) != -1);
        }
        else {
            RL_ASSERT(this->read(NUM - 1, 1) != -1);
        }
    }

    void after()
    {
        RL_ASSERT(this->read(0, NUM) > 0);
        this->assert_rest();
    }
};

/* A writer dies anywhere, before, within or after its write, while others
 * read and write. */
template <unsigned LEN>
struct LockDeath : rl::test_suite<LockDeath<LEN>, 3>, LockMemory<1, 2> {
    void before()
    {
        this->lay();
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            this->mortal(14, [&] { this->write(0, 1, LEN); });
        }
        else if (i == 1) {
            this->read(0, LEN);
            this->read(0, LEN);
        }
        else {
            this->write(0, 2, LEN);
            this->read(0, LEN);
        }
    }

    void after()
    {
        this->assert_rest();
    }
};

/* A writer dies, and one who finds it dies mending. */
struct LockDeathOfMender : rl::test_suite<LockDeathOfMender, 3>,
                           LockMemory<1, 2> {
    void before()
    {
        lay();
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            mortal(12, [&] { write(0, 1, 2); });
        }
        else if (i == 1) {
            mortal(24, [&] { write(0, 2, 2); });
        }
        else {
            read(0, 2);
        }
    }

    void after()
    {
        assert_rest();
    }
};

/* A write over two slots dies anywhere. */
struct LockSpanDeath : rl::test_suite<LockSpanDeath, 2>, LockMemory<2, 1> {
    void before()
    {
        lay();
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            mortal(24, [&] { write(0, 1, 2); });
        }
        else if (rl::rand(2)) {
            read(0, 2);
        }
        else {
            write(1, 2, 1);
            read(1, 1);
        }
    }

    void after()
    {
        assert_rest();
    }
};

/* A torn slot: a short write leaves it torn, one that reaches as far as the
 * torn one heals it, and whoever sees it healed sees what healed it. */
template <bool DEATH>
struct LockHeal : rl::test_suite<LockHeal<DEATH>, 3>, LockMemory<2, 2> {
    size_t reach;

    /* Two slots of one stripe. */
    void before()
    {
        this->lay();
        reach = 1 + rl::rand(2);
        this->slots[0].store(5, rl::mo_relaxed, $);
        slotmem_locks_tear(&this->locks[0], 0, reach);
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            if (DEATH) {
                this->mortal(16, [&] { this->write(0, 7, 1); });
            }
            else {
                this->write(0, 7, 1);
            }
        }
        else if (i == 1) {
            this->write(0, 8, 2);
        }
        else {
            int found = this->read(0, 1);

            RL_ASSERT(found < 0 || found == 7 || found == 8);
        }
    }

    void after()
    {
        int found = this->read(0, 1);

        RL_ASSERT(found == 7 || found == 8
                  || (found == -1 && this->died_writing));
        this->assert_works();
    }
};

/* Two slots of one stripe: a death in the one leaves the other alone, and the
 * farther of two torn ones counts for both. */
struct LockReach : rl::test_suite<LockReach, 2>, LockMemory<4, 2> {
    void before()
    {
        lay();
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            mortal(14, [&] { write(0, 7, 2); });
        }
        else {
            write(2, 8, 2);
        }
    }

    void after()
    {
        int torn = read(0, 2) == -1;

        RL_ASSERT(!torn || died_writing);
        RL_ASSERT(read(2, 2) == 8);
        RL_ASSERT(slotmem_locks_torn(mine(), 0) == (torn ? 2 : 0));
        slotmem_locks_tear(mine(), 2, 1);
        write(0, 6, 1);
        RL_ASSERT(read(0, 1) == (torn ? -1 : 6));
        write(2, 6, 1);
        RL_ASSERT(read(2, 1) == (torn ? -1 : 6));
        write(0, 6, 2);
        RL_ASSERT(read(0, 2) == 6);
        assert_works();
    }
};

/* A copy without a lock: whole, or the answer says how far it may be half. */
template <bool DEATH>
struct LockSnapshot : rl::test_suite<LockSnapshot<DEATH>, 3>, LockMemory<1, 2> {
    void before()
    {
        this->lay();
    }

    void thread(unsigned i)
    {
        unsigned char bytes[2];
        unsigned patience = rl::rand(2);
        size_t half;

        if (i == 0) {
            if (DEATH) {
                this->mortal(14, [&] { this->write(0, 1, 2); });
            }
            else {
                this->write(0, 1, 2);
            }
        }
        else if (i == 1) {
            this->write(0, 2, 2);
        }
        else {
            half = slotmem_locks_snapshot(this->mine(), 0, bytes, &patience);
            RL_ASSERT(half <= 2);
            if (half == 0) {
                this->assert_uniform(bytes, 2);
            }
        }
    }

    void after()
    {
        this->assert_rest();
    }
};

/* A copy without a lock of a torn slot, while a write heals it: whoever sees
 * the mark gone has the bytes of what healed it, or says that it cannot tell. */
struct LockSnapshotHeal : rl::test_suite<LockSnapshotHeal, 2>,
                          LockMemory<1, 2> {
    void before()
    {
        lay();
        slots[0].store(5, rl::mo_relaxed, $);
        slotmem_locks_tear(&locks[0], 0, 2);
    }

    void thread(unsigned i)
    {
        unsigned char bytes[2];
        unsigned patience = rl::rand(2);

        if (i == 0) {
            write(0, 1, 2);
        }
        else if (slotmem_locks_snapshot(mine(), 0, bytes, &patience) == 0) {
            RL_ASSERT(bytes[0] == 1 && bytes[1] == 1);
        }
    }

    void after()
    {
        assert_rest();
    }
};

/* A copy without a lock of slot 0, while one writes it and then, of the same
 * stripe, another slot: by itself, or in a write over two.  What the second
 * write notes is not the first one's. */
template <bool SPAN>
struct LockSnapshotNext : rl::test_suite<LockSnapshotNext<SPAN>, 2>,
                          LockMemory<4, 2> {
    void before()
    {
        this->lay();
    }

    void thread(unsigned i)
    {
        unsigned char bytes[2];

        if (i == 0) {
            this->write(0, 1, 2);
            this->write(SPAN ? 1 : 2, 2, SPAN ? 4 : 2);
        }
        else if (slotmem_snapshot_as_is(this->mine(), 0, bytes) == 0) {
            this->assert_uniform(bytes, 2);
        }
    }

    void after()
    {
        this->assert_rest();
    }
};

#define LOCK_SCENARIOS                                                         \
    SCENARIO("locks: 1 writes, 1 reads", LockTear<1, 1, 2>)                    \
    SCENARIO("locks: 1 writes, 2 read", LockTear<1, 2, 2>)                     \
    SCENARIO("locks: 2 write, 1 reads", LockTear<2, 1, 2>)                     \
    SCENARIO("locks: 2 write and read", LockOwn)                               \
    SCENARIO("locks: over 2 slots", LockSpan<2>)                               \
    SCENARIO("locks: over 3 slots, 2 of a stripe", LockSpan<3>)                \
    SCENARIO("locks: a writer dies", LockDeath<2>)                             \
    SCENARIO("locks: a writer and a mender die", LockDeathOfMender)            \
    SCENARIO("locks: a writer over 2 slots dies", LockSpanDeath)               \
    SCENARIO("locks: a torn slot heals", LockHeal<false>)                      \
    SCENARIO("locks: a torn slot heals, one dies", LockHeal<true>)             \
    SCENARIO("locks: torn slots of one stripe", LockReach)                     \
    SCENARIO("locks: a copy without a lock", LockSnapshot<false>)              \
    SCENARIO("locks: a copy without a lock, one dies", LockSnapshot<true>)     \
    SCENARIO("locks: a copy while a slot heals", LockSnapshotHeal)             \
    SCENARIO("locks: a copy, and the next write", LockSnapshotNext<false>)     \
    SCENARIO("locks: a copy, and one over 2 slots", LockSnapshotNext<true>)
