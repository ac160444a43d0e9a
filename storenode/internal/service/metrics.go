package service

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests  prometheus.Counter
	forwarded prometheus.Counter
	busy      prometheus.Counter
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
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_service_busy_total",
			Help: "Requests refused at the door because a bound was reached.",
		}),
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
	if r != nil {
		r.MustRegister(m.requests, m.forwarded, m.busy, m.panics, m.debtors, m.streams, m.packed)
	}
	return m
}
