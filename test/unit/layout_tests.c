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

/* Sizes and names: what is computed before there is any memory.  Part of
 * unit.c. */

typedef unsigned __int128 wide_t;

/* The layout again, in numbers that cannot overflow. */
static void assert_layout(apr_size_t size, unsigned int num)
{
    layout_t l;
    apr_status_t rv = layout_make(&l, size, num);
    wide_t end = 128, slots = (wide_t)size * num, bits = num;
    unsigned int k, stripes = num < 1024 ? num : 1024;
    slotmem_table_t t;

    if (rv != APR_SUCCESS) {
        /* More than half of the address space, or nearly. */
        assert_int_equal(rv, APR_EINVAL);
        assert_true(slots + ((wide_t)num / 3 + 65536) > (~(apr_size_t)0 / 2));
        return;
    }
    assert_true(slots <= ~(apr_size_t)0 / 2);
    assert_true(l.slots_len == slots);
    assert_int_equal(l.item_num, num);
    slotmem_table_lay(&t, num, NULL);
    assert_true(t.levels <= SLOTMEM_TABLE_LEVELS);
    for (k = 0; k < t.levels; k++) {
        wide_t words = (bits + 63) / 64, w = words - 1;

        assert_true(t.words[k] == words);
        assert_true(slotmem_table_pad(&t, k, (size_t)w)
                    == (bits % 64 ? ~UINT64_C(0) << (bits % 64) : 0));
        assert_true(w == 0 || slotmem_table_pad(&t, k, 0) == 0);
        end = (end + words * 8 + 63) / 64 * 64;
        bits = words;
    }
    assert_true(num == 0 ? t.levels == 0 : bits == 1);
    assert_true(l.locks_off == end);
    assert_int_equal(slotmem_locks_stripes(num), stripes);
    end = (end + (wide_t)stripes * 16 + 63) / 64 * 64;
    end = (end + ((wide_t)num + 63) / 64 * 8 + 63) / 64 * 64;
    end += (wide_t)stripes * 8;
    assert_true(l.slots_off >= end && l.slots_off % 64 == 0);
    end = l.slots_off + slots;
    assert_true(l.total >= end + SLOTMEM_SHM_SLACK);
    assert_true(l.total < end + SLOTMEM_SHM_SLACK + 64);
}

static void test_layout_at_every_edge(void **state)
{
    static const apr_size_t sizes[] = {
        0,
        1,
        7,
        8,
        63,
        64,
        65,
        1024,
        16384,
        (apr_size_t)1 << 31,
        (apr_size_t)1 << 32,
        (apr_size_t)1 << 62,
        ((apr_size_t)1 << 62) + 1,
        ~(apr_size_t)0 / 2 - 4096,
        ~(apr_size_t)0 / 2,
        ~(apr_size_t)0 / 2 + 1,
        ~(apr_size_t)0 - 1,
        ~(apr_size_t)0,
    };
    static const unsigned int nums[] = {
        0,
        1,
        2,
        63,
        64,
        65,
        1023,
        1024,
        1025,
        4095,
        4096,
        4097,
        262143,
        262144,
        262145,
        1u << 24,
        (1u << 24) + 1,
        1u << 30,
        (1u << 30) + 1,
        1u << 31,
        UINT_MAX - 64,
        UINT_MAX - 1,
        UINT_MAX,
    };
    size_t i, j;

    (void)state;
    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (j = 0; j < sizeof(nums) / sizeof(nums[0]); j++) {
            assert_layout(sizes[i], nums[j]);
        }
    }
}

static void test_layout_of_any_size(void **state)
{
    apr_uint64_t random = 88172645463325252u;
    unsigned int i;

    (void)state;
    for (i = 0; i < 100000; i++) {
        unsigned int num =
            (unsigned int)(random_next(&random) >> (32 + random % 32));
        apr_size_t size = random_next(&random) >> (random % 64);

        assert_layout(size, num);
    }
}

/* 16 million slots of 1 KiB are 16 GiB, of 16 GiB 2^58: no product wraps. */
static void test_layout_of_16_million_slots(void **state)
{
    layout_t l;

    (void)state;
    assert_int_equal(layout_make(&l, 1024, 16000000), APR_SUCCESS);
    assert_true(l.slots_len == UINT64_C(16384000000));
    assert_int_equal(layout_make(&l, (apr_size_t)1 << 34, 1u << 24),
                     APR_SUCCESS);
    assert_true(l.slots_len == UINT64_C(1) << 58);
    assert_int_equal(layout_make(&l, (apr_size_t)1 << 40, 1u << 24),
                     APR_EINVAL);
}

/* The largest number of slots there is, in memory that is mapped and hardly
 * touched: indices at the far end. */
static void test_the_last_slot_of_4_billion(void **state)
{
    ap_slotmem_instance_t s;
    void *memory;
    unsigned int id, last = UINT_MAX - 1;

    (void)state;
    memset(&s, 0, sizeof(s));
    s.type = PREGRAB;
    assert_int_equal(layout_make(&s.layout, 0, UINT_MAX), APR_SUCCESS);
    memory = mmap(NULL, s.layout.total, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    s.memory.base = memory;
    segment_lay(&s);
    assert_int_equal(s.table.levels, SLOTMEM_TABLE_LEVELS);

    assert_int_equal(slotmem_grab(&s, &id), APR_SUCCESS);
    assert_int_equal(id, 0);
    assert_int_equal(slotmem_fgrab(&s, last), APR_SUCCESS);
    assert_true(slotmem_table_used(&s.table, last));
    assert_int_equal(slotmem_fgrab(&s, UINT_MAX), APR_EINVAL);
    assert_true(slotmem_table_leaf(&s.table, last / 64) == slotmem_bit(last));
    assert_int_equal(slotmem_put(&s, last, (unsigned char *)"", 0),
                     APR_SUCCESS);

    /* By the hints to the far end, where one bit of the word is past it. */
    s.table.level[5][0] = 7;
    s.table.level[4][3] = SLOTMEM_WORD_FULL >> 1;
    s.table.level[3][255] = SLOTMEM_WORD_FULL >> 1;
    s.table.level[2][16383] = SLOTMEM_WORD_FULL >> 1;
    s.table.level[1][1048575] = SLOTMEM_WORD_FULL >> 1;
    s.table.level[0][67108863] = SLOTMEM_WORD_FULL >> 2;
    s.table.level[0][0] = SLOTMEM_WORD_FULL;
    assert_int_equal(slotmem_grab(&s, &id), APR_SUCCESS);
    assert_int_equal(id, last);
    assert_int_equal(slotmem_release(&s, last), APR_SUCCESS);
    assert_int_equal(slotmem_release(&s, last), APR_NOTFOUND);
    assert_int_equal(slotmem_release(&s, UINT_MAX), APR_EINVAL);
    munmap(memory, s.layout.total);
}

static void test_names(void **state)
{
    char longest[300], *made;

    (void)state;
    assert_true(name_is_anonymous(NULL));
    assert_true(name_is_anonymous(""));
    assert_true(name_is_anonymous("none"));
    assert_true(name_is_anonymous("NoNe"));
    assert_false(name_is_anonymous("nonesuch"));
    assert_false(name_is_anonymous(" "));

    assert_string_equal(name_key(pool, "n", 255, NULL),
                        STANDIN_RUNTIME_DIR "/slotmem-shm-n_ff.shm");
    assert_string_equal(name_key(pool, "/a/n", 255, NULL), "/a/n");
    assert_string_equal(name_key(pool, "n", 255, "ab"),
                        STANDIN_RUNTIME_DIR "/slotmem-shm-n_ff.ab.shm");
    assert_string_equal(name_store(pool, "n"),
                        STANDIN_RUNTIME_DIR "/slotmem-shm-n.shm.persist");
    assert_string_equal(name_store(pool, "/a/n"), "/a/n.persist");

    /* The longest that a file system takes stays; one more gives way, always
     * to the same. */
    memset(longest, 'x', sizeof(longest));
    memcpy(longest, "/d/", 3);
    longest[3 + 250] = '\0';
    made = (char *)name_beside(pool, longest, ".1234");
    assert_int_equal(strlen(made), 3 + 255);
    longest[3 + 250] = 'x';
    longest[3 + 251] = '\0';
    made = (char *)name_beside(pool, longest, ".1234");
    assert_true(strlen(made) <= 3 + 255);
    assert_memory_equal(made, "/d/slotmem-shm-", 15);
    assert_string_equal(made + strlen(made) - 5, ".1234");
    assert_string_equal(made, name_beside(pool, longest, ".1234"));
    assert_string_equal(name_beside(pool, "file", ".1"), "file.1");
}

#define LAYOUT_TESTS                                                           \
    cmocka_unit_test(test_layout_at_every_edge),                               \
        cmocka_unit_test(test_layout_of_any_size),                             \
        cmocka_unit_test(test_layout_of_16_million_slots),                     \
        cmocka_unit_test(test_the_last_slot_of_4_billion),                     \
        cmocka_unit_test(test_names)
