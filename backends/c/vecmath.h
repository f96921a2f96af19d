/* exp, tanh and sigmoid in float32: vecmath.py tells how they were made, and their errors.
   Comparisons are written so that NaN goes through them: (x < low ? low : x) is x where x is NaN. */
typedef union { float f; int32_t i; uint32_t u; } bits;

/* the low bits of the sum are the integer n nearest to x / ln 2 */
static inline bits nearest(float x) { return (bits){.f = FMA(x, 0x1.715476p+0f, 0x1.8p+23f)}; }

/* e^x / 2^n: about 1 */
static inline float fraction(float x, bits sum) {
  const float n = sum.f - 0x1.8p+23f;
  const float r = FMA(-n, 0x1.7f7d1cp-20f, FMA(-n, 0x1.62e4p-1f, x));  /* ln 2 in two parts */
  float p = 0x1.6a243p-10f;
  p = FMA(p, r, 0x1.1239e4p-7f);
  p = FMA(p, r, 0x1.5558f2p-5f);
  p = FMA(p, r, 0x1.555492p-3f);
  p = FMA(p, r, 0x1.fffffcp-2f);
  return FMA(p, r * r, r) + 1.0f;
}

static inline float vexpf(float x) {
  float c = x < -104.0f ? -104.0f : x;
  c = c > 89.0f ? 89.0f : c;
  const bits sum = nearest(c);
  const int32_t i = sum.i - 0x4b400000;
  /* 2^n as two factors: n reaches 128 and, for denormal results, -150 */
  const bits a = {.i = ((i >> 1) + 127) << 23}, b = {.i = (i - (i >> 1) + 127) << 23};
  return fraction(c, sum) * a.f * b.f;
}

/* 1 / (1 + e^-x): what is tiny next to 1 may be anything tiny, so one factor 2^n serves */
static inline float vsigmoidf(float x) {
  float c = x > 87.0f ? 87.0f : x;
  c = c < -89.0f ? 89.0f : -c;
  const bits sum = nearest(c), a = {.u = (sum.u << 23) + 0x3f800000u};  /* infinity for n = 128 */
  return 1.0f / FMA(fraction(c, sum), a.f, 1.0f);
}

static inline float vtanhf(float x) {
  const float s = __builtin_fabsf(x), c = s > 9.1f ? 9.1f : s;
  const float y = c * c;
  float p = -0x1.a7679cp-37f, q = 0x1.57c978p-20f;
  p = FMA(p, y, 0x1.04c15ap-25f);
  p = FMA(p, y, 0x1.d4499ap-16f);
  p = FMA(p, y, 0x1.fa68f8p-9f);
  p = FMA(p, y, 0x1.181662p-3f);
  p = FMA(p, y, 1.0f);
  q = FMA(q, y, 0x1.9c1f28p-12f);
  q = FMA(q, y, 0x1.be1ccap-6f);
  q = FMA(q, y, 0x1.e16086p-2f);
  q = FMA(q, y, 1.0f);
  const float t = c * p / q;
  return __builtin_copysignf(t > 1.0f ? 1.0f : t, x);
}
