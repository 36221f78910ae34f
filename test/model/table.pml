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
 * The slot table of include/slotmem_table.h, step by step: each inline below bears
 * the name of the C function that it repeats, and each STEP is one access to
 * shared memory.  Words have 2 bits, so that 4 slots already make two levels
 * and 8 slots three.  A process may die between any two steps.
 *
 * What is checked, in every order of the steps:
 *
 *   owner     a slot is never given to two owners            (assert in take)
 *   found     grab answers "none free" only if no slot was free all the time
 *             that it looked                                 (assert in grab)
 *   I3        nobody died: no hint says "full" of a word that is not
 *   lost      whoever died, and whatever the hints said at the beginning:
 *             when the owners' slots are released, every slot can be grabbed
 *             once, and no more
 *   for ever  no cycle in which nobody completes a call      (pan -DNP, -l)
 *             and no process that cannot go on               (invalid end)
 *
 * spin executes the steps in one order for all, as if each were seq_cst.  A
 * weaker order is a program in which two steps of one process are swapped:
 * the [1]-[2] of hint_full, or the [3]-[4] of table_release.  Both are among
 * the mutations below, and both lose I3.  So those four must be seq_cst, and
 * no other order matters here: the other accesses are retried, or are single
 * read-modify-writes of one word, whose order all processes agree on.
 *
 * Compared with the header, access by access: table_grab and what it calls
 * (walk, leaf_take, mend, hint_full, hint_clear), and table_release.  Left out:
 * fgrab, used, leaf and count, which are single accesses to a leaf;
 * hint_all, which runs before anybody else knows the segment; the bound on the
 * turns of grab, and its pauses.  A compare-and-swap that fails is one step with
 * the load after it here: in between nothing is decided.
 *
 * Mutations (run.sh shows that each is caught):
 *   LOOK_BEFORE_SET    hint_full looks at the word before it sets the hint
 *   NO_SECOND_LOOK     hint_full does not look again
 *   HINT_BEFORE_LEAF   table_release reads the hint before it clears the leaf
 *   HINT_STORED        hint_full sets the hint by a load and a store
 *   STOP_AT_LEVEL_1    hint_clear does not go on to the hint above
 *   NO_MEND            grab believes the hints
 *   TAKE_BY_STORE      leaf_take stores where it should compare and swap
 */

#ifndef NP
#define NP 2            /* processes */
#endif
#ifndef OPS
#define OPS 2           /* calls of each: grabs, and releases in between */
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef LEVELS
#define LEVELS 2
#endif
#ifndef SLOTS
#define SLOTS 4
#endif

#define BITS   2
#define FULL   3
#define TOP    (LEVELS - 1)
#define LEAVES ((SLOTS + 1) / 2)
#if LEVELS == 2
#define WORDS (LEAVES + 1)
#define AT(k, w) ((k) * LEAVES + (w))
#else
#define WORDS 7
#define AT(k, w) ((k) == 0 -> (w) : ((k) == 1 -> 4 + (w) : 6))
#endif
/* pad_of: the last leaf of an odd number of slots */
#define PAD(k, w) (((SLOTS & 1) && (k) == 0 && (w) == LEAVES - 1) -> 2 : 0)
#define BIT(i)    (1 << ((i) % BITS))
#define LOWEST(v) (((v) & 1) -> 0 : 1)     /* lowest_bit(v), v not 0 */

#define NOBODY 0
#define LEFT   (NP + 1)  /* owner of slots that a dead process left behind */
#define NONE   SLOTS

byte word[WORDS];

/* What no process knows: */
byte owner[SLOTS];       /* 1 + process */
byte unseen[NP + 1];     /* slots that were free ever since its grab began */
byte deaths = DEATHS;
byte ended;
bool spotless = true;    /* nobody died, and the hints began right */

/* One access to shared memory, or death instead of it. */
#define STEP(access) \
    if \
    :: atomic { access } \
    :: atomic { deaths > 0 -> deaths--; spotless = false; goto died } \
    fi

inline take(s) {
    assert(owner[s] == NOBODY);
    owner[s] = me + 1;
    n = 0;
    do
    :: n <= NP -> unseen[n] = unseen[n] & ~(1 << (s)); n++
    :: else -> break
    od;
    n = 0
}

inline hint_clear(kk, ww) {
    hk = kk; hw = ww;
    do
    :: hk + 1 < LEVELS ->
       STEP(t = word[AT(hk + 1, hw / BITS)]);                       /* [4] */
       if
       :: !(t & BIT(hw)) -> break
       :: else
       fi;
       STEP(word[AT(hk + 1, hw / BITS)] =
                word[AT(hk + 1, hw / BITS)] & ~BIT(hw));
       hw = hw / BITS; hk++;
#ifdef STOP_AT_LEVEL_1
       break
#endif
    :: else -> break
    od;
    hk = 0; hw = 0; t = 0
}

inline hint_full(kk, ww) {
#ifdef LOOK_BEFORE_SET
    STEP(seen = word[AT(kk, ww)] | PAD(kk, ww));
#endif
#ifdef HINT_STORED
    STEP(t = word[AT((kk) + 1, (ww) / BITS)]);
    STEP(word[AT((kk) + 1, (ww) / BITS)] = t | BIT(ww));
#else
    STEP(word[AT((kk) + 1, (ww) / BITS)] =
             word[AT((kk) + 1, (ww) / BITS)] | BIT(ww));            /* [1] */
#endif
#ifdef NO_SECOND_LOOK
    seen = FULL;
#elif !defined(LOOK_BEFORE_SET)
    STEP(seen = word[AT(kk, ww)] | PAD(kk, ww));                    /* [2] */
#endif
    if
    :: seen != FULL -> hint_clear(kk, ww)
    :: else
    fi;
    seen = 0
}

#define FOUND 0
#define FULL_TOP 1
#define AGAIN 2

inline table_walk() {
    w = 0; k = TOP;
    do
    :: k == 0 -> rv = FOUND; break
    :: else ->
       STEP(seen = word[AT(k, w)] | PAD(k, w));
       if
       :: seen == FULL && k == TOP -> rv = FULL_TOP; break
       :: seen == FULL && k < TOP -> hint_full(k, w); rv = AGAIN; break
       :: else -> w = w * BITS + LOWEST(~seen); k--
       fi
    od;
    seen = 0; k = 0
}

inline table_mend() {
    w = 0;
    do
    :: w < LEAVES ->
       STEP(seen = word[AT(0, w)] | PAD(0, w));
       if
       :: seen != FULL -> break
       :: else -> w++
       fi
    :: else -> break
    od;
    seen = 0;
    if
    :: w == LEAVES -> rv = FULL_TOP
    :: else ->
       leaf = w; k = 1;
       do
       :: k < LEVELS ->
          STEP(word[AT(k, w / BITS)] = word[AT(k, w / BITS)] & ~BIT(w));
          k++; w = w / BITS
       :: else -> break
       od;
       w = leaf; k = 0; leaf = 0; rv = FOUND
    fi
}

/* From leaf w into `mine`; NONE when the leaf is full. */
inline leaf_take() {
    STEP(seen = word[AT(0, w)]);
    do
    :: (seen | PAD(0, w)) != FULL ->
#ifdef TAKE_BY_STORE
       STEP(
           mine = w * BITS + LOWEST(~(seen | PAD(0, w)));
           word[AT(0, w)] = seen | BIT(mine);
           take(mine)
       );
#else
       STEP(
           if
           :: word[AT(0, w)] == seen ->
              mine = w * BITS + LOWEST(~(seen | PAD(0, w)));
              word[AT(0, w)] = seen | BIT(mine);
              take(mine)
           :: else -> seen = word[AT(0, w)]
           fi
       );
#endif
       if
       :: mine != NONE -> break
       :: else
       fi
    :: else -> break
    od;
    seen = 0
}

inline table_grab() {
    atomic {
        n = 0;
        do
        :: n < SLOTS ->
           unseen[me] = unseen[me] | (owner[n] == NOBODY -> 1 << n : 0);
           n++
        :: else -> break
        od;
        n = 0;
        w = 0
    }
    leaf_take();
    do
    :: mine != NONE -> break
    :: else ->
       table_walk();
       if
       :: rv == AGAIN -> goto again
#ifndef NO_MEND
       :: rv == FULL_TOP -> table_mend()
#endif
       :: else
       fi;
       if
       :: rv == FULL_TOP -> break
       :: else
       fi;
       leaf_take();
       if
       :: mine != NONE -> break
       :: else
       fi;
       hint_full(0, w);
again: skip
    od;
    atomic {
        assert(mine != NONE || unseen[me] == 0);
        unseen[me] = 0; w = 0; rv = 0
    }
}

inline table_release() {
#ifdef HINT_BEFORE_LEAF
    STEP(seen = word[AT(1, mine / BITS / BITS)]);
#endif
    STEP(                                                           /* [3] */
        assert(word[AT(0, mine / BITS)] & BIT(mine));
        word[AT(0, mine / BITS)] = word[AT(0, mine / BITS)] & ~BIT(mine);
        owner[mine] = NOBODY
    );
#ifdef HINT_BEFORE_LEAF
    if
    :: seen & BIT(mine / BITS) -> hint_clear(0, mine / BITS)
    :: else
    fi;
    seen = 0;
#else
    hint_clear(0, mine / BITS);
#endif
    mine = NONE
}

/*
 * Grabs and releases; or releases what somebody dead left behind.  When all
 * have ended, the judge does as those who know of the deaths do: it releases
 * the dead ones' slots, and then grabs each of the slots, and no more.
 */
proctype process(byte me; bool judge) {
    byte k, w, leaf, seen, t, hk, hw, rv, n, s;
    byte mine = NONE;
    byte calls = (judge -> SLOTS + 1 : OPS);

    do
    :: !judge && calls > 0 && mine == NONE ->
       atomic {
           calls--;
           if
           :: owner[0] == LEFT -> owner[0] = me + 1; mine = 0
           :: owner[SLOTS - 1] == LEFT ->
              owner[SLOTS - 1] = me + 1; mine = SLOTS - 1
           :: else
           fi
       }
    :: judge && s < SLOTS && mine == NONE ->
       atomic {
           if
           :: owner[s] == LEFT -> owner[s] = me + 1; mine = s
           :: else -> assert(owner[s] == NOBODY)
           fi;
           s++
       }
    :: mine != NONE ->
       table_release();
progress_released: skip
    :: calls > 0 && mine == NONE && (!judge || s == SLOTS) ->
       table_grab();
progress_grabbed:
       atomic {
           assert(!judge || (mine == NONE) == (calls == 1));
           mine = (judge -> NONE : mine);
           calls--
       }
    :: calls == 0 && mine == NONE -> break
    od;
died:
    atomic {
        if
        :: mine != NONE && owner[mine] == me + 1 -> owner[mine] = LEFT
        :: else
        fi;
        unseen[me] = 0;
        ended++
    }
}

init {
    byte k, w, n;

    atomic {
        /* Any number of deaths up to that: one that is left could end a
         * wait that nothing else would end. */
        do
        :: deaths > 0 -> deaths--
        :: break
        od;
        /* Any slots in use. */
        k = 0;
        do
        :: k < SLOTS ->
           if
           :: skip
           :: word[AT(0, k / BITS)] = word[AT(0, k / BITS)] | BIT(k);
              owner[k] = LEFT
           fi;
           k++
        :: else -> break
        od;
        k = 0;
        /* Any hints: whatever a dead process may have left.  A hint of "full"
         * that is wrong was left by the dead; "not full" is never wrong. */
        do
        :: k < TOP ->
           w = 0;
           do
           :: w < (LEAVES >> k) ->
              if
              :: skip
              :: word[AT(k + 1, w / BITS)] = word[AT(k + 1, w / BITS)] | BIT(w);
                 spotless = spotless && ((word[AT(k, w)] | PAD(k, w)) == FULL)
              fi;
              w++
           :: else -> break
           od;
           k++
        :: else -> break
        od;
        k = 0; w = 0;
#ifdef ONE_START
        /* Where the interest is: every slot but one in use. */
        n = 0;
        do
        :: k < SLOTS -> n = n + (owner[k] == NOBODY -> 1 : 0); k++
        :: else -> break
        od;
        k = 0;
        if
        :: n <= ONE_START -> n = 0
        :: else -> goto over
        fi;
#endif
        do
        :: n < NP -> run process(n, false); n++
        :: else -> break
        od;
        n = 0
    }

    ended == NP;
    deaths = 0;

    /* I3 */
    atomic {
        do
        :: spotless && k < TOP ->
           w = 0;
           do
           :: w < (LEAVES >> k) ->
              assert(!(word[AT(k + 1, w / BITS)] & BIT(w))
                     || (word[AT(k, w)] | PAD(k, w)) == FULL);
              w++
           :: else -> break
           od;
           k++
        :: else -> break
        od;
        k = 0; w = 0
    }

    run process(NP, true);
over: skip
}
