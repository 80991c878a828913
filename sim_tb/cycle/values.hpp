// Packed values of a payload, one a cycle (rtl/values.py): when they are there and beats are taken; no arithmetic.
#pragma once

#include "types.hpp"

namespace maskwork {

struct Unpack {
    int words = 1, per_word = 1;

    int64_t length = 0, count = 0, index = 0, number = 0;   // index in the group and number of the group, from 1
    bool active = false, trailing = false, ended = false, payload = true;
    int position = 0, held = 0;

    struct Given {
        bool issue = false, closes = false, last = false;   // a value, its group's last, the last of all
        bool pop = false;                                   // a beat is taken
    };

    void create(const Config& c) {
        words = c.stream_words;
        per_word = c.per_word(c.a_width);
    }

    void start(int64_t of_length, int64_t of_count, bool packet_ended, bool with_payload = true) {
        length = of_length;
        count = of_count;
        index = number = 1;
        active = true;
        ended = packet_ended;
        payload = with_payload;
        position = held = 0;
    }

    bool too_short() const { return active && payload && !held && ended; }

    Given step(bool beat, bool beat_last, bool room) {
        const bool closes = index == length, final = closes && number == count;
        const bool issue = active && (held || !payload) && room;
        const bool wants = active && payload && !ended && (!held || (held == 1 && room && !final));
        const bool takes = wants && beat, beat_ends = position == words - 1, rest = trailing && position;
        const Given given{issue, issue && closes, issue && final, (takes && beat_ends) || rest};
        if (given.pop) ended = beat_last;
        trailing = issue && final;
        if (issue) {
            held -= payload;
            index = closes ? 1 : index + 1;
            number += closes;
            active = !final;
        }
        if (takes) {
            held = per_word;
            position = beat_ends ? 0 : position + 1;
        }
        return given;
    }
};

// What a stream unit does in a cycle: a beat is taken, a word is given, it is the last.
struct Moved {
    bool pop = false, word = false, last = false;
};

}  // namespace maskwork
