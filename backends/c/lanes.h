/* What every kernel begins with. Generated before it:

     REAL               float or double
     F(name)            the name of a function of the C library for REAL
     W, V               how many lanes a group has, and how many neighbours of it are read together
     NEAR_CHANNELS(D)   how many of D channels are in near groups

   `a` is the array that a kernel is given: a[0] sequences, a[1] chunks, a[2] channels, a[3] steps,
   a[4] steps of a chunk, a[5] whether time runs backward, a[6] threads, a[7] OpenMP's team. */
#include <stdint.h>
#include <sys/mman.h>

typedef REAL real;
#define R(x) ((real)(x))
#define STAGE 16

#ifdef PARNL_VECTOR_MATH
#define SIMD_MATH _Pragma("omp declare simd notinbranch")
#else
#define SIMD_MATH
#endif
real F(sqrt)(real);
real F(fabs)(real);
real F(pow)(real, real);
#define INFINITY_ (F(__builtin_inf)())
#define NAN_ (F(__builtin_nan)(""))

#define TINY (sizeof(real) == sizeof(float) ? R(0x1p-126) : R(0x1p-1022))
/* The products of a forward run fade like the adjoints of a backward one: see threads.h. */
static inline __attribute__((unused)) real faded(real x) { return F(fabs)(x) < TINY ? 0 : x; }

/* x y + z, rounded once where that is an instruction. The compiler itself fuses nothing: where it
   can would depend on how lanes are grouped, and so the bits of a step on the number of threads. */
#if defined __FP_FAST_FMA && defined __FP_FAST_FMAF
#define FMA(x, y, z) (F(__builtin_fma)(x, y, z))
#else
#define FMA(x, y, z) ((x) * (y) + (z))
#endif

/* no part of the loop over steps: inlined, it would be run in every one, masked */
static __attribute__((noinline, unused)) void flush(real *some, double *total) {
  for (int j = 0; j < W; j++) { total[j] += some[j]; some[j] = 0; }
}

/* A gradient that is one number for all channels is a sum over them. It is written in parts: of
   W neighbours where they are near, of V where they are staged. PART(D, d) is that of channel d,
   which is staged. */
#define PART(D, d) (NEAR_CHANNELS(D) / W + ((d) - NEAR_CHANNELS(D)) / V)
#define PARTS(D) PART(D, D)
/* Eight sums side by side, then a tree: in a sum in order, each addition waits for the last one.
   `count` is a multiple of 8, or 1, 2 or 4. */
static inline __attribute__((unused)) real sum(const real *some, int count) {
  real parts[8] = {0};
  const int width = count < 8 ? count : 8;
  #pragma GCC unroll 8
  for (int j = 0; j < count; j += width)
    #pragma GCC unroll 8
    for (int i = 0; i < width; i++) parts[i] += some[j + i];
  for (int i = 0; i < 4; i++) parts[i] += parts[i + 4];
  for (int i = 0; i < 2; i++) parts[i] += parts[i + 2];
  return parts[0] + parts[1];
}

/* the lines of W numbers, which may begin within one */
static inline __attribute__((unused)) void fetch(const real *p) {
  for (int j = 0; j < W; j += 64 / (int)sizeof(real)) __builtin_prefetch(p + j);
  __builtin_prefetch(p + W - 1);
}

/* how many groups are near, and how many there are in all */
static int64_t near_count(const int64_t *a) { return a[0] * a[1] * (NEAR_CHANNELS(a[2]) / W); }
static int64_t count(const int64_t *a) {
  return near_count(a) + (a[0] * a[1] * (a[2] - NEAR_CHANNELS(a[2])) + W - 1) / W;
}

/* A large result is mostly fresh memory: taken in huge pages it costs a fraction of the faults. */
static __attribute__((unused)) void expect(int64_t address, int64_t size) {
#ifdef MADV_HUGEPAGE
  const int64_t page = 4096, first = (address + page - 1) / page * page;
  if (size >= 4 << 20)
    madvise((void *)first, (address + size - first) / page * page, MADV_HUGEPAGE);
#endif
}
