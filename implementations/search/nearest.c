/* Nearest code without a table of scores: product, offset and arg-max of one tile stay in registers.
 *
 * The score of row i and code k is one chain, share * |e_k|^2 + z_i0 e_k0 + z_i1 e_k1 + ..., from left to right, each
 * step a fused multiply-add where the machine has one. It depends on nothing else: not on the number of rows, on the
 * place of either in its block, or on the number of threads. Ties go to the lowest index. NaN is larger than nothing:
 * a row of NaN gets code 0, a code whose squared length is not finite is chosen by nobody.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define WIDE 4                      /* vectors of codes in a tile; ROWS * WIDE sums, WIDE codes and a latent: 29 of 32 */
#elif defined(__AVX__)
#define LANES 8
#define WIDE 2                      /* 15 of 16 registers */
#elif defined(__ARM_NEON)
#define LANES 4
#define WIDE 4
#else
#define LANES 4
#define WIDE 2
#endif
#define ROWS 6
#define TILE (LANES * WIDE)

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

int64_t tile(void) { return TILE; }

/* Codes first .. first + k of e [K, D] -> packed [tiles, D, TILE] and their offsets; what is missing in the last tile
 * scores minus infinity. */
static void pack(const float *e, int64_t k, int64_t d, float share, float *packed, float *offsets)
{
    for (int64_t t = 0; t * TILE < k; t++)
        for (int64_t c = 0; c < TILE; c++) {
            const float *code = e + (t * TILE + c) * d;
            float *to = packed + t * d * TILE + c, squares = 0;
            int usable = t * TILE + c < k;
            if (usable)
                for (int64_t j = 0; j < d; j++) {
                    squares += code[j] * code[j];
                    to[j * TILE] = code[j];
                }
            usable = usable && isfinite(squares);
            offsets[t * TILE + c] = usable ? share * squares : -INFINITY;
            if (!usable)
                for (int64_t j = 0; j < d; j++)
                    to[j * TILE] = 0;
        }
}

static inline void keep_larger(floats score, int32_t where, floats *top, ints *at)
{
#if defined(__AVX512F__)
    __mmask16 better = _mm512_cmp_ps_mask((__m512)score, (__m512)*top, _CMP_GT_OQ);
    *top = (floats)_mm512_mask_mov_ps((__m512)*top, better, (__m512)score);
    *at = (ints)_mm512_mask_set1_epi32((__m512i)*at, better, where);
#else
    ints better = score > *top, new_top = (better & (ints)score) | (~better & (ints)*top);
    *top = (floats)new_top;
    *at = (better & where) | (~better & *at);
#endif
}

/* Largest lane, and the lowest code where several are equal. */
static inline float largest(floats top, ints at, int64_t *code)
{
    ints codes = at * LANES;
    for (int c = 0; c < LANES; c++)
        codes[c] += c;
#if defined(__AVX512F__)
    float value = _mm512_reduce_max_ps((__m512)top);
    __mmask16 equal = _mm512_cmp_ps_mask((__m512)top, _mm512_set1_ps(value), _CMP_EQ_OQ);
    *code = _mm512_mask_reduce_min_epi32(equal, (__m512i)codes);
#else
    float value = top[0];
    int32_t lowest = codes[0];
    for (int c = 1; c < LANES; c++)
        if (top[c] > value || (top[c] == value && codes[c] < lowest)) {
            value = top[c];
            lowest = codes[c];
        }
    *code = lowest;
#endif
    return value;
}

static inline __attribute__((always_inline)) void compare(
    const float *z, const int rows, const int64_t d, const float *packed, const float *offsets, int64_t tiles,
    int64_t first, float *best, int64_t *codes)
{
    floats top[ROWS];
    ints at[ROWS];
    for (int r = 0; r < rows; r++) {
        top[r] = (floats){0} - INFINITY;
        at[r] = (ints){0};
    }
    for (int64_t t = 0; t < tiles; t++) {
        floats sums[ROWS][WIDE];
        for (int v = 0; v < WIDE; v++) {
            floats offset;
            memcpy(&offset, offsets + t * TILE + v * LANES, sizeof offset);
            for (int r = 0; r < rows; r++)
                sums[r][v] = offset;
        }
        const float *code = packed + t * d * TILE;
        for (int64_t j = 0; j < d; j++, code += TILE) {
            floats e[WIDE];
            memcpy(e, code, sizeof e);
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < WIDE; v++)
                    sums[r][v] += z[r * d + j] * e[v];
        }
        for (int v = 0; v < WIDE; v++)
            for (int r = 0; r < rows; r++)
                keep_larger(sums[r][v], (int32_t)(t * WIDE + v), &top[r], &at[r]);
    }
    for (int r = 0; r < rows; r++) {
        int64_t code;
        float value = largest(top[r], at[r], &code);
        if (value > best[r]) {                  /* equal: an earlier code is there */
            best[r] = value;
            codes[r] = first + code;
        }
    }
}

static inline __attribute__((always_inline)) void sweep(
    const float *z, int64_t n, const int64_t d, const float *packed, const float *offsets, int64_t tiles,
    int64_t first, float *best, int64_t *codes)
{
    int64_t i = 0;
    for (; i + ROWS <= n; i += ROWS)
        compare(z + i * d, ROWS, d, packed, offsets, tiles, first, best + i, codes + i);
    if (i < n && n >= ROWS) {                   /* the last ones once more, together with those before them */
        i = n - ROWS;
        compare(z + i * d, ROWS, d, packed, offsets, tiles, first, best + i, codes + i);
    } else
        for (; i < n; i++)
            compare(z + i * d, 1, d, packed, offsets, tiles, first, best + i, codes + i);
}

/* z [n, d], e [k, d] -> codes [n]; best [n] and scratch [width * (d + 1)] are for our use, width a multiple of TILE. */
void search(const float *z, int64_t n, int64_t d, const float *e, int64_t k, float share, int64_t width,
            float *scratch, float *best, int64_t *codes)
{
    for (int64_t i = 0; i < n; i++) {
        best[i] = -INFINITY;
        codes[i] = 0;
    }
    float *offsets = scratch, *packed = scratch + width;
    for (int64_t first = 0; first < k; first += width) {
        int64_t part = k - first < width ? k - first : width, tiles = (part + TILE - 1) / TILE;
        pack(e + first * d, part, d, share, packed, offsets);
        switch (d) {                            /* loops of known length for the usual small ones */
        case 4: sweep(z, n, 4, packed, offsets, tiles, first, best, codes); break;
        case 8: sweep(z, n, 8, packed, offsets, tiles, first, best, codes); break;
        case 16: sweep(z, n, 16, packed, offsets, tiles, first, best, codes); break;
        default: sweep(z, n, d, packed, offsets, tiles, first, best, codes);
        }
    }
}

/* What follows a search, in one pass over the latents each. */

/* q = e[codes], residual = z - q for rows of [n, d]; returns the sum of squares of the residuals, in double. */
double look_up(const float *restrict z, int64_t n, int64_t d, const float *restrict e, const int64_t *restrict codes,
               float *restrict q, float *restrict residual)
{
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *code = e + codes[i] * d, *row = z + i * d;
        float *chosen = q + i * d, *left = residual + i * d;
        double sums[8] = {0};                   /* eight chains: one would wait for itself */
        int64_t j = 0;
        for (; j + 8 <= d; j += 8)
            for (int c = 0; c < 8; c++) {
                float difference = row[j + c] - code[j + c];
                chosen[j + c] = code[j + c];
                left[j + c] = difference;
                sums[c] += (double)difference * difference;
            }
        for (; j < d; j++) {
            chosen[j] = code[j];
            left[j] = row[j] - code[j];
            sums[0] += (double)left[j] * left[j];
        }
        total += ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    return total;
}

/* sums[codes[i], from .. to] += rows[i, from .. to], in order of i. */
void add_rows(const float *restrict rows, int64_t n, int64_t d, const int64_t *restrict codes, int64_t from, int64_t to,
              float *restrict sums)
{
    for (int64_t i = 0; i < n; i++) {
        const float *row = rows + i * d;
        float *sum = sums + codes[i] * d;
        for (int64_t j = from; j < to; j++)
            sum[j] += row[j];
    }
}
