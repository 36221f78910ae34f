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
 * A put or get that runs over several slots (write_span and read_span of
 * include/slotmem_locks.h), beside puts of single slots.  Two stripes of one slot
 * each, a byte a slot; lock.pml has the steps of one lock in full, so here a
 * lock's word has no sequence, and nobody reads without it.
 *
 * Compared with the header line by line: span_take, span_note, span_free (the
 * two lock_free in ascending order), write_span, read_span; of one lock only
 * what a span needs: lock_take, lock_free, lock_mend, write_one.  The word has
 * no torn bit: whether a slot is torn is always looked up.  Not here: a span
 * that gives up because an owner lives and does not move on, and frees what it
 * had; two slots of a span in one stripe.  Both are test/relacy's and
 * test/unit's.
 *
 * What is checked: no two of them wait for each other (invalid end state); a
 * read_span returns what the last completed puts left, in all of its slots
 * (assert in read_span); a slot is refused only if its writer died when it had
 * every stripe, since before that it wrote nothing; whoever died, in the end
 * all can be put and read.
 *
 * Mutations:
 *   ANY_ORDER           a span is locked from its last stripe down by one
 *                       process, and up by the other
 *   NOTE_WHILE_LOCKING  `writing` is noted for each stripe as it is locked
 *   NO_NOTE             `writing` is noted for the first stripe only
 */

#ifndef NP
#define NP 2
#endif
#ifndef OPS
#define OPS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif

#define FREE 255

byte lock[2] = { FREE, FREE };      /* owner */
bool writing[2], torn[2];
byte data[2];

/* What no process knows: */
byte good[2];
bool broken[2];
byte version;
byte deaths = DEATHS;
byte ended;
bool dead[NP + 1];

#define STEP(access) \
    if \
    :: atomic { access } \
    :: atomic { deaths > 0 -> deaths--; goto died } \
    fi

/* lock_mend in full is in lock.pml; the take-over decides who does it. */
inline lock_mend(i) {
    STEP(
        if
        :: lock[i] == seen -> lock[i] = me; mine = true
        :: else
        fi
    );
    if
    :: mine ->
       mine = false;
       STEP(noted = writing[i]);
       if
       :: noted -> STEP(torn[i] = true)
       :: else
       fi;
       STEP(lock[i] = FREE)
    :: else
    fi
}

inline lock_take(i, note) {
    do
    :: STEP(
           if
           :: lock[i] == FREE -> lock[i] = me; mine = true
           :: else -> seen = lock[i]
           fi
       );
       if
       :: mine -> break
       :: else ->
          STEP(lock[i] != seen || dead[seen] ->
               gone = (lock[i] == seen && dead[seen]));
          if
          :: gone -> gone = false; lock_mend(i)
          :: else
          fi
       fi
    od;
    mine = false;
    STEP(writing[i] = note)
}

inline lock_free(i) {
    STEP(writing[i] = false;
         if
         :: putting[i] -> good[i] = value; broken[i] = false
         :: else
         fi;
         putting[i] = false);
    STEP(lock[i] = FREE)
}

#ifdef NOTE_WHILE_LOCKING
#define NOTE(b) b
#else
#define NOTE(b) false
#endif

inline span_take(b) {
#ifdef ANY_ORDER
    if
    :: me == 0 -> lock_take(1, NOTE(b)); lock_take(0, NOTE(b))
    :: else -> lock_take(0, NOTE(b)); lock_take(1, NOTE(b))
    fi
#else
    lock_take(0, NOTE(b));
    lock_take(1, NOTE(b))
#endif
}

inline write_span() {
    atomic { version++; value = version }
    span_take(true);
    atomic { putting[0] = true; putting[1] = true }
#ifndef NOTE_WHILE_LOCKING
    STEP(writing[0] = true);                                  /* span_note */
#ifndef NO_NOTE
    STEP(writing[1] = true);
#endif
#endif
    STEP(data[0] = value);
    STEP(data[1] = value);
    if
    :: torn[0] -> STEP(torn[0] = false)
    :: else
    fi;
    if
    :: torn[1] -> STEP(torn[1] = false)
    :: else
    fi;
    lock_free(0);
    lock_free(1)
}

inline write_one(i) {
    atomic { version++; value = version }
    lock_take(i, true);
    putting[i] = true;
    STEP(data[i] = value);
    if
    :: torn[i] -> STEP(torn[i] = false)
    :: else
    fi;
    lock_free(i)
}

inline read_span() {
    span_take(false);
    STEP(refused = torn[0]; assert(!refused || broken[0]));
    if
    :: !refused -> STEP(refused = torn[1]; assert(!refused || broken[1]))
    :: else
    fi;
    if
    :: !refused ->
       STEP(assert(data[0] == good[0]));
       STEP(assert(data[1] == good[1]))
    :: else
    fi;
    lock_free(0);
    lock_free(1)
}

/* Any of the three; the judge, when all have ended, reads, writes, reads. */
proctype process(byte me; bool judge) {
    byte seen, value;
    bool mine, gone, noted, refused;
    bool putting[2];
    byte calls = (judge -> 3 : OPS);

    do
    :: calls > 0 ->
       calls--;
       if
       :: !judge || calls == 1 -> write_span()
       :: !judge -> write_one(1)
       :: !judge || calls != 1 -> read_span()
       fi;
       atomic {
           assert(!judge || calls > 0 || !refused);
           refused = false; value = 0; seen = 0; noted = false
       };
progress_called: skip
    :: else -> break
    od;
    goto over;
died:
    atomic {
        dead[me] = true;
        broken[0] = broken[0] || putting[0];
        broken[1] = broken[1] || putting[1]
    };
over:
    ended++
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
        :: n < NP -> run process(n, false); n++
        :: else -> break
        od
    }
    ended == NP;
    deaths = 0;
    run process(NP, true)
}
