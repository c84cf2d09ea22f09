// Vectors of lanes, the numeric types of kernel bodies.
//
// No include guard: a source file includes this header, and the bodies after it, once per
// instruction set. OPUS_TARGET is the namespace: `portable`, `avx2` and `avx512` on the host (the
// latter two inside `#pragma GCC target`), `device` in CUDA sources. On the host a lane vector is a
// Pack; on the device it is a number or a Quad of one thread. Bodies are templates over the vector
// type V and use only the functions below.
#if !defined(OPUS_TARGET)
#error "define OPUS_TARGET before including common/lanes.h"
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/defs.h"
#include "common/half_bits.h"

#if defined(__CUDACC__)
#define OPUS_BODY __host__ __device__ __forceinline__
#else
#define OPUS_BODY inline __attribute__((always_inline))
#endif
#if defined(__CUDA_ARCH__)  // the host compiler, which nvcc also runs, does not support this pragma
#define OPUS_UNROLL _Pragma("unroll")
#define OPUS_NO_UNROLL _Pragma("unroll 1")
#else
#define OPUS_UNROLL
#define OPUS_NO_UNROLL
#endif
// The same for loops where the host compiler would otherwise keep an array of sums in memory.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define OPUS_UNROLL_ALWAYS _Pragma("GCC unroll 8")
#else
#define OPUS_UNROLL_ALWAYS OPUS_UNROLL
#endif

namespace opus {
namespace OPUS_TARGET {

// Forces later code to read shared memory again. Without it the GPU compiler keeps earlier values
// in registers and runs out of them. All lanes of a warp must call it together.
OPUS_BODY void read_anew() {
#if defined(__CUDA_ARCH__)
  __syncwarp();
#endif
}

// Compile-time count: loops over it are unrolled, which keeps arrays in registers.
template <int N>
struct Fixed {
  static constexpr int value = N;
  OPUS_BODY constexpr operator int() const { return N; }
};

template <typename V>
struct Lanes {  // a plain number is one lane
  using Scalar = V;
  using Words = uint32_t;
  static constexpr int kWidth = 1;
  static OPUS_BODY V fill(V x) { return x; }
  template <typename S>
  static OPUS_BODY V load(const S* p) {
    return static_cast<V>(widen(*p));
  }
  static OPUS_BODY void store(V* p, V x) { *p = x; }
  static OPUS_BODY void load_words(const uint32_t* p, Words& x) { x = *p; }
};

#if defined(__CUDACC__)
OPUS_BODY float fmadd(float a, float b, float c) { return fmaf(a, b, c); }
OPUS_BODY double fmadd(double a, double b, double c) { return fma(a, b, c); }
#else
OPUS_BODY float fmadd(float a, float b, float c) { return a * b + c; }
OPUS_BODY double fmadd(double a, double b, double c) { return a * b + c; }
#endif
OPUS_BODY float larger(float a, float b) { return a > b ? a : b; }
OPUS_BODY double larger(double a, double b) { return a > b ? a : b; }
// Returns x if `sign` is above zero, else 0.
OPUS_BODY float above_zero(float sign, float x) { return sign > 0 ? x : 0.0f; }
OPUS_BODY double above_zero(double sign, double x) { return sign > 0 ? x : 0.0; }
// Returns max(x, 0); NaN propagates.
OPUS_BODY float rectified(float x) { return x <= 0 ? 0.0f : x; }
OPUS_BODY double rectified(double x) { return x <= 0 ? 0.0 : x; }
OPUS_BODY float sum_of_lanes(float x) { return x; }
OPUS_BODY double sum_of_lanes(double x) { return x; }
OPUS_BODY float root(float x) { return ::sqrtf(x); }
OPUS_BODY double root(double x) { return ::sqrt(x); }
OPUS_BODY float exponential(float x) { return ::expf(x); }
OPUS_BODY double exponential(double x) { return ::exp(x); }
OPUS_BODY float log_one_plus(float x) { return ::log1pf(x); }
OPUS_BODY double log_one_plus(double x) { return ::log1p(x); }
// Returns x if `word` is at least the threshold, else 0.
OPUS_BODY float keep_from(uint32_t word, uint32_t threshold, float x) {
  return word >= threshold ? x : 0.0f;
}
OPUS_BODY double keep_from(uint32_t word, uint32_t threshold, double x) {
  return word >= threshold ? x : 0.0;
}

#if !defined(__CUDACC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // no vectors in the ABI: all functions are inlined

// Vector of OPUS_PACK_BYTES; the compiler maps it to the registers of the target.
template <typename T>
struct Pack {
  typedef T Raw __attribute__((vector_size(OPUS_PACK_BYTES)));
  static constexpr int kWidth = OPUS_PACK_BYTES / sizeof(T);
  Raw raw;

  OPUS_BODY Pack operator-() const { return {-raw}; }
  OPUS_BODY Pack& operator+=(const Pack& b) { raw += b.raw; return *this; }
  OPUS_BODY Pack& operator*=(const Pack& b) { raw *= b.raw; return *this; }
  friend OPUS_BODY Pack operator+(const Pack& a, const Pack& b) { return {a.raw + b.raw}; }
  friend OPUS_BODY Pack operator-(const Pack& a, const Pack& b) { return {a.raw - b.raw}; }
  friend OPUS_BODY Pack operator*(const Pack& a, const Pack& b) { return {a.raw * b.raw}; }
  friend OPUS_BODY Pack operator/(const Pack& a, const Pack& b) { return {a.raw / b.raw}; }
};

template <typename T>
OPUS_BODY Pack<T> load_brain(const BrainBits* p) {
  Pack<T> x;
  for (int i = 0; i < Pack<T>::kWidth; ++i) x.raw[i] = widen(p[i]);
  return x;
}

template <typename T>
OPUS_BODY Pack<T> load_half(const HalfBits* p) {
#if defined(OPUS_TARGET_HAS_AVX2)
  if constexpr (Pack<T>::kWidth == 8) {
    __m128i bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return {(typename Pack<T>::Raw)_mm256_cvtph_ps(bits)};
  }
#endif
  Pack<T> x;
  for (int i = 0; i < Pack<T>::kWidth; ++i) x.raw[i] = widen(p[i]);
  return x;
}

template <typename T>
struct Lanes<Pack<T>> {
  using Scalar = T;
  typedef uint32_t Words __attribute__((vector_size(4 * Pack<T>::kWidth)));
  static constexpr int kWidth = Pack<T>::kWidth;
  static OPUS_BODY Pack<T> fill(T x) { return {x - (typename Pack<T>::Raw){}}; }
  static OPUS_BODY Pack<T> load(const T* p) {
    Pack<T> x;
    __builtin_memcpy(&x.raw, p, sizeof(x.raw));
    return x;
  }
  static OPUS_BODY Pack<T> load(const HalfBits* p) { return load_half<T>(p); }
  static OPUS_BODY Pack<T> load(const BrainBits* p) { return load_brain<T>(p); }
  static OPUS_BODY void store(T* p, const Pack<T>& x) {
    __builtin_memcpy(p, &x.raw, sizeof(x.raw));
  }
  // By reference, since a raw vector as return value would depend on the ABI.
  static OPUS_BODY void load_words(const uint32_t* p, Words& x) {
    __builtin_memcpy(&x, p, sizeof(x));
  }
};

// GCC 12 does not define __AVX2__ or __AVX512F__ after #pragma GCC target.
#if defined(OPUS_TARGET_HAS_AVX512)
// GCC 12 warns about an uninitialised register in intrinsics without a mask.
constexpr __mmask16 kAllLanes = 0xffff;

OPUS_BODY Pack<float> fmadd(const Pack<float>& a, const Pack<float>& b, const Pack<float>& c) {
  return {(Pack<float>::Raw)_mm512_fmadd_ps((__m512)a.raw, (__m512)b.raw, (__m512)c.raw)};
}
OPUS_BODY Pack<double> fmadd(const Pack<double>& a, const Pack<double>& b, const Pack<double>& c) {
  return {(Pack<double>::Raw)_mm512_fmadd_pd((__m512d)a.raw, (__m512d)b.raw, (__m512d)c.raw)};
}
OPUS_BODY Pack<float> root(const Pack<float>& x) {
  return {(Pack<float>::Raw)_mm512_maskz_sqrt_ps(kAllLanes, (__m512)x.raw)};
}
#elif defined(OPUS_TARGET_HAS_AVX2)
OPUS_BODY Pack<float> fmadd(const Pack<float>& a, const Pack<float>& b, const Pack<float>& c) {
  return {(Pack<float>::Raw)_mm256_fmadd_ps((__m256)a.raw, (__m256)b.raw, (__m256)c.raw)};
}
OPUS_BODY Pack<double> fmadd(const Pack<double>& a, const Pack<double>& b, const Pack<double>& c) {
  return {(Pack<double>::Raw)_mm256_fmadd_pd((__m256d)a.raw, (__m256d)b.raw, (__m256d)c.raw)};
}
OPUS_BODY Pack<float> root(const Pack<float>& x) {
  return {(Pack<float>::Raw)_mm256_sqrt_ps((__m256)x.raw)};
}
#else
template <typename T>
OPUS_BODY Pack<T> fmadd(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c) {
  return {a.raw * b.raw + c.raw};
}
OPUS_BODY Pack<float> root(const Pack<float>& x) {
  Pack<float> y;
  for (int i = 0; i < Pack<float>::kWidth; ++i) y.raw[i] = std::sqrt(x.raw[i]);
  return y;
}
#endif
OPUS_BODY Pack<double> root(const Pack<double>& x) {
  Pack<double> y;
  for (int i = 0; i < Pack<double>::kWidth; ++i) y.raw[i] = std::sqrt(x.raw[i]);
  return y;
}

template <typename T>
OPUS_BODY Pack<T> larger(const Pack<T>& a, const Pack<T>& b) {
  return {a.raw > b.raw ? a.raw : b.raw};
}

template <typename T>
OPUS_BODY Pack<T> above_zero(const Pack<T>& sign, const Pack<T>& x) {
  const typename Pack<T>::Raw zero{};
  return {sign.raw > zero ? x.raw : zero};
}

template <typename T>
OPUS_BODY Pack<T> rectified(const Pack<T>& x) {
  const typename Pack<T>::Raw zero{};
  return {x.raw <= zero ? zero : x.raw};
}

OPUS_BODY Pack<double> exponential(const Pack<double>& x) {
  Pack<double> y;
  for (int i = 0; i < Pack<double>::kWidth; ++i) y.raw[i] = std::exp(x.raw[i]);
  return y;
}

// Returns exp(x) with a relative error of 2e-7 for x <= 88, and 0 below -87: 2^n times a polynomial
// of the remainder r, |r| <= ln(2)/2. The polynomial is the minimax one that begins with 1 + r; its
// relative error is 3e-9.
OPUS_BODY Pack<float> exponential(const Pack<float>& x) {
  using F = Pack<float>;
  typedef int32_t Int __attribute__((vector_size(OPUS_PACK_BYTES)));
  // 1.5 * 2^23 + 127: adding it rounds to an integer n and puts the biased exponent of 2^n into the
  // low bits.
  const F magic = Lanes<F>::fill(12583039.0f);
  const F shifted = fmadd(x, Lanes<F>::fill(1.44269504f), magic);
  const F n = shifted - magic;
  F r = fmadd(n, Lanes<F>::fill(-0.693359375f), x);  // ln(2) in two parts; the product with the
  r = fmadd(n, Lanes<F>::fill(2.12194440e-4f), r);   // first part is exact
  F p = Lanes<F>::fill(1.38145401e-3f);
  for (const float c : {8.36874514e-3f, 4.16683908e-2f, 0.166665204f, 0.499999934f, 1.0f, 1.0f}) {
    p = fmadd(p, r, Lanes<F>::fill(c));
  }
  const F value = p * F{(F::Raw)((Int)shifted.raw << 23)};
  return {x.raw < Lanes<F>::fill(-87.0f).raw ? Lanes<F>::fill(0.0f).raw : value.raw};
}

OPUS_BODY Pack<double> log_one_plus(const Pack<double>& x) {
  Pack<double> y;
  for (int i = 0; i < Pack<double>::kWidth; ++i) y.raw[i] = std::log1p(x.raw[i]);
  return y;
}

// Returns log(1 + x) for 0 <= x <= 1, as 2 artanh(s) with s = x / (2 + x) <= 1/3.
OPUS_BODY Pack<float> log_one_plus(const Pack<float>& x) {
  using F = Pack<float>;
  const F s = x / (x + Lanes<F>::fill(2.0f)), square = s * s;
  F p = Lanes<F>::fill(2.0f / 15);
  for (const float c : {2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f}) {
    p = fmadd(p, square, Lanes<F>::fill(c));
  }
  return p * s;
}

OPUS_BODY Pack<float> keep_from(const Lanes<Pack<float>>::Words& words, uint32_t threshold,
                                const Pack<float>& x) {
  return {words >= threshold ? x.raw : Pack<float>::Raw{}};
}
OPUS_BODY Pack<double> keep_from(const Lanes<Pack<double>>::Words& words, uint32_t threshold,
                                 const Pack<double>& x) {
  typedef int64_t Long __attribute__((vector_size(OPUS_PACK_BYTES)));
  const Long mask = __builtin_convertvector(words >= threshold, Long);
  return {mask ? x.raw : Pack<double>::Raw{}};
}

// Transposes a square matrix: one vector per lane.
template <typename T>
OPUS_BODY void turn(Pack<T> (&rows)[Pack<T>::kWidth]) {
  for (int i = 0; i < Pack<T>::kWidth; ++i) {
    for (int j = 0; j < i; ++j) {
      const T upper = rows[j].raw[i];
      rows[j].raw[i] = rows[i].raw[j];
      rows[i].raw[j] = upper;
    }
  }
}

#if defined(OPUS_TARGET_HAS_AVX2)
OPUS_BODY void turn(Pack<float> (&rows)[8]) {
  __m256 pair[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps((__m256)rows[i].raw, (__m256)rows[i + 1].raw);
    pair[i + 1] = _mm256_unpackhi_ps((__m256)rows[i].raw, (__m256)rows[i + 1].raw);
  }
  for (int i = 0; i < 8; i += 4) {  // four[i ..] holds columns i .. i + 4 of half a register
    four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].raw = (Pack<float>::Raw)_mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
    rows[i + 4].raw = (Pack<float>::Raw)_mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
  }
}
#elif defined(OPUS_TARGET_HAS_AVX512)
// Selects quarters of a and of b by kWhich.
template <int kWhich>
OPUS_BODY __m512 quarters(const __m512& a, const __m512& b) {
  return _mm512_maskz_shuffle_f32x4(kAllLanes, a, b, kWhich);
}

OPUS_BODY void turn(Pack<float> (&rows)[16]) {
  __m512 pair[16], four[16];
  for (int i = 0; i < 16; i += 2) {
    const __m512 a = (__m512)rows[i].raw, b = (__m512)rows[i + 1].raw;
    pair[i] = _mm512_maskz_unpacklo_ps(kAllLanes, a, b);
    pair[i + 1] = _mm512_maskz_unpackhi_ps(kAllLanes, a, b);
  }
  for (int i = 0; i < 16; i += 4) {  // four[i + j]: column j of rows i .. i + 4, in all quarters
    four[i] = _mm512_maskz_shuffle_ps(kAllLanes, pair[i], pair[i + 2], 0x44);
    four[i + 1] = _mm512_maskz_shuffle_ps(kAllLanes, pair[i], pair[i + 2], 0xee);
    four[i + 2] = _mm512_maskz_shuffle_ps(kAllLanes, pair[i + 1], pair[i + 3], 0x44);
    four[i + 3] = _mm512_maskz_shuffle_ps(kAllLanes, pair[i + 1], pair[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even[2] = {quarters<0x88>(four[j], four[j + 4]),
                            quarters<0x88>(four[j + 8], four[j + 12])};
    const __m512 odd[2] = {quarters<0xdd>(four[j], four[j + 4]),
                           quarters<0xdd>(four[j + 8], four[j + 12])};
    rows[j].raw = (Pack<float>::Raw)quarters<0x88>(even[0], even[1]);
    rows[j + 4].raw = (Pack<float>::Raw)quarters<0x88>(odd[0], odd[1]);
    rows[j + 8].raw = (Pack<float>::Raw)quarters<0xdd>(even[0], even[1]);
    rows[j + 12].raw = (Pack<float>::Raw)quarters<0xdd>(odd[0], odd[1]);
  }
}
#endif

template <typename T>
OPUS_BODY T sum_of_lanes(const Pack<T>& x) {
  T total = 0;
  for (int i = 0; i < Pack<T>::kWidth; ++i) total += x.raw[i];
  return total;
}

#pragma GCC diagnostic pop
#endif  // host

#if defined(__CUDACC__)

// Four numbers of one thread, loaded and stored together. Addresses must be multiples of 16 bytes.
struct alignas(16) Quad {
  float x[4];

  OPUS_BODY Quad& operator+=(const Quad& b) { return *this = *this + b; }
  friend OPUS_BODY Quad operator+(const Quad& a, const Quad& b) {
    return {{a.x[0] + b.x[0], a.x[1] + b.x[1], a.x[2] + b.x[2], a.x[3] + b.x[3]}};
  }
  friend OPUS_BODY Quad operator-(const Quad& a, const Quad& b) {
    return {{a.x[0] - b.x[0], a.x[1] - b.x[1], a.x[2] - b.x[2], a.x[3] - b.x[3]}};
  }
  friend OPUS_BODY Quad operator*(const Quad& a, const Quad& b) {
    return {{a.x[0] * b.x[0], a.x[1] * b.x[1], a.x[2] * b.x[2], a.x[3] * b.x[3]}};
  }
};

template <>
struct Lanes<Quad> {
  using Scalar = float;
  static constexpr int kWidth = 4;
  static OPUS_BODY Quad fill(float x) { return {{x, x, x, x}}; }
  static OPUS_BODY Quad load(const float* p) { return *reinterpret_cast<const Quad*>(p); }
  template <typename S>
  static OPUS_BODY Quad load(const S* p) {
    struct alignas(4 * sizeof(S)) Four {
      S x[4];
    };
    const Four four = *reinterpret_cast<const Four*>(p);
    return {{widen(four.x[0]), widen(four.x[1]), widen(four.x[2]), widen(four.x[3])}};
  }
  static OPUS_BODY void store(float* p, const Quad& x) { *reinterpret_cast<Quad*>(p) = x; }
};

OPUS_BODY Quad fmadd(const Quad& a, const Quad& b, const Quad& c) {
  return {{fmadd(a.x[0], b.x[0], c.x[0]), fmadd(a.x[1], b.x[1], c.x[1]),
           fmadd(a.x[2], b.x[2], c.x[2]), fmadd(a.x[3], b.x[3], c.x[3])}};
}
OPUS_BODY Quad above_zero(const Quad& sign, const Quad& a) {
  return {{above_zero(sign.x[0], a.x[0]), above_zero(sign.x[1], a.x[1]),
           above_zero(sign.x[2], a.x[2]), above_zero(sign.x[3], a.x[3])}};
}
OPUS_BODY Quad rectified(const Quad& a) {
  return {{rectified(a.x[0]), rectified(a.x[1]), rectified(a.x[2]), rectified(a.x[3])}};
}
OPUS_BODY float sum_of_lanes(const Quad& a) { return (a.x[0] + a.x[1]) + (a.x[2] + a.x[3]); }

#endif  // CUDA

}  // namespace OPUS_TARGET
}  // namespace opus
