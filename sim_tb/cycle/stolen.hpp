// Issue slots that a drain takes from the PEs of a lane, known ahead of time.
#pragma once

#include "types.hpp"

namespace maskwork {

// The bits of a word before bit `end`, which may lie outside.
inline uint64_t bits_below(int64_t end) { return end <= 0 ? 0 : end >= 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1; }

struct Stolen {
    static constexpr Time SIZE = 64;
    // cycles of each PE, bit 0 is cycle `from`; none are taken from cycle `until` on
    Time from = LONG_AGO, until = LONG_AGO;
    std::array<uint64_t, MAX_PES> of_pe{};

    // Makes room for cycles from `time` on, at which none are known beyond; those before `now` are forgotten.
    void begin(Time now, Time time) {
        if (until <= now) {
            from = time;
            of_pe.fill(0);
        } else if (from < now) {
            for (uint64_t& bits : of_pe) bits >>= now - from;
            from = now;
        }
    }
};

// Cycles that are taken from a PE; times count from any one cycle on.
struct StolenOf {
    uint64_t bits;
    int32_t from;       // time of bit 0

    // Cycles behind `begin`, up to `end`, that are taken.
    int32_t within(int32_t begin, int32_t end) const {
        return std::popcount(bits & bits_below(end + 1 - from) & ~bits_below(begin + 1 - from));
    }
    bool same_from(int32_t time, const StolenOf& other) const {
        return !((bits ^ other.bits) & ~bits_below(time - from));
    }
    // When the last of so many slots behind `begin` is issued.
    int32_t after(int32_t begin, int32_t slots) const {
        const uint64_t behind = bits & ~bits_below(begin + 1 - from);
        int32_t end = begin + slots;
        if (!behind) return end;
        for (int32_t longer;; end = longer) {
            longer = begin + slots + std::popcount(behind & bits_below(end + 1 - from));
            if (longer == end) return end;
        }
    }
};

}  // namespace maskwork
