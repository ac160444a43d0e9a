package agent

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	heartbeats prometheus.Counter
	reports    prometheus.Counter
	measured   prometheus.Counter
	suspicions prometheus.Counter
	orders     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		heartbeats: counter("ridge_agent_heartbeats_total", "Store heartbeats PD answered."),
		reports:    counter("ridge_agent_range_reports_total", "Ranges reported to PD."),
		measured:   counter("ridge_agent_ranges_measured_total", "Ranges measured for their size."),
		suspicions: counter("ridge_agent_suspicions_total", "Times a store fell silent."),
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_agent_orders_total", Help: "Orders of PD by step and result.",
		}, []string{"step", "result"}),
	}
	if r != nil {
		r.MustRegister(m.heartbeats, m.reports, m.measured, m.suspicions, m.orders)
	}
	return m
}
