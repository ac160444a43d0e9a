package apply

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what all machines of a store do. A nil Metrics counts nothing.
type Metrics struct {
	entries       *prometheus.CounterVec
	imageSent     prometheus.Counter
	imageReceived prometheus.Counter
	imageSpoiled  prometheus.Counter
}

// NewMetrics registers the metrics; a nil Registerer registers nothing.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_apply_entries_total",
			Help: "Log entries given to apply, by result.",
		}, []string{"result"}),
		imageSent:     counter("ridge_apply_image_sent_bytes", "Bytes of range images sent."),
		imageReceived: counter("ridge_apply_image_received_bytes", "Bytes of range images received."),
		imageSpoiled:  counter("ridge_apply_image_spoiled_total", "Images that could not be used."),
	}
	if r != nil {
		r.MustRegister(m.entries, m.imageSent, m.imageReceived, m.imageSpoiled)
	}
	return m
}

func (m *Metrics) entry(result uint64) {
	if m != nil {
		m.entries.WithLabelValues(ResultName(result)).Inc()
	}
}

func (m *Metrics) sent(sizeBytes uint64) {
	if m != nil {
		m.imageSent.Add(float64(sizeBytes))
	}
}

func (m *Metrics) received(sizeBytes uint64) {
	if m != nil {
		m.imageReceived.Add(float64(sizeBytes))
	}
}

func (m *Metrics) spoiled() {
	if m != nil {
		m.imageSpoiled.Inc()
	}
}
