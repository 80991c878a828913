// The PEs of a lane, between their token queues and their bit iterators. When a token leaves its queue and when its
// slots are issued follows from the tokens before it at the time at which it is sent, so it is reckoned then; only a
// drain, which takes issue slots, changes it afterwards, at once for all slots that it is known to take. Nothing is
// done in the cycles between.
#pragma once

#include <utility>

#include "four.hpp"
#include "stolen.hpp"

namespace maskwork {

constexpr int LOOKUP_LATENCY = 3;   // rtl/pe.py
constexpr int QUEUE_MARGIN = LOOKUP_LATENCY + 2;
// cycles in which a token that was sent does not count in the queue
constexpr uint32_t IN_FLIGHT = LOOKUP_LATENCY + 1;
constexpr Time ROUND = Time{1} << 13;   // after so many cycles, times of long ago are brought nearer
constexpr Time LONG = 1 << 12;          // so near, which no time is that matters
constexpr Time FAR = 1 << 30;           // the same of times of 32 bits, which are half as far away then

// A token in a PE. Of times the low bits are kept: those of tokens are less than 2^15 cycles from now.
struct Token {
    uint16_t pushed;    // cycle in which it enters the queue
    uint16_t popped;    // in which it leaves the queue
    uint16_t ends;      // in which its last slot is issued
    uint16_t rest;      // (members of one byte could alias everything, and cost speed)

    int service() const { return rest & 0xff; }     // slots that it is issued for
    int tail() const { return rest >> 8; }          // of them, those of its last nibble, in the iterator's inner stage
};
static_assert(sizeof(Token) == 8);

struct Pes {
    int count = 0, most = 0;            // PEs; entries of a queue at which it still has space
    int contexts = 0;
    bool counting = false;              // no mask of B or C: every slot in turn
    Time to_queue = LOOKUP_LATENCY;     // from a token that leaves the lane to the cycle before the queue can show it
    uint32_t ring_mask = 0;
    std::vector<Token> tokens;          // a ring a PE, the rings of four PEs word by word
    // Of each of four PEs:
    struct alignas(64) Group {
        uint32_t sent[FOUR];            // tokens that it got
        uint32_t moves[FOUR], ends[FOUR];       // of the last of them, the move of its last nibble and its last slot
        // of each context the last cycle of its row's end, and which token that is
        uint32_t done[MAX_RINGS][FOUR], end_number[MAX_RINGS][FOUR];
    };
    std::array<Group, MAX_PES / FOUR> groups{};
    // cycles in which tokens were sent, by their number, and from when on all queues have space if no later ones count
    static constexpr uint32_t SENDINGS = 8;
    uint32_t sendings = 0;
    Time sent_at[SENDINGS], space_at[SENDINGS];
    Time space_from = 0;                // first cycle after the last sending in which all queues have space
    Time idle_from = 0;                 // no PE is out of tokens before
    Stolen stolen;
    int64_t* lost = nullptr;            // of all lanes: slots that were taken from tokens

    void create(const Config& c, Time now, int64_t& all_lost) {
        lost = &all_lost;
        count = c.pes;
        contexts = c.rings;
        most = c.queue_depth - QUEUE_MARGIN;
        counting = !c.skip_b && !c.skip_c;
        to_queue = LOOKUP_LATENCY + !c.lut_ram;
        const unsigned ring = std::bit_ceil(static_cast<unsigned>(c.queue_depth + QUEUE_MARGIN + 1));
        ring_mask = ring - 1;
        const auto never = static_cast<uint32_t>(now + LONG_AGO);
        const auto low = static_cast<uint16_t>(never);
        tokens.assign(ring * static_cast<size_t>(padded(count)), {low, low, low, 0});
        for (Group& group : groups) {
            std::fill(std::begin(group.moves), std::end(group.moves), never);
            std::fill(std::begin(group.ends), std::end(group.ends), never);
            for (auto& times : group.done) std::fill(std::begin(times), std::end(times), never);
        }
        std::fill(std::begin(sent_at), std::end(sent_at), now + LONG_AGO);
        std::fill(std::begin(space_at), std::end(space_at), now + LONG_AGO);
    }

    // PEs are stepped in fours.
    static int padded(int pes) { return (pes + FOUR - 1) & -FOUR; }

    // Which of four PEs there are, from one on.
    Four present(int first) const { return count - first > Four{0, 1, 2, 3}; }

    // A PE's ring, of whose tokens every fourth one is its own.
    Token* ring(size_t pe) { return &tokens[pe / FOUR * FOUR * (ring_mask + 1) + pe % FOUR]; }

    // A cycle whose low bits are given, seen from one near it.
    static int32_t relative(uint32_t time, Time now) { return static_cast<int32_t>(time - static_cast<uint32_t>(now)); }

    // Where the next token is written, and that which makes space for it.
    void fetch_next() const {
        const uint32_t number = groups[0].sent[0];
        __builtin_prefetch(&tokens[FOUR * (number & ring_mask)]);
        __builtin_prefetch(&tokens[FOUR * ((number - static_cast<uint32_t>(most)) & ring_mask)]);
    }

    // Once a ROUND: what was long ago stays so, however few bits are kept.
    void bring_near(Time now) {
        const auto nearer = [now](uint32_t& time) {
            if (relative(time, now) < -FAR) time = static_cast<uint32_t>(now - FAR / 2 - 1);
        };
        const auto nearer_low = [now](uint16_t& time) {
            if (static_cast<int16_t>(time - now) < -LONG) time = static_cast<uint16_t>(now - LONG);
        };
        for (Token& token : tokens) {
            nearer_low(token.pushed);
            nearer_low(token.popped);
            nearer_low(token.ends);
        }
        for (Group& group : groups) {
            std::for_each(std::begin(group.moves), std::end(group.moves), nearer);
            std::for_each(std::begin(group.ends), std::end(group.ends), nearer);
            for (auto& times : group.done) std::for_each(std::begin(times), std::end(times), nearer);
        }
        for (Time& space : space_at) space = std::max(space, now - LONG);
        for (Time& sent : sent_at) sent = std::max(sent, now - LONG);
    }

    // Tokens that leave the lane in a cycle for its PEs, four PEs at a time.
    class Sender {
    public:
        Sender(Pes& all, Time cycle)
            : pes(all), now(cycle), low(static_cast<uint32_t>(cycle)),
              space(static_cast<int32_t>(all.space_at[all.sendings % SENDINGS] - cycle)) {
            all.sent_at[++all.sendings % SENDINGS] = cycle;
        }
        ~Sender() {
            pes.space_at[pes.sendings % SENDINGS] = now + space;
            pes.space_from = pes.first_space(now + 1);
            const Four two = min(first_ends, Four{first_ends[2], first_ends[3]});
            pes.idle_from = now + std::min(two[0], two[1]) + 1;
        }
        Sender(const Sender&) = delete;
        Sender& operator=(const Sender&) = delete;

        // To those of four PEs whose `service` is not 0.
        [[gnu::always_inline]] void operator()(size_t number, Four service, Four tail) {
            Group& group = pes.groups[number];
            const Four zero = same(static_cast<int32_t>(low)), gets = service > 0;
            const Four old_ends = four_at(group.ends), old_moves = four_at(group.moves);
            const int32_t pushed = static_cast<int32_t>(pes.to_queue);
            const Four popped = max(same(pushed + 1), old_moves - zero);
            const Four begin = pes.counting ? popped : max(popped + 1, old_ends - zero);
            Four moves = begin + (service - tail), last = begin + service;
            if (pes.stolen.until > now) [[unlikely]] {
                const Late late = put_off(pes, now, number, begin, service, tail);
                moves = late.moves;
                last = late.last;
            }
            const Four sent = four_at(group.sent), next_sent = sent - gets;
            const Four next_ends = choose(gets, last + zero, old_ends);
            put(group.ends, next_ends);
            const Four present = pes.present(static_cast<int>(number) * FOUR);
            first_ends = min(first_ends, choose(present, next_ends - zero, same(INT32_MAX)));
            put(group.moves, choose(gets, moves + zero, old_moves));
            put(group.sent, next_sent);
            const Four low_half = same(0xffff);
            const Four enters = ((zero + pushed) & low_half) | (popped + zero) << 16;
            const Four leaves = ((last + zero) & low_half) | service << 16 | tail << 24;
            const Four mask = same(static_cast<int32_t>(pes.ring_mask));
            const Four to = (sent & mask) * FOUR, from = ((next_sent - pes.most - 1) & mask) * FOUR;
            Token* const tokens = &pes.tokens[number * FOUR * (pes.ring_mask + 1)];
            int32_t latest = space - 2;
#pragma GCC unroll 4
            for (int n = 0; n < FOUR; ++n) {
                // what is written for a PE that gets none is behind its last token
                Token& token = tokens[static_cast<uint32_t>(to[n]) + static_cast<uint32_t>(n)];
                const int32_t first_half = enters[n], second_half = leaves[n];
                std::memcpy(&token.pushed, &first_half, sizeof first_half);
                std::memcpy(&token.ends, &second_half, sizeof second_half);
                const Token& freeing = tokens[static_cast<uint32_t>(from[n]) + static_cast<uint32_t>(n)];
                latest = std::max<int32_t>(latest, static_cast<int16_t>(freeing.popped - low));
            }
            space = latest + 2;
        }

        // The end of a context's row.
        void end(int context) {
            for (int n = 0; n < pes.count; n += FOUR) {
                Group& group = pes.groups[static_cast<size_t>(n) / FOUR];
                std::copy(std::begin(group.sent), std::end(group.sent), group.end_number[context]);
                const Four services = pes.present(n);
                (*this)(static_cast<size_t>(n) / FOUR, -services, pes.counting ? same(0) : -services);
                std::copy(std::begin(group.ends), std::end(group.ends), group.done[context]);
            }
        }

    private:
        struct Late {
            Four moves, last;
        };
        // What is known to be taken from the tokens ends them later.
        [[gnu::noinline]] static Late put_off(Pes& pes, Time now, size_t number, Four begin, Four service, Four tail) {
            Late late{};
            for (int n = 0; n < FOUR; ++n) {
                const StolenOf taken = pes.stolen_of(number * FOUR + static_cast<size_t>(n), now);
                late.moves[n] = taken.after(begin[n], service[n] - tail[n]);
                late.last[n] = taken.after(late.moves[n], tail[n]);
                *pes.lost += late.last[n] - begin[n] - service[n];
            }
            return late;
        }

        Pes& pes;
        const Time now;
        const uint32_t low;
        int32_t space;          // from now
        Four first_ends = same(INT32_MAX);
    };

    // The first cycle from `from` on in which all queues have space, which they may lose once more tokens come.
    Time first_space(Time from) const {
        // tokens that have not come yet do not count
        Time time = std::max(from, space_at[(sendings - IN_FLIGHT) % SENDINGS]);
#pragma GCC unroll 4
        for (uint32_t late = IN_FLIGHT - 1; late + 1; --late) {
            const uint32_t sending = (sendings - late) % SENDINGS;
            // (no branch: it would be a matter of luck)
            const Time come = -static_cast<Time>(sent_at[sending] + IN_FLIGHT < time);
            time = std::max(time, space_at[sending] & come);
        }
        return time;
    }
    Time have_space(Time now) const {
        return (now >= space_at[sendings % SENDINGS]) | (now == space_from) ? now : first_space(now);
    }

    // PE-cycles without a token, from one cycle to another.
    int64_t idle_cycles(Time from, Time until) {
        const Four zero = same(static_cast<int32_t>(until)), most_cycles = same(static_cast<int32_t>(until - from));
        int64_t cycles = 0;
        Four last = same(INT32_MIN);        // how long ago the last slot was
        for (int n = 0; n < count; n += FOUR) {
            const Group& group = groups[static_cast<size_t>(n) / FOUR];
            const Four ago = choose(present(n), zero - four_at(group.ends), same(INT32_MIN));
            cycles += sum_of(min(most_cycles, max(ago, same(1)) - 1));
            last = max(last, ago);
        }
        idle_from = until - std::max(std::max(last[0], last[1]), std::max(last[2], last[3])) + 1;
        return cycles;
    }

    // What is taken from a PE, in times from `now` on.
    StolenOf stolen_of(size_t pe, Time now) const {
        return {stolen.of_pe[pe], static_cast<int32_t>(stolen.from - now)};
    }

    // A drain takes the issue slot of a PE in a cycle to come.
    void steal(size_t pe, Time time, Time now) {
        stolen.begin(now + 1, time);
        stolen.until = time + 1;
        const StolenOf before = stolen_of(pe, now + 1);
        stolen.of_pe[pe] |= uint64_t{1} << (time - stolen.from);
        if (reckon(pe, before, now + 1)) reckon_space(now);
    }

    // Or those of all PEs that `taken` says, up to cycle `until`; `stolen` has begun with room for them.
    void steal(const std::array<uint64_t, MAX_PES>& taken, Time until, Time now) {
        stolen.until = std::min(until, stolen.from + Stolen::SIZE);
        bool late = false;
        for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) {
            const StolenOf before = stolen_of(pe, now + 1);
            stolen.of_pe[pe] |= taken[pe];
            late |= reckon(pe, before, now + 1);
        }
        if (late) reckon_space(now);
    }

    // Cycles from `time` on are not taken after all.
    void give_back(Time time, Time now) {
        if (stolen.until <= time) return;
        stolen.until = time;
        for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) {
            const StolenOf before = stolen_of(pe, now + 1);
            stolen.of_pe[pe] &= bits_below(time - stolen.from);
            reckon(pe, before, now + 1);
        }
        reckon_space(now);
        idle_from = std::min(idle_from, now);
    }

    // What was taken from a PE `before` is another in cycles from `now` on: its tokens end earlier or later. Whether
    // that may put off those that come.
    bool reckon(size_t pe, const StolenOf& before, Time now) {
        Group& group = groups[pe / FOUR];
        const size_t own = pe % FOUR;
        // times relative to `now`
        const auto low = static_cast<uint32_t>(now);
        const auto relative = [low](uint16_t time) { return static_cast<int16_t>(time - low); };
        if (Pes::relative(group.ends[own], now) < 0) return false;
        Token* const of_pe = ring(pe);
        const uint32_t mask = ring_mask, end = group.sent[own];
        const auto token = [of_pe, mask](uint32_t number) -> Token& { return of_pe[FOUR * (number & mask)]; };
        const bool in_turn = counting;
        const auto begin = [in_turn](int32_t popped, int32_t ends_before) {
            return in_turn ? popped : std::max(popped + 1, ends_before);
        };
        const StolenOf taken = stolen_of(pe, now);
        // the token that left the queue last, and the one before it, whose slots it waits for
        uint32_t number = end - 1;
        while (relative(token(number).popped) >= 0) --number;
        const uint32_t first = number - 1;
        int32_t old_ends = relative(token(first).ends), ends = old_ends;
        if (old_ends >= 0) {
            ends = taken.after(-1, old_ends + 1 - before.within(-1, old_ends));
            token(first).ends = static_cast<uint16_t>(low + static_cast<uint32_t>(ends));
            *lost += ends - old_ends;
        }
        Token& current = token(number);
        int32_t old_begin = std::max(-1, begin(relative(current.popped), old_ends)), old_last = relative(current.ends);
        int32_t begins = -1, moves = -1, slots = current.service();
        if (old_begin >= 0) begins = begin(relative(current.popped), ends);
        else slots = std::max(0, old_last + 1 - before.within(-1, old_last));
        const auto issue = [&](Token& next) {
            const int32_t tail = std::min(slots, next.tail());
            moves = taken.after(begins, slots - tail);
            ends = taken.after(moves, tail);
            next.ends = static_cast<uint16_t>(low + static_cast<uint32_t>(ends));
            *lost += ends - begins - (old_last - old_begin);
            old_ends = old_last;
        };
        if (old_last >= 0) issue(current);
        while (++number != end) {
            Token& next = token(number);
            const int32_t leaves = std::max(relative(next.pushed) + 1, moves), old_leaves = relative(next.popped);
            old_begin = begin(old_leaves, old_ends);
            old_last = relative(next.ends);
            begins = begin(leaves, ends);
            slots = next.service();
            next.popped = static_cast<uint16_t>(low + static_cast<uint32_t>(leaves));
            issue(next);
            // nothing changes behind a gap
            if (leaves == old_leaves && ends == old_last && taken.same_from(ends + 1, before)) break;
        }
        if (number == end) {
            group.ends[own] = low + static_cast<uint32_t>(ends);
            if (moves >= 0) group.moves[own] = low + static_cast<uint32_t>(moves);
        }
        for (int context = 0; context < contexts; ++context) {
            const uint32_t its_end = group.end_number[context][own];
            if (its_end - first < end - first) {
                group.done[context][own] = low + static_cast<uint32_t>(relative(token(its_end).ends));
            }
        }
        return static_cast<int32_t>(end - static_cast<uint32_t>(most) - 2 - first) > 0;
    }

    // From when on all queues have space, anew, as far as it matters: of tokens that have not come, and of the last
    // ones before.
    void reckon_space(Time now) {
        std::array<uint32_t, MAX_PES> number;
        for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) number[pe] = groups[pe / FOUR].sent[pe % FOUR];
        Time space = NEVER;
        for (uint32_t late = 0; late <= IN_FLIGHT; ++late) {
            const uint32_t sending = (sendings - late) % SENDINGS;
            const auto last_push = static_cast<int32_t>(sent_at[sending] + to_queue - now);
            // those before one that has come do not matter any more
            if (late && sent_at[(sending + 1) % SENDINGS] < now - IN_FLIGHT) {
                space_at[sending] = std::min(space_at[sending], space);
                continue;
            }
            int32_t latest = INT32_MIN;
            for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) {
                const Token* const of_pe = ring(pe);
                const auto token = [&](uint32_t n) { return of_pe[FOUR * (n & ring_mask)]; };
                const auto relative = [now](uint16_t time) { return static_cast<int16_t>(time - now); };
                while (relative(token(number[pe] - 1).pushed) > last_push) --number[pe];
                const uint32_t freeing = number[pe] - static_cast<uint32_t>(most) - 1;
                latest = std::max<int32_t>(latest, relative(token(freeing).popped));
            }
            space_at[sending] = space = now + latest + 2;
        }
        space_from = first_space(now);
    }

    // Cycle from which on all PEs have issued a context's end.
    Time done_from(int context, Time now) const {
        int32_t last = INT32_MIN;
        for (size_t pe = 0; pe < static_cast<size_t>(count); ++pe) {
            last = std::max(last, relative(groups[pe / FOUR].done[context][pe % FOUR], now));
        }
        return now + last + 1;
    }
};

}  // namespace maskwork
