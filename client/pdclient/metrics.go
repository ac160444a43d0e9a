package pdclient

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/client/internal/retry"
)

type metrics struct {
	calls   *prometheus.HistogramVec
	retries *prometheus.CounterVec
	callers prometheus.Histogram
	members prometheus.Gauge
}

// newMetrics registers the metrics of a client on r. A second client on the
// same Registerer shares them.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "ridge_pdclient_call_seconds",
			Help:    "Time of calls to PD, retries included, by call and outcome.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 4, 9),
		}, []string{"op", "outcome"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_pdclient_retries_total",
			Help: "Tries of calls to PD that had to be repeated, by cause.",
		}, []string{"cause"}),
		callers: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ridge_pdclient_timestamp_callers",
			Help:    "Callers that shared one timestamp request.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		members: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_pdclient_members", Help: "PD nodes there are, as last heard.",
		}),
	}
	if r == nil {
		return m, nil
	}
	var err error
	m.calls, err = register(r, m.calls)
	if err != nil {
		return nil, err
	}
	if m.retries, err = register(r, m.retries); err != nil {
		return nil, err
	}
	if m.callers, err = register(r, m.callers); err != nil {
		return nil, err
	}
	m.members, err = register(r, m.members)
	return m, err
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	err := r.Register(c)
	if e, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if have, ok := e.ExistingCollector.(C); ok {
			return have, nil
		}
	}
	return c, err
}

func (m *metrics) done(op string, began time.Time, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.calls.WithLabelValues(op, outcome).Observe(time.Since(began).Seconds())
}

func (m *metrics) retried(k retry.Kind) { m.retries.WithLabelValues(k.String()).Inc() }

func (m *metrics) timestampBatch(callers int) { m.callers.Observe(float64(callers)) }
