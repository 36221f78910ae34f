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

/**
 * @file  slotmem_locks.h
 * @brief Reads and writes of slots in shared memory that never see or leave
 *        half of one write and half of another, whoever is killed where.
 *
 * C11, static inline, nothing of httpd or APR.  What lies outside (who am I,
 * does that process live, what time is it) comes in a slotmem_locks_env_t.
 * test/unit validates it, test/relacy runs it under the C11
 * memory model, test/model has the argument as spin models.
 *
 *     shared memory:
 *     +------------------------+--------------+-------------------+
 *     | word, writing | word.. | torn 1 bit.. | reach | reach | .. |
 *     +------------------------+--------------+-------------------+
 *       a pair a stripe          1 bit a slot   1 word a stripe
 *
 * write against write and read: a sequence lock for each stripe of slots
 * (slot i belongs to stripe i % SLOTMEM_STRIPES_MAX).  Its word:
 *
 *     not held:  63                                     2    1      0
 *               | sequence: one more after every write   | torn |   0  |
 *     held:      63        32 31         17 16          2    1      0
 *               | owner's pid | its birth   | low bits of  | torn |   1  |
 *               |             |             | the sequence |      |      |
 *
 *   W   A writer swaps "not held" for "held" with one compare-and-swap,
 *       notes in `writing` what it is about to change, copies, notes in
 *       `writing` that it is done, and stores the old sequence plus one.
 *   R   A reader notes the word, copies, and looks at the word again.  It
 *       writes nothing, and starts over when the word was held or has moved.
 *
 * Orders.  A reader that saw one byte of a write must see that the word moved:
 *
 *       W: [1] word = held   [2] fence(release)   [3] write the bytes
 *       R: [4] read bytes    [5] fence(acquire)   [6] read word
 *
 * If [4] reads what [3] wrote, the fences [2] and [5] synchronize, so [1]
 * happens before [6]: R sees the held word or a later one, never the old.
 * And a reader that starts from the word stored by a write must see all of
 * its bytes: that store is a release ([7]) and the reader's first look an
 * acquire ([8]).  Writers hand the slot to each other by [7] and the acquire
 * of [1].  (Boehm 2012, "Can seqlocks get along with programming language
 * memory models?", derives the same fences.)
 *
 * A writer dies while holding the word.  Whoever waits for it looks, after a
 * while, whether the owner lives (its pid, and when that process began, for
 * a pid may be somebody else's by now).  If it is gone, the waiter mends:
 *   - it takes the lock over, by a compare-and-swap from the very word that
 *     was judged dead.  So there is one mender; another, slow after its
 *     judgement, changes nothing.
 *   - `writing` says which slots may have been left half written, and how
 *     far: a write always begins at the start of its first slot.  Done: none,
 *     for the owner says so after its last byte; and it was set before the
 *     first, since it precedes [2].  (What a compiler moves, a death may find
 *     in that order: the orders of these two stores are for it, too.)  The
 *     slots get their bit in
 *     the torn words: half of one write and half of another is nothing to
 *     hand out, so reads answer SLOTMEM_LOCKS_TORN until somebody writes at
 *     least as far as the torn write may have got, which `reach` keeps.  (For
 *     a stripe, not for a slot: the farthest of its torn slots counts for
 *     all of them.)
 *   - the word becomes "not held" with a sequence nobody has seen (the high
 *     bits are in the dead writer's registers; the clock takes their place:
 *     it is monotonic, and no segment outlives the boot that it counts from).
 * A mender that dies leaves the lock as its own, and `writing` as it was: the
 * next one does the same again.  (Hence it does not change `writing`, which
 * marks nothing that is not torn until the next owner sets it.)  An owner that
 * dies while it heals a stripe may leave the word's torn bit without a torn
 * slot: that costs a reader one look.
 *
 * What a dead process did, its mender sees: that it is gone is told by the
 * kernel, after all that it did.  So the mender's own loads need no order.
 *
 * The owner lives and does not move on: SLOTMEM_LOCKS_TIMEUP.  A reader that
 * loses against a stream of writers takes the lock as a writer would, after
 * SLOTMEM_READ_TRIES, so it gets its turn.
 *
 * Every word may hold anything, for every process can write it: what is
 * derived from one is cut to the private geometry before it is used, and
 * every loop and every wait has an end (test/shared-words.md).
 *
 * Numbers: a reader is fooled by a word that comes back equal during one
 * copy, which takes 2^62 writes.
 */
#ifndef SLOTMEM_LOCKS_H
#define SLOTMEM_LOCKS_H

#include "slotmem_word.h"

#ifndef SLOTMEM_STRIPES_MAX
#define SLOTMEM_STRIPES_MAX 1024u /* slot i is guarded by lock i % this */
#endif

#define SLOTMEM_LOCK_HELD       UINT64_C(1)
#define SLOTMEM_LOCK_TORN       UINT64_C(2) /* a slot of the stripe is torn */
#define SLOTMEM_LOCK_STEP       UINT64_C(4) /* one write                    */
#define SLOTMEM_LOCK_LOW_BITS   17u         /* sequence in a held word      */
#define SLOTMEM_LOCK_LOW_MASK   UINT64_C(0x1fffc)
#define SLOTMEM_LOCK_BIRTH_BITS 15u
#define SLOTMEM_LOCK_BIRTH_MASK ((1u << SLOTMEM_LOCK_BIRTH_BITS) - 1)

/* Patience, of each call.  Microseconds where nothing else is said. */
#ifndef SLOTMEM_READ_TRIES
#define SLOTMEM_READ_TRIES  64u
#define SLOTMEM_WAIT_SPINS  100u /* on the processor, then           */
#define SLOTMEM_WAIT_YIELDS 100u /* giving it up, then sleeping      */
#endif
#define SLOTMEM_WAIT_NAP       200u
#define SLOTMEM_WAIT_SUSPECT   5000u     /* before the owner is looked at    */
#define SLOTMEM_WAIT_STALLED   1000000u  /* the same word all the time       */
#define SLOTMEM_WAIT_MAX       10000000u /* words that move, not for us      */
#define SLOTMEM_SNAPSHOT_TRIES 10000u    /* a good patience for a whole store */
#define SLOTMEM_SNAPSHOT_NAPS  200u /* of these, the last ones sleep 1 ms */

/** What became of a call.  Each but the first changes nothing. */
typedef enum {
    SLOTMEM_LOCKS_OK,
    SLOTMEM_LOCKS_TIMEUP, /* who holds the lock lives and does not move on */
    SLOTMEM_LOCKS_TORN,   /* a write died half way, and nobody wrote since */
    SLOTMEM_LOCKS_BUSY    /* inside: a writer was there, try again         */
} slotmem_locks_result_t;

/** A process, as it is noted in a held word. */
typedef struct {
    uint32_t pid;
    uint32_t birth; /* SLOTMEM_LOCK_BIRTH_BITS of when it began */
} slotmem_process_t;

typedef struct slotmem_locks slotmem_locks_t;

/** What a process must provide.  Private, and the same for all its locks. */
typedef struct {
    /** This process; set anew after every fork. */
    const slotmem_process_t *self;
    /** 0 when that process is gone, and what it did is visible (as it is
     *  when the kernel says so).  The numbers come from shared memory and may
     *  be any; asking must do nothing to the process. */
    int (*lives)(slotmem_process_t process);
    /** Microseconds, monotonic, not 0, the same in every process. */
    uint64_t (*now)(void);
    /** Sleeps about that many microseconds; 0: leaves the processor once. */
    void (*nap)(unsigned int microseconds);
    /** A dead process's lock was mended; `torn` of its slots are refused from
     *  now on.  For the log. */
    void (*died)(const slotmem_locks_t *k, slotmem_process_t process,
                 unsigned int torn);
} slotmem_locks_env_t;

/* One stripe of slots. */
typedef struct {
    slotmem_word_t word;
    slotmem_word_t writing; /* see slotmem_writing */
} slotmem_lock_t;

/** The locks of a segment as one process sees them.  Private memory. */
struct slotmem_locks {
    slotmem_lock_t *lock;  /* shared: one a stripe         */
    slotmem_word_t *torn;  /* shared: 1 bit a slot         */
    slotmem_word_t *reach; /* shared: bytes, one a stripe  */
    slotmem_byte_t *slots; /* shared                       */
    size_t item_size;      /* bytes in a slot              */
    unsigned int item_num; /* slots                        */
    unsigned int stripes;
    const slotmem_locks_env_t *env;
};

/* ------------------------------------------------------------------ */
/* Shape                                                               */
/* ------------------------------------------------------------------ */

static inline unsigned int slotmem_locks_stripes(unsigned int item_num)
{
    return item_num < SLOTMEM_STRIPES_MAX ? item_num : SLOTMEM_STRIPES_MAX;
}

/* Words of each part, a multiple of SLOTMEM_PART_ALIGN bytes. */
static inline size_t slotmem_locks_part(size_t words)
{
    return slotmem_part_end(words * sizeof(uint64_t)) / sizeof(uint64_t);
}

/**
 * Bytes of shared memory for the locks of `item_num` slots: at most 2^29 and
 * some, a multiple of SLOTMEM_PART_ALIGN.
 */
static inline size_t slotmem_locks_size(unsigned int item_num)
{
    const unsigned int stripes = slotmem_locks_stripes(item_num);

    return (slotmem_locks_part(2 * (size_t)stripes)
            + slotmem_locks_part(slotmem_words_for(item_num))
            + slotmem_locks_part(stripes))
           * sizeof(uint64_t);
}

/**
 * Fills in the locks of `item_num` slots over shared memory, zero when fresh.
 * @param item_size bytes in a slot; item_size * item_num fits a size_t
 * @param base slotmem_locks_size() bytes, aligned to SLOTMEM_PART_ALIGN
 * @param slots the first slot
 * @param env is kept
 */
static inline void slotmem_locks_lay(slotmem_locks_t *k, unsigned int item_num,
                                     size_t item_size, slotmem_word_t *base,
                                     slotmem_byte_t *slots,
                                     const slotmem_locks_env_t *env)
{
    k->item_num = item_num;
    k->item_size = item_size;
    k->stripes = slotmem_locks_stripes(item_num);
    k->lock = (slotmem_lock_t *)(void *)base;
    k->torn = base + slotmem_locks_part(2 * (size_t)k->stripes);
    k->reach = k->torn + slotmem_locks_part(slotmem_words_for(item_num));
    k->slots = slots;
    k->env = env;
}

static inline slotmem_byte_t *slotmem_locks_slot(const slotmem_locks_t *k,
                                                 unsigned int id)
{
    return k->slots + k->item_size * id;
}

/**
 * Do `len` bytes from the start of slot `id` on lie within the slots?  What
 * the callers of slotmem_locks_read and slotmem_locks_write ask first.
 */
static inline int slotmem_locks_fit(const slotmem_locks_t *k, unsigned int id,
                                    size_t len)
{
    return id < k->item_num
           && (len <= k->item_size || len <= k->item_size * (k->item_num - id));
}

static inline unsigned int slotmem_locks_stripe(unsigned int id)
{
    return id % SLOTMEM_STRIPES_MAX;
}

/* ------------------------------------------------------------------ */
/* The copy                                                            */
/* ------------------------------------------------------------------ */

/*
 * The copy between private and shared memory races with other processes by
 * design; C11 has no word for that.  memcpy between the fences is what every
 * compiler in use takes for what it looks like, and the only form that costs
 * what memcpy costs.  Tools that look at every access get the bytes one by
 * one: a checker of the memory model relaxed, as the paper has it, so that it
 * sees what the fences give; ThreadSanitizer, which does not know fences, each
 * with the order that the fence would give.
 */
#if defined(SLOTMEM_RELACY)
#define SLOTMEM_COPY_STORE memory_order_relaxed
#define SLOTMEM_COPY_LOAD  memory_order_relaxed
#elif defined(__SANITIZE_THREAD__)
#define SLOTMEM_COPY_STORE memory_order_release
#define SLOTMEM_COPY_LOAD  memory_order_acquire
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOTMEM_COPY_STORE memory_order_release
#define SLOTMEM_COPY_LOAD  memory_order_acquire
#endif
#endif

#ifdef SLOTMEM_COPY_STORE
#ifdef SLOTMEM_RELACY
typedef slotmem_byte_t slotmem_shared_byte_t;
#else
typedef _Atomic unsigned char slotmem_shared_byte_t;
#endif

static inline void slotmem_bytes_in(slotmem_byte_t *shared, const void *from,
                                    size_t len)
{
    slotmem_shared_byte_t *to = (slotmem_shared_byte_t *)(void *)shared;
    const unsigned char *bytes = (const unsigned char *)from;
    size_t i;

    for (i = 0; i < len; i++) {
        atomic_store_explicit(&to[i], bytes[i], SLOTMEM_COPY_STORE);
    }
}

static inline void slotmem_bytes_out(void *to, const slotmem_byte_t *shared,
                                     size_t len)
{
    const slotmem_shared_byte_t *from =
        (const slotmem_shared_byte_t *)(const void *)shared;
    unsigned char *bytes = (unsigned char *)to;
    size_t i;

    for (i = 0; i < len; i++) {
        bytes[i] = atomic_load_explicit(&from[i], SLOTMEM_COPY_LOAD);
    }
}
#else
static inline void slotmem_bytes_in(slotmem_byte_t *shared, const void *from,
                                    size_t len)
{
    memcpy(shared, from, len);
}

static inline void slotmem_bytes_out(void *to, const slotmem_byte_t *shared,
                                     size_t len)
{
    memcpy(to, shared, len);
}
#endif

/* Into a slot.  The caller holds its lock. */
static inline void slotmem_copy_in(slotmem_byte_t *shared, const void *from,
                                   size_t len)
{
    atomic_thread_fence(memory_order_release); /* [2], pairs with [5] */
    slotmem_bytes_in(shared, from, len);
}

/* Out of a slot. */
static inline void slotmem_copy_out(void *to, const slotmem_byte_t *shared,
                                    size_t len)
{
    slotmem_bytes_out(to, shared, len);
    atomic_thread_fence(memory_order_acquire); /* [5], pairs with [2] */
}

/* ------------------------------------------------------------------ */
/* Torn slots                                                          */
/* ------------------------------------------------------------------ */

/*
 * The torn bits and the reach of a stripe are written by whoever holds its
 * lock; their orders are those of the word that publishes them.
 */

/* Relaxed: who asks has read the word by an acquire ([8] or [1]), which pairs
 * with the release that published the bit. */
static inline int slotmem_torn_get(const slotmem_locks_t *k, unsigned int id)
{
    return (atomic_load_explicit(&k->torn[id / SLOTMEM_WORD_BITS],
                                 memory_order_relaxed)
            & slotmem_bit(id))
           != 0;
}

/* A read-modify-write, for other stripes have their bits in the same word.
 * Relaxed: published by the release of the word. */
static inline void slotmem_torn_set(slotmem_locks_t *k, unsigned int id)
{
    atomic_fetch_or_explicit(&k->torn[id / SLOTMEM_WORD_BITS], slotmem_bit(id),
                             memory_order_relaxed);
}

static inline void slotmem_torn_clear(slotmem_locks_t *k, unsigned int id)
{
    atomic_fetch_and_explicit(&k->torn[id / SLOTMEM_WORD_BITS],
                              ~slotmem_bit(id), memory_order_relaxed);
}

/* How far from its start a torn slot of the stripe may be half written, in
 * bytes up to item_size.  Relaxed, like the torn bits. */
static inline size_t slotmem_torn_reach(const slotmem_locks_t *k,
                                        unsigned int stripe)
{
    const uint64_t reach =
        atomic_load_explicit(&k->reach[stripe], memory_order_relaxed);

    return reach && reach < k->item_size ? (size_t)reach : k->item_size;
}

/* So far at least from now on; 0 and what is out of range count as all. */
static inline void slotmem_torn_reach_raise(slotmem_locks_t *k,
                                            unsigned int stripe, size_t reach)
{
    if (atomic_load_explicit(&k->reach[stripe], memory_order_relaxed) < reach) {
        atomic_store_explicit(&k->reach[stripe], reach, memory_order_relaxed);
    }
}

/* Is another slot of the stripe torn?  Looks at each at most once. */
static inline int slotmem_torn_others(const slotmem_locks_t *k, unsigned int id)
{
    const unsigned int stripe = slotmem_locks_stripe(id);
    uint64_t other = (uint64_t)id + k->stripes;

    for (; other != id; other += k->stripes) {
        if (other >= k->item_num) {
            other = stripe;
            if (other == id) {
                break;
            }
        }
        if (slotmem_torn_get(k, (unsigned int)other)) {
            return 1;
        }
    }
    return 0;
}

/*
 * `len` bytes have been written from the start of slot `id`, under the lock
 * that was taken at `was`: heals the slot if the torn write got no farther.
 * Returns the word to go on from: without SLOTMEM_LOCK_TORN when no slot of
 * the stripe is torn any more.  Until `writing` is cleared, a death marks the
 * slot again.
 */
static inline uint64_t slotmem_torn_heal(slotmem_locks_t *k, unsigned int id,
                                         size_t len, uint64_t was)
{
    const unsigned int stripe = slotmem_locks_stripe(id);

    if (!(was & SLOTMEM_LOCK_TORN) || !slotmem_torn_get(k, id)
        || len < slotmem_torn_reach(k, stripe)) {
        return was;
    }
    slotmem_torn_clear(k, id);
    if (slotmem_torn_others(k, id)) {
        return was;
    }
    atomic_store_explicit(&k->reach[stripe], 0, memory_order_relaxed);
    return was & ~SLOTMEM_LOCK_TORN;
}

/* ------------------------------------------------------------------ */
/* One lock                                                            */
/* ------------------------------------------------------------------ */

static inline uint64_t slotmem_lock_mine(const slotmem_locks_t *k,
                                         uint64_t seen)
{
    return ((uint64_t)k->env->self->pid << 32)
           | ((uint64_t)k->env->self->birth << SLOTMEM_LOCK_LOW_BITS)
           | (seen & (SLOTMEM_LOCK_LOW_MASK | SLOTMEM_LOCK_TORN))
           | SLOTMEM_LOCK_HELD;
}

static inline slotmem_process_t slotmem_lock_owner(uint64_t word)
{
    slotmem_process_t owner;

    owner.pid = (uint32_t)(word >> 32);
    owner.birth =
        (uint32_t)(word >> SLOTMEM_LOCK_LOW_BITS) & SLOTMEM_LOCK_BIRTH_MASK;
    return owner;
}

/* first << 32 | len: `len` bytes from the start of slot `first` on; 4 GiB and
 * more count as all that there is.  0: nothing, or nothing yet. */
static inline uint64_t slotmem_writing(unsigned int first, size_t len)
{
    return ((uint64_t)first << 32) | (len < UINT32_MAX ? len : UINT32_MAX);
}

/* Nothing any more, by who took the lock at a word of this sequence: no bytes,
 * and a number that the holders before and after do not leave. */
static inline uint64_t slotmem_writing_done(uint64_t word)
{
    return ((word & SLOTMEM_LOCK_LOW_MASK) | 1) << 32;
}

/*
 * How many bytes of slot `id` such a write covers, from the slot's start: up
 * to item_size.  `id` is a slot of this segment; `writing` may be anything.
 */
static inline size_t slotmem_writing_covers(const slotmem_locks_t *k,
                                            uint64_t writing, unsigned int id)
{
    const uint64_t first = writing >> 32, len = writing & UINT32_MAX;
    size_t before;

    if (id < first) {
        return 0;
    }
    before = (size_t)(id - first) * k->item_size;
    if (len == UINT32_MAX) {
        return k->item_size;
    }
    if (len <= before) {
        return 0;
    }
    return len - before < k->item_size ? (size_t)(len - before) : k->item_size;
}

/* The first slot of the stripe that such a write can cover; perhaps none of
 * this segment. */
static inline uint64_t slotmem_writing_first(const slotmem_locks_t *k,
                                             unsigned int stripe,
                                             uint64_t writing)
{
    const uint64_t first = writing >> 32;

    return first + (stripe + k->stripes - first % k->stripes) % k->stripes;
}

/* Marks what `writing` says.  The caller holds the lock of the stripe.
 * Returns how many slots that are. */
static inline unsigned int
slotmem_writing_torn(slotmem_locks_t *k, unsigned int stripe, uint64_t writing)
{
    uint64_t id = slotmem_writing_first(k, stripe, writing);
    unsigned int torn = 0;
    size_t reach;

    for (; id < k->item_num; id += k->stripes) {
        reach = slotmem_writing_covers(k, writing, (unsigned int)id);
        if (reach == 0) {
            break;
        }
        slotmem_torn_reach_raise(k, stripe, reach);
        slotmem_torn_set(k, (unsigned int)id);
        torn++;
    }
    return torn;
}

/* The owner of `word` is gone: takes the lock over from it, and frees it. */
static inline void slotmem_lock_mend(slotmem_locks_t *k, unsigned int stripe,
                                     uint64_t word)
{
    slotmem_lock_t *lock = &k->lock[stripe];
    uint64_t found = word, freed;
    unsigned int torn;

    /* Both relaxed: env->lives() said that the owner is gone, and what it
     * did, or had seen of former holders, is visible since. */
    if (!atomic_compare_exchange_strong_explicit(
            &lock->word, &found, slotmem_lock_mine(k, word),
            memory_order_relaxed, memory_order_relaxed)) {
        return;
    }
    torn = slotmem_writing_torn(
        k, stripe, atomic_load_explicit(&lock->writing, memory_order_relaxed));

    freed = (k->env->now() << SLOTMEM_LOCK_LOW_BITS)
            | ((word + SLOTMEM_LOCK_STEP) & SLOTMEM_LOCK_LOW_MASK)
            | (torn ? SLOTMEM_LOCK_TORN : word & SLOTMEM_LOCK_TORN);
    /* Publishes the torn bits; pairs with [8] and with the acquire of [1]. */
    atomic_store_explicit(&lock->word, freed, memory_order_release);
    k->env->died(k, slotmem_lock_owner(word), torn);
}

/* How long a call has been waiting, and for which word.  Zero at first. */
typedef struct {
    unsigned int turns;
    uint64_t began; /* 0 until the first nap                */
    uint64_t since; /* the word is the same since then      */
    uint64_t look;  /* when to see whether the owner lives  */
    uint64_t word;
} slotmem_wait_t;

/* Waits a little for a lock that was seen held as `word`, longer each time. */
static inline slotmem_locks_result_t slotmem_lock_wait(slotmem_locks_t *k,
                                                       unsigned int stripe,
                                                       uint64_t word,
                                                       slotmem_wait_t *w)
{
    uint64_t now;

    if (w->turns++ < SLOTMEM_WAIT_SPINS) {
        slotmem_pause();
        return SLOTMEM_LOCKS_OK;
    }
    if (w->turns < SLOTMEM_WAIT_SPINS + SLOTMEM_WAIT_YIELDS) {
        k->env->nap(0);
        return SLOTMEM_LOCKS_OK;
    }

    now = k->env->now();
    if (!w->began) {
        w->began = now;
    }
    if (!w->since || word != w->word) {
        w->word = word;
        w->since = now;
        w->look = now + SLOTMEM_WAIT_SUSPECT;
    }
    if (now > w->look) {
        w->look = now + SLOTMEM_WAIT_SUSPECT;
        if (!k->env->lives(slotmem_lock_owner(word))) {
            slotmem_lock_mend(k, stripe, word);
        }
    }
    if (now - w->since > SLOTMEM_WAIT_STALLED
        || now - w->began > SLOTMEM_WAIT_MAX) {
        return SLOTMEM_LOCKS_TIMEUP;
    }
    k->env->nap(SLOTMEM_WAIT_NAP);
    return SLOTMEM_LOCKS_OK;
}

/* Takes a stripe.  `writing` notes what is about to be written, 0 for
 * nothing; *was is the word to go on from, *w how long the call has waited
 * already. */
static inline slotmem_locks_result_t
slotmem_lock_take(slotmem_locks_t *k, unsigned int stripe, uint64_t writing,
                  uint64_t *was, slotmem_wait_t *w)
{
    slotmem_lock_t *lock = &k->lock[stripe];
    uint64_t seen = atomic_load_explicit(&lock->word, memory_order_relaxed);

    for (;;) {
        if (seen & SLOTMEM_LOCK_HELD) {
            slotmem_locks_result_t rv = slotmem_lock_wait(k, stripe, seen, w);

            if (rv != SLOTMEM_LOCKS_OK) {
                return rv;
            }
            seen = atomic_load_explicit(&lock->word, memory_order_relaxed);
        }
        /* [1]; its acquire pairs with [7] in slotmem_lock_free and with the
         * release in slotmem_lock_mend. */
        else if (atomic_compare_exchange_weak_explicit(
                     &lock->word, &seen, slotmem_lock_mine(k, seen),
                     memory_order_acquire, memory_order_relaxed)) {
            *was = seen;
            /* Before the bytes by [2].  Release: after [1], for
             * slotmem_snapshot_as_is, with whose second look it pairs. */
            atomic_store_explicit(&lock->writing, writing,
                                  memory_order_release);
            return SLOTMEM_LOCKS_OK;
        }
    }
}

static inline void slotmem_lock_free(slotmem_locks_t *k, unsigned int stripe,
                                     uint64_t was)
{
    slotmem_lock_t *lock = &k->lock[stripe];

    /* Release: after the bytes, for slotmem_snapshot_as_is, whose acquire it
     * pairs with, and for whoever finds this process dead. */
    atomic_store_explicit(&lock->writing, slotmem_writing_done(was),
                          memory_order_release);
    /* [7], pairs with [8] in slotmem_read_once and with [1]. */
    atomic_store_explicit(&lock->word, was + SLOTMEM_LOCK_STEP,
                          memory_order_release);
}

/* ------------------------------------------------------------------ */
/* One slot                                                            */
/* ------------------------------------------------------------------ */

/* len bytes into slot id; len is at most item_size. */
static inline slotmem_locks_result_t slotmem_write_one(slotmem_locks_t *k,
                                                       unsigned int id,
                                                       const void *from,
                                                       size_t len)
{
    const unsigned int stripe = slotmem_locks_stripe(id);
    slotmem_wait_t w = { 0, 0, 0, 0, 0 };
    uint64_t was;
    slotmem_locks_result_t rv =
        slotmem_lock_take(k, stripe, slotmem_writing(id, len), &was, &w);

    if (rv != SLOTMEM_LOCKS_OK) {
        return rv;
    }
    slotmem_copy_in(slotmem_locks_slot(k, id), from, len);
    if (was & SLOTMEM_LOCK_TORN) {
        was = slotmem_torn_heal(k, id, len, was);
    }
    slotmem_lock_free(k, stripe, was);
    return SLOTMEM_LOCKS_OK;
}

/* One try: SLOTMEM_LOCKS_BUSY when a writer was there; *word is the lock as it
 * was found. */
static inline slotmem_locks_result_t slotmem_read_once(const slotmem_locks_t *k,
                                                       unsigned int id,
                                                       void *to, size_t len,
                                                       uint64_t *word)
{
    const slotmem_word_t *lock = &k->lock[slotmem_locks_stripe(id)].word;

    /* [8], pairs with [7] in slotmem_lock_free. */
    *word = atomic_load_explicit(lock, memory_order_acquire);
    if (*word & SLOTMEM_LOCK_HELD) {
        return SLOTMEM_LOCKS_BUSY;
    }
    if ((*word & SLOTMEM_LOCK_TORN) && slotmem_torn_get(k, id)) {
        return SLOTMEM_LOCKS_TORN;
    }
    slotmem_copy_out(to, slotmem_locks_slot(k, id), len);
    /* [6], pairs with [1] in slotmem_lock_take, by the fences. */
    return atomic_load_explicit(lock, memory_order_relaxed) == *word
               ? SLOTMEM_LOCKS_OK
               : SLOTMEM_LOCKS_BUSY;
}

/* len bytes out of slot id; len is at most item_size. */
static inline slotmem_locks_result_t
slotmem_read_one(slotmem_locks_t *k, unsigned int id, void *to, size_t len)
{
    const unsigned int stripe = slotmem_locks_stripe(id);
    slotmem_wait_t w = { 0, 0, 0, 0, 0 };
    unsigned int tries;
    uint64_t word;
    slotmem_locks_result_t rv;

    for (tries = 0; tries < SLOTMEM_READ_TRIES; tries++) {
        rv = slotmem_read_once(k, id, to, len, &word);
        if (rv != SLOTMEM_LOCKS_BUSY) {
            return rv;
        }
        if (word & SLOTMEM_LOCK_HELD) {
            rv = slotmem_lock_wait(k, stripe, word, &w);
            if (rv != SLOTMEM_LOCKS_OK) {
                return rv;
            }
        }
    }

    /* Holds the writers off for the time of one copy. */
    rv = slotmem_lock_take(k, stripe, 0, &word, &w);
    if (rv != SLOTMEM_LOCKS_OK) {
        return rv;
    }
    if ((word & SLOTMEM_LOCK_TORN) && slotmem_torn_get(k, id)) {
        rv = SLOTMEM_LOCKS_TORN;
    }
    else {
        slotmem_copy_out(to, slotmem_locks_slot(k, id), len);
    }
    slotmem_lock_free(k, stripe, word);
    return rv;
}

/* ------------------------------------------------------------------ */
/* Several slots                                                       */
/* ------------------------------------------------------------------ */

/*
 * A read or write that runs over several slots (mod_proxy_cluster reads all
 * of them at once) holds every stripe it touches, in ascending order, so two
 * of them cannot wait for each other.  Rare, and short of nothing: it may lock
 * where a single read does not.
 */
typedef struct {
    unsigned int first;
    unsigned int count;                /* slots, at least 1       */
    size_t len;                        /* bytes from first on     */
    uint64_t was[SLOTMEM_STRIPES_MAX]; /* by stripe               */
} slotmem_span_t;

static inline void slotmem_span_init(const slotmem_locks_t *k,
                                     slotmem_span_t *span, unsigned int id,
                                     size_t len)
{
    span->first = id;
    span->count = (unsigned int)((len - 1) / k->item_size + 1);
    span->len = len;
}

static inline int slotmem_span_has(const slotmem_locks_t *k,
                                   const slotmem_span_t *span,
                                   unsigned int stripe)
{
    const unsigned int n = k->stripes;

    return span->count >= n || (stripe + n - span->first % n) % n < span->count;
}

/* Frees the stripes of the span below `end`. */
static inline void slotmem_span_free(slotmem_locks_t *k,
                                     const slotmem_span_t *span,
                                     unsigned int end)
{
    unsigned int stripe;

    for (stripe = 0; stripe < end; stripe++) {
        if (slotmem_span_has(k, span, stripe)) {
            /* It was taken, for the span has the same stripes all the time;
             * the analyzer does not see that.
             * NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage) */
            slotmem_lock_free(k, stripe, span->was[stripe]);
        }
    }
}

static inline slotmem_locks_result_t slotmem_span_take(slotmem_locks_t *k,
                                                       slotmem_span_t *span)
{
    slotmem_wait_t w = { 0, 0, 0, 0, 0 }; /* one patience for all */
    unsigned int stripe;
    slotmem_locks_result_t rv;

    for (stripe = 0; stripe < k->stripes; stripe++) {
        if (slotmem_span_has(k, span, stripe)) {
            rv = slotmem_lock_take(k, stripe, 0, &span->was[stripe], &w);
            if (rv != SLOTMEM_LOCKS_OK) {
                slotmem_span_free(k, span, stripe);
                return rv;
            }
        }
    }
    return SLOTMEM_LOCKS_OK;
}

/* Notes what is about to be written; not before all is held, so that a kill
 * while it waits for one stripe spoils no slot of the others.  Relaxed: before
 * the bytes by [2], and after [1] since who reads it reads of the release
 * sequence that slotmem_lock_take's note heads. */
static inline void slotmem_span_note(slotmem_locks_t *k,
                                     const slotmem_span_t *span)
{
    unsigned int stripe;

    for (stripe = 0; stripe < k->stripes; stripe++) {
        if (slotmem_span_has(k, span, stripe)) {
            atomic_store_explicit(&k->lock[stripe].writing,
                                  slotmem_writing(span->first, span->len),
                                  memory_order_relaxed);
        }
    }
}

static inline slotmem_locks_result_t slotmem_write_span(slotmem_locks_t *k,
                                                        unsigned int id,
                                                        const void *from,
                                                        size_t len)
{
    slotmem_span_t span;
    slotmem_locks_result_t rv;
    unsigned int i;

    slotmem_span_init(k, &span, id, len);
    rv = slotmem_span_take(k, &span);
    if (rv != SLOTMEM_LOCKS_OK) {
        return rv;
    }
    slotmem_span_note(k, &span);
    slotmem_copy_in(slotmem_locks_slot(k, id), from, len);
    for (i = 0; i < span.count; i++) {
        uint64_t *was = &span.was[slotmem_locks_stripe(id + i)];

        *was = slotmem_torn_heal(k, id + i, len - i * k->item_size, *was);
    }
    slotmem_span_free(k, &span, k->stripes);
    return SLOTMEM_LOCKS_OK;
}

static inline slotmem_locks_result_t
slotmem_read_span(slotmem_locks_t *k, unsigned int id, void *to, size_t len)
{
    slotmem_span_t span;
    slotmem_locks_result_t rv;
    unsigned int i;

    slotmem_span_init(k, &span, id, len);
    rv = slotmem_span_take(k, &span);
    if (rv != SLOTMEM_LOCKS_OK) {
        return rv;
    }
    for (i = 0; i < span.count && rv == SLOTMEM_LOCKS_OK; i++) {
        if ((span.was[slotmem_locks_stripe(id + i)] & SLOTMEM_LOCK_TORN)
            && slotmem_torn_get(k, id + i)) {
            rv = SLOTMEM_LOCKS_TORN;
        }
    }
    if (rv == SLOTMEM_LOCKS_OK) {
        slotmem_copy_out(to, slotmem_locks_slot(k, id), len);
    }
    slotmem_span_free(k, &span, k->stripes);
    return rv;
}

/* ------------------------------------------------------------------ */
/* The calls                                                           */
/* ------------------------------------------------------------------ */

/**
 * Writes `len` bytes from the start of slot `id` on, over as many slots as
 * they take.  Any thread of any process, at any time; waits up to 10 seconds
 * for others, as a rule not at all.
 * @param id, len as slotmem_locks_fit() allows: the caller has checked
 * @return SLOTMEM_LOCKS_OK or SLOTMEM_LOCKS_TIMEUP (nothing is written)
 */
static inline slotmem_locks_result_t slotmem_locks_write(slotmem_locks_t *k,
                                                         unsigned int id,
                                                         const void *from,
                                                         size_t len)
{
    return len <= k->item_size ? slotmem_write_one(k, id, from, len)
                               : slotmem_write_span(k, id, from, len);
}

/**
 * Reads `len` bytes from the start of slot `id` on, over as many slots as
 * they take: each as one write left it.  Any thread of any process, at any
 * time.
 * @param id, len as slotmem_locks_fit() allows: the caller has checked
 * @param to undefined unless the answer is SLOTMEM_LOCKS_OK
 * @return SLOTMEM_LOCKS_OK, SLOTMEM_LOCKS_TORN or SLOTMEM_LOCKS_TIMEUP
 */
static inline slotmem_locks_result_t
slotmem_locks_read(slotmem_locks_t *k, unsigned int id, void *to, size_t len)
{
    return len <= k->item_size ? slotmem_read_one(k, id, to, len)
                               : slotmem_read_span(k, id, to, len);
}

/*
 * Slot `id` as it stands, though its lock is held or it is torn.  Returns how
 * far the copy may be half of one write and half of another.
 *
 * While the held word stays the same, one holder goes from "nothing yet" over
 * what it writes to "done".  Done before the copy: the copy is whole.  A copy
 * that saw one byte of its write sees its `writing` afterwards, which was
 * stored before the fence [2]; so nothing yet afterwards: the copy is whole.
 * If the holder began and ended meanwhile, nobody can tell how far.  And who
 * sees the note of a later holder sees that the word moved.
 */
static inline size_t slotmem_snapshot_as_is(const slotmem_locks_t *k,
                                            unsigned int id, void *to)
{
    const unsigned int stripe = slotmem_locks_stripe(id);
    const slotmem_lock_t *lock = &k->lock[stripe];
    /* Acquire, as [8]: bytes and torn bits are those that came with it. */
    const uint64_t word =
        atomic_load_explicit(&lock->word, memory_order_acquire);
    /* Acquire, pairs with the release in slotmem_lock_free: done means that
     * the bytes are there. */
    const uint64_t before =
        atomic_load_explicit(&lock->writing, memory_order_acquire);
    const uint64_t done = slotmem_writing_done(word);
    uint64_t after;
    size_t half = 0, torn = 0;

    /* Before the copy, as slotmem_read_once: who sees that a later write has
     * healed the slot then sees, by [2] and [5], that the word moved. */
    if ((word & SLOTMEM_LOCK_TORN) && slotmem_torn_get(k, id)) {
        torn = slotmem_torn_reach(k, stripe);
    }
    slotmem_copy_out(to, slotmem_locks_slot(k, id), k->item_size);
    /* After the bytes by [5]; acquire, pairs with the release of the note in
     * slotmem_lock_take: whose note it is, his word it is. */
    after = atomic_load_explicit(&lock->writing, memory_order_acquire);
    /* Relaxed: after the bytes by [5]. */
    if (atomic_load_explicit(&lock->word, memory_order_relaxed) != word) {
        return k->item_size;
    }
    if ((word & SLOTMEM_LOCK_HELD) && before != done) {
        half = slotmem_writing_covers(k, before, id);
        if (half == 0) {
            half = after == done ? k->item_size
                                 : slotmem_writing_covers(k, after, id);
        }
    }
    return half > torn ? half : torn;
}

/**
 * Copies slot `id` out without taking a lock or waiting for anybody in
 * particular: whole if that can be had within a few tries, else as it stands.
 * For whoever stores all slots and may be killed meanwhile, or must not be
 * held up.
 *
 * The last tries leave the processor to others, for on a busy machine that is
 * what a writer in the middle waits for; a hostile process that holds every
 * lock delays the caller by SLOTMEM_SNAPSHOT_NAPS milliseconds.
 *
 * @param id below item_num: the caller has checked
 * @param to item_size bytes
 * @param patience in and out: the tries that all slots together may cost;
 *        SLOTMEM_SNAPSHOT_TRIES at first
 * @return 0: whole.  Else so many bytes, from the start on, may be half of
 *         one write and half of another
 */
static inline size_t slotmem_locks_snapshot(const slotmem_locks_t *k,
                                            unsigned int id, void *to,
                                            unsigned int *patience)
{
    uint64_t word;
    slotmem_locks_result_t rv;

    while ((rv = slotmem_read_once(k, id, to, k->item_size, &word))
           != SLOTMEM_LOCKS_OK) {
        if (rv == SLOTMEM_LOCKS_TORN || !*patience) {
            return slotmem_snapshot_as_is(k, id, to);
        }
        if (--*patience < SLOTMEM_SNAPSHOT_NAPS) {
            k->env->nap(1000);
        }
        else {
            slotmem_pause();
        }
    }
    return 0;
}

/**
 * How many bytes of slot `id`, from its start on, a write that has ended or
 * not may have left half written; 0: none.  For memory that nobody writes any
 * more; who copies live slots has it from slotmem_locks_snapshot().
 * @param id below item_num: the caller has checked
 */
static inline size_t slotmem_locks_torn(const slotmem_locks_t *k,
                                        unsigned int id)
{
    const unsigned int stripe = slotmem_locks_stripe(id);
    const slotmem_lock_t *lock = &k->lock[stripe];
    /* Both relaxed: nobody writes any more. */
    const uint64_t word =
        atomic_load_explicit(&lock->word, memory_order_relaxed);
    size_t half = 0, torn = 0;

    if (word & SLOTMEM_LOCK_HELD) {
        half = slotmem_writing_covers(
            k, atomic_load_explicit(&lock->writing, memory_order_relaxed), id);
    }
    if ((word & SLOTMEM_LOCK_TORN) && slotmem_torn_get(k, id)) {
        torn = slotmem_torn_reach(k, stripe);
    }
    return half > torn ? half : torn;
}

/**
 * Marks slot `id` of a fresh segment, which nobody else knows yet: `reach`
 * bytes from its start are half of one write and half of another.
 * @param id below item_num: the caller has checked
 * @param reach 0: nothing is marked
 */
static inline void slotmem_locks_tear(slotmem_locks_t *k, unsigned int id,
                                      size_t reach)
{
    const unsigned int stripe = slotmem_locks_stripe(id);

    if (reach == 0) {
        return;
    }
    slotmem_torn_reach_raise(k, stripe, reach);
    slotmem_torn_set(k, id);
    /* Relaxed: whoever tells others of the segment publishes it. */
    atomic_fetch_or_explicit(&k->lock[stripe].word, SLOTMEM_LOCK_TORN,
                             memory_order_relaxed);
}

/**
 * Hands slot `from` of an old segment over to slot `to` of a fresh one, which
 * nobody else knows yet: its bytes, whole if that can be had, and the mark
 * that some of them are torn.
 * @param fresh, old have the same item_size
 * @param to, from below their item_num: the caller has checked
 * @param patience as slotmem_locks_snapshot()
 */
static inline void slotmem_locks_carry(slotmem_locks_t *fresh, unsigned int to,
                                       const slotmem_locks_t *old,
                                       unsigned int from,
                                       unsigned int *patience)
{
    slotmem_locks_tear(fresh, to,
                       slotmem_locks_snapshot(
                           old, from, slotmem_locks_slot(fresh, to), patience));
}

#endif /* SLOTMEM_LOCKS_H */
