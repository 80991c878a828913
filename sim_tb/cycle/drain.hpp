// The drain of a lane (rtl/drain.py), a cycle at a time while a row is drained.
#pragma once

#include "front.hpp"

namespace maskwork {

struct DrainOut {
    PostWord word;
    bool request = false;
    bool waits = false;         // nothing happens before the request is granted
    bool releases = false;      // the row's context is free
    bool ahead = false;         // the next cycles are over
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
    lane.ahead.interrupted = false;
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

// A part of the row's mask, as the iterator takes it.
inline uint32_t mask_of_part(const Lane& lane) {
    const uint32_t all = (1u << lane.part_width) - 1;
    if (!lane.config->skip_c) return all;
    const int bit = lane.columns.part * lane.part_width;
    return lane.drain_row.mask[bit >> 5] >> (bit & 31) & all;
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

// When the next word behind `now` leaves the pipeline.
inline Time next_word(const Lane& lane, Time now) {
    for (Time time = now + 1; time <= lane.drain_line_until; ++time) {
        if (lane.drain_line[time & 15].word.kind != PostKind::NONE) return time;
    }
    return NEVER;
}

// The last word of a row is sent; whether its context is free.
inline bool end_drain(Lane& lane, Time now) {
    send(lane, now, PostKind::END, false);
    lane.columns.part = 0;
    if (lane.config->psum_in_pe) {
        lane.shared->drained_lane = lane.number;
        lane.columns.state = D_IDLE;
        return false;
    }
    lane.ends_sent &= ~(1u << lane.drain_context);
    lane.columns.state = D_NEXT;
    return true;
}

// A cycle of the iterator over a row's columns, and of what gives it the parts of the row's mask.
inline void step_columns(Lane& lane, DrainState state) {
    Columns& columns = lane.columns;
    BitIterator& iterator = columns.iterator;
    const bool masks = state == D_MASK, offer = masks && !columns.given;
    const bool given = offer && iterator.ready(lane.go);
    if (offer || iterator.outer_valid || iterator.inner_valid) {
        iterator.step(offer, offer ? mask_of_part(lane) : 0, columns.part, lane.go);
    }
    if (masks && columns.given && ++columns.part == lane.parts) columns.state = D_COLUMNS;
    columns.given = given;
}

inline int column_of(const Lane& lane) {
    const BitIterator& iterator = lane.columns.iterator;
    return iterator.index() + iterator.inner_meta * lane.part_width;
}

// Whether a column's value leaves, or its slot in the PEs is taken only.
inline bool leaves(const Lane& lane, int column) {
    return lane.config->skip_c || (lane.drain_row.mask[column >> 5] >> (column & 31) & 1);
}

// Whether the row's results are those of the first columns, in order, in a word: which of them are not 0.
inline bool nonzero_results(const Lane& lane, uint64_t& bits) {
    const Row& row = lane.drain_row;
    if (!lane.results || row.result < 0) return false;
    const size_t words = static_cast<size_t>(lane.config->mask_words());
    const uint32_t* its = lane.results + static_cast<size_t>(row.result + (row.share ? lane.number : 0)) * words;
    bits = its[0] | static_cast<uint64_t>(words > 1 ? its[1] : 0) << 32;
    return true;
}

// What was found the last time, for a row with the same mask.
inline bool known_ahead(Lane& lane, Time now) {
    Lane::Ahead& ahead = lane.ahead;
    const Plan& plan = lane.shared->plan;
    const auto words = static_cast<size_t>(lane.config->mask_words());
    if (!plan.known || !std::equal(plan.mask, plan.mask + words, lane.drain_row.mask)) return false;
    ahead.values.present = 0;
    if (lane.drain_row.final) {
        if (!nonzero_results(lane, ahead.values.nonzero)) return false;
        ahead.values.present = plan.values;
    }
    lane.columns = plan.end;
    const Time first = now + 1 + plan.first + STEAL_LATENCY;
    lane.pes.stolen.begin(now + 1, first);
    ahead.until = now + 1 + plan.cycles;
    ahead.values.first = first + DRAIN_LATENCY - STEAL_LATENCY;
    lane.pes.steal(plan.taken, ahead.until + STEAL_LATENCY, now);
    return true;
}

// The cycles behind `now` in which columns follow each other, if post-processing has space, are over at once, as many
// as fit; whether there are any.
inline bool run_ahead(Lane& lane, Time now) {
    Lane::Ahead& ahead = lane.ahead;
    Stolen& stolen = lane.pes.stolen;
    ahead.from = now + 1;
    ahead.columns = lane.columns;
    ahead.values.post = lane.drain_row.post;
    const BitIterator& iterator = lane.columns.iterator;
    const bool begins = stolen.until <= now + 1 && !lane.columns.part && !lane.columns.given &&
                        !iterator.outer_valid && !iterator.inner_valid;
    if (begins && known_ahead(lane, now)) return true;
    ahead.values.present = ahead.values.nonzero = 0;
    std::array<uint64_t, MAX_PES> taken{};
    uint64_t values = 0;
    int count = 0, in_order = 0;
    Time time = now + 1;
    for (; lane.columns.state == D_MASK || iterator.busy(); ++time) {
        if (iterator.valid()) {
            const Time steals = time + STEAL_LATENCY;
            if (!count) stolen.begin(now + 1, steals);
            const Time place = steals - stolen.from;
            if (place >= Stolen::SIZE) break;
            const uint64_t bit = uint64_t{1} << place;
            const int column = column_of(lane);
            taken[static_cast<size_t>(column & (lane.config->pes - 1))] |= bit;
            if (leaves(lane, column)) values |= bit;
            if (lane.drain_row.final && result_nonzero(lane, column)) ahead.values.nonzero |= bit;
            in_order += column == count++ && place == column;
        }
        step_columns(lane, lane.columns.state);
    }
    if (time == ahead.from) return false;
    if (count) lane.pes.steal(taken, time + STEAL_LATENCY, now);
    if (lane.drain_row.final) ahead.values.present = values;
    ahead.values.first = stolen.from + DRAIN_LATENCY - STEAL_LATENCY;
    ahead.until = time;
    if (begins && count && in_order == count) {
        Plan& plan = lane.shared->plan;
        plan = {true, {}, lane.columns, time - now - 1, stolen.from - STEAL_LATENCY - now - 1, taken, values};
        std::copy(std::begin(lane.drain_row.mask), std::end(lane.drain_row.mask), plan.mask);
    }
    return true;
}

// A word that leaves the pipeline in a cycle that was over ahead of time.
inline PostWord ahead_word(Lane& lane, Time now) {
    return lane.drain_line_until >= now ? receive(lane, now) : lane.ahead.values.word_at(now);
}

// Words that leave from cycle `from` on go the way of those that are sent one by one.
inline void end_ahead(Lane& lane, Time from) {
    for (Time time = from; time < from + DRAIN_LATENCY; ++time) {
        if (!lane.ahead.values.at(time)) continue;
        lane.drain_line[time & 15] = {lane.ahead.values.word_at(time), true, lane.drain_row.bank};
        lane.drain_line_until = time;
    }
}

// Post-processing has no space in cycle `now`: what was over ahead of time is so up to this cycle only.
inline void interrupt_ahead(Lane& lane, Time now) {
    Lane::Ahead& ahead = lane.ahead;
    lane.columns = ahead.columns;
    for (Time time = ahead.from; time <= now; ++time) step_columns(lane, lane.columns.state);
    lane.go = false;
    ahead.interrupted = true;
    lane.pes.give_back(now + 1 + STEAL_LATENCY, now);
    end_ahead(lane, now + 1);
}

[[gnu::always_inline]] inline DrainOut step_drain(Lane& lane, Time now, bool space, bool granted) {
    const Config& config = *lane.config;
    Time& again = lane.drain_again;
    again = now + 1;
    DrainOut out;
    if (lane.columns.state == D_SCRUB) {
        if (++lane.scrub_count == config.sum_rows() * config.slots) {
            lane.columns.state = D_IDLE;
            lane.idle_context = 0;
            lane.idle_since = now + 1;
        }
        return out;
    }
    if (lane.drain_line_until >= now) out.word = receive(lane, now);
    if (lane.columns.state == D_IDLE && config.psum_in_pe) {
        lane.active = false;
        const auto& [next, shown] = lane.finished_rows[lane.finished_head % lane.finished_rows.size()];
        const bool any = lane.finished_head != lane.finished_end;
        if (any && shown <= now) {
            const Row& row = *next;
            ++lane.finished_head;
            begin_drain(lane, row.slot & (config.rings - 1), row);
            lane.columns.state = D_META;
        } else {
            again = std::min(next_word(lane, now), any ? shown : NEVER);
        }
        return out;
    }
    if (lane.columns.state == D_IDLE) {
        const int context = (lane.idle_context + static_cast<int>(now - lane.idle_since)) & (config.rings - 1);
        if (context_done(lane, context, now)) {
            begin_drain(lane, context, *lane.context_row[context]);
            lane.columns.state = D_ROW;
        } else {
            again = lane.drain_line_until > now ? now + 1 : next_look(lane, now);
        }
        return out;
    }
    lane.active = lane.columns.state != D_NEXT;
    const Row& row = lane.drain_row;
    const bool handshake = lane.columns.iterator.valid() && lane.go;
    const bool was_busy = lane.columns.iterator.busy();
    const DrainState state = lane.columns.state;
    if (row.final && state >= D_REQUEST && state <= D_COLUMNS) {
        out.request = state != D_COLUMNS || was_busy || config.header_beats() > 2;
    }
    if (state == D_COLUMNS) {
        if (!was_busy) out.releases = end_drain(lane, now);
    } else if (state == D_MASK) {
        // the columns' iterator alone
    } else if (state == D_REQUEST) {
        if (!row.final) {
            lane.columns.state = D_MASK;
        } else if (granted && space) {
            send(lane, now, PostKind::START, false);
            lane.columns.state = D_MASK;
        } else if (lane.drain_line_until <= now) {
            out.waits = true;
            again = NEVER;
        }
    } else if (state == D_META) {
        lane.columns.state = D_ROW;
    } else if (state == D_ROW) {
        lane.columns.state = D_REQUEST;
    } else {        // D_NEXT
        lane.columns.state = D_IDLE;
        lane.idle_context = (lane.drain_context + 1) & (config.rings - 1);
        lane.idle_since = now + 1;
    }
    if (handshake) {
        const int column = column_of(lane);
        if (leaves(lane, column)) send(lane, now, PostKind::VALUE, result_nonzero(lane, column));
        lane.pes.steal(static_cast<size_t>(column & (config.pes - 1)), now + STEAL_LATENCY, now);
    }
    step_columns(lane, state);
    lane.go = space || !row.final;
    if (lane.go && !lane.ahead.interrupted && (lane.columns.state == D_MASK || lane.columns.state == D_COLUMNS)) {
        out.ahead = run_ahead(lane, now);
        if (out.ahead) again = lane.ahead.until;
    }
    return out;
}

}  // namespace maskwork
