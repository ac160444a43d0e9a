package client

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"math/bits"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/errs"
	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
	"github.com/ridgekv/ridge/proto/ts"
)

// Options configure a Client. The zero value of every field is its default.
type Options struct {
	// PD are the gRPC addresses of placement driver nodes. One that answers is
	// enough; the others are learned. Required unless PDClient is set.
	PD []string
	// PDClient is used instead of a client of one's own; Close leaves it open.
	// Default nil. A store shares its own with its gateway.
	PDClient *pdclient.Client
	// Lazy makes Open return without asking PD. Default false: Open fails when
	// no PD answers, so that a wrong address is seen now and not at the first
	// call.
	Lazy bool
	// TLS is the client side of every connection. Default nil: plain text.
	TLS *tls.Config
	// Timeout bounds an operation whose context has no deadline. Default 10s.
	// Scans are bounded by it per page, not as a whole.
	Timeout time.Duration
	// DialTimeout bounds one attempt to connect to a store or a PD. Default
	// 500ms. A longer one makes failover slower when a host vanishes silently.
	DialTimeout time.Duration
	// TryTimeout is how long one try of a read may be silent before another
	// replica is asked. Default 1s. It does not bound writes: a write that was
	// sent is waited for, because it must not be sent twice.
	TryTimeout time.Duration
	// MaxRoutes bounds the route cache. Default 100,000 ranges (about 30 MB).
	MaxRoutes int
	// MaxInFlight bounds the requests that wait on one store. Default 8,192.
	// Above it calls fail with Busy after they have waited for their budget.
	MaxInFlight int
	// Parallelism bounds the ranges that one multi-range call works on at the
	// same time. Default 16.
	Parallelism int
	// Forwarded marks every request so that no store forwards it again. Only a
	// gateway sets it.
	Forwarded bool
	// MaxBatchGetBytes refuses a BatchGet whose answer is larger with
	// errs.TooLarge, before all of it is in memory. Default: no bound. A gateway
	// sets it: it answers for callers it does not know.
	MaxBatchGetBytes int
	// Logger gets one line per change of state. Default: none.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Validate reports every fault of o, joined.
func (o Options) Validate() error {
	var faults []error
	if len(o.PD) == 0 && o.PDClient == nil {
		faults = append(faults, errors.New("client: PD names no address"))
	}
	for _, a := range o.PD {
		if a == "" {
			faults = append(faults, errors.New("client: PD has an empty address"))
		}
	}
	if o.Timeout < 0 || o.DialTimeout < 0 || o.TryTimeout < 0 {
		faults = append(faults, errors.New("client: a timeout is negative"))
	}
	if o.MaxRoutes < 0 || o.MaxInFlight < 0 || o.Parallelism < 0 {
		faults = append(faults, errors.New("client: a bound is negative"))
	}
	return errors.Join(faults...)
}

func (o Options) withDefaults() Options {
	o.Timeout = orDuration(o.Timeout, 10*time.Second)
	o.DialTimeout = orDuration(o.DialTimeout, 500*time.Millisecond)
	o.TryTimeout = orDuration(o.TryTimeout, time.Second)
	o.MaxRoutes = orInt(o.MaxRoutes, 100_000)
	o.MaxInFlight = orInt(o.MaxInFlight, 8192)
	o.Parallelism = orInt(o.Parallelism, 16)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func orDuration(d, fallback time.Duration) time.Duration {
	if d == 0 {
		return fallback
	}
	return d
}

func orInt(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}

// Consistency says what a read may return. The zero value is Linearizable.
type Consistency struct {
	level     consistencyLevel
	at        ts.Timestamp
	staleness time.Duration
}

type consistencyLevel int

const (
	linearizable consistencyLevel = iota
	snapshot
	stale
)

// Linearizable reads see every write that was acknowledged before the read
// began. A read over several ranges is one snapshot.
func Linearizable() Consistency { return Consistency{} }

// Snapshot reads see the data as it was at t. Client.Timestamp returns a t for
// now; a t older than the cluster's retention ends with errs.TooOld.
func Snapshot(t ts.Timestamp) Consistency { return Consistency{level: snapshot, at: t} }

// Stale reads may be up to maxStaleness old and are answered by any replica.
func Stale(maxStaleness time.Duration) Consistency {
	return Consistency{level: stale, staleness: maxStaleness}
}

// optionBit tells which options a call was given, so that one that means
// nothing to it is refused instead of ignored.
type optionBit uint

const (
	bitConsistency optionBit = 1 << iota
	bitTTL
	bitLimit
	bitKeysOnly
	bitPrefix
	bitPageBytes
	bitSession
)

var optionNames = []string{
	"WithConsistency", "WithTTL", "WithLimit", "WithKeysOnly", "WithPrefix", "WithPageBytes",
	"WithSession",
}

// apply collects the options of one call, of which it allows some.
func (c *Client) apply(opts []Option, allowed optionBit) (settings, error) {
	if len(opts) == 0 {
		return settings{session: &c.session}, nil
	}
	return c.applyAll(opts, allowed)
}

func (c *Client) applyAll(opts []Option, allowed optionBit) (settings, error) {
	s := settings{session: &c.session}
	for _, o := range opts {
		o(&s)
	}
	if wrong := s.given &^ (allowed | bitSession); wrong != 0 {
		return s, errs.InvalidArgument{
			Field:  "options",
			Reason: optionNames[bits.TrailingZeros(uint(wrong))] + " means nothing to this call",
		}
	}
	if s.session == nil {
		s.session = &c.session
	}
	if s.ttl < 0 || s.given&bitTTL != 0 && s.ttl < time.Millisecond {
		return s, errs.InvalidArgument{Field: "ttl", Reason: "it is below a millisecond"}
	}
	return s, s.consistency.validate()
}

func (c Consistency) validate() error {
	switch {
	case c.level == snapshot && c.at == 0:
		return errs.InvalidArgument{Field: "consistency", Reason: "a snapshot at 0 holds nothing"}
	case c.level == stale && c.staleness < time.Millisecond:
		return errs.InvalidArgument{Field: "consistency", Reason: "staleness below a millisecond"}
	}
	return nil
}

// proto renders c for the wire.
func (c Consistency) proto() *kvpb.Consistency {
	switch c.level {
	case snapshot:
		return &kvpb.Consistency{
			Level:      kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_SNAPSHOT,
			SnapshotTs: uint64(c.at),
		}
	case stale:
		return &kvpb.Consistency{
			Level:          kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_STALE,
			MaxStalenessMs: uint32(min(c.staleness.Milliseconds(), math.MaxUint32)),
		}
	}
	return &kvpb.Consistency{Level: kvpb.ConsistencyLevel_CONSISTENCY_LEVEL_LINEARIZABLE}
}

// settings are the options of one call.
type settings struct {
	given       optionBit
	consistency Consistency
	ttl         time.Duration
	limit       uint64
	keysOnly    bool
	prefix      []byte
	pageBytes   uint32
	session     *Session
}

// Option changes one call. An option that a call has no use for is refused
// with errs.InvalidArgument.
type Option func(*settings)

// WithConsistency selects what a read may return. For Get, BatchGet and scans.
func WithConsistency(c Consistency) Option {
	return func(s *settings) { s.given |= bitConsistency; s.consistency = c }
}

// WithTTL lets the written row expire d after its commit. For Put and
// CompareAndSwap; a Mutation carries its own.
func WithTTL(d time.Duration) Option {
	return func(s *settings) { s.given |= bitTTL; s.ttl = d }
}

// WithLimit ends a scan after n rows, or a DeleteRange after about n keys.
func WithLimit(n int) Option {
	return func(s *settings) { s.given |= bitLimit; s.limit = uint64(max(n, 0)) }
}

// WithKeysOnly leaves the values out. For scans.
func WithKeysOnly() Option {
	return func(s *settings) { s.given |= bitKeysOnly; s.keysOnly = true }
}

// WithPrefix narrows a scan to the keys that begin with p.
func WithPrefix(p []byte) Option {
	return func(s *settings) { s.given |= bitPrefix; s.prefix = p }
}

// WithPageBytes sets the size of one page of a scan. Default: the store's.
func WithPageBytes(n int) Option {
	return func(s *settings) {
		s.given |= bitPageBytes
		s.pageBytes = uint32(min(max(n, 0), math.MaxUint32))
	}
}

// WithSession orders the call after everything the session has seen, and
// raises the session to what the call saw. Default: the client's own session.
func WithSession(v *Session) Option {
	return func(s *settings) { s.given |= bitSession; s.session = v }
}
