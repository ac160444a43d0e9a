package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/tools/ridge/internal/config"
	"github.com/ridgekv/ridge/tools/ridge/internal/serve"
	"github.com/ridgekv/ridge/tools/ridge/internal/telemetry"
)

// node is what a server command runs: a PD node or a store.
type node interface {
	Register(r grpc.ServiceRegistrar)
	Run(ctx context.Context) error
}

// member is a node with its listener.
type member struct {
	name string
	node
	readiness func() error
	listener  net.Listener
	registry  prometheus.Registerer
	// last members stop when all others have: those ask them while they stop.
	last bool
}

// process is one operating system process with its members.
type process struct {
	members  []member
	tls      serve.Files
	logger   *slog.Logger
	registry *prometheus.Registry
	http     net.Listener
	insecure bool
	// announce is called once everything is ready, and may still wait.
	announce func(ctx context.Context) error
}

var errStopped = errors.New("stopped")

// run serves until ctx ends. Members stop first and drain, the last ones after
// the others; what carries their calls stops after them all.
func (p *process) run(ctx context.Context) error {
	tlsConfig, err := p.tls.Server()
	if err != nil {
		return usageError{err}
	}
	carriers := []func(context.Context) error{telemetry.Endpoint{
		Listener: p.http, Gatherer: p.registry, Readiness: p.readiness, Logger: p.logger,
		Profiles: p.insecure || config.Loopback(p.http.Addr().String()),
	}.Run}
	for _, m := range p.members {
		server, err := serve.New(serve.Options{
			Listener: m.listener, TLS: tlsConfig, Readiness: m.readiness, Logger: p.logger,
			Registerer: m.registry,
		})
		if err != nil {
			return err
		}
		m.Register(server)
		carriers = append(carriers, server.Run)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errStopped)
	lasting, stopLast := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLast()
	carrying, stopCarrying := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCarrying()
	var carried, lasted, working sync.WaitGroup
	faults := make(chan error, len(carriers)+len(p.members)+1)
	report := func(err error) {
		if err != nil {
			faults <- err
			cancel(err)
		}
	}
	for _, run := range carriers {
		carried.Go(func() { report(run(carrying)) })
	}
	for _, m := range p.members {
		if m.last {
			lasted.Go(func() { report(m.work(lasting)) })
		} else {
			working.Go(func() { report(m.work(ctx)) })
		}
	}
	working.Go(func() { report(p.awaitReady(ctx)) })
	<-ctx.Done() // at the latest when the first member has ended
	working.Wait()
	stopLast()
	lasted.Wait()
	stopCarrying()
	carried.Wait()
	close(faults)
	var all []error
	for err := range faults {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// work runs the member until ctx ends. To end before is an error.
func (m member) work(ctx context.Context) error {
	err := m.Run(ctx)
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		return nil
	case err == nil:
		err = errors.New("it ended by itself")
	}
	return fmt.Errorf("%s: %w", m.name, err)
}

// readiness joins what the members say.
func (p *process) readiness() error {
	var faults []error
	for _, m := range p.members {
		if err := m.readiness(); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return errors.Join(faults...)
}

// awaitReady announces once every member serves.
func (p *process) awaitReady(ctx context.Context) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for p.readiness() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
	err := p.announce(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// setMemory makes the budget Go's limit, unless the environment has one.
func setMemory(budget int64) {
	if os.Getenv("GOMEMLIMIT") == "" && budget > 0 {
		debug.SetMemoryLimit(budget)
	}
}

// tableProcessors are the processors that Go is told of beyond those of the machine.
// Go lets a goroutine that computes go on for 10 ms while others wait for its
// processor, and a store makes tables with two and more goroutines that compute.
// With places of their own it is the kernel that divides the machine, and it lets
// who has slept go before who computes. On two processors the p99 of puts at half of
// their highest rate fell to a third by it, and reads beside puts gained a tenth.
const tableProcessors = 2

// setProcessors makes room for tableProcessors, unless the environment decides. Go
// then no longer follows a limit of the container that changes while it runs.
func setProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + tableProcessors)
	}
}

// load reads the configuration of a server command.
func load(cmd *cobra.Command, s config.Schema) (config.Values, error) {
	return s.Load(cmd.Flags(), os.Environ())
}

func newLogger(cmd *cobra.Command, v config.Values) *slog.Logger {
	return telemetry.Logger(cmd.ErrOrStderr(), v.String("log.level"), v.String("log.format"))
}

// secured refuses listeners beyond loopback without TLS, and half a TLS
// configuration. All faults are in the error.
func secured(v config.Values, files serve.Files, settings ...string) error {
	var faults []error
	if files.Given() && (files.CA == "" || files.Cert == "" || files.Key == "") {
		faults = append(faults, errors.New("tls: ca, cert and key belong together"))
	}
	for _, s := range settings {
		address := v.String(s)
		if address == "" || config.Loopback(address) || files.Given() || v.Bool("insecure") {
			continue
		}
		faults = append(faults, fmt.Errorf("%s %s is beyond loopback: configure tls, or give "+
			"--insecure to accept that whoever reaches the port can read, write and crash", s, address))
	}
	if len(faults) > 0 {
		return config.Error{Faults: faults}
	}
	return nil
}

// advertised is the address others dial: as configured, or the listen address.
func advertised(v config.Values, what, listen string) string {
	if a := v.String(what); a != "" {
		return a
	}
	return listen
}

// shifted is address with its port moved by n; "" if there is no such port.
func shifted(address string, n int) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	p, err := strconv.Atoi(port)
	if err != nil || p == 0 || p+n > math.MaxUint16 {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(p+n))
}

func printReady(w io.Writer, what string) error {
	_, err := fmt.Fprintf(w, "%s is ready\n", what)
	return err
}
