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
 * The slot locks of include/slotmem_locks.h, step by step: each inline bears the
 * name of the C function that it repeats (without slotmem_), and each STEP is
 * one access to shared memory.  One stripe; its slots have two bytes each, written and read
 * one at a time.  A process may die between any two steps, or stop for ever.
 *
 * What is checked, in every order of the steps:
 *
 *   whole     a get that succeeds returns what the last completed put left,
 *             never half of one and half of another     (assert in look_again)
 *   refused   get answers APR_EINCOMPLETE only for a slot whose writer died
 *             in the middle, and not after it was put whole
 *   time-up   only when the owner lives and has stopped
 *   waiting   whoever waits gets on: a wait is a guard that only a change of
 *             the word or the owner's death opens, so waiting for ever is an
 *             invalid end state; and no cycle of retries   (pan -DNP, -l)
 *   mended    when all has ended, each slot can be put whole and then read
 *
 * Compared with the header line by line: lock_mend, writing_torn, lock_wait,
 * lock_take, lock_free, write_one, torn_get, torn_heal, read_once, read_one.
 * `writing` is 0 where lock_free leaves slotmem_writing_done(): to mender and
 * owner they are the same.  Not here: `reach` (a torn slot counts as torn to
 * its end, so only a put of all of it heals); copies without a lock (snapshot,
 * carry), which tell the "done" of one holder from that of the next; both are
 * test/relacy's.  Spans: span.pml.
 *
 * Numbers.  A held word keeps only the lowest bit of the sequence, the least
 * that could do.  The time of day that lock_mend puts in its place is a
 * number that was never there before.
 *
 * Orders.  spin executes the steps in one order for all.  What a weaker order
 * could do is swap steps of one process, so each place where the C code has
 * an order for a reason is a mutation here, and each is caught:
 *   BYTES_FIRST        [3] before [1]: without fence [2]
 *   LOOK_EARLY         [6] before [4]: without fence [5]
 *   UNLOCK_EARLY       [7] before [3]: the word stored without release
 *   READ_EARLY         [4] before [8]: the word read without acquire
 *   CLEAR_EARLY        `writing` = 0 before the last byte: without release
 *   NOTE_LATE          `writing` noted after the first byte
 *   UNLOCK_THEN_CLEAR  the word is stored before `writing` is cleared
 * And of the steps themselves:
 *   NO_SECOND_LOOK     the reader does not look at the word again
 *   SAME_SEQUENCE      the mender frees the lock with the old sequence
 *   NO_TORN_BIT        the mender marks nothing
 *   HEAL_BY_PART       a put of part of the slot clears the torn bit
 *   HEALED_WITH_OTHERS a put of one slot says that none of the stripe is torn
 *   MARK_BEFORE_TAKE   the mender marks the slots, then frees the lock by a
 *                      compare-and-swap from the dead word
 *   CLEAR_BEFORE_FREE  the mender clears `writing` before it frees the lock
 *   UNDER_A_MUTEX      a mender must have a mutex that stays locked when its
 *                      owner dies (posixsem)
 */

#ifndef NP
#define NP 2        /* processes */
#endif
#ifndef OPS
#define OPS 2       /* calls of each */
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef STOPS
#define STOPS 0
#endif
#ifndef SLOTS
#define SLOTS 1
#endif
#define READ_TRIES 1

/* The word: held, torn, sequence, owner. */
#define HELD       1
#define TORN       2
#define STEP_SEQ   4
#define SEQ(x)     ((x) & 1020)
#define LOW(x)     ((x) & 4)
#define OWNER(x)   ((x) >> 10)
#define lock_mine(x) (((me) << 10) | LOW(x) | ((x) & TORN) | HELD)
#define FRESH      (128 * mends)    /* no unlock counts up to the next */

short lock = 0;
byte writing;       /* 1 + slot */
byte torn;          /* bit a slot */
byte data[2 * SLOTS];

/* What no process knows: */
byte good[2 * SLOTS];      /* what the last completed put left */
byte broken;               /* bit a slot: its writer died in the middle */
byte version;              /* what the next put writes */
byte mends;
byte deaths = DEATHS, stops = STOPS;
byte ended;
bool dead[NP + 1], stopped[NP + 1];
short before;              /* the sequence when the lock was last taken */
#ifdef UNDER_A_MUTEX
byte mutex = 255;
#endif

/* One access to shared memory, or death, or rest. */
#define STEP(access) \
    if \
    :: atomic { access } \
    :: atomic { deaths > 0 -> deaths--; goto died } \
    :: atomic { stops > 0 -> stops--; stopped[me] = true; goto halted } \
    fi

inline writing_torn(slots) {
    /* torn_set is one access a slot; nobody can tell them apart */
    STEP(torn = torn | (slots))
}

/* The owner of `seen` is gone: takes the lock over and frees it. */
inline lock_mend() {
#ifdef UNDER_A_MUTEX
    STEP(mutex == 255 -> mutex = me);
#endif
#ifdef MARK_BEFORE_TAKE
    STEP(was = lock);
    if
    :: was == seen ->
       STEP(noted = writing);
       if
       :: noted -> writing_torn(1 << (noted - 1))
       :: else
       fi;
       STEP(
           if
           :: lock == seen ->
              mends++;
              lock = FRESH | (noted -> TORN : seen & TORN)
           :: else
           fi
       )
    :: else
    fi;
#else
    STEP(
        if
        :: lock == seen -> lock = lock_mine(seen); mine = true
        :: else -> mine = false
        fi
    );
    if
    :: mine ->
       STEP(noted = writing);
#ifndef NO_TORN_BIT
       if
       :: noted -> writing_torn(1 << (noted - 1))
       :: else
       fi;
#endif
#ifdef CLEAR_BEFORE_FREE
       STEP(writing = 0);
#endif
#ifdef SAME_SEQUENCE
       STEP(lock = before | (noted -> TORN : seen & TORN));
#else
       STEP(mends++; lock = FRESH | (noted -> TORN : seen & TORN));
#endif
    :: else
    fi;
#endif
#ifdef UNDER_A_MUTEX
    STEP(mutex = 255);
#endif
    mine = false; noted = 0; was = 0
}

#define CHANGED_OR_GONE \
    (lock != seen || dead[OWNER(seen)] || stopped[OWNER(seen)])

/* Until the word moves, or is seen to belong to the dead. */
inline lock_wait() {
    STEP(
        CHANGED_OR_GONE ->
        gone = (lock == seen && dead[OWNER(seen)]);
        timeup = (lock == seen && stopped[OWNER(seen)])
    );
    if
    :: gone -> gone = false; lock_mend()
    :: else
    fi
}

/* Into `was`; `timeup` if it cannot be had. */
inline lock_take(slots) {
    STEP(seen = lock);
    do
    :: seen & HELD ->
       lock_wait();
       if
       :: timeup -> break
       :: else
       fi;
       STEP(seen = lock)
    :: else ->
       STEP(                                                        /* [1] */
           if
           :: lock == seen ->
              was = seen;
              before = SEQ(seen);
              lock = lock_mine(seen);
              mine = true
           :: else -> seen = lock
           fi
       );
       if
       :: mine -> break
       :: else
       fi
    od;
    seen = 0;
#ifndef NOTE_LATE
    if
    :: mine -> STEP(writing = slots)
    :: else
    fi;
#endif
    mine = false
}

inline lock_free() {
#ifdef UNLOCK_THEN_CLEAR
    STEP(lock = SEQ(was) + STEP_SEQ | (was & TORN); commit());
    STEP(writing = 0);
#else
    STEP(writing = 0; commit());
    STEP(lock = SEQ(was) + STEP_SEQ | (was & TORN));                /* [7] */
#endif
    was = 0
}

/* The put is done: whatever happens now, nothing of it is lost. */
inline commit() {
    if
    :: put_part || put_whole ->
       good[2 * slot] = value;
       if
       :: put_whole ->
          good[2 * slot + 1] = value;
          broken = broken & ~(1 << slot)
       :: else
       fi
    :: else
    fi;
    put_part = false; put_whole = false
}

/* The other slots of the stripe are looked at in one step: who holds the lock
 * alone changes them. */
inline torn_heal() {
    STEP(healed = (torn >> slot) & 1);
    if
    :: healed ->
       STEP(torn = torn & ~(1 << slot));
       STEP(
           if
#ifdef HEALED_WITH_OTHERS
           :: true -> was = was & ~TORN
#else
           :: torn == 0 -> was = was & ~TORN
           :: else
#endif
           fi
       )
    :: else
    fi;
    healed = false
}

/* write_one of the whole slot, or of its first byte. */
inline write_one(whole) {
    atomic { version++; value = version }
#ifdef BYTES_FIRST
    STEP(data[2 * slot] = value);
#endif
    lock_take(slot + 1);
    if
    :: timeup
    :: else ->
       put_part = !(whole); put_whole = (whole);
#ifndef BYTES_FIRST
       STEP(data[2 * slot] = value);                                /* [3] */
#endif
#ifdef NOTE_LATE
       STEP(writing = slot + 1);
#endif
#ifdef CLEAR_EARLY
       STEP(writing = 0);
#endif
#ifdef UNLOCK_EARLY
       STEP(lock = SEQ(was) + STEP_SEQ | (was & TORN); commit());
#endif
       if
       :: whole -> STEP(data[2 * slot + 1] = value)
       :: else
       fi;
#ifdef HEAL_BY_PART
       if
       :: (was & TORN) -> torn_heal()
#else
       if
       :: (whole) && (was & TORN) -> torn_heal()
#endif
       :: else
       fi;
#ifdef UNLOCK_EARLY
       STEP(writing = 0)
#else
       lock_free()
#endif
    fi
}

/* The get is about to succeed with a0 and a1. */
inline compare() {
    assert(a0 == good[2 * slot] && a1 == good[2 * slot + 1])
}

/* The reader's [6]: success is what the word says at this moment. */
inline look_again() {
    STEP(
        ok = (lock == seen);
        if
        :: ok -> compare()
        :: else
        fi
    )
}

inline torn_get() {
    STEP(refused = (torn >> slot) & 1; assert(!refused || (broken >> slot) & 1))
}

inline read_once() {
#ifdef READ_EARLY
    STEP(a0 = data[2 * slot]);
#endif
    STEP(seen = lock);                                              /* [8] */
    if
    :: seen & HELD
    :: else ->
       if
       :: seen & TORN -> torn_get()
       :: else
       fi;
       if
       :: refused
       :: else ->
#ifndef READ_EARLY
          STEP(a0 = data[2 * slot]);                                /* [4] */
#endif
#if defined(NO_SECOND_LOOK)
          STEP(a1 = data[2 * slot + 1]; ok = true);
          STEP(assert(a0 == a1 || good[2 * slot] != good[2 * slot + 1]))
#elif defined(LOOK_EARLY)
          STEP(ok = (lock == seen));
          if
          :: ok -> STEP(a1 = data[2 * slot + 1]; compare())
          :: else
          fi
#else
          STEP(a1 = data[2 * slot + 1]);
          look_again()                                              /* [6] */
#endif
       fi
    fi
}

inline read_one() {
    tries = READ_TRIES;
    do
    :: tries > 0 ->
       tries--;
       read_once();
       if
       :: ok || refused -> break
       :: else
       fi;
       if
       :: seen & HELD -> lock_wait()
       :: else
       fi;
       if
       :: timeup -> break
       :: else
       fi
    :: else ->
       lock_take(0);
       if
       :: timeup -> break
       :: else
       fi;
       if
       :: was & TORN -> torn_get()
       :: else
       fi;
       if
       :: refused
       :: else ->
          STEP(a0 = data[2 * slot]);
          STEP(a1 = data[2 * slot + 1]; compare());
          ok = true
       fi;
       lock_free();
       break
    od;
    atomic { tries = 0; seen = 0; a0 = 0; a1 = 0 }
}

/* Puts and gets of any slot; the judge, when all have ended, gets, puts and
 * gets each. */
proctype process(byte me; bool judge) {
    short seen, was;
    byte slot, value, noted, tries, a0, a1;
    bool mine, gone, timeup, ok, refused, healed, put_part, put_whole;
    byte calls = (judge -> 3 * SLOTS : OPS);

    do
    :: calls > 0 ->
       atomic {
           calls--;
           if
           :: judge -> slot = calls / 3
           :: !judge -> slot = 0
           :: !judge && SLOTS > 1 -> slot = SLOTS - 1
           fi
       }
       if
       :: !judge || calls % 3 == 1 -> write_one(true)
       :: !judge -> write_one(false)
       :: !judge || calls % 3 != 1 -> read_one()
       fi;
       atomic {
           assert(!timeup || STOPS > 0);
           assert(!judge || calls % 3 > 0 || timeup || ok);
           value = 0; ok = false; refused = false; timeup = false; slot = 0
       };
progress_called: skip
    :: else -> break
    od;
died:
    atomic {
        dead[me] = true;
        if
        :: put_part || put_whole -> broken = broken | (1 << slot)
        :: else
        fi;
        ended++;
        goto over
    };
halted:
    ended++;
over: skip
}

init {
    byte n;

    atomic {
        /* Any number of deaths up to that: one that is left could end a
         * wait that nothing else would end. */
        do
        :: deaths > 0 -> deaths--
        :: break
        od;
        do
        :: stops > 0 -> stops--
        :: break
        od;
        do
        :: n < NP -> run process(n, false); n++
        :: else -> break
        od
    }
    ended == NP;
    deaths = 0; stops = 0;
    run process(NP, true)
}
