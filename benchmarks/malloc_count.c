/* Counts the bytes that a process holds of malloc, for benchmarks/malloc_count.py; preloaded, glibc only.

   A block counts with what malloc really reserved for it (malloc_usable_size). Memory maps of a library's own, such as
   the code that oneDNN generates, are not counted. */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_long live, peak;

static void *grown(void *block) {
    if (block) {
        long size = (long)malloc_usable_size(block);
        long now = atomic_fetch_add(&live, size) + size, most = atomic_load(&peak);
        while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {}
    }
    return block;
}

static void shrunk(void *block) {
    if (block) atomic_fetch_sub(&live, (long)malloc_usable_size(block));
}

void *malloc(size_t size) { return grown(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return grown(__libc_calloc(count, size)); }
void *memalign(size_t alignment, size_t size) { return grown(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
void *valloc(size_t size) { return memalign(4096, size); }

int posix_memalign(void **result, size_t alignment, size_t size) {
    void *block = memalign(alignment, size);
    if (!block) return ENOMEM;
    *result = block;
    return 0;
}

void *realloc(void *block, size_t size) {
    long before = block ? (long)malloc_usable_size(block) : 0;
    void *moved = __libc_realloc(block, size);
    if (moved || !size) atomic_fetch_sub(&live, before);
    return size ? grown(moved) : moved;
}

void free(void *block) {
    shrunk(block);
    __libc_free(block);
}

/* Begin to count: the peak from here on, above what is held now. */
static long base;
void malloc_count_begin(void) {
    base = atomic_load(&live);
    atomic_store(&peak, base);
}

long malloc_count_peak(void) { return atomic_load(&peak) - base; }
