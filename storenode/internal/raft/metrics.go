package raft

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/storenode/internal/raft/logstore"
)

// metrics of this room.
type metrics struct {
	proposals, reads, cuts, injections, changes counterVec
	leaderChanges, starts, quarantined          counter
	intakeDropped, early                        counter
	rounds, confirmed                           counter
	fallbacks                                   counterVec
}

type counterVec struct{ *prometheus.CounterVec }

func (c counterVec) inc(label string) { c.WithLabelValues(label).Inc() }

type counter struct{ prometheus.Counter }

func (c counter) inc() { c.Inc() }

func newMetrics(r prometheus.Registerer, h *Host) *metrics {
	vec := func(name, label, help string) counterVec {
		return counterVec{prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ridge_raft_" + name, Help: help}, []string{label})}
	}
	one := func(name, help string) counter {
		return counter{prometheus.NewCounter(
			prometheus.CounterOpts{Name: "ridge_raft_" + name, Help: help})}
	}
	m := &metrics{
		proposals:  vec("proposals_total", "outcome", "Entries proposed, by what became of them."),
		reads:      vec("read_indexes_total", "outcome", "ReadIndex rounds, by outcome."),
		cuts:       vec("log_snapshots_total", "outcome", "Log snapshots asked for, by outcome."),
		injections: vec("injections_total", "reason", "Elections begun on demand, by reason."),
		changes:    vec("member_changes_total", "outcome", "Membership changes, by outcome."),

		rounds: one("confirm_rounds_total",
			"Questions to other stores whether this one still leads, for all ranges at once."),
		confirmed: one("confirmed_reads_total", "Reads of a range that such a round confirmed."),
		fallbacks: vec("confirm_fallbacks_total", "reason",
			"Reads of a range that Dragonboat was asked to confirm instead, by reason."),
		leaderChanges: one("leader_changes_total", "Changes of leader seen on local replicas."),
		starts:        one("replicas_started_total", "Replicas started."),
		early: one("early_messages_total",
			"Messages that left before the rest of their update was durable."),
		intakeDropped: one("intake_dropped_total",
			"Messages with entries that were dropped because too many were not applied."),
		quarantined: one("replicas_quarantined_total", "Replicas that must not be started."),
	}
	if r == nil {
		return m
	}
	r.MustRegister(logMetrics(h)...)
	r.MustRegister(m.proposals, m.reads, m.cuts, m.injections, m.changes,
		m.leaderChanges, m.starts, m.quarantined, m.intakeDropped, m.early,
		m.rounds, m.confirmed, m.fallbacks,
		gauge("intake_bytes", "Entries received from leaders and not applied.",
			func() int { return int(h.intake.heldBytes()) }),
		gauge("replicas", "Replicas that run here.", func() int { return h.count(nil) }),
		gauge("leaders", "Replicas here that lead.", func() int {
			return h.count(func(r *replica) bool { return r.leading().Self })
		}),
		gauge("leaderless", "Replicas here that know no leader.", func() int {
			return h.count(func(r *replica) bool { return !r.leading().Known })
		}))
	return m
}

// logMetrics describe a log of ours; Pebble's has none.
func logMetrics(h *Host) []prometheus.Collector {
	if h.opts.LogKind != LogKindRidge {
		return nil
	}
	stats := func(read func(logstore.Stats) float64) func() float64 {
		return func() float64 {
			if s, ok := h.logDB.(*logstore.Store); ok {
				return read(s.Stats())
			}
			return 0
		}
	}
	total := func(name, help string, read func(logstore.Stats) float64) prometheus.Collector {
		return prometheus.NewCounterFunc(
			prometheus.CounterOpts{Name: "ridge_raft_log_" + name, Help: help}, stats(read))
	}
	now := func(name, help string, read func(logstore.Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Name: "ridge_raft_log_" + name, Help: help}, stats(read))
	}
	return []prometheus.Collector{
		total("syncs_total", "Batches that were written and synced.",
			func(s logstore.Stats) float64 { return float64(s.Syncs) }),
		total("written_bytes_total", "Bytes written, those moved included.",
			func(s logstore.Stats) float64 { return float64(s.Bytes) }),
		total("moved_bytes_total", "Bytes written again to free a segment.",
			func(s logstore.Stats) float64 { return float64(s.Moved) }),
		now("size_bytes", "Bytes of all segments.",
			func(s logstore.Stats) float64 { return float64(s.SizeBytes) }),
		now("live_bytes", "Bytes of the segments that are needed.",
			func(s logstore.Stats) float64 { return float64(s.LiveBytes) }),
	}
}

func gauge(name, help string, value func() int) prometheus.Collector {
	return prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "ridge_raft_" + name, Help: help},
		func() float64 { return float64(value()) })
}

// count counts the running replicas that pred holds of; nil: all.
func (h *Host) count(pred func(*replica) bool) int {
	n := 0
	h.replicas.Range(func(_, v any) bool {
		if pred == nil || pred(v.(*replica)) {
			n++
		}
		return true
	})
	return n
}
