package pdclient

import (
	"errors"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/ridgekv/ridge/client/internal/dial"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

// maxMembers bounds the addresses that are remembered. A PD group has at most
// five nodes; the rest is room for addresses that changed.
const maxMembers = 32

// node speaks both services of one PD node.
type node struct {
	pdpb.PDServiceClient
	pdpb.PDAdminServiceClient
}

// members knows the addresses of PD nodes and which one led last.
type members struct {
	dial dial.Options
	log  *slog.Logger
	// bell rings when a new leader was met (capacity 1).
	bell chan struct{}

	mu struct {
		sync.Mutex
		// addresses are the configured ones first, then those learned.
		addresses []string
		conns     map[string]*grpc.ClientConn
		leader    string // empty: unknown
		known     string // the last confirmed leader, for the log line
		next      int    // where the round of addresses goes on
		closed    bool
	}
}

func newMembers(o Options) *members {
	m := &members{
		dial: dial.Options{TLS: o.TLS, Timeout: o.DialTimeout, UserAgent: "ridge-pdclient"},
		log:  o.Logger,
		bell: make(chan struct{}, 1),
	}
	m.mu.addresses = slices.Clone(o.Addresses)
	m.mu.conns = map[string]*grpc.ClientConn{}
	return m
}

// pick returns the leader, or the next address of the round.
func (m *members) pick() (string, node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr := m.mu.leader
	if addr == "" {
		addr = m.mu.addresses[m.mu.next%len(m.mu.addresses)]
		m.mu.next++
	}
	client, err := m.clientLocked(addr)
	return addr, client, err
}

// pickAny returns the next address of the round, leader or not.
func (m *members) pickAny() (string, node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr := m.mu.addresses[m.mu.next%len(m.mu.addresses)]
	m.mu.next++
	client, err := m.clientLocked(addr)
	return addr, client, err
}

// at returns the node at addr.
func (m *members) at(addr string) (node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clientLocked(addr)
}

func (m *members) clientLocked(addr string) (node, error) {
	if m.mu.closed {
		return node{}, ErrClosed
	}
	conn := m.mu.conns[addr]
	if conn == nil {
		var err error
		if conn, err = dial.New(addr, m.dial); err != nil {
			return node{}, err
		}
		m.mu.conns[addr] = conn
	}
	return node{pdpb.NewPDServiceClient(conn), pdpb.NewPDAdminServiceClient(conn)}, nil
}

// failed notes that addr did not answer; the round goes on behind it.
func (m *members) failed(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.leader == addr {
		m.mu.leader = ""
		if i := slices.Index(m.mu.addresses, addr); i >= 0 {
			m.mu.next = i + 1
		}
	}
}

// redirected notes that from does not lead and names leader, which may be
// empty. Whether leader leads is seen at the next call.
func (m *members) redirected(from, leader string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if leader == from {
		leader = ""
	}
	if leader != "" {
		m.addLocked(leader)
	}
	if m.mu.leader == from || m.mu.leader == "" {
		m.mu.leader = leader
	}
}

// leads notes that addr answered as the leader.
func (m *members) leads(addr string) {
	m.mu.Lock()
	m.mu.leader = addr
	changed := m.mu.known != addr
	m.mu.known = addr
	m.mu.Unlock()
	if changed {
		m.log.Info("pd leader found", "op", "pd", "address", addr)
		select {
		case m.bell <- struct{}{}:
		default:
		}
	}
}

func (m *members) add(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addLocked(addr)
}

func (m *members) addLocked(addr string) {
	if addr != "" && len(m.mu.addresses) < maxMembers && !slices.Contains(m.mu.addresses, addr) {
		m.mu.addresses = append(m.mu.addresses, addr)
	}
}

func (m *members) close() error {
	m.mu.Lock()
	conns := m.mu.conns
	m.mu.conns, m.mu.closed = nil, true
	m.mu.Unlock()
	var faults []error
	for _, conn := range conns {
		faults = append(faults, conn.Close())
	}
	return errors.Join(faults...)
}
