// Post-processing of a cluster, from finished rows to packets (rtl/post.py, compress.py), and the arbiter before it.
#pragma once

#include "drain.hpp"

namespace maskwork {

constexpr int POST_LATENCY = 12;                    // rtl/post.py, with post; one more of sums beyond 32 bits
constexpr int DRAIN_GAP = 4;                        // rtl/drain.py
constexpr int ROWS_QUEUE = 16, ROWS_MARGIN = DRAIN_LATENCY + 6;     // rtl/cluster.py; with lane_hops twice as many

struct Post {
    const Config* config;
    int latency = 0;
    int header_beats = 0, gap = 0, depth = 0, limit = 0, fields = 1, beat_words = 1, raw_words = 1;
    bool split = false;
    bool block = false;             // rows queue in block RAM: shows an entry a cycle later
    bool direct = false;            // none

    // rows queue
    PostWord queue[2 * ROWS_QUEUE];
    int queue_limit = 0;            // entries with which it still has space
    unsigned queue_head = 0;
    int queue_level = 0;
    bool space = true, queue_valid = false;

    // intake
    bool ready = true, row_open = false;
    int pause = 0, draining = 0;
    PostWord line[16];              // on the way through the arithmetic, by cycle
    Time quiet_from = 0;            // nothing is on the way from this cycle on
    int settles = 0;                // so many cycles after a word enters, all of it has been written
    Time rests_from = 0;            // nothing is written from this cycle on without a word

    // compressor
    bool start = false, take = false, end = false, taken_post = false;
    bool held = false, second = false;
    int in_beat = 0, in_word = 0, heading = 0;
    int begin = 0, after = 0, done = 0, tail = 0, level = 0;
    bool fetched = false, valid = false, last = false, read_last = false;
    std::vector<uint8_t> lasts;

    void create(const Config& c) {
        config = &c;
        const int words = c.stream_words;
        latency = c.post ? POST_LATENCY + (c.acc_width > 32) : 0;
        header_beats = c.header_beats();
        gap = std::max(1, header_beats - 1);
        const bool wide = c.acc_width > 32;
        split = wide && words == 1;
        fields = c.post ? c.per_word(c.a_width) : 1;
        beat_words = words;
        raw_words = wide && !split ? 2 : 1;
        settles = latency + header_beats + 8;
        const int row_beats = header_beats + (c.columns() * (wide ? 64 : 32) + c.beat_bits() - 1) / c.beat_bits();
        block = !c.lut_ram;
        direct = !c.post && c.lanes_per_cluster == 1 && !wide && header_beats <= DRAIN_GAP;
        const int rows_margin = ROWS_MARGIN + 2 * c.lane_hops();
        queue_limit = (ROWS_QUEUE << c.lane_hops()) - rows_margin;
        const int margin = (direct ? rows_margin : latency + 2) + header_beats + 6;
        depth = 1 << std::bit_width(static_cast<unsigned>(2 * row_beats + margin - 1));
        limit = depth - margin;
        lasts.assign(static_cast<size_t>(depth), 0);
    }

    bool busy() const { return row_open || draining; }
    bool empty() const { return after == tail && !fetched && !valid; }
    bool waits() const { return block ? queue_valid : queue_level > 0; }
    bool idle() const { return !busy() && empty() && !waits(); }
    bool rests(Time now) const { return now >= rests_from && !reads(); }

    // A cycle of the packer, with its registers.
    void pack(int mask) {
        const bool first = (in_beat == 0) & (!taken_post | (in_word == 0));
        const bool writes = (take & held & first) | second | (end & held);
        const bool shifting = heading != 0, last_head = heading == 1;
        // memory
        if (shifting | writes) {
            const bool ends = shifting ? last_head & !held : end;
            lasts[static_cast<size_t>(shifting ? begin : after)] = ends;
        }
        if (start) {
            begin = after;
            after = (after + header_beats) & mask;
        } else {
            begin = (begin + shifting) & mask;
            after = (after + writes) & mask;
        }
        heading = end ? header_beats : heading - shifting;
        if (start) {
            held = false;
            in_beat = in_word = 0;
        } else if (take) {
            held = true;
            const bool word_done = !taken_post || in_word == fields - 1;
            if (taken_post) in_word = in_word + 1 == fields ? 0 : in_word + 1;
            if (word_done) in_beat = (in_beat + (taken_post ? 1 : raw_words)) & (beat_words - 1);
        }
        second = split && take && !taken_post;
    }

    bool reads() const { return valid || fetched || tail != done; }

    // A cycle of what reads its memory.
    void read(bool leaves) {
        if (valid && !leaves) return;
        valid = fetched;
        last = read_last;
        read_last = lasts[static_cast<size_t>(tail)];
        fetched = tail != done;
        tail = (tail + fetched) & (depth - 1);
    }

    // One cycle: `given` enters the queue, `leaves` says that the beat at the output is taken.
    [[gnu::always_inline]] inline void step(Time now, const PostWord* given, bool leaves) {
        const int mask = depth - 1;
        const bool room = level < limit;
        // intake
        PostWord word;
        const bool takes = waits() && ready;
        if (direct) {
            if (given) word = *given;
        } else if (takes) {
            word = queue[queue_head++ % (2 * ROWS_QUEUE)];
            quiet_from = now + settles;
        }
        const bool ended = word.kind == PostKind::END;
        const bool halt = ended || (word.kind == PostKind::VALUE && split && !word.post);
        ready = room && !halt && !pause;
        pause = ended ? gap - 1 : std::max(0, pause - 1);
        if (word.kind == PostKind::START) row_open = true;
        if (ended) {
            row_open = false;
            draining = latency + 3;
        } else {
            draining -= draining != 0;
        }
        space = queue_level <= queue_limit;
        queue_valid = queue_level > takes;
        if (given) {
            queue[(queue_head + static_cast<unsigned>(queue_level - takes)) % (2 * ROWS_QUEUE)] = *given;
            quiet_from = now + settles;
        }
        if (!direct) queue_level += (given != nullptr) - takes;
        line[now & 15] = word;
        const PostWord arrived = line[(now - latency) & 15];

        // packer and memory, with the registers of the cycle
        level = (after - tail) & mask;
        if (direct) space = level < limit;
        const int old_after = after;
        const bool last_head = heading == 1;
        if (start || take || end || second || heading) pack(mask);
        if (reads()) read(leaves);
        if (last_head) done = old_after;
        // zero detection
        start = arrived.kind == PostKind::START;
        take = arrived.kind == PostKind::VALUE && arrived.nonzero;
        end = arrived.kind == PostKind::END;
        if (arrived.kind == PostKind::START || arrived.kind == PostKind::VALUE) taken_post = arrived.post;
        rests_from = busy() || waits() ? NEVER : quiet_from;
    }
};

}  // namespace maskwork
