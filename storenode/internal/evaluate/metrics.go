package evaluate

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests    [kindEnd]prometheus.Counter
	refusals    *prometheus.CounterVec
	entries     *prometheus.CounterVec
	batchWrites prometheus.Histogram
	reproposals prometheus.Counter
	acquires    prometheus.Counter
	tenures     prometheus.Counter
	readRounds  prometheus.Counter
	swept       prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	requests := vec("ridge_evaluate_requests_total", "Requests taken, by kind.", "kind")
	m := &metrics{
		refusals: vec("ridge_evaluate_refusals_total",
			"Requests refused by a full queue, by which, or by an engine that is behind.", "reason"),
		entries: vec("ridge_evaluate_entries_total", "Entries numbered, by kind.", "kind"),
		batchWrites: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ridge_evaluate_batch_requests", Help: "Requests per write entry.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		reproposals: counter("ridge_evaluate_reproposals_total", "Entries proposed again."),
		acquires:    counter("ridge_evaluate_acquires_total", "AcquireLease entries proposed."),
		tenures:     counter("ridge_evaluate_tenures_total", "Leases acquired."),
		readRounds:  counter("ridge_evaluate_read_rounds_total", "ReadIndex rounds begun."),
		swept:       counter("ridge_evaluate_swept_rows_total", "Expired rows found by the sweep."),
	}
	for k := range m.requests {
		m.requests[k] = requests.WithLabelValues(Kind(k).String())
	}
	for _, bound := range []string{"queue", "engine", "reads", "pace", "closed"} {
		m.refusals.WithLabelValues(bound)
	}
	if reg != nil {
		reg.MustRegister(requests, m.refusals, m.entries, m.batchWrites, m.reproposals,
			m.acquires, m.tenures, m.readRounds, m.swept)
	}
	return m
}
