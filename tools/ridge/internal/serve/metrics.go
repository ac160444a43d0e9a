package serve

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// metrics counts calls. Streams are counted when they end; what they carry is
// counted by the rooms.
type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	streams prometheus.Gauge
	panics  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ridge_serve_calls_total",
			Help: "gRPC calls by method and code. Refusals in a response's error field count as OK.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "ridge_serve_call_seconds",
			Help:    "How long unary gRPC calls took.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 3, 11),
		}, []string{"method"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ridge_serve_open_streams_count", Help: "gRPC streams that are open.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ridge_serve_panics_total", Help: "Panics that a handler was saved from.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds, m.streams, m.panics} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	began := time.Now()
	resp, err := handler(ctx, req)
	method := shortMethod(info.FullMethod)
	m.seconds.WithLabelValues(method).Observe(time.Since(began).Seconds())
	m.calls.WithLabelValues(method, status.Code(err).String()).Inc()
	return resp, err
}

func (m *metrics) stream(
	srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	m.streams.Inc()
	defer m.streams.Dec()
	err := handler(srv, ss)
	m.calls.WithLabelValues(shortMethod(info.FullMethod), status.Code(err).String()).Inc()
	return err
}

// shortMethod turns /ridge.kv.v1.KVService/Get into KVService/Get.
func shortMethod(full string) string {
	service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	return service[strings.LastIndexByte(service, '.')+1:] + "/" + method
}
