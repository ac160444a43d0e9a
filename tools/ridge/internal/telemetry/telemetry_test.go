package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEndpoint(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ready atomic.Bool
	endpoint := Endpoint{
		Listener: listener, Gatherer: NewRegistry("v1"), Logger: slog.New(slog.DiscardHandler),
		Readiness: func() error {
			if ready.Load() {
				return nil
			}
			return errors.New("two replicas are not started")
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- endpoint.Run(ctx) }()
	get := func(path string, status int, contains string) {
		t.Helper()
		resp, err := http.Get("http://" + listener.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != status || !strings.Contains(string(body), contains) {
			t.Errorf("%s: %d %.200s", path, resp.StatusCode, body)
		}
	}
	get("/healthz", 200, "ok")
	get("/readyz", 503, "two replicas")
	ready.Store(true)
	get("/readyz", 200, "ready")
	get("/metrics", 200, `ridge_build_info{`)
	get("/debug/pprof/", 404, "")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	log := Logger(&b, "warn", "json")
	log.Info("quiet")
	log.Warn("loud", "range", 7)
	if got := b.String(); strings.Contains(got, "quiet") || !strings.Contains(got, `"range":7`) {
		t.Errorf("got %s", got)
	}
}
