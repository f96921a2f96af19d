/* A diagonal GRU written by hand, as a C programmer would: one loop over time, channels in vector
   registers through glibc's libmvec, sequences shared out among threads. What generated kernels are
   measured against. features: r, z, n, each (B, T, D); parameters: a_r, a_z, a_n, b_r, b_z, b_n,
   c_n, each (D,); out: (B, T, D); the state starts at zero.

   cc -O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC ... -lmvec -lm */

#include <stdint.h>
#define D 64

#pragma omp declare simd notinbranch
float expf(float);
#pragma omp declare simd notinbranch
float tanhf(float);

void gru(const float *restrict r, const float *restrict z, const float *restrict n,
         const float *restrict p, float *restrict out, int64_t batch, int64_t steps, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t b = 0; b < batch; b++) {
    float h[D] = {0};
    for (int64_t t = 0; t < steps; t++) {
      const int64_t at = (b * steps + t) * D;
#pragma omp simd
      for (int d = 0; d < D; d++) {
        const float reset = 1 / (1 + expf(-(r[at + d] + p[3 * D + d] + p[d] * h[d])));
        const float update = 1 / (1 + expf(-(z[at + d] + p[4 * D + d] + p[D + d] * h[d])));
        const float inner = p[6 * D + d] + p[2 * D + d] * h[d];
        const float fresh = tanhf(n[at + d] + p[5 * D + d] + reset * inner);
        h[d] = fresh + update * (h[d] - fresh);
        out[at + d] = h[d];
      }
    }
  }
}
