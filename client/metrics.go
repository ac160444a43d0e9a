package client

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/client/internal/retry"
)

type metrics struct {
	calls   *prometheus.HistogramVec
	retries *prometheus.CounterVec
	// succeeded are the calls of the direct way that went well, looked up once.
	succeeded [ops]prometheus.Observer
	// paged is the same of the pages of scans.
	paged prometheus.Observer
}

// newMetrics registers the metrics of a client on r. A second client on the
// same Registerer shares them.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "ridge_client_call_seconds",
			Help:    "Time of calls, retries included, by call and outcome (ok, error, unknown).",
			Buckets: prometheus.ExponentialBuckets(0.0002, 4, 9),
		}, []string{"op", "outcome"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_client_retries_total",
			Help: "Waits before another try, by cause.",
		}, []string{"cause"}),
	}
	if r != nil {
		var err error
		if m.calls, err = register(r, m.calls); err != nil {
			return nil, err
		}
		if m.retries, err = register(r, m.retries); err != nil {
			return nil, err
		}
	}
	for o := range ops {
		m.succeeded[o] = m.calls.WithLabelValues(o.String(), "ok")
	}
	m.paged = m.calls.WithLabelValues(opPage, "ok")
	return m, nil
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
		if IsUnknown(err) {
			outcome = "unknown"
		}
	}
	m.calls.WithLabelValues(op, outcome).Observe(time.Since(began).Seconds())
}

// plain is done for the calls of the direct way.
func (m *metrics) plain(o op, began time.Time, err error) {
	if err != nil {
		m.done(o.String(), began, err)
		return
	}
	m.succeeded[o].Observe(time.Since(began).Seconds())
}

// opPage names a page of a scan.
const opPage = "scan page"

// page is done for a page of a scan.
func (m *metrics) page(began time.Time, err error) {
	if err != nil {
		m.done(opPage, began, err)
		return
	}
	m.paged.Observe(time.Since(began).Seconds())
}

func (m *metrics) retried(k retry.Kind) { m.retries.WithLabelValues(k.String()).Inc() }
