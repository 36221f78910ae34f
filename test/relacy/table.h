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
 * The slot table under Relacy: include/slotmem_table.h itself, in words of two
 * bits, so that three slots have two levels and five have three.  Part of
 * core.cc.
 */

/* Shared memory for a table, and what its slots hold: plain variables, whose
 * every access Relacy checks for a data race, so two owners, or one that did
 * not hear the former out, are found by the first access. */
template <unsigned NUM> struct TableMemory {
    slotmem_word_t words[2 * NUM + 2];
    rl::var<int> content[NUM];
    slotmem_table_t table;
    int deaths;

    void lay()
    {
        unsigned i;

        for (i = 0; i < 2 * NUM + 2; i++) {
            words[i].store(0, rl::mo_relaxed, $);
        }
        for (i = 0; i < NUM; i++) {
            content[i]($) = 0;
        }
        RL_ASSERT(slotmem_table_lay(&table, NUM, words) <= 2 * NUM + 2);
        deaths = 0;
        for (i = 0; i < (unsigned)THREADS_MAX; i++) {
            Doom::all[i].live();
        }
    }

    void fill(unsigned from)
    {
        for (; from < NUM; from++) {
            RL_ASSERT(slotmem_table_fgrab(&table, from));
        }
    }

    /* Any hints that are true: some of the words that are full say so. */
    void hint_some()
    {
        unsigned k, w;

        for (k = 0; k + 1 < table.levels; k++) {
            for (w = 0; w < table.words[k]; w++) {
                if (slotmem_table_word(&table, k, w) == SLOTMEM_WORD_FULL
                    && rl::rand(2)) {
                    table.level[k + 1][w / SLOTMEM_WORD_BITS].fetch_or(
                        slotmem_bit(w), rl::mo_relaxed, $);
                }
            }
        }
    }

    /* I3: at rest no hint of "full" hides a word that is not. */
    void assert_hints_true()
    {
        unsigned k, w;

        for (k = 0; k + 1 < table.levels; k++) {
            for (w = 0; w < table.words[k]; w++) {
                if (slotmem_table_word(&table, k + 1, w / SLOTMEM_WORD_BITS)
                    & slotmem_bit(w)) {
                    RL_ASSERT(slotmem_table_word(&table, k, w)
                              == SLOTMEM_WORD_FULL);
                }
            }
        }
    }

    /* Released by whoever knows that their owners are gone, all slots are
     * there to be had: each once. */
    void assert_nothing_lost()
    {
        unsigned i, id, had[NUM] = { 0 };

        for (i = 0; i < NUM; i++) {
            slotmem_table_release(&table, i);
        }
        RL_ASSERT(slotmem_table_count(&table) == 0);
        for (i = 0; i < NUM; i++) {
            RL_ASSERT(slotmem_table_grab(&table, &id));
            RL_ASSERT(id < NUM && !had[id]);
            had[id] = 1;
        }
        RL_ASSERT(!slotmem_table_grab(&table, &id));
        RL_ASSERT(slotmem_table_count(&table) == NUM);
    }

    void come(unsigned id)
    {
        RL_ASSERT(id < NUM);
        RL_ASSERT(content[id]($) == 0);
        content[id]($) = (int)rl::thread_index() + 1;
    }

    void go(unsigned id)
    {
        RL_ASSERT(content[id]($) == (int)rl::thread_index() + 1);
        content[id]($) = 0;
        RL_ASSERT(slotmem_table_release(&table, id));
    }
};

/* Everybody grabs, owns and releases; DEATH: and one ends at any step. */
template <unsigned NUM, int THREADS, unsigned TURNS, bool DEATH>
struct TableOwners
    : rl::test_suite<TableOwners<NUM, THREADS, TURNS, DEATH>, THREADS>,
      TableMemory<NUM> {
    void before()
    {
        this->lay();
    }

    void live()
    {
        unsigned turn, id;

        for (turn = 0; turn < TURNS; turn++) {
            if (slotmem_table_grab(&this->table, &id)) {
                this->come(id);
                this->go(id);
            }
            else {
                RL_ASSERT(THREADS > NUM || DEATH);
            }
        }
    }

    void thread(unsigned i)
    {
        if (!DEATH || i != 0) {
            live();
        }
        else if (!Doom::of().survives(rl::rand(12 * TURNS), [&] { live(); })) {
            this->deaths++;
        }
    }

    void after()
    {
        if (!this->deaths) {
            RL_ASSERT(slotmem_table_count(&this->table) == 0);
            this->assert_hints_true();
        }
        this->assert_nothing_lost();
    }
};

/* A full table: one releases slot 0, the others grab, and whoever gets none
 * has seen it full.  Where I3 is decided, at each level. */
template <unsigned NUM, int THREADS>
struct TableBrim : rl::test_suite<TableBrim<NUM, THREADS>, THREADS>,
                   TableMemory<NUM> {
    unsigned grabbed;

    void before()
    {
        this->lay();
        this->fill(0);
        this->hint_some();
        grabbed = 0;
    }

    void thread(unsigned i)
    {
        unsigned id;

        if (i == 0) {
            RL_ASSERT(slotmem_table_release(&this->table, 0));
        }
        else if (slotmem_table_grab(&this->table, &id)) {
            RL_ASSERT(id == 0);
            grabbed++;
        }
    }

    void after()
    {
        RL_ASSERT(grabbed <= 1);
        RL_ASSERT(slotmem_table_count(&this->table) == NUM - 1 + grabbed);
        this->assert_hints_true();
        this->assert_nothing_lost();
    }
};

/* A slot that a dead process left hidden under hints: who mends them and who
 * sets them at the same time leave no hint wrong. */
template <unsigned NUM, int THREADS>
struct TableMend : rl::test_suite<TableMend<NUM, THREADS>, THREADS>,
                   TableMemory<NUM> {
    unsigned grabbed;

    void before()
    {
        unsigned k, w, open = rl::rand(2) ? 0 : 2;

        this->lay();
        this->fill(0);
        for (k = 1; k < this->table.levels; k++) {
            for (w = 0; w < this->table.words[k]; w++) {
                this->table.level[k][w].store(SLOTMEM_WORD_FULL, rl::mo_relaxed,
                                              $);
            }
        }
        this->table.level[0][open / SLOTMEM_WORD_BITS].fetch_and(
            ~slotmem_bit(open), rl::mo_relaxed, $);
        grabbed = 0;
    }

    void thread(unsigned)
    {
        unsigned id;

        grabbed += slotmem_table_grab(&this->table, &id) != 0;
    }

    void after()
    {
        RL_ASSERT(grabbed == 1);
        RL_ASSERT(slotmem_table_count(&this->table) == NUM);
        this->assert_hints_true();
    }
};

/* Who fills a slot and then takes it shows it, filled, to whoever finds it in
 * use, by any call. */
struct TableShow : rl::test_suite<TableShow, 2>, TableMemory<3> {
    void before()
    {
        lay();
    }

    void thread(unsigned i)
    {
        if (i == 0) {
            content[2]($) = 77;
            RL_ASSERT(slotmem_table_fgrab(&table, 2));
            return;
        }
        if (rl::rand(2) ? !slotmem_table_used(&table, 2)
                        : !slotmem_table_leaf(&table, 1)) {
            return;
        }
        RL_ASSERT(content[2]($) == 77);
    }
};

/* A slot goes from one owner to the next by name. */
template <int THREADS>
struct TableByName : rl::test_suite<TableByName<THREADS>, THREADS>,
                     TableMemory<3> {
    void before()
    {
        this->lay();
    }

    void thread(unsigned)
    {
        unsigned turn;

        for (turn = 0; turn < 2; turn++) {
            if (slotmem_table_fgrab(&this->table, 1)) {
                this->come(1);
                this->go(1);
            }
        }
    }

    void after()
    {
        RL_ASSERT(slotmem_table_count(&this->table) == 0);
    }
};

#define TABLE_SCENARIOS                                                        \
    SCENARIO("table: 2 own 1 slot", TableOwners<1, 2, 2, false>)               \
    SCENARIO("table: 2 own 3 slots", TableOwners<3, 2, 2, false>)              \
    SCENARIO("table: 3 own 2 slots", TableOwners<2, 3, 1, false>)              \
    SCENARIO("table: 3 own 3 slots", TableOwners<3, 3, 2, false>)              \
    SCENARIO("table: 2 own 3 slots, one dies", TableOwners<3, 2, 2, true>)     \
    SCENARIO("table: 3 own 3 slots, one dies", TableOwners<3, 3, 1, true>)     \
    SCENARIO("table: brim, 2 levels, 2", TableBrim<3, 2>)                      \
    SCENARIO("table: brim, 2 levels, 3", TableBrim<3, 3>)                      \
    SCENARIO("table: brim, 3 levels, 2", TableBrim<5, 2>)                      \
    SCENARIO("table: brim, 3 levels, 3", TableBrim<8, 3>)                      \
    SCENARIO("table: mend, 2 levels, 2", TableMend<4, 2>)                      \
    SCENARIO("table: mend, 3 levels, 2", TableMend<8, 2>)                      \
    SCENARIO("table: mend, 3 levels, 3", TableMend<5, 3>)                      \
    SCENARIO("table: filled, then taken", TableShow)                           \
    SCENARIO("table: by name, 2", TableByName<2>)                              \
    SCENARIO("table: by name, 3", TableByName<3>)
