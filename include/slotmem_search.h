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
 * @file  slotmem_search.h
 * @brief Whose slots are whose, while the parent configures: an inherited
 *        segment as its consumer is to see it.
 *
 * Nothing of httpd, nothing of APR.  One thread, one process, before any
 * other knows the segment: nothing here is atomic but the table.
 *
 * With CLEARINUSE a segment comes back with every slot free and its content
 * in place, for its owners to find by content and to claim.  Two kinds of
 * slots have owners: those that the configuration named (the parent claims
 * them, before it forks children) and those that were added at run time (a
 * child claimed them, and after a restart nobody claims them again).
 *
 * `claims` of a segment says which slots the configuration has.  It is the
 * parent's private memory, so nothing a child writes makes a slot one of the
 * configuration's; a slot in use that is not claimed was added at run time.
 * Both outlive the generation: behind the stored image, in the marker, and in
 * the registry that is handed over at a restart.
 *
 * What mod_proxy_balancer does in the parent, for each segment of members:
 *
 *     for each member of the configuration
 *         num_slots, dptr 0, 1, 2 ... until one bears the member's name
 *         found:  fgrab of that slot            else:  grab, dptr of that one
 *     dptr 0, 1, 2 ... max: whatever has content and is none of the above
 *                           is a member added at run time, and is served
 *
 * So a member that was taken out of the configuration would be served for
 * ever, and a new one would get a slot that holds another's state.  Hence,
 * until every module has configured, an inherited segment is shown to the
 * parent through a search_t:
 *
 *   - grab gives a slot that holds nothing.  If there is none, it gives one
 *     that nobody has claimed yet, and keeps what that held as a "spare".
 *   - Spares are shown behind the last slot: num_slots counts them, and dptr
 *     of such a number puts the spare into a slot that nobody has claimed,
 *     in exchange for what that held, and gives the slot's address.  fgrab of
 *     the number claims that slot.  So whatever is looked for is found, though
 *     there are more contents than slots.
 *   - As soon as the parent looks at an unclaimed slot without having asked
 *     for their number since its last claim, the search is over, and it is
 *     the last loop above: what the configuration had and did not claim again
 *     is taken out of sight (search_settle).  To the spares, not to nothing: a
 *     later search still finds it.
 *
 * A consumer that claims without searching in this way sees its segment as it
 * was stored, and nothing is ever taken out of its sight.
 */
#ifndef SLOTMEM_SEARCH_H
#define SLOTMEM_SEARCH_H

#include <stdlib.h>

#include "mod_slotmem_shm.h"
#include "slotmem_table.h"

/* More than SLOTMEM_SHM_KIND_* says: there is content, but nobody noted whose
 * (a file of httpd's own module). */
#define SLOTMEM_KIND_UNKNOWN (SLOTMEM_SHM_KIND_RUNTIME + 1u)

/** A set of slots in private memory: slotmem_words_for() words, zero at
 *  first; NULL is the empty set. */
static inline int slotmem_set_has(const uint64_t *set, unsigned int id)
{
    return set && (set[id / SLOTMEM_WORD_BITS] & slotmem_bit(id)) != 0;
}

static inline void slotmem_set_put(uint64_t *set, unsigned int id, int on)
{
    uint64_t *word = &set[id / SLOTMEM_WORD_BITS];

    *word = on ? *word | slotmem_bit(id) : *word & ~slotmem_bit(id);
}

static inline int slotmem_all_zero(const void *at, size_t len)
{
    const unsigned char *bytes = (const unsigned char *)at;

    return len == 0
           || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

/** What slot `id` of a segment holds, for the next life: `used` is its
 *  table. */
static inline unsigned char slotmem_kind_of(const uint64_t *claims,
                                            unsigned int id, int used)
{
    return slotmem_set_has(claims, id) ? SLOTMEM_SHM_KIND_CONFIGURED
           : used                      ? SLOTMEM_SHM_KIND_RUNTIME
                                       : SLOTMEM_SHM_KIND_NONE;
}

/** Content that has no slot. */
typedef struct {
    unsigned char kind;
    char *content; /* item_size bytes, malloc'ed */
} slotmem_spare_t;

/** A search.  Private memory; made and freed here. */
typedef struct {
    slotmem_table_t *table;
    char *slots;
    size_t item_size;
    uint64_t *claims;    /* in and out: slots of the configuration           */
    unsigned char *kind; /* of each slot; NONE: empty, or claimed by now     */
    slotmem_spare_t *spares;
    unsigned int spares_num, spares_room;
    long expected;      /* slots that the configuration will claim, if as
                              many as last time are reserved for growth        */
    unsigned int from;  /* no slot below it is empty and free               */
    unsigned int shown; /* the slot that shows spares; item_num: none yet   */
    unsigned int spare; /* that it shows                                    */
    unsigned int claimed,
        grabbed;          /* calls so far                             */
    unsigned int dropped; /* of nobody knows whom                             */
    int same_size;        /* as many slots as were stored                     */
    int counted;          /* the number was asked for since the last claim    */
    int plain;            /* a claim was made without                         */
    int settled;          /* it was over at least once */
    int looked;           /* the parent has looked at a slot                  */
} slotmem_search_t;

/** What is left when the search ends. */
typedef struct {
    unsigned int lost; /* added at run time, and there is no room           */
    unsigned int
        dropped;         /* of nobody knows whom, and not named today         */
    unsigned int unseen; /* beyond the end, of a consumer that did not search */
    int leftover;        /* a free slot holds something                       */
} slotmem_search_end_t;

static inline char *slotmem_search_slot(const slotmem_search_t *s,
                                        unsigned int id)
{
    return s->slots + s->item_size * id;
}

static inline int slotmem_spare_add(slotmem_search_t *s, const char *content,
                                    unsigned char kind)
{
    char *kept = (char *)malloc(s->item_size);
    void *more;

    if (kept && s->spares_num == s->spares_room) {
        const unsigned int room = 2 * s->spares_room + 4;

        more = realloc(s->spares, room * sizeof(*s->spares));
        if (!more) {
            free(kept);
            return 0;
        }
        s->spares = (slotmem_spare_t *)more;
        s->spares_room = room;
    }
    if (!kept) {
        return 0;
    }
    memcpy(kept, content, s->item_size);
    s->spares[s->spares_num].content = kept;
    s->spares[s->spares_num++].kind = kind;
    return 1;
}

static inline void slotmem_spare_drop(slotmem_search_t *s, unsigned int i)
{
    free(s->spares[i].content);
    s->spares[i] = s->spares[--s->spares_num];
}

static inline void slotmem_search_free(slotmem_search_t *s)
{
    while (s->spares_num) {
        free(s->spares[--s->spares_num].content);
    }
    free(s->spares);
    free(s->kind);
    free(s);
}

/**
 * Begins to show what an inherited segment holds.
 *
 * @param claims set that receives what the configuration claims
 * @param kinds  SLOTMEM_SHM_KIND_* of stored_num slots; NULL: nobody noted them
 * @param beyond what slots from table->item_num on held; NULL: nothing
 * @return the search; NULL when nothing is held, so nothing is to be found or
 *         to be protected, or when there is no memory for it
 */
static inline slotmem_search_t *
slotmem_search_begin(slotmem_table_t *table, char *slots, size_t item_size,
                     uint64_t *claims, const unsigned char *kinds,
                     unsigned int stored_num, const char *beyond)
{
    const unsigned int num = table->item_num;
    slotmem_search_t *s = (slotmem_search_t *)calloc(1, sizeof(*s));
    unsigned int id, held = 0, configured = 0;

    if (!s || (s->kind = (unsigned char *)calloc(num + 1u, 1)) == NULL) {
        free(s);
        return NULL;
    }
    s->table = table;
    s->slots = slots;
    s->item_size = item_size;
    s->claims = claims;
    s->shown = num;
    s->same_size = stored_num == num;
    for (id = 0; kinds && id < stored_num; id++) {
        configured += kinds[id] == SLOTMEM_SHM_KIND_CONFIGURED;
    }
    for (id = 0; id < stored_num && (id < num || beyond); id++) {
        const char *content = id < num ? slotmem_search_slot(s, id)
                                       : beyond + item_size * (id - num);
        unsigned char kind = !kinds ? SLOTMEM_KIND_UNKNOWN
                             : kinds[id] == SLOTMEM_SHM_KIND_RUNTIME
                                 ? SLOTMEM_SHM_KIND_RUNTIME
                                 : SLOTMEM_SHM_KIND_CONFIGURED;

        if (slotmem_all_zero(content, item_size)) {
            continue;
        }
        held++;
        if (id < num) {
            s->kind[id] = kind;
        }
        else {
            slotmem_spare_add(s, content, kind);
        }
    }
    s->expected =
        kinds ? (long)num - ((long)stored_num - (long)configured) : -1;
    if (!held) {
        slotmem_search_free(s);
        return NULL;
    }
    return s;
}

static inline int slotmem_search_is_free(const slotmem_search_t *s,
                                         unsigned int id, unsigned char kind)
{
    return s->kind[id] == kind && !slotmem_set_has(s->claims, id)
           && !slotmem_table_used(s->table, id);
}

/* The lowest slot that is free and holds nothing; item_num: there is none. */
static inline unsigned int slotmem_search_empty(slotmem_search_t *s)
{
    unsigned int *from = &s->from;

    while (*from < s->table->item_num
           && !slotmem_search_is_free(s, *from, SLOTMEM_SHM_KIND_NONE)) {
        ++*from;
    }
    return *from;
}

/* A slot to put something into: an empty one, else one of those that can best
 * do without what they hold.  item_num: every slot is claimed. */
static inline unsigned int slotmem_search_room(slotmem_search_t *s)
{
    static const unsigned char kinds[] = { SLOTMEM_SHM_KIND_CONFIGURED,
                                           SLOTMEM_KIND_UNKNOWN,
                                           SLOTMEM_SHM_KIND_RUNTIME };
    unsigned int id = slotmem_search_empty(s), i;

    if (id < s->table->item_num) {
        return id;
    }
    for (i = 0; i < sizeof(kinds); i++) {
        for (id = s->table->item_num; id-- > 0;) {
            if (slotmem_search_is_free(s, id, kinds[i])) {
                return id;
            }
        }
    }
    return s->table->item_num;
}

/* What the slot holds becomes a spare; the slot is empty then. */
static inline void slotmem_search_vacate(slotmem_search_t *s, unsigned int id)
{
    if (s->kind[id] != SLOTMEM_SHM_KIND_NONE
        && slotmem_spare_add(s, slotmem_search_slot(s, id), s->kind[id])) {
        memset(slotmem_search_slot(s, id), 0, s->item_size);
        s->kind[id] = SLOTMEM_SHM_KIND_NONE;
        s->from = id < s->from ? id : s->from;
    }
}

/* Spare i and the slot change what they hold. */
static inline void slotmem_search_swap(slotmem_search_t *s, unsigned int i,
                                       unsigned int id)
{
    slotmem_spare_t *spare = &s->spares[i];
    unsigned char kind = s->kind[id];
    char *a = slotmem_search_slot(s, id), *b = spare->content;
    size_t at;

    for (at = 0; at < s->item_size; at++) {
        char byte = a[at];

        a[at] = b[at];
        b[at] = byte;
    }
    s->kind[id] = spare->kind;
    spare->kind = kind;
}

/*
 * The search is over: what the configuration had last time, and has not
 * claimed now, goes out of sight; what was added at run time, and had to make
 * room, comes back as far as there is room.
 *
 * Where nobody noted whose the slots were, an unchanged configuration is
 * taken to have left members that were added at run time; one that had to
 * grab, or that asks for another number of slots, wins over the state.
 */
static inline void slotmem_search_settle(slotmem_search_t *s)
{
    const unsigned char unknown = s->same_size && s->grabbed == 0
                                      ? SLOTMEM_SHM_KIND_RUNTIME
                                      : SLOTMEM_SHM_KIND_CONFIGURED;
    unsigned int id, i;

    for (id = 0; id < s->table->item_num; id++) {
        if (s->kind[id] == SLOTMEM_KIND_UNKNOWN
            && !slotmem_set_has(s->claims, id)) {
            s->kind[id] = unknown;
            s->dropped += unknown == SLOTMEM_SHM_KIND_CONFIGURED;
        }
        if (s->kind[id] == SLOTMEM_SHM_KIND_CONFIGURED
            && !slotmem_set_has(s->claims, id)) {
            slotmem_search_vacate(s, id);
        }
    }
    for (i = 0; i < s->spares_num; i++) {
        if (s->spares[i].kind == SLOTMEM_SHM_KIND_RUNTIME
            && (id = slotmem_search_empty(s)) < s->table->item_num) {
            slotmem_search_swap(s, i, id);
        }
    }
    s->shown = s->table->item_num;
    s->settled = 1;
}

/* Does the parent, by looking at a slot now, show that it has found all that
 * it looked for? */
static inline int slotmem_search_is_over(const slotmem_search_t *s)
{
    return !s->counted && (s->claimed ? !s->plain : s->expected == 0);
}

static inline unsigned int slotmem_search_num_slots(slotmem_search_t *s)
{
    s->counted = 1;
    return s->table->item_num + s->spares_num;
}

/* The parent looks at slot `id`. */
static inline void slotmem_search_look(slotmem_search_t *s, unsigned int id)
{
    s->looked = 1;
    if (s->kind[id] != SLOTMEM_SHM_KIND_NONE && !slotmem_set_has(s->claims, id)
        && slotmem_search_is_over(s)) {
        slotmem_search_settle(s);
    }
}

/* Shows the spare with that number, counted from the first slot on. */
/** @return 1 and its address; 0: there is no such spare */
static inline int slotmem_search_show(slotmem_search_t *s, unsigned int id,
                                      void **mem)
{
    unsigned int i = id - s->table->item_num;

    if (i >= s->spares_num) {
        return 0;
    }
    if (s->shown == s->table->item_num) {
        s->shown = slotmem_search_room(s);
    }
    if (s->shown == s->table->item_num) {
        return 0;
    }
    slotmem_search_swap(s, i, s->shown);
    s->spare = i;
    *mem = slotmem_search_slot(s, s->shown);
    return 1;
}

/* The slot is the configuration's from now on. */
static inline void slotmem_search_claim(slotmem_search_t *s, unsigned int id)
{
    slotmem_table_fgrab(s->table, id);
    slotmem_set_put(s->claims, id, 1);
    s->kind[id] = SLOTMEM_SHM_KIND_NONE;
    s->claimed++;
    s->plain |= !s->counted;
    s->counted = 0;
    if (s->shown == id) {
        s->shown = s->table->item_num;
    }
}

/** @return 1; 0: there is no such slot */
static inline int slotmem_search_fgrab(slotmem_search_t *s, unsigned int id)
{
    if (id >= s->table->item_num) {
        unsigned int i = id - s->table->item_num;

        if (s->shown == s->table->item_num || i != s->spare
            || i >= s->spares_num) {
            return 0;
        }
        id = s->shown;
        if (s->spares[i].kind == SLOTMEM_SHM_KIND_NONE) {
            slotmem_spare_drop(s, i);
        }
    }
    slotmem_search_claim(s, id);
    return 1;
}

static inline int slotmem_search_grab(slotmem_search_t *s, unsigned int *id)
{
    const unsigned int found = slotmem_search_room(s);

    if (found == s->table->item_num) {
        return 0;
    }
    slotmem_search_vacate(s, found);
    s->grabbed++;
    slotmem_search_claim(s, found);
    *id = found;
    return 1;
}

/**
 * Every module has configured: what is still to be found will not be found
 * any more.  Frees the search.
 */
static inline slotmem_search_end_t slotmem_search_end(slotmem_search_t *s)
{
    slotmem_search_end_t end = { 0, 0, 0, 0 };
    unsigned int id;

    if (s->claimed && !s->plain) {
        slotmem_search_settle(s);
    }
    for (id = 0; id < s->table->item_num; id++) {
        if (s->kind[id] == SLOTMEM_SHM_KIND_RUNTIME && s->looked) {
            slotmem_table_fgrab(s->table, id); /* nobody else's, then */
        }
        else if (s->kind[id] != SLOTMEM_SHM_KIND_NONE) {
            end.leftover = 1;
        }
    }
    for (id = 0; id < s->spares_num; id++) {
        end.lost += s->spares[id].kind == SLOTMEM_SHM_KIND_RUNTIME;
        end.unseen +=
            !s->settled && s->spares[id].kind != SLOTMEM_SHM_KIND_NONE;
    }
    end.dropped = s->dropped;
    slotmem_search_free(s);
    return end;
}

#endif /* SLOTMEM_SEARCH_H */
