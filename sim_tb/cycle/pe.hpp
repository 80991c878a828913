// A PE between its token queue and its bit iterator, evaluated when somebody asks: what it does at which cycle follows
// from its tokens' arrivals and its drains, so nothing is done in the cycles between.
#pragma once

#include "types.hpp"

namespace maskwork {

constexpr int LOOKUP_LATENCY = 3;   // rtl/pe.py
constexpr int QUEUE_MARGIN = LOOKUP_LATENCY + 2;

struct Token {
    Time pushed;        // cycle in which it enters the queue
    uint8_t service;    // slots that it is issued for
    uint8_t tail;       // of these, in the last nibble of its mask
    int8_t end;         // context whose row ends, else -1
};

struct Pe {
    Token* ring = nullptr;      // of Lane::token_rings
    unsigned ring_mask = 0;
    unsigned head = 0;
    int waiting = 0;            // tokens in the queue or on their way to it
    // the last token that left the queue: cycles in which it did, in which its first and its last nibble moved to the
    // iterator's inner stage, and in which its last slot is issued (none of which a drain has delayed yet)
    Time popped = LONG_AGO, begins = LONG_AGO, moves = LONG_AGO, ends = LONG_AGO;
    Time ends_before = LONG_AGO;        // last slot of the token before
    int8_t end = -1, end_before = -1;
    Time done[MAX_RINGS] = {NEVER, NEVER, NEVER, NEVER};    // cycle in which a context's end is issued
    uint32_t pushes = 0;        // bit n: the token that was sent n + 1 cycles before now entered this PE

    // All that happens up to cycle `until`.
    void advance(Time until, bool counting) {
        while (waiting) {
            const Token& token = ring[head & ring_mask];
            const Time at = std::max(token.pushed + 1, counting ? ends : moves);
            if (at > until) return;
            ends_before = ends;
            end_before = end;
            popped = at;
            if (counting) {
                begins = at;
                ends = at + token.service;
                moves = ends;
            } else {
                begins = std::max(at + 1, ends_before);
                ends = begins + token.service;
                moves = ends - token.tail;
            }
            end = token.end;
            if (end >= 0) done[end] = ends;
            ++head;
            --waiting;
        }
    }

    // A drain takes the issue slot of cycle `at`; true: from a token, which is late by a cycle then.
    bool steal(Time at, bool counting) {
        advance(at - 1, counting);
        if (begins < at && at <= ends) {
            ++ends;
            if (moves >= at) ++moves;
            if (end >= 0) done[end] = ends;
            return true;
        }
        if (at <= ends_before) {
            ++ends_before;
            if (end_before >= 0) done[end_before] = ends_before;
            const Time late = std::max(popped + 1, ends_before) - begins;
            begins += late;
            moves += late;
            ends += late;
            if (end >= 0) done[end] = ends;
            return true;
        }
        return false;
    }

    void push(const Token& token) {
        ring[(head + static_cast<unsigned>(waiting)) & ring_mask] = token;
        ++waiting;
    }

    // Entries of the queue in cycle `now` - 1, as its `space` register of cycle `now` saw them.
    int level(Time now, uint32_t in_flight) const {
        return waiting - std::popcount(in_flight) + (popped >= now - 1);
    }

    // Cycle in which `space` can be high at the earliest, if `excess` tokens have to leave first.
    Time space_from(int excess, bool counting) const {
        Time at = counting ? ends : moves, last = ends;
        for (int n = 0;; ++n) {
            const Token& token = ring[(head + static_cast<unsigned>(n)) & ring_mask];
            at = std::max(token.pushed + 1, at);
            if (n + 1 >= excess || n + 1 >= waiting) return at + 2;
            if (counting) {
                last = at + token.service;
                at = last;
            } else {
                last = std::max(at + 1, last) + token.service;
                at = last - token.tail;
            }
        }
    }

    // Cycle in which the end of `context`, which is on its way, can have been issued at the earliest.
    Time done_from(int context) const {
        if (done[context] != NEVER) return done[context] + 1;
        Time at = ends;
        for (int n = 0; n < waiting; ++n) {
            const Token& token = ring[(head + static_cast<unsigned>(n)) & ring_mask];
            at = std::max(at, token.pushed + 1) + token.service;
            if (token.end == context) break;
        }
        return at + 1;
    }
};

}  // namespace maskwork
