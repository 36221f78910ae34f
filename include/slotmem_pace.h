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
 * @file  slotmem_pace.h
 * @brief How long the checkpoint helper waits between two looks.
 *
 * So that no amount of state becomes a burden, the next look comes after
 * fifty times what a usual one takes, and what is written is held to 64 KiB a
 * second over minutes; but never later than five minutes.  A usual look: the
 * shorter of the last two, so one slow flush changes nothing.  By a monotonic
 * clock: a wall clock that somebody sets back changes nothing either.
 *
 * All times are microseconds of that clock; nothing here reads it.  One
 * thread.  Nothing of httpd, nothing of APR.
 */
#ifndef SLOTMEM_PACE_H
#define SLOTMEM_PACE_H

#include <stdint.h>

#define PACE_SECOND    UINT64_C(1000000)
#define PACE_SHARE     50
#define PACE_BYTES_SEC 65536
#define PACE_BURST     ((uint64_t)PACE_BYTES_SEC * 300)
#define PACE_MOST      (300 * PACE_SECOND)

/** Begins as { .paid = now }. */
typedef struct {
    uint64_t looks;
    uint64_t took; /* the look before this one             */
    uint64_t debt; /* bytes written beyond what is free    */
    uint64_t paid; /* when that was reckoned last          */
} pace_t;

/** How long to wait after a look that took so long and wrote so much, and
 *  ended now. */
static inline uint64_t pace_pause(pace_t *pace, uint64_t took, uint64_t bytes,
                                  uint64_t now)
{
    const uint64_t usual = took < pace->took ? took : pace->took;
    const uint64_t free_bytes =
        (now - pace->paid) / PACE_SECOND * PACE_BYTES_SEC;
    uint64_t pause = usual * PACE_SHARE, wait;

    if (free_bytes) {
        pace->debt = pace->debt > free_bytes ? pace->debt - free_bytes : 0;
        pace->paid = now;
    }
    pace->took = took;
    pace->debt += bytes;
    wait = pace->debt > PACE_BURST
               ? (pace->debt - PACE_BURST) / PACE_BYTES_SEC * PACE_SECOND
               : 0;
    pause = wait > pause ? wait : pause;
    return pause < PACE_SECOND ? PACE_SECOND
           : pause > PACE_MOST ? PACE_MOST
                               : pause;
}

#endif /* SLOTMEM_PACE_H */
