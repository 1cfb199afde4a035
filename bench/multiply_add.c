// The rate that no program on this machine can exceed: independent vector multiply-adds in registers, on all threads.
// machine.py compiles it with -march=native and REAL=float or double.
#include <stdint.h>

#if defined __AVX512F__
enum { WIDTH = 64 };
#elif defined __AVX__
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif
enum { CHAINS = 12, LANES = WIDTH / sizeof(REAL) }; // chains: more than latency times rate, fewer than 16 registers

typedef REAL vector __attribute__((vector_size(WIDTH)));

// Returns the flops done; *sink keeps the compiler from dropping them.
double multiply_add(int64_t rounds, int threads, REAL* sink) {
#pragma omp parallel num_threads(threads)
    {
        vector sum[CHAINS], factor, term;
        for (int k = 0; k < LANES; ++k) factor[k] = (REAL)0.999, term[k] = (REAL)0.001;
        for (int c = 0; c < CHAINS; ++c) sum[c] = term;
        for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
            for (int c = 0; c < CHAINS; ++c) sum[c] = sum[c] * factor + term;
        for (int c = 1; c < CHAINS; ++c) sum[0] += sum[c];
#pragma omp critical
        *sink += sum[0][0];
    }
    return 2.0 * (double)rounds * CHAINS * LANES * threads;
}
