// Four numbers of 32 bits at a time, as the PEs of a lane are stepped: a vector of the compiler's, on every machine.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512VL__
#include <immintrin.h>
#endif

namespace maskwork {

using Four = int32_t __attribute__((vector_size(16)));

constexpr int FOUR = 4;

inline Four same(int32_t value) { return Four{value, value, value, value}; }
inline Four four_at(const uint32_t* from) {
    Four result;
    std::memcpy(&result, from, sizeof result);
    return result;
}
inline void put(uint32_t* to, Four value) { std::memcpy(to, &value, sizeof value); }
// Of each number: `yes` where `mask` has all bits set, `no` where it has none.
inline Four choose(Four mask, Four yes, Four no) { return mask ? yes : no; }
inline Four max(Four a, Four b) { return a > b ? a : b; }
inline Four min(Four a, Four b) { return a < b ? a : b; }
inline int sum_of(Four of) { return of[0] + of[1] + of[2] + of[3]; }
// Shifted right as numbers without a sign, whose upper bits are cleared by a mask.
inline Four shifted(Four value, int by, int32_t mask) { return (value >> by) & same(mask); }

// Bits that are set in each number, and those of the last nibble that has any.
struct Bits {
    Four all, last;
};
#if defined(__AVX512VPOPCNTDQ__) && defined(__AVX512VL__) && defined(__AVX512CD__)
inline Bits count_bits(Four of) {
    const auto bits = reinterpret_cast<__m128i>(of);
    const Four last_nibble = (31 - reinterpret_cast<Four>(_mm_lzcnt_epi32(bits))) & same(~3);
    const __m128i last = _mm_srlv_epi32(bits, reinterpret_cast<__m128i>(last_nibble));
    return {reinterpret_cast<Four>(_mm_popcnt_epi32(bits)), reinterpret_cast<Four>(_mm_popcnt_epi32(last))};
}
#else
inline Bits count_bits(Four of) {
    const Four pairs = of - shifted(of, 1, 0x55555555);
    const Four nibbles = (pairs & same(0x33333333)) + shifted(pairs, 2, 0x33333333);
    Four sum = (nibbles & same(0x0f0f0f0f)) + shifted(nibbles, 4, 0x0f0f0f0f);
    sum += sum >> 8;
    sum += sum >> 16;
    Four last = nibbles;
#pragma GCC unroll 3
    for (int bits = 16; bits >= 4; bits /= 2) {
        const Four upper = shifted(last, bits, (1 << bits) - 1);
        last = choose(upper > 0, upper, last & same((1 << bits) - 1));
    }
    return {sum & same(63), last};
}
#endif

}  // namespace maskwork
