// The vector unit (rtl/vector.py): when values enter, outputs leave and beats are taken; no arithmetic.
#pragma once

#include "types.hpp"

namespace maskwork {

constexpr int VECTOR_LATENCY = 10;                                  // rtl/vector.py
constexpr int VECTOR_DEPTH = 16, VECTOR_MARGIN = VECTOR_LATENCY + 2;

struct Vector {
    int words = 1, per_word = 1;
    bool block = false;             // the queue is in block RAM: shows an entry a cycle later

    // payload
    int64_t window = 0, count = 0, index = 0, number = 0;   // index in the window and number of the window, from 1
    bool active = false, trailing = false, ended = false;
    int position = 0, held = 0;

    // pipeline (bit n: a window's last value entered n + 1 cycles ago), queue, words
    uint32_t pipe = 0;
    int level = 0, at = 0;
    int64_t taken = 0;
    bool room = true, shown = false, full = false, last = false;

    struct Moved {
        bool pop = false, word = false, last = false;   // a beat is taken, a word is given, it is the last
    };

    void create(const Config& c) {
        words = c.stream_words;
        per_word = c.per_word(c.a_width);
        block = !c.lut_ram;
    }

    void start(int64_t of_window, int64_t of_count, bool packet_ended) {
        window = of_window;
        count = of_count;
        index = number = 1;
        active = true;
        ended = packet_ended;
        position = held = 0;
        taken = 0;
    }

    bool too_short() const { return active && !held && ended; }

    // One cycle in which the sequencer hands over the payload and takes words.
    Moved step(bool beat, bool beat_last, bool ready) {
        const bool closes = index == window, final = closes && number == count;
        const bool issue = active && held && room;
        const bool wants = active && !ended && (!held || (held == 1 && room && !final));
        const bool takes = wants && beat, beat_ends = position == words - 1, rest = trailing && position;
        const bool visible = block ? shown : level > 0;
        const bool put = pipe >> (VECTOR_LATENCY - 1) & 1, get = visible && (!full || ready);
        const Moved moved{(takes && beat_ends) || rest, full && ready, last};

        pipe = pipe << 1 | (issue && closes);
        room = level <= VECTOR_DEPTH - VECTOR_MARGIN;
        shown = level > get;
        level += put - get;
        if (get) {
            last = ++taken == count;
            full = at == per_word - 1 || last;
            at = full ? 0 : at + 1;
        } else if (ready) {
            full = false;
        }
        if (moved.pop) ended = beat_last;
        trailing = issue && final;
        if (issue) {
            --held;
            index = closes ? 1 : index + 1;
            number += closes;
            active = !final;
        }
        if (takes) {
            held = per_word;
            position = beat_ends ? 0 : position + 1;
        }
        return moved;
    }
};

}  // namespace maskwork
