// The drain of a lane (rtl/drain.py), a cycle at a time while a row is drained.
#pragma once

#include "front.hpp"

namespace maskwork {

struct DrainOut {
    PostWord word;
    bool request = false;
    bool waits = false;         // nothing happens before the request is granted
    bool releases = false;      // the row's context is free
};

// Whether every PE has issued the end of a context's row before `now`.
inline bool context_done(Lane& lane, int context, Time now) {
    return (lane.ends_sent >> context & 1) && lane.pes.done_from(context, now) <= now;
}

// Cycle in which an idle drain, which looks at one context a cycle, can find one that is done.
inline Time next_look(const Lane& lane, Time now) {
    Time next = NEVER;
    for (int context = 0; context < lane.config->rings; ++context) {
        if (!(lane.ends_sent >> context & 1)) continue;
        const Time done = std::max(now + 1, lane.pes.done_from(context, now));
        const int shown = (lane.idle_context + static_cast<int>(done - lane.idle_since)) & (lane.config->rings - 1);
        next = std::min(next, done + ((context - shown) & (lane.config->rings - 1)));
    }
    return next;
}

inline bool result_nonzero(const Lane& lane, int column) {
    const Row& row = lane.drain_row;
    if (lane.results && row.result >= 0) {
        const size_t words = static_cast<size_t>(lane.config->mask_words());
        const size_t number = static_cast<size_t>(row.result + (row.share ? lane.number : 0));
        return lane.results[number * words + static_cast<size_t>(column >> 5)] >> (column & 31) & 1;
    }
    const int pes = lane.config->pes;
    return lane.drain_touched[static_cast<size_t>(column & (pes - 1))] >> (column >> log2_of(pes)) & 1;
}

inline void begin_drain(Lane& lane, int context, const Row& given) {
    lane.drain_context = context;
    const Row& row = lane.drain_row = given;
    auto& kept = lane.kept[row.slot];
    if (lane.config->psum_in_pe) {
        lane.drain_touched = kept;
        return;
    }
    for (int n = 0; n < lane.config->pes; ++n) {
        const size_t pe = static_cast<size_t>(n);
        const uint32_t all = lane.touched[context][n] | (row.first ? 0 : kept[pe]);
        kept[pe] = all;
        lane.drain_touched[pe] = all;
    }
}

inline uint32_t mask_of_part(const Lane& lane, int part, int width) {
    const int bit = part * width;
    return lane.drain_row.mask[bit >> 5] >> (bit & 31) & ((1u << width) - 1);
}

// A word enters the pipeline that ends at post-processing; rows that are not drained to it use it for their end alone.
inline void send(Lane& lane, Time now, PostKind kind, bool nonzero) {
    const Row& row = lane.drain_row;
    lane.drain_line[(now + DRAIN_LATENCY) & 15] = {{kind, nonzero, row.post != 0}, row.final != 0, row.bank};
    lane.drain_line_until = now + DRAIN_LATENCY;
}

// What leaves the pipeline in this cycle.
inline PostWord receive(Lane& lane, Time now) {
    DrainWord& word = lane.drain_line[now & 15];
    const DrainWord left = word;
    word.word.kind = PostKind::NONE;
    if (left.word.kind == PostKind::END) {
        lane.totals->finished = true;
        if (lane.config->psum_in_pe) --lane.shared->undrained;
        else --lane.shared->bank_rows[left.bank];
    }
    return left.final ? left.word : PostWord{};
}

// The last word of a row is sent; whether its context is free.
inline bool end_drain(Lane& lane, Time now) {
    send(lane, now, PostKind::END, false);
    lane.part = 0;
    if (lane.config->psum_in_pe) {
        lane.shared->drained_lane = lane.number;
        lane.drain_state = Lane::D_IDLE;
        return false;
    }
    lane.ends_sent &= ~(1u << lane.drain_context);
    lane.drain_state = Lane::D_NEXT;
    return true;
}

[[gnu::always_inline]] inline DrainOut step_drain(Lane& lane, Time now, bool space, bool granted) {
    using L = Lane;
    const Config& config = *lane.config;
    Time& again = lane.drain_again;
    again = now + 1;
    DrainOut out;
    if (lane.drain_state == L::D_SCRUB) {
        if (++lane.scrub_count == config.sum_rows() * config.slots) {
            lane.drain_state = L::D_IDLE;
            lane.idle_context = 0;
            lane.idle_since = now + 1;
        }
        return out;
    }
    if (lane.drain_line_until >= now) out.word = receive(lane, now);
    if (lane.steals[now & 3] >= 0) {
        lane.totals->stolen += lane.pes.steal(static_cast<size_t>(lane.steals[now & 3]), now);
        lane.steals[now & 3] = -1;
    }
    if (lane.drain_state == L::D_IDLE && config.psum_in_pe) {
        lane.active = false;
        const auto& [next, shown] = lane.finished_rows[lane.finished_head % lane.finished_rows.size()];
        const bool any = lane.finished_head != lane.finished_end;
        if (any && shown <= now) {
            const Row& row = *next;
            ++lane.finished_head;
            begin_drain(lane, row.slot & (config.rings - 1), row);
            lane.drain_state = L::D_META;
        } else {
            again = lane.drain_line_until > now ? now + 1 : any ? shown : NEVER;
        }
        return out;
    }
    if (lane.drain_state == L::D_IDLE) {
        const int context = (lane.idle_context + static_cast<int>(now - lane.idle_since)) & (config.rings - 1);
        if (context_done(lane, context, now)) {
            begin_drain(lane, context, *lane.context_row[context]);
            lane.drain_state = L::D_ROW;
        } else {
            again = lane.drain_line_until > now ? now + 1 : next_look(lane, now);
        }
        return out;
    }
    lane.active = lane.drain_state != L::D_NEXT;
    const Row& row = lane.drain_row;
    const int width = lane.part_width;
    const bool handshake = lane.columns.valid() && lane.go;
    const bool was_busy = lane.columns.busy();
    bool offer = false, given = false;
    uint32_t mask = 0;
    const Lane::DrainState state = lane.drain_state;
    if (row.final && state >= L::D_REQUEST && state <= L::D_COLUMNS) {
        out.request = state != L::D_COLUMNS || was_busy || config.header_beats() > 2;
    }
    if (state == L::D_MASK) {
        offer = !lane.given;
        mask = config.skip_c ? mask_of_part(lane, lane.part, width) : (1u << width) - 1;
        given = offer && lane.columns.ready(lane.go);
    } else if (state == L::D_COLUMNS) {
        if (!was_busy) out.releases = end_drain(lane, now);
    } else if (state == L::D_REQUEST) {
        if (!row.final) {
            lane.drain_state = L::D_MASK;
        } else if (granted && space) {
            send(lane, now, PostKind::START, false);
            lane.drain_state = L::D_MASK;
        } else if (lane.drain_line_until <= now) {
            out.waits = true;
            again = NEVER;
        }
    } else if (state == L::D_META) {
        lane.drain_state = L::D_ROW;
    } else if (state == L::D_ROW) {
        lane.drain_state = L::D_REQUEST;
    } else {        // D_NEXT
        lane.drain_state = L::D_IDLE;
        lane.idle_context = (lane.drain_context + 1) & (config.rings - 1);
        lane.idle_since = now + 1;
    }
    if (handshake) {
        const int column = lane.columns.index() + lane.columns.inner_meta * width;
        if (config.skip_c || (row.mask[column >> 5] >> (column & 31) & 1)) {
            send(lane, now, PostKind::VALUE, result_nonzero(lane, column));
        }
        lane.steals[(now + 2) & 3] = static_cast<int8_t>(column & (config.pes - 1));
    }
    if (offer || was_busy || lane.columns.outer_valid) lane.columns.step(offer, mask, lane.part, lane.go);
    if (state == L::D_MASK) {
        if (lane.given && ++lane.part == lane.parts) lane.drain_state = L::D_COLUMNS;
        lane.given = given;
    } else {
        lane.given = false;
    }
    lane.go = space || !row.final;
    return out;
}

}  // namespace maskwork
