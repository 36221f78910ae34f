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

/* The search of an inherited segment, where it has nothing to give, or must
 * choose.  What it finds is tested with balancers, test_members*.py.  Part of
 * unit.c. */

/* Two slots of the configuration, and what a third one held. */
static slotmem_search_t *search_new(ap_slotmem_instance_t *s, uint64_t *claims)
{
    static const unsigned char kinds[3] = { SLOTMEM_SHM_KIND_CONFIGURED,
                                            SLOTMEM_SHM_KIND_CONFIGURED,
                                            SLOTMEM_SHM_KIND_RUNTIME };
    slotmem_search_t *search;

    memcpy(s->slots, "one.two.", 8);
    search =
        slotmem_search_begin(&s->table, s->slots, 4, claims, kinds, 3, "more");
    assert_non_null(search);
    return search;
}

static void test_search_shows_a_spare_in_a_slot_that_nobody_has(void **state)
{
    ap_slotmem_instance_t *s = segment_new(4, 2, 0);
    uint64_t claims[2] = { 0, 0 };
    slotmem_search_t *search = search_new(s, claims);
    slotmem_search_end_t end;
    void *mem = NULL;

    (void)state;
    assert_int_equal(slotmem_search_num_slots(search), 3);
    assert_int_equal(slotmem_search_fgrab(search, 2), 0); /* not shown yet */
    assert_int_equal(slotmem_search_show(search, 3, &mem), 0);
    assert_int_equal(slotmem_search_show(search, 2, &mem), 1);
    assert_memory_equal(mem, "more", 4);
    assert_int_equal(slotmem_search_fgrab(search, 3), 0);
    assert_int_equal(slotmem_search_fgrab(search, 2), 1);
    end = slotmem_search_end(search);
    assert_int_equal(end.lost, 0);
    segment_free(s);
}

static void test_search_of_a_segment_whose_slots_are_all_claimed(void **state)
{
    ap_slotmem_instance_t *s = segment_new(4, 2, 0);
    uint64_t claims[2] = { 0, 0 };
    slotmem_search_t *search = search_new(s, claims);
    unsigned int id = 77;
    void *mem = &id;

    (void)state;
    assert_int_equal(slotmem_search_fgrab(search, 0), 1);
    assert_int_equal(slotmem_search_fgrab(search, 1), 1);
    assert_int_equal(slotmem_search_show(search, 2, &mem), 0);
    assert_ptr_equal(mem, &id);
    assert_int_equal(slotmem_search_fgrab(search, 2), 0);
    assert_int_equal(slotmem_search_grab(search, &id), 0);
    assert_int_equal(id, 77);
    assert_memory_equal(s->slots, "one.two.", 8);
    assert_int_equal(slotmem_search_end(search).lost, 1);
    segment_free(s);
}

/* A segment of `num` slots of four bytes that held `content`, behind its end
 * what is left of it, of those kinds. */
static ap_slotmem_instance_t *search_of(slotmem_search_t **search,
                                        uint64_t *claims, unsigned int num,
                                        const char *content,
                                        const unsigned char *kinds)
{
    ap_slotmem_instance_t *s = segment_new(4, num, 0);
    const unsigned int stored = (unsigned int)strlen(content) / 4;

    memcpy(s->slots, content, 4u * (stored < num ? stored : num));
    *search =
        slotmem_search_begin(&s->table, s->slots, 4, claims, kinds, stored,
                             stored > num ? content + 4 * num : NULL);
    assert_non_null(*search);
    return s;
}

/* A new member, in front of those that are still to be looked for. */
static void test_search_grabs_an_empty_slot_first(void **state)
{
    static const unsigned char kinds[2] = { SLOTMEM_SHM_KIND_CONFIGURED,
                                            SLOTMEM_SHM_KIND_CONFIGURED };
    uint64_t claims[2] = { 0, 0 };
    slotmem_search_t *search;
    ap_slotmem_instance_t *s = search_of(&search, claims, 3, "one.two.", kinds);
    unsigned int id = 77;

    (void)state;
    assert_int_equal(slotmem_search_num_slots(search), 3);
    assert_int_equal(slotmem_search_grab(search, &id), 1);
    assert_int_equal(id, 2);
    assert_memory_equal(s->slots, "one.two.\0\0\0\0", 12);
    slotmem_search_end(search);
    segment_free(s);
}

/* A consumer that claims without searching gets nothing back of what made
 * room: it must not be what nobody can name again. */
static void test_search_takes_room_from_the_configured_first(void **state)
{
    static const unsigned char kinds[2] = { SLOTMEM_SHM_KIND_CONFIGURED,
                                            SLOTMEM_SHM_KIND_RUNTIME };
    uint64_t claims[2] = { 0, 0 };
    slotmem_search_t *search;
    ap_slotmem_instance_t *s = search_of(&search, claims, 2, "one.two.", kinds);
    unsigned int id = 77;

    (void)state;
    assert_int_equal(slotmem_search_grab(search, &id), 1);
    assert_int_equal(id, 0);
    assert_memory_equal(s->slots, "\0\0\0\0two.", 8);
    assert_int_equal(slotmem_search_end(search).lost, 0);
    segment_free(s);
}

static void test_search_claims_no_spare_but_the_one_shown(void **state)
{
    static const unsigned char kinds[3] = { SLOTMEM_SHM_KIND_CONFIGURED,
                                            SLOTMEM_SHM_KIND_CONFIGURED,
                                            SLOTMEM_SHM_KIND_CONFIGURED };
    uint64_t claims[2] = { 0, 0 };
    slotmem_search_t *search;
    ap_slotmem_instance_t *s =
        search_of(&search, claims, 1, "one.two.six.", kinds);
    void *mem = NULL;

    (void)state;
    assert_int_equal(slotmem_search_num_slots(search), 3);
    assert_int_equal(slotmem_search_show(search, 2, &mem), 1);
    assert_memory_equal(mem, "six.", 4);
    assert_int_equal(slotmem_search_fgrab(search, 1), 0);
    assert_int_equal(slotmem_set_has(claims, 0), 0);
    assert_int_equal(slotmem_search_fgrab(search, 2), 1);
    assert_int_equal(slotmem_set_has(claims, 0), 1);
    assert_memory_equal(s->slots, "six.", 4);
    slotmem_search_end(search);
    segment_free(s);
}

#define SEARCH_TESTS                                                           \
    cmocka_unit_test(test_search_shows_a_spare_in_a_slot_that_nobody_has),     \
        cmocka_unit_test(                                                      \
            test_search_of_a_segment_whose_slots_are_all_claimed),             \
        cmocka_unit_test(test_search_grabs_an_empty_slot_first),               \
        cmocka_unit_test(test_search_takes_room_from_the_configured_first),    \
        cmocka_unit_test(test_search_claims_no_spare_but_the_one_shown)
