// The control of lanes between FIFO and PEs (rtl/lane_fifo.py, expander.py), bit-sliced: a register of one bit is a bit
// of a word here, one a lane, and a cycle of up to 64 lanes is a few logic operations on such words. What is wider than
// a bit is in the lanes, and touched in the cycles in which it changes.
#pragma once

#include <utility>

#include "lane.hpp"

namespace maskwork {

constexpr int TURN_CHUNKS = 2;      // rtl/expander.py
constexpr int TOKEN_QUEUE = 8, STAGED = 3, SKID = 2;
constexpr int MAX_FRONT = 64;       // lanes of a Front

// Cycles to come, each with the lanes that something happens to in it.
struct Wheel {
    static constexpr Time SIZE = 256;
    Lanes lanes_at[SIZE] = {};
    // Whatever is too far away comes too early.
    void add(Lanes lane, Time now, Time at) { lanes_at[std::min(at, now + SIZE - 1) % SIZE] |= lane; }
    bool any(Time now) const { return lanes_at[now % SIZE]; }
    Lanes take(Time now) { return std::exchange(lanes_at[now % SIZE], 0); }
};

struct Front {
    const Config* config = nullptr;
    Lane* lanes = nullptr;
    bool stays_in_pe = false, block = false;
    bool awake = true;                  // something has changed in the last cycle

    Lanes released[MAX_RINGS] = {};     // by context, in this cycle: rows that are given free
    Lanes started[MAX_RINGS] = {};      // by ring, in this cycle: rows that have started
    Lanes any_started = 0;
    Lanes draining = 0;                 // Lane::active

    // ---- FIFO
    Lanes not_taken[MAX_RINGS] = {};    // a ring holds words
    Lanes more_words = 0;               // the ring that is read does, behind `at`
    Lanes behind = 0;                   // the ring's `taken` is not `at` yet
    Lanes filled[MAX_RINGS] = {};
    Lanes fetched = 0, moved = 0, held = 0;
    Lanes reading0 = 0, reading1 = 0;   // bits of Lane::reading
    // of the word that is held
    Lanes head_start = 0, head_end = 0, head_first = 0;

    // ---- expander
    Lanes select = 0, in_head = 0, in_header = 0, in_values = 0;        // its state
    Lanes rows[MAX_RINGS] = {}, busy[MAX_RINGS] = {};                   // by context
    Lanes others = 0, some = 0, turn_ring0 = 0, turn_ring1 = 0, turn_left = 0;
    // bits of the number of elements behind that of a chunk whose turn it is, and of its number in its word
    Lanes more[4] = {}, value[3] = {};
    Lanes not_value[3] = {};            // bits that are not used
    Lanes start_free = 0;               // the START that shows finds its slot free

    // ---- tokens: staged; in the queue, as bits of their number; and how they wait for PEs
    Lanes staged = 0, tokens_space = 0;
    Lanes level0 = 0, level1 = 0, level2 = 0, level3 = 0;
    Lanes waits = 0;                    // until the wheel or a row that retires says so
    Wheel asks;

    // ---- accounts: bits of each lane's reason
    Lanes reason0 = 0, reason1 = 0;

    void create(const Config& c, Lane* first, int count) {
        config = &c;
        lanes = first;
        stays_in_pe = c.psum_in_pe;
        block = !c.lut_ram;
        for (int n = log2_of(c.fetch_width); n < 3; ++n) not_value[n] = ~Lanes{0};
        select = count == MAX_FRONT ? ~Lanes{0} : (Lanes{1} << count) - 1;
        tokens_space = reason0 = reason1 = ~Lanes{0};
    }

    template <typename Action>
    void each(Lanes set, Action action) const {
        for (; set; set &= set - 1) action(lanes[std::countr_zero(set)], set & (~set + 1));
    }

    static void assign(Lanes& set, Lanes lane, bool value) { set = value ? set | lane : set & ~lane; }

    void write(int n, int ring, const Word& word) {
        Lane& lane = lanes[n];
        const Lanes bit = Lanes{1} << n;
        lane.ram[static_cast<size_t>(ring) * lane.ring_words + (lane.written[ring] & (lane.ring_words - 1))] = word;
        ++lane.written[ring];
        not_taken[ring] |= bit;
        more_words |= -static_cast<Lanes>(ring == lane.reading) & bit;
        awake = true;
    }

    // What drains and rows that retire do to a lane.
    void release(Lanes lane, int context) {
        released[context] |= lane;
        awake = true;
    }
    void drain(Lanes lane, bool active) {
        assign(draining, lane, active);
        awake = true;
    }
    void retired(Lanes lane) {
        waits &= ~lane;
        awake = true;
    }

    bool rests(Time now) const { return !awake && !asks.any(now); }

    // One cycle.
    void step(Time now) {
        if (config->rings == 2) step_rings<2>(now);
        else step_rings<4>(now);
    }

private:
    // The oldest tokens leave for the PEs, where these have space; returns from which lanes they do.
    Lanes send_tokens(Time now, Lanes ask) {
        Lanes sent = 0;
        for (; ask; ask &= ask - 1) {
            Lane& lane = lanes[std::countr_zero(ask)];
            const Lanes bit = ask & (~ask + 1);
            const ExpanderToken& token = lane.tokens[lane.tokens_head % TOKEN_RING];
            if (token.end && lane.stays[token.context]) {
                waits |= bit;
                continue;
            }
            // a drain may have been in the way since the lane was told when to ask
            if (const Time space = lane.pes.have_space(now); space > now) [[unlikely]] {
                waits |= bit;
                asks.add(bit, now, space);
                continue;
            }
            // a row whose sums stay in the PEs leaves its context free
            if (token.end && stays_in_pe) released[token.context] |= bit;
            sent |= bit;
            lane.fire(now, token);
            lane.fetch_next();
            const Time again = lane.pes.space_from;
            const Lanes later = again > now + 1 ? bit : 0;
            waits |= later;
            asks.add(later, now, again);
        }
        return sent;
    }

    void charge(Time now, Lanes low, Lanes high) {
        constexpr Reason REASON[] = {FETCH, IMBALANCE, DRAIN, OUTER};
        each((low ^ reason0) | (high ^ reason1), [&](Lane& lane, Lanes bit) {
            if (now > lane.pes.idle_from) lane.account(now);
            lane.reason = REASON[((low & bit) != 0) + 2 * ((high & bit) != 0)];
        });
        reason0 = low;
        reason1 = high;
    }

    // Chunks are taken, and what becomes of their elements: tokens, which go one a cycle.
    void take_chunks(Lanes set) {
        Lanes next_more[4] = {};
        each(set, [&](Lane& lane, Lanes bit) {
            const Row& row = *lane.context_row[lane.reading];
            // of the weights, those that the row's k counts in
            const int bank = row.bank ? config->k_depth : 0;
            const auto first_row = static_cast<uint32_t>(bank + (row.share ? config->own_rows(lane.number, 0) : 0));
            const int own_depth = row.share ? config->k_depth / config->weight_lanes : config->k_depth;
            const uint32_t row_mask = static_cast<uint32_t>(own_depth - 1), k = lane.head.number;
            const uint32_t last = lane.head.more, nonzero = lane.head.nonzero;
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) next_more[n] |= last >> n & 1 ? bit : 0;
            uint32_t bits = config->skip_a ? lane.head.bitmap : (2u << last) - 1;
            do {
                const uint32_t element = static_cast<uint32_t>(std::countr_zero(bits));
                const uint32_t number = first_row + ((k + element) & row_mask);
                lane.tokens[lane.tokens_end++ % TOKEN_RING] = {number, static_cast<uint8_t>(lane.reading), false,
                                                               (nonzero >> element & 1) != 0};
            } while (bits &= bits - 1);
        });
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) more[n] = (more[n] & ~set) | next_more[n];
        for (Lanes& bit : value) bit &= ~set;
    }

    Lanes last_element() const { return ~(more[0] | more[1] | more[2] | more[3]); }
    Lanes last_of_word() const {
        return ((value[0] | not_value[0]) & (value[1] | not_value[1]) & (value[2] | not_value[2])) | last_element();
    }

    // An element has become a token.
    void count_elements(Lanes set) {
        const Lanes less1 = set & ~more[0], less2 = less1 & ~more[1], less3 = less2 & ~more[2];
        more[0] ^= set;
        more[1] ^= less1;
        more[2] ^= less2;
        more[3] ^= less3;
        const Lanes carry1 = set & value[0], carry2 = carry1 & value[1];
        value[0] ^= set & ~not_value[0];
        value[1] ^= carry1 & ~not_value[1];
        value[2] ^= carry2 & ~not_value[2];
    }

    // What lanes read next: the word behind, or another ring's.
    void read_on(Lanes moves, Lanes turn, Lanes lag, Lanes old_ring0, Lanes old_ring1) {
        Lanes starts = 0, ends = 0, firsts = 0, more = 0;
        each(moves, [&](Lane& lane, Lanes bit) {
            const size_t ring = static_cast<size_t>(lane.reading);
            lane.head = lane.ram[ring * lane.ring_words + (lane.at & (lane.ring_words - 1))];
            if (lane.head.kind == Kind::START) {
                starts |= bit;
                firsts |= lane.head.row->first ? bit : 0;
            }
            ends |= lane.head.kind == Kind::END ? bit : 0;
            lane.taken[ring] = lane.at;
            assign(not_taken[ring], bit, lane.written[ring] != lane.at);
            ++lane.at;
            more |= lane.at != lane.written[ring] ? bit : 0;
        });
        head_start = (head_start & ~moves) | starts;
        head_end = (head_end & ~moves) | ends;
        head_first = (head_first & ~moves) | firsts;
        more_words = (more_words & ~moves) | more;
        behind = (behind & ~lag) | moves;
        each((turn | lag) & ~moves, [&](Lane& lane, Lanes bit) {
            const int ring = lane.reading, next_ring = ((old_ring0 & bit) != 0) + 2 * ((old_ring1 & bit) != 0);
            const uint32_t old_taken = lane.taken[next_ring];
            lane.taken[ring] = lane.at;
            assign(not_taken[ring], bit, lane.written[ring] != lane.at);
            if (!(turn & bit)) return;
            lane.reading = next_ring;
            lane.at = old_taken;
            assign(reading0, bit, next_ring & 1);
            assign(reading1, bit, next_ring & 2);
            assign(more_words, bit, lane.at != lane.written[next_ring]);
            assign(behind, bit, lane.at != lane.taken[next_ring]);
        });
    }

    template <int count>
    void step_rings(Time now);
};

template <int count>
void Front::step_rings(Time now) {
    // ---- tokens
    const Lanes tokens = level0 | level1 | level2 | level3;
    waits &= ~asks.take(now);
    Lanes next_start_free = 0;
    if (stays_in_pe) {
        each(held & head_start, [&](Lane& lane, Lanes bit) {
            next_start_free |= lane.owed[lane.head.row->slot] ? 0 : bit;
        });
    }
    const Lanes fires = send_tokens(now, tokens & ~waits);
    const Lanes blocked = tokens & ~fires;
    const Lanes room = block ? ~staged | ~(level1 | level2 | level3) : tokens_space;
    const Lanes pushes = block ? staged & room : staged;

    Lanes some_row = 0, some_busy = 0, some_filled = 0;
    for (int n = 0; n < count; ++n) {
        some_row |= rows[n];
        some_busy |= busy[n];
        some_filled |= filled[n];
    }
    const Lanes fetch = ~tokens & some_row, known = fetch | blocked;
    const Lanes drain = ~known & (draining | some_busy | (select & some_filled)), outer = ~(known | drain);
    charge(now, (blocked & ~fetch) | outer, drain | outer);

    // ---- a ring has its turn if its row goes on, or if a row waits and its context is free
    Lanes is[count], open[count];
    for (int n = 0; n < count; ++n) {
        is[n] = (n & 1 ? reading0 : ~reading0) & (n & 2 ? reading1 : count > 2 ? ~reading1 : ~Lanes{0});
        open[n] = filled[n] & (rows[n] | ~busy[n]);
    }
    Lanes open_by[count] = {}, own_filled = 0;      // by distance from the ring that is read
    for (int n = 0; n < count; ++n) {
        own_filled |= is[n] & filled[n];
        for (int step = 0; step < count; ++step) open_by[step] |= is[n] & open[(n + step) % count];
    }
    Lanes next_turn0, next_turn1 = 0, other_open = open_by[1];
    if constexpr (count == 2) {
        next_turn0 = reading0 ^ open_by[1];
    } else {
        const Lanes by0 = open_by[1] | (~open_by[2] & open_by[3]), by1 = ~open_by[1] & (open_by[2] | open_by[3]);
        other_open |= open_by[2] | open_by[3];
        next_turn0 = reading0 ^ by0;
        next_turn1 = reading1 ^ by1 ^ (reading0 & by0);
    }

    // ---- expander
    const Lanes valid = held;
    const Lanes slot_owed = stays_in_pe ? valid & head_start & head_first & ~start_free : 0;
    const Lanes head_ready = in_head & room & ~slot_owed, goes = valid & head_ready;
    const Lanes starts = goes & head_start, ends = goes & head_end, chunks = goes & ~(head_start | head_end);
    const Lanes headers = stays_in_pe ? starts & head_first : starts;
    const Lanes value_goes = in_values & valid & room, chunk_ends = value_goes & last_element();
    static_assert(TURN_CHUNKS == 2);    // turn_left is a bit
    const Lanes turn = (select & some) | (chunk_ends & ~turn_left & others) | (in_head & ~valid & ~own_filled & others);
    const Lanes ready = head_ready | in_header | (in_values & room & last_of_word());
    const Lanes go_words = ~select & ~(in_head & valid & head_end);
    const Lanes moves = fetched & ~moved & (~held | ready) & go_words & ~turn;
    const Lanes next_staged = value_goes | ends;
    Lanes header_ends = 0;
    each(in_header & valid, [&](Lane& lane, Lanes bit) {
        const bool last = lane.header_index == 1 + config->mask_words();
        header_ends |= last ? bit : 0;
        lane.header_index = last ? 0 : lane.header_index + 1;
    });

    // ---- registers
    Lanes changed = fires | pushes | next_staged | turn | moves | behind | (in_header & valid) | starts | chunks;
    const auto set = [&changed](Lanes& value, Lanes next) {
        changed |= value ^ next;
        value = next;
    };
    turn_left = ((turn_left | (select & some)) ^ chunk_ends);
    count_elements(value_goes);
    each(ends, [&](Lane& lane, Lanes) {
        lane.tokens[lane.tokens_end++ % TOKEN_RING] = {0, static_cast<uint8_t>(lane.reading), true, false};
    });
    each(starts, [&](Lane& lane, Lanes bit) {
        lane.header_index = (headers & bit) != 0;
        lane.start_row(lane.head.row);
    });
    if (chunks) take_chunks(chunks);
    any_started = starts;
    for (int n = 0; n < count; ++n) {
        started[n] = starts & is[n];
        rows[n] = (rows[n] | started[n]) & ~(ends & is[n]);
        set(busy[n], (busy[n] | started[n]) & ~released[n]);
        released[n] = 0;
    }

    const Lanes next_select = (select & ~some) | ends;
    const Lanes next_head = (select & some) | (in_head & ~(ends | chunks | headers)) | header_ends | chunk_ends;
    in_header = headers | (in_header & ~header_ends);
    in_values = chunks | (in_values & ~chunk_ends);
    set(select, next_select);
    set(in_head, next_head);

    set(tokens_space, ~(level3 | (level2 & level1)));
    static_assert(TOKEN_QUEUE - STAGED == 5);
    const Lanes up = pushes & ~fires, down = fires & ~pushes;
    const Lanes up1 = up & level0, up2 = up1 & level1, down1 = down & ~level0, down2 = down1 & ~level1;
    level3 ^= (up2 & level2) | (down2 & ~level2);
    level2 ^= up2 | down2;
    level1 ^= up1 | down1;
    level0 ^= up | down;
    staged = (staged & ~pushes) | next_staged;

    const Lanes settled = ~(turn | ends);
    set(others, settled & other_open);
    set(some, settled & (other_open | open_by[0]));
    const Lanes turn_ring[] = {turn_ring0, turn_ring1};
    set(turn_ring0, next_turn0);
    set(turn_ring1, next_turn1);
    set(start_free, next_start_free);
    set(held, moves | (held & ~ready));
    set(fetched, more_words);
    set(moved, moves | turn);
    for (int n = 0; n < count; ++n) set(filled[n], not_taken[n]);
    read_on(moves, turn, behind, turn_ring[0], turn_ring[1]);
    awake = changed != 0;
}

}  // namespace maskwork
