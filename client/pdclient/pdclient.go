// Package pdclient speaks to the placement driver: it finds the leader among
// several addresses, retries by the class of the error, and shares timestamp
// requests between concurrent callers.
package pdclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/client/internal/dial"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// learnEvery is how often the list of PD's nodes is asked for. Nodes that are
// replaced faster than this may be lost sight of.
const learnEvery = 4 * time.Second

// ErrClosed is returned by every call after Close.
var ErrClosed = errors.New("pdclient: the client is closed")

// Options configure a Client.
type Options struct {
	// Addresses are the gRPC addresses of PD nodes. One that answers is enough:
	// the others are learned from it. Required.
	Addresses []string
	// TLS is the client side of every connection. Default nil: plain text.
	TLS *tls.Config
	// DialTimeout bounds one attempt to connect. Default 500ms.
	DialTimeout time.Duration
	// Timeout bounds a call whose context has no deadline. Default 10s.
	Timeout time.Duration
	// TryTimeout is how long one PD node may be silent before another is asked.
	// Default 1s; registering a store gets five times that.
	TryTimeout time.Duration
	// ClusterID is the cluster that is meant; others refuse. Default 0: it is
	// learned from the first answer and held to from then on.
	ClusterID uint64
	// Logger gets one line per change of the leader. Default: none.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Validate reports every fault of o, joined.
func (o Options) Validate() error {
	var faults []error
	if len(o.Addresses) == 0 {
		faults = append(faults, errors.New("pdclient: no PD address is given"))
	}
	for _, a := range o.Addresses {
		if a == "" {
			faults = append(faults, errors.New("pdclient: a PD address is empty"))
		}
	}
	if o.DialTimeout < 0 || o.Timeout < 0 || o.TryTimeout < 0 {
		faults = append(faults, errors.New("pdclient: a timeout is negative"))
	}
	return errors.Join(faults...)
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		p        *time.Duration
		fallback time.Duration
	}{
		{&o.DialTimeout, dial.DefaultTimeout},
		{&o.Timeout, 10 * time.Second},
		{&o.TryTimeout, time.Second},
	} {
		if *d.p == 0 {
			*d.p = d.fallback
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Error is a refusal by PD.
type Error struct {
	// Op is the call that was refused.
	Op            string
	Reason        pdpb.PDErrorReason
	Message       string
	LeaderAddress string
	Class         kvpb.ErrorClass
	Backoff       time.Duration
}

func (e Error) Error() string {
	text := e.Message
	if text == "" {
		text = e.Reason.String()
	}
	return "pd: " + e.Op + ": " + text
}

// HasReason reports whether err holds a refusal by PD for reason.
func HasReason(err error, reason pdpb.PDErrorReason) bool {
	e, ok := errors.AsType[Error](err)
	return ok && e.Reason == reason
}

// Client speaks to PD. It is safe for concurrent use.
type Client struct {
	o         Options
	clusterID atomic.Uint64
	members   *members
	oracle    *oracle
	metrics   *metrics

	stop   context.CancelFunc
	closed atomic.Bool
	wg     sync.WaitGroup
}

// Open returns a client. It does not wait for PD: a store starts without it.
// The context bounds nothing after Open has returned.
func Open(ctx context.Context, o Options) (*Client, error) {
	if err := errors.Join(o.Validate(), ctx.Err()); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("pdclient: %w", err)
	}
	c := &Client{o: o, members: newMembers(o), metrics: m}
	c.clusterID.Store(o.ClusterID)
	c.oracle = newOracle(c)
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.wg.Go(func() { c.oracle.run(ctx) })
	c.wg.Go(func() { c.learn(ctx) })
	return c, nil
}

// Close ends every stream and connection. It is idempotent.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.stop()
	err := c.members.close()
	c.wg.Wait()
	return err
}

// ClusterID is the id of the cluster, 0 as long as no PD has answered.
func (c *Client) ClusterID() uint64 { return c.clusterID.Load() }

// learnCluster keeps the first cluster id that is heard.
func (c *Client) learnCluster(id uint64) {
	if id != 0 {
		c.clusterID.CompareAndSwap(0, id)
	}
}

func (c *Client) header() *pdpb.RequestHeader {
	return &pdpb.RequestHeader{ClusterId: c.clusterID.Load()}
}

// Addresses are those of PD's nodes as last heard; before that, those it was
// opened with. Who keeps them finds PD again after all of those are replaced.
func (c *Client) Addresses() []string { return c.members.list() }

// learn asks for the list of members when a new leader was met, and from time to
// time, so that the client survives the loss of every address it was configured
// with: PD's nodes are replaced one by one.
func (c *Client) learn(ctx context.Context) {
	for {
		timer := time.NewTimer(learnEvery + rand.N(learnEvery/4))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-c.members.bell:
		case <-timer.C:
		}
		timer.Stop()
		tryCtx, cancel := context.WithTimeout(ctx, c.o.Timeout)
		if r, err := c.Members(tryCtx); err == nil {
			c.learnMembers(r)
		}
		cancel()
	}
}

// learnMembers takes over the list of a PD of this cluster.
func (c *Client) learnMembers(r *pdpb.MembersResponse) {
	if have := c.clusterID.Load(); have == 0 || r.GetClusterId() != have {
		return
	}
	var addresses []string
	for _, m := range r.GetMembers() {
		if m.GetGrpcAddress() != "" {
			addresses = append(addresses, m.GetGrpcAddress())
		}
	}
	c.members.replace(addresses, r.GetRevision())
	c.metrics.members.Set(float64(len(c.members.list())))
}
