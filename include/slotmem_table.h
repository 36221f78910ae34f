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
 * @file  slotmem_table.h
 * @brief Which slots are in use: a bitmap in shared memory, lock-free, that
 *        any number of processes change and that survives the death of each.
 *
 * C11, static inline, nothing of httpd or APR.  test/unit validates it,
 * test/bench measures it, test/relacy runs it under the C11 memory model,
 * test/model has the argument as a spin model.
 *
 *     level 2                  [ 1 word  ]         1 bit a word of level 1
 *     level 1          [ word 0 | .. | word n ]    1 bit a word of level 0
 *     level 0   [ word 0 | word 1 | .......... ]   1 bit a slot, 1 = in use
 *
 *     shared memory:  | level 0 | level 1 | .. |   each padded to 64 bytes
 *
 * Level 0 (the leaves) is the truth.  A bit of level k+1 is a hint: "word
 * so-and-so of level k is full".  grab looks at the first leaf, whose free
 * bits are the lowest whatever the hints say, and only when that is full walks
 * from the top down to the lowest word with a free bit.
 *
 *   I1  A slot has an owner exactly while its leaf bit is 1, and only the
 *       read-modify-write that turns 0 into 1 makes an owner.  Hence never
 *       two owners, whoever dies where: a dead process leaves the bit 1 (its
 *       slot, to be released by whoever knows that it died) or 0.
 *   I2  A hint that wrongly says "not full" costs a walk that finds the word
 *       full and sets the hint.
 *   I3  A hint that wrongly says "full" hides free slots, so it must not
 *       last.  Who sets one looks at the word again afterwards, and takes the
 *       hint back when the word is not full.  Who frees a bit looks at the
 *       hint afterwards, and clears it when it is set.
 *   I4  No shared word leads out of bounds: bits past the last slot count as
 *       full, by a pad that is computed from the private number of slots.
 *       The words may hold anything (test/shared-words.md).
 *
 * I3 needs one total order of the four accesses.  Say F finds leaf L full,
 * and R releases a slot in L:
 *
 *       F: [1] hint |= bit    [2] read L
 *       R: [3] L &= ~bit      [4] read hint
 *
 * With weaker orders F may read L full at [2] (before [3] shows) while R
 * reads the hint clear at [4] (before [1] shows): the hint says "full" for
 * good.  All four are memory_order_seq_cst, so either [3] precedes [2] and F
 * takes the hint back, or [2] precedes [3], hence [1] precedes [4], and R
 * clears it.  The same pair one level up carries R's clearing of a hint
 * word to the hint above that.  On x86 the order is free: [1] and [3] are
 * locked instructions, [2] and [4] plain loads.
 *
 * When F dies between [1] and [2], or R between [3] and [4], nobody is left
 * to mend the hint.  So before grab answers "none free" it reads the leaves
 * themselves (slotmem_table_mend).  Until then such a hint only makes grab
 * pick a slot that is not the lowest.  (The leaves are read one after
 * another: "none free" means that no slot was free all the time, not that at
 * some instant all were taken.)
 *
 * Handing a slot's content from one owner to the next: release's
 * read-modify-write (seq_cst, thus release) pairs with the acquire of the
 * read-modify-write in slotmem_table_leaf_take and slotmem_table_fgrab.
 *
 * The one who finds a word full sets the hint, not the one who fills it:
 * grab and release at the brim then cost one read-modify-write each.
 */
#ifndef SLOTMEM_TABLE_H
#define SLOTMEM_TABLE_H

#include "slotmem_word.h"

#define SLOTMEM_TABLE_LEVELS 6u      /* 64 to 1: 2^32 slots need no more */
#define SLOTMEM_TABLE_TURNS  100000u /* of grab, see there               */
#ifndef SLOTMEM_BACKOFF_MIN
#define SLOTMEM_BACKOFF_MIN 16u /* pauses */
#define SLOTMEM_BACKOFF_MAX 256u
#endif

/** A table as one process sees it.  Private memory; what `level` points to is
 *  shared. */
typedef struct {
    slotmem_word_t *level[SLOTMEM_TABLE_LEVELS];
    uint32_t words[SLOTMEM_TABLE_LEVELS]; /* of each level      */
    unsigned int levels;                  /* 0: no slots at all */
    unsigned int item_num;                /* slots              */
} slotmem_table_t;

/* ------------------------------------------------------------------ */
/* Shape                                                               */
/* ------------------------------------------------------------------ */

/**
 * Fills in the table of `item_num` slots over shared memory at `base`, or with
 * NULL for its size alone.  The memory is zero for an empty table.
 * @param base slotmem_table_size() bytes, aligned to SLOTMEM_PART_ALIGN
 * @return words that it takes, a multiple of SLOTMEM_PART_ALIGN bytes
 */
static inline size_t slotmem_table_lay(slotmem_table_t *t,
                                       unsigned int item_num,
                                       slotmem_word_t *base)
{
    size_t bits = item_num, end = 0, k;

    t->item_num = item_num;
    t->levels = 0;
    for (k = 0; k < SLOTMEM_TABLE_LEVELS; k++) {
        t->level[k] = NULL;
        t->words[k] = 0;
    }
    while (bits) {
        size_t words = slotmem_words_for(bits);

        t->level[t->levels] = base ? base + end : NULL;
        t->words[t->levels] = (uint32_t)words;
        t->levels++;
        end += slotmem_part_end(words * sizeof(uint64_t)) / sizeof(uint64_t);
        bits = words > 1 ? words : 0;
    }
    return end;
}

/**
 * Bytes of shared memory for the table of `item_num` slots: below 2^30, a
 * multiple of SLOTMEM_PART_ALIGN.
 */
static inline size_t slotmem_table_size(unsigned int item_num)
{
    slotmem_table_t t;

    return slotmem_table_lay(&t, item_num, NULL) * sizeof(uint64_t);
}

/* The bits of word w of level k that lie past the end. */
static inline uint64_t slotmem_table_pad(const slotmem_table_t *t,
                                         unsigned int k, size_t w)
{
    const size_t bits = k ? t->words[k - 1] : t->item_num;

    if (w + 1 != t->words[k] || bits % SLOTMEM_WORD_BITS == 0) {
        return 0;
    }
    return SLOTMEM_WORD_FULL
           & (SLOTMEM_WORD_FULL << (bits % SLOTMEM_WORD_BITS));
}

/* ------------------------------------------------------------------ */
/* Hints                                                               */
/* ------------------------------------------------------------------ */

/* A word of the table with the bits past its end set.  Relaxed: it only says
 * where to look; the compare-and-swap in slotmem_table_leaf_take decides. */
static inline uint64_t slotmem_table_word(const slotmem_table_t *t,
                                          unsigned int k, size_t w)
{
    return atomic_load_explicit(&t->level[k][w], memory_order_relaxed)
           | slotmem_table_pad(t, k, w);
}

/* Word w of level k has a free bit, or is about to: no hint may hide it. */
static inline void slotmem_table_hint_clear(slotmem_table_t *t, unsigned int k,
                                            size_t w)
{
    for (; k + 1 < t->levels; k++, w /= SLOTMEM_WORD_BITS) {
        slotmem_word_t *hints = &t->level[k + 1][w / SLOTMEM_WORD_BITS];

        /* [4] above, pairs with [1] in slotmem_table_hint_full. */
        if (!(atomic_load_explicit(hints, memory_order_seq_cst)
              & slotmem_bit(w))) {
            return;
        }
        /* [3] of the level above, pairs with its [2]. */
        atomic_fetch_and_explicit(hints, ~slotmem_bit(w), memory_order_seq_cst);
    }
}

/* Word w of level k was seen full. */
static inline void slotmem_table_hint_full(slotmem_table_t *t, unsigned int k,
                                           size_t w)
{
    /* [1] above, pairs with [4] in slotmem_table_hint_clear. */
    atomic_fetch_or_explicit(&t->level[k + 1][w / SLOTMEM_WORD_BITS],
                             slotmem_bit(w), memory_order_seq_cst);
    /* [2] above, pairs with [3] in slotmem_table_release. */
    if ((atomic_load_explicit(&t->level[k][w], memory_order_seq_cst)
         | slotmem_table_pad(t, k, w))
        != SLOTMEM_WORD_FULL) {
        slotmem_table_hint_clear(t, k, w);
    }
}

/**
 * Sets the hints to what the leaves say, after they were filled by
 * slotmem_table_fgrab.  For whoever makes the segment: nobody else may know
 * it yet.
 */
static inline void slotmem_table_hint_all(slotmem_table_t *t)
{
    unsigned int k;
    size_t w;

    for (k = 0; k + 1 < t->levels; k++) {
        for (w = 0; w < t->words[k]; w++) {
            if (slotmem_table_word(t, k, w) == SLOTMEM_WORD_FULL) {
                atomic_fetch_or_explicit(
                    &t->level[k + 1][w / SLOTMEM_WORD_BITS], slotmem_bit(w),
                    memory_order_relaxed);
            }
        }
    }
}

/* ------------------------------------------------------------------ */
/* grab                                                                */
/* ------------------------------------------------------------------ */

typedef enum {
    SLOTMEM_WALK_LEAF,  /* that leaf may have a free bit         */
    SLOTMEM_WALK_AGAIN, /* a hint was wrong, and is right now    */
    SLOTMEM_WALK_FULL   /* the hints say that nothing is free    */
} slotmem_walk_t;

/* Follows the hints to the lowest leaf that may have a free bit. */
static inline slotmem_walk_t slotmem_table_walk(slotmem_table_t *t,
                                                size_t *leaf)
{
    const unsigned int top = t->levels - 1;
    unsigned int k;
    size_t w = 0;

    for (k = top; k > 0; k--) {
        uint64_t word = slotmem_table_word(t, k, w);

        if (word == SLOTMEM_WORD_FULL) {
            if (k == top) {
                return SLOTMEM_WALK_FULL;
            }
            slotmem_table_hint_full(t, k, w);
            return SLOTMEM_WALK_AGAIN;
        }
        w = w * SLOTMEM_WORD_BITS + slotmem_bits_lowest(~word);
    }
    *leaf = w;
    return SLOTMEM_WALK_LEAF;
}

/* The hints say that nothing is free: asks the leaves, and clears what hid a
 * free slot after the death of whoever should have cleared it.  0: full. */
static inline int slotmem_table_mend(slotmem_table_t *t, size_t *leaf)
{
    size_t w;
    unsigned int k;

    for (w = 0; w < t->words[0]; w++) {
        if (slotmem_table_word(t, 0, w) != SLOTMEM_WORD_FULL) {
            break;
        }
    }
    if (w == t->words[0]) {
        return 0;
    }
    *leaf = w;
    for (k = 1; k < t->levels; k++, w /= SLOTMEM_WORD_BITS) {
        /* Release, pairs with [1] one level up: who sets that hint after this
         * has cleared it sees the word below as this has left it. */
        atomic_fetch_and_explicit(&t->level[k][w / SLOTMEM_WORD_BITS],
                                  ~slotmem_bit(w), memory_order_release);
    }
    return 1;
}

/*
 * Takes the lowest free bit of a leaf.  Who loses the word to another stays
 * away from it for a moment: the winner then gets several turns for one
 * transfer of the cache line, and both together get half as much done again.
 */
static inline int slotmem_table_leaf_take(slotmem_table_t *t, size_t w,
                                          unsigned int *id)
{
    const uint64_t pad = slotmem_table_pad(t, 0, w);
    uint64_t seen = atomic_load_explicit(&t->level[0][w], memory_order_relaxed);
    unsigned int pauses = SLOTMEM_BACKOFF_MIN, i;

    while ((seen | pad) != SLOTMEM_WORD_FULL) {
        unsigned int bit = slotmem_bits_lowest(~(seen | pad));

        /* Acquire, pairs with the fetch_and in slotmem_table_release: what
         * the former owner did to the slot is done. */
        if (atomic_compare_exchange_weak_explicit(
                &t->level[0][w], &seen, seen | slotmem_bit(bit),
                memory_order_acquire, memory_order_relaxed)) {
            *id = (unsigned int)(w * SLOTMEM_WORD_BITS + bit);
            return 1;
        }
        for (i = 0; i < pauses; i++) {
            slotmem_pause();
        }
        pauses = pauses < SLOTMEM_BACKOFF_MAX ? 2 * pauses : pauses;
        seen = atomic_load_explicit(&t->level[0][w], memory_order_relaxed);
    }
    return 0;
}

/*
 * Follows the hints.  There are at least two levels.
 *
 * Each turn fails only because a hint was missing (at most once a word) or
 * because others took what it had found; the bound is for a hostile process
 * that flips the words for ever.
 */
static inline int slotmem_table_grab_far(slotmem_table_t *t, unsigned int *id)
{
    size_t turns, leaf = 0;

    for (turns = 2 * (size_t)t->words[0] + SLOTMEM_TABLE_TURNS; turns;
         turns--) {
        slotmem_walk_t walk = slotmem_table_walk(t, &leaf);

        if (walk == SLOTMEM_WALK_AGAIN) {
            continue;
        }
        if (walk == SLOTMEM_WALK_FULL && !slotmem_table_mend(t, &leaf)) {
            return 0;
        }
        if (slotmem_table_leaf_take(t, leaf, id)) {
            return 1;
        }
        slotmem_table_hint_full(t, 0, leaf);
    }
    return 0;
}

/**
 * Takes the lowest free slot.  Any thread of any process, at any time.
 * @param id out: the slot, below item_num; untouched when none is free
 * @return 1, or 0 when none is free
 */
static inline int slotmem_table_grab(slotmem_table_t *t, unsigned int *id)
{
    if (t->levels == 0) {
        return 0;
    }
    return slotmem_table_leaf_take(t, 0, id)
           || (t->levels > 1 && slotmem_table_grab_far(t, id));
}

/* ------------------------------------------------------------------ */
/* One slot                                                            */
/* ------------------------------------------------------------------ */

/**
 * Is the slot in use?  Any thread of any process, at any time.
 * Acquire, pairs with the release in slotmem_table_fgrab.
 * @param id below item_num: the caller has checked
 */
static inline int slotmem_table_used(const slotmem_table_t *t, unsigned int id)
{
    return (atomic_load_explicit(&t->level[0][id / SLOTMEM_WORD_BITS],
                                 memory_order_acquire)
            & slotmem_bit(id))
           != 0;
}

/**
 * Takes this very slot.  Any thread of any process, at any time.
 * Acquire, pairs with the fetch_and in slotmem_table_release.  Release, pairs
 * with slotmem_table_used and slotmem_table_leaf: who fills a slot and then
 * takes it shows it, filled, to those who find it in use.
 * @param id below item_num: the caller has checked
 * @return 1, or 0 when it was in use already
 */
static inline int slotmem_table_fgrab(slotmem_table_t *t, unsigned int id)
{
    return !(atomic_fetch_or_explicit(&t->level[0][id / SLOTMEM_WORD_BITS],
                                      slotmem_bit(id), memory_order_acq_rel)
             & slotmem_bit(id));
}

/**
 * Gives a slot back.  Any thread of any process, at any time.
 * @param id below item_num: the caller has checked
 * @return 1, or 0 when it was not in use
 */
static inline int slotmem_table_release(slotmem_table_t *t, unsigned int id)
{
    const size_t leaf = id / SLOTMEM_WORD_BITS;

    /* [3] above, pairs with [2] in slotmem_table_hint_full; and, as a
     * release, with the acquire of the next owner in slotmem_table_leaf_take
     * or slotmem_table_fgrab. */
    if (!(atomic_fetch_and_explicit(&t->level[0][leaf], ~slotmem_bit(id),
                                    memory_order_seq_cst)
          & slotmem_bit(id))) {
        return 0;
    }
    slotmem_table_hint_clear(t, 0, leaf);
    return 1;
}

/* ------------------------------------------------------------------ */
/* All slots                                                           */
/* ------------------------------------------------------------------ */

/** How many leaves there are. */
static inline size_t slotmem_table_leaves(const slotmem_table_t *t)
{
    return t->words[0];
}

/**
 * Leaf w: bit i is 1 when slot w * SLOTMEM_WORD_BITS + i is in use; bits past
 * the end are 0.  Acquire, pairs with the release in slotmem_table_fgrab.
 * @param w below slotmem_table_leaves(): the caller has checked
 */
static inline uint64_t slotmem_table_leaf(const slotmem_table_t *t, size_t w)
{
    return atomic_load_explicit(&t->level[0][w], memory_order_acquire)
           & ~slotmem_table_pad(t, 0, w);
}

/** How many slots are in use: exact when nobody changes it meanwhile, and
 *  between 0 and item_num whatever the words hold. */
static inline unsigned int slotmem_table_count(const slotmem_table_t *t)
{
    unsigned int used = 0;
    size_t w;

    for (w = 0; w < t->words[0]; w++) {
        used += slotmem_bits_count(
            atomic_load_explicit(&t->level[0][w], memory_order_relaxed)
            & ~slotmem_table_pad(t, 0, w));
    }
    return used;
}

#endif /* SLOTMEM_TABLE_H */
