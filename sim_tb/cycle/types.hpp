// What all parts of the cycle model share: the configuration, FIFO words, rows, and small queues.
//
// Time is counted in clock cycles. A variable named like a register of the RTL holds its value in the current cycle;
// parts are stepped in an order in which everybody reads such values before they change (see model.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace maskwork {

using Time = int64_t;
constexpr Time NEVER = INT64_MAX / 4;
constexpr Time LONG_AGO = -1000;
constexpr int CHUNK = 16;
constexpr int MAX_PES = 16;      // of a lane
constexpr int MAX_RINGS = 4;     // rows in flight of a lane
constexpr int MAX_LANES = 8;     // of a cluster
constexpr int MAX_CLUSTERS = 32;
constexpr int MASK_WORDS = 8;    // of a row of C

struct BitField {
    int32_t word, lsb, width, is_signed;
    int64_t get(const uint32_t* header) const {
        uint32_t value = header[word] >> lsb;
        if (width < 32) value &= (1u << width) - 1;
        if (is_signed && value >> (width - 1)) return static_cast<int64_t>(value) - (int64_t{1} << width);
        return value;
    }
};

// Fields of RUN in the order in which Python lists them.
enum RunField {
    A_BANK, B_BANK, C_BANK, USE_C, SHARE, FIRST, FINAL, POST, TAG, COLUMNS, CLUSTERS, ROWS, ROW_WORDS, M0, M1, T0, T1,
    X_LIMIT, Y_LIMIT, SEG, K, X, Y, M2_SEG, M2_K, M2_X, M2_Y, M1_SEG, M1_K, M1_X, M1_Y, M0_SEG, M0_K, M0_X, M0_Y,
    T1_SEG, T1_K, T1_X, T1_Y, T0_SEG, T0_K, T0_X, T0_Y, ROW, C_ROW, RUN_FIELDS
};

// Filled in by Python; the order of members is that of engine.py.
struct Config {
    int32_t lanes, lanes_per_cluster, pes, slots, rings, queue_depth, a_width, b_width, acc_width, stream_words;
    int32_t skip_a, skip_b, skip_c, fetch_width, k_depth, a_depth, a_segments, c_rows, psum_rows, fifo_depth;
    int32_t run_depth, lut_ram, post, counters, psum_in_pe, load_slots, project_sums, weight_lanes, hop_stages;
    int32_t in_turn;                    // dispatch
    int32_t run_words;                  // of a RUN's header
    int32_t header_words[256];          // of every command, 0: there is none
    BitField run[RUN_FIELDS];

    int lane_hops() const { return std::min(1, hop_stages); }     // between a cluster and its lanes (rtl/hop.py)
    int clusters() const { return lanes >> (std::bit_width(static_cast<unsigned>(lanes_per_cluster)) - 1); }
    int columns() const { return pes * slots; }
    int sum_rows() const { return psum_in_pe ? psum_rows : rings; }
    int mask_words() const { return (columns() + 31) / 32; }
    int beat_bits() const { return 32 * stream_words; }
    int header_beats() const { return (2 + mask_words() + stream_words - 1) / stream_words; }   // of a RESULT
    int per_word(int width) const { return std::max(1, 32 / width); }
    // Row k of a lane that has rows of its own in weights that it shares.
    int own_rows(int lane, int k) const {
        const int depth = k_depth / weight_lanes;
        return (k & (depth - 1)) + (weight_lanes > 1 ? depth * (lane & 1) : 0);
    }
};

inline int clog2(int count) { return std::max<int>(1, std::bit_width(static_cast<unsigned>(count - 1))); }
inline bool single(uint32_t bits) { return !(bits & (bits - 1)); }      // at most one
inline int log2_of(int power) { return std::bit_width(static_cast<unsigned>(power)) - 1; }

// A row of C on its way through a cluster.
struct Row {
    int64_t result;     // number of its first result packet in the order of the golden model, -1 before the last K tile
    uint32_t mask[MASK_WORDS];
    uint16_t slot;
    uint8_t bank, first, final, post, share;
};

enum class Kind : uint8_t { HEAD, VALUE, START, HEADER, END };

// A word of the activation buffer. Values are not kept: `nonzero` says which of a chunk are not 0.
struct Stored {
    Kind kind;
    uint8_t more;       // elements of the chunk after the first
    uint16_t bitmap;
    uint16_t nonzero;
    uint16_t number;    // of the chunk; in a lane's FIFO: k of the chunk's element 0
};

struct Segment {
    int32_t start, words;
};

// A bank of the activation buffer, with its directory; of all clusters that were loaded together.
struct Activations {
    std::vector<Stored> words;
    std::vector<Segment> directory;
};
using Banks = std::array<std::shared_ptr<Activations>, 2>;

// A word of a lane's FIFO.
struct Word : Stored {
    Row* row;           // of START
};

// A register pipeline as a ring: `at(n)` was pushed n cycles ago.
template <typename T, int N>
struct Delay {
    std::array<T, N> values{};
    unsigned head = 0;
    void push(const T& value) { values[++head % N] = value; }
    const T& at(unsigned age) const { return values[(head - age) % N]; }
};

// Bit iterator of rtl/bit_iterator.py: two stages, one nibble at a time.
struct BitIterator {
    uint32_t mask = 0, flags = 0;       // flags: the first bit of each nibble that has any
    uint32_t bits = 0;
    int outer_meta = 0, inner_meta = 0, nibble = 0;     // nibble: its first bit
    bool outer_valid = false, inner_valid = false;

    bool valid() const { return inner_valid; }
    int index() const { return nibble + std::countr_zero(bits | 16u); }
    bool inner_free(bool ready) const { return (inner_valid ^ 1) | (((bits & (bits - 1)) == 0) & ready); }
    bool ready(bool out_ready) const {
        return (outer_valid ^ 1) | (((flags & (flags - 1)) == 0) & inner_free(out_ready));
    }
    bool busy() const { return (outer_valid & (flags != 0)) | inner_valid; }

    void step(bool in_valid, uint32_t in_mask, int in_meta, bool out_ready) {
        const bool inner = inner_free(out_ready), outer = ready(out_ready);
        if (inner) {
            nibble = std::countr_zero(flags) & 31;
            inner_valid = outer_valid & (flags != 0);
            bits = mask >> nibble & 15;
            inner_meta = outer_meta;
            flags &= flags - 1;
        } else if (out_ready) {
            bits &= bits - 1;
        }
        if (outer) {
            mask = in_mask;
            const uint32_t pairs = in_mask | in_mask >> 1;
            flags = (pairs | pairs >> 2) & 0x11111111;
            outer_valid = in_valid;
            outer_meta = in_meta;
        }
    }
};

}  // namespace maskwork
