// The vector unit (rtl/vector.py): when values enter, outputs leave and beats are taken; no arithmetic.
#pragma once

#include "values.hpp"

namespace maskwork {

constexpr int VECTOR_LATENCY = 10;                                  // rtl/vector.py
constexpr int VECTOR_DEPTH = 16, VECTOR_MARGIN = VECTOR_LATENCY + 2;

struct Vector {
    Unpack unpack;
    bool block = false;             // the queue is in block RAM: shows an entry a cycle later

    // pipeline (bit n: a window's last value entered n + 1 cycles ago), queue, words
    uint32_t pipe = 0;
    int level = 0, at = 0;
    int64_t taken = 0;
    bool room = true, shown = false, full = false, last = false;

    void create(const Config& c) {
        unpack.create(c);
        block = !c.lut_ram;
    }

    void start(int64_t window, int64_t count, bool packet_ended) {
        unpack.start(window, count, packet_ended);
        taken = 0;
    }

    // One cycle in which the sequencer hands over the payload and takes words.
    Moved step(bool beat, bool beat_last, bool ready) {
        const bool visible = block ? shown : level > 0;
        const bool put = pipe >> (VECTOR_LATENCY - 1) & 1, get = visible && (!full || ready);
        const Unpack::Given given = unpack.step(beat, beat_last, room);
        const Moved moved{given.pop, full && ready, last};

        pipe = pipe << 1 | given.closes;
        room = level <= VECTOR_DEPTH - VECTOR_MARGIN;
        shown = level > get;
        level += put - get;
        if (get) {
            last = ++taken == unpack.count;
            full = at == unpack.per_word - 1 || last;
            at = full ? 0 : at + 1;
        } else if (ready) {
            full = false;
        }
        return moved;
    }
};

}  // namespace maskwork
