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
 * @file  slotmem_word.h
 * @brief The words of shared memory that slotmem_table.h and slotmem_locks.h
 *        are made of.
 *
 * Between processes an atomic is only an atomic when no hidden lock stands
 * behind it, hence the assertions.  Nothing of httpd, nothing of APR.
 *
 * Under a checker of the memory model (SLOTMEM_RELACY: test/relacy) the same
 * code runs on words that the checker provides, and what is below #ifndef may
 * be less, so that a table of few slots has two levels.
 */
#ifndef SLOTMEM_WORD_H
#define SLOTMEM_WORD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef SLOTMEM_RELACY
#include "slotmem_relacy.h"
#else
#include <assert.h>
#include <stdatomic.h>

typedef _Atomic uint64_t slotmem_word_t; /* a word of shared memory */
typedef unsigned char slotmem_byte_t;    /* a byte of a slot        */

static_assert(ATOMIC_LLONG_LOCK_FREE == 2,
              "64-bit atomics must be lock-free to work between processes");
static_assert(sizeof(slotmem_word_t) == 8, "a shared word is 8 bytes");
#endif

#ifndef SLOTMEM_WORD_BITS
#define SLOTMEM_WORD_BITS 64u
#endif
#define SLOTMEM_WORD_FULL (UINT64_MAX >> (64u - SLOTMEM_WORD_BITS))

/* Each part of a segment begins at a multiple of this many bytes. */
#ifndef SLOTMEM_PART_ALIGN
#define SLOTMEM_PART_ALIGN 64u
#endif

/** Where the next part may begin, after `end` bytes. */
static inline size_t slotmem_part_end(size_t end)
{
    return (end + SLOTMEM_PART_ALIGN - 1) & ~(size_t)(SLOTMEM_PART_ALIGN - 1);
}

/** How many words hold so many bits. */
static inline size_t slotmem_words_for(size_t bits)
{
    return bits / SLOTMEM_WORD_BITS + (bits % SLOTMEM_WORD_BITS != 0);
}

/** The bit that stands for i in its word. */
static inline uint64_t slotmem_bit(size_t i)
{
    return (uint64_t)1 << (i % SLOTMEM_WORD_BITS);
}

/** The number of the lowest bit set; of 0, undefined. */
static inline unsigned int slotmem_bits_lowest(uint64_t word)
{
    return (unsigned int)__builtin_ctzll(word);
}

/** How many bits are set.  In plain arithmetic: the compiler's own for a
 *  processor that may lack the instruction looks bytes up in a table. */
static inline unsigned int slotmem_bits_count(uint64_t word)
{
    word -= (word >> 1) & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333))
           + ((word >> 2) & UINT64_C(0x3333333333333333));
    word = (word + (word >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (unsigned int)((word * UINT64_C(0x0101010101010101)) >> 56);
}

/** Tells the processor that this is a loop that waits. */
static inline void slotmem_pause(void)
{
#if defined(SLOTMEM_RELACY)
    slotmem_relacy_pause();
#elif defined(__i386__) || defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif /* SLOTMEM_WORD_H */
