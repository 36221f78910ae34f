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
 * The core headers under Relacy, which runs C++ threads under the orders that
 * C11 allows: words of shared memory are rl::atomic, and the generic functions
 * of <stdatomic.h> that the headers use are these.
 *
 * Relacy knows no death.  Here a thread can be doomed to end before its n-th
 * atomic step (Doom).  What a compiler may do is part of it: a relaxed store
 * may be put off, behind others, until the next release, so a death may find
 * it undone though a later one is done.  (What a processor does is not: it
 * ends a killed program between two instructions, and what came before them
 * becomes visible.)
 */
#ifndef SLOTMEM_RELACY_H
#define SLOTMEM_RELACY_H

#include <relacy/relacy.hpp>

#undef memory_order_relaxed
#undef memory_order_acquire
#undef memory_order_release
#undef memory_order_acq_rel
#undef memory_order_seq_cst

static const rl::memory_order memory_order_relaxed = rl::mo_relaxed;
static const rl::memory_order memory_order_acquire = rl::mo_acquire;
static const rl::memory_order memory_order_release = rl::mo_release;
static const rl::memory_order memory_order_acq_rel = rl::mo_acq_rel;
static const rl::memory_order memory_order_seq_cst = rl::mo_seq_cst;

typedef rl::atomic<uint64_t> slotmem_word_t;
typedef rl::atomic<unsigned> slotmem_byte_t; /* a byte, printed as a number */

#define SLOTMEM_PART_ALIGN  8u
#define SLOTMEM_READ_TRIES  1u
#define SLOTMEM_WAIT_SPINS  0u
#define SLOTMEM_WAIT_YIELDS 0u
#define SLOTMEM_BACKOFF_MIN 1u
#define SLOTMEM_BACKOFF_MAX 1u

static const int THREADS_MAX = 4;

class Doom {
  public:
    /* Before thread i begins; of() gives that of the running thread. */
    static Doom all[THREADS_MAX];
    static Doom &of()
    {
        return all[rl::thread_index()];
    }

    void live()
    {
        doomed = false;
        count = 0;
    }

    /* Runs life(); false when it ended before step `last` of it. */
    template <typename F> bool survives(unsigned last, F life)
    {
        doomed = true;
        left = last;
        count = 0;
        if (_setjmp(end) != 0) {
            return false;
        }
        life();
        flush();
        doomed = false;
        return true;
    }

    /* Ends the thread if it is time, with some of what it put off done. */
    void step()
    {
        if (!doomed || left-- > 0) {
            return;
        }
        doomed = false;
        while (count > 0) {
            count--;
            if (rl::rand(2)) {
                put[count].store();
            }
        }
        _longjmp(end, 1);
    }

    void flush()
    {
        unsigned i;

        for (i = 0; i < count; i++) {
            put[i].store();
        }
        count = 0;
    }

    void put_off(slotmem_word_t *word, slotmem_byte_t *byte, uint64_t value)
    {
        unsigned i;

        for (i = 0; i < count; i++) {
            if (put[i].word == word && put[i].byte == byte) {
                put[i].value = value;
                return;
            }
        }
        RL_ASSERT(count < sizeof(put) / sizeof(put[0]));
        put[count].word = word;
        put[count].byte = byte;
        put[count].value = value;
        count++;
    }

    bool has_put_off(const void *at, uint64_t *value) const
    {
        unsigned i;

        for (i = 0; i < count; i++) {
            if (put[i].word == at || put[i].byte == at) {
                *value = put[i].value;
                return true;
            }
        }
        return false;
    }

    bool doomed;

  private:
    struct PutOff {
        slotmem_word_t *word;
        slotmem_byte_t *byte;
        uint64_t value;

        void store()
        {
            if (word) {
                word->store(value, rl::mo_relaxed, $);
            }
            else {
                byte->store((unsigned)value, rl::mo_relaxed, $);
            }
        }
    };

    jmp_buf end;
    unsigned left;
    unsigned count;
    PutOff put[16];
};

inline slotmem_word_t *as_word(slotmem_word_t *at)
{
    return at;
}

inline slotmem_word_t *as_word(slotmem_byte_t *)
{
    return 0;
}

inline slotmem_byte_t *as_byte(slotmem_word_t *)
{
    return 0;
}

inline slotmem_byte_t *as_byte(slotmem_byte_t *at)
{
    return at;
}

inline bool is_release(rl::memory_order order)
{
    return order == rl::mo_release || order == rl::mo_acq_rel
           || order == rl::mo_seq_cst;
}

template <typename T>
T atomic_load_explicit(const rl::atomic<T> *at, rl::memory_order order)
{
    uint64_t value;

    Doom::of().step();
    if (Doom::of().has_put_off(at, &value)) {
        return (T)value;
    }
    return at->load(order, $);
}

template <typename T>
void atomic_store_explicit(rl::atomic<T> *at, uint64_t value,
                           rl::memory_order order)
{
    Doom &doom = Doom::of();
    uint64_t before;

    doom.step();
    if (is_release(order)) {
        doom.flush();
    }
    else if (doom.doomed && (doom.has_put_off(at, &before) || rl::rand(2))) {
        doom.put_off(as_word(at), as_byte(at), value);
        return;
    }
    at->store((T)value, order, $);
}

/* What is put off must be done before a read-modify-write of the same word,
 * and before any that releases. */
inline void flush_before_rmw(const slotmem_word_t *at, rl::memory_order order)
{
    uint64_t value;

    Doom::of().step();
    if (is_release(order) || Doom::of().has_put_off(at, &value)) {
        Doom::of().flush();
    }
}

inline uint64_t atomic_fetch_or_explicit(slotmem_word_t *at, uint64_t bits,
                                         rl::memory_order order)
{
    flush_before_rmw(at, order);
    return at->fetch_or(bits, order, $);
}

inline uint64_t atomic_fetch_and_explicit(slotmem_word_t *at, uint64_t bits,
                                          rl::memory_order order)
{
    flush_before_rmw(at, order);
    return at->fetch_and(bits, order, $);
}

inline bool atomic_compare_exchange_weak_explicit(slotmem_word_t *at,
                                                  uint64_t *seen, uint64_t to,
                                                  rl::memory_order order,
                                                  rl::memory_order failed)
{
    flush_before_rmw(at, order);
    return at->compare_exchange_weak(*seen, to, order, $, failed, $);
}

inline bool atomic_compare_exchange_strong_explicit(slotmem_word_t *at,
                                                    uint64_t *seen, uint64_t to,
                                                    rl::memory_order order,
                                                    rl::memory_order failed)
{
    flush_before_rmw(at, order);
    return at->compare_exchange_strong(*seen, to, order, $, failed, $);
}

/* As a function of this namespace it would be ambiguous beside Relacy's. */
inline void slotmem_relacy_fence(rl::memory_order order)
{
    Doom::of().step();
    if (is_release(order)) {
        Doom::of().flush();
    }
    if (order != rl::mo_relaxed) {
        rl::atomic_thread_fence(order, $);
    }
}
#define atomic_thread_fence(order) slotmem_relacy_fence(order)

inline void slotmem_relacy_pause()
{
    rl::yield(1, $);
}

#endif /* SLOTMEM_RELACY_H */
