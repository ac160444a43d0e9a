package pd

import "github.com/prometheus/client_golang/prometheus"

// metrics are PD's own; those of its group are the state machine's size.
type metrics struct {
	leads     prometheus.Gauge
	ranges    prometheus.Gauge
	stores    *prometheus.GaugeVec
	operators *prometheus.CounterVec
	inFlight  prometheus.Gauge
	verdicts  prometheus.Gauge
	pass      prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		leads: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_pd_leads", Help: "1 while this PD leads.",
		}),
		ranges: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_pd_ranges", Help: "Ranges known to the leader.",
		}),
		stores: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ridge_pd_stores", Help: "Stores by state.",
		}, []string{"state"}),
		operators: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_pd_operators_total", Help: "Operators that ended, by outcome.",
		}, []string{"outcome"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_pd_operators", Help: "Operators in flight.",
		}),
		verdicts: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_pd_verdicts", Help: "Ranges left as they are although something is amiss.",
		}),
		pass: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ridge_pd_planning_seconds", Help: "Time of one planning pass.",
			Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10),
		}),
	}
	if r != nil {
		r.MustRegister(m.leads, m.ranges, m.stores, m.operators, m.inFlight, m.verdicts, m.pass)
	}
	return m
}
