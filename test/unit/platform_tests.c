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

/* slotmem_platform.h against the system that this runs on and the kind of
 * shared memory that its APR makes: a program of its own, so that it runs
 * where no httpd is (run-platform.sh). */

#include <assert.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "apr_general.h"
#include "apr_pools.h"
#include "apr_shm.h"
#include "apr_strings.h"

#ifdef F_SETLEASE
/* Another process opens that file while a lease on it is held. */
static const char *opened_when_leased;
/* And has it open, for reading, until a lease has been refused. */
static int looked_at = -1;

static int lease_and_open(int fd, int command, int argument)
{
    int rv = fcntl(fd, command, argument), error = errno;

    if (rv != 0 && looked_at >= 0) {
        close(looked_at);
        looked_at = -1;
        errno = error;
    }
    if (rv == 0 && command == F_SETLEASE && argument == F_WRLCK
        && opened_when_leased) {
        assert(open(opened_when_leased, O_RDONLY | O_NONBLOCK) < 0);
    }
    return rv;
}
#define fcntl lease_and_open
#endif

#include "slotmem_platform.h"

#define SIZE 20000u

static apr_pool_t *pool;
static char folder[] = "/tmp/slotmem-platform-XXXXXX";

static const unsigned char run_a[SLOTMEM_SHM_RUN_LEN] = "run A";
static const unsigned char run_b[SLOTMEM_SHM_RUN_LEN] = "run B";

static const char *in_folder(const char *name)
{
    return apr_pstrcat(pool, folder, "/", name, NULL);
}

/* The key of a relative name. */
static const char *key_of(const char *name)
{
    return in_folder(apr_pstrcat(pool, "slotmem-shm-", name, "_0.shm", NULL));
}

static int exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

static int shm_exists(const char *key)
{
    platform_object_t o;
    int rv = platform_object_open(&o, key, geteuid());

    if (rv == 0) {
        platform_object_close(&o);
    }
    return rv == 0;
}

/* Where the module would put the header: at the first multiple. */
static struct slotmem_shm_header *header_of(apr_shm_t *shm)
{
    uintptr_t base = (uintptr_t)apr_shm_baseaddr_get(shm);

    return (void *)((base + SLOTMEM_SHM_ALIGN - 1)
                    & ~(uintptr_t)(SLOTMEM_SHM_ALIGN - 1));
}

static apr_shm_t *make(const char *key, const unsigned char *run)
{
    apr_shm_t *shm;

    assert_int_equal(apr_shm_create(&shm, SIZE, key, pool), APR_SUCCESS);
    if (run) {
        struct slotmem_shm_header *h = header_of(shm);
        h->magic = SLOTMEM_SHM_MAGIC;
        memcpy(h->run, run, sizeof(h->run));
    }
    return shm;
}

static int in_child(int (*fn)(void *), void *arg)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        _exit(fn(arg));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* What a sweep of one run wants. */
static int is_of_run(const struct slotmem_shm_header *head, const void *run)
{
    return memcmp(head->run, run, sizeof(head->run)) == 0;
}

/* -- processes -- */

static int sees_same_birth(void *arg)
{
    uint64_t *birth = arg, seen = 0;

    return platform_process_birth(getppid(), &seen) == PLATFORM_PROCESS_BEGAN
           && seen == birth[0];
}

/* Under qemu-user a process's own /proc/PID/stat is made up: its birth was
 * not what its siblings saw, and its locks were broken as a dead one's. */
static void test_birth_is_the_same_to_oneself_and_to_others(void **state)
{
    uint64_t birth = 0;

    (void)state;
    assert_int_equal(platform_process_birth(getpid(), &birth),
                     PLATFORM_PROCESS_BEGAN);
    assert_int_not_equal(birth, 0);
    assert_int_equal(in_child(sees_same_birth, &birth), 1);
}

static void test_zombies_and_the_reaped_are_dead(void **state)
{
    uint64_t birth = 0;
    siginfo_t info;
    pid_t pid = fork();

    (void)state;
    if (pid == 0) {
        _exit(0);
    }
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(platform_process_birth(pid, &birth),
                     PLATFORM_PROCESS_DEAD);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(platform_process_birth(pid, &birth),
                     PLATFORM_PROCESS_DEAD);
}

static void test_two_processes_have_different_births(void **state)
{
    uint64_t mine = 0, init = 0;

    (void)state;
    if (getpid() == 1
        || platform_process_birth(1, &init) != PLATFORM_PROCESS_BEGAN) {
        skip();
    }
    assert_int_equal(platform_process_birth(getpid(), &mine),
                     PLATFORM_PROCESS_BEGAN);
    assert_true(mine >= init);
}

/* -- files -- */

static int file_open(const char *path, uid_t uid)
{
    struct stat st;
    int fd, rv = platform_file_open(path, O_RDONLY, uid, &fd, &st);

    if (rv == 0) {
        assert_true(fd >= 0);
        assert_int_equal(platform_flush(fd), 0);
        close(fd);
    }
    else {
        assert_int_equal(fd, -1);
    }
    return rv;
}

static void touch(const char *path, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)len), 0);
    close(fd);
}

static void test_only_ones_own_regular_file_is_opened(void **state)
{
    const char *file = in_folder("file"), *soft = in_folder("soft");
    const char *fifo = in_folder("fifo"), *second = in_folder("second");

    (void)state;
    assert_int_equal(file_open(file, geteuid()), ENOENT);
    touch(file, 3);
    assert_int_equal(file_open(file, geteuid()), 0);
    assert_int_equal(file_open(file, geteuid() + 1), EACCES);
    assert_int_equal(symlink(file, soft), 0);
    assert_int_equal(file_open(soft, geteuid()), EACCES);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(file_open(fifo, geteuid()), EACCES);
    assert_int_equal(file_open(folder, geteuid()), EACCES);
    assert_int_equal(file_open("/dev/null", geteuid()), EACCES);
    assert_int_equal(link(file, second), 0);
    assert_int_equal(file_open(file, geteuid()), EACCES);
    unlink(second);
    unlink(soft);
    unlink(fifo);
    unlink(file);
}

/* -- shared memory -- */

/* Positive control: what APR made is found, is as large, says the same, and
 * after it has been removed the name can be had again. */
static void test_what_apr_makes_is_found(void **state)
{
    const char *key = key_of("found");
    apr_shm_t *shm = make(key, run_a);
    struct slotmem_shm_header head;
    platform_object_t o;
    void *base;
    size_t len;

    (void)state;
    assert_int_equal(platform_object_open(&o, key, geteuid()), 0);
    assert_int_equal(o.kind, platform_shm_kind());
    assert_true(o.size >= SIZE);
    assert_int_equal(platform_object_read(&o, o.header, &head, sizeof(head)),
                     0);
    assert_memory_equal(&head, header_of(shm), sizeof(head));
    assert_int_equal(platform_object_bears(&o, is_of_run, run_a),
                     PLATFORM_BEARS);
    assert_int_equal(platform_object_bears(&o, is_of_run, run_b),
                     PLATFORM_OTHER);

    assert_int_equal(platform_object_map(&o, &base, &len), 0);
    ((struct slotmem_shm_header *)base)->item_num = 77;
    assert_int_equal(header_of(shm)->item_num, 77);
    assert_true(len >= SIZE - SLOTMEM_SHM_ALIGN);
    platform_unmap(o.kind, base, len);

    platform_object_remove(&o, key);
    platform_object_close(&o);
    assert_false(shm_exists(key));
    assert_false(exists(key));
    make(key, NULL);
    assert_true(shm_exists(key));
    apr_pool_clear(pool);
    assert_false(shm_exists(key));
}

static void test_a_name_with_bytes_above_127(void **state)
{
    const char *key = key_of("M\xc3\xbcller\xff");

    (void)state;
    make(key, run_a);
    assert_true(shm_exists(key));
    apr_pool_clear(pool);
}

static void test_what_is_not_there_is_told_apart(void **state)
{
    const char *key = key_of("nothing");
    platform_object_t o;

    (void)state;
    assert_int_equal(platform_object_open(&o, key, geteuid()), ENOENT);
    touch(key, sizeof(size_t));
    assert_int_equal(platform_object_open(&o, key, geteuid()), EIDRM);
    unlink(key);
    assert_int_equal(symlink("/etc/passwd", key), 0);
    assert_int_equal(platform_object_open(&o, key, geteuid()), EACCES);
    unlink(key);
}

static void test_another_users_object_is_not_opened(void **state)
{
    const char *key = key_of("other");
    platform_object_t o;

    (void)state;
    make(key, run_a);
    assert_int_equal(platform_object_open(&o, key, geteuid() + 1), EACCES);
    apr_pool_clear(pool);
}

static void test_reading_past_the_end_is_an_error(void **state)
{
    const char *key = key_of("short");
    platform_object_t o;
    char text[64];

    (void)state;
    make(key, NULL);
    assert_int_equal(platform_object_open(&o, key, geteuid()), 0);
    assert_int_equal(platform_object_read(&o, o.size - 64, text, 64), 0);
    assert_int_equal(platform_object_read(&o, o.size - 63, text, 64), EINVAL);
    assert_int_equal(platform_object_read(&o, UINT64_MAX, text, 64), EINVAL);
    assert_int_equal(platform_object_read(&o, o.size, text, 1), EINVAL);
    platform_object_close(&o);
    apr_pool_clear(pool);
}

/* Whoever may write an object may take its pages away, too. */
static void
test_pages_that_are_not_there_are_an_error_and_no_signal(void **state)
{
    char text[64];
    void *none =
        mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)state;
    assert_ptr_not_equal(none, MAP_FAILED);
    assert_int_equal(platform_copy(none, text, sizeof(text)), EFAULT);
    munmap(none, 4096);
}

/* -- making -- */

/* What the module makes, who has only APR must find: an older module of ours,
 * and httpd's own, that is put in its place. */
static void test_what_is_made_is_found_by_apr(void **state)
{
    const char *key = key_of("made");
    struct slotmem_shm_header *h;
    platform_object_t o;
    struct stat st;
    apr_shm_t *shm;
    void *base;
    size_t len;
    mode_t mask = umask(0);

    (void)state;
    assert_int_equal(platform_object_make(&o, key, SIZE), 0);
    umask(mask);
    assert_int_equal(platform_object_map(&o, &base, &len), 0);
    assert_true(len >= SIZE);
    ((struct slotmem_shm_header *)base)->item_num = 78;
    assert_int_equal(apr_shm_attach(&shm, key, pool), APR_SUCCESS);
    h = header_of(shm);
    assert_int_equal(h->item_num, 78);
    assert_true(apr_shm_size_get(shm) >= SIZE);
    if (o.fd >= 0) {
        assert_int_equal(fstat(o.fd, &st), 0);
    }
    else {
        assert_int_equal(stat(key, &st), 0);
    }
    assert_int_equal(st.st_mode & 0777, 0600);
    apr_shm_detach(shm);
    platform_unmap(o.kind, base, len);
    platform_object_remove(&o, key);
    platform_object_close(&o);
    assert_false(exists(key));
    assert_false(shm_exists(key));
}

static void test_what_is_there_is_not_made_again(void **state)
{
    const char *key = key_of("twice");
    platform_object_t one, two;

    (void)state;
    assert_int_equal(platform_object_make(&one, key, SIZE), 0);
    assert_int_equal(platform_object_make(&two, key, SIZE), EEXIST);
    assert_int_equal(platform_object_bears(&one, is_of_run, run_a),
                     PLATFORM_EMPTY);
    platform_object_remove(&one, key);
    platform_object_close(&one);
    assert_int_equal(platform_object_make(&two, key, SIZE), 0);
    platform_object_remove(&two, key);
    platform_object_close(&two);
}

/* A size that no system has: neither object nor key file may stay, for then
 * the name would be taken for good. */
static void test_what_cannot_be_made_leaves_the_name_free(void **state)
{
    const char *key = key_of("huge");
    platform_object_t o;

    (void)state;
    if (sizeof(size_t) < 8) {
        skip(); /* a machine may have 2 GiB */
    }
    assert_int_not_equal(platform_object_make(&o, key, SIZE_MAX / 2 - 65536),
                         0);
    assert_false(exists(key));
    assert_false(shm_exists(key));
    assert_int_equal(platform_object_make(&o, key, SIZE), 0);
    platform_object_remove(&o, key);
    platform_object_close(&o);
}

/* -- a name that is taken -- */

static int clear(const char *key, int ours)
{
    int hold, rv = platform_name_clear(key, ours, &hold);

    if (hold >= 0) {
        close(hold);
    }
    return rv;
}

/* A path may say what it likes, and be as long as the system allows: wherever
 * a reader's buffer ends, it is no line of its own. */
static void test_a_name_fakes_no_mapping(void **state)
{
#ifdef __linux__
    static char long_dir[200], file[251];
    const char *self = apr_psprintf(pool, "%ld", (long)getpid());
    const char *victim = in_folder("victim"), *dir, *path, *fake;
    struct stat st, decoy;
    size_t shift, at;
    char *base;
    int fd;

    (void)state;
    fd = open(victim, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    close(fd);
    memset(long_dir, 'd', sizeof(long_dir) - 1);
    dir = in_folder(long_dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    fake = apr_psprintf(pool, "x x x %02x:%02x %" APR_UINT64_T_FMT " ",
                        major(st.st_dev), minor(st.st_dev),
                        (apr_uint64_t)st.st_ino);
    for (shift = 0; shift < strlen(fake); shift++) {
        for (at = 0; at < sizeof(file) - 1; at++) {
            file[at] = fake[(at + shift) % strlen(fake)];
        }
        path = apr_pstrcat(pool, dir, "/", file, NULL);
        fd = open(path, O_RDWR | O_CREAT, 0600);
        assert_true(fd >= 0 && fstat(fd, &decoy) == 0);
        base = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
        assert_true(base != (char *)MAP_FAILED);
        close(fd);
        assert_true(platform_process_maps(self, &decoy));
        assert_false(platform_process_maps(self, &st));
        munmap(base, 4096);
        unlink(path);
    }
    rmdir(dir);
    unlink(victim);
#else
    (void)state;
    skip();
#endif
}

static void test_a_key_file_without_a_segment_is_cleared(void **state)
{
    const char *key = in_folder("booted");

    (void)state;
    touch(key, sizeof(size_t));
    assert_int_equal(clear(key, 0), 1);
    assert_int_equal(exists(key), platform_shm_kind() == PLATFORM_SHM_POSIX);
    unlink(key);
}

/* Any path may be a name. */
static void test_a_note_of_eight_letters_is_not_cleared(void **state)
{
    const char *key = in_folder("note");
    int fd = open(key, O_WRONLY | O_CREAT | O_EXCL, 0600);

    (void)state;
    assert_int_equal(write(fd, "precious", sizeof(size_t)), sizeof(size_t));
    close(fd);
    clear(key, 0);
    assert_true(exists(key));
    unlink(key);
}

static void test_what_another_server_uses_is_not_cleared(void **state)
{
    const char *key = in_folder("used");

    (void)state;
    make(key, run_a);
    assert_int_equal(clear(key, 0), 0);
    assert_true(shm_exists(key));
    assert_int_equal(clear(key, 1), 1);
    assert_false(shm_exists(key));
    assert_false(exists(key));
    apr_pool_clear(pool);
}

#ifdef F_SETLEASE
static int look_whether_it_is_mapped(void *arg)
{
    struct stat st;
    int fd = open(arg, O_RDWR | O_CREAT, 0600);

    opened_when_leased = arg;
    return fstat(fd, &st) != 0 || platform_is_mapped(fd, &st);
}

/* The kernel told a server that had asked for a lease, by a signal of which
 * it died: when another one started at this moment, and looked there, too. */
static void test_who_looks_at_what_another_opens_lives(void **state)
{
    char *path = (char *)(intptr_t)in_folder("leased");

    (void)state;
    assert_int_equal(in_child(look_whether_it_is_mapped, path), 0);
    unlink(path);
}

/* What a server found looked at just then was taken for mapped: it went
 * without a name, and a kill lost what was in it. */
static void test_who_looks_at_it_does_not_map_it(void **state)
{
    const char *path = in_folder("looked at");
    const int fd = open(path, O_RDWR | O_CREAT, 0600);
    struct stat st;

    (void)state;
    assert_int_equal(fstat(fd, &st), 0);
    looked_at = open(path, O_RDONLY);
    assert_true(looked_at >= 0);
    assert_false(platform_is_mapped(fd, &st));
    assert_int_equal(looked_at, -1);
    close(fd);
    unlink(path);
}
#endif

static int make_ours_and_die(void *arg)
{
    make(arg, run_b);
    return 0;
}

static void
test_what_a_dead_run_left_is_cleared_where_that_can_be_told(void **state)
{
    char *key = (char *)(intptr_t)in_folder("left");
    int cleared;

    (void)state;
    assert_int_equal(in_child(make_ours_and_die, key), 0);
    cleared = clear(key, 0);
    clear(key, 1);
    assert_false(shm_exists(key));
    assert_false(exists(key));
    apr_pool_clear(pool);
    assert_int_equal(cleared, platform_shm_kind() != PLATFORM_SHM_FILE);
}

static int make_and_die(void *arg)
{
    apr_shm_t *shm;

    return apr_shm_create(&shm, SIZE, arg, pool) != APR_SUCCESS;
}

/* httpd's own module, killed: APR's object, with nothing of ours in it.  What
 * tells it from another program's segment is its size, and its dead maker. */
static void test_what_a_dead_run_of_another_module_left_is_cleared(void **state)
{
    char *key = (char *)(intptr_t)in_folder("stock");
    size_t other = 1;
    int fd;

    (void)state;
    if (platform_shm_kind() != PLATFORM_SHM_SYSV) {
        skip(); /* a POSIX object is known by its name alone */
    }
    assert_int_equal(in_child(make_and_die, key), 0);
    assert_true(shm_exists(key));
    fd = open(key, O_RDWR);
    assert_int_equal(pread(fd, &other, sizeof(other), 0), sizeof(other));
    other++;
    assert_int_equal(pwrite(fd, &other, sizeof(other), 0), sizeof(other));
    assert_int_equal(clear(key, 0), 0);
    assert_true(shm_exists(key));
    other--;
    assert_int_equal(pwrite(fd, &other, sizeof(other), 0), sizeof(other));
    close(fd);
    assert_int_equal(clear(key, 0), 1);
    assert_false(shm_exists(key));
    assert_false(exists(key));
    apr_pool_clear(pool);
}

/* Between making and attaching it, nobody has it attached. */
static void test_what_a_living_maker_has_not_attached_yet_stays(void **state)
{
    const char *key = in_folder("young");
    platform_object_t o;
    int cleared;

    (void)state;
    if (platform_shm_kind() != PLATFORM_SHM_SYSV) {
        skip(); /* is attached by being made */
    }
    assert_int_equal(platform_object_make(&o, key, SIZE), 0);
    cleared = clear(key, 0);
    platform_object_remove(&o, key);
    assert_int_equal(cleared, 0);
}

static int make_under_number(void *arg)
{
    /* An owner that nobody else here has. */
    if (setuid(54321) != 0) {
        return 2;
    }
    return shmget(*(key_t *)arg, 4096, IPC_CREAT | IPC_EXCL | 0600) < 0;
}

/* ftok() keeps 16 bits of the inode: another program's segment may stand
 * under our number, and must outlive us.  Taken are the number of the file
 * that comes next, and those of the two after it, if inodes are given in order
 * or again; a file system that does neither shows nothing. */
static void test_somebody_elses_segment_is_evaded(void **state)
{
    const char *key = key_of("collision");
    platform_object_t o;
    struct stat before, after;
    int ids[3];
    key_t number;
    unsigned int i;

    (void)state;
    if (platform_shm_kind() != PLATFORM_SHM_SYSV || geteuid() != 0) {
        skip();
    }
    touch(key, sizeof(size_t));
    assert_int_equal(stat(key, &before), 0);
    number = ftok(key, (int)platform_hash(key));
    unlink(key);
    for (i = 0; i < 3; i++) {
        key_t taken = (number & ~0xffff) | ((number + 1 + (key_t)i) & 0xffff);

        assert_int_equal(in_child(make_under_number, &taken), 0);
        ids[i] = shmget(taken, 0, 0);
        assert_true(ids[i] >= 0);
    }
    assert_int_equal(platform_object_make(&o, key, SIZE), 0);
    assert_int_equal(stat(key, &after), 0);
    assert_int_equal(platform_sysv_id(key), o.shmid);
    platform_object_remove(&o, key);
    for (i = 0; i < 3; i++) {
        assert_int_not_equal(o.shmid, ids[i]);
        assert_int_equal(shmctl(ids[i], IPC_RMID, NULL), 0);
    }
    if (after.st_ino != before.st_ino + 4) {
        skip();
    }
}

static void test_key_file_that_leads_to_somebody_else_is_cleared(void **state)
{
    const char *key = key_of("led");
    key_t number;
    int hold, id;

    (void)state;
    if (platform_shm_kind() != PLATFORM_SHM_SYSV || geteuid() != 0) {
        skip();
    }
    touch(key, sizeof(size_t));
    number = ftok(key, (int)platform_hash(key));
    assert_int_equal(in_child(make_under_number, &number), 0);
    id = platform_sysv_id(key);
    assert_true(id >= 0);
    assert_int_equal(platform_name_clear(key, 1, &hold), 1);
    assert_true(hold >= 0);
    assert_false(exists(key));
    close(hold);
    assert_int_equal(shmctl(id, IPC_RMID, NULL), 0); /* it was still there */
}

/* -- sweeping -- */

static void test_a_sweep_removes_its_own_run_alone(void **state)
{
    const char *a = key_of("a"), *a2 = in_folder("absolute");
    const char *b = key_of("b"), *plain = key_of("plain");
    apr_shm_t *shm;

    (void)state;
    make(a, run_a);
    make(a2, run_a);
    make(b, run_b);
    shm = make(plain, NULL);
    memset(apr_shm_baseaddr_get(shm), 'x', SIZE);

    platform_shm_sweep(folder, 1, 1, is_of_run, run_a, geteuid() + 1);
    assert_true(shm_exists(a));

    platform_shm_sweep(folder, 1, 1, is_of_run, run_a, geteuid());
    assert_false(shm_exists(a));
    assert_false(exists(a));
    if (platform_shm_kind() != PLATFORM_SHM_FILE) {
        /* Not in the directory, but POSIX and System V can be listed. */
        assert_false(shm_exists(a2));
    }
    assert_true(shm_exists(b));
    assert_true(shm_exists(plain));
    apr_pool_clear(pool);
    unlink(a2);
}

/* A second server's children make segments in the first one's directory. */
static void test_a_sweep_of_a_guest_leaves_the_owner_s_alone(void **state)
{
    const char *mine = key_of("mine"), *theirs = key_of("theirs");
    const char *stale = key_of("stale");

    (void)state;
    make(mine, run_a);
    make(theirs, run_b);
    touch(stale, sizeof(size_t));
    /* In another container somebody may use it, whose number says nothing. */
    platform_shm_sweep(folder, 0, 0, is_of_run, run_a, geteuid());
    assert_true(shm_exists(mine));
    assert_true(exists(mine) || platform_shm_kind() == PLATFORM_SHM_POSIX);
    platform_shm_sweep(folder, 0, 1, is_of_run, run_a, geteuid());
    assert_false(shm_exists(mine));
    assert_false(exists(mine));
    assert_true(shm_exists(theirs));
    assert_true(exists(stale));
    unlink(stale);
    apr_pool_clear(pool);
}

static void test_a_sweep_removes_key_files_that_lead_nowhere(void **state)
{
    const char *key = key_of("stale"), *other = in_folder("other.shm");

    (void)state;
    touch(key, sizeof(size_t));
    touch(other, sizeof(size_t));
    platform_shm_sweep(folder, 1, 1, is_of_run, run_a, geteuid());
    assert_false(exists(key));
    assert_true(exists(other));
    unlink(other);
}

/* Killed between shmget() and the header. */
static void test_a_sweep_removes_what_its_dead_maker_left_empty(void **state)
{
    char *key = (char *)(intptr_t)key_of("empty");
    platform_object_t o;

    (void)state;
    if (platform_shm_kind() != PLATFORM_SHM_SYSV) {
        skip(); /* other objects do not say who made them */
    }
    make(key, NULL);
    platform_shm_sweep(folder, 1, 1, is_of_run, run_a, geteuid());
    assert_true(shm_exists(key));
    assert_int_equal(platform_object_open(&o, key, geteuid()), 0);
    platform_object_remove(&o, key);

    assert_int_equal(in_child(make_and_die, key), 0);
    assert_true(shm_exists(key));
    platform_shm_sweep(folder, 1, 1, is_of_run, run_a, geteuid());
    assert_false(shm_exists(key));
    assert_false(exists(key));
    apr_pool_clear(pool);
}

static void test_advice_names_what_the_system_has(void **state)
{
    const int errors[] = { ENOSPC, EINVAL, EACCES, ENOMEM, EEXIST };
    unsigned int i;

    (void)state;
    for (i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        const char *advice = platform_shm_advice(errors[i]);

        assert_int_equal(advice[strlen(advice) - 1], '?');
        if (platform_shm_kind() == PLATFORM_SHM_SYSV) {
            assert_null(strstr(advice, "/dev/shm"));
        }
    }
    assert_true(strlen(platform_shm_where()) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef F_SETLEASE /* first, while there is patience left */
        cmocka_unit_test(test_who_looks_at_it_does_not_map_it),
#endif
        cmocka_unit_test(test_birth_is_the_same_to_oneself_and_to_others),
        cmocka_unit_test(test_zombies_and_the_reaped_are_dead),
        cmocka_unit_test(test_two_processes_have_different_births),
        cmocka_unit_test(test_only_ones_own_regular_file_is_opened),
        cmocka_unit_test(test_what_apr_makes_is_found),
        cmocka_unit_test(test_a_name_with_bytes_above_127),
        cmocka_unit_test(test_what_is_not_there_is_told_apart),
        cmocka_unit_test(test_another_users_object_is_not_opened),
        cmocka_unit_test(test_reading_past_the_end_is_an_error),
        cmocka_unit_test(
            test_pages_that_are_not_there_are_an_error_and_no_signal),
        cmocka_unit_test(test_what_is_made_is_found_by_apr),
        cmocka_unit_test(test_what_is_there_is_not_made_again),
        cmocka_unit_test(test_what_cannot_be_made_leaves_the_name_free),
        cmocka_unit_test(test_a_name_fakes_no_mapping),
        cmocka_unit_test(test_a_key_file_without_a_segment_is_cleared),
        cmocka_unit_test(test_a_note_of_eight_letters_is_not_cleared),
        cmocka_unit_test(test_what_another_server_uses_is_not_cleared),
#ifdef F_SETLEASE
        cmocka_unit_test(test_who_looks_at_what_another_opens_lives),
#endif
        cmocka_unit_test(
            test_what_a_dead_run_left_is_cleared_where_that_can_be_told),
        cmocka_unit_test(
            test_what_a_dead_run_of_another_module_left_is_cleared),
        cmocka_unit_test(test_what_a_living_maker_has_not_attached_yet_stays),
        cmocka_unit_test(test_somebody_elses_segment_is_evaded),
        cmocka_unit_test(test_key_file_that_leads_to_somebody_else_is_cleared),
        cmocka_unit_test(test_a_sweep_removes_its_own_run_alone),
        cmocka_unit_test(test_a_sweep_of_a_guest_leaves_the_owner_s_alone),
        cmocka_unit_test(test_a_sweep_removes_key_files_that_lead_nowhere),
        cmocka_unit_test(test_a_sweep_removes_what_its_dead_maker_left_empty),
        cmocka_unit_test(test_advice_names_what_the_system_has),
    };
    int failed;

    apr_initialize();
    apr_pool_create(&pool, NULL);
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    printf("shared memory: %s\n",
           (const char *const[]){ "POSIX", "System V",
                                  "file" }[platform_shm_kind()]);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    apr_pool_destroy(pool);
    if (rmdir(folder) != 0) {
        perror(folder);
        failed++;
    }
    apr_terminate();
    return failed != 0;
}
