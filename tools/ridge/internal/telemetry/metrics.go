package telemetry

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with the metrics of the process itself.
func NewRegistry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "ridge_build_info",
		Help:        "1, with the version of the binary and of Go.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// ForProcess labels what is registered through it with the member of a
// development cluster it belongs to, so that several live in one registry.
func ForProcess(r prometheus.Registerer, member string) prometheus.Registerer {
	return prometheus.WrapRegistererWith(prometheus.Labels{"member": member}, r)
}
