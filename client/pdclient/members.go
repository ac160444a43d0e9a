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
// seven nodes; the rest is room for addresses that changed.
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
	// given are the configured addresses.
	given []string

	mu struct {
		sync.Mutex
		// addresses are those of the members as last heard, then the configured ones,
		// then those of leaders that others named since.
		addresses []string
		// listed are the members as last heard, nil before, and revision is that of
		// the list.
		listed   []string
		revision uint64
		conns    map[string]*grpc.ClientConn
		leader   string // empty: unknown
		known    string // the last confirmed leader, for the log line
		next     int    // where the round of addresses goes on
		closed   bool
	}
}

func newMembers(o Options) *members {
	m := &members{
		dial: dial.Options{TLS: o.TLS, Timeout: o.DialTimeout, UserAgent: "ridge-pdclient"},
		log:  o.Logger,
		bell: make(chan struct{}, 1), given: slices.Clone(o.Addresses),
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

// replace takes the list of members over. What is neither in it nor configured is
// forgotten: a node that was removed does not come back. An older list, of a node
// that lags behind or was removed, is not believed.
func (m *members) replace(listed []string, revision uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed || len(listed) == 0 || revision < m.mu.revision ||
		slices.Equal(listed, m.mu.listed) {
		return
	}
	m.mu.listed, m.mu.revision = listed, revision
	m.mu.addresses = slices.Clone(listed)
	for _, a := range m.given {
		m.addLocked(a)
	}
	if m.mu.leader != "" {
		m.addLocked(m.mu.leader)
	}
	for a, conn := range m.mu.conns {
		if !slices.Contains(m.mu.addresses, a) {
			_ = conn.Close()
			delete(m.mu.conns, a)
		}
	}
}

// list returns the members as last heard, or the configured addresses.
func (m *members) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.listed != nil {
		return slices.Clone(m.mu.listed)
	}
	return slices.Clone(m.given)
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
