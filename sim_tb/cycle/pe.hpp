// The PEs of a lane, between their token queues and their bit iterators. When a token leaves its queue and when its
// slots are issued follows from the tokens before it at the time at which it is sent, so it is reckoned then; only a
// drain, which takes issue slots, changes it afterwards. Nothing is done in the cycles between.
#pragma once

#include "types.hpp"

namespace maskwork {

constexpr int LOOKUP_LATENCY = 3;   // rtl/pe.py
constexpr int QUEUE_MARGIN = LOOKUP_LATENCY + 2;
// cycles in which a token that was sent does not count in the queue
constexpr uint32_t IN_FLIGHT = LOOKUP_LATENCY + 1;

// A token in a PE; of its times the low bits are kept. (Members of one byte could alias everything, and cost speed.)
struct Token {
    uint32_t pushed;    // cycle in which it enters the queue
    uint32_t popped;    // in which it leaves the queue
    uint32_t ends;      // in which its last slot is issued
    uint16_t service;   // slots that it is issued for
    uint16_t tail;      // cycles from the move of its last nibble to the iterator's inner stage to `ends`
};

struct Pes {
    int count = 0, most = 0;            // PEs; entries of a queue at which it still has space
    bool counting = false;              // no mask of B or C: every slot in turn
    Time to_queue = LOOKUP_LATENCY;     // from a token that leaves the lane to the cycle before the queue can show it
    uint32_t ring_mask = 0;
    std::vector<Token> tokens;          // a ring a PE
    // of each PE: tokens that it got, and of the last of them, the move of its last nibble and its last slot
    std::array<uint32_t, MAX_PES> sent{};
    std::array<Time, MAX_PES> moves{}, ends{};
    std::array<uint32_t, MAX_PES> issued{};     // number of the token that a drain was in the way of
    // of each context the last cycle of its row's end, and which token of a PE that is
    std::array<Time, MAX_PES> done[MAX_RINGS] = {};
    std::array<uint32_t, MAX_PES> end_number[MAX_RINGS] = {};
    // cycles in which tokens were sent, by their number, and from when on all queues have space if no later ones count
    static constexpr uint32_t SENDINGS = 8;
    uint32_t sendings = 0;
    Time sent_at[SENDINGS], space_at[SENDINGS] = {};
    Time idle_from = 0;                 // no PE is out of tokens before

    void create(const Config& c) {
        count = c.pes;
        most = c.queue_depth - QUEUE_MARGIN;
        counting = !c.skip_b && !c.skip_c;
        to_queue = LOOKUP_LATENCY + !c.lut_ram;
        const unsigned ring = std::bit_ceil(static_cast<unsigned>(c.queue_depth + QUEUE_MARGIN + 1));
        ring_mask = ring - 1;
        const auto never = static_cast<uint32_t>(LONG_AGO);
        tokens.assign(ring * static_cast<size_t>(count), {never, never, never, 0, 0});
        moves.fill(LONG_AGO);
        ends.fill(LONG_AGO);
        std::fill(std::begin(sent_at), std::end(sent_at), LONG_AGO);
    }

    Token* ring(size_t pe) { return &tokens[pe * (ring_mask + 1)]; }

    // A cycle whose low bits are given, seen from one near it.
    static Time near(Time now, uint32_t low) { return now + static_cast<int32_t>(low - static_cast<uint32_t>(now)); }

    // Tokens that leave the lane in a cycle for its PEs.
    class Sender {
    public:
        Sender(Pes& all, Time cycle)
            : pes(all), of_pe(all.tokens.data()), mask(all.ring_mask), before(static_cast<uint32_t>(all.most) + 1),
              now(cycle), pushed(cycle + all.to_queue), space(all.space_at[all.sendings % SENDINGS]),
              counting(all.counting) {
            all.sent_at[++all.sendings % SENDINGS] = cycle;
        }
        ~Sender() { pes.space_at[pes.sendings % SENDINGS] = space; }
        Sender(const Sender&) = delete;
        Sender& operator=(const Sender&) = delete;

        [[gnu::always_inline]] void operator()(size_t pe, int service, int tail) {
            Token* const tokens = of_pe + pe * (mask + 1);
            const uint32_t number = pes.sent[pe];
            const Time ends_before = pes.ends[pe], popped = std::max(pushed + 1, pes.moves[pe]);
            const Time last = (counting ? popped : std::max(popped + 1, ends_before)) + service;
            tokens[number & mask] = {static_cast<uint32_t>(pushed), static_cast<uint32_t>(popped),
                                     static_cast<uint32_t>(last), static_cast<uint16_t>(service),
                                     static_cast<uint16_t>(tail)};
            pes.sent[pe] = number + 1;
            pes.moves[pe] = last - tail;
            pes.ends[pe] = last;
            // `ends_before` bounds it for tokens of very long ago, whose low bits look like the future
            const uint32_t leaves = tokens[(number + 1 - before) & mask].popped;
            space = std::max(space, std::min(near(now, leaves), ends_before) + 2);
        }

        // The end of a context's row.
        void end(size_t pe, int context) {
            pes.end_number[context][pe] = pes.sent[pe];
            (*this)(pe, 1, !counting);
            pes.done[context][pe] = pes.ends[pe];
        }

    private:
        Pes& pes;
        Token* const of_pe;
        const uint32_t mask, before;
        const Time now, pushed;
        Time space;
        const bool counting;
    };

    // Whether all queues have space in cycle `now`; else `again` is when to ask again.
    bool have_space(Time now, Time& again) const {
        if (now >= space_at[sendings % SENDINGS]) return true;
        // tokens that have not come yet do not count
        uint32_t come = sendings;
        while (sent_at[come % SENDINGS] >= now - IN_FLIGHT) --come;
        again = space_at[come % SENDINGS];
        return again <= now;
    }

    // PE-cycles without a token, from one cycle to another.
    int64_t idle_cycles(Time from, Time until) {
        int64_t cycles = 0;
        Time first = NEVER;
        for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) {
            cycles += std::max<Time>(0, until - std::max(from, ends[pe] + 1));
            first = std::min(first, ends[pe]);
        }
        idle_from = first + 1;
        return cycles;
    }

    // A drain takes the issue slot of cycle `now`; true: from a token, which is late by a cycle then, and so may be
    // those behind it.
    bool steal(size_t pe, Time now) {
        if (ends[pe] < now) return false;
        Token* const of_pe = ring(pe);
        const uint32_t mask = ring_mask, end = sent[pe];
        // times relative to `now`
        const auto low = static_cast<uint32_t>(now);
        const auto relative = [low](uint32_t time) { return static_cast<int32_t>(time - low); };
        const bool in_turn = counting;
        const auto begin = [in_turn](int32_t popped, int32_t ends_before) {
            return in_turn ? popped : std::max(popped + 1, ends_before);
        };
        // the token whose slots are issued, from that of the last time on, unless it has been overwritten
        uint32_t number = issued[pe];
        if (end - number > mask) {
            number = end - 1;
            while (relative(of_pe[number & mask].popped) >= 0) --number;
        } else {
            while (number + 1 != end && relative(of_pe[(number + 1) & mask].popped) < 0) ++number;
        }
        issued[pe] = number;
        Token& before = of_pe[(number - 1) & mask];
        Token& current = of_pe[number & mask];
        const int32_t popped = relative(current.popped);
        int32_t last = relative(current.ends), last_before = relative(before.ends);
        if (begin(popped, last_before) < 0 && last >= 0) {
            current.tail = static_cast<uint16_t>(current.tail + (last < current.tail));
            ++last;
        } else if (last_before >= 0) {
            const int32_t begun = begin(popped, last_before);
            before.ends = low + static_cast<uint32_t>(++last_before);
            last += begin(popped, last_before) - begun;
        } else {
            return false;
        }
        current.ends = low + static_cast<uint32_t>(last);
        const uint32_t first = number - 1;
        bool late = false;              // the token before leaves and moves a cycle later
        while (++number != end) {
            Token& next = of_pe[number & mask];
            if (late && next.popped != next.pushed + 1) {
                ++next.popped;
                ++next.ends;
                continue;
            }
            const Token& previous = of_pe[(number - 1) & mask];
            last_before = relative(previous.ends);
            const int32_t leaves = std::max(relative(next.pushed) + 1, last_before - previous.tail);
            last = begin(leaves, last_before) + next.service;
            // nothing changes behind a gap
            if (leaves == relative(next.popped) && last == relative(next.ends)) break;
            late = last == relative(next.ends) + 1;
            next.popped = low + static_cast<uint32_t>(leaves);
            next.ends = low + static_cast<uint32_t>(last);
        }
        if (number == end) {
            const Token& newest = of_pe[(end - 1) & mask];
            ends[pe] = now + relative(newest.ends);
            moves[pe] = ends[pe] - newest.tail;
        }
        for (int context = 0; context < MAX_RINGS; ++context) {
            const uint32_t its_end = end_number[context][pe];
            if (its_end - first < end - first) done[context][pe] = near(now, of_pe[its_end & mask].ends);
        }
        // the tokens whose leaving makes space are late as well
        number = end;
        for (uint32_t sending = sendings;; --sending) {
            const Time its_time = sent_at[sending % SENDINGS];
            while (relative(of_pe[(number - 1) & mask].pushed) > its_time + to_queue - now) --number;
            Time& space = space_at[sending % SENDINGS];
            const uint32_t leaves = of_pe[(number - static_cast<uint32_t>(most) - 1) & mask].popped;
            space = std::max(space, std::min(near(now, leaves), ends[pe]) + 2);
            if (its_time < now - IN_FLIGHT) break;      // all of it has come
        }
        return true;
    }

    // Cycle from which on all PEs have issued a context's end.
    Time done_from(int context) const {
        Time last = 0;
        for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) last = std::max(last, done[context][pe]);
        return last + 1;
    }
};

}  // namespace maskwork
