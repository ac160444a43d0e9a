package service

import "github.com/prometheus/client_golang/prometheus"

// The bounds of the door, as Busy names them.
const (
	busyRequests    = "stream requests"
	busyStreamBytes = "stream bytes"
	busyBytes       = "bytes in flight"
)

type metrics struct {
	requests  prometheus.Counter
	forwarded prometheus.Counter
	busy      *prometheus.CounterVec
	panics    prometheus.Counter
	debtors   prometheus.Counter
	streams   prometheus.Gauge
	packed    prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_service_stream_requests_total",
			Help: "Requests that came by streams.",
		}),
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_service_forwarded_total",
			Help: "Unary requests answered through the gateway.",
		}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_service_busy_total",
			Help: "Requests refused at the door because a bound was reached, by bound.",
		}, []string{"reason"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_service_panics_total",
			Help: "Panics turned into errors. Every one is a bug.",
		}),
		debtors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_service_debtors_total",
			Help: "Streams ended because their caller did not read, or said no Hello.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_service_open_streams",
			Help: "Streams open now.",
		}),
		packed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ridge_service_answers_per_message",
			Help:    "Answers packed into one message of a stream.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
	}
	for _, reason := range []string{busyRequests, busyStreamBytes, busyBytes} {
		m.busy.WithLabelValues(reason)
	}
	if r != nil {
		r.MustRegister(m.requests, m.forwarded, m.busy, m.panics, m.debtors, m.streams, m.packed)
	}
	return m
}
