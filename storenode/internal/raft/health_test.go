package raft

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"
)

// TestStopUnderLoad: a store that is stopped while it writes, cuts its log and
// splits comes back with a log and an engine that fit together.
func TestStopUnderLoad(t *testing.T) {
	c := startTestCluster(t, 1, func(o *Options) {
		o.LogSnapshotEntries = 1
		o.LogSnapshotInterval = time.Millisecond
	})
	s := c.stores[1]
	for run := range 6 {
		if run > 0 {
			s.start(t)
			s.awaitLeader(t, 1, 1)
			s.acquire(t, 1)
		}
		var stopped atomic.Bool
		var wg sync.WaitGroup
		h := s.host
		wg.Go(func() {
			for i := 0; !stopped.Load(); i++ {
				done := make(chan Outcome, 1)
				h.Propose(1, s.entryNow(1, "a", fmt.Sprint(i)), time.Second,
					func(o Outcome) { done <- o })
				if o := <-done; o.Err != nil && h.closing.Load() {
					return
				}
			}
		})
		child := uint64(10 + run)
		s.splitWhile(t, 1, child, fmt.Sprintf("k%d", 9-run))
		<-time.After(30 * time.Millisecond)
		s.stopHost(t)
		stopped.Store(true)
		wg.Wait()
		s.closeEngine(t)
	}
	s.start(t)
	for _, cr := range s.catalog.Replicas() {
		if st := cr.State(); !st.Serving() {
			t.Errorf("range %d is %s: %s", st.RangeID(), st.Status(), st.PB().GetPoisonReason())
		}
	}
}

// TestPoisonedLeader: a leader that must not go on hands over and stops.
func TestPoisonedLeader(t *testing.T) {
	c := threeVoters(t, nil)
	must(t, c.stores[1].catalog.Poison(1, 1, "a test"))
	c.stores[1].catalog.Ring()
	eventually(t, "another leads", func() error {
		if l := c.stores[2].host.Leader(1); !l.Known || l.StoreID == 1 {
			return fmt.Errorf("led by %+v", l)
		}
		return nil
	})
	eventually(t, "stopped", func() error {
		if _, runs := c.stores[1].host.replica(1); runs {
			return errors.New("it runs")
		}
		return nil
	})
	lead := c.leader(t, 1)
	lead.acquire(t, 1)
	lead.put(t, 1, "a", "1")
	c.stores[1].restart(t)
	if _, runs := c.stores[1].host.replica(1); runs {
		t.Error("a poisoned replica was started")
	}
	// It is replaced under another id.
	ctx := testContext(t)
	must(t, lead.host.RemoveReplica(ctx, 1, 1, lead.config(t, 1)))
	must(t, c.stores[1].host.DestroyReplica(ctx, 1, 1))
	c.grow(t, 1, 11, 1)
}

// TestHaltedLeader: a leader that decides nothing hands over and stays.
func TestHaltedLeader(t *testing.T) {
	c := threeVoters(t, nil)
	cr, _ := c.stores[1].catalog.Replica(1)
	cr.Lock()
	st, a := cr.Both()
	c.stores[1].catalog.Update(1, st.WithHalted("a test"), a)
	cr.Unlock()
	c.stores[1].catalog.Ring()
	eventually(t, "another leads", func() error {
		if l := c.stores[2].host.Leader(1); !l.Known || l.StoreID == 1 {
			return fmt.Errorf("led by %+v", l)
		}
		return nil
	})
	if _, runs := c.stores[1].host.replica(1); !runs {
		t.Error("a halted replica was stopped")
	}
}

// TestMutualTLS: stores that show a certificate of the CA reach each other;
// one that speaks in the clear reaches nobody.
func TestMutualTLS(t *testing.T) {
	files := testCertificates(t)
	registry := prometheus.NewRegistry()
	c := startTestCluster(t, 3, func(o *Options) {
		if o.StoreID != 3 {
			o.TLS = files
		}
		if o.StoreID == 1 {
			o.Registerer = registry
		}
	})
	lead := c.stores[1]
	lead.put(t, 1, "a", "1")
	c.grow(t, 1, 2, 2)
	ctx := testContext(t)
	must(t, lead.host.AddLearner(ctx, 1, 3, 3, lead.config(t, 1)))
	must(t, c.stores[3].host.CreateLearner(ctx, 1, 3))
	<-time.After(500 * time.Millisecond)
	if st := c.stores[3].state(t, 1); st.Status() != logpb.ReplicaState_REPLICA_STATE_JOINING {
		t.Errorf("a store without TLS received an image: it is %s", st.Status())
	}
	families, err := registry.Gather()
	if err != nil || len(families) < 8 {
		t.Errorf("%d metric families: %v", len(families), err)
	}
}

// entryNow is entry for other goroutines than the test's.
func (s *testStore) entryNow(rangeID uint64, key, value string) []byte {
	r, _ := s.catalog.Replica(rangeID)
	st, a := r.Both()
	return writeEntry(st, a, key, value)
}

// splitWhile splits while others write: their numbers come in between.
func (s *testStore) splitWhile(t *testing.T, rangeID, childID uint64, key string) {
	t.Helper()
	eventually(t, "split", func() error {
		r, _ := s.catalog.Replica(rangeID)
		if _, ok := s.catalog.Replica(childID); ok {
			return nil
		}
		for _, u := range r.State().Unborn() {
			s.acquireNow(u.GetRangeId())
		}
		st, a := r.Both()
		o := s.propose(t, rangeID, splitEntry(st, a, childID, key, s.config(t, rangeID), 1))
		return applied(o)
	})
}

// acquireNow tries to take a lease once.
func (s *testStore) acquireNow(rangeID uint64) {
	r, ok := s.catalog.Replica(rangeID)
	if !ok {
		return
	}
	done := make(chan Outcome, 1)
	s.host.Propose(rangeID, acquireEntry(r.State(), s.id), time.Second,
		func(o Outcome) { done <- o })
	<-done
}

func testCertificates(t *testing.T) *TLSFiles {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ridge test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	cert := write("cert.pem", "CERTIFICATE", der)
	return &TLSFiles{CA: cert, Cert: cert, Key: write("key.pem", "EC PRIVATE KEY", keyDER)}
}
